"""The door and the command line of the synthetic cells: what is read, what is refused, what is written."""

import subprocess
import sys
import time

import anndata as ad
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import helpers
from challenges.common import Bundle
from challenges.synthesis import __main__ as command
from challenges.synthesis import data, evaluate, files, main_job, training
from helpers import DataError

TYPES = ("B cell", "NK cell", "T:CD4+, naive")


def make_adata(n=120, genes=30, seed=0):
    """Counts of three types, log-normalised in X."""
    random = np.random.default_rng(seed)
    code = np.arange(n) % 3
    counts = random.poisson(random.gamma(1.0, 4.0, (3, genes))[code] * random.lognormal(0, 0.3, (n, 1)))
    counts[:, 0] += 1
    obs = pd.DataFrame({"cell_type": [TYPES[i] for i in code], "donor": [f"d{i % 2}" for i in range(n)]})
    obs.index = [f"cell_{i}" for i in range(n)]
    X = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    return ad.AnnData(
        sp.csr_matrix(X),
        obs=obs,
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
        layers={"counts": sp.csr_matrix(counts)},
    )


@pytest.fixture
def adata():
    return make_adata()


@pytest.fixture
def run(monkeypatch):
    """The command line with these words, on the CPU."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["synthesis", *map(str, words), "--device", "cpu"])
        command.main()

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file and a model trained on it for two steps."""
    folder = tmp_path_factory.mktemp("model")
    make_adata().write_h5ad(folder / "cells.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        words = [
            "train",
            "--data",
            folder / "cells.h5ad",
            "--label",
            "cell_type",
            "--model",
            folder / "model.h5",
            "--steps",
            "2",
            "--conditions",
            "donor",
            "--device",
            "cpu",
        ]
        patch.setattr(sys, "argv", ["synthesis", *map(str, words)])
        command.main()
    return folder


# --- reading ----------------------------------------------------------------------------------------------------------


def test_counts_are_read_from_normalised_values(adata):
    cells = data.from_anndata(adata, "cell_type", ["donor"])
    assert cells.scale.kind == "log"
    assert (cells.counts != adata.layers["counts"].astype(np.float32)).nnz == 0
    np.testing.assert_allclose(cells.values(), adata.X.toarray(), atol=1e-5)
    assert cells.types == sorted(TYPES)
    assert cells.conditions == ["donor"]


def test_scaled_values_give_way_to_raw_and_to_the_counts(adata):
    scaled = adata.copy()
    scaled.X = scaled.X.toarray() - 1
    assert data.from_anndata(scaled, "cell_type").scale.kind == "counts"
    del scaled.layers["counts"]
    scaled.raw = adata
    assert data.from_anndata(scaled, "cell_type").scale.kind == "log"
    scaled.raw = None
    with pytest.raises(DataError, match=r"X has negative values \(down to -1\): scaled or regressed\?"):
        data.from_anndata(scaled, "cell_type")


def test_the_embedded_data_are_counts_behind_logarithms():
    cells = data.read("pbmc68k_reduced")
    assert (len(cells), len(cells.genes), len(cells.types)) == (700, 765, 10)
    assert cells.scale.kind == "log"
    assert cells.counts.max() == 259
    assert abs(1 - cells.counts.nnz / (700 * 765) - 0.674) < 0.001


def test_labels_that_cannot_be_used_are_refused(adata):
    with pytest.raises(DataError, match=r"no column kind in obs; there is cell_type, donor"):
        data.from_anndata(adata, "kind")
    adata.obs["cluster"] = 3
    with pytest.raises(DataError, match=r"obs\['cluster'\] is numeric"):
        data.from_anndata(adata, "cluster")
    adata.obs.loc["cell_4", "cell_type"] = np.nan
    with pytest.raises(DataError, match=r"obs\['cell_type'\] has no value \(NaN\) in 1 of 120 cells"):
        data.from_anndata(adata, "cell_type")
    with pytest.raises(DataError, match="is the label and cannot be a condition"):
        data.from_anndata(make_adata(), "cell_type", ["cell_type"])


def test_the_crunchs_cells_can_be_labelled_by_state(demo_folder):
    adata = ad.read_h5ad(demo_folder / helpers.TRAIN_FILE)
    labels = data.read(demo_folder / helpers.TRAIN_FILE, "state").obs["label"]
    assert set(labels) == set(helpers.STATES)
    for state in helpers.STATES:
        assert (adata.obs.loc[labels.index[labels == state], state] == 1).all()
    assert (labels == "lipo").sum() == adata.obs["lipo"].sum()


