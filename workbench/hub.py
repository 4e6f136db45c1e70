"""A hub on this machine that the real crunch client talks to: a submission is tried with no network and no token.

In: a project folder (`main.py`, `data/`, `resources/`, `prediction/`) and the client's requests.
Out: the answers that `crunch setup`, `crunch test`, `crunch_tools.test()`, `crunch convert --requirements` and
`crunch push --dry` ask for. It takes one token, `TOKEN`, and allows the packages of `platform/libraries.txt`.
Next: `workbench/platform/.../runner.py`, which the client runs, and `workbench/validate.py`, which reads what it wrote.

In a notebook, a cell before `crunch.load_notebook()` (the first line keeps it out of `main.py` and of the scan):

    # @crunch/keep:none
    from workbench.hub import connect
    hub = connect()

In a shell: `python -m workbench.hub --project .` prints the variables to export, and serves until interrupted.
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode

from contract import CRUNCH
from workbench.commands import check_folder, command_line, whole

PLATFORM = Path(__file__).resolve().parent / "platform"  # holds competitions/NAME/scoring/runner.py
LIBRARIES = PLATFORM / "libraries.txt"  # what the hub allows: its own list, so that it can refuse a submission

# What `crunch setup` writes. The token is a placeholder: the real platform refuses it.
PROJECT = {"competitionName": CRUNCH.name, "projectName": "offline", "userId": 1, "sizeVariant": "DEFAULT"}
TOKEN = "offline-placeholder"  # noqa: S105 - no secret

LONG_AGO, FAR_AHEAD = "2020-01-01T00:00:00", "2100-01-01T00:00:00"
USER = {"id": 1, "login": "offline"}
ROUND = {"id": 1, "number": 1, "start": LONG_AGO, "end": FAR_AHEAD}
PHASE = {"id": 1, "type": "SUBMISSION", "start": LONG_AGO, "end": FAR_AHEAD}
DATA_RELEASE = {"id": 1, "number": 1, "name": "offline", "embargo": 0, "numberOfFeatures": 0, "hash": None}
COMPETITION_ANSWER = {
    "id": 1,
    "name": CRUNCH.name,
    "displayName": "Obesity, offline",
    "shortDescription": "answered by workbench.hub",
    "start": LONG_AGO,
    "end": None,
    "status": "OPEN",
    "format": "UNSTRUCTURED",
    "mode": "OFFLINE",
    "splitKeyType": "STRING",
    "external": False,
    "documentationUrl": None,
    "notebookUrl": None,
    "hostedByName": "workbench.hub",
    "prizePoolShortText": "",
    "teamBased": False,
    "onlyTeamLeader": False,
    "maxTeamSize": 1,
    "projectCreationLimit": 1,
    "encryptSubmissions": False,
    "phalaKeyUrl": None,
    "hideTrainFrequency": True,
    "hideForceFirstTrain": False,
}


MOST_READ = 1_000_000  # bytes of a body that an answer may need; the rest is read and dropped
MOST_SENT = 1_000_000_000  # bytes of a body that is read at all
PATIENCE = 60  # seconds without a byte after which a connection is closed
LOGGED = ("language", "name", "page", "size", "sizeVariant")  # parameters whose values may be kept


class Hub:
    """A running hub, serving from a daemon thread since it was made; `with` closes it.

    `requests` is its log, one "METHOD /path?query" per request: no header, no token and no key is kept.
    """

    def __init__(self, port: int, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self._server = _Server(("127.0.0.1", port), partial(_Handler, self))
        self._thread = Thread(target=self._server.serve_forever, name="workbench-hub", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base address with a trailing slash, as the client wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    @cached_property
    def libraries(self) -> list[dict]:
        """The allowed packages and Python's own modules, as `v2/libraries` answers them."""
        packages = [(name, aliases, False) for name, aliases in allowed_packages().items()]
        modules = [(name, [name], True) for name in sorted(sys.stdlib_module_names)]
        return [_library(number, *entry) for number, entry in enumerate(packages + modules, start=1)]

    def wait(self) -> None:
        """Block until the hub is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def allowed_packages() -> dict[str, list[str]]:
    """The packages that the hub allows, each with its import names."""
    lines = [line.split("#")[0].split() for line in LIBRARIES.read_text(encoding="utf-8").splitlines()]
    return {name: aliases or [name.replace("-", "_")] for name, *aliases in filter(None, lines)}


def serve(port: int = 0, folder: str | Path = ".") -> Hub:
    """Start a hub on 127.0.0.1. `port` 0 takes any free port.

    `folder` is the project the client will run in; the hub only looks at the file names in its `data/`.
    Raises OSError when the port is taken.
    """
    try:
        return Hub(port, Path(folder).resolve())
    except OSError as error:
        raise OSError(error.errno, f"port {port} cannot be had: {error.strerror}; choose another") from error


def environment(hub: Hub) -> dict[str, str]:
    """The variables that point the client at `hub` (the third is what `crunch convert --requirements` reads)."""
    return {
        "CRUNCH_API_BASE_URL": hub.url,
        "CRUNCH_COMPETITIONS_SOURCE": f"local://{PLATFORM}",
        "CRUNCH_BASE_API_URL": hub.url,
    }


def connect(folder: str | Path = ".") -> Hub:
    """For notebooks: start a hub in this process and point the crunch client of this process at it.

    Writes the placeholder project into `folder` where none is; a real one stays as it is.
    Raises RuntimeError when another setting keeps the client away from the hub.
    """
    write_project(folder)
    hub = serve(folder=folder)
    os.environ.update(environment(hub))
    store = sys.modules.get("crunch.store")  # not imported yet: it will read the variables when it is
    if store is not None:
        store.reload()
        if store.api_base_url != hub.url:
            hub.close()
            raise RuntimeError(f"CRUNCH_ENVIRONMENT makes the client use {store.api_base_url}; unset it first.")
    return hub


def write_project(folder: str | Path = ".") -> None:
    """Write `.crunchdao/project.json` and `.crunchdao/token` into `folder` where absent, never over what is there.

    A real project without a token signs in with an API key; a placeholder token would come before that key, so none
    is written for it. Raises DataError for a project file that is not JSON, OSError where nothing can be written.
    """
    home = Path(folder) / ".crunchdao"
    home.mkdir(parents=True, exist_ok=True)
    project, token = home / "project.json", home / "token"
    if not project.exists():
        project.write_text(json.dumps(PROJECT), encoding="utf-8")
    if not token.exists() and _read_project(project) == PROJECT:
        token.write_text(TOKEN, encoding="utf-8")


def _read_project(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        from helpers import DataError  # noqa: PLC0415 - takes seconds, and a hub does without

        raise DataError(f"{path}: not JSON ({error}); `crunch setup` writes it anew, or delete it") from error


class _Refused(Exception):  # noqa: N818 - not an error of the hub
    """A request that cannot be answered: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Answer = dict | Callable[[Hub, dict[str, str]], dict]  # a function is given the query, or what was posted


