"""How good is it? Every model beside the baselines on held-out cells, with intervals over cells.

In: pairs with known answers (`folds.held_out`) and methods. Out: the table, and for the pictures each feature's
measures. RMSE and MAE run over all entries, as in the challenge; Pearson is given per feature, per cell and
overall. A constant prediction or truth has Pearson 0, as in the challenge's benchmark. Next: `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from challenges.common import COLUMNS
from challenges.modality.baselines import BASELINES, REFERENCE
from challenges.modality.data import Pair, Prediction, batch_names, batches_of
from challenges.modality.models import make_model
from challenges.modality.networks import LOSSES
from helpers import row_correlations
from workbench.evaluation.intervals import interval

GAIN = "RMSE gained on the mean (%)"
DRAWS = 200  # of the bootstrap over cells, for the overall correlation
BLOCK = 100  # cells at a time


@dataclass(frozen=True)
class Measured:
    """`table`: `method, metric, value, low, high, n`. `by_feature`: `method, feature, rmse, pearson`.

    `last` is the last pair that was held out, `predictions` what each method predicted for it: for the pictures.
    """

    table: pd.DataFrame
    by_feature: pd.DataFrame
    last: Pair
    predictions: dict[str, Prediction]


def on_folds(pairs: Sequence[Pair], methods: Sequence[str], seed: int, device: str, loss: str = LOSSES[0]) -> Measured:
    """Fit the baselines and `methods` on each pair's training cells and measure them on its test cells.

    Intervals are over held-out batches where there are several, else over cells: cells of a batch share its fate.
    """
    measured: dict[str, list[tuple[pd.DataFrame, pd.DataFrame]]] = {}
    predictions = {}
    jobs = [(pair, name) for pair in pairs for name in (*BASELINES, *methods)]
    for pair, name in (bar := tqdm(jobs, "Training", unit="model")):
        bar.set_postfix_str(name)
        peaks = {"accessibility": pair.mod1 == "ATAC", "sparse": pair.mod2 == "ATAC"}
        model = make_model(name, **peaks, seed=seed, device=device, loss=loss)
        model.fit(pair.train_source.X, pair.train_target.X, batches_of(pair.train_source))
        predictions[name] = model.predict(pair.asked.X, pair.measured)
        measured.setdefault(name, []).append(sums(predictions[name], pair))
        if name not in BASELINES:
            bar.write(f"{name}: {model.chosen()}{_sparse_cost(predictions[name], pair)}")
    cells = {name: pd.concat([part[0] for part in parts]) for name, parts in measured.items()}
    features = {name: _by_feature([part[1] for part in parts]) for name, parts in measured.items()}
    units = _units(pairs)
    rows = [row for name in cells for row in _rows(name, cells[name], cells[REFERENCE], features[name], units)]
    by_feature = pd.concat([found.assign(method=name) for name, found in features.items()])
    table = pd.DataFrame(rows)[COLUMNS]
    return Measured(table, by_feature.rename_axis("feature").reset_index(), pairs[-1], predictions)


def _units(pairs: Sequence[Pair]) -> np.ndarray:
    """What is independent: the batch of each held-out cell where there are several, else the cell."""
    batches = np.concatenate([batch_names(pair.asked) for pair in pairs])
    return batches if len(set(batches)) > 1 else np.arange(len(batches))


def sums(prediction: Prediction, pair: Pair) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sums over each cell and over each feature that all measures are made of: `n, p, t, pp, tt, pt, absolute`.

    That of the cells has their Pearson correlation as well; features are seen whole only when all blocks are summed.
    """
    truth = pair.answers.X
    cells, correlations, features = [], [], np.zeros((7, truth.shape[1]))
    for start in range(0, truth.shape[0], BLOCK):
        rows = slice(start, min(start + BLOCK, truth.shape[0]))
        P, T = prediction.block(rows).astype(np.float64), truth[rows].toarray().astype(np.float64)
        parts = np.stack([np.ones_like(P), P, T, P * P, T * T, P * T, np.abs(P - T)])
        cells.append(parts.sum(axis=2))
        features += parts.sum(axis=1)
        correlations.append(row_correlations(P, T))
    names = ["n", "p", "t", "pp", "tt", "pt", "absolute"]
    by_cell = pd.DataFrame(np.concatenate(cells, axis=1).T, pair.answers.obs_names, names)
    return (
        by_cell.assign(pearson=np.concatenate(correlations)),
        pd.DataFrame(features.T, pair.answers.var_names, names),
    )


