"""The fast peer: a Gaussian process over (cell type, compound), with every variance learned by maximum likelihood.

In: responses. Out: predictions for any pair, in seconds. Genes are taken as draws of the same process (multi-task
Gaussian process with coregionalisation: Bonilla, Chai, Williams, NIPS 2007), so one small kernel serves all of them:

    K((c, d), (c', d')) = A[c, c'] + B[c, c'] [d = d'] + C[c, c'] S[d, d'] + noise[c] [same row]

A, B and C (cell types x cell types, positive semidefinite) say how much of the mean response, of a compound's own
effect and of the effect it shares with similar compounds one cell type takes over from another. S compares compounds
by their denoised effects. Next: `networks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from sklearn.base import BaseEstimator

from challenges.common import Bundle, check_arrays, check_codes, reproducible
from challenges.drug_response.baselines import denoised_effects
from challenges.drug_response.data import codes

JITTER = 1e-6
FITTED = ("mean_kernel", "own_kernel", "shared_kernel", "noise", "similarity", "weights")
LABELS = ("genes", "cell_types", "compounds")
LAYOUT = {  # of the arrays in a file: T cell types, C compounds, G genes, R training rows
    **dict(zip(LABELS, ("names G", "names T", "names C"), strict=True)),
    **dict.fromkeys(("mean_kernel", "own_kernel", "shared_kernel"), "numbers T T"),
    "noise": "numbers T",
    "similarity": "numbers C C",
    "weights": "numbers R G",
    **dict.fromkeys(("cell_type", "compound"), "whole R"),
}


class ResponseProcess(BaseEstimator):
    """The Gaussian process; `rank` is the number of components that compounds are compared on.

    Fitted: `cell_types_`, `compounds_`, `genes_`, `mean_kernel_`, `own_kernel_`, `shared_kernel_` (cell types squared),
    `noise_` (cell types), `similarity_` (compounds squared), and `weights_` (training rows x genes).
    """

    KIND = "drug_response/kernel"

    def __init__(self, rank: int = 20) -> None:
        self.rank = rank

    def fit(self, responses: pd.DataFrame) -> ResponseProcess:
        """Learn the variances and solve for the weights; `responses` are rows x genes, indexed by the pair."""
        Y = responses.to_numpy(np.float64)
        self.genes_ = responses.columns
        self.cell_types_, self.compounds_ = responses.index.unique("cell_type"), responses.index.unique("sm_name")
        self.rows_ = codes(responses.index, self.cell_types_, self.compounds_)
        self.similarity_ = _similarity(denoised_effects(responses, self.rank).loc[self.compounds_].to_numpy())
        with reproducible(0, "response process"):
            kernels, self.noise_ = _most_likely(Y @ Y.T / Y.shape[1], *self.rows_, self.similarity_)
        self.mean_kernel_, self.own_kernel_, self.shared_kernel_ = kernels
        K = self._kernel(self.rows_, self.rows_)
        K += np.diag(self.noise_[self.rows_[0]] + JITTER)
        self.weights_ = np.linalg.solve(K, Y)
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """The posterior mean, pairs x genes; an unknown label has the mean covariance of the known ones."""
        at = codes(pairs, self.cell_types_, self.compounds_)
        return pd.DataFrame(self._kernel(at, self.rows_) @ self.weights_, pairs, self.genes_)

    def to_bundle(self) -> Bundle:
        """All that `predict` needs, as plain data."""
        arrays = {name: getattr(self, f"{name}_") for name in FITTED}
        arrays |= {name: getattr(self, f"{name}_").to_numpy().astype(str) for name in LABELS}
        arrays |= {"cell_type": self.rows_[0], "compound": self.rows_[1]}
        return Bundle(self.KIND, {"rank": self.rank}, arrays)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ResponseProcess:
        """The fitted process again. Raises DataError for arrays that do not fit together."""
        self, arrays = cls(bundle.settings["rank"]), bundle.arrays
        sizes = check_arrays(arrays, LAYOUT)
        check_codes(arrays["cell_type"], sizes["T"], "cell_type")
        check_codes(arrays["compound"], sizes["C"], "compound")
        for name in FITTED:
            setattr(self, f"{name}_", arrays[name])
        self.genes_ = pd.Index(arrays["genes"])
        self.cell_types_ = pd.Index(arrays["cell_types"], name="cell_type")
        self.compounds_ = pd.Index(arrays["compounds"], name="sm_name")
        self.rows_ = (arrays["cell_type"], arrays["compound"])
        return self

    def _kernel(self, left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
        (c, d), (c2, d2) = left, right
        mean, own, shared = (
            _with_mean(kernel)[c][:, c2] for kernel in (self.mean_kernel_, self.own_kernel_, self.shared_kernel_)
        )
        return mean + own * (d[:, None] == d2) + shared * _with_mean(self.similarity_)[d][:, d2]


def _with_mean(kernel: np.ndarray) -> np.ndarray:
    """The kernel with a last row, which -1 finds: the mean of the others."""
    return np.vstack([kernel, kernel.mean(axis=0)])


def _similarity(effects: np.ndarray) -> np.ndarray:
    """exp(- squared distance / median squared distance) of every two compounds' effects, compounds x genes."""
    norms = (effects**2).sum(axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * effects @ effects.T, 0.0)
    np.fill_diagonal(squared, 0.0)
    middle = np.median(squared[~np.eye(len(squared), dtype=bool)])
    return np.exp(-squared / (middle or 1.0))


def _most_likely(
    S: np.ndarray, cell_type: np.ndarray, compound: np.ndarray, similarity: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """A, B, C and the noise that maximise the likelihood of rows whose empirical covariance over genes is `S`.

    Minimised by L-BFGS: log det K + tr(K^-1 S), with A, B, C as products of triangular factors.
    """
    n_types = int(cell_type.max()) + 1
    lower = np.tril_indices(n_types)
    n_factor = len(lower[0])
    code, target = torch.as_tensor(cell_type), torch.as_tensor(S)
    same = torch.as_tensor((compound[:, None] == compound).astype(float))
    alike = torch.as_tensor(similarity[np.ix_(compound, compound)])

    def unpack(x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        kernels = []
        for part in x[: 3 * n_factor].split(n_factor):
            factor = torch.zeros(n_types, n_types, dtype=x.dtype).index_put(tuple(map(torch.as_tensor, lower)), part)
            kernels.append(factor @ factor.T)
        return kernels, x[3 * n_factor :].exp()

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(values, requires_grad=True)
        kernels, noise = unpack(x)
        mean, own, shared = (kernel[code][:, code] for kernel in kernels)
        factor = torch.linalg.cholesky(mean + own * same + shared * alike + torch.diag(noise[code] + JITTER))
        value = 2 * factor.diagonal().log().sum() + torch.trace(torch.cholesky_solve(target, factor))
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    level = np.sqrt(max(np.trace(S) / len(S), 1e-12))  # typical size of a response; sets the scale of the start
    factor = np.where(lower[0] == lower[1], 0.4, 0.1) * level
    start = np.concatenate([np.tile(factor, 3), np.full(n_types, np.log(0.5 * level**2))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    kernels, noise = unpack(torch.as_tensor(found.x))
    return [kernel.numpy() for kernel in kernels], noise.numpy()
