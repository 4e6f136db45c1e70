"""What every model must beat: zeros, the mean of each feature, and a random cell.

In: CSR matrices, cells x features. Out: a `Prediction`. All share the interface of the models: `fit(source, target,
batches)`, `predict(source, measured)`. `BASELINES` has them by name. Next: `reduce`.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator

from challenges.modality.data import Prediction


class Zeros(BaseEstimator):
    """No value anywhere: the best mean absolute error on sparse targets."""

    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> Zeros:
        """Remember the number of features."""
        self.n_features_ = target.shape[1]
        return self

    def predict(self, source: sp.csr_matrix, measured: np.ndarray | None = None) -> Prediction:
        """Zeros."""
        shape = (source.shape[0], self.n_features_)
        return Prediction(shape, lambda rows: np.zeros((len(range(*rows.indices(shape[0]))), shape[1]), np.float32))


class MeanPerFeature(BaseEstimator):
    """The mean of each feature over the training cells."""

    def fit(self, source: sp.csr_matrix, target: sp.csr_matrix, batches: np.ndarray) -> MeanPerFeature:
        """The means."""
        self.mean_ = np.asarray(target.mean(axis=0), np.float32).ravel()
        return self

    def predict(self, source: sp.csr_matrix, measured: np.ndarray | None = None) -> Prediction:
        """The mean of each feature, for every cell."""
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

    def predict(self, source: sp.csr_matrix, measured: np.ndarray | None = None) -> Prediction:
        """A training cell for each."""
        drawn = np.random.default_rng(self.seed).integers(self.target_.shape[0], size=source.shape[0])
        return Prediction((source.shape[0], self.target_.shape[1]), lambda rows: self.target_[drawn[rows]].toarray())


BASELINES = {"zeros": Zeros, "mean_per_feature": MeanPerFeature, "random_cell": RandomCell}
REFERENCE = "mean_per_feature"  # what gains are taken to
