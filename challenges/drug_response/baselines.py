"""What every model must beat: zeros, means, their mixes, and the compound's denoised effect.

In: responses (rows x genes, indexed by cell type and compound). Out: predictions of the same genes for any pair of
labels. All share the interface of the models: `fit(responses)`, `predict(pairs)`. A cell type or compound that training
lacks gets the mean of all. `BASELINES` has them by name. Next: `compounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from challenges.drug_response.folds import held_out

MIXES = np.linspace(0.0, 1.0, 11)


class Zeros(BaseEstimator):
    """No response."""

    def fit(self, responses: pd.DataFrame) -> Zeros:
        """Remember the genes."""
        self.genes_ = responses.columns
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """Zeros, pairs x genes."""
        return pd.DataFrame(0.0, pairs, self.genes_)


class MeanOf(BaseEstimator):
    """The mean of the training rows with the same label: `level` is `cell_type`, `sm_name`, or None for all rows."""

    def __init__(self, level: str | None = None) -> None:
        self.level = level

    def fit(self, responses: pd.DataFrame) -> MeanOf:
        """The means, labels x genes."""
        self.all_ = responses.mean()
        self.means_ = means_by(responses, self.level) if self.level else None
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """The mean of each pair's label; of all rows where the label is unknown."""
        if self.means_ is None:
            return pd.DataFrame(np.tile(self.all_, (len(pairs), 1)), pairs, self.all_.index)
        return _rows_of(self.means_, pairs, self.all_.to_numpy())


class MixOfMeans(BaseEstimator):
    """`weight` x the cell type's mean + (1 - `weight`) x the compound's; None: the best weight on the inner folds."""

    def __init__(self, weight: float | None = None) -> None:
        self.weight = weight

    def fit(self, responses: pd.DataFrame) -> MixOfMeans:
        """Both means, and the weight."""
        self.cell_type_, self.compound_ = (MeanOf(level).fit(responses) for level in ("cell_type", "sm_name"))
        self.weight_ = self._best_weight(responses) if self.weight is None else self.weight
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """The mix, pairs x genes."""
        return self.weight_ * self.cell_type_.predict(pairs) + (1 - self.weight_) * self.compound_.predict(pairs)

    @staticmethod
    def _best_weight(responses: pd.DataFrame) -> float:
        errors = [np.zeros(len(MIXES))]
        for _, train, test in held_out(responses):
            own, compound = (MeanOf(name).fit(train).predict(test.index) for name in ("cell_type", "sm_name"))
            errors.append(np.array([row_rmse(w * own + (1 - w) * compound, test).mean() for w in MIXES]))
        return float(MIXES[np.sum(errors, axis=0).argmin()]) if len(errors) > 1 else 0.5


class DenoisedEffect(BaseEstimator):
    """The cell type's mean + `amplitude` x the compound's mean effect over cell types, cut to `rank` components."""

    def __init__(self, rank: int = 20, amplitude: float = 0.6) -> None:
        self.rank = rank
        self.amplitude = amplitude

    def fit(self, responses: pd.DataFrame) -> DenoisedEffect:
        """Cell-type means, and effects: compounds x genes."""
        self.cell_type_ = MeanOf("cell_type").fit(responses)
        self.effects_ = denoised_effects(responses, self.rank)
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """The sum of both; an unknown compound has no effect of its own."""
        return self.cell_type_.predict(pairs) + self.amplitude * _rows_of(self.effects_, pairs, np.zeros(()))


BASELINES: dict[str, Callable[[], Any]] = {
    "zeros": Zeros,
    "train mean": MeanOf,
    "cell-type mean": lambda: MeanOf("cell_type"),
    "compound mean": lambda: MeanOf("sm_name"),
    "half compound + half cell type": lambda: MixOfMeans(0.5),
    "best mix of the two means": MixOfMeans,
    "cell type + 0.6 x rank-20 effect": DenoisedEffect,
}
REFERENCE = "half compound + half cell type"  # what paired differences are taken to


def denoised_effects(responses: pd.DataFrame, rank: int) -> pd.DataFrame:
    """Compounds x genes: the mean over cell types of what a response is beyond its cell type's mean, to `rank`."""
    effects = mean_effects(responses)
    U, sizes, V = np.linalg.svd(effects.to_numpy(np.float64), full_matrices=False)
    return pd.DataFrame((U[:, :rank] * sizes[:rank]) @ V[:rank], effects.index, effects.columns)


def mean_effects(responses: pd.DataFrame) -> pd.DataFrame:
    """Compounds x genes: the mean over cell types of what a response is beyond its cell type's mean."""
    own = means_by(responses, "cell_type").loc[responses.index.get_level_values("cell_type")]
    return means_by(responses - own.to_numpy(), "sm_name")


def means_by(responses: pd.DataFrame, level: str) -> pd.DataFrame:
    """The mean row of each label of `level`, labels x genes (`groupby` takes seconds for thousands of genes)."""
    labels = responses.index.get_level_values(level)
    names = labels.unique()
    member = np.equal.outer(names.to_numpy(), labels.to_numpy()).astype(np.float64)
    return pd.DataFrame(member @ responses.to_numpy() / member.sum(axis=1, keepdims=True), names, responses.columns)


def _rows_of(table: pd.DataFrame, pairs: pd.MultiIndex, otherwise: np.ndarray) -> pd.DataFrame:
    codes = table.index.get_indexer(pairs.get_level_values(table.index.name))
    return pd.DataFrame(np.where((codes >= 0)[:, None], table.to_numpy()[codes], otherwise), pairs, table.columns)


def row_rmse(prediction: pd.DataFrame, truth: pd.DataFrame) -> pd.Series:
    """Root mean squared error of each row over its genes; its mean over rows is the challenge's score (MRRMSE)."""
    return pd.Series(np.sqrt(((prediction - truth).to_numpy() ** 2).mean(axis=1)), truth.index)
