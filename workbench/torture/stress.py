"""Kills, two writers, full disks and little memory: what is left of the files of a job, and after its next run.

In: a `Job`. Out: a `Row` of the table, with a line for every fault. What is right is known from two runs that nothing
disturbed, one for each seed: a file must hold what it held before, or what such a run writes.
"""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from workbench.torture.jobs import Job
from workbench.torture.processes import Outcome, Worker, run

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PAGE = resource.getpagesize()  # bytes, of which a tmpfs gives files whole ones
KILLS_IN_A_ROW = 3  # before a run is left alone
FAULTS = ("incomplete", "lost", "left over", "tracebacks", "crashes", "silent")  # columns that must be 0

Contents = dict[str, bytes]


@dataclass
class Row:
    """A line of the table: what was tried and how often, how often it was refused in one line, and the faults."""

    what: str
    numbers: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def count(self, *columns: str) -> None:
        """One more in each of these columns."""
        for column in columns:
            self.numbers[column] = self.numbers.get(column, 0) + 1

    def fault(self, column: str, line: str) -> None:
        """Count a fault, and keep what it is."""
        self.count(column)
        self.faults.append(f"{self.what}: {column}: {line}")

    def judge(self, outcome: Outcome, where: str, *allowed: str) -> None:
        """A worker must have ended in one of these ways."""
        if outcome.how == "refused":
            self.count("refused")
        if outcome.how not in allowed:
            column = "tracebacks" if outcome.how in ("traceback", "refused") else "crashes"
            self.fault(column, f"{where}: status {outcome.status}: {outcome.last_line}")


class World:
    """A folder with the inputs of a job, and what it writes undisturbed: `wanted[seed]`, in about `seconds`."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.inputs, self.out = job, folder, folder / "inputs", folder / "out"
        self.inputs.mkdir(parents=True)
        self._must(run(partial(job.prepare, self.inputs), folder / "log"))
        self.wanted: list[Contents] = []
        for seed in (0, 1):
            self.begin(None)
            began = time.monotonic()
            self._must(self.run(seed))
            self.seconds = time.monotonic() - began
            self.wanted.append(contents(self.out))
        if self.wanted[0] == self.wanted[1]:
            raise RuntimeError(f"{job.name} writes the same with both seeds: nothing would tell them apart")

    def _must(self, outcome: Outcome) -> None:
        if outcome.how != "well":
            raise RuntimeError(f"{self.job.name} fails undisturbed: {outcome.said}")

    def begin(self, older: int | None) -> None:
        """A new folder to write into, with the result of an older run."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for name, body in (self.wanted[older] if older is not None and self.job.replaces else {}).items():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(body)

    def start(self, seed: int, limits: dict[int, int] | None = None, log: str = "log") -> Worker:
        """Start the job."""
        return Worker(partial(self._work, seed), self.folder / log, limits)

    def run(self, seed: int, limits: dict[int, int] | None = None) -> Outcome:
        """Run the job to its end."""
        return self.start(seed, limits).wait()

    def _work(self, seed: int) -> None:
        tempfile.tempdir = str(self.out)  # what is left there is seen
        self.job.run(self.inputs, self.out, seed)

    def check_files(self, row: Row, before: Contents, seeds: tuple[int, ...], when: str) -> Contents:
        """No file is incomplete, and none has gone; gives what there is."""
        now = contents(self.out)
        for name, body in now.items():
            known = [self.wanted[seed].get(name) for seed in seeds]
            if _is_temporary(name) or name == f"{self.job.unfinished}.version":
                continue
            if name == self.job.unfinished:
                if self.job.is_whole and not self.job.is_whole(self.out / name, self.inputs):
                    row.fault("incomplete", f"{name}, {when}")
            elif body not in (before.get(name), *known):
                row.fault("incomplete", f"{name}, {when}")
        for name in before:
            if name not in now and not _is_temporary(name) and not name.startswith(self.job.unfinished or "\0"):
                row.fault("lost", f"{name} is gone, {when}")
        return now

    def is_done(self, now: Contents, seed: int) -> bool:
        """Whether the run with this seed has written all its files."""
        return all(now.get(name) == body for name, body in self.wanted[seed].items())


