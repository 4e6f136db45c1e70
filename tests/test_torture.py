"""The torture itself, a small one: nothing is lost and nothing silent here, and a fault would be seen."""

import os
import random
import time

import h5py
import numpy as np
import pytest

from workbench.torture import __main__ as torture
from workbench.torture import flips, processes, stress
from workbench.torture.jobs import Job, jobs, slow_host
from workbench.torture.processes import run
from workbench.torture.stress import FAULTS, Row, World

CHANCE = random.Random(0)  # noqa: S311
BODY = 200_000  # bytes of what the careless job writes


def faults(rows):
    return [fault for row in rows for fault in row.faults]


def numbers(row):
    return {column: row.numbers.get(column, 0) for column in FAULTS}


def test_what_is_killed_and_disturbed_loses_nothing(tmp_path):
    (job,) = (job for job in jobs(0) if job.name == "local_split")
    rows = stress.stress(job, 4, 1, 0, tmp_path / "job")
    assert not faults(rows)
    assert rows[0].numbers["tried"] == 4
    assert {row.what for row in rows} >= {"two writers at once", "file size limit", "memory limit (RLIMIT_AS)"}


@pytest.mark.parametrize("name", ["synthesis train", "sources get"])
def test_what_goes_on_where_it_was_killed_loses_nothing(name, tmp_path):
    with slow_host() as port:
        (job,) = (job for job in jobs(port) if job.name == name)
        row = stress.kills(World(job, tmp_path / "job"), 3, random.Random(1))  # noqa: S311
    assert not row.faults
    assert row.numbers["tried"] == 3


def test_flips_are_seen_and_never_crash(tmp_path):
    rows = [row for i, target in enumerate(flips.targets()) for row in flips.flips(target, 18, 0, tmp_path / str(i))]
    assert not faults(rows)
    assert [row.numbers["tried"] for row in rows] == [18] * 5
    assert rows[0].numbers["refused"] > 4
    assert all(row.numbers == {"tried": 18, "refused": 18} for row in rows[1:]), "models are sealed"


def test_kills_that_are_asked_for_are_shared_among_the_jobs_and_added_up(tmp_path, monkeypatch):
    asked = []

    def counted(job, n_kills, n_others, seed, folder):
        asked.append((job.name, n_kills))
        return [Row("kills", {"tried": n_kills}), Row("others", {"tried": n_others, "lost": 1}, ["lost"])]

    monkeypatch.setattr(torture, "stress", counted)
    monkeypatch.setattr(torture, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(flips, "tasks", lambda *_: [])
    rows = torture.torture(23, 2, 0, 0, tmp_path)
    assert sum(n for _, n in asked) == 23
    assert [(row.what, row.numbers["tried"]) for row in rows] == [("kills", 23), ("others", 2 * len(asked))]
    shown = torture.table(rows).splitlines()
    assert shown[-1].split()[:2] == ["all", str(23 + 2 * len(asked))]
    assert f" {len(asked)} " in shown[-1], "what was lost"


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


def written_in_place(inputs, out, seed):
    """What must not be done: no temporary name, and no lock."""
    with (out / "table").open("wb") as file:
        for _ in range(100):
            file.write(bytes([seed]) * (BODY // 100))
            file.flush()
            time.sleep(0.001)


def scratch_is_left(inputs, out, seed):
    (out / f"scratch{random.SystemRandom().random()}").write_text("")
    (out / "table").write_bytes(bytes([seed]))


def one_temporary_name(inputs, out, seed):
    (out / "temporary").write_bytes(bytes([seed]))
    time.sleep(0.4)
    (out / "temporary").rename(out / "table")


def deleted_first(inputs, out, seed):
    (out / "table").unlink(missing_ok=True)
    time.sleep(0.4)
    (out / "table").write_bytes(bytes([seed]))


def raises(inputs, out, seed):
    if (out / "table").exists():
        raise KeyError("table")
    (out / "table").write_bytes(bytes([seed]))


def never_goes_on(inputs, out, seed):
    (out / "part").write_bytes(b"half")
    time.sleep(0.4)
    (out / "part").unlink()
    (out / "table").write_bytes(bytes([seed]))


def world(run, tmp_path, **options):
    return World(Job("careless", lambda inputs: None, run, **options), tmp_path / "world")


def test_a_file_that_is_written_in_place_is_seen_incomplete(tmp_path):
    row = stress.kills(world(written_in_place, tmp_path), 4, CHANCE)
    assert row.numbers["incomplete"] > 0
    row = stress.file_size(world(written_in_place, tmp_path / "2"), 1, CHANCE)
    assert row.numbers["incomplete"] > 0


def test_two_writers_with_one_temporary_name_are_seen(tmp_path):
    assert stress.two_writers(world(one_temporary_name, tmp_path), 6, CHANCE).numbers["tracebacks"] > 0


def test_scratch_files_are_seen_as_left_over(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "is_done", lambda self, now, seed: True)
    assert stress.kills(world(scratch_is_left, tmp_path), 1, CHANCE).numbers["left over"] > 0


def test_a_result_that_is_deleted_first_is_seen_as_lost(tmp_path):
    assert stress.kills(world(deleted_first, tmp_path), 4, CHANCE).numbers["lost"] > 0


def test_a_traceback_is_seen(tmp_path):
    assert stress.file_size(world(raises, tmp_path), 1, CHANCE).numbers["tracebacks"] > 0


def test_work_that_is_begun_anew_is_seen_as_lost(tmp_path):
    made = world(never_goes_on, tmp_path, unfinished="part", goes_on=lambda said, inputs, size: "goes on" in said)
    assert stress.kills(made, 4, CHANCE).numbers["lost"] > 0


def test_jobs_must_write_something_else_with_the_other_seed(tmp_path):
    with pytest.raises(RuntimeError, match="writes the same with both seeds"):
        world(lambda inputs, out, seed: (out / "table").write_text("same"), tmp_path)


def test_flips_of_a_file_that_nobody_checks_are_silent_and_those_that_crash_are_counted(tmp_path):
    def prepare(folder):
        with h5py.File(folder / "file", "w") as file:
            file["values"] = np.zeros(10)

    def no_check(path):
        return [path.read_bytes()]

    def crash(path):
        return [os._exit(3) if sum(path.read_bytes()) != sum(whole) else 1]

    (row,) = flips.flips(flips.Target("careless", prepare, "file", no_check, 1), 20, 0, tmp_path / "careless")
    assert numbers(row)["silent"] + row.numbers.get("unseeable", 0) == 20
    assert numbers(row)["silent"] > 0
    prepare(tmp_path)
    whole = (tmp_path / "file").read_bytes()
    (row,) = flips.flips(flips.Target("crashing", prepare, "file", crash, 1), 3, 0, tmp_path / "crashing")
    assert numbers(row)["crashes"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------------------------------


def test_a_worker_is_number_one_where_it_can_be(tmp_path):
    outcome = run(lambda: print("number", os.getpid()), tmp_path / "log")
    assert outcome.how == "well"
    assert (outcome.said == "number 1\n") == processes.is_number_one()


def test_a_worker_that_hangs_is_a_crash(tmp_path):
    worker = processes.Worker(lambda: time.sleep(60), tmp_path / "log")
    assert worker.wait(0.1).how == "crash"
