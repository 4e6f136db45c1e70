"""What a cross-validation compares: baselines, the response model with each feature table alone, and its ablations.

In: the feature tables and the names of the perturbations. Out: a list of `Method`s, each of which fits on the training
perturbations of a fold and predicts the held-out ones. `workbench.folds` runs them; `workbench.cross_validate` is the
face of it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone

import helpers
from helpers import CONTROL, SHARES, FeatureTable, GeneKnowledge
from workbench.compare import STARTER

ZERO, TRAIN_MEAN, PCA_RIDGE, CONSTANT = "zero effect", "train mean", "PCA-ridge", "constant alone"
OWN, ALL, BOTH = "own response alone", "all tables", "all tables + template"
RANDOM, SHUFFLED = "random features", "shuffled features"
CONTROL_MEAN, PERTURBED_MEAN, MEDIAN = "control", "perturbed mean", "median shares"
RANDOM_TABLES, RANDOM_FEATURES = 5, 50


class ZeroEffect(BaseEstimator):
    """Baseline for effects: no knock-out does anything."""

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> ZeroEffect:
        """Only the names of the responses are kept."""
        self.columns_ = (means if responses is None else responses).columns
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses, all 0."""
        return pd.DataFrame(0.0, index=pd.Index(targets), columns=self.columns_)


class WithoutOwnResponse(helpers.ResponseModel):
    """The response model without its table `own response`; with no knowledge at all, the learned constant alone.

    The names of the responses are hidden from the fit, so that no perturbation finds itself among them.
    """

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> WithoutOwnResponse:
        """As `ResponseModel.fit`."""
        responses, knowledge = means if responses is None else responses, knowledge or GeneKnowledge({})
        names = responses.columns
        hidden = pd.Index([f"response {i}" for i in range(len(names))])
        template = knowledge.template
        if template is not None:
            template = template[0], template[1].reindex(columns=names, fill_value=0.0).set_axis(hidden, axis=1)
        knowledge = GeneKnowledge(knowledge.tables, template)
        super().fit(responses.set_axis(hidden, axis=1), n_cells=n_cells, knowledge=knowledge)
        self.reference_.index = self.basis_.columns = names
        return self


