"""Modality prediction: files in and out, reductions, models, the adversarial recipe, scores, the command line."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from conftest import REAL_DATA
from scipy.stats import pearsonr

from challenges.modality import __main__ as cli
from challenges.modality import adversarial, data, evaluate, models
from challenges.modality.adversarial import Recipe
from challenges.modality.models import ReducedModel
from challenges.modality.reduce import Reduction
from helpers import DataError

TINY = Recipe(generator_steps=25, critic_steps=1, width=16, batch=16, repeats=2, dropout=0.0)


def simulated(n=80, n_source=30, n_target=12, noise=0.3, batches=1, seed=0, mod2="ADT"):
    """Cells whose two modalities share three programs; about half of the source's values are zero."""
    rng = np.random.default_rng(seed)
    programs = rng.normal(size=(n, 3))
    source = np.maximum(programs @ rng.normal(size=(3, n_source)) + rng.normal(0, noise, (n, n_source)), 0)
    target = 3 + programs @ rng.normal(size=(3, n_target)) + rng.normal(0, noise, (n, n_target))
    obs = pd.DataFrame({"batch": [f"b{i * batches // n}" for i in range(n)]}, [f"C{i:03}" for i in range(n)])
    return [
        ad.AnnData(
            sp.csr_matrix(values.astype(np.float32)),
            obs=obs,
            var=pd.DataFrame({"feature_types": kind}, [f"{kind}{i}" for i in range(values.shape[1])]),
        )
        for kind, values in (("GEX", source), (mod2, target))
    ]


def split(pair, n_train=60):
    return {
        f"{part}_mod{i + 1}": cells[rows].copy()
        for i, cells in enumerate(pair)
        for part, rows in (("train", slice(0, n_train)), ("test", slice(n_train, None)))
    }


def write(folder, files, name="set"):
    for part, cells in files.items():
        cells.write_h5ad(folder / f"{name}.{part}.h5ad")
    return folder


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


# ---------------------------------------------------------------------------------------------------------------------
# The door
# ---------------------------------------------------------------------------------------------------------------------


def test_cells_in_another_order_are_aligned_by_name(tmp_path, files, capsys):
    write(tmp_path, files)
    straight = data.read_pair(tmp_path)
    files["train_mod2"] = files["train_mod2"][::-1].copy()
    aligned = data.read_pair(write(tmp_path, files))
    assert "the training files: cells stand in another order; aligned by name" in capsys.readouterr().out
    assert list(aligned.train_target.obs_names) == list(aligned.train_source.obs_names)
    assert (aligned.train_target.X != straight.train_target.X).nnz == 0
    assert sp.issparse(aligned.train_source.X)


def test_other_cells_are_refused(tmp_path, files):
    files["train_mod2"] = files["train_mod2"][1:].copy()
    with pytest.raises(DataError, match="the training files: 1 cells are in one of the two only, for instance C000"):
        data.read_pair(write(tmp_path, files))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ("CRISPR", "train_mod2.h5ad: unknown feature type 'CRISPR'; known: GEX, ATAC, ADT"),
        (["ADT"] * 6 + ["GEX"] * 6, "several feature types in one file: ADT, GEX"),
    ],
)
def test_feature_types_that_are_unknown_or_mixed_are_refused(tmp_path, files, types, message):
    files["train_mod2"].var["feature_types"] = types
    with pytest.raises(DataError, match=message):
        data.read_pair(write(tmp_path, files))


def test_a_nan_is_refused_with_its_cell(tmp_path, files):
    files["train_mod1"].X.data[files["train_mod1"].X.indptr[7]] = np.nan
    with pytest.raises(DataError, match=r"train_mod1.h5ad: NaN or infinite values in cells C007$"):
        data.read_pair(write(tmp_path, files))


def test_names_that_come_twice_are_refused(tmp_path, files):
    files["train_mod1"].obs_names = ["C000", *files["train_mod1"].obs_names[:-1]]
    with pytest.raises(DataError, match="cells that come twice: C000"):
        data.read_pair(write(tmp_path, files))


