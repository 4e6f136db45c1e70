"""What kind of values there are, and how counts are normalised: as the challenge did, so that its figures compare.

In: cells of one modality, as their file has them. Out: a `Scale`, which a model keeps, and cells on it. Whatever is no
counts is left as it is; training and test must be of one kind. Next: `data`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from helpers import DataError, some
from workbench.adoption.values import AS_IT_IS, COUNTS, LINEAR, LOG2, NATURAL, is_whole, kind_of

SCALES = ("auto", "as-is")  # counts are normalised, or nothing is
FACTOR = "size_factors"  # the column of obs with a size factor for each cell, as in the challenge's files
LEAST_TO_TELL = 20  # cells from which one sees a total that all have, or the largest value there is
MOST_APART = 10  # times that the largest value may differ between training and test

AS_THEY_ARE, FACTORS, TOTALS, CLR, BINARY = "as they are", "size factors", "totals", "centred log ratio", "binary"
DONE = {
    AS_THEY_ARE: "as they are in the file",
    FACTORS: f"divided by obs[{FACTOR!r}], then log1p",
    TOTALS: "divided by each cell's total over the mean total of training, then log1p",
    CLR: "centred log ratio of each cell, log1p(count / exp(mean(log1p(counts))))",
    BINARY: "1 where there are any",
}


@dataclass(frozen=True)
class Scale:
    """The scale of one modality's training cells.

    `kind` (of `workbench.adoption.values`) and `place` ("X" or a layer) say what the file holds, `highest` is its
    largest absolute value, and `way` is what was done to it. `profile` (features, float64) has the mean count of each
    feature where the size factor of a cell is its total; else it is empty.
    """

    kind: str = AS_IT_IS
    place: str = "X"
    highest: float = 0.0
    way: str = AS_THEY_ARE
    profile: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def settings(self) -> dict[str, Any]:
        """All but the profile, for a bundle."""
        return {"kind": self.kind, "place": self.place, "highest": self.highest, "way": self.way}

    def check(self) -> None:
        """Raises DataError for what no file can hold."""
        known = self.kind in (COUNTS, LINEAR, NATURAL, LOG2, AS_IT_IS) and self.way in DONE
        if not known or not isinstance(self.place, str) or not np.isfinite(self.highest):
            raise DataError(f"values of the kind {self.kind!r} in {self.place!r}, {self.way!r}, up to {self.highest}")
        if (self.profile < 0).any() or (self.way == TOTALS and self.profile.sum() <= 0):
            raise DataError("mean counts that are none")


def scale_of(cells: ad.AnnData, place: str, modality: str, *, as_is: bool = False) -> Scale:
    """The scale of training cells (CSR float32 `X`), which `place` of their file holds; `as_is` leaves counts alone."""
    kind = kind_of_values(cells.X, modality)
    found = Scale(kind, place, _highest(cells.X))
    if kind != COUNTS or as_is:
        return found
    if modality != "GEX":
        return Scale(kind, place, found.highest, {"ATAC": BINARY, "ADT": CLR}[modality])
    if FACTOR in cells.obs:
        return Scale(kind, place, found.highest, FACTORS)
    return Scale(kind, place, found.highest, TOTALS, np.asarray(cells.X.mean(axis=0, dtype=np.float64)).ravel())


def kind_of_values(X: sp.csr_matrix, modality: str) -> str:
    """Counts are whole numbers from 0. Of other expression, the kind where all cells have one total."""
    if X.nnz and X.data.min() >= 0 and is_whole(X.data):
        return COUNTS
    if modality != "GEX" or X.shape[0] < LEAST_TO_TELL:
        return AS_IT_IS
    try:
        return kind_of(X, "", ())
    except DataError:  # no kind that it knows
        return AS_IT_IS


def check_same(scale: Scale, cells: ad.AnnData, place: str, modality: str, where: str, training: str) -> None:
    """Raises DataError where cells cannot be on the scale of the training cells.

    `where` is their file, `training` that of the training cells, or their model.
    """
    if cells.X.nnz == 0:
        return
    kind, apart = kind_of_values(cells.X, modality), _highest(cells.X) / (scale.highest or 1.0)
    known = {kind, scale.kind} - {AS_IT_IS}
    if (kind == COUNTS) != (scale.kind == COUNTS) or len(known) > 1:
        raise DataError(
            f"{where}: {_words(kind)}, but {training} was made of {_words(scale.kind)}; write both on one scale"
        )
    if kind != COUNTS and place != scale.place:
        raise DataError(
            f"{where}: its values are in {place}, those of {training} in {scale.place}; write both into the same "
            "place, on the same scale"
        )
    if kind != COUNTS and scale.highest and cells.n_obs >= LEAST_TO_TELL and not 1 / MOST_APART < apart < MOST_APART:
        raise DataError(
            f"{where}: values up to {_highest(cells.X):g}, those of {training} up to {scale.highest:g}; write both on "
            "one scale"
        )


def normalised(scale: Scale, cells: ad.AnnData, where: str, measured: np.ndarray | None = None) -> ad.AnnData:
    """Cells on the scale, with counts in `layers["counts"]`; those that are left as they are come back themselves.

    `measured` (features, bool) are those that the cells' file has, by default all. Only values above 0 change, so a
    matrix stays as sparse as it was, and shares its places with the counts. Raises DataError, which begins with
    `where`, for size factors that are missing or not above 0.
    """
    if scale.way == AS_THEY_ARE:
        return cells
    counts = cells.X
    counts.eliminate_zeros()
    in_cell = np.diff(counts.indptr)
    if scale.way == BINARY:
        values = np.ones_like(counts.data)
    else:
        values = np.log1p(counts.data / np.repeat(_divisors(scale, cells, where, measured), in_cell))
    X = sp.csr_matrix((values.astype(np.float32), counts.indices, counts.indptr), counts.shape)
    return ad.AnnData(X, obs=cells.obs, var=cells.var, uns=dict(cells.uns), layers={"counts": counts})


def _divisors(scale: Scale, cells: ad.AnnData, where: str, measured: np.ndarray | None) -> np.ndarray:
    """What the counts of each cell are divided by, float64; of an empty cell 1."""
    X = cells.X
    if scale.way == CLR:  # zeros count in the mean
        logs = sp.csr_matrix((np.log1p(X.data, dtype=np.float64), X.indices, X.indptr), X.shape)
        n = X.shape[1] if measured is None else measured.sum()
        return np.exp(np.asarray(logs.sum(axis=1)).ravel() / n)
    if scale.way == TOTALS:
        totals = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
        usual = scale.profile.sum() if measured is None else scale.profile[measured].sum()
        return np.where(totals > 0, totals, 1.0) / (usual or 1.0)
    if FACTOR not in cells.obs:
        raise DataError(f"{where}: counts without obs[{FACTOR!r}], by which those of training were divided; add them")
    factors = cells.obs[FACTOR]
    if factors.dtype.kind not in "iuf" or not ((factors > 0) & np.isfinite(factors)).all():
        odd = (
            cells.obs_names[~(factors > 0) | ~np.isfinite(factors)] if factors.dtype.kind in "iuf" else cells.obs_names
        )
        raise DataError(f"{where}: obs[{FACTOR!r}] are no numbers above 0 in cells {some(odd, 3)}; correct or drop it")
    return factors.to_numpy(np.float64)


def _highest(X: sp.csr_matrix) -> float:
    return float(np.abs(X.data).max(initial=0.0))


def _words(kind: str) -> str:
    return {COUNTS: "counts", LINEAR: "values without a logarithm", NATURAL: "natural logarithms", LOG2: kind}.get(
        kind, "normalised values"
    )
