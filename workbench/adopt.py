r"""Your own screen: any Perturb-seq `.h5ad` becomes a data folder, on which everything here works.

    python -m workbench.adopt FILE.h5ad [FILE ...] OUT --perturbation COLUMN --control NAME
    ... --layer counts                                      the counts are in layers["counts"], not in X
    ... --guide-pattern '^(.+?)[-_]?g?\d+$'                 names are guides: the first group is the gene
    ... --states COLUMN --targets FILE --genes FILE         states of the cells, what to predict, and on which genes

In: one or several files of one screen, cells x genes (CSR or dense), counts or normalised values. Out: the files of
the challenge's `data/` folder: training cells sorted by perturbation, on the scale log2(1 + 1e5 * count / total); the
cells of up to five perturbations apart, to score on; targets, genes and, with `--states`, proportions. The matrix is
read and written by slabs. What is left out is counted and printed.

`workbench.naming` says how the label of a cell is read. Next: `python -m workbench.demo --data OUT`, or
`python -m workbench.predict OUT --targets A,B --out predicted.h5ad`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError, map_ahead, open_element, progress_bar, replacing_all, some, text_size, text_time
from workbench.commands import check_folder, command_line
from workbench.naming import EMPTY, LEFT_OUT, NO_STATE, TOO_FEW, UNNAMED, Naming, gene_names, genes_in, similar

FEWEST_CELLS = 10  # of a perturbation that is kept, and of the control
SCORED, SCORED_CELLS = 5, 20  # perturbations that are set apart to score on, at most a fifth; cells of each, at least
TASK_VALUES = 6_000_000  # stored values that are normalised at a time: about 200 MB
LOOKED_AT = 400  # cells that say what kind of values there are
ONE_TOTAL = 1e-3  # relative: cells whose totals differ by less were normalised to one total
MOST = np.log2(1 + CRUNCH.scale) * (1 + 1e-6)  # float32 may round it up
ADOPTED = "adopted_from"  # in `uns` of the training file: the names of the files
SPEED = 40e6  # stored values a second on two cores

COUNTS, LINEAR, NATURAL, LOG2, AS_IT_IS = "counts", "linear", "natural logarithms", "log2 units", "as it is"
SAID = {
    COUNTS: "counts; they are normalised",
    LINEAR: "values that add up to one total in each cell (CPM, say); their logarithm is taken",
    NATURAL: "natural logarithms of values that add up to one total; they are brought to the scale",
    LOG2: "log2 of values that add up to one total; they are brought to the scale",
    AS_IT_IS: "normalised values of a scale that the cells do not tell; they are taken for log2 units as they are",
}


@dataclass(frozen=True)
class Source:
    """A file of the screen: where its matrix is, what kind of values it holds, and what is known of its cells.

    `labels` and `states` have one text per cell, categorical; `genes` one name per column of the matrix.
    """

    path: Path
    element: str  # "X" or "layers/NAME"
    shape: tuple[int, int]
    labels: pd.Series
    states: pd.Series | None
    cells: np.ndarray
    genes: pd.Index
    ids: pd.Index  # as `var` has them
    kind: str


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
    sources = [Path(file) for file in files]
    folder, pattern = _checked_out(Path(out), sources), _checked_pattern(guide_pattern)
    element = "X" if layer is None else f"layers/{layer}"
    screen = [_read_source(path, element, perturbation, states) for path in sources]
    shared = _shared_genes(screen)
    naming = Naming(control, frozenset(shared), _symbols(screen), pattern)
    lengths = _lengths(screen, shared, executor)
    cells = _Cells.of(screen, lengths, naming, perturbation)
    lists = {CRUNCH.targets_file: _targets(targets, shared, cells), CRUNCH.genes_file: _listed_genes(genes, shared)}
    _say(screen, cells, shared, lists)
    _write(folder, screen, cells, shared, lists, executor)
    return helpers.load_challenge(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Reading the labels
# ---------------------------------------------------------------------------------------------------------------------


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
    train = folder / CRUNCH.train_file
    if train.exists() and not is_adopted(train):
        raise DataError(f"{train}: is there and was not made by this command; name another folder to write")
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


def _read_source(path: Path, element: str, perturbation: str, states: str | None) -> Source:
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in ("obs", "var") if name not in file]:
                raise DataError(f"{path}: has no {some(missing)}; it is not an AnnData file")
            labels = _column(file["obs"], perturbation, path, "--perturbation")
            in_state = None if states is None else _column(file["obs"], states, path, "--states")
            cells, var = _index(file["obs"]), read_elem(file["var"])
            layers = list(file["layers"]) if "layers" in file else []
            if element not in file:
                beside = f"there are {some(layers)}" if layers else "there are none"
                raise DataError(
                    f"{path}: no layer {element.removeprefix('layers/')}{similar(element[7:], layers)}; {beside}"
                )
            if not hasattr(file[element], "shape") and "encoding-type" not in file[element].attrs:
                raise DataError(f"{path}: written by an old anndata; read it and write it again once")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable .h5ad file ({error})") from error
    with open_element(path, element) as matrix:
        if matrix.shape != (len(labels), len(var)):
            raise DataError(f"{path}: {element} is {matrix.shape}, but obs and var are {(len(labels), len(var))}")
        kind = _kind(matrix, f"{path}: {element}", layers)
    if in_state is not None and (unknown := sorted(set(in_state.cat.categories) - set(CRUNCH.states))):
        raise DataError(
            f"{path}: obs['{states}'] holds {some(unknown)}; the states that can be predicted are "
            f"{some(CRUNCH.states)}: name them so, or leave --states out"
        )
    ids = pd.Index(var.index.astype(str))
    return Source(path, element, matrix.shape, labels, in_state, cells, gene_names(var), ids, kind)


def _column(obs: Any, name: str, path: Path, option: str) -> pd.Series:
    """A column of `obs` as categorical texts, without reading the others."""
    whole = not isinstance(obs, h5py.Group) or "__categories" in obs  # as old versions of anndata wrote it
    columns = list(read_elem(obs).columns) if whole else [key for key in obs if key != obs.attrs.get("_index")]
    if name not in columns:
        raise DataError(f"{path}: obs has no column {name} ({option}){similar(name, columns)}; it has {some(columns)}")
    values = pd.Series(np.asarray(read_elem(obs)[name]) if whole else read_elem(obs[name]))
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    return values.cat.rename_categories([str(value) for value in values.cat.categories])


def _index(obs: Any) -> np.ndarray:
    if isinstance(obs, h5py.Group) and obs.attrs.get("_index") in obs:
        return np.asarray(read_elem(obs[obs.attrs["_index"]]), object)
    return np.asarray(read_elem(obs).index, object)


def _shared_genes(screen: Sequence[Source]) -> pd.Index:
    """The genes that all files have, in the order of the first. Raises DataError for twice the same normalised gene."""
    shared = screen[0].genes.unique()
    for source in screen:
        double = source.genes[source.genes.duplicated()].unique()
        if len(double) and source.kind != COUNTS:
            raise DataError(
                f"{source.path}: genes that stand twice, {some(double)}, can be added up where there are counts alone; "
                "give the counts (--layer), or keep one of each"
            )
        shared = shared[shared.isin(source.genes)]
    if len(shared) < 2:
        raise DataError(
            f"{some(source.path for source in screen)}: have {len(shared)} genes in common; are names alike?"
        )
    return shared


def _symbols(screen: Sequence[Source]) -> dict[str, str]:
    """The name of each gene by its identifier, where the two differ."""
    pairs = (pair for source in screen for pair in zip(source.ids, source.genes, strict=True))
    return {identifier: name for identifier, name in pairs if identifier != name}


# ---------------------------------------------------------------------------------------------------------------------
# What kind of values
# ---------------------------------------------------------------------------------------------------------------------


def _kind(matrix: Any, where: str, layers: Sequence[str]) -> str:
    """The kind of values by some cells. Raises DataError for what is neither counts nor normalised."""
    n, runs = matrix.shape[0], 8
    starts = np.unique(np.linspace(0, max(n - LOOKED_AT // runs, 0), runs).astype(int))
    parts = [sp.csr_matrix(matrix[slice(int(a), int(min(a + LOOKED_AT // runs, n)))], dtype=np.float64) for a in starts]
    cells = sp.vstack(parts).tocsr()
    cells = cells[np.diff(cells.indptr) > 0]
    if cells.nnz == 0:
        raise DataError(f"{where} holds no value above 0 in the cells looked at")
    others = [name for name in layers if not where.endswith(f"layers/{name}")]
    hint = f"--layer names another matrix ({some(others)})" if others else "give the file that has the counts"
    _check(cells.data, where, hint)
    if _is_whole(cells.data):
        return COUNTS
    if re.search(r"layers/.*(count|raw|umi)", where, re.IGNORECASE):
        raise DataError(f"{where} holds values that are no whole numbers, so these are no counts; {hint}")
    for kind in (LINEAR, NATURAL, LOG2):
        with np.errstate(over="ignore"):
            totals = np.asarray(sp.csr_matrix((UNDO[kind](cells.data), cells.indices, cells.indptr)).sum(axis=1))
        if np.isfinite(totals).all() and np.ptp(totals) <= ONE_TOTAL * np.median(totals):
            return kind
    if cells.data.max() <= MOST:
        return AS_IT_IS
    raise DataError(
        f"{where} holds values up to {cells.data.max():g} that are no whole numbers, and every cell has another total: "
        f"neither counts nor normalised; {hint}"
    )


def _check(values: np.ndarray, where: str, hint: str) -> None:
    lowest, highest = values.min(initial=0.0), values.max(initial=0.0)
    if not np.isfinite([lowest, highest]).all():
        raise DataError(f"{where} holds infinite values or NaN; {hint}")
    if lowest < 0:
        raise DataError(
            f"{where} holds negative values, down to {lowest:g}: neither counts nor their logarithms; {hint}"
        )


def _is_whole(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all())


def _linear(values: np.ndarray) -> np.ndarray:
    return values


def _exp2m1(values: np.ndarray) -> np.ndarray:
    return np.expm1(values * np.log(2.0))


UNDO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    COUNTS: _linear,
    LINEAR: _linear,
    NATURAL: np.expm1,
    LOG2: _exp2m1,
}


def _scaled(cells: sp.csr_matrix, kind: str, where: str) -> sp.csr_matrix:
    """1e5 * count / total of cells x genes, in place; of the kind AS_IT_IS as it is. Raises DataError as `_kind`."""
    _check(cells.data, where, "look at these cells")
    if kind == COUNTS and not _is_whole(cells.data):
        raise DataError(f"{where} holds values that are no whole numbers, but other cells hold counts; look at them")
    if kind != AS_IT_IS:
        cells.data = UNDO[kind](cells.data)
        totals = np.asarray(cells.sum(axis=1)).ravel()
        scale = np.divide(CRUNCH.scale, totals, out=np.zeros(len(totals)), where=totals > 0)
        cells.data *= np.repeat(scale, np.diff(cells.indptr))
    return cells


def _logged(values: np.ndarray, kind: str, where: str) -> np.ndarray:
    """log2(1 + values), in place. Raises DataError for what is above the scale."""
    if kind != AS_IT_IS:
        values += 1.0
        np.log2(values, out=values)
    if (highest := values.max(initial=0.0)) > MOST:
        raise DataError(f"{where} holds values up to {highest:g}; log2(1 + {CRUNCH.scale:g}) is the most there can be")
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Which cells, targets and genes
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """All cells of the screen, file after file: `lengths` counts their values, `codes` says which of `names` (-1: out).

    `names` are the kept perturbations, sorted, the control among them; `scored` those set apart; `states` one text per
    cell, or None; `left_out` counts cells by reason.
    """

    lengths: np.ndarray
    names: pd.Index
    codes: np.ndarray
    scored: pd.Index
    states: np.ndarray | None
    left_out: dict[str, int]
    too_few: list[str]

    @classmethod
    def of(cls, screen: Sequence[Source], lengths: np.ndarray, naming: Naming, column: str) -> _Cells:
        """Raises DataError without control cells, or for a single perturbation."""
        codes, names = _coded(screen, naming, column)
        reasons = np.where(codes < 0, -codes - 1, -1)  # the number in LEFT_OUT
        states = None
        if screen[0].states is not None:
            states = np.concatenate([np.asarray(source.states.astype(object)) for source in screen])  # type: ignore[union-attr]
            reasons[(reasons < 0) & pd.isna(states)] = LEFT_OUT.index(NO_STATE)
        reasons[(reasons < 0) & (lengths == 0)] = LEFT_OUT.index(EMPTY)
        counts = np.bincount(codes[reasons < 0], minlength=len(names))
        few = counts < FEWEST_CELLS
        where = f"{some(source.path for source in screen)}: obs['{column}']"
        if few[names.get_loc(CRUNCH.control)]:
            n = counts[names.get_loc(CRUNCH.control)]
            raise DataError(f"{where}: {n} usable cells of the control, {naming.control}; {FEWEST_CELLS} are needed")
        reasons[(reasons < 0) & few[np.maximum(codes, 0)]] = LEFT_OUT.index(TOO_FEW)
        kept = names[~few]
        if len(kept) < 3:
            raise DataError(
                f"{where}: {len(kept) - 1 or 'no'} perturbation ({some(kept.drop(CRUNCH.control))}) with "
                f"{FEWEST_CELLS} cells beside the control; two are needed to predict others. Is --perturbation right?"
            )
        left = {reason: int((reasons == i).sum()) for i, reason in enumerate(LEFT_OUT)}
        new = np.where(few, -1, np.cumsum(~few) - 1)
        codes = np.where(reasons < 0, new[np.maximum(codes, 0)], -1).astype(np.int32)
        too_few = [name for name, n in zip(names[few], counts[few], strict=True) if n]
        return cls(lengths, kept, codes, _draw_scored(kept, counts[~few]), states, left, too_few)

    @property
    def perturbations(self) -> pd.Index:
        """Without the control."""
        return self.names.drop(CRUNCH.control)


def _coded(screen: Sequence[Source], naming: Naming, column: str) -> tuple[np.ndarray, pd.Index]:
    """The number of each cell's perturbation among the sorted names; -1 - i where LEFT_OUT[i] is why it is out."""
    found = {label: naming.read(label) for source in screen for label in source.labels.cat.categories}
    names = pd.Index(sorted({name for name, reason in found.values() if not reason} | {CRUNCH.control}))
    number = {
        label: -1 - LEFT_OUT.index(reason) if reason else int(names.get_loc(name))
        for label, (name, reason) in found.items()
    }
    parts = []
    for source in screen:
        of_label = np.array([number[label] for label in source.labels.cat.categories], np.int32)
        of_label = np.append(of_label, -1 - LEFT_OUT.index(UNNAMED))  # the last: code -1, an empty label
        parts.append(of_label[source.labels.cat.codes.to_numpy()])
    codes = np.concatenate(parts)
    if not (codes == names.get_loc(CRUNCH.control)).any():
        labels = pd.concat([source.labels.astype(str) for source in screen]).value_counts()
        raise DataError(
            f"{some(source.path for source in screen)}: no cell of obs['{column}'] is the control {naming.control}"
            f"{similar(naming.control, list(labels.index))}; most cells are {some(labels.index, 5)}"
        )
    return codes, names


