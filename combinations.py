"""The response of several knock-outs at once: what each does alone, added up, and what is left of that.

In: the mean expression of singles and combinations, and `GeneKnowledge`. Out: `CombinationModel`, an estimator like
`ResponseModel`, on which it builds: one for single knock-outs, one for what combinations make of their sum. Next:
`method.py`.

Letters: n perturbations, of which c combinations, H genes that one of them holds, G responses, K components.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from contract import CRUNCH, JOINED
from helpers import row_correlations, some
from knowledge import FeatureTable, GeneKnowledge, screen_table
from response import FEWEST_TO_JUDGE, ResponseModel, learned_factors, precision_of

# What is tried of the training combinations.
SHRINKAGES = 4.0 ** np.arange(-3, 4)  # of a gene's own effect, in units of the noise of a typical perturbation
SCALES = (0.5, 0.65, 0.8, 1.0, 1.25)  # of the sum
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)  # between the sum of the effects (0) and the longest of them (1)


class CombinationModel(ResponseModel):
    """The response of combinations (`A+B`, three and more genes too) and of single knock-outs.

    Effects m are differences from the control's mean. A perturbation S measures those of its genes:

        y_S = t_S + noise,     t_S = m_g for one gene, scale * ((1 - b) sum_{g in S} m_g + b m_(longest)) for several
        m_g ~ N(what a `ResponseModel` of the singles predicts, I / shrinkage)

    So a single tells of the combinations that hold its gene, a combination of its genes, and a gene of which nothing
    was measured has what is predicted for it (ridge regression; Hoerl and Kennard 1970). b is the blend between adding
    up (0, with scale 1) and masking (1). With the residual r_S of a combination from the mean over cells with several
    knock-outs,

        r_S = factor * (t_S - mean of t) + f(S)

    The factor is one of each response, and f a Gaussian process whose kernel between two combinations is the mean of
    the kernel between their genes. All of it is learned from the training combinations, each foretold by effects that
    have not seen it. With fewer than 10 combinations nothing is learned from them: effects are added up, and to the
    control's mean.

    Parameters
    ----------
    rank : int
        The most response components K of either model.
    own_response : bool
        As for `ResponseModel`, whose attributes this model has too, of the single knock-outs.

    Attributes
    ----------
    control_ : Series (G,)
        Mean of the control; 0 where the responses hold none, being differences from it.
    own_ : DataFrame (H, G)
        What the measurements add to the predicted effect of each gene.
    lengths_ : Series (H,)
        The length of the effect of each gene, by which the longest is told.
    found_ : Series
        `combinations`: how many were learned from; `shrinkage`, `scale` and `blend`; `factor`: what is foretold, in
        units of the sum of what the singles say of each effect; `additive` and `pearson`: leave-one-out correlations
        of the sum and of what is foretold; `error`: the expected length of the error.
    together_, offset_, factors_ : Series (G,)
        The mean over cells with several knock-outs, the mean of t, and the factor of each response.
    process_ : DataFrame (genes, K), process_basis_ : DataFrame (K, G)
        f of each gene, whose mean over the genes of a combination is f; the last row, named "", is an unknown gene's.
    """

    def fit(
        self,
        responses: pd.DataFrame,
        n_cells: pd.Series | None = None,
        knowledge: GeneKnowledge | None = None,
    ) -> CombinationModel:
        """Learn from `responses` (perturbations x G, controls among them); arguments as for `ResponseModel`."""
        knowledge = knowledge or GeneKnowledge({})
        cells = pd.Series(1.0, responses.index) if n_cells is None else n_cells[responses.index].astype(np.float64)
        holds = _holds(responses.index)  # perturbations x H
        count = holds.sum(axis=1)
        self.control_ = _mean(responses[count == 0], cells) if (count == 0).any() else 0.0 * responses.iloc[0]
        sums = _Sums(holds[count > 0].to_numpy(), (responses[count > 0] - self.control_).to_numpy(), cells[count > 0])

        alone = holds[count == 1].idxmax(axis=1)  # the gene of each single, `A+NC` and `A+A` among them
        singles = responses.loc[alone.index].mul(cells[alone.index], axis=0).groupby(alone).sum()
        weights = cells[alone.index].groupby(alone).sum()
        if len(singles) < FEWEST_TO_JUDGE:  # what little the combinations say of each gene
            effects = sums.own(np.zeros((holds.shape[1], responses.shape[1])), 1.0)
            singles = pd.DataFrame(effects, holds.columns, responses.columns) + self.control_
            weights = holds.mul(cells, axis=0).sum()
        else:
            singles = singles.div(weights, axis=0)
        super().fit(singles, weights, knowledge)

        expected = self._predicted_effects(holds.columns)  # H x G
        several = responses[count > 1]
        if len(several) < FEWEST_TO_JUDGE:
            self.own_ = pd.DataFrame(sums.own(expected, 1.0), holds.columns, responses.columns)
            self.found_ = pd.Series({"combinations": 0.0, "shrinkage": 1.0, "scale": 1.0, "blend": 0.0, "factor": 1.0})
            return self
        self.together_ = _mean(several, cells)
        whole, lengths = sums.lengths(expected)
        self.lengths_ = pd.Series(whole, holds.columns)
        found = _best_sums(sums, expected, (several - self.together_).to_numpy())
        shrinkage, scale, blend = max(found, key=lambda which: found[which])
        additive = max(hit for which, hit in found.items() if which[1:] == (1.0, 0.0))
        rows, plain = np.flatnonzero(count[count > 0] > 1), sums
        sums = plain.of_several(lengths, scale, blend)
        own = sums.own(expected, shrinkage)
        self.own_ = pd.DataFrame(own, holds.columns, responses.columns)
        foretold = sums.left_out(rows, expected + own, shrinkage)
        added = plain.D[rows] @ plain.alone(expected, min(shrinkage, 1.0))
        hits = self._fit_combinations(several, cells[several.index], foretold, knowledge)
        left = (1 - hits.clip(0) ** 2) * ((several - self.together_) ** 2).sum(axis=1)
        self.found_ = pd.Series(
            {
                "combinations": float(len(several)),
                "shrinkage": shrinkage,
                "scale": scale,
                "blend": blend,
                "factor": _slope(foretold * self.factors_.to_numpy(), added),
                "additive": additive,
                "pearson": float(hits.mean()),
                "error": float(np.sqrt(left.mean())),
            }
        )
        return self

    def _fit_combinations(
        self, several: pd.DataFrame, cells: pd.Series, foretold: np.ndarray, knowledge: GeneKnowledge
    ) -> pd.Series:
        """The factor of each response, and f, from what is foretold of the combinations (both c x G)."""
        self.offset_ = pd.Series(foretold.mean(axis=0), several.columns)
        r, foretold = (several - self.together_).to_numpy(), foretold - foretold.mean(axis=0)
        factors = learned_factors(foretold, r, precision_of(cells.to_numpy()))
        self.factors_ = pd.Series(factors, several.columns)
        rest = several - self.together_ - factors * foretold
        tables = knowledge.tables | {name: screen_table(screen) for name, screen in knowledge.screens.items()}
        shared: dict[str, FeatureTable] = {
            name: _SharedTable.of(table, several.index) for name, table in tables.items()
        }
        model = ResponseModel(self.rank, own_response=False).fit(rest, cells, GeneKnowledge(shared))
        genes = model.coefficients_.index.difference(several.index)
        self.process_ = pd.concat([model.coefficients_.loc[genes], model.unknown_.to_frame("").T])
        self.process_basis_, self.process_judged_ = model.basis_, model.judged_
        self.rest_ = model.reference_
        return pd.Series(row_correlations(factors * foretold, r), several.index)

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses, float64; one warning lists the genes of which nothing is known."""
        check_is_fitted(self)
        names = pd.Index(targets)
        holds = _holds(names)
        unknown = holds.columns[~holds.columns.isin(self.coefficients_.index) & ~holds.columns.isin(self.own_.index)]
        if len(unknown):
            warnings.warn(
                f"nothing is known of {len(unknown)} of {holds.shape[1]} genes to be knocked out, which get the "
                f"prediction of a gene in no table: {some(unknown)}",
                stacklevel=2,
            )
        m = self._effects(holds.columns)  # H x G
        D, count = holds.to_numpy(), holds.sum(axis=1).to_numpy()
        predicted = D @ m + self.control_.to_numpy()
        if self.found_["combinations"] and (count > 1).any():
            rows = np.flatnonzero(count > 1)
            lengths = self.lengths_.reindex(holds.columns).to_numpy()
            lengths = np.where(np.isnan(lengths), np.linalg.norm(m, axis=1), lengths)
            foretold = _parts(D[rows], lengths, self.found_["scale"], self.found_["blend"]) @ m
            position = self.process_.index.get_indexer(holds.columns)
            f = self.process_.to_numpy()[position]  # the last row where a gene is unknown
            f = (D[rows] / count[rows, None]) @ f @ self.process_basis_.to_numpy()
            step = self.factors_.to_numpy() * (foretold - self.offset_.to_numpy())
            predicted[rows] = self.together_.to_numpy() + self.rest_.to_numpy() + step + f
        return pd.DataFrame(predicted, index=names, columns=self.control_.index)

    def predict_scale(self, targets: Sequence[str]) -> pd.DataFrame:
        """How sure: targets x `error` (expected length of the residual's error) and `pearson` (expected)."""
        check_is_fitted(self)
        names = pd.Index(targets)
        genes = [CRUNCH.genes_of(name) for name in names]
        scale = super().predict_scale([held[0] if held else "" for held in genes]).set_axis(names)
        if self.found_["combinations"]:
            several = [len(held) > 1 for held in genes]
            scale.loc[several, ["error", "pearson"]] = self.found_[["error", "pearson"]].to_numpy()
        return scale

    def describe(self) -> str:
        """What was found of combinations, in a sentence or two."""
        found = self.found_
        if not found["combinations"]:
            return f"Fewer than {FEWEST_TO_JUDGE} combinations: effects are added up, and nothing is learned of them."
        blended = f"their genes' effects ({found['blend']:.0%} the longest, the rest their sum)"
        what = {0.0: "the sum of their genes' effects", 1.0: "the longest of their genes' effects"}.get(
            found["blend"], blended
        )
        entered = list(self.process_judged_.index[self.process_judged_["enters"] > 0])
        more = f"what is left follows {some(entered)}" if entered else "no table foretells what is left"
        return (
            f"{found['combinations']:.0f} combinations follow {what}, {found['factor']:.2f} as long as adding up would "
            f"have them; {more}. Leave-one-out correlation {found['pearson']:.3f}, adding up {found['additive']:.3f}."
        )

    def _predicted_effects(self, genes: pd.Index) -> np.ndarray:
        """What is predicted of each gene alone, as a difference from the control: genes x G."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is unknown is measured, or said by `predict`
            return super().predict(genes).to_numpy() - self.control_.to_numpy()

    def _effects(self, genes: pd.Index) -> np.ndarray:
        """The same with what was measured of each: genes x G."""
        return self._predicted_effects(genes) + self.own_.reindex(genes, fill_value=0.0).to_numpy()


def for_names(model: Any, names: Iterable[str]) -> Any:
    """A `ResponseModel` as a `CombinationModel` where one of the names is a combination; any other as it is."""
    if type(model) is ResponseModel and any(map(CRUNCH.is_combination, names)):
        return CombinationModel(model.rank, model.own_response)
    return model


def genes_in(names: Iterable[str]) -> pd.Index:
    """The genes that perturbations hold, each once, in the order of the names."""
    return pd.Index(list(dict.fromkeys(gene for name in names for gene in CRUNCH.genes_of(name))), dtype=object)


# ---------------------------------------------------------------------------------------------------------------------
# Baselines
# ---------------------------------------------------------------------------------------------------------------------


class DeltaMean(BaseEstimator):
    """Baseline: the mean of combinations, and what each gene alone differs from the mean of singles.

    That of the published starter of broad-obesity-2. A gene without a single (`A`, `A+NC` and `A+A`) has the mean of
    all perturbations that hold it, and one without any the mean of singles.

    In that crunch it is the starter to the letter. Guides are counted, not genes: `A+NC` and `A+A` are doubles, triples
    are in no mean. A gene is known from the first of `A`, `A+NC`, `A+A` that there is, else from the mean over the
    perturbations that hold it. Every single is the mean of singles.
    """

    def fit(self, means: pd.DataFrame, n_cells: pd.Series | None = None) -> DeltaMean:
        """Learn from perturbations x G; means over perturbations are means over cells where `n_cells` is given."""
        cells = pd.Series(1.0, means.index) if n_cells is None else n_cells[means.index].astype(np.float64)
        holds, kinds = _holds(means.index), np.array([_kind(name) for name in means.index])
        count, singles, several = holds.sum(axis=1), means[kinds == 1], means[kinds == 2]
        self.single_ = _mean(singles if len(singles) else means[count > 0], cells)
        self.several_ = _mean(several, cells) if len(several) else self.single_
        centroids, alike = {}, 0.0 * cells + 1.0
        for gene in holds.columns:
            alone = (count == 1) & (holds[gene] > 0)
            if CRUNCH.asks_for_doubles and alone.any():
                alone &= means.index == min(means.index[alone], key=_directness)
            rows = means[alone if alone.any() else holds[gene] > 0]
            centroids[gene] = _mean(rows, alike if CRUNCH.asks_for_doubles else cells)
        self.deltas_ = pd.DataFrame.from_dict(centroids, orient="index", columns=means.columns) - self.single_
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x G; a single is the mean of singles and its difference from it."""
        check_is_fitted(self)
        holds = _holds(pd.Index(targets))
        deltas = holds.to_numpy() @ self.deltas_.reindex(holds.columns, fill_value=0.0).to_numpy()
        several = np.array([_kind(name) == 2 for name in holds.index])[:, None]
        if CRUNCH.asks_for_doubles:
            deltas *= several
        start = np.where(several, self.several_, self.single_)
        return pd.DataFrame(start + deltas, index=holds.index, columns=self.single_.index)


