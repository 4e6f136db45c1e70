"""The response of an unseen knock-out, from what is known of its gene: a Gaussian process over a sum of kernels.

In: `GeneKnowledge` (`knowledge.py`) and the mean expression of the training perturbations. Out: `ResponseModel`, an
estimator. `fit_response` is the model itself: a pure function from training data to the fitted parts, in the order of
the formulas. Next: `method.py`, which puts it together with proportions and cells.

Letters, here and in the code: n training perturbations, G responses (genes), T feature tables, K components.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import scipy.optimize
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from contract import OBESITY_1 as CRUNCH
from helpers import row_correlations, some
from knowledge import FeatureTable, GeneKnowledge

OWN_RESPONSE = "own response"  # the table that is made of the training responses themselves
CONSTANT = "constant"  # the kernel that is 1 for every pair of genes
OWN_COMPONENTS = 30
FEWEST = 3  # perturbations to learn from


class ResponseModel(BaseEstimator):
    """The response of an unseen knock-out from what is known of its gene.

    Let r be the residual of a knock-out from the mean over perturbed cells, less a least-squares multiple of the
    template where there is one, and z = r / |r| its direction. Pearson asks for directions, so every knock-out counts
    alike but for the noise of its cells. Then

        z = f(gene) + noise,   cov f = (sum_t w_t K_t) x Sigma,   noise ratio of component k: rho + tau l_1 / l_k

    K_t is the kernel of feature table t, Sigma the covariance of the responses, l_k the variance of response component
    k. One more kernel is constant: the direction that weak knock-outs share, back to the control. The weights w, then
    rho and tau, maximise the leave-one-out Pearson correlation of the training knock-outs, which has a closed form
    (Rasmussen and Williams 2006, eq. 5.12). The size of a prediction is the least-squares amplitude of the left-out
    predictions. A template is used where it raises the leave-one-out correlation.

    Parameters
    ----------
    prior : float
        `prior` / n holds the log weights together when knock-outs are few.
    rank : int
        The most response components K.
    own_response : bool
        Whether how each gene itself responds in the training knock-outs is one more table.

    Attributes
    ----------
    reference_ : Series (G,)
        The mean over perturbed cells; predictions are this plus a residual.
    basis_ : DataFrame (K, G), coefficients_ : DataFrame (genes, K), float32, unknown_ : Series (K,)
        Residual = coefficients @ basis; `unknown_` are the coefficients of a gene of which nothing is known.
    weights_ : Series (T + 1,), coverage_ : Series (T,), template_weight_ : float
        w by table, and of the constant; the share of the training knock-outs that each table knows.
    loo_pearson_ : Series (n,)
        Leave-one-out correlation by training knock-out; optimistic, since the components have seen it.
    expected_ : DataFrame (genes + 1, 2)
        `error`: expected length of the prediction's error; `pearson`: expected correlation. The last row, named "",
        is for a gene of which nothing is known.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from knowledge import GeneKnowledge, numeric_table
    >>> genes = [f"G{i}" for i in range(20)]
    >>> features = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), index=genes)
    >>> responses = features @ np.random.default_rng(1).normal(size=(3, 50))
    >>> model = ResponseModel().fit(responses[:15], knowledge=GeneKnowledge({"features": numeric_table(features)}))
    >>> model.predict(["G15", "G16"]).shape
    (2, 50)
    >>> bool(np.corrcoef(model.predict(["G15"]), responses.loc[["G15"]])[0, 1] > 0.9)
    True
    """

    def __init__(self, prior: float = 0.1, rank: int = 120, own_response: bool = True) -> None:
        self.prior = prior
        self.rank = rank
        self.own_response = own_response

    def fit(
        self,
        responses: pd.DataFrame,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> ResponseModel:
        """Learn from `responses` (perturbations x G; a control row is left out).

        `n_cells` (cells by perturbation) weighs the reference and says how noisy each response is; without it all
        count alike. `knowledge` is what is known of the genes; without it only the constant and the own responses are.
        """
        responses = responses.drop(index=CRUNCH.control, errors="ignore")
        knowledge = knowledge or GeneKnowledge({})
        cells = np.ones(len(responses)) if n_cells is None else n_cells[responses.index].to_numpy(np.float64)
        self.reference_ = pd.Series(np.average(responses, axis=0, weights=cells), index=responses.columns)
        residuals = responses - self.reference_
        if len(residuals) < FEWEST or np.abs(residuals.to_numpy()).max() < 1e-9:
            best = _nothing_learned(residuals)
        else:
            templates = [None] if knowledge.template is None else [None, knowledge.template]
            fits = [
                fit_response(
                    residuals,
                    cells,
                    knowledge.tables,
                    template,
                    prior=self.prior,
                    rank=self.rank,
                    own_response=self.own_response,
                )
                for template in templates
            ]
            best = max(fits, key=lambda fitted: fitted.loo_pearson.mean())
        for part in fields(best):
            setattr(self, part.name + "_", getattr(best, part.name))
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses, float64; one warning lists the targets of which nothing is known."""
        check_is_fitted(self)
        names = pd.Index(targets)
        position = self.coefficients_.index.get_indexer(names)
        if (position < 0).any():
            warnings.warn(
                f"nothing is known of {(position < 0).sum()} of {len(names)} targets, which get the prediction of a "
                "gene in no table: " + some(names[position < 0]),
                stacklevel=2,
            )
        coefficients = self.coefficients_.to_numpy()[position]  # targets x K
        coefficients = np.where(position[:, None] >= 0, coefficients, self.unknown_.to_numpy())
        predicted = coefficients @ self.basis_.to_numpy()
        predicted += self.reference_.to_numpy()
        return pd.DataFrame(predicted, index=names, columns=self.reference_.index)

    def predict_scale(self, targets: Sequence[str]) -> pd.DataFrame:
        """How sure: targets x `error` (expected length of the residual's error) and `pearson` (expected)."""
        check_is_fitted(self)
        names = pd.Index(targets)
        position = self.expected_.index.get_indexer(names)
        return self.expected_.iloc[np.where(position < 0, len(self.expected_) - 1, position)].set_axis(names)


