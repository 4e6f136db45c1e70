"""The notebook of crunch 1 is the one in the repository; what differs in crunch 2 is tested in `crunch_2`."""

from pathlib import Path

import nbformat
import pytest

from helpers import DataError
from workbench import notebooks

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebook.ipynb"


def test_the_notebook_of_crunch_1_is_as_it_lies_there():
    assert notebooks.read(NOTEBOOK) == nbformat.read(NOTEBOOK, as_version=4)


def test_what_is_no_notebook_is_said_in_one_line(tmp_path):
    path = tmp_path / "notebook.ipynb"
    for text in ("", "{", "[1]", '{"cells": 3}'):
        path.write_text(text)
        with pytest.raises(DataError, match="not a notebook, or a broken one") as caught:
            notebooks.read(path)
        assert "\n" not in str(caught.value)
