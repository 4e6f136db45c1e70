"""One worker: a process that runs one call, number 1 of a namespace of its own where possible, and can be stopped.

In: a function, and limits. Out: how it ended, and what it said. Workers are forked from a parent that has imported all
and computed nothing, so that each takes milliseconds to start and no thread of the parent is in the way.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from helpers import DataError
from workbench.commands import one_line

PATIENCE = 60.0  # seconds after which a worker hangs
GRACE = 0.3  # seconds between a polite signal and SIGKILL, as an impatient container gives them
TRACEBACK = 70  # exit status of a worker that ended in an error of the program
NEW_MOUNTS, NEW_PIDS = 0x00020000, 0x20000000  # CLONE_NEWNS and CLONE_NEWPID
PRIVATE = 0x40000 | 0x4000  # MS_PRIVATE and MS_REC
# How C libraries end a process themselves, in one line, where not even a thread can have its memory.
ABORTS = (
    "OpenBLAS error: Memory allocation",
    "cannot allocate memory for thread-local data",
    "libgomp: Thread creation",
)
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: its exit status (a signal: negative; None: it hung), and all it said."""

    status: int | None
    said: str

    @property
    def how(self) -> str:
        """`well`, `refused` (in one line), `stopped` (by a signal or its handler), `traceback` or `crash`."""
        if self.status == 0:
            return "well"
        if self.status == 1 and self.said.rstrip().split("\n")[-1].startswith("error: "):
            return "refused"
        if self.status in (1, 127) and any(words in self.said for words in ABORTS):
            return "refused"
        if self.status in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL):
            return "stopped"
        return "traceback" if self.status in (1, TRACEBACK) else "crash"

    @property
    def last_line(self) -> str:
        """The last thing it said that names an error, else its last line."""
        lines = self.said.strip().split("\n")
        return next((line for line in reversed(lines) if "Error" in line.split(":")[0]), lines[-1])[:300]


class Worker:
    """A running worker. `limits` are pairs of a `resource.RLIMIT_...` and bytes, beyond what is used for RLIMIT_AS."""

    def __init__(self, call: Callable[[], object], log: Path, limits: dict[int, int] | None = None) -> None:
        self.log = log
        self._reading, writing = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.close(self._reading)
            _keep(call, log, limits or {}, writing)
        os.close(writing)
        self.pid = int(os.read(self._reading, 20))

    def ended(self, seconds: float) -> bool:
        """Wait so long for its end."""
        return bool(select.select([self._reading], [], [], seconds)[0])

    def stop(self, number: int) -> bool:
        """Send a signal, and SIGKILL after `GRACE`; False where it had ended before."""
        if self.ended(0):
            return False
        os.kill(self.pid, number)
        if not self.ended(GRACE):
            os.kill(self.pid, signal.SIGKILL)
        return True

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """Its end."""
        hung = not self.ended(seconds)
        if hung:
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(int(os.read(self._reading, 20)))
        os.close(self._reading)
        os.waitpid(self._keeper, 0)
        return Outcome(None if hung else status, self.log.read_text(errors="replace"))


def run(call: Callable[[], object], log: Path, limits: dict[int, int] | None = None) -> Outcome:
    """Run a worker to its end."""
    return Worker(call, log, limits).wait()


def _keep(call: Callable[[], object], log: Path, limits: dict[int, int], writing: int) -> None:
    """Fork the worker, say its number, keep what it says and say how it ended; its number stays taken until then."""
    if is_number_one():
        libc.unshare(NEW_MOUNTS | NEW_PIDS)
    hearing, saying = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        _work(call, saying, limits)
    os.close(saying)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with log.open("wb") as file:  # not by the worker itself, whose disk may be full
        os.write(writing, b"%20d" % pid)
        while said := os.read(hearing, 1 << 16):
            file.write(said)
    os.write(writing, b"%20d" % os.waitpid(pid, 0)[1])
    os._exit(0)


def _work(call: Callable[[], object], saying: int, limits: dict[int, int]) -> None:
    """The call, in a process that ends with it."""
    status = TRACEBACK
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(saying, 1)
        os.dup2(saying, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        if is_number_one():
            libc.mount(b"none", b"/", None, PRIVATE, None)
            libc.mount(b"proc", b"/proc", b"proc", 0, None)
        for limit, number in limits.items():
            used = address_space() if limit == resource.RLIMIT_AS else 0
            resource.setrlimit(limit, (used + number, used + number))
        call()
        status = 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        status = stopped.code if isinstance(stopped.code, int) else 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except (DataError, MemoryError) as error:  # of a function, which has no command line around it
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 1
    except BaseException:  # noqa: BLE001 - it is what is counted
        traceback.print_exc()
    finally:
        os._exit(status)


def address_space() -> int:
    """Bytes that this process has reserved."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@cache
def is_number_one() -> bool:
    """Whether workers can have a process namespace of their own here."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if sys.platform == "linux" and libc.unshare(NEW_MOUNTS | NEW_PIDS) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0
