"""What users of scanpy look for: a UMAP of the cells, a heatmap of effects, and the genes that move, by name.

In: the challenge, the predicted cells, the local truth, a fitted `Predictor`. Out: matplotlib figures and tables.
scanpy is imported where it is used: it takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.cluster import hierarchy
from threadpoolctl import threadpool_limits

import helpers
from contract import CRUNCH
from helpers import Challenge
from method import Predictor
from workbench.pictures.style import (
    BLUE,
    GREY,
    ORANGE,
    PALE,
    STATE_COLOURS,
    disjoint_states,
    legend_below,
    plain_style,
    titled,
)

EFFECT = f"mean of the knock-out minus mean of control cells ({CRUNCH.control}), log2 units"
TRAINING, REAL, PREDICTED = "training cells", "real cells", "predicted cells"
COMPONENTS, NEIGHBOURS = 30, 15
TARGETS_AT_ONCE = 256  # whose means are in memory together: 44 MB at 21,592 genes


@plain_style()
def umap(
    challenge: Challenge,
    prediction: ad.AnnData,
    truth: ad.AnnData,
    *,
    most: int = 400,
    seed: int = 0,
    source: str = "",
) -> Figure:
    """One UMAP, coloured twice: training cells by state, and the local knock-outs' cells by predicted or real.

    At most `most` cells of each kind are drawn at random with `seed`, which also places them. The first UMAP after an
    installation takes about 20 s more, in which numba compiles it.
    """
    cells = _sample(challenge, prediction, truth, most, np.random.default_rng(seed))
    place = pd.DataFrame(_umap(cells, seed), index=cells.obs_names)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), sharex=True, sharey=True, layout="constrained")
    others = place[cells.obs["kind"] == TRAINING]
    has_states = challenge.proportions is not None
    states = STATE_COLOURS if has_states else {TRAINING: GREY}
    axes[1].scatter(*others.to_numpy().T, s=5, color=PALE, label=f"{TRAINING} ({len(others)})")
    for axis, column, colours, title in (
        (axes[0], "state", states, f"{TRAINING}, by state" if has_states else TRAINING),
        (axes[1], "kind", {REAL: ORANGE, PREDICTED: BLUE}, "cells of the local knock-outs"),
    ):
        for name, colour in colours.items():
            rows = place[cells.obs[column] == name]
            axis.scatter(*rows.to_numpy().T, s=7, color=colour, alpha=0.8, label=f"{name} ({len(rows)})")
        axis.set(title=title, xlabel="UMAP 1", xticks=[], yticks=[])
        legend_below(axis, gap=0.06)
    axes[0].set_ylabel("UMAP 2")
    figure.suptitle(titled(f"UMAP of {cells.n_obs:,} cells drawn at random, {cells.n_vars:,} genes", source))
    return figure


def _sample(
    challenge: Challenge, prediction: ad.AnnData, truth: ad.AnnData, most: int, rng: np.random.Generator
) -> ad.AnnData:
    """Some training, real and predicted cells on the genes that all have; `obs` has `kind` and (training) `state`."""
    genes = prediction.var_names.intersection(truth.var_names).intersection(challenge.genes)
    rows = np.sort(rng.choice(len(challenge.obs), min(most, len(challenge.obs)), replace=False))
    parts, obs = [helpers.read_cells(challenge.train_path, rows)[:, genes].X], [TRAINING] * len(rows)
    has_states = challenge.proportions is not None
    states = list(disjoint_states(challenge.obs.iloc[rows]).idxmax(axis=1)) if has_states else [TRAINING] * len(rows)
    for kind, cells in ((REAL, truth), (PREDICTED, prediction)):
        chosen = np.sort(rng.choice(cells.n_obs, min(most, cells.n_obs), replace=False))
        parts.append(cells[chosen, genes].X)
        obs += [kind] * len(chosen)
    X = np.concatenate([np.asarray(helpers.dense(part), np.float32) for part in parts])
    names = pd.Index([str(i) for i in range(len(X))])
    about = pd.DataFrame({"kind": obs, "state": states + [""] * (len(X) - len(rows))}, index=names)
    return ad.AnnData(X, obs=about, var=pd.DataFrame(index=genes))


def _umap(cells: ad.AnnData, seed: int) -> np.ndarray:
    """(cells, 2). A Gaussian graph of neighbours in place of UMAP's own, which would be compiled anew every time."""
    import scanpy as sc  # noqa: PLC0415

    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n = min(COMPONENTS, cells.n_vars - 1, cells.n_obs - 1)
            sc.pp.pca(cells, n_comps=n, svd_solver="randomized", random_state=seed)
            sc.pp.neighbors(cells, n_neighbors=NEIGHBOURS, method="gauss", transformer="sklearn", random_state=seed)
            sc.tl.umap(cells, random_state=seed)
    finally:
        sc.settings.verbosity = verbosity
    return cells.obsm["X_umap"]


