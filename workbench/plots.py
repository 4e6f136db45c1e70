"""Pictures of the data and of the three scores, for the notebook and the report.

In: a `Challenge`, `PerturbationStats`, the table of `workbench.compare`, or the two predicted files. Out: matplotlib
figures; axes carry units, baselines are drawn beside what is compared with them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import Challenge, PerturbationStats, replacing
from workbench.compare import YOURS

BLUE, ORANGE, GREY, RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#c53030"
STATE_COLOURS = {"pre_adipo": "#68a0d8", "adipo": "#f2c14e", "lipo": "#d1781f", "other": "#c7cbd1"}
METRICS = {
    "pearson_delta": "Pearson delta\n(higher is better)",
    "mmd": "MMD\n(lower is better)",
    "l1_distance": "L1 distance of the shares\n(lower is better)",
}


def plain_style() -> AbstractContextManager[None]:
    """Figures made inside have small text and no frame on the right and above."""
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a png beside and rename it; raises DataError when the disk is full or read-only."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def data_overview(challenge: Challenge, stats: PerturbationStats) -> Figure:
    """Four pictures of the training data: cells, states, expression of the targets, effects against noise."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    _cells_per_perturbation(axes[0, 0], stats)
    _states(axes[0, 1], challenge)
    _target_expression(axes[1, 0], challenge, stats)
    _effects_against_noise(axes[1, 1], stats)
    return figure


def _cells_per_perturbation(axes: Axes, stats: PerturbationStats) -> None:
    n = stats.n_cells.sort_values(ascending=False)
    axes.bar(range(len(n)), n, color=[RED if name == CRUNCH.control else BLUE for name in n.index], width=1.0)
    axes.axhline(100, color="black", lw=1, ls="--")
    axes.text(len(n) * 0.02, 90, "100 cells: as many as are predicted", va="top", fontsize=9, color="white")
    axes.set(yscale="log", xlabel="perturbations, sorted", ylabel="cells", title="Cells of each perturbation")
    axes.annotate(
        f"{CRUNCH.control} (control)",
        (list(n.index).index(CRUNCH.control), n[CRUNCH.control]),
        (len(n) * 0.2, n[CRUNCH.control] * 0.9),
        color=RED,
        va="center",
        arrowprops={"arrowstyle": "-", "color": RED},
    )


def _states(axes: Axes, challenge: Challenge) -> None:
    shares = challenge.proportions.sort_values("adipo")
    shares = shares.assign(adipo=shares["adipo"] - shares["lipo"])
    bottom = np.zeros(len(shares))
    for state in ("pre_adipo", "other", "adipo", "lipo"):
        label = {"adipo": "adipo, not lipo"}.get(state, state)
        axes.bar(range(len(shares)), shares[state], bottom=bottom, width=1.0, color=STATE_COLOURS[state], label=label)
        bottom += shares[state].to_numpy()
    axes.axvline(list(shares.index).index(CRUNCH.control), color=RED, lw=1.5, label="control")
    axes.set(
        xlabel="perturbations, by share of adipo", ylabel="share of cells", ylim=(0, 1), title="States of the cells"
    )
    axes.legend(fontsize=8, loc="upper left", framealpha=0.9)


def _target_expression(axes: Axes, challenge: Challenge, stats: PerturbationStats) -> None:
    level = stats.mean.loc[CRUNCH.control]
    groups = {
        "all genes": (level.index, GREY),
        "training targets": (challenge.perturbations, BLUE),
        "targets to predict": (challenge.targets, ORANGE),
    }
    for label, (names, colour) in groups.items():
        known = names[names.isin(level.index)]
        missing = "" if len(known) == len(names) else f" ({len(names) - len(known)} of {len(names)} not measured)"
        if len(known):
            axes.ecdf(level[known], lw=2, color=colour, label=label + missing)
    axes.set(
        xlabel="mean expression in control cells (log2 units)",
        ylabel="share of genes at or below",
        title="How strongly the targets are expressed",
    )
    axes.legend(fontsize=9, loc="lower right")


def _effects_against_noise(axes: Axes, stats: PerturbationStats) -> None:
    """Distance of each knock-out from the control, beside the distance of two samples of control cells."""
    perturbed = stats.n_cells.index.drop(CRUNCH.control)
    n, n_control = stats.n_cells[perturbed], stats.n_cells[CRUNCH.control]
    effect = np.sqrt(((stats.mean.loc[perturbed] - stats.mean.loc[CRUNCH.control]) ** 2).sum(axis=1))
    sizes = np.geomspace(n.min(), n.max(), 50)
    noise = np.sqrt(stats.variance.loc[CRUNCH.control].sum() * (1 / sizes + 1 / n_control))
    axes.scatter(n, effect, s=18, color=BLUE, label="knock-outs")
    axes.plot(sizes, noise, color=RED, label="control cells against control cells (noise)")
    for name in (effect / np.interp(n, sizes, noise)).nlargest(3).index:
        axes.annotate(name, (n[name], effect[name]), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="cells of the knock-out",
        ylabel="distance of its mean from the control\n(log2 units, over all genes)",
        title="Effects against sampling noise",
    )
    axes.legend(fontsize=9)


