"""What the sister systems share: seeds and devices, trained models as files, tables and pictures, the command line.

In: names, seeds, arrays and torch modules. Out: a device; random streams that depend on a seed and on names alone; one
HDF5 file for each trained model (`Bundle`, `save_model`, `load_model`); cells as `.h5ad`; and a command line with the
same options for every system, which ends in one line, never in a traceback, for input that cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.io import write_elem
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from helpers import (
    MOST_PACKED,
    DataError,
    free_memory,
    is_sealed,
    read_array,
    replacing,
    some,
    text_size,
    write_array,
    writing_hdf5,
    writing_sealed,
)
from workbench.commands import command_line, one_line, whole
from workbench.evaluation.intervals import write_table
from workbench.pictures.style import BLUE, GREY, ORANGE, plain_style, save_figure
from workbench.validate import stored_elsewhere

BUNDLE_FORMAT = 4
DEVICES = ("auto", "cpu", "cuda", "mps")
COLUMNS = ["method", "metric", "value", "low", "high", "n"]  # of every table of results
BLOCK_VALUES = 2_000_000  # of a matrix that is written by blocks: 8 MB in memory


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where there is one. Raises DataError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there.get(name, False):
        raise DataError(f"--device {name}: not on this machine; there is {some(d for d in there if there[d])}")
    return torch.device(name)


def derived_seed(seed: int, *names: object) -> int:
    """A seed for one purpose (63 bits), which depends on `seed` and `names` alone, on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def reproducible(seed: int, *names: object) -> Iterator[torch.Generator]:
    """Inside, torch draws from the seed of `names` and computes on one thread with deterministic kernels.

    Yields a CPU generator of the same seed for whatever takes one. The caller's random state, threads and settings
    come back afterwards. Work that is to use several cores runs in several processes, so that sums keep their order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with this alone
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, *names))
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield torch.Generator().manual_seed(derived_seed(seed, *names))
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(threads)


def gradient_penalty(
    critic: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, fake: torch.Tensor
) -> torch.Tensor:
    """Mean squared distance to 1 of a Wasserstein critic's slope between real and fake rows (Gulrajani et al. 2017).

    `critic` gives one score per row; `real` and `fake` are rows x features, and each row has its own mixing share.
    """
    share = torch.rand(len(real), 1, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


# ---------------------------------------------------------------------------------------------------------------------
# Trained models as files
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A trained model as plain data: `settings` (numbers, texts, lists, dictionaries) and named arrays.

    `kind` says which class made it, `about` what it was trained on (as `settings`: whatever JSON can hold). Array names
    may hold slashes; arrays of texts come back as arrays of `str`.
    """

    kind: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HDF5 file beside and rename it; no pickle. Raises DataError when it cannot be written."""
        with writing_sealed(Path(path)) as file:
            file.attrs["format"], file.attrs["kind"] = BUNDLE_FORMAT, self.kind
            for name, values in (("settings", self.settings), ("about", self.about), ("versions", versions())):
                file.attrs[name] = json.dumps(values)
            group = file.create_group("arrays")
            for name, array in self.arrays.items():
                _write_array(group, name, np.asarray(array))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *kinds: str, again: str = "train again") -> Bundle:
        """Read one of these kinds. Raises DataError where it is missing, damaged, of another kind or version.

        Nothing in the file is trusted: a file whose seal is broken is not opened, other files that it refers to are not
        read, and what an array would take is held against what is stored of it before memory is asked for. `again`
        says what to do with a file that cannot be used.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such model; train first")
        if not path.is_file():
            raise DataError(f"{path}: not a file; {again}")
        if not is_sealed(path):
            raise DataError(f"{path}: damaged, no trained model, or made by another version of this project; {again}")
        try:
            bundle, version_of_file = cls._read(path)
        except Exception as error:
            raise DataError(f"{path}: damaged ({one_line(error)}); {again}") from error
        if bundle.kind not in kinds:
            raise DataError(f"{path}: a model of {bundle.kind!r}, not of {some(map(repr, kinds))}; {again}")
        if version_of_file != BUNDLE_FORMAT:
            raise DataError(f"{path}: made by another version of this project; {again}")
        return bundle

    @classmethod
    def _read(cls, path: Path) -> tuple[Bundle, int]:
        with h5py.File(path, "r") as file:
            if elsewhere := stored_elsewhere(file):
                raise DataError(f"{some(elsewhere)} lie in another file")
            settings, about = (json.loads(_text(file, name)) for name in ("settings", "about"))
            if not (isinstance(settings, dict) and isinstance(about, dict)):
                raise DataError("settings that are no names with values")
            datasets: dict[str, h5py.Dataset] = {}

            def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
                if isinstance(item, h5py.Dataset):
                    datasets[name] = item

            file["arrays"].visititems(take)
            _check_sizes(datasets)
            arrays = {name: _read_array(item) for name, item in datasets.items()}
            return cls(_text(file, "kind"), settings, arrays, about), int(file.attrs["format"])

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, without it."""
        return under(self.arrays, prefix)


def _write_array(group: h5py.Group, name: str, array: np.ndarray) -> None:
    """As `helpers.write_array`, and a single number too, which HDF5 does not compress."""
    if array.ndim == 0 and array.dtype.kind not in "OUT":
        group.create_dataset(name, data=array)
    else:
        write_array(group, name, array)


def _read_array(dataset: h5py.Dataset) -> np.ndarray:
    """What `_write_array` wrote."""
    return read_array(dataset) if dataset.ndim else dataset[()]


def _check_sizes(datasets: Mapping[str, h5py.Dataset]) -> None:
    """Raises DataError for what are not numbers, and for more values than can be stored there, or fit into memory."""
    free, total = free_memory(), 0
    for name, dataset in datasets.items():
        if dataset.dtype.kind not in "iufb":
            raise DataError(f"{name} holds {dataset.dtype}, not numbers")
        needed = dataset.size * dataset.dtype.itemsize
        chunk = int(np.prod(dataset.chunks or (0,), dtype=object)) * dataset.dtype.itemsize
        if max(needed, chunk if needed else 0) > MOST_PACKED * dataset.id.get_storage_size():
            raise DataError(f"{name} claims {text_size(max(needed, chunk))}, of which the file holds nothing")
        total += needed
    if total > free:
        raise DataError(f"its arrays take {text_size(total)}, but {text_size(free)} of memory are free")


def _text(file: h5py.File, name: str) -> str:
    stored = file.attrs.get_id(name)
    if stored.shape != () or h5py.check_string_dtype(stored.dtype) is None:
        raise DataError(f"{name} is not a text")
    return str(file.attrs[name])


class Saved(Protocol):
    """An estimator that a file can hold once it is fitted."""

    KIND: ClassVar[str]

    def to_bundle(self) -> Bundle:
        """Everything that `predict` or `sample` needs, as plain data of kind `KIND`."""

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Self:
        """The fitted estimator again."""


AnySaved = TypeVar("AnySaved", bound=Saved)


def save_model(path: str | os.PathLike[str], model: Saved, **about: Any) -> None:
    """Write a fitted model as one HDF5 file; `about` says what it was trained on. Raises DataError as `Bundle.save`."""
    replace(model.to_bundle(), about=about).save(path)


def load_model(path: str | os.PathLike[str], *classes: type[AnySaved]) -> tuple[AnySaved, dict[str, Any]]:
    """The fitted model, of the one of `classes` that the file names, and its `about`. Raises DataError as `Bundle`."""
    known = {made.KIND: made for made in classes}
    bundle = Bundle.load(path, *known)
    try:
        _check_finite(bundle.arrays)
        return known[bundle.kind].from_bundle(bundle), bundle.about
    except Exception as error:
        raise DataError(f"{path}: damaged ({one_line(error)}); train again") from error


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{name} holds NaN or infinite values")


KINDS = {"names": "O", "texts": "O", "numbers": "iuf", "whole": "iu"}  # of arrays, with their dtypes


def check_arrays(arrays: Mapping[str, np.ndarray], layout: Mapping[str, str], **sizes: int) -> dict[str, int]:
    """Hold arrays of a file against their layout, for instance `{"genes": "names G", "weights": "numbers R G"}`.

    The first word is of KINDS (names are texts, each there once), each other an axis, which has the same length
    wherever it stands, and that of `sizes` where it is given there. Returns the lengths. Raises DataError for an array
    that is missing or does not fit.
    """
    for name, words in layout.items():
        kind, *axes = words.split()
        if name not in arrays:
            raise DataError(f"{name} is missing")
        array = arrays[name]
        fits = array.dtype.kind in KINDS[kind] and array.ndim == len(axes)
        if not fits or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, array.shape, strict=True)):
            raise DataError(f"{name} holds {array.dtype} {array.shape}, which are no {words}")
        if kind == "names" and len(set(array)) < len(array):
            raise DataError(f"{name} holds names that come twice")
    return sizes


def check_codes(codes: np.ndarray, n: int, name: str) -> None:
    """Raises DataError unless these whole numbers are positions among `n`."""
    if len(codes) and not 0 <= codes.min() <= codes.max() < n:
        raise DataError(f"{name} points outside its {n} names")


def check_module(make: Callable[[], torch.nn.Module], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises DataError unless arrays are the parameters of what `make` makes; nothing is allocated to see it."""
    with torch.device("meta"):
        tensors = make().state_dict()
    wanted = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in tensors.items()}
    held = {name: (array.shape, array.dtype.kind == "f") for name, array in arrays.items()}
    if wanted != held or any(array.dtype.kind == "O" for array in arrays.values()):
        raise DataError("the parameters of a network are not of the shapes that its settings say")


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def module_arrays(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The parameters and buffers of a torch module as arrays of a bundle, under `prefix/`."""
    return {f"{prefix}/{name}": tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def load_module(module: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Put these parameters and buffers (`Bundle.under`) into the module; gives it back in evaluation mode."""
    module.load_state_dict({name: torch.as_tensor(np.asarray(array)) for name, array in arrays.items()})
    return module.eval()


def versions() -> dict[str, str]:
    """The versions that a file was made with."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "anndata": version("anndata"),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Cells, tables and pictures
# ---------------------------------------------------------------------------------------------------------------------


def read_h5ad(path: str | os.PathLike[str], backed: Literal["r"] | None = None) -> ad.AnnData:
    """`anndata.read_h5ad`. Raises DataError for a file that is missing or broken, or takes values from another file."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name an .h5ad file")
    try:
        with h5py.File(path, "r") as file:
            elsewhere = stored_elsewhere(file)
        if not elsewhere:
            return ad.read_h5ad(path, backed=backed)
    except Exception as error:
        raise DataError(f"{path}: not an .h5ad file, or a broken one ({one_line(error)})") from error
    raise DataError(f"{path}: {some(elsewhere)} lie in another file; write them into this one")


