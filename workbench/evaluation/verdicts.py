"""Does my table help? The submitted method beside itself without each of the user's tables and screens.

In: the table of `workbench.cross_validate` (one row per method, perturbation and metric). Out: one row per "without",
with the paired difference and a verdict, and the same as lines of text. Next: `pictures.verdicts` draws it.
"""

from __future__ import annotations

import pandas as pd

from workbench.evaluation.intervals import interval
from workbench.evaluation.methods import WITHOUT

HELPS, HARMS, UNCLEAR = "helps", "harms", "no difference seen"
COLUMNS = ["difference", "low", "high", "n", "verdict"]
JUDGED_BY = ("pearson_delta", "pearson")  # higher is better; a table has one of them


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Methods without something x `COLUMNS`, as `verdict` says; no rows where nothing was left out."""
    scores = _scores(table)
    full = _submitted(table, scores)
    names = [name for name in scores if name.startswith(WITHOUT)] if full else []
    return pd.DataFrame([verdict(scores[full] - scores[name]) for name in names], names, COLUMNS)


def verdict(gains: pd.Series) -> dict[str, float | int | str]:
    """From what each perturbation gains in correlation by a table: mean, 95 % t interval, n, and what to call it.

    It helps where the interval is above 0, and harms where it is below. A table that enters nowhere gains 0.
    """
    found = interval(gains, ("difference", "low", "high"))
    word = HELPS if found["low"] > 0 else HARMS if found["high"] < 0 else UNCLEAR
    return {**found, "n": int(gains.notna().sum()), "verdict": word}


def verdict_lines(table: pd.DataFrame) -> list[str]:
    """For a terminal: the submitted method, then one line for each thing left out; none where there is none."""
    found, scores = verdicts(table), _scores(table)
    if found.empty:
        return []
    full = _submitted(table, scores)
    value, low, high = interval(scores[full], ("value", "low", "high")).values()
    lines = [
        f"\nDo your files help? What each adds to the {scores.columns.name} of the submitted method, paired:",
        f"  {full:44.44} {value:8.4f} [{low:.4f}, {high:.4f}]  submitted",
    ]
    for name, row in found.iterrows():
        gain = f"{row['difference']:+8.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        lines.append(f"  {name.removeprefix(WITHOUT):44.44} {gain}  {row['verdict']}")
    return lines


def _scores(table: pd.DataFrame) -> pd.DataFrame:
    """Perturbations x methods, the mean over seeds, draws and panels; the columns are named after the metric."""
    part = table[table["metric"].isin(JUDGED_BY)]
    wide = part.pivot_table(index="perturbation", columns="method", values="value", sort=False)
    return wide[part["method"].unique()].rename_axis(columns=part["metric"].iloc[0])


def _submitted(table: pd.DataFrame, scores: pd.DataFrame) -> str | None:
    """The method that is submitted, if it ran."""
    return next((name for name in table.loc[table["submitted"], "method"].unique() if name in scores), None)
