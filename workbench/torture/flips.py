"""Single flipped bytes in the training file's structure, in models and in bundles: said, or without effect.

In: files that a run of `jobs` made. Out: rows of the table. A flip is `refused` (in one line), has `no effect` on what
is read, or is silent: `unseeable` where it hit a stored value, which is then still within its range, and else a fault.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

import helpers
import method
from challenges.common import load_model
from challenges.drug_response.models import CLASSES
from challenges.modality.models import ReducedModel
from challenges.synthesis.models import CellGAN
from contract import CRUNCH
from helpers import DataError
from workbench.commands import one_line
from workbench.torture import jobs
from workbench.torture.processes import Worker, run
from workbench.torture.stress import Row

BATCH = 50  # flips of one worker
MEMORY = 4 << 30  # bytes that a worker may take beyond the imports
SECONDS = 20  # that a flip may take
SHARES = {"structure": 4, "indptr": 2, "indices": 2, "texts": 1}  # of the flips in the training file
Span = tuple[int, int, str]


@dataclass(frozen=True)
class Target:
    """A file that `read` reads, with a digest of all that it gives; `prepare` makes it."""

    what: str
    prepare: Callable[[Path], object]
    file: str
    read: Callable[[Path], object]
    share: float  # of all flips
    is_structured: bool = False  # the flips go into its structure, as SHARES says


def _train_file(path: Path) -> list[object]:
    challenge = helpers.load_challenge(path.parent)
    stats = helpers.perturbation_stats(path, by_state=True)
    pool = helpers.read_cells(path, helpers.pool_rows(challenge.obs, seed=0))
    return [challenge.obs, challenge.genes, *vars(stats).values(), helpers.dense(pool.X), pool.obs]


def _model(path: Path) -> list[object]:
    model = method.Predictor.load(path, like=method.Predictor.default())
    names = [f"NEW{i}" for i in range(3)] + list(getattr(model.expression, "names_", []))[:3]
    means = model.predict_means(names)
    cells = model.cells.for_genes(means.columns)
    return [means, model.predict_proportions(names), cells.sample(names[0], means.to_numpy(np.float32)[0], 20)]


def _bundle(*classes: Any) -> Callable[[Path], list[object]]:
    def read(path: Path) -> list[object]:
        model, about = load_model(path, *classes)
        bundle = model.to_bundle()
        return [bundle.settings, about, *bundle.arrays.values()]

    return read


def _sister(prepare: Callable[[Path], None], train: Callable[[Path, Path, int], None]) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        prepare(folder)
        train(folder, folder, 0)

    return made


def targets() -> list[Target]:
    """All of them."""
    listed = {job.name: job for job in jobs.jobs(0)}
    bundles = {
        "drug_response train": ("kernel.h5", CLASSES),
        "modality train": ("GEX_ADT_ridge.h5", (ReducedModel,)),
        "synthesis train": ("gan.h5", (CellGAN,)),
    }
    made = [
        Target("flips: training file", listed["train"].prepare, f"data0/{CRUNCH.train_file}", _train_file, 0.5, True),
        Target("flips: model.h5", listed["infer"].prepare, "resources0/model.h5", _model, 0.3),
    ]
    for name, (file, classes) in bundles.items():
        prepare = _sister(listed[name].prepare, listed[name].run)  # type: ignore[arg-type]
        made.append(Target("flips: sister bundles", prepare, file, _bundle(*classes), 0.2 / 3))
    return made


def tasks(n: int, seed: int, folder: Path) -> list[Callable[[], list[Row]]]:
    """One for each file."""
    listed = targets()
    return [
        partial(flips, target, round(n * target.share), seed, folder / f"flips{i}") for i, target in enumerate(listed)
    ]


def flips(target: Target, n: int, seed: int, folder: Path) -> list[Row]:
    """`n` flips, each in a file that is whole but for it."""
    row, chance = Row(target.what), random.Random(f"{target.file} {seed}")  # noqa: S311
    folder.mkdir(parents=True)
    made = run(partial(target.prepare, folder), folder / "log")
    if made.how != "well":
        raise RuntimeError(f"{target.what}: {made.said}")
    path = folder / target.file
    body, spans = path.read_bytes(), stored_values(path)
    places = list(_places(len(body), spans, n, chance, target.is_structured))
    run(partial(_try, target, path, body, [None]), folder / "log")
    if not (wanted := _answers(path)[0]["digest"]):
        raise RuntimeError(f"{target.what}: the whole file is refused: {_answers(path)[0]}")
    while places:
        worker = Worker(partial(_try, target, path, body, places[:BATCH]), folder / "log", {resource.RLIMIT_AS: MEMORY})
        outcome = worker.wait(SECONDS * BATCH)
        answers = _answers(path)
        for place, answer in zip(places, answers, strict=False):
            _judge(row, answer, wanted, place, spans)
        if len(answers) < min(BATCH, len(places)):
            place = places[len(answers)]
            row.count("tried")
            row.fault("crashes", f"{_where(place, spans)}: status {outcome.status} {outcome.last_line}")
            answers.append({})
        places = places[len(answers) :]
    return [row]


def stored_values(path: Path) -> list[Span]:
    """Where the values of each dataset lie in an HDF5 file: (first byte, end, name), sorted."""
    spans: list[Span] = []

    def take(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.chunks is None:
            spans.append((item.id.get_offset() or 0, item.id.get_storage_size(), name))
        else:
            chunks = [item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks())]
            spans.extend((chunk.byte_offset, chunk.size, name) for chunk in chunks)

    with h5py.File(path, "r") as file:
        file.visititems(take)
    body = path.read_bytes()
    for found in re.finditer(b"GCOL", body):  # HDF5's heaps of texts
        size = int.from_bytes(body[found.start() + 8 : found.start() + 16], "little")
        spans.append((found.start() + 16, size - 16, "texts"))
    return sorted((start, start + size, name) for start, size, name in spans if start)


def _places(size: int, spans: list[Span], n: int, chance: random.Random, is_structured: bool) -> Iterator[tuple]:
    """Bytes of the file and what they are combined with: never 0, so that each flip changes something."""
    kinds: dict[str, list[int]] = {kind: [] for kind in SHARES} if is_structured else {"all": list(range(size))}
    for place in range(size if is_structured else 0):
        if (name := _where((place, 0), spans).removeprefix("X/")) in SHARES:
            kinds[name].append(place)
    for kind, bytes_of_it in kinds.items():
        share = SHARES[kind] / sum(SHARES.values()) if is_structured else 1
        for _ in range(round(n * share)):
            yield chance.choice(bytes_of_it), 1 << chance.randrange(8)


def _where(place: tuple[int, int], spans: list[Span]) -> str:
    return next((name for start, end, name in spans if start <= place[0] < end), "structure")


def _try(target: Target, path: Path, body: bytes, places: Sequence[tuple[int, int] | None]) -> None:
    """Write down one line for each flip: the digest of what is read, or what is said."""
    warnings.simplefilter("ignore")
    path.with_suffix(".answers").write_text("")
    for place in places:
        changed = bytearray(body)
        if place is not None:
            changed[place[0]] ^= place[1]
        path.write_bytes(changed)
        signal.alarm(SECONDS)
        answer = {"digest": "", "said": "", "kind": ""}
        try:
            answer["digest"] = digest(target.read(path))
        except DataError as error:
            answer["said"] = one_line(error)
        except Exception as error:  # noqa: BLE001 - it is what is counted
            answer |= {"said": one_line(error)[:200], "kind": type(error).__name__}
        signal.alarm(0)
        with path.with_suffix(".answers").open("a") as file:
            file.write(f"{json.dumps(answer)}\n")


def _answers(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.with_suffix(".answers").read_text().splitlines()]


def digest(parts: Any) -> str:
    """A hash of tables, arrays and plain data."""
    found = hashlib.sha256()
    for part in parts:
        values = part.to_numpy() if isinstance(part, pd.DataFrame | pd.Series | pd.Index) else part
        labels = [part.index, part.columns] if isinstance(part, pd.DataFrame) else []
        is_numbers = isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
        found.update(values.tobytes() if is_numbers else repr([*map(list, labels), values]).encode())
    return found.hexdigest()


def _judge(row: Row, answer: dict[str, str], wanted: str, place: tuple[int, int], spans: list[Span]) -> None:
    row.count("tried")
    where = _where(place, spans)
    if answer["kind"]:
        row.fault("tracebacks", f"{where} at byte {place[0]}: {answer['kind']}: {answer['said']}")
    elif answer["said"]:
        row.count("refused")
    elif answer["digest"] == wanted:
        row.count("no effect")
    elif where == "structure":
        row.fault("silent", f"byte {place[0]} of the structure")
    else:
        row.count("unseeable")
