"""The submission in this folder under the runner as in the cloud: no training, all targets, a process of its own.

    python cloud.py PLATFORM_FOLDER [COMPETITION]

Nothing of the project is imported here: `main.py` must find what it needs beside itself.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from crunch.command.test import load_user_code
from crunch.runner.unstructured import RunnerContext, RunnerExecutorContext, UserModule
from crunch.unstructured import RunnerModule, deduce_code_loader
from crunch.utils import smart_call


class Executor(RunnerExecutorContext):
    """Where the submission runs: on this machine, or in the cloud's sandbox."""

    def __init__(self, *, local: bool) -> None:
        self._local = local

    @property
    def is_local(self):
        return self._local

    def trip_data_fuse(self):
        raise AssertionError("this competition reads its data throughout")


class Submission(UserModule):
    """A user module with the functions given."""

    def __init__(self, **functions) -> None:
        self._module = ModuleType("main")
        vars(self._module).update(functions)

    @property
    def module(self):
        return self._module


class Context(RunnerContext):
    """Runs the runner's commands in this process; parameters go through JSON, as on their way to the sandbox."""

    started_at = datetime.now(tz=UTC)
    timeout = None
    train_frequency = chain_height = 1
    is_submission_phase = True
    has_model = is_determinism_check_enabled = force_first_train = is_local = None

    def __init__(
        self, runner: RunnerModule, folder: Path, submission: UserModule, *, local: bool, train: bool, twice=False
    ) -> None:
        self.runner, self.submission = runner, submission
        self.is_local, self.force_first_train, self.is_determinism_check_enabled = local, train, twice
        self.folders = {f"{name}_directory_path": str(folder / name) for name in ("data", "model", "prediction")}
        self.commands: list[str] = []
        self.errors: list[str] = []
        self.deterministic: bool | None = None

    def report_determinism(self, deterministic):
        self.deterministic = deterministic

    def log(self, message, *, important=False, error=False):
        if error:
            self.errors.append(message)
        return True

    def execute(self, *, command, parameters=None, **_):
        self.commands.append(command)
        executor = Executor(local=self.is_local)
        handlers = self.runner.execute(context=executor, module=self.submission, **self.folders)
        smart_call(handlers[command], json.loads(json.dumps(parameters or {})))

    def run(self) -> "Context":
        self.runner.run(context=self, tracer=None, **self.folders)
        return self


def load_runner(platform: str | Path, competition: str = "broad-obesity-1") -> RunnerModule:
    """The runner of the local hub, by the client's own loader."""
    source = f"local://{platform}"
    return RunnerModule.load(deduce_code_loader(competition_name=competition, file_name="runner", source=source))


if __name__ == "__main__":
    main = load_user_code("main.py")
    context = Context(load_runner(*sys.argv[1:]), Path.cwd(), Submission(**vars(main)), local=False, train=False)
    context.folders["model_directory_path"] = "resources"
    errors = context.run().errors
    print(*errors, sep="\n")
    sys.exit(len(errors))
