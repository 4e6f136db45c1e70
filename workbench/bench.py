"""Time, memory and bytes of the main job's slow parts, each beside the starter's own algorithm and beside the limit.

    python -m workbench.bench [--quick | --full] [--keep FOLDER] [--page BENCHMARKS.md]

In: nothing; data are simulated (default: the platform's small layout; `--quick`: a tenth of it; `--full`: the real
size, 9 GB of cells and 35 GB of free disk). Out: a table on the screen, `build/bench.csv`, and the page where asked.
Every measurement is a process of its own, the variants of a job take turns, and the best of the repeats counts, since
these machines are shared: read the ratios, not the seconds.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
from threadpoolctl import threadpool_limits

import helpers
import method
from contract import CRUNCH
from workbench.adopt import adopt
from workbench.commands import check_folder, check_outputs, command_line
from workbench.evaluation.intervals import write_table
from workbench.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Size:
    """Of the training cells, and of the prediction."""

    cells: int
    genes: int
    targets: int
    predicted_genes: int
    repeats: int

    perturbations: int = CRUNCH.n_training


SIZES = {
    "quick": Size(5_000, 11_046, 48, 10_238, 1),
    "small": Size(44_846, 11_046, CRUNCH.n_targets, 10_238, 2),
    "full": Size(88_202, 21_592, CRUNCH.n_targets, 10_238, 2),
    "growth": Size(22_423, 5_523, 716, 5_119, 2),
}
AXES = {"cells": ["cells"], "genes": ["genes", "predicted_genes"], "perturbations": ["perturbations", "targets"]}
GROWTH = [
    ("aggregate", "cells"),
    ("aggregate", "genes"),
    ("aggregate", "perturbations"),
    ("write", "genes"),
    ("write", "perturbations"),
    ("score", "perturbations"),
]

# ---------------------------------------------------------------------------------------------------------------------
# The jobs: job -> variant -> function(folder, size). `folder` holds the simulated data folder `data`.
# ---------------------------------------------------------------------------------------------------------------------


def _train_file(folder: Path) -> Path:
    return folder / "data" / CRUNCH.train_file


def aggregate_starter(folder: Path, size: Size) -> None:
    """One perturbation after the other out of the backed file, means only."""
    adata = ad.read_h5ad(_train_file(folder), backed="r")
    for gene in adata.obs[CRUNCH.perturbation].unique():
        np.asarray(adata[adata.obs[CRUNCH.perturbation] == gene].X.mean(axis=0)).ravel()


def aggregate_library(folder: Path, size: Size) -> None:
    """Everything in memory, then scanpy: mean, variance and detection, as ours."""
    import scanpy  # noqa: PLC0415 - 0.2 GB that the other jobs do without

    scanpy.get.aggregate(
        ad.read_h5ad(_train_file(folder)), by=CRUNCH.perturbation, func=["mean", "var", "count_nonzero"]
    )


def read_and_write(folder: Path, size: Size) -> None:
    """The limit of a copy: reading the arrays of X, and writing them as single numbers."""
    with h5py.File(_train_file(folder)) as file, (folder / "out" / "plain").open("wb") as out:
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            dataset = file["X"][name]
            for start in range(0, len(dataset), helpers.SLAB_VALUES):
                dataset[start : start + helpers.SLAB_VALUES].astype(dtype).tofile(out)


def adopt_ours(folder: Path, size: Size) -> None:
    """The training file as a screen of one's own: read, brought to the scale, sorted and written."""
    adopt([_train_file(folder)], folder / "out", perturbation=CRUNCH.perturbation, control=CRUNCH.control)


def aggregate_ours(folder: Path, size: Size) -> None:
    """Mean, variance, detection and count in one pass."""
    helpers.perturbation_stats(_train_file(folder))


def aggregate_ours_by_state(folder: Path, size: Size) -> None:
    """The same for every perturbation x cell state."""
    helpers.perturbation_stats(_train_file(folder), by_state=True)


def read_only(folder: Path, size: Size) -> None:
    """The limit: reading the same arrays with h5py, and nothing else."""
    with h5py.File(_train_file(folder)) as file:
        for name in ("data", "indices"):
            dataset = file["X"][name]
            for start in range(0, len(dataset), helpers.SLAB_VALUES):
                dataset[start : start + helpers.SLAB_VALUES]


