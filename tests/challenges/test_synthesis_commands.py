"""Synthetic cells: the command line, and the generator in the crunch's own job."""

import re
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from simulated_cells import TYPES, make_adata

from challenges.common import Bundle, load_model
from challenges.synthesis import __main__ as cli
from challenges.synthesis import evaluate, main_job, training
from challenges.synthesis.models import CellGAN

MIXTURES = ["B cell:0.5,NK cell:0.5", f"{TYPES[2]}:1,B cell:3"]


@pytest.fixture
def adata():
    return make_adata()


def words(verb, **options):
    """A command line on the CPU: `drop_rare=True` is `--drop-rare`, and each value of a list repeats its option."""
    found = [verb, "--device", "cpu"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(option)
        else:
            for one in value if isinstance(value, list) else [value]:
                found += [option, str(one)]
    return found


def run(verb, **options):
    cli.main(words(verb, **options))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a file of cells, and a model trained on it for two steps."""
    folder = tmp_path_factory.mktemp("work")
    make_adata().write_h5ad(folder / "cells.h5ad")
    run("train", data=folder / "cells.h5ad", work=folder, steps=2, conditions="donor")
    return folder


def test_prepare_says_what_is_there_what_is_held_out_and_how_long_it_takes(tmp_path, adata, capsys):
    adata = adata[:-1].copy()  # 40, 40 and 39 cells
    adata.write_h5ad(tmp_path / "cells.h5ad")
    run("prepare", data=tmp_path / "cells.h5ad", conditions="donor", held_out=0.25, steps=7)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["B", "cell", "40", "30", "10"] in lines
    assert ["T:CD4+,", "naive", "39", "29", "10"] in lines
    assert ["donor:", "d0,", "d1"] in lines
    assert lines[-1][:7] == ["gan:", "7", "steps;", "training", "takes", "about", lines[-1][6]]
    run("prepare", data=tmp_path / "cells.h5ad", method="start")
    assert "start: 0 steps; training takes about" in capsys.readouterr().out


def test_sample_writes_types_and_mixtures_on_the_files_own_scale(work, tmp_path, capsys):
    run("sample", work=work, n=7, type=TYPES[0], mix=MIXTURES, condition="donor=d1", out=tmp_path / "s.h5ad")
    assert "Drawing 21 cells x 30 genes: about 1 s" in capsys.readouterr().out
    made = ad.read_h5ad(tmp_path / "s.h5ad")
    assert made.shape == (21, 30)
    assert made.obs["cell_type"].value_counts().to_dict() == dict.fromkeys(
        ["B cell", "B cell:0.5,NK cell:0.5", "B cell:0.75,T:CD4+, naive:0.25"], 7
    )
    assert (made.obs["donor"] == "d1").all()
    assert made.obsm["label_weights"][7, list(made.uns["synthesis"]["types"]).index("NK cell")] == 0.5
    assert made.uns["synthesis"]["synthetic"]
    assert made.uns["synthesis"]["scale"].startswith("log(1 + normalised)")
    counts = made.layers["counts"].toarray()
    np.testing.assert_allclose(made.X.toarray(), np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)), rtol=1e-3)


def test_the_same_seed_samples_the_same_cells_and_another_seed_others(work, tmp_path):
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        run("sample", work=work, n=4, seed=seed, out=tmp_path / f"{name}.h5ad")
    one, same, other = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("one", "same", "other"))
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > one.X.nnz / 4
    assert [cells.uns["synthesis"]["seed"] for cells in (one, other)] == [5, 6]


def test_sampled_cells_name_the_model_that_made_them(work, tmp_path):
    run("train", data=work / "cells.h5ad", work=tmp_path, method="start")
    made = []
    for folder, method in ((work, "gan"), (tmp_path, "start")):
        run("sample", work=folder, method=method, n=2)
        model, _ = load_model(folder / f"{method}.h5", CellGAN)
        made.append(ad.read_h5ad(folder / f"{method}.h5ad").uns["synthesis"]["model"])
        assert made[-1] == model.identity()
    assert made[0] != made[1]


def test_sample_makes_every_type_where_none_is_named(work, tmp_path):
    run("sample", work=work, n=3, data=work / "cells.h5ad", out=tmp_path / "s.h5ad")
    assert ad.read_h5ad(tmp_path / "s.h5ad").obs["cell_type"].value_counts().to_dict() == dict.fromkeys(TYPES, 3)


def test_sample_needs_the_model_alone_and_takes_the_genes_of_any_file_by_name(work, tmp_path, capsys):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "gan.h5").write_bytes((work / "gan.h5").read_bytes())
    run("sample", work=alone, n=2)
    assert ad.read_h5ad(alone / "gan.h5ad").shape == (6, 30)
    genes = ["G7", "new", *(f"G{i}" for i in range(5))]
    file = ad.AnnData(np.zeros((1, 7), np.float32), var=pd.DataFrame(index=genes))  # without labels
    file.write_h5ad(tmp_path / "genes.h5ad")
    capsys.readouterr()
    run("sample", work=alone, n=2, data=tmp_path / "genes.h5ad", out=tmp_path / "s.h5ad")
    said = capsys.readouterr().out
    assert "24 genes of the model are missing, and left out: G10, G11" in said
    assert "1 genes unknown to the model get no values: new" in said
    made, whole = ad.read_h5ad(tmp_path / "s.h5ad"), ad.read_h5ad(alone / "gan.h5ad")
    assert list(made.var_names) == ["G7", "G0", "G1", "G2", "G3", "G4"]
    assert (made.X != whole[:, made.var_names].X).nnz == 0
    file.var_names = [f"ENSG{i}" for i in range(7)]
    file.write_h5ad(tmp_path / "genes.h5ad")
    with pytest.raises(SystemExit, match=r"none of the genes of the model, such as G0, G1, G2, .*; name them alike"):
        run("sample", work=alone, n=2, data=tmp_path / "genes.h5ad")


def test_evaluate_writes_the_table_and_the_pictures(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "TREES", 10)
    table, pictures = tmp_path / "table.csv", tmp_path / "pictures"
    run("evaluate", data=work / "cells.h5ad", label="cell_type", work=work, draws=2, out=table, pictures=pictures)
    found = pd.read_csv(table)
    assert list(found.columns) == ["method", "metric", "value", "low", "high", "n"]
    assert {"start", "gan", "real held-out cells"} < set(found["method"])
    details = {"pca", "moments", "zero_rates_by_type", "variance_by_type", "mixing"}
    names = {"picture.png", *(f"detail_{name}.png" for name in details)}
    assert {path.name for path in pictures.iterdir()} == names
    said = capsys.readouterr().out
    assert "zero_rate_correlation_by_gene" in said
    assert re.search(r"^Evaluating 10 sets of cells: about \d+ (s|min)$", said, re.MULTILINE)
    run("evaluate", work=work, method="gan", draws=1)
    assert "start" not in set(pd.read_csv(work / "table.csv")["method"])


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("sample", {"type": "Z cell"}, "error: unknown type Z cell; the model knows B cell, NK cell"),
        ("sample", {"mix": "B cell"}, "error: --mix 'B cell': expected 'type:weight,type:weight'"),
        ("sample", {"mix": "B cell:0.5,Z:0.5"}, "error: unknown type Z"),
        ("sample", {"n": 2**31 - 1}, "error: 6,442,450,941 cells x 30 genes take 3092.4 GB of memory"),
        ("sample", {"condition": "donor"}, "error: --condition 'donor': expected name=level"),
        ("sample", {"condition": "donor=d7"}, "error: condition 'donor' has no level 'd7'"),
        ("train", {"held_out": 1}, "error: --held-out is a share from 0 to below 1"),
    ],
)
def test_the_command_line_says_what_is_wrong(work, verb, options, message):
    with pytest.raises(SystemExit) as stopped:
        run(verb, work=work, **options)
    assert str(stopped.value).startswith(message)


def test_other_genes_other_cells_and_no_model_are_refused(work, tmp_path):
    adata = make_adata()
    adata[:, :29].copy().write_h5ad(tmp_path / "fewer.h5ad")
    with pytest.raises(SystemExit, match=r"not the gene set of the model \(30 genes\); missing: G29"):
        run("evaluate", data=tmp_path / "fewer.h5ad", work=work)
    adata.obs_names = [f"other_{i}" for i in range(120)]
    adata.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(SystemExit, match="none of its cells are training cells"):
        run("evaluate", data=tmp_path / "other.h5ad", work=work)
    make_adata(seed=1).write_h5ad(tmp_path / "same_names.h5ad")
    with pytest.raises(SystemExit, match=r"cells with the names of training cells .* but not with their values"):
        run("evaluate", data=tmp_path / "same_names.h5ad", work=work)
    with pytest.raises(SystemExit, match="no such model; train first"):
        run("sample", work=tmp_path)


def test_labels_may_be_called_cell_and_conditions_not_label(adata, tmp_path):
    adata.obs = adata.obs.rename(columns={"cell_type": "cell"}).assign(label="x", count="y")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    how = {"data": tmp_path / "cells.h5ad", "label": "cell", "work": tmp_path, "steps": 1}
    for name in ("label", "count"):
        with pytest.raises(SystemExit, match=f"a condition cannot be called {name}"):
            run("train", **how, conditions=name)
    run("train", **how, conditions="donor, ")
    run("sample", work=tmp_path, n=2)
    assert list(ad.read_h5ad(tmp_path / "gan.h5ad").obs["cell"].cat.categories) == sorted(TYPES)


def test_types_of_two_cells_train(tmp_path):
    adata = make_adata(n=50)
    adata.obs["cell_type"] = [f"type {i // 2}" for i in range(50)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    run("prepare", data=tmp_path / "cells.h5ad", steps=1)
    run("train", data=tmp_path / "cells.h5ad", work=tmp_path, steps=1)
    run("sample", work=tmp_path, n=1)
    assert np.isfinite(ad.read_h5ad(tmp_path / "gan.h5ad").X.toarray()).all()
    with pytest.raises(SystemExit, match="one held-out cell of each type"):
        run("evaluate", work=tmp_path)


def test_a_killed_run_ends_in_the_same_model(adata, tmp_path, capsys):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    checkpoint = tmp_path / "killed" / "gan.checkpoint.h5"
    how = {"data": tmp_path / "cells.h5ad", "label_mixing": 0.3}
    killed, whole = ({**how, "work": tmp_path / name} for name in ("killed", "whole"))
    command_line = [sys.executable, "-m", "challenges.synthesis", *words("train", **killed, steps=100_000)]
    process = subprocess.Popen(command_line, stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    steps = Bundle.load(checkpoint, training.KIND).settings["step"] + 5
    with pytest.raises(SystemExit, match="a checkpoint of other cells, settings or another seed"):
        run("train", **killed, steps=steps, seed=1)
    with pytest.raises(SystemExit, match="beyond --steps 3; remove it"):
        run("train", **killed, steps=3)
    capsys.readouterr()
    run("train", **killed, steps=steps)
    assert f"Resumed at step {steps - 5}" in capsys.readouterr().out
    assert not checkpoint.exists()
    run("train", **whole, steps=steps)
    models = [load_model(tmp_path / name / "gan.h5", CellGAN)[0] for name in ("killed", "whole")]
    assert models[0].identity() == models[1].identity()


def test_a_save_that_fails_at_the_end_loses_no_training(adata, tmp_path, capsys, monkeypatch):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    how = {"data": tmp_path / "cells.h5ad", "work": tmp_path, "steps": 4}
    fit = CellGAN.fit

    def fit_and_spoil(self, *arguments):
        fitted = fit(self, *arguments)
        (tmp_path / "gan.h5").mkdir()
        return fitted

    monkeypatch.setattr(CellGAN, "fit", fit_and_spoil)
    with pytest.raises(SystemExit, match=r"error: .*gan\.h5: could not be written"):
        run("train", **how)
    assert (tmp_path / "gan.checkpoint.h5").exists()
    (tmp_path / "gan.h5").rmdir()
    monkeypatch.setattr(CellGAN, "fit", fit)
    monkeypatch.setattr(cli, "seconds_to_train", lambda *_: 1.0)  # which takes steps
    monkeypatch.setattr(training.Training, "step", lambda self: pytest.fail("trained again"))
    run("train", **how)
    assert "Resumed at step 4" in capsys.readouterr().out
    assert not (tmp_path / "gan.checkpoint.h5").exists()
    load_model(tmp_path / "gan.h5", CellGAN)


@pytest.mark.parametrize(
    "harm", ["random", "average/baseline", "optimiser/critic/0/exp_avg", "network/critic/score.bias"]
)
def test_a_checkpoint_that_does_not_fit_is_said_with_what_to_do(adata, tmp_path, harm):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    how, path = {"data": tmp_path / "cells.h5ad", "work": tmp_path, "steps": 3}, tmp_path / "gan.checkpoint.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellGAN, "to_bundle", lambda self: pytest.fail("stop here"))
        with pytest.raises(pytest.fail.Exception):
            run("train", **how)
    bundle = Bundle.load(path, training.KIND)
    arrays = {name: array[:-1] if name == harm else array for name, array in bundle.arrays.items()}
    Bundle(training.KIND, bundle.settings, arrays).save(path)
    with pytest.raises(SystemExit, match=r"gan\.checkpoint\.h5: a damaged checkpoint \(.*\); remove it to begin anew"):
        run("train", **how)


def test_weights_of_any_size_make_a_mixture(work, tmp_path):
    run(
        "sample", work=work, n=2, mix=["B cell:1e308,NK cell:1e308", "B cell:5e-324,NK cell:0"], out=tmp_path / "s.h5ad"
    )
    made = ad.read_h5ad(tmp_path / "s.h5ad")
    assert made.obs["cell_type"].tolist() == ["B cell:0.5,NK cell:0.5"] * 2 + ["B cell"] * 2
    np.testing.assert_allclose(made.obsm["label_weights"].sum(axis=1), 1)


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "challenges.synthesis", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout
    assert "evaluate" in done.stdout


def test_gan_cells_have_the_interface_of_the_cell_generators():
    adata = make_adata()
    adata.obs["gene"] = adata.obs["cell_type"].to_numpy()
    fitted = main_job.GANCells(n_base=20, steps=1).fit(adata).for_genes(pd.Index(["G3", "G1", "unknown"]))
    mean = np.array([1.0, 2.0, 0.0])
    cells = fitted.sample("G1", mean, 25)
    assert cells.shape == (25, 3)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells.mean(axis=0), mean, atol=1e-4)
    real = {tuple(row) for row in adata.X.toarray()[:, [3, 1]].round(3)}
    assert not {tuple(row) for row in fitted.base_.to_numpy()[:, :2].round(3)} <= real


def test_one_table_shows_gaussian_real_and_gan_cells(demo_folder, capsys):
    table = main_job.compare_cells(demo_folder, steps=1, seed=0)
    assert re.search(r"^Training the GAN on [\d,]+ cells: about \d+ s$", capsys.readouterr().out, re.MULTILINE)
    assert list(table["method"]) == ["Gaussian cells", "scaled real cells", "scaled GAN cells"]
    value = table.set_index("method")["value"]
    assert value["scaled real cells"] < value["Gaussian cells"]
    assert value["scaled GAN cells"] < value["Gaussian cells"]
    assert list(table.columns) == ["method", "metric", "value", "low", "high", "n"]
