"""Everything that travels to the CrunchDAO platform with `notebook.ipynb`, in the order data flows.

1. folder      `load_challenge`      the challenge's `data/` folder, read and checked once
2. statistics  `perturbation_stats`  one pass over the cells: mean, variance, detection rate and cell count
3. features    `training_knowledge`, `read_features`: what is known of a gene, from the cells and from your tables
4. means       `ControlMean`, `PerturbedMean`, `PCARidge`, `ResponseModel`: the mean of an unseen knock-out
5. programs    `MedianProportions`, `constrain_proportions`: the share of cells in each state
6. cells       `GaussianCells`, `RecentredCells`: synthetic cells around a predicted mean
7. files       `write_prediction`, `write_proportions`: both predicted files, written beside and renamed
8. platform    `train`, `infer`: what the notebook's two functions call
9. scores      `pearson_delta`, `mmd`, `l1_distance`, `score`: the platform's definitions
10. local split `local_split`: hold out perturbations of one's own

The challenge is Broad obesity, crunch 1: given cells of 122 single-gene knock-outs, predict 100 cells for each of
2,863 unseen knock-outs, and the share of cells in each state. Expression is log2(1 + 1e5 * count / total of the cell).
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import scipy.optimize
import scipy.sparse as sp
import scipy.stats
from anndata.io import read_elem
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

CONTROL = "NC"
SHARES = ["pre_adipo", "adipo", "other"]  # every cell is in exactly one of these
STATES = [*SHARES, "lipo"]  # `lipo` cells are a subset of the `adipo` cells
TRAIN_FILE = "obesity_challenge_1.h5ad"
LOCAL_TRUTH_FILE = "obesity_challenge_1_local_gtruth.h5ad"
PROPORTIONS_FILE = "program_proportion.csv"
LOCAL_PROPORTIONS_FILE = "program_proportion_local_gtruth.csv"
PREDICTION_FILE = "prediction.h5ad"
PREDICTED_PROPORTIONS_FILE = "predict_program_proportion.csv"
PREDICTED_PROPORTION_COLUMNS = ["gene", "pre_adipo", "adipo", "lipo", "other"]  # the scorer takes exactly these
MODEL_FILE = "model.h5"
EXPECTED_FILE = "expected.csv"
MODEL_FORMAT = 1



class DataError(ValueError):
    """Input that cannot be used: the message names the file, the column or the genes, and says what to do."""


def some(names: Iterable[object], most: int = 10) -> str:
    """The first few names, and how many there are in all: for messages."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f", ... ({len(words)} in all)" if len(words) > most else "")


def text_size(n_bytes: float) -> str:
    """1234567 -> '1.2 MB'."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


# ---------------------------------------------------------------------------------------------------------------------
# 1. The data folder
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Challenge:
    """The challenge's `data/` folder, checked: everything small is in memory, the cells stay in `train_path`.

    `obs` has one row a training cell (`gene`, and the four 0/1 state columns); `proportions` one row a training
    perturbation, the control among them; `targets` and `genes_to_predict` keep the order of their files. The two
    `local_` members are None where the folder has no local truth.
    """

    folder: Path
    train_path: Path
    obs: pd.DataFrame
    genes: pd.Index
    proportions: pd.DataFrame
    signatures: pd.DataFrame
    targets: pd.Index
    genes_to_predict: pd.Index
    local_truth_path: Path | None
    local_proportions: pd.DataFrame | None

    @property
    def perturbations(self) -> pd.Index:
        """The knocked-out genes of the training file, sorted, without the control."""
        return pd.Index(sorted(set(self.obs["gene"].unique()) - {CONTROL}), name="gene")


def load_challenge(folder: str | os.PathLike[str]) -> Challenge:
    """Read and check the challenge's data folder.

    Raises DataError for a missing or unreadable file, a missing column, duplicated names, no control cells, or a
    perturbation without a row in `program_proportion.csv`.
    """
    folder = Path(folder)
    obs, genes = read_labels(folder / TRAIN_FILE, columns=["gene", *STATES])
    proportions = read_proportions(folder / PROPORTIONS_FILE)
    perturbations = set(obs["gene"].unique())
    if CONTROL not in perturbations:
        raise DataError(f"{folder / TRAIN_FILE}: no control cells: no row of obs['gene'] is '{CONTROL}'")
    if missing := sorted(perturbations - set(proportions.index)):
        raise DataError(f"{folder / PROPORTIONS_FILE}: no row for the perturbations {some(missing)}")
    truth = folder / LOCAL_TRUTH_FILE
    shares = folder / LOCAL_PROPORTIONS_FILE
    return Challenge(
        folder=folder,
        train_path=folder / TRAIN_FILE,
        obs=obs,
        genes=genes,
        proportions=proportions,
        signatures=_read_table(folder / "signature_genes.csv", ["program", "sig_gene"]),
        targets=_read_names(folder / "predict_perturbations.txt"),
        genes_to_predict=_read_names(folder / "genes_to_predict.txt"),
        local_truth_path=truth if truth.exists() else None,
        local_proportions=read_proportions(shares) if shares.exists() else None,
    )


@contextmanager
def _open_store(path: Path) -> Iterator[Any]:
    """Open an `.h5ad` or `.zarr` for reading; a missing or truncated one becomes a DataError."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file. `crunch download` fetches the challenge's data; "
            f"`python -m workbench.simulate {path.parent}` makes demo data"
        )
    try:
        if path.suffix == ".zarr":
            import zarr  # noqa: PLC0415 - comes with anndata, and is needed for such a source alone

            yield zarr.open_group(path, mode="r")
            return
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file, perhaps a broken download: {error}") from error
    with file:
        yield file


def read_labels(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, pd.Index]:
    """`obs` (cells x `columns`) and the gene names of an `.h5ad` or `.zarr`, without its matrix."""
    with _open_store(path) as file:
        obs, genes = read_elem(file["obs"]), read_elem(file["var"]).index.astype(str)
    if missing := [column for column in columns if column not in obs]:
        raise DataError(f"{path}: obs has no column {some(missing)}; it has {some(obs.columns)}")
    if obs["gene"].isna().any():
        raise DataError(f"{path}: obs['gene'] is empty for {int(obs['gene'].isna().sum())} cells")
    obs = obs[list(columns)].copy()
    obs["gene"] = obs["gene"].astype(str).astype("category")
    _check_unique(genes, f"{path}: var")
    if "pre_adipo" in columns and not (obs[SHARES].sum(axis=1) == 1).all():
        raise DataError(f"{path}: {' + '.join(SHARES)} must be 1 for every cell of obs")
    return obs, genes


def _check_unique(names: pd.Index, where: str) -> None:
    if names.has_duplicates:
        raise DataError(f"{where}: duplicated names {some(names[names.duplicated()].unique())}; keep one of each")


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        raise DataError(f"{path}: no such file; the data folder is not complete")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])  # a gene may be called "NA"
    if missing := [column for column in columns if column not in table]:
        raise DataError(f"{path}: no column {some(missing)}; it has {some(table.columns)}")
    return table


def read_proportions(path: Path) -> pd.DataFrame:
    """Program proportions by perturbation: the four states and `lipo_adipo`; raises DataError for a bad table."""
    table = _read_table(path, ["gene", *STATES]).set_index("gene")
    _check_unique(table.index, f"{path}: column gene")
    table["lipo_adipo"] = table["lipo"] / table["adipo"].where(table["adipo"] > 0, 1.0)
    table = table[[*STATES, "lipo_adipo"]].astype(float)
    if bad := list(table.index[~np.isfinite(table).all(axis=1)]):
        raise DataError(f"{path}: values are missing or infinite for {some(bad)}")
    return table


def _read_names(path: Path) -> pd.Index:
    if not path.exists():
        raise DataError(f"{path}: no such file; the data folder is not complete")
    names = pd.Index([line.strip() for line in path.read_text().splitlines() if line.strip()])
    if names.empty:
        raise DataError(f"{path}: the file is empty")
    _check_unique(names, str(path))
    return names


# ---------------------------------------------------------------------------------------------------------------------
# 2. Statistics of every perturbation, in one pass over the cells
# ---------------------------------------------------------------------------------------------------------------------

SLAB_VALUES = 500_000  # stored values a slab: 6 MB of a float64 CSR file, which stay in the processor's cache
TASK_VALUES = 8_000_000  # stored values a task for an executor
TASKS_AHEAD = 32  # tasks given to a user's executor before the first is waited for

Source: TypeAlias = str | os.PathLike[str] | ad.AnnData


@dataclass(frozen=True)
class PerturbationStats:
    """Sums over the cells of each group; the groups are perturbations, or (perturbation, state) pairs.

    `sums`, `squares` and `detected` are groups x genes (float64): the sum of the expression values, of their squares,
    and the number of cells with a value above 0. `n_cells` is the number of cells of each group.
    """

    sums: pd.DataFrame
    squares: pd.DataFrame
    detected: pd.DataFrame
    n_cells: pd.Series

    @cached_property
    def mean(self) -> pd.DataFrame:
        """Mean expression, groups x genes; NaN for a group without cells."""
        return self.sums.div(self._counts, axis=0)

    @cached_property
    def variance(self) -> pd.DataFrame:
        """Variance over the cells (divided by n, as numpy does), groups x genes."""
        return (self.squares.div(self._counts, axis=0) - self.mean**2).clip(lower=0.0)

    @cached_property
    def detection(self) -> pd.DataFrame:
        """Share of the cells with a value above 0, groups x genes."""
        return self.detected.div(self._counts, axis=0)

    @property
    def _counts(self) -> pd.Series:
        return self.n_cells.where(self.n_cells > 0)

    def pooled(self) -> PerturbationStats:
        """From (perturbation, state) groups to perturbations."""
        main = self.n_cells.index.get_level_values("state").isin(SHARES)  # `lipo` cells are counted in `adipo`
        parts = (self.sums, self.squares, self.detected, self.n_cells)
        return PerturbationStats(*(part[main].groupby(level="gene", sort=False).sum() for part in parts))

    def perturbed_centroid(self) -> pd.Series:
        """Mean expression over all perturbed CELLS (not over perturbations): the reference of Pearson delta."""
        perturbed = self.n_cells.index != CONTROL
        return self.sums[perturbed].sum() / self.n_cells[perturbed].sum()


def perturbation_stats(
    source: Source | Sequence[Source],
    *,
    by_state: bool = False,
    max_cells: int | None = None,
    executor: Executor | None = None,
) -> PerturbationStats:
    """Mean, variance, detection rate and cell count of every perturbation, in one pass over the cells.

    `source` is an `.h5ad` or `.zarr` whose X is CSR or dense (read by slabs, never whole), an AnnData in memory, or a
    list of these with the same genes, in any order. With `by_state` the groups are (perturbation, state) pairs,
    `adipo` holding the `lipo` cells too. `max_cells` takes the first cells of each perturbation in file order (the
    published starter: 300). The work is a sum of partial sums, each a task of its own for `executor`: anything with the
    interface of `concurrent.futures` (default: threads, one a core). They are added in file order, so that the result
    is the same to the last bit whichever executor does the work.

    Raises DataError for NaN, infinite or negative values, a CSC file, missing columns, duplicated or other genes;
    RuntimeError when a worker dies.
    """
    columns = ["gene", *(STATES if by_state else [])]
    shards = [_Shard.of(part, columns) for part in (source if isinstance(source, list | tuple) else [source])]
    genes, obs = shards[0].genes, _joined_obs(shards)
    groups, codes = _group_codes(obs, by_state)
    if max_cells is not None:
        codes = np.where(obs.groupby("gene", observed=True).cumcount() < max_cells, codes, -1)
    totals = [np.zeros((len(groups), len(genes))) for _ in range(3)]
    starts = np.cumsum([0, *(len(shard.obs) for shard in shards)])
    parts = [codes[start:stop] for start, stop in pairwise(starts)]
    tasks = [task for shard, part in zip(shards, parts, strict=True) for task in shard.tasks(part, genes)]
    with tqdm(total=len(obs), unit="cell", desc="Reading cells") as progress:
        for task, (present, sums) in zip(tasks, _map_ahead(executor, _task_sums, tasks), strict=True):
            for total, part in zip(totals, sums, strict=True):
                total[present] += part
            progress.update(len(task.codes))
    if not np.isfinite(totals[1]).all():
        infinite = genes[~np.isfinite(totals[1]).all(axis=0)]
        raise DataError(f"{shards[0].name}: X holds infinite values in the genes {some(infinite)}")
    n_cells = np.bincount(codes[codes >= 0], minlength=len(groups))
    if by_state:
        _add_lipo_to_adipo(groups, n_cells, *totals)
    tables = [pd.DataFrame(total, index=groups, columns=genes) for total in totals]
    return PerturbationStats(tables[0], tables[1], tables[2], pd.Series(n_cells, index=groups, name="n_cells"))