def test_values_that_cannot_be_used_are_refused(adata):
    del adata.layers["counts"]
    adata.X[3, 4] = np.nan
    with pytest.raises(DataError, match="X has NaN or infinite values"):
        data.from_anndata(adata, "cell_type")
    adata.X = np.zeros(adata.shape, np.float32)
    with pytest.raises(DataError, match="every value is 0"):
        data.from_anndata(adata, "cell_type")
    twice = make_adata()
    twice.obs_names = ["cell_0", *twice.obs_names[:-1]]
    with pytest.raises(DataError, match="cells that come twice: cell_0"):
        data.from_anndata(twice, "cell_type")


def test_empty_cells_are_left_out_aloud(adata, capsys):
    adata.X[5] = 0
    assert len(data.from_anndata(adata, "cell_type")) == 119
    assert "left out cells without a single count: cell_5" in capsys.readouterr().out


def test_a_type_with_one_cell_is_refused_or_left_out(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc["cell_0", "cell_type"] = "lonely"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"types with a single cell.*: lonely; merge them, or .* --drop-rare"):
        data.read(tmp_path / "cells.h5ad")
    assert "lonely" not in data.read(tmp_path / "cells.h5ad", drop_rare=True).types


def test_a_missing_or_broken_file_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        data.read(tmp_path / "none.h5ad")
    (tmp_path / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 100)
    with pytest.raises(DataError, match=r"not an \.h5ad file, or a broken one"):
        data.read(tmp_path / "broken.h5ad")


def test_a_split_leaves_a_cell_of_each_type_on_either_side(adata):
    cells = data.from_anndata(adata, "cell_type")
    train, held = data.split(cells, 0.4, 0)
    assert len(train) + len(held) == 120
    assert not set(train.obs.index) & set(held.obs.index)
    few = cells.take(np.arange(6))
    assert all(part.types == few.types for part in data.split(few, 0.01, 0))


# --- the challenge's own files ----------------------------------------------------------------------------------------


def write_cite(folder, adata, *, blocks=1, as_bytes=True, **compression):
    """pandas' fixed format, with h5py alone, and metadata.csv in another order."""
    text = (lambda names: np.array(list(names), "S")) if as_bytes else (lambda names: np.array(list(names), object))
    kind = None if as_bytes else h5py.string_dtype()
    values, genes = adata.X.toarray(), adata.var_names
    with h5py.File(folder / "train_cite_inputs.h5", "w") as file:
        group = file.create_group("train_cite_inputs")
        group.create_dataset("axis0", data=text(genes), dtype=kind)
        group.create_dataset("axis1", data=text(adata.obs_names), dtype=kind)
        for block in range(blocks):
            chosen = np.arange(len(genes))[block::blocks]
            group.create_dataset(f"block{block}_items", data=text(genes[chosen]), dtype=kind)
            group.create_dataset(f"block{block}_values", data=values[:, chosen], **compression)
    table = adata.obs.rename_axis("cell_id").assign(day=2, technology="citeseq")[::-1]
    table.to_csv(folder / "metadata.csv")
    return folder / "train_cite_inputs.h5"


@pytest.mark.parametrize(("blocks", "as_bytes"), [(1, True), (3, False)])
def test_the_challenges_files_are_read_in_chunks(adata, tmp_path, monkeypatch, blocks, as_bytes):
    monkeypatch.setattr(data, "CHUNK", 50)
    adata.obs.loc["cell_7", "cell_type"] = "hidden"
    compression = {} if as_bytes else hdf5plugin.Blosc()  # as pandas writes with complib="blosc"
    path = write_cite(tmp_path, adata, blocks=blocks, as_bytes=as_bytes, **compression)
    cells = data.read(path, None, ["donor", "day"])
    shown = adata[adata.obs["cell_type"] != "hidden"]
    assert list(cells.obs.index) == list(shown.obs_names)
    assert list(cells.labels) == list(shown.obs["cell_type"])
    assert (cells.obs["donor"] == shown.obs["donor"]).all()
    assert set(cells.obs["day"]) == {"2"}
    assert (cells.counts != shown.layers["counts"].astype(np.float32)).nnz == 0
    assert list(cells.genes) == list(adata.var_names)


def test_the_challenges_files_must_fit_together(adata, tmp_path):
    path = write_cite(tmp_path, adata)
    table = pd.read_csv(tmp_path / "metadata.csv")
    table[table["cell_id"] != "cell_3"].to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(DataError, match=r"metadata.csv: no row for the cells cell_3"):
        data.read(path)
    table.drop(columns="cell_type").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(DataError, match="no column 'cell_type'"):
        data.read(path)
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata.csv: no such file; it names the cells"):
        data.read(path)
    table.to_csv(tmp_path / "metadata.csv", index=False)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not an HDF5 file"):
        data.read(path)