def checked_matrix(X: Any, where: str, cells: pd.Index) -> sp.csr_matrix:
    """Cells x features as CSR, float32; `cells` are their names. Raises DataError, which begins with `where`.

    It does for texts, values that are NaN or infinite, and places of sparse values that lie outside the matrix.
    """
    if not sp.issparse(X):
        X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "iufb":
        raise DataError(f"{where}: holds {X.dtype} in {X.ndim} dimensions, not numbers of cells x features")
    if sp.issparse(X):
        try:
            X.check_format(full_check=True)
        except ValueError as error:
            raise DataError(f"{where}: damaged, its sparse values have no valid places ({one_line(error)})") from error
    with np.errstate(over="ignore"):  # seen below
        matrix = sp.csr_matrix(X, dtype=np.float32)
    if not np.isfinite(matrix.data).all():
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[~np.isfinite(matrix.data)]
        raise DataError(f"{where}: NaN or infinite values in cells {some(cells[np.unique(rows)])}")
    return matrix


def write_cells(
    path: str | os.PathLike[str],
    cells: ad.AnnData,
    block: Callable[[slice], np.ndarray] | None = None,
    matrices: Sequence[str] = ("X",),
    *,
    sparse: bool = False,
) -> None:
    """Write cells as `.h5ad`, beside and renamed. Raises DataError when the disk is full or read-only.

    `cells` is written as it is, compressed. With `block` it holds the labels alone: `block(rows)` gives the values of a
    slice of cells (rows x features, float32). They are written once and are found under each of `matrices` ("X",
    "layers/NAME"), dense and plain, so that the whole matrix is never in memory; or with `sparse` as CSR, which is in
    memory compressed. Raises DataError as well for values that are not finite.
    """
    if block is None:
        checked_matrix(cells.X, f"{path}: not written", cells.obs_names)
    with replacing(Path(path)) as temporary:
        if block is None:
            with writing_hdf5(temporary) as file:
                write_elem(file, "/", cells, dataset_kwargs={"compression": "gzip"})
        elif sparse:
            with writing_hdf5(temporary) as file:
                write_elem(file, "/", cells)
                _write_blocks(file, cells.shape, block, matrices, sparse)
        else:
            cells.write_h5ad(temporary)
            print(f"{path}: {text_size(4 * cells.n_obs * cells.n_vars)} on disk")
            with h5py.File(temporary, "a") as file:
                _write_blocks(file, cells.shape, block, matrices, sparse)


