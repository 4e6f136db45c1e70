"""Synthetic cells: at the exact mean, like real ones, every prefix of the base near the pool, order of genes free."""

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


@pytest.fixture(scope="module")
def scaled(pool):
    return helpers.ScaledCells().fit(pool)


@pytest.mark.parametrize("n_cells", [100, 30, 250])
def test_scaled_cells_have_the_exact_mean_the_zeros_of_the_base_and_nothing_negative(scaled, stats, n_cells):
    genes = stats.mean.columns
    base = scaled.base_[genes].to_numpy()[np.arange(n_cells) % 100]
    mean = 1.3 * base.mean(axis=0)
    mean[:5] = -0.3
    mean[5:90] *= 0.4
    cells = scaled.for_genes(genes).sample("T", mean, n_cells)
    assert cells.dtype == np.float32
    assert cells.min() >= 0
    np.testing.assert_allclose(cells.mean(axis=0, dtype=np.float64), np.maximum(mean, 0), atol=2e-6)
    risen = (np.arange(len(genes)) >= 90) & (base.max(axis=0) > 0) & (1.3 * base.max(axis=0) <= base.max())
    assert risen.sum() > 70
    np.testing.assert_array_equal(cells[:, risen] == 0, base[:, risen] == 0)
    np.testing.assert_allclose(cells[:, risen], 1.3 * base[:, risen], rtol=1e-5)


def one_gene(value, draw, wanted, highest, single):
    """The values of a gene whose sum is `wanted`, one step after the other; `draw` is -1 for what is never lost."""
    total = value.sum()
    kept = np.where(draw < wanted / total, value, 0.0) if total > 0 else value
    kept = kept if kept.sum() > 0 else value
    cells = kept * wanted / kept.sum() if kept.sum() > 0 else kept
    if cells.max() <= highest and (wanted == 0 or cells.sum() > 0):
        return cells
    cells = np.minimum(cells, highest)
    empty = np.flatnonzero(cells == 0)[: int(np.ceil((wanted - cells.sum()) / single - 1e-6))]
    if len(empty):
        cells[empty] = min((wanted - cells.sum()) / len(empty), single)
    room = highest - cells
    if room.sum() >= wanted - cells.sum() > 1e-6 * wanted:
        return cells + room * (wanted - cells.sum()) / room.sum()
    return cells * wanted / cells.sum()


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.2, 1.0, 4.0, 60.0])
@pytest.mark.parametrize("n_cells", [1, 30, 130])
def test_all_genes_at_once_are_each_gene_alone(scaled, stats, factor, n_cells):
    genes = stats.mean.columns
    generator = scaled.for_genes(genes)
    rng = np.random.default_rng(0)
    mean = factor * generator.base_.mean().to_numpy() * rng.uniform(0.5, 2, len(genes)) + 0.01 * rng.random(len(genes))
    stored, cells, wanted = generator._stored(n_cells), generator.sample("T", mean, n_cells), n_cells * mean.clip(min=0)
    filled = 0
    for gene in range(len(genes)):
        at = np.flatnonzero(stored.column == gene)
        expected = one_gene(stored.value[at], stored.draw[at], wanted[gene], stored.highest, stored.single)
        np.testing.assert_allclose(cells[stored.pattern[:, gene], gene], expected, rtol=1e-6, atol=1e-9)
        filled += (expected > 0).sum() > (stored.value[at] > 0).sum()
    assert filled > 0 or factor < 4, "some genes must rise into further cells"


