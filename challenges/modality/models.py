"""The methods by name, with one interface: `fit(source, target, batches)`, `predict(source)`.

In: CSR matrices, cells x features. Out: a `Prediction`, which gives any block of cells. Learned models work between
reduced spaces. Cross-validation inside the training cells chooses their hyper-parameter and how far to move from the
mean of each feature (`shrink_`), so that where nothing can be learned, the mean is what comes out. Next: `evaluate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from challenges.common import Bundle, check_arrays, check_codes, check_module, derived_seed, under
from challenges.modality import maps
from challenges.modality.baselines import BASELINES
from challenges.modality.data import Prediction
from challenges.modality.folds import FOLDS, inner_folds
from challenges.modality.networks import LOSSES, Generator, Recipe
from challenges.modality.reduce import Reduction
from challenges.modality.scale import TOTALS, Scale
from challenges.modality.training import apply_adversarial, fit_adversarial
from helpers import DataError

SOURCE_COMPONENTS, TARGET_COMPONENTS = 100, 100
LAYOUT = {  # of the arrays in a file, by method: N cells, K and L components, M kernels, P parts of the cells
    "knn": {"Z": "numbers N K", "T": "numbers N L", "n": "whole"},
    "ridge": {"mean": "numbers K", "centre": "numbers L", "slope": "numbers K L"},
    "kernel_ridge": {
        "Z": "numbers N K",
        "centre": "numbers L",
        "part": "whole N",
        "dual": "numbers M N L",
        "widths": "numbers M P",
    },
    "adversarial": {
        "base/mean": "numbers K",
        "base/centre": "numbers L",
        "base/slope": "numbers K L",
        "scale": "numbers",
        "level": "numbers",
    },
}
SPARSE_COST = 0.0006  # of the RMSE, out of fold, so that cells that are new lose less than 0.001
LEAST_VALUE = 1e-6  # of a prediction that is kept, of accessibility
TUNING_CELLS = 3_000  # at most; the hyper-parameter is chosen on these
TIMED_CELLS, TIMED_STEPS = (250, 500), 10  # to say how long training takes


@dataclass(frozen=True)
class Map:
    """A way from coordinates to coordinates: values of its hyper-parameter, how to fit and how to apply it.

    `folds` is how many of the inner folds it is tried on: a slow one on fewer.
    """

    grid: tuple[Any, ...]
    fit: Callable[[np.ndarray, np.ndarray, Any, int], maps.Arrays]
    apply: Callable[[maps.Arrays, np.ndarray], np.ndarray]
    folds: int = FOLDS


def adversarial_map(recipe: Recipe, device: str = "cpu") -> Map:
    """The adversarial model of a recipe; there is nothing to choose."""
    return Map(
        (0.0,),
        lambda Z, T, _, seed: fit_adversarial(Z, T, recipe, seed, device),
        lambda arrays, Z: apply_adversarial(arrays, Z, recipe),
        folds=2,
    )


RECIPES = {
    "adversarial": Recipe(),
    "adversarial_unpaired": Recipe(paired_weight=0.0, adversarial_weight=1.0),
    "adversarial_source": Recipe(paired_weight=0.0, adversarial_weight=1.0, pairs=False),
}
METHODS = ("knn", "ridge", "kernel_ridge", *RECIPES)


def recipe_of(method: str, loss: str) -> Recipe:
    """How the adversarial model of that name is trained."""
    return replace(RECIPES.get(method, Recipe()), loss=loss)


def map_of(method: str, recipe: Recipe, device: str = "cpu") -> Map:
    """The map of a method; `recipe` and `device` are of the adversarial ones."""
    if method in RECIPES:
        return adversarial_map(recipe, device)
    return {
        "knn": Map((5, 10, 20, 50, 100), maps.fit_neighbours, maps.apply_neighbours),
        "ridge": Map((0.01, 0.1, 1.0, 10.0, 100.0), maps.fit_ridge, maps.apply_ridge),
        "kernel_ridge": Map((0.03, 0.1, 0.3, 1.0), maps.fit_kernel_ridge, maps.apply_kernel_ridge),
    }[method]


class ReducedModel(BaseEstimator):
    """A map between reduced spaces. `accessibility`: the source is accessibility, so its peaks are weighted.

    `sparse`: the target is accessibility, so files hold no predictions below `threshold_`: the largest that costs no
    more than SPARSE_COST of the RMSE out of fold. `loss` (of `networks.LOSSES`) is the critic's. Fitted: `source_`,
    `target_` (reductions), `value_` (hyper-parameter), `shrink_` (0: the mean; 1: the map as it is), `arrays_` (of the
    map), `recipe_` (how to train), `source_features_`, `target_features_` (names), `scale_` (of the source's values).
    """

    KIND = "modality"

    def __init__(
        self,
        method: str = "kernel_ridge",
        *,
        accessibility: bool = False,
        sparse: bool = False,
        seed: int = 0,
        device: str = "cpu",
        loss: str = LOSSES[0],
    ) -> None:
        self.method = method
        self.loss = loss
        self.accessibility = accessibility
        self.sparse = sparse
        self.seed = seed
        self.device = device

    @threadpool_limits.wrap(limits=1)  # sums keep their order, whatever the number of cores
    def fit(
        self,
        source: sp.csr_matrix,
        target: sp.csr_matrix,
        batches: np.ndarray,
        features: tuple[pd.Index, pd.Index] | None = None,
        scale: Scale | None = None,
    ) -> ReducedModel:
        """Fit on both matrices (cells x features, float32) and the batch of each cell (integers).

        `features` are the names of the source's and of the target's; by default they are numbered. `scale` is the
        source's, which cells to predict are held against.
        """
        numbered = (pd.Index([str(i) for i in range(matrix.shape[1])]) for matrix in (source, target))
        self.source_features_, self.target_features_ = features or numbered
        self.scale_ = scale or Scale()
        self.source_ = Reduction.fit(
            source, SOURCE_COMPONENTS, derived_seed(self.seed, "source") % 2**32, accessibility=self.accessibility
        )
        self.target_ = Reduction.fit(target, TARGET_COMPONENTS, derived_seed(self.seed, "target") % 2**32)
        Z, T = self.source_.coordinates(source), self.target_.coordinates(target)
        self.recipe_ = recipe_of(self.method, self.loss)
        alone = map_of(self.method, replace(self.recipe_, repeats=1), self.device)
        self.value_, self.shrink_, rows, P = self._tuned(alone, Z, T, batches)
        self.threshold_ = self._threshold(P, target[rows]) if self.sparse else 0.0
        fitted = map_of(self.method, self.recipe_, self.device).fit(Z, T, self.value_, self.seed)
        # In the order a bundle gives them back in, so that products round alike.
        self.arrays_ = {name: np.array(array, order="C") for name, array in fitted.items()}
        return self

    @threadpool_limits.wrap(limits=1)
    def predict(self, source: sp.csr_matrix, measured: np.ndarray | None = None) -> Prediction:
        """Predict cells whose features are those of training, in the same order.

        Features that are not `measured` (bool, by default all are), zeros in `source`, are taken at their means.
        """
        centre = self.target_.centre()
        found = map_of(self.method, self.recipe_).apply(self.arrays_, self.source_.coordinates(source, measured))
        found = centre + self.shrink_ * (found - centre)
        shape = len(found), len(self.target_.mean)
        return Prediction(shape, lambda rows: self.target_.expand(found[rows]), self.threshold_)

    def chosen(self) -> str:
        """What cross-validation inside the training cells chose, in words."""
        value = f"hyper-parameter {self.value_:g}, " if len(map_of(self.method, self.recipe_).grid) > 1 else ""
        return f"{value}{self.shrink_:.0%} of the way from the mean"

    def to_bundle(self) -> Bundle:
        """All that `predict` needs, as plain data."""
        settings = {
            "method": self.method,
            "accessibility": self.accessibility,
            "seed": self.seed,
            "value": float(self.value_),
            "shrink": float(self.shrink_),
            "threshold": float(self.threshold_),
            "scale": self.scale_.settings(),
            "recipe": asdict(self.recipe_),
        }
        arrays = {
            **self.source_.arrays("source"),
            **self.target_.arrays("target"),
            **{f"map/{name}": array for name, array in self.arrays_.items()},
            "features/source": self.source_features_.to_numpy().astype(str),
            "features/target": self.target_features_.to_numpy().astype(str),
        }
        if len(self.scale_.profile):
            arrays["scale/profile"] = self.scale_.profile
        return Bundle(self.KIND, settings, arrays)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ReducedModel:
        """The fitted model again. Raises DataError for settings and arrays that do not fit together."""
        settings = bundle.settings
        self = cls(
            settings["method"],
            accessibility=settings["accessibility"],
            sparse=settings["threshold"] > 0,
            seed=settings["seed"],
            loss=settings["recipe"]["loss"],
        )
        self.value_, self.shrink_, self.threshold_ = (settings[name] for name in ("value", "shrink", "threshold"))
        self.scale_ = Scale(**settings["scale"])
        if "scale/profile" in bundle.arrays:
            self.scale_ = replace(self.scale_, profile=bundle.arrays["scale/profile"])
        self.recipe_ = Recipe(**settings["recipe"])
        self.source_, self.target_ = (Reduction.of(bundle.under(name)) for name in ("source", "target"))
        self.source_features_, self.target_features_ = (
            pd.Index(bundle.arrays[f"features/{name}"]) for name in ("source", "target")
        )
        self.arrays_ = bundle.under("map")
        self._check(bundle)
        return self

    def _check(self, bundle: Bundle) -> None:
        names = {"components": "numbers K F", **dict.fromkeys(("weight", "mean", "lowest", "highest"), "numbers F")}
        source, target = (
            check_arrays(bundle.under(side), names, F=len(features))
            for side, features in (("source", self.source_features_), ("target", self.target_features_))
        )
        check_arrays(bundle.arrays, {"features/source": "names S", "features/target": "names T"})
        numbers = [self.value_, self.shrink_, self.threshold_]
        if self.method not in METHODS or not np.isfinite(numbers).all():
            raise DataError(f"the method {self.method!r} with {numbers}")
        self.scale_.check()
        if self.scale_.way == TOTALS:
            check_arrays(bundle.arrays, {"scale/profile": "numbers S", "features/source": "names S"})
        layout = LAYOUT["adversarial" if self.method in RECIPES else self.method]
        sizes = check_arrays(self.arrays_, layout, K=source["K"], L=target["K"], M=len(maps.members()))
        if self.method == "knn" and not 1 <= self.arrays_["n"] <= sizes["N"]:
            raise DataError(f"{self.arrays_['n']} of {sizes['N']} neighbours")
        if self.method == "kernel_ridge":
            check_codes(self.arrays_["part"], sizes["P"], "map/part")
        if self.method in RECIPES:
            recipe, held = self.recipe_, {name.split("/")[0] for name in self.arrays_} - {"base", "scale", "level"}
            if held != {str(i) for i in range(min(recipe.repeats, len(self.arrays_)))}:
                raise DataError(f"{recipe.repeats} networks, of which it holds {len(held)}")
            for name in held:
                n_source = min(recipe.components, source["K"])
                check_module(partial(Generator, n_source, target["K"], recipe), under(self.arrays_, name))

    def _tuned(
        self, way: Map, Z: np.ndarray, T: np.ndarray, batches: np.ndarray
    ) -> tuple[Any, float, np.ndarray, np.ndarray]:
        """The value with the least error out of fold, and the best shrinkage of its predictions towards the mean.

        And these predictions: the cells' numbers, and their coordinates.
        """
        seed = derived_seed(self.seed, "tuning")
        rows = np.sort(np.random.default_rng(seed).permutation(len(Z))[:TUNING_CELLS])
        Z, T = Z[rows], T[rows]
        best: Any = None
        for value in tqdm(
            way.grid, f"{self.method}: inner folds", unit="value", leave=False, disable=len(way.grid) == 1
        ):
            moved, wanted, centres, tested = [], [], [], []
            for train, test in islice(inner_folds(batches[rows], seed), way.folds):
                centre = T[train].mean(axis=0)
                moved.append(way.apply(way.fit(Z[train], T[train], value, self.seed), Z[test]) - centre)
                wanted.append(T[test] - centre)
                centres.append(np.tile(centre, (len(test), 1)))
                tested.append(rows[test])
            P, W = np.concatenate(moved), np.concatenate(wanted)
            shrink = float(np.clip((P * W).sum() / max((P * P).sum(), 1e-12), 0.0, 1.0))
            error = ((shrink * P - W) ** 2).mean()
            if best is None or error < best[0]:
                best = error, value, shrink, np.concatenate(tested), np.concatenate(centres) + shrink * P
        return best[1:]

    def _threshold(self, coordinates: np.ndarray, target: sp.csr_matrix) -> float:
        """The largest value below which predictions out of fold may be 0, at SPARSE_COST of their RMSE."""
        edges = np.geomspace(LEAST_VALUE, max(float(self.target_.highest.max()), 2 * LEAST_VALUE), 2_000)
        cost, error = np.zeros(len(edges) + 1), 0.0
        for start in range(0, len(coordinates), 100):
            P = self.target_.expand(coordinates[start : start + 100]).astype(np.float64).ravel()
            T = target[start : start + 100].toarray().astype(np.float64).ravel()
            error += ((P - T) ** 2).sum()
            # Of each prediction that becomes 0: T² - (P - T)².
            cost += np.bincount(np.searchsorted(edges, np.abs(P), side="right"), (2 * T - P) * P, len(cost))
        allowed = np.cumsum(cost)[:-1] <= ((1 + SPARSE_COST) ** 2 - 1) * error
        return float(edges[np.flatnonzero(np.logical_and.accumulate(allowed))[-1]]) if allowed[0] else LEAST_VALUE


def make_model(
    method: str, *, accessibility: bool, seed: int, device: str, loss: str = LOSSES[0], sparse: bool = False
) -> Any:
    """The method or baseline of that name, not fitted."""
    if method in BASELINES:
        return BASELINES[method](seed) if method == "random_cell" else BASELINES[method]()
    return ReducedModel(method, accessibility=accessibility, sparse=sparse, seed=seed, device=device, loss=loss)


@threadpool_limits.wrap(limits=1)  # as in training
def seconds_to_fit(
    methods: Iterable[str], source: sp.csr_matrix, target: sp.csr_matrix, *, device: str, loss: str = LOSSES[0]
) -> float:
    """About how long fitting these methods, one after the other, on both matrices (cells x features) takes here.

    Reducing some of the cells is timed, and one fit of each method's inner folds, on random coordinates.
    """
    rng, n_cells = np.random.default_rng(0), source.shape[0]
    n_tuned = min(n_cells, TUNING_CELLS) * (FOLDS - 1) // FOLDS
    Z, T = (
        rng.normal(size=(n_tuned, min(most, *matrix.shape)))
        for most, matrix in ((SOURCE_COMPONENTS, source), (TARGET_COMPONENTS, target))
    )
    total, reducing = 0.0, sum(_seconds_to_reduce(matrix) for matrix in (source, target))
    for method in methods:
        recipe = recipe_of(method, loss)
        way = map_of(method, replace(recipe, repeats=1, generator_steps=TIMED_STEPS), device)
        times = len(way.grid) * way.folds + n_cells / n_tuned  # of one inner fit, until all is done
        if method in RECIPES:
            way.fit(Z, T, way.grid[0], 0)  # the first steps of a process load what the later ones have
            times = (way.folds + recipe.repeats) * recipe.generator_steps / TIMED_STEPS
        started = time.perf_counter()
        way.apply(way.fit(Z, T, way.grid[0], 0), Z[: n_tuned // 3])
        total += reducing + times * (time.perf_counter() - started)
    return total


def _seconds_to_reduce(X: sp.csr_matrix) -> float:
    """About how long it takes to fit a reduction to all cells: by a line through the times of two numbers of them."""
    few, more = (min(n, X.shape[0]) for n in TIMED_CELLS)
    took = {}
    for n in (few, more):
        started = time.perf_counter()
        Reduction.fit(X[:n], SOURCE_COMPONENTS, 0).coordinates(X[:n])
        took[n] = time.perf_counter() - started
    slope = max(took[more] - took[few], 0.0) / max(more - few, 1)
    return took[more] + (X.shape[0] - more) * slope
