"""Bad input, a line each: which good folder, what is called in it, how it is broken before, what the message must name.

To add a case, add a line to a table: `Case(world, call, harm, says)`. A world is a folder of good input (`WORLDS`). A
call is a command line, without `python -m`, or a function of the folder; it runs inside. A harm is a function of the
folder, `NOTHING` where the call itself is wrong. `says` is a regular expression. Every case must end in ONE line: a
command in exit status 1 (or the one given), a function in a DataError; what was there must be there still, and nothing
else. `test_every_call_is_fine_without_harm` runs what is called in unharmed folders.
"""

import gzip
import hashlib
import importlib
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
from contract import TRAVELLING
from helpers import DataError, MedianProportions
from method import EXPECTED_FILE, MODEL_FILE, infer, train

sys.path.append(str(Path(__file__).parent / "challenges"))
import simulated_cells
import simulated_pairs
import simulated_responses

from challenges.common import Bundle, load_model
from challenges.drug_response.fitted import Fitted
from challenges.synthesis.models import CellGAN
from workbench import bundle, submission, validate
from workbench.compare import local_truth
from workbench.sources import steps

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """One fault."""

    world: str
    call: str | Callable[[], object]
    harm: Callable[[Path], object]
    says: str
    status: int = 1  # of a command

    def __str__(self) -> str:
        """For the name of the test."""
        call = self.call if isinstance(self.call, str) else self.call.__name__
        return re.sub(r"[^\w.,:;=+ -]", "", f"{call}: {self.says}")[:90]


def NOTHING(folder):  # noqa: N802 - reads as what it is in a table
    """Leave all as it is."""


# ---------------------------------------------------------------------------------------------------------------------
# Ways to break a file: each gives a function of the folder
# ---------------------------------------------------------------------------------------------------------------------


def text(name, content, encoding="utf-8"):
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode(encoding)
    )


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name, share=0.5):
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def page_of_zeros(name, dataset):
    """What a download leaves that was interrupted: 4 kB that were never written, from the second value on."""

    def harm(folder):
        with h5py.File(folder / name) as file:
            first = file[dataset].id.get_offset() + file[dataset].dtype.itemsize
        with (folder / name).open("r+b") as file:
            file.seek(first)
            file.write(bytes(4096))

    return harm


def copied(name, to):
    return lambda folder: shutil.copyfile(folder / name, folder / to)


def made_folder(name):
    return lambda folder: (folder / name).mkdir(parents=True)