def test_test_features_are_those_of_training_by_name(tmp_path, files, capsys):
    straight = data.read_pair(write(tmp_path, files)).test_source
    extra = ad.AnnData(
        sp.csr_matrix(np.ones((20, 1), np.float32)),
        obs=files["test_mod1"].obs,
        var=pd.DataFrame({"feature_types": "GEX"}, ["NEW"]),
    )
    files["test_mod1"] = ad.concat([files["test_mod1"][:, ::-1], extra], axis=1, merge="first")
    found = data.read_pair(write(tmp_path, files)).test_source
    assert "1 features that training did not have are left out: NEW" in capsys.readouterr().out
    assert (found.X != straight.X).nnz == 0
    files["test_mod1"] = files["test_mod1"][:, 3:].copy()
    with pytest.raises(DataError, match="GEX: 3 features of training are missing: GEX27, GEX28, GEX29"):
        data.read_pair(write(tmp_path, files))


def test_an_empty_cell_and_a_constant_feature_are_said_and_predicted(tmp_path, capsys):
    source, target = simulated()
    X, T = source.X.toarray(), target.X.toarray()
    X[3], X[70], X[:, 4], T[:, 2] = 0, 0, 0, 1.5
    source.X, target.X = sp.csr_matrix(X), sp.csr_matrix(T)
    pair = data.read_pair(write(tmp_path, split([source, target])))
    said = capsys.readouterr().out
    assert "GEX, training: 1 empty cells: C003" in said
    assert "GEX, test: 1 empty cells: C070" in said
    assert "ADT, training: 1 constant features: ADT2" in said
    for name in ("knn", "ridge", "kernel_ridge"):
        found = ReducedModel(name).fit(pair.train_source.X, pair.train_target.X, np.zeros(60, int))
        values = found.predict(pair.test_source.X).dense()
        assert np.isfinite(values).all()
        assert np.allclose(values[:, 2], 1.5)


def test_normalized_comes_before_log_norm_before_x_and_counts_are_never_read(tmp_path, files):
    files["train_mod1"].layers["counts"] = files["train_mod1"].X * 100
    files["train_mod1"].layers["log_norm"] = files["train_mod1"].X * 2
    files["train_mod2"].layers["log_norm"] = files["train_mod2"].X * 2
    files["train_mod2"].layers["normalized"] = files["train_mod2"].X * 3
    pair = data.read_pair(write(tmp_path, files))
    assert np.allclose(pair.train_source.X.sum(), 2 * files["train_mod1"].X.sum())
    assert np.allclose(pair.train_target.X.sum(), 3 * files["train_mod2"].X.sum())


def test_too_few_cells_no_files_and_a_broken_file_are_said(tmp_path, files):
    with pytest.raises(DataError, match=r"no .h5ad files; give the folder"):
        data.read_pair(tmp_path)
    write(tmp_path, split(simulated(25), n_train=10))
    with pytest.raises(DataError, match="10 training cells; at least 20 are needed"):
        data.read_pair(tmp_path)
    (tmp_path / "set.train_mod1.h5ad").write_bytes(b"no hdf5")
    with pytest.raises(DataError, match="not an h5ad file, or a broken one"):
        data.read_pair(tmp_path)
    (tmp_path / "set.train_mod1.h5ad").unlink()
    with pytest.raises(DataError, match=r"neither .*train_mod1.h5ad and .*train_mod2.h5ad nor two paired files"):
        data.read_pair(tmp_path)


def test_the_direction_is_that_of_the_files_or_the_one_asked_for(tmp_path, files):
    write(tmp_path, files)
    assert (data.read_pair(tmp_path).mod1, data.read_pair(tmp_path).mod2) == ("GEX", "ADT")
    for asked in ({"mod1": "ADT", "mod2": "GEX"}, {"mod1": "ADT"}, {"mod2": "GEX"}):
        back = data.read_pair(tmp_path, **asked)
        assert (back.mod1, back.mod2, back.test_source.n_vars) == ("ADT", "GEX", 12)
    with pytest.raises(DataError, match="holds GEX and ADT, not GEX to ATAC"):
        data.read_pair(tmp_path, "GEX", "ATAC")