def _kind(name: str) -> int:
    """1 for a single, 2 for several knock-outs, 0 for what is neither; see `Crunch.centroid_of`."""
    if CRUNCH.asks_for_doubles:
        known = {CRUNCH.perturbed_centroid: 1, CRUNCH.double_perturbed_centroid: 2}
        return known.get(CRUNCH.centroid_of(name), 0)
    return min(len(CRUNCH.genes_of(name)), 2)


def _directness(name: str) -> tuple[bool, bool]:
    """The order in which the starter takes names of one gene: `A`, `A+NC`, `A+A`."""
    return CRUNCH.n_guides(name) > 1, CRUNCH.control not in name.split(JOINED)


class Added(BaseEstimator):
    """Baseline: the effects of the genes, as they were measured, added up and to the control's mean.

    A gene without a single has the mean effect of the singles. Without a control the responses are effects.
    """

    def fit(self, means: pd.DataFrame, n_cells: pd.Series | None = None) -> Added:
        """Learn from perturbations x G; arguments as for `DeltaMean`."""
        cells = pd.Series(1.0, means.index) if n_cells is None else n_cells[means.index].astype(np.float64)
        delta = DeltaMean().fit(means, n_cells)
        count = _holds(means.index).sum(axis=1)
        self.control_ = _mean(means[count == 0], cells) if (count == 0).any() else 0.0 * means.iloc[0]
        self.mean_ = delta.single_ - self.control_
        alone = pd.Index([gene for name in means.index[count == 1] for gene in CRUNCH.genes_of(name)]).unique()
        self.effects_ = delta.deltas_.loc[alone] + self.mean_
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x G."""
        check_is_fitted(self)
        holds = _holds(pd.Index(targets))
        effects = self.effects_.reindex(holds.columns)
        effects = effects.where(effects.notna(), self.mean_, axis=1)
        added = holds.to_numpy() @ effects.to_numpy() + self.control_.to_numpy()
        return pd.DataFrame(added, index=holds.index, columns=self.control_.index)


# ---------------------------------------------------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------------------------------------------------


def _holds(names: pd.Index) -> pd.DataFrame:
    """Which genes each perturbation holds: names x H, 1.0 or 0.0."""
    genes = [CRUNCH.genes_of(name) for name in names]
    columns = pd.Index(sorted({gene for held in genes for gene in held}), dtype=object)
    holds = np.zeros((len(names), len(columns)))
    for row, held in zip(holds, genes, strict=True):
        row[columns.get_indexer(list(held))] = 1.0
    return pd.DataFrame(holds, index=names, columns=columns)


def _mean(rows: pd.DataFrame, cells: pd.Series) -> pd.Series:
    """The mean over cells."""
    return pd.Series(np.average(rows, axis=0, weights=cells[rows.index]), rows.columns)


def _slope(y: np.ndarray, x: np.ndarray) -> float:
    """Least squares of centred rows on centred rows, all together."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float((x * y).sum() / max(float((x**2).sum()), 1e-300))


