"""The demo folder of `workbench.simulate`: the platform's layout to the letter, and an answer its cells bear out."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import helpers
from contract import OBESITY_1 as CRUNCH
from workbench import simulate as module
from workbench.simulate import FILES, OBS, simulate

SMALL = {"cells": 3000, "genes": 150, "perturbations": 20, "seed": 5}
TINY = {"cells": 300, "genes": 60, "perturbations": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder / "data", answer=folder / "answer.h5", **SMALL)
    return folder


@pytest.fixture(scope="module")
def train(made):
    return ad.read_h5ad(made / "data" / CRUNCH.train_file)


@pytest.fixture(scope="module")
def local(made):
    return ad.read_h5ad(made / "data" / CRUNCH.local_truth_file)


def names(path):
    return path.read_text().split("\n")


def arrays(folder):
    """Every array and attribute of both h5ad files, and the text of the small ones."""
    found = {name: (folder / name).read_bytes() for name in FILES if not name.endswith("h5ad")}
    for name in (CRUNCH.train_file, CRUNCH.local_truth_file):
        with h5py.File(folder / name) as file:

            def collect(path, item, name=name):
                found[name, path, "attributes"] = {key: str(value) for key, value in item.attrs.items()}
                if isinstance(item, h5py.Dataset):
                    found[name, path] = item[()].tobytes() if item.dtype != object else list(item[()])

            file.visititems(collect)
    return found


def test_the_folder_holds_the_seven_files_and_nothing_else_is_left(made):
    assert {path.name for path in (made / "data").iterdir()} == set(FILES)
    assert {path.name for path in made.iterdir()} == {"data", "answer.h5"}


def test_matrices_are_plain_csr_with_the_contract_dtypes(made):
    with h5py.File(made / "data" / CRUNCH.train_file) as file:
        assert {key: file.attrs[key] for key in ("encoding-type", "encoding-version")} == {
            "encoding-type": "anndata",
            "encoding-version": "0.1.0",
        }
        for group in (file["X"], file["layers/counts"]):
            assert group.attrs["encoding-type"] == "csr_matrix"
            assert list(group.attrs["shape"]) == [3000, 150]
            assert {name: str(group[name].dtype) for name in group} == {
                "data": "float64",
                "indices": "int32",
                "indptr": "int32",
            }
            assert all(group[name].chunks is None and group[name].compression is None for name in group)
        assert np.array_equal(file["X/indices"][:], file["layers/counts/indices"][:])
        assert 0.3 < len(file["X/data"]) / (3000 * 150) < 0.45


def test_matrices_are_canonical_and_hold_no_stored_zero(train):
    for read in (train.X, train.layers["counts"]):
        matrix = sparse.csr_matrix((read.data, read.indices, read.indptr), read.shape)  # without cached flags
        assert matrix.has_canonical_format
        assert matrix.data.min() > 0
    assert np.array_equal(train.layers["counts"].data, np.round(train.layers["counts"].data))


def test_x_is_the_log_of_the_counts(train):
    counts = train.layers["counts"].toarray()
    expected = np.log2(1 + 1e5 * counts / counts.sum(axis=1, keepdims=True))
    assert np.abs(train.X.toarray() - expected).max() < 1e-12


def test_obs_has_the_columns_of_the_contract_and_they_agree_with_the_counts(train):
    counts = train.layers["counts"]
    assert list(train.obs) == OBS
    assert train.obs_names.is_unique
    assert train.var_names.is_unique
    assert np.array_equal(train.obs["nCount_RNA"], counts.sum(axis=1).A1)
    assert train.obs["nCount_RNA"].mean() == pytest.approx(30_000, rel=0.04)
    assert np.array_equal(train.obs["nFeature_RNA"], np.diff(counts.indptr))
    mitochondrial = counts[:, train.var_names.str.startswith("MT-")].sum(axis=1).A1
    assert np.allclose(train.obs["percent.mt"], 100 * mitochondrial / train.obs["nCount_RNA"])
    assert isinstance(train.obs["gene"].dtype, pd.CategoricalDtype)


def test_cells_are_sorted_by_gene_with_the_control_among_them(train):
    gene = train.obs["gene"].astype(str).to_numpy()
    assert np.array_equal(gene, np.sort(gene))
    assert gene[0] < "NC" < gene[-1]
    sizes = train.obs["gene"].value_counts()
    assert len(sizes) == 21
    assert sizes.idxmax() == "NC"
    assert (sizes < 40).sum() == 2


def test_states_are_0_or_1_and_exclude_each_other(train):
    states = train.obs[["pre_adipo", "adipo", "other", "lipo"]]
    assert set(np.unique(states)) == {0, 1}
    assert (states[["pre_adipo", "adipo", "other"]].sum(axis=1) == 1).all()
    assert (states["lipo"] <= states["adipo"]).all()
    assert states["lipo"].sum() < states["adipo"].sum()


def test_proportions_are_the_shares_of_the_cells(made, train):
    table = pd.read_csv(made / "data" / "program_proportion.csv")
    assert list(table) == ["gene", "pre_adipo", "adipo", "other", "lipo", "lipo_adipo"]
    assert list(table["gene"]) != sorted(table["gene"])
    table = table.set_index("gene")
    shares = train.obs.groupby("gene", observed=True)[["pre_adipo", "adipo", "other", "lipo"]].mean()
    assert set(table.index) == set(shares.index)
    assert np.abs(table[list(shares)] - shares.loc[table.index]).max().max() < 1e-12
    assert np.allclose(table["lipo_adipo"], (table["lipo"] / table["adipo"]).fillna(0))


def test_local_proportions_belong_to_the_local_genes(made, local):
    table = pd.read_csv(made / "data" / "program_proportion_local_gtruth.csv").set_index("gene")
    assert set(table.index) == set(local.obs["gene"].cat.categories)
    assert np.allclose(table[["pre_adipo", "adipo", "other"]].sum(axis=1), 1)
    assert (table["lipo"] <= table["adipo"]).all()


def test_lists_overlap_as_on_the_platform(made, train, local):
    requested, listed = (names(made / "data" / f) for f in ("predict_perturbations.txt", "genes_to_predict.txt"))
    held_out, seen = set(local.obs["gene"]), set(train.obs["gene"])
    assert len(held_out) == 5
    assert held_out <= set(listed)
    assert not held_out & set(requested)
    assert not seen & set(requested)
    assert len(set(requested)) == len(requested) == 8
    assert len(set(requested) & set(train.var_names)) == round(8 * 2087 / 2863)
    assert len(seen & set(train.var_names)) == round(20 * 2087 / 2863)
    assert len(set(listed)) == len(listed) == round(0.93 * 150)
    assert set(listed) < set(train.var_names)
    assert listed != [gene for gene in train.var_names if gene in set(listed)]


def test_signature_genes_are_measured(made, train):
    table = pd.read_csv(made / "data" / "signature_genes.csv")
    assert list(table) == ["program", "sig_gene"]
    assert list(table["program"].unique()) == ["pre-adipo", "adipo", "lipo", "thermo"]
    assert set(table["sig_gene"]) <= set(train.var_names)


def test_signature_genes_are_higher_in_their_state(made, train):
    table = pd.read_csv(made / "data" / "signature_genes.csv")
    for program, state in (("pre-adipo", "pre_adipo"), ("adipo", "adipo"), ("lipo", "lipo")):
        x, inside = train[:, table["sig_gene"][table["program"] == program]].X, train.obs[state].to_numpy() == 1
        assert x[inside].mean() > x[~inside].mean() + 0.1


def test_local_truth_is_dense_and_carries_the_centroids_of_the_training_cells(made, train, local):
    with h5py.File(made / "data" / CRUNCH.local_truth_file) as file:
        assert (file["X"].dtype, file["X"].shape, file["X"].compression) == (np.float64, (1000, 150), None)
        assert list(file["obs"].attrs["column-order"]) == ["gene"]
    assert isinstance(local.obs["gene"].dtype, pd.CategoricalDtype)
    assert list(local.var_names) == list(train.var_names)
    assert np.allclose((2**local.X - 1).sum(axis=1), 1e5)
    control, x = (train.obs["gene"] == "NC").to_numpy(), train.X.toarray()
    for name, cells in (("control_centroid_train", control), ("perturbed_centroid_train", ~control)):
        assert local.uns[name].dtype == np.float64
        assert np.allclose(local.uns[name], x[cells].mean(axis=0), atol=1e-10, rtol=0)


def test_a_knock_out_lowers_its_target(train, local):
    control = train.X[(train.obs["gene"] == "NC").to_numpy()].toarray().mean(axis=0)
    lowered = []
    for cells in (train, local):
        for gene in set(cells.obs["gene"]) & set(train.var_names):
            at = train.var_names.get_loc(gene)
            own = np.asarray(cells.X[(cells.obs["gene"] == gene).to_numpy()].mean(axis=0)).ravel()
            if control[at] > 1:
                lowered.append(own[at] - control[at])
    assert len(lowered) > 5
    assert max(lowered) < -0.5


def test_co_expression_in_control_cells_tells_something_of_a_knock_out(train):
    x, gene = train.X.toarray(), train.obs["gene"].to_numpy()
    covariance, centroid = np.cov(x[gene == "NC"].T), x[gene != "NC"].mean(axis=0)
    found = []
    for target in set(gene) & set(train.var_names):
        at, others = train.var_names.get_loc(target), train.var_names != target
        if (gene == target).sum() > 50 and x[gene == "NC", at].mean() > 1:
            effect = x[gene == target].mean(axis=0) - centroid
            found.append(np.corrcoef(-covariance[at, others], effect[others])[0, 1])
    assert len(found) > 5
    assert 0.2 < np.mean(found) < 0.9


def test_answer_is_the_mean_of_the_cells(made, train, local):
    with h5py.File(made / "answer.h5") as file:
        perturbation = list(file["perturbation"].asstr())
        assert list(file["gene"].asstr()) == list(train.var_names)
        assert file["effect"].shape == file["predictable"].shape == (len(perturbation), 150)
        means = file["control_mean"][:] + file["effect"][:]
        shares = pd.DataFrame(file["shares"][:], perturbation, ["pre_adipo", "adipo", "other", "lipo"])
        assert list(file["group"].asstr()) == ["control"] + ["train"] * 20 + ["local"] * 5 + ["unseen"] * 8
        assert not file["effect"][0].any()
        perturbed = file["perturbed_mean"][:]
    cells = train.obs["gene"][train.obs["gene"] != "NC"].astype(str)
    assert np.allclose(perturbed, means[[perturbation.index(gene) for gene in cells]].mean(axis=0))
    assert np.abs(perturbed - local.uns["perturbed_centroid_train"]).max() < 0.15
    for cells in (train, local):
        for gene, n in cells.obs["gene"].value_counts().items():
            x = cells[cells.obs["gene"] == gene].to_df().to_numpy()
            error = (x.mean(axis=0) - means[perturbation.index(gene)]) / np.maximum(x.std(axis=0), 0.1) * np.sqrt(n)
            assert n < 40 or np.sqrt(np.mean(error**2)) < 1.6  # 1, but for the genes of one module err together
    cells = train[train.obs["gene"] == "NC"].obs[list(shares)]
    assert np.abs(cells.mean() - shares.loc["NC"]).max() < 0.08


def test_predictable_share_sets_what_an_oracle_reaches(tmp_path):
    for share in (0.0, 0.5, 1.0):
        simulate(tmp_path / "data", predictable=share, answer=tmp_path / "answer.h5", force=True, **TINY)
        with h5py.File(tmp_path / "answer.h5") as file:
            effect, predictable, oracle = (file[name][1:] for name in ("effect", "predictable", "oracle_pearson"))
        if share == 1:
            assert np.array_equal(effect, predictable)
            assert np.allclose(oracle, 1)
        elif share == 0:
            moved = (np.abs(predictable) > 0.1).sum(axis=1)
            assert np.median(moved) <= 1  # the target itself; the counts that a strong one leaves go to others
        else:
            assert 0.3 < np.median(oracle) < 0.98


def test_counts_are_negative_binomial_of_the_mean_they_should_have():
    model = module._build_model(
        np.random.default_rng(0), n_genes=200, seen=(2, 0), unseen=(6, 2), n_listed=100, share=0.5
    )
    model = replace(model, loadings=np.zeros_like(model.loadings), target=np.full_like(model.target, -1))
    mean = np.repeat([0.05, 1.0, 3.9, 4.1, 50.0], 40)
    model.loadings[:, -4:] = np.log(mean)[:, None]
    cells = module._draw_cells(np.random.default_rng(1), model, np.array([1000, 500, 500]), ["control", "train"])
    cells["library"] = mean.sum()
    counts = module._sample_counts(model, cells, np.random.SeedSequence(2)).toarray().reshape(2000, 5, 40)
    for group, expected in enumerate(mean[::40]):
        sample = counts[:, group].ravel()
        assert sample.mean() == pytest.approx(expected, rel=0.03)
        assert sample.var() == pytest.approx(expected + expected**2 / 4, rel=0.06)
        assert (sample == 0).mean() == pytest.approx((1 + expected / 4) ** -4, abs=0.006)


def test_the_same_seed_gives_the_same_arrays_and_another_seed_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLAB", 60 * 40)
    simulate(tmp_path / "a", seed=1, **TINY)
    monkeypatch.setattr(module, "WORKERS", 1)
    simulate(tmp_path / "b", seed=1, **TINY)
    simulate(tmp_path / "c", seed=2, **TINY)
    first, same, other = (arrays(tmp_path / folder) for folder in "abc")
    assert first == same
    assert first[CRUNCH.train_file, "X/data"] != other[CRUNCH.train_file, "X/data"]
    assert first["genes_to_predict.txt"] != other["genes_to_predict.txt"]


def test_slabs_are_drawn_independently(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLAB", 60 * 40)
    simulate(tmp_path / "data", **TINY)
    x = ad.read_h5ad(tmp_path / "data" / CRUNCH.train_file).X.toarray()
    x -= x.mean(axis=0)
    alike = [np.corrcoef(x[i], x[i + 40])[0, 1] for i in range(200)]  # the same place in the next slab
    assert abs(np.mean(alike)) < 0.1


def test_counts_can_be_left_out(tmp_path):
    simulate(tmp_path / "data", counts=False, **TINY)
    assert not ad.read_h5ad(tmp_path / "data" / CRUNCH.train_file).layers


@pytest.mark.parametrize(
    "change",
    [
        {"genes": 59},
        {"perturbations": 1},
        {"cells": 30},
        {"unseen": 7},
        {"perturbations": 29},
        {"listed": 61},
        {"listed": 5},
        {"local_cells": 4},
        {"predictable": 1.1},
        {"seed": -1},
    ],
)
def test_silly_arguments_are_refused(tmp_path, change):
    with pytest.raises(ValueError):
        simulate(tmp_path / "data", **{**TINY, **change})
    assert not list(tmp_path.iterdir())


def test_an_earlier_run_is_replaced_only_by_force(tmp_path):
    folder, other = tmp_path / "data", tmp_path / "data" / ".gitkeep"
    folder.mkdir()
    other.touch()
    simulate(folder, seed=1, **TINY)
    before = arrays(folder)
    with pytest.raises(FileExistsError, match="force"):
        simulate(folder, seed=2, **TINY)
    assert arrays(folder) == before
    simulate(folder, seed=2, force=True, **TINY)
    assert arrays(folder) != before
    assert other.exists()


def test_the_answer_stays_out_of_the_folder(tmp_path):
    with pytest.raises(ValueError, match="outside"):
        simulate(tmp_path / "data", answer=tmp_path / "data" / "answer.h5", **TINY)


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk")

    monkeypatch.setattr(module, "_write_answer", fail)
    with pytest.raises(OSError, match="disk"):
        simulate(tmp_path / "data", answer=tmp_path / "answer.h5", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_terminated_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_write_small_files", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(
        sys, "argv", ["simulate", str(tmp_path / "data"), "--cells", "300", "--genes", "60", "--perturbations", "3"]
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            module.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared_but_nothing_foreign(tmp_path):
    partial = tmp_path / "data.partial"
    partial.mkdir()
    (partial / CRUNCH.train_file).write_text("half")
    simulate(tmp_path / "data", **TINY)
    assert not partial.exists()
    partial.mkdir()
    (partial / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="thesis"):
        simulate(tmp_path / "data", force=True, **TINY)
    assert (partial / "thesis.txt").exists()
    assert (tmp_path / "data" / CRUNCH.train_file).exists()


def test_a_full_disk_is_seen_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=17_000_000_000))
    with pytest.raises(OSError, match=r"19\.\d\d GB are needed .* 17\.00 GB are free"):
        simulate(tmp_path / "data", **module.FULL)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "workbench.simulate",
        tmp_path / "data",
        "--cells",
        "300",
        "--genes",
        "60",
        "--perturbations",
        "3",
        "--answer",
        tmp_path / "answer.h5",
        "--seed",
    ]
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, "7"], cwd=root, capture_output=True, text=True, check=True)
    assert "MB in" in done.stdout
    simulate(tmp_path / "same", seed=7, **TINY)
    assert arrays(tmp_path / "data") == arrays(tmp_path / "same")
    refused = subprocess.run([*command, "8"], cwd=root, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "already exists" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_two_at_once_do_not_mix(tmp_path):
    """Of two runs into one folder one wins; the other says so, and the files are all of the first's seed."""
    command = [sys.executable, "-m", "workbench.simulate", tmp_path / "data", "--cells", "3000", "--genes", "400"]
    command += ["--force", "--perturbations", "8", "--seed"]
    root, pipe = Path(__file__).parents[1], subprocess.PIPE
    runs = [subprocess.Popen([*command, str(seed)], cwd=root, stderr=pipe, stdout=pipe, text=True) for seed in (1, 2)]
    said = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert 0 in codes
    seed = 1 + codes.index(0)
    if codes == [0, 0]:
        pytest.skip("they did not meet")
    assert "data: another run is writing it" in said[2 - seed]
    assert "Traceback" not in said[2 - seed]
    simulate(tmp_path / "same", cells=3000, genes=400, perturbations=8, seed=seed)
    assert arrays(tmp_path / "data") == arrays(tmp_path / "same")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "same"]


def test_one_run_waits_for_nobody_and_says_so(tmp_path):
    with helpers.only_one(tmp_path / "data"), pytest.raises(helpers.DataError, match="data: another run is writing it"):
        simulate(tmp_path / "data", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_hdf5_is_named(tmp_path):
    (tmp_path / "x.h5ad").write_text("no")
    with pytest.raises(helpers.DataError, match=r"x\.h5ad: not a readable HDF5 file"):
        module.is_simulated(tmp_path / "x.h5ad")
