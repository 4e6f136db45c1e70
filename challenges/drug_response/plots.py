"""The picture: the best method's error on each held-out compound, and what every method gains on the baseline.

In: the long table and the summary of `evaluate`. Out: a matplotlib figure. Next: `__main__`.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from challenges.drug_response.baselines import BASELINES, REFERENCE
from challenges.drug_response.evaluate import METRICS
from workbench.evaluation.intervals import summarise
from workbench.pictures.style import BLUE, GREY, ORANGE, plain_style


def by_compound(table: pd.DataFrame) -> Figure:
    """Left: the best method's RMSE on each compound against the baseline's. Right: the mean gain of every method."""
    rmse = table[table["metric"] == METRICS[0]]
    wide = rmse.pivot_table(index="sm_name", columns="method", values="value")
    found = summarise(rmse, "sm_name", baselines=(REFERENCE,)).set_index("method")
    best = str(found.drop(index=list(BASELINES))["value"].idxmin())
    with plain_style():
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
        _errors(left, wide[REFERENCE], wide[best], best)
        _gains(right, found.drop(index=[REFERENCE, "zeros"]).sort_values("difference", ascending=False))
    return figure


def _errors(axes: Axes, baseline: pd.Series, model: pd.Series, name: str) -> None:
    """A point per compound, below the line where the model is better."""
    better = model < baseline
    ends = [min(baseline.min(), model.min()) - 0.02, max(baseline.max(), model.max()) + 0.02]
    axes.plot(ends, ends, color="black", lw=1.2, label=f"as good as the baseline\n({REFERENCE})")
    axes.plot(baseline[better], model[better], "o", ms=4, alpha=0.7, color=BLUE, label=f"{name} better")
    axes.plot(baseline[~better], model[~better], "o", ms=4, alpha=0.8, color=ORANGE, label=f"{name} worse")
    axes.set(
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel="row-wise RMSE of the baseline (units of the response)",
        ylabel=f"row-wise RMSE of {name}",
        title=f"{name} beats the baseline\non {better.sum()} of {len(better)} compounds",
    )
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _gains(axes: Axes, found: pd.DataFrame) -> None:
    """A bar per method: how much lower its mean error is than the baseline's, with the 95 % interval."""
    models = [name not in BASELINES for name in found.index]
    gain, half = -found["difference"], (found["difference_high"] - found["difference_low"]) / 2
    colours = [BLUE if model else GREY for model in models]
    axes.barh(range(len(gain)), gain, color=colours, height=0.65)
    axes.errorbar(gain, range(len(gain)), xerr=half, fmt="none", ecolor="black", lw=1, capsize=2)
    axes.axvline(0, color="black", lw=1.2)
    axes.set_yticks(range(len(gain)), found.index)
    n_better = sum(gain[models] > half[models])
    axes.set(
        xlabel="RMSE gained on the baseline, mean over compounds and 95 % interval\n(more is better)",
        title=f"{n_better} of {sum(models)} methods (blue) beat the baseline beyond chance;\ngrey: trivial answers",
    )
