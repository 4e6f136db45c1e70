"""Screens: what perturbations did to genes elsewhere, in another cell line or another study, kept by components.

In: files of perturbations x responses as they are published (`read_screen`, `read_screens`). Out: `Screen`, which
`knowledge.py` takes next. `write_screen` makes the small form, which reads in a second.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset, write_elem
from threadpoolctl import threadpool_limits

from helpers import (
    DataError,
    check_header,
    check_unique,
    dense,
    open_hdf5,
    progress_bar,
    replacing,
    some,
    working_on,
    writing_hdf5,
)

SCREENS_FOLDER = "screens"  # of the model folder: the user's own screens
COMPONENTS = 400  # of a screen, at most
SPARE_COMPONENTS = 60  # that are searched for beside those and thrown away: the last ones are then found as well
PASSES = 5  # over the matrix, to find them
FEWEST_PERTURBATIONS, FEWEST_RESPONSES = 3, 2
SLAB_BYTES = 32_000_000  # of a matrix that is read by rows
STORED = "components"  # the small form: its key in obsm, varm and uns

# Rows called so, whatever the case, separators and a number at the end, are no perturbations.
CONTROLS = frozenset(
    {
        "control",
        "controls",
        "ctrl",
        "dmso",
        "mock",
        "nc",
        "neg",
        "negative",
        "negativecontrol",
        "negctrl",
        "nontargeting",
    }
    | {
        "nontargetingcontrol",
        "nt",
        "ntc",
        "safetargeting",
        "scramble",
        "scrambled",
        "unperturbed",
        "untreated",
        "vehicle",
    }
)
NAME_COLUMNS = ("gene_name", "gene_symbol", "gene", "symbol", "perturbation")  # may hold symbols
CELLS_COLUMN = "num_cells_filtered"  # how many cells a row is the mean of
ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(\.\d+)?")
PUBLISHED = re.compile(r"\d+_(?P<symbol>.+)_[^_]+_(?P<id>ENSG\d+|non-targeting)")  # rows of Replogle et al. 2022


@dataclass(frozen=True)
class Screen:
    """Effects of `perturbations` (P,) on `responses` (G,), both gene symbols without repeats.

    `scores` (P x L, float32) and `basis` (L x G, float32; its rows are orthogonal and have length 1) multiply to the
    profiles, which are relative to the mean over the screen's perturbations. L is at most `COMPONENTS`, the largest
    component first.
    """

    perturbations: pd.Index
    responses: pd.Index
    scores: np.ndarray
    basis: np.ndarray

    def profiles(self, perturbations: Sequence[str], responses: Sequence[str]) -> pd.DataFrame:
        """Profiles, perturbations x responses (float32), in the order asked for; KeyError for a name it lacks."""
        rows = _positions(self.perturbations, perturbations, "perturbations")
        columns = _positions(self.responses, responses, "responses")
        return pd.DataFrame(self.scores[rows] @ self.basis[:, columns], pd.Index(perturbations), pd.Index(responses))


def _positions(names: pd.Index, wanted: Sequence[str], what: str) -> np.ndarray:
    positions = names.get_indexer(pd.Index(wanted))
    if (positions < 0).any():
        raise KeyError(f"the screen lacks the {what} {some(np.asarray(wanted)[positions < 0])}")
    return positions


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_screens(folder: str | Path, wanted: Iterable[str]) -> dict[str, Screen]:
    """The screens in a folder, by file name, sorted; what a file may be says `read_screen`.

    `wanted` are the perturbations and targets of the challenge. A screen without any of them is left out with a
    warning. Notes (`.md`, `.txt`, `.json`) and hidden files are passed over. Raises DataError for any other file.
    """
    if Path(folder).is_file():
        raise DataError(f"{folder}: not a folder; put the screens into a folder of that name")
    wanted = pd.Index(sorted(set(wanted)))
    screens = {}
    for path in sorted(Path(folder).glob("*")):
        if path.name.startswith(".") or _kind(path) in ("md", "txt", "json"):
            continue
        screen = read_screen(path, wanted)
        if not screen.perturbations.isin(wanted).any():
            _warn(
                f"{path}: none of its perturbations ({some(screen.perturbations, 3)}) is a perturbation or target; "
                "left out. Rows are perturbations, columns responses"
            )
            continue
        screens[path.name] = screen
    return screens


def read_screen(path: str | Path, wanted: Iterable[str] | None = None) -> Screen:
    """A screen from a file of perturbations (rows) x responses (columns).

    `.h5ad`: perturbations in obs, responses in var, X dense or sparse; read by slabs. It may also be the small form of
    `write_screen`. `.parquet`, `.csv`, `.tsv`, `.csv.gz`, `.tsv.gz`: the first column names the perturbation.

    Names of perturbations and responses are gene symbols. Those of Replogle et al. 2022 are taken apart
    (`10023_ZC3H18_P1P2_ENSG00000158545`), else they stand in the index or in one of `NAME_COLUMNS`. Ensembl ids become
    symbols where the file has both. Symbols in other case are matched in upper case to `wanted`, the perturbations and
    targets of the challenge. Rows without a name or of a control are left out. Rows of one perturbation are averaged,
    each weighing its `num_cells_filtered` where that is known, and columns of one response too. A response which is
    missing or infinite in most rows is dropped; elsewhere such a value becomes the response's mean. Ranks become
    scores, see `scores_of_ranks`. A warning tells of other case, ids without a symbol, missing values and ranks.

    Raises DataError for a file that cannot be read, for text among the responses, fewer than 3 perturbations or 2
    responses, and where all perturbations have the same values.
    """
    path = Path(path)
    kind = _kind(path)
    if kind.removesuffix(".gz") in ("pkl", "pickle", "pt", "pth", "joblib"):
        raise DataError(
            f"{path}: a pickle can run any code; never unpickle a download; save it as csv, parquet or h5ad"
        )
    if kind not in READERS:
        raise DataError(f"{path}: not a screen; use {', '.join('.' + name for name in READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: {'not a' if path.exists() else 'no such'} file")
    names = None if wanted is None else pd.Index(sorted(set(wanted)))
    try:
        with working_on(path.name), np.errstate(over="ignore"):  # what float32 cannot hold is infinite there
            return READERS[kind](path, names)
    except ImportError as error:
        raise DataError(
            f"{path}: reading {kind} needs pyarrow; install it, or save the screen as csv or h5ad"
        ) from error
    except (DataError, MemoryError, Warning):
        raise
    except Exception as error:  # a damaged or foreign file breaks its reader in any way
        said = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as {kind}, perhaps a broken download: {said}") from error


def _kind(path: Path) -> str:
    """The end of a file's name: `csv`, `csv.gz`."""
    name = path.name.lower()
    return ".".join(name.split(".")[-2 if name.endswith(".gz") else -1 :])


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _read_text(path: Path, wanted: pd.Index | None) -> Screen:
    form = {"sep": "\t" if "tsv" in _kind(path) else ",", "header": None}
    header, first = (pd.read_csv(path, skiprows=i, nrows=1, dtype=str, keep_default_na=False, **form) for i in (0, 1))
    names = header.to_numpy()[0].tolist()
    if first.shape[1] == len(names) + 1:  # R leaves the first name out
        names = ["", *names]
    if len(names) < 2:
        raise DataError(f"{path}: only one column, {some(names)}; a .csv is separated by commas, a .tsv by tabs")
    check_header(names, path)
    # pandas would rename columns that stand twice. A gene may be called NA. With low_memory a column may be half text.
    table = pd.read_csv(path, skiprows=1, converters={0: str}, low_memory=False, **form)
    return _of_table(table.set_index(0).set_axis(names[1:], axis=1), wanted, path)


