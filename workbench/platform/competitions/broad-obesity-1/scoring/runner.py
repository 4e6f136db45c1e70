# ruff: noqa: INP001 - no package: the client executes this file by its path
"""The runner our own hub has for both crunches: it calls the submission's `train` and `infer` as the platform does.

In: the client's context (local or cloud) and the three folders.
Out: `prediction.h5ad` and `predict_program_proportion.csv` in the prediction folder, one error line for each broken
rule, and, where the client asks for it, whether `infer` gives the same twice.
The client executes this file by its path, in the folder of the crunch, which says which one it is; the environment does
not, so that a submission must choose its crunch itself. Written from the contract; the platform's runner is another
program.
"""

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
from crunch.runner.unstructured import RunnerContext, RunnerExecutorContext, UserModule
from crunch.utils import smart_call

ROOT = Path(__file__).resolve().parents[5]


@contextmanager
def _imported(name: str, path: Path) -> Iterator[ModuleType]:
    """A module of the project by its path; importable under `name` inside, and forgotten afterwards.

    Were the project on sys.path, or its modules left in sys.modules, a submission could import what the cloud has not.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module, of_the_submission = importlib.util.module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]
        if of_the_submission is not None:
            sys.modules[name] = of_the_submission


with _imported("contract", ROOT / "contract.py") as contract:
    name = Path(__file__).parents[1].name
    CRUNCH = next(crunch for crunch in contract.CRUNCHES.values() if crunch.name == name)
    vars(contract)["CRUNCH"] = CRUNCH
    with _imported("workbench_validate", ROOT / "workbench" / "validate.py") as validate:
        pass

# What the cloud scores is hidden. These optional files in data/ stand for it, one name per line; without them, all is.
SCORED_PERTURBATIONS, SCORED_GENES = "perturbations_to_score.txt", "genes_to_score.txt"


def run(
    context: RunnerContext, data_directory_path: str, model_directory_path: str, prediction_directory_path: str
) -> None:
    """One run: train when asked for, then infer into an empty prediction folder, then look at what was written.

    With the determinism check `infer` runs twice, and what it wrote is compared. An exception of the submission passes
    through; a broken rule or another second prediction is logged as an error and does not stop the run.
    """
    data, prediction = Path(data_directory_path), Path(prediction_directory_path)
    if context.force_first_train:
        context.execute(command="train")
    else:
        context.log(f"no training asked for: infer uses {model_directory_path} as it is")

    _empty(prediction)
    context.execute(command="infer")
    if context.is_determinism_check_enabled:
        _infer_again(context, prediction)

    perturbations = validate.requested_perturbations(data, local=context.is_local)
    problems = validate.validate_prediction_folder(
        prediction, perturbations, validate.requested_genes(data), proportions=validate.has_states(data)
    )
    for problem in problems:
        context.log(problem, error=True)
    if problems:
        context.log(f"{len(problems)} problem(s): the platform would refuse this prediction", error=True)
    if not context.is_local and (prediction / CRUNCH.prediction_file).is_file():
        _keep_scored(prediction / CRUNCH.prediction_file, data)


def _infer_again(context: RunnerContext, prediction: Path) -> None:
    """Run `infer` a second time and report whether both files hold the same; the second prediction stays."""
    first = _fingerprints(prediction)
    _empty(prediction)
    context.execute(command="infer")
    second = _fingerprints(prediction)
    for name in [name for name in first if second[name] != first[name]]:
        context.log(f"{name}: the second run of infer gave other values than the first", error=True)
    context.report_determinism(first == second)


def _fingerprints(prediction: Path) -> dict[str, str]:
    """A hash of what each expected file holds; empty where there is none, which the check of the files reports."""
    cells, shares = prediction / CRUNCH.prediction_file, prediction / CRUNCH.predicted_proportions_file
    digest = hashlib.sha256()
    if cells.is_file():  # its values, not its bytes: HDF5 may keep the time of writing
        adata = anndata.read_h5ad(cells)
        for names in (adata.obs[CRUNCH.perturbation], adata.var_names):
            digest.update("\n".join(map(str, names)).encode())
        values = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        digest.update(np.ascontiguousarray(values).data)
    found = hashlib.sha256(shares.read_bytes()).hexdigest() if shares.is_file() else ""
    return {cells.name: digest.hexdigest() if cells.is_file() else "", shares.name: found}


def execute(
    context: RunnerExecutorContext,
    module: UserModule,
    data_directory_path: str,
    model_directory_path: str,
    prediction_directory_path: str,
) -> dict[str, Callable[[], None]]:
    """The two commands. Arguments go to the submission by name; a parameter with a default is never passed."""
    folders = {"data_directory_path": data_directory_path, "model_directory_path": model_directory_path}

    def train() -> None:
        smart_call(module.get_function("train"), folders)

    def infer() -> None:
        data, prediction = Path(data_directory_path), Path(prediction_directory_path)
        genes = validate.requested_genes(data)
        asked = {
            "prediction_directory_path": prediction_directory_path,
            "prediction_h5ad_file_path": str(prediction / CRUNCH.prediction_file),
            "program_proportion_csv_file_path": str(prediction / CRUNCH.predicted_proportions_file),
            "predict_perturbations": validate.requested_perturbations(data, local=context.is_local),
            "genes_to_predict": genes,
            CRUNCH.genes_argument: genes,  # crunch 2 gives them under both names
        }
        smart_call(module.get_function("infer"), folders, asked)

    return {"train": train, "infer": infer}


def load_data(data_directory_path: str, logger: Logger) -> tuple[None, None, None]:
    """For `crunch_tools.load_data()`: names the files, loads none of them (the large one takes 18 GB)."""
    for path in sorted(Path(data_directory_path).iterdir()):
        logger.info("%s: %d bytes", path.name, path.stat().st_size)
    return None, None, None


def _empty(prediction: Path) -> None:
    """Remove all but `.gitkeep`, by which git keeps the empty folder."""
    for path in prediction.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != validate.KEPT:
            path.unlink()


def _keep_scored(path: Path, data: Path) -> None:
    """Read the whole prediction, keep the scored perturbations and genes, write it again, as the cloud does."""
    prediction = anndata.read_h5ad(path)
    cells = _is_listed(prediction.obs["gene"], data / SCORED_PERTURBATIONS)
    genes = _is_listed(prediction.var_names, data / SCORED_GENES)
    prediction[cells, genes].copy().write_h5ad(path)


def _is_listed(names: pd.Series | pd.Index, path: Path) -> np.ndarray:
    """One bool per name: whether the file lists it; all True where there is no such file."""
    if not path.is_file():
        return np.ones(len(names), dtype=bool)
    return np.asarray(names.isin(path.read_text(encoding="utf-8").split()))
