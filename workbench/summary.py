"""What came out, in a few lines: which data, which scores, what to do next.

In: a `Challenge` and the table of `workbench.compare`. Out: a `Summary`, which a notebook shows as a table and a
terminal prints as text. The notebook puts it on top, and so does the report.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from contract import CRUNCH
from helpers import Challenge, scored_metrics
from workbench.compare import CEILING, CONTROL, STARTER, YOURS
from workbench.evaluation import intervals
from workbench.simulate import is_simulated

BESIDE = {CONTROL: "control", STARTER: "starter", CEILING: "ceiling"}
MEANING = (
    "Scores are means over the knock-outs. The difference to control is paired, with its 95 % interval in brackets; "
    "it is not clear where that interval contains zero."
)
CEILING_IN_WORDS = (
    "The ceiling is one half of the real cells as a prediction of the other half. A half is a noisy estimate, so a "
    "smooth prediction can score better."
)


@dataclass(frozen=True)
class Summary:
    """The scores beside control, starter and ceiling, with a verdict for each; `print` and notebooks show it."""

    challenge: Challenge
    table: pd.DataFrame

    @property
    def is_demo(self) -> bool:
        """Whether the cells are simulated."""
        return is_simulated(self.challenge.train_path)

    def scores(self) -> pd.DataFrame:
        """Metrics x (your prediction, control, starter, ceiling): means over knock-outs, NaN where there is none."""
        by_perturbation = self.table.groupby(["metric", "method", "perturbation"])["value"].mean()
        means = by_perturbation.groupby(["metric", "method"]).mean().unstack()  # noqa: PD010 - one value each
        return means.reindex(index=scored_metrics(self.table), columns=[YOURS, *BESIDE])

    def verdicts(self) -> pd.DataFrame:
        """Metrics x (`words`, `difference`), texts: is it better than control, by the paired difference?"""
        higher = [name for name, metric in CRUNCH.metrics.items() if metric.higher_is_better]
        both = self.table[self.table["method"].isin([YOURS, CONTROL])]
        rows = intervals.summarise(both, "perturbation", higher_is_better=higher, baselines=[CONTROL])
        rows = rows[rows["method"] == YOURS].set_index("metric").loc[scored_metrics(self.table)]
        words = [_verdict(row, name in higher) for name, row in rows.iterrows()]
        return pd.DataFrame({"words": words, "difference": [_size(row) for _, row in rows.iterrows()]}, rows.index)

    def data(self) -> str:
        """One sentence on the cells."""
        challenge, n = self.challenge, self.table["perturbation"].nunique()
        kind = (
            "Demo data (simulated cells, invented gene names)" if self.is_demo else f"Your data in {challenge.folder}/"
        )
        return (
            f"{kind}: {len(challenge.obs):,} cells x {len(challenge.genes):,} genes, {len(challenge.perturbations)} "
            f"measured knock-outs. Scored on {n} others, of which the model saw no cell."
        )

    def next_steps(self) -> list[str]:
        """What to do next, the first thing first."""
        real = (
            f"These scores say nothing about the challenge. Put its files into `{self.challenge.folder}/`, or paste "
            "your clone token in section 1, and run all cells again."
        )
        sure = (
            f"{self.table['perturbation'].nunique()} knock-outs decide little. `python -m workbench.cross_validate "
            f"--data {self.challenge.folder} --folds loo` leaves out every measured one in turn."
        )
        know = (
            "Tell the model more about the genes: put tables into `resources/features/`, other screens into "
            "`resources/screens/`, and train again. The same command with `--features` and `--screens` and these "
            "folders says of each file whether it helps."
        )
        return [*([real] if self.is_demo else []), sure, know, "Submit: section 7."]

    def notes(self) -> list[str]:
        """What must be known to read the scores."""
        sigma = self.table.loc[self.table["metric"] == "mmd"].iloc[0]
        return [
            MEANING,
            CEILING_IN_WORDS,
            f"MMD has the bandwidth {sigma['sigma']:.0f} ({sigma['sigma_rule']}).",
        ]

    def __repr__(self) -> str:
        """For a terminal: one line per score."""
        width = max(len(metric.title) for metric in CRUNCH.metrics.values())
        verdicts, lines = self.verdicts(), []
        for name, row in self.scores().iterrows():
            metric = CRUNCH.metrics[str(name)]
            beside = ", ".join(
                f"{word} {row[method]:.3f}" for method, word in BESIDE.items() if np.isfinite(row[method])
            )
            own = f"{metric.title:<{width}}  {row[YOURS]:.3f}  ({metric.direction}; {beside})"
            lines.append(f"{own}: {verdicts.loc[name, 'words']} ({verdicts.loc[name, 'difference']})")
        return "\n".join([self.data(), "", *lines, "", MEANING, CEILING_IN_WORDS])

    def _repr_markdown_(self) -> str:
        head = ["score", YOURS, *BESIDE.values(), "in words", "difference to control"]
        lines = [_row(head), "|:---|" + "---:|" * (1 + len(BESIDE)) + ":---|:---|"]
        verdicts = self.verdicts()
        for name, row in self.scores().iterrows():
            metric = CRUNCH.metrics[str(name)]
            numbers = [f"{value:.3f}" if np.isfinite(value) else "" for value in row]
            about = f"{metric.title} ({metric.direction}, best {metric.best:g})"
            lines.append(_row([about, f"**{numbers[0]}**", *numbers[1:], *verdicts.loc[name]]))
        steps = [f"{i}. {step}" for i, step in enumerate(self.next_steps(), 1)]
        data = f"**{self.data()}**" if self.is_demo else self.data()
        return "\n".join([data, "", *lines, "", " ".join(self.notes()), "", "**What to do next**", "", *steps])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _verdict(row: pd.Series, higher_is_better: bool) -> str:
    """A row of `intervals.summarise` in words."""
    if not (row["difference_low"] > 0 or row["difference_high"] < 0):  # nor for one knock-out, which has no interval
        return "no clear difference to control"
    return "better than control" if (row["difference"] > 0) == higher_is_better else "worse than control"


def _size(row: pd.Series) -> str:
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "")