def train_ours(folder: Path, size: Size) -> None:
    """`train`: statistics, features, response model, base of cells, saved."""
    method.train(str(folder / "data"), str(folder / "resources"))


def _model(folder: Path, size: Size) -> None:
    """A saved model of the simulated cells, for `infer`; made once."""
    _simulated(folder, size)
    if not (folder / "resources" / method.MODEL_FILE).exists():
        method.train(str(folder / "data"), str(folder / "resources"))


def infer_ours(folder: Path, size: Size) -> None:
    """`infer`: from loading the model to the renamed files."""
    genes = (folder / "data" / CRUNCH.genes_file).read_text().split()[: size.predicted_genes]
    out = folder / "out"
    files = out / CRUNCH.prediction_file, out / CRUNCH.predicted_proportions_file
    method.infer(folder / "data", out, *files, folder / "resources", genes[: size.targets], genes)
    (folder / "infer.bytes").write_text(str(files[0].stat().st_size))


def write_same_bytes(folder: Path, size: Size) -> None:
    """The limit: as many bytes as `infer` wrote, to a plain file."""
    n_bytes, block = int((folder / "infer.bytes").read_text()), np.ones(16_000_000, np.uint8)
    with (folder / "out" / "plain").open("wb", buffering=0) as file:
        for start in range(0, n_bytes, len(block)):
            file.write(block[: n_bytes - start].data)


def _prediction(size: Size) -> tuple[pd.DataFrame, helpers.ScaledCells]:
    """Means of the targets and a fitted cell generator, of expression-like numbers: 63 % of the values are 0."""
    generator = np.random.default_rng(0)
    genes = pd.Index([f"G{i}" for i in range(size.predicted_genes)])
    targets = pd.Index([f"T{i}" for i in range(size.targets)])
    level = generator.gamma(0.7, 0.9, len(genes)).astype(np.float32)
    means = level * generator.normal(1.0, 0.05, (len(targets), len(genes))).astype(np.float32)
    detected = generator.random((100, len(genes))) < 1.0 - np.exp(-level)
    cells = np.where(detected, generator.normal(2.0 + level, 0.5, detected.shape), 0.0).astype(np.float32)
    pool = ad.AnnData(cells, var=pd.DataFrame(index=genes))
    return pd.DataFrame(means, targets, genes), helpers.ScaledCells().fit(pool)


def _write_twice(folder: Path, means: pd.DataFrame, cells_of: Callable[[int], np.ndarray]) -> None:
    """A temporary HDF5 file, perturbation by perturbation, which anndata then copies into the final one."""
    shape = (len(means) * 100, means.shape[1])
    with h5py.File(folder / "out" / "prediction_matrix.h5", "w") as file:
        X = file.create_dataset("X", shape, np.float32, chunks=(100, means.shape[1]))
        for i in range(len(means)):
            X[i * 100 : (i + 1) * 100] = cells_of(i)
        obs = pd.DataFrame({CRUNCH.perturbation: means.index.repeat(100)}, index=np.arange(shape[0]).astype(str))
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=means.columns)).write_h5ad(folder / "out" / "twice.h5ad")


def write_starter(folder: Path, size: Size) -> None:
    """Normal noise around each mean, a temporary file, and a copy of it."""
    means, _ = _prediction(size)
    scale = np.full(means.shape[1], 0.05)
    generator = np.random.default_rng(0)
    _write_twice(folder, means, lambda i: means.iloc[i].to_numpy() + generator.normal(0.0, scale, (100, len(scale))))


def write_copy(folder: Path, size: Size) -> None:
    """Our cells, but by a temporary file and a copy."""
    means, cells = _prediction(size)
    generator = cells.for_genes(means.columns)
    _write_twice(folder, means, lambda i: generator.sample("", means.iloc[i].to_numpy(), 100))


def write_ours(folder: Path, size: Size) -> None:
    """Slabs straight into the final file, without the zeros."""
    means, cells = _prediction(size)
    helpers.write_prediction(folder / "out" / "once.h5ad", means, cells, mode="disk", form="plain", layout="sparse")