def test_two_paired_files_do_not_say_a_direction_and_several_sets_are_told_apart(tmp_path, files):
    gex, atac = simulated(mod2="ATAC")
    for cells, name in ((gex, "gex"), (atac, "atac")):
        del cells.var["feature_types"]
        cells.write_h5ad(tmp_path / f"multiome_{name}.h5ad")
    with pytest.raises(DataError, match="say --mod1, what to predict from"):
        data.read_pair(tmp_path)
    pair = data.read_pair(tmp_path, "GEX")
    assert (pair.mod1, pair.mod2, pair.test_source, pair.dataset_id) == ("GEX", "ATAC", None, "multiome")
    write(tmp_path, files)
    assert data.read_pair(tmp_path, "GEX", "ATAC").train_target.n_obs == 80
    assert data.read_pair(tmp_path, "GEX", "ADT").train_target.n_obs == 60
    with pytest.raises(DataError, match="several data sets: multiome_, set"):
        data.read_pair(tmp_path, "GEX")


def test_of_accessibility_the_most_open_peaks_of_training_are_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "MOST_PEAKS", 2)
    source, target = simulated(mod2="ATAC")
    T = (np.random.default_rng(0).random((80, 12)) < 0.3).astype(np.float32)
    T[:60, 5], T[:60, 9], T[60:, 0] = 1, 1, 1
    target.X = sp.csr_matrix(T)
    pair = data.read_pair(write(tmp_path, split([source, target])))
    assert list(pair.train_target.var_names) == list(pair.test_target.var_names) == ["ATAC5", "ATAC9"]
    assert "the 2 most accessible of 12 peaks are predicted" in capsys.readouterr().out


def test_whole_batches_are_held_out_and_one_batch_is_said(tmp_path):
    for n_batches, said in ((3, "whole batches, in 3 folds"), (1, "there is one batch")):
        pair = simulated(batches=n_batches)
        splits, how = data.held_out(data.read_pair(write(tmp_path, dict(zip(data.PARTS, pair, strict=False)))))
        assert said in how
        for one in splits:
            assert not set(one.train_source.obs_names) & set(one.test_source.obs_names)
            if n_batches > 1:
                assert not set(one.train_source.obs["batch"]) & set(one.test_source.obs["batch"])
        assert sum(one.test_source.n_obs for one in splits) == (80 if n_batches > 1 else 20)


def test_batches_that_only_the_target_names_are_held_out(tmp_path):
    source, target = simulated(batches=2)
    del source.obs["batch"]
    source = source[::-1].copy()
    splits, how = data.held_out(data.read_pair(write(tmp_path, {"train_mod1": source, "train_mod2": target})))
    assert "whole batches, in 2 folds" in how
    for one in splits:
        assert list(one.test_source.obs["batch"]) == list(target.obs.loc[one.test_source.obs_names, "batch"])


def test_a_batch_that_leaves_too_few_cells_is_not_held_out(tmp_path, files):
    source, target = simulated()
    for cells in (source, target):
        cells.obs["batch"] = ["b0", *["b1"] * 79]
    (pair,), how = data.held_out(data.read_pair(write(tmp_path, {"train_mod1": source, "train_mod2": target})))
    assert "without one of the batches too few cells are left" in how
    assert pair.train_source.n_obs == 60
    found = ReducedModel("knn").fit(pair.train_source.X, pair.train_target.X, data.batches_of(pair.train_source))
    assert np.isfinite(found.predict(pair.test_source.X).dense()).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 30), (80, 0), (80, 1)])
def test_a_file_without_cells_or_features_is_refused(tmp_path, files, rows, columns):
    files["train_mod1"] = files["train_mod1"][:rows, :columns].copy()
    with pytest.raises(DataError, match=f"set.train_mod1.h5ad: {min(rows, 60)} cells x {columns} features; at least"):
        data.read_pair(write(tmp_path, files))


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path, files):
    write(tmp_path, files)
    with pytest.raises(DataError, match=r"train_mod1.h5ad: a file; give the folder"):
        data.read_pair(tmp_path / "set.train_mod1.h5ad")


def test_the_test_files_answers_come_first_and_new_batches_are_named(tmp_path):
    source, target = simulated(batches=4)
    (pair,), how = data.held_out(data.read_pair(write(tmp_path, split([source, target]))))
    assert how == "the 20 cells of the test files, of batches that training did not have: b3"
    assert pair.test_source.n_obs == 20


