"""The three scores against literal transcriptions of the platform's definitions, and `score` on whole files."""

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import anndata as ad
import h5py
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


def with_value(path, out, name, column, value, last=False):
    """A copy of a file of cells, dense, with one value changed in a cell of that perturbation."""
    adata = ad.read_h5ad(path)
    adata.X = helpers.dense(adata.X)
    rows = np.flatnonzero(adata.obs["gene"] == name)
    adata.X[rows[-1 if last else 0], column] = value
    adata.write_h5ad(out)
    return out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("number", [0, 2], ids=["prediction", "truth"])
def test_cells_that_are_not_finite_are_an_error_that_names_file_and_perturbation(files, tmp_path, number, value):
    name = ad.read_h5ad(files[2]).obs["gene"].cat.categories[3]
    for last in (False, True):  # MMD takes the first cells alone
        changed = list(files)
        changed[number] = with_value(files[number], tmp_path / "changed.h5ad", name, 7, value, last)
        with pytest.raises(DataError, match=rf"changed\.h5ad: X holds NaN or infinite values in the cells of {name}"):
            helpers.score(*changed, panel_size=30, n_panels=1)


def test_values_too_large_to_square_are_no_score(files, tmp_path):
    truth = ad.read_h5ad(files[2])
    name = truth.obs["gene"].cat.categories[0]
    truth.X[np.flatnonzero(truth.obs["gene"] == name)[0]] = 1e200
    truth.write_h5ad(tmp_path / "t.h5ad")
    with pytest.raises(DataError, match=f"{name}: .*mmd is not finite"):
        helpers.score(*files[:2], tmp_path / "t.h5ad", files[3])


def test_cell_scores_name_what_is_not_finite():
    good, bad = np.ones((3, 4)), np.full((3, 4), np.nan)
    reference = np.zeros(4)
    for cells, what in (((bad, good, reference), "true cells"), ((good, bad, reference), "predicted cells")):
        with pytest.raises(DataError, match=f"^A: NaN or infinite values in the {what}"):
            helpers.cell_scores(*cells, name="A")
    with pytest.raises(DataError, match=r"^A: NaN or infinite values in the reference"):
        helpers.cell_scores(good, good, bad[0], name="A")
    with pytest.raises(DataError, match=r"^A: there are no predicted cells"):
        helpers.cell_scores(good, good[:0], reference, name="A")
    assert helpers.cell_scores(good, good, reference)["pearson_delta"] == 0.0, "all genes differ by the same"


@pytest.mark.parametrize("sigma", [0, -1, -5.0, np.nan, np.inf, "abc", "", None, "nan", 1e400])
def test_a_bandwidth_is_positive_and_finite(files, sigma):
    with pytest.raises(DataError, match=r"sigma is .* 'scaled', 'calibrated' or a positive number"):
        helpers.score(*files, sigma=sigma)
    with pytest.raises(DataError, match="sigma is"):
        helpers.mmd(np.ones((2, 3)), np.zeros((2, 3)), sigma)


def test_equal_cells_calibrate_no_bandwidth(files, tmp_path):
    truth = ad.read_h5ad(files[2])
    truth.X[:] = 1.5
    truth.write_h5ad(tmp_path / "t.h5ad")
    with pytest.raises(DataError, match=r"'calibrated': the mean squared distance between true cells is 0"):
        helpers.score(*files[:2], tmp_path / "t.h5ad", files[3], sigma="calibrated")
    truth[:1].copy().write_h5ad(tmp_path / "t.h5ad")
    with pytest.raises(DataError, match=r"'calibrated': .* look at the 1 true cells"):
        helpers.score(*files[:2], tmp_path / "t.h5ad", files[3], sigma="calibrated")


def test_no_perturbation_is_left_out_of_a_mean(files, tmp_path):
    for number in (1, 3):
        table = pd.read_csv(files[number])
        table.iloc[1:].to_csv(tmp_path / "short.csv", index=False)
        changed = [*files[:number], tmp_path / "short.csv", *files[number + 1 :]]
        with pytest.raises(DataError, match=f"short.csv: no row for the scored perturbations {table['gene'][0]}"):
            helpers.score(*changed)
    table = helpers.score(*files)
    for value in (np.nan, np.inf):
        table.loc[3, "value"] = value
        with pytest.raises(DataError, match=f"NaN or infinite values for {table.loc[3, 'perturbation']}"):
            helpers.summarise_scores(table)


def test_shares_that_are_missing_have_no_distance():
    truth = pd.DataFrame({"pre_adipo": 0.5, "adipo": 0.3, "other": 0.2, "lipo": 0.1}, index=["A", "B"])
    for where, tables in (("true", (truth * np.nan, truth)), ("predicted", (truth, truth * np.inf))):
        with pytest.raises(DataError, match=f"{where} proportions: values are missing or infinite for A, B"):
            helpers.l1_by_perturbation(*tables)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (lambda n: np.ones(n - 1), "must hold one number for each of the 240 genes of var"),
        (lambda n: np.ones((n, 1)), "must hold one number for each of the 240 genes"),
        (lambda n: np.full(n, b"x"), "must hold one number for each of the 240 genes"),
        (lambda n: np.where(np.arange(n) == 1, np.nan, 1.0), "is NaN or infinite for "),
    ],
)
def test_a_reference_that_does_not_fit_is_said(files, tmp_path, stored, says):
    shutil.copy(files[2], tmp_path / "t.h5ad")
    with h5py.File(tmp_path / "t.h5ad", "r+") as file:
        del file["uns/perturbed_centroid_train"]
        file["uns/perturbed_centroid_train"] = stored(240)
    with pytest.raises(DataError, match=r"t\.h5ad: uns\['perturbed_centroid_train'\] " + says):
        helpers.score(*files[:2], tmp_path / "t.h5ad", files[3])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"genes": []}, "genes: a panel of 0"),
        ({"genes": ["KEEP"]}, "genes: a panel of 1; scores need at least two"),
        ({"n_panels": 0}, "n_panels is 0"),
        ({"panel_size": 1}, "panel_size 1"),
    ],
)
def test_a_panel_has_at_least_two_genes(files, challenge, options, says):
    if options.get("genes"):
        options = {"genes": [challenge.genes_to_predict[0]]}
    with pytest.raises(DataError, match=says):
        helpers.score(*files, **options)


def test_genes_in_common_are_needed():
    with pytest.raises(DataError, match="have no gene in common"):
        helpers.draw_panels(pd.Index(["A", "B"]), pd.Index(["C"]), None, 3, 1000, 0)
    with pytest.raises(DataError, match="have 1 gene in common; scores need at least two"):
        helpers.draw_panels(pd.Index(["A", "B"]), pd.Index(["A"]), None, 3, 1000, 0)
