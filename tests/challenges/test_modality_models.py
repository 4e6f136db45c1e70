"""Modality prediction: reductions, maps, the adversarial recipe."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from simulated_pairs import TINY, simulated, split

from challenges.common import load_model, save_model
from challenges.modality import baselines, models, training
from challenges.modality.models import ReducedModel
from challenges.modality.reduce import Reduction


@pytest.fixture
def files():
    return split(simulated())


@pytest.fixture
def matrices(files):
    return files["train_mod1"].X, files["train_mod2"].X, np.zeros(60, int), files["test_mod1"].X, files["test_mod2"].X


@pytest.fixture
def quick(monkeypatch):
    """The adversarial models with few steps."""
    small = {name: getattr(TINY, name) for name in ("generator_steps", "critic_steps", "width", "batch", "repeats")}
    monkeypatch.setattr(models, "RECIPES", {name: replace(recipe, **small) for name, recipe in models.RECIPES.items()})


def rmse(prediction, truth):
    return float(np.sqrt(((prediction.dense() - truth.toarray()) ** 2).mean()))


def test_a_reduction_weights_rare_peaks_and_expands_within_what_training_saw(matrices):
    source, target = matrices[:2]
    plain, weighted = Reduction.fit(source, 5, 0), Reduction.fit(source, 5, 0, accessibility=True)
    assert (plain.weight == 1).all()
    n_open = np.asarray((source > 0).sum(axis=0)).ravel()
    assert np.allclose(weighted.weight, np.log1p(60 / np.maximum(n_open, 1)))
    full = Reduction.fit(target, 11, 0)
    wild = full.expand(full.coordinates(target) * 100)
    assert (wild <= target.max(axis=0).toarray() + 1e-6).all()
    assert np.allclose(full.expand(np.tile(full.centre(), (2, 1))), full.mean, atol=1e-5)


def test_every_model_beats_the_mean_where_there_is_something_to_learn(matrices, quick):
    source, target, batches, asked, truth = matrices
    floor = rmse(baselines.MeanPerFeature().fit(source, target, batches).predict(asked), truth)
    for name in ("knn", "ridge", "kernel_ridge", "adversarial"):
        fitted = ReducedModel(name).fit(source, target, batches)
        assert fitted.shrink_ > 0.5, name
        assert rmse(fitted.predict(asked), truth) < 0.7 * floor, name


def test_no_model_is_worse_than_the_mean_where_there_is_nothing_to_learn(matrices, quick):
    source, target = matrices[0], matrices[1][np.random.default_rng(5).permutation(60)]
    asked, truth = matrices[3:]
    floor = rmse(baselines.MeanPerFeature().fit(source, target, matrices[2]).predict(asked), truth)
    for name in models.METHODS:
        fitted = ReducedModel(name).fit(source, target, matrices[2])
        assert rmse(fitted.predict(asked), truth) < 1.02 * floor, name


def test_the_baselines_are_what_their_names_say(matrices):
    source, target, batches, asked, _ = matrices
    found = {
        name: models.make_model(name, accessibility=False, seed=0, device="cpu")
        .fit(source, target, batches)
        .predict(asked)
        .dense()
        for name in baselines.BASELINES
    }
    assert (found["zeros"] == 0).all()
    assert found["zeros"].shape == (20, 12)
    assert np.allclose(found["mean_per_feature"], target.toarray().mean(axis=0), atol=1e-5)
    known = {row.tobytes() for row in target.toarray()}
    assert all(row.tobytes() in known for row in found["random_cell"])
    assert len({row.tobytes() for row in found["random_cell"]}) > 5


@pytest.mark.parametrize("name", models.METHODS)
def test_a_model_comes_back_from_its_file_the_same_bytes_for_the_same_seed(tmp_path, matrices, quick, name):
    source, target, batches, asked, _ = matrices
    features = tuple(pd.Index([f"{kind}{i}" for i in range(n)]) for kind, n in (("S", 30), ("T", 12)))
    for file in ("a.h5", "b.h5"):
        fitted = ReducedModel(name, accessibility=True, seed=3, loss="hinge").fit(source, target, batches, features)
        save_model(tmp_path / file, fitted, mod1="ATAC")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    again, about = load_model(tmp_path / "a.h5", ReducedModel)
    assert about == {"mod1": "ATAC"}
    assert list(again.source_features_) == list(features[0])
    assert list(again.target_features_) == list(features[1])
    assert np.array_equal(again.predict(asked).dense(), fitted.predict(asked).dense())
    assert np.allclose(again.predict(asked[:1]).dense(), fitted.predict(asked).dense()[:1], atol=1e-5)


def test_blocks_and_columns_are_parts_of_the_whole(matrices):
    source, target, batches, asked, _ = matrices
    found = ReducedModel("ridge").fit(source, target, batches).predict(asked)
    assert np.allclose(found.block(slice(5, 9)), found.dense()[5:9], atol=1e-6)
    assert np.allclose(found.columns(np.array([3, 1])), found.dense()[:, [3, 1]], atol=1e-6)


def coordinates(n=65, seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 6))
    return Z, np.tanh(2 * Z[:, :3]) + rng.normal(0, 0.1, (n, 3))


def test_the_critic_takes_its_steps_and_the_rates_fall_to_zero(monkeypatch):
    losses, optimisers = [], []
    original, Adam = training._critic_loss, torch.optim.Adam
    monkeypatch.setattr(training, "_critic_loss", lambda *inputs: losses.append(1) or original(*inputs))
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: optimisers.append(Adam(*a, **k)) or optimisers[-1])
    training.fit_adversarial(*coordinates(), replace(TINY, generator_steps=7, critic_steps=3, repeats=1), 0)
    assert len(losses) == 21
    assert [optimiser.param_groups[0]["lr"] for optimiser in optimisers] == [0.0, 0.0]
    assert {len(optimiser.param_groups[0]["params"]) for optimiser in optimisers} == {6}


def test_without_pairs_nothing_ties_the_output_to_the_cell():
    Z, T = coordinates(200)
    tied = {}
    for name, whole in models.RECIPES.items():
        recipe = replace(whole, generator_steps=150, critic_steps=2, width=32, batch=32, repeats=1, learning_rate=5e-3)
        found = training.apply_adversarial(training.fit_adversarial(Z[:150], T[:150], recipe, 0), Z[150:], recipe)
        tied[name] = np.corrcoef(found.ravel(), T[150:].ravel())[0, 1]
    assert tied["adversarial"] > 0.8
    assert tied["adversarial"] > tied["adversarial_unpaired"] > tied["adversarial_source"] + 0.2


def test_hinge_is_another_loss_and_the_seed_is_all_that_is_random():
    Z, T = coordinates()  # 65 cells: one more than four whole batches of 16
    found = {}
    for key, loss, seed in (("a", "wgan-gp", 0), ("b", "wgan-gp", 0), ("c", "wgan-gp", 1), ("d", "hinge", 0)):
        recipe = replace(TINY, loss=loss)
        found[key] = training.apply_adversarial(training.fit_adversarial(Z, T, recipe, seed), Z, recipe)
        assert np.isfinite(found[key]).all()
    assert np.array_equal(found["a"], found["b"])
    assert not np.allclose(found["a"], found["c"])
    assert not np.allclose(found["a"], found["d"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["adversarial", "adversarial_source"])
def test_a_gpu_trains_the_adversarial_models_as_well(matrices, quick, name):
    source, target, batches, test_source, test_target = matrices
    wanted = test_target.toarray()
    here, there = (
        ReducedModel(name, device=device).fit(source, target, batches).predict(test_source).dense()
        for device in ("cpu", "cuda")
    )
    error, same = ((found - wanted).std() for found in (here, there))
    assert same == pytest.approx(error, rel=0.1)
