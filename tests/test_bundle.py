"""The one-file notebook on an empty machine, and what it says when something is amiss there."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from crunch_convert.notebook import extract_from_cells
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.filters import markdown2html
from test_submission import CLIENT, OWN_CLASSES, OWN_METHOD, PUSHED, check_cells, crunch, found, write_project_with

from contract import TRAVELLING
from method import MODEL_FILE
from workbench import bundle, session
from workbench.hub import TOKEN, environment, serve, write_project
from workbench.sources import record
from workbench.validate import validate_prediction_folder

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture(scope="module")
def carried():
    return bundle.bundle()


def cell_of(notebook, name):
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return cell


@pytest.fixture(scope="module")
def converted(tmp_path_factory, demo_folder, carried):
    """The notebook alone in a folder, as uploaded to the platform; converted and run by the real client."""
    folder = tmp_path_factory.mktemp("bundle")
    nbformat.write(carried, folder / "notebook.ipynb")
    with serve(folder=folder) as hub:
        write_project(folder)
        done = crunch(folder, hub, "convert", "notebook.ipynb", "main.py", "--embedded-files", "--requirements")
        assert done.returncode == 0, done.stdout
        assert "warning" not in done.stdout.lower()
        (folder / "data").symlink_to(demo_folder)
        tested = crunch(folder, hub, "test")
        pushed = crunch(folder, hub, "push", "--dry", "-m", "test")
    return folder, tested, pushed


def test_the_converter_writes_the_modules_and_main_runs_with_them(converted, challenge):
    folder, tested, _ = converted
    assert tested.returncode == 0, tested.stdout
    for name in TRAVELLING:
        assert (folder / name).read_text().strip() == (ROOT / name).read_text().strip()
    targets = challenge.local_proportions.index
    assert validate_prediction_folder(folder / "prediction", targets, challenge.genes_to_predict) == []


def test_push_lists_what_would_be_sent(converted):
    _, _, pushed = converted
    assert pushed.returncode == 0, pushed.stdout
    converters_own = {"requirements.txt", "requirements.original.txt"}
    assert found(pushed, "code") - converters_own == {*PUSHED, "notebook.ipynb"} - converters_own
    assert found(pushed, "model") == {MODEL_FILE, "expected.csv"}


def test_what_is_carried_is_folded_in_colab_kaggle_and_jupyter(carried):
    cell = cell_of(carried, "unpack")
    assert cell.source.startswith("# @title ")
    assert cell.metadata["cellView"] == "form"
    assert cell.metadata["_kg_hide-input"] is True
    assert cell.metadata["jupyter"] == {"source_hidden": True}
    for name in TRAVELLING:
        html = markdown2html(cell_of(carried, name.removesuffix(".py")).source)
        assert html.count("<pre") == 1, "one block of code"
        assert not re.search("<(h[1-6]|li|em|strong|blockquote)", html), "no Python is read as Markdown"
        assert html.index(f"file: {name}") < html.index("<details><summary>") < html.index("<pre")
        assert "</details>" not in html.split("<pre")[0], "the code is what is folded"


def test_a_module_that_would_end_its_block_of_code_is_refused(monkeypatch, tmp_path):
    for name in TRAVELLING:
        (tmp_path / name).write_text("'''\n~~~\n'''\n")
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    monkeypatch.setattr(bundle, "_packed", lambda _: "")
    with pytest.raises(ValueError, match=r"contract\.py: a line begins with ~~~"):
        bundle.bundle(ROOT / "notebook.ipynb")


def test_it_is_reproducible(carried):
    assert nbformat.writes(bundle.bundle()) == nbformat.writes(carried)


def test_there_are_no_pictures_from_elsewhere(carried):
    assert not any(
        "](http" in line and line.lstrip().startswith("[![") for line in nbformat.writes(carried).split("\n")
    )
    assert "img.shields.io" not in nbformat.writes(carried)


def test_only_what_the_notebook_uses_is_asked_of_pip(carried):
    packages = {re.match(r"[\w.-]+", line).group() for line in bundle.needed_packages(carried)}
    assert packages >= {"anndata", "crunch-cli", "h5py", "matplotlib", "numpy", "pandas", "scikit-learn", "tqdm"}
    assert not packages & {"jupyter", "torch", "pytest", "ruff", "mypy", "distributed", "workbench", "helpers"}


def unpack(folder, cell):
    """Run the first cell as Colab does (its text is too long for a command line); what it prints."""
    command = [sys.executable, "-"]
    return subprocess.run(command, cwd=folder, input=cell.source, capture_output=True, text=True, check=True).stdout


def test_an_edited_or_older_file_is_kept_and_named_when_unpacking(carried, tmp_path):
    cell = cell_of(carried, "unpack")
    assert unpack(tmp_path, cell) == "All files of this notebook are here.\n"
    assert unpack(tmp_path, cell) == "All files of this notebook are here.\n"
    (tmp_path / "contract.py").write_text((ROOT / "contract.py").read_text().strip())  # as the converter writes it
    (tmp_path / "helpers.py").write_text("# of an older bundle\n")
    (tmp_path / "workbench" / "validate.py").write_text("# mine\n")
    said = unpack(tmp_path, cell)
    assert said.startswith(
        "Kept as they are, though they differ from this notebook's: helpers.py, workbench/validate.py. "
    )
    assert "delete them and run this cell again" in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / "helpers.py").read_text() == "# of an older bundle\n"
    (tmp_path / "helpers.py").unlink()
    unpack(tmp_path, cell)
    assert (tmp_path / "helpers.py").read_text() == (ROOT / "helpers.py").read_text()


SUBMIT = dedent("""
    import crunch
    from workbench import session
    tools = crunch.load_notebook()
    try:
        session.check_copies()
        tools.submit(message="first")
    except session.Stop as stop:
        print("Stopped:", stop)
