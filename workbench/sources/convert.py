"""What was fetched, made small: gene sets, a graph or a screen, as the model reads them from `resources/`.

In: the raw files of a source. Out: one file, and how many genes it knows. Whatever cannot be read as its source's form
is a `DataError` that names the file. No pickle is ever read. Next: `record.py`.
"""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import DataError, progress_bar, replacing
from screens import Screen, read_screen, write_screen

GENES_OF_A_SET = (5, 500)  # of the Gene Ontology: smaller and larger sets say little
CONFIDENCE = 700  # of STRING: "high", of 999
ROWS = 500_000  # of STRING's links at a time

GeneSets = dict[str, tuple[str, list[str]]]  # identifier -> name, symbols


def read_reactome(files: Sequence[Path]) -> GeneSets:
    """The one `.gmt` of a zip: a line is name, identifier, symbols, with tabs between."""
    sets = {}
    with _reading(files[0]):
        for line in filter(str.strip, _member(files[0], ".gmt").splitlines()):
            name, identifier, *genes = line.rstrip().split("\t")
            sets[identifier] = (name, sorted({gene for gene in genes if gene}))
    return _not_empty(sets, files[0])


def read_go(files: Sequence[Path]) -> GeneSets:
    """Annotations (GAF) and the ontology (OBO): each gene in its terms and all their ancestors by is_a and part_of.

    Annotations with the qualifier NOT and obsolete terms do not count; sets of 5 to 500 genes are kept.
    """
    annotations, ontology = files
    terms, parents = _read_obo(ontology)
    members: dict[str, set[str]] = {}
    with _reading(annotations), gzip.open(annotations, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("!") or not line.strip():
                continue
            _, _, gene, qualifier, term = line.split("\t")[:5]
            if "NOT" not in qualifier.split("|"):
                members.setdefault(term, set()).add(gene)
    sets: dict[str, set[str]] = {}
    for term, genes in progress_bar("GO terms", iterable=members.items()):
        for ancestor in _ancestors(term, parents):
            sets.setdefault(ancestor, set()).update(genes)
    least, most = GENES_OF_A_SET
    kept = {term: genes for term, genes in sorted(sets.items()) if term in terms and least <= len(genes) <= most}
    return _not_empty({term: (terms[term], sorted(genes)) for term, genes in kept.items()}, annotations)


def _read_obo(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names of the terms that are not obsolete, and the parents of each; a term is the parent of its other names."""
    terms: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    with _reading(path):
        for stanza in path.read_text(encoding="utf-8").split("\n[")[1:]:
            kind, *lines = stanza.splitlines()
            fields = [line.split(": ", 1) for line in lines if ": " in line]
            values = {key: [value for name, value in fields if name == key] for key, _ in fields}
            if kind != "Term]" or values.get("is_obsolete") == ["true"]:
                continue
            term = values["id"][0]
            terms[term] = values["name"][0]
            related = [value.split() for value in values.get("relationship", [])]
            parents[term] = [value.split()[0] for value in values.get("is_a", [])]
            parents[term] += [other for relation, other, *_ in related if relation == "part_of"]
            parents.update({other: [term] for other in values.get("alt_id", [])})
    return _not_empty(terms, path), parents


def _ancestors(term: str, parents: dict[str, list[str]]) -> set[str]:
    """A term and all above it."""
    found, left = {term}, [term]
    while left:
        above = set(parents.get(left.pop(), [])) - found
        found |= above
        left.extend(above)
    return found


def read_string(files: Sequence[Path]) -> pd.DataFrame:
    """Links of at least `CONFIDENCE`, each once, as symbols: columns `source` and `target`."""
    links, info = files
    with _reading(info):
        columns = ["#string_protein_id", "preferred_name"]
        # No quotes: the annotations have unpaired ones. No missing values: a gene may be called NA.
        table = pd.read_csv(info, sep="\t", usecols=columns, quoting=csv.QUOTE_NONE, keep_default_na=False)
        symbols = table.set_index(columns[0])[columns[1]]
    strong = []
    with (
        _reading(links),
        links.open("rb") as raw,
        gzip.open(raw) as lines,
        progress_bar("STRING's links", total=links.stat().st_size, unit="B", unit_scale=True) as bar,
    ):
        for chunk in pd.read_csv(lines, sep=" ", chunksize=ROWS):
            strong.append(chunk.loc[chunk["combined_score"] >= CONFIDENCE, ["protein1", "protein2"]])
            bar.update(raw.tell() - bar.n)
    proteins = pd.concat(strong)
    named = pd.DataFrame({name: proteins[name].map(symbols) for name in proteins}).dropna()
    pairs = pd.DataFrame(np.sort(named.to_numpy(str), axis=1), columns=["source", "target"])
    pairs = pairs[pairs["source"] != pairs["target"]].drop_duplicates().sort_values(["source", "target"])
    return _not_empty(pairs, links)


def write_sets(path: Path, sets: GeneSets) -> int:
    """A `.gmt.gz`, the same bytes for the same sets; returns the number of genes."""
    lines = ["\t".join([identifier, name, *genes]) for identifier, (name, genes) in sets.items()]
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), compresslevel=6, mtime=0))
    return len({gene for _, genes in sets.values() for gene in genes})


def write_edges(path: Path, edges: pd.DataFrame) -> int:
    """A `.csv.gz`, the same bytes for the same edges; returns the number of genes."""
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(edges.to_csv(index=False).encode(), compresslevel=6, mtime=0))
    return len({*edges["source"], *edges["target"]})


def _member(path: Path, ending: str) -> str:
    """The text of the one member of a zip that ends so."""
    with zipfile.ZipFile(path) as packed:
        found = [name for name in packed.namelist() if name.endswith(ending)]
        if len(found) != 1:
            raise DataError(f"{path}: holds {len(found)} files that end in {ending}, not one: {', '.join(found)}")
        return packed.read(found[0]).decode()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is an error of this file."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, LookupError, zlib.error, zipfile.BadZipFile) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path}: does not have the form of this source ({what}); fetch it again") from error


def _not_empty(found: Sized, path: Path) -> Any:
    if not len(found):
        raise DataError(f"{path}: nothing is left of it; fetch it again")
    return found


def _read_one_screen(files: Sequence[Path]) -> Screen:
    return read_screen(files[0])


def _write_one_screen(path: Path, screen: Screen) -> int:
    write_screen(path, screen)
    return len(screen.perturbations)


# The form of a source -> how its files are read, and how what was read is written; the latter counts the genes.
CONVERTERS: dict[str, tuple[Callable[[Sequence[Path]], Any], Callable[[Path, Any], int]]] = {
    "reactome": (read_reactome, write_sets),
    "go": (read_go, write_sets),
    "string": (read_string, write_edges),
    "screen": (_read_one_screen, _write_one_screen),
}
