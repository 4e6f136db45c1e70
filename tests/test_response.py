"""The response model: its closed forms against refitting, what enters it, and that it learns nothing from nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits

import helpers
import response
from helpers import row_correlations
from knowledge import FeatureTable, GeneKnowledge, numeric_table, screen_table, symbol_table
from response import OWN_RESPONSE, TEMPLATE, ResponseModel
from screens import Screen

pytestmark = pytest.mark.filterwarnings("ignore:nothing is known of")  # many mean to predict such genes


@pytest.fixture(autouse=True)
def one_thread():
    """As `Predictor.fit` does: the products are small."""
    with threadpool_limits(1):
        yield


def study(n=60, genes=150, noise=1.0, seed=0):
    """Responses that are a linear map of five known features of the knocked-out gene."""
    rng = np.random.default_rng(seed)
    names = [f"K{i}" for i in range(n)]
    features = pd.DataFrame(rng.normal(size=(n, 5)), index=names)
    responses = features.to_numpy() @ rng.normal(size=(5, genes)) + noise * 2 * rng.normal(size=(n, genes))
    return pd.DataFrame(responses, index=names, columns=[f"G{i}" for i in range(genes)]), features


def screen_of(table):
    """A screen that measured this table of perturbations x responses."""
    left, lengths, basis = np.linalg.svd((table - table.mean()).to_numpy(), full_matrices=False)
    return Screen(table.index, table.columns, (left * lengths).astype(np.float32), basis.astype(np.float32))


def random_tables(names, number, seed, columns=10):
    rng = np.random.default_rng(seed)
    return {f"random {i}": FeatureTable.of(names, rng.normal(size=(len(names), columns))) for i in range(number)}


def shuffled_tables(features, number, seed):
    rng = np.random.default_rng(seed)
    return {f"shuffled {i}": numeric_table(features.set_axis(rng.permutation(features.index))) for i in range(number)}


def held_out(model, responses, knowledge, n_test=20):
    """The mean correlation of the first rows, fitted to the others, and the fitted model."""
    train, test = responses[n_test:], responses[:n_test]
    model.fit(train, knowledge=knowledge)
    residuals = [(table - model.reference_).to_numpy() for table in (model.predict(test.index), test)]
    return row_correlations(*residuals).mean(), model


def held_out_pearson(responses, tables):
    return held_out(ResponseModel(), responses, GeneKnowledge(tables))[0]


def test_it_learns_from_the_right_table_and_not_from_the_wrong_one():
    responses, features = study()
    right, wrong = {"right": numeric_table(features)}, shuffled_tables(features, 1, seed=1)
    assert held_out_pearson(responses, right) > 0.6
    assert abs(held_out_pearson(responses, wrong)) < 0.15
    both = ResponseModel().fit(responses[20:], knowledge=GeneKnowledge(right | wrong))
    assert both.weights_.index.tolist() == ["right", "constant"]
    assert held_out_pearson(responses, right | wrong) > 0.55


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms, each against the loop that it replaces
# ---------------------------------------------------------------------------------------------------------------------


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
    value, _ = response._loo_pearson(log_weights, kernels, rows @ rows.T)
    assert -value == pytest.approx(np.mean(hits), abs=1e-10)


def test_gradient_of_leave_one_out():
    rng = np.random.default_rng(1)
    rows, kernels = rng.normal(size=(10, 20)), []
    for _ in range(3):
        half = rng.normal(size=(10, 4))
        kernels.append(half @ half.T)
    at = rng.normal(size=3)
    arguments = np.array(kernels), rows @ rows.T
    _, gradient = response._loo_pearson(at, *arguments)
    numeric = [
        (response._loo_pearson(at + nudge, *arguments)[0] - response._loo_pearson(at - nudge, *arguments)[0]) / 2e-6
        for nudge in 1e-6 * np.eye(3)
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def test_the_weights_are_a_maximum_of_leave_one_out():
    rng = np.random.default_rng(3)
    features, other = rng.normal(size=(25, 4)), rng.normal(size=(25, 4))
    rows = features @ rng.normal(size=(4, 30)) + 2 * rng.normal(size=(25, 30))
    arguments = np.array([features @ features.T, other @ other.T, np.ones((25, 25))]), rows @ rows.T
    best = np.log(response._best_weights(*arguments))
    value, _ = response._loo_pearson(best, *arguments)
    assert best[0] > best[1] + 1
    for nudge in 0.1 * np.eye(3):
        for side in (best + nudge, best - nudge):
            assert value <= response._loo_pearson(np.clip(side, -7, 3), *arguments)[0] + 1e-6


def small_kernel(seed=0, n=14):
    """A kernel of two tables and the constant, perturbations, genes beside them, precisions, scores and noise."""
    rng = np.random.default_rng(seed)
    names = pd.Index([f"K{i}" for i in range(n)])
    genes = names.append(pd.Index(["X", "Y", "IN NONE"]))
    tables = {
        "a": FeatureTable.of(genes[:-1], rng.normal(size=(n + 2, 3)), powers=(1, 3)),
        "b": numeric_table(pd.DataFrame(rng.normal(size=(n, 2)), index=genes[2:-1])),
    }
    kernel = response._Kernel(tables, np.array([0.8, 0.3, 1.2, 0.4]))
    precision = rng.uniform(0.6, 1.2, n)
    return kernel, names, genes, precision, rng.normal(size=(n, 4)), np.array([0.1, 0.5, 2.0, 9.0])


def between(kernel, left, right):
    """The weighed kernel, gene by gene; of an unknown gene the constant alone."""
    parts = [part for table in kernel.tables.values() for part in table.kernels(left, right)]
    return sum(w * part for w, part in zip(kernel.weights, [*parts, np.ones((len(left), len(right)))], strict=True))


def test_the_kernel_is_the_weighed_sum_of_its_tables_and_the_constant():
    kernel, names, genes, *_ = small_kernel()
    assert kernel.labels == ["a", "a, power 3", "b", "constant"]
    whole = between(kernel, genes, names)
    np.testing.assert_allclose(kernel.at(genes[:-1], names), whole)  # its last row is of an unknown gene
    np.testing.assert_allclose(kernel.between(genes, names), whole - 0.4)
    np.testing.assert_allclose(kernel.diagonal(genes), np.diag(between(kernel, genes, genes)) - 0.4, atol=1e-12)


def check_solution(kernel, within, across, case):
    """`_Axes` and `_solved` against refits: `within` is the kernel of the training rows, `across` that of new genes."""
    names, genes, precision, scores, noise = case
    axes = kernel.axes(names, precision)
    dual, left_out = response._solved(axes, scores, noise)
    predicted = kernel.at(genes[:-1], axes.landmarks) @ axes.dual(dual)
    for k, ratio in enumerate(noise):  # each component has its own
        by_hand = np.linalg.solve(within + ratio * np.eye(len(names)), scores[:, k])
        np.testing.assert_allclose(dual[:, k], by_hand, atol=1e-9)
        np.testing.assert_allclose(predicted[:, k], across @ by_hand, atol=1e-9)
        for i in range(len(names)):
            others = np.delete(np.arange(len(names)), i)
            system = within[np.ix_(others, others)] + ratio * np.eye(len(others))
            refitted = within[i, others] @ np.linalg.solve(system, scores[others, k])
            assert left_out[i, k] == pytest.approx(refitted, abs=1e-9)
    return axes


def test_with_all_rows_the_posterior_is_that_of_the_exact_inverse():
    kernel, names, genes, precision, scores, noise = small_kernel()
    within = between(kernel, names, names) * np.outer(precision, precision)
    across = between(kernel, genes, names) * precision
    axes = check_solution(kernel, within, across, (names, genes, precision, scores, noise))
    assert axes.landmarks.equals(names)


@pytest.mark.parametrize("landmarks", [6, 13])
def test_with_landmarks_the_posterior_is_that_of_nystroems_kernel(landmarks, monkeypatch):
    kernel, names, genes, precision, scores, noise = small_kernel(n=18)
    monkeypatch.setattr(response, "LANDMARKS", landmarks)
    chosen = names[response._drawn(18, landmarks)]
    middle = np.linalg.inv(between(kernel, chosen, chosen))
    bridge = between(kernel, names, chosen) * precision[:, None]
    across = between(kernel, genes, chosen) @ middle @ bridge.T
    axes = check_solution(kernel, bridge @ middle @ bridge.T, across, (names, genes, precision, scores, noise))
    assert axes.landmarks.equals(chosen)
    assert len(chosen) == landmarks


def test_landmarks_that_span_the_kernel_lose_nothing(monkeypatch):
    """Two features and the constant have three axes: six landmarks give the exact inverse."""
    kernel, names, genes, precision, scores, noise = small_kernel(n=18)
    kernel = response._Kernel({"b": kernel.tables["b"]}, np.array([1.2, 0.4]))
    monkeypatch.setattr(response, "LANDMARKS", 6)
    within = between(kernel, names, names) * np.outer(precision, precision)
    across = between(kernel, genes, names) * precision
    check_solution(kernel, within, across, (names, genes, precision, scores, noise))


@pytest.mark.parametrize("seed", [0, 19])
def test_noise_is_chosen_by_leave_one_out_per_component(seed):
    kernel, names, _, precision, _, _ = small_kernel(seed)
    axes = kernel.axes(names, precision)
    within = between(kernel, names, names) * np.outer(precision, precision)
    rows = np.random.default_rng(seed).normal(size=(14, 40))
    scores, variance, _ = response._response_components(rows, 6)
    found = response._best_noise(axes, scores, variance, np.linalg.norm(rows, axis=1))
    hits = {}
    for rho in (0.02, 0.1, 0.5, 2.0):
        for tau in 2.0 ** np.arange(-6, 6):
            left_out = np.zeros_like(scores)
            for k, ratio in enumerate(rho + tau * variance[0] / variance):
                for i in range(14):
                    others = np.delete(np.arange(14), i)
                    system = within[np.ix_(others, others)] + ratio * np.eye(13)
                    left_out[i, k] = within[i, others] @ np.linalg.solve(system, scores[others, k])
            product, lengths = (left_out * scores).sum(axis=1), np.linalg.norm(left_out, axis=1)
            hits[rho, tau] = np.mean(product / (lengths * np.linalg.norm(rows, axis=1)))
    assert found == max(hits, key=hits.get)
    assert found == {0: (0.02, 0.125), 19: (2.0, 8.0)}[seed], "two cases that differ in both"


def test_components_of_many_rows_are_those_of_few(monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 25)) + 0.01 * rng.normal(size=(40, 25))
    z -= z.mean(axis=1, keepdims=True)
    exact = response._response_components(z, 5)
    monkeypatch.setattr(response, "LANDMARKS", 10)
    fast = response._response_components(z, 5)
    assert [part.shape for part in fast] == [part.shape for part in exact] == [(40, 5), (5,), (5, 25)]
    np.testing.assert_allclose(fast[1], exact[1], rtol=1e-6)
    np.testing.assert_allclose(fast[0] @ fast[2], exact[0] @ exact[2], atol=1e-5)
    np.testing.assert_allclose(exact[2] @ exact[2].T, np.eye(5), atol=1e-9)
    for most in (10, 100):  # more are asked for than there are: centred rows of 25 responses have 24
        monkeypatch.setattr(response, "LANDMARKS", most)
        scores, variance, basis = response._response_components(z, 120)
        assert scores.shape[1] == len(variance) == len(basis) == 24
        assert (variance > 0).all()


def test_amplitude_is_least_squares_between_a_floor_and_the_length_of_the_residuals():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(9, 4))
    length = np.full(9, 5.0)
    most = np.sqrt(9 * 25.0 / (predicted**2).sum())
    assert response._amplitude(0.3 * predicted, predicted, length) == pytest.approx(0.3)
    for none_or_wrong in (0.0, -1.0):
        assert response._amplitude(none_or_wrong * predicted, predicted, length) == pytest.approx(0.02 * most)
    assert response._amplitude(1e6 * predicted, predicted, length) == pytest.approx(most)


def test_own_response_leaves_the_own_knock_out_apart():
    """A gene that only its own knock-out moves has no response of its own in the table."""
    rng = np.random.default_rng(0)
    residuals = rng.normal(size=(8, 12))
    residuals[:, 3] = 0.0
    residuals[3, 3] = 5.0
    responses = pd.DataFrame(residuals, index=[f"G{i}" for i in range(8)], columns=[f"G{i}" for i in range(12)])
    assert not response._own_responses(responses).known(["G3"])[0]
    assert response._own_responses(responses).known(["G4"])[0]


def test_own_responses_of_many_rows_are_those_of_few(monkeypatch):
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(20)]
    responses = pd.DataFrame(rng.normal(size=(12, 4)) @ rng.normal(size=(4, 20)), index=genes[:12], columns=genes)
    exact = response._own_responses(responses).kernels(genes, genes)
    monkeypatch.setattr(response, "LANDMARKS", 10)
    for fast, slow in zip(response._own_responses(responses).kernels(genes, genes), exact, strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_rows_are_drawn_from_all_in_order_and_always_the_same():
    assert response._drawn(7, 7).tolist() == list(range(7))
    drawn = response._drawn(1000, 50)
    assert len(set(drawn)) == 50
    assert (np.diff(drawn) > 0).all()
    assert drawn.max() > 900
    assert (drawn == response._drawn(1000, 50)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Many knock-outs: tuned on some of them, and a kernel that some of them span
# ---------------------------------------------------------------------------------------------------------------------


def smooth_study(seed):
    """180 knock-outs to learn from and 60 others; responses are smooth in three hidden features of the gene."""
    rng = np.random.default_rng(seed)
    names = [f"K{i}" for i in range(240)]
    waves = np.cos(rng.normal(size=(240, 3)) @ rng.normal(size=(3, 40)) + rng.uniform(0, 6.3, 40)) / np.sqrt(20)
    responses = waves @ rng.normal(size=(40, 60)) + rng.normal(size=(240, 60))
    table = pd.DataFrame(responses, index=names, columns=[f"G{i}" for i in range(60)])
    return table, GeneKnowledge({"waves": FeatureTable.of(names, waves)})


def few_landmarks(monkeypatch):
    monkeypatch.setattr(response, "LANDMARKS", 60)
    monkeypatch.setattr(response, "TUNING_ROWS", 60)
    monkeypatch.setattr(response, "JUDGED_ROWS", 40)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_landmarks_are_near_the_exact_fit_and_use_all_rows(seed, monkeypatch):
    responses, knowledge = smooth_study(seed)
    exact, _ = held_out(ResponseModel(30), responses, knowledge, 60)
    few_landmarks(monkeypatch)
    near, model = held_out(ResponseModel(30), responses, knowledge, 60)
    of_landmarks = pd.concat([responses[:60], responses[60:].iloc[response._drawn(180, 60)]])
    alone, _ = held_out(ResponseModel(30), of_landmarks, knowledge, 60)
    assert near > exact - 0.01
    assert near > alone + 0.03
    assert len(model.loo_pearson_) == 180


def test_landmarks_give_the_same_bytes_twice_and_know_unknown_genes(monkeypatch):
    responses, knowledge = smooth_study(0)
    few_landmarks(monkeypatch)
    responses = responses.rename(columns={f"G{i}": f"K{i}" for i in range(60)})  # own responses too
    models = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        models.append(ResponseModel(30).fit(responses, knowledge=knowledge))
    for name, part in vars(models[0]).items():
        if name.endswith("_"):
            assert part.to_numpy().tobytes() == getattr(models[1], name).to_numpy().tobytes(), name
    with pytest.warns(UserWarning, match="nothing is known of 1 of 2"):
        predicted = models[0].predict(["NEW", "K3"])
    assert np.isfinite(predicted.to_numpy()).all()
    unknown = models[0].unknown_.to_numpy() @ models[0].basis_.to_numpy() + models[0].reference_
    np.testing.assert_allclose(predicted.loc["NEW"], unknown)


# ---------------------------------------------------------------------------------------------------------------------
# Which tables enter
# ---------------------------------------------------------------------------------------------------------------------


def out_of_fold_by_hand(r, profiles, kernels, n_cells, precision):
    """The hits of `_out_of_fold`, one held-out knock-out at a time.

    Of that one nothing is used but its kernel with the training rows, its profiles and its precision.
    """
    hits = np.zeros((response.JUDGED_SPLITS, len(r)))
    for split in range(response.JUDGED_SPLITS):
        folds = np.random.default_rng(split).permutation(len(r)) % response.JUDGED_FOLDS
        for i in range(len(r)):
            train = np.flatnonzero(folds != folds[i])
            reference = np.average(r[train], axis=0, weights=n_cells[train])
            lengths = np.linalg.norm(r[train] - reference, axis=1)
            scale = (precision[train] / lengths)[:, None]
            z = rest = (r[train] - reference) * scale
            foretold = np.zeros_like(reference)
            for profile in profiles:
                mean = np.average(profile[train], axis=0, weights=n_cells[train])
                there = (profile[train] - mean) * scale
                factor = response.JUDGED_SHARE / len(profiles) * max((z * there).sum() / (there**2).sum(), 0.0)
                rest = rest - factor * there
                foretold = foretold + factor * (profile[i] - mean) * precision[i] / lengths.mean()
            within = kernels[:, train][:, :, train]
            weights = response._best_weights(within, z @ z.T, most_steps=15)
            total = np.tensordot(weights, kernels, 1)
            mixture = np.linalg.solve(total[np.ix_(train, train)] + np.eye(len(train)), total[train, i])
            predicted, truth = mixture @ rest + foretold, r[i] - reference
            hits[split, i] = predicted @ truth / (np.linalg.norm(predicted) * np.linalg.norm(truth))
    return hits.mean(axis=0)


def judged_case(seed=0, n=23, genes=40):
    """Residuals of very different length, profiles of two screens, one that foretells them and one that does not."""
    rng = np.random.default_rng(seed)
    responses, features = study(n, genes, noise=0.4, seed=seed)
    r = responses.to_numpy() * rng.uniform(0.1, 3, n)[:, None] + 0.3
    profiles = [0.5 * r + rng.normal(size=r.shape), rng.normal(size=r.shape)]
    n_cells, precision = rng.integers(5, 300, n).astype(float), rng.uniform(0.6, 1.2, n)
    return pd.DataFrame(r, responses.index, responses.columns), features, profiles, n_cells, precision


@pytest.mark.parametrize("n_screens", [0, 1, 2])
def test_out_of_fold_is_what_a_loop_over_held_out_knock_outs_gives(n_screens):
    residuals, features, profiles, n_cells, precision = judged_case()
    tables = {"t": numeric_table(features)} | random_tables(residuals.index, 1, 0)
    kernels = response._training_kernels(residuals.index, tables, precision)
    rows = [table - table.mean(axis=1, keepdims=True) for table in (residuals.to_numpy(), *profiles[:n_screens])]
    stacked = np.vstack(rows)
    gram = (stacked @ stacked.T).reshape(n_screens + 1, 23, n_screens + 1, 23)
    hits = response._out_of_fold(kernels, gram, n_cells, precision)
    by_hand = out_of_fold_by_hand(rows[0], rows[1:], kernels, n_cells, precision)
    np.testing.assert_allclose(hits, by_hand, atol=1e-5)
    assert hits.std() > 0.1


def test_a_gain_is_the_paired_difference_out_of_fold():
    """Of the only table, and of the only screen with its profiles, to the constant alone."""
    residuals, features, profiles, n_cells, precision = judged_case()
    table = numeric_table(features[:20])
    for own in ({}, {"t": profiles[0]}):
        judged = response.judge(residuals, n_cells, precision, {"t": table}, own)
        kernels = response._training_kernels(residuals.index, {"t": table}, precision)
        centred = [part - part.mean(axis=1, keepdims=True) for part in (residuals.to_numpy(), *own.values())]
        with_it = out_of_fold_by_hand(centred[0], centred[1:], kernels, n_cells, precision)
        gain = with_it - out_of_fold_by_hand(centred[0], [], kernels[-1:], n_cells, precision)
        row = judged.loc["t"]
        assert row["gain"] == pytest.approx(gain.mean(), abs=1e-5)
        assert row["standard_error"] == pytest.approx(gain.std() / np.sqrt(23), abs=1e-5)
        assert row["coverage"] == pytest.approx(20 / 23)
        assert row["enters"] == 1


def test_a_true_table_enters_beside_random_and_shuffled_ones_which_do_no_harm():
    """The paired difference over five draws; a hundredth is the tolerance."""
    change, let_in = [], 0
    for seed in range(5):
        responses, features = study(45, 80, seed=seed)
        right = {"right": numeric_table(features)}
        wrong = random_tables(features.index, 3, seed) | shuffled_tables(features, 2, seed)
        alone, _ = held_out(ResponseModel(), responses, GeneKnowledge(right))
        beside, model = held_out(ResponseModel(), responses, GeneKnowledge(right | wrong))
        change.append(beside - alone)
        let_in += model.judged_.drop("right")["enters"].sum()
        assert model.judged_.loc["right", "enters"] == 1
        assert model.judged_.loc["right", "gain"] > 0.3
        assert model.judged_.drop("right")["gain"].max() < 0.01
        assert model.weights_["right"] > 100 * model.weights_.drop("right").max()
    assert let_in <= 5, "of 25; what just clears its tiny error gets a tiny weight"
    assert np.mean(change) > -0.01


def test_a_redundant_copy_costs_nothing_and_one_of_the_two_enters():
    responses, features = study(45, 80)
    right = numeric_table(features)
    alone, _ = held_out(ResponseModel(), responses, GeneKnowledge({"right": right}))
    twice, model = held_out(ResponseModel(), responses, GeneKnowledge({"right": right, "copy": right}))
    assert twice == pytest.approx(alone, abs=1e-6)
    assert sorted(model.judged_["enters"]) == [0, 1]
    assert model.judged_["gain"].max() > 0.3, "judged again, once its copy is out"


def test_tables_stay_out_where_the_constant_alone_predicts_and_they_add_nothing():
    """Most knock-outs do nothing, and so share the direction from the mean back to the control."""
    change, let_in = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        names = [f"K{i}" for i in range(50)]
        strong = 6 * (rng.random(50) < 0.25)[:, None] * rng.normal(size=100)
        responses = pd.DataFrame(strong + rng.normal(size=(50, 100)), index=names)
        tables = random_tables(names, 6, seed, columns=3)
        with_tables, model = held_out(ResponseModel(), responses, GeneKnowledge(tables))
        without, constant = held_out(ResponseModel(), responses, GeneKnowledge({}))
        change.append(with_tables - without)
        let_in.append(model.judged_["enters"].sum())
        assert constant.weights_.index.tolist() == ["constant"]
        assert constant.loo_pearson_.mean() > 0.2
    assert np.count_nonzero(let_in) <= 1
    assert np.mean(change) > -0.01


def test_too_few_rows_to_judge_let_no_table_in():
    responses, features = study(10, noise=0.1)
    knowledge = GeneKnowledge({"t": numeric_table(features[[0]])}, {"s": screen_of(responses)})
    few, enough = (ResponseModel().fit(responses[:n], knowledge=knowledge) for n in (9, 10))
    assert few.judged_["enters"].tolist() == [0, 0]
    assert few.judged_["coverage"].tolist() == [1, 1]
    assert few.weights_.index.tolist() == ["constant"]
    assert few.transfers_.empty
    assert enough.judged_["enters"].sum() > 0


def test_a_table_that_knows_no_training_knock_out_is_not_judged():
    responses, features = study(20)
    far = numeric_table(features.set_axis([f"FAR{i}" for i in range(20)]))
    model = ResponseModel().fit(responses, knowledge=GeneKnowledge({"t": numeric_table(features), "far": far}))
    assert model.judged_.index.tolist() == ["t"]


# ---------------------------------------------------------------------------------------------------------------------
# Other screens
# ---------------------------------------------------------------------------------------------------------------------


def two_screens(seed=0, n=60, genes=120, noise=4.0):
    """Responses, and two screens elsewhere: the same truth times a factor of each response, and noise of their own."""
    rng = np.random.default_rng(seed)
    names, columns = [f"K{i}" for i in range(n)], [f"G{i}" for i in range(genes)]
    truth = rng.normal(size=(n, 20)) @ rng.normal(size=(20, genes))
    here, one, other = (
        pd.DataFrame(factors * truth + noise * rng.normal(size=(n, genes)), index=names, columns=columns)
        for factors in (1.0, *rng.uniform(0.2, 1.8, (2, genes)))
    )
    return here, screen_of(one), screen_of(other)


def test_transfer_lifts_a_prediction_above_similarity_alone_and_two_screens_above_each():
    scores = []
    for seed in range(3):
        here, one, other = two_screens(seed)
        knowledge = [
            GeneKnowledge({"one": screen_table(one)}),
            GeneKnowledge({}, {"one": one}),
            GeneKnowledge({}, {"other": other}),
            GeneKnowledge({}, {"one": one, "other": other}),
        ]
        found = [held_out(ResponseModel(), here, known) for known in knowledge]
        scores.append([score for score, _ in found])
        assert found[0][1].transfers_.empty
        assert 0.3 < found[1][1].transfers_["one"] < 0.8, "it is noisy"
        both = found[3][1]
        assert both.transfers_.index.tolist() == ["one", "other"]
        assert both.transfers_.between(0.2, 1.2).all()
        assert both.weights_.index.tolist() == ["one", "one, power 3", "other", "other, power 3", "constant"]
        assert both.judged_["enters"].tolist() == [1, 1]
    similarity, one, other, both = np.mean(scores, axis=0)
    assert one > similarity + 0.05
    assert both > max(one, other) + 0.03


def test_a_screen_of_noise_is_left_out_and_changes_nothing():
    here, one, _ = two_screens()
    noise = screen_of(here * 0 + np.random.default_rng(5).normal(size=here.shape))
    alone, _ = held_out(ResponseModel(), here, GeneKnowledge({}, {"one": one}))
    beside, model = held_out(ResponseModel(), here, GeneKnowledge({}, {"one": one, "noise": noise}))
    assert model.judged_["enters"].to_dict() == {"one": 1, "noise": 0}
    assert model.transfers_.index.tolist() == ["one"]
    assert beside == pytest.approx(alone, abs=1e-9)


def test_screens_are_matched_by_name():
    """Its perturbations and responses in another order, with more of both: the same prediction."""
    here, one, _ = two_screens(n=40)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(40), rng.permutation(120)
    turned = Screen(
        one.perturbations[rows], one.responses[columns], one.scores[rows], np.ascontiguousarray(one.basis[:, columns])
    )
    further = Screen(
        turned.perturbations,
        turned.responses.append(pd.Index(["ELSEWHERE"])),
        turned.scores,
        np.hstack([turned.basis, rng.normal(size=(len(turned.basis), 1)).astype(np.float32)]),
    )
    predictions = [
        ResponseModel().fit(here[20:], knowledge=GeneKnowledge({}, {"s": screen})).predict(here.index[:20])
        for screen in (one, turned, further)
    ]
    for other in predictions[1:]:
        np.testing.assert_allclose(other, predictions[0], atol=1e-4)


def test_responses_that_a_screen_lacks_get_no_transfer():
    """The two halves of the responses have nothing in common but the screen's similarity."""
    here, one, _ = two_screens()
    half = Screen(one.perturbations, one.responses[:60], one.scores, one.basis[:, :60])
    model = ResponseModel().fit(here[20:], knowledge=GeneKnowledge({}, {"s": half}))
    assert model.transfers_["s"] > 0.2
    transfer = model.basis_.iloc[-len(one.basis) :]
    assert (transfer.iloc[:, 60:] == 0).all(axis=None)
    assert (transfer.iloc[:, :60] != 0).any(axis=None)


