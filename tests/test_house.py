"""The files that travel to the platform: what each may import, and that the examples in them are true."""

import ast
import doctest
import importlib
import sys
from pathlib import Path

import pytest

import contract
from contract import TRAVELLING

ROOT = Path(contract.__file__).parent
STANDARD = {
    "contract.py": "dataclasses os",
    "helpers.py": "collections concurrent contextlib contextvars copy dataclasses fcntl functools hashlib io itertools "
    "json os pathlib shutil threading typing warnings weakref zlib",
    "screens.py": "collections dataclasses pathlib re typing warnings",
    "knowledge.py": "collections dataclasses gzip hashlib pathlib re typing warnings",
    "response.py": "collections dataclasses warnings",
    "combinations.py": "collections dataclasses itertools typing warnings",
    "method.py": "collections copy dataclasses inspect pathlib typing warnings",
}
OTHERS = {
    "contract.py": "",
    "helpers.py": "anndata h5py numpy pandas psutil scipy sklearn threadpoolctl tqdm zarr",
    "screens.py": "anndata h5py numpy pandas scipy threadpoolctl",
    "knowledge.py": "anndata numpy pandas scipy",
    "response.py": "numpy pandas scipy sklearn",
    "combinations.py": "numpy pandas scipy sklearn",
    "method.py": "anndata h5py numpy pandas threadpoolctl",
}


def imports(name):
    """The packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse((ROOT / name).read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module.split(".")[0] for module in found} - {"__future__"}


@pytest.mark.parametrize("name", TRAVELLING)
def test_a_file_imports_what_it_may_and_the_files_before_it(name):
    """No network, no processes, no pickle: what is not on the list does not travel."""
    before = {file.removesuffix(".py") for file in TRAVELLING[: TRAVELLING.index(name)]}
    assert imports(name) <= before | set(STANDARD[name].split()) | set(OTHERS[name].split())
    assert set(STANDARD[name].split()) <= sys.stdlib_module_names


@pytest.mark.parametrize("line", ["import ssl, ftplib", "def f():\n    from socket import socket", "import workbench"])
def test_the_list_refuses_a_network_and_what_stays_at_home(tmp_path, monkeypatch, line):
    for name in TRAVELLING:
        (tmp_path / name).write_text((ROOT / name).read_text() + f"\n{line}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name in TRAVELLING:
        with pytest.raises(AssertionError):
            test_a_file_imports_what_it_may_and_the_files_before_it(name)


@pytest.mark.parametrize("name", TRAVELLING)
def test_nothing_is_imported_or_run_by_the_back_door(name):
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        word = getattr(called, "id", "") or getattr(called, "attr", "")
        assert word not in {"__import__", "import_module", "exec", "eval", "system", "popen", "read_pickle"}
        assert not isinstance(node, ast.keyword) or node.arg != "allow_pickle"
        # The cloud has no sockets, and processes talk by them.
        assert not isinstance(node, ast.alias) or node.name != "ProcessPoolExecutor"


@pytest.mark.parametrize("name", TRAVELLING)
def test_examples_in_the_docstrings_are_true(name):
    result = doctest.testmod(importlib.import_module(name.removesuffix(".py")))
    assert result.failed == 0
    assert result.attempted > 0 or ">>>" not in (ROOT / name).read_text()
