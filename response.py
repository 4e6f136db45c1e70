"""The response of an unseen knock-out, from what is known of its gene: a Gaussian process over a sum of kernels.

In: `GeneKnowledge` (`knowledge.py`) and the mean expression of the training perturbations. Out: `ResponseModel`, an
estimator. `fit_response` is the model itself: a pure function from training data to the fitted parts, in the order of
the formulas. Next: `method.py`, which puts it together with proportions and cells.

Letters, here and in the code: n training perturbations, G responses (genes), T kernels, K components, m landmarks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.utils.extmath import randomized_svd
from sklearn.utils.validation import check_is_fitted

from contract import CRUNCH
from helpers import row_correlations, some
from knowledge import FeatureTable, GeneKnowledge, screen_table
from screens import Screen

OWN_RESPONSE = "own response"  # the table that is made of the training responses themselves
CONSTANT = "constant"  # the kernel that is 1 for every pair of genes
TEMPLATE = "template"
OWN_COMPONENTS = 30
FEWEST = 3  # perturbations to learn from

TUNING_ROWS = 800  # training perturbations, at most, on which weights, transfers and noise are tuned
LANDMARKS = 2500  # with more rows than these a kernel is of low rank
JUDGED_ROWS = 200  # training perturbations, at most, on which it is judged which tables enter
JUDGED_FOLDS, JUDGED_SPLITS = 5, 2
FEWEST_TO_JUDGE = 10
JUDGED_SHARE = 0.5  # of the least-squares factor of a screen's profiles, while it is judged
ENTERS, CLEAR = 1.0, 1.64  # standard errors: of what a table must add, and of what counts as clear
LEAST_GAIN = 0.001  # in correlation, that a table must add

SMOOTHING = 4.0  # noise of a screen's profile, in units of its mean variance


class ResponseModel(BaseEstimator):
    """The response of an unseen knock-out from what is known of its gene.

    Let r be the residual of a knock-out from the mean over perturbed cells, less what other screens foretell, and
    z = r / |r| its direction. Pearson asks for directions, so every knock-out counts alike but for the noise of its
    cells. Then

        z = f(gene) + noise,   cov f = (sum_t w_t K_t) x Sigma,   noise ratio of component k: rho + tau l_1 / l_k

    K_t is the kernel of a feature table or of a screen (genes that act alike there act alike here), Sigma the
    covariance of the responses, l_k the variance of response component k. One more kernel is constant: the direction
    that weak knock-outs share, back to the control. The weights w, then rho and tau, maximise the leave-one-out Pearson
    correlation of the training knock-outs, which has a closed form (Rasmussen and Williams 2006, eq. 5.12). The size of
    a prediction is the least-squares amplitude of the left-out predictions.

    A table or screen enters where, out of fold on the training knock-outs with all weights learned in the fold, the
    correlation is worse without it by more than a standard error of the paired difference, and by .001 (`judge`).

    A screen that enters also foretells: its profiles, smoothed by the same kernel, times a factor of each response
    (a shrunken least-squares factor), times a share that maximises the leave-one-out correlation. The template of
    `GeneKnowledge` is one more of this kind.

    Parameters
    ----------
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
    weights_ : Series (T + 1,)
        w by kernel, and of the constant; a table that did not enter is not among them.
    judged_ : DataFrame (tables, 4)
        `coverage`: the share of the training knock-outs that the table knows; `gain`: what it adds to the correlation
        out of fold, with `standard_error`; `enters`: 1 or 0.
    transfers_ : Series
        By screen, and for the template: the share of its foretelling that is used, 0 for none.
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

    def __init__(self, rank: int = 120, own_response: bool = True) -> None:
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
        is_control = np.array([CRUNCH.is_control(name) for name in responses.index], bool)
        control, responses = responses[is_control], responses[~is_control]
        knowledge = knowledge or GeneKnowledge({})
        cells = np.ones(len(responses)) if n_cells is None else n_cells[responses.index].to_numpy(np.float64)
        self.reference_ = pd.Series(np.average(responses, axis=0, weights=cells), index=responses.columns)
        residuals = responses - self.reference_
        centred = residuals.sub(residuals.mean(axis=1), axis=0)  # a direction is what is left: of one gene, nothing
        if len(residuals) < FEWEST or np.abs(centred.to_numpy()).max() < 1e-9:
            best = _nothing_learned(residuals, control - self.reference_)
        else:
            best = fit_response(residuals, cells, knowledge, rank=self.rank, own_response=self.own_response)
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
    judged: pd.DataFrame
    transfers: pd.Series
    coefficients: pd.DataFrame
    unknown: pd.Series
    basis: pd.DataFrame
    loo_pearson: pd.Series
    expected: pd.DataFrame


