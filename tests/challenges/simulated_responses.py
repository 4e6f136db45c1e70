"""Simulated drug responses: three cell types that share the effects of compounds, and Kaggle's files of them."""

from dataclasses import replace

import numpy as np
import pandas as pd

from challenges.drug_response import baselines, data, networks

GENES = [f"G{i}" for i in range(40)]


def simulated(n_compounds=24, sparse_known=4, seed=0):
    """All rows of three cell types: a mean of each, and effects of compounds (rank 3) that the types share in part."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n_compounds, 3)) @ rng.normal(size=(3, len(GENES)))
    rows = {}
    for cell_type, share in (("B cells", 0.9), ("NK cells", 0.7), ("T cells", 0.9)):
        mean = rng.normal(size=len(GENES))
        for i in range(n_compounds):
            rows[cell_type, f"D{i:02}"] = mean + share * effects[i] + rng.normal(0, 0.5, len(GENES))
    table = pd.DataFrame(rows, GENES, dtype=np.float32).T.rename_axis(data.KEYS)
    unknown = (table.index.get_level_values(0) == "B cells") & (
        table.index.get_level_values(1) >= f"D{sparse_known:02}"
    )
    return table[~unknown], table[unknown]


# Chains and rings, with what hangs on them: two families whose fingerprints differ.
CHAINS = [f"{'C' * n}{end}" for n in (4, 5, 6, 7) for end in ("O", "N", "C(=O)O")]
RINGS = [f"c1ccc({'C' * n}{end})cc1-c1ccccc1" for n in (1, 2, 3, 4) for end in ("Cl", "F", "Br")]


def simulated_families(seed=0):
    """Responses to 24 compounds of two families, in two cell types, and their SMILES: a family shares its effect."""
    rng = np.random.default_rng(seed)
    effect, rows = rng.normal(size=len(GENES)), {}
    structures = pd.Series({f"D{i:02}": text for i, text in enumerate(CHAINS + RINGS)}, name="SMILES")
    for cell_type in ("NK cells", "T cells"):
        mean = rng.normal(size=len(GENES))
        for name, text in structures.items():
            own = effect if text in CHAINS else -effect
            rows[cell_type, name] = mean + own + rng.normal(0, 0.5, len(GENES))
    return pd.DataFrame(rows, GENES, dtype=np.float32).T.rename_axis(data.KEYS), structures.rename_axis("sm_name")


def write(folder, train, test, structures=None):
    """Kaggle's files."""
    about = train.index.to_frame(index=False).assign(sm_lincs_id="", SMILES="", control=False)
    if structures is not None:
        about["SMILES"] = about["sm_name"].map(structures)
    pd.concat([about, train.reset_index(drop=True)], axis=1).to_parquet(folder / data.TRAIN_FILE)
    about = test.index.to_frame(index=False).assign(sm_lincs_id="", SMILES="", control=False)
    pd.concat([about, test.reset_index(drop=True)], axis=1).to_parquet(folder / "de_test.parquet")
    queries = test.index.to_frame(index=False)
    queries.rename_axis("id").to_csv(folder / data.QUERY_FILE)
    return folder


def tiny_specs(stage="stage_1", n=2):
    return [
        replace(spec, hidden=(16, 8), dropout=(0.1, 0.1), embedding=4, epochs=6, n_dim=10, batch=16)
        for spec in networks.specs_of(stage)[:n]
    ]


def rmse(prediction, truth):
    return baselines.row_rmse(prediction, truth).mean()