# --- the command line -------------------------------------------------------------------------------------------------


def test_sample_writes_types_and_mixtures_with_the_models_identity(model, run, tmp_path):
    out = tmp_path / "synthetic.h5ad"
    run(
        "sample",
        "--model",
        model / "model.h5",
        "--n",
        7,
        "--type",
        TYPES[0],
        "--mix",
        "B cell:0.5,NK cell:0.5",
        "--mix",
        f"{TYPES[2]}:1,B cell:3",
        "--condition",
        "donor=d1",
        "--out",
        out,
    )
    made = ad.read_h5ad(out)
    assert made.shape == (21, 30)
    assert made.obs["cell_type"].value_counts().to_dict() == {
        "B cell": 7,
        "B cell:0.5,NK cell:0.5": 7,
        "B cell:0.75,T:CD4+, naive:0.25": 7,
    }
    assert (made.obs["donor"] == "d1").all()
    assert made.obsm["label_weights"][7, list(made.uns["synthesis"]["types"]).index("NK cell")] == 0.5
    about = made.uns["synthesis"]
    assert len(about["model"]) == 16
    assert about["synthetic"]
    assert about["scale"].startswith("log(1 + normalised)")
    counts = made.layers["counts"].toarray()
    np.testing.assert_allclose(made.X.toarray(), np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)), rtol=1e-3)
    first = out.read_bytes()
    run(
        "sample",
        "--model",
        model / "model.h5",
        "--n",
        7,
        "--type",
        TYPES[0],
        "--mix",
        "B cell:0.5,NK cell:0.5",
        "--mix",
        f"{TYPES[2]}:1,B cell:3",
        "--condition",
        "donor=d1",
        "--out",
        out,
    )
    again = ad.read_h5ad(out)
    assert (again.X != made.X).nnz == 0
    assert len(first) == len(out.read_bytes())


def test_sample_makes_every_type_where_none_is_named(model, run, tmp_path):
    run("sample", "--model", model / "model.h5", "--n", 3, "--data", model / "cells.h5ad", "--out", tmp_path / "s.h5ad")
    assert ad.read_h5ad(tmp_path / "s.h5ad").obs["cell_type"].value_counts().to_dict() == dict.fromkeys(TYPES, 3)


def test_evaluate_writes_the_table_and_the_pictures(model, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "TREES", 10)
    run(
        "evaluate",
        "--data",
        model / "cells.h5ad",
        "--label",
        "cell_type",
        "--model",
        model / "model.h5",
        "--draws",
        2,
        "--out",
        tmp_path / "table.csv",
        "--plots",
        tmp_path / "plots",
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == ["generator", "metric", "value", "low", "high", "n"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "pca.png",
        "moments.png",
        "zero_rates_by_type.png",
        "variance_by_type.png",
        "mixing.png",
    }
    assert "zero_rate_correlation_by_gene" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "--type", "Z cell"], "error: unknown type Z cell; the model knows B cell, NK cell"),
        (["sample", "--mix", "B cell"], "error: --mix 'B cell': expected 'type:weight,type:weight'"),
        (["sample", "--mix", "B cell:0.5,Z:0.5"], "error: unknown type Z"),
        (["sample", "--n", "0"], "error: --n is the number of cells"),
        (["sample", "--condition", "donor"], "error: --condition 'donor': expected name=level"),
        (["sample", "--condition", "donor=d7"], "error: condition 'donor' has no level 'd7'"),
        (["train", "--held-out", "1"], "error: --held-out is a share from 0 to below 1"),
    ],
)
def test_the_command_line_says_what_is_wrong(model, run, tmp_path, words, message):
    where = ["--model", model / "model.h5"] if words[0] == "sample" else ["--model", tmp_path / "m.h5"]
    with pytest.raises(SystemExit) as stopped:
        run(*words, *where)
    assert str(stopped.value).startswith(message)


def test_other_genes_other_cells_and_no_model_are_refused(model, run, tmp_path):
    adata = make_adata()
    adata[:, :29].copy().write_h5ad(tmp_path / "fewer.h5ad")
    for verb in ("sample", "evaluate"):
        with pytest.raises(SystemExit, match=r"not the gene set of the model \(30 genes\); missing: G29"):
            run(verb, "--data", tmp_path / "fewer.h5ad", "--model", model / "model.h5")
    adata.obs_names = [f"other_{i}" for i in range(120)]
    adata.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(SystemExit, match="none of its cells are training cells"):
        run("evaluate", "--data", tmp_path / "other.h5ad", "--model", model / "model.h5")
    adata = make_adata(seed=1)
    adata.write_h5ad(tmp_path / "same_names.h5ad")
    with pytest.raises(SystemExit, match=r"cells with the names of training cells .* but not with their values"):
        run("evaluate", "--data", tmp_path / "same_names.h5ad", "--model", model / "model.h5")
    with pytest.raises(SystemExit, match="--draws is the number of halves"):
        run("evaluate", "--model", model / "model.h5", "--draws", "0")
    with pytest.raises(SystemExit, match="no such bundle; train first"):
        run("sample", "--model", tmp_path / "none.h5")