@dataclass(frozen=True)
class FittedResponse:
    """The fitted parts of a `ResponseModel`, which lists their shapes and meanings under Attributes."""

    weights: pd.Series
    coverage: pd.Series
    template_weight: float
    coefficients: pd.DataFrame
    unknown: pd.Series
    basis: pd.DataFrame
    loo_pearson: pd.Series
    expected: pd.DataFrame


def _nothing_learned(residuals: pd.DataFrame) -> FittedResponse:
    """Too few knock-outs, or all alike: every prediction is the reference."""
    names, columns = residuals.index, residuals.columns
    return FittedResponse(
        weights=pd.Series(dtype=np.float64),
        coverage=pd.Series(dtype=np.float64),
        template_weight=0.0,
        coefficients=pd.DataFrame(np.zeros((len(names), 1), np.float32), index=names),
        unknown=pd.Series([0.0]),
        basis=pd.DataFrame(np.zeros((1, len(columns))), columns=columns),
        loo_pearson=pd.Series(0.0, index=names),
        expected=pd.DataFrame({"error": [0.0], "pearson": [0.0]}, index=[""]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The model, in the order of its formulas
# ---------------------------------------------------------------------------------------------------------------------


def fit_response(
    residuals: pd.DataFrame,
    n_cells: np.ndarray,
    tables: dict[str, FeatureTable],
    template: tuple[pd.DataFrame, pd.DataFrame] | None,
    *,
    prior: float,
    rank: int,
    own_response: bool,
) -> FittedResponse:
    """Fit the Gaussian process to residuals (n x G) from the mean over perturbed cells; `n_cells` is (n,).

    A `template` (loadings, genes x L; responses, L x G) is subtracted first, and added to the prediction afterwards.
    """
    names = residuals.index
    R = residuals.to_numpy()  # n x G
    loadings, template_basis, template_weight = _fit_template(template, residuals)  # genes x L, L x G
    rest = residuals - loadings.loc[names].to_numpy() @ template_basis  # n x G: r
    if own_response:
        tables = {**tables, OWN_RESPONSE: _own_responses(rest)}
    tables = {name: table for name, table in tables.items() if table.known(names).any()}

    # z = r / |r|, and each row weighed by the precision of its noise: half of the noise of a knock-out is the sampling
    # of its cells, half what no table can know.
    r = rest.to_numpy()
    centred = r - r.mean(axis=1, keepdims=True)  # n x G, since a correlation does not see the mean over genes
    length = np.maximum(np.linalg.norm(centred, axis=1), 1e-12)  # n: |r|
    precision = 1.0 / np.sqrt((1.0 + np.median(n_cells) / n_cells) / 2.0)  # n
    scale = precision / length  # n: z weighed = scale * r
    gram = (centred @ centred.T) * np.outer(scale, scale)  # n x n: products of the weighed z

    # w_t, by leave-one-out; the constant comes last.
    kernels = np.array([table.kernel(names, names) for table in tables.values()] + [np.ones_like(gram)])  # T+1 x n x n
    kernels *= np.outer(precision, precision)
    weights = _best_weights(kernels, gram, prior / len(names))  # T+1
    kernel = np.tensordot(weights, kernels, 1)  # n x n: sum_t w_t K_t

    # Sigma by its components, then rho and tau, by leave-one-out.
    mixing, scores, variance = _response_components(gram, rank)  # K x n, n x K, K: l_k
    dual, left_out = _best_noise(kernel, scores, variance, np.diag(gram))  # n x K, n x K
    left_out = left_out / precision[:, None]
    amplitude = _amplitude(scores / scale[:, None], left_out, length)

    # The posterior mean of f at every gene that is in a table, and of an unknown gene (last), which has the constant's.
    genes = pd.Index(sorted(set(names).union(loadings.index, *(table.genes for table in tables.values())) - {""}))
    K_new = np.full((len(genes) + 1, len(names)), weights[-1])  # genes+1 x n
    for weight, table in zip(weights, tables.values(), strict=False):
        K_new[:-1] += weight * table.kernel(genes, names)
    f = amplitude * (K_new * precision) @ dual  # genes+1 x K
    basis = mixing @ (r * scale[:, None])  # K x G

    # The template's part: L more components. An unknown gene has none of it.
    f = np.hstack([f, loadings.reindex([*genes, ""], fill_value=0.0)])  # genes+1 x K+L
    left_out = np.hstack([amplitude * left_out, loadings.loc[names]])  # n x K+L
    basis = np.vstack([basis, template_basis])  # K+L x G
    loo_pearson = row_correlations(left_out @ basis, R)  # n
    expected = _expected(f, left_out, basis, R, loo_pearson)
    return FittedResponse(
        weights=pd.Series(weights, index=[*tables, CONSTANT]),
        coverage=pd.Series({name: table.known(names).mean() for name, table in tables.items()}),
        template_weight=template_weight,
        coefficients=pd.DataFrame(f[:-1].astype(np.float32), index=genes),
        unknown=pd.Series(f[-1]),
        basis=pd.DataFrame(basis, columns=residuals.columns),
        loo_pearson=pd.Series(loo_pearson, index=names),
        expected=expected.set_axis([*genes, ""]),
    )


def _fit_template(
    template: tuple[pd.DataFrame, pd.DataFrame] | None, residuals: pd.DataFrame
) -> tuple[pd.DataFrame, np.ndarray, float]:
    """The template's loadings times its weight (all its genes and all perturbations x L), responses (L x G), weight.

    The weight is the least-squares multiple of the templates in the residuals (n x G), and not below 0.
    """
    if template is None:
        return (
            pd.DataFrame(np.zeros((len(residuals), 0)), index=residuals.index),
            np.zeros((0, residuals.shape[1])),
            0.0,
        )
    loadings = template[0].reindex(template[0].index.union(residuals.index), fill_value=0.0)
    basis = template[1].reindex(columns=residuals.columns, fill_value=0.0).to_numpy(np.float64)
    expected = loadings.loc[residuals.index].to_numpy(np.float64) @ basis  # n x G
    square = (expected**2).sum()
    weight = max(0.0, float((expected * residuals.to_numpy()).sum() / square)) if square > 0 else 0.0
    return loadings * weight, basis, weight


def _own_responses(residuals: pd.DataFrame) -> FeatureTable:
    """How each gene responds in the training knock-outs (residuals, n x G), its own knock-out apart."""
    R = residuals.to_numpy()
    _, axes = np.linalg.eigh(R @ R.T)
    axes = axes[:, ::-1][:, :OWN_COMPONENTS]  # n x components
    loadings = R.T @ axes  # G x components
    own = residuals.columns.get_indexer(residuals.index)
    rows = np.flatnonzero(own >= 0)
    loadings[own[rows]] -= axes[rows] * R[rows, own[rows]][:, None]
    return FeatureTable.of(residuals.columns.astype(str), loadings)


def _best_weights(kernels: np.ndarray, gram: np.ndarray, prior: float) -> np.ndarray:
    """Weights (T+1,) of the kernels (T+1 x n x n) that maximise the leave-one-out Pearson correlation."""
    found = scipy.optimize.minimize(
        _loo_pearson,
        np.full(len(kernels), -1.0),
        (kernels, gram, prior),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-7.0, 3.0)] * len(kernels),
        options={"maxiter": 60},
    )
    return np.exp(found.x)


