"""What is tortured: jobs that read small demo data and write files, each with two seeds that give other files.

In: a folder for inputs. Out: `Job`s. A sources' host on the loopback address is part of it, slow on purpose.
"""

from __future__ import annotations

import os
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet
import scipy.sparse as sp
import torch._dynamo

import helpers
import method
from challenges.common import Bundle
from challenges.drug_response.__main__ import main as drug_response
from challenges.modality.__main__ import main as modality
from challenges.synthesis import training
from challenges.synthesis.__main__ import main as synthesis
from contract import CRUNCH
from helpers import DataError
from workbench.commands import command_line
from workbench.simulate import simulate
from workbench.sources import fetch, steps
from workbench.sources.catalogue import RawFile, Source

IMPORTED_EARLY = (pyarrow.parquet, torch._dynamo)  # noqa: SLF001 - before the fork, not in every worker
CHECKPOINT_EVERY, STEPS = 2, 6  # of the training of synthesis here
PIECE, PAUSE = 1 << 16, 0.004  # what the slow host sends at a time, and how long it waits then
ASKED = "asked"  # where the host writes down from which byte on it was asked for a file


@dataclass(frozen=True)
class Job:
    """`prepare(inputs)` makes what `run(inputs, out, seed)` reads; what it writes is in `out`.

    A stopped run may keep what is done in the file `unfinished`: `is_whole(file, inputs)` says whether that is as it
    should be, `goes_on(said, inputs, size)` whether the next run, which said this, went on from it.
    """

    name: str
    prepare: Callable[[Path], object]
    run: Callable[[Path, Path, int], object]
    replaces: bool = True  # an older result
    unfinished: str = ""
    is_whole: Callable[[Path, Path], bool] | None = None
    goes_on: Callable[[str, Path, int], bool] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# The crunch
# ---------------------------------------------------------------------------------------------------------------------


def _crunch(inputs: Path) -> None:
    for seed in (0, 1):
        simulate(inputs / f"data{seed}", cells=600, genes=120, perturbations=8, counts=False, seed=seed)


def _train(inputs: Path, out: Path, seed: int) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        method.train(inputs / f"data{seed}", out, seed=seed)
    for warning in said:  # a model that cannot be saved is returned all the same
        if "not saved" in str(warning.message):
            raise DataError(str(warning.message))


def _trained(inputs: Path) -> None:
    _crunch(inputs)
    for seed in (0, 1):
        method.train(inputs / f"data{seed}", inputs / f"resources{seed}", seed=seed)


def _infer(inputs: Path, out: Path, seed: int) -> None:
    files = out / CRUNCH.prediction_file, out / CRUNCH.predicted_proportions_file
    challenge = helpers.load_challenge(inputs / f"data{seed}")
    names = [*challenge.targets, *(f"NEW{i}" for i in range(200))]
    method.infer(inputs / f"data{seed}", out, *files, inputs / f"resources{seed}", names, challenge.genes_to_predict)


