"""Do predicted cells pass for real cells of the same knock-out? Zeros, negative values, a forest that tells them apart.

In: a challenge folder with its local truth, and fitted generators of cells. Out: a tidy table, one row per generator,
perturbation and metric (`METRICS`), beside real control cells and, as the ceiling, the other half of the real cells.
`python -m workbench.results --only cells` prints its summary, and `picture` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

import helpers
from contract import CRUNCH
from helpers import Challenge
from method import CellGenerator
from workbench.compare import CEILING, local_truth

METRICS = {
    "pearson_delta": "Pearson delta",
    "mmd": "MMD",
    "zeros": "share of zeros, predicted - real",
    "negative": "share of negative values",
    "auc": "forest, AUC (0.5 is best)",
    "depth": "log total, predicted - real",
    "pairs": "correlation of gene pairs, agreement",
}
PAIRED_GENES = 200  # the most variable ones of those that half of the real cells have
CONTROL = "real control cells"


def likeness(
    challenge: Challenge,
    means: pd.DataFrame,
    generators: Mapping[str, CellGenerator],
    *,
    sigma: float | str = "scaled",
) -> pd.DataFrame:
    """One row per `generator`, `perturbation` and `metric` with its `value`, over the local perturbations.

    `means` are the predicted means, perturbations x genes; all generators are fitted. MMD has the bandwidth of
    `helpers.score`. The ceiling compares one half of the real cells with the other.
    """
    truth = ad.read_h5ad(local_truth(challenge)[0][0])
    genes = challenge.genes_to_predict[challenge.genes_to_predict.isin(truth.var_names)]
    n_cells = CRUNCH.cells_per_perturbation
    with helpers.open_matrix(challenge.local_truth_path, [CRUNCH.perturbation]) as (matrix, _, var_names, _):
        width, _ = helpers.bandwidth(sigma, genes, matrix, var_names)
    rows = np.flatnonzero((challenge.obs[CRUNCH.perturbation] == CRUNCH.control).to_numpy())[:n_cells]
    control = helpers.dense(helpers.read_cells(challenge.train_path, rows)[:, genes].X)
    fitted = {name: generator.for_genes(genes) for name, generator in generators.items()}
    table = []
    for name in helpers.progress_bar("telling cells apart", iterable=list(means.index), unit="perturbation"):
        real = helpers.dense(truth[(truth.obs[CRUNCH.perturbation] == name).to_numpy(), genes].X).astype(np.float64)
        mean, reference = (
            means.loc[name, genes].to_numpy(np.float32),
            helpers.reference_of(truth, name)[genes].to_numpy(),
        )
        pairs = {key: (real, generator.sample(name, mean, n_cells)) for key, generator in fitted.items()}
        pairs |= {CONTROL: (real, control), CEILING: (real[::2], real[1::2][:n_cells])}
        for key, (true, made) in pairs.items():
            values = _compared(true, made.astype(np.float64), reference, width)
            table += [(key, name, metric, value) for metric, value in values.items()]
    return pd.DataFrame(table, columns=["generator", "perturbation", "metric", "value"])


def _compared(real: np.ndarray, made: np.ndarray, reference: np.ndarray, sigma: float) -> dict[str, float]:
    """`METRICS` of one perturbation; both are cells x genes."""
    totals = [np.log1p((2.0 ** np.maximum(cells, 0.0) - 1.0).sum(axis=1)).mean() for cells in (real, made)]
    return {
        **helpers.cell_scores(real, made, reference, sigma),
        "zeros": float((made == 0).mean() - (real == 0).mean()),
        "negative": float((made < 0).mean()),
        "auc": forest_auc(real, made),
        "depth": float(totals[1] - totals[0]),
        "pairs": pair_agreement(real, made),
    }


def pair_agreement(real: np.ndarray, made: np.ndarray) -> float:
    """How alike the correlations of gene pairs are in `made` and `real` cells (both cells x genes): 1 is equal."""
    often = np.flatnonzero(((real > 0).mean(axis=0) > 0.5) & (made.std(axis=0) > 0))
    genes = often[np.argsort(-real[:, often].var(axis=0), kind="stable")[:PAIRED_GENES]]
    pairs = np.triu_indices(len(genes), 1)
    found = [np.corrcoef(cells[:, genes], rowvar=False)[pairs] for cells in (real, made)]
    return float(np.corrcoef(*found)[0, 1])


def forest_auc(real: np.ndarray, made: np.ndarray) -> float:
    """Area under the curve of a random forest that tells `made` from `real` cells, five folds; as many of both."""
    n = min(len(real), len(made))
    X, is_made = np.concatenate([real[:n], made[:n]]), np.repeat([0, 1], n)
    folds = StratifiedKFold(min(5, n), shuffle=True, random_state=0)
    forest = RandomForestClassifier(200, random_state=0)
    return float(roc_auc_score(is_made, cross_val_predict(forest, X, is_made, cv=folds, method="predict_proba")[:, 1]))


def picture(challenge: Challenge, means: pd.DataFrame, generators: Mapping[str, CellGenerator], title: str) -> Figure:
    """Of each generator: zeros per gene, and variance against mean, predicted beside real cells of one knock-out."""
    truth = ad.read_h5ad(local_truth(challenge)[0][0])
    genes = challenge.genes_to_predict[challenge.genes_to_predict.isin(truth.var_names)]
    name = truth.obs[CRUNCH.perturbation].value_counts().index[0]
    real = helpers.dense(truth[(truth.obs[CRUNCH.perturbation] == name).to_numpy(), genes].X).astype(np.float64)
    mean = means.loc[name, genes].to_numpy(np.float32)
    figure, axes = plt.subplots(
        len(generators), 2, figsize=(9, 3.6 * len(generators)), layout="constrained", squeeze=False
    )
    for row, (label, generator) in zip(axes, generators.items(), strict=True):
        made = generator.for_genes(genes).sample(name, mean, CRUNCH.cells_per_perturbation).astype(np.float64)
        row[0].scatter((real == 0).mean(axis=0), (made == 0).mean(axis=0), s=6, color="#2b6cb0", alpha=0.5, lw=0)
        row[0].plot([0, 1], [0, 1], color="black", lw=1, ls=":", label="as in real cells")
        row[0].set(xlabel="share of zeros per gene, real cells", ylabel="predicted cells", title=f"{label}: zeros")
        for cells, colour, what in ((real, "#a0aec0", "real cells"), (made, "#2b6cb0", "predicted cells")):
            row[1].scatter(cells.mean(axis=0), cells.var(axis=0), s=6, color=colour, alpha=0.6, lw=0, label=what)
        row[1].set(
            xlabel="mean per gene (log2 units)",
            ylabel="variance (log2 units squared)",
            title=f"{label}: variance against mean",
        )
        for axis in row:
            axis.legend(fontsize=8)
    figure.suptitle(f"{title}: cells of {name}, a point per gene", fontsize=10)
    return figure
