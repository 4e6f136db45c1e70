"""Shared inputs: a small demo folder in the platform's layout, and a tiny AnnData of known numbers."""

import os
import shutil
import signal
import tracemalloc
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import contract
import helpers
from contract import OBESITY_1 as CRUNCH
from method import infer, train
from workbench.simulate import simulate

# A background job of a shell starts with SIGINT ignored, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["crunch_2"] if contract.CRUNCH == CRUNCH else []  # they need a process of their own

REAL_DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def read_dense(path):
    """An `.h5ad` whose X is an array, however it is stored."""
    adata = ad.read_h5ad(path)
    adata.X = helpers.dense(adata.X)
    return adata


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """A demo `data/` folder: 1,500 cells x 240 genes, 14 perturbations. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    simulate(folder, cells=1500, genes=240, perturbations=14, seed=1)
    return folder


@pytest.fixture
def folder(demo_folder, tmp_path):
    """A copy of the demo folder, to be damaged."""
    return Path(shutil.copytree(demo_folder, tmp_path / "data"))


@pytest.fixture(scope="session")
def challenge(demo_folder):
    return helpers.load_challenge(demo_folder)


@pytest.fixture(scope="session")
def stats(challenge):
    return helpers.perturbation_stats(challenge.train_path)


@pytest.fixture(scope="session")
def trained(demo_folder, tmp_path_factory):
    """The model folder after `train` on the demo folder."""
    resources = tmp_path_factory.mktemp("resources")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* are no genes of the training cells")
        train(str(demo_folder), str(resources))
    return resources


@pytest.fixture
def tiny():
    """60 cells x 7 genes in CSR: perturbations B, C and A (in this order, interleaved) and NC; B has one cell."""
    rng = np.random.default_rng(3)
    X = rng.gamma(2.0, size=(60, 7)) * (rng.random((60, 7)) < 0.6)
    gene = np.array([*(["NC", "A", "C"] * 20)[:59], "B"])
    state = rng.integers(0, 3, 60)
    obs = pd.DataFrame({name: (state == i).astype(int) for i, name in enumerate(CRUNCH.shares)})
    obs["lipo"] = obs["adipo"] * rng.integers(0, 2, 60)
    obs.insert(0, "gene", pd.Categorical(gene))
    obs.index = obs.index.astype(str)
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=list("ABCDEFG")))


@pytest.fixture
def peak_memory():
    """The most memory (bytes) that a call holds at one time beyond what there was before it, on any thread."""

    def measure(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture(scope="session")
def real_folder():
    """The real THP-1 cells in the challenge's layout; skipped, loudly, where they are not."""
    folder = REAL_DATA / "thp1_challenge"
    if not folder.exists():
        pytest.skip(f"REAL CELLS NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    return folder


def run_infer(data, resources, prediction, targets, genes, **options):
    """`infer` with the platform's arguments; the paths of the two files."""
    prediction.mkdir(exist_ok=True)
    files = prediction / "prediction.h5ad", prediction / "predict_program_proportion.csv"
    infer(str(data), str(prediction), *map(str, files), str(resources), list(targets), list(genes), **options)
    return files
