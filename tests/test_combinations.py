"""Several knock-outs at once: which genes a name holds, effects that add up, what is learned of combinations."""

import numpy as np
import pandas as pd
import pytest

import combinations as model
from combinations import CombinationModel
from contract import OBESITY_1 as CRUNCH
from helpers import row_correlations
from knowledge import GeneKnowledge, numeric_table
from response import ResponseModel
from workbench import cross_validate

GENES = [f"G{i}" for i in range(40)]
FEATURES = numeric_table(pd.DataFrame(np.random.default_rng(5).normal(size=(40, 4)), index=GENES))


@pytest.mark.parametrize(
    ("name", "genes"),
    [
        ("A", ("A",)),
        ("A+B", ("A", "B")),
        ("B+A", ("B", "A")),
        ("A+A", ("A",)),
        ("A+NC", ("A",)),
        ("NC+A", ("A",)),
        ("A+B+C", ("A", "B", "C")),
        ("NC", ()),
        ("NC+NC", ()),
        ("NCAM1+NCL", ("NCAM1", "NCL")),
        ("HLA-A+MT-ND1", ("HLA-A", "MT-ND1")),
    ],
)
def test_genes_of_a_name(name, genes):
    assert CRUNCH.genes_of(name) == genes


def world(rule, n_pairs=90, n_test=40, noise=0.0, seed=0, n_singles=40, n_responses=60):
    """Singles of the first genes, pairs of any two, and what `rule` makes of two effects; NC is not 0."""
    rng = np.random.default_rng(seed)
    control, shared = rng.normal(2.0, 1.0, n_responses), rng.normal(size=n_responses)
    effects = rng.normal(size=(len(GENES), n_responses)) * rng.uniform(0.3, 2.0, (len(GENES), 1)) + shared
    pairs = [(i, j) for i in range(len(GENES)) for j in range(i)]
    pairs = [pairs[k] for k in rng.permutation(len(pairs))[: n_pairs + n_test]]
    rows = {"NC": control} | {GENES[i]: control + effects[i] for i in range(n_singles)}
    rows |= {f"{GENES[i]}+{GENES[j]}": control + rule(effects[i], effects[j]) for i, j in pairs}
    table = pd.DataFrame.from_dict(rows, orient="index")
    tests = table.index[-n_test:]
    noisy = table + rng.normal(size=table.shape) * noise
    return noisy.drop(index=tests), table.loc[tests]


def add(x, y):
    return x + y


def mask(x, y):
    return x if np.linalg.norm(x) > np.linalg.norm(y) else y


def test_effects_that_add_up_are_added_up():
    training, truth = world(add)
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    assert fitted.found_["blend"] == 0.0
    assert fitted.found_["factor"] == pytest.approx(1.0, abs=0.03)
    np.testing.assert_allclose(fitted.predict(truth.index), truth, atol=0.4)


def test_a_factor_that_is_not_one_is_learned():
    training, truth = world(lambda x, y: 0.6 * (x + y), noise=0.1)
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    assert fitted.found_["factor"] == pytest.approx(0.6, abs=0.05)
    added = training.loc[[name.split("+")[0] for name in truth.index]].to_numpy()
    added = (
        added + training.loc[[name.split("+")[1] for name in truth.index]].to_numpy() - training.loc["NC"].to_numpy()
    )
    mine, plain = (
        np.square(table - truth.to_numpy()).sum() for table in (fitted.predict(truth.index).to_numpy(), added)
    )
    assert mine < 0.1 * plain


def test_masking_is_told_from_adding_up():
    training, truth = world(mask, noise=0.1)
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    assert fitted.found_["blend"] >= 0.5
    centred = truth.to_numpy() - fitted.together_.to_numpy()
    singles = training.loc[GENES].to_numpy() - training.loc["NC"].to_numpy()
    rows = [[GENES.index(gene) for gene in CRUNCH.genes_of(name)] for name in truth.index]
    added = singles[rows].sum(axis=1)
    mine = row_correlations(fitted.predict(truth.index).to_numpy() - fitted.together_.to_numpy(), centred).mean()
    assert mine > row_correlations(added - added.mean(axis=0), centred).mean() + 0.05