def _nothing_learned(residuals: pd.DataFrame, control: pd.DataFrame) -> FittedResponse:
    """Too few knock-outs, or all alike: every prediction is the reference. Its error is that of the left-out ones.

    Of a single one there is nothing to go by but its own effect (`control`), and another may go anywhere from there.
    """
    names, columns, n = residuals.index, residuals.columns, len(residuals)
    left_out = residuals.to_numpy() * n / (n - 1) if n > 1 else control.to_numpy() * np.sqrt(2)
    error = np.sqrt((left_out**2).sum(axis=1).mean()) if len(left_out) else 0.0
    return FittedResponse(
        weights=pd.Series(dtype=np.float64),
        judged=pd.DataFrame(columns=JUDGED, dtype=np.float64),
        transfers=pd.Series(dtype=np.float64),
        coefficients=pd.DataFrame(np.zeros((len(names), 1), np.float32), index=names),
        unknown=pd.Series([0.0]),
        basis=pd.DataFrame(np.zeros((1, len(columns))), columns=columns),
        loo_pearson=pd.Series(0.0, index=names),
        expected=pd.DataFrame({"error": [error], "pearson": [0.0]}, index=[""]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The model, in the order of its formulas
# ---------------------------------------------------------------------------------------------------------------------


def fit_response(
    residuals: pd.DataFrame, n_cells: np.ndarray, knowledge: GeneKnowledge, *, rank: int, own_response: bool
) -> FittedResponse:
    """Fit the Gaussian process to residuals (n x G) from the mean over perturbed cells; `n_cells` is (n,).

    Everything is tuned on `TUNING_ROWS` perturbations at most, drawn with a fixed seed, and then fitted to all.
    """
    names = residuals.index
    tables = knowledge.tables | {name: screen_table(screen) for name, screen in knowledge.screens.items()}
    sources = dict(knowledge.screens)  # what foretells responses
    if knowledge.template is not None:
        sources[TEMPLATE] = knowledge.template
        genes = knowledge.template.perturbations
        tables[TEMPLATE] = FeatureTable(genes, sp.csr_matrix((len(genes), 1)), powers=())  # no kernel
    if own_response:
        tables[OWN_RESPONSE] = _own_responses(residuals)
    tables = {name: table for name, table in tables.items() if table.known(names).any()}
    precision = precision_of(n_cells)

    # Which tables enter, and w_t, by leave-one-out; the constant comes last.
    some_rows = _drawn(len(names), TUNING_ROWS)
    measured = {
        name: _measured(sources[name], names[some_rows], residuals.columns) for name in sources if name in tables
    }
    profiles = {name: scores @ basis for name, (scores, basis) in measured.items()}
    judged = judge(residuals.iloc[some_rows], n_cells[some_rows], precision[some_rows], tables, profiles)
    tables = {name: table for name, table in tables.items() if judged.loc[name, "enters"]}
    kernels = _training_kernels(names[some_rows], tables, precision[some_rows])
    z = _directions(residuals.to_numpy()[some_rows], precision[some_rows])
    kernel = _Kernel(tables, _best_weights(kernels, z @ z.T))
    axes = kernel.axes(names[some_rows], precision[some_rows])
    genes = pd.Index(sorted({*names}.union(*(table.genes for table in tables.values())) - {""}))

    # What each screen that entered foretells, then the template; the share of each by leave-one-out.
    rest, transfers = residuals.to_numpy(), dict[str, float]()  # rest: n x G
    foretold: list[tuple[np.ndarray, np.ndarray]] = []  # loadings genes x L, basis L x G
    posterior = _Posterior.of(rest[some_rows], precision[some_rows], axes, rank)
    for name in [name for name in sources if name in tables]:
        loadings, basis = _foretelling(sources[name], kernel, genes, names, residuals.columns, smooth=name != TEMPLATE)
        at = genes.get_indexer(names)
        basis *= learned_factors(loadings[at] @ basis, rest, precision)
        there = loadings[at] @ basis  # n x G
        share = posterior.best_share(rest[some_rows], there[some_rows], precision[some_rows], axes, rank)
        transfers[name] = share
        if share > 0:
            rest = rest - share * there
            foretold.append((loadings, share * basis))
            posterior = _Posterior.of(rest[some_rows], precision[some_rows], axes, rank)

    # The posterior mean of f at every gene that is in a table, and of an unknown gene (last), which has the constant's.
    if len(some_rows) < len(names):
        axes = kernel.axes(names, precision)
        posterior = _Posterior.of(rest, precision, axes, rank, posterior.noise)
    f = kernel.at(genes, axes.landmarks) @ axes.dual(posterior.dual)  # genes+1 x K
    at = genes.get_indexer(names)
    left_out = np.hstack([posterior.left_out, *(loadings[at] for loadings, _ in foretold)])  # n x K+L
    f = np.hstack([f, *(np.vstack([loadings, np.zeros(loadings.shape[1])]) for loadings, _ in foretold)])
    basis = np.vstack([posterior.basis, *(basis for _, basis in foretold)])  # K+L x G
    there, true = left_out @ basis, residuals.to_numpy()  # n x G
    basis *= np.clip((there * true).sum() / max(float((there**2).sum()), 1e-12), 0.02, 1.0)  # a share sees no length
    loo_pearson = row_correlations(there, true)  # n
    return FittedResponse(
        weights=pd.Series(kernel.weights, index=kernel.labels),
        judged=judged,
        transfers=pd.Series(transfers, dtype=np.float64),
        coefficients=pd.DataFrame(f[:-1].astype(np.float32), index=genes),
        unknown=pd.Series(f[-1]),
        basis=pd.DataFrame(basis, columns=residuals.columns),
        loo_pearson=pd.Series(loo_pearson, index=names),
        expected=_expected(f, left_out, basis, true, loo_pearson).set_axis([*genes, ""]),
    )


def precision_of(n_cells: np.ndarray) -> np.ndarray:
    """1 / standard deviation of the noise of each perturbation (n,), 1 where there are as many cells as usual.

    Half of the noise is the sampling of its cells, half what no table can know.
    """
    return 1.0 / np.sqrt((1.0 + np.median(n_cells) / n_cells) / 2.0)


def _drawn(n: int, most: int) -> np.ndarray:
    """All of n rows, or `most` of them drawn with a fixed seed, in order."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _directions(r: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """z = r / |r| by row (n x G), centred over responses since a correlation does not see their mean, and weighed."""
    centred = r - r.mean(axis=1, keepdims=True)
    return centred * (precision / _lengths(centred))[:, None]


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows, axis=1), 1e-12)


def _own_responses(residuals: pd.DataFrame) -> FeatureTable:
    """How each gene responds in the training knock-outs (residuals, n x G), its own knock-out apart."""
    R = residuals.to_numpy()
    if len(R) > LANDMARKS:
        axes, _, _ = randomized_svd(R, OWN_COMPONENTS, random_state=0)
    else:
        axes = np.linalg.eigh(R @ R.T)[1][:, ::-1][:, :OWN_COMPONENTS]  # n x components
    loadings = R.T @ axes  # G x components
    own = residuals.columns.get_indexer(residuals.index)
    rows = np.flatnonzero(own >= 0)
    loadings[own[rows]] -= axes[rows] * R[rows, own[rows]][:, None]
    return FeatureTable.of(residuals.columns.astype(str), loadings, powers=(1, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Which tables enter, and with which weights
# ---------------------------------------------------------------------------------------------------------------------

JUDGED = ["coverage", "gain", "standard_error", "enters"]


def judge(
    residuals: pd.DataFrame,
    n_cells: np.ndarray,
    precision: np.ndarray,
    tables: dict[str, FeatureTable],
    profiles: dict[str, np.ndarray],
) -> pd.DataFrame:
    """Which tables enter: tables x `JUDGED`.

    `residuals` are n x G, `n_cells` and `precision` (n,), and `profiles`, by the name of a screen among the tables,
    what it measured of the training perturbations (n x G, 0 where it did not).

    Backwards from all tables: the one without which the correlation out of fold is least worse, or better, goes, until
    each one adds more than a standard error. Where the constant alone clearly predicts something, tables enter only if
    together they are clearly better than it. Where it does not, the last table stays if it adds .001: there is
    nothing to lose.
    """
    rows = _drawn(len(residuals), JUDGED_ROWS)
    names, cells, precise = residuals.index, n_cells[rows], precision[rows]
    kernels = {name: _training_kernels(names[rows], {name: table}, precise)[:-1] for name, table in tables.items()}
    ones, n = np.outer(precise, precise)[None], len(rows)
    stacked = np.vstack([residuals.to_numpy()[rows], *(profile[rows] for profile in profiles.values())])
    stacked -= stacked.mean(axis=1, keepdims=True)
    gram = (stacked @ stacked.T).reshape(len(profiles) + 1, n, len(profiles) + 1, n)

    def out_of_fold(kept: list[str]) -> np.ndarray:
        blocks = [0, *(1 + list(profiles).index(name) for name in kept if name in profiles)]
        chosen = np.concatenate([*(kernels[name] for name in kept), ones])
        return _out_of_fold(chosen, gram[blocks][:, :, blocks], cells, precise)

    def error(values: np.ndarray) -> float:
        return float(values.std() / np.sqrt(n))

    known = {name: float(table.known(names).mean()) for name, table in tables.items()}
    table = pd.DataFrame({"coverage": known, "gain": 0.0, "standard_error": 0.0, "enters": 0.0}, columns=JUDGED)
    if n < FEWEST_TO_JUDGE or not tables:
        return table
    kept = list(tables)
    hits, doubtful, constant = out_of_fold(kept), list(tables), out_of_fold([])
    predicts = constant.mean() > CLEAR * error(constant)
    while doubtful:
        without = {name: out_of_fold([other for other in kept if other != name]) for name in doubtful}
        margin = {}
        for name in doubtful:
            gain = hits - without[name]
            table.loc[name, ["gain", "standard_error"]] = gain.mean(), error(gain)
            asked = ENTERS * error(gain) if predicts or len(kept) > 1 else 0.0
            margin[name] = gain.mean() - max(asked, LEAST_GAIN)
        worst = min(doubtful, key=lambda name: margin[name])
        if margin[worst] > 0:
            break
        kept.remove(worst)
        hits = without[worst]
        doubtful = [name for name in doubtful if name != worst and margin[name] <= 0]
    gain = hits - constant
    if predicts and gain.mean() <= CLEAR * error(gain):
        kept = []
    table.loc[kept, "enters"] = 1.0
    return table


def _training_kernels(names: pd.Index, tables: dict[str, FeatureTable], precision: np.ndarray) -> np.ndarray:
    """The kernels of all tables, and last the constant one, between the training perturbations: T+1 x n x n."""
    kernels = [kernel for table in tables.values() for kernel in table.kernels(names, names)]
    return np.array([*kernels, np.ones((len(names), len(names)))]) * np.outer(precision, precision)


def _out_of_fold(kernels: np.ndarray, gram: np.ndarray, n_cells: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Correlations of held-out perturbations (n,), the weights of the kernels (T x n x n) learned in each fold.

    The mean over `JUDGED_SPLITS` splits into `JUDGED_FOLDS`. `gram` (S+1 x n x S+1 x n) are the products of the
    residuals, and of the profiles in S screens, which are subtracted times a part of their least-squares factor, and
    added afterwards. The reference is the mean over the cells of the fold's training rows.
    """
    n_blocks, n = gram.shape[:2]
    hits = np.zeros((JUDGED_SPLITS, n))
    for split in range(JUDGED_SPLITS):
        folds = np.random.default_rng(split).permutation(n) % JUDGED_FOLDS
        for fold in range(JUDGED_FOLDS):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            shares = n_cells[train] / n_cells[train].sum()
            centred = gram - np.tensordot(gram[:, train], shares, (1, 0))[:, None]
            centred -= (centred[..., train] @ shares)[..., None]
            lengths = np.sqrt(np.maximum(np.diag(centred[0, :, 0]), 1e-24))
            lengths[test] = lengths[train].mean()  # those of held-out rows are not known
            centred *= np.multiply.outer((precision / lengths)[:, None], precision / lengths)
            within = kernels[:, train][:, :, train]
            weights = _best_weights(within, centred[0, train][:, 0, train], most_steps=15)
            kernel = np.tensordot(weights, within, 1) + np.eye(len(train))
            mixture = np.linalg.solve(kernel, np.tensordot(weights, kernels[:, train][:, :, test], 1)).T
            parts = np.zeros((len(test), n_blocks, n))  # a held-out prediction is a mixture of all rows of `gram`
            parts[:, 0, train] = mixture
            for block in range(1, n_blocks):
                product, square = (np.trace(centred[block, train][:, other, train]) for other in (0, block))
                factor = JUDGED_SHARE / (n_blocks - 1) * max(product, 0.0) / max(square, 1e-12)
                parts[:, block, train] = -factor * mixture
                parts[np.arange(len(test)), block, test] = factor
            products = np.tensordot(parts, centred, 2)  # test x S+1 x n
            square = (products * parts).sum(axis=(1, 2)) * np.diag(centred[0, :, 0])[test]
            hits[split, test] = products[np.arange(len(test)), 0, test] / np.sqrt(np.maximum(square, 1e-18))
    return hits.mean(axis=0)


def _best_weights(kernels: np.ndarray, gram: np.ndarray, most_steps: int = 60) -> np.ndarray:
    """Weights (T,) of the kernels (T x n x n) that maximise the leave-one-out Pearson correlation."""
    found = scipy.optimize.minimize(
        _loo_pearson,
        np.full(len(kernels), -1.0),
        (kernels, gram),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-7.0, 3.0)] * len(kernels),
        options={"maxiter": most_steps},
    )
    return np.exp(found.x)