def _read_parquet(path: Path, wanted: pd.Index | None) -> Screen:
    table = pd.read_parquet(path)
    if isinstance(table.index, pd.RangeIndex):
        if table.shape[1] == 0 or pd.api.types.is_numeric_dtype(table.iloc[:, 0]):
            raise DataError(f"{path}: no names of perturbations in the index or in the first column")
        table = table.set_index(table.columns[0])
    return _of_table(table, wanted, path)


def _of_table(table: pd.DataFrame, wanted: pd.Index | None, path: Path) -> Screen:
    """From a table in memory: columns of names and of numbers of cells describe its rows, the others are responses."""
    is_number = np.array([pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes], bool)
    names = table.columns.astype(str)
    about = np.where(is_number, names == CELLS_COLUMN, names.isin(NAME_COLUMNS))
    if (~is_number & ~about).any():
        raise DataError(f"{path}: columns that are not numbers: {some(names[~is_number & ~about])}; take them out")
    obs = table.loc[:, about].set_axis(names[about], axis=1)
    values = table.loc[:, ~about].to_numpy(np.float32, na_value=np.nan)
    return _screen(values, obs, pd.DataFrame(index=names[~about]), wanted, path)


def _read_h5ad(path: Path, wanted: pd.Index | None) -> Screen:
    with open_hdf5(path) as file:
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        if not isinstance(obs, pd.DataFrame) or not isinstance(var, pd.DataFrame):
            raise DataError(f"{path}: obs or var is no table; write it again with `adata.write_h5ad`")
        if "X" not in file or file["X"].attrs.get("encoding-type") == "null":
            return _stored(file, obs.index.astype(str), var.index.astype(str), wanted, path)
        X = file["X"] if isinstance(file["X"], h5py.Dataset) else sparse_dataset(file["X"])
        if getattr(X, "format", "") == "csc":
            X = X.to_memory().tocsr()
        return _screen(X, obs, var, wanted, path)


