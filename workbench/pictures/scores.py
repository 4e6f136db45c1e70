"""The three scores beside baselines and ceiling, and for each score a picture of what it looks at.

In: the table of `workbench.compare`, the predicted cells and shares, the local truth. Out: matplotlib figures.
Next: `cells.py`.
"""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA

import helpers
from contract import CRUNCH
from workbench.compare import CEILING, STARTER, YOURS
from workbench.pictures.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    STATE_COLOURS,
    disjoint_states,
    metric_label,
    plain_numbers,
    plain_style,
    titled,
)

COLOURS = {YOURS: BLUE, CEILING: RED}
POINTS = "A point: one knock-out. Bar and number: their mean."
NOISY_CEILING = (
    "The ceiling (red) is one half of the real cells as a prediction of the other half:\n"
    "few cells, so a noisy estimate, and a smooth prediction can score better than it."
)


@plain_style()
def scores(table: pd.DataFrame, *, source: str = "") -> Figure:
    """One panel per metric of the table, one row per method: a point per knock-out, a bar and a number for their mean.

    `table` is that of `workbench.compare`: a row per method, perturbation, metric and panel of genes.
    """
    methods, metrics = list(table["method"].unique()), helpers.scored_metrics(table)
    size = (12, 1.5 + 0.42 * len(methods))
    figure, axes = plt.subplots(1, len(metrics), figsize=size, sharey=True, layout=ConstrainedLayoutEngine(wspace=0.05))
    values = table.groupby(["method", "metric", "perturbation"])["value"].mean()
    for axis, metric in zip(axes, metrics, strict=True):
        for row, method in enumerate(methods):
            if (method, metric) in values:
                _strip(axis, row, values[method, metric], COLOURS.get(method, GREY), bold=method == YOURS)
        axis.set(title=metric_label(metric), xscale="log" if metric == "mmd" else "linear")
        if metric == "mmd":
            plain_numbers(axis.xaxis)
        if metric == "pearson_delta":
            axis.axvline(0, color="black", lw=0.8, ls=":")
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        axis.text(1.02, 1.0, "mean", transform=axis.transAxes, va="bottom", fontsize=8)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    n = table["perturbation"].nunique()
    figure.suptitle(titled(f"Scores of {n} knock-outs that the model has not seen", source))
    figure.supxlabel(f"{POINTS} {NOISY_CEILING}" if CEILING in methods else POINTS, fontsize=9)
    return figure


