"""One notebook that needs no other file: `build/bundle.ipynb`, for an empty Colab or Kaggle machine.

In: `notebook.ipynb`, `helpers.py`, `requirements.txt`, `Method description.md` and `workbench/`. Out: the notebook with
two cells more: a code cell that unpacks the files where the notebook runs (packed, since they are many), and a
markdown cell from which `crunch convert` and the platform write `helpers.py` (in plain text, to be read).

    python -m workbench.bundle [OUT]
"""

from __future__ import annotations

import argparse
import base64
import io
import textwrap
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from contract import TRAVELLING

ROOT = Path(__file__).resolve().parents[1]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes

UNPACK = '''\
# @crunch/keep:none
# helpers.py and the workbench, packed into this cell: a changed helpers.py beside the notebook is left alone.
import base64, io, pathlib, zipfile

with zipfile.ZipFile(io.BytesIO(base64.b64decode("""
{packed}
"""))) as files:
    files.extractall(members=[name for name in files.namelist() if not pathlib.Path(name).exists()])
'''

EMBEDDED = """\
---
file: helpers.py
---

{source}"""


def bundled_files() -> list[Path]:
    """What the notebook needs beside itself."""
    names = [*TRAVELLING, "requirements.txt", "Method description.md", "notebook.ipynb"]
    return [ROOT / name for name in names] + sorted((ROOT / "workbench").rglob("*.py"))


def bundle() -> NotebookNode:
    """The notebook that carries its files."""
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    source = (ROOT / "helpers.py").read_text(encoding="utf-8")
    unpack = nbformat.v4.new_code_cell(UNPACK.format(packed=_packed()), id="unpack")
    embedded = nbformat.v4.new_markdown_cell(EMBEDDED.format(source=source), id="helpers")
    notebook.cells.insert(1, unpack)
    notebook.cells.append(embedded)
    return notebook


def _packed() -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as files:
        for path in bundled_files():
            name = path.relative_to(ROOT).as_posix()
            files.writestr(zipfile.ZipInfo(name, EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return "\n".join(textwrap.wrap(base64.b64encode(buffer.getvalue()).decode(), 116))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.bundle", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "bundle.ipynb")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(bundle(), out)
    print(f"{out} ({out.stat().st_size / 1e3:.0f} kB): upload this one file to Colab, Kaggle or the platform.")


if __name__ == "__main__":
    main()
