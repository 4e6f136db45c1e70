"""`train` and `infer` as the platform calls them: what they need, what they write, what they say of bad input."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import read_dense, run_infer

import helpers
import method
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import EXPECTED_FILE, MODEL_FILE
from workbench.validate import validate_prediction_folder, validate_submission


@pytest.fixture(scope="module")
def files(trained, challenge, tmp_path_factory):
    """Both predicted files for all targets, made without the data folder."""
    prediction = tmp_path_factory.mktemp("prediction")
    return run_infer("no such folder", trained, prediction, challenge.targets, challenge.genes_to_predict)


def test_a_trained_model_needs_nothing_else_and_the_files_are_valid(files, challenge):
    assert validate_submission(*files, challenge.targets, challenge.genes_to_predict) == []
    assert validate_prediction_folder(files[0].parent, challenge.targets, challenge.genes_to_predict) == []


def test_empty_resources_trains_first_and_gives_the_same(folder, files, challenge, tmp_path):
    resources = tmp_path / "resources"
    again = run_infer(folder, resources, tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    assert (resources / MODEL_FILE).exists()
    np.testing.assert_array_equal(read_dense(again[0]).X, read_dense(files[0]).X)
    assert again[1].read_bytes() == files[1].read_bytes()


def test_infer_that_trains_first_uses_the_seed_and_the_method_of_train(folder, challenge, tmp_path, monkeypatch):
    given = []

    def train(*_, **named):
        given.append(named)
        raise KeyboardInterrupt

    monkeypatch.setattr(method, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run_infer(folder, tmp_path / "r", tmp_path / "p", ["A"], ["B"], seed=3, predictor="mine")
    assert given == [{"seed": 3, "predictor": "mine"}]


def test_shuffled_genes_to_predict_change_only_the_columns(files, trained, challenge, tmp_path):
    genes = np.random.default_rng(0).permutation(challenge.genes_to_predict)
    shuffled = read_dense(run_infer("", trained, tmp_path, challenge.targets, genes)[0])
    plain = read_dense(files[0])
    assert shuffled.var_names.tolist() == genes.tolist() != plain.var_names.tolist()
    np.testing.assert_array_equal(shuffled[:, plain.var_names].X, plain.X)


def test_order_of_targets_changes_only_the_rows(files, trained, challenge, tmp_path):
    targets = challenge.targets[::-1]
    backwards, _ = run_infer("", trained, tmp_path, targets, challenge.genes_to_predict)
    X, plain = read_dense(backwards), read_dense(files[0])
    assert X.obs["gene"].unique().tolist() == targets.tolist()
    for target in (targets[0], targets[-1]):
        np.testing.assert_array_equal(X[X.obs["gene"] == target].X, plain[plain.obs["gene"] == target].X)


ON_SOME_THREADS = """
import sys, warnings
warnings.simplefilter("ignore")
from threadpoolctl import threadpool_limits

import helpers
from knowledge import read_features, training_knowledge
from method import infer, train

data, folder, n_threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
helpers.SLAB_VALUES, helpers.TASK_VALUES = 3000, 20_000  # many slabs and tasks, though the cells are few
helpers.os.cpu_count = lambda: n_threads
challenge = helpers.load_challenge(data)
train(data, folder)
files = [f"{folder}/{name}" for name in sys.argv[4:]]
infer("", folder, *files, folder, challenge.targets, challenge.genes_to_predict)
stats, pool = helpers.perturbation_stats(challenge.train_path), helpers.read_cells(challenge.train_path, range(200))
with threadpool_limits(1):
    known = training_knowledge(stats, pool, challenge.signatures, {*challenge.targets, *challenge.perturbations}).tables
known |= read_features(f"{folder}/features", {*challenge.targets, *challenge.perturbations})
with open(f"{folder}/tables", "wb") as file:
    for table in known.values():
        file.write(helpers.dense(table.features).tobytes())