def write_dense(folder: Path, size: Size) -> None:
    """The same cells with their zeros."""
    means, cells = _prediction(size)
    helpers.write_prediction(folder / "out" / "dense.h5ad", means, cells, mode="disk", form="plain", layout="dense")


def write_compact(folder: Path, size: Size) -> None:
    """All genes of the training file, in compact form."""
    means, cells = _prediction(replace(size, predicted_genes=size.genes))
    helpers.write_prediction(folder / "out" / "compact.h5ad", means, cells, mode="disk", form="compact")


def write_plain(folder: Path, size: Size) -> None:
    """The limit: as many bytes as the dense file has, written to a plain file."""
    means, _ = _prediction(size)
    block = np.ones((1000, means.shape[1]), np.float32)
    with (folder / "out" / "plain").open("wb", buffering=0) as file:
        for start in range(0, len(means) * 100, len(block)):
            file.write(block[: len(means) * 100 - start].data)


MMD_CALLS = 20


def _mmd_cells() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.gamma(2.0, size=(100, 1000)), generator.gamma(2.1, size=(100, 1000))


def _broadcast_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """All pairs of cells at once, cells x cells x genes, as many cells on each side."""
    both, n = np.concatenate([x, y]), len(x)
    distances = ((both[None] - both[:, None]) ** 2).sum(axis=2)
    kernel = sum(np.exp(-distances / (CRUNCH.sigma / 4 * 2**i)) for i in range(5))
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).sum() / n**2


def mmd_broadcasting(folder: Path, size: Size) -> None:
    """The starter's way."""
    cells = _mmd_cells()
    for _ in range(MMD_CALLS):
        _broadcast_mmd(*cells)


def mmd_ours(folder: Path, size: Size) -> None:
    """By matrix products, on one thread, as `helpers.score` does."""
    cells = _mmd_cells()
    with threadpool_limits(1):
        for _ in range(MMD_CALLS):
            helpers.mmd(*cells)


def _score_files(folder: Path, size: Size) -> tuple[Path, Path, Path]:
    """A prediction of all targets on all genes, and true cells on 1,000 of them; made once."""
    prediction, truth, shares = (folder / name for name in ("prediction.h5ad", "truth.h5ad", "shares.csv"))
    if not shares.exists():
        means, cells = _prediction(size)
        helpers.write_prediction(prediction, means, cells, mode="disk", form="plain")
        panel = means.iloc[:, :1000] + 0.1
        helpers.write_prediction(truth, panel, cells, mode="disk", form="plain")
        with h5py.File(truth, "r+") as file:
            file["uns/perturbed_centroid_train"] = panel.mean().to_numpy()
        table = pd.DataFrame(1 / len(CRUNCH.shares), panel.index, CRUNCH.states).rename_axis(CRUNCH.perturbation)
        table.to_csv(shares)
    return prediction, truth, shares


BROADCAST_PERTURBATIONS = 20


def score_broadcasting(folder: Path, size: Size) -> float:
    """The starter's way, 20 of the perturbations; returns how many times as many there are."""
    prediction, truth, _ = _score_files(folder, size)
    predicted, true = ad.read_h5ad(prediction, backed="r"), ad.read_h5ad(truth, backed="r")
    for target in true.obs[CRUNCH.perturbation].cat.categories[:BROADCAST_PERTURBATIONS]:
        x = helpers.dense(true[true.obs[CRUNCH.perturbation] == target].X)
        y = predicted[predicted.obs[CRUNCH.perturbation] == target].to_memory()[:, true.var_names].X.toarray()
        np.corrcoef(x.mean(axis=0), y.mean(axis=0))
        _broadcast_mmd(x.astype(float), y.astype(float))
    return size.targets / BROADCAST_PERTURBATIONS


def score_ours(folder: Path, size: Size) -> None:
    """`score` of all perturbations on one panel of 1,000 genes, in one pass over the prediction."""
    prediction, truth, shares = _score_files(folder, size)
    helpers.score(prediction, shares, truth, shares, n_panels=1)


