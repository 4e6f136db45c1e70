"""Modality prediction: evaluation and the command line."""

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import REAL_DATA
from scipy.stats import pearsonr
from simulated_pairs import TINY, simulated, split, write

from challenges import common
from challenges.modality import __main__ as cli
from challenges.modality import data, evaluate, folds, models, plots
from challenges.modality.baselines import REFERENCE
from workbench.pictures import style


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
        said = capsys.readouterr().out
        assert re.search(rf"^Training {name}: about \d+ (s|min)$", said, re.MULTILINE)
        assert "Predicting 20 cells x 12 features: about 1 s" in said
        found = ad.read_h5ad(out)
        assert found.shape == (20, 12)
        assert found.uns["method_id"] == name
    methods = ["--method", "ridge", "adversarial", "adversarial_unpaired", "--loss", "hinge"]
    out = ["--out", str(tmp_path / "out" / "table.csv"), "--pictures", str(tmp_path / "pictures")]
    cli.main(["evaluate", *where, *methods, *out])
    told = r"^Training and measuring ridge, adversarial, adversarial_unpaired: about \d+ (s|min)$"
    assert re.search(told, capsys.readouterr().out, re.MULTILINE)
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == 6 * 6  # methods with the baselines x metrics
    assert table.notna().all().all()
    for name in ("picture", "detail_cells", "detail_features"):
        assert (tmp_path / "pictures" / f"GEX_ADT_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_draws_every_method_beside_the_mean_and_says_what_is_best(scored):
    (axes,) = plots.picture(scored.table, "ridge", scored.last).axes
    rmse = scored.table.query("metric == 'RMSE'").set_index("method")["value"]
    title = axes.get_title(loc="left")
    assert title.startswith(f"ridge predicts protein from expression: its error is {rmse['ridge']:.3g},\nthe mean's")
    drawn = {tuple(line.get_xdata()): line.get_color() for line in axes.lines}
    assert drawn[(rmse[REFERENCE], rmse[REFERENCE])] == "black"
    assert drawn[(rmse["ridge"],)] == style.ORANGE
    assert set(drawn.values()) <= {"black", style.ORANGE, style.BLUE}
    assert f"zeros {rmse['zeros']:.3g}" in axes.get_xlabel()


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


@pytest.fixture
def counts(tmp_path):
    """A folder with training files of counts, and a file of cells to predict elsewhere."""
    files = split(simulated(noise=0.1))
    for part, cells in files.items():
        cells.X = sp.csr_matrix(np.rint(np.expm1(cells.X.toarray()).clip(0, 500)).astype(np.float32))
        if part != "test_mod1":
            cells.write_h5ad(tmp_path / f"{'train' if 'train' in part else 'truth'}_{part[-4:]}.h5ad")
    cells = files["test_mod1"]
    cells.obs["batch"] = "of another day"
    cells.write_h5ad(tmp_path / "mine.h5ad")
    return tmp_path


def test_predict_needs_the_model_and_the_cells_alone(counts, capsys):
    words = ["--work", str(counts / "work"), "--method", "ridge"]
    cli.main(["train", "--data", str(counts), *words])
    cells = ad.read_h5ad(counts / "mine.h5ad")
    for path in counts.glob("train_*.h5ad"):
        path.rename(counts / "work" / path.name)
    cli.main(["predict", "--data", str(counts / "mine.h5ad"), *words])
    found = ad.read_h5ad(counts / "work" / "GEX_ADT_ridge.h5ad")
    truth = ad.read_h5ad(counts / "truth_mod2.h5ad").X.toarray()
    truth = np.log1p(truth / np.exp(np.log1p(truth).mean(axis=1, keepdims=True)))
    assert found.uns["values"].startswith("centred log ratio")
    assert rmse(found.X, truth) < 0.6 * truth.std(axis=0).mean()
    shuffled = cells[:, ::-1][:, 2:].copy()  # without GEX29 and GEX28
    extra = ad.AnnData(sp.csr_matrix((20, 1), dtype=np.float32), obs=cells.obs, var=pd.DataFrame(index=["NEW"]))
    ad.concat([shuffled, extra], axis=1, merge="first").write_h5ad(counts / "other_gex.h5ad")
    capsys.readouterr()
    cli.main(["predict", "--data", str(counts / "other_gex.h5ad"), *words, "--out", str(counts / "other_out.h5ad")])
    said = capsys.readouterr().out
    assert "2 features of training are missing: GEX28, GEX29" in said
    assert "1 features that training did not have are left out: NEW" in said
    assert rmse(ad.read_h5ad(counts / "other_out.h5ad").X, truth) < 0.7 * truth.std(axis=0).mean()


def rmse(found, truth):
    return np.sqrt(((found - truth) ** 2).mean())


def normalised_values(cells):
    cells.X = cells.X.log1p()


def nameless(cells):
    del cells.var["feature_types"]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (normalised_values, [], r"mine.h5ad: normalised values, but .*GEX_ADT_ridge.h5 was made of counts; write both"),
        (nameless, [], "mine.h5ad: does not say what its values are; say --mod1"),
        (lambda cells: None, ["--mod1", "ADT"], "mine.h5ad: holds GEX, not ADT"),
        (lambda cells: None, ["--mod2", "ATAC"], "GEX_ATAC_ridge.h5: no such model; train first"),
        (lambda cells: setattr(cells, "var_names", [f"E{i}" for i in range(30)]), [], "none of the 30 features of tr"),
    ],
)
def test_cells_that_a_model_cannot_predict_are_refused_in_one_line(counts, change, words, message):
    where = ["--work", str(counts / "work"), "--method", "ridge"]
    cli.main(["train", "--data", str(counts), *where])
    cells = ad.read_h5ad(counts / "mine.h5ad")
    change(cells)
    cells.write_h5ad(counts / "mine.h5ad")
    with pytest.raises(SystemExit, match=message) as refused:
        cli.main(["predict", "--data", str(counts / "mine.h5ad"), *where, *words])
    assert "\n" not in str(refused.value)