def test_a_gene_in_no_screen_is_predicted_from_the_rest():
    """Half of the genes are in the screen, all in a table of other features."""
    rng = np.random.default_rng(0)
    here, one, _ = two_screens(n=90)
    responses, features = study(90, 120, noise=0.5)
    here = here + 1.5 * responses
    part = np.r_[0:10, 20:90]
    screen = Screen(one.perturbations[part], one.responses, one.scores[part], one.basis)
    knowledge = GeneKnowledge({"t": numeric_table(features)}, {"s": screen})
    model = ResponseModel().fit(here[20:], knowledge=knowledge)
    assert model.judged_["enters"].tolist() == [1, 1]
    predicted, truth = model.predict(here.index[:20]) - model.reference_, here[:20] - model.reference_
    hits = row_correlations(predicted.to_numpy(), truth.to_numpy())
    strangers = row_correlations(predicted.to_numpy(), truth.to_numpy()[rng.permutation(20)])
    assert hits[:10].mean() > hits[10:].mean() > strangers.mean() + 0.2


def test_a_prediction_is_what_screens_foretell_and_the_posterior_of_what_is_left():
    """Put together by hand of the parts that other tests check, with responses of very different length."""
    here, one, other = two_screens()
    rng = np.random.default_rng(0)
    train = here[20:] * rng.uniform(0.4, 3, (40, 1))
    n_cells = pd.Series(rng.integers(3, 300, 40), train.index)
    screens = {"one": one, "other": other}
    model = ResponseModel(30).fit(train, n_cells, GeneKnowledge({}, screens))
    assert model.judged_["enters"].tolist() == [1, 1]
    tables = {name: screen_table(screen) for name, screen in screens.items()}
    reference = np.average(train, axis=0, weights=n_cells)
    pd.testing.assert_series_equal(model.reference_, pd.Series(reference, train.columns))

    residuals, cells = train - reference, n_cells.to_numpy(float)
    precision = 1 / np.sqrt((1 + np.median(cells) / cells) / 2)
    profiles = {name: screen.profiles(train.index, train.columns).to_numpy(float) for name, screen in screens.items()}
    judged = response.judge(residuals, cells, precision, tables, profiles)
    pd.testing.assert_frame_equal(model.judged_, judged, atol=1e-6)

    kernel = response._Kernel(tables, model.weights_.to_numpy())
    axes = kernel.axes(train.index, precision)
    genes, expected, rest = one.perturbations, reference * np.ones((60, 1)), residuals.to_numpy()
    for name, screen in screens.items():
        loadings, basis = response._foretelling(screen, kernel, genes, train.index, train.columns, smooth=True)
        foretold = loadings @ basis
        there = foretold[20:]
        foretold = foretold * (response.learned_factors(there, rest, precision) * model.transfers_[name])
        expected, rest = expected + foretold, rest - foretold[20:]
    posterior = response._Posterior.of(rest, precision, axes, 30)
    whole = kernel.at(genes, train.index) @ (precision[:, None] * posterior.dual) @ posterior.basis
    np.testing.assert_allclose(model.predict(genes), expected + whole[:-1], atol=1e-4)
    np.testing.assert_allclose(model.predict(["NEW"]).loc["NEW"], reference + whole[-1], atol=1e-4)


