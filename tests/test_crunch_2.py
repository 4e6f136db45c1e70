"""The tests of crunch 2 in a process of their own: one process works on one crunch."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_what_differs_in_crunch_2():
    """`CRUNCH=2 python -m pytest tests/crunch_2` says the same, test by test."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "tests/crunch_2"]
    known = {**os.environ, "CRUNCH": "2"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