def test_where_a_gene_falls_single_counts_are_lost_with_the_probability_of_the_fall():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (400, 300))
    counts[:, 0] = 1  # so that every cell shows what a single count is
    genes = pd.Index([f"G{i}" for i in range(300)])
    pool = ad.AnnData(np.log2(1 + counts).astype(np.float32), var=pd.DataFrame(index=genes))
    generator = helpers.ScaledCells(n_base=400).fit(pool).for_genes(genes)
    base = generator.base_.to_numpy()
    cells = generator.sample("T", 0.7 * base.mean(axis=0), 400)
    np.testing.assert_allclose(cells.mean(axis=0), 0.7 * base.mean(axis=0), rtol=1e-5)
    assert (cells[base == 1] == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert (cells[base > 1] > 0).all(), "higher counts shrink, they are not lost"


def test_amplitude_multiplies_the_effect_on_the_control(pool, stats):
    genes, target = stats.mean.columns, stats.mean.iloc[3]
    with pytest.raises(ValueError, match="needs the training means"):
        helpers.ScaledCells(amplitude=2.0).fit(pool)
    cells = helpers.ScaledCells(amplitude=2.0).fit(pool, stats.mean).for_genes(genes[::-1])
    made = cells.sample("T", target[genes[::-1]].to_numpy(), 100).mean(axis=0, dtype=np.float64)
    expected = (2.0 * target - stats.mean.loc["NC"]).clip(lower=0)[genes[::-1]]
    np.testing.assert_allclose(made, expected, atol=2e-6)


def test_the_order_of_the_genes_changes_nothing_else(scaled, stats):
    genes, mean = stats.mean.columns, stats.mean.iloc[3] * 0.8
    plain = scaled.for_genes(genes).sample("T", mean.to_numpy(), 100)
    for generator in (scaled, scaled.for_genes(genes)):
        generator.sample("T", mean.to_numpy(), 100)  # what it keeps must not serve other genes
        backwards = generator.for_genes(genes[::-1]).sample("T", mean[::-1].to_numpy(), 100)
        np.testing.assert_array_equal(backwards[:, ::-1], plain)
    other = helpers.ScaledCells(seed=1).fit(ad.AnnData(scaled.base_.to_numpy(), var=pd.DataFrame(index=genes)))
    assert not np.array_equal(other.for_genes(genes).sample("T", mean.to_numpy(), 100), plain)


def test_a_gene_without_a_count_goes_into_cells_that_its_name_decides(stats):
    base = np.ones((100, 240), np.float32)
    base[:, 7] = 0.0
    pool = ad.AnnData(base, var=pd.DataFrame(index=stats.mean.columns))
    generator, mean = helpers.ScaledCells().fit(pool), np.full(240, 0.05)
    cells = generator.for_genes(stats.mean.columns).sample("T", mean, 100)
    assert (cells[:, 7] > 0).sum() == 5, "five cells with a single count"
    assert cells[:, 7].sum() == pytest.approx(5)
    backwards = generator.for_genes(stats.mean.columns[::-1]).sample("T", mean, 100)
    np.testing.assert_array_equal(backwards[:, ::-1], cells)


def test_no_cell_holds_more_than_any_real_one_while_there_is_room(stats):
    base = np.full((100, 240), 3.0, np.float32)
    base[2:, 7] = 0.0  # two cells have it
    base[:, :3] = [1.0, 8.0, 2.0]
    pool = ad.AnnData(base, var=pd.DataFrame(index=stats.mean.columns))
    generator = helpers.ScaledCells().fit(pool).for_genes(stats.mean.columns)
    mean = base.mean(axis=0)
    for wanted, cells_of_it in ((0.1, 2), (0.2, 6), (0.7, 10)):
        mean[7] = wanted
        cells = generator.sample("T", mean, 100)
        np.testing.assert_allclose(cells.mean(axis=0), mean, rtol=1e-5)
        assert cells.max() == pytest.approx(8.0)
        assert (cells[:, 7] > 0).sum() == cells_of_it
    mean[7] = 2.0  # more than ten cells can hold: the mean is kept
    cells = generator.sample("T", mean, 100)
    np.testing.assert_allclose(cells.mean(axis=0), mean, rtol=1e-5)


def test_the_seed_decides_which_cells_lose_a_gene(scaled, pool, stats):
    genes, mean = stats.mean.columns, 0.6 * scaled.base_.mean().to_numpy()
    one, other = (helpers.ScaledCells(seed=seed).fit(pool).for_genes(genes).sample("T", mean, 100) for seed in (0, 1))
    assert ((one > 0) != (other > 0)).any()
    np.testing.assert_allclose(one.mean(axis=0), other.mean(axis=0), atol=2e-6)


@pytest.mark.parametrize("cells", [helpers.ScaledCells, helpers.RecentredCells])
def test_what_sampling_keeps_is_no_attribute(cells, pool, stats):
    generator = cells().fit(pool)
    before = set(vars(generator))
    generator.sample("T", np.ones(generator.base_.shape[1]), 100)
    assert set(vars(generator)) == before


def test_stored_values_of_scaled_cells_are_those_of_the_sample(scaled, stats):
    generator, mean = scaled.for_genes(stats.mean.columns), stats.mean.iloc[5].to_numpy()
    sample = generator.sample("T", mean, 100)
    np.testing.assert_array_equal(sample[generator.pattern(100)], generator.values("T", mean, 100))
    assert (sample[~generator.pattern(100)] == 0).all()


def test_scaled_and_recentred_cells_share_a_base(scaled, recentred):
    pd.testing.assert_frame_equal(scaled.base_, recentred.base_)


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