def in_its_place(name):
    """A folder where a file should be."""

    def harm(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return harm


def cells(name, change):
    """Change an `.h5ad` as AnnData; `change` gives it back, or None for the same."""

    def harm(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = ad.read_h5ad(folder / name)
            changed = change(adata)
            adata = adata if changed is None else changed
            adata.write_h5ad(folder / name)

    return harm


def value(name, row, column, number):
    def change(adata):
        adata.X = helpers.dense(adata.X).copy()
        adata.X[row, column] = number

    return cells(name, change)


def hdf5(name, change):
    """Change an HDF5 file itself."""

    def harm(folder):
        with h5py.File(folder / name, "r+") as file:
            change(file)

    return harm


def number_in(name, dataset, place, number):
    def change(file):
        file[dataset][place] = number

    return hdf5(name, change)


def replaced(name, key, content):
    def change(file):
        del file[key]
        if content is not None:
            file[key] = content

    return hdf5(name, change)


def elsewhere(name, key="X"):
    """A part of a file that lies in another one."""

    def harm(folder):
        shutil.copyfile(folder / name, folder / "elsewhere.h5")
        with h5py.File(folder / name, "r+") as file:
            del file[key]
            file[key] = h5py.ExternalLink(str(folder / "elsewhere.h5"), key)

    return harm


def outside(name, key):
    """A part of a file whose bytes are those of any other one."""

    def change(file):
        shape, dtype = file[key].shape, file[key].dtype
        del file[key]
        file.create_dataset(key, shape, dtype, external=[(str(Path(name).resolve()), 0, h5py.h5f.UNLIMITED)])

    return hdf5(name, change)


def virtual(name, key):
    def change(file):
        layout = h5py.VirtualLayout(file[key].shape, file[key].dtype)
        layout[:] = h5py.VirtualSource("elsewhere.h5", key, file[key].shape)
        del file[key]
        file.create_virtual_dataset(key, layout)

    return hdf5(name, change)


def pipe(name):
    def harm(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def model(change):
    """Change a saved model, and seal it again: damage that no hash tells."""

    def harm(folder):
        path = folder / MODEL
        with h5py.File(path, "r+") as file:
            change(file)
        content = path.read_bytes()
        path.write_bytes(content + hashlib.sha256(content).digest())

    return harm


def model_array(key, content, **attributes):
    def change(file):
        del file[key]
        file[key] = content
        file[key].attrs.update(attributes)

    return model(change)


def flipped(name, place):
    def harm(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return harm


def text_as_numbers(file):
    """What a single flipped bit can make of a text; HDF5 would crash when it is read."""
    numbers = np.empty(1, object)
    numbers[0] = np.zeros(3, np.uint8)
    file["obs"].attrs.create("encoding-type", numbers, dtype=h5py.vlen_dtype(np.uint8))


def csv(name, change):
    def harm(folder):
        change(pd.read_csv(folder / name, dtype=str, keep_default_na=False)).to_csv(folder / name, index=False)

    return harm


def with_cell(column, row, content):
    def change(table):
        table.loc[row, column] = content
        return table

    return change


def parquet(name, change):
    def harm(folder):
        change(pd.read_parquet(folder / name)).to_parquet(folder / name)

    return harm


def both(*harms):
    return lambda folder: [harm(folder) for harm in harms]


# ---------------------------------------------------------------------------------------------------------------------
# Functions that are called
# ---------------------------------------------------------------------------------------------------------------------

PREDICTED = Path("prediction", CRUNCH.prediction_file), Path("prediction", CRUNCH.predicted_proportions_file)
TRUTH = Path("data", CRUNCH.local_truth_file), Path("data", CRUNCH.local_proportions_file)
PREDICTION, SHARES, TRUE_CELLS, TRUE_SHARES = map(str, (*PREDICTED, *TRUTH))
TRAIN = str(Path("data", CRUNCH.train_file))


MODEL, MODEL_TABLE = f"resources/{MODEL_FILE}", "expression/reference_/values"
LISTS = TARGET_NAMES, GENE_NAMES = f"data/{CRUNCH.targets_file}", f"data/{CRUNCH.genes_file}"
TRAIN_SHARES, SIGNATURES = f"data/{CRUNCH.proportions_file}", f"data/{CRUNCH.signatures_file}"


def learn():
    return train("data", "resources")


def predict(resources="resources", files=("out/prediction.h5ad", "out/shares.csv"), genes=None, **options):
    targets, names = (Path(name).read_text().split() for name in LISTS)
    return infer("data", "out", *files, resources, targets, names if genes is None else genes, **options)


def predict_no_genes():
    return predict(genes=[])


def predict_no_name():
    return predict(genes=[None, *Path(GENE_NAMES).read_text().split()])


def predict_nobody():
    return infer("data", "out", "out/a.h5ad", "out/b.csv", "resources", ["A", np.nan, " "], ["B"])


def predict_other_genes():
    return predict(genes=["ENSG00000000003", "ENSG00000000005"])


def predict_no_cells():
    return predict(cells_per_perturbation=0)


def predict_fewer_than_no_cells():
    return predict(cells_per_perturbation=-1)


def predict_half_a_cell():
    return predict(cells_per_perturbation=2.5)


def predict_onto_the_cells():
    return predict(files=(TRAIN, "out/shares.csv"))


def predict_onto_the_model():
    return predict(files=("out/prediction.h5ad", f"out/../{MODEL}"))


def predict_onto_the_shares():
    return predict(files=("out/prediction.h5ad", TRAIN_SHARES))


def predict_onto_a_table():
    return predict(files=("out/prediction.h5ad", "resources/screens/../screens/a.csv"))


def predict_both_into_one():
    return predict(files=("out/both", "out/../out/both"))


def statistics_of_nothing():
    return helpers.perturbation_stats([])


def statistics_of_the_same_twice():
    return helpers.perturbation_stats([TRAIN, Path("data/../", TRAIN)])


def score():
    return helpers.score(*PREDICTED, *TRUTH)


def score_calibrated():
    return helpers.score(*PREDICTED, *TRUTH, sigma="calibrated")


def split():
    return helpers.local_split(TRAIN, "split", 0.3)


def split_half_a_gene():
    return helpers.local_split(TRAIN, "split", 0.3, n_genes=1.5)


def truth_of_the_challenge():
    return local_truth(helpers.load_challenge("data"))


def asked_for():
    names = validate.requested_perturbations(Path("data"), local=False)
    return validate.validate_prediction_folder("prediction", names, validate.requested_genes(Path("data")))


def export():
    return submission.export(Path("out"), root=Path("project"))


def export_onto_the_project():
    return submission.export(Path("project"), root=Path("project"))


def bundle_of_the_project(out="new/bundle.ipynb"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "ROOT", Path("project").resolve())
        return command(f"workbench.bundle {out}")


def bundle_onto_a_module():
    return bundle_of_the_project("project/helpers.py")


def bundle_onto_the_notebook():
    return bundle_of_the_project("project/notebook.ipynb")


def no_such_source():
    return steps.get(["nothing"], Path("resources"), Path("cache"))


def source_into_a_file():
    return steps.get(["reactome"], Path("file/resources"), Path("cache"))


def load_drug_model():
    return load_model("work/kernel.h5", Fitted)


def load_generator():
    return load_model("work/gan.h5", CellGAN)


# ---------------------------------------------------------------------------------------------------------------------
# Worlds: folders of good input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def crunch(tmp_path_factory, demo_folder, trained, challenge):
    """A challenge folder, a prediction of its local knock-outs, and a project to submit."""
    folder = tmp_path_factory.mktemp("crunch")
    shutil.copytree(demo_folder, folder / "data")
    targets = challenge.local_proportions.index
    run_infer(demo_folder, trained, folder / "prediction", targets, challenge.genes_to_predict)
    shutil.copytree(trained, folder / "resources")
    (folder / "project").mkdir()
    for name in (*TRAVELLING, CRUNCH.description_file, "notebook.ipynb"):
        shutil.copy(ROOT / name, folder / "project")
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "workbench", folder / "project" / "workbench", ignore=ours)
    shutil.copy(ROOT / CRUNCH.description_file, folder)
    return folder


def run_here(folder, *lines):
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in lines:
            command(line)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="session")
def drug(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drug")
    (folder / "op2").mkdir()
    simulated_responses.write(folder / "op2", *simulated_responses.simulated())
    return run_here(folder, "challenges.drug_response train --data op2 --method kernel --work work")


@pytest.fixture(scope="session")
def modality(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modality")
    (folder / "pairs").mkdir()
    simulated_pairs.write(folder / "pairs", simulated_pairs.split(simulated_pairs.simulated()))
    return run_here(folder, "challenges.modality train --data pairs --method ridge --work work")


@pytest.fixture(scope="session")
def synthesis(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis")
    simulated_cells.make_adata().write_h5ad(folder / "cells.h5ad")
    made = "challenges.synthesis train --data cells.h5ad --work work --device cpu --conditions donor"
    return run_here(folder, f"{made} --steps 2", f"{made} --method start")


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------

ADOPT = f"workbench.adopt {TRAIN} new --perturbation gene --control NC"
COMPARE = "workbench.compare data prediction"
VALIDATE = f"workbench.validate prediction data '{CRUNCH.description_file}'"
SIMULATE = "workbench.simulate new --cells 300 --genes 60 --perturbations 3"

SCORES = [
    Case(
        "crunch", score, value(PREDICTION, 150, 3, np.nan), r"prediction\.h5ad: X holds NaN or infinite values .*of \w+"
    ),
    Case("crunch", score, value(TRUE_CELLS, 40, 3, np.inf), r"gtruth\.h5ad: X holds NaN or infinite values .* of \w+"),
    Case("crunch", score, cut(PREDICTION), r"prediction\.h5ad: not a readable HDF5 file"),
    Case("crunch", score, gone(PREDICTION), r"prediction\.h5ad: no such file"),
    Case("crunch", score, replaced(TRUE_CELLS, "uns/perturbed_centroid_train", None), r"uns has no 'perturbed_cent"),
    Case(
        "crunch", score, replaced(TRUE_CELLS, "uns/perturbed_centroid_train", [1.0]), "one number for each of the 240"
    ),
    Case("crunch", score, csv(TRUE_SHARES, lambda t: t[1:]), r"gtruth\.csv: no row for the scored perturbations"),
    Case("crunch", score, csv(SHARES, lambda t: t[1:]), r"program_proportion\.csv: no row for the scored"),
    Case("crunch", score, csv(SHARES, with_cell("adipo", 1, "")), r"program_proportion\.csv: values are missing"),
    Case("crunch", score, cells(PREDICTION, lambda a: a[:, :1].copy()), "have 1 gene in common"),
    Case("crunch", score, cells(PREDICTION, lambda a: a[100:].copy()), "no cells for the scored perturbations"),
    Case("crunch", score_calibrated, cells(TRUE_CELLS, lambda a: setattr(a, "X", a.X * 0)), "'calibrated': the mean"),
    Case("crunch", split, cut(TRAIN), r"obesity_challenge_1\.h5ad: not a readable HDF5 file"),
    Case("crunch", split, hdf5(TRAIN, text_as_numbers), "damaged, a text of obs is a list of numbers"),
    Case("crunch", split, text("split", ""), "could not be written|split.* is a file|File exists"),
    Case("crunch", split_half_a_gene, NOTHING, r"n_genes is 1\.5: it must be a whole number of at least 1"),
    Case("crunch", truth_of_the_challenge, gone(TRUE_CELLS), "no local truth, so there is nothing to compare"),
]

COMPARING = [
    Case("crunch", COMPARE, gone(PREDICTION), r"prediction\.h5ad: no such file; PREDICTION is the folder"),
    Case("crunch", COMPARE, in_its_place(SHARES), r"program_proportion\.csv: no such file; PREDICTION is"),
    Case("crunch", "workbench.compare data nowhere", NOTHING, r"nowhere/prediction\.h5ad: no such file"),
    Case("crunch", "workbench.compare nowhere prediction", NOTHING, r"nowhere/obesity_challenge_1\.h5ad: no such file"),
    Case("crunch", COMPARE, gone(TRUE_CELLS), "data: no local truth"),
    Case("crunch", COMPARE, value(PREDICTION, 150, 3, np.nan), r"prediction\.h5ad: X holds NaN"),
    Case("crunch", f"{COMPARE} --out {SHARES}", NOTHING, r"program_proportion\.csv: an input of this command"),
    Case("crunch", f"{COMPARE} --out data/{CRUNCH.genes_file}", NOTHING, r"genes_to_predict\.txt: an input of this"),
    Case("crunch", f"{COMPARE} --out data", NOTHING, "data: a folder; name a file"),
    Case("crunch", f"{COMPARE} --out pipe", lambda folder: os.mkfifo("pipe"), "pipe: a device or pipe; name a file"),
    Case(
        "crunch", f"{COMPARE} --out file/table.csv", text("file", ""), r"file: cannot be written to \(Not a directory"
    ),
    Case("crunch", f"{COMPARE} --sigma 0", NOTHING, "argument --sigma: invalid choice: '0'", 2),
    Case("crunch", "workbench.compare data", NOTHING, "the following arguments are required: prediction", 2),
]

VALIDATING = [
    Case("crunch", VALIDATE, gone(TRUE_SHARES), r"gtruth\.csv: not a readable CSV file"),
    Case("crunch", VALIDATE, gone(f"data/{CRUNCH.genes_file}"), r"genes_to_predict\.txt: cannot be read as text"),
    Case("crunch", VALIDATE, text(f"data/{CRUNCH.genes_file}", ""), r"genes_to_predict\.txt: the file is empty"),
    Case(
        "crunch", VALIDATE, text(f"data/{CRUNCH.genes_file}", "ÄB", "utf-16"), r"genes_to_predict\.txt: cannot be read"
    ),
    Case(
        "crunch", VALIDATE, csv(TRUE_SHARES, lambda t: t.drop(columns="gene")), r"gtruth\.csv: no column gene; it has"
    ),
    Case("crunch", VALIDATE, text(TRUE_SHARES, b"\xff\xfe\x00"), r"gtruth\.csv: not a readable CSV file"),
    Case("crunch", VALIDATE, pipe(TRUE_SHARES), r"gtruth\.csv: not a file; put the file there"),
    Case("crunch", VALIDATE, pipe(GENE_NAMES), r"genes_to_predict\.txt: not a file; put the file there"),
    Case("crunch", "workbench.validate nowhere data", NOTHING, "nowhere: no such folder", 2),
    Case("crunch", "workbench.validate prediction data/x", NOTHING, "data/x: no such folder", 2),
]

MAKING = [
    Case("crunch", f"{SIMULATE} --seed -1", NOTHING, "argument --seed: '-1' is not a whole number from 0", 2),
    Case("crunch", f"{SIMULATE} --genes abc", NOTHING, "argument --genes: 'abc' is not a whole number", 2),
    Case("crunch", f"{SIMULATE} --genes 10", NOTHING, "genes=10: at least 60 are needed", 2),
    Case("crunch", f"{SIMULATE} --cells 2000000000 --genes 2000000", NOTHING, "GB are needed at .* GB are free"),
    Case("crunch", f"{SIMULATE} --predictable nan", NOTHING, "predictable=nan: must lie between 0 and 1", 2),
    Case("crunch", f"{SIMULATE} --answer new/answer.h5", NOTHING, "answer .* must be a file outside", 2),
    Case("crunch", SIMULATE.replace("new", "data"), NOTHING, "already exists; --force", 2),
    Case("crunch", SIMULATE.replace("new", "file"), text("file", ""), "file is not a folder", 2),
    Case("crunch", SIMULATE.replace("new", "file/new"), text("file", ""), "file/new: a part of its path is a file", 2),
    Case(
        "crunch", SIMULATE, both(made_folder("new.partial"), text("new.partial/thesis.txt", "")), "it holds thesis", 2
    ),
    Case("crunch", "workbench.demo --folder file", text("file", ""), "--folder file: not a folder"),
    Case(
        "crunch", "workbench.demo --folder new --data nowhere", NOTHING, r"--data nowhere: holds no obesity_challenge"
    ),
    Case(
        "crunch", "workbench.demo --folder . --data data", NOTHING, "--data data: it is data already; leave --data out"
    ),
    Case("crunch", "workbench.demo --folder . --picture data", NOTHING, "data: a folder; name a file"),
    Case("crunch", "workbench.demo --folder new --picture file/x.png", text("file", ""), "file: cannot be written to"),
    Case("crunch", "workbench.demo --folder .", cut(TRAIN), r"obesity_challenge_1\.h5ad: not a readable HDF5 file"),
    Case("crunch", "workbench.bundle data", NOTHING, "data: a folder; name a file"),
    Case("crunch", "workbench.bundle file/x.ipynb", text("file", ""), "file: cannot be written to"),
    Case("crunch", bundle_onto_a_module, NOTHING, r"helpers\.py: an input of this command"),
    Case("crunch", bundle_onto_the_notebook, NOTHING, r"notebook\.ipynb: an input of this command"),
    Case("crunch", bundle_of_the_project, text("project/notebook.ipynb", "{"), r"notebook\.ipynb: not a notebook"),
    Case("crunch", bundle_of_the_project, text("project/helpers.py", "def f(:"), r"not Python: 'def f\(:'"),
    Case(
        "crunch",
        f"workbench.submission --out {CRUNCH.description_file.split()[0]}",
        text("Method", ""),
        "Method: a file",
    ),
    Case("crunch", "workbench.submission --out data", NOTHING, "data holds no main.py and requirements.txt"),
    Case("crunch", export_onto_the_project, NOTHING, "project: holds the project itself; choose another folder"),
    Case("crunch", "workbench.submission --out file/out", text("file", ""), "file: cannot be written to"),
    Case("crunch", export, text("project/notebook.ipynb", "{"), r"notebook\.ipynb: not a notebook, or a broken one"),
    Case("crunch", export, gone("project/helpers.py"), r"No such file or directory: .*helpers\.py"),
    Case("crunch", ADOPT, page_of_zeros(TRAIN, "X/data"), r"zeros one after the other: it is damaged"),
    Case("crunch", f"{ADOPT} --targets data", NOTHING, "data: not a file; name a text of one name a line"),
    Case("crunch", "workbench.bench --keep file", text("file", ""), "--keep file: a file; name a folder"),
    Case("crunch", "workbench.bench --page data", NOTHING, "data: a folder; name a file"),
    Case("crunch", "workbench.bench --quick", text("build", ""), "build: cannot be written to"),
    Case("crunch", "workbench.hub --port 65536", NOTHING, "'65536' is not a whole number from 0 to 65535", 2),
    Case("crunch", "workbench.hub --project file", text("file", ""), "file: cannot be written to"),
    Case(
        "crunch",
        "workbench.hub --project .",
        both(made_folder(".crunchdao"), text(".crunchdao/project.json", "{")),
        "not JSON",
    ),
]

CROSS = "workbench.cross_validate --data data --folds 2 --only control"
EFFECTS = "workbench.cross_validate --effects effects.csv"
EFFECT_TABLE = text("effects.csv", "gene,x,y\na,1,2\nb,2,3\nc,4,5\nd,1,1\n")
CROSSING = [
    *(
        Case("crunch", f"{CROSS} --sigma {sigma}", NOTHING, f"--sigma: '{sigma}' is neither 'scaled' nor 'cal", 2)
        for sigma in ("0", "-5", "nan", "inf", "abc")
    ),
    Case("crunch", f"{CROSS} --seeds 0", NOTHING, "argument --seeds: '0' is not a whole number from 1", 2),
    Case("crunch", f"{CROSS} --jobs 0", NOTHING, "argument --jobs: '0' is not a whole number from 1", 2),
    Case("crunch", f"{CROSS} --panels 0", NOTHING, "argument --panels: '0' is not a whole number from 1", 2),
    Case("crunch", f"{CROSS} --folds 1", NOTHING, "'1' is neither 'loo' nor a number from 2 on", 2),
    Case("crunch", f"{CROSS} --methods x", NOTHING, "unrecognized arguments: --methods x", 2),
    Case("crunch", f"{CROSS} --method x", NOTHING, "--method x: expected module:NAME or file.py:NAME"),
    Case("crunch", f"{CROSS} --only x", NOTHING, "no method x; there are control"),
    Case("crunch", f"{CROSS} --out {TRAIN}", NOTHING, r"obesity_challenge_1\.h5ad: an input of this command"),
    Case("crunch", f"{CROSS} --details {TRAIN}", NOTHING, r"obesity_challenge_1\.h5ad: an input of this command"),
    Case("crunch", f"{CROSS} --out data", NOTHING, "data: a folder; name a file"),
    Case("crunch", f"{CROSS} --out file/x.csv", text("file", ""), "file: cannot be written to"),
    Case("crunch", f"{CROSS} --features nowhere", NOTHING, "nowhere: no such folder of tables"),
    Case("crunch", CROSS.replace(" data ", " nowhere "), NOTHING, r"nowhere/obesity_challenge_1\.h5ad: no such file"),
    Case("crunch", EFFECTS, NOTHING, r"effects\.csv: no such file"),
    Case("crunch", EFFECTS, lambda folder: os.mkfifo("effects.csv"), r"effects\.csv: not a file"),
    Case("crunch", f"{EFFECTS} --groups data", EFFECT_TABLE, "data: not a file"),
    Case("crunch", f"{EFFECTS} --out effects.csv", EFFECT_TABLE, r"effects\.csv: an input of this command"),
    Case(
        "crunch", EFFECTS, text("effects.csv", "gene;x;y\na;1;2\n"), r"effects\.csv: 0 columns beside .*commas between"
    ),
    Case(
        "crunch", EFFECTS, text("effects.csv", "a,0.1,2.5\nb,2,3\nc,4,5\n"), r"effects\.csv: the first line, a, 0\.1, 2"
    ),
    Case("crunch", f"{EFFECTS} --groups groups.csv", EFFECT_TABLE, r"groups\.csv: no such file"),
    Case(
        "crunch",
        f"{EFFECTS} --groups groups.csv",
        both(EFFECT_TABLE, text("groups.csv", "a,b\n", "utf-16")),
        r"groups\.csv: cannot be read as csv: .*utf-8",
    ),
    Case(
        "crunch", f"{EFFECTS} --groups groups.csv", both(EFFECT_TABLE, text("groups.csv", "")), r"groups\.csv: cannot"
    ),
    Case("crunch", f"{EFFECTS} --groups effects.csv --data data", NOTHING, "not allowed with argument", 2),
    Case("crunch", "workbench.bench --keep file/new", text("file", ""), "file/new: cannot be written to"),
    Case("crunch", no_such_source, NOTHING, "nothing: no such source; there are reactome"),
    Case("crunch", source_into_a_file, text("file", ""), "file/resources: cannot be written to"),
]

DRUG = "challenges.drug_response {} --data op2 --method kernel --work work"
PREPARE, PREDICT, TRAINING = DRUG.format("prepare"), DRUG.format("predict"), DRUG.format("train")
TABLE, ROWS, DRUG_MODEL = "op2/de_train.parquet", "op2/id_map.csv", "work/kernel.h5"
DRUGS = [
    Case("drug", PREPARE, gone(TABLE), r"de_train\.parquet: no such file; put Kaggle's"),
    Case("drug", PREPARE, in_its_place(TABLE), r"de_train\.parquet: not a file; put Kaggle's"),
    Case("drug", PREPARE, cut(TABLE), r"de_train\.parquet: not a parquet file, or a broken one"),
    Case("drug", PREPARE, text(TABLE, "cell_type,sm_name,A1"), r"de_train\.parquet: not a parquet file"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(dose_uM=1.0)), r"columns that are no genes: 'dose_uM'"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(n_cells=9)), r"columns that are no genes: 'n_cells'"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(**{"Unnamed: 0": 1.0})), "no genes: 'Unnamed: 0'"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(G1=True)), "gene columns that are not numbers: G1"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(G1="x")), "gene columns that are not numbers: G1"),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.assign(G1=1e300)), "NaN or infinite targets .* genes G1$"),
    Case(
        "drug", PREPARE, parquet(TABLE, lambda t: t.assign(G1=pd.array([None] * len(t), "Int64"))), "NaN .* genes G1$"
    ),
    Case("drug", PREPARE, parquet(TABLE, lambda t: t.drop(columns="sm_name")), "no column sm_name"),
    Case("drug", PREPARE, csv(ROWS, with_cell("id", 2, "")), r"id_map\.csv: 1 rows without an id"),
    Case("drug", PREPARE, csv(ROWS, with_cell("id", 2, "0")), r"id_map\.csv: ids that come twice: 0"),
    Case("drug", PREPARE, csv(ROWS, with_cell("sm_name", 2, "")), r"id_map\.csv: empty labels in column sm_name"),
    Case(
        "drug", PREPARE, text(ROWS, "id;cell_type;sm_name\n0;B cells;D01\n"), r"id_map\.csv: .*separated by semicolons"
    ),
    Case("drug", PREPARE, text(ROWS, "id\tcell_type\tsm_name\n"), r"id_map\.csv: .*separated by tabs"),
    Case("drug", PREPARE, text(ROWS, "id,cell_type,sm_name\n1,a,b", "utf-16"), r"id_map\.csv: not a csv file in UTF-8"),
    Case("drug", PREPARE, in_its_place(ROWS), r"id_map\.csv"),
    Case("drug", PREDICT, copied(TABLE, DRUG_MODEL), r"kernel\.h5: damaged, no trained model"),
    Case("drug", PREDICT, cut(DRUG_MODEL, 0.9), r"kernel\.h5: damaged, .*; train again"),
    Case(
        "drug", PREDICT.replace("kernel", "simple"), copied(DRUG_MODEL, "work/simple.h5"), "a model of 'kernel', not of"
    ),
    Case(
        "drug", PREDICT, parquet(TABLE, lambda t: t.assign(G1=t["G1"] + 1)), r"kernel\.h5: trained on other responses"
    ),
    Case("drug", PREDICT, parquet(TABLE, lambda t: t.drop(columns="G1")), r"kernel\.h5: trained on other genes .*G1"),
    Case("drug", f"{PREDICT} --out {ROWS}", NOTHING, r"id_map\.csv: an input of this command"),
    Case("drug", f"{PREDICT} --out op2/../{DRUG_MODEL}", NOTHING, r"kernel\.h5: an input of this command"),
    Case("drug", f"{PREDICT} --out op2", NOTHING, "op2: a folder; name a file"),
    Case("drug", TRAINING.replace("--work work", "--work file"), text("file", ""), "file: cannot be written to"),
    Case(
        "drug", f"{TRAINING} --seed 100000000000000000000000", NOTHING, "is not a whole number from 0 to 4294967295", 2
    ),
    Case("drug", DRUG.format("evaluate") + f" --truth {TABLE} --out {TABLE}", NOTHING, "parquet: an input of this"),
    Case("drug", DRUG.format("evaluate") + " --pictures file", text("file", ""), "file: cannot be written to"),
    Case(
        "drug",
        load_drug_model,
        lambda folder: Bundle("drug_response/method", {}, {}).save(folder / DRUG_MODEL),
        r"kernel\.h5: damaged \('parts'\); train again",
    ),
]