def _joined_obs(shards: Sequence[_Shard]) -> pd.DataFrame:
    if len(shards) == 1:
        return shards[0].obs
    obs = pd.concat([shard.obs.astype({"gene": str}) for shard in shards], ignore_index=True)
    return obs.astype({"gene": "category"})


def _group_codes(obs: pd.DataFrame, by_state: bool) -> tuple[pd.Index, np.ndarray]:
    """The groups, and the group of each cell (int64). States here part the cells: `adipo` is without `lipo`."""
    perturbations = pd.Index(obs["gene"].cat.categories, name="gene")
    codes = obs["gene"].cat.codes.to_numpy(np.int64)
    if not by_state:
        return perturbations, codes
    state = obs[SHARES].to_numpy().argmax(axis=1)
    state[obs["lipo"].to_numpy() == 1] = STATES.index("lipo")
    return pd.MultiIndex.from_product([perturbations, STATES], names=["gene", "state"]), codes * len(STATES) + state


def _add_lipo_to_adipo(groups: pd.Index, *totals: np.ndarray) -> None:
    adipo, lipo = (np.flatnonzero(groups.get_level_values("state") == state) for state in ("adipo", "lipo"))
    for total in totals:
        total[adipo] += total[lipo]


@dataclass(frozen=True)
class _Task:
    """A run of cells whose sums are one task: of a file, or a part of a matrix in memory."""

    source: Path | sp.csr_matrix | np.ndarray
    first: int  # number of the run's first cell in the shard
    slabs: list[slice]
    codes: np.ndarray
    columns: np.ndarray | None  # where the shard's genes stand in the result; None: as they are
    n_genes: int
    name: str


def _task_sums(task: _Task) -> tuple[np.ndarray, list[np.ndarray]]:
    """The groups present in the run, and their sums, sums of squares and numbers of detected values."""
    present = np.unique(task.codes[task.codes >= 0])
    totals = [np.zeros((len(present), task.n_genes)) for _ in range(3)]
    in_memory = not isinstance(task.source, Path)
    ones = np.ones(SLAB_VALUES, np.int32)
    with _open_rows(task.source) as matrix:
        for rows in task.slabs:
            start, stop = rows.start - task.first, rows.stop - task.first
            slab = sp.csr_matrix(matrix[slice(start, stop) if in_memory else rows], dtype=np.float64)
            if task.columns is not None:
                slab = sp.csr_matrix((slab.data, task.columns[slab.indices], slab.indptr), shape=slab.shape)
            where = f"{task.name}, cells {rows.start} to {rows.stop}"
            found, parts = _slab_sums(slab, task.codes[start:stop], ones, where)
            for total, part in zip(totals, parts, strict=True):
                total[np.searchsorted(present, found)] += part
    return present, totals


def _slab_sums(
    slab: sp.csr_matrix, codes: np.ndarray, ones: np.ndarray, where: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same of a slab, float64, whose memory it takes over; `ones` are ones, as many as a slab has values or more.

    Cells of a group are brought together and read as ONE long CSR row, whose `toarray()` adds up the values of the
    same gene: several times as fast as a product with an indicator matrix.
    """
    if (codes < 0).any() or (np.diff(codes) < 0).any():
        order = np.argsort(codes, kind="stable")[(codes < 0).sum() :]
        slab, codes = slab[order], codes[order]
    values = slab.data
    lowest = values.min(initial=np.inf)
    if not lowest >= 0:  # NaN is not >= 0 either
        raise DataError(f"{where}: X holds negative values or NaN; expected log2(1 + 1e5 * count / total)")
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    by_run = sp.csr_matrix(
        (values, slab.indices, slab.indptr[np.append(first, len(codes))]), shape=(len(first), slab.shape[1])
    )
    parts = [by_run.toarray()]
    np.multiply(values, values, out=values)
    parts.append(by_run.toarray())
    # As a rule all stored values are above 0, and detection is a matter of the indices.
    by_run.data = ones[: len(values)] if lowest > 0 and len(values) <= len(ones) else (values > 0).astype(np.int32)
    parts.append(by_run.toarray())
    return codes[first], parts


def _runs(indptr: np.ndarray, n_values: int) -> list[slice]:
    """Runs of rows of about `n_values` stored values."""
    ends = np.searchsorted(indptr, np.arange(n_values, indptr[-1] + n_values, n_values))
    bounds = np.unique([0, *np.minimum(ends, len(indptr) - 1), len(indptr) - 1])
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def _map_ahead(executor: Executor | None, function: Callable, items: Sequence) -> Iterator:
    """`executor.map` in order, a bounded number of results ahead; without an executor on threads, one a core."""
    if executor is None:
        n_threads = os.cpu_count() or 1
        with ThreadPoolExecutor(n_threads) as threads:
            yield from _submit_ahead(threads, function, items, n_threads)
    else:
        yield from _submit_ahead(executor, function, items, TASKS_AHEAD)


def _submit_ahead(executor: Executor, function: Callable, items: Sequence, ahead: int) -> Iterator:
    """At most `ahead` + 1 results in memory; what is left over after an error is cancelled."""
    running: deque = deque()
    try:
        for item in items:
            running.append(executor.submit(function, item))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenExecutor as error:
        raise RuntimeError("a worker died, perhaps for want of memory; nothing was written") from error
    finally:
        for future in running:
            future.cancel()


@dataclass(frozen=True)
class _Shard:
    """Labels of the cells of one source; the matrix is opened where it is read."""

    source: Path | sp.csr_matrix | np.ndarray
    obs: pd.DataFrame
    genes: pd.Index
    name: str

    @classmethod
    def of(cls, source: Source, columns: Sequence[str]) -> _Shard:
        """A file's or an AnnData's checked labels."""
        if isinstance(source, ad.AnnData) and source.isbacked and not source.is_view:
            source = Path(source.filename)
        if not isinstance(source, ad.AnnData):
            obs, genes = read_labels(Path(source), columns)
            return cls(Path(source), obs, genes, str(source))
        adata = source.to_memory() if source.isbacked else source
        if missing := [column for column in columns if column not in adata.obs]:
            raise DataError(f"the AnnData: obs has no column {some(missing)}")
        _check_unique(adata.var_names, "the AnnData: var")
        obs = adata.obs[list(columns)].copy()
        obs["gene"] = obs["gene"].astype(str).astype("category")
        X = adata.X.tocsr() if sp.issparse(adata.X) else np.asarray(adata.X)
        return cls(X, obs, adata.var_names, "the AnnData")

    def tasks(self, codes: np.ndarray, genes: pd.Index) -> list[_Task]:
        """Tasks that add up to the sums of this shard; runs without a wanted cell are left out.

        How the cells are cut depends on the data alone, so that every executor adds the same numbers in the same order.
        """
        columns = None
        if not self.genes.equals(genes):
            columns = genes.get_indexer(self.genes)
            if len(self.genes) != len(genes) or (columns < 0).any():
                other = self.genes.symmetric_difference(genes)
                raise DataError(f"{self.name}: other genes than the first source: {some(other)}")
        with _open_rows(self.source) as matrix:
            if matrix.shape != (len(self.obs), len(self.genes)):
                raise DataError(
                    f"{self.name}: X is {matrix.shape}, but obs and var are {(len(self.obs), len(self.genes))}"
                )
            runs, slabs = _runs(matrix.indptr, TASK_VALUES), _runs(matrix.indptr, SLAB_VALUES)
        tasks = []
        for run in runs:
            wanted = [
                slice(max(slab.start, run.start), min(slab.stop, run.stop))
                for slab in slabs
                if slab.start < run.stop and slab.stop > run.start
            ]
            wanted = [slab for slab in wanted if (codes[slab] >= 0).any()]
            source = self.source if isinstance(self.source, Path) else self.source[run]
            if wanted:
                tasks.append(_Task(source, run.start, wanted, codes[run], columns, len(genes), self.name))
        return tasks


class _Rows:
    """Rows of a matrix on disk or in memory by slice: `matrix[a:b]` is CSR or dense; `indptr` counts its values."""

    def __init__(self, matrix: Any, file: BinaryIO | None = None) -> None:
        self.sparse_file = not hasattr(matrix, "shape")
        if self.sparse_file:
            self.shape = tuple(int(n) for n in matrix.attrs["shape"])
            self.indptr = matrix["indptr"][:].astype(np.int64)
            self.data, self.indices = (
                _flat_reader(matrix[name], file) or partial(_slice, matrix[name]) for name in ("data", "indices")
            )
        else:
            self.matrix, self.shape = matrix, matrix.shape
            self.indptr = matrix.indptr if sp.issparse(matrix) else np.arange(self.shape[0] + 1) * self.shape[1]
            self.flat = _flat_reader(matrix, file)

    def __getitem__(self, rows: slice) -> sp.csr_matrix | np.ndarray:
        if not self.sparse_file:
            if self.flat is None:
                return self.matrix[rows]
            return self.flat(self.indptr[rows.start], self.indptr[rows.stop]).reshape(-1, self.shape[1])
        start, stop = self.indptr[rows.start], self.indptr[rows.stop]
        indptr = self.indptr[rows.start : rows.stop + 1] - start
        shape = (rows.stop - rows.start, self.shape[1])
        return sp.csr_matrix((self.data(start, stop), self.indices(start, stop), indptr), shape=shape)


def _slice(dataset: Any, start: int, stop: int) -> np.ndarray:
    return dataset[start:stop]


def _flat_reader(dataset: Any, file: BinaryIO | None) -> Callable[[int, int], np.ndarray] | None:
    """What reads values start to stop of a dataset that lies in its file as it is, else None.

    The challenge's do (contiguous and uncompressed). Their bytes are read from the file itself: h5py lets one thread
    read at a time.
    """
    plain = isinstance(dataset, h5py.Dataset) and dataset.chunks is None and dataset.dtype.isnative
    offset = dataset.id.get_offset() if plain else None
    if file is None or offset is None or not hasattr(os, "preadv"):
        return None
    descriptor, dtype = file.fileno(), dataset.dtype

    def read(start: int, stop: int) -> np.ndarray:
        values = np.empty(int(stop) - int(start), dtype)
        view, position = values.data.cast("B"), offset + int(start) * dtype.itemsize
        while len(view):  # the system may give less than was asked for
            n = os.preadv(descriptor, [view], position)
            if n == 0:
                raise DataError(f"{file.name}: the file ends early, perhaps a broken download")
            view, position = view[n:], position + n
        return values

    return read


@contextmanager
def _open_rows(source: Path | sp.csr_matrix | np.ndarray) -> Iterator[_Rows]:
    """X of a file or a matrix in memory, by rows."""
    if not isinstance(source, Path):
        yield _Rows(source)
        return
    with _open_store(source) as store, ExitStack() as stack:
        X = store["X"]
        if not hasattr(X, "shape") and X.attrs["encoding-type"] != "csr_matrix":
            raise DataError(
                f"{source}: X is stored by genes ({X.attrs['encoding-type']}), so cells cannot be read by slabs; "
                "write it again once with `adata.X = adata.X.tocsr()`"
            )
        yield _Rows(X, stack.enter_context(source.open("rb", buffering=0)) if source.is_file() else None)


@contextmanager
def open_matrix(source: Source, columns: Sequence[str]) -> Iterator[tuple[_Rows, pd.DataFrame, pd.Index, str]]:
    """X by rows, checked `obs`, gene names and a name for messages."""
    shard = _Shard.of(source, columns)
    with _open_rows(shard.source) as matrix:
        yield matrix, shard.obs, shard.genes, shard.name


def read_cells(path: Path, rows: np.ndarray) -> ad.AnnData:
    """The cells at `rows` (any order) of an `.h5ad`, as float32 CSR or dense, with `obs['gene']`."""
    with open_matrix(path, ["gene"]) as (matrix, obs, genes, _):
        parts = [matrix[slice(row, row + 1)].astype(np.float32) for row in tqdm(rows, desc="Reading base cells")]
        X = sp.vstack(parts).tocsr() if sp.issparse(parts[0]) else np.concatenate(parts)
    return ad.AnnData(X, obs=obs.iloc[rows], var=pd.DataFrame(index=genes))


# ---------------------------------------------------------------------------------------------------------------------
# 3. What is known of a gene: feature tables, each of which becomes one kernel of the response model
# ---------------------------------------------------------------------------------------------------------------------

FEATURES_FOLDER = "features"  # of the model folder: the user's own tables
COEXPRESSION_COMPONENTS = 10


@dataclass(frozen=True)
class FeatureTable:
    """Features of genes: genes x features. The kernel of two genes is the product of their rows, to `power`.

    Rows have length 1 unless a table says otherwise, so the kernel is a cosine. It is 0 for a gene without a row: a
    gene which is missing from one table is predicted from the others.
    """

    genes: pd.Index
    features: sp.csr_matrix
    power: int = 1

    def rows(self, genes: Sequence[str]) -> sp.csr_matrix:
        """The rows of `genes`, zeros where there is none."""
        position = self.genes.get_indexer(pd.Index(genes))
        known = np.flatnonzero(position >= 0)
        shape = (len(position), len(self.genes))
        return sp.csr_matrix((np.ones(len(known)), (known, position[known])), shape=shape) @ self.features

    def kernel(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Len(left) x len(right), float64."""
        return (self.rows(left) @ self.rows(right).T).toarray() ** self.power

    def known(self, genes: Sequence[str]) -> np.ndarray:
        """Which genes have a row."""
        return self.genes.get_indexer(pd.Index(genes)) >= 0

    @classmethod
    def of(cls, genes: Sequence[str], features: Any, power: int = 1, lengths: pd.Series | None = None) -> FeatureTable:
        """Bring the rows to length 1 (or to `lengths`, by gene); rows of zeros are left out."""
        names, matrix = pd.Index(genes), sp.csr_matrix(features, dtype=np.float64)
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        wanted = np.ones(len(names)) if lengths is None else lengths[names].to_numpy()
        kept = (length > 0) & (wanted > 0)
        scale = sp.diags_array(wanted[kept] / length[kept]).tocsr()
        return cls(names[kept], scale @ matrix[kept], power)


def gene_set_table(sets: dict[str, list[str]]) -> FeatureTable:
    """Gene sets: squared cosine of the memberships, a set weighing log(all genes / its genes) as in TF-IDF."""
    genes, incidence = _incidence(sets)
    size = np.asarray(incidence.sum(axis=0)).ravel()
    return FeatureTable.of(genes, incidence @ sp.diags_array(np.log((1 + len(genes)) / size)), power=2)


def edge_table(source: Sequence[str], target: Sequence[str]) -> FeatureTable:
    """A graph: cosine of the neighbourhoods (the gene itself included), a hub weighing 1 / sqrt(its degree)."""
    genes = pd.Index(sorted({*source, *target}))
    i, j = genes.get_indexer(pd.Index(source)), genes.get_indexer(pd.Index(target))
    graph = sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(len(genes), len(genes)))
    graph = ((graph + graph.T + sp.eye_array(len(genes))) > 0).astype(float)
    degree = np.asarray(graph.sum(axis=0)).ravel()
    return FeatureTable.of(genes, graph @ sp.diags_array(1.0 / np.sqrt(degree)))


