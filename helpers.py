"""What a submission needs of data, arithmetic and files, in the order data flows. Read `contract.py` before it.

1. folder       `load_challenge`       the challenge's `data/` folder, read and checked once
2. statistics   `perturbation_stats`   one pass over the cells: mean, variance, detection rate and cell count
3. means        `ControlMean`, `PerturbedMean`, `PCARidge`: baselines for the mean of an unseen knock-out
4. proportions  `MedianProportions`, `constrain_proportions`: the share of cells in each state
5. cells        `ScaledCells`, `RecentredCells`, `GaussianCells`: synthetic cells around a predicted mean
6. files        `write_prediction`, `write_proportions`: both predicted files, written beside and renamed;
                `writing_sealed`, `reading_sealed`: HDF5 files that tell when they are damaged
7. scores       `pearson_delta`, `mmd`, `l1_distance`, `score`: the platform's definitions
8. local split  `local_split`: hold out perturbations of one's own

From cells of some single-gene knock-outs, a crunch asks for cells of knock-outs that were never measured, and for the
share of cells in each state. Expression is log2(1 + 1e5 * count / total count of the cell). Statistics and scores also
take several files, zarr stores and any executor: screens outgrow one file and one machine. The next files are
`screens.py` (other screens), `knowledge.py` (what is known of a gene), `response.py` (the response model) and
`method.py` (`train` and `infer`).
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias
from weakref import WeakKeyDictionary

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import scipy.optimize
import scipy.sparse as sp
from anndata.io import read_elem
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from contract import CRUNCH

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class DataError(ValueError):
    """Input that cannot be used: the message names the file, the column or the genes, and says what to do."""


def some(names: Iterable[object], most: int = 10) -> str:
    """The first few names, and how many there are in all: for messages."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f", ... ({len(words)} in all)" if len(words) > most else "")


def text_size(n_bytes: float) -> str:
    """1234567 -> '1.2 MB'."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def text_time(seconds: float) -> str:
    """75 -> 'about 1 min': a promise of the right size, for messages before a long job."""
    if seconds < 50:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


_SUBJECT: ContextVar[str] = ContextVar("subject", default="")


@contextmanager
def working_on(subject: str) -> Iterator[None]:
    """Inside, every progress bar begins with `subject`: a method, a file."""
    token = _SUBJECT.set(subject)
    try:
        yield
    finally:
        _SUBJECT.reset(token)


def progress_bar(doing: str, **options: Any) -> tqdm:
    """A bar that says what it is doing and, inside `working_on`, for what; such a bar goes when it is full."""
    subject = _SUBJECT.get()
    return tqdm(desc=f"{subject}: {doing}" if subject else doing, leave=not subject, **options)


# ---------------------------------------------------------------------------------------------------------------------
# 1. The data folder
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Challenge:
    """The challenge's `data/` folder, checked: everything small is in memory, the cells stay in `train_path`.

    `obs` has one row per training cell (`gene`, and the four 0/1 state columns); `proportions` one row per training
    perturbation, the control among them; `targets` and `genes_to_predict` keep the order of their files. The two
    `local_` members are None where the folder has no local truth. A folder may say nothing of states: then `obs` has no
    such columns, and both tables of proportions are None.
    """

    folder: Path
    train_path: Path
    obs: pd.DataFrame
    genes: pd.Index
    proportions: pd.DataFrame | None
    signatures: pd.DataFrame
    targets: pd.Index
    genes_to_predict: pd.Index
    local_truth_path: Path | None
    local_proportions: pd.DataFrame | None

    @property
    def perturbations(self) -> pd.Index:
        """The knock-outs of the training file, sorted, without controls."""
        names = (name for name in self.obs[CRUNCH.perturbation].unique() if not CRUNCH.is_control(name))
        return pd.Index(sorted(names), name=CRUNCH.perturbation)

    @property
    def local_targets(self) -> pd.Index:
        """The perturbations of the local truth, in the order of its proportions, else sorted; empty where none is."""
        if self.local_proportions is not None:
            return self.local_proportions.index
        if self.local_truth_path is None:
            return pd.Index([], name=CRUNCH.perturbation)
        return pd.Index(
            read_labels(self.local_truth_path, [CRUNCH.perturbation])[0][CRUNCH.perturbation].cat.categories
        )


def load_challenge(folder: str | os.PathLike[str]) -> Challenge:
    """Read and check the challenge's data folder.

    States are optional: a folder without them has neither their columns in `obs` nor `program_proportion.csv`.
    Raises DataError for a missing or unreadable file, a missing column, names that stand twice or are none, no control
    cells or nothing else, a perturbation without a row in `program_proportion.csv`, and genes to predict of which most
    were not measured.
    """
    folder = Path(folder)
    has_states = _has_states(folder)
    columns = [CRUNCH.perturbation, *(CRUNCH.states if has_states else [])]
    obs, genes = read_labels(folder / CRUNCH.train_file, columns)
    proportions = read_proportions(folder / CRUNCH.proportions_file) if has_states else None
    perturbations = set(obs[CRUNCH.perturbation].unique())
    if CRUNCH.control not in perturbations:
        raise DataError(f"{folder / CRUNCH.train_file}: no control cells: no row of obs['gene'] is '{CRUNCH.control}'")
    if all(map(CRUNCH.is_control, perturbations)):
        raise DataError(f"{folder / CRUNCH.train_file}: control cells alone: there is no perturbation to learn from")
    if proportions is not None and (missing := sorted(perturbations - set(proportions.index))):
        raise DataError(f"{folder / CRUNCH.proportions_file}: no row for the perturbations {some(missing)}")
    targets, genes_to_predict = (_read_names(folder / name) for name in (CRUNCH.targets_file, CRUNCH.genes_file))
    if controls := list(filter(CRUNCH.is_control, targets)):
        raise DataError(
            f"{folder / CRUNCH.targets_file}: {some(controls)} is the control, not a knock-out; take it out"
        )
    check_measured(genes_to_predict, genes, str(folder / CRUNCH.genes_file))
    truth = folder / CRUNCH.local_truth_file
    shares = folder / CRUNCH.local_proportions_file
    return Challenge(
        folder=folder,
        train_path=folder / CRUNCH.train_file,
        obs=obs,
        genes=genes,
        proportions=proportions,
        signatures=_read_table(folder / CRUNCH.signatures_file, CRUNCH.signature_columns),
        targets=targets,
        genes_to_predict=genes_to_predict,
        local_truth_path=truth if truth.exists() else None,
        local_proportions=read_proportions(shares) if has_states and shares.exists() else None,
    )


def _has_states(folder: Path) -> bool:
    """Whether anything in the folder speaks of states: then all of it must."""
    files = (CRUNCH.proportions_file, CRUNCH.local_proportions_file)
    return any((folder / name).exists() for name in files) or _speaks_of_states(folder / CRUNCH.train_file)


def _speaks_of_states(path: Path) -> bool:
    with _open_store(path) as file:
        obs = file["obs"]
        return isinstance(obs, h5py.Dataset) or any(state in obs for state in CRUNCH.states)


@contextmanager
def _open_store(path: Path) -> Iterator[Any]:
    """Open an `.h5ad` or `.zarr` for reading. Raises DataError for what is missing, damaged or lies in other files."""
    if not path.exists():
        raise DataError(
            f"{path}: no such file. `crunch download` fetches the challenge's data; "
            f"`python -m workbench.simulate {path.parent}` makes demo data"
        )
    if path.suffix == ".zarr":
        import zarr  # noqa: PLC0415 - comes with anndata, and is needed for such a source alone

        with readable(path):
            group = zarr.open_group(path, mode="r")
        yield group
        return
    with ExitStack() as stack:
        with readable(path):
            file = stack.enter_context(open_hdf5(path))
        yield file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside, whatever a library meets in a damaged or foreign file becomes a DataError that names the file."""
    try:
        yield
    except (DataError, MemoryError, Warning):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable HDF5 file, perhaps a broken download: {said}") from error


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file whose contents all lie in it: a link to another file would read whatever it names."""
    if not path.is_file():  # a pipe would wait for ever
        raise DataError(f"{path}: not a file; name an .h5ad")
    with h5py.File(path, "r") as file:
        found: list[str] = []

        def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                links = {f"{name}/{key}".lstrip("/"): item.get(key, getlink=True) for key in item}
                found.extend(key for key, link in links.items() if not isinstance(link, h5py.HardLink))
            elif isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                found.append(name)
            types = [item.attrs.get_id(key).dtype for key in item.attrs]
            types += [item.dtype] if isinstance(item, h5py.Dataset) else []
            if not {h5py.check_vlen_dtype(found) for found in types} <= {None, str, bytes}:
                raise DataError(
                    f"{path}: damaged, a text of {name or 'it'} is a list of numbers"
                )  # reading it may crash

        look("", file)
        file.visititems(look)  # each object once, whatever the links: a file may hold circles
        if found:
            raise DataError(f"{path}: {some(found)} lie elsewhere, perhaps in another file; write them into this one")
        yield file


def read_labels(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, pd.Index]:
    """`obs` (cells x `columns`) and the gene names of an `.h5ad` or `.zarr`, without its matrix."""
    with _open_store(path) as file, readable(path):
        for part in ("obs", "var", "X"):
            if part not in file:
                raise DataError(f"{path}: holds no {part}; write it with AnnData's `write_h5ad`")
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        if not (isinstance(obs, pd.DataFrame) and isinstance(var, pd.DataFrame)):
            raise DataError(f"{path}: obs or var is no table; write it again with AnnData's `write_h5ad`")
    return _checked_obs(obs, columns, str(path)), _checked_var(var.index, str(path))


def _checked_var(genes: pd.Index, where: str) -> pd.Index:
    genes = genes.astype(str)
    check_unique(genes, f"{where}: var")
    if genes.empty:
        raise DataError(f"{where}: var holds no genes")
    return genes


def _checked_obs(obs: pd.DataFrame, columns: Sequence[str], where: str) -> pd.DataFrame:
    """The `columns` of a table of cells, the perturbation as texts. Raises DataError for empty names, wrong states."""
    if missing := [column for column in columns if column not in obs]:
        raise DataError(f"{where}: obs has no column {some(missing)}; it has {some(obs.columns)}")
    if empty := int(obs[CRUNCH.perturbation].isna().sum()):
        raise DataError(f"{where}: obs['gene'] is empty for {empty} cells")
    if obs.empty:
        raise DataError(f"{where}: obs holds no cells")
    obs = obs[list(columns)].copy()
    obs[CRUNCH.perturbation] = obs[CRUNCH.perturbation].astype(str).astype("category")
    states = [state for state in CRUNCH.states if state in columns]
    for state in states:
        if obs[state].dtype.kind not in "biuf" or not obs[state].isin((0, 1)).all():
            raise DataError(f"{where}: obs['{state}'] must be 0 or 1 for every cell")
    if set(CRUNCH.states) <= set(states):
        if not (obs[CRUNCH.shares].sum(axis=1) == 1).all():
            raise DataError(f"{where}: {' + '.join(CRUNCH.shares)} must be 1 for every cell of obs")
        if (obs[CRUNCH.part] > obs[CRUNCH.whole]).any():
            raise DataError(f"{where}: obs['{CRUNCH.part}'] is 1 where obs['{CRUNCH.whole}'] is 0")
    return obs


def check_unique(names: pd.Index, where: str) -> None:
    """Raises DataError, which begins with `where`, for names that stand twice."""
    if names.has_duplicates:
        raise DataError(f"{where}: duplicated names {some(names[names.duplicated()].unique())}; keep one of each")


def check_measured(genes: pd.Index, measured: pd.Index, where: str) -> pd.Index:
    """Those of `genes` that are not in `measured`. Raises DataError, which begins with `where`, for more than half."""
    unknown = genes[~genes.isin(measured)]
    if len(unknown) > len(genes) / 2:
        raise DataError(
            f"{where}: only {len(genes) - len(unknown)} of {len(genes)} genes were measured in the training cells: "
            f"{some(unknown, 3)}, but there {some(measured, 3)}; use those names, or train on the cells of these"
        )
    return unknown


def read_text(path: Path) -> str:
    """A text in UTF-8, with or without a byte-order mark. Raises DataError for any other file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; the data folder is not complete")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text in UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: not a text in UTF-8, since it holds bytes that are 0; save it as UTF-8")
    return text


