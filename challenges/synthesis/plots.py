"""Pictures of real and synthetic cells.

In: cells of the same labels by method: held-out real ones, independent genes, and those of a model. Out: matplotlib
figures: one for the tired, and in detail joint principal components, mean and variance, zero rates, the last two by
type as well. Next: `main_job`.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from challenges.synthesis.baselines import INDEPENDENT, REAL
from challenges.synthesis.data import Cells
from challenges.synthesis.evaluate import analysis
from helpers import row_correlations
from workbench.pictures.style import BLUE, GREY, ORANGE, legend_below, plain_style

MOST_TYPES = 12  # panels of the picture by type: the most frequent


def _colour(name: str) -> str:
    """Grey for real cells, orange for independent genes, blue for a model."""
    return {REAL: GREY, INDEPENDENT: ORANGE}.get(name, BLUE)


def picture(sets: Mapping[str, Cells], found: pd.DataFrame, name: str) -> Figure:
    """Real cells in grey, and over them the baseline's (independent genes, orange) and the model's (blue).

    `found` is the summary of `evaluate`: the title says what it found of `name`, the model.
    """
    values = {one: analysis(cells) for one, cells in sets.items()}
    plane = PCA(2, svd_solver="full").fit(values[REAL])
    measured = found.set_index(["metric", "method"])["value"]
    agreement, auc = measured.loc["gene_correlation_within_types"], measured.loc["real_or_synthetic_auc"]
    with plain_style():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (one, word) in zip(panels, {INDEPENDENT: " (baseline)", name: ""}.items(), strict=True):
            for shown, size, label in ((REAL, 14, "held-out real cells"), (one, 5, f"cells by {one}{word}")):
                points = plane.transform(values[shown]).T
                axes.scatter(*points, s=size, color=_colour(shown), label=label, alpha=0.8, lw=0, rasterized=True)
            axes.set_title(f"{one}{word}: told from real cells with AUC {auc[one]:.2f} (0.5: not at all)", fontsize=9)
            axes.set_xlabel(_component(plane, 0))
            legend_below(axes)
        panels[0].set_ylabel(_component(plane, 1))
        figure.suptitle(
            f"Do genes move together as in real cells? {name} {agreement[name]:.2f}, independent genes "
            f"{agreement[INDEPENDENT]:.2f}, other real cells {agreement[REAL]:.2f} (correlation of correlations)"
        )
    return figure


def joint_pca(sets: Mapping[str, Cells]) -> Figure:
    """Real cells and each synthetic set on the principal components of all together, coloured by type."""
    values = {name: analysis(cells) for name, cells in sets.items()}
    plane = PCA(2, svd_solver="full").fit(np.concatenate([*values.values()]))
    types = list(pd.Series(next(iter(sets.values())).labels).value_counts().index)
    colours = mpl.colormaps["tab20"](np.arange(len(types)) % 20)
    figure = Figure(figsize=(4.2 * len(sets) + 2.2, 4.4), layout="constrained")
    axes = figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)
    for axis, (name, cells) in zip(axes[0], sets.items(), strict=True):
        points = plane.transform(values[name])
        for label, colour in zip(types, colours, strict=True):
            axis.scatter(*points[cells.labels == label].T, s=9, color=colour, label=label, rasterized=True)
        axis.set(title=f"{name} (n = {len(cells):,})", xlabel=_component(plane, 0))
    axes[0, 0].set_ylabel(_component(plane, 1))
    if len(types) <= 25:
        axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.5)
    return figure


def _component(plane: PCA, i: int) -> str:
    return f"principal component {i + 1} ({plane.explained_variance_ratio_[i]:.0%} of variance)"


def moments(sets: Mapping[str, Cells]) -> Figure:
    """Mean against variance, then zero rate and mean of each gene against the held-out real cells'."""
    values = {name: analysis(cells) for name, cells in sets.items()}
    real = values.pop(REAL)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, cells in {REAL: real, **values}.items():
        _spread(axes[0], cells, name)
    for name, cells in values.items():
        _against(axes[1], (real == 0).mean(axis=0), (cells == 0).mean(axis=0), name)
        _against(axes[2], real.mean(axis=0), cells.mean(axis=0), name)
    axes[0].set(xlabel="mean of a gene (log units)", ylabel="its variance (log units²)", title="Mean and variance")
    axes[1].set(xlabel="zero rate of a gene in held-out real cells", ylabel="in synthetic cells", title="Zero rate")
    axes[2].set(xlabel="mean of a gene in held-out real cells (log units)", ylabel="in synthetic cells", title="Mean")
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