def _draw_scored(names: pd.Index, counts: np.ndarray) -> pd.Index:
    """The perturbations of one gene that are set apart to score on: at most SCORED, and at most a fifth of all."""
    enough = [
        name
        for name, n in zip(names, counts, strict=True)
        if n >= SCORED_CELLS and len(genes_in(name)) == 1 and name != CRUNCH.control
    ]
    most = min(SCORED, (len(names) - 1) // 5, len(enough))
    return pd.Index(np.sort(np.random.default_rng(0).choice(np.array(enough, object), most, replace=False)))


def _targets(path: str | Path | None, genes: pd.Index, cells: _Cells) -> pd.Index:
    """The targets: of a list, or all genes; without those that were perturbed. Raises DataError where none is left."""
    perturbed = {gene for name in cells.perturbations for gene in genes_in(name)}
    names = genes if path is None else _read_list(Path(path))
    wanted = names[~names.isin(perturbed) & ~names.str.contains("+", regex=False) & (names != CRUNCH.control)]
    if wanted.empty:
        raise DataError(f"{path or 'the screen'}: no gene is left to predict: all were perturbed, or are combinations")
    if path is not None and (out := len(names) - len(wanted)):
        print(f"{path}: {out} of {len(names)} targets left out, since they were perturbed or are combinations.")
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
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a text of one name a line ({error})") from error
    names = pd.Index([line.strip() for line in lines if line.strip()])
    if names.empty:
        raise DataError(f"{path}: the file is empty")
    return names.unique()


def _say(screen: Sequence[Source], cells: _Cells, genes: pd.Index, lists: dict[str, pd.Index]) -> None:
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
    several = [name for name in cells.names if len(genes_in(name)) > 1]
    print(
        f"Kept: {kept.sum():,} cells, {(cells.codes == control).sum():,} of them control, and "
        f"{len(cells.names) - 1:,} perturbations" + (f", {len(several):,} of several genes." if several else ".")
    )
    for reason, n in cells.left_out.items():
        if n:
            of = f" ({some(cells.too_few, 5)}; {FEWEST_CELLS} are needed)" if reason == TOO_FEW else ""
            print(f"  left out: {n:,} cells, {reason}{of}")
    single = cells.perturbations[[len(genes_in(name)) == 1 for name in cells.perturbations]]
    if len(unknown := single[~single.isin(genes)]):
        hint = "; do their names carry a guide? See --guide-pattern" if len(unknown) > len(single) / 2 else ""
        print(f"  {len(unknown)} of {len(single)} perturbations are no measured genes: {some(unknown, 5)}{hint}")
    print(
        f"Set apart to score on: {some(cells.scored) or 'none, there are too few'}. To predict: "
        f"{len(lists[CRUNCH.targets_file]):,} targets on {len(lists[CRUNCH.genes_file]):,} genes. "
        + ("" if cells.states is not None else "No states, so no proportions are predicted.")
    )
    values = int(cells.lengths[kept].sum())
    print(f"Writing {text_size(8 * values)} takes {text_time(values / SPEED)}.", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Writing: cells are read in the order of the files, and each goes to its place
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Some rows of a file. `columns` are the places of its genes in the result (-1: none), None for the same genes."""

    source: Path
    element: str
    kind: str
    rows: slice
    columns: np.ndarray | None
    n_genes: int

    def read(self) -> sp.csr_matrix:
        """The cells x genes of the file, float64."""
        with open_element(self.source, self.element) as matrix:
            cells = sp.csr_matrix(matrix[self.rows])
        return cells.astype(np.float64)

    def selected(self, cells: sp.csr_matrix) -> sp.csr_matrix:
        """The genes of the result; values of one gene are added up."""
        if self.columns is None:
            return cells
        kept = self.columns >= 0
        places = np.flatnonzero(kept), self.columns[kept]
        cells = cells @ sp.csr_matrix((np.ones(kept.sum()), places), (len(kept), self.n_genes))
        cells.eliminate_zeros()
        cells.sort_indices()
        return cells

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.source}: {self.element}, cells {self.rows.start} to {self.rows.stop},"


@dataclass(frozen=True)
class _Place:
    """Where in a file its values and their column numbers begin (bytes)."""

    path: Path
    data: int
    indices: int


@dataclass(frozen=True)
class _Task:
    """A run and where its cells go: the number of the file (-1: left out) and of the cell's first value there.

    `group` is 0 before the control, 1 for it, and 2 behind it.
    """

    run: _Run
    file: np.ndarray
    start: np.ndarray
    group: np.ndarray
    places: list[_Place]


def _runs(screen: Sequence[Source], genes: pd.Index) -> list[_Run]:
    """The screen in runs of about TASK_VALUES stored values."""
    runs = []
    for source in screen:
        columns = None if source.genes.equals(genes) else genes.get_indexer(source.genes)
        with open_element(source.path, source.element) as matrix:
            ends = matrix.indptr
            dense = not matrix.sparse_file
        steps = np.searchsorted(ends, np.arange(0, ends[-1] + TASK_VALUES, TASK_VALUES), side="right") - 1
        bounds = np.unique([0, *steps, source.shape[0]])
        if dense and columns is None:
            columns = np.arange(len(genes))  # how many values are not 0 must be counted
        for start, stop in pairwise(bounds):
            rows = slice(int(start), int(stop))
            runs.append(_Run(source.path, source.element, source.kind, rows, columns, len(genes)))
    return runs


def _lengths(screen: Sequence[Source], genes: pd.Index, executor: Executor | None) -> np.ndarray:
    """The number of values that each cell will have (int64): from the files' indptr, or counted where genes differ."""
    runs, parts = _runs(screen, genes), []
    if all(run.columns is None for run in runs):
        for source in screen:
            with open_element(source.path, source.element) as matrix:
                parts.append(np.diff(matrix.indptr))
        return np.concatenate(parts)
    with progress_bar("counting values", total=sum(source.shape[0] for source in screen), unit="cell") as progress:
        for run, counted in zip(runs, map_ahead(executor, _counted, runs), strict=True):
            parts.append(counted)
            progress.update(run.rows.stop - run.rows.start)
    return np.concatenate(parts)


def _counted(run: _Run) -> np.ndarray:
    return np.diff(run.selected(run.read()).indptr).astype(np.int64)


def _write(
    folder: Path,
    screen: Sequence[Source],
    cells: _Cells,
    genes: pd.Index,
    lists: dict[str, pd.Index],
    executor: Executor | None,
) -> None:
    """All files of the folder, or none; files of an earlier screen that this one does not have are removed."""
    is_scored = np.isin(cells.names, cells.scored)
    order = np.argsort(cells.codes, kind="stable")
    order = order[(cells.codes < 0).sum() :]
    parts = [order[~is_scored[cells.codes[order]]], order[is_scored[cells.codes[order]]]]
    tables = {name: "\n".join(names) + "\n" for name, names in lists.items()}
    tables[CRUNCH.signatures_file] = ",".join(CRUNCH.signature_columns) + "\n"
    matrices = [CRUNCH.train_file]
    if len(cells.scored):
        matrices.append(CRUNCH.local_truth_file)
    if cells.states is not None:
        for name, rows in zip([CRUNCH.proportions_file, CRUNCH.local_proportions_file], parts, strict=True):
            if len(rows):
                tables[name] = _proportions(_obs(screen, cells, rows)).to_csv()
    names = [*matrices, *tables]
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, 8 * int(cells.lengths[order].sum())
    if needed > free:
        raise DataError(f"{folder}: the cells take {text_size(needed)}, but only {text_size(free)} of disk are free")
    with replacing_all([folder / name for name in names]) as temporaries:
        where = dict(zip(names, temporaries, strict=True))
        places = [
            _skeleton(where[name], _obs(screen, cells, rows), genes, cells.lengths[rows], screen)
            for name, rows in zip(matrices, parts, strict=False)
        ]
        sums = _fill(_tasks(_runs(screen, genes), cells, parts, places), executor, len(genes))
        if len(matrices) > 1:
            _write_centroids(where[CRUNCH.local_truth_file], sums, cells, parts[0])
        for name, text in tables.items():
            where[name].write_text(text, encoding="utf-8")
    for name in (CRUNCH.local_truth_file, CRUNCH.proportions_file, CRUNCH.local_proportions_file):
        if name not in names:
            (folder / name).unlink(missing_ok=True)


def _obs(screen: Sequence[Source], cells: _Cells, rows: np.ndarray) -> pd.DataFrame:
    """The perturbation of each cell, and its states as 0 and 1, by its name; several files number the names."""
    labels = [source.cells if len(screen) == 1 else source.cells + f"-{i}" for i, source in enumerate(screen, 1)]
    index = pd.Index(np.concatenate(labels)[rows].astype(object))
    codes = np.unique(cells.codes[rows], return_inverse=True)
    named = pd.Categorical.from_codes(codes[1], cells.names[codes[0]].astype(object))
    obs = pd.DataFrame({CRUNCH.perturbation: named}, index=index)
    if cells.states is not None:
        own = cells.states[rows]
        for state in CRUNCH.states:
            obs[state] = ((own == state) | ((state == CRUNCH.whole) & (own == CRUNCH.part))).astype(np.int64)
    return obs


def _proportions(obs: pd.DataFrame) -> pd.DataFrame:
    table = obs.groupby(CRUNCH.perturbation, observed=True)[CRUNCH.states].mean()
    table[CRUNCH.ratio] = (table[CRUNCH.part] / table[CRUNCH.whole]).fillna(0.0)
    return table


def _skeleton(path: Path, obs: pd.DataFrame, genes: pd.Index, lengths: np.ndarray, screen: Sequence[Source]) -> _Place:
    """A file with all but the values of X; where these go."""
    adata = ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(object), name=None)))
    adata.uns[ADOPTED] = np.array([source.path.name for source in screen], object)
    adata.write_h5ad(path)
    indptr = np.append(0, np.cumsum(lengths))
    whole = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    with h5py.File(path, "r+") as file:
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (len(obs), len(genes))})
        X.create_dataset("indptr", data=indptr.astype(whole))
        # Room for the values, which are written past HDF5: it lets one thread write at a time.
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        offsets = []
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            space, number = h5py.h5s.create_simple((int(indptr[-1]),)), h5py.h5t.py_create(np.dtype(dtype))
            offsets.append(h5py.h5d.create(X.id, name.encode(), number, space, settings).get_offset())
    return _Place(path, *offsets)