def contents(folder: Path) -> Contents:
    """All files of a folder and those below, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _is_temporary(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith((".partial", ".lock"))


# ---------------------------------------------------------------------------------------------------------------------
# Kills
# ---------------------------------------------------------------------------------------------------------------------


def kills(world: World, n: int, chance: random.Random) -> Row:
    """`n` signals at random moments; half of them aimed at the moments after a temporary file appears."""
    row = Row(f"kills of {world.job.name}", {"tried": 0})
    while (left := n - row.numbers["tried"]) > 0:
        which = chance.randrange(2)
        world.begin(1 - which)
        for _ in range(min(KILLS_IN_A_ROW, left)):
            _kill(world, row, which, chance)
        _next_run(world, row, which)
    return row


def _kill(world: World, row: Row, which: int, chance: random.Random) -> None:
    before, number = contents(world.out), chance.choice(SIGNALS)
    worker, began = world.start(which), time.monotonic()
    if chance.random() < 0.5:
        worker.ended(chance.uniform(0, world.seconds))
    else:
        known = _temporaries(world.out)
        while not worker.ended(0.001) and _temporaries(world.out) <= known:
            pass
        worker.ended(chance.uniform(0, 0.02))
    when = f"{number.name} after {time.monotonic() - began:.3f} s"
    if worker.stop(number):
        row.count("tried")
    row.judge(worker.wait(), when, "stopped", "well")
    now = world.check_files(row, before, (which,), when)
    if any(map(_is_temporary, now)):
        row.count("in mid-write")
    kept, wanted = world.job.unfinished, world.wanted[which]
    is_further = any(now.get(name) == body != before.get(name) for name, body in wanted.items())
    if kept in before and len(now.get(kept, b"")) < len(before[kept]) and not is_further:
        row.fault("lost", f"{kept} is gone or shorter, {when}")


def _temporaries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob(".*") if _is_temporary(path.name)}


def _next_run(world: World, row: Row, which: int) -> None:
    """Nothing disturbs it: it goes on from what was kept, and leaves what it writes and nothing else."""
    before, kept = contents(world.out), world.job.unfinished
    outcome = world.run(which)
    row.judge(outcome, f"{world.job.name}, the next run", "well")
    now, wanted = contents(world.out), world.wanted[which]
    for name in sorted(wanted.keys() | now.keys()):
        if name not in wanted:
            row.fault("left over", f"{name} after the next run")
        elif now.get(name) != wanted[name]:
            row.fault("incomplete" if name in now else "lost", f"{name} after the next run")
    size = len(before.get(kept, b""))
    goes_on = world.job.goes_on is None or world.job.goes_on(outcome.said, world.inputs, size)
    if size and not world.is_done(before, which) and not goes_on:
        row.fault("lost", f"{kept}: the next run began anew")


# ---------------------------------------------------------------------------------------------------------------------
# Two writers, a full disk, little memory
# ---------------------------------------------------------------------------------------------------------------------


def two_writers(world: World, n: int, chance: random.Random) -> Row:
    """Two runs with two seeds into one folder: one may be refused; each file is that of one of them."""
    row, job = Row("two writers at once"), world.job
    for _ in range(n):
        world.begin(chance.choice([None, 0, 1]))
        before = contents(world.out)
        first = world.start(0, log="log0")
        first.ended(chance.uniform(0, world.seconds))
        outcomes = [worker.wait() for worker in (first, world.start(1, log="log1"))]
        row.count("tried")
        for outcome in outcomes:
            row.judge(outcome, job.name, "well", "refused")
        well = [world.wanted[i] for i in (0, 1) if outcomes[i].how == "well"]
        if not well:
            row.fault("lost", f"{job.name}: both failed: {outcomes[1].last_line}")
        now = contents(world.out)
        if job.replaces:
            world.check_files(row, before, (0, 1), f"{job.name}, two writers")
        for wanted in [] if job.replaces else well:  # the files of both, and the lines of both in the record
            for name, body in wanted.items():
                if not set(body.split(b"\n")) <= set(now.get(name, b"").split(b"\n")):
                    row.fault("lost", f"{job.name}: {name}, two writers")
        for name in now.keys() - set(before).union(*well):
            row.fault("left over", f"{job.name}: {name}, two writers")
    return row


def full_disk(world: World, n: int, chance: random.Random) -> Row | None:
    """A tmpfs that is full somewhere in the middle, and then grows; None where none can be mounted."""
    row, out = Row("full disk (tmpfs)"), world.out
    for _ in range(n):
        which = chance.randrange(2)
        old, new = (sum(map(_on_disk, world.wanted[i].values())) for i in (1 - which, which))
        size = PAGE + (old if world.job.replaces else 0) + int(new * chance.uniform(0, 1))
        disk = world.folder / "disk"
        disk.mkdir(exist_ok=True)
        if not _mount(disk, f"size={size}"):
            return None
        try:
            world.out = disk / "out"
            world.begin(1 - which)
            _disturbed(world, row, which, {})
            _mount(disk, "remount,size=1g")
            _next_run(world, row, which)
        finally:
            world.out = out
            subprocess.run(["umount", str(disk)], check=True)
    return row


def _on_disk(body: bytes) -> int:
    return -(-len(body) // PAGE) * PAGE


def _mount(folder: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    return done.returncode == 0


def file_size(world: World, n: int, chance: random.Random) -> Row:
    """No file may be larger than a part of the largest: as a full disk."""
    row, largest = Row("file size limit"), max(len(body) for wanted in world.wanted for body in wanted.values())
    for _ in range(n):
        which = chance.randrange(2)
        world.begin(1 - which)
        _disturbed(world, row, which, {resource.RLIMIT_FSIZE: int(largest * chance.uniform(0, 1))})
        _next_run(world, row, which)
    return row


def little_memory(world: World, n: int, chance: random.Random) -> Row:
    """A limit on the address space: 30 MB to 1 GB beyond what the imports take."""
    row = Row("memory limit (RLIMIT_AS)")
    for _ in range(n):
        which = chance.randrange(2)
        world.begin(1 - which)
        _disturbed(world, row, which, {resource.RLIMIT_AS: int(10 ** chance.uniform(7.5, 9))})
        _next_run(world, row, which)
    return row


def _disturbed(world: World, row: Row, which: int, limits: dict[int, int]) -> None:
    """A run that may be refused: then it leaves what there was, and no temporary file."""
    before = contents(world.out)
    outcome = world.run(which, limits)
    row.count("tried")
    when = f"{world.job.name}, {limits or 'full disk'}"
    row.judge(outcome, when, "well", "refused")
    now = world.check_files(row, before, (which,), when)
    if outcome.how == "well" and not world.is_done(now, which):
        row.fault("incomplete", f"ended well without its files, {when}")
    for name in filter(_is_temporary, now.keys() - before.keys()):
        row.fault("left over", f"{name}, {when}")


def stress(job: Job, n_kills: int, n_others: int, seed: int, folder: Path) -> list[Row]:
    """All of it for one job."""
    world, chance = World(job, folder), random.Random(f"{job.name} {seed}")  # noqa: S311
    rows = [kills(world, n_kills, chance)]
    rows += [
        row for part in (two_writers, full_disk, file_size, little_memory) if (row := part(world, n_others, chance))
    ]
    return rows