def _stored(
    file: h5py.File, perturbations: pd.Index, responses: pd.Index, wanted: pd.Index | None, path: Path
) -> Screen:
    """The small form."""
    if any(f"{part}/{STORED}" not in file for part in ("obsm", "varm", "uns")):
        raise DataError(f"{path}: neither X nor components; put perturbations x responses into X")
    scores, loadings, scale = (file[f"{part}/{STORED}"][:].astype(np.float32) for part in ("obsm", "varm", "uns"))
    if scores.shape != (len(perturbations), len(scale)) or loadings.shape != (len(responses), len(scale)):
        raise DataError(f"{path}: components {scores.shape} and {loadings.shape} do not fit together; write it again")
    if not all(np.isfinite(values).all() for values in (scores, loadings, scale)):
        raise DataError(f"{path}: missing or infinite values in the components; write it again")
    perturbations, responses = _in_known_case(perturbations, responses, wanted, path)
    check_unique(perturbations, f"{path}: obs")
    check_unique(responses, f"{path}: var")
    _check_enough(perturbations, responses, path)
    return Screen(perturbations, responses, scores * scale, np.ascontiguousarray(loadings.T))


READERS: dict[str, Callable[[Path, pd.Index | None], Screen]] = {
    "h5ad": _read_h5ad,
    "parquet": _read_parquet,
    "csv": _read_text,
    "csv.gz": _read_text,
    "tsv": _read_text,
    "tsv.gz": _read_text,
}


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def _names(frame: pd.DataFrame, wanted: pd.Index | None, fewest: int) -> tuple[np.ndarray, dict[str, str]]:
    """The name of each row of `obs` or `var`, "" where there is none, and symbols by Ensembl id.

    Names stand in the index or in a column. What names most of `wanted` is taken, then what has fewest ids.
    """
    texts = {str(name): _texts(frame[name]) for name in frame if not pd.api.types.is_numeric_dtype(frame[name])}
    index = _texts(frame.index.to_series())
    parts = index.str.extract(f"^{PUBLISHED.pattern}$")
    if parts["symbol"].notna().mean() > 0.5:
        index, texts["id"] = parts["symbol"].fillna(index), parts["id"].fillna("")
    candidates = [texts[name] for name in NAME_COLUMNS if name in texts and texts[name].nunique() >= fewest]
    known = set() if wanted is None else set(wanted.str.upper())

    def use(names: pd.Series) -> tuple[int, int]:
        return names.str.upper().isin(known).sum(), -_are_ids(names).sum()

    names = max([*candidates, index], key=use).to_numpy(str)
    symbols, symbol_of = ~_are_ids(names) & (names != ""), dict[str, str]()
    for ids in (*texts.values(), index):
        pairs = _are_ids(ids) & symbols
        symbol_of |= dict(zip(ids.to_numpy(str)[pairs], names[pairs], strict=True))
    return names, symbol_of


