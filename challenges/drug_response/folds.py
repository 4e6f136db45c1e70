"""Validation in the shape of the test: a cell type loses all but a few compounds.

In: responses. Out: for each well-covered cell type, the rows to train on and the rows to predict. `ensemble` tunes its
scale on them, `baselines` its mix, `fitted` its weights, and `evaluate` chooses on them. Next: `baselines`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from challenges.common import derived_seed

WELL_COVERED = 0.5  # share of the compounds from which a cell type counts as well covered
KNOWN_SHARE = 0.125  # what stays known where the data have no sparse type to copy: 17 of 135 in OP2


def held_out(responses: pd.DataFrame, seed: int = 0) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Each well-covered cell type in turn: its name, the rows that remain, and the rows held out.

    What stays known of it are the compounds that the sparse cell types have; where there is no sparse type, or where
    that would leave nothing known or most of it, a random eighth of the compounds, at least one. Rows whose compound no
    other cell type has are not held out: as in the test, each compound to predict was measured elsewhere.
    """
    compounds = responses.index.unique("sm_name")
    cell_types, names = (responses.index.get_level_values(level) for level in ("cell_type", "sm_name"))
    n_compounds = responses.groupby(level="cell_type").size()
    covered = n_compounds.index[n_compounds >= WELL_COVERED * len(compounds)]
    known = names[~cell_types.isin(covered)].unique()
    for cell_type in covered:
        own = names[cell_types == cell_type]
        kept = own[own.isin(known)]
        if not 0 < len(kept) <= WELL_COVERED * len(own):
            kept = _some_compounds(own, derived_seed(seed, "known", cell_type))
        elsewhere = names[cell_types != cell_type]
        out = (cell_types == cell_type) & ~names.isin(kept) & names.isin(elsewhere)
        if out.any():
            yield cell_type, responses[~out], responses[out]


def _some_compounds(compounds: pd.Index, seed: int) -> pd.Index:
    n = max(1, round(KNOWN_SHARE * len(compounds)))
    return pd.Index(np.random.default_rng(seed).choice(compounds.sort_values(), n, replace=False))
