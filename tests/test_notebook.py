"""The notebook, as a participant, the converter and an empty machine meet it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import REAL_DATA
from crunch_convert.notebook import extract_from_file

import helpers
import method
from contract import OBESITY_1 as CRUNCH
from contract import TRAVELLING
from method import MODEL_FILE
from workbench import demo
from workbench.hub import environment, serve, write_project
from workbench.imports import imported, third_party
from workbench.submission import export
from workbench.validate import validate_method_description, validate_prediction_folder

ROOT = Path(helpers.__file__).parent
CLIENT = Path(sys.executable).with_name("crunch")


@pytest.fixture(scope="module")
def converted():
    return extract_from_file(ROOT / "notebook.ipynb")


def top_level(source):
    return [
        node
        for node in ast.parse(source).body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]


def test_notebook_converts_with_no_warning_and_keeps_only_what_it_should(converted):
    assert converted.warnings == []
    nodes = top_level(converted.source_code)
    kept = [node.targets[0].id for node in nodes if isinstance(node, ast.Assign)]
    assert kept == ["METHOD", "SEED"]
    functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    assert functions == ["train", "infer"]
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert len(nodes) == len(kept) + len(functions) + len(imports)
    assert "helpers" in imports
    assert not imports & {"workbench", "crunch"}


def test_train_and_infer_hand_on_method_and_seed(converted, monkeypatch, tmp_path):
    """`main.py` with another METHOD and SEED, as one edits the cell: both reach both functions."""
    given = []
    monkeypatch.setattr(method, "train", lambda *paths, **named: given.append(named))
    monkeypatch.setattr(method, "infer", lambda *paths, **named: given.append(named))
    source = converted.source_code.replace("method.Predictor.default()", "'mine'").replace("SEED = 0", "SEED = 7")
    main = {}
    exec(compile(source, "main.py", "exec"), main)  # noqa: S102
    main["train"]("data", "resources")
    main["infer"]("data", "prediction", "a.h5ad", "b.csv", "resources", ["A"], ["B"])
    assert given == [{"seed": 7, "predictor": "mine"}] * 2


def test_requirements_of_the_conversion_are_those_of_the_modules(converted):
    """The platform installs what the notebook imports, so it must import what the modules need."""
    needed = third_party(set().union(*(imported((ROOT / name).read_text()) for name in TRAVELLING)))
    assert {requirement.alias for requirement in converted.requirements} == needed


def test_method_description_is_the_embedded_cell_and_valid(converted):
    (file,) = converted.embedded_files
    assert file.path == "Method description.md"
    assert file.content == (ROOT / "Method description.md").read_text().strip()
    assert validate_method_description(ROOT / "Method description.md") == []


def test_notebook_is_stored_without_outputs_and_token():
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert any('TOKEN = ""' in cell.source for cell in code)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """`make demo`'s own command in an empty folder, with small demo data: the folder, and what the screen said."""
    folder = tmp_path_factory.mktemp("demo")
    demo.simulate(folder / "data", cells=2000, genes=300, perturbations=15, seed=3)
    command = [sys.executable, "-m", "workbench.demo", "--folder", folder, "--picture", folder / "scores.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def executed(demonstrated):
    """The folder, the report and the executed notebook."""
    folder, _ = demonstrated
    report = folder / "build" / "report.html"
    return folder, report, nbformat.read(folder / "build" / "notebook.ipynb", as_version=4)


def test_executed_notebook_leaves_a_valid_submission_and_a_report(executed):
    folder, report, _ = executed
    challenge = helpers.load_challenge(folder / "data")
    targets = challenge.local_proportions.index
    assert validate_prediction_folder(folder / "prediction", targets, challenge.genes_to_predict) == []
    assert (folder / "resources" / MODEL_FILE).exists()
    pictures = {"cell-08", "cell-18", "cell-20", "cell-22", "cell-24", "umap", "effects", "genes", "judged"}
    assert {path.stem for path in (folder / "build" / "pictures").iterdir()} == pictures
    assert (folder / "scores.png").read_bytes() == (folder / "build" / "pictures" / "cell-18.png").read_bytes()
    html = report.read_text()
    assert html.count('src="data:image/png;base64') == len(pictures)
    for row in ("control", "perturbed mean", "PCA-ridge (starter)", "your prediction", "real cells (other half)"):
        assert row in html
    assert "demo data" in html
    assert html.index("What to do next") < html.index("1. Set up")
    assert "running local test" not in html
    assert re.findall(r"<script|<img[^>]*https?:|<link", html) == []


def test_the_screen_says_what_is_done_and_what_came_out(demonstrated):
    _, done = demonstrated
    said = done.stdout
    assert said.startswith("The whole job takes about")
    assert "holds demo data" in said
    for metric in CRUNCH.metrics.values():
        (line,) = [line for line in said.split("\n") if line.startswith(metric.title)]
        assert re.search(rf"\d  \({metric.direction}; control -?\d.*, starter -?\d", line)
    paths = re.findall(r"\S+(?:report\.html|\.h5ad|\.csv)", said.split("The submission is valid.")[1])
    assert [Path(path).name for path in paths] == [
        "report.html",
        CRUNCH.prediction_file,
        CRUNCH.predicted_proportions_file,
    ]
    assert "2. The data" in done.stderr
    assert "5. What came out: All cells in one plane" in done.stderr
    for word in ("TCP", "WARNING", "Traceback"):
        assert word not in done.stderr


def test_the_real_client_ran_and_said_so(executed):
    said = "".join(
        output.get("text", "") for cell in executed[2].cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "running local test" in said
    assert "executing - command=train" in said
    assert said.count("executing - command=infer") == 2
    assert "determinism check: passed" in said
    assert "save prediction - path=prediction" in said
    assert "forbidden library" not in said


def crunch(arguments, folder, hub):
    return subprocess.run(
        [CLIENT, *arguments],
        cwd=folder,
        env={**os.environ, **environment(hub)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_real_cells_under_the_real_client(real_folder, tmp_path):
    """`crunch test`, scoring and the table on real THP-1 cells."""
    export(tmp_path)
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to(real_folder)
    with serve(folder=tmp_path) as hub:
        write_project(tmp_path)
        tested = crunch(["test"], tmp_path, hub)
    assert tested.returncode == 0, tested.stderr
    challenge = helpers.load_challenge(real_folder)
    targets = challenge.local_proportions.index
    assert validate_prediction_folder(tmp_path / "prediction", targets, challenge.genes_to_predict) == []
    assert ad.read_h5ad(tmp_path / "prediction" / CRUNCH.prediction_file).n_obs == 500
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "workbench.compare",
            real_folder,
            tmp_path / "prediction",
            "--sigma",
            "calibrated",
            "--out",
            tmp_path / "table.csv",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "your prediction" in done.stdout
    table = pd.read_csv(tmp_path / "table.csv").groupby(["method", "metric"])["value"].mean()
    assert table["PCA-ridge (starter)", "mmd"] > 1 > 5 * table["your prediction", "mmd"]
    assert np.isfinite(table).all()
    assert REAL_DATA.exists()
