"""The whole job with one command: data, the notebook with the real client, both files, a report for the browser.

In: `data/` (the challenge's real files, or nothing: then demo data are made). Out: `prediction/` with both files,
`resources/model.h5`, `build/notebook.ipynb` (executed), `build/report.html` and its pictures in `build/pictures/`.
The notebook calls `start`. `docs/results.png` is made by `--picture docs/results.png` on demo data.

    python -m workbench.demo [--folder .] [--data FOLDER] [--picture FILE]

The environment variable CRUNCH=2 (`make demo CRUNCH=2`) makes all of it for crunch 2, in the folder `crunch-2`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm.auto import tqdm

from contract import CRUNCH, MODEL_FOLDER
from helpers import DataError, replacing, text_size, text_time
from method import READ_PER_SECOND
from workbench import hub, notebooks, report
from workbench.commands import check_folder, check_outputs, command_line
from workbench.simulate import FILES, is_simulated, simulate
from workbench.sources.record import uncredited
from workbench.validate import (
    has_states,
    requested_genes,
    requested_perturbations,
    validate_method_description,
    validate_prediction_folder,
)

ROOT = Path(__file__).resolve().parents[1]
SCORES = "cell-18"  # the cell of the notebook that draws the scores
# Seconds on two cores. Per time that the training file is read, of which there are five, its size counts as well.
MAKE_DATA, NOTEBOOK, FIRST_UMAP = 6, 35, 20


def start(folder: str | Path = ".") -> None:
    """Make demo data unless `data/` holds the challenge's files, and point the crunch client at a local hub."""
    data = Path(folder) / "data"
    if not (data / CRUNCH.train_file).exists():
        print("data/ is empty: making demo data of the same layout (about 90 MB).")
        simulate(data)
    hub.connect(folder)
    print("The crunch client talks to a hub on this machine: no token is needed, and nothing is sent.")


def run(folder: Path) -> Path:
    """Execute the notebook in `folder`; returns the report. Raises DataError when a cell fails, or a check of files."""
    build, train = folder / "build", folder / "data" / CRUNCH.train_file
    build.mkdir(exist_ok=True)
    _announce(train)
    began = time.perf_counter()
    notebook = _execute(folder, build / "notebook.ipynb")
    seconds = time.perf_counter() - began
    print(f"The notebook ran in {seconds:.0f} s. Checking both files and writing the report: about 2 s.", flush=True)
    _check(folder)
    report.save_pictures(notebook, build / "pictures")
    page = build / "report.html"
    source = "demo data" if is_simulated(train) else ""
    names = (CRUNCH.prediction_file, CRUNCH.predicted_proportions_file)
    files = [path for path in (folder / "prediction" / name for name in names) if path.exists()]
    page.write_text(report.html(notebook, title=f"{CRUNCH.title}: report", source=source), encoding="utf-8")
    print(
        f"The submission is valid.\n\n{report.printed(notebook, report.SUMMARY[-1])}\n\n"
        f"  {page.resolve().as_uri()}  <- open this in a browser\n"
        + "\n".join(f"  {file}" for file in files)
        + reminder(folder)
    )
    return page


def _announce(train: Path) -> None:
    """Say what will happen and how long it takes."""
    data, seconds = f"{train.parent}/ is empty, so demo data are made", float(MAKE_DATA + NOTEBOOK)
    if train.exists():
        size = train.stat().st_size
        data = f"{train.parent}/ holds {'demo' if is_simulated(train) else 'your'} data ({text_size(size)})"
        seconds = NOTEBOOK + 5 * size / READ_PER_SECOND
    print(
        f"The whole job takes {text_time(seconds)}. Right after an installation numba compiles scanpy's UMAP once: "
        f"{text_time(FIRST_UMAP)} more.\n"
        f"  1. data: {data}\n"
        "  2. the notebook: the crunch client trains and predicts, then the scores and the pictures\n"
        "  3. both files are checked against the platform's rules, and the report is written",
        flush=True,
    )


