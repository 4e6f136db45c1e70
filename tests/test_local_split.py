"""The local split: what is held out is in no training cell, centroids are the training part's, seeded."""

import shutil

import anndata as ad
import numpy as np
import pytest

import helpers
from helpers import DataError
from method import Predictor

NAMES = {"local_train.h5ad", "local_test_eval.h5ad", "local_test_perturbated_genes.txt"}


def test_named_perturbations(challenge, tmp_path):
    names = challenge.perturbations[[4, 1]]
    test = helpers.local_split(challenge.train_path, tmp_path, names)
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    assert test.tolist() == sorted(names)
    assert (tmp_path / "local_test_perturbated_genes.txt").read_text().split() == sorted(names)
    whole = ad.read_h5ad(challenge.train_path)
    train, held_out = (ad.read_h5ad(tmp_path / name) for name in ("local_train.h5ad", "local_test_eval.h5ad"))
    assert set(held_out.obs["gene"]) == set(names)
    assert train.n_obs + held_out.n_obs == whole.n_obs
    assert not set(train.obs["gene"]) & set(names)
    assert (train.X != whole[train.obs_names].X).nnz == 0
    gene = train.obs["gene"].to_numpy()
    centroids = {"control": gene == "NC", "perturbed": gene != "NC"}
    for name, rows in centroids.items():
        expected = np.asarray(train.X[rows].mean(axis=0)).ravel()
        np.testing.assert_allclose(held_out.uns[f"{name}_centroid_train"], expected, atol=1e-12)


def test_share_caps_and_seed(challenge, tmp_path):
    options = {"max_cells": 12, "n_genes": 50}
    tests = {}
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        tests[folder] = helpers.local_split(challenge.train_path, tmp_path / folder, 0.3, seed=seed, **options)
    parts = {folder: ad.read_h5ad(tmp_path / folder / "local_train.h5ad") for folder in "abc"}
    assert len(tests["a"]) == 4
    assert tests["a"].equals(tests["b"])
    assert (parts["a"].X != parts["b"].X).nnz == 0
    assert not tests["a"].equals(tests["c"])
    assert parts["a"].n_vars == 50
    assert parts["a"].obs["gene"].value_counts().max() == 12
    assert parts["a"].var_names.tolist() != parts["c"].var_names.tolist()


def test_the_split_can_be_scored(challenge, tmp_path):
    names = challenge.perturbations[:2]
    helpers.local_split(challenge.train_path, tmp_path, names)
    stats = helpers.perturbation_stats(tmp_path / "local_train.h5ad")
    obs, genes = helpers.read_labels(tmp_path / "local_train.h5ad", ["gene"])
    pool = helpers.read_cells(tmp_path / "local_train.h5ad", helpers.pool_rows(obs, 0))
    files = tmp_path / "p.h5ad", tmp_path / "p.csv"
    Predictor.default().fit(stats, challenge.proportions, pool).write(*files, names, genes)
    challenge.proportions.loc[names].to_csv(tmp_path / "truth.csv")
    table = helpers.score(*files, tmp_path / "local_test_eval.h5ad", tmp_path / "truth.csv")
    assert table["perturbation"].nunique() == 2


@pytest.mark.parametrize(
    ("held_out", "options", "says"),
    [
        (["NOPE"], {}, "no cells of the perturbations to hold out: NOPE"),
        ([], {}, "held_out names 0 of the 14 perturbations"),
        ("all", {}, "held_out names 14 of the 14 perturbations .* leave at least one to train on"),
        (["NC"], {}, "the control, NC, cannot be held out"),
        (0.0, {}, "held_out is 0.0: a share between 0 and 1"),
        (1.0, {}, "a share between 0 and 1"),
        (1.5, {}, "a share between 0 and 1"),
        (0.999, {}, "leaves some of the 14 perturbations"),
        (float("nan"), {}, "held_out is nan"),
        (np.float32(2), {}, "held_out is 2.0"),
        (3, {}, "held_out is 3: a share"),
        (0.2, {"n_genes": 0}, "n_genes is 0: it must be a whole number of at least 1"),
        (0.2, {"max_cells": 0}, "max_cells is 0: it must be a whole number of at least 1"),
        (0.2, {"max_cells": -3}, "max_cells is -3"),
    ],
)
def test_bad_requests(challenge, tmp_path, held_out, options, says):
    names = challenge.perturbations if isinstance(held_out, str) else held_out
    with pytest.raises(DataError, match=says):
        helpers.local_split(challenge.train_path, tmp_path, names, **options)
    assert not list(tmp_path.iterdir())


def test_a_single_name_is_one_perturbation(challenge, tmp_path):
    name = challenge.perturbations[3]
    assert helpers.local_split(challenge.train_path, tmp_path, name).tolist() == [name]


def test_the_source_is_never_overwritten(challenge, tmp_path):
    path = tmp_path / "local_train.h5ad"
    shutil.copy(challenge.train_path, path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"local_train\.h5ad: it would be overwritten; choose another folder"):
        helpers.local_split(path, tmp_path, 0.3)
    assert path.read_bytes() == before


def test_all_three_files_or_none(challenge, tmp_path):
    helpers.local_split(challenge.train_path, tmp_path, 0.3, seed=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "local_test_perturbated_genes.txt").unlink()
    (tmp_path / "local_test_perturbated_genes.txt").mkdir()
    with pytest.raises(DataError, match=r"local_test_perturbated_genes\.txt is a folder"):
        helpers.local_split(challenge.train_path, tmp_path, 0.3, seed=2)
    for name in NAMES - {"local_test_perturbated_genes.txt"}:
        assert (tmp_path / name).read_bytes() == before[name]
    assert {path.name for path in tmp_path.iterdir()} == NAMES
