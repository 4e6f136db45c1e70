"""Temporary files with two users: what is in use stays, what a dead process left goes, whatever its number was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

import helpers
from helpers import DataError

ROOT = Path(helpers.__file__).parent
HOLD = dedent("""
    import signal
    import sys
    from pathlib import Path
    import helpers
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
    with helpers.replacing(Path(sys.argv[1])) as temporary:
        temporary.write_text(sys.argv[2])
        print("holding", flush=True)
        sys.stdin.readline()
""")


def held(path, text="theirs", before=()):
    """A process of its own in the middle of writing `path`; a line to its stdin lets it end."""
    pipe = subprocess.PIPE
    command = [*before, sys.executable, "-c", HOLD, str(path), text]
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "holding\n", process.stderr.read()
    return process


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, text="ours"):
    with helpers.replacing(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, end):
    process = held(tmp_path / "x")
    process.send_signal(end)
    process.communicate()
    assert len(names(tmp_path)) == (0 if end == signal.SIGINT else 2), "a kill leaves the part and its lock"
    write(tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_what_another_process_is_writing_stays_until_it_is_done(tmp_path):
    process = held(tmp_path / "x")
    write(tmp_path / "x", "ours")
    assert (tmp_path / "x").read_text() == "ours"
    assert len(names(tmp_path)) == 3
    process.communicate("\n")
    assert process.returncode == 0
    assert (tmp_path / "x").read_text() == "theirs"
    assert names(tmp_path) == ["x"]


def in_a_container():
    """What makes a command process number 1, as in a container."""
    before = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    return before


def test_two_containers_on_one_folder_neither_disturb_each_other_nor_leave_anything(tmp_path):
    """In each, Python is process number 1, and the other's number is unknown."""
    before = in_a_container()
    first, second = held(tmp_path / "x", "first", before), held(tmp_path / "x", "second", before)
    assert len(names(tmp_path)) == 4
    second.communicate("\n")
    assert (tmp_path / "x").read_text() == "second"
    first.communicate("\n")
    assert (tmp_path / "x").read_text() == "first"
    for _ in range(3):
        killed = held(tmp_path / "x", "killed", before)
        (inside,) = psutil.Process(killed.pid).children()
        inside.kill()
        killed.communicate()
        assert len(names(tmp_path)) == 3, "what the kill before left is gone"
    last = held(tmp_path / "x", "last", before)
    last.communicate("\n")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "last"


@pytest.mark.parametrize("name", ["x", "a[b]*?.h5", "with space", "ünï.csv", "x.lock", ".hidden"])
def test_leftovers_of_any_name_go_and_neighbours_stay(tmp_path, name):
    number = "0123456789abcdef"
    left = [f".{name}.{number}.partial", f".{name}.{number}.lock"]
    neighbours = [
        f".{name}.backup.partial",
        f".{name}.partial",
        f".{name}.backup.lock",
        f".{name}.my-own-lock-file.lock",
        f".y{name}.{number}.lock",
        f".{name}.{number}.partial.bak",
        f".{name}.old.{number}.partial",
    ]
    for other in (*left, *neighbours):
        (tmp_path / other).write_text("")
    write(tmp_path / name)
    assert set(names(tmp_path)) == {name, *neighbours}


def test_many_threads_write_one_file(tmp_path):
    texts = [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda text: [write(tmp_path / "x", text) for _ in range(20)], texts))
    assert (tmp_path / "x").read_text() in texts
    assert names(tmp_path) == ["x"]


def test_a_lock_that_is_taken_for_a_leftover_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    """Between the making of a lock and its locking, another run may remove it, or have it locked in order to."""
    real, taken = helpers._locked, []

    def locked(file):
        if not taken:
            taken.append(file.name)
            Path(file.name).unlink()
        elif len(taken) == 1:
            taken.append(file.name)
            return False
        return real(file)

    monkeypatch.setattr(helpers, "_locked", locked)
    with helpers.replacing(tmp_path / "x") as temporary:
        assert temporary.with_suffix(".lock").name not in {Path(name).name for name in taken}
        assert temporary.with_suffix(".lock").exists()
        temporary.write_text("")
    assert len(taken) == 2