def test_scale_as_is_leaves_counts_alone_from_training_to_prediction(counts):
    where = ["--work", str(counts / "work"), "--method", "ridge"]
    cli.main(["train", "--data", str(counts), *where, "--scale", "as-is"])
    cli.main(["predict", "--data", str(counts / "mine.h5ad"), *where])
    found = ad.read_h5ad(counts / "work" / "GEX_ADT_ridge.h5ad")
    assert found.X.max() > 50


def test_accessibility_is_predicted_sparse_at_less_than_a_thousandth_of_the_rmse(tmp_path, capsys):
    source, target = simulated(400, n_source=60, mod2="ATAC", seed=3)
    shares = 0.3 / (1 + np.exp(6 - 1.5 * target.X.toarray()))
    peaks = np.random.default_rng(0).random((400, 12)) < shares * np.geomspace(0.05, 1, 12)
    target.X = sp.csr_matrix(peaks.astype(np.float32))
    where = ["--data", str(write(tmp_path, split([source, target], 200))), "--work", str(tmp_path / "work")]
    cli.main(["train", *where, "--method", "ridge"])
    cli.main(["predict", *where, "--method", "ridge"])
    found, truth = ad.read_h5ad(tmp_path / "work" / "GEX_ATAC_ridge.h5ad"), peaks[200:]
    model, _ = common.load_model(tmp_path / "work" / "GEX_ATAC_ridge.h5", models.ReducedModel)
    assert isinstance(found.X, sp.csr_matrix)
    assert found.uns["threshold"] == pytest.approx(model.threshold_)
    assert found.X.data.min() >= model.threshold_ > models.LEAST_VALUE
    assert (found.layers["normalized"] != found.X).nnz == 0
    whole = model.predict(data.read_pair(tmp_path).test_source.X).dense()
    assert found.X.nnz < 0.9 * (whole > 0).sum()
    assert rmse(found.X.toarray(), truth) < 1.001 * rmse(whole, truth)
    capsys.readouterr()
    cli.main(["evaluate", *where, "--method", "ridge"])
    said = re.search(
        r"the (\d+)% of values from .* on are kept, which costs (-?[0-9.]+) % of the RMSE", capsys.readouterr().out
    )
    assert int(said[1]) == pytest.approx(100 * found.X.nnz / whole.size, abs=0.51)
    assert float(said[2]) == pytest.approx(100 * (rmse(found.X.toarray(), truth) / rmse(whole, truth) - 1), abs=1e-3)
    assert value(pd.read_csv(tmp_path / "work" / "GEX_ATAC_table.csv"), "ridge", "RMSE")["value"] == pytest.approx(
        rmse(whole, truth), rel=1e-5
    )


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