COMPACT = "this, compact, all genes"
READ, SAME_BYTES = "limit: read", "limit: plain write of these bytes"
READ_AND_WRITE = "limit: read, and plain write"
Job = Callable[[Path, Size], float | None]
JOBS: dict[str, dict[str, Job]] = {  # the first variant is the baseline of `ratio`
    "aggregate": {
        "starter": aggregate_starter,
        "library (scanpy, in memory)": aggregate_library,
        "this": aggregate_ours,
        "this, by state": aggregate_ours_by_state,
        READ: read_only,
    },
    "adopt": {READ_AND_WRITE: read_and_write, "this": adopt_ours},
    "train": {"aggregation alone": aggregate_ours, "this": train_ours},
    "infer": {"this": infer_ours, SAME_BYTES: write_same_bytes},
    "write": {
        "starter": write_starter,
        "temporary file and copy": write_copy,
        "this, dense": write_dense,
        "this": write_ours,
        COMPACT: write_compact,
        "limit: plain write": write_plain,
    },
    "mmd": {"broadcasting": mmd_broadcasting, "this": mmd_ours},
    "score": {"broadcasting": score_broadcasting, "this": score_ours},
}
# The library needs 40 GB of memory there, the others an hour and twice the disk.
NOT_AT_FULL_SIZE = {
    ("aggregate", "library (scanpy, in memory)"),
    ("write", "starter"),
    ("write", "temporary file and copy"),
}


def variants_at(job: str, size: str) -> list[str]:
    """What is compared, the baseline first: at full size the limit, where there is one."""
    if size != "full":
        return list(JOBS[job])
    chosen = [variant for variant in JOBS[job] if (job, variant) not in NOT_AT_FULL_SIZE]
    return sorted(chosen, key=lambda variant: not variant.startswith("limit"))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def make_inputs(job: str, folder: Path, size: Size) -> None:
    """What a job reads, and an empty folder `out` for what it writes."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    if job in ("aggregate", "adopt", "train"):
        _simulated(folder, size)
    elif job == "infer":
        _model(folder, size)
    elif job == "score":
        _score_files(folder, size)


def measure(job: str, variant: str, folder: Path, size: Size) -> dict[str, float]:
    """Seconds, peak memory, bytes read and written (GB) of a job in a process of its own, without its imports."""
    make_inputs(job, folder, size)
    command = [sys.executable, "-m", "workbench.bench", "--one", job, variant, str(folder), json.dumps(asdict(size))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    written = sum(path.stat().st_size for path in (folder / "out").iterdir())
    for path in (folder / "out").iterdir():
        path.unlink()
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1] or f"exit status {done.returncode}"
        raise helpers.DataError(f"{job}, {variant} failed: {said}")
    return {**json.loads(done.stdout.splitlines()[-1]), "file_gb": written / 1e9}


def _peak_gb() -> float:
    """Peak memory of this process; on Linux from /proc, since ru_maxrss starts with what the parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def _run_one(job: str, variant: str, folder: Path, size: Size) -> None:
    process = psutil.Process()
    before = process.io_counters() if hasattr(process, "io_counters") else None
    began = time.perf_counter()
    factor = JOBS[job][variant](folder, size) or 1.0
    result = {
        "seconds": (time.perf_counter() - began) * factor,
        "peak_gb": _peak_gb(),
    }
    if before is not None:
        after = process.io_counters()
        result["read_gb"] = (after.read_chars - before.read_chars) / 1e9
        result["write_gb"] = (after.write_chars - before.write_chars) / 1e9
    print(json.dumps(result))


