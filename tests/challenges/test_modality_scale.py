"""Modality prediction: counts are recognised and normalised; training and test are on one scale."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import REAL_DATA
from simulated_pairs import split, write

from challenges.modality import data, scale
from helpers import DataError


def counted(kind, n=80, n_features=24, seed=0):
    """Counts of one modality, CSR; half of them are 0, and cell 3 is empty."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 4, (n, n_features)) * rng.lognormal(0, 0.5, (n, 1))).astype(np.float32)
    counts[3] = 0
    obs = pd.DataFrame({"size_factors": rng.lognormal(0, 0.5, n)}, [f"C{i:03}" for i in range(n)])
    names = [f"{kind}{i}" for i in range(n_features)]
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"feature_types": kind}, names))


def on_scale(cells, kind, **options):
    return scale.normalised(scale.scale_of(cells, "X", kind, **options), cells.copy(), "file")


def clr(counts):
    return np.log1p(counts / np.exp(np.log1p(counts).mean(axis=1, keepdims=True)))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("GEX", lambda counts, factors: np.log1p(counts / factors[:, None])),
        ("ADT", lambda counts, factors: clr(counts)),
        ("ATAC", lambda counts, factors: (counts > 0).astype(float)),
    ],
)
def test_counts_are_normalised_as_the_challenge_did_and_kept(kind, wanted):
    cells = counted(kind)
    found = on_scale(cells, kind)
    assert sp.issparse(found.X)
    assert found.X.dtype == np.float32
    assert found.X.nnz == cells.X.nnz  # as sparse as they were
    assert np.allclose(found.X.toarray(), wanted(cells.X.toarray(), cells.obs["size_factors"].to_numpy()), atol=1e-5)
    assert (found.layers["counts"] != cells.X).nnz == 0
    assert np.shares_memory(found.X.indices, found.layers["counts"].indices)
    alone = on_scale(cells, kind, as_is=True)
    assert (alone.X != cells.X).nnz == 0
    assert not alone.layers


def test_without_size_factors_they_are_totals_over_the_mean_total_of_training():
    cells = counted("GEX")
    del cells.obs["size_factors"]
    counts = cells.X.toarray()
    totals = counts.sum(axis=1, keepdims=True)
    wanted = np.log1p(counts / np.where(totals > 0, totals, 1) * totals.mean())
    assert np.allclose(on_scale(cells, "GEX").X.toarray(), wanted, atol=1e-5)
    # Of fewer genes, the total is held against that of these genes in training.
    of_training, measured = scale.scale_of(cells, "X", "GEX"), np.arange(24) < 20
    fewer = cells.copy()
    fewer.X = sp.csr_matrix(np.where(measured, counts, 0).astype(np.float32))
    found = scale.normalised(of_training, fewer, "file", measured).X.toarray()
    totals, usual = counts[:, measured].sum(axis=1, keepdims=True), counts[:, measured].sum(axis=1).mean()
    wanted = np.log1p(counts[:, measured] / np.where(totals > 0, totals, 1) * usual)
    assert np.allclose(found[:, measured], wanted, atol=1e-5)


def test_of_fewer_proteins_the_mean_is_that_of_these():
    cells, measured = counted("ADT"), np.arange(24) < 20
    fewer = cells.copy()
    fewer.X = sp.csr_matrix(np.where(measured, cells.X.toarray(), 0).astype(np.float32))
    found = scale.normalised(scale.scale_of(cells, "X", "ADT"), fewer, "file", measured)
    assert np.allclose(found.X.toarray()[:, measured], clr(cells.X.toarray()[:, measured]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda X: X, "counts"),
        (lambda X: X * 1.5, "as it is"),
        (lambda X: X - 2, "as it is"),
        (lambda X: 1e4 * X / X.sum(axis=1, keepdims=True), "linear"),
        (lambda X: np.log1p(1e4 * X / X.sum(axis=1, keepdims=True)), "natural logarithms"),
        (lambda X: np.log2(1 + 1e4 * X / X.sum(axis=1, keepdims=True)), "log2 units"),
    ],
)
def test_the_kind_of_values_is_told_by_the_values(change, kind):
    X = np.delete(counted("GEX").X.toarray(), 3, axis=0).astype(np.float64)
    assert scale.kind_of_values(sp.csr_matrix(change(X).astype(np.float32)), "GEX") == kind