PAIRS = "challenges.modality {} --data pairs --method ridge --work work"
CHECK, APPLY = PAIRS.format("prepare"), PAIRS.format("predict")
ONE, TWO, TEST = (f"pairs/set.{part}.h5ad" for part in ("train_mod1", "train_mod2", "test_mod1"))


def with_layer(name):
    def change(adata):
        adata.layers["normalized"] = adata.X.copy()

    return cells(name, change)


def as_counts(adata):
    adata.X = sp.csr_matrix(np.rint(10 * adata.X.toarray()).astype(np.float32))


MODALITIES = [
    Case("modality", CHECK, gone(ONE), "neither .*train_mod1.h5ad and"),
    Case("modality", CHECK.replace("pairs", "nowhere"), NOTHING, r"nowhere: no \.h5ad files"),
    Case("modality", CHECK.replace("pairs", "pairs/[x]*"), NOTHING, r"no \.h5ad files"),
    Case("modality", CHECK, cut(ONE), r"train_mod1\.h5ad: not an \.h5ad file, or a broken one"),
    Case("modality", CHECK, in_its_place(ONE), r"train_mod1\.h5ad: not a file"),
    Case("modality", CHECK, elsewhere(ONE), r"train_mod1\.h5ad: X lie in another file"),
    Case("modality", CHECK, number_in(ONE, "X/indices", 5, 2**30), r"train_mod1\.h5ad: damaged, its sparse values"),
    Case("modality", CHECK, number_in(ONE, "X/indptr", 5, 10**6), r"train_mod1\.h5ad: .*(damaged|broken)"),
    Case("modality", CHECK, replaced(ONE, "X", None), r"train_mod1\.h5ad"),
    Case("modality", CHECK, replaced(ONE, "obs", None), r"train_mod1\.h5ad"),
    Case("modality", CHECK, replaced(ONE, "X", np.full((60, 30), b"0.1")), r"train_mod1\.h5ad"),
    Case(
        "modality",
        CHECK,
        number_in(TWO, "X/data", 0, np.nan),
        r"train_mod2\.h5ad: NaN or infinite values in cells C000",
    ),
    Case("modality", CHECK, with_layer(ONE), r"test_mod1\.h5ad: its values are in X, those of .* in normalized"),
    Case("modality", CHECK, with_layer(TEST), r"test_mod1\.h5ad: its values are in normalized, those of .* in X"),
    Case("modality", CHECK, cells(TEST, as_counts), r"test_mod1\.h5ad: counts, but .* normalised values; write"),
    Case("modality", CHECK, copied(ONE, TEST), r"test_mod1\.h5ad: training cells among the test cells: C000"),
    Case(
        "modality", APPLY, cells(TWO, lambda a: setattr(a, "X", a.X * 2)), r"GEX_ADT_ridge\.h5: trained on other cells"
    ),
    Case(
        "modality",
        APPLY.replace("ridge", "knn"),
        copied("work/GEX_ADT_ridge.h5", "work/GEX_ADT_knn.h5"),
        r"GEX_ADT_knn\.h5: a model of 'ridge', not of 'knn'; train again",
    ),
    Case("modality", APPLY, cut("work/GEX_ADT_ridge.h5", 0.8), r"GEX_ADT_ridge\.h5: damaged, .*; train again"),
    Case("modality", f"{APPLY} --out {TEST}", NOTHING, r"test_mod1\.h5ad: an input of this command"),
    Case("modality", f"{APPLY} --out work/GEX_ADT_ridge.h5", NOTHING, r"GEX_ADT_ridge\.h5: an input of this command"),
    Case("modality", PAIRS.format("train").replace("--work work", "--work file"), text("file", ""), "file: cannot be"),
    Case("modality", PAIRS.format("evaluate") + f" --out {TWO}", NOTHING, r"train_mod2\.h5ad: an input of this"),
    Case("modality", f"{CHECK} --mod1 RNA", NOTHING, "argument --mod1: invalid choice: 'RNA'", 2),
]