def _local_split(inputs: Path, out: Path, seed: int) -> None:
    helpers.local_split(inputs / f"data{seed}" / CRUNCH.train_file, out, 0.3, seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# The sister systems
# ---------------------------------------------------------------------------------------------------------------------


def _responses(inputs: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(cell_type, f"D{i:02}") for cell_type in ("B", "T") for i in range(12)]
    table = pd.DataFrame(random.normal(size=(len(pairs), 30)), columns=[f"G{i}" for i in range(30)])
    about = pd.DataFrame(pairs, columns=["cell_type", "sm_name"]).assign(sm_lincs_id="", SMILES="", control=False)
    pd.concat([about, table], axis=1)[:-2].to_parquet(inputs / "de_train.parquet")
    about[-2:].reset_index()[["cell_type", "sm_name"]].rename_axis("id").to_csv(inputs / "id_map.csv")


def _pairs(inputs: Path) -> None:
    random = np.random.default_rng(0)
    factors = random.normal(size=(60, 3))
    for part, kind, n in (("mod1", "GEX", 30), ("mod2", "ADT", 12)):
        values = np.maximum(factors @ random.normal(size=(3, n)) + random.normal(0, 0.3, (60, n)), 0)
        _cells(values, [f"{kind}{i}" for i in range(n)], {}, feature_types=kind).write_h5ad(
            inputs / f"set.train_{part}.h5ad"
        )


def _counts(inputs: Path) -> None:
    random = np.random.default_rng(0)
    counts = 1 + random.poisson(random.gamma(1.0, 4.0, (3, 30))[np.arange(120) % 3])
    types = [f"type {i % 3}" for i in range(120)]
    _cells(counts, [f"G{i}" for i in range(30)], {"cell_type": types}).write_h5ad(inputs / "cells.h5ad")


def _cells(values: np.ndarray, names: list[str], obs: dict[str, list[str]], **var: str) -> ad.AnnData:
    cells = pd.DataFrame(obs, index=[f"cell_{i}" for i in range(len(values))])
    return ad.AnnData(sp.csr_matrix(values.astype(np.float32)), cells, pd.DataFrame(var, index=names))


def _sister(main: Callable[[list[str]], Any], data: str, *words: str) -> Callable[[Path, Path, int], None]:
    def train(inputs: Path, out: Path, seed: int) -> None:
        training.CHECKPOINT_EVERY = CHECKPOINT_EVERY
        main(
            ["train", "--data", str(inputs / data), "--work", str(out), "--seed", str(seed), "--device", "cpu", *words]
        )

    return train


def _is_checkpoint(file: Path, inputs: Path) -> bool:
    try:
        return bool(Bundle.load(file, training.KIND))
    except DataError:
        return False


def _resumed(said: str, inputs: Path, size: int) -> bool:
    return "Resumed at step" in said


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


def _offered(inputs: Path) -> None:
    """A source as its host offers it: gene sets in a zip, and 3 MB that nothing makes smaller."""
    lines = [f"set {i}\tR-{i}\t" + "\t".join(f"G{j}" for j in range(i, i + 20)) for i in range(500)]
    with zipfile.ZipFile(inputs / "sets.zip", "w") as packed:
        packed.writestr("sets.gmt", "\n".join(lines))
        packed.writestr("noise", np.random.default_rng(0).bytes(3_000_000))


def _fetch(port: int, inputs: Path, out: Path, seed: int) -> None:
    raw = RawFile("sets.zip", f"http://127.0.0.1:{port}{inputs}/sets.zip", 3_000_000)
    names = ("first", "second")
    made = {
        name: Source(name, name, "reactome", (raw,), f"features/{name}.gmt.gz", 500, "CC0", "None") for name in names
    }
    steps.SOURCES = made
    steps._today = lambda: "2026-01-31"  # noqa: SLF001 - the same record at midnight
    fetch.WAITS = (0.01, 0.01, 0.01, 0.01)  # type: ignore[assignment]
    os.environ["NO_PROXY"] = "127.0.0.1"
    steps.get([names[seed]], out / "resources", out / "cache")


def _is_beginning(file: Path, inputs: Path) -> bool:
    return (inputs / "sets.zip").read_bytes().startswith(file.read_bytes())


def _asked_for_the_rest(said: str, inputs: Path, size: int) -> bool:
    """Whether the last request, if any was needed, began where the file ended."""
    return (inputs / ASKED).read_text().split()[-1] == str(size) or size == (inputs / "sets.zip").stat().st_size


class _SlowHost(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        file = Path(self.path)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, size = int(span[1]) if span else 0, file.stat().st_size
        with file.with_name(ASKED).open("a") as log:
            log.write(f"{start}\n")
        self.send_response(416 if start >= size else 206 if span else 200)
        self.send_header("Content-Range", f"bytes {'*' if start >= size else f'{start}-{size - 1}'}/{size}")
        self.send_header("Content-Length", str(max(0, size - start)))
        self.end_headers()
        body = file.read_bytes()[start:]
        try:
            for i in range(0, len(body), PIECE):
                self.wfile.write(body[i : i + PIECE])
                time.sleep(PAUSE)
        except OSError:  # who asked was killed
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextmanager
def slow_host() -> Iterator[int]:
    """The port of a host on the loopback address, in a process of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SlowHost)
    pid = os.fork()
    if pid == 0:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.server_close()
    try:
        yield server.server_port
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def jobs(port: int) -> list[Job]:
    """All of them; `port` is that of the slow host."""
    kernel, ridge = (
        _sister(main, "", "--method", name) for main, name in ((drug_response, "kernel"), (modality, "ridge"))
    )
    gan = _sister(synthesis, "cells.h5ad", "--steps", str(STEPS))
    fetched = command_line()(partial(_fetch, port))
    return [
        Job("train", _crunch, _train),
        Job("infer", _trained, _infer),
        Job("local_split", _crunch, _local_split),
        Job("drug_response train", _responses, kernel),
        Job("modality train", _pairs, ridge),
        Job("synthesis train", _counts, gan, True, "gan.checkpoint.h5", _is_checkpoint, _resumed),
        Job("sources get", _offered, fetched, False, "cache/sets.zip.part", _is_beginning, _asked_for_the_rest),
    ]
