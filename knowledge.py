"""What is known of a gene: feature tables, each of which becomes one kernel of the response model.

In: the training statistics, control cells and signature lists (`training_knowledge`), and the user's own files
(`read_features`: gene sets, graphs, vectors). Out: `GeneKnowledge`, which `response.py` takes next. A table need not
know every gene: one that is missing from it is predicted from the others.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from contract import CRUNCH
from helpers import DataError, PerturbationStats, check_header, dense, open_hdf5, some
from screens import SCREENS_FOLDER, Screen

FEATURES_FOLDER = "features"  # of the model folder: the user's own tables
COEXPRESSION_COMPONENTS = 10
SIMILARITY_COMPONENTS = 100  # of a screen


@dataclass(frozen=True)
class FeatureTable:
    """Features of genes: genes x features, sparse or dense. Each of `powers` makes a kernel with a weight of its own.

    A kernel of two genes is the product of their rows, to the power. Rows have length 1 unless a table says otherwise,
    so the product is a cosine; its cube counts close neighbours more. It is 0 for a gene without a row: a gene which is
    missing from one table is predicted from the others.
    """

    genes: pd.Index
    features: Any  # csr_matrix or ndarray, float64
    powers: tuple[int, ...] = (1,)

    def rows(self, genes: Sequence[str]) -> Any:
        """The rows of `genes`, zeros where there is none."""
        position = self.genes.get_indexer(pd.Index(genes))
        known = np.flatnonzero(position >= 0)
        shape = (len(position), len(self.genes))
        return sp.csr_matrix((np.ones(len(known)), (known, position[known])), shape=shape) @ self.features

    def kernels(self, left: Sequence[str], right: Sequence[str]) -> list[np.ndarray]:
        """By power, the kernel of each gene of `left` with each of `right`: len(left) x len(right), float64."""
        product = self.rows(left) @ self.rows(right).T
        product = product.toarray() if sp.issparse(product) else product
        return [_to_power(product, power) for power in self.powers]

    def diagonals(self, genes: Sequence[str]) -> list[np.ndarray]:
        """By power, the kernel of each of `genes` with itself: (genes,), float64."""
        square = _squares(self.rows(genes))
        return [_to_power(square, power) for power in self.powers]

    def known(self, genes: Sequence[str]) -> np.ndarray:
        """Which genes have a row."""
        return self.genes.get_indexer(pd.Index(genes)) >= 0

    @classmethod
    def of(
        cls,
        genes: Sequence[str],
        features: Any,
        powers: tuple[int, ...] = (1,),
        lengths: pd.Series | None = None,
    ) -> FeatureTable:
        """Bring the rows to length 1 (or to `lengths`, by gene); rows of zeros are left out."""
        names = pd.Index(genes)
        matrix = sp.csr_matrix(features, dtype=np.float64) if sp.issparse(features) else np.asarray(features, float)
        length = np.sqrt(_squares(matrix))
        wanted = np.ones(len(names)) if lengths is None else lengths[names].to_numpy()
        kept = (length > 0) & (wanted > 0)
        scale = sp.diags_array(wanted[kept] / length[kept]).tocsr()
        return cls(names[kept], scale @ matrix[kept], powers)


def _to_power(values: np.ndarray, power: int) -> np.ndarray:
    """Repeated products, which are many times faster than `**`."""
    result = values
    for _ in range(power - 1):
        result = result * values
    return result


def _squares(rows: Any) -> np.ndarray:
    """The squared length of each row, sparse or dense."""
    return np.asarray(rows.multiply(rows).sum(axis=1)).ravel() if sp.issparse(rows) else (rows**2).sum(axis=1)


def gene_set_table(sets: dict[str, list[str]]) -> FeatureTable:
    """Gene sets: squared cosine of the memberships, a set weighing log(all genes / its genes) as in TF-IDF."""
    genes, incidence = _incidence(sets)
    size = np.asarray(incidence.sum(axis=0)).ravel()
    return FeatureTable.of(genes, incidence @ sp.diags_array(np.log((1 + len(genes)) / size)), powers=(2,))


def edge_table(source: Sequence[str], target: Sequence[str]) -> FeatureTable:
    """A graph: cosine of the neighbourhoods (the gene itself included), a hub weighing 1 / sqrt(its degree)."""
    genes = pd.Index(sorted({*source, *target}))
    i, j = genes.get_indexer(pd.Index(source)), genes.get_indexer(pd.Index(target))
    graph = sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(len(genes), len(genes)))
    graph = ((graph + graph.T + sp.eye_array(len(genes))) > 0).astype(float)
    degree = np.asarray(graph.sum(axis=0)).ravel()
    return FeatureTable.of(genes, graph @ sp.diags_array(1.0 / np.sqrt(degree)))


def symbol_table(genes: Sequence[str]) -> FeatureTable:
    """The family part of gene symbols: their first 2 to 5 characters, and the letters before the first digit.

    A name of several genes, such as `A+B`, is no symbol and gets no row.
    """
    groups: dict[str, list[str]] = {}
    for gene in genes:
        if "+" in gene:
            continue
        family = "family " + re.split("[0-9]", gene, maxsplit=1)[0]
        for part in dict.fromkeys([*(gene[:k] for k in range(2, 6)), family]):
            groups.setdefault(part, []).append(gene)
    names, incidence = _incidence(groups)
    size = np.asarray(incidence.sum(axis=0)).ravel()
    return FeatureTable.of(names, incidence @ sp.diags_array(np.log((1 + len(names)) / size)))


def numeric_table(table: pd.DataFrame) -> FeatureTable:
    """Numbers (genes x features): cosine of the standardised columns."""
    values = table.to_numpy(np.float64)
    spread = values.std(axis=0)
    return FeatureTable.of(table.index, (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _incidence(groups: dict[str, list[str]]) -> tuple[pd.Index, sp.csr_matrix]:
    """Sparse genes x groups."""
    genes = pd.Index(sorted({gene for group in groups.values() for gene in group}))
    pairs = [(gene, j) for j, group in enumerate(groups.values()) for gene in dict.fromkeys(group)]
    rows, columns = genes.get_indexer(pd.Index([gene for gene, _ in pairs])), [j for _, j in pairs]
    return genes, sp.csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(genes), len(groups)))


def screen_table(screen: Screen) -> FeatureTable:
    """A screen: cosine of the profiles, and its cube. Components weigh by the square root of their length."""
    scores = screen.scores[:, :SIMILARITY_COMPONENTS].astype(np.float64)
    lengths = np.maximum(np.linalg.norm(scores, axis=0), 1e-12)
    return FeatureTable.of(screen.perturbations, scores / np.sqrt(lengths), powers=(1, 3))


@dataclass(frozen=True)
class GeneKnowledge:
    """What the response model may use of genes: feature `tables`, other `screens`, and a `template` of the response.

    The template is a screen that nobody measured: its profiles are what a knock-out does, up to a factor that the model
    learns, before it has seen any like it. It is used for that alone, and not as a table.
    """

    tables: dict[str, FeatureTable]
    screens: dict[str, Screen] = field(default_factory=dict)
    template: Screen | None = None


def training_knowledge(
    stats: PerturbationStats, pool: ad.AnnData, signatures: pd.DataFrame, symbols: Iterable[str]
) -> GeneKnowledge:
    """What needs no outside data, of the measured genes and the symbols of all targets; `pool` are control cells.

    `expression`: mean, detection rate and log dispersion in control cells; `co-expression`: loadings on the principal
    components of the pool's cells, as long as the detection rate (a gene that is not expressed has nothing to lose);
    `programs`: correlation with each program's mean signature there; `signature`: membership in the signature lists;
    `symbol`: the family part of the name. The template: what is co-expressed with the target falls with it.
    """
    mean, variance, detection = (table.loc[CRUNCH.control] for table in (stats.mean, stats.variance, stats.detection))
    level = {"mean": mean, "detection": detection, "dispersion": np.log((variance + 1e-3) / (mean + 1e-3))}
    cells = np.asarray(dense(pool.X), np.float32)
    cells = cells - cells.mean(axis=0)
    spread = np.maximum(cells.std(axis=0), 1e-3)
    cells /= spread
    _, axes = np.linalg.eigh((cells @ cells.T).astype(np.float64))
    axes = axes[:, ::-1][:, : min(COEXPRESSION_COMPONENTS, max(1, len(cells) - 1))]
    loadings = pd.DataFrame(cells.T @ axes.astype(np.float32) / np.sqrt(len(cells)), index=pool.var_names)
    program, sig_gene = CRUNCH.signature_columns
    sets = {name: list(group) for name, group in signatures.groupby(program)[sig_gene]}
    tables = {
        "expression": numeric_table(pd.DataFrame(level)),
        "co-expression": FeatureTable.of(pool.var_names, loadings, lengths=detection),
        "programs": numeric_table(_program_correlations(cells, pool.var_names, sets)),
        "signature": gene_set_table(sets),
        "symbol": symbol_table(sorted({*pool.var_names, *symbols})),
    }
    falls = loadings.mul(-detection[loadings.index], axis=0)
    template = Screen(loadings.index, loadings.index, falls.to_numpy(), (loadings.T * spread).to_numpy())
    return GeneKnowledge(tables, template=template)


def _program_correlations(cells: np.ndarray, genes: pd.Index, sets: dict[str, list[str]]) -> pd.DataFrame:
    """Genes x programs: correlation over standardised cells with the mean of the program's signature genes."""
    columns = {}
    for name, group in sets.items():
        score = cells[:, genes.isin(group)].sum(axis=1)
        columns[name] = (score - score.mean()) / max(float(score.std()), 1e-6) @ cells / len(cells)
    return pd.DataFrame(columns, index=genes)


