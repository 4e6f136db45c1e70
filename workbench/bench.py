"""Time and memory of the main job's slow parts, each beside the starter's own algorithm written plainly, in one run.

    python -m workbench.bench [--quick] [--keep FOLDER]

In: nothing (data of the platform's small layout, 44,846 cells x 11,046 genes, are simulated; `--quick`: a tenth).
Out: a table on the screen and `build/bench.csv`. Every measurement is a process of its own, the variants of a job take
turns, and the best of the repeats counts, since these machines are shared: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
from threadpoolctl import threadpool_limits

import helpers
from workbench.simulate import simulate

REPEATS = 3

# ---------------------------------------------------------------------------------------------------------------------
# The jobs: job -> variant -> function(folder, quick). The first variant is the baseline of the ratio.
# ---------------------------------------------------------------------------------------------------------------------


def aggregate_starter(folder: Path, quick: bool) -> None:
    """One perturbation after the other out of the backed file, means only."""
    adata = ad.read_h5ad(folder / helpers.TRAIN_FILE, backed="r")
    for gene in adata.obs["gene"].unique():
        np.asarray(adata[adata.obs["gene"] == gene].X.mean(axis=0)).ravel()


def aggregate_ours(folder: Path, quick: bool) -> None:
    """Mean, variance, detection and count in one pass."""
    helpers.perturbation_stats(folder / helpers.TRAIN_FILE)


def aggregate_ours_by_state(folder: Path, quick: bool) -> None:
    """The same for every perturbation x cell state."""
    helpers.perturbation_stats(folder / helpers.TRAIN_FILE, by_state=True)


def aggregate_read(folder: Path, quick: bool) -> None:
    """The limit: reading the same arrays, and nothing else."""
    with h5py.File(folder / helpers.TRAIN_FILE) as file:
        for name in ("data", "indices"):
            dataset = file["X"][name]
            for start in range(0, len(dataset), helpers.SLAB_VALUES):
                dataset[start : start + helpers.SLAB_VALUES]


MMD_CALLS = 20


def _mmd_cells() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.gamma(2.0, size=(100, 1000)), generator.gamma(2.1, size=(100, 1000))


def mmd_broadcasting(folder: Path, quick: bool) -> None:
    """The starter's way: all pairs of cells at once, cells x cells x genes."""
    both = np.concatenate(_mmd_cells())
    n = len(both) // 2
    for _ in range(MMD_CALLS):
        distances = ((both[None] - both[:, None]) ** 2).sum(axis=2)
        kernel = sum(np.exp(-distances / (helpers.SIGMA / 4 * 2**i)) for i in range(5))
        (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).sum() / n**2


def mmd_ours(folder: Path, quick: bool) -> None:
    """By matrix products, on one thread, as `helpers.score` does."""
    cells = _mmd_cells()
    with threadpool_limits(1):
        for _ in range(MMD_CALLS):
            helpers.mmd(*cells)


def _prediction(quick: bool) -> tuple[pd.DataFrame, helpers.RecentredCells]:
    """Means of 2,863 targets on 10,238 genes (quick: a tenth of the targets) and a fitted cell generator."""
    generator = np.random.default_rng(0)
    genes = pd.Index([f"G{i}" for i in range(10_238)])
    targets = pd.Index([f"T{i}" for i in range(286 if quick else 2863)])
    means = pd.DataFrame(generator.random((len(targets), len(genes)), np.float32), index=targets, columns=genes)
    pool = ad.AnnData(generator.random((100, len(genes)), np.float32), var=pd.DataFrame(index=genes))
    return means, helpers.RecentredCells().fit(None, pool)


def _write_twice(folder: Path, means: pd.DataFrame, cells_of: Callable[[int], np.ndarray]) -> None:
    """A temporary HDF5 file, perturbation by perturbation, which anndata then copies into the final one."""
    shape = (len(means) * 100, means.shape[1])
    with h5py.File(folder / "prediction_matrix.h5", "w") as file:
        X = file.create_dataset("X", shape, np.float32, chunks=(100, means.shape[1]))
        for i in range(len(means)):
            X[i * 100 : (i + 1) * 100] = cells_of(i)
        obs = pd.DataFrame({"gene": means.index.repeat(100)}, index=np.arange(shape[0]).astype(str))
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=means.columns)).write_h5ad(folder / "twice.h5ad")
    (folder / "prediction_matrix.h5").unlink()


