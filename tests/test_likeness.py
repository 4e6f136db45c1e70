"""Do predicted cells pass for real ones: each measure sees the fault that it is made for."""

import numpy as np
import pytest

import helpers
from method import fit_predictor
from workbench.evaluation import likeness


def test_the_forest_tells_shifted_cells_and_not_equal_ones():
    rng = np.random.default_rng(0)
    real, same = rng.poisson(1.0, (2, 80, 30)).astype(float)
    assert likeness.forest_auc(real, same) == pytest.approx(0.5, abs=0.15)
    assert likeness.forest_auc(real, same + 0.3) == pytest.approx(1.0)


def test_pairs_of_genes_agree_until_a_gene_is_shuffled():
    rng = np.random.default_rng(0)
    real = 3.0 + rng.normal(size=(400, 3)) @ rng.normal(size=(3, 20))
    assert likeness.pair_agreement(real, real * 1.7) == pytest.approx(1.0)
    assert likeness.pair_agreement(real, rng.permuted(real, axis=0)) < 0.3


def test_scaled_cells_have_the_zeros_of_real_cells_and_recentred_ones_have_none(challenge):
    predictor = fit_predictor(challenge)
    means = predictor.predict_means(challenge.local_proportions.index)
    rows = helpers.pool_rows(challenge.obs, seed=0)
    recentred = helpers.RecentredCells().fit(helpers.read_cells(challenge.train_path, rows))
    table = likeness.likeness(challenge, means, {"recentred": recentred, "scaled": predictor.cells})
    wide = table.pivot_table(index="generator", columns="metric", values="value")
    assert wide.loc["recentred", "negative"] > 0.1
    assert wide.loc["recentred", "zeros"] < -0.3
    assert wide.loc["scaled", "negative"] == 0
    assert abs(wide.loc["scaled", "zeros"]) < 0.05
    assert wide.loc["scaled", "auc"] < wide.loc["recentred", "auc"]
    assert wide.loc["scaled", "pearson_delta"] == pytest.approx(wide.loc["recentred", "pearson_delta"], abs=5e-3)
    figure = likeness.picture(challenge, means, {"scaled": predictor.cells}, "Demo data")
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["share of zeros per gene, real cells", "mean per gene (log2 units)"]
