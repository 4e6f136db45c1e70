"""What kind of values a matrix holds, and how they are brought to the scale log2(1 + 1e5 * count / total).

In: cells x genes. Out: the kind, by some cells; values of one kind on the scale. Whatever adds up to one total in every
cell is counts per that total, so its scale need not be known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from contract import CRUNCH
from helpers import DataError, check_zeros, some

LOOKED_AT = 400  # cells that say what kind of values there are
ONE_TOTAL = 1e-3  # relative: cells whose totals differ by less were normalised to one total
MOST = np.log2(1 + CRUNCH.scale) * (1 + 1e-6)  # float32 may round it up

COUNTS, LINEAR, NATURAL, LOG2, AS_IT_IS = "counts", "linear", "natural logarithms", "log2 units", "as it is"
SAID = {
    COUNTS: "counts; they are normalised",
    LINEAR: "values that add up to one total in each cell (CPM, say); their logarithm is taken",
    NATURAL: "natural logarithms of values that add up to one total; they are brought to the scale",
    LOG2: "log2 of values that add up to one total; they are brought to the scale",
    AS_IT_IS: "normalised values of a scale that the cells do not tell; they are taken for log2 units as they are",
}


def kind_of(matrix: Any, where: str, layers: Sequence[str]) -> str:
    """The kind of values by some cells. Raises DataError for what is neither counts nor normalised."""
    n, runs = matrix.shape[0], 8
    starts = np.unique(np.linspace(0, max(n - LOOKED_AT // runs, 0), runs).astype(int))
    parts = [sp.csr_matrix(matrix[slice(int(a), int(min(a + LOOKED_AT // runs, n)))], dtype=np.float64) for a in starts]
    cells = sp.vstack(parts).tocsr()
    cells = cells[np.diff(cells.indptr) > 0]
    if cells.nnz == 0:
        raise DataError(f"{where} holds no value above 0 in the cells looked at")
    others = [name for name in layers if not where.endswith(f"layers/{name}")]
    hint = f"--layer names another matrix ({some(others)})" if others else "give the file that has the counts"
    _check(cells.data, where, hint)
    if is_whole(cells.data):
        return COUNTS
    if re.search(r"layers/.*(count|raw|umi)", where, re.IGNORECASE):
        raise DataError(f"{where} holds values that are no whole numbers, so these are no counts; {hint}")
    for kind in (LINEAR, NATURAL, LOG2):
        with np.errstate(over="ignore"):
            totals = np.asarray(sp.csr_matrix((UNDO[kind](cells.data), cells.indices, cells.indptr)).sum(axis=1))
        if np.isfinite(totals).all() and np.ptp(totals) <= ONE_TOTAL * np.median(totals):
            return kind
    if cells.data.max() <= MOST:
        return AS_IT_IS
    raise DataError(
        f"{where} holds values up to {cells.data.max():g} that are no whole numbers, and every cell has another total: "
        f"neither counts nor normalised; {hint}"
    )


def _check(values: np.ndarray, where: str, hint: str) -> None:
    lowest, highest = values.min(initial=0.0), values.max(initial=0.0)
    if not np.isfinite([lowest, highest]).all():
        raise DataError(f"{where} holds infinite values or NaN; {hint}")
    if lowest < 0:
        raise DataError(
            f"{where} holds negative values, down to {lowest:g}: neither counts nor their logarithms; {hint}"
        )


def is_whole(values: np.ndarray) -> bool:
    """Whether all values are whole numbers, as counts are."""
    return bool((values == np.rint(values)).all())


def _linear(values: np.ndarray) -> np.ndarray:
    return values


def _exp(values: np.ndarray) -> np.ndarray:
    return np.exp(values) - 1.0  # several times as fast as expm1; a count is far from 0 on any scale


def _exp2(values: np.ndarray) -> np.ndarray:
    return np.exp2(values) - 1.0


PRECISION = {COUNTS: np.float32}  # exact for counts and their totals; logarithms are undone in float64
UNDO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    COUNTS: _linear,
    LINEAR: _linear,
    NATURAL: _exp,
    LOG2: _exp2,
}


def scaled(cells: sp.csr_matrix, kind: str, where: str) -> sp.csr_matrix:
    """1e5 * count / total of cells x genes, in place; of the kind AS_IT_IS as it is. Raises DataError as `kind_of`."""
    _check(cells.data, where, "look at these cells")
    if cells.nnz < np.prod(cells.shape):
        check_zeros(cells.data, where)
    if kind == COUNTS and not is_whole(cells.data):
        raise DataError(f"{where} holds values that are no whole numbers, but other cells hold counts; look at them")
    if kind != AS_IT_IS:
        cells.data = UNDO[kind](cells.data)
        totals = np.asarray(cells.sum(axis=1)).ravel()
        scale = np.divide(CRUNCH.scale, totals, out=np.zeros_like(totals), where=totals > 0)
        cells.data *= np.repeat(scale, np.diff(cells.indptr))
    return cells


def logged(values: np.ndarray, kind: str, where: str) -> np.ndarray:
    """log2(1 + values), in place. Raises DataError for what is above the scale."""
    if kind != AS_IT_IS:  # no value is more than its cell's total
        values += 1.0
        return np.log2(values, out=values)
    if (highest := values.max(initial=0.0)) > MOST:
        raise DataError(f"{where} holds values up to {highest:g}; log2(1 + {CRUNCH.scale:g}) is the most there can be")
    return values
