"""What the sister systems share: where they compute, how they are seeded, how they are saved, how they are called.

In: names, seeds, arrays and torch modules. Out: a device, random streams that depend on a seed and a name alone, one
HDF5 file for a trained model (a bundle), and a command line that ends in a message and never in a traceback for input
that cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from helpers import DataError, read_array, replacing, some, write_array

BUNDLE_FORMAT = 1
DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is the GPU where there is one. Raises DataError for one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there.get(name, False):
        raise DataError(f"--device {name}: not on this machine; there is {some(d for d in there if there[d])}")
    return torch.device(name)


def derived_seed(seed: int, *names: object) -> int:
    """A seed for one purpose (63 bits): the same for the same seed and names, on every machine and in any order."""
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

    `critic` gives one score a row; `real` and `fake` are rows x features, and each row has a mixing share of its own.
    """
    share = torch.rand(len(real), 1, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


# ---------------------------------------------------------------------------------------------------------------------
# Bundles
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A trained model as plain data: `settings` (numbers, texts, lists, dictionaries) and named arrays.

    `kind` says which system made it. Array names may hold slashes; arrays of texts come back as arrays of `str`.
    """

    kind: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HDF5 file beside and rename it; no pickle."""
        with replacing(Path(path)) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"], file.attrs["kind"] = BUNDLE_FORMAT, self.kind
            file.attrs["settings"], file.attrs["versions"] = json.dumps(self.settings), json.dumps(versions())
            group = file.create_group("arrays")
            for name, values in self.arrays.items():
                if np.ndim(values) == 0:  # HDF5 compresses no scalar
                    group.create_dataset(name, data=values)
                else:
                    write_array(group, name, np.asarray(values))

    @classmethod
    def load(cls, path: str | os.PathLike[str], kind: str) -> Bundle:
        """Read one. Raises DataError where it is missing, broken, of another system or of another version."""
        if not Path(path).exists():
            raise DataError(f"{path}: no such bundle; train first")
        again = "train again"
        try:
            with h5py.File(path, "r") as file:
                if (made_by := file.attrs.get("kind")) != kind:
                    raise DataError(f"{path}: a bundle of {made_by!r}, not of {kind!r}; {again}")
                if file.attrs["format"] != BUNDLE_FORMAT:
                    raise DataError(f"{path}: made by another version of this project; {again}")
                arrays: dict[str, np.ndarray] = {}

                def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
                    if isinstance(item, h5py.Dataset):
                        arrays[name] = item[()] if item.shape == () else read_array(item)

                file["arrays"].visititems(take)
                return cls(kind, json.loads(file.attrs["settings"]), arrays)
        except (OSError, KeyError) as error:
            raise DataError(f"{path}: not a bundle, or a broken one ({error}); {again}") from error

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, without it."""
        return under(self.arrays, prefix)


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def module_arrays(module: torch.nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The parameters and buffers of a torch module as arrays of a bundle, under `prefix/`."""
    return {f"{prefix}/{name}": tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def load_module(module: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """The same module with these parameters and buffers (`Bundle.under`), in evaluation mode."""
    module.load_state_dict({name: torch.as_tensor(np.asarray(array)) for name, array in arrays.items()})
    return module.eval()


def versions() -> dict[str, str]:
    """What a bundle was made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "anndata": version("anndata"),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options every verb of every system has."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where torch computes; default auto")
    parser.add_argument("--seed", type=_seed, default=0, help="the same seed, the same files; default 0")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def read_csv(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`. Raises DataError for a file that is empty, not UTF-8 or not a table."""
    try:
        return pd.read_csv(path, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a csv file in UTF-8 (a text with commas needs quotes): {error}") from error


def run(verb: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Run a verb; input that cannot be used ends in `error: ...` and exit status 1."""
    try:
        verb(options)
    except DataError as error:
        sys.exit(f"error: {error}")


def parsers(
    module: str, description: str, verbs: Mapping[str, str]
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """A command line `python -m module VERB ...`: the parser, and that of each verb with the common options."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parts = parser.add_subparsers(dest="verb", required=True, metavar="|".join(verbs))
    made = {}
    for verb, text in verbs.items():
        made[verb] = parts.add_parser(verb, help=text, description=text)
        add_common_options(made[verb])
    return parser, made
