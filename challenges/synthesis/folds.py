"""What is held out: a share of each type, which the generator never sees.

In: `Cells`. Out: training cells and held-out cells. `evaluate` halves the held-out cells in the same way.
Next: `baselines`.
"""

from __future__ import annotations

import numpy as np

from challenges.synthesis.data import Cells


def split(cells: Cells, held_out: float, seed: int) -> tuple[Cells, Cells]:
    """Training and held-out cells: `held_out` of each type, at least one on either side."""
    random = np.random.default_rng(seed)
    is_held = np.zeros(len(cells), bool)
    for name in cells.types if held_out else []:
        rows = random.permutation(np.flatnonzero(cells.labels == name))
        is_held[rows[: min(max(1, round(held_out * len(rows))), len(rows) - 1)]] = True
    return cells.take(~is_held), cells.take(is_held)