def check_header(columns: Sequence[object], path: Path) -> None:
    """Raises DataError where the names of a table's columns, after the first, look like a row of numbers.

    Whole numbers may be names. Where a name stands twice, pandas adds `.1` to the second.
    """
    texts = [str(name) for name in columns[1:]]
    bare = pd.Series([text.rpartition(".")[0] if text.count(".") > 1 else text for text in texts], dtype=object)
    if pd.to_numeric(bare, errors="coerce").notna().mean() > 0.5 and any("." in text for text in texts):
        raise DataError(f"{path}: the first line, {some(columns, 3)}, is no header; put names of columns above it")


def _read_table(path: Path, names: Sequence[str], numbers: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a csv: `names` are texts, `numbers` float64. Raises DataError where one is missing or empty."""
    form = {"keep_default_na": False, "na_values": [""], "index_col": False}  # a gene may be called "NA"
    try:
        table = pd.read_csv(io.StringIO(read_text(path)), dtype=dict.fromkeys(names, str), **form)
    except DataError:
        raise
    except ValueError as error:  # pandas' own errors are such
        raise DataError(f"{path}: not a readable csv file: {' '.join(str(error).split())}") from error
    if missing := [column for column in (*names, *numbers) if column not in table]:
        raise DataError(f"{path}: no column {some(missing)}; it has {some(table.columns)}")
    for column in (*names, *numbers):
        if len(rows := np.flatnonzero(table[column].isna())):
            raise DataError(f"{path}: values are missing in column {column}, line {rows[0] + 2}")
    for column in numbers:
        if table[column].dtype.kind not in "iuf":
            bad = table[column][pd.to_numeric(table[column], errors="coerce").isna()]
            raise DataError(f"{path}: column {column} holds {bad.iloc[0]!r}, not a number such as 0.25")
    return table[[*names, *numbers]].astype(dict.fromkeys(numbers, float))


def read_proportions(path: Path) -> pd.DataFrame:
    """Program proportions by perturbation: the four states and `lipo_adipo`; raises DataError for a bad table."""
    table = _read_table(path, [CRUNCH.perturbation], CRUNCH.states).set_index(CRUNCH.perturbation)
    check_unique(table.index, f"{path}: column gene")
    check_shares(table, str(path))
    table[CRUNCH.ratio] = _ratio(table)
    return table


def check_shares(table: pd.DataFrame, where: str) -> None:
    """Raises DataError, which begins with `where`, for shares (perturbations x states) that cannot be."""
    error, values = CRUNCH.sum_tolerance, table[CRUNCH.states].to_numpy(np.float64)
    for wrong, what in (
        (~np.isfinite(values).all(axis=1), "values are missing or infinite"),
        (((values < 0) | (values > 1)).any(axis=1), "shares below 0 or above 1"),
        ((table[CRUNCH.shares].sum(axis=1) - 1).abs() > error, f"{' + '.join(CRUNCH.shares)} is not 1"),
        (table[CRUNCH.part] > table[CRUNCH.whole] + error, f"more {CRUNCH.part} than {CRUNCH.whole}"),
    ):
        if wrong.any():
            raise DataError(f"{where}: {what} for {some(table.index[wrong])}")


def _ratio(table: pd.DataFrame) -> pd.Series:
    """Lipo / adipo of each row; 0 where there is no adipo."""
    return table[CRUNCH.part] / table[CRUNCH.whole].where(table[CRUNCH.whole] > 0, 1.0)


HEADERS = (
    "gene",
    "genes",
    "gene_name",
    "gene_symbol",
    "symbol",
    "name",
    "perturbation",
    "perturbations",
    "target",
)


def _read_names(path: Path) -> pd.Index:
    """One name a line. Raises DataError for a line that is a header, or holds quotes or several names."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(lines, 1):
        if set(line) & set("\"',;") or len(line.split()) > 1:
            raise DataError(f"{path}: line {number} is {line[:40]!r}; write one name a line, without quotes or commas")
    names = pd.Index([line for line in lines if line])
    if names.empty:
        raise DataError(f"{path}: the file is empty")
    if names[0].lower() in HEADERS or (names[0] == "0" and not names[-1].isdecimal()):  # pandas' name for no name
        raise DataError(f"{path}: begins with {names[0]!r}, which looks like a header; write names alone")
    check_unique(names, str(path))
    return names


# ---------------------------------------------------------------------------------------------------------------------
# 2. Statistics of every perturbation, in one pass over the cells
# ---------------------------------------------------------------------------------------------------------------------

SLAB_VALUES = 500_000  # stored values per slab: 6 MB of a float64 CSR file, which stay in the processor's cache
TASK_VALUES = 8_000_000  # stored values per task for an executor
MOST = float(np.log2(1 + CRUNCH.scale)) * (1 + 1e-6)  # the largest value that can be; float32 may round it up
TASKS_AHEAD = 32  # tasks given to a user's executor before the first is waited for

Source: TypeAlias = str | os.PathLike[str] | ad.AnnData


def without_controls(table: pd.DataFrame | pd.Series) -> Any:
    """The rows of perturbations."""
    return table[np.array([not CRUNCH.is_control(name) for name in table.index], bool)]


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
        main = self.n_cells.index.get_level_values("state").isin(CRUNCH.shares)  # `lipo` cells are counted in `adipo`
        parts = (self.sums, self.squares, self.detected, self.n_cells)
        return PerturbationStats(*(part[main].groupby(level=CRUNCH.perturbation, sort=False).sum() for part in parts))

    def perturbed_centroid(self) -> pd.Series:
        """Mean expression over all perturbed CELLS (not over perturbations): the reference of Pearson delta."""
        return self._mean_of(without_controls(self.n_cells).index)

    def centroids(self) -> dict[str, pd.Series]:
        """Means over the CELLS of each kind, by their names in `uns` of a local truth, as far as there are any."""
        kinds = self.n_cells.groupby([CRUNCH.centroid_of(name) for name in self.n_cells.index]).groups
        return {name: self._mean_of(kinds[name]) for name in CRUNCH.centroids if name in kinds}

    def _mean_of(self, groups: pd.Index) -> pd.Series:
        return self.sums.loc[groups].sum() / self.n_cells[groups].sum()


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
    interface of `concurrent.futures` (default: threads, one per core). They are added in file order, so that the result
    is the same to the last bit whichever executor does the work.

    Raises DataError for NaN, infinite or negative values, values above log2(1 + scale) (counts, say), a damaged or a
    CSC matrix, missing columns, duplicated or other genes; RuntimeError when a worker dies.
    """
    columns = [CRUNCH.perturbation, *(CRUNCH.states if by_state else [])]
    sources: list[Source] = list(source) if isinstance(source, list | tuple) else [source]  # type: ignore[list-item]
    names = [f"AnnData {id(part)}" if isinstance(part, ad.AnnData) else str(Path(part).resolve()) for part in sources]
    check_unique(pd.Index(names), "sources")
    if not sources:
        raise DataError("sources: the list is empty; name at least one file")
    shards = [_Shard.of(part, columns) for part in sources]
    genes, obs = shards[0].genes, _joined_obs(shards)
    groups, codes = _group_codes(obs, by_state)
    if max_cells is not None:
        codes = np.where(obs.groupby(CRUNCH.perturbation, observed=True).cumcount() < max_cells, codes, -1)
    totals = [np.zeros((len(groups), len(genes))) for _ in range(3)]
    starts = np.cumsum([0, *(len(shard.obs) for shard in shards)])
    parts = [codes[start:stop] for start, stop in pairwise(starts)]
    tasks = [task for shard, part in zip(shards, parts, strict=True) for task in shard.tasks(part, genes)]
    with progress_bar("reading cells", total=len(obs), unit="cell") as progress:
        for task, (present, sums) in zip(tasks, map_ahead(executor, _task_sums, tasks), strict=True):
            _add_rows(totals, present, sums)
            progress.update(len(task.codes))
    n_cells = np.bincount(codes[codes >= 0], minlength=len(groups))
    if len(repeated := genes[(totals[2] > n_cells[:, None]).any(axis=0)]):
        raise DataError(f"{shards[0].name}: X holds genes twice in one cell, {some(repeated)}: {DAMAGED}")
    if by_state:
        _add_lipo_to_adipo(groups, n_cells, *totals)
    tables = [pd.DataFrame(total, index=groups, columns=genes) for total in totals]
    return PerturbationStats(tables[0], tables[1], tables[2], pd.Series(n_cells, index=groups, name="n_cells"))


def _joined_obs(shards: Sequence[_Shard]) -> pd.DataFrame:
    if len(shards) == 1:
        return shards[0].obs
    obs = pd.concat([shard.obs.astype({CRUNCH.perturbation: str}) for shard in shards], ignore_index=True)
    return obs.astype({CRUNCH.perturbation: "category"})


def _group_codes(obs: pd.DataFrame, by_state: bool) -> tuple[pd.Index, np.ndarray]:
    """The groups, and the group of each cell (int64). States here part the cells: `adipo` is without `lipo`."""
    perturbations = pd.Index(obs[CRUNCH.perturbation].cat.categories, name=CRUNCH.perturbation)
    codes = obs[CRUNCH.perturbation].cat.codes.to_numpy(np.int64)
    if not by_state:
        return perturbations, codes
    state = obs[CRUNCH.shares].to_numpy().argmax(axis=1)
    state[obs[CRUNCH.part].to_numpy() == 1] = CRUNCH.states.index(CRUNCH.part)
    return pd.MultiIndex.from_product(
        [perturbations, CRUNCH.states], names=[CRUNCH.perturbation, "state"]
    ), codes * len(CRUNCH.states) + state


def _add_lipo_to_adipo(groups: pd.Index, *totals: np.ndarray) -> None:
    states = groups.get_level_values("state")
    adipo, lipo = (np.flatnonzero(states == state) for state in (CRUNCH.whole, CRUNCH.part))
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
    with _open_rows(task.source) as matrix:
        for rows in task.slabs:
            start, stop = rows.start - task.first, rows.stop - task.first
            values, columns, indptr = matrix.slab(slice(start, stop) if in_memory else rows)
            where = f"{task.name}, cells {rows.start} to {rows.stop}"
            lowest = _check_values(values, where)
            if lowest == 0 and values.size < (stop - start) * matrix.shape[1]:
                check_zeros(values, where)
            columns = columns if task.columns is None else task.columns[columns]
            codes, slab = task.codes[start:stop], (values, columns, indptr)
            found, parts = _slab_sums(slab, codes, task.n_genes, all_detected=lowest > 0)
            _add_rows(totals, np.searchsorted(present, found), parts)
    return present, totals


def _add_rows(totals: list[np.ndarray], places: np.ndarray, parts: Iterable[np.ndarray]) -> None:
    """Add the rows of each part to those of its total at `places`, without a copy of them."""
    for total, part in zip(totals, parts, strict=True):
        for place, row in zip(places, part, strict=True):
            total[place] += row


def _check_values(values: np.ndarray, where: str) -> float:
    """The lowest of the values of a slab. Raises DataError for values that cannot be expression."""
    lowest, highest = values.min(initial=np.inf), values.max(initial=0.0)
    is_whole = all((part == np.rint(part)).all() for part in (values[:100], values))  # a look at all is rarely needed
    if lowest >= 0 and highest <= MOST and not (is_whole and values.size):  # NaN is neither
        return lowest
    scale = f"log2(1 + {CRUNCH.scale:g} * count / total)"
    if not np.isfinite(highest):
        raise DataError(f"{where}: X holds infinite values or NaN; expected {scale}")
    if lowest < 0:
        raise DataError(f"{where}: X holds negative values, down to {lowest:g}; expected {scale}")
    if highest <= MOST:
        raise DataError(f"{where}: X holds whole numbers alone: counts, or 0 and 1; normalise to {scale}")
    raise DataError(
        f"{where}: X holds values up to {highest:g}, more than log2(1 + scale) = {MOST:.1f} allows: these look like "
        f"counts or CPM; normalise to {scale}"
    )


ZEROS = 512  # stored one after the other: a page of 4 kB of float64


def check_zeros(values: np.ndarray, where: str) -> None:
    """Raises DataError for pages of zeros among the stored values: what of a file was never written reads as that."""
    edges = np.flatnonzero(np.diff(values == 0, prepend=False, append=False))
    if (longest := (edges[1::2] - edges[::2]).max(initial=0)) >= ZEROS:
        meant = "if they are meant, drop them: X.eliminate_zeros()"
        raise DataError(f"{where}: X/data holds {longest} zeros one after the other: {DAMAGED}; {meant}")


def _slab_sums(
    slab: tuple[np.ndarray, np.ndarray, np.ndarray], codes: np.ndarray, n_genes: int, *, all_detected: bool
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The groups present in a slab (values, columns, indptr); in turn their sums, squares and detected values by gene.

    Cells of a group are brought together and read as ONE long CSR row, whose `toarray()` adds up the values of the
    same gene: several times as fast as a product with an indicator matrix. Each of the three overwrites the one before,
    and the second the slab's values, so that all stay in the processor's cache.
    """
    values, columns, indptr = slab
    if (codes < 0).any() or (np.diff(codes) < 0).any():
        order = np.argsort(codes, kind="stable")[(codes < 0).sum() :]
        cells, codes = sp.csr_matrix(slab, shape=(len(codes), n_genes))[order], codes[order]
        values, columns, indptr = cells.data, cells.indices, cells.indptr
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    bounds, shape = indptr[np.append(first, len(codes))], (len(first), n_genes)
    groups = sp.csr_matrix((values, columns, bounds), shape=shape)
    detected = _SCRATCH.array("ones", values.size, np.int32) if all_detected else (values > 0).astype(np.int32)

    def added_up(numbers: np.ndarray) -> np.ndarray:
        groups.data = numbers
        out = _SCRATCH.array(f"sums of {numbers.dtype.char}", shape[0] * n_genes, numbers.dtype)
        return groups.toarray(out=out.reshape(shape))

    def sums() -> Iterator[np.ndarray]:
        yield added_up(values)
        yield added_up(np.multiply(values, values, out=values))
        yield added_up(detected)

    return codes[first], sums()


class _Scratch(threading.local):
    """Arrays of each thread that serve slab after slab: to clear the pages of new ones takes longer than the sums."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, size: int, dtype: np.dtype | type) -> np.ndarray:
        """A flat array: what was last written under this name, or 1."""
        kept = self.arrays.get(name)
        if kept is None or len(kept) < size or kept.dtype != dtype:
            kept = self.arrays[name] = np.ones(size + size // 8, dtype)
        return kept[:size]


_SCRATCH = _Scratch()


def _runs(indptr: np.ndarray, n_values: int) -> list[slice]:
    """Runs of rows of about `n_values` stored values."""
    ends = np.searchsorted(indptr, np.arange(n_values, indptr[-1] + n_values, n_values))
    bounds = np.unique([0, *np.minimum(ends, len(indptr) - 1), len(indptr) - 1])
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def map_ahead(executor: Executor | None, function: Callable, items: Sequence) -> Iterator:
    """`executor.map` in order, a bounded number of results ahead; without an executor on threads, one per core."""
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
        obs, genes = _checked_obs(adata.obs, columns, "the AnnData"), _checked_var(adata.var_names, "the AnnData")
        X = adata.X.tocsr() if sp.issparse(adata.X) else np.asarray(adata.X)
        return cls(X, obs, genes, "the AnnData")

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


class _Matrix:
    """Rows of a matrix on disk or in memory by slice: `matrix[a:b]` is CSR or dense; `indptr` counts its values.

    Whatever is read of a sparse matrix is checked, since scipy does not: one wrong column number ends the process.
    """

    def __init__(self, matrix: Any, name: str, file: BinaryIO | None = None) -> None:
        self.name, self.sparse_file = name, not hasattr(matrix, "shape")
        parts = {"data": 1, "indices": 1, "indptr": 1} if self.sparse_file else {"": 2}
        for part, n_dimensions in parts.items():
            array, kinds = matrix[part] if part else matrix, "iu" if part.startswith("ind") else "biuf"
            if len(array.shape or ()) != n_dimensions or array.dtype.kind not in kinds:
                shape = f"{array.dtype} of shape {array.shape}"
                raise DataError(f"{name}: X{part and '/'}{part} holds {shape}, not numbers by cells x genes; {DAMAGED}")
        if self.sparse_file:
            self.shape = tuple(int(n) for n in matrix.attrs["shape"])
            self.indptr = matrix["indptr"][:].astype(np.int64)
            self.data = _flat_reader(matrix["data"], file) or partial(_slice, matrix["data"])
            self.indices = _flat_reader(matrix["indices"], file) or _repeating_reader(matrix["indices"])
            self._check_indptr(matrix["data"].shape, matrix["indices"].shape)
        else:
            self.matrix, self.shape = matrix, matrix.shape
            self.indptr = matrix.indptr if sp.issparse(matrix) else np.arange(self.shape[0] + 1) * self.shape[1]
            self.flat = _flat_reader(matrix, file)
            if sp.issparse(matrix):
                self._check_indptr(matrix.data.shape, matrix.indices.shape)

    def __getitem__(self, rows: slice) -> sp.csr_matrix | np.ndarray:
        if self.sparse_file:
            return sp.csr_matrix(self._parts(rows, _fresh), shape=(rows.stop - rows.start, self.shape[1]))
        start, stop = int(self.indptr[rows.start]), int(self.indptr[rows.stop])
        if self.flat is not None:
            return self.flat(start, stop).reshape(-1, self.shape[1])
        if sp.issparse(self.matrix):
            self._check_columns(self.matrix.indices[start:stop], rows)
        return self.matrix[rows]

    def slab(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows as CSR: values (float64, not the source's own), column numbers and indptr.

        This thread's next slab overwrites them.
        """
        if self.sparse_file:
            values, columns, indptr = self._parts(rows, _SCRATCH.array)
        else:
            cells = sp.csr_matrix(self[rows])
            values, columns, indptr = cells.data, cells.indices, cells.indptr
        if values.dtype != np.float64 or not self.sparse_file:
            read, values = values, _SCRATCH.array("float64", values.size, np.float64)
            values[:] = read
        return values, columns, indptr

    def _parts(self, rows: slice, make: Callable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, stop = int(self.indptr[rows.start]), int(self.indptr[rows.stop])
        columns = self.indices(start, stop, make)
        self._check_columns(columns, rows)
        return self.data(start, stop, make), columns, self.indptr[rows.start : rows.stop + 1] - start

    def _check_indptr(self, *lengths: tuple[int, ...]) -> None:
        indptr = self.indptr
        ends = len(indptr) == self.shape[0] + 1 and indptr[0] == 0 and {(indptr[-1],)} == set(lengths)
        if not ends or (np.diff(indptr) < 0).any():
            raise DataError(f"{self.name}: X/indptr does not rise from 0 to the number of values: {DAMAGED}")

    def _check_columns(self, columns: np.ndarray, rows: slice) -> None:
        if columns.min(initial=0) < 0 or columns.max(initial=0) >= self.shape[1]:
            where = f"{self.name}, cells {rows.start} to {rows.stop}"
            raise DataError(f"{where}: X/indices holds numbers outside 0 to {self.shape[1] - 1}: {DAMAGED}")


DAMAGED = "it is damaged; download or write it again"


def _fresh(name: str, size: int, dtype: np.dtype) -> np.ndarray:
    return np.empty(size, dtype)


def _slice(dataset: Any, start: int, stop: int, make: Callable) -> np.ndarray:
    return dataset[start:stop]


def _repeating_reader(dataset: Any) -> Callable[..., np.ndarray]:
    """What reads column numbers start to stop. A sparse prediction repeats one chunk: it is unpacked once."""
    if not isinstance(dataset, h5py.Dataset) or dataset.chunks is None:
        return partial(_slice, dataset)
    size, kept = dataset.chunks[0], dict[bytes, np.ndarray]()

    def read(start: int, stop: int, make: Callable) -> np.ndarray:
        if start % size or stop - start != size:
            return dataset[start:stop]
        _, packed = dataset.id.read_direct_chunk((start,))
        if packed not in kept:
            kept.clear()
            kept[packed] = dataset[start:stop]
        return kept[packed]

    return read


def _flat_reader(dataset: Any, file: BinaryIO | None) -> Callable[..., np.ndarray] | None:
    """What reads values start to stop of a dataset that lies in its file as it is, else None.

    The challenge's do (contiguous and uncompressed). Their bytes are read from the file itself: h5py lets one thread
    read at a time.
    """
    plain = isinstance(dataset, h5py.Dataset) and dataset.chunks is None and dataset.dtype.isnative
    offset = dataset.id.get_offset() if plain else None
    if file is None or offset is None or not hasattr(os, "preadv"):
        return None
    descriptor, dtype, name = file.fileno(), dataset.dtype, dataset.name

    def read(start: int, stop: int, make: Callable = _fresh) -> np.ndarray:
        values = make(name, stop - start, dtype)
        view, position = values.data.cast("B"), offset + start * dtype.itemsize
        while len(view):  # the system may give less than was asked for
            n = os.preadv(descriptor, [view], position)
            if n == 0:
                raise DataError(f"{file.name}: the file ends early, perhaps a broken download")
            view, position = view[n:], position + n
        return values

    return read


@contextmanager
def _open_rows(source: Path | sp.csr_matrix | np.ndarray) -> Iterator[_Matrix]:
    """X of a file or a matrix in memory, by rows."""
    if not isinstance(source, Path):
        yield _Matrix(source, "the AnnData")
        return
    with open_element(source, "X") as matrix:
        yield matrix


@contextmanager
def open_element(path: Path, element: str) -> Iterator[_Matrix]:
    """A matrix of a file, cells x genes, by rows: `element` is "X", or "layers/NAME". Raises DataError for CSC."""
    with _open_store(path) as store, ExitStack() as stack:
        with readable(path):
            X = store[element]
            if not hasattr(X, "shape") and X.attrs["encoding-type"] != "csr_matrix":
                raise DataError(
                    f"{path}: {element} is stored by genes ({X.attrs['encoding-type']}), so cells cannot be read by "
                    "slabs; write it again once with `adata.X = adata.X.tocsr()`"
                )
            file = stack.enter_context(path.open("rb", buffering=0)) if path.is_file() else None
            matrix = _Matrix(X, str(path), file)
        yield matrix


@contextmanager
def open_matrix(source: Source, columns: Sequence[str]) -> Iterator[tuple[_Matrix, pd.DataFrame, pd.Index, str]]:
    """X by rows, checked `obs`, gene names and a name for messages."""
    shard = _Shard.of(source, columns)
    with _open_rows(shard.source) as matrix:
        yield matrix, shard.obs, shard.genes, shard.name


def read_cells(path: Path, rows: np.ndarray) -> ad.AnnData:
    """The cells at `rows` (any order) of an `.h5ad`, as float32 CSR or dense, with `obs['gene']`."""
    with open_matrix(path, [CRUNCH.perturbation]) as (matrix, obs, genes, _):
        parts = [
            matrix[slice(row, row + 1)].astype(np.float32)
            for row in progress_bar("reading chosen cells", iterable=rows)
        ]
        X = sp.vstack(parts).tocsr() if sp.issparse(parts[0]) else np.concatenate(parts)
    return ad.AnnData(X, obs=obs.iloc[rows], var=pd.DataFrame(index=genes))


def fingerprint(path: Path) -> str:
    """A digest of cells: of all labels of obs, all genes, and 64 cells spread over the file, however X is stored.

    It takes no pass over the cells, which may be 10 GB, and yet other cells, genes, labels or another scale change it.
    """
    states = CRUNCH.states if _speaks_of_states(path) else []
    with open_matrix(path, [CRUNCH.perturbation, *states]) as (matrix, obs, genes, _):
        table = obs.astype({CRUNCH.perturbation: str} | dict.fromkeys(states, int))
        digest = hashlib.sha256(json.dumps([list(genes), *table.to_numpy().T.tolist()]).encode())
        for row in np.unique(np.linspace(0, len(obs) - 1, 64).astype(int)):
            digest.update(dense(matrix[slice(row, row + 1)]).astype(np.float32).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# 3. The mean expression of an unseen knock-out: two constants, and the published starter's PCA-ridge
#
# `fit(responses, ...)` learns from a table, perturbations x responses, with the control among the rows. The responses
# are mean expression profiles, or proportions, or any other numbers. `predict(targets)` gives targets x responses.
# `method.py` says what else an estimator may ask for, and how to write your own.
# ---------------------------------------------------------------------------------------------------------------------


class _SameForAll(BaseEstimator):
    """A prediction that does not depend on the target: `mean_`, by response."""

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """The same row for every target: targets x responses, float64."""
        check_is_fitted(self)
        rows = np.tile(self.mean_.to_numpy(), (len(targets), 1))
        return pd.DataFrame(rows, index=pd.Index(targets), columns=self.mean_.index)


class ControlMean(_SameForAll):
    """Baseline: every knock-out looks like the control. Fitted: `mean_`, by response."""

    def fit(self, responses: pd.DataFrame) -> ControlMean:
        """Keep the control's row of `responses` (perturbations x responses). Raises DataError when there is none."""
        _require_control(responses)
        self.mean_ = responses.loc[CRUNCH.control].astype(float)
        return self


class PerturbedMean(_SameForAll):
    """Baseline: every knock-out looks like the average perturbed cell. Fitted: `mean_`, by response."""

    def fit(self, responses: pd.DataFrame, n_cells: pd.Series | None = None) -> PerturbedMean:
        """Average `responses` (perturbations x responses) without the control.

        With `n_cells` (cells of each perturbation) it is the mean over cells, else over perturbations.
        """
        perturbed = without_controls(responses)
        weights = None if n_cells is None else n_cells[perturbed.index]
        self.mean_ = pd.Series(np.average(perturbed, axis=0, weights=weights), index=perturbed.columns)
        return self


class PCARidge(BaseEstimator):
    """The published baseline: ridge regression between principal components, in closed form.

    G (genes x `n_components`) are the components of the genes in a PCA of the raw means, genes x perturbations, the
    control included; the features P of a knock-out are its own gene's row of G; b is the mean over the knock-outs
    that were measured as genes. With Y their means, genes x knock-outs, and a = `alpha`,

        W = (G'G + aI)^-1 G'(Y - b) P (P'P + aI)^-1        prediction = G W p' + b

    after Ahlmann-Eltze, Huber and Anders (2025) and the challenge's regression starter. For other responses
    (proportions) G, Y and b come from a PCA of the responses with `n_response_components` (starter: 3).
    A target that was not measured has no features: it gets b, and one warning lists all such targets.

    Fitted: `gene_components_` (genes x components), `coefficients_` = G W (responses x components) and `intercept_` =
    b (by response).
    """

    def __init__(self, n_components: int = 10, alpha: float = 0.1, n_response_components: int = 3) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.n_response_components = n_response_components

    def fit(self, responses: pd.DataFrame, means: pd.DataFrame | None = None) -> PCARidge:
        """Fit to `responses` (perturbations x responses).

        `means` (the same perturbations x genes) gives the features where the responses are not themselves expression.
        """
        if means is None:
            means = responses
            self.gene_components_ = G = self._components(means, self.n_components)
        else:
            self.gene_components_ = self._components(means, self.n_components)
            responses = responses.loc[means.index]
            G = self._components(responses, self.n_response_components)
        perturbations = without_controls(means).index
        measured = perturbations[perturbations.isin(means.columns)]
        self.intercept_ = responses.loc[measured if len(measured) else perturbations].mean()
        P = self.gene_components_.loc[measured].to_numpy()
        residuals = (responses.loc[measured] - self.intercept_).to_numpy().T  # Y - b: responses x knock-outs
        G = G.to_numpy()
        W = self._regularised_inverse(G) @ (G.T @ residuals @ P) @ self._regularised_inverse(P)
        self.coefficients_ = pd.DataFrame(G @ W, index=responses.columns)
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses, float64; a target that was not measured as a gene gets the intercept, and a warning."""
        check_is_fitted(self)
        names = pd.Index(targets)
        known = names.isin(self.gene_components_.index)
        features = np.zeros((len(names), self.gene_components_.shape[1]))
        features[known] = self.gene_components_.loc[names[known]]
        if not known.all():
            warnings.warn(
                f"{(~known).sum()} of {len(names)} targets were not measured as genes and get the mean prediction: "
                + some(names[~known]),
                stacklevel=2,
            )
        values = features @ self.coefficients_.to_numpy().T + self.intercept_.to_numpy()
        return pd.DataFrame(values, index=names, columns=self.intercept_.index)

    @staticmethod
    def _components(table: pd.DataFrame, n_components: int) -> pd.DataFrame:
        """PCA scores of the columns of `table` (its rows are the features), columns x components."""
        pca = PCA(min(n_components, *table.shape), svd_solver="full")
        return pd.DataFrame(pca.fit_transform(table.T.to_numpy()), index=table.columns)

    def _regularised_inverse(self, A: np.ndarray) -> np.ndarray:
        return np.linalg.inv(A.T @ A + self.alpha * np.eye(A.shape[1]))


def _require_control(table: pd.DataFrame) -> None:
    if CRUNCH.control not in table.index:
        raise DataError(f"no row '{CRUNCH.control}' (control) among the perturbations {some(table.index)}")


# ---------------------------------------------------------------------------------------------------------------------
# 4. Program proportions: the share of cells in each state
# ---------------------------------------------------------------------------------------------------------------------


class MedianProportions(_SameForAll):
    """One prediction for all: medians of the training shares, moved so that they sum to 1, and the median lipo / adipo.

    The sum of absolute deviations, under the constraint that the shares sum to 1, is least where all shares are the
    SAME quantile q of the training shares (the Lagrange condition). Without the constraint q would be 0.5, the median;
    with it q is as near as the sum allows. Fitted: `mean_`, by share, and the ratio lipo / adipo.
    """

    def fit(self, proportions: pd.DataFrame) -> MedianProportions:
        """Learn from perturbations x states; the control's row is left out. Raises DataError for no shares."""
        perturbed = without_controls(proportions)
        if perturbed.empty:
            raise DataError("the training proportions: no row but that of the control; there is nothing to learn from")
        check_shares(perturbed, "the training proportions")
        shares = perturbed[CRUNCH.shares].to_numpy(np.float64)

        def quantiles(q: float) -> np.ndarray:
            return np.quantile(shares, np.clip(q, 0, 1), axis=0)

        def beyond(q: float) -> float:
            return quantiles(q).sum() - 1.0

        # Rows that are all alike sum to 1 but for rounding, at every q.
        q = scipy.optimize.brentq(beyond, -1e-9, 1) if beyond(0) < 0 < beyond(1) else 0.5
        self.mean_ = pd.Series(quantiles(q), index=CRUNCH.shares)
        self.mean_[CRUNCH.ratio] = _ratio(perturbed).median()
        return self


SMALLEST_WHOLE = 1e-6  # share of adipo: the scorer divides lipo by it


def constrain_proportions(raw: pd.DataFrame) -> pd.DataFrame:
    """Any predicted shares (targets x columns) made valid: targets x pre_adipo, adipo, lipo, other.

    The three shares are clipped at 0 and divided by their sum; `lipo` is the ratio `lipo_adipo` (where predicted,
    else `lipo / adipo`), clipped to 0..1, times `adipo`. A crunch that asks for the ratio too gets it, and no share
    of `adipo` of which there is none.
    """
    shares = raw[CRUNCH.shares].clip(lower=0.0)
    if CRUNCH.ratio in CRUNCH.predicted_columns:
        shares[CRUNCH.whole] = shares[CRUNCH.whole].clip(lower=SMALLEST_WHOLE)
    total = shares.sum(axis=1)
    shares = shares.div(total.where(total > 0, 1.0), axis=0)
    shares[total <= 0] = 1 / len(CRUNCH.shares)
    ratio = raw[CRUNCH.ratio] if CRUNCH.ratio in raw else _ratio(raw)
    shares[CRUNCH.part] = ratio.clip(0.0, 1.0) * shares[CRUNCH.whole]
    shares[CRUNCH.ratio] = _ratio(shares)
    return shares[CRUNCH.predicted_columns[1:]]


# ---------------------------------------------------------------------------------------------------------------------
# 5. Synthetic cells around a predicted mean
#
# `fit` learns from the perturbation means, or from a pool of real cells. `for_genes(genes)` gives the generator for
# these genes in this order; its `sample(target, mean, n_cells)` makes the cells of one knock-out.
# ---------------------------------------------------------------------------------------------------------------------

POOL_CELLS = 1000  # real cells that a base is herded from: 86 MB at 21,592 genes


def pool_rows(obs: pd.DataFrame, seed: int) -> np.ndarray:
    """The rows, in file order, of POOL_CELLS control cells; where there are fewer, perturbed cells fill them up."""
    generator = np.random.default_rng(seed)
    is_control = obs[CRUNCH.perturbation].map(CRUNCH.is_control).to_numpy(bool)
    order = np.concatenate([generator.permutation(np.flatnonzero(part)) for part in (is_control, ~is_control)])
    return np.sort(order[:POOL_CELLS])


class GaussianCells(BaseEstimator):
    """The published starter's cells: the mean plus normal noise with the spread of the perturbation MEANS.

    That spread (standard deviation over the knock-outs, divided by n - 1) is about 0.05, so the cells are nearly
    identical. The noise of a target depends on the seed, its name and the gene's name alone. Fitted: `scale_`, by gene.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, means: pd.DataFrame) -> GaussianCells:
        """Learn the spread of each gene from the training means (perturbations x genes)."""
        self.scale_ = without_controls(means).std()
        return self

    def for_genes(self, genes: pd.Index) -> GaussianCells:
        """The fitted generator for these genes, in this order; a gene that was never measured has no noise."""
        fitted = GaussianCells(self.seed)
        fitted.scale_ = self.scale_
        fitted.columns_ = self.scale_.index.get_indexer(genes)  # -1 for a gene that was never measured
        return fitted

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """Cells around `mean` (one value per gene, log2 units): n_cells x genes, float32."""
        generator = np.random.default_rng([self.seed, zlib.crc32(target.encode())])
        # Drawn for all genes in training order, so that the order of the columns changes nothing else.
        noise = generator.standard_normal((n_cells, len(self.scale_)), dtype=np.float32)
        noise *= self.scale_.to_numpy(np.float32)
        return noise[:, self.columns_] * (self.columns_ >= 0) + mean.astype(np.float32)


# What a generator computes once for all knock-outs; not an attribute, since those are saved.
_KEPT: WeakKeyDictionary[BaseEstimator, Any] = WeakKeyDictionary()


class _HerdedCells(BaseEstimator):
    """Real cells as the base of every knock-out's cells: `base_`, n_base x genes, float32.

    The base is `n_base` cells of the pool in herded order (Welling 2009; Chen, Welling and Smola 2010), so that every
    prefix represents the pool: the scorer takes the first rows. The kernel is the scorer's, its bandwidth the mean
    squared distance between cells of the pool. All knock-outs share one base; asking for more cells repeats it.
    """

    n_base: int

    def fit(self, pool: ad.AnnData) -> Self:
        """Herd the base from real cells (cells x genes, CSR or dense)."""
        X = np.asarray(dense(pool.X))
        distances = squared_distances(X, X)
        sigma = distances.sum() / max(len(X) * (len(X) - 1), 1)
        chosen = herd(scorer_kernel(distances, sigma or 1.0), min(self.n_base, len(X)))
        self.base_ = pd.DataFrame(X[chosen].astype(np.float32), columns=pool.var_names)
        return self

    def for_genes(self, genes: pd.Index) -> Self:
        """The fitted generator for these genes, in this order; a gene that was never measured is 0 in the base."""
        fitted = copy.copy(self)
        fitted.base_ = self.base_.reindex(columns=genes, fill_value=0.0)
        return fitted

    def _rows(self, n_cells: int) -> np.ndarray:
        """The number in the base of each of `n_cells` cells: it is repeated where there are fewer."""
        return np.arange(n_cells) % len(self.base_)


class ScaledCells(_HerdedCells):
    """Real cells whose genes are scaled to the predicted mean: cells = base * mean / mean(base), gene by gene.

    Nothing is negative, and zeros of the base stay 0 unless a gene rises by more than its cells can hold; the mean is
    exact for every gene whose predicted mean is 0 or more, and 0 where it is below. Where a gene falls, cells with a
    single count lose it with the probability of the fall, and the others are scaled to the mean: so fewer cells show
    it, as in real knock-outs. Where a gene rises so far that a cell would hold more than any cell of the base holds of
    any gene, or where no cell of the base has it, further cells get a count of it. Which cells lose or gain a gene
    depends on the seed and the gene's name alone.

    Parameters
    ----------
    n_base : int
        Cells of the base, herded from the pool so that every prefix represents it.
    amplitude : float
        Multiplies each predicted effect on the control. 1 is best for the platform's scores; tools that count the
        genes that differ find too few of them at 1, since predictions are shrunken.
    seed : int
        Of the cells that lose a gene.

    Attributes
    ----------
    base_ : DataFrame (n_base, genes), float32
        The base in herded order.
    single_ : Series (n_base,), float32
        The value of a single count in each cell of the base: its smallest value above 0.
    highest_ : float
        The largest value of the base.
    control_ : Series (genes,) or None
        The control's mean, from which effects are counted; None for an amplitude of 1.
    """

    def __init__(self, n_base: int = 100, amplitude: float = 1.0, seed: int = 0) -> None:
        self.n_base = n_base
        self.amplitude = amplitude
        self.seed = seed

    def fit(self, pool: ad.AnnData, means: pd.DataFrame | None = None) -> Self:
        """Herd the base from real cells (cells x genes); `means` (perturbations x genes) is for an amplitude not 1."""
        super().fit(pool)
        base = self.base_.to_numpy()
        self.single_ = pd.Series(np.where(base > 0, base, np.inf).min(axis=1))
        self.highest_ = float(base.max())
        self.control_ = None
        if self.amplitude != 1.0:
            if means is None:
                raise ValueError("an amplitude other than 1 needs the training means, with the control among them")
            _require_control(means)
            self.control_ = means.loc[CRUNCH.control]
        return self

    def for_genes(self, genes: pd.Index) -> Self:
        """The fitted generator for these genes, in this order; a gene that was never measured is 0 in the base."""
        fitted = super().for_genes(genes)
        if self.control_ is not None:
            fitted.control_ = self.control_.reindex(genes, fill_value=0.0)
        return fitted

    def pattern(self, n_cells: int) -> np.ndarray:
        """Where values may stand, bool, n_cells x genes: the same for every knock-out, so files can be sparse."""
        return self._stored(n_cells).pattern

    def values(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """The values of `sample` where `pattern` is true, row by row, float32."""
        stored, mean = self._stored(n_cells), mean.astype(np.float64)
        if self.control_ is not None:
            mean = self.control_.to_numpy() + self.amplitude * (mean - self.control_.to_numpy())
        wanted = np.maximum(mean, 0.0) * n_cells  # sum of each gene
        factor = np.divide(wanted, stored.total, out=np.full(len(wanted), np.inf), where=stored.total > 0)
        left = stored.value * (stored.draw < factor.take(stored.column))  # without the single counts that go
        total = _added_up(left, stored.column, len(wanted))
        if len(all_gone := np.flatnonzero((total <= 0) & (stored.total > 0))):
            places, _ = stored.of_genes(all_gone)
            left[places] = stored.value[places]
        total = np.where(total > 0, total, stored.total)
        scale = np.divide(wanted, total, out=np.zeros(len(wanted)), where=total > 0)
        values = np.multiply(left, scale.take(stored.column), out=left)
        to_fill = (total <= 0) & (wanted > 0)
        to_fill[stored.column[np.flatnonzero(values > stored.highest)]] = True
        if len(genes := np.flatnonzero(to_fill)):
            places, first = stored.of_genes(genes)
            values[places] = _fill(values[places], first, wanted[genes], stored.highest, stored.single)
        return values.astype(np.float32)

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """Cells whose mean is `mean` (one value per gene, log2 units), 0 for one below 0: n_cells x genes, float32."""
        cells = np.zeros(self.pattern(n_cells).shape, np.float32)
        cells.ravel()[self._stored(n_cells).place] = self.values(target, mean, n_cells)
        return cells

    def _stored(self, n_cells: int) -> _StoredBase:
        """The base as its values above 0; kept, since all knock-outs share it."""
        kept = _KEPT.get(self)
        if kept is None or len(kept.pattern) != n_cells:
            kept = _KEPT[self] = _StoredBase.of(self, self._rows(n_cells))
        return kept


def _added_up(values: np.ndarray, columns: np.ndarray, n_genes: int) -> np.ndarray:
    """The sum of the values of each gene, in their order; twice as fast as `np.bincount`."""
    return sp.csr_matrix((values, columns, [0, len(values)]), shape=(1, n_genes)).toarray()[0]


def _fill(values: np.ndarray, first: np.ndarray, total: np.ndarray, highest: float, single: float) -> np.ndarray:
    """Values of genes that sum to each gene's `total`: none above `highest`, while there is room.

    Empty cells get a count. `values` holds one gene after the other, and `first` says where each begins.
    """
    gene = np.repeat(np.arange(len(first)), np.diff(first, append=len(values)))

    def added_up(numbers: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.insert(numbers, first, 0.0), first + np.arange(len(first)))

    values = np.minimum(values, highest)
    missing, empty = total - added_up(values), np.append(0, np.cumsum(values == 0))
    n_empty = empty[np.append(first[1:], len(values))] - empty[first]
    n_more = np.minimum(np.ceil(missing / single - 1e-6), n_empty)
    more = np.flatnonzero((values == 0) & (empty[1:] - empty[first][gene] <= n_more[gene]))
    values[more] = np.minimum(missing[gene[more]] / n_more[gene[more]], single)
    held, room = added_up(values), highest - values
    missing, all_room = total - held, added_up(room)
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = (all_room >= missing) & (missing > 1e-6 * total)
        return np.where(fits[gene], values + room * (missing / all_room)[gene], values * (total / held)[gene])


ROOM = 0.1  # share of the cells in which a gene may be written at least, so that a silent one can rise


@dataclass(frozen=True)
class _StoredBase:
    """The base (n_cells x genes) at the places where values may stand, row by row.

    `draw` is below any factor for a value that is never lost, and else uniform: a value is lost where it is above.
    """

    pattern: np.ndarray  # bool, n_cells x genes
    place: np.ndarray  # of each value in the flat matrix
    column: np.ndarray
    value: np.ndarray
    draw: np.ndarray
    by_gene: np.ndarray  # numbers of the values, gene by gene
    starts: np.ndarray  # of each gene in them
    total: np.ndarray  # of each gene
    highest: float  # value of the base
    single: float  # a typical single count

    @classmethod
    def of(cls, cells: ScaledCells, rows: np.ndarray) -> _StoredBase:
        """The base of a generator at `rows`."""
        base, single = cells.base_.to_numpy(np.float64)[rows], cells.single_.to_numpy(np.float64)[rows]
        names = [zlib.crc32(str(gene).encode()) for gene in cells.base_.columns]
        # One stream per gene, so that the order of the genes changes nothing else.
        uniform = np.column_stack([np.random.default_rng([cells.seed, name]).random(len(base)) for name in names])
        # A gene of few cells may stand in further ones, those of its lowest draws.
        rank = np.where(base > 0, -1.0, uniform).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        pattern = (base > 0) | (rank < np.ceil(ROOM * len(base)))
        place, column = np.flatnonzero(pattern), np.nonzero(pattern)[1].astype(np.int32)
        draw = np.where(base <= single[:, None] * 1.001, uniform, -1.0).ravel()[place]
        finite = single[np.isfinite(single)]
        return cls(
            pattern=pattern,
            place=place,
            column=column,
            value=base.ravel()[place],
            draw=draw,
            by_gene=np.argsort(column, kind="stable"),
            starts=np.append(0, np.cumsum(pattern.sum(axis=0))),
            total=base.sum(axis=0),
            highest=cells.highest_,
            single=float(np.median(finite)) if len(finite) else 1.0,
        )

    def of_genes(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the values of some genes are, gene by gene, and where in this list each gene begins."""
        n_values = self.starts[genes + 1] - self.starts[genes]
        first = np.cumsum(n_values) - n_values
        return self.by_gene[np.arange(n_values.sum()) + np.repeat(self.starts[genes] - first, n_values)], first


class RecentredCells(_HerdedCells):
    """Real cells moved to the predicted mean: cells = base - mean(base) + mean. Never clipped, so some are negative.

    `ScaledCells` score the same and look like cells to every other tool; these are for comparison.

    Parameters
    ----------
    n_base : int
        Cells of the base, herded from the pool so that every prefix represents it.

    Attributes
    ----------
    base_ : DataFrame (n_base, genes), float32
        The base in herded order.
    """

    def __init__(self, n_base: int = 100) -> None:
        self.n_base = n_base

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """Cells whose mean is exactly `mean` (one value per gene, log2 units): n_cells x genes, float32."""
        return self._centred(n_cells) + mean.astype(np.float32)

    def _centred(self, n_cells: int) -> np.ndarray:
        """`n_cells` rows of the base minus their exact mean, float32; kept, since every knock-out uses the same."""
        centred = _KEPT.get(self)
        if centred is None or len(centred) != n_cells:
            base = self.base_.to_numpy(np.float64)[self._rows(n_cells)]
            centred = _KEPT[self] = (base - base.mean(axis=0)).astype(np.float32)
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
    """Squared distances of cells around 0, where |a|^2 + |b|^2 - 2ab loses no digits; `a is b` takes half the time."""
    norms_a, norms_b = (np.einsum("ij,ij->i", rows, rows) for rows in (a, b))
    distances = a @ b.T
    distances *= -2.0
    distances += norms_a[:, None]
    distances += norms_b
    return np.maximum(distances, 0.0, out=distances)


def scorer_kernel(distances: np.ndarray, sigma: float) -> np.ndarray:
    """The scorer's kernel: the sum of exp(-D / bandwidth) over the bandwidths sigma * (1/4, 1/2, 1, 2, 4)."""
    power = np.exp(distances / (-CRUNCH.bandwidths[-1] * sigma))
    total = power.copy()
    for _ in CRUNCH.bandwidths[1:]:
        power *= power  # half the bandwidth is the square: one exponential serves all
        total += power
    return total


# ---------------------------------------------------------------------------------------------------------------------
# 6. The two predicted files
# ---------------------------------------------------------------------------------------------------------------------

SLAB_BYTES = 32_000_000  # of values that are made, or written, at a time


def write_prediction(
    path: str | os.PathLike[str],
    means: pd.DataFrame,
    cells: Any,
    *,
    cells_per_perturbation: int = CRUNCH.cells_per_perturbation,
    mode: str = "auto",
    form: str = "auto",
    layout: str = "auto",
) -> tuple[str, str, str]:
    """Write `prediction.h5ad`: float32, targets in the order of `means`, `cells_per_perturbation` rows each.

    `means` is targets x genes, in the order wanted in the file; `cells` a fitted generator, which makes cells while a
    thread writes those before. `mode` is "disk" (at most two slabs of 32 MB are in memory), "ram" (as many as wait for
    the disk, all of them at most) or "auto" (by the memory available); both give the same file. `form` is "plain",
    "compact" (values in steps of 1/64, shuffled and compressed by lzf: about 40 % of the size, several times as slow;
    the mean of the cells stays exact to the step; lzf may pack the same values in other bytes another time) or "auto"
    (plain, unless only the compact form fits the free disk).
    `layout` is "dense", "sparse" (CSR, for a generator whose zeros are the same for all knock-outs) or "auto" (the
    smaller). The file is written beside under a temporary name and renamed at the end, so that an interrupted run
    leaves an older file as it was.

    Returns mode, form and layout used. Raises DataError when the disk is too small or cannot be written to, for nothing
    to predict, and for cells that are not what was asked for.
    """
    path, n_cells = Path(path), cells_per_perturbation
    if means.empty:
        raise DataError(f"{path}: {len(means)} targets x {means.shape[1]} genes: there is nothing to predict")
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < 1:
        raise DataError(f"cells_per_perturbation is {n_cells}: it must be a whole number of at least 1")
    generator, mean_values = cells.for_genes(means.columns), means.to_numpy(np.float32)
    pattern = _pattern(generator, n_cells, means.shape[1], layout)
    per_target = n_cells * means.shape[1] if pattern is None else int(pattern.sum())  # values
    size = len(means) * per_target * 4
    mode, form = _choose(mode, form, path.parent, size if pattern is None else int(size * (1 + INDEX_SHARE)))

    def values_of(i: int) -> np.ndarray:
        return _target_values(generator, means.index[i], mean_values[i], n_cells, pattern, form)

    with replacing(path) as temporary:
        _write_labels(temporary, means.index.repeat(n_cells), means.columns)
        with (
            h5py.File(temporary, "r+") as file,
            progress_bar(f"writing {path.name}", total=size, unit="B", unit_scale=True) as progress,
        ):
            stored = _create_matrix(file, pattern, len(means), (n_cells, means.shape[1]), form)
            makers = os.cpu_count() or 1 if type(cells) in (ScaledCells, RecentredCells, GaussianCells) else 1
            _write_values(stored, values_of, len(means), 2 if mode == "disk" else len(means), progress, makers)
    return mode, form, "dense" if pattern is None else "sparse"


def _pattern(generator: Any, n_cells: int, n_genes: int, layout: str) -> np.ndarray | None:
    """Where the values of a sparse file stand (n_cells x genes), or None for a dense file."""
    if layout not in ("auto", "dense", "sparse"):
        raise ValueError(f"layout is 'auto', 'dense' or 'sparse', not {layout}")
    if layout == "dense" or not hasattr(generator, "pattern"):
        if layout == "sparse":
            raise ValueError(f"{type(generator).__name__} has no `pattern`: its cells can only be written dense")
        return None
    pattern = generator.pattern(n_cells)
    smaller = 0 < pattern.sum() * (1 + INDEX_SHARE) < n_cells * n_genes
    return pattern if layout == "sparse" or smaller else None


def checked_cells(generator: Any, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
    """The cells of one knock-out (n_cells x genes). Raises DataError where they are not what was asked for."""
    cells, name = generator.sample(target, mean, n_cells), f"{type(generator).__name__}.sample"
    if np.shape(cells) != (n_cells, len(mean)):
        raise DataError(f"{name} gave {np.shape(cells)} for {target}; it must give cells x genes, {n_cells, len(mean)}")
    _check_possible(cells, name, target)
    return cells


def _check_possible(values: np.ndarray, name: str, target: str) -> None:
    """Raises DataError for made values that are missing, infinite or of another scale: noise may exceed it a little."""
    _check_finite(values, f"{name}: missing or infinite values for {target}")
    if (highest := np.max(values, initial=0.0)) > 2 * MOST:
        raise DataError(f"{name}: values up to {highest:g} for {target}; in log2 units a cell holds {MOST:.1f} at most")


def _check_finite(values: np.ndarray, message: str) -> None:
    if not np.isfinite(np.sum(values, dtype=np.promote_types(values.dtype, np.float32))):
        raise DataError(message)


def _target_values(
    generator: Any, target: str, mean: np.ndarray, n_cells: int, pattern: np.ndarray | None, form: str
) -> np.ndarray:
    """The stored values of one target, flat: all of them, or those at the pattern. Raises DataError for wrong cells."""
    if pattern is not None and form == "plain":
        values = generator.values(target, mean, n_cells)
        _check_possible(values, f"{type(generator).__name__}.values", target)
        return values
    sample = checked_cells(generator, target, mean, n_cells)
    sample = in_steps(sample) if form == "compact" else sample
    return sample.ravel() if pattern is None else sample[pattern]


def _create_matrix(
    file: h5py.File, pattern: np.ndarray | None, n_targets: int, shape: tuple[int, int], form: str
) -> h5py.Dataset:
    """Everything of X but its values, and the dataset that takes them: X itself, or X/data of a CSR matrix.

    `shape` is that of one target's cells. All targets have the same zeros, so the column numbers of one target are
    compressed once and written as a chunk for each.
    """
    n_cells, n_genes = shape
    rows = n_targets * n_cells
    compact: dict[str, Any] = {"shuffle": True, "compression": "lzf"} if form == "compact" else {}
    if pattern is None:
        chunks = {"chunks": (min(n_cells, rows), min(1024, n_genes))} if compact else {}
        X = file.create_dataset("X", (rows, n_genes), np.float32, **chunks, **compact)
        X.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return X
    indptr = np.append(0, np.cumsum(np.tile(pattern.sum(axis=1), n_targets)))
    number = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    X = file.create_group("X")
    X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (rows, n_genes)})
    X.create_dataset("indptr", data=indptr.astype(number), compression="gzip", compression_opts=1, shuffle=True)
    columns = np.nonzero(pattern)[1].astype(number)
    chunk, total = {"chunks": (len(columns),)}, (len(columns) * n_targets,)
    indices = X.create_dataset("indices", total, number, compression="gzip", compression_opts=1, shuffle=True, **chunk)
    indices[: len(columns)] = columns
    file.flush()
    mask, packed = indices.id.read_direct_chunk((0,))
    for target in range(1, n_targets):
        indices.id.write_direct_chunk((target * len(columns),), packed, mask)
    return X.create_dataset("data", total, np.float32, **(chunk if compact else {}), **compact)


def _write_values(
    stored: h5py.Dataset,
    values_of: Callable[[int], np.ndarray],
    n_targets: int,
    most: int,
    progress: tqdm,
    n_makers: int,
) -> None:
    """Write the values of target 0, 1, ... into `stored`: a thread writes a slab while others make the next.

    `values_of(i)` gives the values of a target, flat; `n_makers` threads may call it at once. At most `most` slabs are
    in memory; written, they serve again.
    """
    rows, per_target = len(stored) // n_targets, stored.size // n_targets
    per_slab = min(n_targets, max(1, SLAB_BYTES // max(1, 4 * per_target)))
    waiting: deque[Future[np.ndarray]] = deque()

    def write(first: int, slab: np.ndarray) -> np.ndarray:
        values = slab[: n_targets - first].reshape(-1, *stored.shape[1:])
        stored.write_direct(values, np.s_[:], np.s_[first * rows : first * rows + len(values)])
        return slab

    def written(at_most: int) -> np.ndarray | None:
        """Wait until at most so many slabs wait; the last one written."""
        slab = None
        while len(waiting) > at_most:
            slab = waiting.popleft().result()
            progress.update(min(slab.nbytes, progress.total - progress.n))
        return slab

    def made(first: int, most: int) -> np.ndarray:
        ready = len(waiting) - 1 if waiting and waiting[0].done() else most - 1
        slab = written(ready)
        slab = np.empty((per_slab, per_target), np.float32) if slab is None else slab
        which = range(first, min(first + per_slab, n_targets))
        several = map(values_of, which) if n_makers == 1 else _submit_ahead(makers, values_of, which, n_makers)
        for i, values in zip(which, several, strict=True):
            slab[i - first] = values
        return slab

    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(n_makers) as makers:
        try:
            for first in range(0, n_targets, per_slab):
                slab = None
                with suppress(MemoryError):
                    slab = made(first, most)
                if slab is None:  # less was free than it seemed: what waits goes first, and from now on one at a time
                    written(0)
                    most, slab = 1, made(first, 1)
                waiting.append(writer.submit(write, first, slab))
            written(0)
        finally:
            for future in waiting:
                future.cancel()


def in_steps(cells: np.ndarray, step: float = 1 / 64) -> np.ndarray:
    """Values in whole steps, whose sums over the first n cells are exact to half a step, for every n.

    The rounding error of a cell is carried over to the next, so that no prefix has a mean off by more than step / 2n.
    """
    totals = np.rint(np.cumsum(cells, axis=0, dtype=np.float64) / step)
    return (np.diff(totals, axis=0, prepend=0.0) * step).astype(np.float32)


def write_proportions(path: str | os.PathLike[str], proportions: pd.DataFrame) -> None:
    """Write `predict_program_proportion.csv` from targets x pre_adipo, adipo, lipo, other; DataError for no shares."""
    table = proportions_table(proportions)
    with replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False)


def proportions_table(proportions: pd.DataFrame) -> pd.DataFrame:
    """The columns of `predict_program_proportion.csv`, checked. Raises DataError for what are no shares."""
    check_shares(proportions, "the predicted shares")
    return proportions.rename_axis(CRUNCH.perturbation).reset_index()[CRUNCH.predicted_columns]


INDEX_SHARE = 0.25  # bytes of column numbers per byte of values in a sparse file, at most: measured 0.16
WRITTEN_PER_SECOND = 0.4e9  # bytes, on a slow disk
COMPACT_SHARE = 0.45  # of the plain size, at most: measured 0.39 on cells of the challenge's scale


def _choose(mode: str, form: str, folder: Path, size: int) -> tuple[str, str]:
    """Choose mode and form, say why, and refuse when the disk cannot hold the file in either form."""
    if mode not in ("auto", "ram", "disk") or form not in ("auto", "plain", "compact"):
        raise ValueError(f"mode is 'auto', 'ram' or 'disk', and form 'auto', 'plain' or 'compact', not {mode}, {form}")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free, available = shutil.disk_usage(existing).free, free_memory()
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
        how = "made in memory while it is written" if mode == "ram" else "written slab by slab"
        why = f"{'less' if mode == 'ram' else 'more'} than a quarter of the {text_size(available)} of free memory"
        seconds = size / (WRITTEN_PER_SECOND if form == "plain" else WRITTEN_PER_SECOND / 10)
        print(
            f"Writing {text_size(size)} in {form} form takes {text_time(seconds)}. It is {how}: {why}; "
            f"{text_size(free)} of disk are free."
        )
    return mode, form


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, of its container, and of its own limits."""
    process, free = psutil.Process(), [psutil.virtual_memory().available]
    if hasattr(process, "rlimit"):  # Linux
        taken = process.memory_info()
        for limit, used in ((psutil.RLIMIT_AS, taken.vms), (psutil.RLIMIT_DATA, taken.data)):
            most = process.rlimit(limit)[0]
            free += [most - used] if most != psutil.RLIM_INFINITY else []
    return max(0, min([*free, *_free_in_groups()]))


CONTROL_GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
GROUP_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")  # version 2, 1


def _free_in_groups() -> Iterator[int]:
    """What each control group of this process has left: a container is one. Cached files do not count as taken."""
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for _, kind, group in (line.split(":", 2) for line in lines):
        if kind and "memory" not in kind.split(","):
            continue
        top, names = CONTROL_GROUPS / kind, GROUP_FILES[bool(kind)]
        folder = top / group.strip("/")
        for place in [folder, *folder.parents][: len(folder.parts) - len(top.parts) + 1]:
            with suppress(OSError, ValueError):  # no such group in here, no limit, not ours to read
                most, used = (int((place / name).read_text()) for name in names)
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                yield most - used + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _write_labels(path: Path, genes_of_cells: pd.Index, genes: pd.Index) -> None:
    """An `.h5ad` with obs['gene'], var and no X."""
    number = np.arange(len(genes_of_cells)).astype(str)
    obs = pd.DataFrame(
        {CRUNCH.perturbation: pd.Categorical(genes_of_cells, categories=genes_of_cells.unique())}, index=number
    )
    ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(str), name=None))).write_h5ad(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when all went well and removed when not.

    What a killed run left behind is removed by the next one. Raises DataError for a folder, device or pipe of that
    name, and when the disk is full or read-only.
    """
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `replacing`, for files that belong together: none is renamed before all are written."""
    done: list[Path] = []
    try:
        with ExitStack() as stack:
            if odd := [path for path in paths if path.exists() and not path.is_file()]:
                what = "a folder" if odd[0].is_dir() else "a device or pipe"
                raise FileExistsError(f"{some(odd)} is {what}; name a file")
            temporaries = [stack.enter_context(_temporary(path)) for path in paths]
            yield temporaries
            for temporary, path in zip(temporaries, paths, strict=True):
                temporary.replace(path)
                done.append(path)
    except (OSError, RuntimeError) as error:  # closing a file on a full disk, h5py raises a RuntimeError
        left = [path for path in paths if path not in done]
        raise DataError(f"{some(left)}: could not be written ({error}); an older file is as it was") from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new name beside `path`, which a lock file says is in use; what is there under that name at the end goes.

    The system frees the lock when its process ends, however it ends. So an unlocked name is a leftover, which goes too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, file = _new_lock(path)
    try:
        _remove_leftovers(path, lock.stat().st_mtime)
        yield lock.with_suffix(".partial")
    finally:
        _remove(lock.with_suffix(".partial"))
        file.close()
        _remove(lock)


NUMBER_BYTES = 8  # of the random number in a temporary name
STALE = 24 * 3600.0  # seconds: where there are no locks, what has not changed for so long is a leftover


def _new_lock(path: Path) -> tuple[Path, BinaryIO]:
    """A lock file beside `path`, `.NAME.NUMBER.lock`, and the open file that holds the lock."""
    while True:
        lock = path.with_name(f".{path.name}.{os.urandom(NUMBER_BYTES).hex()}.lock")
        file = lock.open("xb")
        if _locked(file) is not False and _still_there(file, lock):
            return lock, file
        file.close()  # another run took it for a leftover before it was locked


def _remove_leftovers(path: Path, now: float) -> None:
    """Remove the temporary files of `path` whose process has ended. `now` is the time by the clock of their disk."""
    for lock in path.parent.iterdir():
        number = lock.name.removeprefix(f".{path.name}.").removesuffix(".lock")
        is_ours = len(number) == 2 * NUMBER_BYTES and set(number) <= set("0123456789abcdef")
        if lock.name != f".{path.name}.{number}.lock" or not is_ours:
            continue
        with suppress(OSError):  # another run removes it as well, or it is another user's
            with lock.open("r+b") as file:
                locked = _locked(file)
                if locked:  # removed while it is ours: its maker may be about to lock it
                    _remove(lock.with_suffix(".partial"))
                    _remove(lock)
            if locked is None and now - _changed(lock) > STALE:
                _remove(lock.with_suffix(".partial"))
                _remove(lock)


def _changed(lock: Path) -> float:
    """When a temporary file or its lock was last changed."""
    return max(path.stat().st_mtime for path in (lock, lock.with_suffix(".partial")) if path.exists())


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _locked(file: BinaryIO) -> bool | None:
    """Lock an open file until it is closed: False where another has it, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks
        return None
    return True


def _still_there(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Inside, no other process or thread is inside for the same file or folder. Raises DataError where one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with ExitStack() as stack:
            file = stack.enter_context(lock.open("ab"))
            if _locked(file) is False:
                raise DataError(f"{path}: another run is writing it; wait until it has ended, or name another place")
            if not _still_there(file, lock):  # the run before removed it after we had opened it
                continue
            stack.callback(_remove, lock)  # before the file is closed, which frees the lock
            yield
            return


SEAL_BYTES = hashlib.sha256().digest_size  # at the end of a sealed file: the hash of what comes before
MOST_PACKED = 1100  # times that compression makes values smaller, at most: gzip reaches 1032


@contextmanager
def writing_hdf5(path: Path) -> Iterator[h5py.File]:
    """An open HDF5 file that is in memory until its end: on a full disk, HDF5 may crash when it closes one."""
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)


@contextmanager
def writing_sealed(path: Path) -> Iterator[h5py.File]:
    """An open HDF5 file, written beside `path` and renamed; it ends in the hash of what it holds."""
    with replacing(path) as temporary:
        with writing_hdf5(temporary) as file:
            yield file
        with temporary.open("r+b") as whole:
            seal = hashlib.file_digest(whole, "sha256").digest()
            whole.write(seal)


@contextmanager
def reading_sealed(path: Path, again: str) -> Iterator[h5py.File]:
    """Inside, what `writing_sealed` wrote. Raises DataError, which ends in `again`, for whatever is wrong with it.

    Nothing in it is trusted: with a broken seal it is not opened, and other files that it refers to are not read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {again}")
    if not is_sealed(path):
        raise DataError(f"{path}: damaged, no saved model, or made by another version of this project; {again}")
    try:
        with open_hdf5(path) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())}); {again}") from error


def is_sealed(path: Path) -> bool:
    """Whether a file ends in the hash of all that comes before, as `writing_sealed` leaves it."""
    left, digest = path.stat().st_size - SEAL_BYTES, hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        return left == 0 and file.read() == digest.digest()


def write_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write an array of numbers or texts (of any shape but a scalar) into an open HDF5 group, compressed.

    Texts are written as the bytes of a JSON list, so that their size is known before they are read.
    """
    texts = json.dumps([str(value) for value in values.flat]).encode() if values.dtype.kind in "OUT" else None
    stored = values if texts is None else np.frombuffer(texts, np.uint8)
    group.create_dataset(name, data=stored, compression="gzip", compression_opts=1, shuffle=True)
    if texts is not None:
        group[name].attrs["texts"] = values.shape


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """What `write_array` wrote; texts come back as `str`.

    Raises ValueError for what are not numbers, and for more of them than can be stored there or fit into memory.
    """
    size = dataset.size * dataset.dtype.itemsize
    chunk = int(np.prod(dataset.chunks or (0,), dtype=object)) * dataset.dtype.itemsize if size else 0
    if dataset.dtype.kind not in "biuf" or max(size, chunk) > MOST_PACKED * max(1, dataset.id.get_storage_size()):
        raise ValueError(
            f"{dataset.name} claims {text_size(max(size, chunk))} of {dataset.dtype}, which it cannot hold"
        )
    if size > (free := free_memory()):
        raise DataError(f"{dataset.name} takes {text_size(size)}, but {text_size(free)} of memory are free")
    if "texts" not in dataset.attrs:
        return dataset[:]
    texts = json.loads(dataset[:].tobytes())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{dataset.name} holds something else than texts")
    return np.array(texts, object).reshape(dataset.attrs["texts"])


# ---------------------------------------------------------------------------------------------------------------------
# 7. The platform's three scores
# ---------------------------------------------------------------------------------------------------------------------

REFERENCE_TOLERANCE = 1e-5  # expression units; float32 cells of the challenge's scale round their mean to about 1e-6
SCORED_TOGETHER = 16  # perturbations per task for an executor


def pearson_delta(truth: np.ndarray, prediction: np.ndarray, reference: np.ndarray) -> float:
    """Correlation over the genes of (true mean - reference) with (predicted mean - reference); higher is better.

    `truth` and `prediction` are cells x genes, or one mean expression profile; `reference` has one value per gene (the
    perturbed centroid of the training cells, of those with as many guides). NaN when the prediction is the reference
    itself.
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


def mmd(truth: np.ndarray, prediction: np.ndarray, sigma: float = CRUNCH.sigma) -> float:
    """Squared maximum mean discrepancy (biased) of the first n = min(true, predicted) cells; lower is better.

    `truth` and `prediction` are cells x genes. mean(K_xx) + mean(K_yy) - 2 mean(K_xy), with `scorer_kernel`. Raises
    DataError without cells, and for a bandwidth that is not positive.
    """
    n = min(len(truth), len(prediction))
    if n == 0:
        raise DataError("mmd needs at least one true and one predicted cell")
    _check_width(sigma)
    centre = np.asarray(prediction[:n], float).mean(axis=0)
    x, y = (np.asarray(cells[:n], float) - centre for cells in (truth, prediction))
    return _mean_kernel(x, x, sigma) + _mean_kernel(y, y, sigma) - 2.0 * _mean_kernel(x, y, sigma)


def _mean_kernel(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    return float(np.mean(scorer_kernel(_centred_distances(a, b), sigma)))


def cell_scores(
    truth: np.ndarray,
    prediction: np.ndarray,
    reference: np.ndarray,
    sigma: float = CRUNCH.sigma,
    name: str = "a perturbation",
) -> dict[str, float]:
    """`pearson_delta` and `mmd` of one perturbation (cells x genes), as `score` has them.

    A prediction that equals the reference to float32 rounding has no Pearson delta but that of the rounding: it is 0.
    It is 0 as well where all genes differ from the reference by the same. Raises DataError, which begins with `name`,
    for cells that are NaN or infinite, and where there are none.
    """
    for values, what in ((truth, "true cells"), (prediction, "predicted cells"), (reference, "reference")):
        if len(values) == 0:
            raise DataError(f"{name}: there are no {what}")
        _check_finite(values, f"{name}: NaN or infinite values in the {what}, so it has no score")
    is_reference = np.abs(prediction.mean(axis=0) - reference).max() < REFERENCE_TOLERANCE
    pearson = 0.0 if is_reference else pearson_delta(truth, prediction, reference)
    found = {"pearson_delta": 0.0 if np.isnan(pearson) else pearson, "mmd": mmd(truth, prediction, sigma)}
    if bad := [metric for metric, value in found.items() if not np.isfinite(value)]:
        raise DataError(f"{name}: {some(bad)} is not finite: the cells hold values too large to square")
    return found


def l1_distance(truth: pd.DataFrame, prediction: pd.DataFrame) -> float:
    """Mean over the perturbations of `truth` of `l1_by_perturbation`; lower is better."""
    return float(l1_by_perturbation(truth, prediction).mean())


def l1_by_perturbation(truth: pd.DataFrame, prediction: pd.DataFrame) -> pd.Series:
    """0.75 (|d pre_adipo| + |d adipo| + |d other|) + 0.25 |d (lipo / adipo)| of each perturbation of `truth`.

    Both tables hold one row per perturbation, named by a column `gene` or by the index; they are matched by name.
    Raises DataError when a perturbation of `truth` is missing or repeated in `prediction`, and for shares that are
    missing or infinite.
    """
    truth, prediction = (
        table.set_index(CRUNCH.perturbation) if CRUNCH.perturbation in table else table for table in (truth, prediction)
    )
    for table, where in ((truth, "true proportions"), (prediction, "predicted proportions")):
        check_unique(table.index, where)
        if bad := list(table.index[~np.isfinite(table[CRUNCH.states].astype(float)).all(axis=1)]):
            raise DataError(f"{where}: values are missing or infinite for {some(bad)}")
    if missing := list(truth.index.difference(prediction.index)):
        raise DataError(f"predicted proportions: no row for {some(missing)}")
    prediction = prediction.loc[truth.index]
    shares = (truth[CRUNCH.shares] - prediction[CRUNCH.shares]).abs().sum(axis=1)
    true_ratio, predicted_ratio = (table[CRUNCH.part] / (table[CRUNCH.whole] + 1e-20) for table in (truth, prediction))
    return CRUNCH.share_weight * shares + CRUNCH.ratio_weight * (true_ratio - predicted_ratio).abs()


def score(
    prediction_h5ad: str | os.PathLike[str],
    proportions_csv: str | os.PathLike[str] | None,
    truth_h5ad: str | os.PathLike[str],
    truth_proportions_csv: str | os.PathLike[str] | None,
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
    genes, in crunch 2 849 for each 500: right for data of the challenge's scale), "calibrated" (mean squared distance
    between true cells: for data of any other scale) or a number. `executor` is as in `perturbation_stats`; the files
    are read once. Without true proportions (None) there is no L1 distance.

    Returns a tidy table with columns `perturbation, metric, panel, n_genes, sigma, sigma_rule, value`. A prediction
    that equals the reference to float32 rounding has no Pearson delta but that of the rounding; it counts as 0. Every
    perturbation of the true cells has every score: DataError where one is missing in another file, or is not finite.
    """
    true, predicted = (_Shard.of(Path(path), [CRUNCH.perturbation]) for path in (truth_h5ad, prediction_h5ad))
    panels = draw_panels(true.genes, predicted.genes, genes, n_panels, panel_size, seed)
    perturbations = list(true.obs[CRUNCH.perturbation].cat.categories)
    references = _references(Path(truth_h5ad), true.genes, perturbations)
    if missing := sorted(set(perturbations) - set(predicted.obs[CRUNCH.perturbation].cat.categories)):
        raise DataError(f"{predicted.name}: no cells for the scored perturbations {some(missing)}")
    distances = _distances(proportions_csv, truth_proportions_csv, perturbations)
    with _open_rows(true.source) as X:
        widths = [bandwidth(sigma, panel, X, true.genes) for panel in panels]
    cells = [shard.obs.reset_index().groupby(CRUNCH.perturbation, observed=True).indices for shard in (true, predicted)]
    settings = [
        _PanelTask(true.genes.get_indexer(panel), predicted.genes.get_indexer(panel), references[panel], width)
        for panel, (width, _) in zip(panels, widths, strict=True)
    ]
    tasks = []
    for first in range(0, len(perturbations), SCORED_TOGETHER):
        names = perturbations[first : first + SCORED_TOGETHER]
        where = [(name, cells[0][name], cells[1][name]) for name in names]
        tasks.append((true.source, predicted.source, where, settings))
    rows = []
    with progress_bar("scoring", total=len(perturbations), unit="perturbation") as progress:
        scored = (values for part in map_ahead(executor, _score_task, tasks) for values in part)
        for perturbation, values in zip(perturbations, scored, strict=True):
            for i, (panel, (width, rule), pair) in enumerate(zip(panels, widths, values, strict=True)):
                for metric, value in pair.items():
                    rows.append((perturbation, metric, i, len(panel), width, rule, value))
            progress.update()
    rows += [(perturbation, "l1_distance", 0, 0, np.nan, "", value) for perturbation, value in distances.items()]
    return pd.DataFrame(rows, columns=["perturbation", "metric", "panel", "n_genes", "sigma", "sigma_rule", "value"])


def _distances(
    predicted: str | os.PathLike[str] | None, true: str | os.PathLike[str] | None, perturbations: Sequence[str]
) -> pd.Series:
    """The L1 distance of each perturbation, of two tables of proportions; none where there is no truth."""
    if true is None:
        return pd.Series(dtype=np.float64)
    if predicted is None:
        raise DataError(f"{true}: there are true proportions, but none were predicted; train again on this folder")
    tables = [read_proportions(Path(path)) for path in (true, predicted)]
    for table, path in zip(tables, (true, predicted), strict=True):
        if missing := sorted(set(perturbations) - set(table.index)):
            raise DataError(f"{path}: no row for the scored perturbations {some(missing)}")
    return l1_by_perturbation(tables[0].loc[tables[0].index.isin(perturbations)], tables[1])


@dataclass(frozen=True)
class _PanelTask:
    """A panel: its columns in the two files, the references on it (perturbations x genes) and the bandwidth."""

    true_columns: np.ndarray
    predicted_columns: np.ndarray
    references: pd.DataFrame
    sigma: float


def _score_task(task: tuple[Path, Path, list[tuple[str, np.ndarray, np.ndarray]], list[_PanelTask]]) -> list[list]:
    """Pearson delta and MMD of some perturbations (name, rows of the truth, of the prediction) on every panel."""
    truth, prediction, perturbations, panels = task
    scores: list[list] = []
    # The products are small: more threads would wait for each other.
    with _open_rows(truth) as true, _open_rows(prediction) as predicted, threadpool_limits(1):
        for name, true_rows, predicted_rows in perturbations:
            true_cells, predicted_cells = _cells_at(true, true_rows), _cells_at(predicted, predicted_rows)
            for cells, path in ((true_cells, truth), (predicted_cells, prediction)):
                _check_finite(cells, f"{path}: X holds NaN or infinite values in the cells of {name}; replace them")
            scores.append([])
            for panel in panels:
                x = true_cells[:, panel.true_columns].astype(np.float64)
                y = predicted_cells[:, panel.predicted_columns].astype(np.float64)
                reference = panel.references.loc[name].to_numpy()
                scores[-1].append(cell_scores(x, y, reference, panel.sigma, f"{prediction}: {name}"))
    return scores


def summarise_scores(table: pd.DataFrame) -> pd.DataFrame:
    """One row per metric of the table of `score`: mean over perturbations and panels, and how the panels differ.

    `spread` is the standard deviation of the panels' means (0 for one panel), `perturbations` their number. Raises
    DataError for values that are missing or infinite: a mean would leave them out.
    """
    if bad := list(table.loc[~np.isfinite(table["value"]), "perturbation"].unique()):
        raise DataError(f"the table of scores holds NaN or infinite values for {some(bad)}")
    by_panel = table.groupby(["metric", "panel"])["value"].mean().groupby("metric")
    return pd.DataFrame(
        {
            "mean": by_panel.mean(),
            "spread": by_panel.std().fillna(0.0),
            "perturbations": table.groupby("metric")["perturbation"].nunique(),
        }
    ).loc[scored_metrics(table)]


def scored_metrics(table: pd.DataFrame) -> list[str]:
    """The crunch's metrics that a table of scores has, in their order: without states there is no L1 distance."""
    return [metric for metric in CRUNCH.metrics if metric in set(table["metric"])]


def draw_panels(
    true_genes: pd.Index, predicted_genes: pd.Index, genes: Sequence[str] | None, n_panels: int, size: int, seed: int
) -> list[pd.Index]:
    """The gene panels to score on: `genes`, or random ones of the shared genes, or all of them.

    Raises DataError for genes that are not in both, and for panels of fewer than two genes, which have no correlation.
    """
    shared = true_genes[true_genes.isin(predicted_genes)]
    if genes is not None:
        panel = pd.Index(genes)
        check_unique(panel, "genes")
        if missing := list(panel[~panel.isin(shared)]):
            raise DataError(f"genes: not in both the prediction and the truth: {some(missing)}")
        if len(panel) < 2:
            raise DataError(f"genes: a panel of {len(panel)}; scores need at least two genes")
        return [panel]
    if n_panels < 1 or size < 2:
        raise DataError(f"n_panels is {n_panels} and panel_size {size}; scores need a panel of at least two genes")
    if len(shared) < 2:
        raise DataError(
            f"the prediction and the truth have {len(shared) or 'no'} gene in common; scores need at least two"
        )
    if len(shared) <= size:
        return [shared]
    generators = np.random.default_rng(seed).spawn(n_panels)
    # Drawn from the sorted names, so that the order of the columns does not matter.
    return [pd.Index(generator.choice(np.sort(shared), size, replace=False)) for generator in generators]


def bandwidth(rule: float | str, panel: pd.Index, X: _Matrix, genes: pd.Index) -> tuple[float, str]:
    """The middle bandwidth of MMD on a panel, and the rule it follows: "scaled", "calibrated" or "given".

    `rule` is one of the first two, or a positive number; `X` (cells x `genes`) are the true cells. Raises DataError
    for any other rule, and where the true cells give no bandwidth: one cell, equal cells, NaN.
    """
    if rule == "scaled":
        return CRUNCH.sigma * len(panel) / CRUNCH.sigma_genes, "scaled"
    if rule != "calibrated":
        return _check_width(rule), "given"
    rows = np.unique(np.linspace(0, X.shape[0] - 1, 500).astype(int))
    cells = _cells_at(X, rows)[:, genes.get_indexer(panel)].astype(np.float64)
    width = float(squared_distances(cells, cells).sum() / max(len(rows) * (len(rows) - 1), 1))
    if not (np.isfinite(width) and width > 0):
        raise DataError(
            f"sigma 'calibrated': the mean squared distance between true cells is {width:g}, which is no bandwidth: "
            f"look at the {X.shape[0]} true cells, or choose 'scaled'"
        )
    return width, "calibrated"


def _check_width(sigma: float | str) -> float:
    """The bandwidth as a number. Raises DataError unless it is positive and finite."""
    try:
        width = float(sigma)
    except (TypeError, ValueError):
        width = np.nan
    if not (np.isfinite(width) and width > 0):
        raise DataError(f"sigma is {sigma}: it must be 'scaled', 'calibrated' or a positive number")
    return width


def _cells_at(X: _Matrix, rows: np.ndarray) -> np.ndarray:
    """The cells at `rows` (ascending), dense; read at once where they lie together."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    parts = [dense(X[slice(int(run[0]), int(run[-1]) + 1)]) for run in runs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def dense(rows: Any) -> np.ndarray:
    """CSR or dense rows as an array."""
    return rows.toarray() if sp.issparse(rows) else rows


def _references(path: Path, genes: pd.Index, perturbations: Sequence[str]) -> pd.DataFrame:
    """What Pearson delta of each perturbation counts from (perturbations x genes): centroids in `uns` of the truth."""
    if unscored := [name for name in perturbations if not CRUNCH.centroid_of(name)]:
        raise DataError(f"{path}: {some(unscored)} has more than two guides, which is never scored; take it out")
    with _open_store(path) as file:
        kinds = {name: _centroid(file, path, name, genes) for name in {*map(CRUNCH.centroid_of, perturbations)}}
    return pd.DataFrame([kinds[CRUNCH.centroid_of(name)] for name in perturbations], list(perturbations), genes)


def _centroid(file: Any, path: Path, key: str, genes: pd.Index) -> np.ndarray:
    if f"uns/{key}" not in file:
        raise DataError(f"{path}: uns has no '{key}': the reference of Pearson delta")
    stored = file[f"uns/{key}"]
    if getattr(stored, "shape", None) != (len(genes),) or stored.dtype.kind not in "iuf":
        raise DataError(f"{path}: uns['{key}'] must hold one number for each of the {len(genes)} genes of var")
    values = stored[:]
    if not np.isfinite(values).all():
        raise DataError(f"{path}: uns['{key}'] is NaN or infinite for {some(genes[~np.isfinite(values)])}")
    return values


def reference_of(truth: ad.AnnData, name: str) -> pd.Series:
    """What Pearson delta of a perturbation counts from, by gene, from `uns` of the true cells."""
    return pd.Series(truth.uns[CRUNCH.centroid_of(name)], index=truth.var_names)


# ---------------------------------------------------------------------------------------------------------------------
# 8. A local split: hold out perturbations of the training file
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
    """Hold out perturbations of your own, as the published starter does, and write the two parts into `folder`.

    The crunch's five local knock-outs are few; this gives others to score a method on, with `score`.

    `held_out` names the perturbations, or is the share of them to draw. `max_cells` keeps the first cells of each
    perturbation, `n_genes` draws that many genes. Writes `local_train.h5ad`, `local_test_eval.h5ad` (with
    `uns["control_centroid_train"]` and `uns["perturbed_centroid_train"]` of the training part, in crunch 2 each for
    singles and for doubles) and `local_test_perturbated_genes.txt`: all of them or none. Returns the held-out
    perturbations, sorted.

    Raises DataError where no perturbation, or no cell or gene, would be left on either side, and for a `source` that is
    one of the files to write.
    """
    source, folder = Path(source), Path(folder)
    for number, name in ((max_cells, "max_cells"), (n_genes, "n_genes")):
        if number is not None and not (isinstance(number, int | np.integer) and number >= 1):
            raise DataError(f"{name} is {number!r}: it must be a whole number of at least 1")
    files = [folder / name for name in ("local_train.h5ad", "local_test_eval.h5ad", "local_test_perturbated_genes.txt")]
    if source.resolve() in [file.resolve() for file in files]:
        raise DataError(f"{source}: it would be overwritten; choose another folder than {folder}")
    obs, genes = read_labels(source, [CRUNCH.perturbation])
    generator = np.random.default_rng(seed)
    test = _held_out(obs, held_out, generator, source)
    columns = np.arange(len(genes))
    if n_genes is not None:
        columns = np.sort(generator.choice(len(genes), min(n_genes, len(genes)), replace=False))
    kept = np.ones(len(obs), bool)
    if max_cells is not None:
        kept = (obs.groupby(CRUNCH.perturbation, observed=True).cumcount() < max_cells).to_numpy()
    is_test = obs[CRUNCH.perturbation].isin(test).to_numpy()
    train_part, test_part = (_subset(source, kept & part, columns) for part in (~is_test, is_test))
    stats = perturbation_stats(train_part)
    _require_control(stats.mean)
    test_part.uns.update({name: mean.to_numpy() for name, mean in stats.centroids().items()})
    if lost := sorted({*map(CRUNCH.centroid_of, test)} - {*test_part.uns}):
        raise DataError(
            f"{source}: what is left has no cells for {some(lost)}, the reference of the score; hold out less"
        )
    with replacing_all(files) as (train_file, test_file, names_file):
        train_part.write_h5ad(train_file)
        test_part.write_h5ad(test_file)
        names_file.write_text("\n".join(test) + "\n", encoding="utf-8")
    return test


def _held_out(
    obs: pd.DataFrame, held_out: Sequence[str] | float, generator: np.random.Generator, source: Path
) -> pd.Index:
    names = obs[CRUNCH.perturbation].cat.categories
    perturbations = pd.Index([name for name in names if not CRUNCH.is_control(name) and CRUNCH.centroid_of(name)])
    if isinstance(held_out, float | int | np.number):
        if not 0 < held_out < 1 or (number := max(1, round(held_out * len(perturbations)))) >= len(perturbations):
            raise DataError(
                f"held_out is {held_out}: a share between 0 and 1 that leaves some of the {len(perturbations)} "
                "perturbations to train on"
            )
        return pd.Index(np.sort(generator.choice(perturbations, number, replace=False)))
    names = {held_out} if isinstance(held_out, str) else set(held_out)
    if controls := sorted(filter(CRUNCH.is_control, names)):
        raise DataError(f"{source}: the control, {some(controls)}, cannot be held out")
    if unscored := sorted(name for name in names if not CRUNCH.centroid_of(name)):
        raise DataError(f"{source}: {some(unscored)} has more than two guides, which is never scored")
    if unknown := sorted(names - set(perturbations), key=str):
        raise DataError(f"{source}: no cells of the perturbations to hold out: {some(unknown)}")
    if not names or len(names) == len(perturbations):
        raise DataError(
            f"held_out names {len(names)} of the {len(perturbations)} perturbations of {source}; name at least one, "
            "and leave at least one to train on"
        )
    return pd.Index(sorted(names))


def _subset(source: Path, rows: np.ndarray, columns: np.ndarray) -> ad.AnnData:
    """X, obs and var of the cells in the mask `rows` and the genes `columns`, in memory; layers are left behind."""
    first, last = np.flatnonzero(rows)[[0, -1]] if rows.any() else (0, -1)
    run = slice(int(first), int(last) + 1)  # the cells lie sorted by perturbation, so the run holds little else
    with readable(source):
        backed = ad.read_h5ad(source, backed="r")
    try:
        X = backed.X[run][rows[run]][:, columns]
        return ad.AnnData(X, obs=backed.obs[rows].copy(), var=backed.var.iloc[columns].copy())
    finally:
        backed.file.close()