def strongest_effects(
    predictor: Predictor, targets: Sequence[str], control: pd.Series, *, most: int = 20
) -> pd.DataFrame:
    """The predicted effects of the `most` knock-outs whose means lie farthest from the control: knock-outs x genes.

    `control` is the mean of control cells (log2 units), by gene; effects are differences to it, strongest first.
    """
    names, kept = list(targets), pd.DataFrame(columns=control.index, dtype=float)
    for first in range(0, len(names), TARGETS_AT_ONCE):
        means = predictor.predict_means(names[first : first + TARGETS_AT_ONCE])
        effects = means[control.index] - control
        kept = pd.concat([kept, effects]) if len(kept) else effects
        length = (kept**2).sum(axis=1).sort_values(ascending=False, kind="stable")
        kept = kept.loc[length.index[:most]]
    return kept


def mean_of(cells: ad.AnnData, name: str, genes: pd.Index) -> pd.Series:
    """The mean of one perturbation's cells by gene; NaN for a gene that `cells` do not have."""
    own = cells[cells.obs[CRUNCH.perturbation] == name]
    return pd.Series(np.asarray(own.X.mean(axis=0)).ravel(), index=cells.var_names).reindex(genes)


@plain_style()
def heatmap(effects: pd.DataFrame, *, genes: int = 40, source: str = "") -> Figure:
    """Effects (knock-outs x genes, log2 units) on the genes that move most in any of them; like stands beside like.

    The colour scale ends where 98 % of the shown values lie, so that single genes do not bleach the rest.
    """
    strongest = effects.abs().max().nlargest(min(genes, effects.shape[1])).index
    shown = effects[strongest]
    shown = shown.iloc[_order(shown.to_numpy()), _order(shown.to_numpy().T)]
    limit = max(float(np.quantile(shown.abs(), 0.98)), 1e-6)
    size = (2.5 + 0.24 * shown.shape[1], max(4.5, 2.2 + 0.22 * len(shown)))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(shown, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_xticks(range(shown.shape[1]), shown.columns, rotation=90, fontsize=8)
    axis.set_yticks(range(len(shown)), shown.index, fontsize=8)
    axis.set(xlabel="genes that move most", ylabel="knock-outs")
    figure.suptitle(titled(f"The {len(shown)} knock-outs with the strongest predicted effects", source))
    figure.colorbar(image, label=f"effect: {EFFECT}".replace(" minus", "\nminus"), extend="both", pad=0.01)
    return figure


def _order(rows: np.ndarray) -> np.ndarray:
    """An order in which rows that are alike stand together."""
    if len(rows) < 3:
        return np.arange(len(rows))
    return hierarchy.leaves_list(hierarchy.linkage(rows, "average", optimal_ordering=True))


@plain_style()
def genes_that_move(
    predicted: pd.Series, real: pd.Series | None = None, *, name: str, most: int = 12, source: str = ""
) -> Figure:
    """Of one knock-out the `most` genes that are predicted to rise and to fall most: bars by gene, with their size.

    `predicted` and, where it was measured, `real` are effects by gene: log2 units relative to control cells.
    """
    ordered = predicted.sort_values()
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.0 + 0.24 * most), layout="constrained")
    for axis, part, title in (
        (axes[0], ordered[::-1][:most], "predicted to rise"),
        (axes[1], ordered[:most], "predicted to fall"),
    ):
        rows = np.arange(len(part))
        axis.barh(rows, part, color=BLUE, height=0.7, label="predicted")
        if real is not None:
            axis.scatter(real.reindex(part.index), rows, s=18, color=ORANGE, zorder=3, label="real")
        columns = [(part, BLUE)] if real is None else [(part, BLUE), (real.reindex(part.index), ORANGE)]
        for place, (sizes, colour) in zip((1.01, 1.13), columns, strict=False):
            for row, size in zip(rows, sizes, strict=True):
                shown = f"{size:+.2f}" if np.isfinite(size) else ""
                axis.text(place, row, shown, transform=axis.get_yaxis_transform(), va="center", color=colour)
        axis.set_yticks(rows, part.index)
        axis.invert_yaxis()
        axis.axvline(0, color=GREY, lw=1)
        axis.set_title(title)
    figure.suptitle(titled(f"Knock-out of {name}: the genes that move most", source))
    figure.supxlabel(f"effect: {EFFECT}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return figure
