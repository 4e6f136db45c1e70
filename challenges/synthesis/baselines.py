"""What every generator is measured beside: real cells, copies of training cells, and genes without correlation.

In: training cells, labels and a seed. Out: `Cells` with these labels. Real held-out cells are the ceiling; resampled
training cells are real but nothing new; independent genes have the right margins only. Next: `scale`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from challenges.synthesis.data import Cells

REAL, TRAINING, INDEPENDENT = "real held-out cells", "training cells, resampled", "independent genes"


def resampled(train: Cells, labels: np.ndarray, seed: int) -> Cells:
    """Training cells of these types, drawn with replacement."""
    random = np.random.default_rng(seed)
    rows = np.zeros(len(labels), int)
    for name in sorted(set(labels)):
        there = np.flatnonzero(train.labels == name)
        rows[labels == name] = there[random.integers(len(there), size=int((labels == name).sum()))]
    taken = train.counts[rows]
    return _made(train, taken, train.steps[rows], labels)


def independent(train: Cells, labels: np.ndarray, seed: int) -> Cells:
    """Every gene drawn by itself from the training cells of the type: right margins, no correlation."""
    random = np.random.default_rng(seed)
    counts, steps = np.zeros((len(labels), len(train.genes)), np.float32), np.ones(len(labels))
    for name in sorted(set(labels)):
        here, there = np.flatnonzero(labels == name), np.flatnonzero(train.labels == name)
        cells = train.counts[there].toarray()
        drawn = random.integers(len(there), size=(len(here), len(train.genes)))
        counts[here] = np.take_along_axis(cells, drawn, axis=0)
        steps[here] = train.steps[there][random.integers(len(there), size=len(here))]
    return _made(train, counts, steps, labels)


def _made(train: Cells, counts: object, steps: np.ndarray, labels: np.ndarray) -> Cells:
    obs = pd.DataFrame({"label": labels}, index=pd.RangeIndex(len(labels)).astype(str))
    return Cells(sp.csr_matrix(counts), steps, obs, train.genes, train.scale, "sampled cells")