def _loo_pearson(
    log_weights: np.ndarray, kernels: np.ndarray, gram: np.ndarray, prior: float
) -> tuple[float, np.ndarray]:
    """Minus the mean leave-one-out correlation, and its gradient (T+1,), with unit noise and `gram` = z z' (n x n).

    With P = (sum_t w_t K_t + I)^-1 the left-out prediction of row i is a fixed mixture of the other rows,
    sum_j S_ij z_j with S_ij = -P_ij / P_ii (Rasmussen and Williams 2006, eq. 5.12), so all correlations come
    from n x n matrices.
    """
    n, weights = len(gram), np.exp(log_weights)
    P = np.linalg.inv(np.tensordot(weights, kernels, 1) + np.eye(n))
    P_ii = np.diag(P).copy()
    S = -P / P_ii[:, None]
    np.fill_diagonal(S, 0.0)
    predicted = S @ gram  # predicted_ij: left-out prediction of row i, times row j
    size = np.sqrt(np.maximum((predicted * S).sum(axis=1), 1e-12 * np.trace(gram) / n))
    length = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    hit = np.diag(predicted) / (size * length)  # n: the correlations
    # The gradient, backwards through the same steps: d_X is the derivative by X of the mean correlation.
    d_S = (gram / length[:, None] - predicted * (hit / size)[:, None]) / size[:, None] / n
    np.fill_diagonal(d_S, 0.0)
    d_P = -d_S / P_ii[:, None]
    np.fill_diagonal(d_P, (d_S * P).sum(axis=1) / P_ii**2)
    d_kernel = -(P @ d_P @ P).T
    gradient = np.einsum("tij,ij->t", kernels, d_kernel) * weights
    spread = log_weights - log_weights.mean()
    return -hit.mean() + prior * spread @ spread, -gradient + 2.0 * prior * spread


