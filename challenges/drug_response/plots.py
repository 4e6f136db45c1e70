"""The picture: the mean error of every method, beside the baseline's, and which to submit.

In: the long table of `evaluate`, and its choice. Out: a matplotlib figure. Next: `__main__`.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from challenges.common import picture_of_methods
from challenges.drug_response.baselines import BASELINES, REFERENCE
from challenges.drug_response.evaluate import METRICS, Choice
from workbench.evaluation.intervals import summarise


def picture(table: pd.DataFrame, choice: Choice) -> Figure:
    """One point per method: its mean RMSE over compounds, with the 95 % interval of its difference to the baseline."""
    rmse = table[table["metric"] == METRICS[0]]
    found = summarise(rmse, "sm_name", baselines=(REFERENCE,)).set_index("method")
    baseline = found.loc[REFERENCE, "value"]
    found = found.drop(index=[REFERENCE, "zeros"])
    found["low"], found["high"] = (baseline + found[f"difference_{end}"] for end in ("low", "high"))
    return picture_of_methods(
        found,
        baseline,
        trivial=BASELINES,
        best=choice.method,
        title=_message(found, baseline, choice),
        xlabel="mean row-wise RMSE (less is better); bars: 95 % interval of the difference to the baseline\n"
        f"baseline: {REFERENCE}; blue: methods; grey: trivial answers",
    )


def _message(found: pd.DataFrame, baseline: float, choice: Choice) -> str:
    models = found[~found.index.isin(list(BASELINES))]
    better = f"{(models['difference_high'] < 0).sum()} of {len(models)} methods beat the baseline beyond chance"
    if choice.method not in found.index:
        return better
    error = found.loc[choice.method, "value"]
    return f"{better}.\nSubmit {choice.method} (orange): error {error:.3f}, the baseline's {baseline:.3f}"