def by_type(sets: Mapping[str, Cells]) -> tuple[Figure, Figure]:
    """A panel per type: zero rate of each gene against the held-out real cells'; its variance against its mean."""
    real = sets[REAL]
    types = list(pd.Series(real.labels).value_counts().index[:MOST_TYPES])
    values = {name: analysis(cells) for name, cells in sets.items()}
    (zeros, zero_panels), (spread, spread_panels) = _panels(real, types), _panels(real, types)
    for label, zero_panel, spread_panel in zip(types, zero_panels, spread_panels, strict=True):
        own = {name: values[name][cells.labels == label] for name, cells in sets.items()}
        for name, cells in own.items():
            _spread(spread_panel, cells, name)
            if name != REAL:
                _against(zero_panel, (own[REAL] == 0).mean(axis=0), (cells == 0).mean(axis=0), name)
    zeros.supxlabel("zero rate of a gene in held-out real cells of the type")
    zeros.supylabel("zero rate in synthetic cells of the type")
    spread.supxlabel("mean of a gene in cells of the type (log units)")
    spread.supylabel("its variance (log units²)")
    for panels in (zero_panels, spread_panels):
        panels[0].legend(fontsize=7)
    return zeros, spread


def _panels(real: Cells, types: list[str]) -> tuple[Figure, list[Axes]]:
    columns = min(4, len(types))
    rows = -(-len(types) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, label in zip(axes.ravel(), types, strict=False):
        axis.set_title(f"{label} (n = {(real.labels == label).sum()})", fontsize=9)
    for axis in axes.ravel()[len(types) :]:
        axis.set_visible(False)
    return figure, list(axes.ravel()[: len(types)])


def mixing_path(positions: pd.DataFrame, ends: tuple[str, str], title: str) -> Figure:
    """Mixtures on the axis that separates two types: `positions` has `share`, `mean`, `low` and `high` (quartiles)."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(
        positions["share"],
        positions["low"],
        positions["high"],
        color=BLUE,
        alpha=0.2,
        label="quartiles of the cells",
    )
    axis.plot(positions["share"], positions["mean"], "o-", color=BLUE, label="mean of the synthetic cells")
    for level, label in zip((0, 1), ends, strict=True):
        axis.axhline(level, color=_colour(REAL), ls="--", lw=1)
        axis.text(0.5, level, f"real {label}", va="bottom", ha="center", fontsize=8)
    axis.set(
        xlabel=f"share of {ends[1]} in the label",
        ylabel="position between the real types' means\n(0 and 1)",
        title=title,
    )
    axis.legend(fontsize=8)
    return figure


def _spread(axis: Axes, cells: np.ndarray, name: str) -> None:
    mean, variance = cells.mean(axis=0), cells.var(axis=0)
    shown = variance > 0
    axis.scatter(mean[shown], variance[shown], s=6, color=_colour(name), alpha=0.6, label=name, rasterized=True)
    axis.set(xscale="log", yscale="log")


def _against(axis: Axes, x: np.ndarray, y: np.ndarray, name: str) -> None:
    label = f"{name}: r = {row_correlations(x[None], y[None])[0]:.3f}"
    axis.scatter(x, y, s=5, color=_colour(name), alpha=0.5, label=label, rasterized=True)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color="black", lw=0.8, ls=":")
