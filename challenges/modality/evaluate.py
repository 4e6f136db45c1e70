"""How good is it? Every model beside the baselines on held-out cells, with intervals over cells.

In: pairs with known answers (`data.held_out`) and the names of models. Out: the table, and for the pictures each
feature's scores. RMSE and MAE run over all entries, as in the challenge; Pearson is given per feature, per cell and
overall. A constant prediction or truth has Pearson 0, as in the challenge's benchmark. Next: `plots`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats
from tqdm.auto import tqdm

from challenges.modality.data import Pair, batches_of
from challenges.modality.models import BASELINES, REFERENCE, Prediction, make_model
from workbench.tables import interval

DRAWS = 200  # of the bootstrap over cells, for the overall correlation
BLOCK = 500  # cells at a time


def evaluate(pairs: Sequence[Pair], models: Sequence[str], seed: int, device: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table `method, metric, value, low, high, n`, and `method, feature, rmse, pearson` of every feature."""
    scored: dict[str, list[tuple[pd.DataFrame, pd.DataFrame]]] = {}
    jobs = [(pair, name) for pair in pairs for name in (*BASELINES, *models)]
    for pair, name in (bar := tqdm(jobs, "Training", unit="model")):
        bar.set_postfix_str(name)
        model = make_model(name, accessibility=pair.mod1 == "ATAC", seed=seed, device=device)
        model.fit(pair.train_source.X, pair.train_target.X, batches_of(pair.train_source))
        scored.setdefault(name, []).append(sums(model.predict(pair.asked.X), pair))
    cells = {name: pd.concat([part[0] for part in parts]) for name, parts in scored.items()}
    features = {name: sum(part[1] for part in parts) for name, parts in scored.items()}
    rows = [row for name in cells for row in _rows(name, cells[name], cells[REFERENCE], features[name])]
    by_feature = pd.concat([_by_feature(found).assign(method=name) for name, found in features.items()])
    return pd.DataFrame(rows), by_feature.rename_axis("feature").reset_index()


def sums(prediction: Prediction, pair: Pair) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sums over each cell and over each feature that all scores are made of: `n, p, t, pp, tt, pt, absolute`."""
    truth = pair.answers.X
    cells, features = [], np.zeros((7, truth.shape[1]))
    for start in range(0, truth.shape[0], BLOCK):
        rows = slice(start, min(start + BLOCK, truth.shape[0]))
        P, T = prediction.block(rows).astype(np.float64), truth[rows].toarray().astype(np.float64)
        parts = np.stack([np.ones_like(P), P, T, P * P, T * T, P * T, np.abs(P - T)])
        cells.append(parts.sum(axis=2))
        features += parts.sum(axis=1)
    names = ["n", "p", "t", "pp", "tt", "pt", "absolute"]
    return (pd.DataFrame(np.concatenate(cells, axis=1).T, pair.answers.obs_names, names),
            pd.DataFrame(features.T, pair.answers.var_names, names))  # fmt: skip


def squared_error(found: pd.DataFrame) -> pd.Series:
    """Mean squared error of each row of sums."""
    return ((found["pp"] - 2 * found["pt"] + found["tt"]) / found["n"]).clip(lower=0)


def pearson(found: pd.DataFrame) -> pd.Series:
    """Pearson correlation of each row of sums; 0 where either side is constant."""
    n = found["n"]
    shared = found["pt"] - found["p"] * found["t"] / n
    own = (found["pp"] - found["p"] ** 2 / n) * (found["tt"] - found["t"] ** 2 / n)
    # Rounding leaves a constant with a variance of about 1e-16 of its size.
    flat = own <= 1e-12 * found["pp"] * found["tt"]
    return (shared / np.sqrt(own.where(~flat, 1.0))).where(~flat, 0.0)


def printed(table: pd.DataFrame) -> str:
    """The table as text: a line a method, value and half of the interval."""
    wide = table.assign(text=[f"{row.value:.4f} ± {(row.high - row.low) / 2:.4f}" for row in table.itertuples()])
    wide = wide.pivot_table("text", "method", "metric", aggfunc="first", sort=False)
    return wide.to_string()


def _rows(name: str, cells: pd.DataFrame, reference: pd.DataFrame, features: pd.DataFrame) -> list[dict]:
    error = squared_error(cells)
    mean, low, high = interval(error, ("value", "low", "high")).values()
    gain = interval(squared_error(reference) - error, ("value", "low", "high"))
    floor = squared_error(reference).mean()
    # RMSE is not linear in the squared errors: at the mean, d sqrt(m) = dm / (2 sqrt(m)).
    gains = {key: 100 * value / (2 * floor) for key, value in gain.items()}
    overall = pearson(cells.sum().to_frame().T).iloc[0]
    metrics = {
        "RMSE": {"value": mean**0.5, "low": max(low, 0.0) ** 0.5, "high": high**0.5, "n": len(cells)},
        "RMSE gained on the mean, %": {**gains, "n": len(cells)},
        "MAE": {**interval(cells["absolute"] / cells["n"], ("value", "low", "high")), "n": len(cells)},
        "Pearson per feature": {**interval(pearson(features), ("value", "low", "high")), "n": len(features)},
        "Pearson per cell": {**interval(pearson(cells), ("value", "low", "high")), "n": len(cells)},
        "Pearson overall": {"value": overall, **_bootstrapped(cells), "n": len(cells)},
    }
    return [{"method": name, "metric": metric, **values} for metric, values in metrics.items()]


def _bootstrapped(cells: pd.DataFrame) -> dict[str, float]:
    """95 % interval of the overall correlation, cells drawn with replacement."""
    counts = np.random.default_rng(0).multinomial(len(cells), np.full(len(cells), 1 / len(cells)), DRAWS)
    drawn = pearson(pd.DataFrame(counts @ cells.to_numpy(), columns=cells.columns))
    half = scipy.stats.norm.ppf(0.975) * drawn.std()
    return {"low": drawn.mean() - half, "high": drawn.mean() + half}


def _by_feature(features: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"rmse": squared_error(features) ** 0.5, "pearson": pearson(features)})
