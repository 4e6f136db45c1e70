"""Simulated cells with two modalities that share three programs, and files of them."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from challenges.modality.networks import Recipe

TINY = Recipe(generator_steps=25, critic_steps=1, width=16, batch=16, repeats=2, dropout=0.0)


def simulated(n=80, n_source=30, n_target=12, noise=0.3, batches=1, seed=0, mod2="ADT"):
    """Cells whose two modalities share three programs; about half of the source's values are zero."""
    rng = np.random.default_rng(seed)
    programs = rng.normal(size=(n, 3))
    source = np.maximum(programs @ rng.normal(size=(3, n_source)) + rng.normal(0, noise, (n, n_source)), 0)
    target = 3 + programs @ rng.normal(size=(3, n_target)) + rng.normal(0, noise, (n, n_target))
    obs = pd.DataFrame({"batch": [f"b{i * batches // n}" for i in range(n)]}, [f"C{i:03}" for i in range(n)])
    return [
        ad.AnnData(
            sp.csr_matrix(values.astype(np.float32)),
            obs=obs,
            var=pd.DataFrame({"feature_types": kind}, [f"{kind}{i}" for i in range(values.shape[1])]),
        )
        for kind, values in (("GEX", source), (mod2, target))
    ]


def split(pair, n_train=60):
    return {
        f"{part}_mod{i + 1}": cells[rows].copy()
        for i, cells in enumerate(pair)
        for part, rows in (("train", slice(0, n_train)), ("test", slice(n_train, None)))
    }


def write(folder, files, name="set"):
    for part, cells in files.items():
        cells.write_h5ad(folder / f"{name}.{part}.h5ad")
    return folder
