"""The torture itself, a small one: nothing is lost and nothing silent here, and a fault would be seen.

All of it runs in a process of its own, since workers are forked, and the tests before have left threads in this one.
"""

import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest

from workbench.torture import __main__ as torture
from workbench.torture import flips, processes, stress
from workbench.torture.jobs import Job, jobs, slow_host
from workbench.torture.processes import Worker, run
from workbench.torture.stress import Row, World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
BODY = 200_000  # bytes of what the careless job writes


@pytest.fixture(scope="module")
def fresh():
    """Call a function of this file in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda call, *arguments: pool.submit(call, *arguments).result(300)


def chance():
    return random.Random(0)  # noqa: S311


def faults(rows):
    return [fault for row in rows for fault in row.faults]


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is lost
# ---------------------------------------------------------------------------------------------------------------------


def disturbed(name, folder):
    (job,) = (job for job in jobs(0) if job.name == name)
    return stress.stress(job, 4, 1, 0, folder / "job")


def killed(name, n, folder):
    with slow_host() as port:
        (job,) = (job for job in jobs(port) if job.name == name)
        return stress.kills(World(job, folder / "job"), n, chance())


def flipped(n, folder):
    return [row for i, target in enumerate(flips.targets()) for row in flips.flips(target, n, 0, folder / str(i))]


def test_what_is_killed_and_disturbed_loses_nothing(fresh, tmp_path):
    rows = fresh(disturbed, "local_split", tmp_path)
    assert not faults(rows)
    assert rows[0].numbers["tried"] == 4
    assert {row.what for row in rows} >= {"two writers at once", "file size limit", "memory limit (RLIMIT_AS)"}


@pytest.mark.parametrize("name", ["infer", "synthesis train", "sources get"])
def test_what_goes_on_where_it_was_killed_loses_nothing(name, fresh, tmp_path):
    row = fresh(killed, name, 3, tmp_path)
    assert not row.faults
    assert row.numbers["tried"] == 3


def test_flips_are_seen_and_never_crash(fresh, tmp_path):
    rows = fresh(flipped, 18, tmp_path)
    assert not faults(rows)
    assert [row.numbers["tried"] for row in rows] == [18] * 5
    assert rows[0].numbers["refused"] > 4
    assert all(row.numbers == {"tried": 18, "refused": 18} for row in rows[1:]), "models are sealed"


def test_kills_that_are_asked_for_are_shared_among_the_jobs_and_added_up(tmp_path, monkeypatch):
    def counted(job, n_kills, n_others, seed, folder):
        return [Row("kills", {"tried": n_kills}), Row("others", {"tried": n_others, "lost": 1}, ["lost"])]

    monkeypatch.setattr(torture, "stress", counted)
    monkeypatch.setattr(torture, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(flips, "tasks", lambda *_: [])
    rows = torture.torture(23, 2, 0, 0, tmp_path)
    n_jobs = len(jobs(0))
    assert [(row.what, row.numbers["tried"]) for row in rows] == [("kills", 23), ("others", 2 * n_jobs)]
    assert faults(rows) == ["lost"] * n_jobs
    shown = torture.table(rows).splitlines()
    assert shown[-1].split()[:2] == ["all", str(23 + 2 * n_jobs)]
    assert f" {n_jobs} " in shown[-1], "what was lost"


class InThisProcess:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *arguments):
        done = call(*arguments)
        return type("Done", (), {"result": lambda self: done})()


# ---------------------------------------------------------------------------------------------------------------------
# A fault is seen
# ---------------------------------------------------------------------------------------------------------------------


def in_place(inputs, out, seed):
    """What must not be done: no temporary name, and no lock."""
    with (out / "table").open("wb") as file:
        for _ in range(100):
            file.write(bytes([seed]) * (BODY // 100))
            file.flush()
            time.sleep(0.004)


def one_temporary_name(inputs, out, seed):
    (out / "temporary").write_bytes(bytes([seed]))
    time.sleep(0.4)
    (out / "temporary").rename(out / "table")


def scratch_is_left(inputs, out, seed):
    (out / f"scratch{time.monotonic_ns()}").write_text("")
    (out / "table").write_bytes(bytes([seed]))


def raises(inputs, out, seed):
    if (out / "table").exists():
        raise KeyError("table")
    (out / "table").write_bytes(bytes([seed]))


def begins_anew(inputs, out, seed):
    (out / "part").unlink(missing_ok=True)
    (out / "table").write_bytes(bytes([seed]))


def always_the_same(inputs, out, seed):
    (out / "table").write_text("same")


def says_so(said, inputs, size):
    return "goes on" in said


def nothing(inputs):
    pass


def careless(part, writer, n, folder):
    return getattr(stress, part)(World(Job("careless", nothing, writer), folder / "world"), n, chance()).numbers


def after_a_part(folder):
    world, row = World(Job("careless", nothing, begins_anew, unfinished="part", goes_on=says_so), folder / "w"), Row("")
    world.begin(0)
    (world.out / "part").write_bytes(b"half")
    stress._next_run(world, row, 1)
    return row.numbers


def after_a_deletion(folder):
    world, row = World(Job("careless", nothing, begins_anew), folder / "w"), Row("")
    world.begin(0)
    before = stress.contents(world.out)
    (world.out / "table").unlink()
    world.check_files(row, before, (1,), "")
    return row.numbers


@pytest.mark.parametrize(
    ("part", "writer", "n", "fault"),
    [
        ("kills", in_place, 4, "incomplete"),
        ("file_size", in_place, 1, "incomplete"),
        ("two_writers", one_temporary_name, 6, "tracebacks"),
        ("kills", scratch_is_left, 1, "left over"),
        ("file_size", raises, 1, "tracebacks"),
    ],
)
def test_a_careless_writer_is_seen(part, writer, n, fault, fresh, tmp_path):
    assert fresh(careless, part, writer, n, tmp_path).get(fault, 0) > 0


def test_work_that_is_begun_anew_and_files_that_are_gone_are_seen_as_lost(fresh, tmp_path):
    assert fresh(after_a_part, tmp_path / "1") == {"lost": 1}
    assert fresh(after_a_deletion, tmp_path / "2") == {"lost": 1}


def test_jobs_must_write_something_else_with_the_other_seed(fresh, tmp_path):
    with pytest.raises(RuntimeError, match="writes the same with both seeds"):
        fresh(careless, "kills", always_the_same, 1, tmp_path)


def prepare(folder):
    with h5py.File(folder / "file", "w") as file:
        file["values"] = np.zeros(10)


def no_check(path):
    return [path.read_bytes()]


def crash(path):
    with h5py.File(path) as file:
        if file["values"][:].any():
            os._exit(3)
    return [1]


def flips_of(read, folder):
    (row,) = flips.flips(flips.Target("", prepare, "file", read, 1), 60, 0, folder / "flips")
    return row.numbers


def test_flips_that_nobody_looks_for_are_silent_and_those_that_crash_are_counted(fresh, tmp_path):
    numbers = fresh(flips_of, no_check, tmp_path / "1")
    assert numbers["silent"] + numbers.get("unseeable", 0) == 60
    assert numbers["silent"] > 0
    assert fresh(flips_of, crash, tmp_path / "2")["crashes"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------------------------------


def number_of_a_worker(folder):
    return run(lambda: print("number", os.getpid()), folder / "log").said, processes.is_number_one()


def one_that_hangs(folder):
    return Worker(lambda: time.sleep(60), folder / "log").wait(0.1).how


def test_a_worker_is_number_one_where_it_can_be(fresh, tmp_path):
    said, possible = fresh(number_of_a_worker, tmp_path)
    assert (said == "number 1\n") == possible


def test_a_worker_that_hangs_is_a_crash(fresh, tmp_path):
    assert fresh(one_that_hangs, tmp_path) == "crash"