def test_labels_may_be_called_cell_and_conditions_not_label(adata, run, tmp_path):
    adata.obs = adata.obs.rename(columns={"cell_type": "cell"}).assign(label="x", count="y")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ["train", "--data", tmp_path / "cells.h5ad", "--label", "cell", "--model", tmp_path / "m.h5", "--steps", 1]
    for name in ("label", "count"):
        with pytest.raises(SystemExit, match=f"a condition cannot be called {name}"):
            run(*words, "--conditions", name)
    run(*words, "--conditions", "donor, ")
    run("sample", "--model", tmp_path / "m.h5", "--n", 2, "--out", tmp_path / "made.h5ad")
    assert list(ad.read_h5ad(tmp_path / "made.h5ad").obs["cell"].cat.categories) == sorted(TYPES)


def test_types_of_two_cells_train(run, tmp_path):
    adata = make_adata(n=50)
    adata.obs["cell_type"] = [f"type {i // 2}" for i in range(50)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    run("train", "--data", tmp_path / "cells.h5ad", "--model", tmp_path / "m.h5", "--steps", 1)
    run("sample", "--model", tmp_path / "m.h5", "--n", 1, "--out", tmp_path / "made.h5ad")
    assert np.isfinite(ad.read_h5ad(tmp_path / "made.h5ad").X.toarray()).all()
    with pytest.raises(SystemExit, match="one held-out cell of each type"):
        run("evaluate", "--model", tmp_path / "m.h5")


def test_a_killed_run_ends_in_the_same_model(adata, run, tmp_path, capsys):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    checkpoint = tmp_path / "killed.checkpoint.h5"

    def words(name, steps, seed=0):
        return [
            "train",
            "--data",
            tmp_path / "cells.h5ad",
            "--model",
            tmp_path / f"{name}.h5",
            "--steps",
            steps,
            "--label-mixing",
            0.3,
            "--seed",
            seed,
        ]

    command_line = [sys.executable, "-m", "challenges.synthesis", *map(str, words("killed", 100_000))]
    process = subprocess.Popen([*command_line, "--device", "cpu"], stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    steps = Bundle.load(checkpoint, training.KIND).settings["step"] + 5
    with pytest.raises(SystemExit, match="a checkpoint of other cells, settings or another seed"):
        run(*words("killed", steps, seed=1))
    with pytest.raises(SystemExit, match="beyond --steps 3; remove it"):
        run(*words("killed", 3))
    capsys.readouterr()
    run(*words("killed", steps))
    assert f"Resumed at step {steps - 5}" in capsys.readouterr().out
    assert not checkpoint.exists()
    run(*words("whole", steps))
    killed, whole = (files.load_model(tmp_path / f"{name}.h5", "cpu")[0] for name in ("killed", "whole"))
    assert killed.identity() == whole.identity()


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "challenges.synthesis", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout
    assert "evaluate" in done.stdout


# --- the crunch's own job ---------------------------------------------------------------------------------------------


def test_gan_cells_have_the_interface_of_the_cell_generators():
    adata = make_adata()
    adata.obs["gene"] = adata.obs["cell_type"].to_numpy()
    fitted = main_job.GANCells(n_base=20, steps=1).fit(None, adata).for_genes(pd.Index(["G3", "G1", "unknown"]))
    mean = np.array([1.0, 2.0, 0.0])
    cells = fitted.sample("G1", mean, 25)
    assert cells.shape == (25, 3)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells.mean(axis=0), mean, atol=1e-4)
    real = {tuple(row) for row in adata.X.toarray()[:, [3, 1]].round(3)}
    assert not {tuple(row) for row in fitted.base_.to_numpy()[:, :2].round(3)} <= real


def test_one_table_shows_gaussian_real_and_gan_cells(demo_folder):
    table = main_job.compare_cells(demo_folder, steps=1, seed=0)
    assert list(table["generator"]) == main_job.ROWS
    value = table.set_index("generator")["value"]
    assert value["recentred real cells"] < value["Gaussian cells"]
    assert value["recentred GAN cells"] < value["Gaussian cells"]
    assert list(table.columns) == ["generator", "metric", "value", "low", "high", "n"]
