"""The response model: its closed forms against refitting, what it learns, and that it learns nothing from nothing."""

import numpy as np
import pandas as pd
import pytest

import helpers
import response
from knowledge import FeatureTable, GeneKnowledge, numeric_table, symbol_table
from response import ResponseModel


def screen(n=60, genes=150, noise=1.0, seed=0):
    """A screen whose responses are a linear map of five known features of the knocked-out gene."""
    rng = np.random.default_rng(seed)
    names = [f"K{i}" for i in range(n)]
    features = pd.DataFrame(rng.normal(size=(n, 5)), index=names)
    responses = features.to_numpy() @ rng.normal(size=(5, genes)) + noise * 2 * rng.normal(size=(n, genes))
    return pd.DataFrame(responses, index=names, columns=[f"G{i}" for i in range(genes)]), features


def held_out_pearson(responses, tables, n_test=20):
    train, test = responses[n_test:], responses[:n_test]
    model = ResponseModel().fit(train, knowledge=GeneKnowledge(tables))
    predicted = model.predict(test.index)
    return np.mean([helpers.pearson_delta(test.loc[g], predicted.loc[g], train.mean()) for g in test.index])


def test_it_learns_from_the_right_table_and_not_from_the_wrong_one():
    responses, features = screen()
    right = {"right": numeric_table(features)}
    wrong = {"wrong": numeric_table(features.set_axis(np.random.default_rng(1).permutation(features.index)))}
    assert held_out_pearson(responses, right) > 0.6
    assert abs(held_out_pearson(responses, wrong)) < 0.15
    both = ResponseModel().fit(responses[20:], knowledge=GeneKnowledge(right | wrong))
    assert both.weights_["right"] > 5 * both.weights_["wrong"]
    assert held_out_pearson(responses, right | wrong) > 0.55


def test_leave_one_out_is_what_refitting_without_each_row_gives():
    """The closed form, with weights and noise held, against n solves of the kernel ridge system."""
    rng = np.random.default_rng(0)
    rows, features = rng.normal(size=(12, 30)), rng.normal(size=(12, 3))
    kernels = np.array([features @ features.T, np.ones((12, 12))])
    log_weights = np.array([0.3, -0.7])
    total = np.tensordot(np.exp(log_weights), kernels, 1)
    hits = []
    for i in range(12):
        others = np.delete(np.arange(12), i)
        dual = np.linalg.solve(total[np.ix_(others, others)] + np.eye(11), rows[others])
        predicted = total[i, others] @ dual
        hits.append(predicted @ rows[i] / np.sqrt(predicted @ predicted * (rows[i] @ rows[i])))
    value, _ = response._loo_pearson(log_weights, kernels, rows @ rows.T, 0.0)
    assert -value == pytest.approx(np.mean(hits), abs=1e-10)


def test_gradient_of_leave_one_out():
    rng = np.random.default_rng(1)
    rows, kernels = rng.normal(size=(10, 20)), []
    for _ in range(3):
        half = rng.normal(size=(10, 4))
        kernels.append(half @ half.T)
    at = rng.normal(size=3)
    arguments = np.array(kernels), rows @ rows.T, 0.05
    _, gradient = response._loo_pearson(at, *arguments)
    numeric = [
        (response._loo_pearson(at + nudge, *arguments)[0] - response._loo_pearson(at - nudge, *arguments)[0]) / 2e-6
        for nudge in 1e-6 * np.eye(3)
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def test_prior_holds_the_log_weights_together():
    rng = np.random.default_rng(1)
    rows, kernels = rng.normal(size=(10, 20)), np.array([np.eye(10), np.ones((10, 10)), np.diag(np.arange(10.0))])
    at = np.array([1.0, -1.0, 0.6])
    free, held = (response._loo_pearson(at, kernels, rows @ rows.T, prior) for prior in (0.0, 0.05))
    assert held[0] - free[0] == pytest.approx(0.05 * (0.8**2 + 1.2**2 + 0.4**2))
    np.testing.assert_allclose(held[1] - free[1], 2 * 0.05 * (at - 0.2))
    responses, features = screen()
    tables = {"right": numeric_table(features), "other": symbol_table(features.index)}
    spread = [
        np.log(ResponseModel(prior).fit(responses, knowledge=GeneKnowledge(tables)).weights_).std()
        for prior in (0.0, 0.1, 1000.0)
    ]
    assert spread[0] > spread[1] > 100 * spread[2]


def test_amplitude_is_least_squares_between_a_floor_and_the_length_of_the_residuals():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(9, 4))
    length = np.full(9, 5.0)
    most = np.sqrt(9 * 25.0 / (predicted**2).sum())
    assert response._amplitude(0.3 * predicted, predicted, length) == pytest.approx(0.3)
    for none_or_wrong in (0.0, -1.0):
        assert response._amplitude(none_or_wrong * predicted, predicted, length) == pytest.approx(0.02 * most)
    assert response._amplitude(1e6 * predicted, predicted, length) == pytest.approx(most)