def test_inner_folds_are_whole_batches_where_there_are_several():
    batches = np.repeat([0, 1, 2], 10)
    for train, test in models.inner_folds(batches, 0):
        assert not set(batches[train]) & set(batches[test])
    folds = list(models.inner_folds(np.zeros(30, int), 0))
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(30))


def test_a_prediction_is_written_by_blocks_and_read_by_anndata(tmp_path, monkeypatch, files):
    monkeypatch.setattr(data, "BLOCK", 30)  # two cells at a time
    values = np.random.default_rng(0).random((20, 12)).astype(np.float32)
    features = files["test_mod2"].var_names
    asked = []

    def block(rows):
        asked.append(rows)
        return values[rows]

    obs, var = files["test_mod1"].obs.assign(size_factors=2.0), files["test_mod2"].var.assign(gene_ids="E1")
    data.write_prediction(tmp_path / "p.h5ad", obs, var, "ADT", block, {"dataset_id": "set", "method_id": "ridge"})
    found = ad.read_h5ad(tmp_path / "p.h5ad")
    assert len(asked) == 10
    assert np.array_equal(found.X, values)
    assert np.array_equal(found.layers["normalized"], values)
    assert list(found.obs_names) == list(files["test_mod1"].obs_names)
    assert list(found.var_names) == list(features)
    assert (found.obs["size_factors"] == 2).all()
    assert (found.var["gene_ids"] == "E1").all()
    assert set(found.var["feature_types"]) == {"ADT"}
    assert dict(found.uns) == {"dataset_id": "set", "method_id": "ridge"}


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


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


def rmse(prediction, truth):
    return float(np.sqrt(((prediction.dense() - truth.toarray()) ** 2).mean()))


def test_every_model_beats_the_mean_where_there_is_something_to_learn(matrices, quick):
    source, target, batches, asked, truth = matrices
    floor = rmse(models.MeanPerFeature().fit(source, target, batches).predict(asked), truth)
    for name in ("knn", "ridge", "kernel_ridge", "adversarial"):
        fitted = ReducedModel(name).fit(source, target, batches)
        assert fitted.shrink_ > 0.5, name
        assert rmse(fitted.predict(asked), truth) < 0.7 * floor, name


def test_no_model_is_worse_than_the_mean_where_there_is_nothing_to_learn(matrices, quick):
    source, target = matrices[0], matrices[1][np.random.default_rng(5).permutation(60)]
    asked, truth = matrices[3:]
    floor = rmse(models.MeanPerFeature().fit(source, target, matrices[2]).predict(asked), truth)
    for name in models.MODELS:
        fitted = ReducedModel(name).fit(source, target, matrices[2])
        assert rmse(fitted.predict(asked), truth) < 1.02 * floor, name


def test_the_baselines_are_what_their_names_say(matrices):
    source, target, batches, asked, _ = matrices
    found = {
        name: models.make_model(name, accessibility=False, seed=0, device="cpu")
        .fit(source, target, batches)
        .predict(asked)
        .dense()
        for name in models.BASELINES
    }
    assert (found["zeros"] == 0).all()
    assert found["zeros"].shape == (20, 12)
    assert np.allclose(found["mean_per_feature"], target.toarray().mean(axis=0), atol=1e-5)
    known = {row.tobytes() for row in target.toarray()}
    assert all(row.tobytes() in known for row in found["random_cell"])
    assert len({row.tobytes() for row in found["random_cell"]}) > 5


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_comes_back_from_its_bundle_the_same_bytes_for_the_same_seed(tmp_path, matrices, quick, name):
    source, target, batches, asked, _ = matrices
    names = {"source": pd.Index(["a"]), "target": pd.Index(["b"])}
    for file in ("a.h5", "b.h5"):
        fitted = ReducedModel(name, accessibility=True, seed=3, loss="hinge").fit(source, target, batches)
        fitted.save(tmp_path / file, {"mod1": "ATAC"}, names)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    again, about, found = ReducedModel.load(tmp_path / "a.h5")
    assert about == {"mod1": "ATAC"}
    assert list(found["target"]) == ["b"]
    assert np.array_equal(again.predict(asked).dense(), fitted.predict(asked).dense())
    assert np.allclose(again.predict(asked[:1]).dense(), fitted.predict(asked).dense()[:1], atol=1e-5)


