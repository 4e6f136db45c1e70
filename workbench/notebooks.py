"""The notebook of the crunch that this process works on: `notebook.ipynb`, in crunch 2 with what differs there.

In: the notebook of crunch 1. Out: the same for crunch 1. For crunch 2 one more cell chooses the crunch before any
module of the project is imported, so that `main.py` does it too; `infer` takes the platform's name for the genes; the
method description is that of crunch 2; and some lines of text say doubles.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from contract import CHOICE, CRUNCH, CRUNCHES, OBESITY_1
from helpers import DataError

ROOT = Path(__file__).resolve().parents[1]

CHOOSING = """\
# @crunch/keep:on
# Which crunch: the modules below read it when they are imported.
import os

os.environ["{variable}"] = "{number}"
"""

INTRODUCTION = """\
# Broad obesity, crunch 2: unseen double knock-outs, cell by cell

From cells of single, double and some triple knock-outs in fat-cell precursors, this notebook predicts **100 cells** for
each of 62 knock-outs that were never measured, nearly all double, and the **share of cells in each state**. Run all
cells: it trains, predicts, checks, scores and draws a complete submission.

* **On your machine**: `make demo CRUNCH=2` runs it in the folder `crunch-2`.
* **On Colab or Kaggle**: `make bundle CRUNCH=2` on your machine, then upload `crunch-2/build/bundle.ipynb` to
  [Colab](https://colab.research.google.com/) (*File > Upload notebook*) or [Kaggle](https://www.kaggle.com/code/new)
  (*File > Import notebook*, and *Settings > Internet* on): that one file carries everything with it.

Which method is submitted is said in section 3, where you can put your own; what it is made of is in `method.py` and
`combinations.py`."""

# By cell of the notebook: what is replaced, and by what.
CHANGES = {
    "cell-05": [
        (
            "(`NC`: none, the control)",
            "(`NC`: none, the control; `A+B`: both, `A+A` and `A+NC`: one, by two guides; `NC+NC`: none, by two)",
        )
    ],
    "cell-12": [("the five local knock-outs", "the six local knock-outs")],
    "cell-16": [
        ("With five knock-outs", "With six knock-outs"),
        (
            "(the control's mean and the mean of all perturbed cells)",
            "(the control's mean and the mean of the doubles)",
        ),
        ("the published\nstarter", "effects added\nup, the published starter (delta-mean)"),
    ],
    "cell-19": [("minus the mean of all perturbed cells", "minus the mean of all perturbed cells with as many guides")],
}


def adapted(notebook: NotebookNode, root: Path = ROOT) -> NotebookNode:
    """The notebook for this process's crunch, changed in place; that of crunch 1 as it is.

    Text that its owner has rewritten stays as it is. Raises DataError where the functions, the title or the method
    description are not in their cells.
    """
    if CRUNCH == OBESITY_1:
        return notebook
    cells = {cell.get("id"): cell for cell in notebook.cells}
    described = f"file: {CRUNCH.description_file}\n---\n"
    argument = (OBESITY_1.genes_argument, CRUNCH.genes_argument)
    changes = {**CHANGES, "cell-11": [argument], "cell-02": [(OBESITY_1.name, CRUNCH.name)]}
    changes["cell-30"] = changes["cell-02"]
    pages = [cell for cell in notebook.cells if described in cell.source]
    functions = cells["cell-11"].source if "cell-11" in cells else ""
    if len(pages) != 1 or "cell-00" not in cells or OBESITY_1.genes_argument not in functions:
        raise DataError(
            f"notebook.ipynb: for {CRUNCH.title} it needs its cells for the title (cell-00), for `train` and `infer` "
            f"(cell-11) and for {CRUNCH.description_file}"
        )
    for name in changes.keys() & cells.keys():
        for old, new in changes[name]:
            cells[name].source = cells[name].source.replace(old, new)
    text = (root / CRUNCH.description_source).read_text(encoding="utf-8").strip()
    pages[0].source = f"---\n{described}\n{text}"
    cells["cell-00"].source = INTRODUCTION
    number = next(number for number, crunch in CRUNCHES.items() if crunch == CRUNCH)
    choosing = nbformat.v4.new_code_cell(CHOOSING.format(variable=CHOICE, number=number).strip(), id="crunch")
    notebook.cells.insert(1, choosing)
    return notebook


def read(path: Path) -> NotebookNode:
    """The notebook in a file, for this process's crunch. Raises DataError for what is no notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        said = " ".join(str(error).split())  # the reader looks into whatever JSON there is
        raise DataError(f"{path}: not a notebook, or a broken one ({said})") from error
    return adapted(notebook, path.parent)
