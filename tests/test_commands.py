"""Every command line ends in one line and an exit status: run for real, with what can stop it."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

import helpers
from helpers import DataError
from workbench import commands

ROOT = Path(commands.__file__).parents[1]
PROGRAM = """
    import os, signal, sys, tempfile, time
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path
    from helpers import DataError
    from workbench.commands import command_line

    def large(number):
        return bytes(300_000_000)

    @command_line()
    def main():
        {body}

    if __name__ == "__main__":
        main()
"""


def start(tmp_path, body, **options):
    script = tmp_path / "program.py"
    script.write_text(dedent(PROGRAM).replace("{body}", body))
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([sys.executable, str(script)], env=variables, **streams)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("raise DataError('x.csv: no such column')", 1, "error: x.csv: no such column\n"),
        ("raise DataError('x.csv: no\\nsuch column\\n')", 1, "error: x.csv: no such column\n"),
        ("raise DataError", 1, "error: DataError\n"),
        ("Path('/no/such/file').read_text()", 1, "error: [Errno 2] No such file or directory: '/no/such/file'\n"),
        ("raise MemoryError", 1, "error: MemoryError\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("sys.exit(2)", 2, ""),
        ("print('fine')", 0, ""),
    ],
)
def test_what_stops_a_command_is_said_in_one_line(tmp_path, body, status, said):
    process = start(tmp_path, body)
    _, error = process.communicate()
    assert (process.returncode, error) == (status, said)


def test_an_error_of_the_program_keeps_its_traceback(tmp_path):
    process = start(tmp_path, "1 / 0")
    _, error = process.communicate()
    assert process.returncode == 1
    assert "ZeroDivisionError" in error
    assert "program.py" in error


SLEEP = "with tempfile.TemporaryDirectory(dir=os.getcwd()): print('in', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_terminated_and_interrupted_the_temporary_folder_goes(tmp_path, stop, status):
    (tmp_path / "here").mkdir()
    process = start(tmp_path, SLEEP, cwd=tmp_path / "here")
    assert process.stdout.readline() == "in\n"
    assert len(list((tmp_path / "here").iterdir())) == 1
    process.send_signal(stop)
    _, error = process.communicate()
    assert process.returncode == status
    assert "Traceback" not in error
    assert not list((tmp_path / "here").iterdir())


def test_worker_processes_end_with_the_command(tmp_path):
    """They would finish what they have begun, and keep the command waiting."""
    body = "pool = ProcessPoolExecutor(1); list(pool.map(print, [1])); pool.submit(time.sleep, 300); "
    process = start(tmp_path, body + "time.sleep(1); print('in', flush=True); time.sleep(300)")
    while "in" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in error


def test_a_reader_that_leaves_ends_the_command_without_a_word(tmp_path):
    process = start(tmp_path, "[print(i) for i in range(1_000_000)]")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_output_that_cannot_be_written_at_the_end_is_said(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        process = start(tmp_path, "print('all that was computed')", stdout=full)
        _, error = process.communicate()
    assert process.returncode == 1
    assert error == "error: [Errno 28] No space left on device\n"


def test_what_happened_on_sigterm_before_happens_again_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with commands.command_line():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path):
    given = tmp_path / "data.csv"
    given.write_text("x")
    (tmp_path / "link.csv").symlink_to(given)
    (tmp_path / "hard.csv").hardlink_to(given)
    (tmp_path / "sub").mkdir()
    for out in (given, tmp_path / "sub" / ".." / "data.csv", tmp_path / "link.csv", tmp_path / "hard.csv"):
        with pytest.raises(DataError, match=f"{out.name}: an input of this command"):
            commands.check_outputs([None, out], [None, given])
    missing = tmp_path / "sub" / ".." / "none.csv"
    with pytest.raises(DataError, match=r"none\.csv: an input"):
        commands.check_outputs([missing], [tmp_path / "none.csv"])
    commands.check_outputs([tmp_path / "new" / "table.csv", None], [given, None])
    assert not (tmp_path / "new").exists()


def test_outputs_that_cannot_be_written_are_said_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/deep: cannot be written to \(Not a directory\)"):
        commands.check_outputs([tmp_path / "file" / "deep" / "x.csv"])
    with pytest.raises(DataError, match=f"{tmp_path.name}: a folder; name a file"):
        commands.check_outputs([tmp_path])
    if Path("/proc/sys").exists():
        with pytest.raises(DataError, match="/proc/sys: cannot be written to"):
            commands.check_folder(Path("/proc/sys"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["-1", "11", "abc", "1.5", "", "1e3", "٣", "9" * 30, " 5"])
def test_whole_numbers_out_of_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0 to 10"):
        commands.whole(0, 10)(text)
    assert commands.whole(-3, 10)("-3") == -3


COMMANDS = ["compare", "hub", "validate", "simulate", "demo", "bundle", "submission", "bench"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_workbench_refuses_an_option_that_it_does_not_know(name, monkeypatch, capsys):
    module = __import__(f"workbench.{name}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_data_error_is_found_where_helpers_were_imported_late(monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: late$"), commands.command_line():
        raise helpers.DataError("late")


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ends_though_a_worker_was_killed_while_it_sent_its_result(tmp_path, stop, status):
    lines = [
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "with ProcessPoolExecutor(1) as executor:",
        "    executor.submit(large, 0).result()",
        "    print('sending', flush=True)",
        "    for number in range(1000): executor.submit(large, number).result()",
    ]
    process = start(tmp_path, "\n    ".join(lines))
    assert process.stdout.readline() == "sending\n"
    time.sleep(0.3)
    process.send_signal(stop)
    try:
        assert process.wait(30) == status
    finally:
        process.kill()