""")


def submit(folder, notebook, hub, script=SUBMIT):
    """The last cell, where the client reads the open notebook as on Colab (its own environment for debugging)."""
    nbformat.write(notebook, folder.parent / "open.ipynb")
    variables = {
        "CRUNCH_NOTEBOOK_ENVIRONMENT_DEBUGGING": "1",
        "CRUNCH_NOTEBOOK_ENVIRONMENT_DEBUGGING_NOTEBOOK": str(folder.parent / "open.ipynb"),
    }
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment(hub) | variables
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("edited", ["nothing", "file", "cell", "file, its cell deleted", "older file"])
def test_submitting_never_writes_a_copy_over_an_edit_without_a_word(tmp_path, edited):
    notebook, folder = bundle.bundle(), tmp_path / "colab"
    folder.mkdir()
    unpack(folder, cell_of(notebook, "unpack"))
    path, cell = folder / "helpers.py", cell_of(notebook, "helpers")
    before = path.read_text()
    if edited.startswith("file"):
        path.write_text(before + "\nEDITED = True\n")
    if edited == "cell":
        cell.source += "\nEDITED = True\n"
    if edited == "older file":
        path.write_text("# of an older bundle\n")
    if "deleted" in edited:
        notebook.cells.remove(cell)
    kept = path.read_text()
    with serve(folder=folder) as hub:
        write_project(folder)
        said = submit(folder, notebook, hub)
    assert path.read_text().strip() == kept.strip()
    if edited in ("file", "cell", "older file"):
        assert "Stopped: helpers.py beside the notebook is not the helpers.py in the notebook's own cell" in said
        assert not any(request.startswith("POST") for request in hub.requests)
    else:
        assert "Stopped" not in said
        assert "this hub is offline and does not serve POST /v1/uploads" in said, "the client went on to send it"


def test_external_data_that_the_description_does_not_credit_are_not_sent(tmp_path):
    notebook, folder = bundle.bundle(), tmp_path / "colab"
    (folder / "resources" / "features").mkdir(parents=True)
    unpack(folder, cell_of(notebook, "unpack"))
    (folder / "resources" / "features" / "mine.gmt").write_text("A\tx\tG1\tG2\n")
    (cell,) = [cell for cell in notebook.cells if "file: Method description.md" in cell.source]
    with serve(folder=folder) as hub:
        write_project(folder)
        said = submit(folder, notebook, hub)
        assert "Stopped: Method description.md: does not credit features/mine.gmt" in said
        assert not any(request.startswith("POST") for request in hub.requests)
        cell.source = cell.source.replace(record.NOTHING, record.description(folder / "resources"))
        assert "Stopped" not in submit(folder, notebook, hub)


def test_the_sources_command_is_carried(carried, tmp_path):
    """What cannot be fetched there is added by hand, there."""
    unpack(tmp_path, cell_of(carried, "unpack"))
    (tmp_path / "mine.gmt").write_text("A\tx\tG1\tG2\n")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "workbench.sources", "add", "mine.gmt", "--as", "table"]
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "resources" / "features" / "mine.gmt").exists()


def test_the_client_alone_would_write_its_copy_over_the_edit(tmp_path, carried):
    """Why the check above is needed; once the client asks first, it can go."""
    folder = tmp_path / "colab"
    folder.mkdir()
    unpack(folder, cell_of(carried, "unpack"))
    (folder / "helpers.py").write_text("# edited\n")
    with serve(folder=folder) as hub:
        write_project(folder)
        submit(folder, carried, hub, script=SUBMIT.replace("session.check_copies()", ""))
    assert (folder / "helpers.py").read_text().strip() == (ROOT / "helpers.py").read_text().strip()


def test_the_method_description_is_changed_in_its_cell(tmp_path):
    """It is not unpacked, so that the cell is the only copy."""
    notebook, folder = bundle.bundle(), tmp_path / "colab"
    folder.mkdir()
    unpack(folder, cell_of(notebook, "unpack"))
    (cell,) = [cell for cell in notebook.cells if "file: Method description.md" in cell.source]
    cell.source += "\nOne more sentence."
    with serve(folder=folder) as hub:
        write_project(folder)
        assert "Stopped" not in submit(folder, notebook, hub)


def test_own_class_runs_on_an_empty_machine(demo_folder, challenge, tmp_path, monkeypatch):
    """Nothing of this repository is importable; the notebook's own files are, once its first cell ran.

    `crunch_tools.test()` trains, saves, loads and predicts with a class that stands in a cell of the notebook.
    """
    monkeypatch.delenv("PYTHONPATH", raising=False)
    project = write_project_with(tmp_path / "project", OWN_CLASSES, OWN_METHOD)
    notebook = bundle.bundle(project / "notebook.ipynb")
    for cell in [cell for cell in notebook.cells if 'read_csv("resources/expected.csv"' in cell.source]:
        if "exists" not in cell.source:
            notebook.cells.remove(cell)  # this method has no expectation of its errors
    folder = tmp_path / "colab"
    folder.mkdir()
    (folder / "data").symlink_to(demo_folder)  # in place of the demo data that it would make: to save time
    origin = nbformat.v4.new_code_cell("# @crunch/keep:none\nprint(method.__file__)", id="origin")
    notebook.cells.append(origin)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert notebook.cells[-1].outputs[0]["text"].strip() == str(folder / "method.py")
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "determinism check: passed" in said
    check_cells(folder, challenge)
    main = extract_from_cells(notebook.cells, print=None)
    assert "class Halfway" in main.source_code
    assert OWN_METHOD in main.source_code
    with serve(folder=folder) as hub:
        nbformat.write(notebook, folder / "notebook.ipynb")
        crunch(folder, hub, "convert", "notebook.ipynb", "--requirements", "--embedded-files", "--overwrite")
        pushed = crunch(folder, hub, "push", "--dry", "-m", "")
    assert not any("workbench" in name for name in found(pushed, "code")), "what is unpacked for the notebook stays"
    assert found(pushed, "code") >= {"main.py", *TRAVELLING}


# ---------------------------------------------------------------------------------------------------------------------
# A bad token, no network
# ---------------------------------------------------------------------------------------------------------------------


def run_first_cells(folder, token, variables, monkeypatch):
    """Section 1 with this token, and one cell after it; the outputs of both cells, as texts."""
    for name, value in {"PYTHONPATH": str(ROOT), **variables}.items():
        monkeypatch.setenv(name, value)
    whole = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    cells = [cell for cell in whole.cells if cell.cell_type == "code"][:2]
    cells[0].source = cells[0].source.replace('TOKEN = ""', f'TOKEN = "{token}"')
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("print('went on')")])
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    with suppress(CellExecutionError):
        client.execute()
    return [
        "".join(output.get("text", "") + "\n".join(output.get("traceback", [])) for output in cell.outputs)
        for cell in notebook.cells[1:]
    ]


def test_a_bad_token_ends_the_cell_with_one_line_and_nothing_runs_after_it(tmp_path, monkeypatch):
    with serve(folder=tmp_path) as hub:
        first, second = run_first_cells(tmp_path, "bad", environment(hub), monkeypatch)
    assert first.startswith("Stopped: the token was not accepted (Your token seems to have expired or is invalid.)")
    assert session.TOKENS in first
    assert len(first.splitlines()) == 1
    assert second == ""


def test_no_network_ends_the_cell_with_one_line_and_nothing_runs_after_it(tmp_path, monkeypatch):
    first, second = run_first_cells(tmp_path, TOKEN, {"CRUNCH_API_BASE_URL": NOWHERE}, monkeypatch)
    assert first.startswith("Stopped: the platform cannot be reached. Check the network")
    assert len(first.splitlines()) == 1
    assert second == ""


def test_a_good_token_signs_in_and_fetches_the_data(tmp_path, monkeypatch):
    with serve(folder=tmp_path) as hub:
        first, second = run_first_cells(tmp_path, TOKEN, environment(hub), monkeypatch)
    assert "Signed in. Fetching the data" in first
    assert second == "went on\n"
    assert (tmp_path / ".crunchdao" / "project.json").exists()
    assert any("data-release" in request for request in hub.requests)
    assert CLIENT.exists()


def test_packages_that_cannot_be_installed_end_the_cell_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "NEEDED", tmp_path / "requirements.txt")
    session.NEEDED.write_text("numpy>=2.0\nno-such-package-of-ours>=1\nnumpy>=99\n")
    for name, value in {"PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "0", "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        session.Stop, match=r"pip could not install no-such-package-of-ours>=1, numpy>=99 \(ERROR: .*Kaggle"
    ):
        session.install()


def test_packages_that_are_there_need_no_network(tmp_path, monkeypatch, carried):
    monkeypatch.setattr(session, "NEEDED", tmp_path / "requirements.txt")
    session.NEEDED.write_text("\n".join(bundle.needed_packages(carried)))
    monkeypatch.setattr(session.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    session.install()


def test_what_the_notebook_imports_is_followed_through_packages():
    cell = nbformat.v4.new_code_cell("!ls\nfrom workbench.evaluation import folds\nimport workbench.hub")
    files = {path.relative_to(ROOT).as_posix() for path in bundle.bundled_files(nbformat.v4.new_notebook(cells=[cell]))}
    assert files >= {"workbench/__init__.py", "workbench/evaluation/__init__.py", "workbench/evaluation/folds.py"}
    assert files >= {*TRAVELLING, "workbench/hub.py", "workbench/platform/libraries.txt"}
    assert not files & {"workbench/bench.py", "workbench/bundle.py", "workbench/simulate.py", "notebook.ipynb"}