def _texts(values: pd.Series) -> pd.Series:
    """Stripped texts, "" for a missing one; Ensembl ids without their version."""
    texts = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return texts.where(texts != "nan", "").str.replace(f"^{ENSEMBL.pattern}$", r"\1", regex=True).reset_index(drop=True)


def _are_ids(names: Iterable[str]) -> np.ndarray:
    return np.array([ENSEMBL.fullmatch(name) is not None for name in names], bool)


def _perturbation(name: str) -> str:
    """The name without controls in it, "" for a control: `KLF1+ctrl` is `KLF1`."""
    return "+".join(part for part in name.split("+") if not _is_control(part))


def _is_control(name: str) -> bool:
    """`Non-targeting_0012` and `NTC` are controls."""
    return re.sub(r"[\W_]", "", name.casefold()).rstrip("0123456789") in CONTROLS


def _in_known_case(
    perturbations: pd.Index, responses: pd.Index, wanted: pd.Index | None, path: Path
) -> tuple[pd.Index, pd.Index]:
    """Names as they are, or in upper case when only so they are known."""
    found = [perturbations, responses]
    if wanted is not None:
        for i, names in enumerate(found):
            if not names.isin(wanted).any() and names.str.upper().isin(wanted).any():
                found[i] = names.str.upper()
    if changed := [names for names, now in zip((perturbations, responses), found, strict=True) if now is not names]:
        _warn(f"{path}: gene symbols are not in upper case ({some(changed[0], 3)}); matched in upper case")
    return found[0], found[1]


def _check_enough(perturbations: Iterable[str], responses: Iterable[str], path: Path) -> None:
    for names, fewest, what in (
        (set(perturbations), FEWEST_PERTURBATIONS, "perturbations besides controls"),
        (set(responses) - {""}, FEWEST_RESPONSES, "responses with numbers"),
    ):
        if len(names) < fewest:
            raise DataError(f"{path}: only {len(names)} {what} ({some(sorted(names))}); at least {fewest} are needed")


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------

Table = TypeVar("Table", np.ndarray, pd.DataFrame)


def scores_of_ranks(values: Table) -> Table | None:
    """Ranks (1 is the strongest, 0 is not among the first) as scores between 0 and 1; None where they are no ranks.

    They are ranks when in each row the values other than 0 are 1, 2, ... k, each once; rank r becomes (k + 1 - r) / k.
    The same type, rows and columns come back.

    >>> scores_of_ranks(np.array([[0, 2, 1, 0], [1, 2, 4, 3]]))
    array([[0.  , 0.5 , 1.  , 0.  ],
           [1.  , 0.75, 0.25, 0.5 ]], dtype=float32)
    >>> scores_of_ranks(np.array([[0, 2, 2, 0]]))
    """
    numbers = np.asarray(values)
    if not _are_ranks(numbers):
        return None
    scores = _as_scores(numbers)
    return pd.DataFrame(scores, values.index, values.columns) if isinstance(values, pd.DataFrame) else scores


def _are_ranks(numbers: np.ndarray) -> bool:
    n = numbers.shape[1]
    left = n - (numbers > 0).sum(axis=1, keepdims=True)
    return bool((np.sort(numbers, axis=1) == np.maximum(np.arange(1, n + 1) - left, 0)).all())