def _tasks(runs: Sequence[_Run], cells: _Cells, parts: Sequence[np.ndarray], places: list[_Place]) -> list[_Task]:
    file, start = np.full(len(cells.codes), -1, np.int8), np.zeros(len(cells.codes), np.int64)
    for number, rows in enumerate(parts):
        file[rows] = number
        start[rows] = np.cumsum(cells.lengths[rows]) - cells.lengths[rows]
    control = cells.names.get_loc(CRUNCH.control)
    group = np.sign(cells.codes - control).astype(np.int8) + 1
    tasks, first = [], 0
    for run in runs:
        own = slice(first, first + run.rows.stop - run.rows.start)
        first = own.stop
        if (file[own] >= 0).any():
            tasks.append(_Task(run, file[own], start[own], group[own], places))
    return tasks


def _fill(tasks: Sequence[_Task], executor: Executor | None, n_genes: int) -> np.ndarray:
    """Write the values; returns the sum of the training cells (before, of and behind the control) x genes."""
    sums = np.zeros((3, n_genes))
    with progress_bar("adopting cells", total=sum(len(task.file) for task in tasks), unit="cell") as progress:
        for task, part in zip(tasks, map_ahead(executor, _move, tasks), strict=True):
            sums += part
            progress.update(len(task.file))
    return sums


