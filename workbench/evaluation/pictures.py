"""Pictures of a cross-validation: who wins, where, what the model relies on, and whether it knows how sure it is.

In: the table of `workbench.cross_validate` (one row per method, perturbation and metric), or a fitted `ResponseModel`.
Out: matplotlib figures or axes; axes carry units, and the baseline stands beside what is compared with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contract import CRUNCH
from response import ResponseModel
from workbench.compare import CEILING
from workbench.cross_validate import BASELINES
from workbench.evaluation.folds import TRUE_MEAN
from workbench.evaluation.methods import WITHOUT
from workbench.evaluation.verdicts import HARMS, HELPS, UNCLEAR
from workbench.pictures.knowledge import gain_rows, short
from workbench.pictures.style import BLUE, GREY, ORANGE, RED, metric_label

LABELS = {name: metric_label(name) for name in CRUNCH.metrics}
LABELS["pearson"] = "Pearson with the training mean as reference\n(higher is better)"
CHANCE = {"pearson": 0.0, "pearson_delta": 0.0}
VERDICT_COLOURS = {HELPS: BLUE, HARMS: RED, UNCLEAR: GREY}


def by_perturbation(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Perturbations x methods: the mean over seeds, draws and panels, methods in the table's order."""
    part = table[table["metric"] == metric]
    wide = part.pivot_table(index="perturbation", columns="method", values="value", sort=False)
    return wide[part["method"].unique()]


def strips(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """One panel per metric, one row per method: points are perturbations, a bar the mean, a line the baseline."""
    values = {metric: by_perturbation(table, metric) for metric in metrics}
    most, n = max(wide.shape[1] for wide in values.values()), len(metrics)
    size = (4.0 + 4.0 * n, 0.9 + 0.3 * most)
    figure, axes = plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)
    shown: list[str] = []
    submitted = set(table.loc[table["submitted"], "method"])
    for axis, (metric, wide) in zip(axes[0], values.items(), strict=True):
        strip(axis, wide, metric, submitted)
        if list(wide.columns) == shown:  # the panel to the left names them
            axis.set_yticklabels([])
        shown = list(wide.columns)
    return figure


def strip(axis: Axes, wide: pd.DataFrame, metric: str, submitted: Collection[str] = ()) -> None:
    """One metric (perturbations x methods), jittered so that points do not hide each other; `submitted` in blue."""
    generator = np.random.default_rng(0)
    for row, method in enumerate(wide):
        points = wide[method].dropna()
        colour = BLUE if method in submitted else RED if method in (CEILING, TRUE_MEAN) else GREY
        size = 18 if len(points) < 100 else 4
        axis.scatter(points, row + generator.uniform(-0.25, 0.25, len(points)), s=size, color=colour, alpha=0.6, lw=0)
        axis.plot([points.mean()] * 2, [row - 0.38, row + 0.38], color="black", lw=2)
    baseline = next((name for name in reversed(BASELINES) if name in wide), None)
    line = CHANCE.get(metric, wide[baseline].mean() if baseline else np.nan)
    if np.isfinite(line):
        label = "no better than the mean" if metric in CHANCE else f"baseline: {baseline}"
        axis.axvline(line, color="black", lw=1, ls=":", label=label)
        axis.legend(fontsize=8, loc="best")
    axis.set(xlabel=LABELS.get(metric, metric), xscale="log" if metric == "mmd" else "linear")
    axis.set_yticks(range(wide.shape[1]), wide.columns)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)