def run_job(job: str, folder: Path, size: str, variants: list[str]) -> list[dict]:
    """Every variant in turn, so that a slow minute of the machine meets all of them; the fastest repeat of each.

    What takes more than two minutes is measured once.
    """
    measured: dict[str, list[dict]] = {variant: [] for variant in variants}
    for _ in range(SIZES[size].repeats):
        for variant in variants:
            began = time.monotonic()
            measured[variant].append(measure(job, variant, folder, SIZES[size]))
            if time.monotonic() - began > 120:
                variants = [other for other in variants if other != variant]
    rows = []
    for variant, results in measured.items():
        best = min(results, key=lambda result: result["seconds"])
        peak = max(result["peak_gb"] for result in results)
        shape = SIZES[size]
        row = {
            "job": job,
            "variant": variant,
            "cells": shape.cells,
            "genes": shape.genes,
            "perturbations": shape.perturbations,
        }
        if job in ("infer", "write", "score"):
            row |= {"cells": shape.targets * 100, "genes": shape.predicted_genes, "perturbations": shape.targets}
        if variant == COMPACT:
            row["genes"] = shape.genes
        rows.append(row | best | {"peak_gb": peak})
    limit = next((row["seconds"] for row in rows if row["variant"] in (READ, SAME_BYTES, READ_AND_WRITE)), None)
    for row in rows:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
        if limit:
            row["limits"] = row["seconds"] / limit
        print(
            f"{job:10} {row['variant']:33} {row['seconds']:8.2f} s {row['peak_gb']:6.2f} GB "
            f"{row['ratio']:8.3f} x {rows[0]['variant']}; file {row['file_gb']:.2f} GB"
            + (f"; {row['limits']:.2f} x the limit" if limit else ""),
            flush=True,
        )
    return rows


def compact_loss(folder: Path) -> list[dict]:
    """What rounding to the compact form's steps changes in the three scores: the largest change of a perturbation."""
    size = SIZES["quick"]
    part = folder / "compact"
    part.mkdir(parents=True, exist_ok=True)
    plain, truth, shares = _score_files(part, size)
    compact = part / "compact.h5ad"
    means, cells = _prediction(size)
    helpers.write_prediction(compact, means, cells, mode="disk", form="compact")
    tables = [helpers.score(path, shares, truth, shares, n_panels=1) for path in (plain, compact)]
    change = (tables[1]["value"] - tables[0]["value"]).abs().groupby(tables[0]["metric"]).max()
    print(f"compact form: largest change of {', '.join(f'{name} {value:.1e}' for name, value in change.items())}")
    return [
        {
            "job": "compact form",
            "variant": f"largest change of {name}",
            "cells": size.targets * 100,
            "genes": size.predicted_genes,
            "perturbations": size.targets,
            "value": value,
        }
        for name, value in change.items()
    ]


