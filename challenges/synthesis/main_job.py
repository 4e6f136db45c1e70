"""The generator in the crunch's own job: GAN cells beside Gaussian and scaled real cells.

In: a challenge folder with its local truth. Out: a table of the platform's MMD, one line per generator of cells, all
around the same predicted means. Next: `__main__`.
"""

from __future__ import annotations

import os

import anndata as ad
import pandas as pd

import helpers
from challenges.common import COLUMNS
from challenges.synthesis.data import from_anndata
from challenges.synthesis.models import CellGAN, seconds_to_train
from contract import CRUNCH
from method import CellGenerator, Predictor
from response import ResponseModel
from workbench.compare import score_methods
from workbench.evaluation.intervals import summarise

GAN_STEPS = 300  # of adversarial training


class GANCells(helpers.ScaledCells):
    """`ScaledCells` whose base is herded from synthetic cells: same interface, no real cell in the prediction.

    `steps` counts the updates of the generator.
    """

    def __init__(self, n_base: int = 100, steps: int = GAN_STEPS, seed: int = 0) -> None:
        super().__init__(n_base, seed=seed)
        self.steps = steps

    def fit(self, pool: ad.AnnData, means: pd.DataFrame | None = None) -> GANCells:
        """Train the GAN on the pool (its label is the perturbation) and draw as many cells of each label."""
        real = from_anndata(pool, CRUNCH.perturbation, source="the pool")
        took = helpers.text_time(seconds_to_train(real, self.steps, self.seed, "cpu"))
        print(f"Training the GAN on {len(real):,} cells: {took}", flush=True)
        made = CellGAN(self.steps, seed=self.seed, device="cpu").fit(real).sample_like(real, seed=self.seed)
        super().fit(ad.AnnData(made.values(), var=pd.DataFrame(index=made.genes)), means)
        return self


def compare_cells(folder: str | os.PathLike[str], *, steps: int = GAN_STEPS, seed: int = 0) -> pd.DataFrame:
    """`method, metric, value, low, high, n`: MMD over the local perturbations, lower is better.

    Raises DataError where the folder has no local truth.
    """
    generators: dict[str, CellGenerator] = {
        "Gaussian cells": helpers.GaussianCells(),
        "scaled real cells": helpers.ScaledCells(),
        "scaled GAN cells": GANCells(steps=steps, seed=seed),
    }
    methods = {
        name: Predictor(ResponseModel(), helpers.MedianProportions(), cells) for name, cells in generators.items()
    }
    table, _ = score_methods(helpers.load_challenge(folder), methods)
    return summarise(table[table["metric"] == "mmd"], "perturbation")[COLUMNS]
