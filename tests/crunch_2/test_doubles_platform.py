"""`train` and `infer`, the notebook and the exported submission of crunch 2: with the real client and in the cloud."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
from crunch_convert.notebook import extract_from_cells

import helpers
import method
from contract import CHOICE, CRUNCH, OBESITY_1, TRAVELLING
from helpers import DataError
from workbench import bundle, notebooks
from workbench.adopt import adopt
from workbench.hub import PLATFORM, TOKEN, environment, serve
from workbench.sources.record import write_description
from workbench.submission import export
from workbench.validate import validate_method_description, validate_prediction_folder, validate_submission

ROOT = Path(method.__file__).parent
CLIENT = Path(sys.executable).with_name("crunch")
ELSEWHERE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", CHOICE)}


def predict(data, resources, folder, targets, genes):
    folder.mkdir(exist_ok=True)
    files = folder / CRUNCH.prediction_file, folder / CRUNCH.predicted_proportions_file
    method.infer(str(data), str(folder), *map(str, files), str(resources), list(targets), list(genes))
    return files


def test_a_trained_model_needs_nothing_else_and_the_files_are_valid(trained, challenge, tmp_path):
    files = predict("nowhere", trained, tmp_path / "p", challenge.targets, challenge.genes_to_predict)
    assert validate_submission(*files, challenge.targets, challenge.genes_to_predict) == []
    table = pd.read_csv(files[1])
    assert list(table) == ["gene", "pre_adipo", "adipo", "lipo", "other", "lipo_adipo"]
    np.testing.assert_allclose(table["lipo_adipo"], table["lipo"] / table["adipo"], atol=1e-9)
    expected = pd.read_csv(trained / "expected.csv")
    assert expected["gene"].tolist() == list(challenge.targets)


def test_both_controls_are_controls(challenge, stats, trained, tmp_path):
    fitted = method.Predictor.load(trained / "model.h5").expression
    both = stats.sums.loc[["NC", "NC+NC"]].sum() / stats.n_cells[["NC", "NC+NC"]].sum()
    np.testing.assert_allclose(fitted.control_, both, atol=1e-9)
    pool = challenge.obs["gene"].iloc[helpers.pool_rows(challenge.obs, seed=0)].value_counts()
    assert pool[["NC", "NC+NC"]].to_dict() == stats.n_cells[["NC", "NC+NC"]].to_dict(), "before any perturbed cell"
    with pytest.warns(UserWarning, match=r"NC\+NC is the control"):
        predict("", trained, tmp_path, ["NC+NC", challenge.targets[0]], challenge.genes_to_predict)


def test_controls_alone_are_nothing_to_learn_from(made, tmp_path):
    data = Path(shutil.copytree(made / "data", tmp_path / "data"))
    train = ad.read_h5ad(data / CRUNCH.train_file)
    train[train.obs["gene"].isin(["NC", "NC+NC"])].copy().write_h5ad(data / CRUNCH.train_file)
    with pytest.raises(DataError, match="control cells alone: there is no perturbation to learn from"):
        method.train(data, tmp_path / "r")


def test_the_control_is_no_target(made, tmp_path):
    data = Path(shutil.copytree(made / "data", tmp_path / "data"))
    with (data / CRUNCH.targets_file).open("a") as file:
        file.write("\nNC+NC")
    with pytest.raises(DataError, match=r"predict_perturbations_2\.txt: NC\+NC is the control"):
        method.train(data, tmp_path / "r")


def test_a_screen_is_adopted_in_the_layout_of_crunch_1(challenge, tmp_path):
    with pytest.raises(DataError, match="CRUNCH is set: a screen is adopted in the layout of crunch 1"):
        adopt([challenge.train_path], tmp_path / "out", perturbation="gene", control="NC")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def notebook():
    return notebooks.read(ROOT / "notebook.ipynb")


def test_the_notebook_chooses_its_crunch_before_anything_of_the_project(notebook):
    converted = extract_from_cells(notebook.cells, print=None)
    assert converted.warnings == []
    first = [line for line in converted.source_code.splitlines() if line and not line.startswith("#")][:2]
    assert first == ["import os", 'os.environ["CRUNCH"] = "2"']
    assert converted.source_code.index("CRUNCH") < converted.source_code.index("import helpers")
    assert OBESITY_1.genes_argument not in converted.source_code.split("def infer")[1].split("# @crunch")[0]
    (page,) = converted.embedded_files
    assert page.content == (ROOT / "Method description 2.md").read_text().strip()
    assert page.path == "Method description.md"


def test_every_text_that_differs_is_still_in_the_notebook(notebook):
    before = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebook.ipynb", as_version=4).cells}
    for name, pairs in notebooks.CHANGES.items():
        assert [old for old, _ in pairs if old not in before[name]] == []
    text = "".join(cell.source for cell in notebook.cells)
    for word in (OBESITY_1.name, OBESITY_1.title, "2,863", "122 ", "five local"):
        assert word not in text


def test_a_notebook_without_its_functions_is_refused():
    broken = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    broken.cells = [cell for cell in broken.cells if cell.id != "cell-11"]
    with pytest.raises(DataError, match=r"for Broad obesity, crunch 2 it needs its cells .* \(cell-11\)"):
        notebooks.adapted(broken)


def test_the_method_description_of_crunch_2_keeps_the_rules_and_is_credited_alone(tmp_path):
    page = tmp_path / "Method description.md"
    shutil.copy(ROOT / "Method description 2.md", page)
    assert validate_method_description(page) == []
    for name in ("Method description 2.md", "Method description.md", "notebook.ipynb"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "resources" / "features").mkdir(parents=True)
    (tmp_path / "resources" / "features" / "mine.csv").write_text("gene,x\nA,1\n")
    assert write_description(tmp_path, tmp_path / "resources") == [tmp_path / "Method description 2.md"]
    assert "mine.csv" in (tmp_path / "Method description 2.md").read_text()
    assert (tmp_path / "notebook.ipynb").read_bytes() == (ROOT / "notebook.ipynb").read_bytes()


def test_the_bundle_carries_crunch_2():
    carried = bundle.bundle()
    converted = extract_from_cells(carried.cells, print=None)
    assert converted.warnings == []
    assert 'os.environ["CRUNCH"] = "2"' in converted.source_code
    assert {file.path for file in converted.embedded_files} == {*TRAVELLING, "Method description.md"}


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """The exported submission after `crunch setup`, `push --dry` and `test`, where nothing else names the crunch."""
    project = tmp_path_factory.mktemp("project")
    for name in ("notebook.ipynb", "Method description 2.md", *TRAVELLING):
        shutil.copy(ROOT / name, project)
    (project / CRUNCH.folder).mkdir()
    (project / CRUNCH.folder / "data").symlink_to(made / "data")
    out = project / CRUNCH.folder / "build" / "submission"
    export(out, root=project)
    setup = ["setup", "--token", TOKEN, "--force", "--submission", "scratch", "--no-data", CRUNCH.name, "NAME", "."]
    said = []
    with serve(folder=out) as hub:
        for step in (setup, ["push", "--dry", "-m", ""], ["test"]):
            known = ELSEWHERE | environment(hub)
            done = subprocess.run([CLIENT, *step], cwd=out, env=known, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout + done.stderr)
    return out, said


def test_the_real_client_trains_predicts_twice_and_finds_nothing_to_refuse(exported, challenge):
    out, (_, pushed, tested) = exported
    assert "Method description.md" in pushed
    for line in ("command=train", "command=infer", "determinism check: passed"):
        assert line in tested
    assert "the platform would refuse" not in tested
    assert validate_prediction_folder(out / "prediction", challenge.local_targets, challenge.genes_to_predict) == []


def test_a_fresh_process_in_the_cloud_predicts_all_doubles_from_the_model_alone(exported, challenge, tmp_path):
    folder = Path(shutil.copytree(exported[0], tmp_path / "cloud", symlinks=True))
    (folder / "data").unlink()
    shutil.rmtree(folder / "prediction")
    for name in ("data", "prediction"):
        (folder / name).mkdir()
    for name in (CRUNCH.targets_file, CRUNCH.genes_file, CRUNCH.proportions_file):
        shutil.copy(challenge.folder / name, folder / "data")
    command = [sys.executable, ROOT / "tests" / "cloud.py", PLATFORM, CRUNCH.name]
    ran = subprocess.run(command, cwd=folder, env=ELSEWHERE, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert validate_prediction_folder(folder / "prediction", challenge.targets, challenge.genes_to_predict) == []


def test_the_whole_job_with_one_command(made, tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "workbench.demo", "--folder", folder, "--data", made / "data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The submission is valid." in done.stdout
    page = (folder / "build" / "report.html").read_text()
    for words in ("crunch 2: report", "delta-mean (starter)", "effects added up"):
        assert words in page
    with h5py.File(folder / "prediction" / CRUNCH.prediction_file) as file:
        assert file["obs"].attrs["_index"]
