"""Whether anything is lost when all goes wrong: one table, in which the faults must be 0.

    python -m workbench.torture            300 kills, 1,000 flipped bytes: eight minutes on two cores

In: nothing; demo data are made in a temporary folder. Out: the table, a line for each fault, and exit status 1 where
there is one. Where the machine allows it, every worker is number 1 of a process namespace of its own, as in a
container, and disks are small ones that are really full.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from helpers import progress_bar
from workbench.commands import command_line, whole
from workbench.torture import flips
from workbench.torture.jobs import jobs, slow_host
from workbench.torture.processes import is_number_one
from workbench.torture.stress import FAULTS, Row, stress

COLUMNS = ("tried", "in mid-write", "refused", "no effect", "unseeable", *FAULTS)
INSIDE = "TORTURED"  # set inside the namespace
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
LANES = 2
TASKS: list[Callable[[], list[Row]]] = []  # the lanes inherit them


def torture(n_kills: int, n_others: int, n_flips: int, seed: int, folder: Path) -> list[Row]:
    """Kills over all jobs, so many other disturbances of each job, and so many flips."""
    with slow_host() as port:
        listed = jobs(port)
        shares = [n_kills // len(listed) + (i < n_kills % len(listed)) for i in range(len(listed))]
        TASKS[:] = [
            partial(stress, job, share, n_others, seed, folder / job.name.replace(" ", "_"))
            for job, share in zip(listed, shares, strict=True)
        ]
        TASKS.extend(flips.tasks(n_flips, seed, folder))
        with ProcessPoolExecutor(LANES, multiprocessing.get_context("fork")) as lanes:
            running = [lanes.submit(_do, i) for i in range(len(TASKS))]
            done = [task.result() for task in progress_bar("torturing", iterable=running, unit="job")]
    return merged([row for rows in done for row in rows])


def _do(i: int) -> list[Row]:
    return TASKS[i]()


def merged(rows: list[Row]) -> list[Row]:
    """Rows of the same name added up."""
    found: dict[str, Row] = {}
    for row in rows:
        into = found.setdefault(row.what, Row(row.what))
        into.faults += row.faults
        for column, number in row.numbers.items():
            into.numbers[column] = into.numbers.get(column, 0) + number
    return sorted(found.values(), key=lambda row: "kills" not in row.what)


def table(rows: list[Row]) -> str:
    """The rows and their sum, as text; an empty cell where a column does not apply."""
    shown = pd.DataFrame([row.numbers for row in rows], [row.what for row in rows], columns=COLUMNS)
    shown.loc["all"] = shown.sum()
    shown[list(FAULTS)] = shown[list(FAULTS)].fillna(0)
    return shown.map(lambda number: "" if pd.isna(number) else f"{number:.0f}").to_string()


@command_line()
def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=whole(1), default=300, metavar="N", help="default 300")
    parser.add_argument("--flips", type=whole(1), default=1000, metavar="N", help="default 1,000")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of all moments and places; default 0")
    options = parser.parse_args(arguments)
    if INSIDE not in os.environ and shutil.which("unshare"):
        possible = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        before = NAMESPACE if possible else []
        os.execvpe(  # noqa: S606
            (before or [sys.executable])[0],
            [*before, sys.executable, "-m", "workbench.torture", *sys.argv[1:]],
            {**os.environ, INSIDE: "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    began = time.monotonic()
    print(
        f"Every worker is number 1 of a process namespace of its own: {'yes' if is_number_one() else 'not possible'}."
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = torture(options.kills, max(1, options.kills // 60), options.flips, options.seed, Path(folder))
    print(table(rows))
    if not any("tmpfs" in row.what for row in rows):
        print("No tmpfs can be mounted here: the limit on the size of a file stands for a full disk.")
    print(f"It took {time.monotonic() - began:.0f} s.")
    if faults := [fault for row in rows for fault in row.faults]:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
