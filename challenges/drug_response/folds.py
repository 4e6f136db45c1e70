"""Validation in the shape of the test: a cell type loses all but a few compounds.

In: responses. Out: for each well-covered cell type, the rows to train on and the rows to predict. `ensemble` tunes its
scale on them, `baselines` its mix, and `evaluate` scores on them where there is no truth. Next: `baselines`.
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

    What stays known of it are the compounds that the sparse cell types have; where there is no sparse type, a random
    eighth of the compounds, at least one.
    """
    compounds = responses.index.unique("sm_name")
    n_compounds = responses.groupby(level="cell_type").size()
    covered = n_compounds.index[n_compounds >= WELL_COVERED * len(compounds)]
    sparse = ~responses.index.get_level_values("cell_type").isin(covered)
    known = responses.index[sparse].unique("sm_name")
    for cell_type in covered:
        kept = known if len(known) else _some_compounds(compounds, derived_seed(seed, "known", cell_type))
        out = (responses.index.get_level_values("cell_type") == cell_type) & ~responses.index.get_level_values(
            "sm_name"
        ).isin(kept)
        if out.any() and not out.all():
            yield cell_type, responses[~out], responses[out]


def _some_compounds(compounds: pd.Index, seed: int) -> pd.Index:
    n = max(1, round(KNOWN_SHARE * len(compounds)))
    return pd.Index(np.random.default_rng(seed).choice(compounds.sort_values(), n, replace=False))
