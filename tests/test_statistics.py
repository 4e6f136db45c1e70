"""One pass over the cells gives what numpy gives group by group, for every kind of input and any number of threads."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import helpers
from helpers import DataError


def by_hand(X, groups):
    """Literal transcription: mean, variance, detection rate and count of each group, cell by cell."""
    out = {}
    for group in sorted(set(groups)):
        cells = [X[i] for i in range(len(X)) if groups[i] == group]
        mean = sum(cells) / len(cells)
        out[group] = mean, sum((c - mean) ** 2 for c in cells) / len(cells), sum(c > 0 for c in cells) / len(cells)
    return out


def assert_equal_by_hand(stats, X, groups):
    expected = by_hand(X, groups)
    for group, (mean, variance, detection) in expected.items():
        np.testing.assert_allclose(stats.mean.loc[group], mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(stats.variance.loc[group], variance, rtol=0, atol=1e-12)
        np.testing.assert_allclose(stats.detection.loc[group], detection, rtol=0, atol=1e-12)
        assert stats.n_cells[group] == sum(g == group for g in groups)
    assert stats.n_cells.sum() == len(groups)


@pytest.fixture(params=["csr", "csc", "dense", "float32 csr", "file csr", "file dense", "backed"])
def source(request, tiny, tmp_path):
    kind = request.param
    if "dense" in kind:
        tiny.X = tiny.X.toarray()
    if kind == "csc":
        tiny.X = tiny.X.tocsc()
    if "float32" in kind:
        tiny.X = sp.csr_matrix(tiny.X.astype(np.float32).astype(np.float64)).astype(np.float32)
    if "file" not in kind and kind != "backed":
        return tiny
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    return ad.read_h5ad(tmp_path / "cells.h5ad", backed="r") if kind == "backed" else tmp_path / "cells.h5ad"


@pytest.mark.parametrize("slab_values", [5, 40, 500_000])
def test_every_source_and_slab_size(source, tiny, slab_values, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_VALUES", slab_values)
    X = np.asarray(tiny.X.toarray() if sp.issparse(tiny.X) else tiny.X, float)
    assert_equal_by_hand(helpers.perturbation_stats(source), X, tiny.obs["gene"].astype(str).to_list())


def test_by_state_and_pooled(tiny):
    stats = helpers.perturbation_stats(tiny, by_state=True)
    X = tiny.X.toarray()
    for gene in ("NC", "A", "C"):
        for state in helpers.STATES:
            cells = X[(tiny.obs["gene"] == gene) & (tiny.obs[state] == 1)]
            assert stats.n_cells[gene, state] == len(cells)
            np.testing.assert_allclose(stats.mean.loc[(gene, state)], cells.mean(axis=0), atol=1e-12)
    assert_equal_by_hand(stats.pooled(), X, tiny.obs["gene"].astype(str).to_list())


def test_first_cells_of_each_perturbation(tiny):
    stats = helpers.perturbation_stats(tiny, max_cells=4)
    assert stats.n_cells.to_dict() == {"A": 4, "B": 1, "C": 4, "NC": 4}
    first = tiny.X.toarray()[(tiny.obs["gene"] == "C").to_numpy()][:4]
    np.testing.assert_allclose(stats.mean.loc["C"], first.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(stats.variance.loc["C"], first.var(axis=0), atol=1e-12)


def test_one_cell_has_no_variance(tiny):
    assert (helpers.perturbation_stats(tiny).variance.loc["B"] == 0).all()


def test_threads_give_the_same_bits(challenge, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_VALUES", 3000)
    one, many = (helpers.perturbation_stats(challenge.train_path, n_threads=n) for n in (1, 7))
    pd.testing.assert_frame_equal(one.mean, many.mean, check_exact=True)
    pd.testing.assert_frame_equal(one.variance, many.variance, check_exact=True)


def test_the_source_is_left_as_it_was(tiny):
    before = tiny.X.copy()
    helpers.perturbation_stats(tiny)
    assert (before != tiny.X).nnz == 0


def test_perturbed_centroid_is_over_cells_not_perturbations(tiny):
    X, perturbed = tiny.X.toarray(), (tiny.obs["gene"] != "NC").to_numpy()
    centroid = helpers.perturbation_stats(tiny).perturbed_centroid()
    np.testing.assert_allclose(centroid, X[perturbed].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, -0.5, np.inf])
def test_values_that_cannot_be(tiny, value, tmp_path):
    tiny.X.data[10] = value
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"cells\.h5ad.*(negative|infinite)"):
        helpers.perturbation_stats(tmp_path / "cells.h5ad")


def test_csc_file_says_how_to_write_it_again(tiny, tmp_path):
    tiny.X = tiny.X.tocsc()
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"cells\.h5ad: X is stored by genes .*tocsr"):
        helpers.perturbation_stats(tmp_path / "cells.h5ad")


def test_duplicated_genes_and_missing_column(tiny):
    tiny.var_names = ["A", "A", *tiny.var_names[2:]]
    with pytest.raises(DataError, match="duplicated names A"):
        helpers.perturbation_stats(tiny)
    del tiny.obs["gene"]
    with pytest.raises(DataError, match="no column gene"):
        helpers.perturbation_stats(tiny)


def test_read_cells_gives_the_rows_asked_for(tiny, tmp_path):
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    cells = helpers.read_cells(tmp_path / "cells.h5ad", np.array([40, 3]))
    np.testing.assert_array_equal(cells.X.toarray(), tiny.X.toarray()[[40, 3]].astype(np.float32))
    assert cells.obs["gene"].tolist() == tiny.obs["gene"].iloc[[40, 3]].tolist()