def test_blocks_and_columns_are_parts_of_the_whole(matrices):
    source, target, batches, asked, _ = matrices
    found = ReducedModel("ridge").fit(source, target, batches).predict(asked)
    assert np.allclose(found.block(slice(5, 9)), found.dense()[5:9], atol=1e-6)
    assert np.allclose(found.columns(np.array([3, 1])), found.dense()[:, [3, 1]], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The adversarial recipe
# ---------------------------------------------------------------------------------------------------------------------


def coordinates(n=65, seed=0):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 6))
    return Z, np.tanh(2 * Z[:, :3]) + rng.normal(0, 0.1, (n, 3))


def test_the_critic_takes_its_steps_and_the_rates_fall_to_zero(monkeypatch):
    losses, optimisers = [], []
    original, Adam = adversarial._critic_loss, torch.optim.Adam
    monkeypatch.setattr(adversarial, "_critic_loss", lambda *inputs: losses.append(1) or original(*inputs))
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: optimisers.append(Adam(*a, **k)) or optimisers[-1])
    adversarial.fit_adversarial(*coordinates(), replace(TINY, generator_steps=7, critic_steps=3, repeats=1), 0)
    assert len(losses) == 21
    assert [optimiser.param_groups[0]["lr"] for optimiser in optimisers] == [0.0, 0.0]
    assert {len(optimiser.param_groups[0]["params"]) for optimiser in optimisers} == {6}


def test_without_pairs_nothing_ties_the_output_to_the_cell():
    Z, T = coordinates(200)
    tied = {}
    for name, whole in models.RECIPES.items():
        recipe = replace(whole, generator_steps=150, critic_steps=2, width=32, batch=32, repeats=1, learning_rate=5e-3)
        found = adversarial.apply_adversarial(adversarial.fit_adversarial(Z[:150], T[:150], recipe, 0), Z[150:], recipe)
        tied[name] = np.corrcoef(found.ravel(), T[150:].ravel())[0, 1]
    assert tied["adversarial"] > 0.8
    assert tied["adversarial"] > tied["adversarial_unpaired"] > tied["adversarial_source"] + 0.2


def test_hinge_is_another_loss_and_the_seed_is_all_that_is_random():
    Z, T = coordinates()  # 65 cells: one more than four whole batches of 16
    found = {}
    for key, loss, seed in (("a", "wgan-gp", 0), ("b", "wgan-gp", 0), ("c", "wgan-gp", 1), ("d", "hinge", 0)):
        recipe = replace(TINY, loss=loss)
        found[key] = adversarial.apply_adversarial(adversarial.fit_adversarial(Z, T, recipe, seed), Z, recipe)
        assert np.isfinite(found[key]).all()
    assert np.array_equal(found["a"], found["b"])
    assert not np.allclose(found["a"], found["c"])
    assert not np.allclose(found["a"], found["d"])


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(tmp_path, files):
    pairs, _ = data.held_out(data.read_pair(write(tmp_path, files)))
    return evaluate.evaluate(pairs, ["ridge"], 0, "cpu")


def value(table, method, metric):
    return table[(table["method"] == method) & (table["metric"] == metric)].iloc[0]


def test_the_scores_are_those_of_their_definitions(scored, matrices):
    P, T = scored.predictions["ridge"].dense().astype(float), matrices[4].toarray().astype(float)
    floor = np.sqrt(((matrices[1].toarray().mean(axis=0) - T) ** 2).mean())
    rmse_ = np.sqrt(((P - T) ** 2).mean())
    wanted = {
        "RMSE": rmse_,
        evaluate.GAIN: 100 * (floor - rmse_) / floor,
        "MAE": np.abs(P - T).mean(),
        "Pearson per feature": np.mean([pearsonr(P[:, i], T[:, i])[0] for i in range(12)]),
        "Pearson per cell": np.mean([pearsonr(P[i], T[i])[0] for i in range(20)]),
        "Pearson overall": pearsonr(P.ravel(), T.ravel())[0],
    }
    for metric, number in wanted.items():
        row = value(scored.table, "ridge", metric)
        assert row["value"] == pytest.approx(number, abs=1e-5), metric
        assert row["low"] < row["value"] < row["high"]
        assert row["n"] == (12 if metric == "Pearson per feature" else 20)
    assert list(scored.table.columns) == ["method", "metric", "value", "low", "high", "n"]
    assert list(scored.table["method"].unique()) == ["zeros", "mean_per_feature", "random_cell", "ridge"]


