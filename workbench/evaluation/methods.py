"""What a cross-validation compares: baselines, the response model with each table or screen alone, your own methods.

In: what is known of the genes and the names of the perturbations, or the name of a class of yours. Out: a list of
`Method`s, each of which fits on the training perturbations of a fold and predicts the held-out ones. Next: `folds.py`
runs them.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

import helpers
from combinations import Added, DeltaMean, for_names, genes_in
from contract import CRUNCH
from helpers import DataError, some
from knowledge import FeatureTable, GeneKnowledge
from method import (
    CellGenerator,
    MeanEstimator,
    Predictor,
    ProportionEstimator,
    call_with,
    checked_prediction,
    checked_scale,
)
from response import ResponseModel
from workbench.compare import ADDED, DELTA_MEAN, KindMean
from workbench.compare import PCA_STARTER as STARTER

ZERO, TRAIN_MEAN, PCA_RIDGE, CONSTANT = "zero effect", "train mean", "PCA-ridge", "constant alone"
OWN, ALL = "own response alone", "all tables"
SCREENS, BOTH = f"{ALL} + screens", f"{ALL} + template"
RECENTRED = ", recentred cells"
WITHOUT, WITHOUT_MINE = "without ", "without all of mine"
RANDOM, SHUFFLED = "random features", "shuffled features"
CONTROL_MEAN, PERTURBED_MEAN, MEDIAN = "control", "perturbed mean", "median shares"
RANDOM_TABLES, RANDOM_FEATURES = 5, 50


class ZeroEffect(BaseEstimator):
    """Baseline for effects: no knock-out does anything."""

    def fit(self, responses: pd.DataFrame) -> ZeroEffect:
        """Only the names of the responses are kept."""
        self.columns_ = responses.columns
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses, all 0."""
        return pd.DataFrame(0.0, index=pd.Index(targets), columns=self.columns_)


class CombinationMean(helpers.PerturbedMean):
    """Baseline: the mean over cells with several knock-outs."""

    def fit(self, means: pd.DataFrame, n_cells: pd.Series | None = None) -> CombinationMean:
        """Learn from perturbations x responses."""
        super().fit(means[[CRUNCH.is_combination(name) for name in means.index]], n_cells)
        return self


class RenormalisedMedians(BaseEstimator):
    """Baseline for proportions: the median of each share, divided by their sum, and the median lipo / adipo."""

    def fit(self, proportions: pd.DataFrame) -> RenormalisedMedians:
        """Learn from perturbations x states, the ratio among them."""
        perturbed = proportions.drop(index=CRUNCH.control, errors="ignore")
        self.shares_ = perturbed[[*CRUNCH.shares, CRUNCH.ratio]].median()
        self.shares_[CRUNCH.shares] /= self.shares_[CRUNCH.shares].sum()
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x shares, the same row for all."""
        return pd.DataFrame([self.shares_] * len(targets), index=pd.Index(targets))


@dataclass(frozen=True)
class Method:
    """A way to predict the mean of an unseen knock-out and, for a whole method of yours, its cells and proportions.

    Without `cells` real control cells are scaled to the predicted mean. `shuffled` seeds a permutation of the
    perturbations' names, so that every table, the perturbations' own responses too, speaks of another gene. `draw`
    numbers the repeats of a method that is random. `submitted` marks the one that is submitted by default.
    """

    name: str
    model: MeanEstimator
    knowledge: GeneKnowledge = field(default_factory=lambda: GeneKnowledge({}))
    shuffled: int | None = None
    draw: int = 0
    cells: CellGenerator | None = None
    proportions: ProportionEstimator | None = None
    submitted: bool = False

    def predict(
        self, means: pd.DataFrame, n_cells: pd.Series | None, targets: pd.Index
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """Fit on `means` (perturbations x responses), predict `targets` x responses.

        The second table is the predictive scale, targets x `error` and `pearson`; None where the method has none.
        """
        asked = targets
        if self.shuffled is not None:
            names = means.index.drop(CRUNCH.control, errors="ignore").union(targets)
            new = dict(zip(names, np.random.default_rng(self.shuffled).permutation(names), strict=True))
            means, asked = means.rename(index=new), pd.Index([new[target] for target in targets])
            n_cells = None if n_cells is None else n_cells.rename(index=new)
        model = copy.deepcopy(self.model)  # folds may run side by side, in threads
        call_with(model.fit, means, **known(n_cells=n_cells), knowledge=self.knowledge)
        predicted = checked_prediction(model, asked, means.columns, "the responses").set_axis(targets)
        scale = checked_scale(model, asked)
        return predicted[means.columns], None if scale is None else scale.set_axis(targets)


def known(**offered: Any) -> dict[str, Any]:
    """What is not None: a matrix of effects has no numbers of cells, for one."""
    return {name: value for name, value in offered.items() if value is not None}


def load_method(text: str) -> Predictor:
    """Your own method by name: `module:NAME` or `file.py:NAME`, an estimator of means or a whole `Predictor`.

    An estimator is a class or an instance; the default's cells and proportions go with it. Raises DataError where
    there is none, or where it lacks what an estimator needs.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise DataError(f"--method {text}: expected module:NAME or file.py:NAME, such as main:METHOD")
    module = _module(place, text)
    if not hasattr(module, name):
        raise DataError(f"--method {text}: {place} has no {name}; it has {some(_own_names(module))}")
    found = getattr(module, name)
    if isinstance(found, Predictor):
        return found
    try:
        estimator = found() if isinstance(found, type) else found
    except TypeError as error:
        raise DataError(
            f"--method {text}: {name}() cannot be made without arguments ({error}); name an instance"
        ) from error
    default = Predictor.default()
    try:
        return Predictor(estimator, default.proportions, default.cells)
    except DataError as error:
        raise DataError(f"--method {text}: {error}") from error