@pytest.mark.parametrize("landmarks", [7, 1000])
def test_what_a_screen_foretells_is_the_posterior_given_landmarks_and_the_own_profile(landmarks, monkeypatch):
    monkeypatch.setattr(response, "LANDMARKS", landmarks)
    rng = np.random.default_rng(0)
    kernel, names, genes, *_ = small_kernel()
    elsewhere = pd.Index([*names[4:11], "X", *(f"FAR{i}" for i in range(12)), "UNKNOWN TO TABLES"])
    far = FeatureTable.of([*genes[:4], *elsewhere[:-1]], rng.normal(size=(24, 3)))
    kernel = response._Kernel(kernel.tables | {"far": far}, np.array([0.8, 0.3, 1.2, 0.7, 0.4]))
    scores, basis = rng.normal(size=(21, 5)).astype(np.float32), rng.normal(size=(5, 9)).astype(np.float32)
    screen = Screen(elsewhere, pd.Index(list("ABCDEFGHI")), scores, basis)
    genes = genes.union(elsewhere)
    responses = pd.Index(["C", "NOT THERE", "A"])
    training = names[:7]  # of which three are in the screen
    loadings, found = response._foretelling(screen, kernel, genes, training, responses, smooth=True)
    np.testing.assert_allclose(found, np.stack([basis[:, 2], np.zeros(5), basis[:, 0]], axis=1))

    first = [name for name in elsewhere if name in training]
    others = [name for name in elsewhere if name not in training]
    given = first + [others[i] for i in response._drawn(len(others), landmarks - len(first))]
    noise = response.SMOOTHING * np.mean([kernel.between([name], [name])[0, 0] for name in elsewhere])
    for gene, row in zip(genes, loadings, strict=True):
        known = [*given, gene] if gene in elsewhere and gene not in given else given
        system = kernel.between(known, known) + noise * np.eye(len(known))
        profiles = scores[elsewhere.get_indexer(pd.Index(known))]
        by_hand = kernel.between([gene], known)[0] @ np.linalg.solve(system, profiles)
        np.testing.assert_allclose(row, by_hand, atol=1e-10, err_msg=gene)
    assert len(given) == min(landmarks, 21)
    assert np.abs(loadings[genes.get_loc("K0")]).max() > 0, "what is not in the screen is foretold by what is like it"

    as_they_are, _ = response._foretelling(screen, kernel, genes, training, responses, smooth=False)
    for gene, row in zip(genes, as_they_are, strict=True):
        np.testing.assert_array_equal(row, scores[elsewhere.get_loc(gene)] if gene in elsewhere else np.zeros(5))


