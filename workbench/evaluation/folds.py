"""One fold of a cross-validation: fit every method on the training perturbations, score it on the held-out ones.

In: an `EffectsFold` or a `ChallengeFold`, which carry all they need, so that any executor can run them anywhere the
training file can be read. Out: a tidy table with the columns of `COLUMNS`, one row per method, perturbation and metric.
"""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import psutil
from threadpoolctl import threadpool_limits

import helpers
from contract import CRUNCH
from helpers import dense, open_matrix
from method import CellGenerator, ProportionEstimator, call_with, checked_shares
from response import ResponseModel
from workbench.compare import CEILING, KindMean
from workbench.evaluation.methods import MEDIAN, CombinationMean, Method, known, proportion_methods

COLUMNS = [
    "method",
    "perturbation",
    "metric",
    "value",
    "seed",
    "fold",
    "draw",
    "panel",
    "seconds",
    "peak_mb",
    "submitted",
]
EXPECTED_WARNINGS = (".* were not measured as genes", "nothing is known of")  # the baselines' and the model's fallback
TRUE_MEAN = "true mean, same cells"
WRITTEN_CELLS = CRUNCH.cells_per_perturbation
CEILING_CELLS = 20  # a knock-out with fewer real cells has no split-half ceiling


@dataclass(frozen=True)
class EffectsFold:
    """`effects` is contrasts x responses, `genes` the perturbed gene of each row; the genes `test` are held out.

    `n_cells` are the cells of each gene, where known: they weigh the reference, and the methods are given them.
    """

    effects: pd.DataFrame
    genes: np.ndarray
    test: pd.Index
    methods: list[Method]
    seed: int
    fold: int
    n_cells: pd.Series | None = None

    def run(self) -> pd.DataFrame:
        """ScoreRows of `pearson`, `error` and, for the model, `expected_error` and `expected_pearson`."""
        held_out = np.isin(self.genes, self.test)
        means = self.effects[~held_out].groupby(self.genes[~held_out]).mean()
        truth, genes = self.effects[held_out].to_numpy(float), self.genes[held_out]
        n_cells = None if self.n_cells is None else self.n_cells[means.index]
        reference = perturbed_mean(means, self.test, n_cells).to_numpy()
        rows = ScoreRows(self.seed, self.fold)
        for method in self.methods:
            with measured() as cost:
                predicted, scale = method.predict(means, n_cells, self.test)
            values = predicted.loc[genes].to_numpy()
            scores = {
                "pearson": helpers.row_correlations(truth - reference, values - reference),
                "error": np.linalg.norm(truth - values, axis=1),
            }
            for metric, score in scores.items():
                # Contrasts of one gene are not independent: they count once.
                rows.add(method, metric, pd.Series(score).groupby(genes).mean(), cost)
            rows.add_scale(method, scale, cost)
        return rows.table()