def used_files(folder: str | Path) -> list[str]:
    """What a model folder holds of the user's own knowledge, as `features/NAME` or `screens/NAME`, sorted."""
    paths = [path for name in (FEATURES_FOLDER, SCREENS_FOLDER) for path in (Path(folder) / name).glob("*")]
    notes = (".md", ".txt", ".json")
    files = [path for path in paths if not path.name.startswith(".") and path.suffix.lower() not in notes]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def file_digests(folder: str | Path) -> dict[str, str]:
    """By name, a digest of what each of the `used_files` holds, wherever the folder lies; of a folder or pipe none."""
    digests = {}
    for name in used_files(folder):
        path = Path(folder) / name
        if path.is_file():
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def read_features(folder: str | Path, genes: Iterable[str]) -> dict[str, FeatureTable]:
    """The user's tables in a folder, by file name.

    `.gmt` are gene sets; `.csv`, `.tsv`, `.parquet` and `.h5ad` genes x features (first column or index: the gene);
    `.csv` and `.tsv` with columns `source` and `target` a graph. `.gmt`, `.csv` and `.tsv` may end in `.gz`.

    `genes` are the perturbations and targets. Symbols in other case are matched with a warning; repeated genes are
    averaged, sets of one name joined, rows without a name, constant, non-finite and text columns dropped, a table
    without any of `genes` left out, each with a warning that names file and column. Raises DataError for a file that
    cannot be read, has no header, is a graph without its columns, or has no usable column.
    """
    if Path(folder).is_file():
        raise DataError(f"{folder}: not a folder; put the feature tables into a folder of that name")
    wanted = pd.Index(sorted(set(genes)))
    tables = {}
    for path in sorted(Path(folder).glob("*")):
        kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
        if path.name.startswith(".") or path.suffix.lower() in (".md", ".txt"):
            continue
        if kind not in FEATURE_READERS:
            raise DataError(f"{path}: not a feature table; use {', '.join('.' + name for name in FEATURE_READERS)}")
        if not path.is_file():  # a pipe would wait for ever
            raise DataError(f"{path}: not a file; only feature tables belong here")
        try:
            table = FEATURE_READERS[kind](path, wanted)
        except (DataError, MemoryError, Warning):
            raise
        except Exception as error:  # a damaged or foreign file breaks its reader in any way; parquet needs pyarrow
            raise DataError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())}") from error
        if not table.known(wanted).any():
            _warn(f"{path}: none of its genes ({some(table.genes, 3)}) is a perturbation or target; left out")
            continue
        tables[path.name] = table
    return tables


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _as_symbols(names: Iterable[object], wanted: pd.Index, path: Path) -> pd.Index:
    """Names as they are, or in upper case where only so one is known; "" for a missing one."""
    found = pd.Index(["" if pd.isna(name) else str(name).strip() for name in names], dtype=object)
    upper = found.str.upper()
    other = ~found.isin(wanted) & upper.isin(wanted)
    if other.any():
        _warn(f"{path}: gene symbols are not in upper case ({some(found[other].unique(), 3)}); matched in upper case")
    return found.where(~other, upper)


