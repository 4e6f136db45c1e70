"""The page RESULTS.md: every benchmark, its baselines, ablations and ceiling, and the command that makes each figure.

    python -m workbench.results --data DATA                    all of it, a quarter of an hour on two cores
    python -m workbench.results --data DATA --only thp1        one section again; the others stay as they were

In: the folder of the real data (its own README names sources and licences; nothing of it is part of the project), and
simulated data, made here. Out: `RESULTS.md` and its pictures in `docs/`; under `build/results/` a table with one row
per perturbation and a summary for each section.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

import helpers
from workbench.demo import ROOT
from workbench.results import benchmarks, cells, combinations, transfer
from workbench.results.page import BUILD, Section, page

SECTIONS: dict[str, Callable[[Path, Executor | None], Section]] = {
    "replogle": benchmarks.replogle,
    "screens": transfer.screens,
    "few": transfer.few,
    "harm": transfer.harm,
    "combinations": combinations.combinations,
    "morphic": benchmarks.morphic,
    "proportions": benchmarks.proportions,
    "thp1": benchmarks.thp1,
    "demo": benchmarks.demo,
    "cells": cells.cells,
}
SECONDS = {  # on two cores
    "replogle": 200,
    "screens": 210,
    "few": 130,
    "harm": 300,
    "combinations": 150,
    "morphic": 60,
    "proportions": 3,
    "thp1": 90,
    "demo": 40,
    "cells": 60,
}


def run(names: Iterable[str], data: Path, executor: Executor | None) -> None:
    """Run these sections, and write the page from them and from what earlier runs left of the others."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{name}: takes {helpers.text_time(SECONDS[name])}.", flush=True)
        began = time.perf_counter()
        with helpers.working_on(name):
            section = SECTIONS[name](data, executor)
        replace(section, seconds=time.perf_counter() - began).save(BUILD / f"{name}.json")
        for goal in section.goals:
            print(f"{goal.title}: {goal.reached} (asked: {goal.target}; {goal.hit})", flush=True)
    files = {name: BUILD / f"{name}.json" for name in SECTIONS}
    sections = {name: Section.load(file) for name, file in files.items() if file.exists()}
    (ROOT / "RESULTS.md").write_text(page(sections), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.results", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="these sections")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes; default 2")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"{options.data}: no such folder; --data names the folder of the real data")
    mpl.use("Agg")
    with ProcessPoolExecutor(options.jobs) if options.jobs > 1 else nullcontext() as executor:
        run(options.only, options.data, executor)


if __name__ == "__main__":
    main()