def test_a_constant_prediction_has_no_correlation_and_the_mean_gains_nothing(scored):
    assert value(scored.table, "zeros", "Pearson overall")["value"] == 0
    assert value(scored.table, "mean_per_feature", "Pearson per feature")["value"] == 0
    assert value(scored.table, "mean_per_feature", evaluate.GAIN)["value"] == 0


def test_intervals_are_over_batches_where_several_are_held_out(tmp_path):
    cells = dict(zip(data.PARTS, simulated(batches=5), strict=False))
    pairs, _ = data.held_out(data.read_pair(write(tmp_path, cells)))
    scores = evaluate.evaluate(pairs, ["ridge"], 0, "cpu")
    assert value(scores.table, "ridge", "RMSE")["n"] == 5
    assert value(scores.table, "mean_per_feature", "Pearson per feature")["value"] == pytest.approx(0, abs=1e-9)
    errors = pd.Series(np.arange(6.0))
    alone = evaluate._interval(errors, np.arange(6))
    assert alone["high"] - alone["value"] == pytest.approx(2.5706 * errors.sem(), rel=1e-4)
    together = evaluate._interval(errors, np.repeat([0, 1, 2], 2))
    assert (together["value"], together["n"]) == (2.5, 3)
    assert together["high"] - together["value"] == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def test_from_files_to_prediction_and_table(tmp_path, files, quick, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    where = ["--data", str(write(folder, files))]
    cli.main(["prepare", *where])
    assert "evaluate holds out the 20 cells of the test files" in capsys.readouterr().out
    for name in ("kernel_ridge", "adversarial"):
        bundle, out = ["--model", name, "--work", str(tmp_path / "work")], tmp_path / f"{name}.h5ad"
        cli.main(["train", *where, *bundle])
        cli.main(["predict", *where, *bundle, "--out", str(out)])
        found = ad.read_h5ad(out)
        assert found.shape == (20, 12)
        assert found.uns["method_id"] == name
    cli.main(
        [
            "evaluate",
            *where,
            "--model",
            "ridge",
            "adversarial",
            "adversarial_unpaired",
            "--loss",
            "hinge",
            "--out",
            str(tmp_path / "out" / "table.csv"),
            "--pictures",
            str(tmp_path / "pictures"),
        ]
    )
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == 6 * 6  # methods with the baselines x metrics
    assert table.notna().all().all()
    for name in ("GEX_ADT_cells.png", "GEX_ADT_features.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_said_without_a_traceback(tmp_path, files):
    folder = tmp_path / "data"
    folder.mkdir()
    where = ["--data", str(write(folder, files)), "--work", str(tmp_path / "work"), "--model", "ridge"]
    with pytest.raises(SystemExit, match=r"error: .*GEX_ADT_ridge.h5: no such bundle; train first"):
        cli.main(["predict", *where])
    cli.main(["train", *where])
    for part in ("test_mod1", "test_mod2"):
        (folder / f"set.{part}.h5ad").unlink()
    with pytest.raises(SystemExit, match=r"error: .*no test file with GEX, so there are no cells to predict"):
        cli.main(["predict", *where])
    with pytest.raises(SystemExit):
        cli.main(["train", *where, "--seed", "-1"])


# ---------------------------------------------------------------------------------------------------------------------
# Real cells
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "most"), [(("GEX", "ADT"), 0.555), (("ADT", "GEX"), 0.480)])
def test_real_cells_of_another_batch_are_predicted_better_than_by_the_reference(direction, most):
    folder = REAL_DATA / "modalities"
    if not folder.exists():
        pytest.skip(f"REAL CELLS NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    pairs, how = data.held_out(data.read_pair(folder, *direction))
    assert "289 cells of the test files, of batches that training did not have" in how
    table = evaluate.evaluate(pairs, ["kernel_ridge"], 0, "cpu").table
    assert value(table, "kernel_ridge", "RMSE")["value"] < most
    assert value(table, "kernel_ridge", evaluate.GAIN)["low"] > 10


# GPU


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