def test_noise_is_chosen_by_leave_one_out_per_component():
    rng = np.random.default_rng(2)
    half = rng.normal(size=(15, 4))
    kernel, rows = half @ half.T, rng.normal(size=(15, 40))
    _, coefficients, variance = response._response_components(rows @ rows.T, 6)
    _, left_out = response._best_noise(kernel, coefficients, variance, np.diag(rows @ rows.T))
    best = -np.inf
    for rho in (0.02, 0.1, 0.5, 2.0):
        for tau in 2.0 ** np.arange(-6, 6):
            found = np.zeros_like(coefficients)
            for k, ratio in enumerate(rho + tau * variance[0] / variance):
                for i in range(15):
                    others = np.delete(np.arange(15), i)
                    system = kernel[np.ix_(others, others)] + ratio * np.eye(14)
                    found[i, k] = kernel[i, others] @ np.linalg.solve(system, coefficients[others, k])
            score = np.mean(
                (found * coefficients).sum(axis=1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(rows, axis=1))
            )
            if score > best:
                best, expected = score, found
    np.testing.assert_allclose(left_out, expected, atol=1e-10)


def test_gene_in_one_table_of_two_is_predicted_from_it():
    responses, features = screen(noise=0.5)
    part = features.drop(index=features.index[5:10])
    model = ResponseModel().fit(
        responses[20:], knowledge=GeneKnowledge({"a": numeric_table(part), "b": numeric_table(features.iloc[:, :2])})
    )
    predicted = model.predict(responses.index[5:10])
    assert (predicted.std(axis=1) > 0).all()
    assert not np.allclose(predicted.iloc[0], predicted.iloc[1])


def test_unknown_target_gets_the_common_direction_and_one_warning():
    responses, features = screen()
    shifted = responses + 3 * np.random.default_rng(5).normal(size=150) * (np.arange(60) % 3 > 0)[:, None]
    model = ResponseModel().fit(shifted, knowledge=GeneKnowledge({"t": numeric_table(features)}))
    with pytest.warns(UserWarning, match="nothing is known of 2 of 3 targets.*: X, Y") as caught:
        predicted = model.predict(["X", "K3", "Y"])
    assert len(caught) == 1
    pd.testing.assert_series_equal(predicted.loc["X"], predicted.loc["Y"], check_names=False)
    assert not np.allclose(predicted.loc["X"], model.reference_), "two thirds share a direction: it is no surprise"


def test_order_of_rows_columns_and_tables_does_not_matter():
    responses, features = screen(30)
    tables = {"a": numeric_table(features), "b": symbol_table(features.index)}
    rng = np.random.default_rng(0)
    shuffled = responses.iloc[rng.permutation(30), rng.permutation(150)]
    turned = dict(reversed(tables.items()))
    one = ResponseModel().fit(responses, knowledge=GeneKnowledge(tables)).predict(["K4", "K20"])
    other = ResponseModel().fit(shuffled, knowledge=GeneKnowledge(turned)).predict(["K20", "K4"])
    pd.testing.assert_frame_equal(one, other.loc[one.index, one.columns], atol=1e-3, rtol=0)


def test_noisy_knock_outs_count_less():
    responses, features = screen(40, noise=0.3)
    n_cells = pd.Series(200, index=responses.index)
    bad = responses.index[:15]
    noisy = responses.copy()
    noisy.loc[bad] += np.random.default_rng(0).normal(0, 8, (15, 150))
    n_cells[bad] = 2
    tables = {"t": numeric_table(features)}
    truth, test = responses.iloc[30:], responses.index[30:]
    scores = []
    for weights in (n_cells[:30], None):
        model = ResponseModel().fit(noisy[:30], n_cells=weights, knowledge=GeneKnowledge(tables))
        predicted = model.predict(test)
        scores.append(np.mean([np.corrcoef(predicted.loc[g], truth.loc[g])[0, 1] for g in test]))
    assert scores[0] > scores[1]


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_perturbations_predict_their_mean(n):
    responses, features = screen(10)
    model = ResponseModel().fit(responses[:n], knowledge=GeneKnowledge({"t": numeric_table(features)}))
    with pytest.warns(UserWarning, match="nothing is known"):
        predicted = model.predict(["NEW"])
    np.testing.assert_allclose(predicted.loc["NEW"], responses[:n].mean())