"""


def test_one_thread_and_many_give_the_same_files_to_the_last_bit(demo_folder, challenge, tmp_path):
    """Threads of our own, and of BLAS, which would add in another order if it were let; and whatever the hash seed."""
    tables, genes = tmp_path / "features", [*challenge.perturbations, *challenge.targets]
    tables.mkdir()
    sets = [genes[i : i + 6] for i in range(0, len(genes), 3)]
    (tables / "sets.gmt").write_text("\n".join("\t".join([f"S{i}", "", *group]) for i, group in enumerate(sets)))
    edges = [f"{a},{b}" for a, b in zip(genes, genes[::-1], strict=True)]
    (tables / "graph.csv").write_text("\n".join(["source,target", *edges]))
    names = CRUNCH.prediction_file, CRUNCH.predicted_proportions_file
    made = []
    for n_threads in ("1", "2", "7"):
        folder = tmp_path / n_threads
        command = [sys.executable, "-c", ON_SOME_THREADS, demo_folder, folder, n_threads, *names]
        env = os.environ | {"OPENBLAS_NUM_THREADS": n_threads, "PYTHONPATH": str(Path(helpers.__file__).parent)}
        env["PYTHONHASHSEED"] = n_threads  # sets come in another order
        shutil.copytree(tables, folder / "features")
        subprocess.run(command, check=True, capture_output=True, env=env, timeout=300)
        made.append({name: (folder / name).read_bytes() for name in (MODEL_FILE, EXPECTED_FILE, "tables", *names)})
    for other in made[1:]:
        assert [name for name in made[0] if other[name] != made[0][name]] == []


def test_target_listed_twice_is_predicted_once(trained, challenge, tmp_path):
    targets = [*challenge.targets[:3], challenge.targets[1]]
    with pytest.warns(UserWarning, match=f"listed twice, predicted once: {targets[1]}"):
        prediction, shares = run_infer("", trained, tmp_path, targets, challenge.genes_to_predict)
    assert read_dense(prediction).n_obs == 300
    assert pd.read_csv(shares)["gene"].tolist() == targets[:3]


def test_gene_that_was_never_measured_is_predicted_as_not_detected(trained, challenge, tmp_path):
    genes = ["NEW1", *challenge.genes_to_predict, "NEW2"]
    with pytest.warns(UserWarning, match="never measured, predicted as 0: NEW1, NEW2"):
        prediction, _ = run_infer("", trained, tmp_path, challenge.targets, genes)
    adata = read_dense(prediction)
    assert adata.var_names.tolist() == genes
    assert (adata[:, ["NEW1", "NEW2"]].X == 0).all()
    assert (adata[:, challenge.genes_to_predict[0]].X != 0).any()


def test_duplicated_genes_and_no_targets(trained, challenge, tmp_path):
    genes = challenge.genes_to_predict
    with pytest.raises(DataError, match=f"genes_to_predict: duplicated names {genes[0]}"):
        run_infer("", trained, tmp_path, challenge.targets, [*genes, genes[0]])
    with pytest.raises(DataError, match="nothing to predict"):
        run_infer("", trained, tmp_path, [], genes)
    assert not list(tmp_path.iterdir())


def test_old_model_of_other_data(trained, tmp_path):
    with pytest.raises(DataError, match="genes_to_predict: only 0 of 50 genes were measured in the training cells"):
        run_infer("", trained, tmp_path, ["A"], [f"OTHER{i}" for i in range(50)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "other version", "not HDF5", "part missing"])
def test_model_file_that_cannot_be_used(trained, challenge, damage, tmp_path):
    path = shutil.copytree(trained, tmp_path / "resources") / MODEL_FILE
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "not HDF5":
        path.write_text("a model")
    else:
        with h5py.File(path, "r+") as file:
            if damage == "other version":
                file.attrs["format"] = 0
            else:
                del file["cells"]
    with pytest.raises(DataError, match=r"model\.h5.*train again"):
        run_infer("", path.parent, tmp_path / "p", challenge.targets, challenge.genes_to_predict)


def test_failed_training_keeps_the_old_model(folder, trained, tmp_path):
    resources = shutil.copytree(trained, tmp_path / "resources")
    before = (resources / MODEL_FILE).read_bytes()
    with h5py.File(folder / CRUNCH.train_file, "r+") as file:
        file["X/data"][5] = np.nan
    with pytest.raises(DataError, match="NaN"):
        method.train(str(folder), str(resources))
    assert (resources / MODEL_FILE).read_bytes() == before
    assert {path.name for path in resources.iterdir()} == {MODEL_FILE, EXPECTED_FILE}


def test_read_only_resources_cost_a_warning_and_no_prediction(folder, files, challenge, tmp_path):
    (tmp_path / "resources").write_text("a file, where the folder should be: nothing can be saved there")
    with pytest.warns(UserWarning, match=r"fitted but not saved: .*model\.h5: could not be written"):
        again = run_infer(folder, tmp_path / "resources", tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    np.testing.assert_array_equal(read_dense(again[0]).X, read_dense(files[0]).X)


def test_dense_x_and_no_layers(folder, files, challenge, tmp_path):
    adata = ad.read_h5ad(folder / CRUNCH.train_file)
    adata.X = adata.X.toarray()
    adata.layers.clear()
    adata.write_h5ad(folder / CRUNCH.train_file)
    dense = run_infer(folder, tmp_path / "r", tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    np.testing.assert_array_equal(read_dense(dense[0]).X, read_dense(files[0]).X)


def test_perturbation_with_one_cell(folder, challenge, tmp_path):
    adata = ad.read_h5ad(folder / CRUNCH.train_file)
    lost = challenge.perturbations[0]
    rows = np.flatnonzero(adata.obs["gene"] == lost)[1:]
    adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy().write_h5ad(folder / CRUNCH.train_file)
    files = run_infer(folder, tmp_path / "r", tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    assert validate_submission(*files, challenge.targets, challenge.genes_to_predict) == []


def few(folder, n_perturbations=14, n_genes=240):
    """The demo folder with the first of its knock-outs and genes alone."""
    adata = ad.read_h5ad(folder / CRUNCH.train_file)
    kept = ["NC", *adata.obs["gene"].cat.categories.drop("NC")[:n_perturbations]]
    adata = adata[adata.obs["gene"].isin(kept), :n_genes].copy()
    adata.write_h5ad(folder / CRUNCH.train_file)
    if n_genes < 240:
        (folder / CRUNCH.genes_file).write_text("\n".join(adata.var_names))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_knock_outs_are_enough_and_what_is_expected_of_them_is_honest(n, folder, stats, tmp_path):
    few(folder, n)
    challenge = helpers.load_challenge(folder)
    unseen = stats.mean.index.drop(["NC", *challenge.perturbations])
    files = run_infer(folder, tmp_path / "r", tmp_path / "p", unseen, challenge.genes_to_predict)
    assert validate_submission(*files, unseen, challenge.genes_to_predict) == []
    model = method.Predictor.load(tmp_path / "r" / MODEL_FILE).expression
    residuals = stats.mean.loc[challenge.perturbations] - model.reference_
    predicted = model.predict(unseen) - model.reference_
    assert np.linalg.norm(predicted, axis=1).max() <= np.linalg.norm(residuals, axis=1).max() + 1e-6
    error = np.linalg.norm(stats.mean.loc[unseen] - model.reference_ - predicted, axis=1)
    expected = model.predict_scale(unseen)
    assert 0.4 < (expected["error"].mean() / error.mean()) < 2
    assert expected["pearson"].between(0, 1).all()


def test_one_gene_has_no_direction_and_is_predicted_as_the_mean(folder, stats, tmp_path):
    few(folder, n_genes=1)
    challenge = helpers.load_challenge(folder)
    prediction, _ = run_infer(folder, tmp_path / "r", tmp_path / "p", challenge.targets, challenge.genes)
    mean = stats.perturbed_centroid()[challenge.genes].to_numpy()
    np.testing.assert_allclose(read_dense(prediction).X[:100].mean(axis=0), mean, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 1.5])
def test_cells_that_are_all_alike_are_predicted(level, folder, challenge, tmp_path):
    adata = ad.read_h5ad(folder / CRUNCH.train_file)
    adata.X = np.full(adata.shape, level, np.float32)
    adata.write_h5ad(folder / CRUNCH.train_file)
    prediction, _ = run_infer(folder, tmp_path / "r", tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    np.testing.assert_array_equal(read_dense(prediction).X, level)


def test_targets_that_are_no_genes_of_the_cells_are_listed(folder, tmp_path):
    with (folder / CRUNCH.targets_file).open("a") as file:
        file.write("\nUNHEARDOF")
    with pytest.warns(UserWarning, match=r"predict_perturbations\.txt: 4 of 13 are no genes .*: .*UNHEARDOF"):
        method.train(folder, tmp_path)


def test_the_control_among_the_targets_is_told(trained, challenge, tmp_path):
    with pytest.warns(UserWarning, match="NC is the control; it is predicted as a knock-out is"):
        run_infer("", trained, tmp_path, ["NC", *challenge.targets[:2]], challenge.genes_to_predict)


def test_a_prediction_that_fails_leaves_both_older_files(trained, challenge, tmp_path, monkeypatch):
    old = [tmp_path / CRUNCH.prediction_file, tmp_path / CRUNCH.predicted_proportions_file]
    for path in old:
        path.write_text("older")
    monkeypatch.setattr(helpers.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(DataError, match=r"only 0\.0 MB of disk are free"):
        run_infer("", trained, tmp_path, challenge.targets, challenge.genes_to_predict)
    assert [path.read_text() for path in old] == ["older", "older"]
    assert sorted(tmp_path.iterdir()) == sorted(old)


class Exact:
    """A method whose numbers a float holds exactly, so that its files can be written down."""

    def fit(self, *learned, **more):
        self.genes = learned[0].columns if learned else None
        return self

    def for_genes(self, genes):
        return self


class ExactMeans(Exact):
    def fit(self, means):
        return super().fit(means)

    def predict(self, targets):
        return pd.DataFrame([np.arange(240) / 64 + i for i in range(len(targets))], targets, self.genes)

    def predict_scale(self, targets):
        return pd.DataFrame({"error": 1.5, "pearson": 0.25}, index=targets)


class ExactShares(Exact):
    def fit(self, proportions):
        return super().fit(proportions)

    def predict(self, targets):
        return pd.DataFrame([[0.5, 0.25, 0.25, 0.5]] * len(targets), targets, [*CRUNCH.shares, CRUNCH.ratio])


class ExactCells(Exact):
    def sample(self, target, mean, n_cells):
        return mean + np.arange(n_cells, dtype=np.float32)[:, None] / 64


def test_what_a_method_gives_is_what_is_written(demo_folder, challenge, tmp_path):
    mine = method.Predictor(ExactMeans(), ExactShares(), ExactCells())
    targets, genes = ["A", "B", "C"], challenge.genes[[7, 3, 5]]
    method.train(demo_folder, tmp_path / "r", predictor=mine)
    files = run_infer("", tmp_path / "r", tmp_path / "p", targets, genes, predictor=mine)
    X = [[k / 64 + cell / 64 + i for k in (7, 3, 5)] for i in range(3) for cell in range(100)]
    np.testing.assert_array_equal(ad.read_h5ad(files[0]).X, np.array(X, np.float32))
    assert ad.read_h5ad(files[0]).X.dtype == np.float32
    shares = "".join(f"{target},0.5,0.25,0.125,0.25\n" for target in targets)
    assert files[1].read_text() == f"gene,pre_adipo,adipo,lipo,other\n{shares}"
    expected = "".join(f"{target},1.5,0.25\n" for target in challenge.targets)
    assert (tmp_path / "r" / EXPECTED_FILE).read_text() == f"gene,error,pearson\n{expected}"


def test_number_of_cells_is_an_option(trained, challenge, tmp_path):
    prediction, _ = run_infer(
        "", trained, tmp_path, challenge.targets[:2], challenge.genes_to_predict, cells_per_perturbation=130
    )
    assert read_dense(prediction).obs["gene"].value_counts().tolist() == [130, 130]


def test_real_cells(real_folder, tmp_path):
    challenge = helpers.load_challenge(real_folder)
    files = run_infer(real_folder, tmp_path / "r", tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    assert validate_submission(*files, challenge.targets, challenge.genes_to_predict) == []
    table = helpers.score(
        *files, challenge.local_truth_path, real_folder / CRUNCH.local_proportions_file, sigma="calibrated"
    )
    summary = helpers.summarise_scores(table)["mean"]
    assert summary["mmd"] < 0.15, "near-identical cells cost more than 1"
    assert summary["l1_distance"] < 0.12