def _library(number: int, name: str, aliases: list[str], standard: bool) -> dict:
    """One library with the fields of both readers: crunch_convert (`freeze`) and the client's API model (the rest)."""
    return {
        "id": number,
        "name": name,
        "language": "PYTHON",
        "standard": standard,
        "aliases": aliases,
        "freeze": False,
        "gpuRequirement": "OPTIONAL",
    }


def _find_libraries(hub: Hub, query: dict[str, str]) -> dict:
    """One page of the libraries whose name or import name is `query["name"]` (all of them when none is asked)."""
    wanted = query.get("name", "").lower()
    found = [
        library
        for library in hub.libraries
        if query.get("language", "PYTHON") == "PYTHON"
        and (not wanted or wanted in (library["name"].lower(), *map(str.lower, library["aliases"])))
    ]
    page, size = _number(query, "page", 0), _number(query, "size", 100)
    return {"content": found[page * size : (page + 1) * size], "pageNumber": page, "pageSize": size}


def _number(query: dict[str, str], name: str, default: int) -> int:
    try:
        return whole(0)(query[name]) if name in query else default
    except argparse.ArgumentTypeError as error:
        raise _Refused(400, f"{name}: {error}") from None


def _data_release(hub: Hub, _: dict[str, str]) -> dict:
    """A release that leaves `data/` as it is.

    The client deletes every `.NAME.uncompressed` marker that the release does not list, and a later real download
    would then fetch those files again; so the markers' files are listed, with the size that means "not given".
    """
    data = hub.folder / "data"
    files = {}
    for marker in sorted(data.rglob(".*.uncompressed")):
        name = marker.with_name(marker.name[1:].removesuffix(".uncompressed")).relative_to(data).as_posix()
        files[name] = {"name": name, "url": hub.url, "size": -1, "signed": True, "compressed": True}
    return {**DATA_RELEASE, "dataFiles": files}


def _upgrade(hub: Hub, posted: dict[str, str]) -> dict:
    """The clone token of `crunch setup` for a token of the project; any token but the placeholder is refused."""
    if posted.get("cloneToken") != TOKEN:
        return {"code": "INVALID_PROJECT_TOKEN", "message": "no such token on this hub", "tokenType": "TEMPORARY"}
    project = {"id": 1, "userId": USER["id"], "name": PROJECT["projectName"], "createdAt": LONG_AGO}
    project["competitionId"] = COMPETITION_ANSWER["id"]
    return {"id": 1, "type": "PERMANENT", "plain": TOKEN, "validUntil": None, "project": project}


