"""Synthetic cells: at the exact mean, never clipped, every prefix of the base near the pool, order of genes free."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import helpers


@pytest.fixture(scope="module")
def pool(challenge):
    return helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, seed=0))


@pytest.fixture(scope="module")
def recentred(stats, pool):
    return helpers.RecentredCells().fit(pool)


def test_recentred_cells_have_the_exact_mean_and_the_spread_of_the_base(recentred, stats):
    genes = stats.mean.columns
    mean = stats.mean.iloc[3].to_numpy() - 0.4  # below 0 in places, as real predictions are
    cells = recentred.for_genes(genes).sample("T", mean, 100)
    assert cells.dtype == np.float32
    np.testing.assert_allclose(cells.mean(axis=0, dtype=np.float64), mean, atol=2e-6)
    np.testing.assert_allclose(cells.std(axis=0), recentred.base_.std(axis=0, ddof=0), atol=1e-5)
    assert cells.min() < -0.1, "values below 0 must survive: clipping moves the mean"


def test_the_base_is_real_cells(recentred, pool):
    rows = {row.tobytes() for row in pool.X.toarray()}
    base = [row.tobytes() for row in recentred.base_.to_numpy()]
    assert set(base) <= rows
    assert len(set(base)) == 100


def test_every_prefix_of_the_herded_base_represents_the_pool(recentred, pool):
    X, base = pool.X.toarray().astype(float), recentred.base_.to_numpy(float)
    sigma = helpers.squared_distances(X, X).mean()

    def far(cells):
        """MMD against the whole pool (not balanced)."""
        k = [
            helpers.scorer_kernel(helpers.squared_distances(a, b), sigma).mean()
            for a, b in ((cells, cells), (cells, X))
        ]
        return k[0] - 2 * k[1]

    rng = np.random.default_rng(0)
    for n in (5, 20, 50, 100):
        at_random = [far(X[rng.choice(len(X), n, replace=False)]) for _ in range(20)]
        assert far(base[:n]) < min(at_random)


def test_more_cells_than_the_base_repeat_it_and_keep_the_mean(recentred, stats):
    mean = stats.mean.iloc[0].to_numpy()
    generator = recentred.for_genes(stats.mean.columns)
    cells = generator.sample("T", mean, 250)
    np.testing.assert_allclose(cells.mean(axis=0, dtype=np.float64), mean, atol=2e-6)
    np.testing.assert_array_equal(cells[:100], cells[100:200])
    assert len(generator.sample("T", mean, 7)) == 7


def test_a_pool_smaller_than_the_base(stats):
    pool = ad.AnnData(np.eye(3, 240, dtype=np.float32), var=pd.DataFrame(index=stats.mean.columns))
    cells = helpers.RecentredCells().fit(pool)
    assert len(cells.base_) == 3
    assert cells.for_genes(stats.mean.columns).sample("T", np.zeros(240), 100).shape == (100, 240)
    one = helpers.RecentredCells().fit(pool[:1])
    assert np.abs(one.for_genes(stats.mean.columns).sample("T", np.ones(240), 5) - 1).max() == 0


def test_gaussian_cells_are_the_starters_noise_in_the_order_asked_for(stats):
    genes = stats.mean.columns
    gaussian = helpers.GaussianCells(seed=5).fit(stats.mean)
    cells = gaussian.for_genes(genes).sample("T", np.zeros(240), 4000)
    expected = stats.mean.drop(index="NC").std(ddof=1)
    np.testing.assert_allclose(cells.std(axis=0), expected, rtol=0.1)
    backwards = gaussian.for_genes(genes[::-1]).sample("T", np.zeros(240), 4000)
    np.testing.assert_array_equal(backwards, cells[:, ::-1])
    assert not np.array_equal(gaussian.for_genes(genes).sample("U", np.zeros(240), 4000), cells)


def test_herding_against_its_definition():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(12, 3))
    K = np.exp(-((points[:, None] - points[None]) ** 2).sum(axis=2))
    chosen = []
    for t in range(6):
        gains = {i: sum(K[i]) / 12 - sum(K[i, j] for j in chosen) / (t + 1) for i in range(12) if i not in chosen}
        chosen.append(max(gains, key=gains.get))
    assert helpers.herd(K, 6).tolist() == chosen


def test_pool_is_control_cells_filled_up_with_perturbed_ones(challenge, monkeypatch):
    is_control = (challenge.obs["gene"] == "NC").to_numpy()
    monkeypatch.setattr(helpers, "POOL_CELLS", int(is_control.sum()) - 20)
    rows = helpers.pool_rows(challenge.obs, seed=0)
    assert is_control[rows].all()
    assert (np.diff(rows) > 0).all()
    monkeypatch.setattr(helpers, "POOL_CELLS", int(is_control.sum()) + 30)
    rows = helpers.pool_rows(challenge.obs, seed=0)
    assert (is_control[rows].sum(), len(rows)) == (is_control.sum(), is_control.sum() + 30)
