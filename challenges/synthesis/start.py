"""Where the generator starts: moments of the training cells in closed form.

In: `Cells`. Out: `Start`, plain arrays: rates by type, what a donor or day adds, correlated and own variation within
types, library sizes and steps. The adversarial training goes on from here; without it (`steps=0`) the generator is a
Poisson-lognormal model with low-rank covariance. Next: `networks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from challenges.synthesis.data import Cells, level_matrix, level_names, one_hot

PRIOR_CELLS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # average cells that a type's rates are shrunk by, chosen leave-one-out
LEVEL_PRIOR = 20.0  # expected counts that a level's shift is shrunk by
SPREAD_PRIOR = 20.0  # cells that a type's own spread is shrunk by
MAX_RANK = 50
DENSE_VALUES = 40_000_000  # at most so many are dense at once: a few times 320 MB
QUANTILES = (np.arange(64) + 0.5) / 64


@dataclass(frozen=True)
class Start:
    """Arrays over types (T), levels of the conditions (L), genes (G), noise dimensions (K)."""

    log_rates: np.ndarray  # T x G: log share of a type's counts
    level_rates: np.ndarray  # L x G: what a level adds to them
    loadings: np.ndarray  # K x G: correlated variation of log rates within types
    deviations: np.ndarray  # T x K: how much of it a type has
    own_sd: np.ndarray  # G: the rest, independent between genes
    quantiles: np.ndarray | None  # G x QUANTILES: of the values above 0; None where the data hold counts
    library: Library


@dataclass(frozen=True)
class Library:
    """Library sizes: log size = type mean + level shift + type sd * quantile; log step = intercept + slope * log size.

    Where every cell was scaled to one total, the slope is -1 and the step's sd 0, so the total is exact again.
    """

    mean: np.ndarray  # T
    sd: np.ndarray  # T
    shift: np.ndarray  # L
    quantiles: np.ndarray  # of the standardised log sizes, at QUANTILES
    step_intercept: np.ndarray  # T
    step_slope: np.ndarray  # scalar
    step_sd: np.ndarray  # scalar

    def draw(self, weights: np.ndarray, levels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Expected totals (cells) for label weights (cells x T) and levels (cells x L)."""
        standard = np.interp(random.random(len(weights)), QUANTILES, self.quantiles)
        return np.exp(weights @ self.mean + levels @ self.shift + weights @ self.sd * standard)

    def steps(self, totals: np.ndarray, weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """What one count is worth (cells) in cells of these totals."""
        noise = self.step_sd * random.standard_normal(len(totals))
        return np.exp(weights @ self.step_intercept + self.step_slope * np.log(np.maximum(totals, 1.0)) + noise)


def start(cells: Cells, seed: int) -> Start:
    """Learn all of it. Cells of kind "values" have no counting noise, so their spread is all their own."""
    weights, levels = one_hot(cells.labels, cells.types), level_matrix(cells.obs, level_names(cells))
    totals = np.asarray(cells.counts.sum(axis=1), float).ravel()
    log_rates = _rates(cells.counts, weights, totals)
    level_rates = _level_rates(cells.counts, totals, weights, levels, log_rates)
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(cells))[: max(DENSE_VALUES // len(cells.genes), 2)])
    observed = cells.counts[rows].toarray().astype(np.float64)
    expected = np.exp(weights[rows] @ log_rates + levels[rows] @ level_rates)
    expected *= (totals[rows] / expected.sum(axis=1))[:, None]
    counting = cells.scale.kind != "values"
    loadings, deviations = _variation(observed, expected, weights[rows], counting, seed)
    own_sd = _own_sd(observed, expected, loadings, counting)
    log_rates = log_rates - 0.5 * (deviations**2) @ (loadings**2)  # so that the mean rate stays
    # Counting noise moves the total as well: the library has the rest of its spread.
    noise = float(expected.sum() / (totals[rows] ** 2).sum()) if counting else 0.0
    library = _library(cells, totals, weights, levels, noise)
    quantiles = None if counting else _quantiles(observed)
    return Start(log_rates, level_rates, loadings, deviations, own_sd, quantiles, library)


def _rates(counts: sp.csr_matrix, weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Log share of each gene in each type; the prior that predicts left-out cells best shrinks to the pooled share."""
    by_type, size = weights.T @ counts, weights.T @ totals
    pooled = (by_type.sum(axis=0) + 0.5 / by_type.shape[1]) / (size.sum() + 0.5)
    pooled = pooled / pooled.sum()
    code, entries = weights.argmax(axis=1), sp.coo_matrix(counts)
    row, gene = entries.row, entries.col

    def left_out(prior: float) -> float:
        own = totals.mean() * prior
        rest = np.maximum(by_type[code[row], gene] - entries.data, 0.0) + own * pooled[gene]
        return float(entries.data @ np.log(rest / (size[code[row]] - totals[row] + own)))

    own = totals.mean() * max(PRIOR_CELLS, key=left_out)
    return np.log((by_type + own * pooled) / (size + own)[:, None])


def _level_rates(
    counts: sp.csr_matrix, totals: np.ndarray, weights: np.ndarray, levels: np.ndarray, log_rates: np.ndarray
) -> np.ndarray:
    """Log ratio of observed to expected counts of each level (L x G), one condition after the other is not needed."""
    if not levels.shape[1]:
        return np.zeros((0, counts.shape[1]))
    expected = (levels.T @ (weights * totals[:, None])) @ np.exp(log_rates)
    return np.log((levels.T @ counts + LEVEL_PRIOR) / (expected + LEVEL_PRIOR))


def _variation(
    observed: np.ndarray, expected: np.ndarray, weights: np.ndarray, counting: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loadings (K x G) of the log rates within types, and each type's share of them (T x K).

    Principal components of the Pearson residuals, standardised by gene. Those above the Marchenko-Pastur edge are kept,
    their variances freed of noise by the spiked covariance model (Baik and Silverstein 2006).
    """
    n, n_genes = observed.shape
    mean = expected.mean(axis=0)
    residuals = (observed - expected) / (np.sqrt(np.maximum(expected, 1e-3)) if counting else 1.0)
    residuals = np.clip(residuals, -np.sqrt(n), np.sqrt(n))
    sd = np.maximum(residuals.std(axis=0), 1e-6)
    residuals /= sd
    ratio = n_genes / n
    rank = max(1, min(MAX_RANK, n - 1, n_genes - 1))
    _, singular, axes = randomized_svd(residuals, rank, random_state=seed % 2**32)
    variance = singular**2 / n
    kept = max(int((variance > (1 + np.sqrt(ratio)) ** 2).sum()), 1)
    above = variance[:kept] + 1 - ratio
    signal = np.maximum((above + np.sqrt(np.maximum(above**2 - 4 * variance[:kept], 0.0))) / 2 - 1, 1e-3)
    per_unit = sd / (np.sqrt(np.maximum(mean, 1e-3)) if counting else np.maximum(mean, 1e-6))
    loadings = np.clip(np.sqrt(signal)[:, None] * axes[:kept] * per_unit, -1.5, 1.5)
    scores = (residuals @ axes[:kept].T) ** 2
    size = weights.sum(axis=0)[:, None]
    ratio_of_type = np.maximum(weights.T @ (scores - 1) / np.maximum(size, 1), 0.05 * signal) / signal
    share = size / (size + SPREAD_PRIOR)
    return loadings, np.sqrt(share * np.minimum(ratio_of_type, 9.0) + 1 - share)


def _own_sd(observed: np.ndarray, expected: np.ndarray, loadings: np.ndarray, counting: bool) -> np.ndarray:
    """Standard deviation (G) of what is left of the log rates: variance beyond counting noise and the loadings'."""
    if counting:
        excess = (((observed - expected) ** 2).sum(axis=0) - expected.sum(axis=0)) / np.maximum(
            (expected**2).sum(axis=0), 1e-9
        )
        noise = np.sqrt(2 / len(observed)) / np.maximum(expected.mean(axis=0), 1e-6)  # standard error of the excess
        relative = np.maximum(excess - noise, 0.0)
    else:
        positive = observed > 0
        n = np.maximum(positive.sum(axis=0), 1)
        share = np.maximum(positive.mean(axis=0), 1e-6)  # values where positive lie around expected / share
        relative = (positive * (observed * share / np.maximum(expected, 1e-9) - 1) ** 2).sum(axis=0) / n
    return np.sqrt(np.clip(np.log1p(relative) - (loadings**2).sum(axis=0), 1e-4, 2.0))


def _quantiles(observed: np.ndarray) -> np.ndarray:
    """Quantiles (G x QUANTILES) of each gene's values above 0; of a gene that has none the least of all values."""
    least = observed[observed > 0].min()
    return np.stack(
        [
            np.quantile(gene[gene > 0], QUANTILES) if gene.any() else np.full(len(QUANTILES), least)
            for gene in observed.T
        ]
    )


def _library(cells: Cells, totals: np.ndarray, weights: np.ndarray, levels: np.ndarray, of_genes: float) -> Library:
    """`of_genes`: the relative variance of the total that counting noise makes."""
    log_total, size = np.log(totals), weights.sum(axis=0)
    mean = weights.T @ log_total / size
    left = log_total - weights @ mean
    shift = levels.T @ left / (levels.sum(axis=0) + SPREAD_PRIOR)
    left = left - levels @ shift
    pooled = np.mean(left**2)
    variance = (weights.T @ left**2 + SPREAD_PRIOR * pooled) / (size + SPREAD_PRIOR)
    sd = np.sqrt(np.maximum(variance - of_genes, 0.1 * variance))
    standard = left / np.sqrt(np.maximum(weights @ variance, 1e-12))
    quantiles = np.quantile(standard, QUANTILES)
    quantiles = (quantiles - quantiles.mean()) / max(quantiles.std(), 1e-9)
    log_step = np.log(cells.steps)
    step_mean = weights.T @ log_step / size
    centred = log_total - weights @ mean
    slope = float(centred @ (log_step - weights @ step_mean) / max(float(centred @ centred), 1e-9))
    rest = log_step - weights @ step_mean - slope * centred
    step_sd = float(rest.std())
    return Library(
        mean,
        sd,
        shift,
        quantiles,
        step_mean - slope * mean,
        np.array(slope),
        np.array(step_sd if step_sd > 1e-4 else 0.0),
    )