def test_what_a_row_does_not_see_is_what_a_fit_without_it_says():
    training, _ = world(add, noise=0.5, n_pairs=12)
    holds = model._holds(training.index[1:])
    y = (training.iloc[1:] - training.loc["NC"]).to_numpy()
    cells = pd.Series(np.random.default_rng(1).integers(20, 200, len(y)), index=holds.index).astype(float)
    expected = np.random.default_rng(2).normal(size=(holds.shape[1], y.shape[1]))
    sums = model._Sums(holds.to_numpy(), y, cells)
    sums = sums.of_several(sums.lengths(expected)[1], 0.8, 0.25)
    assert set(np.round(sums.D[sums.D > 0], 6)) == {1.0, 0.8, 0.6}
    rows = np.arange(40, len(y))
    found = sums.left_out(rows, expected + sums.own(expected, 0.7), 0.7)
    for at, row in enumerate(rows):
        weights = sums.weight.copy()
        weights[row] = 0.0
        D = sums.D
        inverse = np.linalg.inv((D.T * weights) @ D + 0.7 * np.eye(D.shape[1]))
        without = expected + inverse @ (D.T * weights) @ (y - D @ expected)
        np.testing.assert_allclose(found[at], D[row] @ without, atol=1e-9)


def test_a_gene_without_a_single_is_known_from_its_combinations():
    training, truth = world(add, n_pairs=150, n_singles=25, noise=0.2)
    without = [name for name in truth.index if min(GENES.index(gene) for gene in CRUNCH.genes_of(name)) >= 25]
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    found = row_correlations(
        fitted.predict(without).to_numpy() - fitted.together_.to_numpy(),
        truth.loc[without].to_numpy() - fitted.together_.to_numpy(),
    )
    assert len(without) >= 3
    assert found.mean() > 0.7


def test_an_unmeasured_gene_is_predicted_from_what_is_known_of_it():
    rng = np.random.default_rng(3)
    effects = pd.DataFrame(FEATURES.rows(GENES) @ rng.normal(size=(4, 60)) * 3, index=GENES)
    pairs = [(GENES[i], GENES[j]) for i in range(30) for j in range(i) if (i + j) % 4 == 0]
    rows = {"NC": np.zeros(60)} | {gene: effects.loc[gene] for gene in GENES[:30]}
    rows |= {f"{a}+{b}": effects.loc[a] + effects.loc[b] for a, b in pairs}
    training = pd.DataFrame.from_dict(rows, orient="index")
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({"features": FEATURES}))
    names = ["G31+G35", "G33+G38", "G32+G5", "G36"]
    truth = [effects.loc[list(CRUNCH.genes_of(name))].sum() for name in names]
    reference = training.drop(index="NC").mean().to_numpy()
    found = row_correlations(fitted.predict(names).to_numpy() - reference, np.array(truth) - reference)
    assert found.min() > 0.9


def test_few_combinations_are_added_up_as_they_are():
    training, truth = world(add, n_pairs=5)
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    alone = fitted.predict(GENES)
    for name in truth.index:
        added = alone.loc[list(CRUNCH.genes_of(name))].sum() - fitted.control_
        np.testing.assert_allclose(fitted.predict([name]).loc[name], added, atol=1e-9)


@pytest.mark.parametrize("order", [["G3+G4", "G4+G3"], ["G3+NC", "G3"], ["G3+G3", "G3"], ["NC+NC", "NC"]])
def test_the_order_of_a_name_and_controls_in_it_change_nothing(order):
    fitted = CombinationModel().fit(world(add)[0], knowledge=GeneKnowledge({}))
    first, second = fitted.predict(order).to_numpy()
    np.testing.assert_array_equal(first, second)
    if order[1] == "NC":
        np.testing.assert_array_equal(first, fitted.control_)


def test_singles_alone_are_those_of_the_response_model_and_what_was_measured():
    training = world(add)[0].iloc[:31]
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({"features": FEATURES}))
    plain = ResponseModel().fit(training, knowledge=GeneKnowledge({"features": FEATURES}))
    np.testing.assert_allclose(fitted.predict(GENES[30:]), plain.predict(GENES[30:]))
    pd.testing.assert_frame_equal(fitted.predict_scale(GENES[30:]), plain.predict_scale(GENES[30:]))
    measured = training.loc["G2"] - fitted.predict(["G2"]).loc["G2"]
    assert np.linalg.norm(measured) < np.linalg.norm(training.loc["G2"] - plain.predict(["G2"]).loc["G2"])


