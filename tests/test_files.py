"""The predicted files: both modes alike to the attribute, written beside and renamed, an old good file never lost."""

import copy
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import run_infer

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import MODEL_FILE, Predictor


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained / MODEL_FILE)


@pytest.fixture(scope="module")
def means(predictor, challenge):
    known = challenge.targets[challenge.targets.isin(challenge.genes)][:9]
    return predictor.expression.predict(known)[challenge.genes_to_predict]


def names(folder):
    return [path.name for path in folder.iterdir()]


def contents(path):
    """Every group, dataset and attribute of an HDF5 file, as comparable values."""
    out = {}

    def visit(name, item):
        out[name, "attributes"] = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        if isinstance(item, h5py.Dataset):
            out[name, "layout"] = item.shape, str(item.dtype), item.chunks, item.compression
            out[name, "values"] = item[()].tobytes() if item.dtype.kind != "O" else item[()].tolist()

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return out


def test_both_modes_write_the_same_file(means, predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4 * means.shape[1] * 20 * 2)  # slabs of two perturbations, one left over
    for mode in ("ram", "disk"):
        written = helpers.write_prediction(
            tmp_path / f"{mode}.h5ad", means, predictor.cells, cells_per_perturbation=20, mode=mode
        )
        assert written == (mode, "plain", "sparse")
    assert contents(tmp_path / "ram.h5ad") == contents(tmp_path / "disk.h5ad")


@pytest.fixture
def wide(tmp_path):
    """A fitted method of 4,000 genes, saved: its prediction of 60 targets takes 96 MB."""
    X = np.random.default_rng(0).random((40, 4000), np.float32)
    obs = pd.DataFrame({"gene": pd.Categorical(["NC", "A", "B", "C"] * 10)}, index=np.arange(40).astype(str))
    pool = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(4000)]))
    shares = pd.DataFrame(0.25, index=["A", "B", "C", "NC"], columns=[*CRUNCH.states, CRUNCH.ratio])
    method = Predictor(helpers.PerturbedMean(), helpers.ControlMean(), helpers.RecentredCells())
    method.fit(helpers.perturbation_stats(pool), shares, pool).save(tmp_path / MODEL_FILE)
    return method


@pytest.fixture
def writes(monkeypatch):
    """What happens before each slab is written, to be set by `writes.before = function`."""

    class Writes:
        before = staticmethod(lambda: None)

    plain = h5py.Dataset.write_direct

    def write_direct(dataset, *arguments):
        Writes.before()
        plain(dataset, *arguments)

    monkeypatch.setattr(h5py.Dataset, "write_direct", write_direct)
    return Writes


def test_disk_mode_holds_two_slabs_and_not_the_prediction(wide, tmp_path, peak_memory, monkeypatch, writes):
    """96 MB go to a slow disk within 32 MB: two slabs of 4 MB, the labels, and the base of the cells in float64."""
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    writes.before = lambda: time.sleep(0.1)
    targets = [f"T{i}" for i in range(60)]
    peak = {
        mode: peak_memory(lambda mode=mode: wide.write(tmp_path / "p", tmp_path / "s", targets, wide.genes, mode=mode))
        for mode in ("disk", "ram")
    }
    assert (tmp_path / "p").stat().st_size > 96e6
    assert peak["ram"] > 64e6
    assert peak["disk"] < 32e6


