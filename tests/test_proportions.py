"""Shares of the states: the best constant against its definition, and constraints that hold for any prediction."""

import warnings

import numpy as np
import pandas as pd
import pytest

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError


def test_median_proportions_minimise_l1_among_shares_that_sum_to_one():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([4, 2, 3], 41)
    table = pd.DataFrame(shares, columns=CRUNCH.shares, index=[*(f"P{i}" for i in range(40)), CRUNCH.control])
    table["lipo"] = table["adipo"] * rng.uniform(0, 1, 41)
    model = helpers.MedianProportions().fit(table)
    train = table.drop(index=CRUNCH.control)
    found = model.mean_[CRUNCH.shares].to_numpy()
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert model.mean_["lipo_adipo"] == (train["lipo"] / train["adipo"]).median()

    def loss(point):
        return np.abs(train[CRUNCH.shares].to_numpy() - point).sum(axis=1).mean()

    for move in rng.normal(0, 0.02, (500, 3)):
        assert loss(found) <= loss(found + move - move.mean()) + 1e-12
    medians = train[CRUNCH.shares].median().to_numpy()
    assert loss(found) < loss(medians / medians.sum())
    valid = helpers.constrain_proportions(model.predict(["Z"]))
    assert valid.loc["Z", "lipo"] == pytest.approx(valid.loc["Z", "adipo"] * model.mean_["lipo_adipo"])


def test_median_proportions_of_one_perturbation_are_its_own():
    table = pd.DataFrame({"pre_adipo": [0.5], "adipo": [0.3], "other": [0.2], "lipo": [0.0]}, index=["A"])
    np.testing.assert_allclose(helpers.MedianProportions().fit(table).mean_[CRUNCH.shares], table.loc["A"][:3])


@pytest.mark.parametrize("shares", [[0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.3, 0.1]])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_rows_that_are_all_alike_are_the_prediction(shares, n):
    """They sum to 1 but for rounding, on either side."""
    table = pd.DataFrame([[*shares, 0.0]] * n, columns=CRUNCH.states)
    np.testing.assert_allclose(helpers.MedianProportions().fit(table).mean_[CRUNCH.shares], shares)


@pytest.mark.parametrize(
    ("factor", "says"), [(100, "below 0 or above 1"), (0.5, "is not 1 for"), (-1, "below 0"), (np.nan, "missing")]
)
def test_what_are_no_shares_is_refused_by_name(factor, says):
    table = pd.DataFrame([[0.5, 0.25, 0.25, 0.1]] * 3, columns=CRUNCH.states, index=["A", "B", "NC"])
    with pytest.raises(DataError, match=f"training proportions: .*{says}.* A, B"):
        helpers.MedianProportions().fit(factor * table)


@pytest.mark.parametrize("change", [{"adipo": np.nan}, {"other": 0.5}, {"lipo": 0.3}, {"lipo": -0.1}])
def test_shares_that_cannot_be_are_not_written(change, tmp_path):
    table = pd.DataFrame([[0.5, 0.25, 0.25, 0.1]], columns=CRUNCH.states, index=["A"])
    (tmp_path / "s.csv").write_text("older")
    with pytest.raises(DataError, match=r"the predicted shares: .* A$"):
        helpers.write_proportions(tmp_path / "s.csv", table.assign(**change))
    assert (tmp_path / "s.csv").read_text() == "older"
    helpers.write_proportions(tmp_path / "s.csv", table)
    assert (tmp_path / "s.csv").read_text() == "gene,pre_adipo,adipo,lipo,other\nA,0.5,0.25,0.1,0.25\n"


@pytest.mark.parametrize("columns", [["lipo"], ["lipo", "lipo_adipo"]])
def test_constraints_hold_for_any_prediction(columns):
    rng = np.random.default_rng(0)
    raw = pd.DataFrame(rng.normal(0.2, 0.6, (300, 3 + len(columns))), columns=[*CRUNCH.shares, *columns])
    raw.iloc[0] = 0.0
    raw.iloc[1] = -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        valid = helpers.constrain_proportions(raw)
    assert valid.columns.tolist() == ["pre_adipo", "adipo", "lipo", "other"]
    np.testing.assert_allclose(valid[CRUNCH.shares].sum(axis=1), 1.0, atol=1e-12)
    assert ((valid["lipo"] >= 0) & (valid["lipo"] <= valid["adipo"])).all()
    assert (valid >= 0).all(axis=None)
