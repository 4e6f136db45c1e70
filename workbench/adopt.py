r"""Your own screen: any Perturb-seq `.h5ad` becomes a data folder, on which everything here works.

    python -m workbench.adopt FILE.h5ad [FILE ...] OUT --perturbation COLUMN --control NAME
    ... --layer counts                                      the counts are in layers["counts"], not in X
    ... --guide-pattern '^(.+?)[-_]?g?\d+$'                 names are guides: the first group is the gene
    ... --states COLUMN --targets FILE --genes FILE         states of the cells, what to predict, and on which genes

In: one or several files of one screen, cells x genes (CSR or dense), counts or normalised values. Out: the files of
the challenge's `data/` folder: training cells sorted by perturbation, on the scale log2(1 + 1e5 * count / total); the
cells of up to five perturbations apart, to score on; targets, genes and, with `--states`, proportions. The matrix is
read and written by slabs. What is left out is counted and printed.

`workbench.adoption.labels` says how the label of a cell is read. Next: `python -m workbench.demo --data OUT`, or
`python -m workbench.predict OUT --targets A,B --out predicted.h5ad`.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import h5py
import pandas as pd

import helpers
from combinations import genes_in
from contract import CHOICE, CRUNCH
from helpers import DataError, some, text_size, text_time
from workbench.adoption.cells import FEWEST_CELLS, Cells
from workbench.adoption.files import ADOPTED, value_counts, write_folder
from workbench.adoption.labels import TOO_FEW, Naming
from workbench.adoption.source import Source, read_source, shared_genes, symbols
from workbench.adoption.values import SAID
from workbench.commands import check_folder, command_line
from workbench.simulate import FILES

SPEED = 40e6  # stored values a second on two cores


def adopt(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    perturbation: str,
    control: str,
    targets: str | Path | None = None,
    genes: str | Path | None = None,
    states: str | None = None,
    layer: str | None = None,
    guide_pattern: str | None = None,
    executor: Executor | None = None,
) -> helpers.Challenge:
    """Write the data folder `out` from the files of a screen and return it, loaded; the options are the command's.

    `executor` is anything with the interface of `concurrent.futures` that reaches the files (default: threads).
    Raises DataError for what cannot be used; then nothing is written.
    """
    if CRUNCH.asks_for_doubles:
        raise DataError(f"{CHOICE} is set: a screen is adopted in the layout of crunch 1, doubles too; unset {CHOICE}")
    sources = [Path(file) for file in files]
    folder, pattern = _checked_out(Path(out), sources), _checked_pattern(guide_pattern)
    element = "X" if layer is None else f"layers/{layer}"
    screen = [read_source(path, element, perturbation, states) for path in sources]
    shared = shared_genes(screen)
    labels = {label for source in screen for label in source.labels.cat.categories}
    naming = Naming(control, frozenset(shared), symbols(screen), pattern, frozenset(labels))
    lengths = value_counts(screen, shared, executor)
    cells = Cells.of(screen, lengths, naming, perturbation)
    lists = {CRUNCH.targets_file: _targets(targets, shared, cells), CRUNCH.genes_file: _listed_genes(genes, shared)}
    _say(screen, cells, shared, lists, hint=pattern is None)
    write_folder(folder, screen, cells, shared, lists, executor)
    return helpers.load_challenge(folder)


def _checked_out(folder: Path, files: Sequence[Path]) -> Path:
    if folder.is_file() or folder.suffix in (".h5ad", ".zarr"):
        raise DataError(f"{folder}: the last name is the folder to write; it must not be a file")
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: no such file")
        if path.is_dir() or not h5py.is_hdf5(path):
            raise DataError(f"{path}: not a readable .h5ad file, perhaps a broken download")
        if path.resolve().parent == folder.resolve():
            raise DataError(f"{folder}: the folder of {path.name}, which is an input; name another folder to write")
    if len({path.resolve() for path in files}) < len(files):
        raise DataError(f"{some(files)}: a file is named twice")
    there = [folder / name for name in FILES if (folder / name).exists()]
    if there and not is_adopted(folder / CRUNCH.train_file):
        raise DataError(f"{there[0]}: is there and was not made by this command; name another folder to write")
    check_folder(folder)
    return folder


def is_adopted(path: Path) -> bool:
    """Whether a training file was made by this module."""
    try:
        with h5py.File(path, "r") as file:
            return f"uns/{ADOPTED}" in file
    except OSError:
        return False


def _checked_pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise DataError(f"--guide-pattern {text}: not a regular expression ({error})") from error


def _targets(path: str | Path | None, genes: pd.Index, cells: Cells) -> pd.Index:
    """The targets: of a list, or all genes; without those that were perturbed. Raises DataError where none is left.

    Of a list, a combination is left out if it was measured itself; without one, a gene that any combination holds.
    """
    if path is None:
        wanted = genes[~genes.isin(genes_in(cells.perturbations)) & (genes != CRUNCH.control)]
    else:
        names, measured = _read_list(Path(path)), {frozenset(CRUNCH.genes_of(name)) for name in cells.perturbations}
        wanted = names[[frozenset(CRUNCH.genes_of(name)) not in measured | {frozenset()} for name in names]]
        if out := len(names) - len(wanted):
            print(f"{path}: {out} of {len(names)} targets left out, since they were perturbed or are the control.")
    if wanted.empty:
        raise DataError(f"{path or 'the screen'}: nothing is left to predict: all was perturbed")
    return wanted


def _listed_genes(path: str | Path | None, genes: pd.Index) -> pd.Index:
    """The genes to predict on: of a list, or all. Raises DataError for a list of which fewer than two are measured."""
    if path is None:
        return genes
    names = _read_list(Path(path))
    known = names[names.isin(genes)]
    if len(known) < 2:
        raise DataError(
            f"{path}: {len(known) or 'none'} of its {len(names)} genes is measured; it names {some(names, 3)}"
        )
    if len(known) < len(names):
        print(
            f"{path}: {len(names) - len(known)} genes left out, which were not measured: "
            f"{some(names.difference(known), 5)}"
        )
    return known


def _read_list(path: Path) -> pd.Index:
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise DataError(f"{path}: not a file; name a text of one name a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a text of one name a line ({error})") from error
    names = pd.Index([line.strip() for line in lines if line.strip()])
    if names.empty:
        raise DataError(f"{path}: the file is empty")
    return names.unique()


def _say(screen: Sequence[Source], cells: Cells, genes: pd.Index, lists: dict[str, pd.Index], *, hint: bool) -> None:
    """What was found, what is left out and why, and how long it takes."""
    kept = cells.codes >= 0
    for source in screen:
        print(
            f"{source.path}: {source.shape[0]:,} cells x {source.shape[1]:,} genes; {source.element} holds "
            f"{SAID[source.kind]}."
        )
        if n := int(source.genes.duplicated().sum()):
            print(f"  {n} genes stand twice: their counts are added up.")
        if n := int((~source.genes.unique().isin(genes)).sum()):
            print(f"  {n:,} genes are not in all files: left out.")
    control = cells.names.get_loc(CRUNCH.control)
    several = [name for name in cells.names if CRUNCH.is_combination(name)]
    print(
        f"Kept: {kept.sum():,} cells, {(cells.codes == control).sum():,} of them control, and "
        f"{len(cells.names) - 1:,} perturbations" + (f", {len(several):,} of several genes." if several else ".")
    )
    for reason, n in cells.left_out.items():
        if n:
            of = f" ({some(cells.too_few, 5)}; {FEWEST_CELLS} are needed)" if reason == TOO_FEW else ""
            print(f"  left out: {n:,} cells, {reason}{of}")
    single = cells.perturbations[[not CRUNCH.is_combination(name) for name in cells.perturbations]]
    if len(unknown := single[~single.isin(genes)]):
        guides = (
            "; do their names carry a guide? See --guide-pattern" if hint and len(unknown) > len(single) / 2 else ""
        )
        print(f"  {len(unknown)} of {len(single)} perturbations are no measured genes: {some(unknown, 5)}{guides}")
    print(
        f"Set apart to score on: {some(cells.scored) or 'none, there are too few'}. To predict: "
        f"{len(lists[CRUNCH.targets_file]):,} targets on {len(lists[CRUNCH.genes_file]):,} genes. "
        + ("" if cells.states is not None else "No states, so no proportions are predicted.")
    )
    values = int(cells.lengths[kept].sum())
    print(f"Writing {text_size(8 * values)} takes {text_time(values / SPEED)}.", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.adopt", description=__doc__.splitlines()[0])
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="cells x genes, .h5ad; several are one screen"
    )
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--perturbation", required=True, metavar="COLUMN", help="of obs: the perturbation of each cell")
    parser.add_argument("--control", required=True, metavar="NAME", help="the control in that column")
    parser.add_argument("--targets", type=Path, metavar="FILE", help="what to predict, one gene a line (default: all)")
    parser.add_argument("--genes", type=Path, metavar="FILE", help="the genes to predict on (default: all)")
    parser.add_argument(
        "--states",
        metavar="COLUMN",
        help=f"of obs: the state of each cell: {some(CRUNCH.states)} ({CRUNCH.part} counts as {CRUNCH.whole} too)",
    )
    parser.add_argument("--layer", metavar="NAME", help="read layers[NAME] in place of X")
    parser.add_argument("--guide-pattern", metavar="REGEX", help="its first group is the gene in a guide's name")
    options = vars(parser.parse_args())
    began = time.monotonic()
    challenge = adopt(options.pop("files"), options.pop("out"), **options)
    seconds = time.monotonic() - began
    print(
        f"{challenge.folder}: {len(challenge.obs):,} training cells x {len(challenge.genes):,} genes, "
        f"{len(challenge.perturbations)} perturbations, in {seconds:.0f} s.\n"
        f"Next: python -m workbench.demo --data {challenge.folder}, or python -m workbench.cross_validate --data "
        f"{challenge.folder} --out table.csv, or python -m workbench.predict {challenge.folder} --targets A,B --out "
        "predicted.h5ad"
    )


if __name__ == "__main__":
    main()
