"""The whole job with one command: data, the notebook with the real client, both files, a report for the browser.

In: `data/` (the challenge's real files, or nothing: then demo data are made). Out: `prediction/` with both files,
`resources/model.h5`, `build/notebook.ipynb` (executed) and `build/report.html`. The notebook calls `start`.

    python -m workbench.demo [--folder .] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from contract import OBESITY_1 as CRUNCH
from workbench import hub
from workbench.simulate import simulate
from workbench.validate import (
    requested_genes,
    requested_perturbations,
    validate_method_description,
    validate_prediction_folder,
)

ROOT = Path(__file__).resolve().parents[1]


def start(folder: str | Path = ".") -> None:
    """Make demo data unless `data/` holds the challenge's files, and point the crunch client at a local hub."""
    data = Path(folder) / "data"
    if not (data / CRUNCH.train_file).exists():
        print("data/ is empty: making demo data of the same layout (about 90 MB).")
        simulate(data)
    hub.connect(folder)
    print("The crunch client talks to a hub on this machine: no token is needed, and nothing is sent.")


def run(folder: Path) -> Path:
    """Execute the notebook in `folder`; returns the report. Raises when a cell or a check of the files fails."""
    build = folder / "build"
    build.mkdir(exist_ok=True)
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    began = time.perf_counter()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        nbformat.write(notebook, build / "notebook.ipynb")
    seconds = time.perf_counter() - began
    _check(folder)
    exporter = HTMLExporter(exclude_input=True)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": "Broad obesity 1: report"}})
    report = build / "report.html"
    report.write_text(body, encoding="utf-8")
    print(
        f"The notebook ran in {seconds:.0f} s; the submission is valid.\n"
        f"  prediction/{CRUNCH.prediction_file}\n  prediction/{CRUNCH.predicted_proportions_file}\n"
        f"  {report.resolve().as_uri()}  <- open this in a browser"
    )
    return report


def _check(folder: Path) -> None:
    data = folder / "data"
    problems = validate_prediction_folder(
        folder / "prediction", requested_perturbations(data, local=True), requested_genes(data)
    )
    problems += validate_method_description(ROOT / "Method description.md")
    if problems:
        raise SystemExit("The submission breaks the platform's rules:\n" + "\n".join(problems))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="where data/, resources/ and prediction/ are")
    parser.add_argument("--data", type=Path, help="copy this challenge folder into data/ first")
    options = parser.parse_args()
    if options.data:
        shutil.copytree(options.data, options.folder / "data", dirs_exist_ok=True)
    run(options.folder)


if __name__ == "__main__":
    main()
