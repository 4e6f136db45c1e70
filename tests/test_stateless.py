"""A screen without states of its cells: everything works, with two scores in place of three and no proportions."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import run_infer

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import Predictor, train
from workbench import compare, pictures, validate
from workbench.adopt import adopt
from workbench.cross_validate import cross_validate_challenge, summarise
from workbench.simulate import simulate
from workbench.summary import Summary

ROOT = Path(helpers.__file__).parent
TWO = ["pearson_delta", "mmd"]


@pytest.fixture(scope="module")
def stateless(tmp_path_factory):
    """Simulated cells as a screen of one's own, adopted: 12 knock-outs to learn from, 3 to score on."""
    folder = tmp_path_factory.mktemp("stateless")
    simulate(folder / "made", cells=1200, genes=150, perturbations=15, seed=2, counts=False)
    cells = ad.read_h5ad(folder / "made" / CRUNCH.train_file)
    cells.obs = pd.DataFrame({"perturbation": cells.obs["gene"].astype(str).replace("NC", "control")})
    cells.write_h5ad(folder / "screen.h5ad")
    adopt([folder / "screen.h5ad"], folder / "data", perturbation="perturbation", control="control")
    return folder / "data"


@pytest.fixture(scope="module")
def predicted(stateless, tmp_path_factory):
    """The prediction folder of the local knock-outs, and the model folder."""
    place = tmp_path_factory.mktemp("predicted")
    challenge = helpers.load_challenge(stateless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(str(stateless), str(place / "resources"))
    run_infer(stateless, place / "resources", place / "prediction", challenge.local_targets, challenge.genes_to_predict)
    return place / "prediction", place / "resources"


def test_the_cells_alone_are_predicted(stateless, predicted, tmp_path):
    prediction, resources = predicted
    assert [path.name for path in prediction.iterdir()] == [CRUNCH.prediction_file]
    fitted = Predictor.load(resources / "model.h5")
    assert not fitted.has_proportions
    with pytest.raises(DataError, match="fitted to a screen without states: it predicts no proportions"):
        fitted.predict_proportions(["A"])
    targets, genes = validate.requested_perturbations(stateless, local=True), validate.requested_genes(stateless)
    assert targets == list(helpers.load_challenge(stateless).local_targets)
    assert len(targets) == 3
    assert validate.validate_prediction_folder(prediction, targets, genes, proportions=False) == []
    assert len(validate.validate_prediction_folder(prediction, targets, genes)) == 1, "of a screen with states"
    copied = shutil.copytree(prediction, tmp_path / "prediction")
    (copied / CRUNCH.predicted_proportions_file).write_text("gene\n")
    found = validate.validate_prediction_folder(copied, targets, genes, proportions=False)
    assert ["unexpected file" in problem for problem in found] == [True]


def test_a_model_with_states_has_its_proportions(trained, folder):
    assert Predictor.load(trained / "model.h5").has_proportions
    assert validate.has_states(folder)


def test_two_scores_in_place_of_three(stateless, predicted):
    challenge = helpers.load_challenge(stateless)
    table, starter = compare.compare(challenge, predicted[0])
    assert sorted(table["metric"].unique()) == sorted(TWO)
    assert np.isfinite(table["value"]).all()
    assert list(compare.summary(table).columns) == ["Pearson delta (higher is better)", "MMD (lower is better)"]
    said = Summary(challenge, table)
    assert list(said.scores().index) == TWO
    assert list(said.verdicts().index) == TWO
    assert "L1" not in repr(said)
    assert "L1" not in said._repr_markdown_()
    own = helpers.score(predicted[0] / CRUNCH.prediction_file, None, challenge.local_truth_path, None)
    assert list(helpers.summarise_scores(own).index) == TWO
    figures = [
        pictures.scores(table),
        pictures.data_overview(challenge, helpers.perturbation_stats(challenge.train_path)),
        pictures.umap(
            challenge, *(ad.read_h5ad(p) for p in (predicted[0] / CRUNCH.prediction_file, challenge.local_truth_path))
        ),
    ]
    assert [len(figure.axes) for figure in figures] == [2, 4, 2]
    assert starter.n_obs == 300


def test_true_proportions_want_predicted_ones(demo_folder, predicted):
    truth = demo_folder / CRUNCH.local_truth_file, demo_folder / CRUNCH.local_proportions_file
    with pytest.raises(DataError, match="there are true proportions, but none were predicted"):
        helpers.score(truth[0], None, *truth)


def test_cross_validation_has_two_scores(stateless):
    table = cross_validate_challenge(
        helpers.load_challenge(stateless), n_folds=2, draws=0, only=["PCA-ridge (starter)"]
    )
    assert set(table["metric"]) >= set(TWO)
    assert "l1_distance" not in set(table["metric"])
    assert np.isfinite(summarise(table)["value"]).all()


def test_half_of_what_speaks_of_states_is_not_enough(folder):
    (folder / CRUNCH.proportions_file).unlink()
    with pytest.raises(DataError, match=r"program_proportion\.csv: no such file"):
        helpers.load_challenge(folder)


def test_the_whole_job_on_an_adopted_screen(stateless, tmp_path):
    """`make demo DATA=...`: the notebook under the real client, over demo data with states that were there before."""
    simulate(tmp_path / "data", cells=300, genes=60, perturbations=4)
    done = subprocess.run(
        [sys.executable, "-m", "workbench.demo", "--folder", tmp_path, "--data", stateless],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The submission is valid." in done.stdout
    assert "L1 distance" not in done.stdout
    assert "no shares are predicted" in (tmp_path / "build" / "report.html").read_text()
    assert [path.name for path in (tmp_path / "prediction").iterdir()] == [CRUNCH.prediction_file]
    asked = subprocess.run(
        [sys.executable, "-m", "workbench.validate", tmp_path / "prediction", tmp_path / "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.stdout.strip() == "OK"