def test_perturbations_that_are_all_alike_predict_their_mean():
    responses, features = screen(10)
    responses.iloc[:] = responses.iloc[0].to_numpy()
    model = ResponseModel().fit(responses, knowledge=GeneKnowledge({"t": numeric_table(features)}))
    np.testing.assert_allclose(model.predict(["K3"]).loc["K3"], responses.iloc[0])


def test_no_table_at_all_and_no_target_known():
    responses, _ = screen(20)
    model = ResponseModel().fit(responses)
    assert "constant" in model.weights_.index
    with pytest.warns(UserWarning, match="nothing is known of 1 of 1"):
        assert np.isfinite(model.predict(["NEW"])).all(axis=None)


def test_expected_error_and_pearson_rank_the_true_ones():
    responses, features = screen(200, noise=1.5, seed=3)
    size = np.linspace(0.2, 2.0, 200)[:, None]
    table = numeric_table(features * size)
    plain = FeatureTable(table.genes, helpers.sp.csr_matrix((features * size).to_numpy()))
    weak = responses * 1.0
    weak.iloc[:] = (features * size).to_numpy() @ np.random.default_rng(0).normal(size=(5, 150)) + 2 * (
        np.random.default_rng(1).normal(size=(200, 150))
    )
    order = np.random.default_rng(2).permutation(200)
    train, test = weak.iloc[order[:140]], weak.iloc[order[140:]]
    model = ResponseModel().fit(train, knowledge=GeneKnowledge({"t": plain}))
    expected, predicted = model.predict_scale(test.index), model.predict(test.index)
    pearson = [helpers.pearson_delta(test.loc[g], predicted.loc[g], model.reference_) for g in test.index]
    assert helpers.scipy.stats.spearmanr(expected["pearson"], pearson).statistic > 0.5
    error = np.linalg.norm(predicted - test, axis=1)
    assert expected["error"].mean() == pytest.approx(error.mean(), rel=0.15)
    unknown = model.predict_scale(["IN NO TABLE"])["pearson"].item()
    assert unknown < expected["pearson"].quantile(0.25), "what no table knows is less sure than most"


def test_scale_is_the_genes_own_and_that_of_an_unknown_gene_for_all_others():
    model = ResponseModel()
    model.expected_ = pd.DataFrame({"error": [1.0, 2.0, 9.0], "pearson": [0.1, 0.2, 0.9]}, index=["A", "B", ""])
    scale = model.predict_scale(["X", "B", "A", "Y"])
    assert scale.index.tolist() == ["X", "B", "A", "Y"]
    assert scale["error"].tolist() == [9.0, 2.0, 1.0, 9.0]
    assert scale["pearson"].tolist() == [0.9, 0.2, 0.1, 0.9]


def test_own_response_leaves_the_own_knock_out_apart():
    """A gene that only its own knock-out moves has no response of its own in the table."""
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(8, 12))
    residuals[:, 3] = 0.0
    residuals[3, 3] = 5.0
    responses = pd.DataFrame(residuals, index=[f"G{i}" for i in range(8)], columns=[f"G{i}" for i in range(12)])
    assert not response._own_responses(responses).known(["G3"])[0]
    assert response._own_responses(responses).known(["G4"])[0]


def test_a_template_that_holds_needs_no_training_of_its_kind():
    """Responses are three times the template: genes unlike any seen before are predicted by it."""
    rng = np.random.default_rng(0)
    loadings, basis = rng.normal(size=(50, 4)), rng.normal(size=(4, 80))
    names, genes = [f"K{i}" for i in range(50)], [f"G{i}" for i in range(80)]
    responses = pd.DataFrame(3 * loadings @ basis + rng.normal(0, 2, (50, 80)), index=names, columns=genes)
    template = pd.DataFrame(loadings, index=names), pd.DataFrame(basis, columns=genes)
    model = ResponseModel().fit(responses[:25], knowledge=GeneKnowledge({}, template))
    assert model.template_weight_ == pytest.approx(3, rel=0.15)
    predicted, truth = model.predict(names[25:]), responses[25:]
    assert np.mean([np.corrcoef(predicted.loc[g], truth.loc[g])[0, 1] for g in names[25:]]) > 0.8
    wrong = template[0].set_axis(rng.permutation(names)), template[1]
    assert ResponseModel().fit(responses[:25], knowledge=GeneKnowledge({}, wrong)).template_weight_ < 0.3
    against = -template[0], template[1]
    assert ResponseModel().fit(responses[:25], knowledge=GeneKnowledge({}, against)).template_weight_ == 0


def test_a_response_without_a_name_is_no_gene():
    responses, features = screen(20)
    responses.columns = ["", *responses.columns[1:]]
    model = ResponseModel().fit(responses, knowledge=GeneKnowledge({"t": numeric_table(features)}))
    assert model.predict_scale(["K1", "NEW"]).index.tolist() == ["K1", "NEW"]