def _as_scores(ranks: np.ndarray) -> np.ndarray:
    k = (ranks > 0).sum(axis=1, keepdims=True).astype(np.float32)
    return np.where(ranks > 0, (k + 1 - ranks) / np.maximum(k, 1), 0).astype(np.float32)


def _screen(X: Any, obs: pd.DataFrame, var: pd.DataFrame, wanted: pd.Index | None, path: Path) -> Screen:
    """From a matrix whose slices of rows are dense or CSR, and what is said of its rows and columns."""
    if X.shape != (len(obs), len(var)):
        raise DataError(f"{path}: X is {X.shape}, but obs and var are {(len(obs), len(var))}; write it again")
    row_names, of_rows = _names(obs, wanted, FEWEST_PERTURBATIONS)
    column_names, of_columns = _names(var, wanted, FEWEST_RESPONSES)
    symbol_of = of_rows | of_columns
    perturbations = pd.Index([_perturbation(symbol_of.get(name, name)) for name in row_names])
    responses = pd.Index([symbol_of.get(name, name) for name in column_names])
    for names, what in ((perturbations, "perturbations"), (responses, "responses")):
        if len(ids := names[_are_ids(names)].unique()):
            _warn(f"{path}: {len(ids)} {what} keep their Ensembl id ({some(ids, 3)}); a column gene_name gives symbols")
    perturbations, responses = _in_known_case(perturbations, responses, wanted, path)

    rows = np.flatnonzero(perturbations != "")
    names, codes = np.unique(perturbations[rows].to_numpy(str), return_inverse=True)
    _check_enough(names, responses, path)
    cells = obs[CELLS_COLUMN].to_numpy(np.float64)[rows] if CELLS_COLUMN in obs else np.ones(len(rows))
    cells = np.nan_to_num(cells, nan=1).clip(min=1)
    shares = (cells / np.bincount(codes, cells)[codes]).astype(np.float32)
    means, not_finite = _means(X, rows, codes, shares, path)

    kept, columns = ~np.isnan(means).all(axis=1), not_finite <= len(rows) / 2
    if not_finite.any():
        left = "".join(
            f"{what} left out: {some(out)}; "
            for what, out in (("responses", responses[(responses != "") & ~columns]), ("perturbations", names[~kept]))
            if len(out)
        )
        _warn(
            f"{path}: {not_finite.sum()} missing or infinite values; {left}elsewhere they count as the response's mean"
        )
        names, means = names[kept], means[kept]
    means, responses = _one_per_name(means, np.where(columns, responses, ""))
    _check_enough(names, responses, path)
    if (means.max(axis=0) == means.min(axis=0)).all():
        raise DataError(f"{path}: every perturbation has the same values; is it the right file?")
    means -= means.mean(axis=0, dtype=np.float64).astype(np.float32)
    scores, basis = _components(means)
    return Screen(pd.Index(names, dtype=object), responses, scores, basis)


