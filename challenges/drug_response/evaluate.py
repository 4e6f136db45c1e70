"""How good is it, and which method is to be submitted? On known answers, or on folds in the shape of the test.

In: responses, methods, and where there is one a table of answers. Out: a long table, one line per row of the test,
method and metric; its summary with intervals over compounds and paired differences; and a choice. It is made on folds
of the training data alone, whatever the answers say, by this rule:

    The method with the least mean row-wise RMSE out of fold, or the fastest of those that it does not beat by more
    than chance (the paired 95 % interval over compounds holds 0).

Next: `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from challenges.drug_response.baselines import BASELINES, REFERENCE
from challenges.drug_response.compounds import NewCompounds, compounds_left_out, has_rdkit
from challenges.drug_response.data import TRAIN_FILE
from challenges.drug_response.fitted import Fitted
from challenges.drug_response.folds import held_out
from challenges.drug_response.models import METHODS, Settings, fit_model
from helpers import DataError, row_correlations, some
from workbench.evaluation.intervals import summarise

METRICS = ("mean row-wise RMSE", "error relative to zeros", "MAE", "Pearson", "cosine")
HIGHER_IS_BETTER = ("Pearson", "cosine")
RULE = (
    "the method with the least mean row-wise RMSE on folds of the training data, or the fastest of those "
    "that it does not beat by more than chance (paired 95 % interval over compounds)"
)


def on_truth(responses: pd.DataFrame, truth: pd.DataFrame, fitted: Mapping[str, Fitted]) -> pd.DataFrame:
    """Measure the baselines, and models that were trained on `responses`, on the rows of `truth` (see `measure`).

    Raises DataError where `truth` has other genes, or rows that training has.
    """
    if len(odd := truth.columns.symmetric_difference(responses.columns)):
        raise DataError(f"--truth: genes that do not agree with {TRAIN_FILE}: {some(odd)}")
    if len(both := truth.index.intersection(responses.index)):
        raise DataError(f"--truth: rows that are in {TRAIN_FILE} too: {some(' in '.join(pair[::-1]) for pair in both)}")
    truth = truth[responses.columns]
    models = {name: make().fit(responses) for name, make in BASELINES.items()} | dict(fitted)
    return pd.concat([measure(model.predict(truth.index), truth, name) for name, model in models.items()])


def on_folds(responses: pd.DataFrame, methods: Sequence[str], settings: Settings) -> pd.DataFrame:
    """Measure the baselines and `methods` on each well-covered cell type, held out but for a few compounds.

    Everything is fitted inside the fold. Raises DataError where no cell type can be held out.
    """
    parts = []
    for cell_type, train, test in (folds := tqdm(list(held_out(responses, settings.seed)), "Folds", unit="fold")):
        models = {}
        for name in (*BASELINES, *methods):
            folds.set_postfix_str(f"{cell_type}: {name}")
            if name in BASELINES:
                models[name] = BASELINES[name]().fit(train)
            else:
                models[name] = fit_model(name, train, test.index, settings, models)
            parts.append(measure(models[name].predict(test.index), test, name))
    if not parts:
        raise DataError(f"{TRAIN_FILE}: no cell type has half of the compounds, so none can be held out; give --truth")
    return pd.concat(parts, ignore_index=True)


def out_of_fold(responses: pd.DataFrame, fitted: Mapping[str, Fitted], seed: int = 0) -> pd.DataFrame:
    """Measure what fitted methods predicted for the folds of their own training, and the baseline there."""
    parts = [measure(model.out_of_fold, responses.loc[model.out_of_fold.index], name) for name, model in fitted.items()]
    for _, train, test in held_out(responses, seed):
        parts.append(measure(BASELINES[REFERENCE]().fit(train).predict(test.index), test, REFERENCE))
    return pd.concat(parts, ignore_index=True)


def unseen_text(responses: pd.DataFrame, structures: pd.Series, seed: int = 0) -> str:
    """How well compounds are predicted that were never measured: a tenth of them left out of all cell types at a time.

    With structures and RDKit, their place beside similar compounds is held against the mean of the cell type.
    """
    placed, mean = "place by structure", "mean of the cell type"
    with_places = len(structures) > 0 and has_rdkit()
    parts = []
    for train, test in compounds_left_out(responses, seed):
        model = NewCompounds().fit(train, structures)
        parts.append(measure(test * 0, test, "zeros"))
        parts.append(measure(model.predict(test.index), test, mean))
        if with_places:
            parts.append(measure(model.predict(test.index, structures), test, placed))
    table = pd.concat(parts)
    found = summarise(table[table["metric"] == METRICS[0]], "sm_name", baselines=(mean,)).set_index("method")
    values = ", ".join(f"{name} {row['value']:.4f}" for name, row in found.iterrows())
    text = f"Compounds that were never measured (all rows of a tenth of the compounds left out in turn): {values}"
    if with_places:
        low, high = found.loc[placed, ["difference_low", "difference_high"]]
        verdict = "better" if high < 0 else "worse" if low > 0 else "no different beyond chance"
        gap = f"{found.loc[placed, 'difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        return f"{text}; by structure {verdict}: {gap}."
    why = "RDKit is not installed (pip install rdkit)" if len(structures) else f"{TRAIN_FILE} has no SMILES"
    return f"{text}. {why}, so they get the mean of the cell type."


@dataclass(frozen=True)
class Choice:
    """The method to submit (None where nothing could be held out), and the reason in words."""

    method: str | None
    text: str


def choose(table: pd.DataFrame) -> Choice:
    """Which of the methods in a long table of folds to submit, by the rule above."""
    rmse = table[table["metric"] == METRICS[0]]
    methods = [name for name in METHODS if name in set(rmse["method"])]
    if not methods:
        return Choice(None, "Which to submit: unknown, since no cell type has half of the compounds to be held out.")
    means = summarise(rmse, "sm_name").set_index("method")["value"]
    best = str(means[methods].idxmin())
    found = summarise(rmse, "sm_name", baselines=(best,)).set_index("method")
    chosen = next(name for name in methods if name == best or found.loc[name, "difference_low"] <= 0)
    lines = [f"Which to submit. Rule, stated beforehand: {RULE}."]
    for name in [REFERENCE, *methods]:
        row = found.loc[name]
        worse = f"{row['difference']:+.4f} ({row['difference_low']:+.4f} to {row['difference_high']:+.4f}) to {best}"
        lines.append(f"  {name}: {row['value']:.4f}" + ("" if name == best else f", {worse}"))
    why = "the best out of fold" if chosen == best else f"faster than {best}, which is not better by more than chance"
    if found.loc[REFERENCE, "difference_low"] <= 0:
        why += "; but no method beats the baseline by more than chance"
    return Choice(chosen, "\n".join([*lines, f"Submit {chosen}: {why}."]))


def measure(prediction: pd.DataFrame, truth: pd.DataFrame, method: str) -> pd.DataFrame:
    """One line per row of the truth and metric: `method, cell_type, sm_name, metric, value`.

    RMSE, MAE, Pearson and cosine are of a row over its genes; a constant row has Pearson and cosine 0. The error
    relative to zeros is the row's RMSE over that of predicting no response.
    """
    P, T = prediction.loc[truth.index, truth.columns].to_numpy(np.float64), truth.to_numpy(np.float64)
    rmse = np.sqrt(((P - T) ** 2).mean(axis=1))
    size = np.sqrt((T**2).mean(axis=1))
    relative = rmse / np.where(size > 0, size, np.nan)
    columns = (rmse, relative, np.abs(P - T).mean(axis=1), row_correlations(P, T), _cosines(P, T))
    table = pd.DataFrame(dict(zip(METRICS, columns, strict=True)), truth.index).reset_index()
    return table.melt(truth.index.names, var_name="metric").assign(method=method)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`method, metric, value, low, high, n`, and the paired difference to `baseline`, over compounds.

    The baseline is the mix of the two means; of stage 2, where stage 1 was measured too, it is stage 1.
    """
    to_mix, to_first = (
        summarise(table, "sm_name", metrics=METRICS, higher_is_better=HIGHER_IS_BETTER, baselines=names)
        for names in ((REFERENCE,), ("stage_1", REFERENCE))
    )
    later = to_mix["method"].str.startswith("stage_2")
    return pd.concat([to_mix[~later], to_first[later]]).sort_index()


def differences_text(found: pd.DataFrame) -> str:
    """Each method's paired difference to its baseline in the first metric, with the interval: a line per method."""
    rows = found[(found["metric"] == METRICS[0]) & (found["method"] != found["baseline"])]
    return "\n".join(
        f"{row.method} - {row.baseline}: {row.difference:+.4f} "
        f"({row.difference_low:+.4f} to {row.difference_high:+.4f}) {METRICS[0]}, paired over {row.n} compounds"
        for row in rows.itertuples()
        if row.method not in BASELINES
    )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of a with that row of b, both rows x genes; 0 where a row is all zeros."""
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.where(size > 0, size, 1.0)