def _own_names(module: ModuleType) -> list[str]:
    """What is defined in the module itself: classes and predictors."""
    mine = vars(module).items()
    return [name for name, value in mine if getattr(value, "__module__", "") == module.__name__ or name.isupper()]


def _module(place: str, text: str) -> ModuleType:
    """The module of that name, looked for in the working folder first, or the file as a module.

    A file becomes a module whose name no other has, so that a `method.py` of yours is not taken for the project's.
    """
    try:
        if not place.endswith(".py"):
            if "" not in sys.path:
                sys.path.insert(0, "")
            return importlib.import_module(place)
        path = Path(place).resolve()
        name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise DataError(f"--method {text}: {place} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # so that its classes are found by name, here and in other processes
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # for what stands beside it
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    except (ImportError, OSError, SyntaxError) as error:
        raise DataError(f"--method {text}: {place} cannot be imported: {error}") from error
    return module


def load_methods(names: Sequence[str]) -> None:
    """For the start of a worker process: import what `load_method` does, so that the classes are known there."""
    for name in names:
        load_method(name)


def own_methods(names: Sequence[str], knowledge: GeneKnowledge) -> list[Method]:
    """Your methods (`load_method`) with all that is known of genes, under the names they were given by."""
    found = {name: load_method(name) for name in names}
    return [
        Method(name, predictor.expression, knowledge, cells=predictor.cells, proportions=predictor.proportions)
        for name, predictor in found.items()
    ]


def effect_baselines(names: pd.Index, columns: pd.Index, *, zero_effect: bool) -> list[Method]:
    """Baselines for a matrix of effects."""
    methods = [Method(ZERO, ZeroEffect())] if zero_effect else []
    if any(map(CRUNCH.is_combination, names)):
        return [*methods, Method(TRAIN_MEAN, CombinationMean()), *combination_baselines()]
    methods.append(Method(TRAIN_MEAN, helpers.PerturbedMean()))
    if names.isin(columns).any():
        methods.append(Method(PCA_RIDGE, helpers.PCARidge()))
    return methods


def challenge_baselines(names: pd.Index) -> list[Method]:
    """Baselines for mean expression profiles of cells."""
    if any(map(CRUNCH.is_combination, names)):
        mean = Method(PERTURBED_MEAN, KindMean() if CRUNCH.asks_for_doubles else CombinationMean())
        return [Method(CONTROL_MEAN, helpers.ControlMean()), mean, *combination_baselines()]
    return [
        Method(CONTROL_MEAN, helpers.ControlMean()),
        Method(PERTURBED_MEAN, helpers.PerturbedMean()),
        Method(STARTER, helpers.PCARidge(), cells=helpers.GaussianCells()),
        Method(PCA_RIDGE, helpers.PCARidge()),
    ]


def combination_baselines() -> list[Method]:
    """Baselines for combinations."""
    return [Method(DELTA_MEAN, DeltaMean()), Method(ADDED, Added())]


def proportion_methods(*, with_means: bool) -> dict[str, BaseEstimator]:
    """Predictors of the shares of cells in each state; `with_means`: those that need expression profiles too."""
    methods: dict[str, BaseEstimator] = {
        CONTROL_MEAN: helpers.ControlMean(),
        PERTURBED_MEAN: helpers.PerturbedMean(),
        "renormalised medians": RenormalisedMedians(),
        MEDIAN: helpers.MedianProportions(),
    }
    return methods | ({STARTER: helpers.PCARidge()} if with_means else {})


def model_methods(
    knowledge: GeneKnowledge, names: pd.Index, columns: pd.Index, mine: Collection[str] = ()
) -> list[Method]:
    """The response model with nothing, with each table, screen or the template alone, and with all that is known.

    How the genes respond themselves is a table too, where perturbations are among the responses (`columns`). The full
    one is marked as submitted; where there is a template it also runs without it. For each table and screen named in
    `mine` the full one runs without it, and where there are several without all of them.
    """
    alone = {name: GeneKnowledge({name: table}) for name, table in knowledge.tables.items()}
    alone |= {name: GeneKnowledge({}, {name: screen}) for name, screen in knowledge.screens.items()}
    if knowledge.template is not None:
        alone["template"] = GeneKnowledge({}, template=knowledge.template)
    methods = [Method(CONSTANT, for_names(ResponseModel(own_response=False), names))]
    methods += [
        Method(f"{name} alone", for_names(ResponseModel(own_response=False), names), part)
        for name, part in alone.items()
    ]
    if genes_in(names).isin(columns).any():
        methods.append(Method(OWN, for_names(ResponseModel(), names)))
    if knowledge.template is not None:
        part = replace(knowledge, template=None)
        methods.append(Method(full_name(part), for_names(ResponseModel(), names), part))
    methods.append(Method(full_name(knowledge), for_names(ResponseModel(), names), knowledge, submitted=True))
    left_out = {f"{WITHOUT}{name}": {name} for name in mine}
    if len(mine) > 1:
        left_out[WITHOUT_MINE] = set(mine)
    methods += [
        Method(name, for_names(ResponseModel(), names), _without(knowledge, part)) for name, part in left_out.items()
    ]
    return methods


def full_name(knowledge: GeneKnowledge) -> str:
    """What the model with all that is known is called."""
    return ALL + " + screens" * bool(knowledge.screens) + " + template" * (knowledge.template is not None)


def _without(knowledge: GeneKnowledge, left_out: Collection[str]) -> GeneKnowledge:
    return replace(
        knowledge,
        tables={name: table for name, table in knowledge.tables.items() if name not in left_out},
        screens={name: screen for name, screen in knowledge.screens.items() if name not in left_out},
    )


def random_methods(knowledge: GeneKnowledge, names: pd.Index, seed: int, draws: int) -> list[Method]:
    """Controls of the method itself: normal numbers for features, and the true knowledge under permuted names."""
    methods = []
    for draw in range(draws):
        random = GeneKnowledge(_random_tables(names, (seed, draw)))
        methods.append(Method(RANDOM, for_names(ResponseModel(own_response=False), names), random, draw=draw))
        permutation = int(np.random.SeedSequence((seed, draw)).generate_state(1)[0])
        methods.append(Method(SHUFFLED, for_names(ResponseModel(), names), knowledge, shuffled=permutation, draw=draw))
    return methods


def _random_tables(names: pd.Index, seed: tuple[int, int]) -> dict[str, FeatureTable]:
    generator = np.random.default_rng(seed)
    draws = (generator.standard_normal((len(names), RANDOM_FEATURES)) for _ in range(RANDOM_TABLES))
    return {f"random {i}": FeatureTable.of(names, values) for i, values in enumerate(draws)}
