"""Changing the method in the notebook alone; the folder that is pushed; both under the real client."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import anndata as ad
import nbformat
import numpy as np
import pandas as pd
import pytest

import helpers
from contract import OBESITY_1 as CRUNCH
from contract import TRAVELLING
from helpers import DataError
from method import MODEL_FILE, Predictor
from workbench import submission
from workbench.hub import PLATFORM, TOKEN, environment, serve, write_project
from workbench.sources.record import write_description
from workbench.submission import export
from workbench.validate import validate_prediction_folder

ROOT = Path(__file__).resolve().parents[1]
CLIENT = Path(sys.executable).with_name("crunch")
PUSHED = {*TRAVELLING, "main.py", "requirements.txt", "Method description.md"}

# As a participant would write them into a cell: with numpy and pandas as the notebook imports them.
OWN_CLASSES = dedent('''
    class Halfway:
        """Every knock-out lies between the control and the mean knock-out."""

        def __init__(self, share=0.25):
            self.share = share

        def fit(self, means, n_cells):
            knockouts = means.drop(index="NC")
            mean = knockouts.mul(n_cells[knockouts.index], axis=0).sum() / n_cells[knockouts.index].sum()
            self.middle_ = (1 - self.share) * means.loc["NC"] + self.share * mean
            return self

        def predict(self, targets):
            return pandas.DataFrame([self.middle_] * len(targets), index=targets)


    class Jitter:
        """The mean, and noise that is drawn anew for each knock-out."""

        def fit(self, means):
            self.spread_ = means.std()
            return self

        def for_genes(self, genes):
            fitted = type(self)()
            fitted.spread_ = self.spread_.reindex(genes, fill_value=0.0)
            return fitted

        def sample(self, target, mean, n_cells):
            noise = numpy.random.default_rng(SEED).normal(size=(n_cells, len(mean)))
            return (mean + noise * self.spread_.to_numpy()).astype(numpy.float32)
''').strip()
OWN_METHOD = "METHOD = method.Predictor(Halfway(), helpers.MedianProportions(), Jitter())"


def write_project_with(folder, classes, method_line, data=None):
    """A copy of what a submission is made of, whose notebook has one more cell and another METHOD."""
    folder.mkdir(parents=True)
    for name in (*TRAVELLING, CRUNCH.description_file):
        shutil.copy(ROOT / name, folder)
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "METHOD = " in cell.source and cell.cell_type == "code")
    cell = notebook.cells[place]
    cell.source = re.sub(r"^METHOD = .*", method_line, cell.source, flags=re.MULTILINE)
    notebook.cells.insert(place, nbformat.v4.new_code_cell(classes, id="own"))
    nbformat.write(notebook, folder / "notebook.ipynb")
    (folder / "resources").mkdir()
    if data is not None:
        (folder / "data").symlink_to(data)
    return folder


def crunch(folder, hub, *arguments, **variables):
    """The real client in a folder that cannot import anything of the repository; stdout and stderr as one text."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment(hub) | variables
    pipe = subprocess.PIPE
    return subprocess.run(
        [CLIENT, *arguments], cwd=folder, env=known, stdout=pipe, stderr=subprocess.STDOUT, text=True, check=False
    )


SETUP = ["setup", "--token", TOKEN, "--force", "--submission", "scratch", "--no-data", CRUNCH.name, "NAME", "."]


@pytest.fixture(scope="module")
def own(tmp_path_factory, demo_folder):
    """A class of one's own, exported and taken through the README's steps: setup, download, test, push."""
    project = write_project_with(
        tmp_path_factory.mktemp("own") / "project", OWN_CLASSES, OWN_METHOD, data=demo_folder.resolve()
    )
    out = project / "build" / "submission"
    exported = export(out, root=project)
    with serve(folder=out) as hub:
        said = [crunch(out, hub, *step) for step in (SETUP, ["push", "--dry", "-m", ""], ["download"], ["test"])]
    return project, exported, said


