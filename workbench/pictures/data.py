"""The training data in four panels: cells, states, expression of the targets, effects against noise.

In: a `Challenge` and its `PerturbationStats`. Out: a matplotlib figure. Next: `scores.py`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from combinations import genes_in
from contract import CRUNCH
from helpers import Challenge, PerturbationStats, without_controls
from workbench.pictures.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    STATE_COLOURS,
    disjoint_states,
    legend_below,
    plain_numbers,
    plain_style,
    titled,
)


@plain_style()
def data_overview(challenge: Challenge, stats: PerturbationStats, *, source: str = "") -> Figure:
    """Four panels on the training cells of a challenge folder."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    figure.suptitle(titled("The training data", source))
    _cells_per_perturbation(axes[0, 0], stats.n_cells)
    if challenge.proportions is None:
        _note(axes[0, 1], "This screen has no states of the cells.")
    else:
        _states(axes[0, 1], challenge.proportions)
    _target_expression(axes[1, 0], challenge, stats)
    _effects_against_noise(axes[1, 1], stats)
    return figure


def _cells_per_perturbation(axes: Axes, n_cells: pd.Series) -> None:
    n = n_cells.sort_values(ascending=False)
    controls = [name for name in n.index if CRUNCH.is_control(name)]
    at = n.index.get_indexer(controls)
    axes.bar(range(len(n)), n, color=BLUE, width=1.0, label="knock-outs")
    axes.bar(at, n.iloc[at], color=RED, width=1.0, label=f"control ({', '.join(controls)})")
    wanted = CRUNCH.cells_per_perturbation
    axes.axhline(wanted, color="black", lw=1, ls="--", label=f"{wanted} cells: as many as are predicted")
    axes.set(yscale="log", xlabel="perturbations, sorted", ylabel="cells", title="Cells of each perturbation")
    plain_numbers(axes.yaxis)
    legend_below(axes)


def _note(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def _states(axes: Axes, proportions: pd.DataFrame) -> None:
    shares = disjoint_states(proportions.sort_values(CRUNCH.whole))
    bottom = np.zeros(len(shares))
    for state, colour in STATE_COLOURS.items():
        axes.bar(range(len(shares)), shares[state], bottom=bottom, width=1.0, color=colour, label=state)
        bottom += shares[state].to_numpy()
    axes.axvline(list(shares.index).index(CRUNCH.control), color=RED, lw=1.5, label="control")
    axes.set(
        xlabel=f"perturbations, by share of {CRUNCH.whole}",
        ylabel="share of cells",
        ylim=(0, 1),
        title="States of the cells",
    )
    legend_below(axes, columns=3)


def _target_expression(axes: Axes, challenge: Challenge, stats: PerturbationStats) -> None:
    level = stats.mean.loc[CRUNCH.control]
    groups = {
        "all genes": (level.index, GREY),
        "training targets": (genes_in(challenge.perturbations), BLUE),
        "targets to predict": (genes_in(challenge.targets), ORANGE),
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
    legend_below(axes, columns=1)


def _effects_against_noise(axes: Axes, stats: PerturbationStats) -> None:
    """Distance of each knock-out from the control, beside the distance of two samples of control cells."""
    perturbed = without_controls(stats.n_cells).index
    n, n_control = stats.n_cells[perturbed], stats.n_cells[CRUNCH.control]
    effect = np.sqrt(((stats.mean.loc[perturbed] - stats.mean.loc[CRUNCH.control]) ** 2).sum(axis=1))
    sizes = np.geomspace(n.min(), n.max(), 50)
    noise = np.sqrt(stats.variance.loc[CRUNCH.control].sum() * (1 / sizes + 1 / n_control))
    axes.scatter(n, effect, s=18, color=BLUE, label="knock-outs")
    axes.plot(sizes, noise, color=RED, label="control cells against control cells (noise)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="cells of the knock-out",
        ylabel="distance of its mean from the control\n(log2 units, over all genes)",
        title="Effects against sampling noise",
    )
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    strongest = effect[(effect / np.interp(n, sizes, noise)).nlargest(3).index].sort_values(ascending=False)
    for row, name in enumerate(strongest.index):  # in the margin, one below the other: they cannot overlap
        axes.annotate(
            name,
            (n[name], effect[name]),
            xytext=(1.02, 0.95 - 0.08 * row),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.7},
        )
    legend_below(axes)