GAN = "challenges.synthesis {} --work work --device cpu"
SAMPLE, READ, LEARN = (
    GAN.format("sample") + " --n 2",
    GAN.format("prepare") + " --data cells.h5ad",
    (GAN.format("train") + " --data cells.h5ad --steps 2 --conditions donor"),
)
CELLS, CHECKPOINT = "cells.h5ad", "work/gan.checkpoint.h5"


def ones(adata):
    adata.X = sp.csr_matrix((adata.X.toarray() > 0).astype(np.float32))
    del adata.layers["counts"]


GENERATED = [
    Case("synthesis", READ, gone(CELLS), r"cells\.h5ad: no such file"),
    Case("synthesis", READ.replace("cells.h5ad", "work"), NOTHING, "work: a folder, or no plain file; name an .h5ad"),
    Case("synthesis", READ, cut(CELLS), r"cells\.h5ad: not an \.h5ad file, or a broken one"),
    Case("synthesis", READ, elsewhere(CELLS), r"cells\.h5ad: X lie in another file"),
    Case(
        "synthesis",
        READ,
        both(number_in(CELLS, "X/indices", 3, 2**30), replaced(CELLS, "layers/counts", None)),
        r"cells\.h5ad: X: damaged, its sparse values",
    ),
    Case("synthesis", READ, cells(CELLS, ones), r"cells\.h5ad: X holds 0 and 1 only"),
    Case(
        "synthesis",
        READ,
        hdf5(CELLS, lambda f: f["X"].attrs.update({"encoding-version": "9.9"})),
        r"cells\.h5ad: not an",
    ),
    Case("synthesis", READ, replaced(CELLS, "obs", None), r"cells\.h5ad: not an \.h5ad file, or a broken one"),
    Case("synthesis", READ.replace(".h5ad", ".h5"), copied(CELLS, "cells.h5"), r"metadata\.csv: no such file"),
    Case("synthesis", f"{READ} --label donor --held-out 1", NOTHING, "--held-out is a share from 0 to below 1"),
    Case("synthesis", f"{LEARN} --steps -3", NOTHING, "argument --steps: '-3' is not a whole number", 2),
    Case("synthesis", LEARN, text(CHECKPOINT, "half"), r"checkpoint\.h5: damaged, .*; remove it to begin anew"),
    Case(
        "synthesis", LEARN, copied("work/gan.h5", CHECKPOINT), r"checkpoint\.h5: a model of 'synthesis', .*remove it to"
    ),
    Case(
        "synthesis",
        LEARN,
        lambda folder: Bundle("synthesis/checkpoint", {}, {}).save(folder / CHECKPOINT),
        r"checkpoint\.h5: a checkpoint of other cells, .*; remove it to begin anew",
    ),
    Case("synthesis", LEARN.replace("--work work", "--work file"), text("file", ""), "file: cannot be written to"),
    Case("synthesis", LEARN.replace("cells.h5ad", "work/gan.h5"), NOTHING, r"gan\.h5: an input of this command"),
    Case("synthesis", SAMPLE.replace("--n 2", "--n 0"), NOTHING, "argument --n: '0' is not a whole number from 1", 2),
    Case("synthesis", SAMPLE.replace("--n 2", "--n 2000000000"), NOTHING, "cells x 30 genes take .* GB of memory"),
    Case("synthesis", f"{SAMPLE} --out work/gan.h5", NOTHING, r"gan\.h5: an input of this command"),
    Case("synthesis", f"{SAMPLE} --data cells.h5ad --out cells.h5ad", NOTHING, r"cells\.h5ad: an input of this"),
    Case("synthesis", SAMPLE, cut("work/gan.h5", 0.99), r"gan\.h5: damaged, .*; train again"),
    Case("synthesis", SAMPLE, copied("work/start.h5", "work/gan.h5"), r"gan\.h5: a model of 'start', not of 'gan'"),
    Case("synthesis", f"{SAMPLE} --mix 'B cell:inf,NK cell:1'", NOTHING, "the weight of 'B cell' is inf"),
    Case("synthesis", GAN.format("evaluate") + " --draws 0", NOTHING, "argument --draws: '0' is not a whole number", 2),
    Case(
        "synthesis", GAN.format("evaluate") + " --out cells.h5ad --data cells.h5ad", NOTHING, r"cells\.h5ad: an input"
    ),
    Case(
        "synthesis", GAN.format("evaluate") + " --challenge nowhere", NOTHING, r"nowhere/obesity_challenge_1\.h5ad: no"
    ),
    Case(
        "synthesis",
        load_generator,
        lambda folder: Bundle("synthesis", {"types": 3}, {}).save(folder / "work/gan.h5"),
        r"gan\.h5: damaged \(.*\); train again",
    ),
]


