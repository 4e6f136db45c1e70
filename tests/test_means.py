"""The mean models against literal transcriptions of the published formulas."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError


def published_ridge(Y, R, targets, n_components, n_response_components, alpha=0.1):
    """The challenge's regression starter, step by step on labelled tables: genes (or programs) x perturbations."""
    G = pd.DataFrame(PCA(n_components, svd_solver="full").fit_transform(Y), index=Y.index)
    known = [p for p in Y.columns if p != CRUNCH.control and p in G.index]
    P = G.loc[known].to_numpy()
    R_components = G if R is Y else pd.DataFrame(PCA(n_response_components).fit_transform(R), index=R.index)
    A = R_components.to_numpy()
    b = R[known].mean(axis=1).to_numpy()
    left = np.linalg.inv(A.T @ A + alpha * np.eye(A.shape[1]))
    right = np.linalg.inv(P.T @ P + alpha * np.eye(P.shape[1]))
    W = left @ A.T @ (R[known].to_numpy() - b[:, None]) @ P @ right
    out = {}
    for target in targets:
        out[target] = [
            sum(A[i] @ W[:, k] * G.loc[target].iloc[k] for k in range(P.shape[1])) + b[i] for i in range(len(A))
        ]
    return pd.DataFrame(out, index=R.index).T


@pytest.fixture(scope="module")
def measured_targets(challenge):
    return challenge.targets[challenge.targets.isin(challenge.genes)][:4]


def test_pca_ridge_gives_the_published_numbers(stats, measured_targets):
    prediction = helpers.PCARidge(n_components=10, alpha=0.1).fit(stats.mean).predict(measured_targets)
    expected = published_ridge(stats.mean.T, stats.mean.T, measured_targets, 10, 10)
    assert prediction.shape == (4, 240)
    pd.testing.assert_frame_equal(prediction, expected, check_names=False, rtol=0, atol=1e-6)
    assert prediction.std().max() > 1e-3, "targets must differ, or the test shows nothing"


def test_pca_ridge_of_program_proportions(stats, challenge, measured_targets):
    proportions = challenge.proportions
    model = helpers.PCARidge(n_components=10, n_response_components=3).fit(proportions, means=stats.mean)
    expected = published_ridge(stats.mean.T, proportions.loc[stats.mean.index].T, measured_targets, 10, 3)
    pd.testing.assert_frame_equal(model.predict(measured_targets), expected, check_names=False, rtol=0, atol=1e-6)


def test_order_of_perturbations_and_genes_does_not_matter(stats, measured_targets):
    rng = np.random.default_rng(0)
    shuffled = stats.mean.iloc[rng.permutation(len(stats.mean)), rng.permutation(240)]
    one, other = (helpers.PCARidge().fit(means).predict(measured_targets) for means in (stats.mean, shuffled))
    pd.testing.assert_frame_equal(one, other[one.columns], rtol=0, atol=1e-9)


def test_unmeasured_targets_get_the_mean_and_one_warning(stats, measured_targets):
    model = helpers.PCARidge().fit(stats.mean)
    with pytest.warns(UserWarning, match="2 of 3 targets .* NOTAGENE, ALSONOT") as caught:
        prediction = model.predict(["NOTAGENE", measured_targets[0], "ALSONOT"])
    assert len(caught) == 1
    np.testing.assert_array_equal(prediction.loc["NOTAGENE"], model.intercept_)
    np.testing.assert_array_equal(prediction.loc["ALSONOT"], model.intercept_)
    assert not np.allclose(prediction.loc[measured_targets[0]], model.intercept_)


def test_no_perturbation_measured_at_all(stats):
    means = stats.mean.rename(index=lambda name: name if name == CRUNCH.control else f"X{name}")
    with pytest.warns(UserWarning, match="1 of 1 targets"):
        prediction = helpers.PCARidge().fit(means).predict(["Y"])
    np.testing.assert_allclose(prediction.loc["Y"], means.drop(index=CRUNCH.control).mean())


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_perturbations(stats, measured_targets, n):
    means = stats.mean.loc[[CRUNCH.control, *stats.mean.index.drop(CRUNCH.control)[:n]]]
    assert np.isfinite(helpers.PCARidge().fit(means).predict(measured_targets)).all(axis=None)


def test_baselines(stats, challenge):
    control = helpers.ControlMean().fit(stats.mean).predict(["A", "B"])
    np.testing.assert_array_equal(control.loc["B"], stats.mean.loc[CRUNCH.control])
    perturbed = helpers.PerturbedMean().fit(stats.mean, n_cells=stats.n_cells).predict(["A"])
    np.testing.assert_allclose(perturbed.loc["A"], stats.perturbed_centroid(), atol=1e-12)
    unweighted = helpers.PerturbedMean().fit(stats.mean).predict(["A"])
    np.testing.assert_allclose(unweighted.loc["A"], stats.mean.drop(index=CRUNCH.control).mean())
    with pytest.raises(DataError, match="no row 'NC'"):
        helpers.ControlMean().fit(stats.mean.drop(index=CRUNCH.control))
