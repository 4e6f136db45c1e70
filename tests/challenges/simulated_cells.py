"""Simulated cells of three types: as `Cells`, and as AnnData."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from challenges.synthesis import data
from challenges.synthesis.scale import Scale


def make_cells(n=240, genes=40, seed=0, types=("A", "B", "C"), library=300.0, extra_zeros=0.0):
    """Counts of three types with a factor that correlates half of the genes within each type."""
    random = np.random.default_rng(seed)
    labels = np.array([types[i % len(types)] for i in range(n)], object)
    shares = random.dirichlet(np.ones(genes), len(types))[[i % len(types) for i in range(n)]] + 0.002
    factor = np.exp(0.7 * random.standard_normal((n, 1)) * (np.arange(genes) % 2))
    rates = shares * factor
    size = library * np.exp(0.3 * random.standard_normal(n))
    counts = random.poisson(rates / rates.sum(axis=1, keepdims=True) * size[:, None])
    counts = counts * (random.random(counts.shape) >= extra_zeros)
    counts[counts.sum(axis=1) == 0, 0] = 1
    obs = pd.DataFrame({"label": labels}, index=[f"cell_{i}" for i in range(n)])
    names = pd.Index([f"G{i}" for i in range(genes)])
    return data.Cells(sp.csr_matrix(counts.astype(np.float32)), np.ones(n), obs, names, Scale("counts"), "made")


TYPES = ("B cell", "NK cell", "T:CD4+, naive")


def make_adata(n=120, genes=30, seed=0):
    """Counts of three types, log-normalised in X."""
    random = np.random.default_rng(seed)
    code = np.arange(n) % 3
    counts = random.poisson(random.gamma(1.0, 4.0, (3, genes))[code] * random.lognormal(0, 0.3, (n, 1)))
    counts[:, 0] += 1
    obs = pd.DataFrame({"cell_type": [TYPES[i] for i in code], "donor": [f"d{i % 2}" for i in range(n)]})
    obs.index = [f"cell_{i}" for i in range(n)]
    X = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return ad.AnnData(
        sp.csr_matrix(X),
        obs=obs,
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
        layers={"counts": sp.csr_matrix(counts)},
    )
