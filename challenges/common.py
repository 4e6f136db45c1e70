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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from helpers import DataError, read_array, replacing, some, text_size, write_array
from workbench.evaluation.intervals import write_table
from workbench.pictures.style import save_figure

BUNDLE_FORMAT = 2
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
        with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"], file.attrs["kind"] = BUNDLE_FORMAT, self.kind
            for name, values in (("settings", self.settings), ("about", self.about), ("versions", versions())):
                file.attrs[name] = json.dumps(values)
            group = file.create_group("arrays")
            for name, array in self.arrays.items():
                if np.ndim(array) == 0:  # HDF5 compresses no scalar
                    group.create_dataset(name, data=array)
                else:
                    write_array(group, name, np.asarray(array))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *kinds: str) -> Bundle:
        """Read one of these kinds. Raises DataError where it is missing, broken, of another kind or version."""
        if not Path(path).exists():
            raise DataError(f"{path}: no such model; train first")
        again = "train again"
        try:
            with h5py.File(path, "r") as file:
                if (kind := file.attrs.get("kind")) not in kinds:
                    raise DataError(f"{path}: a model of {kind!r}, not of {some(map(repr, kinds))}; {again}")
                if file.attrs["format"] != BUNDLE_FORMAT:
                    raise DataError(f"{path}: made by another version of this project; {again}")
                arrays: dict[str, np.ndarray] = {}

                def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
                    if isinstance(item, h5py.Dataset):
                        arrays[name] = item[()] if item.shape == () else read_array(item)

                file["arrays"].visititems(take)
                return cls(str(kind), json.loads(file.attrs["settings"]), arrays, json.loads(file.attrs["about"]))
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: not a trained model, or a broken file ({error}); {again}") from error

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, without it."""
        return under(self.arrays, prefix)


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
    return known[bundle.kind].from_bundle(bundle), bundle.about


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


def write_cells(
    path: str | os.PathLike[str],
    cells: ad.AnnData,
    block: Callable[[slice], np.ndarray] | None = None,
    matrices: Sequence[str] = ("X",),
) -> None:
    """Write cells as `.h5ad`, beside and renamed. Raises DataError when the disk is full or read-only.

    `cells` is written as it is, compressed. With `block` it holds the labels alone: `block(rows)` gives the values of a
    slice of cells (rows x features, float32), which go into each of `matrices` ("X", "layers/NAME"), dense and plain,
    so that the whole matrix is never in memory.
    """
    with replacing(Path(path)) as temporary:
        cells.write_h5ad(temporary, compression="gzip" if block is None else None)
        if block is not None:
            print(f"{path}: {text_size(4 * len(matrices) * cells.n_obs * cells.n_vars)} on disk")
            with h5py.File(temporary, "a") as file:
                _write_blocks(file, cells.shape, block, matrices)


def _write_blocks(
    file: h5py.File, shape: tuple[int, int], block: Callable[[slice], np.ndarray], matrices: Sequence[str]
) -> None:
    file.pop("X", None)
    datasets = [file.create_dataset(name, shape, np.float32) for name in matrices]
    for dataset in datasets:
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    step = max(1, BLOCK_VALUES // max(shape[1], 1))
    for start in tqdm(range(0, shape[0], step), "Writing", unit="block"):
        rows = slice(start, min(start + step, shape[0]))
        values = block(rows)
        for dataset in datasets:
            dataset[rows] = values


def read_csv(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`. Raises DataError for a file that is empty, not UTF-8 or not a table."""
    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a csv file in UTF-8 (a text with commas needs quotes): {error}") from error


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
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="the same seed, the same files; default 0")
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
    try:
        verb(options)
    except DataError as error:
        sys.exit(f"error: {error}")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