class RenormalisedMedians(BaseEstimator):
    """Baseline for proportions: the median of each share, divided by their sum, and the median lipo / adipo."""

    def fit(
        self,
        means: pd.DataFrame,
        responses: pd.DataFrame | None = None,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> RenormalisedMedians:
        """`responses` are the proportions, `lipo_adipo` among them."""
        proportions = (means if responses is None else responses).drop(index=CONTROL, errors="ignore")
        self.shares_ = proportions[[*SHARES, "lipo_adipo"]].median()
        self.shares_[SHARES] /= self.shares_[SHARES].sum()
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x shares, the same row for all."""
        return pd.DataFrame([self.shares_] * len(targets), index=pd.Index(targets))


@dataclass(frozen=True)
class Method:
    """A way to predict the mean of an unseen knock-out, and whether its cells are the starter's Gaussian ones.

    `shuffled` seeds a permutation of the perturbations' names, so that every table, the perturbations' own responses
    too, speaks of another gene. `draw` numbers the repeats of a method that is random.
    """

    name: str
    model: BaseEstimator
    knowledge: GeneKnowledge = field(default_factory=lambda: GeneKnowledge({}))
    shuffled: int | None = None
    draw: int = 0
    gaussian: bool = False

    def predict(
        self, means: pd.DataFrame, n_cells: pd.Series | None, targets: pd.Index
    ) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        """Fit on `means` (perturbations x responses), predict `targets` x responses.

        The second table is the predictive scale, targets x `error` and `pearson`; None for a baseline.
        """
        asked = targets
        if self.shuffled is not None:
            names = means.index.drop(CONTROL, errors="ignore").union(targets)
            new = dict(zip(names, np.random.default_rng(self.shuffled).permutation(names), strict=True))
            means, asked = means.rename(index=new), pd.Index([new[target] for target in targets])
            n_cells = None if n_cells is None else n_cells.rename(index=new)
        model = clone(self.model)  # folds may run side by side, in threads
        model.fit(means, n_cells=n_cells, knowledge=self.knowledge)
        predicted = model.predict(asked).set_axis(targets)
        if not isinstance(model, helpers.ResponseModel):
            return predicted, None
        return predicted, model.predict_scale(asked).set_axis(targets)


def effect_baselines(names: pd.Index, columns: pd.Index, *, zero_effect: bool) -> list[Method]:
    """Baselines for a matrix of effects."""
    methods = [Method(ZERO, ZeroEffect())] if zero_effect else []
    methods.append(Method(TRAIN_MEAN, helpers.PerturbedMean()))
    if names.isin(columns).any():
        methods.append(Method(PCA_RIDGE, helpers.PCARidge()))
    return methods


def challenge_baselines() -> list[Method]:
    """Baselines for mean expression profiles of cells."""
    return [
        Method(CONTROL_MEAN, helpers.ControlMean()),
        Method(PERTURBED_MEAN, helpers.PerturbedMean()),
        Method(STARTER, helpers.PCARidge(), gaussian=True),
        Method(PCA_RIDGE, helpers.PCARidge()),
    ]


def proportion_methods(*, with_means: bool) -> dict[str, BaseEstimator]:
    """Predictors of the shares of cells in each state; `with_means`: those that need expression profiles too."""
    methods: dict[str, BaseEstimator] = {
        CONTROL_MEAN: helpers.ControlMean(),
        PERTURBED_MEAN: helpers.PerturbedMean(),
        "renormalised medians": RenormalisedMedians(),
        MEDIAN: helpers.MedianProportions(),
    }
    return methods | ({STARTER: helpers.PCARidge()} if with_means else {})


def model_methods(knowledge: GeneKnowledge, names: pd.Index, columns: pd.Index) -> list[Method]:
    """The response model with nothing, with each table alone, the template alone, all tables, and all together.

    How the genes respond themselves is a table too, where perturbations are among the responses (`columns`).
    """
    alone = {name: GeneKnowledge({name: table}) for name, table in knowledge.tables.items()}
    if knowledge.template is not None:
        alone["template"] = GeneKnowledge({}, knowledge.template)
    methods = [Method(CONSTANT, WithoutOwnResponse())]
    methods += [Method(f"{name} alone", WithoutOwnResponse(), part) for name, part in alone.items()]
    if names.isin(columns).any():
        methods.append(Method(OWN, helpers.ResponseModel()))
    methods.append(Method(ALL, helpers.ResponseModel(), GeneKnowledge(knowledge.tables)))
    if knowledge.template is not None:
        methods.append(Method(BOTH, helpers.ResponseModel(), knowledge))
    return methods


def random_methods(knowledge: GeneKnowledge, names: pd.Index, seed: int, draws: int) -> list[Method]:
    """Controls of the method itself: normal numbers for features, and the true knowledge under permuted names."""
    methods = []
    for draw in range(draws):
        random = GeneKnowledge(_random_tables(names, (seed, draw)))
        methods.append(Method(RANDOM, WithoutOwnResponse(), random, draw=draw))
        permutation = int(np.random.SeedSequence((seed, draw)).generate_state(1)[0])
        methods.append(Method(SHUFFLED, helpers.ResponseModel(), knowledge, shuffled=permutation, draw=draw))
    return methods


def _random_tables(names: pd.Index, seed: tuple[int, int]) -> dict[str, FeatureTable]:
    generator = np.random.default_rng(seed)
    draws = (generator.standard_normal((len(names), RANDOM_FEATURES)) for _ in range(RANDOM_TABLES))
    return {f"random {i}": FeatureTable.of(names, values) for i, values in enumerate(draws)}
