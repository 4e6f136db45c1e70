"""Modality prediction: evaluation and the command line."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA
from scipy.stats import pearsonr
from simulated_pairs import TINY, simulated, split, write

from challenges.modality import __main__ as cli
from challenges.modality import data, evaluate, folds, models


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


@pytest.fixture
def scored(tmp_path, files):
    pairs, _ = folds.held_out(data.read_pair(write(tmp_path, files)))
    return evaluate.on_folds(pairs, ["ridge"], 0, "cpu")


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
    pairs, _ = folds.held_out(data.read_pair(write(tmp_path, cells)))
    scores = evaluate.on_folds(pairs, ["ridge"], 0, "cpu")
    assert value(scores.table, "ridge", "RMSE")["n"] == 5
    assert value(scores.table, "mean_per_feature", "Pearson per feature")["value"] == pytest.approx(0, abs=1e-9)
    errors = pd.Series(np.arange(6.0))
    alone = evaluate._interval(errors, np.arange(6))
    assert alone["high"] - alone["value"] == pytest.approx(2.5706 * errors.sem(), rel=1e-4)
    together = evaluate._interval(errors, np.repeat([0, 1, 2], 2))
    assert (together["value"], together["n"]) == (2.5, 3)
    assert together["high"] - together["value"] == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)


def test_from_files_to_prediction_and_table(tmp_path, files, quick, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    where = ["--data", str(write(folder, files))]
    cli.main(["prepare", *where])
    assert "evaluate holds out the 20 cells of the test files" in capsys.readouterr().out
    for name in ("kernel_ridge", "adversarial"):
        words, out = ["--method", name, "--work", str(tmp_path / "work")], tmp_path / f"{name}.h5ad"
        cli.main(["train", *where, *words])
        cli.main(["predict", *where, *words, "--out", str(out)])
        found = ad.read_h5ad(out)
        assert found.shape == (20, 12)
        assert found.uns["method_id"] == name
    methods = ["--method", "ridge", "adversarial", "adversarial_unpaired", "--loss", "hinge"]
    out = ["--out", str(tmp_path / "out" / "table.csv"), "--pictures", str(tmp_path / "pictures")]
    cli.main(["evaluate", *where, *methods, *out])
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == 6 * 6  # methods with the baselines x metrics
    assert table.notna().all().all()
    for name in ("GEX_ADT_cells.png", "GEX_ADT_features.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_said_without_a_traceback(tmp_path, files):
    folder = tmp_path / "data"
    folder.mkdir()
    where = ["--data", str(write(folder, files)), "--work", str(tmp_path / "work"), "--method", "ridge"]
    with pytest.raises(SystemExit, match=r"error: .*GEX_ADT_ridge.h5: no such model; train first"):
        cli.main(["predict", *where])
    cli.main(["train", *where])
    for part in ("test_mod1", "test_mod2"):
        (folder / f"set.{part}.h5ad").unlink()
    with pytest.raises(SystemExit, match=r"error: .*no test file, so there are no cells to predict"):
        cli.main(["predict", *where])
    with pytest.raises(SystemExit):
        cli.main(["train", *where, "--seed", "-1"])


@pytest.mark.parametrize(("direction", "most"), [(("GEX", "ADT"), 0.555), (("ADT", "GEX"), 0.480)])
def test_real_cells_of_another_batch_are_predicted_better_than_by_the_reference(direction, most):
    folder = REAL_DATA / "modalities"
    if not folder.exists():
        pytest.skip(f"REAL CELLS NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    pairs, how = folds.held_out(data.read_pair(folder, *direction))
    assert "289 cells of the test files, of batches that training did not have" in how
    table = evaluate.on_folds(pairs, ["kernel_ridge"], 0, "cpu").table
    assert value(table, "kernel_ridge", "RMSE")["value"] < most
    assert value(table, "kernel_ridge", evaluate.GAIN)["low"] > 10