def test_factors_are_least_squares_by_response_shrunken_to_the_common_one():
    rng = np.random.default_rng(0)
    there = rng.normal(size=(15, 8)) * np.linspace(0.2, 2, 8)
    rest = there * np.array([2.0, 1, 0.5, 0, 3, 1, 1, -1]) + rng.normal(size=(15, 8))
    there[:, 3] = 0  # a response that the screen lacks
    precision = rng.uniform(0.6, 1.2, 15)
    factors = response.learned_factors(there, rest, precision)
    weights = (precision / np.linalg.norm(rest - rest.mean(axis=1, keepdims=True), axis=1)) ** 2

    def products(columns):
        x, y = there[:, columns], rest[:, columns]
        return (weights[:, None] * x * y).sum(), (weights[:, None] * x * x).sum()

    product, square = products(range(8))
    common, own = product / square, {}
    for j in (0, 1, 2, 4, 5, 6, 7):
        own[j] = (*products([j]), (weights * rest[:, j] ** 2).sum())
    noise = {j: (total - xy**2 / xx) / 14 for j, (xy, xx, total) in own.items()}
    spread = sum((own[j][0] / own[j][1] - common) ** 2 * own[j][1] - noise[j] for j in own) / square
    assert spread > 0
    for j, (xy, xx, _) in own.items():
        alone = (xy + noise[j] / spread * common) / (xx + noise[j] / spread)
        assert factors[j] == pytest.approx(max(alone, 0.0), abs=1e-12)
    alike = response.learned_factors(there, 2 * there + 1e-3 * rng.normal(size=(15, 8)), precision)
    np.testing.assert_allclose(np.delete(alike, 3), 2, atol=2e-3)  # no more than their errors apart
    assert factors[0] > factors[2] > factors[7] == 0
    assert (response.learned_factors(0 * there, rest, precision) == 0).all()