def _read_gmt(path: Path, wanted: pd.Index) -> FeatureTable:
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
        fields = [line.rstrip("\n").split("\t") for line in lines if line.strip()]
    if not any(len(line) > 2 for line in fields):
        raise DataError(f"{path}: no gene set: a line is `name<TAB>description<TAB>gene<TAB>gene ...`")
    sets: dict[str, list[str]] = {}
    for name, _, *genes in (line for line in fields if len(line) > 1):
        sets.setdefault(name, []).extend(gene for gene in genes if gene)
    if twice := [name for name, n in Counter(line[0] for line in fields).items() if n > 1]:
        _warn(f"{path}: sets of the same name are joined: {some(twice)}")
    names = sorted({gene for group in sets.values() for gene in group})
    symbol = dict(zip(names, _as_symbols(names, wanted, path), strict=True))
    return gene_set_table({name: [symbol[gene] for gene in group] for name, group in sets.items() if group})


def _read_text_table(path: Path, wanted: pd.Index) -> FeatureTable:
    separator, names = "\t" if ".tsv" in path.name.lower() else ",", dict.fromkeys((0, "source", "target"), str)
    missing = ["", "nan", "NaN", "inf", "-inf"]  # numbers; a gene may be called so
    table = pd.read_csv(path, sep=separator, keep_default_na=False, na_values=missing, converters=names)
    check_header(table.columns, path)
    if table.columns[0] in wanted and pd.to_numeric(table.columns[1:], errors="coerce").notna().all():
        raise DataError(f"{path}: begins with the gene {table.columns[0]}; put names of columns above it")
    if table.shape[1] == 1:
        name = str(table.columns[0])
        remedies = {
            ";": "it is separated by semicolons: write it with commas",
            ",": "it is separated by commas: rename it to .csv",
            "\t": "it is separated by tabs: rename it to .tsv",
            " ": "is it separated by spaces? Write it with commas",
        }
        remedy = next((remedies[mark] for mark in remedies if mark in name), "genes and at least one column are needed")
        raise DataError(f"{path}: only one column, {name!r}; {remedy}")
    if {"source", "target"} <= set(table.columns):
        ends = [_as_symbols(table[column], wanted, path) for column in ("source", "target")]
        if (empty := (ends[0] == "") | (ends[1] == "")).any():
            _warn(f"{path}: {empty.sum()} edges without a source or target are left out")
        return edge_table(*(end[~empty] for end in ends))
    first, second = table.iloc[:, 0], table.iloc[:, 1]
    if not pd.api.types.is_numeric_dtype(second) and (first.duplicated().any() or second.isin(first).any()):
        raise DataError(f"{path}: looks like a graph; call its columns {some(table.columns[:2])} source and target")
    return _clean_numbers(table.set_index(table.columns[0]), wanted, path)


