"""One notebook that needs no other file: `build/bundle.ipynb`, for an empty Colab or Kaggle machine.

In: `notebook.ipynb`, the modules that travel, and those of the workbench that the notebook uses. Out: the notebook with
more cells: a folded code cell that unpacks the files where the notebook runs, and at the end one folded cell for each
module that travels, from which the platform writes the file (in plain text, to be read).

    python -m workbench.bundle [OUT]
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tarfile
import textwrap
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from contract import CRUNCH, TRAVELLING
from helpers import DataError, replacing
from workbench import notebooks
from workbench.commands import check_outputs, command_line
from workbench.imports import imported, requirement_lines, third_party

ROOT = Path(__file__).resolve().parents[1]

# How Colab, Kaggle and Jupyter are told to fold a code cell.
FOLDED = {
    "cellView": "form",
    "_kg_hide-input": True,
    "jupyter": {"source_hidden": True},
    "tags": ["hide-input"],
}

UNPACK = '''\
# @title Unpack the files that this notebook carries {{ display-mode: "form" }}
# @crunch/keep:none
import base64, io, pathlib, tarfile

PACKED = """
{packed}
"""
with tarfile.open(fileobj=io.BytesIO(base64.b64decode(PACKED))) as files:
    kept = []
    for member in files:
        path, text = pathlib.Path(member.name), files.extractfile(member).read()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        elif path.read_bytes().strip() != text.strip():
            kept.append(member.name)
del PACKED
if kept:
    print("Kept as they are, though they differ from this notebook's:", ", ".join(kept) + ".",
          "Did you change them? Then change their copies at the end of the notebook too. If not, they are older:",
          "delete them and run this cell again.")
else:
    print("All files of this notebook are here.")
'''

# The platform reads the head as YAML and writes what follows it into the file. Markdown reads the same lines as a
# comment and <details>, which folds what follows, and `~~~python`, a block of code that nothing closes.
EMBEDDED = """\
---
file: {name}
<!-- shown: folded --><details><summary>unfold to read it</summary>
~~~python : the file as the platform gets it
---
{source}"""

COPIES = """\
## The code that travels

Copies for the platform, which writes them beside `main.py`. To change the method, write a class in section 3: nothing
below needs an edit. If you change a module beside this notebook, make the same change in its copy here, or delete the
copy: submitting from Colab or Kaggle then sends the file itself."""


def bundled_files(notebook: NotebookNode) -> list[Path]:
    """What `notebook` needs beside itself: the modules that travel, and what of the workbench it imports."""
    wanted = _imported_by(notebook)
    files: set[Path] = set()
    while wanted:
        place = ROOT / wanted.pop().replace(".", "/")
        for path in (place.with_suffix(".py"), place / "__init__.py", place / "__main__.py"):
            if path.is_file() and path not in files:
                files.add(path)
                wanted |= imported(path.read_text(encoding="utf-8"))
    platform = [path for path in (ROOT / "workbench" / "platform").rglob("*") if path.suffix in (".py", ".txt")]
    always = [ROOT / name for name in (*TRAVELLING, "workbench/__init__.py")]
    packages = [path / "__init__.py" for file in files for path in file.parents if (path / "__init__.py").is_file()]
    return sorted({*files, *platform, *always, *packages})


def _imported_by(notebook: NotebookNode) -> set[str]:
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return set().union(*(imported(re.sub(r"^(\s*)[!%].*", r"\1pass", cell, flags=re.MULTILINE)) for cell in cells))


def needed_packages(notebook: NotebookNode) -> list[str]:
    """Lines of a requirements file: what the notebook and its files import, and nothing else."""
    modules = _imported_by(notebook)
    for path in bundled_files(notebook):
        if path.suffix == ".py":
            modules |= imported(path.read_text(encoding="utf-8"))
    return requirement_lines({*third_party(modules), "crunch"})


def bundle(path: Path = ROOT / "notebook.ipynb") -> NotebookNode:
    """The notebook in `path` with all that it needs. The same files give the same bytes.

    Raises DataError for what is no notebook, and for a module that a cell of Markdown could not show.
    """
    notebook = notebooks.read(path)
    unpack = nbformat.v4.new_code_cell(UNPACK.format(packed=_packed(notebook)), id="unpack", metadata=FOLDED)
    notebook.cells.insert(1, unpack)
    notebook.cells.append(nbformat.v4.new_markdown_cell(COPIES, id="copies"))
    for name in TRAVELLING:
        source = (ROOT / name).read_text(encoding="utf-8")
        if "\n~~~" in source:
            raise DataError(f"{name}: a line begins with ~~~, which would end its block of code in the notebook")
        cell = EMBEDDED.format(name=name, source=source)
        notebook.cells.append(nbformat.v4.new_markdown_cell(cell, id=name.removesuffix(".py")))
    return notebook


def _packed(notebook: NotebookNode) -> str:
    """The files as a compressed archive, in lines of base64; git ignores the workbench, so that it is not sent."""
    contents = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in bundled_files(notebook)}
    contents["workbench/requirements.txt"] = "\n".join([*needed_packages(notebook), ""]).encode()
    contents["workbench/.gitignore"] = b"*\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as files:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    return "\n".join(textwrap.wrap(base64.b64encode(buffer.getvalue()).decode(), 2000))


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / CRUNCH.folder / "build" / "bundle.ipynb")
    out = parser.parse_args().out
    source = ROOT / "notebook.ipynb"
    check_outputs([out], [source, *(ROOT / name for name in TRAVELLING)])
    made = bundle(source)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        nbformat.write(made, file)
    print(f"{out} ({out.stat().st_size / 1e3:.0f} kB): upload this one file to Colab, Kaggle or the platform.")


if __name__ == "__main__":
    main()
