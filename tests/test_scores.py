"""The three scores against literal transcriptions of the platform's definitions, and `score` on whole files."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import run_infer

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import Predictor


def mmd_by_broadcasting(truth, prediction, sigma=2326.0):
    """The definition of the platform's contract: all pairs by broadcasting, five bandwidths, first n of each side."""
    n = min(len(truth), len(prediction))
    both = np.concatenate([truth[:n], prediction[:n]])
    D = ((both[:, None, :] - both[None, :, :]) ** 2).sum(axis=2)
    K = sum(np.exp(-D / (sigma / 4 * 2**i)) for i in range(5))
    return (K[:n, :n].sum() + K[n:, n:].sum() - 2 * K[:n, n:].sum()) / n**2


@pytest.mark.parametrize(("n_true", "n_predicted", "scale"), [(40, 40, 1), (70, 25, 3), (5, 60, 0.01), (1, 1, 2)])
@pytest.mark.parametrize("sigma", [2326.0, 150.0])
def test_mmd_equals_its_definition(n_true, n_predicted, scale, sigma):
    rng = np.random.default_rng(n_true)
    truth, prediction = rng.gamma(2, scale, (n_true, 90)) + 50, rng.gamma(1.5, scale, (n_predicted, 90)) + 50
    assert helpers.mmd(truth, prediction, sigma) == pytest.approx(
        mmd_by_broadcasting(truth, prediction, sigma), abs=1e-9
    )


def test_mmd_takes_the_first_rows_and_float32():
    rng = np.random.default_rng(0)
    truth, prediction = rng.normal(size=(30, 50)), rng.normal(1, 1, size=(100, 50)).astype(np.float32)
    assert helpers.mmd(truth, prediction) == helpers.mmd(truth, prediction[:30])
    assert helpers.mmd(truth, prediction) != helpers.mmd(truth, prediction[::-1])
    assert helpers.mmd(truth, truth) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        helpers.mmd(truth[:0], prediction)


def test_pearson_delta_equals_its_definition():
    rng = np.random.default_rng(0)
    truth, prediction, reference = rng.normal(size=(30, 50)), rng.normal(size=(100, 50)), rng.normal(size=50)
    a, b = truth.mean(axis=0) - reference, prediction.mean(axis=0) - reference
    a, b = a - a.mean(), b - b.mean()
    expected = sum(a * b) / np.sqrt(sum(a * a) * sum(b * b))
    assert helpers.pearson_delta(truth, prediction, reference) == pytest.approx(expected, abs=1e-9)
    assert helpers.pearson_delta(truth.mean(axis=0), prediction.mean(axis=0), reference) == pytest.approx(expected)
    assert np.isnan(helpers.pearson_delta(truth, reference, reference))


def test_l1_distance_equals_its_definition_and_matches_by_name():
    truth = pd.DataFrame(
        {"gene": ["A", "B"], "pre_adipo": [0.5, 0.2], "adipo": [0.3, 0.0], "other": [0.2, 0.8], "lipo": [0.1, 0.0]}
    )
    prediction = pd.DataFrame(
        {
            "gene": ["C", "B", "A"],
            "pre_adipo": [0.0, 0.3, 0.4],
            "adipo": [1.0, 0.1, 0.4],
            "other": [0.0, 0.6, 0.2],
            "lipo": [0.0, 0.05, 0.1],
        }
    )
    a = 0.75 * (0.1 + 0.1 + 0.0) + 0.25 * abs(0.1 / 0.3 - 0.1 / 0.4)
    b = 0.75 * (0.1 + 0.1 + 0.2) + 0.25 * abs(0.0 / 1e-20 - 0.05 / 0.1)
    assert helpers.l1_distance(truth, prediction) == pytest.approx((a + b) / 2, abs=1e-9)
    assert helpers.l1_distance(truth.set_index("gene"), prediction) == pytest.approx((a + b) / 2, abs=1e-9)
    with pytest.raises(DataError, match="no row for A"):
        helpers.l1_distance(truth, prediction[:2])
    with pytest.raises(DataError, match="duplicated names B"):
        helpers.l1_distance(truth, pd.concat([prediction, prediction[1:2]]))


@pytest.fixture(scope="module")
def files(trained, challenge, tmp_path_factory):
    prediction = tmp_path_factory.mktemp("prediction")
    targets = challenge.local_proportions.index
    prediction, shares = run_infer("", trained, prediction, targets, challenge.genes_to_predict)
    return prediction, shares, challenge.local_truth_path, challenge.folder / CRUNCH.local_proportions_file


def test_score_equals_the_definitions_perturbation_by_perturbation(files, challenge):
    table = helpers.score(*files, panel_size=50, n_panels=2, seed=4)
    assert table.groupby("metric")["perturbation"].nunique().to_dict() == {
        "l1_distance": 5,
        "mmd": 5,
        "pearson_delta": 5,
    }
    assert table["panel"].nunique() == 2
    prediction, truth = ad.read_h5ad(files[0]), ad.read_h5ad(files[2])
    prediction.X = prediction.X.toarray()
    reference = pd.Series(truth.uns["perturbed_centroid_train"], index=truth.var_names)
    panels = helpers.draw_panels(truth.var_names, prediction.var_names, None, 2, 50, 4)
    assert len(set(panels[0]) & set(panels[1])) < 30
    for name in challenge.local_proportions.index:
        for i, panel in enumerate(panels):
            x = truth[truth.obs["gene"] == name, panel].X
            y = prediction[prediction.obs["gene"] == name, panel].X.astype(float)
            found = table[(table["perturbation"] == name) & (table["panel"] == i)].set_index("metric")["value"]
            assert found["mmd"] == pytest.approx(mmd_by_broadcasting(x, y, 2326 * 50 / 1000), abs=1e-9)
            expected = np.corrcoef(x.mean(axis=0) - reference[panel], y.mean(axis=0) - reference[panel])[0, 1]
            assert found["pearson_delta"] == pytest.approx(expected, abs=1e-9)


