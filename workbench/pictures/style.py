"""What all pictures share: colours, small text, labels of the metrics, legends beside the data, saving.

In and out: matplotlib axes and figures. Next: `data.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from contract import CRUNCH
from helpers import Challenge, replacing
from workbench.simulate import is_simulated

BLUE, ORANGE, GREY, RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#c53030"
PALE = "#e2e8f0"  # what is there for orientation only

# The states as drawn, from the bottom of a bar to its top: disjoint, so that a cell has one colour.
WHOLE_WITHOUT_PART = f"{CRUNCH.whole} without {CRUNCH.part}"
STATE_COLOURS = {"pre_adipo": "#68a0d8", "other": "#c7cbd1", WHOLE_WITHOUT_PART: "#f2c14e", CRUNCH.part: "#d1781f"}

PLAIN: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@contextmanager
def plain_style() -> Iterator[None]:
    """Figures made inside have small text and no frame on the right and above. Also a decorator.

    `mpl.rc_context` would put back all settings, and with them what a notebook sets when its first figure is made:
    that later figures are shown.
    """
    before = {name: mpl.rcParams[name] for name in PLAIN}
    mpl.rcParams.update(PLAIN)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a png beside and rename it; raises DataError when the disk is full or read-only."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def metric_label(metric: str) -> str:
    """The title of one of the crunch's metrics, its direction below: for an axis."""
    about = CRUNCH.metrics[metric]
    return f"{about.title}\n({about.direction})"


def source_of(challenge: Challenge) -> str:
    """`"demo data"` where the training cells are simulated, else empty: for the titles of pictures."""
    return "demo data" if is_simulated(challenge.train_path) else ""


def titled(what: str, source: str) -> str:
    """A picture's title; `source`, such as "demo data", is named in it unless it is empty."""
    return f"{what} ({source})" if source else what


def disjoint_states(states: pd.DataFrame) -> pd.DataFrame:
    """Shares (or 0/1 columns) of the crunch's states as four that do not overlap, in the order they are drawn."""
    without = states[CRUNCH.whole] - states[CRUNCH.part]
    return states.assign(**{WHOLE_WITHOUT_PART: without})[list(STATE_COLOURS)]


def legend_below(axes: Axes, *, columns: int = 2, gap: float = 0.16) -> None:
    """A legend under the axis label, where it covers nothing; `gap` in heights of the axes."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -gap), ncols=columns, frameon=False, borderaxespad=0.0)


def plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 0.05 and 2000 at 1, 2 and 5, not as powers of ten."""
    axis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
