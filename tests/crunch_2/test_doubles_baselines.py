"""The published starter to the letter, and the other baselines beside the model."""

import numpy as np
import pandas as pd
import pytest

from combinations import CombinationModel, DeltaMean
from contract import CRUNCH
from helpers import load_challenge
from method import Predictor, fit_predictor
from workbench import compare
from workbench.simulate import simulate


def transcribed(means, cells, target):
    """What the published starter predicts, from the means of perturbations and their numbers of cells."""
    parts = {name: name.split("+") for name in means.index}

    def centroid(n):
        names = [name for name in means.index if len(parts[name]) == n and set(parts[name]) != {"NC"}]
        return np.average(means.loc[names], axis=0, weights=cells[names])

    def of_gene(gene):
        for name in (gene, f"{gene}+NC", f"NC+{gene}", f"{gene}+{gene}"):
            if name in means.index:
                return means.loc[name].to_numpy()
        held = [name for name in means.index if gene in parts[name]]
        return means.loc[held].mean(axis=0).to_numpy() if held else centroid(1)

    genes = target.split("+")
    if len(genes) == 1:
        return centroid(1)
    return centroid(2) + sum(of_gene(gene) - centroid(1) for gene in genes)


def test_the_published_starter_to_the_letter():
    rng = np.random.default_rng(0)
    names = ["NC", "NC+NC", "A", "B+NC", "C+C", "A+B", "A+C", "C+D", "A+C+D", "NC+E", "E+E", "F", "F+F", "F+NC"]
    means = pd.DataFrame(rng.normal(size=(len(names), 7)), index=names)
    cells = pd.Series(rng.integers(5, 50, len(names)), index=names)
    fitted = DeltaMean().fit(means, cells)
    for target in ("B+C", "A+D", "E+F", "D+Z", "A", "B+E"):
        expected = transcribed(means, cells, target)
        np.testing.assert_allclose(fitted.predict([target]).loc[target], expected, atol=1e-12)


def test_the_mean_of_a_kind_is_the_reference(stats):
    fitted = compare.KindMean().fit(stats.mean, stats.n_cells)
    predicted = fitted.predict(["X", "X+Y", "X+NC"])
    centroids = stats.centroids()
    for name, kind in (("X", "single"), ("X+Y", "double"), ("X+NC", "double")):
        np.testing.assert_allclose(predicted.loc[name], centroids[f"{kind}_perturbed_centroid_train"], atol=1e-9)


def test_the_model_and_all_baselines_stand_in_one_table(challenge, trained, tmp_path):
    fitted = Predictor.load(trained / "model.h5")
    files = tmp_path / CRUNCH.prediction_file, tmp_path / CRUNCH.predicted_proportions_file
    fitted.write(*files, challenge.local_targets, challenge.genes_to_predict)
    table, starter = compare.compare(challenge, tmp_path)
    means = table.groupby(["method", "metric"])["value"].mean()
    rows = [compare.CONTROL, "perturbed mean", compare.ADDED, compare.DELTA_MEAN, compare.YOURS, compare.CEILING]
    assert list(table["method"].unique()) == rows
    assert means["perturbed mean", "pearson_delta"] == 0
    for beaten in ("perturbed mean", compare.CONTROL, compare.DELTA_MEAN):
        assert means[compare.YOURS, "pearson_delta"] > means[beaten, "pearson_delta"]
    assert means[compare.DELTA_MEAN, "mmd"] > 1 > 10 * means[compare.YOURS, "mmd"]
    assert np.ptp(starter.X, axis=0).max() > 0
    assert np.ptp(starter.X[:100], axis=0).max() == 0


@pytest.mark.parametrize(("rule", "low", "high"), [("additive", 0.0, 0.25), ("masking", 0.5, 1.0)])
def test_the_model_finds_how_the_cells_were_combined(tmp_path, rule, low, high):
    shares = {"masking": float(rule == "masking"), "synergistic": 0.0}
    simulate(tmp_path / "data", counts=False, **shares)
    model = fit_predictor(load_challenge(tmp_path / "data")).expression
    assert isinstance(model, CombinationModel)
    assert low <= model.found_["blend"] <= high