def pair_of_counts():
    return split([counted("GEX"), counted("ADT", n_features=12, seed=1)])


def test_a_pair_of_counts_is_normalised_alike_in_training_and_test_and_says_so(tmp_path, capsys):
    files = pair_of_counts()
    pair = data.read_pair(write(tmp_path, files))
    said = capsys.readouterr().out
    assert "GEX: counts in X: divided by obs['size_factors'], then log1p" in said
    assert "ADT: counts in X: centred log ratio" in said
    assert np.allclose(pair.test_target.X.toarray(), clr(files["test_mod2"].X.toarray()), atol=1e-5)
    assert (pair.test_source.layers["counts"] != files["test_mod1"].X).nnz == 0
    alone = data.read_pair(tmp_path, as_is=True)
    assert (alone.train_source.X != files["train_mod1"].X).nnz == 0
    assert "ADT: counts in X: as they are in the file" in capsys.readouterr().out


def logged(base, total=1e4):
    def change(cells):
        X = cells.X.toarray() + 1.0
        cells.X = sp.csr_matrix((np.log1p(total * X / X.sum(axis=1, keepdims=True)) / np.log(base)).astype(np.float32))

    return change


@pytest.mark.parametrize(
    ("training", "test", "message"),
    [
        (logged(np.e), lambda cells: None, "test_mod1.h5ad: counts, but .*train_mod1.h5ad was made of natural logarit"),
        (lambda cells: None, logged(2), "test_mod1.h5ad: log2 units, but .*train_mod1.h5ad was made of counts; write"),
        (logged(np.e), logged(2), "test_mod1.h5ad: log2 units, but .* was made of natural logarithms; write both on"),
        (lambda c: setattr(c, "X", c.X * 0.3), lambda c: setattr(c, "X", c.X * 33.3), "values up to .*, those of .*"),
        (lambda c: None, lambda c: c.obs.pop("size_factors"), r"test_mod1.h5ad: counts without obs\['size_factors'\]"),
        (
            lambda c: c.obs.__setitem__("size_factors", 0.0),
            lambda c: None,
            r"train_mod1.h5ad: obs.* no numbers above 0",
        ),
        (
            lambda c: c.obs.__setitem__("size_factors", "a"),
            lambda c: None,
            r"train_mod1.h5ad: obs.* no numbers above 0",
        ),
    ],
)
def test_training_and_test_on_two_scales_are_refused_in_one_line(tmp_path, training, test, message):
    files = pair_of_counts()
    training(files["train_mod1"])
    test(files["test_mod1"])
    with pytest.raises(DataError, match=message) as refused:
        data.read_pair(write(tmp_path, files))
    assert "\n" not in str(refused.value)


def test_counts_are_found_in_their_layer_where_there_is_nothing_else(tmp_path):
    files = pair_of_counts()
    counts = files["train_mod1"].X
    files["train_mod1"] = ad.AnnData(
        obs=files["train_mod1"].obs, var=files["train_mod1"].var, layers={"counts": counts}
    )
    pair = data.read_pair(write(tmp_path, files))  # the test has them in X: counts are counts
    assert pair.source_scale.place == "counts"
    assert (pair.train_source.layers["counts"] != counts).nnz == 0


def test_real_counts_give_the_values_of_the_challenges_own_files():
    folder = REAL_DATA / "modalities"
    if not folder.exists():
        pytest.skip(f"REAL CELLS NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    for part, kind, most in (("mod1", "GEX", 1e-5), ("mod2", "ADT", 0.1)):  # a few proteins are missing there
        cells = ad.read_h5ad(folder / f"bmmc_cite_starter.train_{part}.h5ad")
        given = cells.X.toarray()
        cells.X = sp.csr_matrix(cells.layers["counts"])
        assert np.abs(on_scale(cells, kind).X.toarray() - given).max() < most