def score_against(axis: Axes, wide: pd.DataFrame, covariate: pd.Series, *, label: str, metric: str) -> None:
    """Scores (perturbations x methods) against one number per perturbation, with the mean in five equal groups."""
    colours = dict(zip(wide.columns, (BLUE, ORANGE, GREY, RED), strict=False))
    for method, colour in colours.items():
        both = pd.DataFrame({"x": covariate, "y": wide[method]}).dropna()
        axis.scatter(both["x"], both["y"], s=14, color=colour, alpha=0.4, lw=0)
        groups = both.groupby(pd.qcut(both["x"], min(5, len(both)), duplicates="drop"), observed=True).mean()
        axis.plot(groups["x"], groups["y"], "o-", color=colour, lw=2, label=f"{method} (means of fifths)")
    if metric in CHANCE:
        axis.axhline(CHANCE[metric], color="black", lw=1, ls=":", label="no better than the mean")
    axis.set(xlabel=label, ylabel=LABELS.get(metric, metric))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def kernel_weights(axis: Axes, model: ResponseModel) -> None:
    """Learned weight of each table's kernel in a fitted model, and the share of the training perturbations it knows."""
    weights = model.weights_.sort_values()
    axis.barh(range(len(weights)), weights, color=[GREY if name == "constant" else BLUE for name in weights.index])
    coverage = [model.judged_["coverage"].get(name.split(", power ")[0]) for name in weights.index]
    known = ["" if share is None else f", knows {share:.0%}" for share in coverage]  # the constant knows nobody
    names = [short(name) + text for name, text in zip(weights.index, known, strict=True)]
    axis.set_yticks(range(len(weights)), names)
    axis.axvline(1.0, color="black", lw=1, ls=":", label="variance of the noise")
    axis.set(xscale="log", xlabel="learned weight of the kernel (in units of the noise variance)")
    axis.legend(fontsize=8, loc="lower right")


def verdicts(axis: Axes, found: pd.DataFrame, *, unit: str) -> None:
    """What each table or screen adds (rows of `evaluation.verdicts.verdicts`): paired differences, 95 % intervals."""
    rows = found.assign(colour=found["verdict"].map(VERDICT_COLOURS))
    rows.index = pd.Index([short(name.removeprefix(WITHOUT)) for name in rows.index])
    gain_rows(axis, rows, VERDICT_COLOURS)
    axis.set(xlabel=f"{unit}, with it - without it (bar: 95 % interval)")


def calibration(axis: Axes, table: pd.DataFrame, method: str, *, unit: str, bins: int = 8) -> None:
    """Expected against actual length of the error of held-out predictions, in bins of equal numbers."""
    expected, actual = (by_perturbation(table, metric)[method] for metric in ("expected_error", "error"))
    groups = pd.qcut(expected.rank(method="first"), min(bins, len(expected)))
    square = pd.DataFrame({"expected": expected**2, "actual": actual**2}).groupby(groups, observed=True)
    middle, spread = np.sqrt(square.mean()), np.sqrt(square["actual"].quantile([0.25, 0.75]).unstack())  # noqa: PD010
    axis.scatter(expected, actual, s=5, color=GREY, alpha=0.5, lw=0, label="a perturbation")
    bars = np.abs(np.array([middle["actual"] - spread[0.25], spread[0.75] - middle["actual"]]))
    axis.errorbar(
        middle["expected"],
        middle["actual"],
        yerr=bars,
        fmt="o",
        color=BLUE,
        label="root mean square in a bin, middle half",
    )
    ends = [min(expected.min(), actual.min()), max(expected.max(), actual.max())]
    axis.plot(ends, ends, color="black", lw=1, ls=":", label="expected = actual")
    axis.set(xlabel=f"expected length of the error ({unit})", ylabel=f"actual length ({unit})")
    axis.legend(fontsize=8)


def gene_set_effect(axis: Axes, true: pd.DataFrame, predicted: pd.DataFrame, name: str, *, unit: str) -> None:
    """Predicted against true effect on one gene set: a point a held-out perturbation, the mean over the set's genes.

    `true` and `predicted` are perturbations x the genes of the set, both relative to the mean of the training ones.
    """
    x, y = true.mean(axis=1), predicted.mean(axis=1)
    axis.scatter(x, y, s=10, color=BLUE, alpha=0.6, lw=0, label="a held-out perturbation")
    axis.axhline(0, color=GREY, lw=1, label="training mean (baseline)")
    ends = [x.min(), x.max()]
    axis.plot(ends, ends, color="black", lw=1, ls=":", label="predicted = true")
    for perturbation in x.nlargest(3).index:
        axis.annotate(
            perturbation, (x[perturbation], y[perturbation]), xytext=(3, 3), textcoords="offset points", fontsize=8
        )
    axis.set(
        xlabel=f"true effect on the set ({unit})",
        ylabel=f"predicted effect ({unit})",
        title=f"{name}\n{true.shape[1]} genes, r = {np.corrcoef(x, y)[0, 1]:.2f}",
    )
    axis.title.set_fontsize(9)
    axis.legend(fontsize=8)