def with_obs(column, make):
    return cells(TRAIN, lambda adata: adata.obs.__setitem__(column, make(adata.obs[column])))


def only(*names):
    return cells(TRAIN, lambda adata: adata[adata.obs["gene"].isin(names)].copy())


def stored(change):
    """Change the stored values of the training cells."""
    return hdf5(TRAIN, lambda file: file["X/data"].write_direct(change(file["X/data"][:])))


def only_the_control():
    return MedianProportions().fit(helpers.load_challenge("data").proportions.loc[["NC"]])


READING = [
    Case("crunch", learn, gone(TRAIN), r"obesity_challenge_1\.h5ad: no such file"),
    Case("crunch", learn, in_its_place(TRAIN), r"obesity_challenge_1\.h5ad: not a file"),
    Case("crunch", learn, pipe(TRAIN), r"obesity_challenge_1\.h5ad: not a file"),
    Case("crunch", learn, text(TRAIN, "cells"), r"obesity_challenge_1\.h5ad: not a readable HDF5 file"),
    Case("crunch", learn, elsewhere(TRAIN), r"obesity_challenge_1\.h5ad: X lie elsewhere"),
    Case("crunch", learn, elsewhere(TRAIN, "obs"), r"obesity_challenge_1\.h5ad: obs lie elsewhere"),
    Case("crunch", learn, outside(TRAIN, "X/data"), r"obesity_challenge_1\.h5ad: X/data lie elsewhere"),
    Case("crunch", learn, virtual(TRAIN, "X/data"), r"obesity_challenge_1\.h5ad: X/data lie elsewhere"),
    *(
        Case(
            "crunch", learn, replaced(TRAIN, part, None), rf"obesity_challenge_1\.h5ad: holds no {part}; write it with"
        )
        for part in ("obs", "var", "X")
    ),
    Case(
        "crunch", learn, replaced(TRAIN, "obs", 3.0), r"obesity_challenge_1\.h5ad: (obs or var is no table|not a read)"
    ),
    Case(
        "crunch",
        learn,
        hdf5(TRAIN, lambda f: f["obs"].attrs.update({"encoding-version": "9.9"})),
        r"obesity_challenge_1\.h5ad: not a readable HDF5 file.*9\.9",
    ),
    Case("crunch", learn, replaced(TRAIN, "X", np.full((1500, 240), b"0.1")), r"X holds \|S3 of shape .*not numbers"),
    Case("crunch", learn, replaced(TRAIN, "X", np.zeros(3)), r"X holds float64 of shape \(3,\), not numbers by cells"),
    Case("crunch", learn, replaced(TRAIN, "X", np.zeros((3, 4))), r"X is \(3, 4\), but obs and var are \(1500, 240\)"),
    Case("crunch", learn, replaced(TRAIN, "X/data", [b"a", b"b"]), "X/data holds object of shape"),
    Case("crunch", learn, replaced(TRAIN, "X/indices", np.zeros(9)), r"X/indices holds float64 of shape"),
    Case("crunch", learn, replaced(TRAIN, "X/indptr", None), r"obesity_challenge_1\.h5ad: not a readable HDF5.*indptr"),
    Case("crunch", learn, number_in(TRAIN, "X/indptr", 5, 10**6), r"X/indptr does not rise .*damaged"),
    Case("crunch", learn, number_in(TRAIN, "X/indices", 5, 2**30), r"X/indices holds numbers outside 0 to 239"),
    Case("crunch", learn, number_in(TRAIN, "X/data", 5, np.nan), r"cells 0 to .*: X holds infinite values or NaN"),
    Case("crunch", learn, number_in(TRAIN, "X/data", 5, -1), r"cells 0 to .*: X holds negative values, down to -1"),
    Case("crunch", learn, number_in(TRAIN, "X/data", 5, 400), r"up to 400, more than log2.*counts or CPM; normalise"),
    Case("crunch", learn, stored(np.ones_like), "X holds whole numbers alone: counts, or 0 and 1; normal"),
    Case("crunch", learn, stored(lambda X: np.minimum(np.rint(X), 9)), "X holds whole numbers alone: counts, or 0 and"),
    Case("crunch", learn, page_of_zeros(TRAIN, "X/data"), r"X/data holds \d+ zeros one after the other: it is damaged"),
    Case("crunch", learn, page_of_zeros(TRAIN, "X/indices"), r"X holds genes twice in one cell, .*: it is damaged"),
    Case("crunch", learn, page_of_zeros(TRAIN, "X/indptr"), "X holds genes twice in one cell, .*: it is dam"),
    Case("crunch", learn, with_obs("adipo", lambda s: 2 * s - 1), r"obs\['adipo'\] must be 0 or 1 for every cell"),
    Case("crunch", learn, with_obs("adipo", lambda s: s.astype(str)), r"obs\['adipo'\] must be 0 or 1"),
    Case("crunch", learn, with_obs("lipo", lambda s: 1), r"obs\['lipo'\] is 1 where obs\['adipo'\] is 0"),
    Case("crunch", learn, with_obs("other", lambda s: 0), r"pre_adipo \+ adipo \+ other must be 1"),
    Case("crunch", learn, with_obs("gene", lambda s: s.where(s != "NC")), r"obs\['gene'\] is empty for \d+ cells"),
    Case("crunch", learn, only("NC"), r"obesity_challenge_1\.h5ad: control cells alone"),
    Case("crunch", learn, only("no such gene"), r"obesity_challenge_1\.h5ad: obs holds no cells"),
    Case("crunch", learn, cells(TRAIN, lambda a: a[:, :0].copy()), r"obesity_challenge_1\.h5ad: var holds no genes"),
    Case("crunch", statistics_of_nothing, NOTHING, "sources: the list is empty"),
    Case("crunch", only_the_control, NOTHING, "the training proportions: no row but that of the control"),
    Case("crunch", statistics_of_the_same_twice, NOTHING, r"sources: duplicated names .*obesity_challenge_1\.h5ad"),
]


