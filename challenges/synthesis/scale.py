"""Which scale a matrix is on, and the counts behind it.

In: a CSR matrix without negative values. Out: its `Scale`, counts, and what one count is worth in each cell. A
normalised value is log_base(1 + step * count) or step * count, with one step per cell; the step is the greatest number
of which all values of the cell are multiples. So normalised values give back their counts without their totals.
Next: `start`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

KINDS = ("counts", "log", "linear", "values")
BASES = (0.0, np.e, 2.0, 10.0)  # of the logarithm; 0 for none
SMALLEST = (1, 2, 3, 4)  # what a cell's smallest count may be
TOLERANCE = 0.05  # root mean square distance to whole numbers; 0.29 where values are no multiples
LARGEST = 10.0  # multiples beyond it say little: rounded logarithms blur them
TRIED = 500  # cells to tell the scale from
SHARE = 0.9  # of them that must be multiples


@dataclass(frozen=True)
class Scale:
    """`kind` is "counts", "log" (log_base(1 + step * count)), "linear" (step * count) or "values" (no counts known)."""

    kind: str
    base: float = 0.0

    def __str__(self) -> str:
        """What it is, for people."""
        return {
            "counts": "raw counts",
            "log": f"log{'' if self.base == np.e else f'{self.base:g}'}(1 + normalised), counts recovered",
            "linear": "normalised, counts recovered",
            "values": "values without counts behind them",
        }[self.kind]

    def values(self, counts: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Counts (cells x genes) on this scale, float32; `steps` (cells) is what one count is worth."""
        if self.kind in {"counts", "values"}:
            return counts.astype(np.float32)
        linear = counts * steps[:, None]
        return (np.log1p(linear) / np.log(self.base) if self.kind == "log" else linear).astype(np.float32)


def recover(matrix: sp.csr_matrix) -> tuple[Scale, sp.csr_matrix, np.ndarray]:
    """The scale, the counts (CSR) and the steps (cells) of a matrix without negative values."""
    ones = np.ones(matrix.shape[0])
    if (matrix.data == np.rint(matrix.data)).all():
        return Scale("counts"), matrix, ones
    tried = matrix[np.unique(np.linspace(0, matrix.shape[0] - 1, TRIED).astype(int))]
    errors = {base: _steps(tried, base)[1] for base in BASES}
    known = {base: error[np.isfinite(error)] for base, error in errors.items()}
    shares = {base: (error < TOLERANCE).mean() if len(error) else 0.0 for base, error in known.items()}
    base = max(BASES, key=lambda base: (round(shares[base], 2), -known[base].mean() if len(known[base]) else 0.0))
    if shares[base] < SHARE:
        return Scale("values"), matrix, ones
    steps, _ = _steps(matrix, base)
    linear = _linear(matrix, base)
    multiples = np.maximum(np.rint(linear.data / np.repeat(steps, np.diff(linear.indptr))), 1.0)
    counts = sp.csr_matrix((multiples.astype(np.float32), linear.indices, linear.indptr), shape=linear.shape)
    return Scale("log" if base else "linear", float(base)), counts, steps


def _linear(matrix: sp.csr_matrix, base: float) -> sp.csr_matrix:
    linear = matrix.astype(np.float64)
    if base:
        linear.data = np.expm1(np.minimum(linear.data * np.log(base), 50.0))
    return linear


def _steps(matrix: sp.csr_matrix, base: float) -> tuple[np.ndarray, np.ndarray]:
    """The step of each cell (the median step where it has no value), and how far its values are from multiples."""
    linear = _linear(matrix, base)
    n = np.diff(linear.indptr)
    filled = n > 0
    if not filled.any():
        return np.ones(len(n)), np.full(len(n), np.nan)
    starts, row = linear.indptr[:-1][filled], np.repeat(np.arange(filled.sum()), n[filled])
    smallest = np.minimum.reduceat(linear.data, starts)
    best, error = smallest.copy(), np.full(len(smallest), np.inf)
    for divisor in SMALLEST:
        multiple = linear.data / (smallest / divisor)[row]
        near = multiple <= LARGEST * divisor
        whole = np.rint(multiple)
        off = np.bincount(row, (near * (multiple - whole) ** 2), len(starts)) / np.bincount(row, near, len(starts))
        # A least-squares step over the small multiples is finer than the smallest value, which may be rounded.
        finer = np.bincount(row, near * whole * linear.data, len(starts)) / np.bincount(
            row, near * whole**2, len(starts)
        )
        better = (np.sqrt(off) < TOLERANCE) & (error >= TOLERANCE) | ((divisor == 1) & (error == np.inf))
        best[better], error[better] = finer[better], np.sqrt(off)[better]
    steps, errors = np.full(len(n), np.median(best)), np.full(len(n), np.nan)
    steps[filled], errors[filled] = best, error
    return steps, errors