def results(table: pd.DataFrame) -> Figure:
    """One panel a metric, one row a method: a point a perturbation, a bar for the mean."""
    methods = list(table["method"].unique())
    figure, axes = plt.subplots(1, 3, figsize=(12, 0.6 + 0.5 * len(methods)), sharey=True, layout="constrained")
    values = table.groupby(["method", "metric", "perturbation"])["value"].mean()
    for axis, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for row, method in enumerate(methods):
            if (method, metric) not in values:
                continue
            points = values[method, metric]
            axis.scatter(points, np.full(len(points), row), s=22, color=BLUE if method == YOURS else GREY)
            axis.plot([points.mean()] * 2, [row - 0.3, row + 0.3], color="black", lw=2)
        if metric == "pearson_delta":
            axis.axvline(0, color="black", lw=0.8, ls=":")
        axis.set(title=title, xscale="log" if metric == "mmd" else "linear")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    return figure


def pearson_picture(prediction: ad.AnnData, truth: ad.AnnData) -> Figure:
    """Predicted against true effect, a point a gene, for each local perturbation."""
    genes = prediction.var_names[prediction.var_names.isin(truth.var_names)]
    reference = pd.Series(truth.uns["perturbed_centroid_train"], index=truth.var_names)[genes].to_numpy()
    names = sorted(truth.obs["gene"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 3.1), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        true, predicted = (_mean(cells, name, genes) - reference for cells in (truth, prediction))
        axis.scatter(true, predicted, s=3, color=BLUE, alpha=0.5, rasterized=True)
        axis.axhline(0, color=GREY, lw=0.8)
        axis.axvline(0, color=GREY, lw=0.8)
        flat = np.abs(predicted).max() < helpers.REFERENCE_TOLERANCE
        axis.set_title(f"{name}: r = {0.0 if flat else np.corrcoef(true, predicted)[0, 1]:.2f}")
    axes[0, 0].set_ylabel("predicted effect (log2 units)")
    figure.supxlabel("true effect: mean of the knock-out minus mean of all perturbed cells (log2 units)", fontsize=10)
    return figure


def mmd_picture(prediction: ad.AnnData, truth: ad.AnnData, starter: ad.AnnData) -> Figure:
    """True and predicted cells of one perturbation on the first two principal axes of the true and predicted cells."""
    name = truth.obs["gene"].value_counts().index[0]
    genes = prediction.var_names[prediction.var_names.isin(truth.var_names)]
    true = _cells(truth, name, genes)[:100]
    plane = PCA(2, svd_solver="full").fit(np.concatenate([true, _cells(prediction, name, genes)]))
    shown = plane.transform(true)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    for axis, (label, cells, colour) in zip(
        axes, [("PCA-ridge with Gaussian cells (starter)", starter, ORANGE), (YOURS, prediction, BLUE)], strict=True
    ):
        predicted = _cells(cells, name, genes)
        value = helpers.mmd(true, predicted, CRUNCH.sigma * len(genes) / CRUNCH.sigma_genes)
        axis.scatter(*shown.T, s=16, color=GREY, label="100 true cells")
        axis.scatter(*plane.transform(predicted).T, s=16, color=colour, label="100 predicted cells", alpha=0.8)
        axis.set(title=f"{label}\n{name}: MMD = {value:.3f}", xlabel="first principal axis (log2 units)")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("second principal axis (log2 units)")
    return figure


def l1_picture(predicted: pd.DataFrame, true: pd.DataFrame) -> Figure:
    """True and predicted shares of the states, side by side for each local perturbation; tables indexed by gene."""
    distance = helpers.l1_by_perturbation(true, predicted)
    figure, axis = plt.subplots(figsize=(1.6 + 1.5 * len(true), 3.6), layout="constrained")
    for i, name in enumerate(true.index):
        for offset, table in ((-0.2, true), (0.2, predicted)):
            row, bottom = table.loc[name], 0.0
            parts = {**row[CRUNCH.shares], "lipo": row["lipo"], "adipo": row["adipo"] - row["lipo"]}
            for state in ("pre_adipo", "other", "adipo", "lipo"):
                axis.bar(
                    i + offset,
                    parts[state],
                    bottom=bottom,
                    width=0.36,
                    color=STATE_COLOURS[state],
                    label=state if i == 0 and offset < 0 else None,
                )
                bottom += parts[state]
            axis.text(i + offset, 1.01, "true" if offset < 0 else "pred.", ha="center", fontsize=8)
    axis.set_xticks(range(len(true)), [f"{name}\nL1 = {distance[name]:.3f}" for name in true.index])
    axis.set(ylabel="share of cells", ylim=(0, 1.08))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _cells(adata: ad.AnnData, name: str, genes: pd.Index) -> np.ndarray:
    X = adata[adata.obs["gene"] == name, genes].X
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X, float)


def _mean(adata: ad.AnnData, name: str, genes: pd.Index) -> np.ndarray:
    return _cells(adata, name, genes).mean(axis=0)
