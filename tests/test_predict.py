"""Predicted cells as an AnnData file: other tools read it, and what cannot be predicted is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import Predictor
from workbench.predict import TOP_GENES, predict

ROOT = Path(helpers.__file__).parent


@pytest.fixture(scope="module")
def asked(challenge):
    """Two knock-outs that were not measured, one of them scored."""
    return [challenge.local_targets[0], challenge.targets[0]]


@pytest.fixture(scope="module")
def written(demo_folder, asked, tmp_path_factory):
    """What the command writes and says, and the model folder."""
    place = tmp_path_factory.mktemp("predict")
    command = [sys.executable, "-m", "workbench.predict", demo_folder, "--targets", ",".join(asked)]
    command += ["--out", place / "predicted.h5ad", "--resources", place / "resources"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ad.read_h5ad(place / "predicted.h5ad"), pd.read_csv(place / "predicted.csv"), done.stdout, place


def test_cells_of_each_target_beside_real_control_cells(written, asked, challenge, stats):
    cells = written[0]
    assert list(cells.var_names) == list(challenge.genes)
    n_control = int(stats.n_cells["NC"])
    assert cells.obs["perturbation"].value_counts().to_dict() == {
        "control": min(n_control, 1000),
        **dict.fromkeys(asked, 100),
    }
    assert (cells.obs["predicted"] == (cells.obs["perturbation"] != "control")).all()
    assert cells.obs_names.is_unique
    control = cells[~cells.obs["predicted"].to_numpy(bool)]
    train = ad.read_h5ad(challenge.train_path)
    np.testing.assert_array_equal(control.X.toarray(), train[control.obs_names].X.toarray().astype(np.float32))
    assert (train.obs.loc[control.obs_names, "gene"] == "NC").all()
    expected = pd.read_csv(written[3] / "resources" / "expected.csv", index_col="gene").loc[asked[1]]
    for column in ("error", "pearson"):
        own = cells.obs.loc[cells.obs["perturbation"] == asked[1], f"expected_{column}"]
        np.testing.assert_allclose(own, expected[column])
        assert np.isnan(control.obs[f"expected_{column}"]).all()


def test_the_table_says_what_moves(written, asked, stats):
    cells, table, said, place = written
    model = Predictor.load(place / "resources" / "model.h5").predict_means(asked).clip(lower=0)
    assert table["perturbation"].value_counts().to_dict() == dict.fromkeys(asked, TOP_GENES)
    control = stats.mean.loc["NC"]
    for name, part in table.groupby("perturbation"):
        own = cells[cells.obs["perturbation"] == name]
        mean = pd.Series(np.asarray(own.X.mean(axis=0)).ravel(), cells.var_names)
        np.testing.assert_allclose(part["predicted"], mean[part["gene"]], atol=1e-3)
        np.testing.assert_allclose(part["effect"], (mean - control)[part["gene"]], atol=1e-3)
        np.testing.assert_allclose(mean, model.loc[name, mean.index], atol=1e-3)
        sizes = (mean - control).abs().sort_values(ascending=False)
        assert part["gene"].iloc[0] == sizes.index[0]
        assert part["effect"].abs().is_monotonic_decreasing
        assert f"{name} (expected Pearson " in said


def test_scanpy_reads_it_and_its_fold_changes_have_our_base(written, asked):
    cells = written[0].copy()
    sc.tl.rank_genes_groups(cells, "perturbation", reference="control", method="t-test")
    found = sc.get.rank_genes_groups_df(cells, asked[0]).set_index("names")
    groups = [cells[cells.obs["perturbation"] == name].X.toarray().mean(axis=0) for name in (asked[0], "control")]
    fold = np.log2((2.0 ** groups[0] - 1 + 1e-9) / (2.0 ** groups[1] - 1 + 1e-9))
    np.testing.assert_allclose(found.loc[cells.var_names, "logfoldchanges"], fold, atol=1e-3)


def test_a_saved_model_is_used_until_the_cells_are_newer(written, demo_folder, asked, capsys, folder):
    resources = written[3] / "resources"
    again, _ = predict(demo_folder, asked, resources=resources)
    assert "Using " in capsys.readouterr().out
    np.testing.assert_array_equal(again.X.toarray(), written[0].X.toarray())
    (resources / "features").mkdir()
    (resources / "features" / "new.gmt").write_text("no set")
    with pytest.warns(UserWarning, match=r"model\.h5: trained with other files .*added: features/new\.gmt"):
        predict(demo_folder, asked, resources=resources)
    shutil.rmtree(resources / "features")
    os.utime(folder / CRUNCH.train_file, (2e9, 2e9))
    predict(folder, asked, resources=resources)
    assert "Training on 1,500 cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["NC+NC"], "the control; name genes, or combinations"),
        (["{measured}+NC"], "measured, so their real cells are in"),
        (["{other}+{other}x"], "neither measured as a gene nor in"),
        (["{measured}"], r"measured, so their real cells are in .*obesity_challenge_1\.h5ad"),
        (["{other}x"], r"neither measured as a gene nor in .*predict_perturbations\.txt; did you mean .*{other}"),
        ([" "], "names no gene"),
    ],
)
def test_targets_that_cannot_be_predicted(demo_folder, challenge, asked, targets, says, tmp_path):
    words = {"local": asked[0], "other": asked[1], "measured": challenge.perturbations[0]}
    with pytest.raises(DataError, match=says.format(**words)) as caught:
        predict(demo_folder, [target.format(**words) for target in targets], resources=tmp_path / "resources")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "resources").exists()


def test_effects_of_a_combination_are_added_up_where_none_was_measured(
    demo_folder, asked, challenge, stats, tmp_path, capsys
):
    names = [f"{asked[0]}+{asked[1]}", f"{asked[1]}+{challenge.perturbations[0]}", asked[1]]
    predict(demo_folder, asked, resources=tmp_path / "resources")
    capsys.readouterr()
    cells, _ = predict(demo_folder, names, resources=tmp_path / "resources")
    assert "is of single knock-outs; training again for combinations" in capsys.readouterr().out
    model = Predictor.load(tmp_path / "resources" / "model.h5", like=Predictor.default())
    alone, control = model.predict_means([*asked, challenge.perturbations[0]]), stats.mean.loc["NC"]
    for name in names[:2]:
        mean = np.asarray(cells[cells.obs["perturbation"] == name].X.mean(axis=0)).ravel()
        added = alone.loc[name.split("+")].sum() - control
        np.testing.assert_allclose(mean, added[cells.var_names].clip(lower=0), atol=1e-3)
    predict(demo_folder, names[:1], resources=tmp_path / "resources")
    assert "Using " in capsys.readouterr().out


def test_a_model_of_other_genes_is_refused(written, tmp_path, asked):
    from workbench.simulate import simulate  # noqa: PLC0415

    simulate(tmp_path / "data", cells=300, genes=60, perturbations=4)
    other = helpers.load_challenge(tmp_path / "data")
    os.utime(tmp_path / "data" / CRUNCH.train_file, (1, 1))
    with pytest.raises(DataError, match=r"model\.h5: trained on other genes than those of"):
        predict(tmp_path / "data", [other.targets[0]], resources=written[3] / "resources")
