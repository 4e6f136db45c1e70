"""Pictures: predicted against measured for three features, and every feature's error beside the mean's.

In: a pair with known answers, the prediction of one model, and the scores by feature. Out: two png. Next: `__main__`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from challenges.modality.models import REFERENCE, Prediction
from workbench.plots import plain_style, save_figure

if TYPE_CHECKING:
    from challenges.modality.data import Pair

UNITS = {"GEX": "normalised expression", "ATAC": "normalised accessibility", "ADT": "normalised protein"}


def predicted_and_measured(
    pair: Pair, prediction: Prediction, by_feature: pd.DataFrame, name: str, path: str | os.PathLike[str]
) -> None:
    """The best, the median and the worst feature by Pearson, a point a cell, with the mean as a line."""
    ranked = by_feature[by_feature["method"] == name].sort_values("pearson", ascending=False)["feature"].tolist()
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    columns = pair.answers.var_names.get_indexer(list(chosen.values()))
    predicted, measured = prediction.columns(columns), pair.answers.X[:, columns].toarray()
    with plain_style():
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for i, (axes, (rank, feature)) in enumerate(zip(figure.subplots(1, 3), chosen.items(), strict=True)):
            axes.plot(measured[:, i], predicted[:, i], ".", ms=3, alpha=0.5, color="C0")
            ends = np.array(
                [min(measured[:, i].min(), predicted[:, i].min()), max(measured[:, i].max(), predicted[:, i].max())]
            )
            axes.plot(ends, ends, color="0.7", lw=1, label="predicted = measured")
            axes.axhline(
                pair.train_target.X[:, columns[i]].mean(), color="black", lw=1, ls="--", label="mean of training"
            )
            score = by_feature[(by_feature["method"] == name) & (by_feature["feature"] == feature)].iloc[0]
            axes.set(
                title=f"{rank}: {feature}\nPearson {score['pearson']:.2f}, RMSE {score['rmse']:.2f}",
                xlabel=f"measured ({UNITS[pair.mod2]})",
                ylabel="" if i else f"predicted by {name}",
            )
        axes.legend(frameon=False, fontsize=8)
        save_figure(figure, path)


def by_feature_picture(
    by_feature: pd.DataFrame, models: Sequence[str], pair: Pair, path: str | os.PathLike[str]
) -> None:
    """Left: each feature's RMSE against that of its mean. Right: Pearson of the features, sorted, a line a model."""
    wide = by_feature.pivot_table("rmse", "feature", "method")
    with plain_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        ends = [0, float(wide[REFERENCE].max())]
        left.plot(ends, ends, color="black", lw=1, label="no better than the mean")
        for i, name in enumerate(models):
            left.plot(wide[REFERENCE], wide[name], ".", ms=3, alpha=0.6, color=f"C{i}", label=name)
            values = by_feature.loc[by_feature["method"] == name, "pearson"].sort_values(ascending=False).to_numpy()
            right.plot(np.linspace(0, 100, len(values)), values, color=f"C{i}", label=name)
        right.axhline(0, color="black", lw=1, label="mean (constant: 0)")
        left.set(xlabel=f"RMSE of the feature's mean ({UNITS[pair.mod2]})", ylabel="RMSE of the model")
        right.set(xlabel=f"share of the {len(wide):,} features, best first (%)", ylabel="Pearson over held-out cells")
        left.legend(frameon=False, fontsize=8)
        right.legend(frameon=False, fontsize=8)
        save_figure(figure, path)
