"""Estimators as a user writes them, without scikit-learn; a fresh process imports them by this file's name."""

import numpy as np
import pandas as pd

from combinations import Added, CombinationModel, DeltaMean
from helpers import ControlMean, GaussianCells, MedianProportions, PCARidge, PerturbedMean, RecentredCells, ScaledCells
from method import Predictor
from response import ResponseModel


class Halfway:
    """A mean on the way from the control to the average knock-out; the prediction needs every attribute."""

    def __init__(self, way="half", control=None):
        self.way = way
        self.control = control

    def fit(self, means, n_cells, knowledge):
        self.middle = (means.mean() + means.loc["NC"]) / 2  # Series
        self.names = means.columns  # Index
        self.responses = means - self.middle  # DataFrame of numbers
        self.families = pd.DataFrame({"name": means.index, "family": [name[:2] for name in means.index]})  # of texts
        self.matrix = means.to_numpy()[:2]
        self.zero_d = np.array(0.5)
        self.is_control = means.index.to_numpy() == "NC"
        self.letters = np.array([name[0] for name in means.index])
        self.n_cells, self.strength, self.sure, self.empty = int(n_cells.sum()), np.float64(0.25), True, ""
        self.known = len(knowledge.tables)
        return self

    def predict(self, targets):
        rows = []
        for target in targets:
            like = ((self.families["family"] == target[:2]) & ~self.is_control) | (self.letters == target[0])
            weight = self.zero_d * self.strength * like.mean() * self.known / np.log(self.n_cells)
            row = self.middle + weight * self.responses.mean() + weight * self.matrix[self.sure + 0]
            rows.append(row if self.way == "half" and self.control is None and not self.empty else row * np.nan)
        return pd.DataFrame(rows, index=targets)[self.names]


class SureHalfway(Halfway):
    """The same, and says how sure it is."""

    def predict_scale(self, targets):
        sure = [len(target) / 10 for target in targets]
        return pd.DataFrame({"error": 1.0, "pearson": sure}, index=targets)


class MeanShares:
    def fit(self, proportions, means, n_cells, knowledge):
        weights = n_cells[proportions.index]
        self.row = proportions.mul(weights, axis=0).sum() / weights.sum() + 1e-3 * means.iloc[0, 0]
        self.row["other"] += 1e-3 * len(knowledge.tables)
        return self

    def predict(self, targets):
        return pd.DataFrame([self.row] * len(targets), index=targets)


class TwoCells:
    """The mean plus and minus one spread, in turns."""

    def fit(self, means, pool):
        self.spread = means.std() + np.asarray(pool.X.todense()).std()
        return self

    def for_genes(self, genes):
        fitted = TwoCells()
        fitted.spread = self.spread.reindex(genes, fill_value=0.0)
        return fitted

    def sample(self, target, mean, n_cells):
        sign = np.where(np.arange(n_cells) % 2, 1.0, -1.0)
        return (mean + sign[:, None] * self.spread.to_numpy()).astype(np.float32)


PREDICTORS = {
    "the default": Predictor.default(),
    "the starter": Predictor(PCARidge(4, 0.2), PCARidge(3), GaussianCells(7)),
    "control": Predictor(ControlMean(), ControlMean(), RecentredCells(12)),
    "perturbed mean": Predictor(PerturbedMean(), PerturbedMean(), RecentredCells()),
    "response model for both": Predictor(ResponseModel(5), ResponseModel(own_response=False), GaussianCells()),
    "combinations": Predictor(CombinationModel(5), MedianProportions(), ScaledCells()),
    "effects added up": Predictor(Added(), DeltaMean(), GaussianCells()),
    "own": Predictor(Halfway(), MeanShares(), TwoCells()),
    "own mean alone": Predictor(SureHalfway(), MedianProportions(), RecentredCells()),
}
