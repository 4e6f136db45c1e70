"""What the notebook does around the method: install, sign in, fetch public sources, look at its copies of the code.

In: the packages of this machine, a clone token, names of sources, the notebook that is open. Out: nothing, or one line
that says what to do: then the cell fails without a traceback, and nothing below it runs. Only Python itself is needed
to import this.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contract import CRUNCH, MODEL_FOLDER

NEEDED = Path(__file__).resolve().with_name("requirements.txt")  # written by the bundle alone
TOKENS = f"https://hub.crunchdao.com/competitions/{CRUNCH.name}/submit/notebook"
NO_NETWORK = ("ConnectionError", "NameResolutionError", "Max retries", "ConnectTimeout", "ProxyError")


class Stop(Exception):  # noqa: N818 - no error of the program: the user has something to do
    """Ends a cell of a notebook with one line, and with it "Run all"."""

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        return [f"Stopped: {self}"]


def install() -> None:
    """Install what is missing of the packages that the one-file notebook uses; on your machine `make` has done it.

    Raises Stop when pip cannot.
    """
    lines = NEEDED.read_text(encoding="utf-8").split() if NEEDED.exists() else []
    missing = [line for line in lines if not _is_installed(line)]
    if not missing:
        return
    print("Installing", ", ".join(missing), flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Stop(
            f"pip could not install {', '.join(missing)} ({last[0]}). Is there a network? On Kaggle, switch on "
            "Settings > Internet; then run this cell again."
        )
    importlib.invalidate_caches()  # this process looked at the folder of packages before they were there


def _is_installed(line: str) -> bool:
    """Whether the package of a line such as `numpy>=2.0` is there in that version."""
    name, bounds = re.match(r"([\w.-]+)(.*)", line).groups()  # type: ignore[union-attr] # the bundle wrote the line
    try:
        found = version(name)
    except PackageNotFoundError:
        return False
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 - comes with every notebook, not with Python

    return SpecifierSet(bounds).contains(found, prereleases=True)


def sign_in(token: str) -> None:
    """Set this folder up with the crunch client and fetch the data. Raises Stop when either fails."""
    client = [sys.executable, "-m", "crunch"]
    setup = [*client, "setup-notebook", "--submission", "scratch", "--no-data", CRUNCH.name, token]
    done = subprocess.run(setup, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode and any(word in said for word in NO_NETWORK):
        raise Stop(
            "the platform cannot be reached. Check the network (on Kaggle: Settings > Internet) and run this cell "
            "again, or leave TOKEN empty to work with demo data."
        )
    if done.returncode:
        last = " ".join(said.partition("---")[2].split("\n\n")[0].split()) or (said.strip().splitlines() or [""])[-1]
        raise Stop(f"the token was not accepted ({last}) Copy a new one from {TOKENS}, paste it above, run all again.")
    print("Signed in. Fetching the data, which can take a while.", flush=True)
    shell = get_ipython()  # type: ignore[name-defined] # noqa: F821 - in a notebook: shows the client's progress
    shell.system(f'"{sys.executable}" -m crunch download')
    if shell.user_ns.get("_exit_code"):
        raise Stop("the data could not be fetched: the lines above say why. Run this cell again to go on.")


def fetch(sources: Iterable[str], folder: str | Path = ".") -> None:
    """Put public sources (`python -m workbench.sources list`) into `resources/`; nothing happens where none is named.

    Says which sentences the method description needs for them. Raises Stop when one cannot be had.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if not names:
        return
    from helpers import DataError  # noqa: PLC0415 - `install` sees to what it needs
    from workbench.sources import record, steps  # noqa: PLC0415

    resources = Path(folder, MODEL_FOLDER)
    try:
        steps.get(names, resources, Path(folder, steps.CACHE))
        print("Section 6 must credit them, between its two marks:\n" + record.description(resources))
    except DataError as error:
        raise Stop(str(error)) from None


def check_copies(folder: str | Path = ".") -> None:
    """Compare the files that the open notebook embeds with those in `folder`: submitting writes the embedded ones.

    Only the notebooks that the client can read from within (Colab, Kaggle) are looked at: elsewhere it sends nothing.
    Raises Stop where a file differs from its copy, and where the method description does not credit external data.
    """
    from crunch.notebook import IPyNbNotAvailableError, NotebookEnvironment  # noqa: PLC0415 - installed by `install`
    from crunch_convert.notebook import extract_from_cells  # noqa: PLC0415

    try:
        cells = NotebookEnvironment.detect().extract_ipynb()["cells"]
    except IPyNbNotAvailableError:
        return
    files = extract_from_cells(cells, print=None).embedded_files
    for file in files:
        path = Path(folder, file.path)
        if path.exists() and path.read_text(encoding="utf-8").strip() != file.content:
            raise Stop(
                f"{file.path} beside the notebook is not the {file.path} in the notebook's own cell, which submitting "
                "would write over it. Nothing was sent. To send the file, delete that cell; to send the cell, copy its "
                "text into the file and run all cells again."
            )
    from workbench.sources.record import uncredited  # noqa: PLC0415 - now that the files are those of this notebook

    described = next((file.content for file in files if file.path == CRUNCH.description_file), "")
    if missing := uncredited(described, Path(folder, MODEL_FOLDER)):
        raise Stop(" ".join(missing))
