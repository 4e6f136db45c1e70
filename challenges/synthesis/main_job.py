"""The generator in the crunch's own job: GAN cells beside Gaussian and recentred real cells.

In: a challenge folder with its local truth. Out: a table of the platform's MMD (`helpers.score`), one row a generator
of cells, all around the same predicted means.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import pandas as pd

import helpers
from challenges.synthesis.data import from_anndata
from challenges.synthesis.gan import CellGAN
from helpers import DataError, GaussianCells, Predictor, RecentredCells
from workbench.evaluation.intervals import summarise

ROWS = ["Gaussian cells", "recentred real cells", "recentred GAN cells"]


class GANCells(RecentredCells):
    """`RecentredCells` whose base is herded from synthetic cells: same interface, no real cell in the prediction.

    `fit(means, pool)` trains the GAN on the pool (its label is `obs["gene"]`) and draws as many cells of each label.
    """

    def __init__(self, n_base: int = 100, steps: int = 300, seed: int = 0) -> None:
        super().__init__(n_base)
        self.steps = steps
        self.seed = seed

    def fit(self, means: pd.DataFrame | None, pool: ad.AnnData) -> GANCells:
        real = from_anndata(pool, "gene", source="the pool")
        self.gan_ = CellGAN(self.steps, seed=self.seed, device="cpu").fit(real)
        made = self.gan_.sample_like(real, seed=self.seed)
        super().fit(means, ad.AnnData(made.values(), var=pd.DataFrame(index=made.genes)))
        return self


def compare_cells(folder: str | os.PathLike[str], *, steps: int, seed: int) -> pd.DataFrame:
    """`generator, metric, value, low, high, n`: MMD over the local perturbations, lower is better.

    Raises DataError where the folder has no local truth.
    """
    challenge = helpers.load_challenge(folder)
    if challenge.local_truth_path is None or challenge.local_proportions is None:
        raise DataError(f"{folder}: no local truth, so there is nothing to compare with")
    truth = challenge.local_truth_path, challenge.folder / helpers.LOCAL_PROPORTIONS_FILE
    stats = helpers.perturbation_stats(challenge.train_path)
    pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, seed=seed))
    tables = {}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of targets without knowledge: the same means for every row
        for name, cells in zip(
            ROWS, (GaussianCells(), RecentredCells(), GANCells(steps=steps, seed=seed)), strict=True
        ):
            files = Path(scratch) / helpers.PREDICTION_FILE, Path(scratch) / helpers.PREDICTED_PROPORTIONS_FILE
            predictor = Predictor(helpers.ResponseModel(), helpers.MedianProportions(), cells)
            predictor.fit(stats, challenge.proportions, pool)
            predictor.write(*files, challenge.local_proportions.index, challenge.genes_to_predict, mode="disk")
            scores = helpers.score(*files, *truth)
            tables[name] = scores[scores["metric"] == "mmd"]
    table = pd.concat(tables, names=["generator"]).reset_index(level="generator")
    return summarise(table, "perturbation", method="generator")[["generator", "metric", "value", "low", "high", "n"]]