def write_starter(folder: Path, quick: bool) -> None:
    """Normal noise around each mean, a temporary file, and a copy of it."""
    means, _ = _prediction(quick)
    scale = np.full(means.shape[1], 0.05)
    generator = np.random.default_rng(0)
    _write_twice(folder, means, lambda i: means.iloc[i].to_numpy() + generator.normal(0.0, scale, (100, len(scale))))


def write_copy(folder: Path, quick: bool) -> None:
    """Our cells, but by a temporary file and a copy."""
    means, cells = _prediction(quick)
    generator = cells.for_genes(means.columns)
    _write_twice(folder, means, lambda i: generator.sample("", means.iloc[i].to_numpy(), 100))


def write_ours(folder: Path, quick: bool) -> None:
    """Slabs straight into the final file."""
    means, cells = _prediction(quick)
    helpers.write_prediction(folder / "once.h5ad", means, cells, mode="disk")


def write_plain(folder: Path, quick: bool) -> None:
    """The limit: the same bytes written to a plain file."""
    means, _ = _prediction(quick)
    block = np.ones((1000, means.shape[1]), np.float32)
    with (folder / "plain").open("wb", buffering=0) as file:
        for _ in range(len(means) // 10):
            file.write(block.data)


JOBS: dict[str, dict[str, Callable[[Path, bool], None]]] = {
    "aggregate": {
        "starter": aggregate_starter,
        "this": aggregate_ours,
        "this, by state": aggregate_ours_by_state,
        "limit: read": aggregate_read,
    },
    "mmd": {"broadcasting": mmd_broadcasting, "this": mmd_ours},
    "write": {
        "starter": write_starter,
        "temporary file and copy": write_copy,
        "this": write_ours,
        "limit: plain write": write_plain,
    },
}


def measure(job: str, variant: str, folder: Path, quick: bool) -> tuple[float, float]:
    """Seconds of the job and peak memory in GB of its process, measured in a process of its own."""
    command = [sys.executable, "-m", "workbench.bench", "--one", job, variant, str(folder), *["--quick"] * quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for leftover in ("twice.h5ad", "once.h5ad", "plain"):
        (folder / leftover).unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(f"{job}, {variant} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["peak_gb"]


def _run_one(job: str, variant: str, folder: Path, quick: bool) -> None:
    began = time.perf_counter()
    JOBS[job][variant](folder, quick)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


def run(folder: Path, quick: bool) -> pd.DataFrame:
    """Measure every variant of every job; the best of the repeats, and its ratio to the job's first variant."""
    rows = []
    for job, variants in JOBS.items():
        measured: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
        for _ in range(REPEATS):
            for variant in variants:  # in turn, so that a slow minute of the machine meets all of them
                measured[variant].append(measure(job, variant, folder, quick))
        baseline = min(measured[next(iter(variants))])[0]
        for variant, results in measured.items():
            seconds = min(results)[0]
            rows.append((job, variant, seconds, max(peak for _, peak in results), baseline / seconds))
            print(f"{job:10} {variant:24} {seconds:8.2f} s {rows[-1][3]:6.2f} GB   {rows[-1][4]:6.2f} x the baseline",
                  flush=True)
    return pd.DataFrame(rows, columns=["job", "variant", "seconds", "peak_gb", "times_faster"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size: about two minutes")
    parser.add_argument("--keep", type=Path, help="folder for the simulated data, used again when it is there")
    parser.add_argument("--one", nargs=3, metavar=("JOB", "VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        job, variant, folder = options.one
        _run_one(job, variant, Path(folder), options.quick)
        return
    print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, Python {platform.python_version()}, "
          f"numpy {np.__version__}, h5py {h5py.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "data"
        if not (folder / helpers.TRAIN_FILE).exists():
            simulate(folder, cells=4484 if options.quick else 44_846, genes=11_046, perturbations=122, counts=False)
        table = run(folder, options.quick)
    Path("build").mkdir(exist_ok=True)
    table.to_csv("build/bench.csv", index=False)


if __name__ == "__main__":
    main()