def _clean_numbers(table: pd.DataFrame, wanted: pd.Index, path: Path) -> FeatureTable:
    """Genes x features: numbers that vary, one row per gene."""
    table = table.set_axis(_as_symbols(table.index, wanted, path))
    if (empty := table.index == "").any():
        _warn(f"{path}: {empty.sum()} rows without a gene are left out")
        table = table[~empty]
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    numbers = table.drop(columns=text).astype(float)
    not_finite = list(numbers.columns[~np.isfinite(numbers).all()])
    numbers = numbers.drop(columns=not_finite)
    constant = list(numbers.columns[numbers.max() == numbers.min()])
    numbers = numbers.drop(columns=constant)
    for names, what in ((text, "text"), (not_finite, "missing or infinite values"), (constant, "one value only")):
        if names:
            _warn(f"{path}: columns left out, since they hold {what}: {some(names)}")
    if numbers.shape[1] == 0:
        raise DataError(f"{path}: no column of numbers that vary; it has {some(table.columns)}")
    if numbers.index.has_duplicates:
        repeated = numbers.index[numbers.index.duplicated()].unique()
        _warn(f"{path}: repeated genes are averaged: {some(repeated)}")
        numbers = numbers.groupby(level=0).mean()
    return numeric_table(numbers)


def _read_parquet(path: Path, wanted: pd.Index) -> FeatureTable:
    table = pd.read_parquet(path)
    first = table.columns[0]
    if not pd.api.types.is_numeric_dtype(table[first]) and isinstance(table.index, pd.RangeIndex):
        table = table.set_index(first)
    return _clean_numbers(table, wanted, path)


def _read_h5ad_table(path: Path, wanted: pd.Index) -> FeatureTable:
    with open_hdf5(path):  # which refuses what lies in other files
        return _clean_numbers(ad.read_h5ad(path).to_df(), wanted, path)


FEATURE_READERS: dict[str, Callable[[Path, pd.Index], FeatureTable]] = {
    "gmt": _read_gmt,
    "csv": _read_text_table,
    "tsv": _read_text_table,
    "parquet": _read_parquet,
    "h5ad": _read_h5ad_table,
}