@dataclass(frozen=True)
class _Sums:
    """y = D m + noise: `D` n x H, `y` n x G, `cells` (n,), more of which make less noise."""

    D: np.ndarray
    y: np.ndarray
    cells: pd.Series

    @property
    def weight(self) -> np.ndarray:
        """1 / variance of the noise, by row (n,)."""
        return precision_of(self.cells.to_numpy()) ** 2

    def inverse(self, shrinkage: float) -> np.ndarray:
        """(D' W D + shrinkage I)^-1: H x H."""
        return np.linalg.inv((self.D.T * self.weight) @ self.D + shrinkage * np.eye(self.D.shape[1]))

    def own(self, expected: np.ndarray, shrinkage: float) -> np.ndarray:
        """What the measurements add to the expected effects (both H x G)."""
        return self.inverse(shrinkage) @ (self.D.T * self.weight) @ (self.y - self.D @ expected)

    def alone(self, expected: np.ndarray, shrinkage: float) -> np.ndarray:
        """The effects as the singles say, without the combinations: H x G."""
        single = self.D.sum(axis=1) == 1
        rows = _Sums(self.D[single], self.y[single], self.cells[single])
        return expected + rows.own(expected, shrinkage) if single.any() else expected

    def lengths(self, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How long the effect of each gene is, were the longest to mask the others: (H,), and by row, n x H.

        By row, a combination is left out, so that it cannot say itself which of its effects is the longest.
        """
        several = self.D.sum(axis=1) > 1
        first = self.alone(expected, 1.0)
        masking = self.of_several(np.tile(np.linalg.norm(first, axis=1), (len(self.D), 1)), 1.0, 1.0)
        m, inverse = expected + masking.own(expected, 1.0), masking.inverse(1.0)
        whole = np.linalg.norm(m, axis=1)
        lengths, errors = np.tile(whole, (len(self.D), 1)), self.y - masking.D @ m
        for i in np.flatnonzero(several):
            change = inverse @ masking.D[i] * self.weight[i]
            lengths[i] = np.linalg.norm(m - np.outer(change, errors[i]) / (1.0 - masking.D[i] @ change), axis=1)
        return whole, lengths

    def of_several(self, lengths: np.ndarray, scale: float, blend: float) -> _Sums:
        """With combinations that do not add up: their rows of D are the parts that each effect has in t."""
        several, D = self.D.sum(axis=1) > 1, self.D.copy()
        D[several] = _parts(D[several], lengths[several], scale, blend)
        return replace(self, D=D)

    def left_out(self, rows: np.ndarray, m: np.ndarray, shrinkage: float) -> np.ndarray:
        """What the effects `m` (H x G) foretell of `rows` without having seen each: rows x G."""
        D = self.D[rows]
        leverage = np.einsum("ih,hk,ik->i", D, self.inverse(shrinkage), D) * self.weight[rows]
        return self.y[rows] - (self.y[rows] - D @ m) / (1.0 - leverage)[:, None]


def _parts(D: np.ndarray, lengths: np.ndarray, scale: float, blend: float) -> np.ndarray:
    """How much of each gene's effect, of `lengths` (H,) or by row, is in t of a combination: rows x H."""
    longest = np.where(D > 0, lengths, -1.0).argmax(axis=1)
    return scale * ((1.0 - blend) * D + blend * np.eye(D.shape[1])[longest])


def _best_sums(sums: _Sums, expected: np.ndarray, r: np.ndarray) -> dict[tuple[float, float, float], float]:
    """By shrinkage, scale and blend: leave-one-out correlation with the residuals r (c x G) of the combinations."""
    rows = np.flatnonzero(sums.D.sum(axis=1) > 1)
    y, expected, r = _coordinates(sums.y, expected, r)  # products of rows are all that is needed
    sums, found = replace(sums, y=y), {}
    _, lengths = sums.lengths(expected)
    for scale, blend in itertools.product(SCALES, BLENDS):
        parted = sums.of_several(lengths, scale, blend)
        for shrinkage in SHRINKAGES:
            t = parted.left_out(rows, expected + parted.own(expected, shrinkage), shrinkage)
            t = t - t.mean(axis=0)
            cosine = (t * r).sum(axis=1) / np.maximum(np.linalg.norm(t, axis=1) * np.linalg.norm(r, axis=1), 1e-12)
            found[float(shrinkage), scale, blend] = float(cosine.mean())
    return found


def _coordinates(*blocks: np.ndarray) -> list[np.ndarray]:
    """Blocks of rows (each x G), centred over responses, in as few columns as keep all their products."""
    rows = np.vstack(blocks)
    rows = rows - rows.mean(axis=1, keepdims=True)
    square, axes = np.linalg.eigh(rows @ rows.T)
    kept = square > 1e-12 * square[-1]
    short = axes[:, kept] * np.sqrt(square[kept])
    return np.split(short, np.cumsum([len(block) for block in blocks])[:-1])


@dataclass(frozen=True)
class _SharedTable(FeatureTable):
    """A table for combinations: the kernel of two is the mean of that between their genes."""

    @classmethod
    def of(cls, table: FeatureTable, names: pd.Index) -> _SharedTable:  # type: ignore[override]
        """With the combinations `names` of which it knows a gene beside its own genes."""
        known = [name for name in names if table.known(CRUNCH.genes_of(name)).any()]
        return cls(table.genes.append(pd.Index(known)).unique(), table, table.powers)

    def kernels(self, left: Sequence[str], right: Sequence[str]) -> list[np.ndarray]:
        """By power: len(left) x len(right), float64."""
        (P, genes), (Q, others) = _shares(left), _shares(right)
        return [P @ (Q @ kernel.T).T for kernel in self.features.kernels(genes, others)]


def _shares(names: Sequence[str]) -> tuple[sp.csr_matrix, pd.Index]:
    """The share of each gene in each name (names x genes), and the genes."""
    held = [CRUNCH.genes_of(name) for name in names]
    genes = pd.Index(list(dict.fromkeys(gene for group in held for gene in group)), dtype=object)
    rows = np.repeat(np.arange(len(held)), [len(group) for group in held])
    columns = genes.get_indexer([gene for group in held for gene in group])
    shares = [1.0 / len(group) for group in held for _ in group]
    return sp.csr_matrix((shares, (rows, columns)), shape=(len(held), len(genes))), genes
