"""The models by name, with one interface: `fit(source, target, batches)`, `predict(source)`.

In: CSR matrices, cells x features. Out: a `Prediction`, which gives any block of cells. Learned models work between
reduced spaces; cross-validation inside the training cells chooses their hyper-parameter and how far to move from the
mean of each feature (`shrink_`), so that where nothing can be learned, the mean is what comes out. Next: `evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from challenges.common import Bundle, derived_seed
from challenges.modality import maps
from challenges.modality.adversarial import LOSSES, Recipe, apply_adversarial, fit_adversarial
from challenges.modality.data import FOLDS, batch_folds
from challenges.modality.reduce import Reduction

KIND = "modality"
SOURCE_COMPONENTS, TARGET_COMPONENTS = 100, 100
TUNING_CELLS = 3_000  # at most; the hyper-parameter is chosen on these


@dataclass(frozen=True)
class Prediction:
    """Predicted features, cells x features: `block(rows)` is the dense float32 values of a slice of cells."""

    shape: tuple[int, int]
    block: Callable[[slice], np.ndarray]

    def dense(self) -> np.ndarray:
        """All of it."""
        return self.block(slice(0, self.shape[0]))

    def columns(self, columns: np.ndarray) -> np.ndarray:
        """Some features of all cells, 500 cells at a time."""
        return np.concatenate([self.block(slice(i, i + 500))[:, columns] for i in range(0, self.shape[0], 500)])


class Zeros(BaseEstimator):
    """No value anywhere: the best mean absolute error on sparse targets."""

    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> Zeros:
        """Remember the number of features."""
        self.n_features_ = target.shape[1]
        return self

    def predict(self, source: sp.csr_matrix) -> Prediction:
        """Zeros."""
        shape = (source.shape[0], self.n_features_)
        return Prediction(shape, lambda rows: np.zeros((len(range(*rows.indices(shape[0]))), shape[1]), np.float32))


class MeanPerFeature(BaseEstimator):
    """The mean of each feature over the training cells."""

    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> MeanPerFeature:
        """The means."""
        self.mean_ = np.asarray(target.mean(axis=0), np.float32).ravel()
        return self

    def predict(self, source: sp.csr_matrix) -> Prediction:
        """The same for every cell."""
        n = source.shape[0]
        return Prediction((n, len(self.mean_)), lambda rows: np.tile(self.mean_, (len(range(*rows.indices(n))), 1)))


class RandomCell(BaseEstimator):
    """The target of a random training cell: what is lost by pairing wrongly."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> RandomCell:
        """Remember the cells."""
        self.target_ = target
        return self

    def predict(self, source: sp.csr_matrix) -> Prediction:
        """A training cell for each."""
        drawn = np.random.default_rng(self.seed).integers(self.target_.shape[0], size=source.shape[0])
        return Prediction((source.shape[0], self.target_.shape[1]), lambda rows: self.target_[drawn[rows]].toarray())


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
BASELINES = {"zeros": Zeros, "mean_per_feature": MeanPerFeature, "random_cell": RandomCell}
REFERENCE = "mean_per_feature"
MODELS = ("knn", "ridge", "kernel_ridge", *RECIPES)


def recipe_of(name: str, loss: str) -> Recipe:
    """How the adversarial model of that name is trained."""
    return replace(RECIPES.get(name, Recipe()), loss=loss)


def map_of(name: str, recipe: Recipe, device: str = "cpu") -> Map:
    """The map of a model's name; `recipe` and `device` are of the adversarial ones."""
    if name in RECIPES:
        return adversarial_map(recipe, device)
    return {
        "knn": Map((5, 10, 20, 50, 100), maps.fit_neighbours, maps.apply_neighbours),
        "ridge": Map((0.01, 0.1, 1.0, 10.0, 100.0), maps.fit_ridge, maps.apply_ridge),
        "kernel_ridge": Map((0.03, 0.1, 0.3, 1.0), maps.fit_kernel_ridge, maps.apply_kernel_ridge),
    }[name]


