"""The local split: what is held out is in no training cell, centroids are the training part's, seeded."""

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


def test_bad_requests(challenge, tmp_path):
    with pytest.raises(DataError, match="no cells of the perturbations to hold out: NOPE"):
        helpers.local_split(challenge.train_path, tmp_path, ["NOPE"])
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="a share between 0 and 1"):
            helpers.local_split(challenge.train_path, tmp_path, share)
    assert not list(tmp_path.iterdir())