@dataclass(frozen=True)
class ChallengeFold:
    """`means` (perturbations x genes, the control among them) and `n_cells` are of all perturbations of `path`.

    `panels` pairs the genes of a panel with its bandwidth. `pool` are control cells, and `base` the generator of cells
    that was fitted to them. Without `proportions` no shares are predicted.
    """

    path: Path
    means: pd.DataFrame
    n_cells: pd.Series
    proportions: pd.DataFrame | None
    pool: ad.AnnData
    base: helpers.ScaledCells
    panels: list[tuple[pd.Index, float]]
    test: pd.Index
    methods: list[Method]
    seed: int
    fold: int

    def run(self) -> pd.DataFrame:
        """ScoreRows of the platform's three metrics, of the errors as for effects, and of two ceilings."""
        means, n_cells = self.means.drop(index=self.test), self.n_cells.drop(index=self.test)
        reference = perturbed_mean(means, self.test, n_cells)
        if CRUNCH.asks_for_doubles:
            reference = KindMean().fit(means, n_cells).predict(self.test[:1]).iloc[0]
        rows, predictions = ScoreRows(self.seed, self.fold), []
        for method in self.methods:
            with measured() as cost:
                predicted, scale = method.predict(means, n_cells, self.test)
            error = np.linalg.norm(predicted - self.means.loc[self.test], axis=1)
            rows.add(method, "error", pd.Series(error, index=self.test), cost)
            rows.add_scale(method, scale, cost)
            predictions.append((method, predicted, cost))
        generators = self._generators(means)
        with open_matrix(self.path, [CRUNCH.perturbation]) as (matrix, obs, genes, _):
            for target in self.test:
                cells = real_cells(matrix, obs, target)
                for i, (panel, sigma) in enumerate(self.panels):
                    true, centre = dense(cells[:, genes.get_indexer(panel)]), reference[panel].to_numpy()
                    for method, predicted, cost in predictions:
                        mean, generator = predicted.loc[target, panel].to_numpy(), generators[i][method.name]
                        made = helpers.checked_cells(generator, target, mean, WRITTEN_CELLS)
                        rows.add_scores(method, target, i, helpers.cell_scores(true, made, centre, sigma), cost)
                    # What the cells cost when the mean is right: the MMD that no better mean can improve.
                    made = generators[i][TRUE_MEAN].sample(
                        target, self.means.loc[target, panel].to_numpy(), WRITTEN_CELLS
                    )
                    rows.add_scores(TRUE_MEAN, target, i, {"mmd": helpers.mmd(true, made, sigma)}, None)
                    if len(true) >= CEILING_CELLS:
                        rows.add_scores(CEILING, target, i, ceiling_scores(true, centre, sigma), None)
        if self.proportions is None:
            return rows.table()
        shares = self.proportions.loc[self.means.index]
        table = proportion_rows(shares, self.test, means, self.seed, self.fold, n_cells=n_cells, own=self.methods)
        return pd.concat([rows.table(), table], ignore_index=True)

    def _generators(self, means: pd.DataFrame) -> list[dict[str, CellGenerator]]:
        """By panel: the fitted generator of cells of each method, and under `TRUE_MEAN` the common one."""
        fitted: dict[str, CellGenerator] = {TRUE_MEAN: self.base}
        for method in self.methods:
            fitted[method.name] = self.base
            if method.cells is not None:
                fitted[method.name] = own = copy.deepcopy(method.cells)
                call_with(own.fit, means=means, pool=self.pool)
        return [{name: cells.for_genes(panel) for name, cells in fitted.items()} for panel, _ in self.panels]


def perturbed_mean(means: pd.DataFrame, test: pd.Index, n_cells: pd.Series | None) -> pd.Series:
    """Pearson's reference: the mean of the training perturbations, of combinations where such are held out."""
    model = CombinationMean if CRUNCH.is_combination(test[0]) else helpers.PerturbedMean
    return model().fit(means, n_cells=n_cells).mean_


def proportion_rows(
    shares: pd.DataFrame,
    test: pd.Index,
    means: pd.DataFrame | None,
    seed: int,
    fold: int,
    *,
    n_cells: pd.Series | None = None,
    own: Sequence[Method] = (),
) -> pd.DataFrame:
    """Rows of `l1_distance`: each predictor of the shares, fitted without the perturbations `test`.

    `shares` is perturbations x states, the control among them; `means` the training expression profiles and `n_cells`
    their numbers of cells, where known; `own` are methods of which some predict proportions.
    """
    rows, train = ScoreRows(seed, fold), shares.drop(index=test)
    train = train if means is None else train.loc[means.index]
    predictors: list[tuple[str, ProportionEstimator, dict]] = [
        (name, model, {}) for name, model in proportion_methods(with_means=means is not None).items()
    ]
    for method in own:
        if method.proportions is not None:
            more = {**known(n_cells=n_cells), "knowledge": method.knowledge}
            predictors.append((method.name, method.proportions, more))
    for name, unfitted, more in predictors:
        model = copy.deepcopy(unfitted)
        with measured() as cost:
            call_with(model.fit, train, **known(means=means), **more)
            predicted = checked_shares(model, test)
        scores = helpers.l1_by_perturbation(shares.loc[test], predicted)
        rows.add(name, "l1_distance", scores, cost, submitted=name == MEDIAN)
    return rows.table()


def ceiling_scores(true: np.ndarray, reference: np.ndarray, sigma: float) -> dict[str, float]:
    """Every second cell as truth, the others as the prediction: all of them for the mean, the first 100 for MMD."""
    half, rest = true[::2], true[1::2]
    return {
        "pearson_delta": helpers.pearson_delta(half, rest, reference),
        "mmd": helpers.mmd(half, rest[:WRITTEN_CELLS], sigma),
    }


def real_cells(matrix: Any, obs: pd.DataFrame, perturbation: str) -> Any:
    """The cells of one perturbation in file order, sparse or dense, cells x genes."""
    rows = np.flatnonzero((obs[CRUNCH.perturbation] == perturbation).to_numpy())
    return matrix[slice(int(rows[0]), int(rows[-1]) + 1)][rows - rows[0]]