def _response_components(gram: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The low-rank response basis, from `gram` = z z' (n x n).

    Returns what turns the rows z into components (K x n), each row's scores on them (n x K), and their variances (K,).
    """
    variance, axes = np.linalg.eigh(gram)
    variance, axes = variance[::-1], axes[:, ::-1]
    rank = max(1, min(rank, len(gram) - 1, int((variance > 1e-9 * variance[0]).sum())))
    root = np.sqrt(variance[:rank])
    return (axes[:, :rank] / root).T, axes[:, :rank] * root, variance[:rank]


def _best_noise(
    kernel: np.ndarray, scores: np.ndarray, variance: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Dual coefficients and left-out scores (both n x K) at the (rho, tau) with the best leave-one-out correlation.

    `kernel` is n x n, `scores` n x K, `variance` (K,) and `lengths` (n,) the squared length of each row.
    """
    values, vectors = np.linalg.eigh(kernel)
    rotated, squared = vectors.T @ scores, vectors**2
    best, highest = (scores, scores), -np.inf
    for rho in (0.02, 0.1, 0.5, 2.0):
        for tau in 2.0 ** np.arange(-6, 6):
            noise = rho + tau * variance[0] / variance  # K
            inverse = 1.0 / (np.maximum(values, 0.0)[:, None] + noise)  # n x K: of kernel + noise, in its own axes
            dual = vectors @ (rotated * inverse)
            left_out = scores - dual / (squared @ inverse)
            size = np.maximum(np.linalg.norm(left_out, axis=1), 1e-12)
            hits = (left_out * scores).sum(axis=1) / (size * np.sqrt(np.maximum(lengths, 1e-12)))
            if hits.mean() > highest:
                best, highest = (dual, left_out), hits.mean()
    return best


def _amplitude(true: np.ndarray, predicted: np.ndarray, length: np.ndarray) -> float:
    """Least squares of the true residuals on their left-out predictions (both n x K); `length` (n,) is |r|.

    Never 0, since Pearson needs the direction, and never more than makes predictions as long as the residuals.
    """
    square = max(float((predicted**2).sum()), 1e-12)
    most = np.sqrt((length**2).sum() / square)
    return float(np.clip((true * predicted).sum() / square, 0.02 * most, most))


def _expected(
    f: np.ndarray, left_out: np.ndarray, basis: np.ndarray, residuals: np.ndarray, hits: np.ndarray
) -> pd.DataFrame:
    """Expected error and Pearson correlation of every prediction `f`, by straight lines of the left-out ones.

    Both follow the length of the prediction: a longer one is a surer one, since the tables agree. `f` is genes x K,
    `left_out` n x K, `basis` K x G, `residuals` n x G, `hits` (n,) the left-out correlations.
    """
    product = basis @ basis.T
    size, known = (np.sqrt(np.maximum(((c @ product) * c).sum(axis=1), 0.0)) for c in (f, left_out))
    size = size.clip(known.min(), known.max())
    error = ((residuals - left_out @ basis) ** 2).sum(axis=1)
    return pd.DataFrame({"error": np.sqrt(_line(known**2, error, size**2)), "pearson": _line(known, hits, size)})


def _line(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """A straight line by least squares at `new`, kept within the middle 90 % of y."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return np.clip(y.mean() + slope * (new - x.mean()), *np.quantile(y, [0.05, 0.95]))