def template_case(seed=0):
    """Responses are three times the template's profiles, and noise."""
    rng = np.random.default_rng(seed)
    names, genes = pd.Index([f"K{i}" for i in range(50)]), pd.Index([f"G{i}" for i in range(80)])
    scores, basis = rng.normal(size=(50, 4)), rng.normal(size=(4, 80))
    responses = pd.DataFrame(3 * scores @ basis + rng.normal(0, 2, (50, 80)), index=names, columns=genes)
    return responses, Screen(names, genes, scores, basis)


def test_a_template_that_holds_needs_no_training_of_its_kind():
    """Genes unlike any seen before are predicted by it, and no kernel is made of it."""
    responses, template = template_case()
    score, model = held_out(ResponseModel(), responses, GeneKnowledge({}, template=template), n_test=25)
    assert score > 0.8
    assert model.weights_.index.tolist() == ["constant"]
    assert model.judged_.loc[TEMPLATE, "gain"] > 0.5
    predicted, foretold = model.predict(responses.index[:25]).to_numpy(), template.scores[:25] @ template.basis
    slope = (foretold * (predicted - model.reference_.to_numpy())).sum() / (foretold**2).sum()
    assert slope == pytest.approx(3, rel=0.1)
    assert 0.5 < model.transfers_[TEMPLATE] <= 1.5