@dataclass
class Cost:
    """Wall seconds, and the largest memory of the process while it ran (MB)."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Time and memory of a block; the memory is looked at every 20 ms."""
    cost, done, process = Cost(), threading.Event(), psutil.Process()

    def watch() -> None:
        while True:
            cost.peak_mb = max(cost.peak_mb, process.memory_info().rss / 1e6)
            if done.wait(0.02):
                return

    thread, began = threading.Thread(target=watch, daemon=True), time.perf_counter()
    thread.start()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        done.set()
        thread.join()


@dataclass
class ScoreRows:
    """Collects the rows of one fold."""

    seed: int
    fold: int
    rows: list[tuple] = field(default_factory=list)

    def add(
        self,
        method: Method | str,
        metric: str,
        values: pd.Series,
        cost: Cost | None,
        panel: int = 0,
        *,
        submitted: bool = False,
    ) -> None:
        """One value per perturbation; what is not predicted, as a ceiling, has a name and no cost."""
        label, draw = method, 0
        if isinstance(method, Method):
            label, draw, submitted = method.name, method.draw, method.submitted
        spent = (np.nan, np.nan) if cost is None else (cost.seconds, cost.peak_mb)
        where = self.seed, self.fold, draw, panel, *spent, submitted
        self.rows += [(label, name, metric, float(value), *where) for name, value in values.items()]

    def add_scores(
        self, method: Method | str, target: str, panel: int, scores: dict[str, float], cost: Cost | None
    ) -> None:
        """The scores of one perturbation on one panel."""
        for metric, value in scores.items():
            self.add(method, metric, pd.Series({target: value}), cost, panel)

    def add_scale(self, method: Method, scale: pd.DataFrame | None, cost: Cost) -> None:
        """The predictive scale, where the method has one."""
        if scale is None:
            return
        for column in scale.columns:
            self.add(method, f"expected_{column}", scale[column], cost)

    def table(self) -> pd.DataFrame:
        """What was collected."""
        return pd.DataFrame(self.rows, columns=COLUMNS)


def split(names: pd.Index, n_folds: int | str, seed: int) -> list[pd.Index]:
    """Held-out names of each fold: `n_folds` parts of a random order, or every name alone ("loo")."""
    names = pd.Index(np.sort(names.unique()))
    if n_folds == "loo" or int(n_folds) >= len(names):
        return [names[[i]] for i in range(len(names))]
    if int(n_folds) < 2:
        raise ValueError(f"n_folds is {n_folds}: at least 2, or 'loo'")
    order = np.random.default_rng(seed).permutation(len(names))
    return [names[np.sort(part)] for part in np.array_split(order, int(n_folds))]


def run_fold(fold: EffectsFold | ChallengeFold) -> pd.DataFrame:
    """What an executor calls: one fold on one thread, so that results are the same to the last bit everywhere."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    with threadpool_limits(1):
        return fold.run()


def run_all(folds: Iterable[EffectsFold | ChallengeFold], executor: Executor | None) -> pd.DataFrame:
    """All folds, here or on any executor with `submit`, put together in order; a progress bar counts folds."""
    folds = list(folds)
    print(_what_it_takes(folds, getattr(executor, "_max_workers", 1)))
    progress = helpers.progress_bar("cross-validation", total=len(folds), unit="fold")
    with warnings.catch_warnings(), threadpool_limits(1), progress:
        futures = [executor.submit(run_fold, fold) for fold in folds] if executor is not None else []
        tables = []
        try:
            for i, fold in enumerate(folds):
                tables.append(futures[i].result() if futures else run_fold(fold))
                progress.update()
        finally:
            for future in futures:
                future.cancel()  # those that have not begun, when one has failed
    return pd.concat(tables, ignore_index=True)


def _what_it_takes(folds: Sequence[EffectsFold | ChallengeFold], workers: int) -> str:
    """How long the folds take about: a fit of the response model grows with what it knows and with the rows."""
    fits = [method for fold in folds for method in fold.methods]
    rows = [len(fold.effects if isinstance(fold, EffectsFold) else fold.means) - len(fold.test) for fold in folds]
    seconds = sum(_seconds(method, n) for fold, n in zip(folds, rows, strict=True) for method in fold.methods) / workers
    return (
        f"{len(folds)} folds, {len(fits)} fits on about {max(rows)} perturbations each: {helpers.text_time(seconds)}."
    )


def _seconds(method: Method, rows: int) -> float:
    """Of a fit with its predictions, on one core."""
    if not isinstance(method.model, ResponseModel):
        return 0.5
    kernels = 1 + len(method.knowledge.tables) + 2 * len(method.knowledge.screens)
    return kernels * (0.1 + rows / 500)
