"""What code imports, and the packages that this takes. The requirements of a submission and of the bundle follow it.

In: Python source, `requirements.txt` (for the versions) and the hub's list (for the names of packages).
Out: names of modules, and lines of a `requirements.txt`. Next: `workbench/submission.py` and `workbench/bundle.py`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from contract import REQUIREMENTS_FILE, TRAVELLING
from helpers import DataError
from workbench.hub import allowed_packages

ROOT = Path(__file__).resolve().parents[1]
OWN = {*(name.removesuffix(".py") for name in TRAVELLING), "workbench"}
# Modules of packages that another package always brings.
COME_ALONG = {
    "threadpoolctl": "scikit-learn",
    "zarr": "anndata",
    "crunch_convert": "crunch-cli",
    "IPython": "jupyter",
    "jupyter_client": "nbclient",
}


def imported(source: str) -> set[str]:
    """The modules that `source` imports, at the top or in a function. `from a import b` gives `a` and `a.b`.

    Raises DataError for what is not Python, with the line.
    """
    found: set[str] = set()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "text", None) or source.strip().split("\n")[0]
        raise DataError(f"not Python: {line.strip()!r} ({getattr(error, 'msg', error)})") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def third_party(modules: Iterable[str]) -> set[str]:
    """The top-level names of `modules` that are neither the project's nor Python's own, nor come along with others."""
    tops = {module.split(".")[0] for module in modules}
    return tops - OWN - set(sys.stdlib_module_names) - set(COME_ALONG)


def requirement_lines(names: Iterable[str]) -> list[str]:
    """One line of a requirements file per import name or package, with the version that `requirements.txt` has for it.

    A name that no list knows stands as it is: the platform then says whether it allows it.
    """
    packages = {alias: package for package, aliases in allowed_packages().items() for alias in aliases}
    lines = (ROOT / REQUIREMENTS_FILE).read_text(encoding="utf-8").splitlines()
    ours = {match.group(): line for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))}
    wanted = {packages.get(name, name) for name in names}
    return sorted(ours.get(package, package) for package in wanted)
