"""Compounds that were never measured: the mean of the cell type, and with structures a place beside measured compounds.

In: responses, and SMILES of compounds by name. Out: predictions for pairs whose compound training did not have. Needs
RDKit for fingerprints, when a prediction is asked for (`pip install rdkit`); without it, or without a structure, the
answer is the mean of the cell type. Next: `kernel`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from challenges.common import check_arrays, derived_seed
from challenges.drug_response.baselines import mean_effects, means_by
from challenges.drug_response.data import QUERY_FILE, TRAIN_FILE
from helpers import DataError, some

RADIUS, BITS = 2, 2048  # of Morgan fingerprints
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)  # infinite: structures say nothing here
PARTS = 10  # that compounds are left out in
LAYOUT = {
    "cell_types": "names T",
    "means": "numbers T G",
    "compounds": "names C",
    "structures": "texts C",
    "effects": "numbers C G",
}


class NewCompounds(BaseEstimator):
    """Answers for compounds that were never measured.

    The mean of the cell type, and where the compound's structure is known the effect that kernel ridge regression on
    Tanimoto similarity expects of it; how much structures are trusted is what was best for measured compounds, each
    predicted from the others. Fitted: `means_` (cell types x genes), `structures_` (SMILES by compound), `effects_`
    (those compounds x genes: the mean over cell types of what a response is beyond its cell type's mean).
    """

    def fit(self, responses: pd.DataFrame, structures: pd.Series | None = None) -> NewCompounds:
        """Means and effects; `structures` holds SMILES, indexed by compound. Needs no RDKit."""
        self.means_ = means_by(responses, "cell_type")
        effects = mean_effects(responses)
        known = pd.Index([]) if structures is None else effects.index.intersection(structures.index)
        self.structures_ = pd.Series([], known, dtype=object) if structures is None else structures.loc[known]
        self.effects_ = effects.loc[known]
        return self

    def predict(self, pairs: pd.MultiIndex, structures: pd.Series | None = None) -> pd.DataFrame:
        """Responses, pairs x genes; an unknown cell type gets the mean of the known ones.

        `structures` holds SMILES of new compounds by name. Raises DataError for one that RDKit cannot read.
        """
        types = self.means_.index.get_indexer(pairs.get_level_values("cell_type"))
        means = np.vstack([self.means_.to_numpy(), self.means_.to_numpy().mean(axis=0)])
        total = means[types]
        placed = self.placed(pairs, structures)
        if len(placed):
            expected = self._expected(pd.Series({} if structures is None else structures, dtype=object).loc[placed])
            at = placed.get_indexer(pairs.get_level_values("sm_name"))
            total = total + np.where((at >= 0)[:, None], expected[at], 0.0)
        return pd.DataFrame(total, pairs, self.means_.columns)

    def placed(self, pairs: pd.MultiIndex, structures: pd.Series | None) -> pd.Index:
        """The compounds of `pairs` that get a place beside measured ones: those whose structure can be used."""
        if structures is None or self.structures_.size < 3 or not has_rdkit():
            return pd.Index([])
        return pairs.unique("sm_name").intersection(structures.index)

    def unknown(self, pairs: pd.MultiIndex, compounds: pd.Index, structures: pd.Series | None = None) -> list[str]:
        """One sentence for each kind of label that training (with these compounds) did not have, and its answer."""
        said = []
        if len(odd := pairs.unique("cell_type").difference(self.means_.index)):
            said.append(f"{len(odd)} cell types unknown to training, predicted as the mean of the known: {some(odd)}")
        new = pairs.unique("sm_name").difference(compounds)
        placed = self.placed(pairs, structures).intersection(new)
        if len(placed):
            said.append(f"{len(placed)} compounds never measured, placed beside similar ones by SMILES: {some(placed)}")
        if len(rest := new.difference(placed)):
            why = "without SMILES for them and the measured ones"
            if structures is not None and len(rest.intersection(structures.index)) and not has_rdkit():
                why = "since RDKit is not installed (pip install rdkit)"
            said.append(
                f"{len(rest)} compounds never measured, predicted as their cell type's mean, {why}: {some(rest)}"
            )
        return said

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that `predict` needs, as arrays of a bundle."""
        return {
            "cell_types": self.means_.index.to_numpy().astype(str),
            "means": self.means_.to_numpy(np.float32),
            "compounds": self.structures_.index.to_numpy().astype(str),
            "structures": self.structures_.to_numpy().astype(str),
            "effects": self.effects_.to_numpy(np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], genes: pd.Index) -> NewCompounds:
        """The fitted estimator again. Raises DataError for arrays that do not fit together."""
        check_arrays(arrays, LAYOUT, G=len(genes))
        self = cls()
        self.means_ = pd.DataFrame(arrays["means"], pd.Index(arrays["cell_types"], name="cell_type"), genes)
        compounds = pd.Index(arrays["compounds"], dtype=object, name="sm_name")
        self.structures_ = pd.Series(arrays["structures"], compounds, dtype=object)
        self.effects_ = pd.DataFrame(arrays["effects"], compounds, genes)
        return self

    def _expected(self, new: pd.Series) -> np.ndarray:
        """The expected effects of new compounds, new x genes."""
        measured = fingerprints(self.structures_, TRAIN_FILE)
        K, effects = tanimoto(measured, measured), self.effects_.to_numpy(np.float64)
        ridge = _best_ridge(K, effects)
        if np.isinf(ridge):
            return np.zeros((len(new), effects.shape[1]))
        return tanimoto(fingerprints(new, QUERY_FILE), measured) @ np.linalg.solve(K + ridge * np.eye(len(K)), effects)


def _best_ridge(K: np.ndarray, effects: np.ndarray) -> float:
    """The ridge with the least mean row-wise RMSE when each compound is predicted from the others."""
    residuals = [residuals_left_out(K, effects, ridge) for ridge in RIDGES]
    return RIDGES[int(np.argmin([np.sqrt((part**2).mean(axis=1)).mean() for part in residuals]))]


def residuals_left_out(K: np.ndarray, effects: np.ndarray, ridge: float) -> np.ndarray:
    """What kernel ridge regression misses of each compound when it learns from the others alone, in closed form.

    `K` is compounds x compounds, `effects` and the result compounds x genes; an infinite ridge expects no effect.
    """
    if np.isinf(ridge):
        return effects
    inverse = np.linalg.inv(K + ridge * np.eye(len(K)))
    return (inverse @ effects) / inverse.diagonal()[:, None]


def has_rdkit() -> bool:
    """Whether RDKit is installed."""
    return importlib.util.find_spec("rdkit") is not None


def fingerprints(structures: pd.Series, where: str) -> np.ndarray:
    """Morgan fingerprints, compounds x bits, float64 of 0 and 1.

    Raises DataError for SMILES that cannot be read; `where` names their file.
    """
    from rdkit import Chem, rdBase  # noqa: PLC0415 - optional
    from rdkit.Chem import rdFingerprintGenerator  # noqa: PLC0415

    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in structures]
    if wrong := [name for name, made in zip(structures.index, molecules, strict=True) if made is None]:
        raise DataError(
            f"{where}: column SMILES: RDKit cannot read that of {some(wrong)}; correct it, or leave it empty"
        )
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return np.array([generator.GetFingerprintAsNumPy(made) for made in molecules], np.float64).reshape(-1, BITS)


def tanimoto(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Shared bits over bits that either has, rows of `left` x rows of `right`; 0 where neither has any."""
    shared = left @ right.T
    either = left.sum(axis=1)[:, None] + right.sum(axis=1) - shared
    return shared / np.maximum(either, 1)


def compounds_left_out(responses: pd.DataFrame, seed: int = 0) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """A tenth of the compounds at a time, with all of their rows: the rows that remain, and the rows left out."""
    names = responses.index.get_level_values("sm_name")
    order = np.random.default_rng(derived_seed(seed, "compounds")).permutation(names.unique().sort_values())
    for part in np.array_split(order, min(PARTS, len(order))):
        out = names.isin(part)
        yield responses[~out], responses[out]
