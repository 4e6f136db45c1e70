"""The picture: the error of every held-out compound, model beside baseline.

In: the table of `evaluate`. Out: a png. Next: `__main__`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from challenges.drug_response.evaluate import METRICS
from challenges.drug_response.models import REFERENCE
from workbench.plots import plain_style, save_figure


def by_compound(table: pd.DataFrame, models: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Left: RMSE of each compound, sorted by the baseline's. Right: each model's gain on it, as a share of zeros."""
    rmse = table[table["metric"] == METRICS[0]]
    wide = rmse.pivot_table(index="sm_name", columns="method", values="value").sort_values(REFERENCE)
    with plain_style():
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        left.plot(wide["zeros"].to_numpy(), color="0.75", lw=1, label="zeros")
        left.plot(wide[REFERENCE].to_numpy(), color="black", lw=1.5, label=REFERENCE)
        for i, name in enumerate(models):
            left.plot(wide[name].to_numpy(), ".", ms=5, color=f"C{i}", label=name)
        left.set(
            xlabel=f"{len(wide)} compounds, sorted by the baseline's error",
            ylabel="row-wise RMSE\n(units of the response; lower is better)",
        )
        left.legend(frameon=False, fontsize=8)
        gains = [((wide[REFERENCE] - wide[name]) / wide["zeros"]).to_numpy() for name in models]
        right.axhline(0, color="black", lw=1.5)
        right.boxplot(
            gains, tick_labels=list(models), widths=0.6, medianprops={"color": "C3"}, flierprops={"markersize": 3}
        )
        for label in right.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
        right.set(ylabel=f"RMSE gained on\n{REFERENCE}\n(share of the error of zeros)")
        save_figure(figure, path)
