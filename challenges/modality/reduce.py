"""Sparse matrices to coordinates and back: a truncated SVD that is fitted on training cells, saved, and seeded.

In: cells x features, CSR. Out: coordinates, cells x components, and from predicted coordinates the features again, a
block of cells at a time. Next: `maps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Reduction:
    """`coordinates = (X * weight) @ components.T`; `weight` per feature is 1, or the inverse document frequency."""

    weight: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def fit(cls, X: sp.csr_matrix, n_components: int, seed: int, *, accessibility: bool = False) -> Reduction:
        """Fit on cells x features. `accessibility`: each peak weighted by log(1 + cells / cells where open).

        There are at most as many components as cells or features less one.
        """
        weight = np.ones(X.shape[1], np.float32)
        if accessibility:
            weight = np.log1p(X.shape[0] / np.maximum(np.asarray((X > 0).sum(axis=0)).ravel(), 1)).astype(np.float32)
        n_components = max(1, min(n_components, min(X.shape) - 1))
        svd = TruncatedSVD(n_components, random_state=seed, n_iter=7).fit(X @ sp.diags_array(weight))
        flat = [np.asarray(values.toarray()).ravel() for values in (X.min(axis=0), X.max(axis=0))]
        return cls(weight, np.array(svd.components_, np.float32, order="C"), np.asarray(X.mean(axis=0)).ravel(), *flat)

    def coordinates(self, X: sp.csr_matrix, measured: np.ndarray | None = None) -> np.ndarray:
        """Cells x components, float64. Features that are not `measured` (bool), zeros in `X`, are at their means."""
        found = (X @ (self.weight[:, None] * self.components.T)).astype(np.float64)
        if measured is not None:
            found += (np.where(measured, 0.0, self.mean) * self.weight) @ self.components.T
        return found

    def centre(self) -> np.ndarray:
        """The coordinates of the mean cell."""
        return (self.mean * self.weight) @ self.components.T

    @threadpool_limits.wrap(limits=1)  # the same bytes, whatever the number of cores
    def expand(self, coordinates: np.ndarray) -> np.ndarray:
        """The features of predicted coordinates (unweighted reductions), within what training saw of each."""
        values = self.mean + (coordinates - self.centre()) @ self.components
        return np.clip(values, self.lowest, self.highest).astype(np.float32)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """For a bundle."""
        return {f"{prefix}/{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Reduction:
        """From a bundle."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