def _loo_pearson(log_weights: np.ndarray, kernels: np.ndarray, gram: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the mean leave-one-out correlation, and its gradient (T,), with unit noise and `gram` = z z' (n x n).

    With P = (sum_t w_t K_t + I)^-1 the left-out prediction of row i is a fixed mixture of the other rows,
    sum_j -P_ij z_j / P_ii (Rasmussen and Williams 2006, eq. 5.12), so all correlations come from n x n matrices. They
    do not see the factor 1 / P_ii.
    """
    n, weights = len(gram), np.exp(log_weights)
    P = np.linalg.inv(np.tensordot(weights, kernels, 1) + np.eye(n))
    S = -P
    np.fill_diagonal(S, 0.0)
    predicted = S @ gram  # predicted_ij: left-out prediction of row i, times row j
    size = np.sqrt(np.maximum((predicted * S).sum(axis=1), 1e-12 * np.trace(gram) / n))
    length = np.sqrt(np.maximum(np.diag(gram), 1e-12))
    hit = np.diag(predicted) / (size * length)  # n: the correlations
    # The gradient, backwards through the same steps: d_X is the derivative by X of the mean correlation.
    d_S = (gram / length[:, None] - predicted * (hit / size)[:, None]) / size[:, None] / n
    np.fill_diagonal(d_S, 0.0)
    d_kernel = (P @ d_S @ P).T
    gradient = np.tensordot(kernels, d_kernel, 2) * weights
    return -hit.mean(), -gradient


# ---------------------------------------------------------------------------------------------------------------------
# The kernel, and the posterior mean
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    """sum_t w_t K_t; the last weight is that of the constant."""

    tables: dict[str, FeatureTable]
    weights: np.ndarray

    @property
    def labels(self) -> list[str]:
        """The name of each kernel: the table's, with the power where there are several."""
        return [
            name if power == table.powers[0] else f"{name}, power {power}"
            for name, table in self.tables.items()
            for power in table.powers
        ] + [CONSTANT]

    def between(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Without the constant: left x right."""
        total, weights = np.zeros((len(left), len(right))), iter(self.weights)
        for table in self.tables.values():
            for kernel in table.kernels(left, right):
                total += next(weights) * kernel
        return total

    def diagonal(self, genes: Sequence[str]) -> np.ndarray:
        """Of each gene with itself, without the constant: (genes,)."""
        parts = [part for table in self.tables.values() for part in table.diagonals(genes)]
        return sum((w * part for w, part in zip(self.weights, parts, strict=False)), np.zeros(len(genes)))

    def at(self, genes: pd.Index, right: Sequence[str]) -> np.ndarray:
        """With the constant, and a last row of an unknown gene: genes + 1 x right."""
        return np.vstack([self.between(genes, right), np.zeros(len(right))]) + self.weights[-1]

    def axes(self, names: pd.Index, precision: np.ndarray) -> _Axes:
        """The principal axes of the weighed kernel between the perturbations `names`.

        Exact for up to `LANDMARKS` of them; for more, what the landmarks span (Nystroem's approximation).
        """
        chosen = _drawn(len(names), LANDMARKS)
        landmarks = names[chosen]
        across = (self.between(names, landmarks) + self.weights[-1]) * precision[:, None]  # n x m
        values, vectors = np.linalg.eigh(across[chosen] * precision[chosen])
        if len(chosen) == len(names):
            return _Axes(landmarks, np.maximum(values, 0.0), vectors, np.diag(precision))
        kept = values > 1e-9 * values[-1]
        root = vectors[:, kept] * (precision[chosen, None] / np.sqrt(values[kept]))  # m x axes
        features = across @ root  # n x axes
        square, turn = np.linalg.eigh(features.T @ features)
        square = np.maximum(square, 1e-12 * square[-1])
        return _Axes(landmarks, square, features @ (turn / np.sqrt(square)), root @ (turn * np.sqrt(square)))


@dataclass(frozen=True)
class _Axes:
    """Kernel = vectors diag(eigenvalues) vectors'; `eigenvalues` (m,), `vectors` n x m; `back` leads to landmarks."""

    landmarks: pd.Index
    eigenvalues: np.ndarray
    vectors: np.ndarray
    back: np.ndarray

    def dual(self, dual: np.ndarray) -> np.ndarray:
        """What multiplies the kernel between new genes and landmarks (m x K), from the dual coefficients (n x K)."""
        return self.back @ (dual if len(self.landmarks) == len(dual) else self.vectors.T @ dual)


@dataclass(frozen=True)
class _Posterior:
    """`left_out` (n x K) @ `basis` (K x G): left-out predictions; `dual` n x K, both times the amplitude."""

    dual: np.ndarray
    left_out: np.ndarray
    basis: np.ndarray
    noise: tuple[float, float]  # rho, tau

    @classmethod
    def of(
        cls,
        r: np.ndarray,
        precision: np.ndarray,
        axes: _Axes,
        rank: int,
        noise: tuple[float, float] | None = None,
    ) -> _Posterior:
        """Sigma by its components; then rho and tau by leave-one-out, where they are not given."""
        z = _directions(r, precision)
        scores, variance, basis = _response_components(z, rank)  # n x K, K: l_k, K x G
        lengths = np.linalg.norm(z, axis=1)  # n
        noise = noise or _best_noise(axes, scores, variance, lengths)
        dual, left_out = _solved(axes, scores, noise[0] + noise[1] * variance[0] / variance)
        left_out = left_out / precision[:, None]
        length = _lengths(r - r.mean(axis=1, keepdims=True))
        amplitude = _amplitude(scores * (length / precision)[:, None], left_out, length)
        return cls(amplitude * dual, amplitude * left_out, basis, noise)

    def best_share(self, r: np.ndarray, foretold: np.ndarray, precision: np.ndarray, axes: _Axes, rank: int) -> float:
        """How much of what is foretold (n x G) to use: the share with the best mean leave-one-out correlation.

        With the kernel fixed a prediction is linear in the share, so two fits tell of all.
        """
        whole = _Posterior.of(r - foretold, precision, axes, rank)
        without = self.left_out @ self.basis
        step = foretold + whole.left_out @ whole.basis - without  # n x G
        shares = np.linspace(0.0, 1.5, 31)
        return float(max(shares, key=lambda share: row_correlations(without + share * step, r).mean()))


def _response_components(z: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The low-rank response basis of z (n x G): scores (n x K), variances (K,), components (K x G)."""
    if len(z) > LANDMARKS:
        left, size, components = randomized_svd(z, rank, random_state=0)
        kept = size**2 > 1e-9 * size[0] ** 2
        return (left * size)[:, kept], size[kept] ** 2, components[kept]
    variance, axes = np.linalg.eigh(z @ z.T)
    variance, axes = variance[::-1], axes[:, ::-1]
    rank = max(1, min(rank, len(z) - 1, int((variance > 1e-9 * variance[0]).sum())))
    root = np.sqrt(variance[:rank])
    return axes[:, :rank] * root, variance[:rank], (axes[:, :rank] / root).T @ z


def _best_noise(axes: _Axes, scores: np.ndarray, variance: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """(rho, tau) with the best leave-one-out correlation; `scores` n x K, `variance` (K,), `lengths` (n,) of rows."""
    rotated, squared = axes.vectors.T @ scores, axes.vectors**2

    def hit(noise: tuple[float, float]) -> float:
        ratio = noise[0] + noise[1] * variance[0] / variance
        _, left_out = _solved(axes, scores, ratio, rotated, squared)
        return float(((left_out * scores).sum(axis=1) / (_lengths(left_out) * np.maximum(lengths, 1e-12))).mean())

    return max(((rho, tau) for rho in (0.02, 0.1, 0.5, 2.0) for tau in 2.0 ** np.arange(-6, 6)), key=hit)


def _solved(
    axes: _Axes,
    scores: np.ndarray,
    noise: np.ndarray,
    rotated: np.ndarray | None = None,
    squared: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Dual coefficients and left-out scores (both n x K) of the scores (n x K), each component with its noise (K,)."""
    rotated = axes.vectors.T @ scores if rotated is None else rotated
    squared = axes.vectors**2 if squared is None else squared
    shrunk = axes.eigenvalues[:, None] / (
        axes.eigenvalues[:, None] + noise
    )  # m x K: what the kernel explains of each axis
    dual = (scores - axes.vectors @ (rotated * shrunk)) / noise
    return dual, scores - dual * noise / np.maximum(1.0 - squared @ shrunk, 1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# What other screens foretell
# ---------------------------------------------------------------------------------------------------------------------


def _foretelling(
    screen: Screen, kernel: _Kernel, genes: pd.Index, training: pd.Index, responses: pd.Index, *, smooth: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What the screen says of each gene: loadings (genes x L) and basis (L x G), 0 for a response that it lacks.

    Its profiles are noisy, so each is the posterior mean of a Gaussian process with the learned kernel, which also
    says something of a gene that is not in the screen. With many perturbations it is conditioned on landmarks, the
    training ones first, and on the gene's own profile.
    """
    profiles, basis = _measured(screen, genes, responses)
    if not smooth:
        return profiles, basis
    others = screen.perturbations.difference(training, sort=False)
    first = screen.perturbations.intersection(training, sort=False)[:LANDMARKS]
    landmarks = first.append(others[_drawn(len(others), LANDMARKS - len(first))]) if len(first) < LANDMARKS else first
    noise = SMOOTHING * max(float(kernel.diagonal(screen.perturbations).mean()), 1e-12)
    factor = scipy.linalg.cho_factor(kernel.between(landmarks, landmarks) + noise * np.eye(len(landmarks)))
    across = kernel.between(genes, landmarks)  # genes x m
    solved = scipy.linalg.cho_solve(factor, across.T).T  # genes x m
    smoothed = solved @ screen.scores[screen.perturbations.get_indexer(landmarks)]
    further = np.flatnonzero(genes.isin(screen.perturbations) & ~genes.isin(landmarks))
    left = kernel.diagonal(genes[further]) - (solved[further] * across[further]).sum(axis=1)  # variance that is left
    smoothed[further] += (left / (left + noise))[:, None] * (profiles[further] - smoothed[further])
    return smoothed, basis


def _measured(screen: Screen, genes: pd.Index, responses: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """The screen's scores (genes x L) and basis (L x G), float64, matched by name; 0 for what it did not measure."""
    rows, columns = screen.perturbations.get_indexer(genes), screen.responses.get_indexer(responses)
    scores = np.where(rows[:, None] >= 0, screen.scores[rows], 0.0)
    return scores.astype(np.float64), np.where(columns >= 0, screen.basis[:, columns], 0.0).astype(np.float64)


def learned_factors(there: np.ndarray, rest: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """By response (G,), the factor from what is foretold to the residuals (both n x G), and not below 0.

    Least squares over the training perturbations, which count alike, shrunken to the factor common to all responses by
    empirical Bayes: as far as the factors differ by no more than their own errors.
    """
    scale = (precision / _lengths(rest - rest.mean(axis=1, keepdims=True)))[:, None]
    there, rest = there * scale, rest * scale
    product, square, total = (there * rest).sum(axis=0), (there**2).sum(axis=0), (rest**2).sum(axis=0)
    known = square > 1e-12 * square.max(initial=0.0)
    if not known.any():
        return np.zeros(len(square))
    common = product.sum() / square.sum()
    own = np.where(known, product / np.where(known, square, 1.0), common)
    noise = np.maximum(total - own * product, 0.0) / max(len(rest) - 1, 1)  # G: variance of the residuals
    spread = ((own - common) ** 2 * square - noise)[known].sum() / square.sum()  # variance of the factors
    shrink = noise / max(spread, 1e-12)
    return np.maximum((product + shrink * common) / np.maximum(square + shrink, 1e-300), 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# How long and how sure a prediction is
# ---------------------------------------------------------------------------------------------------------------------


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
    `left_out` n x K, `basis` K x G, `residuals` n x G, `hits` (n,) the left-out correlations. Residuals sum to 0, so
    those of few knock-outs are left-out predictions turned round: no correlation below 0 is expected.
    """
    product = basis @ basis.T
    size, known = (np.sqrt(np.maximum(((c @ product) * c).sum(axis=1), 0.0)) for c in (f, left_out))
    size = size.clip(known.min(), known.max())
    n = len(residuals)
    error = ((residuals - left_out @ basis) ** 2).sum(axis=1) * (n + 1) / (n - 1)  # their mean knows each of them
    return pd.DataFrame(
        {"error": np.sqrt(_line(known**2, error, size**2)), "pearson": _line(known, hits, size).clip(0.0)}
    )


def _line(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """A straight line by least squares at `new`, kept within the middle 90 % of y; of few points their mean."""
    spread = ((x - x.mean()) ** 2).sum() if len(x) >= FEWEST_TO_JUDGE else 0.0
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread > 0 else 0.0
    return np.clip(y.mean() + slope * (new - x.mean()), *np.quantile(y, [0.05, 0.95]))
