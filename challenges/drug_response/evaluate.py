"""How good is it? Every model beside the baselines, on known answers or on folds in the shape of the test.

In: responses, the names of models, and where there is one a table of answers. Out: one row a row of the test, method
and metric; `workbench.tables` makes intervals over compounds and paired differences of it. Next: `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from challenges.drug_response.data import TRAIN_FILE
from challenges.drug_response.folds import held_out
from challenges.drug_response.models import BASELINES, REFERENCE, Model, Options, fit_model
from helpers import DataError, some
from workbench.tables import summarise

METRICS = ("mean row-wise RMSE", "error relative to zeros", "MAE", "Pearson", "cosine")
HIGHER_IS_BETTER = ("Pearson", "cosine")
DIFFERENCE = ("difference", "difference_low", "difference_high")


def on_truth(responses: pd.DataFrame, truth: pd.DataFrame, fitted: Mapping[str, Model]) -> pd.DataFrame:
    """Scores of the rows of `truth` by the baselines and by models that were trained on `responses`.

    Raises DataError where `truth` has other genes, or rows that training has.
    """
    if len(odd := truth.columns.symmetric_difference(responses.columns)):
        raise DataError(f"--truth: genes that do not agree with {TRAIN_FILE}: {some(odd)}")
    if len(both := truth.index.intersection(responses.index)):
        raise DataError(f"--truth: rows that are in {TRAIN_FILE} too: {some(' in '.join(pair[::-1]) for pair in both)}")
    truth = truth[responses.columns]
    models = {name: make().fit(responses) for name, make in BASELINES.items()} | dict(fitted)
    return pd.concat([scores(model.predict(truth.index), truth, name) for name, model in models.items()])


def on_folds(responses: pd.DataFrame, models: Sequence[str], options: Options) -> pd.DataFrame:
    """Scores on each well-covered cell type, held out but for a few compounds; all is fitted inside the fold."""
    parts = []
    for cell_type, train, test in (folds := tqdm(list(held_out(responses, options.seed)), "Folds", unit="fold")):
        first: Model | None = None
        for name in (*BASELINES, *models):
            folds.set_postfix_str(f"{cell_type}: {name}")
            if name in BASELINES:
                model = BASELINES[name]().fit(train)
            else:
                model = fit_model(name, train, test.index, options, first)
            first = model if name == "stage_1" else first
            parts.append(scores(model.predict(test.index), test, name))
    if not parts:
        raise DataError(f"{TRAIN_FILE}: no cell type has half of the compounds, so none can be held out; give --truth")
    return pd.concat(parts, ignore_index=True)


def scores(prediction: pd.DataFrame, truth: pd.DataFrame, method: str) -> pd.DataFrame:
    """One row a row of the truth and metric: `method, cell_type, sm_name, metric, value`.

    RMSE, MAE, Pearson and cosine are of a row over its genes; a constant row has Pearson and cosine 0. The error
    relative to zeros is the row's RMSE over that of predicting no response.
    """
    P, T = prediction.loc[truth.index, truth.columns].to_numpy(np.float64), truth.to_numpy(np.float64)
    rmse = np.sqrt(((P - T) ** 2).mean(axis=1))
    size = np.sqrt((T**2).mean(axis=1))
    values = dict(
        zip(
            METRICS,
            (
                rmse,
                rmse / np.where(size > 0, size, np.nan),
                np.abs(P - T).mean(axis=1),
                _cosine(P - P.mean(axis=1, keepdims=True), T - T.mean(axis=1, keepdims=True)),
                _cosine(P, T),
            ),
            strict=True,
        )
    )
    table = pd.DataFrame(values, truth.index).reset_index()
    return table.melt(truth.index.names, var_name="metric").assign(method=method)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`method, metric, value, low, high, n`, and the paired difference to `baseline`, over compounds.

    The baseline is the mix of the two means; of stage 2, where stage 1 was scored too, it is stage 1.
    """
    found, to_first = (
        summarise(table, "sm_name", metrics=METRICS, higher_is_better=HIGHER_IS_BETTER, baselines=names)
        for names in ((REFERENCE,), ("stage_1", REFERENCE))
    )
    later = found["method"].str.startswith("stage_2")
    return pd.concat([found[~later], to_first[later]]).sort_index()


def tidy(found: pd.DataFrame) -> pd.DataFrame:
    """`method, metric, value, low, high, n`; a paired difference is a metric of its own, which names the baseline."""
    columns = ["value", "low", "high"]
    paired = found.drop(columns=columns).rename(columns=dict(zip(DIFFERENCE, columns, strict=True)))
    paired["metric"] += " minus that of " + paired["baseline"]
    return pd.concat([found, paired])[["method", "metric", *columns, "n"]]


def printed(found: pd.DataFrame) -> str:
    """The summary as text: a line a method, mean ± half of the 95 % interval."""
    lines = [f"{'':34}" + "".join(f"{name:>26}" for name in METRICS)]
    for method in found["method"].unique():
        rows = found[found["method"] == method].set_index("metric")
        cells = [
            f"{rows.loc[name, 'value']:.4f} ± {rows.loc[name, 'high'] - rows.loc[name, 'value']:.4f}"
            for name in METRICS
        ]
        lines.append(f"{method:34}" + "".join(f"{cell:>26}" for cell in cells))
    for row in found[(found["metric"] == METRICS[0]) & (found["baseline"] == "stage_1")].itertuples():
        gain = f"{row.difference:+.4f} ({row.difference_low:+.4f} to {row.difference_high:+.4f})"
        lines.append(f"{row.method} - stage_1: {gain} {METRICS[0]}, paired over {row.n} compounds")
    return "\n".join(lines)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.where(size > 0, size, 1.0)