class ReducedModel(BaseEstimator):
    """A map between reduced spaces. `accessibility`: the source is accessibility, so its peaks are weighted.

    `loss` (of `adversarial.LOSSES`) is the critic's. Fitted: `source_`, `target_` (reductions), `value_`
    (hyper-parameter), `shrink_` (0: the mean; 1: the map as it is), `arrays_` (of the map), `recipe_` (how to train).
    """

    def __init__(
        self,
        name: str = "kernel_ridge",
        *,
        accessibility: bool = False,
        seed: int = 0,
        device: str = "cpu",
        loss: str = LOSSES[0],
    ) -> None:
        self.name = name
        self.loss = loss
        self.accessibility = accessibility
        self.seed = seed
        self.device = device

    @threadpool_limits.wrap(limits=1)  # sums keep their order, whatever the number of cores
    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> ReducedModel:
        """Fit on cells x features and the batch of each cell."""
        self.source_ = Reduction.fit(
            source, SOURCE_COMPONENTS, derived_seed(self.seed, "source") % 2**32, accessibility=self.accessibility
        )
        self.target_ = Reduction.fit(target, TARGET_COMPONENTS, derived_seed(self.seed, "target") % 2**32)
        Z, T = self.source_.coordinates(source), self.target_.coordinates(target)
        self.recipe_ = recipe_of(self.name, self.loss)
        alone = map_of(self.name, replace(self.recipe_, repeats=1), self.device)
        self.value_, self.shrink_ = self._tuned(alone, Z, T, batches)
        fitted = map_of(self.name, self.recipe_, self.device).fit(Z, T, self.value_, self.seed)
        # In the order a bundle gives them back in, so that products round alike.
        self.arrays_ = {name: np.array(array, order="C") for name, array in fitted.items()}
        return self

    @threadpool_limits.wrap(limits=1)
    def predict(self, source: sp.csr_matrix) -> Prediction:
        """Predict cells whose features are those of training, in the same order."""
        centre = self.target_.centre()
        found = map_of(self.name, self.recipe_).apply(self.arrays_, self.source_.coordinates(source))
        found = centre + self.shrink_ * (found - centre)
        return Prediction((len(found), len(self.target_.mean)), lambda rows: self.target_.expand(found[rows]))

    def chosen(self) -> str:
        """What cross-validation inside the training cells chose, in words."""
        value = f"hyper-parameter {self.value_:g}, " if len(map_of(self.name, self.recipe_).grid) > 1 else ""
        return f"{value}{self.shrink_:.0%} of the way from the mean"

    def save(self, path: str | os.PathLike[str], about: dict[str, Any], names: dict[str, pd.Index]) -> None:
        """Write the bundle: reductions, map, what `about` says, and the feature names."""
        settings = {
            "name": self.name,
            "accessibility": self.accessibility,
            "seed": self.seed,
            "value": float(self.value_),
            "shrink": float(self.shrink_),
            "about": about,
            "recipe": asdict(self.recipe_),
        }
        arrays = {
            **self.source_.arrays("source"),
            **self.target_.arrays("target"),
            **{f"map/{name}": array for name, array in self.arrays_.items()},
            **{f"names/{name}": index.to_numpy().astype(str) for name, index in names.items()},
        }
        Bundle(KIND, settings, arrays).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[ReducedModel, dict[str, Any], dict[str, pd.Index]]:
        """The fitted model, what its bundle says of it, and the feature names."""
        bundle = Bundle.load(path, KIND)
        self = cls(
            bundle.settings["name"],
            accessibility=bundle.settings["accessibility"],
            seed=bundle.settings["seed"],
            loss=bundle.settings["recipe"]["loss"],
        )
        self.value_, self.shrink_ = bundle.settings["value"], bundle.settings["shrink"]
        self.recipe_ = Recipe(**bundle.settings["recipe"])
        self.source_, self.target_ = (Reduction.of(bundle.under(name)) for name in ("source", "target"))
        self.arrays_ = bundle.under("map")
        return self, bundle.settings["about"], {name: pd.Index(array) for name, array in bundle.under("names").items()}

    def _tuned(self, way: Map, Z: np.ndarray, T: np.ndarray, batches: np.ndarray) -> tuple[Any, float]:
        """The value with the least error out of fold, and the best shrinkage of its predictions towards the mean."""
        seed = derived_seed(self.seed, "tuning")
        rows = np.sort(np.random.default_rng(seed).permutation(len(Z))[:TUNING_CELLS])
        Z, T = Z[rows], T[rows]
        found = []
        for value in tqdm(way.grid, f"{self.name}: inner folds", unit="value", leave=False, disable=len(way.grid) == 1):
            moved, wanted = [], []
            for train, test in islice(inner_folds(batches[rows], seed), way.folds):
                centre = T[train].mean(axis=0)
                moved.append(way.apply(way.fit(Z[train], T[train], value, self.seed), Z[test]) - centre)
                wanted.append(T[test] - centre)
            P, W = np.concatenate(moved), np.concatenate(wanted)
            shrink = float(np.clip((P * W).sum() / max((P * P).sum(), 1e-12), 0.0, 1.0))
            found.append((((shrink * P - W) ** 2).mean(), shrink, value))
        _, shrink, value = min(found, key=lambda one: one[0])
        return value, shrink


def inner_folds(batches: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and to predict: whole batches where there are enough, else cells."""
    fold = batch_folds(batches)
    if fold is None:
        fold = np.random.default_rng(seed).permutation(len(batches)) % FOLDS
    for i in np.unique(fold):
        yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)


def make_model(name: str, *, accessibility: bool, seed: int, device: str, loss: str = LOSSES[0]) -> Any:
    """The model or baseline of that name, not fitted."""
    if name in BASELINES:
        return BASELINES[name](seed) if name == "random_cell" else BASELINES[name]()
    return ReducedModel(name, accessibility=accessibility, seed=seed, device=device, loss=loss)
