"""From coordinates of the source to coordinates of the target: ridge, kernel ridge and nearest neighbours.

In: coordinates of training cells, cells x components, and one hyper-parameter. Out: arrays that a bundle can keep, and
from them predicted coordinates. `models` chooses the hyper-parameter. Next: `networks`.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

Arrays = dict[str, np.ndarray]
KERNEL_COMPONENTS = (20, 50, 100)  # of the source; kernel ridge is the mean over these ...
KERNEL_LENGTHS = (1.0, 3.0)  # ... and over these widths, in median squared distances
MOST_CELLS = 3_000  # that one kernel matrix holds (72 MB); more cells are dealt out to several, and averaged


def fit_ridge(Z: np.ndarray, T: np.ndarray, alpha: float, seed: int) -> Arrays:
    """Linear regression with intercept; `alpha` is in mean variances of the source's components."""
    mean, centre = Z.mean(axis=0), T.mean(axis=0)
    C = (Z - mean).T @ (Z - mean)
    C += alpha * max(np.trace(C) / len(C), 1e-12) * np.eye(len(C))
    return {"mean": mean, "centre": centre, "slope": np.linalg.solve(C, (Z - mean).T @ (T - centre))}


def apply_ridge(arrays: Arrays, Z: np.ndarray) -> np.ndarray:
    """Predicted coordinates, cells x components of the target."""
    return arrays["centre"] + (Z - arrays["mean"]) @ arrays["slope"]


def fit_neighbours(Z: np.ndarray, T: np.ndarray, n_neighbours: float, seed: int) -> Arrays:
    """The training cells themselves; a cell is predicted by the mean of its `n_neighbours` nearest."""
    return {"Z": Z, "T": T, "n": np.array(min(int(n_neighbours), len(Z)))}


def apply_neighbours(arrays: Arrays, Z: np.ndarray) -> np.ndarray:
    """Predicted coordinates, cells x components of the target."""
    near = NearestNeighbors(n_neighbors=int(arrays["n"])).fit(arrays["Z"]).kneighbors(Z, return_distance=False)
    return arrays["T"][near].mean(axis=1)


def fit_kernel_ridge(Z: np.ndarray, T: np.ndarray, alpha: float, seed: int) -> Arrays:
    """Ridge in the space of a Gaussian kernel between cells whose coordinates are z-scored cell by cell.

    The recipe of the best method of the challenge's benchmark (guanlab), averaged over components and widths.
    """
    rows = np.random.default_rng(seed).permutation(len(Z))
    parts = np.array_split(rows, -(-len(rows) // MOST_CELLS))
    arrays: Arrays = {"Z": Z, "centre": T.mean(axis=0), "part": np.empty(len(Z), np.int64)}
    dual, widths = np.zeros((len(members()), *T.shape)), np.zeros((len(members()), len(parts)))
    for p, part in enumerate(parts):
        arrays["part"][part] = p
        for m, (n_components, length) in enumerate(members()):
            cells = _z_scored(Z[part, :n_components])
            squared = cdist(cells, cells, "sqeuclidean")
            widths[m, p] = length * (np.median(squared) or 1.0)
            K = np.exp(-squared / widths[m, p]) + alpha * np.eye(len(cells))
            dual[m, part] = cho_solve(cho_factor(K, overwrite_a=True), T[part] - arrays["centre"])
    return arrays | {"dual": dual, "widths": widths}


def apply_kernel_ridge(arrays: Arrays, Z: np.ndarray) -> np.ndarray:
    """Predicted coordinates, cells x components of the target; the mean over members and parts of the cells."""
    total = np.zeros((len(Z), arrays["dual"].shape[2]))
    n_parts = arrays["widths"].shape[1]
    for p, (m, (n_components, _)) in product(range(n_parts), enumerate(members())):
        part = arrays["part"] == p
        known = _z_scored(arrays["Z"][part, :n_components])
        squared = cdist(_z_scored(Z[:, :n_components]), known, "sqeuclidean")
        total += np.exp(-squared / arrays["widths"][m, p]) @ arrays["dual"][m, part]
    return arrays["centre"] + total / (n_parts * len(members()))


def members() -> list[tuple[int, float]]:
    """Components and width of each kernel."""
    return list(product(KERNEL_COMPONENTS, KERNEL_LENGTHS))


def _z_scored(Z: np.ndarray) -> np.ndarray:
    """Each cell's coordinates with mean 0 and deviation 1; a cell without values stays at 0."""
    return (Z - Z.mean(axis=1, keepdims=True)) / np.maximum(Z.std(axis=1, keepdims=True), 1e-9)
