"""Modality prediction: files in and out, folds."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from simulated_pairs import simulated, split, write

from challenges import common
from challenges.modality import data, folds
from challenges.modality.models import ReducedModel
from helpers import DataError


@pytest.fixture
def files():
    return split(simulated())


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


def test_features_that_the_test_lacks_are_counted_said_and_taken_at_their_means(tmp_path, files, capsys):
    whole = data.read_pair(write(tmp_path, files))
    files["test_mod1"] = files["test_mod1"][:, [5, *range(7, 30)]].copy()
    pair = data.read_pair(write(tmp_path, files))
    assert "6 features of training are missing: GEX0, GEX1, GEX2, GEX3, GEX4, GEX6" in capsys.readouterr().out
    assert list(np.flatnonzero(~pair.measured)) == [0, 1, 2, 3, 4, 6]
    fitted = ReducedModel("ridge").fit(pair.train_source.X, pair.train_target.X, np.zeros(60, int))
    filled = whole.test_source.X.toarray()
    filled[:, ~pair.measured] = pair.train_source.X.toarray().mean(axis=0)[~pair.measured]
    wanted = fitted.predict(sp.csr_matrix(filled)).dense()
    assert np.allclose(fitted.predict(pair.test_source.X, pair.measured).dense(), wanted, atol=1e-4)
    files["test_mod1"].var_names = [f"ENSG{i}" for i in range(24)]
    with pytest.raises(
        DataError, match=r"test_mod1.h5ad: none of the 30 features of training, such as GEX0, GEX1, GEX"
    ):
        data.read_pair(write(tmp_path, files))
    files["test_mod1"], files["test_mod2"] = split(simulated())["test_mod1"], files["test_mod2"][:, 1:].copy()
    with pytest.raises(DataError, match=r"test_mod2.h5ad: without these features there are no answers"):
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
    files["test_mod1"].layers["log_norm"] = files["test_mod1"].X * 2
    files["test_mod2"].layers["normalized"] = files["test_mod2"].X * 3
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
    with pytest.raises(DataError, match=r"train_mod1\.h5ad: not an \.h5ad file, or a broken one"):
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
        splits, how = folds.held_out(data.read_pair(write(tmp_path, dict(zip(data.PARTS, pair, strict=False)))))
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
    splits, how = folds.held_out(data.read_pair(write(tmp_path, {"train_mod1": source, "train_mod2": target})))
    assert "whole batches, in 2 folds" in how
    for one in splits:
        assert list(one.test_source.obs["batch"]) == list(target.obs.loc[one.test_source.obs_names, "batch"])


def test_a_batch_that_leaves_too_few_cells_is_not_held_out(tmp_path, files):
    source, target = simulated()
    for cells in (source, target):
        cells.obs["batch"] = ["b0", *["b1"] * 79]
    (pair,), how = folds.held_out(data.read_pair(write(tmp_path, {"train_mod1": source, "train_mod2": target})))
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
    (pair,), how = folds.held_out(data.read_pair(write(tmp_path, split([source, target]))))
    assert how == "the 20 cells of the test files, of batches that training did not have: b3"
    assert pair.test_source.n_obs == 20


def test_inner_folds_are_whole_batches_where_there_are_several():
    batches = np.repeat([0, 1, 2], 10)
    for train, test in folds.inner_folds(batches, 0):
        assert not set(batches[train]) & set(batches[test])
    tested = [test for _, test in folds.inner_folds(np.zeros(30, int), 0)]
    assert sorted(np.concatenate(tested)) == list(range(30))


def test_a_prediction_is_written_by_blocks_and_read_by_anndata(tmp_path, monkeypatch, files):
    monkeypatch.setattr(common, "BLOCK_VALUES", 30)  # two cells at a time
    values = np.random.default_rng(0).random((20, 12)).astype(np.float32)
    prediction = data.Prediction(values.shape, lambda rows: values[rows])
    obs, var = files["test_mod1"].obs.assign(size_factors=2.0), files["test_mod2"].var.assign(gene_ids="E1")
    uns = {"dataset_id": "set", "method_id": "ridge"}
    data.write_prediction(tmp_path / "p.h5ad", obs, var, "ADT", prediction, uns)
    found = ad.read_h5ad(tmp_path / "p.h5ad")
    assert np.array_equal(found.X, values)
    assert np.array_equal(found.layers["normalized"], values)
    assert list(found.obs_names) == list(files["test_mod1"].obs_names)
    assert list(found.var_names) == list(files["test_mod2"].var_names)
    assert (found.obs["size_factors"] == 2).all()
    assert (found.var["gene_ids"] == "E1").all()
    assert set(found.var["feature_types"]) == {"ADT"}
    assert dict(found.uns) == uns
