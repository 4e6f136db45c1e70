"""The files of the data folder: cells are read in the order of the screen's files, and each is written to its place.

In: the `Source`s, the kept `Cells`, the genes. Out: training cells sorted by perturbation, those to score on, and the
tables. Every task reads, normalises and writes some cells on its own, so any executor that reaches the files will do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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

from contract import CRUNCH
from helpers import DataError, map_ahead, open_element, progress_bar, replacing_all, text_size
from workbench.adoption.cells import Cells
from workbench.adoption.source import Source
from workbench.adoption.values import PRECISION, logged, scaled

TASK_VALUES = 6_000_000  # stored values that are normalised at a time: about 200 MB
ADOPTED = "adopted_from"  # in `uns` of the training file: the names of the files


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
        """The cells x genes of the file, in the precision of their kind; not the file's own arrays."""
        with open_element(self.source, self.element) as matrix:
            return sp.csr_matrix(matrix[self.rows], dtype=PRECISION.get(self.kind, np.float64))

    def selected(self, cells: sp.csr_matrix) -> sp.csr_matrix:
        """The genes of the result; values of one gene are added up."""
        if self.columns is None:
            return cells
        kept = self.columns >= 0
        places = np.flatnonzero(kept), self.columns[kept]
        cells = cells @ sp.csr_matrix((np.ones(kept.sum(), cells.dtype), places), (len(kept), self.n_genes))
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


def value_counts(screen: Sequence[Source], genes: pd.Index, executor: Executor | None) -> np.ndarray:
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


def write_folder(
    folder: Path,
    screen: Sequence[Source],
    cells: Cells,
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


def _obs(screen: Sequence[Source], cells: Cells, rows: np.ndarray) -> pd.DataFrame:
    """The perturbation of each cell, and its states as 0 and 1, by its name; names that stand twice are numbered."""
    index = pd.Index(np.concatenate([source.cells for source in screen])[rows].astype(object))
    if index.has_duplicates:
        index = index + "-" + rows.astype(str).astype(object)
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


def _tasks(runs: Sequence[_Run], cells: Cells, parts: Sequence[np.ndarray], places: list[_Place]) -> list[_Task]:
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
    cells = run.selected(scaled(run.read(), run.kind, run.name))
    order = np.lexsort((task.start, task.file))
    order = order[(task.file < 0).sum() :]
    if len(order) < len(task.file) or (np.diff(order) < 0).any():
        cells = cells[order]
    values = logged(cells.data, run.kind, run.name).astype(np.float32, copy=False)
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


def _write_centroids(path: Path, sums: np.ndarray, cells: Cells, rows: np.ndarray) -> None:
    """The means of the training cells into `uns` of the local truth: of the control, and of all perturbed cells."""
    is_control = cells.codes[rows] == cells.names.get_loc(CRUNCH.control)
    with h5py.File(path, "r+") as file:
        for name, total, n in (
            (CRUNCH.control_centroid, sums[1], is_control.sum()),
            (CRUNCH.perturbed_centroid, sums[0] + sums[2], (~is_control).sum()),
        ):
            ad.io.write_elem(file["uns"], name, total / max(n, 1))