def test_a_perfect_prediction_scores_perfectly(files, tmp_path):
    truth = ad.read_h5ad(files[2])
    truth.write_h5ad(tmp_path / "p.h5ad")
    pd.read_csv(files[3]).iloc[::-1].to_csv(tmp_path / "p.csv", index=False)
    summary = helpers.summarise_scores(helpers.score(tmp_path / "p.h5ad", tmp_path / "p.csv", files[2], files[3]))
    np.testing.assert_allclose(summary["mean"], [1, 0, 0], atol=1e-9)


def test_bandwidth_rules_are_said(files):
    sizes = {}
    for sigma in ("scaled", "calibrated", 500.0):
        table = helpers.score(*files, panel_size=80, n_panels=1, sigma=sigma)
        row = table[table["metric"] == "mmd"].iloc[0]
        sizes[row["sigma_rule"]] = row["sigma"]
    assert sizes["scaled"] == pytest.approx(2326 * 80 / 1000)
    assert sizes["given"] == 500.0
    truth = ad.read_h5ad(files[2])
    panel = helpers.draw_panels(truth.var_names, ad.read_h5ad(files[0]).var_names, None, 1, 80, 0)[0]
    X = truth[:, panel].X
    D = ((X[:, None] - X[None]) ** 2).sum(axis=2)
    assert sizes["calibrated"] == pytest.approx(D.sum() / (len(X) * (len(X) - 1)), rel=0.05)


def test_panel_of_given_genes_and_whole_panel(files, challenge):
    genes = challenge.genes_to_predict[[7, 3, 90]]
    table = helpers.score(*files, genes=genes)
    assert table.loc[table["metric"] == "mmd", "n_genes"].unique().tolist() == [3]
    whole = helpers.score(*files)
    assert whole.loc[whole["metric"] == "mmd", "n_genes"].unique().tolist() == [len(challenge.genes_to_predict)]
    assert whole["panel"].unique().tolist() == [0]
    with pytest.raises(DataError, match=r"not in both .* NOPE"):
        helpers.score(*files, genes=["NOPE"])


def test_spread_over_panels(files):
    table = helpers.score(*files, panel_size=30, n_panels=4)
    summary = helpers.summarise_scores(table)
    means = table[table["metric"] == "mmd"].groupby("panel")["value"].mean()
    assert summary.loc["mmd", "spread"] == pytest.approx(means.std())
    assert summary.loc["mmd", "spread"] > 0
    assert summary.loc["l1_distance", "spread"] == 0


def test_predicting_the_reference_counts_as_zero(files, stats, challenge, tmp_path):
    pool = helpers.read_cells(challenge.train_path, np.arange(120))
    method = Predictor(helpers.PerturbedMean(), helpers.MedianProportions(), helpers.RecentredCells())
    method.fit(stats, challenge.proportions, pool)
    paths = tmp_path / "p.h5ad", tmp_path / "p.csv"
    method.write(*paths, challenge.local_proportions.index, challenge.genes_to_predict)
    table = helpers.score(*paths, *files[2:])
    assert (table.loc[table["metric"] == "pearson_delta", "value"] == 0).all()


def test_missing_perturbation_and_missing_reference(files, tmp_path):
    prediction = ad.read_h5ad(files[0])
    lost = prediction.obs["gene"].iloc[0]
    prediction[prediction.obs["gene"] != lost].copy().write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(DataError, match=f"no cells for the scored perturbations {lost}"):
        helpers.score(tmp_path / "p.h5ad", *files[1:])
    truth = ad.read_h5ad(files[2])
    del truth.uns["perturbed_centroid_train"]
    truth.write_h5ad(tmp_path / "t.h5ad")
    with pytest.raises(DataError, match="uns has no 'perturbed_centroid_train'"):
        helpers.score(files[0], files[1], tmp_path / "t.h5ad", files[3])


def test_every_executor_gives_the_same_table(files, monkeypatch):
    monkeypatch.setattr(helpers, "SCORED_TOGETHER", 2)
    default = helpers.score(*files, panel_size=60, n_panels=2)
    for executor in (ThreadPoolExecutor(3), ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))):
        with executor:
            table = helpers.score(*files, panel_size=60, n_panels=2, executor=executor)
        pd.testing.assert_frame_equal(table, default, check_exact=True)


def test_cells_that_do_not_lie_together_are_scored_alike(files, tmp_path):
    """Truth and prediction with their cells shuffled, but in the same order within each perturbation."""
    shuffled = []
    for number in (0, 2):
        adata = ad.read_h5ad(files[number])
        order = np.random.default_rng(number).permutation(adata.n_obs)
        genes = adata.obs["gene"].to_numpy()
        place = np.empty_like(order)
        for gene in np.unique(genes):
            place[np.flatnonzero(genes[order] == gene)] = np.flatnonzero(genes == gene)
        adata[place].copy().write_h5ad(tmp_path / f"{number}.h5ad")
        shuffled.append(tmp_path / f"{number}.h5ad")
    table = helpers.score(shuffled[0], files[1], shuffled[1], files[3])
    pd.testing.assert_frame_equal(table, helpers.score(*files), check_exact=False, atol=1e-12)