def test_a_template_that_does_not_hold_is_not_used():
    responses, template = template_case()
    order = np.random.default_rng(1).permutation(50)
    wrong = Screen(template.perturbations, template.responses, template.scores[order], template.basis)
    against = Screen(template.perturbations, template.responses, -template.scores, template.basis)
    without = ResponseModel().fit(responses[:25]).predict(responses.index[25:30].tolist())
    for screen in (wrong, against):
        model = ResponseModel().fit(responses[:25], knowledge=GeneKnowledge({}, template=screen))
        assert model.judged_.loc[TEMPLATE, "enters"] == 0
        assert model.transfers_.empty
        np.testing.assert_allclose(model.predict(responses.index[25:30].tolist()), without)


# ---------------------------------------------------------------------------------------------------------------------
# The whole model
# ---------------------------------------------------------------------------------------------------------------------


def test_gene_in_one_table_of_two_is_predicted_from_it():
    """Each table knows what the other does not; one of them lacks five genes."""
    responses, features = study(noise=0.5)
    part = features.drop(index=features.index[5:10])
    tables = {"a": numeric_table(part[[0, 1, 2]]), "b": numeric_table(features[[3, 4]])}
    model = ResponseModel().fit(responses[20:], knowledge=GeneKnowledge(tables))
    assert model.judged_["enters"].tolist() == [1, 1]
    assert model.judged_["coverage"].tolist() == [1, 1]
    predicted, truth = (table - model.reference_ for table in (model.predict(responses.index[5:10]), responses[5:10]))
    assert row_correlations(predicted.to_numpy(), truth.to_numpy()).mean() > 0.3