def words(name, change):
    """Change the lines of a list of names."""
    return lambda folder: (folder / name).write_text("\n".join(change((folder / name).read_text().split())))


def shares(change):
    """Change the training proportions, whose columns are numbers here."""

    def harm(folder):
        table = pd.read_csv(folder / TRAIN_SHARES)
        change(table)
        table.to_csv(folder / TRAIN_SHARES, index=False)

    return harm


TEXTS = [
    *(
        case
        for name, file in ((TARGET_NAMES, r"predict_perturbations\.txt"), (GENE_NAMES, r"genes_to_predict\.txt"))
        for case in (
            Case("crunch", learn, gone(name), rf"{file}: no such file"),
            Case("crunch", learn, in_its_place(name), rf"{file}: no such file"),
            Case("crunch", learn, text(name, "\ufeff\n \n"), rf"{file}: the file is empty"),
            Case("crunch", learn, text(name, "A1\nB2", "utf-16"), rf"{file}: not a text in UTF-8"),
            Case(
                "crunch", learn, text(name, "A1\nB2", "utf-16-le"), rf"{file}: not a text in UTF-8, .* bytes that are 0"
            ),
            Case("crunch", learn, text(name, "A1\nÄ2", "latin-1"), rf"{file}: not a text in UTF-8 \(.*byte 3\)"),
            Case("crunch", learn, words(name, lambda n: ["gene", *n]), rf"{file}: begins with 'gene', .*a header"),
            Case("crunch", learn, words(name, lambda n: ["0", *n]), rf"{file}: begins with '0', .*a header"),
            Case(
                "crunch",
                learn,
                words(name, lambda n: [f'"{w}"' for w in n]),
                rf"{file}: line 1 is '\"\w+\"'; write one",
            ),
            Case(
                "crunch",
                learn,
                words(name, lambda n: [*n[:3], ",".join(n[3:])]),
                rf"{file}: line 4 is .*one name a line",
            ),
            Case(
                "crunch", learn, words(name, lambda n: [" ".join(n)]), rf"{file}: line 1 is '.*'; write one name a line"
            ),
            Case("crunch", learn, words(name, lambda n: [*n, n[0]]), rf"{file}: duplicated names \w+"),
        )
    ),
    Case("crunch", learn, words(TARGET_NAMES, lambda n: [*n, "NC"]), r"perturbations\.txt: NC is the control, not a"),
    Case(
        "crunch", learn, words(GENE_NAMES, lambda n: [w.lower() for w in n]), r"predict\.txt: only 0 of \d+ genes were"
    ),
    Case("crunch", learn, in_its_place(TRAIN_SHARES), r"program_proportion\.csv: no such file"),
    Case("crunch", learn, text(TRAIN_SHARES, "gene,a", "utf-16"), r"program_proportion\.csv: not a text in UTF-8"),
    Case("crunch", learn, text(TRAIN_SHARES, b"gene,adipo\nA\xff,1"), r"program_proportion\.csv: not a text in UTF-8"),
    Case("crunch", learn, text(TRAIN_SHARES, "gene,\0"), r"program_proportion\.csv: .*bytes that are 0"),
    Case("crunch", learn, text(TRAIN_SHARES, ""), r"program_proportion\.csv: not a readable csv file: No columns"),
    Case(
        "crunch", learn, text(TRAIN_SHARES, "gene,a\nA,1\nB,1,2,3"), r"program_proportion\.csv: not a readable csv file"
    ),
    Case("crunch", learn, csv(TRAIN_SHARES, lambda t: t.drop(columns="lipo")), r"no column lipo; it has gene, "),
    Case("crunch", learn, csv(TRAIN_SHARES, with_cell("gene", 2, "")), "values are missing in column gene, line 4"),
    Case("crunch", learn, csv(TRAIN_SHARES, with_cell("adipo", 2, "")), "values are missing in column adipo, line 4"),
    Case("crunch", learn, csv(TRAIN_SHARES, with_cell("adipo", 2, "12 %")), "column adipo holds '12 %', not a number"),
    Case("crunch", learn, csv(TRAIN_SHARES, with_cell("adipo", 2, "0,3")), "column adipo holds '0,3', not a number"),
    Case(
        "crunch", learn, csv(TRAIN_SHARES, with_cell("adipo", 2, "inf")), r"csv: values are missing or infinite for \w+"
    ),
    Case("crunch", learn, shares(lambda t: t.__setitem__("adipo", t["adipo"] * 100)), "csv: shares below 0 or above 1"),
    Case(
        "crunch", learn, shares(lambda t: t.__setitem__("other", t["other"] - 1)), "csv: shares below 0 or above 1 for"
    ),
    Case(
        "crunch", learn, shares(lambda t: t.__setitem__("other", 0.0)), r"csv: pre_adipo \+ adipo \+ other is not 1 for"
    ),
    Case("crunch", learn, shares(lambda t: t.__setitem__("lipo", 1.0)), "csv: more lipo than adipo for"),
    Case("crunch", learn, csv(TRAIN_SHARES, lambda t: pd.concat([t, t[:1]])), r"column gene: duplicated names \w+"),
    Case("crunch", learn, csv(TRAIN_SHARES, lambda t: t[t["gene"] != "NC"]), "no row for the perturbations NC"),
    Case(
        "crunch", learn, csv(SIGNATURES, with_cell("sig_gene", 2, "")), r"genes\.csv: values are missing .*sig_gene, l"
    ),
    Case("crunch", learn, csv(SIGNATURES, lambda t: t.drop(columns="program")), r"genes\.csv: no column program"),
    Case(
        "crunch", learn, text(SIGNATURES, "program;sig_gene\na;b\n"), r"genes\.csv: no column program, sig_gene; it has"
    ),
]


