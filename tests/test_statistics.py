"""One pass over the cells gives what numpy gives group by group, for every kind of input and any number of threads."""

import multiprocessing
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import helpers
from contract import OBESITY_1 as CRUNCH
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
        for state in CRUNCH.states:
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


@pytest.fixture
def small_tasks(monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_VALUES", 3000)
    monkeypatch.setattr(helpers, "TASK_VALUES", 20_000)


def assert_same_bits(one, other):
    pd.testing.assert_frame_equal(one.mean, other.mean, check_exact=True)
    pd.testing.assert_frame_equal(one.variance, other.variance, check_exact=True)
    pd.testing.assert_series_equal(one.n_cells, other.n_cells)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ThreadPoolExecutor(1),
        lambda: ThreadPoolExecutor(7),
        lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")),
    ],
)
def test_every_executor_gives_the_same_bits(challenge, stats, small_tasks, make):
    default = helpers.perturbation_stats(challenge.train_path)
    with make() as executor:
        assert_same_bits(helpers.perturbation_stats(challenge.train_path, executor=executor), default)
    pd.testing.assert_frame_equal(default.mean, stats.mean, rtol=0, atol=1e-12)


class Backwards(Executor):
    """Does the last task first, once a result is asked for."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, *arguments):
        self.waiting.append((future := Future(), function, arguments))
        future.result = partial(self.finish, future, future.result)
        return future

    def finish(self, future, result):
        while not future.done():
            last, function, arguments = self.waiting.pop()
            last.set_result(function(*arguments))
        return result()


def test_the_order_in_which_tasks_are_done_does_not_matter(challenge, small_tasks):
    executor = Backwards()
    backwards = helpers.perturbation_stats(challenge.train_path, executor=executor)
    assert_same_bits(backwards, helpers.perturbation_stats(challenge.train_path))
    assert not executor.waiting


def test_the_matrix_is_never_held_whole(tmp_path, peak_memory, monkeypatch):
    """24 MB of cells, read by slabs of 0.4 MB: the peak is below a half."""
    monkeypatch.setattr(helpers, "SLAB_VALUES", 50_000)
    monkeypatch.setattr(helpers, "TASK_VALUES", 200_000)
    X = np.random.default_rng(0).random((6000, 1000), np.float32)
    obs = pd.DataFrame({"gene": pd.Categorical(["NC", "A", "B"] * 2000)}, index=np.arange(6000).astype(str))
    ad.AnnData(X, obs=obs).write_h5ad(tmp_path / "dense.h5ad")
    ad.AnnData(sp.csr_matrix(X), obs=obs).write_h5ad(tmp_path / "sparse.h5ad")  # twice as large: its indices too
    assert peak_memory(lambda: ad.read_h5ad(tmp_path / "dense.h5ad")) > X.nbytes
    for name in ("dense.h5ad", "sparse.h5ad"):
        assert peak_memory(lambda path=tmp_path / name: helpers.perturbation_stats(path)) < X.nbytes / 2


@pytest.fixture
def shards(tiny, tmp_path):
    """The tiny cells in two files, the second with its genes in another order."""
    tiny.obs_names = [f"c{i}" for i in range(60)]
    tiny[:25].copy().write_h5ad(tmp_path / "one.h5ad")
    tiny[25:, tiny.var_names[::-1]].copy().write_h5ad(tmp_path / "two.h5ad")
    return [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]


@pytest.mark.parametrize("options", [{}, {"by_state": True}, {"max_cells": 4}])
def test_shards_are_aligned_by_name_and_add_up(tiny, shards, options):
    whole, parts = (helpers.perturbation_stats(source, **options) for source in (tiny, shards))
    pd.testing.assert_frame_equal(whole.mean, parts.mean, atol=1e-12)
    pd.testing.assert_frame_equal(whole.variance, parts.variance, atol=1e-12)
    pd.testing.assert_series_equal(whole.n_cells, parts.n_cells)


def test_zarr_and_memory_are_sources_too(tiny, shards):
    tiny[25:].copy().write_zarr(shards[1].with_suffix(".zarr"))
    parts = helpers.perturbation_stats([shards[0], shards[1].with_suffix(".zarr")])
    pd.testing.assert_frame_equal(parts.mean, helpers.perturbation_stats(tiny).mean, atol=1e-12)
    parts = helpers.perturbation_stats([tiny[:25].copy(), shards[1]])
    pd.testing.assert_frame_equal(parts.mean, helpers.perturbation_stats(tiny).mean, atol=1e-12)


def test_shard_of_another_genome_and_truncated_shard(tiny, shards):
    other = tiny[25:].copy()
    other.var_names = [*other.var_names[:-1], "OTHER"]
    other.write_h5ad(shards[1])
    with pytest.raises(DataError, match=r"two\.h5ad: other genes than the first source: G, OTHER"):
        helpers.perturbation_stats(shards)
    shards[1].write_bytes(shards[1].read_bytes()[:3000])
    with pytest.raises(DataError, match=r"two\.h5ad: not a readable HDF5 file"):
        helpers.perturbation_stats(shards)


def test_error_on_a_worker_names_the_file(tiny, shards):
    tiny.X.data[-1] = -1
    tiny[25:].copy().write_h5ad(shards[1])
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        pytest.raises(DataError, match=r"two\.h5ad, cells .* negative"),
    ):
        helpers.perturbation_stats(shards, executor=executor)


def _die(task):
    os._exit(1)


def test_worker_that_dies_is_said(challenge, small_tasks, monkeypatch):
    monkeypatch.setattr(helpers, "_task_sums", _die)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        pytest.raises(RuntimeError, match="a worker died"),
    ):
        helpers.perturbation_stats(challenge.train_path, executor=executor)


def test_dask_cluster_of_two_workers_gives_the_same_bits(challenge, small_tasks, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    adata = ad.read_h5ad(challenge.train_path)
    half = adata.n_obs // 2
    adata[:half].copy().write_h5ad(tmp_path / "one.h5ad")
    adata[half:, adata.var_names[::-1]].copy().write_h5ad(tmp_path / "two.h5ad")
    paths = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = helpers.perturbation_stats(paths, executor=client.get_executor())
    assert_same_bits(found, helpers.perturbation_stats(paths))
    pd.testing.assert_frame_equal(found.mean, helpers.perturbation_stats(challenge.train_path).mean, atol=1e-12)


def test_the_source_is_left_as_it_was(tiny):
    before = tiny.X.copy()
    helpers.perturbation_stats(tiny)
    assert (before != tiny.X).nnz == 0


def test_perturbed_centroid_is_over_cells_not_perturbations(tiny):
    X, perturbed = tiny.X.toarray(), (tiny.obs["gene"] != "NC").to_numpy()
    centroid = helpers.perturbation_stats(tiny).perturbed_centroid()
    np.testing.assert_allclose(centroid, X[perturbed].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "infinite values or NaN; expected log2"),
        (np.inf, "infinite values or NaN; expected log2"),
        (-np.inf, "negative values, down to -inf; expected log2"),
        (-0.5, "negative values, down to -0.5; expected log2"),
        (16.7, r"values up to 16.7, more than log2\(1 \+ scale\) = 16.6 allows: .* counts or CPM; normalise to log2"),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_cannot_be(tiny, value, message, dense, dtype, tmp_path):
    tiny.X = tiny.X.astype(dtype)
    tiny.X.data[10] = value
    if dense:
        tiny.X = tiny.X.toarray()
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=rf"cells\.h5ad, cells 0 to 60: X holds {message}"):
        helpers.perturbation_stats(tmp_path / "cells.h5ad")


def test_counts_are_refused_and_the_highest_expression_is_not(tiny):
    highest = np.log2(1 + CRUNCH.scale)  # of a cell that holds one gene alone
    tiny.X.data[:] = highest
    for dtype in (np.float64, np.float32):
        tiny.X = tiny.X.astype(dtype)
        assert helpers.perturbation_stats(tiny).mean.max().max() == pytest.approx(highest)
    tiny.X.data[:] = np.random.default_rng(0).poisson(20, tiny.X.nnz)
    with pytest.raises(DataError, match="counts or CPM"):
        helpers.perturbation_stats(tiny)


def rewrite(path, name, change=lambda values: values, chunks=None):
    """Change X/indptr, X/indices or X/data of a file, in which it lies in one piece without `chunks`."""
    with h5py.File(path, "r+") as file:
        values = file["X"][name][:]
        del file["X"][name]
        file["X"].create_dataset(name, data=change(values), chunks=chunks)


def changed(places, value):
    def change(values):
        values[places] = value
        return values

    return change


DAMAGES = {
    "outside": ("indices", changed(30, 7), r"X/indices holds numbers outside 0 to 6"),
    "negative": ("indices", changed(30, -1), r"X/indices holds numbers outside 0 to 6"),
    "zeros": ("indices", changed(slice(40, 240), 0), r"X holds genes twice in one cell, A: it is damaged"),
    "falls": ("indptr", changed(20, 0), r"X/indptr does not rise"),
    "begins": ("indptr", changed(0, 1), r"X/indptr does not rise"),
    "beyond": ("indptr", changed(-1, 10**6), r"X/indptr does not rise"),
    "short": ("indptr", lambda values: values[:-1], r"X/indptr does not rise"),
    "long": ("indptr", lambda values: np.insert(values, 20, values[20]), r"X/indptr does not rise"),
    "cut data": ("data", lambda values: values[:-5], r"X/indptr does not rise"),
    "cut indices": ("indices", lambda values: values[:-5], r"X/indptr does not rise"),
}


@pytest.mark.parametrize("chunks", [None, (16,)])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_csr_is_refused(tiny, tmp_path, kind, chunks):
    path, (name, change, message) = tmp_path / "cells.h5ad", DAMAGES[kind]
    tiny.write_h5ad(path)
    rewrite(path, name, change, chunks)
    with pytest.raises(DataError, match=rf"cells\.h5ad.*{message}.*download or write it again"):
        helpers.perturbation_stats(path)
    if kind != "zeros":
        with pytest.raises(DataError, match=message):
            helpers.read_cells(path, np.arange(60))


@pytest.mark.parametrize("kind", ["outside", "negative", "falls", "cut indices"])
def test_damaged_csr_in_memory_is_refused(tiny, kind):
    name, change, message = DAMAGES[kind]
    setattr(tiny.X, name, change(getattr(tiny.X, name)))
    with pytest.raises(DataError, match=rf"the AnnData.*{message}"):
        helpers.perturbation_stats(tiny)


def test_cells_without_a_value_are_cells(tiny, tmp_path):
    X = tiny.X.toarray()
    X[20:50] = 0
    tiny.X = sp.csr_matrix(X)
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    assert_equal_by_hand(helpers.perturbation_stats(tmp_path / "cells.h5ad"), X, tiny.obs["gene"].astype(str).to_list())
    assert helpers.read_cells(tmp_path / "cells.h5ad", np.array([30])).X.nnz == 0


def test_stored_zeros_are_not_detected(tiny, tmp_path):
    tiny.X.data[::3] = 0.0
    tiny.write_h5ad(tmp_path / "cells.h5ad")
    assert (ad.read_h5ad(tmp_path / "cells.h5ad").X.data == 0).any()
    stats = helpers.perturbation_stats(tmp_path / "cells.h5ad")
    assert_equal_by_hand(stats, tiny.X.toarray(), tiny.obs["gene"].astype(str).to_list())


def test_a_slab_leaves_nothing_for_the_next(tmp_path, monkeypatch):
    """Slabs of 1 to 70 cells, of files of other types and widths in turn, on threads that serve several of them."""
    rng, sources, expected = np.random.default_rng(0), [], []
    for i, (cells, genes, dtype) in enumerate([(300, 40, np.float32), (80, 90, np.float64), (500, 7, np.int32)]):
        X = rng.integers(0, 9, (cells, genes)) * (rng.random((cells, genes)) < 0.4)
        gene = np.sort(rng.choice(["A", "B", "NC"], cells))
        obs = pd.DataFrame({"gene": pd.Categorical(gene)}, index=np.arange(cells).astype(str))
        sources.append(tmp_path / f"{i}.h5ad")
        ad.AnnData(sp.csr_matrix(X.astype(dtype)), obs=obs).write_h5ad(sources[-1])
        rewrite(sources[-1], "data")
        rewrite(sources[-1], "indices")
        expected.append((X.astype(float), gene))
    monkeypatch.setattr(helpers, "TASK_VALUES", 1500)
    monkeypatch.setattr(helpers, "_check_values", lambda values, where: values.min(initial=np.inf))  # whole numbers
    with ThreadPoolExecutor(2) as executor:
        for slab_values in (30, 900, 100):
            monkeypatch.setattr(helpers, "SLAB_VALUES", slab_values)
            for source, (X, gene) in zip(sources, expected, strict=True):
                assert_equal_by_hand(helpers.perturbation_stats(source, executor=executor), X, gene)


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