@pytest.mark.parametrize("locks", ["no fcntl", "no locks on this disk"])
def test_without_locks_what_is_fresh_stays_and_what_is_old_goes(tmp_path, monkeypatch, locks):
    if locks == "no fcntl":
        monkeypatch.setattr(helpers, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError("no locks available")

        monkeypatch.setattr(helpers.fcntl, "flock", refuse)
    for token, age in (("f" * 16, 3600), ("0" * 16, 2 * 24 * 3600)):
        for suffix in ("partial", "lock"):
            path = tmp_path / f".x.{token}.{suffix}"
            path.write_text("")
            os.utime(path, (time.time() - age,) * 2)
    growing = tmp_path / f".x.{'a' * 16}.lock"  # begun long ago, but still being written
    growing.write_text("")
    os.utime(growing, (0, 0))
    growing.with_suffix(".partial").write_text("")
    write(tmp_path / "x")
    kept = {f".x.{token * 16}.{suffix}" for token in "fa" for suffix in ("partial", "lock")}
    assert set(names(tmp_path)) == {"x", *kept}


def test_files_that_belong_together_are_replaced_together(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text("old")

    def write_one_and_fail():
        with helpers.replacing_all(paths) as temporaries:
            temporaries[0].write_text("new")
            (temporaries[1] / "x").write_text("no such folder")

    with pytest.raises(DataError, match=r"a, .*b, .*c: could not be written \(.*\); an older file is as it was"):
        write_one_and_fail()
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert names(tmp_path) == ["a", "b", "c"]
    with helpers.replacing_all(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert [path.read_text() for path in paths] == ["new"] * 3


def test_only_what_was_not_replaced_is_said_to_be_as_it_was(tmp_path):
    paths = tmp_path / "first", tmp_path / "second"
    with (
        pytest.raises(DataError, match=rf"^{tmp_path}/second: could not be written .* an older file is as it was"),
        helpers.replacing_all(paths) as temporaries,
    ):
        temporaries[0].write_text("new")  # and the second is never written
    assert (tmp_path / "first").read_text() == "new"


def test_a_folder_is_no_file_and_is_said_before_anything_is_made(tmp_path):
    (tmp_path / "x").mkdir()
    made = []
    with pytest.raises(DataError, match="x is a folder; name a file"), helpers.replacing(tmp_path / "x"):
        made.append("computed")
    assert not made
    assert names(tmp_path) == ["x"]


def test_one_run_at_a_time(tmp_path):
    script = HOLD.replace("replacing", "only_one").replace("temporary.write_text(sys.argv[2])", "pass")
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, str(tmp_path / "data"), ""]
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "holding\n"
    with pytest.raises(DataError, match="data: another run is writing it"), helpers.only_one(tmp_path / "data"):
        pytest.fail("two inside")
    with helpers.only_one(tmp_path / "other"):
        pass
    process.kill()
    process.communicate()
    with helpers.only_one(tmp_path / "data"), pytest.raises(DataError), helpers.only_one(tmp_path / "data"):
        pytest.fail("two inside")
    with helpers.only_one(tmp_path / "data"):
        assert names(tmp_path) == [".data.lock"]
    assert names(tmp_path) == []


def test_a_run_that_waits_at_the_lock_of_one_that_ends_is_not_alone_with_a_removed_file(tmp_path, monkeypatch):
    real, opened = helpers._still_there, []

    def still_there(file, path):
        if not opened:  # what the run before does when it ends
            path.unlink()
        opened.append(file)
        return real(file, path)

    monkeypatch.setattr(helpers, "_still_there", still_there)
    with helpers.only_one(tmp_path / "data"):
        assert (tmp_path / ".data.lock").exists()
    assert len(opened) == 2