def test_the_kernel_between_combinations_is_the_mean_over_their_genes():
    names = pd.Index(["G1+G2", "G3+G4+G5", "G7"])
    table = model._SharedTable.of(FEATURES, names)
    (kernel,) = table.kernels(names, names)
    (between,) = FEATURES.kernels(GENES, GENES)
    assert kernel[0, 1] == pytest.approx(between[np.ix_([1, 2], [3, 4, 5])].mean())
    assert kernel[2, 2] == pytest.approx(between[7, 7])
    assert kernel[0, 0] == pytest.approx(between[np.ix_([1, 2], [1, 2])].mean())


def test_expected_correlation_of_combinations_is_honest():
    training, truth = world(add, noise=1.5)
    fitted = CombinationModel().fit(training, knowledge=GeneKnowledge({}))
    noisy = truth + np.random.default_rng(9).normal(size=truth.shape) * 1.5
    reference = fitted.together_.to_numpy()
    found = row_correlations(fitted.predict(truth.index).to_numpy() - reference, noisy.to_numpy() - reference).mean()
    assert fitted.predict_scale(truth.index)["pearson"].iloc[0] == pytest.approx(found, abs=0.08)


def test_published_baseline_adds_what_singles_differ_from_their_mean():
    means = pd.DataFrame(
        {"x": [0.0, 1.0, 3.0, 9.0, 4.0], "y": [0.0, 2.0, 2.0, 6.0, 0.0]}, index=["NC", "A", "B+NC", "A+C", "A+B"]
    )
    predicted = model.DeltaMean().fit(means).predict(["B+C", "A+D", "B"])
    single, several = means.loc[["A", "B+NC"]].mean(), means.loc[["A+C", "A+B"]].mean()
    delta = {gene: means.loc[name] - single for gene, name in (("A", "A"), ("B", "B+NC"), ("C", "A+C"))}
    np.testing.assert_allclose(predicted.loc["B+C"], several + delta["B"] + delta["C"])
    np.testing.assert_allclose(predicted.loc["A+D"], several + delta["A"])
    np.testing.assert_allclose(predicted.loc["B"], means.loc["B+NC"])


def test_effects_are_added_up_to_the_control():
    means = pd.DataFrame({"x": [1.0, 2.0, 4.0, 9.0], "y": [1.0, 3.0, 1.0, 6.0]}, index=["NC", "A", "B+B", "A+C"])
    predicted = model.Added().fit(means).predict(["A+B", "A+C", "NC+NC"])
    np.testing.assert_allclose(predicted.loc["A+B"], [2 + 4 - 1, 3 + 1 - 1])
    np.testing.assert_allclose(predicted.loc["A+C"], [2 + 3 - 1, 3 + 2 - 1])  # C alone: the mean of singles
    np.testing.assert_allclose(predicted.loc["NC+NC"], means.loc["NC"])


def test_cross_validation_holds_out_combinations_and_keeps_singles(tmp_path, capsys):
    training, _ = world(lambda x, y: 0.6 * (x + y), noise=0.3, n_pairs=60)
    effects = (training - training.loc["NC"]).drop(index="NC")
    effects.columns = [f"R{i}" for i in range(effects.shape[1])]
    effects.to_csv(tmp_path / "effects.csv")
    table = tmp_path / "table.csv"
    cross_validate.main(["--effects", str(tmp_path / "effects.csv"), "--draws", "1", "--out", str(table)])
    said = capsys.readouterr().out
    rows = pd.read_csv(table).query("metric == 'pearson'").set_index("method")
    assert {"train mean", "delta-mean (starter)", "effects added up", "all tables"} <= set(rows.index)
    assert rows["n"].unique().tolist() == [60]
    assert rows.loc["train mean", "value"] == pytest.approx(0.0, abs=1e-9)
    assert rows.loc["all tables", "value"] > rows.loc["delta-mean (starter)", "value"]
    assert rows.index[rows["submitted"]].tolist() == ["all tables"]
    assert "60 combinations follow the sum of their genes' effects, 0.6" in said.replace("0.5", "0.6")