def growth(folder: Path, size: str) -> list[dict]:
    """Time at a quarter, a half and all of the cells, genes or perturbations, and the log-log slope.

    1: twice as much takes twice as long; 0: it does not matter. By cells up to the size of the run, else up to
    `SIZES["growth"]`. In fresh processes, so small jobs keep their start-up.
    """
    rows = []
    for job, axis in GROWTH:
        size_of_all = SIZES[size if axis == "cells" else "growth"]
        measured: list[dict] = []
        for share in (4, 2, 1):
            part = replace(size_of_all, **{name: getattr(size_of_all, name) // share for name in AXES[axis]})
            place = folder / f"{job} {axis} {share}"
            place.mkdir(exist_ok=True)
            repeats = (measure(job, "this", place, part) for _ in range(part.repeats))
            best = min(repeats, key=lambda result: result["seconds"])
            cells, genes, perturbations = part.cells, part.genes, part.perturbations
            if job != "aggregate":
                cells, genes, perturbations = part.targets * 100, part.predicted_genes, part.targets
            measured.append(
                {
                    "job": f"{job}, growth",
                    "variant": f"by {axis}",
                    "cells": cells,
                    "genes": genes,
                    "perturbations": perturbations,
                    **best,
                }
            )
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        seconds = np.log([row["seconds"] for row in measured])
        slope = float(np.polyfit(np.log([1, 2, 4]), seconds, 1)[0])
        print(f"{job:10} time grows with {axis} to the power {slope:.2f}", flush=True)
        rows += [row | {"value": slope} for row in measured]
    return rows


def fits(size: str) -> list[dict]:
    """A lab's screen of growing size, up to 10,000 perturbations x 8,000 responses; `value` is the held-out Pearson.

    The same 2,400 perturbations with all of them as landmarks, which is exact, and with half of them.
    """
    sizes = [("exact", 600, 2000, 0)]
    if size != "quick":
        sizes += [("exact", 600, 8000, 0), ("exact", 1200, 8000, 0), ("exact", 2400, 8000, 0)]
        sizes += [("by 1,200 landmarks", 2400, 8000, 1200), ("by landmarks", 4800, 8000, 0)]
        sizes += [("by landmarks", 10_000, 8000, 0)]
    rows = []
    for variant, n, responses, landmarks in sizes:
        command = [sys.executable, "-m", "workbench.fit_bench", str(n), str(responses)]
        command += [str(landmarks)] if landmarks else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"fit, {n} perturbations failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"fit        {n:6,} x {responses:,} {variant:20} {result['seconds']:8.1f} s", flush=True)
        rows.append({"job": "fit", "variant": variant, "cells": n, "genes": responses, "perturbations": n, **result})
    return rows


def _simulated(folder: Path, size: Size) -> None:
    if not _train_file(folder).exists():
        real = size.genes == SIZES["full"].genes
        simulate(
            folder / "data",
            cells=size.cells,
            genes=size.genes,
            perturbations=size.perturbations,
            counts=False,
            unseen=CRUNCH.n_targets if real else None,
            listed=10_238 if real else None,
        )


def run(size: str, folder: Path) -> pd.DataFrame:
    """All jobs at one size."""
    rows = []
    for job in JOBS:
        rows += run_job(job, folder, size, variants_at(job, size))
    rows += compact_loss(folder)
    rows += fits(size)
    if size != "quick":  # start-up would hide it
        rows += growth(folder, size)
    first = ["job", "variant", "cells", "genes", "perturbations", "seconds", "peak_gb", "ratio"]
    table = pd.DataFrame(rows)
    return table[[*first, *table.columns.difference(first)]]


def machine() -> str:
    """The machine and the versions, in one line."""
    return (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}, h5py {h5py.__version__}"
    )


def page(table: pd.DataFrame, command: str) -> str:
    """The table as a Markdown page."""
    titles = {"seconds": "seconds", "peak_gb": "peak GB", "read_gb": "read GB", "write_gb": "written GB"}
    titles |= {"file_gb": "file GB", "ratio": "ratio", "limits": "limits"}
    columns = ["job", "variant", "cells x genes", *titles.values(), "value"]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{command}` on a shared machine: {machine()}.",
        "Best of the repeats; `ratio` is to the first row of each job, in the same run; `limits` is to a plain read or",
        "write of the same bytes; `value` is the largest change of a score, the log-log slope of the time or, of a",
        "fit (perturbations x responses, five tables and another screen), the Pearson correlation of held-out ones.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for row in table.fillna("").to_dict("records"):
        numbers = [f"{row[name]:.2f}" if row.get(name, "") != "" else "" for name in titles]
        numbers.append(f"{row['value']:.2g}" if row.get("value", "") != "" else "")
        shape = f"{row['cells']:,} x {row['genes']:,}"
        lines.append(f"| {row['job']} | {row['variant']} | {shape} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", dest="size", action="store_const", const="quick", help="a tenth of the size")
    parser.add_argument("--full", dest="size", action="store_const", const="full", help="the platform's full size")
    parser.add_argument("--keep", type=Path, help="folder for the simulated data, used again when it is there")
    parser.add_argument("--page", type=Path, help="write the table as a Markdown page, too")
    parser.add_argument("--one", nargs=4, metavar=("JOB", "VARIANT", "FOLDER", "SIZE"), help=argparse.SUPPRESS)
    parser.set_defaults(size="small")
    options = parser.parse_args()
    if options.one:
        job, variant, folder, size = options.one
        _run_one(job, variant, Path(folder), Size(**json.loads(size)))
        return
    if options.keep is not None and options.keep.exists() and not options.keep.is_dir():
        raise helpers.DataError(f"--keep {options.keep}: a file; name a folder")
    for place in (Path("build"), options.keep):
        if place is not None:
            check_folder(place)
    check_outputs([options.page])
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        table = run(options.size, options.keep or Path(temporary))
    write_table("build/bench.csv", table)
    if options.page:
        flag = "" if options.size == "small" else f" --{options.size}"
        with helpers.replacing(options.page) as temporary:
            temporary.write_text(page(table, f"python -m workbench.bench{flag}"), encoding="utf-8")


if __name__ == "__main__":
    main()