def feature(name, content, encoding="utf-8"):
    """A file in `resources/features/`."""
    return both(made_folder("resources/features"), text(f"resources/features/{name}", content, encoding))


def feature_cells(change):
    """An `.h5ad` of features, which is broken."""
    small = ad.AnnData(np.eye(3, dtype=np.float32), pd.DataFrame(index=list("abc")), pd.DataFrame(index=list("def")))
    name = "resources/features/a.h5ad"
    return both(made_folder("resources/features"), lambda folder: small.write_h5ad(folder / name), change(name))


def screen(name, content):
    """A file in `resources/screens/`."""
    return both(made_folder("resources/screens"), text(f"resources/screens/{name}", content))


RAW_STRING = "protein1,protein2,score\nA,B,700\nA,C,800\nB,C,900\n"
TABLES = [
    Case("crunch", learn, text("resources/features", ""), "resources/features: not a folder; put the feature tables"),
    Case("crunch", learn, text("resources/screens", ""), "resources/screens: not a folder; put the screens into"),
    Case("crunch", learn, feature("a.xlsx", ""), r"a\.xlsx: not a feature table; use \.gmt"),
    Case("crunch", learn, made_folder("resources/features/a.csv"), r"a\.csv: not a file; only feature tables"),
    Case(
        "crunch", learn, both(feature("a.csv", ""), pipe("resources/features/a.csv")), r"a\.csv: not a file; only feat"
    ),
    Case("crunch", learn, feature("a.csv", "gene,x\nA,1\n", "utf-16"), r"a\.csv: cannot be read as csv: .*utf-8"),
    Case("crunch", learn, feature("a.gmt", "ä\tb\tc\n", "latin-1"), r"a\.gmt: cannot be read as gmt: .*utf-8"),
    Case(
        "crunch",
        learn,
        feature("a.gmt.gz", gzip.compress(b"a\tb\tc\n" * 99)[:-9]),
        r"a\.gmt\.gz: cannot be read as gmt",
    ),
    Case(
        "crunch", learn, feature("a.csv.gz", gzip.compress(b"gene,x\n" * 99)[:-9]), r"a\.csv\.gz: cannot be read as csv"
    ),
    Case("crunch", learn, feature("a.csv.gz", b"gene,x\n"), r"a\.csv\.gz: cannot be read as csv: Not a gzipped file"),
    Case(
        "crunch", learn, feature("a.csv", "A1,0.1,0.2\nB2,0.3,0.4\n"), r"a\.csv: the first line, A1, 0\.1, 0\.2, is no"
    ),
    Case(
        "crunch",
        learn,
        feature("a.csv", RAW_STRING),
        r"a\.csv: looks like a graph; call its columns protein1, protein2",
    ),
    Case(
        "crunch",
        learn,
        feature("a.csv", "A1,0.0,0.0,1\nB2,0,0,1\n"),
        r"a\.csv: the first line, A1, 0\.0, 0\.0\.1, \.\.\.",
    ),
    Case(
        "crunch", learn, feature("a.csv", "A1,A2,2\nA2,A3,3\nA3,A4,4\n"), r"a\.csv: looks like a graph; call its colu"
    ),
    Case("crunch", learn, feature("a.csv", RAW_STRING.replace(",", " ")), r"only one column, .* separated by spaces"),
    Case("crunch", learn, feature("links.txt.gz", b""), r"links\.txt\.gz: not a feature table; use \.gmt"),
    Case(
        "crunch", learn, screen("a.csv", "A1,0.1,0.2\nB2,0.3,0.4\n"), r"a\.csv: the first line, A1, 0\.1, 0\.2, is no"
    ),
    Case("crunch", learn, made_folder("resources/screens/a.csv"), r"screens/a\.csv: not a file"),
    Case("crunch", learn, feature("A.TSV", "gene,x\nA1,1\n"), r"A\.TSV: .* separated by commas: rename it to \.csv"),
    Case("crunch", learn, feature("A.GMT.GZ", gzip.compress(b"a")), r"A\.GMT\.GZ: no gene set"),
    Case("crunch", learn, feature("a.h5ad", "cells"), r"a\.h5ad: cannot be read as h5ad"),
    Case(
        "crunch",
        learn,
        both(
            made_folder("resources/screens"), copied(TRAIN, "resources/screens/a.h5ad"), cut("resources/screens/a.h5ad")
        ),
        r"screens/a\.h5ad: cannot be read as h5ad",
    ),
    Case(
        "crunch",
        learn,
        both(
            made_folder("resources/screens"),
            copied(TRAIN, "resources/screens/a.h5ad"),
            elsewhere("resources/screens/a.h5ad"),
        ),
        r"screens/a\.h5ad: X lie elsewhere",
    ),
    Case("crunch", learn, feature_cells(elsewhere), r"features/a\.h5ad: X lie elsewhere"),
    Case("crunch", learn, feature_cells(cut), r"features/a\.h5ad: cannot be read as h5ad"),
]