def test_slabs_serve_again_where_the_disk_is_fast(wide, tmp_path, peak_memory, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    sample = helpers.RecentredCells.sample

    def slow(self, *arguments):
        time.sleep(0.01)
        return sample(self, *arguments)

    monkeypatch.setattr(helpers.RecentredCells, "sample", slow)
    targets = [f"T{i}" for i in range(60)]
    assert peak_memory(lambda: wide.write(tmp_path / "p", tmp_path / "s", targets, wide.genes, mode="ram")) < 48e6


@pytest.mark.parametrize(("mode", "ahead"), [("disk", 2), ("ram", 5)])
def test_cells_are_made_while_the_disk_is_busy(wide, tmp_path, monkeypatch, writes, mode, ahead):
    """Ten slabs; the first is written once so many others as may be in memory are made, and no more."""
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    made, seen, sample = threading.Semaphore(0), [], helpers.RecentredCells.sample

    def counted(self, *arguments):
        made.release()
        return sample(self, *arguments)

    def busy():
        if not seen:
            seen.append(sum(made.acquire(timeout=10) for _ in range(2 * ahead)))
            time.sleep(0.2)
            seen.append(made.acquire(blocking=False))

    monkeypatch.setattr(helpers.RecentredCells, "sample", counted)
    writes.before = busy
    wide.write(tmp_path / "p", tmp_path / "s", [f"T{i}" for i in range(20)], wide.genes, mode=mode)
    assert seen == [2 * ahead, mode == "ram"]


def test_a_generator_of_ones_own_is_called_in_order_by_the_thread_that_asks(wide, tmp_path, monkeypatch):
    """So one that counts its calls, or draws from one stream, gives the same file again."""
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    calls = []

    class Noted(helpers.RecentredCells):
        def sample(self, target, *arguments):
            calls.append((target, threading.get_ident()))
            return super().sample(target, *arguments)

    own = copy.copy(wide)
    own.cells = Noted()
    vars(own.cells).update(vars(wide.cells))
    targets = [f"T{i}" for i in range(9)]
    own.write(tmp_path / "p", tmp_path / "s", targets, wide.genes)
    assert calls == [(target, threading.get_ident()) for target in targets]


def test_several_threads_make_the_same_file_as_one(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    threads, sample = set(), helpers.RecentredCells.sample

    def noted(self, *arguments):
        threads.add(threading.get_ident())
        return sample(self, *arguments)

    monkeypatch.setattr(helpers.RecentredCells, "sample", noted)
    files = []
    for n_cores in (1, 4):
        monkeypatch.setattr(helpers.os, "cpu_count", lambda n_cores=n_cores: n_cores)
        threads.clear()
        wide.write(tmp_path / "p", tmp_path / "s", [f"T{i}" for i in range(30)], wide.genes)
        assert (len(threads) > 1) == (n_cores > 1)
        files.append((tmp_path / "p").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_an_error_in_making_cells_is_said_and_leaves_the_old_file(wide, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    sample = helpers.RecentredCells.sample

    def fails(self, target, *arguments):
        cells = sample(self, target, *arguments)
        return cells * np.nan if target == "T7" else cells

    monkeypatch.setattr(helpers.RecentredCells, "sample", fails)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "p"
    path.write_text("old and good")
    with pytest.raises(DataError, match=r"RecentredCells\.sample: missing or infinite values for T7"):
        wide.write(path, tmp_path / "out" / "s", [f"T{i}" for i in range(20)], wide.genes, mode=mode)
    assert path.read_text() == "old and good"
    assert names(path.parent) == ["p"]
    assert not [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_an_error_in_writing_is_said_at_once_and_leaves_the_old_file(wide, tmp_path, monkeypatch, writes, mode):
    """In the second of ten slabs: what is made by then is not written any more."""
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    slabs = []

    def full():
        slabs.append(0)
        time.sleep(0.1)
        if len(slabs) == 2:
            raise OSError("no space left")

    writes.before = full
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "p"
    path.write_text("old and good")
    with pytest.raises(DataError, match=r"p: could not be written \(no space left\); an older file is as it was"):
        wide.write(path, tmp_path / "out" / "s", [f"T{i}" for i in range(20)], wide.genes, mode=mode)
    assert path.read_text() == "old and good"
    assert names(path.parent) == ["p"]
    assert len(slabs) <= 3


def test_infer_needs_little_memory_where_little_is_free(wide, tmp_path, peak_memory, monkeypatch):
    class Memory:
        available = 200e6  # a quarter of it would not hold the prediction

    monkeypatch.setattr(helpers.psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4_000_000)
    targets = [f"T{i}" for i in range(60)]
    assert peak_memory(lambda: run_infer("", tmp_path, tmp_path / "out", targets, wide.genes)) < 32e6
    assert (tmp_path / "out" / CRUNCH.prediction_file).stat().st_size > 96e6


def test_file_is_what_the_scorer_takes(means, predictor, tmp_path):
    path = tmp_path / "prediction.h5ad"
    helpers.write_prediction(path, means, predictor.cells)
    adata = ad.read_h5ad(path)
    assert adata.obs.columns.tolist() == ["gene"]
    assert adata.obs["gene"].tolist() == [target for target in means.index for _ in range(100)]
    assert adata.var_names.tolist() == means.columns.tolist()
    assert adata.X.dtype == np.float32
    for target in means.index:
        cells = adata[adata.obs["gene"] == target].X.toarray()
        np.testing.assert_allclose(cells.mean(axis=0, dtype=np.float64), means.loc[target].clip(lower=0), atol=2e-6)
    assert names(tmp_path) == ["prediction.h5ad"]


def test_auto_chooses_by_memory_and_says_so(means, predictor, tmp_path, monkeypatch, capsys):
    class Memory:
        available = 8 * means.size * 100 * 4

    monkeypatch.setattr(helpers.psutil, "virtual_memory", lambda: Memory)
    assert helpers.write_prediction(tmp_path / "p.h5ad", means, predictor.cells, layout="dense")[0] == "ram"
    Memory.available //= 4
    assert helpers.write_prediction(tmp_path / "p.h5ad", means, predictor.cells, layout="dense")[0] == "disk"
    said = capsys.readouterr().out
    assert "made in memory" in said
    assert "slab by slab: more than a quarter of the" in said
    assert "of disk are free" in said
    for wrong in ({"mode": "fast"}, {"form": "small"}):
        with pytest.raises(ValueError, match="mode is 'auto', 'ram' or 'disk'"):
            helpers.write_prediction(tmp_path / "p.h5ad", means, predictor.cells, **wrong)


def write_groups(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


@pytest.mark.parametrize(
    ("own", "folder", "files", "free"),
    [
        ("0::/a/b\n", "a", {"memory__max": 900, "memory__current": 500, "memory__stat": "inactive_file 100"}, 500),
        ("0::/a/b\n", "a/b", {"memory__max": 900, "memory__current": 950, "memory__stat": "anon 9"}, 0),
        ("0::/a/b\n", "a/b", {"memory__max": "max", "memory__current": 1, "memory__stat": ""}, None),
        (
            "5:cpu:/x\n4:memory:/outside/name\n",
            "memory",
            {
                "memory__limit_in_bytes": 900,
                "memory__usage_in_bytes": 300,
                "memory__stat": "inactive_file 1\ntotal_inactive_file 50",
            },
            650,
        ),
        ("", "a", {"memory__max": 900, "memory__current": 500, "memory__stat": ""}, None),
    ],
)
def test_free_memory_is_that_of_the_container(own, folder, files, free, tmp_path, monkeypatch):
    """Version 2 and 1 of Linux' control groups: the tightest group counts, and cached files can go."""
    write_groups(tmp_path / "groups" / folder, **files)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(helpers, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(helpers, "OWN_GROUPS", tmp_path / "own")
    if free is None:
        assert helpers.free_memory() > 1e8
    else:
        assert helpers.free_memory() == free


UNDER_A_LIMIT = """
import resource, sys, time
import h5py, numpy, pandas, psutil
import helpers

class Cells:
    def for_genes(self, genes):
        return self
    def sample(self, target, mean, n_cells):
        return numpy.random.default_rng(len(target)).random((n_cells, len(mean)), numpy.float32) + mean

def slowly(dataset, *given, write=h5py.Dataset.write_direct):
    time.sleep(0.06)
    write(dataset, *given)

means = pandas.DataFrame(1.0, index=["T" * i for i in range(1, 81)], columns=[f"G{i}" for i in range(8000)])
helpers.SLAB_BYTES = 6_400_000
helpers.write_prediction(sys.argv[1], means.iloc[:3], Cells())  # whatever loads late is there before
for limit, used in ((resource.RLIMIT_DATA, "data"), (resource.RLIMIT_AS, "vms")):
    most = getattr(psutil.Process().memory_info(), used) + 30_000_000
    resource.setrlimit(limit, (most, -1))
    print(helpers.free_memory() <= 30_000_000)
    resource.setrlimit(limit, (most if used == "vms" else -1, -1))
print(helpers.write_prediction(sys.argv[1], means, Cells())[0])
h5py.Dataset.write_direct = slowly
print(helpers.write_prediction(sys.argv[2], means, Cells(), mode="ram")[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limits")
def test_a_limit_on_memory_is_seen_and_a_wrong_guess_falls_back_to_slabs(tmp_path):
    """The prediction takes 256 MB, 30 MB can be had: the slabs that wait for a slow disk would not fit."""
    files = tmp_path / "auto.h5ad", tmp_path / "ram.h5ad"
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(helpers.__file__).parent)}
    command = [sys.executable, "-c", UNDER_A_LIMIT, *files]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    said = [line for line in run.stdout.splitlines() if not line.startswith("Writing")]
    assert said == ["True", "True", "disk", "ram"]
    assert files[0].stat().st_size > 256e6
    assert files[0].read_bytes() == files[1].read_bytes()


def test_too_small_a_disk_is_refused_with_the_numbers(means, predictor, tmp_path, monkeypatch):
    (tmp_path / "p.h5ad").write_text("old")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(helpers.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for form in ("auto", "plain", "compact"):
        with pytest.raises(DataError, match=r"takes 0\.8 MB, about 0\.4 MB in compact form, but only 0\.0 MB of disk"):
            helpers.write_prediction(tmp_path / "p.h5ad", means, predictor.cells, form=form, layout="dense")
    assert (tmp_path / "p.h5ad").read_text() == "old"


def test_compact_form_is_chosen_when_only_it_fits(means, predictor, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    size = 4 * means.size * 100
    for free, form in ((1.1 * size + 50e6, "plain"), (0.6 * size + 50e6, "compact")):
        monkeypatch.setattr(helpers.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert helpers.write_prediction(tmp_path / "p.h5ad", means, predictor.cells, layout="dense")[1] == form


def test_compact_form_is_smaller_and_true_to_the_step(means, predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4 * means.shape[1] * 100 * 2)
    for mode in ("ram", "disk"):
        helpers.write_prediction(
            tmp_path / f"{mode}.h5ad", means, predictor.cells, mode=mode, form="compact", layout="dense"
        )
    helpers.write_prediction(tmp_path / "plain.h5ad", means, predictor.cells, layout="dense")
    assert contents(tmp_path / "ram.h5ad") == contents(tmp_path / "disk.h5ad")
    plain, compact = ad.read_h5ad(tmp_path / "plain.h5ad"), ad.read_h5ad(tmp_path / "disk.h5ad")
    assert np.abs(plain.X - compact.X).max() <= 1 / 64 + 1e-6
    assert (np.rint(compact.X * 64) == compact.X * 64).all()
    for target in means.index:
        rows = (plain.obs["gene"] == target).to_numpy()
        for n in (100, 37, 1):
            error = plain.X[rows][:n].mean(axis=0, dtype=float) - compact.X[rows][:n].mean(axis=0, dtype=float)
            assert np.abs(error).max() <= 0.5 / 64 / n + 1e-6
    stored = h5py.File(tmp_path / "disk.h5ad")["X"].id.get_storage_size()
    assert stored < 0.5 * plain.X.nbytes
    mmd = [helpers.mmd(plain.X[:100], cells.X[100:200]) for cells in (plain, compact)]
    assert abs(mmd[0] - mmd[1]) < 1e-3


@pytest.mark.parametrize("form", ["plain", "compact"])
@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_sparse_and_dense_files_hold_the_same_cells(means, predictor, tmp_path, monkeypatch, form, mode):
    monkeypatch.setattr(helpers, "SLAB_BYTES", 4 * means.shape[1] * 100 * 2)
    read = {}
    for layout in ("dense", "sparse"):
        path = tmp_path / f"{layout}.h5ad"
        used = helpers.write_prediction(path, means, predictor.cells, mode=mode, form=form, layout=layout)
        assert used == (mode, form, layout)
        read[layout] = ad.read_h5ad(path)
    assert sp.issparse(read["sparse"].X)
    read["sparse"].X.check_format()
    assert read["sparse"].X.has_sorted_indices
    np.testing.assert_array_equal(read["sparse"].X.toarray(), read["dense"].X)
    pd.testing.assert_frame_equal(read["sparse"].obs, read["dense"].obs)


def test_the_smaller_layout_is_chosen(means, predictor, tmp_path):
    path = tmp_path / "p.h5ad"
    assert helpers.write_prediction(path, means, predictor.cells)[2] == "sparse"
    smaller = path.stat().st_size
    assert helpers.write_prediction(path, means, predictor.cells, layout="dense")[2] == "dense"
    assert smaller < path.stat().st_size
    pool = ad.AnnData(np.ones((9, means.shape[1]), np.float32), var=pd.DataFrame(index=means.columns))
    assert helpers.write_prediction(path, means, helpers.ScaledCells().fit(pool))[2] == "dense", "no zero in it"
    gaussian = helpers.GaussianCells().fit(means)
    assert helpers.write_prediction(path, means, gaussian)[2] == "dense"
    with pytest.raises(ValueError, match="GaussianCells has no `pattern`"):
        helpers.write_prediction(path, means, gaussian, layout="sparse")


WRITE = """
    import resource, signal, sys, time
    from pathlib import Path
    import pandas as pd, numpy as np, anndata as ad
    import helpers
    path = Path(sys.argv[1])
    genes = pd.Index([f"G{i}" for i in range(2000)])
    means = pd.DataFrame(1.0, index=[f"T{i}" for i in range(50)], columns=genes)
    pool = ad.AnnData(np.random.default_rng(0).random((100, 2000), np.float32), var=pd.DataFrame(index=genes))
    cells = helpers.RecentredCells().fit(pool)
    helpers.SLAB_BYTES = 1_000_000
"""


def run_script(body, path):
    script = textwrap.dedent(WRITE) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(helpers.__file__).parent,
    )


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "prediction.h5ad"
    path.write_text("old and good")
    process = run_script(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))  # the disk is full after 9 MB
        helpers.write_prediction(path, means, cells, mode="disk")
        """,
        path,
    )
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "DataError" in error
    assert "prediction.h5ad: could not be written" in error
    assert path.read_text() == "old and good"
    assert names(tmp_path) == ["prediction.h5ad"]


def test_killed_run_leaves_the_old_file_and_the_next_run_cleans_up(tmp_path, means, predictor):
    path = tmp_path / "prediction.h5ad"
    path.write_text("old and good")
    process = run_script(
        """
        plain = helpers.RecentredCells.sample
        def slow(self, target, mean, n_cells):
            if target == "T30":
                print("halfway", flush=True)
                time.sleep(60)
            return plain(self, target, mean, n_cells)
        helpers.RecentredCells.sample = slow
        helpers.write_prediction(path, means, cells, mode="disk")
        """,
        path,
    )
    while "halfway" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert path.read_text() == "old and good"
    assert len(names(tmp_path)) == 3, "the kill must have left a part and its lock, or the test shows nothing"
    helpers.write_prediction(path, means, predictor.cells)
    assert names(tmp_path) == ["prediction.h5ad"]
    assert ad.read_h5ad(path).n_obs == 900


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, mode):
    path = tmp_path / "prediction.h5ad"
    path.write_text("old and good")
    process = run_script(
        f"""
        import h5py
        plain = h5py.Dataset.write_direct
        def slow(*arguments):
            plain(*arguments)
            print("a slab is written", flush=True)
            time.sleep(0.5)
        h5py.Dataset.write_direct = slow
        signal.signal(signal.SIGINT, signal.default_int_handler)
        helpers.write_prediction(path, means, cells, mode="{mode}")
        """,
        path,
    )
    while "a slab is written" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 10, "50 slabs of half a second must not be waited for"
    assert process.returncode != 0
    assert "KeyboardInterrupt" in error
    assert path.read_text() == "old and good"
    assert names(tmp_path) == ["prediction.h5ad"]


def _infer_until_killed(arguments, options):
    helpers.SLAB_BYTES = 100_000
    helpers.tqdm.set_lock(threading.RLock())  # tqdm's own lock is shared with the parent: a kill would leave it held
    while True:
        run_infer(*arguments, **options)


def test_fifty_kills_of_infer_leave_complete_files_and_no_other(tmp_path, demo_folder, trained, challenge):
    arguments = demo_folder, trained, tmp_path / "out", challenge.targets, challenge.genes_to_predict
    options = {"cells_per_perturbation": 2000}
    path, table = run_infer(*arguments, **options)
    complete, shares, left = contents(path), table.read_bytes(), 0
    rng = np.random.default_rng(0)
    fork = multiprocessing.get_context("fork")
    for _ in range(50):
        process = fork.Process(target=_infer_until_killed, args=(arguments, options))
        process.start()
        time.sleep(rng.uniform(0.02, 0.3))
        process.kill()
        process.join()
        left += len(names(path.parent)) > 2
        assert contents(path) == complete
        assert table.read_bytes() == shares
    assert left > 5, "some kills must come in the middle of writing"
    run_infer(*arguments, **options)
    assert sorted(names(path.parent)) == sorted([path.name, table.name])


def test_two_at_the_same_time_leave_one_complete_file(tmp_path, means, predictor):
    path = tmp_path / "prediction.h5ad"
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: helpers.write_prediction(path, means, predictor.cells, mode="disk"), range(8)))
    assert names(tmp_path) == ["prediction.h5ad"]
    helpers.write_prediction(tmp_path / "alone.h5ad", means, predictor.cells)
    assert contents(path) == contents(tmp_path / "alone.h5ad")


def test_what_is_not_a_folder_cannot_be_written_to(means, predictor, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"p\.h5ad: could not be written"):
        helpers.write_prediction(tmp_path / "file" / "p.h5ad", means, predictor.cells)
    with pytest.raises(DataError, match=r"p\.csv: could not be written"):
        helpers.write_proportions(tmp_path / "file" / "p.csv", pd.DataFrame(columns=CRUNCH.states))


def test_proportions_file_has_exactly_the_scorers_columns(tmp_path):
    shares = pd.DataFrame({"pre_adipo": [0.5], "adipo": [0.3], "lipo": [0.1], "other": [0.2]}, index=pd.Index(["T"]))
    helpers.write_proportions(tmp_path / "p.csv", shares)
    assert (tmp_path / "p.csv").read_text() == "gene,pre_adipo,adipo,lipo,other\nT,0.5,0.3,0.1,0.2\n"
