# ruff: noqa: INP001, S102 - no package: the client executes this file by its path; it runs the project's own code
"""The runner our own hub has for broad-obesity-2: that of crunch 1, which takes the crunch from this file's place."""

from pathlib import Path

SHARED = Path(__file__).parents[2] / "broad-obesity-1" / "scoring" / "runner.py"
exec(compile(SHARED.read_text(encoding="utf-8"), SHARED, "exec"))