def symbol_table(genes: Sequence[str]) -> FeatureTable:
    """The family part of gene symbols: their first 2 to 5 characters, and the letters before the first digit."""
    groups: dict[str, list[str]] = {}
    for gene in genes:
        for part in {gene[:k] for k in range(2, 6)} | {"family " + re.match("[^0-9]*", gene)[0]}:  # type: ignore[index]
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
    pairs = [(gene, j) for j, group in enumerate(groups.values()) for gene in set(group)]
    rows, columns = genes.get_indexer(pd.Index([gene for gene, _ in pairs])), [j for _, j in pairs]
    return genes, sp.csr_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(genes), len(groups)))


@dataclass(frozen=True)
class GeneKnowledge:
    """What the response model may use of genes: feature `tables`, and a `template` of the response.

    The template is loadings (genes x components) and responses (components x genes): their product is the response of
    a knock-out, up to one factor that the model learns, before it has seen any like it.
    """

    tables: dict[str, FeatureTable]
    template: tuple[pd.DataFrame, pd.DataFrame] | None = None


def training_knowledge(
    stats: PerturbationStats, pool: ad.AnnData, signatures: pd.DataFrame, symbols: Iterable[str]
) -> GeneKnowledge:
    """What needs no outside data, of the measured genes and the symbols of all targets; `pool` are control cells.

    `expression`: mean, detection rate and log dispersion in control cells; `co-expression`: loadings on the principal
    components of the pool's cells, as long as the detection rate (a gene that is not expressed has nothing to lose);
    `programs`: correlation with each program's mean signature there; `signature`: membership in the signature lists;
    `symbol`: the family part of the name. The template: what is co-expressed with the target falls with it.
    """
    mean, variance, detection = (table.loc[CONTROL] for table in (stats.mean, stats.variance, stats.detection))
    level = {"mean": mean, "detection": detection, "dispersion": np.log((variance + 1e-3) / (mean + 1e-3))}
    cells = np.asarray(pool.X.toarray() if sp.issparse(pool.X) else pool.X, np.float32)
    cells = cells - cells.mean(axis=0)
    spread = np.maximum(cells.std(axis=0), 1e-3)
    cells /= spread
    _, axes = np.linalg.eigh((cells @ cells.T).astype(np.float64))
    axes = axes[:, ::-1][:, : min(COEXPRESSION_COMPONENTS, max(1, len(cells) - 1))]
    loadings = pd.DataFrame(cells.T @ axes.astype(np.float32) / np.sqrt(len(cells)), index=pool.var_names)
    sets = {name: list(group) for name, group in signatures.groupby("program")["sig_gene"]}
    tables = {
        "expression": numeric_table(pd.DataFrame(level)),
        "co-expression": FeatureTable.of(pool.var_names, loadings, lengths=detection),
        "programs": numeric_table(_program_correlations(cells, pool.var_names, sets)),
        "signature": gene_set_table(sets),
        "symbol": symbol_table(sorted({*pool.var_names, *symbols})),
    }
    return GeneKnowledge(tables, (loadings.mul(-detection[loadings.index], axis=0), loadings.T * spread))


def _program_correlations(cells: np.ndarray, genes: pd.Index, sets: dict[str, list[str]]) -> pd.DataFrame:
    """Genes x programs: correlation over standardised cells with the mean of the program's signature genes."""
    columns = {}
    for name, group in sets.items():
        score = cells[:, genes.isin(group)].sum(axis=1)
        columns[name] = (score - score.mean()) / max(float(score.std()), 1e-6) @ cells / len(cells)
    return pd.DataFrame(columns, index=genes)


def read_features(folder: str | os.PathLike[str], genes: Iterable[str]) -> dict[str, FeatureTable]:
    """The user's tables in a folder, by file name.

    `.gmt` are gene sets; `.csv`, `.tsv`, `.parquet` and `.h5ad` genes x features (first column or index: the gene);
    `.csv` and `.tsv` with columns `source` and `target` a graph. `.gmt`, `.csv` and `.tsv` may end in `.gz`.

    `genes` are the perturbations and targets. Symbols in other case are matched with a warning; repeated genes are
    averaged, constant, non-finite and text columns dropped, a table without any of `genes` left out, each with a
    warning that names file and column. Raises DataError for a file that cannot be read or has no usable column.
    """
    wanted = pd.Index(sorted(set(genes)))
    tables = {}
    for path in sorted(Path(folder).glob("*")):
        kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        if path.name.startswith(".") or kind in ("md", "txt"):
            continue
        if kind not in FEATURE_READERS:
            raise DataError(f"{path}: not a feature table; use {', '.join('.' + name for name in FEATURE_READERS)}")
        try:
            table = FEATURE_READERS[kind](path, wanted)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be read as {kind}: {error}") from error
        if not table.known(wanted).any():
            _warn(f"{path}: none of its genes ({some(table.genes, 3)}) is a perturbation or target; left out")
            continue
        tables[path.name] = table
    return tables


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _as_symbols(names: Iterable[object], wanted: pd.Index, path: Path) -> pd.Index:
    """Names as they are, or in upper case when only so they are known."""
    found = pd.Index([str(name).strip() for name in names])
    if not found.isin(wanted).any() and found.str.upper().isin(wanted).any():
        _warn(f"{path}: gene symbols are not in upper case ({some(found, 3)}); matched in upper case")
        return found.str.upper()
    return found


def _read_gmt(path: Path, wanted: pd.Index) -> FeatureTable:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        fields = [line.rstrip("\n").split("\t") for line in lines if line.strip()]
    if not any(len(field) > 2 for field in fields):
        raise DataError(f"{path}: no gene set: a line is `name<TAB>description<TAB>gene<TAB>gene ...`")
    sets = {field[0]: [gene for gene in field[2:] if gene] for field in fields}
    names = sorted({gene for group in sets.values() for gene in group})
    symbol = dict(zip(names, _as_symbols(names, wanted, path), strict=True))
    return gene_set_table({name: [symbol[gene] for gene in group] for name, group in sets.items() if group})


def _read_text_table(path: Path, wanted: pd.Index) -> FeatureTable:
    separator, other = ("\t", ",") if ".tsv" in path.name else (",", "\t")
    table = pd.read_csv(path, sep=separator, keep_default_na=False, na_values=["", "nan", "NaN", "inf", "-inf"])
    if table.shape[1] == 1:
        hint = "it seems to hold the other separator: rename it to" if other in str(table.columns[0]) else "expected"
        raise DataError(f"{path}: only one column, {table.columns[0]!r}; {hint} .{'csv' if other == ',' else 'tsv'}")
    if {"source", "target"} <= set(table.columns):
        ends = [_as_symbols(table[column], wanted, path) for column in ("source", "target")]
        return edge_table(*ends)
    return _clean_numbers(table.set_index(table.columns[0]), wanted, path)


def _clean_numbers(table: pd.DataFrame, wanted: pd.Index, path: Path) -> FeatureTable:
    """Genes x features: numbers that vary, one row a gene."""
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
    numbers.index = _as_symbols(numbers.index, wanted, path)
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
    return _clean_numbers(ad.read_h5ad(path).to_df(), wanted, path)


