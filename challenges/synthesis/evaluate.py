"""How believable synthetic cells are: each generator against held-out real cells that none of them has seen.

In: training cells, held-out cells, fitted `CellGAN`s. Out: a long table of measured values, and its summary. In each
draw the held-out cells are halved by type: one half is the truth, the other the ceiling ("real held-out cells"); every
generator makes as many cells of each type as the truth has. Next: `mixing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from challenges.common import COLUMNS, derived_seed
from challenges.synthesis.baselines import INDEPENDENT, REAL, TRAINING, independent, resampled
from challenges.synthesis.data import Cells
from challenges.synthesis.folds import split
from challenges.synthesis.models import CellGAN
from helpers import DataError, mmd, row_correlations, squared_distances, text_time
from workbench.evaluation.intervals import summarise

METRICS = [
    "zero_rate_correlation_by_gene",
    "zero_rate_correlation_by_type_and_gene",
    "zero_rate_difference",
    "zero_rate_difference_by_type",
    "mean_correlation_by_gene",
    "mean_correlation_by_type_and_gene",
    "variance_correlation_by_gene",
    "variance_correlation_by_type_and_gene",
    "library_size_ks",
    "library_size_ratio",
    "library_size_spread_ratio",
    "gene_correlation",
    "gene_correlation_within_types",
    "mmd",
    "real_or_synthetic_auc",
    "real_or_synthetic_accuracy",
    "accuracy_on_real",
    "accuracy_relative_to_real",
    "nearest_training_cell_ratio",
    "share_of_types",
]
AT_MOST = 500  # cells on either side of a comparison, and 3 times as many to train a classifier of types
CORRELATED_GENES = 100
COMPONENTS = 20
TREES = 200
MEDIAN_TOTAL = 1e4  # raw counts are compared as log1p(1e4 * count / total)
Generator = Callable[[np.ndarray, int], Cells]


def on_held_out(
    models: Mapping[str, CellGAN], train: Cells, held_out: Cells, *, draws: int = 5, seed: int = 0
) -> pd.DataFrame:
    """One line per method, metric and draw: `method, metric, value, draw`; the methods are baselines and `models`.

    Raises DataError where the halves of the held-out cells would be too small to compare.
    """
    if len(held_out) < 20:
        raise DataError(f"{len(held_out)} held-out cells: too few to evaluate; at least 20 are needed")
    if draws < 1:
        raise DataError(f"--draws is the number of halves of the held-out cells, at least 1; it was {draws}")
    if not held_out.obs["label"].duplicated().any():
        raise DataError("one held-out cell of each type: they cannot be halved by type; train on more cells")
    rows: list[dict[str, Any]] = []
    space = _Space.of(train)
    bar = tqdm(total=draws * len(generators(models, train, held_out)), desc="Evaluating", unit="set of cells")
    began = time.perf_counter()
    for draw in range(draws):
        own = derived_seed(seed, "evaluate", draw)
        first, second = split(held_out, 0.5, own)
        first, second = (_at_most(part, AT_MOST, own) for part in (first, second))
        reference = _Classifier(_at_most(train, 3 * AT_MOST, own)).accuracy(first)
        for name, generate in generators(models, train, second).items():
            values = _measure(generate, first, train, space, reference, derived_seed(own, name))
            if not rows:
                took = (time.perf_counter() - began) * bar.total
                bar.write(f"Evaluating {bar.total} sets of cells: {text_time(took)}")
            rows += [
                {"method": name, "metric": metric, "value": value, "draw": draw} for metric, value in values.items()
            ]
            bar.update()
    bar.close()
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """`method, metric, value, low, high, n`: mean and 95 % t interval over draws of cells and halves.

    The draws share held-out cells and one trained model, so the interval says how far the figures depend on them alone.
    """
    return summarise(table, "draw", metrics=METRICS)[COLUMNS]


def generators(models: Mapping[str, CellGAN], train: Cells, real: Cells) -> dict[str, Generator]:
    """The methods that are compared: each gives cells of these labels from a seed (real cells: the ones there are)."""
    return {
        REAL: lambda _labels, _seed: real,
        TRAINING: lambda labels, seed: resampled(train, labels, seed),
        INDEPENDENT: lambda labels, seed: independent(train, labels, seed),
        **{name: model.sample_labels for name, model in models.items()},
    }


def _at_most(cells: Cells, n: int, seed: int) -> Cells:
    return cells if len(cells) <= n else cells.take(np.sort(np.random.default_rng(seed).permutation(len(cells))[:n]))


def analysis(cells: Cells) -> np.ndarray:
    """The values that are compared, float64: the file's own, or of counts log1p(1e4 * count / total)."""
    if cells.scale.kind in {"log", "values"}:
        return cells.values().astype(np.float64)
    counts = cells.counts.toarray().astype(np.float64)
    return np.log1p(MEDIAN_TOTAL * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


class _Classifier:
    """Logistic regression of the type on standardised values."""

    def __init__(self, cells: Cells) -> None:
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        self.only = cells.types[0] if len(cells.types) == 1 else None
        if self.only is None:
            self.model.fit(analysis(cells), cells.labels)

    def accuracy(self, cells: Cells) -> float:
        predicted = np.full(len(cells), self.only, object) if self.only else self.model.predict(analysis(cells))
        return float(accuracy_score(cells.labels, predicted))


class _Space:
    """Principal components of the training cells, and the nearest of all of them there."""

    def __init__(self, plane: PCA, near: NearestNeighbors) -> None:
        self.plane, self.near = plane, near

    @classmethod
    def of(cls, train: Cells) -> _Space:
        values = analysis(_at_most(train, 4 * AT_MOST, 0))
        n_components = min(COMPONENTS, *(n - 1 for n in values.shape))
        plane = PCA(n_components, svd_solver="randomized", random_state=0).fit(values)
        slices = [np.arange(first, min(first + AT_MOST, len(train))) for first in range(0, len(train), AT_MOST)]
        every = np.concatenate([plane.transform(analysis(train.take(rows))) for rows in slices])
        return cls(plane, NearestNeighbors(n_neighbors=1).fit(every))

    def distance(self, values: np.ndarray) -> float:
        return float(np.median(self.near.kneighbors(self.plane.transform(values))[0]))


def _measure(
    generate: Generator, truth: Cells, train: Cells, space: _Space, reference: float, seed: int
) -> dict[str, float]:
    made = generate(truth.labels, seed)
    x, y = analysis(truth), analysis(made)
    values = _moments(x, y, truth.labels, made.labels)
    values |= _library(truth, made)
    genes = np.argsort(-x.var(axis=0), kind="stable")[:CORRELATED_GENES]
    values["gene_correlation"] = _correlation_of_correlations(x[:, genes], y[:, genes])
    values["gene_correlation_within_types"] = _correlation_of_correlations(
        _within(x[:, genes], truth.labels), _within(y[:, genes], made.labels)
    )
    distances = squared_distances(x, x)
    values["mmd"] = mmd(x, y, float(distances.sum() / max(len(x) * (len(x) - 1), 1)))
    values["real_or_synthetic_auc"], values["real_or_synthetic_accuracy"] = real_or_synthetic(x, y, seed)
    taught = generate(_at_most(train, 3 * AT_MOST, seed).labels, derived_seed(seed, "taught"))
    accuracy = _Classifier(taught).accuracy(truth)
    values["accuracy_on_real"] = accuracy
    values["accuracy_relative_to_real"] = accuracy / reference if reference else np.nan
    values["nearest_training_cell_ratio"] = space.distance(y) / max(space.distance(x), 1e-12)
    values["share_of_types"] = float(np.isin(sorted(set(truth.labels)), made.labels).mean())
    return values


def _moments(x: np.ndarray, y: np.ndarray, types_x: np.ndarray, types_y: np.ndarray) -> dict[str, float]:
    statistics = {
        "zero_rate": lambda cells: (cells == 0).mean(axis=0),
        "mean": lambda cells: cells.mean(axis=0),
        "variance": lambda cells: cells.var(axis=0),
    }
    shared = [
        name
        for name in sorted(set(types_x) & set(types_y))
        if min((types_x == name).sum(), (types_y == name).sum()) > 1
    ]
    values = {}
    for name, statistic in statistics.items():
        true, made = statistic(x), statistic(y)
        values[f"{name}_correlation_by_gene"] = _correlation(true, made)
        if name == "zero_rate":
            values["zero_rate_difference"] = float(made.mean() - true.mean())
        by_type = [(statistic(x[types_x == label]), statistic(y[types_y == label])) for label in shared]
        if by_type:
            pairs = [np.concatenate(part) for part in zip(*by_type, strict=True)]
            values[f"{name}_correlation_by_type_and_gene"] = _correlation(*pairs)
            if name == "zero_rate":
                values["zero_rate_difference_by_type"] = float(np.mean([abs(b.mean() - a.mean()) for a, b in by_type]))
    return values


def _library(truth: Cells, made: Cells) -> dict[str, float]:
    a, b = (np.log(np.maximum(np.asarray(part.counts.sum(axis=1)).ravel(), 1.0)) for part in (truth, made))
    return {
        "library_size_ks": float(scipy.stats.ks_2samp(a, b).statistic),
        "library_size_ratio": float(np.exp(b.mean() - a.mean())),
        "library_size_spread_ratio": float(b.std() / max(a.std(), 1e-9)),
    }


def _within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values minus the mean of their type."""
    table = pd.DataFrame(values)
    return (table - table.groupby(labels).transform("mean")).to_numpy()


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two vectors; 0 where one is constant."""
    return float(row_correlations(a[None], b[None])[0])


def _correlation_of_correlations(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of both sets' correlations of gene pairs; genes that are flat in one are left out."""
    moving = (a.std(axis=0) > 1e-9) & (b.std(axis=0) > 1e-9)
    if moving.sum() < 3:
        return np.nan
    pairs = np.triu_indices(int(moving.sum()), 1)
    return _correlation(*(np.corrcoef(cells[:, moving], rowvar=False)[pairs] for cells in (a, b)))


def real_or_synthetic(real: np.ndarray, made: np.ndarray, seed: int) -> tuple[float, float]:
    """AUC and accuracy of a random forest that tells real from synthetic; 0.5 is best.

    Each cell is judged by the trees whose bootstrap sample lacks it (out of bag, Breiman 2001).
    """
    n = min(len(real), len(made))
    random = np.random.default_rng(seed)
    values = np.concatenate([cells[random.permutation(len(cells))[:n]] for cells in (real, made)])
    truth = np.repeat([0, 1], n)
    forest = RandomForestClassifier(TREES, oob_score=True, random_state=seed % 2**32, n_jobs=-1).fit(values, truth)
    share = forest.oob_decision_function_[:, 1]
    return float(roc_auc_score(truth, share)), float(((share > 0.5) == truth).mean())
