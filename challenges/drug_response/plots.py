"""The picture: the mean error of every method, beside the baseline's, and which to submit.

In: the long table of `evaluate`, and its choice. Out: a matplotlib figure. Next: `__main__`.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from challenges.drug_response.baselines import BASELINES, REFERENCE
from challenges.drug_response.evaluate import METRICS, Choice
from workbench.evaluation.intervals import summarise
from workbench.pictures.style import BLUE, GREY, ORANGE, plain_style


def methods(table: pd.DataFrame, choice: Choice) -> Figure:
    """One point per method, its mean RMSE over compounds with the 95 % interval of its difference to the baseline.

    Grey are trivial answers, blue the methods, orange the one to submit; the black line is the baseline.
    """
    rmse = table[table["metric"] == METRICS[0]]
    found = summarise(rmse, "sm_name", baselines=(REFERENCE,)).set_index("method")
    baseline = found.loc[REFERENCE, "value"]
    found = found.drop(index=[REFERENCE, "zeros"]).sort_values("value", ascending=False)
    with plain_style():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        for i, (name, row) in enumerate(found.iterrows()):
            colour = ORANGE if name == choice.method else GREY if name in BASELINES else BLUE
            half = (row["difference_high"] - row["difference_low"]) / 2
            axes.errorbar(row["value"], i, xerr=half, fmt="o", ms=7, color=colour, lw=1.5)
        axes.axvline(baseline, color="black", lw=1.2)
        axes.text(baseline, -0.5, " the baseline", va="bottom", ha="left", fontsize=8)
        axes.set_yticks(range(len(found)), found.index)
        axes.set(
            ylim=(-0.6, len(found) - 0.4),
            xlabel="mean row-wise RMSE (less is better); bars: 95 % interval of the difference to the baseline\n"
            f"baseline: {REFERENCE}; blue: methods; grey: trivial answers",
        )
        axes.set_title(_message(found, baseline, choice), loc="left")
    return figure


def _message(found: pd.DataFrame, baseline: float, choice: Choice) -> str:
    models = found[~found.index.isin(list(BASELINES))]
    better = f"{(models['difference_high'] < 0).sum()} of {len(models)} methods beat the baseline beyond chance"
    if choice.method not in found.index:
        return better
    error = found.loc[choice.method, "value"]
    return f"{better}.\nSubmit {choice.method} (orange): error {error:.3f}, the baseline's {baseline:.3f}"
