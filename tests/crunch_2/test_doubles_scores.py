"""The scores of crunch 2 against a literal transcription; the local split; proportions; the validator."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import helpers
from contract import CRUNCH
from helpers import DataError
from workbench.validate import validate_submission

COLUMNS = ["gene", "pre_adipo", "adipo", "lipo", "other", "lipo_adipo"]


def transcribed(truth, prediction, name, genes):
    """Pearson delta and MMD of one perturbation as the platform's definition reads."""
    true = np.asarray(truth[truth.obs["gene"] == name, genes].X, float)
    made = np.asarray(prediction[prediction.obs["gene"] == name, genes].X, float)
    parts = name.split("+")
    if len(parts) == 1:
        reference = truth.uns["single_perturbed_centroid_train"]
    elif len(parts) == 2:
        reference = truth.uns["double_perturbed_centroid_train"]
    else:
        raise ValueError(name)
    reference = pd.Series(reference, index=truth.var_names)[genes].to_numpy()
    pearson = np.corrcoef(true.mean(axis=0) - reference, made.mean(axis=0) - reference)[0, 1]
    n = min(len(true), len(made))
    total = np.concatenate([true[:n], made[:n]])
    distance = ((total[None] - total[:, None]) ** 2).sum(axis=2)
    bandwidth = 849 * len(genes) / 500 / 2 ** (5 // 2)
    kernel = sum(np.exp(-distance / (bandwidth * 2**i)) for i in range(5))
    mmd = (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).sum() / n**2
    return {"pearson_delta": pearson, "mmd": mmd}


NAMES = ["A", "B", "A+B", "A+A", "A+NC", "NC+B"]


@pytest.fixture
def files(tmp_path):
    """Truth and prediction of perturbations of every kind, and shares of each."""
    rng = np.random.default_rng(0)

    def cells(n):
        obs = pd.DataFrame({"gene": pd.Categorical(np.repeat(NAMES, n))}).rename(str)
        X = rng.gamma(2.0, 2.0, (len(obs), 60)) * (rng.random((len(obs), 60)) < 0.5)
        return ad.AnnData(X, obs, pd.DataFrame(index=[f"G{i}" for i in range(60)]))

    truth, prediction = cells(120), cells(100)
    truth.uns["single_perturbed_centroid_train"] = rng.gamma(2.0, 1.0, 60)
    truth.uns["double_perturbed_centroid_train"] = rng.gamma(2.0, 1.0, 60)
    paths = [tmp_path / name for name in ("p.h5ad", "p.csv", "t.h5ad", "t.csv")]
    prediction[:, ::-1].copy().write_h5ad(paths[0])
    truth.write_h5ad(paths[2])
    for path in (paths[1], paths[3]):
        shares = pd.DataFrame(rng.dirichlet([2, 2, 2], len(NAMES)), columns=CRUNCH.shares)
        shares["lipo"] = shares["adipo"] * rng.random(len(NAMES))
        shares["lipo_adipo"] = shares["lipo"] / shares["adipo"]
        shares.assign(gene=NAMES)[COLUMNS].to_csv(path, index=False)
    return paths


def test_scores_equal_a_literal_transcription(files):
    table = helpers.score(*files, panel_size=40, n_panels=2, seed=3)
    truth, prediction = ad.read_h5ad(files[2]), ad.read_h5ad(files[0])
    panels = helpers.draw_panels(truth.var_names, prediction.var_names, None, 2, 40, 3)
    for name in NAMES:
        for i, panel in enumerate(panels):
            found = table[(table["perturbation"] == name) & (table["panel"] == i)].set_index("metric")["value"]
            for metric, value in transcribed(truth, prediction, name, panel).items():
                assert found[metric] == pytest.approx(value, abs=1e-9), (name, metric)
    assert table.loc[table["metric"] == "mmd", "sigma"].unique() == pytest.approx([849 * 40 / 500])


def test_l1_is_that_of_crunch_1(files):
    true, made = (pd.read_csv(path).set_index("gene") for path in (files[3], files[1]))
    expected = 0.75 * (true - made)[CRUNCH.shares].abs().sum(axis=1)
    expected += 0.25 * (true["lipo_adipo"] - made["lipo_adipo"]).abs()
    table = helpers.score(*files, n_panels=1)
    found = table[table["metric"] == "l1_distance"].set_index("perturbation")["value"]
    np.testing.assert_allclose(found[NAMES], expected[NAMES], atol=1e-9)


def test_a_triple_is_never_scored(files):
    truth = ad.read_h5ad(files[2])
    truth.obs["gene"] = truth.obs["gene"].cat.rename_categories({"A+A": "A+A+B"})
    truth.write_h5ad(files[2])
    with pytest.raises(DataError, match=r"t\.h5ad: A\+A\+B has more than two guides, which is never scored"):
        helpers.score(*files)


@pytest.mark.parametrize("lost", ["single_perturbed_centroid_train", "double_perturbed_centroid_train"])
def test_a_missing_reference_is_named(files, lost):
    truth = ad.read_h5ad(files[2])
    del truth.uns[lost]
    truth.write_h5ad(files[2])
    with pytest.raises(DataError, match=f"uns has no '{lost}'"):
        helpers.score(*files)


def test_local_split_writes_the_centroids_of_both_kinds(challenge, tmp_path):
    names = [name for name in challenge.perturbations if name.count("+") < 2][:6]
    assert helpers.local_split(challenge.train_path, tmp_path, names).tolist() == sorted(names)
    train, test = ad.read_h5ad(tmp_path / "local_train.h5ad"), ad.read_h5ad(tmp_path / "local_test_eval.h5ad")
    gene = train.obs["gene"].astype(str)
    double = gene.str.count(r"\+") == 1
    for name, rows in {
        "single_control_centroid_train": gene == "NC",
        "double_control_centroid_train": gene == "NC+NC",
        "single_perturbed_centroid_train": ~gene.str.contains("+", regex=False) & (gene != "NC"),
        "double_perturbed_centroid_train": double & (gene != "NC+NC"),
    }.items():
        expected = np.asarray(train.X[rows.to_numpy()].mean(axis=0)).ravel()
        np.testing.assert_allclose(test.uns[name], expected, atol=1e-12)


def test_local_split_draws_what_can_be_scored(challenge, tmp_path):
    drawn = helpers.local_split(challenge.train_path, tmp_path, 0.9, seed=1)
    assert not {name for name in drawn if name.count("+") == 2 or name in ("NC", "NC+NC")}
    triple = next(name for name in challenge.perturbations if name.count("+") == 2)
    for names, says in (([triple], "more than two guides, which is never scored"), (["NC+NC"], "cannot be held out")):
        with pytest.raises(DataError, match=says):
            helpers.local_split(challenge.train_path, tmp_path, names)
    singles = [name for name in challenge.perturbations if "+" not in name]
    with pytest.raises(DataError, match="no cells for single_perturbed_centroid_train, the reference of the score"):
        helpers.local_split(challenge.train_path, tmp_path, singles)


def test_predicted_shares_hold_the_ratio_and_no_share_of_nothing():
    raw = pd.DataFrame({"pre_adipo": [0.2, 2.0], "adipo": [0.6, 0.0], "other": [0.4, -1.0], "lipo_adipo": [0.3, 0.7]})
    shares = helpers.constrain_proportions(raw)
    assert list(shares) == COLUMNS[1:]
    np.testing.assert_allclose(shares["lipo_adipo"], [0.3, 0.7])
    np.testing.assert_allclose(shares["lipo"] / shares["adipo"], shares["lipo_adipo"])
    assert (shares["adipo"] > 0).all()


def broken(files, change):
    """The problems of the table after a change."""
    table = pd.read_csv(files[1])
    change(table).to_csv(files[1], index=False)
    prediction = ad.read_h5ad(files[0])
    return validate_submission(files[0], files[1], NAMES, prediction.var_names)


def test_a_table_with_the_ratio_is_valid(files):
    assert broken(files, lambda table: table) == []
    assert broken(files, lambda table: table.assign(lipo_adipo=table["lipo_adipo"] + 0.0009)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda table: table.drop(columns="lipo_adipo"),
            "the columns lack lipo_adipo; write exactly gene",
        ),
        (lambda table: table.assign(more=1.0), "the columns more are not allowed"),
        (lambda table: table.assign(lipo_adipo=table["lipo_adipo"] + 0.002), "lipo_adipo is not lipo / adipo for A"),
        (lambda table: table.assign(lipo_adipo=np.nan), "column lipo_adipo is NaN for A, B"),
        (lambda table: table.assign(lipo_adipo="x"), "column lipo_adipo is no number for A, B"),
        (
            lambda table: table.assign(adipo=0.0, lipo=0.0, lipo_adipo=0.0, other=1 - table["pre_adipo"]),
            "column adipo is 0 for A, B, .* so lipo / adipo is none",
        ),
    ],
)
def test_every_broken_rule_of_the_ratio_is_one_problem(files, change, says):
    (problem,) = broken(files, change)
    assert pd.Series([problem]).str.contains(says, regex=True).all(), problem