def _move(task: _Task) -> np.ndarray:
    """Normalise the cells of a task and write them where they belong; returns the sums as `_fill`."""
    run = task.run
    cells = run.selected(_scaled(run.read(), run.kind, run.name))
    order = np.lexsort((task.start, task.file))
    order = order[(task.file < 0).sum() :]
    if len(order) < len(task.file) or (np.diff(order) < 0).any():
        cells = cells[order]
    values = _logged(cells.data, run.kind, run.name).astype(np.float32)
    columns, file, start = cells.indices.astype(np.int32, copy=False), task.file[order], task.start[order]
    stop = start + np.diff(cells.indptr)
    begins = np.flatnonzero((np.diff(file, prepend=-1) != 0) | (start != np.append(-1, stop[:-1])))
    for number, place in enumerate(task.places):
        with place.path.open("r+b", buffering=0) as out:
            for first, last in zip(begins, np.append(begins[1:], len(order)), strict=True):
                if file[first] == number:
                    part = slice(int(cells.indptr[first]), int(cells.indptr[last]))
                    _put(out, place.data + 4 * int(start[first]), values[part])
                    _put(out, place.indices + 4 * int(start[first]), columns[part])
    bounds = np.searchsorted(task.group[order][file == 0], [0, 1, 2, 3])
    grouped = values.astype(np.float64), columns, cells.indptr[bounds]  # as long rows: toarray adds up what is one gene
    return sp.csr_matrix(grouped, shape=(3, run.n_genes)).toarray()


def _put(out: Any, offset: int, values: np.ndarray) -> None:
    """Write at an offset; the system may take less than it is given."""
    view = values.data.cast("B")
    out.seek(offset)
    while len(view):
        view = view[out.write(view) :]


def _write_centroids(path: Path, sums: np.ndarray, cells: _Cells, rows: np.ndarray) -> None:
    """The means of the training cells into `uns` of the local truth: of the control, and of all perturbed cells."""
    is_control = cells.codes[rows] == cells.names.get_loc(CRUNCH.control)
    with h5py.File(path, "r+") as file:
        for name, total, n in (
            (CRUNCH.control_centroid, sums[1], is_control.sum()),
            (CRUNCH.perturbed_centroid, sums[0] + sums[2], (~is_control).sum()),
        ):
            ad.io.write_elem(file["uns"], name, total / max(n, 1))


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
    parser.add_argument("--states", metavar="COLUMN", help=f"of obs: the state of each cell, {some(CRUNCH.states)}")
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