def _write_blocks(
    file: h5py.File, shape: tuple[int, int], block: Callable[[slice], np.ndarray], matrices: Sequence[str], sparse: bool
) -> None:
    first, *others = matrices
    for name in matrices:
        file.pop(name, None)
    write = _sparse_rows(file, first, shape) if sparse else _dense_rows(file, first, shape)
    step = max(1, BLOCK_VALUES // max(shape[1], 1))
    for start in tqdm(range(0, shape[0], step), "Writing", unit="block"):
        rows = slice(start, min(start + step, shape[0]))
        values = block(rows)
        if not np.isfinite(values).all():
            raise DataError(f"{file.filename}: not written, the values of cells {rows.start} to {rows.stop} are NaN")
        write(rows, values)
    for name in others:
        file[name] = file[first]  # a second name for the same matrix


def _dense_rows(file: h5py.File, name: str, shape: tuple[int, int]) -> Callable[[slice, np.ndarray], None]:
    """Make an empty matrix as anndata stores it; what comes back puts values into rows of it."""
    dataset = file.create_dataset(name, shape, np.float32)
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return dataset.__setitem__


def _sparse_rows(file: h5py.File, name: str, shape: tuple[int, int]) -> Callable[[slice, np.ndarray], None]:
    """As `_dense_rows`, CSR: the rows come one after the other."""
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    packed: dict[str, Any] = {"maxshape": (None,), "chunks": (1 << 16,), "compression": "gzip", "shuffle": True}
    data = group.create_dataset("data", (0,), np.float32, **packed, compression_opts=1)
    indices = group.create_dataset("indices", (0,), np.int32, **packed, compression_opts=1)
    indptr = group.create_dataset("indptr", data=np.zeros(shape[0] + 1, np.int64))

    def write(rows: slice, values: np.ndarray) -> None:
        found, n = sp.csr_matrix(values), len(data)
        for dataset, added in ((data, found.data), (indices, found.indices)):
            dataset.resize((n + found.nnz,))
            dataset[n:] = added
        indptr[rows.start + 1 : rows.stop + 1] = n + found.indptr[1:]

    return write


def read_csv(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`. Raises DataError for a file that is missing, empty, not UTF-8 or not separated by commas."""
    if not Path(path).is_file():
        raise DataError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}; name a csv file")
    with Path(path).open("rb") as file:
        names = file.readline(100_000)
    for separator, word in ((b";", "semicolons"), (b"\t", "tabs")):
        if separator in names and b"," not in names:
            raise DataError(f"{path}: its columns are separated by {word}; write it with commas")
    try:
        return pd.read_csv(path, encoding="utf-8-sig", **options)
    except (OSError, ValueError) as error:
        told = f"{path}: not a csv file in UTF-8 (a text with commas needs quotes): {one_line(error)}"
        raise DataError(told) from error


def show_table(path: str | os.PathLike[str], table: pd.DataFrame, rows: str = "method") -> None:
    """Print the table of results, a line per method (or per metric), and write all of its columns as csv."""
    print(table_text(table, rows))
    write_table(path, table)
    print(f"{path} written")


def table_text(table: pd.DataFrame, rows: str = "method") -> str:
    """The values of a table of results as text: each with half of its 95 % interval, where it has one."""
    half = (table["high"] - table["low"]) / 2
    spread = half.map(" ± {:.4f}".format).where(half.notna(), "")
    columns = "metric" if rows == "method" else "method"
    wide = table.assign(text=table["value"].map("{:.4f}".format) + spread)
    return wide.pivot_table("text", rows, columns, aggfunc="first", sort=False).rename_axis(None, axis=1).to_string()


def picture_of_methods(
    found: pd.DataFrame, baseline: float, *, trivial: Iterable[str], best: str | None, title: str, xlabel: str
) -> Figure:
    """The picture of a system: one point per method, the best on top, and the baseline as a line.

    `found` has the columns `value`, `low` and `high` by method. Grey are the `trivial` answers, blue the methods,
    orange the `best` of them, black the baseline.
    """
    found, grey = found.sort_values("value", ascending=False, kind="stable"), set(trivial)
    with plain_style():
        figure = Figure(figsize=(8, 1.2 + 0.24 * max(len(found), 6)), layout="constrained")
        axes = figure.subplots()
        for i, (name, row) in enumerate(found.iterrows()):
            colour = ORANGE if name == best else GREY if name in grey else BLUE
            sides = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            axes.errorbar(row["value"], i, xerr=sides, fmt="o", ms=7, color=colour, lw=1.5)
        axes.axvline(baseline, color="black", lw=1.2)
        side = "left" if baseline < np.mean(axes.get_xlim()) else "right"
        axes.text(baseline, -0.5, " the baseline ", va="bottom", ha=side, fontsize=8)
        axes.set_yticks(range(len(found)), found.index)
        axes.set(ylim=(-0.6, len(found) - 0.4), xlabel=xlabel)
        axes.set_title(title, loc="left")
    return figure


def save_pictures(folder: str | os.PathLike[str], figures: Mapping[str, Figure]) -> None:
    """Write each figure as `folder/NAME.png` and say so. Raises DataError when they cannot be written."""
    for name, figure in figures.items():
        save_figure(figure, Path(folder) / f"{name}.png")
    print(f"{folder}: {some(f'{name}.png' for name in figures)} written")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------

Verb = Callable[[argparse.Namespace], None]


@dataclass(frozen=True)
class System:
    """What a system's command line is made of.

    `verbs` maps a name to the function that does it, whose first line of documentation is its help. `methods` are the
    names that `--method` takes, `method` its default. `data` is the help of `--data`, `result` that of the `--out` of
    `predict`, `sample` and `repro`. With `data_needed`, `--data` must be given.
    """

    name: str
    description: str
    verbs: Mapping[str, Verb]
    methods: Sequence[str]
    method: str
    data: str
    result: str
    data_needed: bool = True


def add_options(parser: argparse.ArgumentParser, system: System, verb: str) -> None:
    """The options that all systems have under the same names, as far as `verb` needs them."""
    parser.add_argument("--data", type=Path, metavar="PATH", required=system.data_needed, help=system.data)
    several: dict[str, Any] = {"nargs": "+", "default": list(system.methods)} if verb == "evaluate" else {}
    parser.add_argument(
        "--method",
        choices=system.methods,
        metavar="NAME",
        help=f"{', '.join(system.methods)}; default {'all' if several else system.method}",
        **{"default": system.method, **several},
    )
    if verb == "evaluate":
        parser.add_argument("--out", type=Path, metavar="FILE", help="the table, as csv; default in --work")
        parser.add_argument("--pictures", type=Path, metavar="DIR", help="folder for pictures; default --work")
    if verb in ("predict", "sample", "repro"):
        parser.add_argument("--out", type=Path, metavar="FILE", help=f"{system.result}; default beside the model")
    work = Path("build") / system.name
    parser.add_argument(
        "--work", type=Path, default=work, metavar="DIR", help=f"folder of the trained models; default {work}"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="the same seed, the same files; default 0"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where torch computes; default auto")


def parsers(system: System) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `python -m challenges.NAME VERB ...`, and that of each verb with the common options."""
    parser = argparse.ArgumentParser(prog=f"python -m challenges.{system.name}", description=system.description)
    parts = parser.add_subparsers(dest="verb", required=True, metavar="|".join(system.verbs))
    made = {}
    for verb, function in system.verbs.items():
        text = (function.__doc__ or "").strip().splitlines()[0]
        made[verb] = parts.add_parser(verb, help=text, description=text)
        add_options(made[verb], system, verb)
    return parser, made


def run(verb: Verb, options: argparse.Namespace) -> None:
    """Run a verb; input that cannot be used ends in `error: ...` and exit status 1."""
    with command_line():
        verb(options)