def test_own_class_in_a_cell_is_converted_trained_saved_and_predicted_by_the_client(own, challenge):
    project, _, (_, _, _, tested) = own
    out = project / "build" / "submission"
    assert tested.returncode == 0, tested.stdout
    for line in ("command=train", "command=infer", "determinism check: passed", "save prediction"):
        assert line in tested.stdout
    assert "the platform would refuse" not in tested.stdout
    targets = challenge.local_proportions.index
    assert validate_prediction_folder(out / "prediction", targets, challenge.genes_to_predict) == []
    check_cells(out, challenge)


def check_cells(folder, challenge):
    """The cells are those of `Halfway` and `Jitter`: the mean and the noise are known."""
    prediction = ad.read_h5ad(folder / "prediction" / CRUNCH.prediction_file)
    stats = helpers.perturbation_stats(challenge.train_path)
    knockouts, n_cells = stats.mean.drop(index="NC"), stats.n_cells.drop(index="NC")
    mean = 0.75 * stats.mean.loc["NC"] + 0.25 * knockouts.mul(n_cells, axis=0).sum() / n_cells.sum()
    genes = prediction.var_names
    noise = np.random.default_rng(0).normal(size=(100, len(genes)))
    expected = mean[genes].to_numpy(np.float32) + noise * stats.mean.std()[genes].to_numpy()
    np.testing.assert_allclose(prediction.X[-100:], expected, atol=1e-4)


def test_own_class_in_the_cloud_is_loaded_from_resources_by_a_fresh_process(own, challenge, tmp_path):
    """No training is asked for, and none is possible: the cells are not there."""
    project, *_ = own
    folder = Path(shutil.copytree(project / "build" / "submission", tmp_path / "cloud", symlinks=True))
    (folder / "data").unlink()
    (folder / "data").mkdir()
    for name in (CRUNCH.targets_file, CRUNCH.genes_file):
        shutil.copy(project / "data" / name, folder / "data")
    shutil.rmtree(folder / "prediction")
    (folder / "prediction").mkdir()
    assert (folder / "resources" / MODEL_FILE).exists()
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, ROOT / "tests" / "cloud.py", PLATFORM],
        cwd=folder,
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "raining" not in ran.stdout
    shares = pd.read_csv(folder / "prediction" / CRUNCH.predicted_proportions_file)
    assert shares["gene"].tolist() == challenge.targets.tolist()
    check_cells(folder, challenge)


def test_a_class_that_gives_other_cells_each_time_fails_the_determinism_check(demo_folder, tmp_path):
    classes = OWN_CLASSES.replace("default_rng(SEED)", "default_rng()")
    project = write_project_with(tmp_path / "project", classes, OWN_METHOD, data=demo_folder.resolve())
    out = tmp_path / "out"
    export(out, root=project)
    with serve(folder=out) as hub:
        write_project(out)
        tested = crunch(out, hub, "test")
        unchecked = crunch(out, hub, "test", "--no-determinism-check", "--no-force-first-train")
    assert "prediction.h5ad: the second run of infer gave other values than the first" in tested.stdout
    assert "determinism check: failed" in tested.stdout
    assert "predict_program_proportion.csv: the second" not in tested.stdout
    assert "determinism" not in unchecked.stdout
    assert unchecked.stdout.count("command=infer") == 1


def found(said, kind):
    """The files of that kind that `crunch push --dry` lists."""
    return set(re.findall(rf"found {kind} file: (.+?) \(", said.stdout))


def test_push_from_the_exported_folder_sends_exactly_what_was_exported(own):
    project, exported, (setup, pushed, download, _) = own
    out = project / "build" / "submission"
    assert setup.returncode == 0, setup.stdout
    assert "Your environment has been correctly setup" in setup.stdout
    assert download.returncode == 0, download.stdout
    assert pushed.returncode == 0, pushed.stdout
    assert {path.relative_to(out).as_posix() for path in exported} == PUSHED
    assert found(pushed, "code") | {"requirements.txt"} == PUSHED
    assert "using original file" in pushed.stdout
    assert found(pushed, "model") == set()
    assert "dry run, not uploading files" in pushed.stdout
    assert (out / "data" / CRUNCH.train_file).exists(), "the link to the project's data"