def _execute(folder: Path, path: Path) -> NotebookNode:
    """Run the notebook with `folder` as its place, and write it to `path` even when a cell fails."""
    notebook = notebooks.read(ROOT / "notebook.ipynb")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tqdm(total=len(notebook.cells), unit="cell", bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} cells") as bar:

        def entered(cell: NotebookNode, cell_index: int) -> None:
            bar.n = cell_index
            bar.set_description(_place(notebook, cell_index))

        client = NotebookClient(
            notebook,
            timeout=3600,
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # without: a warning on connections of this machine
            on_cell_start=entered,
        )
        try:
            client.execute()
            bar.n = bar.total
            bar.set_description("done")
        except CellExecutionError as error:
            where = _place(notebook, bar.n)
            raise DataError(f"{where}: {error.ename}: {error.evalue} (the whole story is in {path})") from error
        except (CellTimeoutError, DeadKernelError, NoSuchKernel) as error:  # an hour is over, no memory, no ipykernel
            where = _place(notebook, bar.n)
            raise DataError(f"{where}: the notebook's kernel ended: {type(error).__name__}: {error}") from error
        finally:
            nbformat.write(notebook, path)
    return notebook


def _place(notebook: NotebookNode, index: int) -> str:
    """The last heading above a cell, and the bold words that begin a paragraph below it: where the notebook is."""
    heading = bold = ""
    for cell in notebook.cells[: index + 1]:
        first = cell.source.strip().split("\n")[0] if cell.cell_type == "markdown" else ""
        if first.startswith("## "):
            heading, bold = first[3:], ""
        elif first.startswith("**"):
            bold = ": " + first.split("**")[1].rstrip(".?")
    return f"{heading or 'start'}{bold}"


def _check(folder: Path) -> None:
    data = folder / "data"
    problems = validate_prediction_folder(
        folder / "prediction",
        requested_perturbations(data, local=True),
        requested_genes(data),
        proportions=has_states(data),
    )
    problems += validate_method_description(_description())
    if problems:
        raise DataError("the submission breaks the platform's rules: " + " ".join(problems))


def _description() -> str:
    return (ROOT / CRUNCH.description_source).read_text(encoding="utf-8")


def reminder(folder: Path) -> str:
    """What the method description must say of external data in `folder` before it is submitted; empty if nothing."""
    missing = uncredited(_description(), folder / MODEL_FOLDER)
    return "\n".join(["", "Before you submit:", *(f"  {line}" for line in missing)]) if missing else ""


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.demo", description=__doc__.splitlines()[0])
    about = f"where data/, resources/ and prediction/ are (default {CRUNCH.folder})"
    parser.add_argument("--folder", type=Path, default=Path(CRUNCH.folder), help=about)
    parser.add_argument("--data", type=Path, help="copy this challenge folder into data/ first")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="save the picture of the scores there too (png)")
    options = parser.parse_args()
    if options.folder.exists() and not options.folder.is_dir():
        raise DataError(f"--folder {options.folder}: not a folder")
    check_folder(options.folder)
    check_outputs([options.picture])
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.data:
        _copy(options.data, options.folder / "data")
    page = run(options.folder)
    if options.picture:
        with replacing(options.picture) as temporary:
            shutil.copyfile(page.with_name("pictures") / f"{SCORES}.png", temporary)


def _copy(data: Path, folder: Path) -> None:
    """The files of a challenge folder into `folder`, one after the other, each whole or not at all."""
    if not (data / CRUNCH.train_file).is_file():
        raise DataError(f"--data {data}: holds no {CRUNCH.train_file}; it names a folder in the challenge's layout")
    if data.resolve() == folder.resolve():
        raise DataError(f"--data {data}: it is {folder} already; leave --data out")
    for file in filter(Path.is_file, data.iterdir()):
        with replacing(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)  # not its permissions: it may be read-only
    for name in FILES:  # of other data, which say what these do not: states, say
        if not (data / name).exists():
            (folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