def alike_responses():
    """Knock-outs of genes that respond alike do alike here."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(60)]
    hidden = rng.normal(size=(60, 3))
    return pd.DataFrame(3 * hidden @ hidden.T + rng.normal(0, 2, (60, 60)), index=names, columns=names)


def test_how_a_gene_responds_is_one_more_table():
    responses = alike_responses()
    with_it, model = held_out(ResponseModel(), responses, GeneKnowledge({}))
    without, other = held_out(ResponseModel(own_response=False), responses, GeneKnowledge({}))
    assert with_it > 0.5 > without + 0.3
    assert model.judged_.index.tolist() == [OWN_RESPONSE]
    assert other.judged_.empty


def test_unknown_target_gets_the_common_direction_and_one_warning():
    responses, features = study()
    shifted = responses + 3 * np.random.default_rng(5).normal(size=150) * (np.arange(60) % 3 > 0)[:, None]
    model = ResponseModel().fit(shifted, knowledge=GeneKnowledge({"t": numeric_table(features)}))
    with pytest.warns(UserWarning, match="nothing is known of 2 of 3 targets.*: X, Y") as caught:
        predicted = model.predict(["X", "K3", "Y"])
    assert len(caught) == 1
    pd.testing.assert_series_equal(predicted.loc["X"], predicted.loc["Y"], check_names=False)
    assert not np.allclose(predicted.loc["X"], model.reference_), "two thirds share a direction: it is no surprise"


def test_order_of_rows_columns_and_tables_does_not_matter():
    responses, features = study(30)
    tables = {"a": numeric_table(features), "b": symbol_table(features.index)}
    rng = np.random.default_rng(0)
    shuffled = responses.iloc[rng.permutation(30), rng.permutation(150)]
    turned = dict(reversed(tables.items()))
    one = ResponseModel().fit(responses, knowledge=GeneKnowledge(tables)).predict(["K4", "K20"])
    other = ResponseModel().fit(shuffled, knowledge=GeneKnowledge(turned)).predict(["K20", "K4"])
    pd.testing.assert_frame_equal(one, other.loc[one.index, one.columns], atol=1e-3, rtol=0)


def test_noisy_knock_outs_count_less():
    responses, features = study(40, noise=0.3)
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
    responses, features = study(10)
    model = ResponseModel().fit(responses[:n], knowledge=GeneKnowledge({"t": numeric_table(features)}))
    with pytest.warns(UserWarning, match="nothing is known"):
        predicted = model.predict(["NEW"])
    np.testing.assert_allclose(predicted.loc["NEW"], responses[:n].mean())


def test_perturbations_that_are_all_alike_predict_their_mean():
    responses, features = study(10)
    responses.iloc[:] = responses.iloc[0].to_numpy()
    model = ResponseModel().fit(responses, knowledge=GeneKnowledge({"t": numeric_table(features)}))
    np.testing.assert_allclose(model.predict(["K3"]).loc["K3"], responses.iloc[0])


def test_no_table_at_all_and_no_target_known():
    responses, _ = study(20)
    model = ResponseModel().fit(responses)
    assert model.weights_.index.tolist() == ["constant"]
    assert model.judged_.columns.tolist() == ["coverage", "gain", "standard_error", "enters"]
    assert model.judged_.empty
    with pytest.warns(UserWarning, match="nothing is known of 1 of 1"):
        assert np.isfinite(model.predict(["NEW"])).all(axis=None)


def test_expected_error_and_pearson_rank_the_true_ones():
    responses, features = study(200, noise=1.5, seed=3)
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
    assert spearmanr(expected["pearson"], pearson).statistic > 0.5
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


def test_a_response_without_a_name_is_no_gene():
    responses = alike_responses()
    responses.columns = [*responses.columns[:-1], ""]
    model = ResponseModel().fit(responses)
    assert model.judged_.loc[OWN_RESPONSE, "enters"] == 1
    assert model.predict_scale(["G1", "NEW"]).index.tolist() == ["G1", "NEW"]