FIELD = "workbench.predict data --targets A --resources resources --out resources/features/a.h5ad"
MODELS = [
    Case("crunch", predict, cut(MODEL), r"model\.h5: damaged, no saved model.*train again"),
    Case("crunch", predict, text(MODEL, ""), r"model\.h5: damaged, no saved model.*train again"),
    Case("crunch", predict, flipped(MODEL, 100), r"model\.h5: damaged, no saved model.*train again"),
    Case("crunch", predict, flipped(MODEL, -40), r"model\.h5: damaged, no saved model.*train again"),
    Case("crunch", predict, copied(TRAIN, MODEL), r"model\.h5: damaged, no saved model.*train again"),
    Case("crunch", predict, in_its_place(MODEL), r"model\.h5: no such file; .*train again"),
    Case("crunch", predict, pipe(MODEL), r"model\.h5: no such file; .*train again"),
    Case("crunch", predict, model(lambda f: f.attrs.update({"format": 99})), r"model\.h5: made by another version"),
    Case(
        "crunch",
        predict,
        model(lambda f: f.attrs.update({"format": [3] * 9})),
        r"model\.h5: damaged \(format is neither",
    ),
    Case("crunch", predict, model(lambda f: f.__delitem__("cells")), r"model\.h5: damaged \(.*cells.*train again"),
    Case(
        "crunch",
        predict,
        model(lambda f: f["cells"].attrs.update({"class": "Z"})),
        "holds the estimator Z, which is not",
    ),
    Case(
        "crunch", predict, model(lambda f: f["cells"].attrs.update({"class": 5})), "holds the estimator 5, which is not"
    ),
    Case(
        "crunch",
        predict,
        model(lambda f: f["expression/rank"].attrs.update({"value": np.zeros(9)})),
        r"model\.h5: damaged \(value is neither a number nor a text\)",
    ),
    Case("crunch", predict, model(lambda f: f.move("expression/rank", "expression/fit")), "fit would hide what Resp"),
    Case("crunch", predict, model(lambda f: f["expression/rank"].attrs.pop("kind")), r"damaged \(.*kind"),
    Case(
        "crunch",
        predict,
        model(lambda f: (f.__delitem__("genes"), f.create_dataset("genes", (10**6, 5 * 10**5), "f8", compression=1))),
        r"model\.h5: damaged \(/genes claims 4000\.0 GB of float64, which it cannot hold\)",
    ),
    Case("crunch", predict, model_array("genes", ["A", "B"]), r"damaged \(/genes claims .* of object"),
    Case(
        "crunch", predict, model_array("genes", np.frombuffer(b"[1, 2]", "u1"), texts=(2,)), "something else than texts"
    ),
    Case(
        "crunch",
        predict,
        model_array("genes", np.frombuffer(b'["a"', "u1"), texts=(1,)),
        r"model\.h5: damaged \(.*train",
    ),
    Case(
        "crunch", predict, model_array("genes", np.frombuffer(b'["a"]', "u1"), texts=(10**12,)), r"model\.h5: damaged"
    ),
    Case("crunch", predict, model_array(MODEL_TABLE, np.zeros(3)), r"model\.h5: damaged \(.*train again"),
    Case("crunch", predict, model_array("files", np.zeros(3)), r"model\.h5: damaged \(.*train again"),
    Case(
        "crunch",
        predict,
        model_array(MODEL_TABLE, np.full(240, np.nan)),
        r"ResponseModel\.predict: missing or infinite",
    ),
    Case(
        "crunch", predict, model_array(MODEL_TABLE, np.full(240, 99.0)), r"ScaledCells\.values: values up to .*16\.6 at"
    ),
    Case(
        "crunch",
        predict,
        model_array("cells/base_/values", np.full((100, 240), np.nan)),
        "ScaledCells.*infinite values",
    ),
    Case(
        "crunch", predict, model_array("proportions/mean_/values", np.full(4, np.inf)), r"Proportions\.predict: missing"
    ),
    Case(
        "crunch", predict, model(lambda f: f.update(a=1) or f.__setitem__("b", h5py.SoftLink("/genes"))), "b lie elsewh"
    ),
    Case(
        "crunch",
        predict,
        model(lambda f: f.__setitem__("b", h5py.ExternalLink("x.h5", "b"))),
        r"model\.h5: b lie elsewhere",
    ),
    Case(
        "crunch", predict, cells(TRAIN, lambda a: setattr(a, "X", a.X * 0.9)), r"model\.h5: trained on other cells than"
    ),
    Case("crunch", predict, cells(TRAIN, lambda a: a[:-1].copy()), r"model\.h5: trained on other cells than those of"),
    Case(
        "crunch", predict, cells(TRAIN, lambda a: a[:, ::-1].copy()), r"model\.h5: trained on other cells than those of"
    ),
    Case(
        "crunch", predict, with_obs("gene", lambda s: s.to_numpy()[::-1]), r"trained on other cells than those of data"
    ),
    Case("crunch", predict, cut(TRAIN), r"obesity_challenge_1\.h5ad: not a readable HDF5 file"),
    Case("crunch", predict_no_genes, NOTHING, "genes_to_predict is empty"),
    Case(
        "crunch", predict_other_genes, NOTHING, "genes_to_predict: only 0 of 2 genes were measured.*: ENSG.* but there"
    ),
    Case("crunch", predict_no_cells, NOTHING, "cells_per_perturbation is 0: it must be a whole number of at least 1"),
    Case("crunch", predict_fewer_than_no_cells, NOTHING, "cells_per_perturbation is -1: it must be"),
    Case("crunch", predict_half_a_cell, NOTHING, r"cells_per_perturbation is 2\.5: it must be"),
    Case("crunch", predict_onto_the_cells, NOTHING, r"obesity_challenge_1\.h5ad: an input, which would be overwritten"),
    Case("crunch", predict_onto_the_model, NOTHING, r"model\.h5: an input, which would be overwritten"),
    Case("crunch", predict_onto_the_shares, NOTHING, r"program_proportion\.csv: an input, which would be overwritten"),
    Case("crunch", predict_onto_a_table, screen("a.csv", ""), r"a\.csv: an input, which would be overwritten"),
    Case("crunch", predict_nobody, NOTHING, "predict_perturbations holds nan, ' ', which is no name; take it out"),
    Case("crunch", predict_no_name, NOTHING, "genes_to_predict holds None, which is no name; take it out"),
    Case(
        "crunch", predict, both(made_folder("out"), lambda folder: os.mkfifo("out/shares.csv")), "is a device or pipe"
    ),
    Case("crunch", predict_both_into_one, NOTHING, "the cells and the proportions cannot both be written there"),
    Case("crunch", FIELD, feature("a.csv", ""), r"features/a\.csv: an input of this command"),
    Case("crunch", FIELD.replace("features/a", "expected"), NOTHING, r"resources/expected\.csv: an input of this com"),
    Case("crunch", predict, text("out", ""), r"shares\.csv: could not be written"),
    Case("crunch", predict, made_folder("out/prediction.h5ad"), r"prediction\.h5ad is a folder; name a file"),
    Case("crunch", predict, made_folder("out/shares.csv"), r"shares\.csv is a folder; name a file"),
]

CASES = [
    *READING,
    *TEXTS,
    *TABLES,
    *MODELS,
    *SCORES,
    *COMPARING,
    *VALIDATING,
    *MAKING,
    *CROSSING,
    *DRUGS,
    *MODALITIES,
    *GENERATED,
]
GOOD = {
    "crunch": [
        score,
        score_calibrated,
        split,
        learn,
        predict,
        truth_of_the_challenge,
        export,
        bundle_of_the_project,
        ADOPT,
        COMPARE,
        CROSS,
        VALIDATE,
        SIMULATE,
    ],
    "drug": [PREPARE, PREDICT, TRAINING, load_drug_model],
    "modality": [CHECK, APPLY],
    "synthesis": [READ, LEARN, SAMPLE, load_generator],
}


# ---------------------------------------------------------------------------------------------------------------------
# What is asserted of each
# ---------------------------------------------------------------------------------------------------------------------


def command(line):
    """Run a command line in this process, as `python -m` would."""
    module, *words = shlex.split(line)
    name = f"{module}.__main__" if module.startswith("challenges.") else module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        return importlib.import_module(name).main()


def called(call):
    return command(call) if isinstance(call, str) else call()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(request, tmp_path, monkeypatch):
    """Go into a copy of a world."""

    def go(world):
        folder = Path(shutil.copytree(request.getfixturevalue(world), tmp_path / "world"))
        monkeypatch.chdir(folder)
        return folder

    return go


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_ends_in_one_line_that_names_it(case, here, capsys):
    folder = here(case.world)
    case.harm(folder)
    before = contents(folder)
    with pytest.raises((DataError, OSError, SystemExit)) as raised:
        called(case.call)
    message = str(raised.value)
    if case.status != 1:  # argparse has said it
        assert raised.value.code == case.status
        message = capsys.readouterr().err.rstrip().splitlines()[-1]
    elif isinstance(raised.value, SystemExit):
        assert message.startswith("error: ")
    else:
        assert not isinstance(case.call, str)
    assert "\n" not in message
    assert re.search(case.says, message), message
    assert contents(folder) == before, "what was there is there still, and nothing else"


def test_a_good_run_is_untouched_by_the_checks(here, monkeypatch):
    """Every file of `train` and `infer` has the same bytes where nothing is checked."""
    folder = here("crunch")
    made = []
    for out in ("checked", "unchecked"):
        train("data", out)
        predict(out, (f"{out}/prediction.h5ad", f"{out}/shares.csv"))
        made.append(contents(folder / out))
        for name in ("check_shares", "check_unique", "_check_possible", "_check_finite"):
            monkeypatch.setattr(helpers, name, lambda *_: None)
        for name in ("_check_columns", "_check_indptr"):
            monkeypatch.setattr(helpers._Matrix, name, lambda *_: None)
        monkeypatch.setattr(helpers, "_check_values", lambda values, where: values.min(initial=np.inf))
        monkeypatch.setattr(helpers, "open_hdf5", h5py.File)
        monkeypatch.setattr(helpers, "is_sealed", lambda path: True)
    assert set(made[0]) == {MODEL_FILE, EXPECTED_FILE, "prediction.h5ad", "shares.csv"}
    assert made[0] == made[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("world", "call"), [(world, call) for world, calls in GOOD.items() for call in calls], ids=str)
def test_every_call_is_fine_without_harm(world, call, here):
    """So that what a case says comes of its harm."""
    here(world)
    called(call)
