"""Tidy tables: one row per method and metric, with a 95 % interval over independent units and a paired difference.

In: a long table, one row a measured value, with the columns `metric`, `value`, one that names the method and one that
names the unit (a perturbation, a batch, a compound). Out: `method, metric, value, low, high, n, ...`.
`workbench.cross_validate` and the sister systems in `challenges/` share it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from helpers import replacing


def summarise(
    table: pd.DataFrame,
    unit: str,
    *,
    method: str = "method",
    metrics: Sequence[str] | None = None,
    higher_is_better: Collection[str] = (),
    baselines: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per method and metric, in the order of `metrics` (default: as they come).

    Within a unit the mean over whatever was repeated (seeds, panels) is taken first. `value` is the mean over the `n`
    units, `low` to `high` its 95 % interval: mean ± t(0.975, n - 1) standard errors over units. `difference`, with its
    interval, is the mean paired difference to the first of `baselines` that has the metric, over the units that both
    have; `win_rate` the share of them on which the method is better, a tie counting half.
    """
    values = table.groupby(["metric", method, unit], sort=False)["value"].mean()
    rows = []
    for metric in [name for name in (metrics or table["metric"].unique()) if name in values]:
        wide = values[metric].unstack(method)  # noqa: PD010 - one value each
        reference = next((name for name in baselines if name in wide), None)
        for name in [name for name in table[method].unique() if name in wide]:
            row = {method: name, "metric": metric, **interval(wide[name], ("value", "low", "high"))}
            row["n"] = int(wide[name].notna().sum())
            if reference is not None:
                gain = (wide[name] - wide[reference]).dropna()
                better = gain if metric in higher_is_better else -gain
                row["baseline"] = reference
                row |= interval(gain, ("difference", "difference_low", "difference_high"))
                row["win_rate"] = float(((better > 0) + 0.5 * (better == 0)).mean()) if len(gain) else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def interval(values: pd.Series, names: tuple[str, str, str]) -> dict[str, float]:
    """Mean and 95 % t interval over the units, under these names; no interval for a single value."""
    values = values.dropna()
    mean = float(values.mean())
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.sem() if len(values) > 1 else np.nan
    return dict(zip(names, (mean, mean - float(half), mean + float(half)), strict=True))


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a csv beside and rename it; raises DataError when the disk is full or read-only."""
    with replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False)
