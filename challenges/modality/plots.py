"""Pictures: the error of every method beside the mean's; and in detail, cells of three features, and every feature.

In: the table of `evaluate`; a pair with known answers, the prediction of one method, and the measures by feature. Out:
matplotlib figures. Next: `__main__`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from challenges.common import picture_of_methods
from challenges.modality.baselines import BASELINES, REFERENCE
from challenges.modality.data import Pair, Prediction
from challenges.modality.evaluate import GAIN
from challenges.modality.scale import AS_THEY_ARE
from workbench.adoption.values import COUNTS
from workbench.pictures.style import BLUE, GREY, ORANGE, plain_style

WHAT = {"GEX": "expression", "ATAC": "accessibility", "ADT": "protein"}


def picture(table: pd.DataFrame, best: str, pair: Pair) -> Figure:
    """One point per method: its RMSE over all held-out values, with the 95 % interval of its gain on the mean."""
    measured = table.set_index(["metric", "method"])
    rmse, gain = measured.loc["RMSE", "value"], measured.loc[GAIN]
    baseline = rmse[REFERENCE]
    found = pd.DataFrame({"value": rmse, "low": gain["high"], "high": gain["low"]}).drop(index=[*BASELINES])
    found[["low", "high"]] = baseline * (1 - found[["low", "high"]] / 100)
    n_better = int((found["high"] < baseline).sum())
    others = ", ".join(f"{name} {rmse[name]:.3g}" for name in BASELINES if name != REFERENCE)
    return picture_of_methods(
        found,
        baseline,
        trivial=(),
        best=best,
        title=f"{best} predicts {WHAT[pair.mod2]} from {WHAT[pair.mod1]}: its error is {rmse[best]:.3g},\n"
        f"the mean's {baseline:.3g}. {n_better} of {len(found)} methods beat the mean beyond chance",
        xlabel=f"RMSE ({_unit(pair)}; less is better); bars: 95 % interval of the gain on the baseline\n"
        f"baseline: the mean of each feature; not drawn: {others}",
    )


def predicted_and_measured(pair: Pair, prediction: Prediction, by_feature: pd.DataFrame, method: str) -> Figure:
    """The best, the median and the worst feature by Pearson: a point per cell, and the mean of training as a line."""
    found = by_feature[by_feature["method"] == method].set_index("feature").sort_values("pearson", ascending=False)
    chosen = {"best": found.index[0], "median": found.index[len(found) // 2], "worst": found.index[-1]}
    columns = pair.answers.var_names.get_indexer(list(chosen.values()))
    predicted, measured = prediction.columns(columns), pair.answers.X[:, columns].toarray()
    means = np.asarray(pair.train_target.X[:, columns].mean(axis=0)).ravel()
    with plain_style():
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        panels = figure.subplots(1, 3)
        for i, (axes, (rank, feature)) in enumerate(zip(panels, chosen.items(), strict=True)):
            axes.plot(measured[:, i], predicted[:, i], ".", ms=3, alpha=0.5, color=BLUE)
            values = np.concatenate([measured[:, i], predicted[:, i]])
            ends = [values.min(), values.max()]
            axes.plot(ends, ends, color=GREY, lw=1, label="predicted = measured")
            axes.axhline(means[i], color="black", lw=1, ls="--", label="mean of training")
            scores = f"Pearson {found.loc[feature, 'pearson']:.2f}, RMSE {found.loc[feature, 'rmse']:.2f}"
            axes.set(title=f"{rank}: {feature}\n{scores}", xlabel=f"measured ({_unit(pair)})")
        panels[0].set_ylabel(f"predicted by {method}")
        panels[-1].legend(frameon=False, fontsize=8)
    return figure


def by_feature_picture(by_feature: pd.DataFrame, methods: Sequence[str], best: str, pair: Pair) -> Figure:
    """Left: each feature's RMSE by the best method against that of its mean. Right: the features' Pearson, sorted."""
    wide = by_feature.pivot_table("rmse", "feature", "method")
    with plain_style():
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _errors(left, wide[REFERENCE], wide[best], best, _unit(pair))
        _correlations(right, by_feature, methods, best)
    return figure


def _unit(pair: Pair) -> str:
    counts = pair.target_scale.kind == COUNTS and pair.target_scale.way == AS_THEY_ARE
    return f"{'counts of' if counts else 'normalised'} {WHAT[pair.mod2]}"


def _errors(axes: Axes, mean: pd.Series, model: pd.Series, method: str, unit: str) -> None:
    """A point per feature, below the line where the method is better than the feature's mean."""
    better = model < mean
    ends = [0, float(mean.max())]
    axes.plot(ends, ends, color="black", lw=1, label="no better than the mean")
    for rows, colour, word in ((better, BLUE, "better"), (~better, ORANGE, "no better")):
        axes.plot(mean[rows], model[rows], ".", ms=5, alpha=0.7, color=colour, label=f"{rows.sum()} features {word}")
    axes.set(
        xlabel=f"RMSE of the feature's mean ({unit})",
        ylabel=f"RMSE of {method}",
        title=f"{method} is better than the mean\non {better.sum()} of {len(mean):,} features",
    )
    axes.legend(frameon=False, fontsize=8)


def _correlations(axes: Axes, by_feature: pd.DataFrame, methods: Sequence[str], best: str) -> None:
    """A line per method: the best and the worst in colour, the others grey."""
    middle = by_feature.groupby("method")["pearson"].mean()[list(methods)]
    worst = str(middle.idxmin())
    others = [name for name in methods if name not in (best, worst)]
    for name in [*others, worst, best]:
        values = by_feature.loc[by_feature["method"] == name, "pearson"].sort_values(ascending=False).to_numpy()
        colour = {best: BLUE, worst: ORANGE}.get(name, GREY)
        label = f"other methods: {', '.join(others)}" if others and name == others[0] else name
        label = label if len(label) < 50 else f"{len(others)} other methods"
        axes.plot(
            np.linspace(0, 100, len(values)),
            values,
            color=colour,
            lw=1.2 if name in others else 2,
            label=None if name in others[1:] else label,
        )
    axes.axhline(0, color="black", lw=1, label="mean (constant: 0)")
    axes.set(
        xlabel=f"share of the {by_feature['feature'].nunique():,} features, best first (%)",
        ylabel="Pearson over held-out cells",
        title=f"Mean Pearson: {best} {middle[best]:.2f},\n{worst} {middle[worst]:.2f}",
    )
    axes.legend(frameon=False, fontsize=8)
