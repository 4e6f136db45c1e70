"""What a file holds: one method or a weighted mean of several, and what it predicted out of fold.

In: fitted parts (`kernel`, ensembles of networks), their predictions for rows that they were not trained on, and an
answer for compounds that were never measured.
Out: one estimator, which predicts, and which `common.save_model` keeps whole. Next: `models`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd

from challenges.common import Bundle, Saved, check_arrays, check_codes
from challenges.drug_response.compounds import NewCompounds
from challenges.drug_response.data import codes
from challenges.drug_response.ensemble import Ensemble
from challenges.drug_response.kernel import ResponseProcess
from helpers import DataError

STEPS = 10  # weights are tenths


class Part(Saved, Protocol):
    """A fitted estimator: its labels, its genes, and what it predicts."""

    cell_types_: pd.Index
    compounds_: pd.Index
    genes_: pd.Index

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """Responses, pairs (cell type, compound) x genes."""


PARTS: dict[str, type[Part]] = {made.KIND: made for made in (ResponseProcess, Ensemble)}


@dataclass(frozen=True)
class Fitted:
    """The weighted mean of `parts` (a name and an estimator each; `weights` add up to 1).

    Rows whose compound training did not have are left to `new_compounds`, whatever the method.

    `out_of_fold` are its predictions, rows x genes, for the training rows that folds held out (see `folds`); no rows
    where none could be.
    """

    KIND: ClassVar[str] = "drug_response/method"

    parts: dict[str, Part]
    weights: dict[str, float]
    out_of_fold: pd.DataFrame
    new_compounds: NewCompounds

    @property
    def n_networks(self) -> int:
        """How many networks a prediction takes; the Gaussian process counts as one."""
        sizes = (len(part.specs) * part.repeats if isinstance(part, Ensemble) else 1 for part in self.parts.values())
        return sum(sizes)

    @property
    def cell_types_(self) -> pd.Index:
        """The cell types of training."""
        return next(iter(self.parts.values())).cell_types_

    @property
    def compounds_(self) -> pd.Index:
        """The compounds of training."""
        return next(iter(self.parts.values())).compounds_

    @property
    def genes_(self) -> pd.Index:
        """The genes of training, in their order."""
        return next(iter(self.parts.values())).genes_

    def predict(self, pairs: pd.MultiIndex, structures: pd.Series | None = None) -> pd.DataFrame:
        """Responses, pairs (cell type, compound) x genes. `structures` holds SMILES of new compounds by name."""
        values = np.zeros((len(pairs), len(self.genes_)))
        known = pairs.get_level_values("sm_name").isin(self.compounds_)
        if known.any():
            for name, part in self.parts.items():
                values[known] += self.weights[name] * part.predict(pairs[known]).to_numpy()
        if not known.all():
            values[~known] = self.new_compounds.predict(pairs[~known], structures).to_numpy()
        return pd.DataFrame(values, pairs, self.genes_)

    def to_bundle(self) -> Bundle:
        """All that `predict` needs, and the predictions out of fold, as plain data."""
        bundles = {name: part.to_bundle() for name, part in self.parts.items()}
        settings = {
            name: {"kind": bundle.kind, "weight": self.weights[name], "settings": bundle.settings}
            for name, bundle in bundles.items()
        }
        cell_type, compound = codes(self.out_of_fold.index, self.cell_types_, self.compounds_)
        arrays = {
            "out_of_fold/values": self.out_of_fold.to_numpy(np.float32),
            "out_of_fold/cell_type": cell_type,
            "out_of_fold/compound": compound,
        }
        arrays |= {f"new_compounds/{key}": array for key, array in self.new_compounds.to_arrays().items()}
        for name, bundle in bundles.items():
            arrays |= {f"parts/{name}/{key}": array for key, array in bundle.arrays.items()}
        return Bundle(self.KIND, {"parts": settings}, arrays)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Fitted:
        """The fitted estimator again. Raises DataError for parts that do not fit together."""
        parts, weights = {}, {}
        for name, about in bundle.settings["parts"].items():
            arrays = bundle.under(f"parts/{name}")
            parts[name] = PARTS[about["kind"]].from_bundle(Bundle(about["kind"], about["settings"], arrays))
            weights[name] = float(about["weight"])
        if not parts or not np.isclose(sum(weights.values()), 1) or min(weights.values()) < 0:
            raise DataError(f"the weights of its parts are {weights}")
        first, *others = parts.values()
        for part in others:
            same = (set(part.cell_types_), set(part.compounds_)) == (set(first.cell_types_), set(first.compounds_))
            if not (same and part.genes_.equals(first.genes_)):
                raise DataError("its parts have not the same genes, cell types and compounds")
        new_compounds = NewCompounds.from_arrays(bundle.under("new_compounds"), first.genes_)
        if set(new_compounds.means_.index) != set(first.cell_types_):
            raise DataError("its means are not of the same cell types")
        return cls(parts, weights, _rows(bundle.under("out_of_fold"), first), new_compounds)


def _rows(arrays: Mapping[str, np.ndarray], part: Part) -> pd.DataFrame:
    """The predictions out of fold as a table. Raises DataError for arrays that do not fit to `part`."""
    layout = {"values": "numbers N G", "cell_type": "whole N", "compound": "whole N"}
    check_arrays(arrays, layout, G=len(part.genes_))
    names = []
    for level, known in (("cell_type", part.cell_types_), ("compound", part.compounds_)):
        check_codes(arrays[level], len(known), level)
        names.append(known[arrays[level]])
    pairs = pd.MultiIndex.from_arrays(names, names=["cell_type", "sm_name"])
    return pd.DataFrame(arrays["values"], pairs, part.genes_)


def blend(models: Mapping[str, Fitted], responses: pd.DataFrame) -> Fitted:
    """The weighted mean of single methods that is best out of fold; equal weights where there are no folds.

    The weights are tenths that add up to 1, and one part alone is among them: on the folds the mean is never worse than
    any part. A part of weight 0 is left out.
    """
    rows = {name: model.out_of_fold for name, model in models.items()}
    found = best_weights(rows, responses)
    weights = {name: weight for name, weight in found.items() if weight > 0}
    parts = {name: next(iter(models[name].parts.values())) for name in weights}
    mixed = sum(weights[name] * rows[name].loc[responses.index.intersection(rows[name].index)] for name in weights)
    return Fitted(parts, weights, mixed, next(iter(models.values())).new_compounds)


def best_weights(rows: Mapping[str, pd.DataFrame], responses: pd.DataFrame) -> dict[str, float]:
    """The weights, tenths that add up to 1, with the least mean row-wise RMSE of the weighted mean of `rows`.

    `rows` holds each part's predictions of the same rows x genes, which `responses` has too.
    """
    truth = responses.loc[next(iter(rows.values())).index]
    if truth.empty:
        return dict.fromkeys(rows, 1 / len(rows))
    residuals = np.stack([part.loc[truth.index].to_numpy() - truth.to_numpy() for part in rows.values()])
    # The squared error of a row is a quadratic form in the weights: rows x parts x parts.
    forms = np.einsum("arg,brg->rab", residuals, residuals, optimize=True) / residuals.shape[2]
    grid = [steps for steps in itertools.product(range(STEPS + 1), repeat=len(rows)) if sum(steps) == STEPS]
    tried = np.array(grid) / STEPS
    errors = np.sqrt(np.einsum("wa,rab,wb->wr", tried, forms, tried, optimize=True).clip(0)).mean(axis=1)
    return dict(zip(rows, tried[errors.argmin()].tolist(), strict=True))
