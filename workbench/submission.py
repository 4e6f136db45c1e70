"""The folder that is pushed: `build/submission`, which holds what the platform needs and nothing else.

In: `notebook.ipynb`, the modules that travel, `Method description.md`, and what you put into `resources/` (feature
tables). Out: `main.py`, written by the client's own converter; the modules; a `requirements.txt` with what they import;
the method description; `resources/`. The trained model is not copied: `crunch test` trains the code that stands there,
and without one the platform trains first. `data` is a link to the repository's `data/`.

    python -m workbench.submission [--out build/submission]
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from crunch_convert.notebook import ConverterError, FlattenNotebook, ImportedRequirement, extract_from_cells

from contract import CRUNCH, DATA_FOLDER, MAIN_FILE, MODEL_FOLDER, REQUIREMENTS_FILE, TRAVELLING
from helpers import DataError, only_one
from method import EXPECTED_FILE, MODEL_FILE
from workbench import notebooks
from workbench.commands import check_folder, command_line
from workbench.imports import COME_ALONG, imported, requirement_lines, third_party
from workbench.sources.record import uncredited

ROOT = Path(__file__).resolve().parents[1]
PROJECT_FOLDER = ".crunchdao"  # what `crunch setup` wrote: kept when the folder is made again
HEADER = "# What main.py and the modules beside it import; written by `make submission`.\n"

NEXT = """\

Next (TOKEN and NAME stand on the competition's page, under Submit):
  source .venv/bin/activate && cd {folder}
  crunch setup --token TOKEN --force --submission scratch --no-data {crunch} NAME .   # once
  crunch download           # once; data/ here is a link to the repository's data/
  crunch test               # trains, predicts twice, checks; leaves the model in resources/
  crunch push --dry -m ""   # lists what would be sent
  crunch push --message "first"
"""


def export(out: Path, root: Path = ROOT) -> list[Path]:
    """Write the submission of the project in `root` into the folder `out`; returns its files, sorted.

    The folder is made beside `out` and renamed; the project that `crunch setup` wrote into an older one is kept.
    Raises DataError, with what to do, for a notebook that the converter refuses or warns of, for a method description
    that is not the notebook's or does not credit what lies in `resources/`, and where `out` is a folder of something
    else.
    """
    _check_place(out, root)
    converted = _convert(root)
    with only_one(out):
        beside = out.with_name(f".{out.name}.partial")
        if (beside / "before").exists() and not out.exists():  # killed between the two renames below
            (beside / "before").rename(out)
        shutil.rmtree(beside, ignore_errors=True)
        try:
            made = beside / out.name
            made.mkdir(parents=True)
            _fill(made, converted, root)
            files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
            data = (root / CRUNCH.folder / DATA_FOLDER).resolve()
            data.mkdir(parents=True, exist_ok=True)
            (made / DATA_FOLDER).symlink_to(data, target_is_directory=True)
            if (out / PROJECT_FOLDER).is_dir():
                shutil.copytree(out / PROJECT_FOLDER, made / PROJECT_FOLDER)
            if out.exists():
                out.rename(beside / "before")
            made.rename(out)
        finally:
            if (beside / "before").exists() and not out.exists():
                (beside / "before").rename(out)
            shutil.rmtree(beside, ignore_errors=True)
    return [out / file for file in files]


def _check_place(out: Path, root: Path) -> None:
    """Raises DataError where making `out` anew would remove something else than an exported submission."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: a file; name a folder with --out")
    if root.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: holds the project itself; choose another folder with --out")
    lines = out / REQUIREMENTS_FILE
    ours = (out / MAIN_FILE).exists() and lines.is_file() and lines.read_bytes().startswith(HEADER.encode())
    if out.exists() and any(out.iterdir()) and not ours:
        raise DataError(
            f"{out} holds no {MAIN_FILE} and {REQUIREMENTS_FILE} of an exported submission: choose another folder with "
            "--out"
        )


def _convert(root: Path) -> FlattenNotebook:
    """The notebook as the platform sees it."""
    try:
        converted = extract_from_cells(notebooks.read(root / "notebook.ipynb").cells)
    except ConverterError as error:
        raise DataError(f"notebook.ipynb cannot be converted: {error}") from error
    if converted.warnings:
        said = "; ".join(map(str, converted.warnings))
        raise DataError(f"the converter warns of notebook.ipynb; on the platform this would fail: {said}")
    described = {file.path: file.content for file in converted.embedded_files}.get(CRUNCH.description_file, "")
    if described != (root / CRUNCH.description_source).read_text(encoding="utf-8").strip():
        raise DataError(f"{CRUNCH.description_source} is not the text of the notebook's cell: change the other one too")
    missing = uncredited(described, root / CRUNCH.folder / MODEL_FOLDER)
    if missing:
        raise DataError(" ".join([*missing, "This writes it: python -m workbench.sources describe --write"]))
    return converted


def _fill(folder: Path, converted: FlattenNotebook, root: Path) -> None:
    (folder / MAIN_FILE).write_text(converted.source_code, encoding="utf-8")
    for name in TRAVELLING:
        shutil.copy2(root / name, folder / name)
    shutil.copy2(root / CRUNCH.description_source, folder / CRUNCH.description_file)
    modules = [(root / name).read_text(encoding="utf-8") for name in TRAVELLING]
    resources = root / CRUNCH.folder / MODEL_FOLDER
    if any(resources.rglob("*.parquet")):
        modules.append("import pyarrow")  # with which pandas reads such a feature table
    lines = requirements([converted.source_code, *modules], converted.requirements)
    (folder / REQUIREMENTS_FILE).write_text(HEADER + "\n".join([*lines, ""]), encoding="utf-8")
    if resources.is_dir():
        left = shutil.ignore_patterns(MODEL_FILE, EXPECTED_FILE, ".*")
        shutil.copytree(resources, folder / MODEL_FOLDER, ignore=left)


def requirements(sources: list[str], asked: list[ImportedRequirement]) -> list[str]:
    """The lines of `requirements.txt`: what `sources` import; `asked` holds what the notebook's comments say of it."""
    own = {item.alias: item for item in asked if item.alias not in COME_ALONG}
    versions = [f"{item.name or alias}{','.join(item.specs)}" for alias, item in own.items() if item.specs]
    names = third_party(set().union(*map(imported, sources))) - {alias for alias, item in own.items() if item.specs}
    return sorted([*requirement_lines(own[name].name or name if name in own else name for name in names), *versions])


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.submission", description=__doc__.splitlines()[0])
    place = Path(CRUNCH.folder, "build", "submission")
    parser.add_argument("--out", type=Path, default=ROOT / place, help=f"default: {place}")
    out = parser.parse_args().out
    check_folder(out.parent)
    for path in export(out):
        print(f"{path.stat().st_size / 1e3:8.1f} kB  {path.relative_to(out)}")
    print(NEXT.format(folder=os.path.relpath(out), crunch=CRUNCH.name))


if __name__ == "__main__":
    main()