def test_exported_again_the_sign_in_stays_and_the_old_model_goes(own, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(own[0], project, symlinks=True)
    out = project / "build" / "submission"
    assert (out / "resources" / MODEL_FILE).exists()
    (project / "resources" / "features").mkdir()
    (project / "resources" / "features" / "pathways.gmt").write_text("A\tx\tG1\tG2\n")
    (project / "resources" / MODEL_FILE).write_text("a model of demo data")
    with pytest.raises(DataError, match=r"does not credit features/pathways\.gmt; add.*describe --write$"):
        export(out, root=project)
    write_description(project, project / "resources")
    exported = {path.relative_to(out).as_posix() for path in export(out, root=project)}
    assert exported == {*PUSHED, "resources/features/pathways.gmt"}
    assert not (out / "resources" / MODEL_FILE).exists()
    assert (out / ".crunchdao" / "token").read_text() == TOKEN
    assert (out / "data" / CRUNCH.train_file).exists()
    assert [path.name for path in out.parent.iterdir()] == ["submission"]
    with serve(folder=out) as hub:
        assert found(crunch(out, hub, "push", "--dry", "-m", ""), "model") == {"features/pathways.gmt"}


def test_requirements_are_the_imports_with_our_versions_and_those_of_a_comment(tmp_path):
    imports = "import xgboost\nimport yaml\nimport lightgbm  # ==4.5.0\nimport os"
    project = write_project_with(tmp_path / "project", imports, "METHOD = method.Predictor.default()")
    (project / "resources" / "embeddings.parquet").touch()
    export(tmp_path / "out", root=project)
    lines = (tmp_path / "out" / "requirements.txt").read_text().splitlines()[1:]
    ours = (ROOT / "requirements.txt").read_text().splitlines()
    names = ("anndata", "h5py", "numpy", "pandas", "psutil", "scikit-learn", "scipy", "tqdm")
    needed = [line for line in ours if re.match(r"[\w-]+", line).group() in names]
    assert len(needed) == len(names)
    assert sorted(lines) == sorted([*needed, "PyYAML", "lightgbm==4.5.0", "pyarrow", "xgboost"])


def test_a_package_that_is_not_allowed_is_refused_by_the_rehearsal(tmp_path):
    project = write_project_with(tmp_path / "project", "import never_heard_of_it", "METHOD = None")
    export(tmp_path / "out", root=project)
    with serve(folder=tmp_path / "out") as hub:
        write_project(tmp_path / "out")
        pushed = crunch(tmp_path / "out", hub, "push", "--dry", "-m", "")
    assert pushed.returncode == 1
    assert "Forbidden packages has been found" in pushed.stdout
    assert "- never_heard_of_it" in pushed.stdout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("global", "found potential use of global variable `N`"),
        ("syntax", "notebook.ipynb cannot be converted"),
        ("description", "Method description.md is not the text of the notebook's cell"),
        ("folder", "holds no main.py and requirements.txt of an exported submission"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path, damage, message):
    cell = {"global": "N = 3\n\ndef f():\n    return N", "syntax": "def f(:"}.get(damage, "import os")
    project = write_project_with(tmp_path / "project", cell, "METHOD = None")
    if damage == "description":
        (project / CRUNCH.description_file).write_text("another text")
    if damage == "folder":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=message):
        export(tmp_path / "out", root=project)
    assert {path.name for path in tmp_path.glob("out/*")} == ({"thesis.txt"} if damage == "folder" else set())


@pytest.fixture
def exported(tmp_path):
    """A submission in `out`, signed in, and the project that it was made of."""
    project = write_project_with(tmp_path / "project", "import os", "METHOD = None")
    export(tmp_path / "out", root=project)
    (tmp_path / "out" / ".crunchdao").mkdir()
    (tmp_path / "out" / ".crunchdao" / "token").write_text("mine")
    return project, tmp_path / "out"


