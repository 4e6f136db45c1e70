"""What every command line does alike: one line for what went wrong, whole numbers in range, writable outputs.

In: what a `main` runs, its options and paths. Out: an exit status: 1 for input that cannot be used, 2 for options (by
argparse), 130 and 143 for a command that was interrupted or terminated. Around a `main`, as a decorator or by `with`:

    @command_line()
    def main() -> None:
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as a shell has them


@contextmanager
def command_line() -> Iterator[None]:
    """Inside, input that cannot be used ends the program in one line on stderr, `error: ...`, without a traceback.

    That is a `helpers.DataError`, a file, port or memory that cannot be had, and an interrupt. Terminated, the program
    leaves its `with` blocks as when interrupted, so that temporary files go; worker processes end with it. Nothing is
    said where the reader of the output has left. Errors of the program itself keep their traceback.
    """
    before = _on_sigterm(_terminate)
    try:
        yield
        if sys.stdout is not None:  # what is buffered can fail as well: the disk is full, the reader has left
            sys.stdout.flush()
    except KeyboardInterrupt:
        _end_workers()
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _forget_output()
        raise SystemExit(1) from None
    except Exception as error:
        with suppress(AttributeError):  # there is no stdout
            try:
                sys.stdout.flush()
            except OSError:
                _forget_output()
        from helpers import DataError  # noqa: PLC0415 - takes seconds, and some commands do without

        if not isinstance(error, DataError | OSError | MemoryError):
            raise
        raise SystemExit(f"error: {one_line(error)}") from error
    finally:
        _on_sigterm(before)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; what kind it is where it has none."""
    return " ".join(str(error).split("\n")).strip() or type(error).__name__


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Before a command computes: may it write these files? None stands for an option that was not given.

    Raises DataError for one that is an input of the command, a folder or a device, and where its folder cannot be
    written to.
    """
    from helpers import DataError  # noqa: PLC0415 - see above

    given = [path for path in inputs if path is not None]
    for out in [path for path in outputs if path is not None]:
        if any(_same(out, path) for path in given):
            raise DataError(f"{out}: an input of this command, which would be overwritten; name another file")
        if out.is_dir():
            raise DataError(f"{out}: a folder; name a file")
        if out.exists() and not out.is_file():
            raise DataError(f"{out}: a device or pipe; name a file")
        check_folder(out.parent)


def check_folder(folder: Path) -> None:
    """Raises DataError unless files can be written into the folder, or it can be made."""
    from helpers import DataError  # noqa: PLC0415 - see above

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """For `type=` of an option: a whole number from `least` to `most`."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 20 else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return number

    return read


def _same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, under one name or as a hard link."""
    try:
        return a.samefile(b)
    except OSError:  # one of them is not there yet
        return os.path.realpath(a) == os.path.realpath(b)


def _terminate(number: int, frame: FrameType | None) -> None:
    _end_workers()
    raise SystemExit(TERMINATED)


def _end_workers() -> None:
    """Processes of a pool would finish what they have begun, and keep the program waiting."""
    if workers := multiprocessing.active_children():
        threading.excepthook = lambda _: None  # the thread of a pool complains of workers that are gone
    for worker in workers:
        worker.kill()
    for thread in threading.enumerate():  # ... and waits for ever for the rest of what a killed one was sending,
        if results := getattr(thread, "result_queue", None):  # unless nobody holds the other end of the pipe
            results._writer.close()  # noqa: SLF001 - there is no public way


def _on_sigterm(handler: Callable | int | None) -> Callable | int | None:
    """Set what happens on SIGTERM, where that is possible; returns what happened before."""
    if threading.current_thread() is not threading.main_thread() or handler is None:
        return None
    return signal.signal(signal.SIGTERM, handler)


def _forget_output() -> None:
    """Else Python would complain at its end that it could not write the rest."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
