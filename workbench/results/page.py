"""How RESULTS.md reads: numbers with their intervals, one table per metric, one section per benchmark.

In: the `Section`s and the summaries of `workbench.results`. Out: markdown.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
from matplotlib.figure import Figure

from workbench.cross_validate import summarise
from workbench.demo import ROOT
from workbench.evaluation.intervals import interval

BUILD = ROOT / "build" / "results"
COMMAND = "python -m workbench.results --data DATA --only"


@dataclass(frozen=True)
class Goal:
    """One line of the first table: what was asked of a benchmark, and what came out."""

    title: str
    target: str
    reached: str
    hit: str


@dataclass(frozen=True)
class Section:
    """A part of the page, and its lines in the first table."""

    title: str
    goals: list[Goal]
    body: str
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write it as JSON, for a page that is made later."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Section:
        """What `save` wrote."""
        kept = json.loads(path.read_text())
        return cls(**{**kept, "goals": [Goal(**goal) for goal in kept["goals"]]})


def save_picture(figure: Figure, name: str) -> None:
    """Write a picture of the page into `docs/`, and close it."""
    (ROOT / "docs").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / name, dpi=80)
    plt.close(figure)


def keep(table: pd.DataFrame, name: str, baseline: str | None = None) -> pd.DataFrame:
    """Write the details and the summary of a cross-validation; returns the summary."""
    summary = summarise(table, baseline)
    table.to_csv(BUILD / f"{name}_details.csv", index=False)
    summary.to_csv(BUILD / f"{name}.csv", index=False)
    return summary


def verdict(hit: bool) -> str:
    """For the first table; misses stand out."""
    return "yes" if hit else "**no**"


def goal(title: str, row: pd.Series, target: float, moonshot: float = np.inf) -> Goal:
    """A goal for the mean of a row of a summary, where higher is better; a moonshot is more than was asked."""
    asked = f">= {target:g}" + f" (moonshot {moonshot:g})" * bool(np.isfinite(moonshot))
    hit = verdict(row["value"] >= target) + ", and the moonshot" * bool(row["value"] >= moonshot)
    return Goal(title, asked, text(row, 4), hit)


def text(row: pd.Series, digits: int = 3, which: str = "value") -> str:
    """0.373 [0.351, 0.396]; a difference carries its sign."""
    low, high = ("low", "high") if which == "value" else (f"{which}_low", f"{which}_high")
    return _with_interval((row[which], row[low], row[high]), digits, "" if which == "value" else "+")


def mean_text(values: pd.Series, sign: str = "", digits: int = 3) -> str:
    """The mean of one value per perturbation, as `text`; `sign` "+" for differences."""
    return _with_interval(tuple(interval(values, ("value", "low", "high")).values()), digits, sign)


def _with_interval(numbers: tuple[float, ...], digits: int, sign: str) -> str:
    value, low, high = (f"{number:{sign}.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"


def markdown(rows: pd.DataFrame, digits: int = 3) -> str:
    """The summary of one metric (indexed by method) as a table; what is submitted stands in bold."""
    timed = bool((rows["seconds"] > 0.05).any())
    lines = [
        f"| method | mean | difference to {rows['baseline'].iloc[0]} | wins | n |" + " s per fit |" * timed,
        "|---|---|---|---|---|" + "---|" * timed,
    ]
    for method, row in rows.iterrows():
        name = f"**{method}**" if row["submitted"] else method
        is_baseline = method == row["baseline"]
        paired = " | " if is_baseline else f"{text(row, digits, 'difference')} | {row['win_rate']:.0%}"
        seconds = "" if np.isnan(row["seconds"]) else f"{row['seconds']:.1f}"
        lines.append(f"| {name} | {text(row, digits)} | {paired} | {row['n']} |" + f" {seconds} |" * timed)
    return "\n".join(lines)


INTRODUCTION = """# Results

What the response model is worth on knock-outs it has never seen. Everything that is tuned is tuned on the training
knock-outs of the fold. Brackets are 95 % intervals (mean ± t standard errors over perturbations); differences are
paired, and `wins` is the share of perturbations on which a method beats the baseline. Misses are listed as misses.
"""
SOURCES = """Tables with one row per perturbation are left in `build/results/`.

`DATA` is a folder of public data, which is not part of the project: Replogle 2022 rankings in K562 and RPE1
(montilab/sigrecon), MorPhiC fold changes (morphic-bio), THP-1 cells of Papalexi 2021 (Katsevich-Lab/sceptre), the
challenge's own proportions, and as gene knowledge Reactome and Hallmark gene sets (MSigDB), DoRothEA and interaction
edges. The demo data are simulated by the command.

| row | what it is |
|---|---|
| constant alone | one direction for all knock-outs, learned: the model with no knowledge of the gene |
| *table* alone | the model with this feature table and the constant |
| *screen* alone | the model with this other screen, its similarity and its transfer, and the constant |
| all tables, all tables + screens | the model with all feature tables; with other screens too |
| own response alone | the table of how a gene responds to the training knock-outs; part of "all tables" |
| template | what is co-expressed with the target falls with it; one learned factor |
| priors | the gene sets and edges named above, and the family part of the symbols |
| random features | five tables of 50 normal numbers |
| shuffled features | everything the model may know, under permuted names |
"""


def page(sections: dict[str, Section]) -> str:
    """RESULTS.md."""
    lines = [INTRODUCTION, "| benchmark | to reach | reached | hit |", "|---|---|---|---|"]
    lines += [
        f"| [{goal.title}](#{name}) | {goal.target} | {goal.reached} | {goal.hit} |"
        for name, part in sections.items()
        for goal in part.goals
    ]
    for name, part in sections.items():
        lines += [
            "",
            f'<a id="{name}"></a>',
            "",
            f"## {part.title}",
            "",
            f"`{COMMAND} {name}` ({part.seconds:.0f} s)",
            "",
            part.body,
        ]
    minutes = sum(part.seconds for part in sections.values()) / 60
    machine = f"{os.cpu_count()} shared cores, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"
    how = f"`{COMMAND.removesuffix(' --only')}` makes all of it: {minutes:.0f} minutes on {machine}."
    return "\n".join([*lines, "", "## How to make this page", "", how, "", SOURCES])