def _means(
    X: Any, rows: np.ndarray, codes: np.ndarray, shares: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The mean row of each perturbation: sums over `rows` (ascending) of the same code, each weighing its share.

    Perturbations x columns (float32), NaN where no row has a finite value; and by column the number of rows which
    have none. Ranks become scores.
    """
    ranks = all(_are_ranks(slab) for _, slab in _slabs(X, rows))
    if ranks:
        _warn(f"{path}: ranks (1 is the strongest of k) are turned into scores, (k + 1 - rank) / k")
    n_columns = X.shape[1]
    means, not_finite = np.zeros((codes.max() + 1, n_columns), np.float32), np.zeros(n_columns, np.int64)
    lost: np.ndarray | None = None  # shares of rows without a finite value, as large as `means` where there are any
    with progress_bar("reading perturbations", total=len(rows), unit="row") as progress:
        for part, values in _slabs(X, rows):
            slab = _as_scores(values) if ranks else values
            present, local = np.unique(codes[part], return_inverse=True)
            sums = sp.csr_matrix((shares[part], (local, np.arange(len(local)))), (len(present), len(local)))
            missing = ~np.isfinite(slab)
            if missing.any():
                lost = np.zeros_like(means) if lost is None else lost
                not_finite += missing.sum(axis=0)
                lost[present] += sums @ missing.astype(np.float32)
                slab = np.where(missing, np.float32(0), slab)
            means[present] += sums @ slab
            progress.update(len(local))
    if lost is not None:
        means /= np.where(lost < 1 - 1e-4, 1 - lost, np.nan)
    return means, not_finite


def _slabs(X: Any, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs of the chosen rows of X (float32, dense), and which of `rows` (ascending) they are."""
    step = max(1, SLAB_BYTES // (4 * X.shape[1]))
    for start in range(0, X.shape[0], step):
        part = slice(*np.searchsorted(rows, (start, start + step)))
        if part.stop > part.start:
            yield part, np.asarray(dense(X[start : start + step]), np.float32)[rows[part] - start]


def _one_per_name(values: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, pd.Index]:
    """Columns of one name are averaged, NaN being the column's mean; sorted by name, those called "" left out."""
    named = np.flatnonzero(names != "")
    kept, codes, counts = np.unique(names[named].astype(str), return_inverse=True, return_counts=True)
    result = np.zeros((len(values), len(kept)), np.float32)
    for column, code in zip(named, codes, strict=True):
        numbers = values[:, column]
        missing = np.isnan(numbers)
        if missing.any():
            numbers = np.where(missing, numbers[~missing].mean(dtype=np.float64), numbers)
        result[:, code] += numbers / np.float32(counts[code])
    return result, pd.Index(kept, dtype=object)


def _components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (P x L) and basis (L x G) of centred values (P x G), float32: exact where P or G is at most COMPONENTS.

    Else subspace iteration from a seeded start (Halko et al. 2011). One thread, so that the bytes are always the same.
    """
    with threadpool_limits(1):
        if min(values.shape) <= COMPONENTS:
            left, lengths, basis = np.linalg.svd(values.astype(np.float64), full_matrices=False)
        else:
            start = np.random.default_rng(0).standard_normal((values.shape[1], COMPONENTS + SPARE_COMPONENTS))
            axes = start.astype(np.float32)
            for _ in progress_bar("finding components", iterable=range(PASSES)):
                axes, _ = np.linalg.qr(values.T @ (values @ axes))
            left, lengths, turned = np.linalg.svd(values @ axes, full_matrices=False)
            basis = turned[:COMPONENTS] @ axes.T
    kept = np.flatnonzero(lengths[:COMPONENTS] > 1e-6 * lengths[0])
    return (left[:, kept] * lengths[kept]).astype(np.float32), basis[kept].astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The small form
# ---------------------------------------------------------------------------------------------------------------------


def write_screen(path: str | Path, screen: Screen) -> None:
    """Write the small form: an `.h5ad` without X, 2 bytes per number of `obsm["components"]` and `varm["components"]`.

    `obsm["components"]` times `uns["components"]` are the scores (P x L), `varm["components"]` is the basis turned
    round (G x L). Profiles come back within 0.1 % of their root mean square. Raises DataError for another kind of file
    and when it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".h5ad":
        raise DataError(f"{path}: a screen is written as .h5ad")
    scale = np.abs(screen.scores).max(axis=0)  # so that float16 holds the scores, whatever their unit
    scale[scale == 0] = 1
    stored = ad.AnnData(
        obs=pd.DataFrame(index=screen.perturbations),
        var=pd.DataFrame(index=screen.responses),
        obsm={STORED: (screen.scores / scale).astype(np.float16)},
        varm={STORED: screen.basis.T.astype(np.float16)},
        uns={STORED: scale},
    )
    with replacing(path) as temporary, writing_hdf5(temporary) as file:
        write_elem(file, "/", stored, dataset_kwargs={"compression": "gzip"})