KILL = """
    import os, signal, sys
    from pathlib import Path
    from workbench.submission import export
    rename = Path.rename
    def stopped(self, target):
        if self.name == "out" and self.parent.name == ".out.partial":
            os.kill(os.getpid(), int(sys.argv[3]))
        return rename(self, target)
    Path.rename = stopped
    export(Path(sys.argv[1]), root=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_between_the_two_renames_the_sign_in_is_not_lost(exported, stop):
    project, out = exported
    command = [sys.executable, "-c", dedent(KILL), out, project, str(int(stop))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (-stop, 1, 130), done.stderr
    assert out.exists() == (stop == signal.SIGINT)
    export(out, root=project)
    assert (out / ".crunchdao" / "token").read_text() == "mine"
    assert {path.name for path in out.parent.iterdir()} == {"project", "out"}


@pytest.mark.parametrize("lost", ["main.py", "requirements.txt", "its first line"])
def test_a_folder_that_was_not_exported_is_never_replaced(exported, lost):
    project, out = exported
    (out / "thesis.txt").write_text("precious")
    if lost == "its first line":
        (out / "requirements.txt").write_text("numpy\n")
    else:
        (out / lost).unlink()
    with pytest.raises(DataError, match=r"out holds no main\.py and requirements\.txt of an exported submission"):
        export(out, root=project)
    assert (out / "thesis.txt").exists()


def test_the_project_itself_is_never_replaced(exported):
    """Though it may look like an export: `crunch convert` writes a main.py into it."""
    project, out = exported
    for name in ("main.py", "requirements.txt"):
        shutil.copy(out / name, project)
    for place in (project, project.parent):
        with pytest.raises(DataError, match="holds the project itself"):
            export(place, root=project)
    assert (project / "notebook.ipynb").exists()


def test_push_from_a_clone(tmp_path):
    """`make submission` in a clone, then the client there; from the clone's own root nothing is sent."""
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [line for line in files.splitlines() if not line.startswith('"') and (ROOT / line).is_file()]:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    command = [sys.executable, "-m", "workbench.submission"]
    made = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout
    out = clone / "build" / "submission"
    for name in PUSHED:
        assert re.search(rf" kB  {re.escape(name)}\n", made)
    assert "cd build/submission" in made
    with serve(folder=out) as hub:
        assert crunch(out, hub, *SETUP).returncode == 0
        pushed = crunch(out, hub, "push", "--dry", "-m", "")
        write_project(clone)
        refused = crunch(clone, hub, "push", "--dry", "-m", "")
    assert pushed.returncode == 0, pushed.stdout
    assert found(pushed, "code") | {"requirements.txt"} == PUSHED
    assert refused.returncode == 1
    assert "missing main.py" in refused.stdout


def test_the_printed_steps_are_those_that_were_tried():
    """The commands of this file, as `make submission` prints them."""
    steps = " ".join(submission.NEXT.format(crunch=CRUNCH.name, folder="build/submission").split())
    for step in (" ".join(["crunch", *SETUP]).replace(TOKEN, "TOKEN"), "crunch download", "crunch test"):
        assert step in steps
    assert 'crunch push --dry -m ""' in steps


def test_the_example_in_the_notebook_works_as_it_stands(challenge):
    """The class that section 3 shows."""
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    (shown,) = re.findall(r"```python\n(.*?)```", "".join(cell.source for cell in notebook.cells), flags=re.DOTALL)
    scope = {"pandas": pd}
    exec(shown, scope)  # noqa: S102
    predictor = Predictor(scope["Halfway"](), helpers.MedianProportions(), helpers.RecentredCells())
    stats = helpers.perturbation_stats(challenge.train_path)
    predictor.fit(stats, challenge.proportions, helpers.read_cells(challenge.train_path, np.arange(150)))
    assert predictor.predict_means(["A", "B"]).shape == (2, len(challenge.genes))
