"""What the tables and screens add: one row each, a point with a bar, and a line at 0.

In: a fitted `ResponseModel`, or rows of differences. Out: matplotlib figures, or axes that are drawn on.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from response import ResponseModel
from workbench.pictures.style import BLUE, GREY, legend_below, plain_style, titled

LONGEST = 44  # characters of a name


@plain_style()
def what_helps(model: ResponseModel, *, source: str = "") -> Figure:
    """What each table and screen adds to the correlation out of fold, on the training knock-outs; most on top.

    Bars are one standard error; grey rows were left out of the model. A label says how many of the knock-outs it knows.
    """
    judged = model.judged_.sort_values("gain", ascending=False)
    rows = pd.DataFrame(
        {
            "difference": judged["gain"],
            "low": judged["gain"] - judged["standard_error"],
            "high": judged["gain"] + judged["standard_error"],
            "colour": [BLUE if enters else GREY for enters in judged["enters"]],
        }
    ).set_axis([f"{short(str(name))} (knows {share:.0%})" for name, share in judged["coverage"].items()])
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.3 * len(rows)), layout="constrained")
    gain_rows(axes, rows, {"it enters the model": BLUE, "it is left out": GREY})
    axes.set(xlabel="gain in Pearson out of fold, with it - without it (bar: one standard error)")
    figure.suptitle(titled("What each table adds on the training knock-outs", source))
    return figure


def gain_rows(axes: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    """One row for each of `rows` (`difference`, `low`, `high`, `colour`), the first on top; `colours` by meaning."""
    for place, row in enumerate(rows.itertuples()):
        axes.plot([row.low, row.high], [place, place], color=row.colour, lw=2)
        axes.scatter([row.difference], [place], s=36, color=row.colour)
    for meaning, colour in colours.items():
        axes.plot([], [], "o-", color=colour, label=meaning)
    axes.axvline(0, color="black", lw=1, ls=":")
    axes.set_yticks(range(len(rows)), rows.index)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    legend_below(axes, columns=len(colours), gap=0.6 / max(len(rows), 3) + 0.1)


def short(name: str) -> str:
    """A long name with its middle left out."""
    half = LONGEST // 2 - 2
    return name if len(name) <= LONGEST else f"{name[:half]}...{name[-half:]}"