_COMPETITION = f"competitions/{CRUNCH.name}"
_POSTED: dict[str, Answer] = {"v2/project-tokens/upgrade": _upgrade}
_ANSWERS: dict[str, Answer] = {
    "v2/libraries": _find_libraries,
    "v2/users/@me": USER,
    f"v2/users/{USER['id']}": USER,
    f"v1/{_COMPETITION}": COMPETITION_ANSWER,
    f"v1/competitions/{COMPETITION_ANSWER['id']}": COMPETITION_ANSWER,  # so `crunch setup` asks
    f"v1/{_COMPETITION}/rounds/@current": ROUND,
    f"v1/{_COMPETITION}/rounds/@last": ROUND,
    f"v1/{_COMPETITION}/rounds/1": ROUND,
    f"v2/{_COMPETITION}/rounds/1/phases/@current": PHASE,
    f"v2/{_COMPETITION}/rounds/1/phases/SUBMISSION": PHASE,
    f"v2/{_COMPETITION}/rounds/1/phases/submission/data-release": _data_release,
}


def _posted(body: bytes) -> dict:
    try:
        posted = json.loads(body)
    except (ValueError, RecursionError):
        posted = None
    if not isinstance(posted, dict):
        raise _Refused(400, "what was posted is not a JSON object")
    return posted


def _logged(query: str) -> str:
    """The query as the log has it: without the values of parameters that may be keys."""
    given = [(name, value if name in LOGGED else "...") for name, value in parse_qsl(query, keep_blank_values=True)]
    return f"?{urlencode(given, safe='.')}" if given else ""


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A traceback for errors of the hub alone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request in JSON, whatever its method."""

    def __init__(self, hub: Hub, *connection: Any) -> None:
        self.hub = hub
        super().__init__(*connection)

    timeout = PATIENCE

    def _reply(self) -> None:
        path, _, query = self.path.partition("?")  # not urlsplit: to it the client's "//v2/libraries" names a host
        path = unquote(path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}{_logged(query)}")
        try:
            status, answer = self._answer(path, query, self._body())
        except _Refused as refused:
            status, answer = refused.status, {"code": "REFUSED", "message": str(refused)}
        said = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _answer(self, path: str, query: str, body: bytes) -> tuple[int, dict]:
        """Status and answer. Raises _Refused for parameters and posted texts that are not what they should be."""
        answer = {"GET": _ANSWERS, "POST": _POSTED}.get(self.command, {}).get(path)
        if callable(answer):
            given = {key: values[-1] for key, values in parse_qs(query).items()}
            answer = answer(self.hub, given if self.command == "GET" else _posted(body))
        if answer is None:
            variables = "CRUNCH_API_BASE_URL, CRUNCH_BASE_API_URL and CRUNCH_COMPETITIONS_SOURCE"
            asked = f"{self.command} /{path}"
            message = f"this hub is offline and does not serve {asked}; unset {variables} for the real platform"
            return 404, {"code": "NOT_SERVED_OFFLINE", "message": message}
        return 403 if "code" in answer else 200, answer

    def _body(self) -> bytes:
        """What was sent, at most MOST_READ bytes of it; all is read, since unread it would reset the connection.

        Raises _Refused for a length that is no number, or more than MOST_SENT.
        """
        length = self.headers.get("Content-Length") or "0"
        try:
            left = whole(0, MOST_SENT)(length.strip())
        except argparse.ArgumentTypeError as error:
            self.close_connection = True
            raise _Refused(400 if not length.strip().isdecimal() else 413, f"Content-Length: {error}") from None
        kept = b""
        while left and (part := self.rfile.read(min(left, MOST_READ))):
            kept, left = kept or part, left - len(part)
        return kept

    do_GET = do_POST = do_PUT = do_DELETE = _reply  # noqa: N815 - the names http.server looks for

    def log_message(self, *_: object) -> None:
        """Silent: the log is `Hub.requests`, and stdout carries the variables."""


@command_line()
def main(arguments: list[str] | None = None) -> None:
    """Command line: print the variables, serve until interrupted (Ctrl+C, or SIGTERM)."""
    parser = argparse.ArgumentParser(prog="python -m workbench.hub", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="port on 127.0.0.1 (default: any free one)")
    parser.add_argument("--project", metavar="FOLDER", help="write the placeholder .crunchdao/ there, where absent")
    options = parser.parse_args(arguments)

    # A background job of a shell is started with SIGINT ignored: Python would then leave it so.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        if options.project is not None:
            check_folder(Path(options.project))
            write_project(options.project)
        with closing(serve(options.port, options.project or ".")) as hub:
            for name, value in environment(hub).items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            hub.wait()
    except KeyboardInterrupt:
        pass  # it is how the command ends


if __name__ == "__main__":
    main()