def _strip(axis: Axes, row: int, points: pd.Series, colour: str, *, bold: bool) -> None:
    mean = points.mean()
    axis.scatter(points, np.full(len(points), row), s=22, color=colour, alpha=0.8)
    axis.plot([mean] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
    axis.text(
        1.02,
        row,
        f"{mean:.3f}",
        transform=axis.get_yaxis_transform(),
        va="center",
        weight="bold" if bold else "normal",
    )


@plain_style()
def pearson(prediction: ad.AnnData, truth: ad.AnnData, *, source: str = "") -> Figure:
    """Predicted against true effect, a point per gene, for each local knock-out; the diagonal is a perfect prediction.

    Effects are relative to the reference of the score, a mean over perturbed cells. Both axes have the same limits; the
    few genes beyond them are drawn as crosses on the frame, the farthest by name, with its true effect.
    """
    genes = prediction.var_names[prediction.var_names.isin(truth.var_names)]
    names = sorted(truth.obs[CRUNCH.perturbation].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 3.3), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        reference = helpers.reference_of(truth, name)[genes].to_numpy()
        true, predicted = (
            pd.Series(_cells(cells, name, genes).mean(axis=0) - reference, index=genes) for cells in (truth, prediction)
        )
        _effect_cloud(axis, true, predicted)
        flat = predicted.abs().max() < helpers.REFERENCE_TOLERANCE
        axis.set_title(f"{name}: r = {0.0 if flat else np.corrcoef(true, predicted)[0, 1]:.2f}")
    axes[0, 0].set_ylabel("predicted effect (log2 units)")
    alike = "singles or of all doubles" if CRUNCH.asks_for_doubles else "perturbed cells"
    figure.suptitle(titled("Pearson delta: predicted against true effect on each gene", source))
    figure.supxlabel(
        f"true effect: mean of the knock-out minus mean of all {alike} (log2 units). Dotted: predicted = true",
        fontsize=9,
    )
    return figure


def _effect_cloud(axis: Axes, true: pd.Series, predicted: pd.Series) -> None:
    both = pd.concat([true, predicted], axis=1).abs().max(axis=1)
    limit = max(1.2 * both.quantile(0.995), 1e-3)
    inside = both <= limit
    axis.axhline(0, color=GREY, lw=0.8)
    axis.axvline(0, color=GREY, lw=0.8)
    axis.plot([-limit, limit], [-limit, limit], color="black", lw=1, ls=":", label="predicted = true")
    axis.scatter(true[inside], predicted[inside], s=3, color=BLUE, alpha=0.5, rasterized=True)
    x, y = true[~inside].clip(-limit, limit), predicted[~inside].clip(-limit, limit)
    axis.scatter(x, y, s=14, marker="x", color=ORANGE, clip_on=False, lw=1)
    for name in both[~inside].nlargest(1).index:
        axis.set_xlabel(f"x beyond the frame: {name} ({true[name]:+.1f})", fontsize=7, color=ORANGE)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")


@plain_style()
def mmd(prediction: ad.AnnData, truth: ad.AnnData, starter: ad.AnnData, *, source: str = "") -> Figure:
    """True and predicted cells of one knock-out on the first two principal axes of the true and your predicted cells.

    The knock-out is the one with the most true cells; the starter's cells are drawn in the same plane.
    """
    name, most = truth.obs[CRUNCH.perturbation].value_counts().index[0], CRUNCH.cells_per_perturbation
    genes = prediction.var_names[prediction.var_names.isin(truth.var_names)]
    true = _cells(truth, name, genes)[:most]
    plane = PCA(2, svd_solver="randomized", random_state=0)
    plane.fit(np.concatenate([true, _cells(prediction, name, genes)]))
    shown = plane.transform(true)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained")
    for axis, (label, cells, colour) in zip(axes, [(STARTER, starter, ORANGE), (YOURS, prediction, BLUE)], strict=True):
        predicted = _cells(cells, name, genes)
        value = helpers.mmd(true, predicted, CRUNCH.sigma * len(genes) / CRUNCH.sigma_genes)
        axis.scatter(*shown.T, s=16, color=GREY, label="true cells" if label == STARTER else None)
        axis.scatter(*plane.transform(predicted).T, s=16, color=colour, label=f"predicted: {label}", alpha=0.8)
        axis.set(title=f"{label}: MMD = {value:.3f}", xlabel="first principal axis (log2 units)")
    axes[0].set_ylabel("second principal axis (log2 units)")
    figure.suptitle(
        titled(f"MMD: {len(true)} true and {len(predicted)} predicted cells of {name}, on all genes", source)
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@plain_style()
def l1(predicted: pd.DataFrame, true: pd.DataFrame, *, source: str = "") -> Figure:
    """True and predicted shares of the states, side by side for each local knock-out.

    Both tables are knock-outs x the crunch's states. Where all predictions are the same, the title says that this is
    meant: the default predicts one set of shares for all.
    """
    distance, predicted = helpers.l1_by_perturbation(true, predicted), predicted.loc[true.index]
    figure, axis = plt.subplots(figsize=(1.6 + 1.6 * len(true), 4.2), layout="constrained")
    for offset, table in ((-0.2, disjoint_states(true)), (0.2, disjoint_states(predicted))):
        places, bottom = np.arange(len(true)) + offset, np.zeros(len(true))
        for state, colour in STATE_COLOURS.items():
            label = state if offset < 0 else None
            axis.bar(places, table[state], bottom=bottom, width=0.36, color=colour, label=label)
            bottom += table[state].to_numpy()
        for place in places:
            axis.text(place, 1.01, "true" if offset < 0 else "predicted", ha="center", fontsize=8)
    axis.set_xticks(range(len(true)), [f"{name}\nL1 = {distance[name]:.3f}" for name in true.index])
    axis.set(ylabel="share of cells", ylim=(0, 1.06))
    same = len(true) > 1 and np.allclose(predicted[CRUNCH.states], predicted[CRUNCH.states].iloc[0])
    by_design = "\nOne prediction for all knock-outs, by design: nothing beats it out of fold" if same else ""
    figure.suptitle(titled("L1 distance: true and predicted shares of the states", source) + by_design)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _cells(adata: ad.AnnData, name: str, genes: pd.Index) -> np.ndarray:
    """The cells of one perturbation x `genes`, dense."""
    X = adata[adata.obs[CRUNCH.perturbation] == name, genes].X
    return np.asarray(helpers.dense(X), np.float64)