def _sparse_cost(prediction: Prediction, pair: Pair) -> str:
    """What its threshold costs in the file, in words; nothing where the file is dense. The table is without it."""
    if not prediction.threshold:
        return ""
    whole, sparse = (
        squared_error(sums(one, pair)[0]).mean() ** 0.5
        for one in (prediction, replace(prediction, block=prediction.written))
    )
    n = prediction.shape[0]
    n_kept = sum(int((prediction.written(slice(i, i + BLOCK)) != 0).sum()) for i in range(0, n, BLOCK))
    kept = f"{n_kept / np.prod(prediction.shape):.0%} of values from {prediction.threshold:.3g} on"
    return f"; files are sparse: the {kept} are kept, which costs {100 * (sparse / whole - 1):.3f} % of the RMSE"


def squared_error(found: pd.DataFrame) -> pd.Series:
    """Mean squared error of each row of sums."""
    return ((found["pp"] - 2 * found["pt"] + found["tt"]) / found["n"]).clip(lower=0)


def pearson(found: pd.DataFrame) -> pd.Series:
    """Pearson correlation from each row of sums, where the values are never all in memory; 0 where one is constant."""
    n = found["n"]
    shared = found["pt"] - found["p"] * found["t"] / n
    own = (found["pp"] - found["p"] ** 2 / n) * (found["tt"] - found["t"] ** 2 / n)
    # Rounding leaves a constant with a variance of about 1e-16 of its size.
    flat = own <= 1e-12 * found["pp"] * found["tt"]
    return (shared / np.sqrt(own.where(~flat, 1.0))).where(~flat, 0.0)


def _rows(
    name: str, cells: pd.DataFrame, reference: pd.DataFrame, features: pd.DataFrame, units: np.ndarray
) -> list[dict]:
    error, floor = squared_error(cells), squared_error(reference)
    found = _interval(error, units)
    # a - b = (a² - b²) / (a + b): the paired difference of squared errors, in percent of the mean's RMSE.
    scale = 100 / (floor.mean() + (floor.mean() * error.mean()) ** 0.5)
    overall = pearson(cells.sum().to_frame().T).iloc[0]
    metrics = {
        "RMSE": {key: max(value, 0.0) ** 0.5 if key != "n" else value for key, value in found.items()},
        GAIN: _interval((floor - error) * scale, units),
        "MAE": _interval(cells["absolute"] / cells["n"], units),
        "Pearson per feature": {**interval(features["pearson"], ("value", "low", "high")), "n": len(features)},
        "Pearson per cell": _interval(cells["pearson"], units),
        "Pearson overall": {"value": overall, **_bootstrapped(cells, units)},
    }
    return [{"method": name, "metric": metric, **values} for metric, values in metrics.items()]


def _interval(values: pd.Series, units: np.ndarray) -> dict[str, float]:
    """Mean over cells, and its 95 % t interval with whole units as what was drawn.

    What a unit adds to the mean, its total deviation over the mean number of cells per unit, is one independent value.
    """
    mean = float(values.mean())
    totals = (values - mean).groupby(units).sum()
    n = len(totals)
    return {**interval(mean + totals * n / len(values), ("value", "low", "high")), "value": mean, "n": n}


def _bootstrapped(cells: pd.DataFrame, units: np.ndarray) -> dict[str, float]:
    """95 % interval of the overall correlation, units drawn with replacement."""
    totals = cells.groupby(units).sum()
    n = len(totals)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)
    low, high = np.quantile(pearson(pd.DataFrame(counts @ totals.to_numpy(), columns=totals.columns)), (0.025, 0.975))
    return {"low": float(low), "high": float(high), "n": n}


def _by_feature(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """RMSE over all held-out cells; Pearson within each fold, averaged, so that a fold's mean earns nothing."""
    correlation = sum(pearson(found) for found in folds) / len(folds)
    return pd.DataFrame({"rmse": squared_error(sum(folds)) ** 0.5, "pearson": correlation})