FEATURE_READERS: dict[str, Callable[[Path, pd.Index], FeatureTable]] = {
    "gmt": _read_gmt,
    "csv": _read_text_table,
    "tsv": _read_text_table,
    "parquet": _read_parquet,
    "h5ad": _read_h5ad_table,
}


# ---------------------------------------------------------------------------------------------------------------------
# 4. The mean expression of an unseen knock-out
#
# Estimators in scikit-learn's manner. `fit(means, responses=None, n_cells=None, knowledge=None)` takes `means`,
# perturbations x genes with the control among the rows; `responses` (perturbations x anything, default: the means
# themselves) is what is predicted; `n_cells` is the number of cells of each perturbation; `knowledge` is what is known
# of the genes, which only `ResponseModel` uses. `predict(targets)` gives targets x responses.
# ---------------------------------------------------------------------------------------------------------------------


class _SameForAll(BaseEstimator):
    """A prediction that does not depend on the target: `mean_`, by response."""

    def predict(self, targets: Sequence[str], columns: pd.Index | None = None) -> pd.DataFrame:
        check_is_fitted(self)
        return _repeat(self.mean_ if columns is None else self.mean_[columns], targets)


class ControlMean(_SameForAll):
    """Baseline: every knock-out looks like the control."""

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> ControlMean:
        responses = means if responses is None else responses
        _require_control(responses)
        self.mean_ = responses.loc[CONTROL].astype(float)
        return self


class PerturbedMean(_SameForAll):
    """Baseline: every knock-out looks like the average perturbed cell (with `n_cells`) or knock-out (without)."""

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> PerturbedMean:
        responses = (means if responses is None else responses).drop(index=CONTROL, errors="ignore")
        weights = None if n_cells is None else n_cells[responses.index]
        self.mean_ = pd.Series(np.average(responses, axis=0, weights=weights), index=responses.columns)
        return self


class PCARidge(BaseEstimator):
    """The published baseline: ridge regression between principal components, in closed form.

    G (genes x `n_components`) are the components of the genes in a PCA of the raw means, genes x perturbations, the
    control included; the features P of a knock-out are its own gene's row of G; b is the mean over the knock-outs
    that were measured as genes. With Y their means, genes x knock-outs,

        W = (G'G + aI)^-1 G'(Y - b) P (P'P + aI)^-1        prediction = G W p' + b

    after Ahlmann-Eltze, Huber and Anders (2025) and the challenge's regression starter. For other `responses`
    (program proportions) G, Y and b come from a PCA of the responses with `n_response_components` (starter: 3).
    A target that was not measured has no features: it gets b, and one warning lists all such targets.
    """

    def __init__(self, n_components: int = 10, alpha: float = 0.1, n_response_components: int = 3) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.n_response_components = n_response_components

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> PCARidge:
        self.gene_components_ = self._components(means, self.n_components)
        if responses is None:
            responses, response_components = means, self.gene_components_
        else:
            response_components = self._components(responses.loc[means.index], self.n_response_components)
        perturbations = means.index.drop(CONTROL, errors="ignore")
        known = perturbations[perturbations.isin(means.columns)]
        self.intercept_ = responses.loc[known if len(known) else perturbations].mean()
        G, P = response_components.to_numpy(), self.gene_components_.loc[known].to_numpy()
        residuals = (responses.loc[known] - self.intercept_).to_numpy().T
        weights = self._regularised_inverse(G) @ (G.T @ residuals @ P) @ self._regularised_inverse(P)
        self.coefficients_ = pd.DataFrame(G @ weights, index=responses.columns)
        return self

    def predict(self, targets: Sequence[str], columns: pd.Index | None = None) -> pd.DataFrame:
        """Targets x responses (or only `columns` of them), float64."""
        check_is_fitted(self)
        names = pd.Index(targets)
        columns = self.intercept_.index if columns is None else columns
        known = names.isin(self.gene_components_.index)
        features = np.zeros((len(names), self.gene_components_.shape[1]))
        features[known] = self.gene_components_.loc[names[known]]
        if not known.all():
            warnings.warn(
                f"{(~known).sum()} of {len(names)} targets were not measured as genes and get the mean prediction: "
                + some(names[~known]),
                stacklevel=2,
            )
        values = features @ self.coefficients_.loc[columns].to_numpy().T + self.intercept_[columns].to_numpy()
        return pd.DataFrame(values, index=names, columns=columns)

    @staticmethod
    def _components(table: pd.DataFrame, n_components: int) -> pd.DataFrame:
        """PCA scores of the columns of `table` (its rows are the features), columns x components."""
        pca = PCA(min(n_components, *table.shape), svd_solver="full")
        return pd.DataFrame(pca.fit_transform(table.T.to_numpy()), index=table.columns)

    def _regularised_inverse(self, A: np.ndarray) -> np.ndarray:
        return np.linalg.inv(A.T @ A + self.alpha * np.eye(A.shape[1]))


def _require_control(table: pd.DataFrame) -> None:
    if CONTROL not in table.index:
        raise DataError(f"no row '{CONTROL}' (control) among the perturbations {some(table.index)}")


def _repeat(row: pd.Series, targets: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(np.tile(row.to_numpy(), (len(targets), 1)), index=pd.Index(targets), columns=row.index)


class ResponseModel(BaseEstimator):
    """The response of an unseen knock-out from what is known of its gene: a Gaussian process over a sum of kernels.

    With r the residual of a knock-out from the mean over perturbed cells, less a least-squares multiple of the
    template where there is one, and z = r / |r| its direction (Pearson asks for directions, so every knock-out counts
    alike but for the noise of its cells),

        z = f(gene) + noise,  cov f = (sum_t w_t K_t) x Sigma,  noise ratio of component k: rho + tau l_1 / l_k

    K_t is the kernel of feature table t, l_k the variance of response component k; one table is a constant: the
    direction that weak knock-outs share, back to the control. The weights w, then rho and tau, maximise the
    leave-one-out Pearson correlation of the training knock-outs, which has a closed form; `prior` / n holds the log
    weights together when knock-outs are few. The size of a prediction is the least-squares amplitude of the left-out
    predictions.

    Fitted: `weights_` and `coverage_` by table, `template_weight_`; `coefficients_` (genes x components) and `unknown_`
    (the same for a gene of which nothing is known), `basis_` (components x responses), `reference_`; `loo_pearson_` by
    training knock-out (optimistic: the basis has seen it); and `expected_` (genes x `error`, the expected length of the
    prediction's error, and `pearson`; the last row, named "", is for a gene of which nothing is known).
    """

    def __init__(self, prior: float = 0.1, rank: int = 120) -> None:
        self.prior = prior
        self.rank = rank

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> ResponseModel:
        """How each gene itself responds in training is always one more table; a template must raise `loo_pearson_`."""
        responses = (means if responses is None else responses).drop(index=CONTROL, errors="ignore")
        knowledge = knowledge or GeneKnowledge({})
        cells = np.ones(len(responses)) if n_cells is None else n_cells[responses.index].to_numpy(np.float64)
        self.reference_ = pd.Series(np.average(responses, axis=0, weights=cells), index=responses.columns)
        residuals = responses - self.reference_
        if len(residuals) < 3 or np.abs(residuals.to_numpy()).max() < 1e-9:
            return self._learn_nothing(responses)
        templates = [None] if knowledge.template is None else [None, knowledge.template]
        fits = [clone(self)._fit_residuals(residuals, cells, knowledge.tables, t) for t in templates]  # noqa: SLF001
        best = max(fits, key=lambda fitted: fitted.loo_pearson_.mean())
        for name, value in vars(best).items():
            if name.endswith("_"):
                setattr(self, name, value)
        return self

    def _fit_residuals(
        self,
        residuals: pd.DataFrame,
        cells: np.ndarray,
        tables: dict[str, FeatureTable],
        template: tuple[pd.DataFrame, pd.DataFrame] | None,
    ) -> ResponseModel:
        """One fit, with or without the template; sets all fitted attributes but `reference_`."""
        names = residuals.index
        loadings, template_basis = self._fit_template(template, residuals)
        rest = residuals - loadings.loc[names].to_numpy() @ template_basis
        tables = {**tables, "own response": _own_responses(rest.to_numpy(), rest)}
        tables = {name: table for name, table in tables.items() if table.known(names).any()}
        self.coverage_ = pd.Series({name: table.known(names).mean() for name, table in tables.items()})
        genes = pd.Index(sorted(set(names).union(loadings.index, *(table.genes for table in tables.values())) - {""}))
        values, left_out, basis = self._fit_process(tables, genes, rest.to_numpy(), names, cells)
        # A gene of which nothing is known comes last: it has the constant's coefficients, and no template.
        every = np.hstack([values, loadings.reindex([*genes, ""], fill_value=0.0)])
        basis, left_out = np.vstack([basis, template_basis]), np.hstack([left_out, loadings.loc[names]])
        true = residuals.to_numpy()
        self.loo_pearson_ = pd.Series(row_correlations(left_out @ basis, true), index=names)
        self.expected_ = _expected(every, left_out, basis, true, self.loo_pearson_.to_numpy())
        self.expected_.index = pd.Index([*genes, ""])
        self.coefficients_ = pd.DataFrame(every[:-1].astype(np.float32), index=genes)
        self.unknown_ = pd.Series(every[-1])
        self.basis_ = pd.DataFrame(basis, columns=residuals.columns)
        return self

    def _fit_template(
        self, template: tuple[pd.DataFrame, pd.DataFrame] | None, residuals: pd.DataFrame
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """The template's loadings (all genes and all perturbations x components) times its weight, and its responses.

        The weight is the least-squares multiple of the templates in the residuals, and not below 0.
        """
        self.template_weight_ = pd.Series([0.0])
        if template is None:
            return pd.DataFrame(np.zeros((len(residuals), 0)), index=residuals.index), np.zeros((0, residuals.shape[1]))
        loadings = template[0].reindex(template[0].index.union(residuals.index), fill_value=0.0)
        basis = template[1].reindex(columns=residuals.columns, fill_value=0.0).to_numpy(np.float64)
        expected = loadings.loc[residuals.index].to_numpy(np.float64) @ basis
        square = (expected**2).sum()
        self.template_weight_[0] = max(0.0, (expected * residuals.to_numpy()).sum() / square) if square > 0 else 0.0
        return loadings * self.template_weight_[0], basis

    def _fit_process(
        self,
        tables: dict[str, FeatureTable],
        genes: pd.Index,
        residuals: np.ndarray,
        names: pd.Index,
        cells: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients of `genes` and of an unknown gene, left-out ones of the training knock-outs, and their basis."""
        centred = residuals - residuals.mean(axis=1, keepdims=True)
        length = np.maximum(np.linalg.norm(centred, axis=1), 1e-12)
        # Half of the noise of a knock-out is the sampling of its cells, half what no table can know.
        precision = 1.0 / np.sqrt((1.0 + np.median(cells) / cells) / 2.0)
        scale = precision / length
        gram = (centred @ centred.T) * np.outer(scale, scale)
        kernels = np.array([table.kernel(names, names) for table in tables.values()] + [np.ones_like(gram)])
        kernels *= np.outer(precision, precision)
        weights = _best_weights(kernels, gram, self.prior / len(names))
        self.weights_ = pd.Series(weights, index=[*tables, "constant"])
        components, coefficients, variance = _response_components(gram, self.rank)
        dual, left_out = _best_noise(np.tensordot(weights, kernels, 1), coefficients, variance, np.diag(gram))
        left_out = left_out / precision[:, None]
        amplitude = _amplitude(coefficients / scale[:, None], left_out, length)
        values = np.full((len(genes) + 1, len(names)), weights[-1])
        for name, table in tables.items():
            values[:-1] += self.weights_[name] * table.kernel(genes, names)
        basis = components @ (residuals * scale[:, None])
        return amplitude * (values * precision) @ dual, amplitude * left_out, basis

    def _learn_nothing(self, responses: pd.DataFrame) -> ResponseModel:
        """Too few knock-outs, or all alike: every prediction is the reference."""
        self.coverage_ = self.weights_ = pd.Series(dtype=np.float64)
        self.template_weight_ = pd.Series([0.0])
        self.loo_pearson_ = pd.Series(0.0, index=responses.index)
        self.expected_ = pd.DataFrame({"error": [0.0], "pearson": [0.0]}, index=[""])
        self.coefficients_ = pd.DataFrame(np.zeros((len(responses), 1), np.float32), index=responses.index)
        self.unknown_ = pd.Series([0.0])
        self.basis_ = pd.DataFrame(np.zeros((1, responses.shape[1])), columns=responses.columns)
        return self

    def predict(self, targets: Sequence[str], columns: pd.Index | None = None) -> pd.DataFrame:
        """Targets x responses (or only `columns` of them), float64; one warning lists targets that are in no table."""
        check_is_fitted(self)
        names = pd.Index(targets)
        columns = self.reference_.index if columns is None else columns
        position = self.coefficients_.index.get_indexer(names)
        if (position < 0).any():
            warnings.warn(
                f"nothing is known of {(position < 0).sum()} of {len(names)} targets, which get the prediction of a "
                "gene in no table: " + some(names[position < 0]),
                stacklevel=2,
            )
        values = np.where(position[:, None] >= 0, self.coefficients_.to_numpy()[position], self.unknown_.to_numpy())
        predicted = values @ self.basis_[columns].to_numpy() + self.reference_[columns].to_numpy()
        return pd.DataFrame(predicted, index=names, columns=columns)

    def predict_scale(self, targets: Sequence[str]) -> pd.DataFrame:
        """How sure: targets x `error` (expected length of the residual's error) and `pearson` (expected)."""
        check_is_fitted(self)
        names = pd.Index(targets)
        position = self.expected_.index.get_indexer(names)
        return self.expected_.iloc[np.where(position < 0, len(self.expected_) - 1, position)].set_axis(names)


def _own_responses(residuals: np.ndarray, responses: pd.DataFrame, rank: int = 30) -> FeatureTable:
    """How each gene responds in the training knock-outs, its own knock-out apart."""
    _, axes = np.linalg.eigh(residuals @ residuals.T)
    axes = axes[:, ::-1][:, :rank]
    loadings = residuals.T @ axes
    own = responses.columns.get_indexer(responses.index)
    rows = np.flatnonzero(own >= 0)
    loadings[own[rows]] -= axes[rows] * residuals[rows, own[rows]][:, None]
    return FeatureTable.of(responses.columns.astype(str), loadings)


def _best_weights(kernels: np.ndarray, gram: np.ndarray, prior: float) -> np.ndarray:
    """Weights of the kernels (tables x n x n) that maximise the leave-one-out Pearson correlation."""
    start = np.full(len(kernels), -1.0)
    found = scipy.optimize.minimize(
        _loo_pearson, start, (kernels, gram, prior), jac=True, method="L-BFGS-B",
        bounds=[(-7.0, 3.0)] * len(kernels), options={"maxiter": 60},
    )  # fmt: skip
    return np.exp(found.x)


def _loo_pearson(
    log_weights: np.ndarray, kernels: np.ndarray, gram: np.ndarray, prior: float
) -> tuple[float, np.ndarray]:
    """Minus the mean leave-one-out correlation, and its gradient, with unit noise and `gram` = rows @ rows.T.

    With P = (sum w K + I)^-1 the left-out prediction of row i is a fixed mixture of the other rows,
    sum_j S_ij row_j with S_ij = -P_ij / P_ii (Rasmussen and Williams 2006, eq. 5.12), so all correlations come
    from n x n matrices.
    """
    n, weights = len(gram), np.exp(log_weights)
    precision = np.linalg.inv(np.tensordot(weights, kernels, 1) + np.eye(n))
    diagonal = np.diag(precision).copy()
    smooth = -precision / diagonal[:, None]
    np.fill_diagonal(smooth, 0.0)
    predicted = smooth @ gram
    size = np.sqrt(np.maximum((predicted * smooth).sum(axis=1), 1e-12 * np.trace(gram) / n))
    length = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    hit = np.diag(predicted) / (size * length)
    # The gradient, backwards through the same steps.
    slope = (gram / length[:, None] - predicted * (hit / size)[:, None]) / size[:, None] / n
    np.fill_diagonal(slope, 0.0)
    back = -slope / diagonal[:, None]
    np.fill_diagonal(back, (slope * precision).sum(axis=1) / diagonal**2)
    back = -(precision @ back @ precision).T
    gradient = np.einsum("tij,ij->t", kernels, back) * weights
    spread = log_weights - log_weights.mean()
    return -hit.mean() + prior * spread @ spread, -gradient + 2.0 * prior * spread


def _response_components(gram: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The low-rank response basis, from rows @ rows.T.

    Returns what turns the rows into components, each row's coefficients on them, and the components' variances.
    """
    variance, axes = np.linalg.eigh(gram)
    variance, axes = variance[::-1], axes[:, ::-1]
    rank = max(1, min(rank, len(gram) - 1, int((variance > 1e-9 * variance[0]).sum())))
    root = np.sqrt(variance[:rank])
    return (axes[:, :rank] / root).T, axes[:, :rank] * root, variance[:rank]


def _best_noise(
    kernel: np.ndarray, coefficients: np.ndarray, variance: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Dual coefficients and left-out predictions at the noise (rho, tau) with the best leave-one-out correlation."""
    values, vectors = np.linalg.eigh(kernel)
    rotated, squared = vectors.T @ coefficients, vectors**2
    best, highest = (coefficients, coefficients), -np.inf
    for rho in (0.02, 0.1, 0.5, 2.0):
        for tau in 2.0 ** np.arange(-6, 6):
            inverse = 1.0 / (np.maximum(values, 0.0)[:, None] + rho + tau * variance[0] / variance)
            dual = vectors @ (rotated * inverse)
            left_out = coefficients - dual / (squared @ inverse)
            size = np.maximum(np.linalg.norm(left_out, axis=1), 1e-12)
            hits = (left_out * coefficients).sum(axis=1) / (size * np.sqrt(np.maximum(lengths, 1e-12)))
            if hits.mean() > highest:
                best, highest = (dual, left_out), hits.mean()
    return best


def _amplitude(true: np.ndarray, predicted: np.ndarray, length: np.ndarray) -> float:
    """Least squares of the true residuals on their left-out predictions.

    Never 0, since Pearson needs the direction, and never more than makes predictions as long as the residuals.
    """
    square = max(float((predicted**2).sum()), 1e-12)
    most = np.sqrt((length**2).sum() / square)
    return float(np.clip((true * predicted).sum() / square, 0.02 * most, most))


def _expected(
    every: np.ndarray, left_out: np.ndarray, basis: np.ndarray, residuals: np.ndarray, hits: np.ndarray
) -> pd.DataFrame:
    """Expected error and Pearson correlation of every prediction, by straight lines of the left-out ones.

    Both follow the length of the prediction: a longer one is a surer one, since the tables agree.
    """
    product = basis @ basis.T
    size, known = (np.sqrt(np.maximum(((c @ product) * c).sum(axis=1), 0.0)) for c in (every, left_out))
    size = size.clip(known.min(), known.max())
    error = ((residuals - left_out @ basis) ** 2).sum(axis=1)
    return pd.DataFrame({"error": np.sqrt(_line(known**2, error, size**2)), "pearson": _line(known, hits, size)})


def _line(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """A straight line by least squares at `new`, kept within the middle 90 % of y."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return np.clip(y.mean() + slope * (new - x.mean()), *np.quantile(y, [0.05, 0.95]))


# ---------------------------------------------------------------------------------------------------------------------
# 5. Program proportions
# ---------------------------------------------------------------------------------------------------------------------


class MedianProportions(_SameForAll):
    """One prediction for all: the shares nearest to the training knock-outs' in L1, and their median lipo / adipo.

    The sum of absolute deviations, under the constraint that the shares sum to 1, is least where all shares are the
    same quantile of the training shares (the Lagrange condition): medians, but for a shift that makes them sum to 1.
    """

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> MedianProportions:
        proportions = (means if responses is None else responses).drop(index=CONTROL, errors="ignore")
        shares = proportions[SHARES].to_numpy(np.float64)
        level = scipy.optimize.brentq(lambda q: np.quantile(shares, np.clip(q, 0, 1), axis=0).sum() - 1.0, -1e-9, 1)
        self.mean_ = pd.Series(np.quantile(shares, np.clip(level, 0, 1), axis=0), index=SHARES)
        ratio = proportions["lipo"] / proportions["adipo"].where(proportions["adipo"] > 0, 1.0)
        self.mean_["lipo_adipo"] = ratio.median()
        return self


def constrain_proportions(raw: pd.DataFrame) -> pd.DataFrame:
    """Any predicted shares (targets x columns) made valid: targets x pre_adipo, adipo, lipo, other.

    The three shares are clipped at 0 and divided by their sum; `lipo` is the ratio `lipo_adipo` (where predicted,
    else `lipo / adipo`), clipped to 0..1, times `adipo`.
    """
    shares = raw[SHARES].clip(lower=0.0)
    total = shares.sum(axis=1)
    shares = shares.div(total.where(total > 0, 1.0), axis=0)
    shares[total <= 0] = 1 / len(SHARES)
    ratio = raw["lipo_adipo"] if "lipo_adipo" in raw else raw["lipo"] / raw["adipo"].where(raw["adipo"] > 0, 1.0)
    shares["lipo"] = ratio.clip(0.0, 1.0) * shares["adipo"]
    return shares[PREDICTED_PROPORTION_COLUMNS[1:]]


# ---------------------------------------------------------------------------------------------------------------------
# 6. Synthetic cells around a predicted mean
#
# `fit(means, pool)` learns from the perturbation means and from an AnnData of real cells; `for_genes(genes)` is the
# fitted generator for those genes in that order; `sample(target, mean, n_cells)` gives n_cells x genes, float32.
# ---------------------------------------------------------------------------------------------------------------------


class GaussianCells(BaseEstimator):
    """The published starter's cells: the mean plus normal noise with the spread of the perturbation MEANS.

    That spread (standard deviation over the knock-outs, divided by n - 1) is about 0.05, so the cells are nearly
    identical. The noise of a target depends on the seed, its name and the gene's name alone.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, means: pd.DataFrame, pool: ad.AnnData | None = None) -> GaussianCells:
        self.scale_ = means.drop(index=CONTROL, errors="ignore").std()
        return self

    def for_genes(self, genes: pd.Index) -> GaussianCells:
        fitted = GaussianCells(self.seed)
        fitted.scale_ = self.scale_
        fitted.columns_ = self.scale_.index.get_indexer(genes)  # -1 for a gene that was never measured
        return fitted

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, zlib.crc32(target.encode())])
        # Drawn for all genes in training order, so that the order of the columns changes nothing else.
        noise = generator.standard_normal((n_cells, len(self.scale_)), dtype=np.float32)
        noise *= self.scale_.to_numpy(np.float32)
        return noise[:, self.columns_] * (self.columns_ >= 0) + mean.astype(np.float32)


class RecentredCells(BaseEstimator):
    """Real cells moved to the predicted mean: cells = base - mean(base) + mean. Never clipped.

    The base is `n_base` cells of the pool in herded order (Welling 2009; Chen, Welling and Smola 2010), so that every
    prefix represents the pool: the scorer takes the first rows. The kernel is the scorer's, its bandwidth the mean
    squared distance between cells of the pool. All knock-outs share one base; asking for more cells repeats it.
    """

    def __init__(self, n_base: int = 100) -> None:
        self.n_base = n_base

    def fit(self, means: pd.DataFrame | None, pool: ad.AnnData) -> RecentredCells:
        X = pool.X.toarray() if sp.issparse(pool.X) else np.asarray(pool.X)
        distances = squared_distances(X, X)
        sigma = distances.sum() / max(len(X) * (len(X) - 1), 1)
        chosen = herd(scorer_kernel(distances, sigma or 1.0), min(self.n_base, len(X)))
        self.base_ = pd.DataFrame(X[chosen].astype(np.float32), columns=pool.var_names)
        return self

    def for_genes(self, genes: pd.Index) -> RecentredCells:
        fitted = RecentredCells(self.n_base)
        fitted.base_ = self.base_.reindex(columns=genes, fill_value=0.0)  # 0 for a gene that was never measured
        return fitted

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        return self._centred(n_cells) + mean.astype(np.float32)

    def _centred(self, n_cells: int) -> np.ndarray:
        """`n_cells` rows of the base minus their exact mean, float32; kept, since every knock-out uses the same."""
        centred: np.ndarray | None = getattr(self, "_centred_base", None)
        if centred is None or len(centred) != n_cells:
            base = self.base_.to_numpy(np.float64)[np.arange(n_cells) % len(self.base_)]
            self._centred_base = centred = (base - base.mean(axis=0)).astype(np.float32)
        return centred


def herd(kernel: np.ndarray, n: int) -> np.ndarray:
    """Greedy kernel herding: n different rows of a kernel matrix (pool x pool), as row numbers.

    They come in an order whose every prefix has a mean embedding near the pool's; ties go to the lower row number.
    """
    attraction = kernel.mean(axis=1)
    chosen: list[int] = []
    repulsion = np.zeros(len(kernel))
    for t in range(n):
        gain = attraction - repulsion / (t + 1)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        repulsion += kernel[chosen[-1]]
    return np.array(chosen)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between the rows of a and b, by a matrix product, len(a) x len(b)."""
    centre = b.mean(axis=0)
    centred_b = b - centre
    return _centred_distances(centred_b if a is b else a - centre, centred_b)


def _centred_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of cells around 0, where |a|^2 + |b|^2 - 2ab loses no digits; of `a is b` BLAS computes half."""
    norms_a, norms_b = (np.einsum("ij,ij->i", rows, rows) for rows in (a, b))
    distances = a @ b.T
    distances *= -2.0
    distances += norms_a[:, None]
    distances += norms_b
    return np.maximum(distances, 0.0, out=distances)


def scorer_kernel(distances: np.ndarray, sigma: float) -> np.ndarray:
    """The scorer's kernel: the sum of exp(-D / bandwidth) over the bandwidths sigma * (1/4, 1/2, 1, 2, 4)."""
    power = np.exp(distances / (-4.0 * sigma))
    total = power.copy()
    for _ in range(4):
        power *= power  # exp(-D/4s), squared four times: one exponential serves all five bandwidths
        total += power
    return total


# ---------------------------------------------------------------------------------------------------------------------
# 7. The two predicted files
# ---------------------------------------------------------------------------------------------------------------------

SLAB_BYTES = 64_000_000


def write_prediction(
    path: str | os.PathLike[str],
    means: pd.DataFrame,
    cells: BaseEstimator,
    *,
    cells_per_perturbation: int = 100,
    mode: str = "auto",
    form: str = "auto",
) -> tuple[str, str]:
    """Write `prediction.h5ad`: float32, targets in the order of `means`, `cells_per_perturbation` rows each.

    `means` is targets x genes, in the order wanted in the file; `cells` a fitted generator. `mode` is "ram" (the whole
    matrix is made first), "disk" (slabs of 64 MB go straight into the file) or "auto" (by the memory available); both
    give the same file. `form` is "plain", "compact" (values in steps of 1/64, shuffled and compressed by lzf: about
    40 % of the size, several times as slow; the mean of the cells stays exact to the step) or "auto" (plain, unless
    only the compact form fits the free disk). The file is written beside under a temporary name and renamed at the
    end, so that an interrupted run leaves an older file as it was.

    Returns the mode and the form used. Raises DataError when the disk is too small or cannot be written to.
    """
    path = Path(path)
    shape = len(means) * cells_per_perturbation, means.shape[1]
    size = shape[0] * shape[1] * 4
    mode, form = _choose(mode, form, path.parent, size)
    generator, values = cells.for_genes(means.columns), means.to_numpy(np.float32)
    per_slab = max(1, SLAB_BYTES // max(1, cells_per_perturbation * shape[1] * 4)) if mode == "disk" else len(means)
    storage = {"chunks": (min(cells_per_perturbation, shape[0]), min(1024, shape[1])), "shuffle": True,
               "compression": "lzf"} if form == "compact" else {}  # fmt: skip
    with replacing(path) as temporary:
        _write_labels(temporary, means.index.repeat(cells_per_perturbation), means.columns)
        with (
            h5py.File(temporary, "r+") as file,
            tqdm(total=size, unit="B", unit_scale=True, desc=f"Writing {path.name}") as progress,
        ):
            X = file.create_dataset("X", shape, np.float32, **storage)
            X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            slab = np.empty((min(per_slab, len(means)) * cells_per_perturbation, shape[1]), np.float32)
            for first in range(0, len(means), per_slab):
                targets = means.index[first : first + per_slab]
                for i, target in enumerate(targets):
                    sample = generator.sample(target, values[first + i], cells_per_perturbation)
                    rows = slice(i * cells_per_perturbation, (i + 1) * cells_per_perturbation)
                    slab[rows] = in_steps(sample) if form == "compact" else sample
                start, length = first * cells_per_perturbation, len(targets) * cells_per_perturbation
                X.write_direct(slab, np.s_[:length], np.s_[start : start + length])
                progress.update(length * shape[1] * 4)
    return mode, form


def in_steps(cells: np.ndarray, step: float = 1 / 64) -> np.ndarray:
    """Values in whole steps, whose sums over the first n cells are exact to half a step, for every n.

    The rounding error of a cell is carried over to the next, so that no prefix has a mean off by more than step / 2n.
    """
    totals = np.rint(np.cumsum(cells, axis=0, dtype=np.float64) / step)
    return (np.diff(totals, axis=0, prepend=0.0) * step).astype(np.float32)


def write_proportions(path: str | os.PathLike[str], proportions: pd.DataFrame) -> None:
    """Write `predict_program_proportion.csv` from targets x pre_adipo, adipo, lipo, other."""
    table = proportions.rename_axis("gene").reset_index()[PREDICTED_PROPORTION_COLUMNS]
    with replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False)


COMPACT_SHARE = 0.45  # of the plain size, at most: measured 0.39 on cells of the challenge's scale


def _choose(mode: str, form: str, folder: Path, size: int) -> tuple[str, str]:
    """Choose mode and form, say why, and refuse when the disk cannot hold the file in either form."""
    if mode not in ("auto", "ram", "disk") or form not in ("auto", "plain", "compact"):
        raise ValueError(f"mode is 'auto', 'ram' or 'disk', and form 'auto', 'plain' or 'compact', not {mode}, {form}")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free, available = shutil.disk_usage(existing).free, psutil.virtual_memory().available
    needed = {"plain": size + 50e6, "compact": COMPACT_SHARE * size + 50e6}
    if form == "auto":
        form = "plain" if needed["plain"] < free else "compact"
    if needed[form] > free:
        raise DataError(
            f"{folder}: the prediction takes {text_size(size)}, about {text_size(COMPACT_SHARE * size)} in compact "
            f"form, but only {text_size(free)} of disk are free"
        )
    if mode == "auto":
        mode = "ram" if size < available / 4 else "disk"
        how = "made in memory, then written" if mode == "ram" else "written slab by slab"
        why = f"{'less' if mode == 'ram' else 'more'} than a quarter of the {text_size(available)} of free memory"
        print(f"Prediction of {text_size(size)} in {form} form, {how}: {why}; {text_size(free)} of disk are free.")
    return mode, form


def _write_labels(path: Path, genes_of_cells: pd.Index, genes: pd.Index) -> None:
    """An `.h5ad` with obs['gene'], var and no X."""
    number = np.arange(len(genes_of_cells)).astype(str)
    obs = pd.DataFrame({"gene": pd.Categorical(genes_of_cells, categories=genes_of_cells.unique())}, index=number)
    ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(str), name=None))).write_h5ad(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when all went well and removed when not.

    What a killed run left behind is removed by the next one. Raises DataError when the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.*.partial"):
            if not psutil.pid_exists(int(stale.name.split(".")[-2])):
                stale.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # closing a file on a full disk, h5py raises a RuntimeError
        raise DataError(f"{path}: could not be written ({error}); what was there before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# 8. What the platform calls: `train` once, then `infer`
# ---------------------------------------------------------------------------------------------------------------------

POOL_CELLS = 1000  # real cells that the base is herded from: 86 MB at 21,592 genes


@dataclass
class Predictor:
    """A whole method: how the mean, the program proportions and the cells of a knock-out are made."""

    expression: BaseEstimator
    proportions: BaseEstimator
    cells: BaseEstimator

    @classmethod
    def default(cls) -> Predictor:
        return cls(ResponseModel(), MedianProportions(), RecentredCells())

    def fit(
        self,
        stats: PerturbationStats,
        proportions: pd.DataFrame,
        pool: ad.AnnData,
        knowledge: GeneKnowledge | None = None,
    ) -> Predictor:
        """Fit all three; the same bytes for any number of threads, since BLAS is held to one."""
        proportions = proportions.loc[stats.mean.index]
        with threadpool_limits(1):
            self.expression.fit(stats.mean, n_cells=stats.n_cells, knowledge=knowledge)
            self.proportions.fit(stats.mean, proportions, stats.n_cells, knowledge)
            self.cells.fit(stats.mean, pool)
        self.genes = stats.mean.columns
        return self

    def write(
        self,
        prediction_path: str | os.PathLike[str],
        proportions_path: str | os.PathLike[str],
        targets: Sequence[str],
        genes: Sequence[str],
        *,
        cells_per_perturbation: int = 100,
        mode: str = "auto",
    ) -> None:
        """Predict `targets` on `genes` (in that order) and write both files.

        A repeated target is predicted once, and a gene that was never measured is predicted as 0 (not detected),
        each with a warning. Raises DataError for repeated genes, or when the model knows less than half of them.
        """
        names, columns = self._checked_targets(targets), self._checked_genes(genes)
        known = columns[columns.isin(self.genes)]
        with threadpool_limits(1):
            means = self.expression.predict(names, columns=known).astype(np.float32)
            if len(known) < len(columns):
                means = means.reindex(columns=columns, fill_value=0.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the same targets were listed a line above
                shares = constrain_proportions(self.proportions.predict(names))
        write_prediction(
            prediction_path, means, self.cells, cells_per_perturbation=cells_per_perturbation, mode=mode
        )
        write_proportions(proportions_path, shares)

    @staticmethod
    def _checked_targets(targets: Sequence[str]) -> pd.Index:
        index = pd.Index([str(target) for target in targets])
        if index.empty:
            raise DataError("predict_perturbations is empty: there is nothing to predict")
        if index.has_duplicates:
            warnings.warn(f"listed twice, predicted once: {some(index[index.duplicated()].unique())}", stacklevel=3)
        return index.unique()

    def _checked_genes(self, genes: Sequence[str]) -> pd.Index:
        index = pd.Index([str(gene) for gene in genes])
        _check_unique(index, "genes_to_predict")
        unknown = index[~index.isin(self.genes)]
        if len(unknown) > len(index) / 2:
            raise DataError(
                f"the model knows only {len(index) - len(unknown)} of the {len(index)} genes to predict: it was "
                f"trained on other data; delete {MODEL_FILE} in the model folder and train again"
            )
        if len(unknown):
            warnings.warn(f"never measured, predicted as 0: {some(unknown)}", stacklevel=3)
        return index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model as HDF5 (arrays, names and settings; no pickle)."""
        with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"] = MODEL_FORMAT
            write_array(file, "genes", self.genes.to_numpy())
            for part in ("expression", "proportions", "cells"):
                _write_estimator(file.create_group(part), getattr(self, part))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictor:
        """Read a saved model. Raises DataError when it is not one, or of another version."""
        again = f"delete {path} and train again"
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != MODEL_FORMAT:
                    raise DataError(f"{path}: made by another version of helpers.py; {again}")
                predictor = cls(*(_read_estimator(file[part]) for part in ("expression", "proportions", "cells")))
                predictor.genes = pd.Index(read_array(file["genes"]))
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: not a saved model, or a broken one ({error}); {again}") from error
        return predictor


ESTIMATORS = {
    cls.__name__: cls
    for cls in [ControlMean, PerturbedMean, PCARidge, ResponseModel, MedianProportions, GaussianCells, RecentredCells]
}


def _write_estimator(group: h5py.Group, estimator: BaseEstimator) -> None:
    """The class's name, its parameters and its fitted attributes (the tables whose names end in `_`)."""
    group.attrs["class"] = type(estimator).__name__
    group.attrs.update(estimator.get_params())
    for name, table in vars(estimator).items():
        if name.endswith("_") and isinstance(table, pd.DataFrame | pd.Series):
            part = group.create_group(name)
            write_array(part, "values", table.to_numpy())
            write_array(part, "index", table.index.to_numpy())
            if isinstance(table, pd.DataFrame):
                write_array(part, "columns", table.columns.to_numpy())


def _read_estimator(group: h5py.Group) -> BaseEstimator:
    parameters = dict(group.attrs)
    estimator = ESTIMATORS[parameters.pop("class")](**{name: value.item() for name, value in parameters.items()})
    for name, part in group.items():
        values, index = read_array(part["values"]), read_array(part["index"])
        if "columns" in part:
            table = pd.DataFrame(values, index=index, columns=read_array(part["columns"]))
        else:
            table = pd.Series(values, index=index)
        setattr(estimator, name, table)
    return estimator


def write_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    if values.dtype.kind in "OUT":
        group.create_dataset(name, data=[str(value) for value in values], dtype=h5py.string_dtype())
    else:
        group.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    return dataset.asstr()[:] if dataset.dtype.kind == "O" else dataset[:]


def fit_predictor(
    challenge: Challenge,
    predictor: Predictor | None = None,
    *,
    features: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Predictor:
    """Fit a method (default: `Predictor.default()`) to the training cells of a challenge folder.

    `features` is a folder of the user's own feature tables (`read_features`).
    """
    size = challenge.train_path.stat().st_size
    memory = (64 * len(challenge.perturbations) + 12 * POOL_CELLS) * len(challenge.genes) + 0.4e9
    print(f"Training on {len(challenge.obs):,} cells x {len(challenge.genes):,} genes ({text_size(size)} on disk), "
          f"{len(challenge.perturbations)} perturbations; takes about {text_size(memory)} of memory.")
    local = pd.Index([]) if challenge.local_proportions is None else challenge.local_proportions.index
    names = challenge.perturbations.union(challenge.targets).union(local)
    own = read_features(features, names) if features is not None and Path(features).is_dir() else {}
    stats = perturbation_stats(challenge.train_path)
    pool = read_cells(challenge.train_path, pool_rows(challenge.obs, seed))
    with threadpool_limits(1):
        knowledge = training_knowledge(stats, pool, challenge.signatures, names)
    knowledge = replace(knowledge, tables=knowledge.tables | own)
    for name, table in knowledge.tables.items():
        known = {part: table.known(part_names).sum() for part, part_names in
                 (("training", challenge.perturbations), ("predicted", challenge.targets))}
        print(f"  feature table {name}: knows {known['training']} of {len(challenge.perturbations)} training and "
              f"{known['predicted']} of {len(challenge.targets)} predicted knock-outs")
    return (predictor or Predictor.default()).fit(stats, challenge.proportions, pool, knowledge)


def pool_rows(obs: pd.DataFrame, seed: int) -> np.ndarray:
    """The rows, in file order, of POOL_CELLS control cells; where there are fewer, perturbed cells fill them up."""
    generator = np.random.default_rng(seed)
    is_control = (obs["gene"] == CONTROL).to_numpy()
    order = np.concatenate([generator.permutation(np.flatnonzero(part)) for part in (is_control, ~is_control)])
    return np.sort(order[:POOL_CELLS])


def train(data_directory_path: str, model_directory_path: str, *, seed: int = 0) -> Predictor:
    """Fit the default method on the data folder and save it into the model folder (`resources/`).

    Uses the feature tables in the model folder's `features/`, where there are any. Beside the model it writes
    `expected.csv`: for each target, how large an error and which Pearson correlation the model expects. A model folder
    that cannot be written to costs a warning, not the fitted model, which is returned.
    """
    challenge, folder = load_challenge(data_directory_path), Path(model_directory_path)
    predictor = fit_predictor(challenge, features=folder / FEATURES_FOLDER, seed=seed)
    try:
        predictor.save(folder / MODEL_FILE)
        with replacing(folder / EXPECTED_FILE) as temporary:
            predictor.expression.predict_scale(challenge.targets).rename_axis("gene").to_csv(temporary)
        print(f"Saved {folder / MODEL_FILE} ({text_size((folder / MODEL_FILE).stat().st_size)}) and {EXPECTED_FILE}.")
    except DataError as error:
        warnings.warn(f"the model was fitted but not saved: {error}", stacklevel=2)
    return predictor


def infer(
    data_directory_path: str,
    prediction_directory_path: str,
    prediction_h5ad_file_path: str,
    program_proportion_csv_file_path: str,
    model_directory_path: str,
    predict_perturbations: Sequence[str],
    genes_to_predict: Sequence[str],
    cells_per_perturbation: int = 100,
) -> None:
    """Predict with the saved model, which is all it needs; with an empty model folder it trains first."""
    path = Path(model_directory_path) / MODEL_FILE
    if path.exists():
        predictor = Predictor.load(path)
    else:
        print(f"No {path}: training first.")
        predictor = train(data_directory_path, model_directory_path)
    predictor.write(
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        predict_perturbations,
        genes_to_predict,
        cells_per_perturbation=cells_per_perturbation,
    )


# ---------------------------------------------------------------------------------------------------------------------
# 9. The platform's three scores
# ---------------------------------------------------------------------------------------------------------------------

SIGMA = 2326.0  # the scorer's middle bandwidth
REFERENCE_TOLERANCE = 1e-5  # expression units; float32 cells of the challenge's scale round their mean to about 1e-6
SCORED_TOGETHER = 16  # perturbations a task for an executor
SIGMA_GENES = 1000  # the number of genes it was made for: the mean squared distance between cells grows with it


def pearson_delta(truth: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> float:
    """Correlation over the genes of (true mean - reference) with (predicted mean - reference); higher is better.

    `truth` and `prediction` are cells x genes, or one mean expression profile; `reference` has one value a gene (the
    perturbed centroid of the training cells). NaN when the prediction is the reference itself.
    """
    truth, prediction = (np.atleast_2d(np.asarray(cells, float)).mean(axis=0) for cells in (truth, prediction))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(truth - np.asarray(reference), prediction - np.asarray(reference))[0, 1])


def row_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of a with that row of b; both are rows x values, float64.

    It is 0 where a row is constant: a spread below 1e-9 of the typical value is rounding, not variation.
    """
    rounding = 1e-9 * np.sqrt(max((a**2).mean(), (b**2).mean()) * a.shape[1])
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (a, b))
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    flat = (lengths[0] <= rounding) | (lengths[1] <= rounding)
    return np.where(flat, 0.0, (a * b).sum(axis=1) / np.where(flat, 1.0, lengths[0] * lengths[1]))


def mmd(truth: np.ndarray, prediction: np.ndarray, sigma: float = SIGMA) -> float:
    """Squared maximum mean discrepancy (biased) of the first n = min(true, predicted) cells; lower is better.

    `truth` and `prediction` are cells x genes. mean(K_xx) + mean(K_yy) - 2 mean(K_xy), with `scorer_kernel`.
    """
    return _mmd(np.asarray(truth, float), np.asarray(prediction, float), sigma, _mean_kernel)


def _mmd(x: np.ndarray, y: np.ndarray, sigma: float, own_kernel: Callable[..., float]) -> float:
    """The same; `own_kernel` gives the predicted cells' part."""
    n = min(len(x), len(y))
    if n == 0:
        raise ValueError("mmd needs at least one true and one predicted cell")
    centre = y[:n].mean(axis=0)
    x, y = x[:n] - centre, y[:n] - centre
    return _mean_kernel(x, x, sigma) + own_kernel(y, y, sigma) - 2.0 * _mean_kernel(x, y, sigma)


def _mean_kernel(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    return float(np.mean(scorer_kernel(_centred_distances(a, b), sigma)))


class _BaseKernel:
    """`_mean_kernel` of predicted cells with each other, whose distances are computed once a base.

    The cells of all knock-outs are one base around other means, up to float32 rounding. What the rounding changes is
    added by its gradient, exact to the square of the rounding; other cells are computed anew.
    """

    def __init__(self) -> None:
        self.base, self.value, self.gradient = np.empty((0, 0)), 0.0, np.empty((0, 0))

    def __call__(self, cells: np.ndarray, _: np.ndarray, sigma: float) -> float:
        if self.base.shape == cells.shape:
            rounding = cells - self.base
            if np.abs(rounding).max() < REFERENCE_TOLERANCE:
                return self.value + float(np.vdot(rounding, self.gradient))
        self.base = cells
        distances = _centred_distances(cells, cells)
        self.value = float(np.mean(scorer_kernel(distances, sigma)))
        power, slope = np.exp(distances / (-4.0 * sigma)), np.zeros_like(distances)
        for i in range(5):
            slope -= 2.0**i / (4.0 * sigma) * power
            power *= power
        self.gradient = 4.0 / slope.size * (slope.sum(axis=1)[:, None] * cells - slope @ cells)
        return self.value


def l1_distance(truth: pd.DataFrame, prediction: pd.DataFrame) -> float:
    """Mean over the perturbations of `truth` of `l1_by_perturbation`; lower is better."""
    return float(l1_by_perturbation(truth, prediction).mean())


def l1_by_perturbation(truth: pd.DataFrame, prediction: pd.DataFrame) -> pd.Series:
    """0.75 (|d pre_adipo| + |d adipo| + |d other|) + 0.25 |d (lipo / adipo)| of each perturbation of `truth`.

    Both tables hold one row a perturbation, named by a column `gene` or by the index; they are matched by name.
    Raises DataError when a perturbation of `truth` is missing or repeated in `prediction`.
    """
    truth, prediction = (table.set_index("gene") if "gene" in table else table for table in (truth, prediction))
    for table, where in ((truth, "true proportions"), (prediction, "predicted proportions")):
        _check_unique(table.index, where)
    if missing := list(truth.index.difference(prediction.index)):
        raise DataError(f"predicted proportions: no row for {some(missing)}")
    prediction = prediction.loc[truth.index]
    shares = (truth[SHARES] - prediction[SHARES]).abs().sum(axis=1)
    ratio = (truth["lipo"] / (truth["adipo"] + 1e-20) - prediction["lipo"] / (prediction["adipo"] + 1e-20)).abs()
    return 0.75 * shares + 0.25 * ratio


def score(
    prediction_h5ad: str | os.PathLike[str],
    proportions_csv: str | os.PathLike[str],
    truth_h5ad: str | os.PathLike[str],
    truth_proportions_csv: str | os.PathLike[str],
    *,
    genes: Sequence[str] | None = None,
    n_panels: int = 3,
    panel_size: int = 1000,
    sigma: float | str = "scaled",
    seed: int = 0,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Score two predicted files against two truth files, perturbation by perturbation.

    The panel is `genes`, or `n_panels` random panels of `panel_size` of the genes that both files hold (one panel of
    them all when there are no more). `sigma` is the scorer's middle bandwidth for MMD: "scaled" (2326 for each 1,000
    genes: right for data of the challenge's scale), "calibrated" (mean squared distance between true cells: for data
    of any other scale) or a number. `executor` is as in `perturbation_stats`; the files are read once.

    Returns a tidy table with columns `perturbation, metric, panel, n_genes, sigma, sigma_rule, value`. A prediction
    that equals the reference to float32 rounding has no Pearson delta but that of the rounding; it counts as 0.
    """
    true, predicted = (_Shard.of(Path(path), ["gene"]) for path in (truth_h5ad, prediction_h5ad))
    panels = draw_panels(true.genes, predicted.genes, genes, n_panels, panel_size, seed)
    reference = pd.Series(_read_uns(Path(truth_h5ad), "perturbed_centroid_train"), index=true.genes)
    perturbations = list(true.obs["gene"].cat.categories)
    if missing := sorted(set(perturbations) - set(predicted.obs["gene"].cat.categories)):
        raise DataError(f"{predicted.name}: no cells for the scored perturbations {some(missing)}")
    with _open_rows(true.source) as X:
        widths = [bandwidth(sigma, panel, X, true.genes) for panel in panels]
    cells = [shard.obs.reset_index().groupby("gene", observed=True).indices for shard in (true, predicted)]
    settings = [
        _PanelTask(
            true.genes.get_indexer(panel), predicted.genes.get_indexer(panel), reference[panel].to_numpy(), width
        )
        for panel, (width, _) in zip(panels, widths, strict=True)
    ]
    tasks = []
    for first in range(0, len(perturbations), SCORED_TOGETHER):
        names = perturbations[first : first + SCORED_TOGETHER]
        tasks.append((true.source, predicted.source, [(cells[0][name], cells[1][name]) for name in names], settings))
    rows = []
    with tqdm(total=len(perturbations), desc="Scoring", unit="perturbation") as progress:
        scored = (values for part in _map_ahead(executor, _score_task, tasks) for values in part)
        for perturbation, values in zip(perturbations, scored, strict=True):
            for i, (panel, (width, rule), pair) in enumerate(zip(panels, widths, values, strict=True)):
                for metric, value in zip(("pearson_delta", "mmd"), pair, strict=True):
                    rows.append((perturbation, metric, i, len(panel), width, rule, value))
            progress.update()
    truth, shares = (read_proportions(Path(path)) for path in (truth_proportions_csv, proportions_csv))
    distances = l1_by_perturbation(truth.loc[truth.index.isin(perturbations)], shares)
    rows += [(perturbation, "l1_distance", 0, 0, np.nan, "", value) for perturbation, value in distances.items()]
    return pd.DataFrame(rows, columns=["perturbation", "metric", "panel", "n_genes", "sigma", "sigma_rule", "value"])


@dataclass(frozen=True)
class _PanelTask:
    """A panel: its columns in the two files, the reference on it and the bandwidth."""

    true_columns: np.ndarray
    predicted_columns: np.ndarray
    reference: np.ndarray
    sigma: float


def _score_task(task: tuple[Path, Path, list[tuple[np.ndarray, np.ndarray]], list[_PanelTask]]) -> list[list]:
    """Pearson delta and MMD of some perturbations (rows of the truth, rows of the prediction) on every panel."""
    truth, prediction, perturbations, panels = task
    scores: list[list] = []
    base_kernels = [_BaseKernel() for _ in panels]
    # The products are small: more threads would wait for each other.
    with _open_rows(truth) as true, _open_rows(prediction) as predicted, threadpool_limits(1):
        for true_rows, predicted_rows in perturbations:
            true_cells, predicted_cells = _cells_at(true, true_rows), _cells_at(predicted, predicted_rows)
            scores.append([])
            for panel, base_kernel in zip(panels, base_kernels, strict=True):
                x = true_cells[:, panel.true_columns].astype(np.float64)
                y = predicted_cells[:, panel.predicted_columns].astype(np.float64)
                delta = y.mean(axis=0) - panel.reference
                pearson = 0.0
                if np.abs(delta).max() >= REFERENCE_TOLERANCE:
                    pearson = pearson_delta(x, y, panel.reference)
                scores[-1].append((pearson, _mmd(x, y, panel.sigma, base_kernel)))
    return scores


def summarise_scores(table: pd.DataFrame) -> pd.DataFrame:
    """One row a metric of the table of `score`: mean over perturbations and panels, and how the panels differ.

    `spread` is the standard deviation of the panels' means (0 for one panel), `perturbations` their number.
    """
    by_panel = table.groupby(["metric", "panel"])["value"].mean().groupby("metric")
    return pd.DataFrame({
        "mean": by_panel.mean(),
        "spread": by_panel.std().fillna(0.0),
        "perturbations": table.groupby("metric")["perturbation"].nunique(),
    }).loc[["pearson_delta", "mmd", "l1_distance"]]


def draw_panels(
    true_genes: pd.Index, predicted_genes: pd.Index, genes: Sequence[str] | None, n_panels: int, size: int, seed: int
) -> list[pd.Index]:
    """The gene panels to score on: `genes`, or random ones of the shared genes, or all of them."""
    shared = true_genes[true_genes.isin(predicted_genes)]
    if genes is not None:
        panel = pd.Index(genes)
        _check_unique(panel, "genes")
        if missing := list(panel[~panel.isin(shared)]):
            raise DataError(f"genes: not in both the prediction and the truth: {some(missing)}")
        return [panel]
    if shared.empty:
        raise DataError("the prediction and the truth have no gene in common")
    if len(shared) <= size:
        return [shared]
    generators = np.random.default_rng(seed).spawn(n_panels)
    # Drawn from the sorted names, so that the order of the columns does not matter.
    return [pd.Index(generator.choice(np.sort(shared), size, replace=False)) for generator in generators]


def bandwidth(rule: float | str, panel: pd.Index, X: _Rows, genes: pd.Index) -> tuple[float, str]:
    """The middle bandwidth of MMD on a panel, and the rule it follows; `X` and `genes` are the truth's."""
    if rule == "scaled":
        return SIGMA * len(panel) / SIGMA_GENES, "scaled with the number of genes"
    if rule != "calibrated":
        return float(rule), "given"
    rows = np.unique(np.linspace(0, X.shape[0] - 1, 500).astype(int))
    cells = _cells_at(X, rows)[:, genes.get_indexer(panel)].astype(np.float64)
    return float(squared_distances(cells, cells).sum() / (len(rows) * (len(rows) - 1))), "calibrated on true cells"


def _cells_at(X: _Rows, rows: np.ndarray) -> np.ndarray:
    """The cells at `rows` (ascending), dense; read at once where they lie together."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    parts = [dense(X[slice(int(run[0]), int(run[-1]) + 1)]) for run in runs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def dense(rows: Any) -> np.ndarray:
    """CSR or dense rows as an array."""
    return rows.toarray() if sp.issparse(rows) else rows


def _read_uns(path: Path, key: str) -> np.ndarray:
    with _open_store(path) as file:
        if f"uns/{key}" not in file:
            raise DataError(f"{path}: uns has no '{key}': the reference of Pearson delta")
        return file[f"uns/{key}"][:]


# ---------------------------------------------------------------------------------------------------------------------
# 10. A local split: hold out perturbations of the training file
# ---------------------------------------------------------------------------------------------------------------------


def local_split(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    held_out: Sequence[str] | float,
    *,
    max_cells: int | None = None,
    n_genes: int | None = None,
    seed: int = 42,
) -> pd.Index:
    """Hold out perturbations, as the published starter does, and write the two parts into `folder`.

    `held_out` names the perturbations, or is the share of them to draw. `max_cells` keeps the first cells of each
    perturbation, `n_genes` draws that many genes. Writes `local_train.h5ad`, `local_test_eval.h5ad` (with
    `uns["control_centroid_train"]` and `uns["perturbed_centroid_train"]` of the training part) and
    `local_test_perturbated_genes.txt`. Returns the held-out perturbations, sorted.
    """
    source, folder = Path(source), Path(folder)
    obs, genes = read_labels(source, ["gene"])
    generator = np.random.default_rng(seed)
    test = _held_out(obs, held_out, generator, source)
    columns = np.arange(len(genes))
    if n_genes is not None:
        columns = np.sort(generator.choice(len(genes), min(n_genes, len(genes)), replace=False))
    kept = np.ones(len(obs), bool)
    if max_cells is not None:
        kept = (obs.groupby("gene", observed=True).cumcount() < max_cells).to_numpy()
    is_test = obs["gene"].isin(test).to_numpy()
    train_part, test_part = (_subset(source, kept & part, columns) for part in (~is_test, is_test))
    stats = perturbation_stats(train_part)
    _require_control(stats.mean)
    test_part.uns["control_centroid_train"] = stats.mean.loc[CONTROL].to_numpy()
    test_part.uns["perturbed_centroid_train"] = stats.perturbed_centroid().to_numpy()
    for part, name in ((train_part, "local_train.h5ad"), (test_part, "local_test_eval.h5ad")):
        with replacing(folder / name) as temporary:
            part.write_h5ad(temporary)
    with replacing(folder / "local_test_perturbated_genes.txt") as temporary:
        temporary.write_text("\n".join(test) + "\n")
    return test


def _held_out(
    obs: pd.DataFrame, held_out: Sequence[str] | float, generator: np.random.Generator, source: Path
) -> pd.Index:
    perturbations = pd.Index(obs["gene"].cat.categories).drop(CONTROL, errors="ignore")
    if isinstance(held_out, float | int):
        number = max(1, round(held_out * len(perturbations)))
        if not 0 < held_out < 1 or number >= len(perturbations):
            raise ValueError(f"held_out is {held_out}: a share between 0 and 1 that leaves perturbations to train on")
        return pd.Index(np.sort(generator.choice(perturbations, number, replace=False)))
    if unknown := sorted(set(held_out) - set(perturbations)):
        raise DataError(f"{source}: no cells of the perturbations to hold out: {some(unknown)}")
    return pd.Index(sorted(set(held_out)))


def _subset(source: Path, rows: np.ndarray, columns: np.ndarray) -> ad.AnnData:
    """X, obs and var of the cells in the mask `rows` and the genes `columns`, in memory; layers are left behind."""
    first, last = np.flatnonzero(rows)[[0, -1]] if rows.any() else (0, -1)
    run = slice(int(first), int(last) + 1)  # the cells lie sorted by perturbation, so the run holds little else
    backed = ad.read_h5ad(source, backed="r")
    try:
        X = backed.X[run][rows[run]][:, columns]
        return ad.AnnData(X, obs=backed.obs[rows].copy(), var=backed.var.iloc[columns].copy())
    finally:
        backed.file.close()
