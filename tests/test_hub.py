"""The real crunch client against our hub: no network, no token, and never a change to a real project."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from threading import Timer

import pytest
import requests
from crunch.api import ApiException, Client
from crunch_convert.requirements_txt import CrunchHubWhitelist

from workbench import hub as hub_module
from workbench.hub import environment, serve, write_project

ROOT = Path(__file__).resolve().parents[1]
MAIN = dedent("""
    import os
    import anndata as ad
    import numpy as np
    import pandas as pd

    def train(data_directory_path, model_directory_path):
        print("train got", data_directory_path, model_directory_path)
        if os.environ.get("RAISE"):
            raise ValueError("broken on purpose")

    def infer(
        prediction_h5ad_file_path, program_proportion_csv_file_path, predict_perturbations, genes_to_predict,
        cells_per_perturbation=100,
    ):
        print("infer got", *predict_perturbations, *genes_to_predict)
        obs = pd.DataFrame({"gene": np.repeat(predict_perturbations, cells_per_perturbation)}).rename(str)
        X = np.zeros((len(obs), len(genes_to_predict)), dtype=np.float32)
        ad.AnnData(X, obs, pd.DataFrame(index=genes_to_predict)).write_h5ad(prediction_h5ad_file_path)
        table = pd.DataFrame({"gene": predict_perturbations, "pre_adipo": 0.3, "adipo": 0.4, "lipo": 0.1, "other": 0.3})
        table.to_csv(program_proportion_csv_file_path, index=False)
""")


def write_tiny_project(folder: Path) -> Path:
    """main.py, requirements with one package that no whitelist knows, and the small files of data/."""
    for name in ("data", "resources", "prediction"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").write_text(MAIN)
    (folder / "requirements.txt").write_text("numpy\nscikit-learn\nnever-heard-of-it\n")
    (folder / "resources" / "model.txt").write_text("a model")
    (folder / "data" / "program_proportion_local_gtruth.csv").write_text("gene,adipo\nZBTB20,0.3\nCHD4,0.2\n")
    (folder / "data" / "predict_perturbations.txt").write_text("PPARG\nCEBPA\n")
    (folder / "data" / "genes_to_predict.txt").write_text("PLIN1\nADIPOQ\nLPL\n")
    (folder / "data" / ".cells.zip.uncompressed").write_text("123")  # what a real download of a zip leaves
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_tiny_project(tmp_path_factory.mktemp("hub") / "project")


@pytest.fixture(scope="module")
def hub(project):
    with serve(folder=project) as hub:
        yield hub


def run_python(hub, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Python with the hub's variables, in a project folder; stdout and stderr as one text."""
    variables = {**os.environ, **environment(hub), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture(scope="module")
def tested(hub, project):
    return run_python(hub, project, "-m", "crunch", "test")


def test_crunch_test_runs_train_then_infer_and_writes_both_files(tested, project):
    assert tested.returncode == 0, tested.stdout
    train, infer = tested.stdout.index("train got data resources"), tested.stdout.index("infer got ZBTB20 CHD4 PLIN1")
    assert train < infer
    assert "the platform would refuse" not in tested.stdout
    written = {path.name for path in (project / "prediction").iterdir()}
    assert written == {"prediction.h5ad", "predict_program_proportion.csv"}


def test_library_scan_flags_only_the_unknown_package(tested):
    flagged = [line for line in tested.stdout.splitlines() if "forbidden library" in line]
    assert len(flagged) == 1
    assert "never-heard-of-it" in flagged[0]


def test_crunch_test_leaves_the_data_folder_as_it_is(tested, project):
    assert tested.returncode == 0
    assert (project / "data" / ".cells.zip.uncompressed").read_text() == "123"
    assert len(list((project / "data").iterdir())) == 4


def test_the_log_names_what_the_client_asked_for_and_keeps_no_token(tested, hub):
    assert tested.returncode == 0
    release = "GET /v2/competitions/broad-obesity-1/rounds/1/phases/submission/data-release?sizeVariant=DEFAULT"
    assert release in hub.requests
    assert "GET /v2/libraries?language=PYTHON&name=numpy" in hub.requests
    assert hub_module.TOKEN not in " ".join(hub.requests)


def test_crunch_test_exits_non_zero_when_the_submission_raises(hub, project):
    raised = run_python(hub, project, "-m", "crunch", "test", RAISE="1")
    assert raised.returncode == 1
    assert "ValueError: broken on purpose" in raised.stdout


def test_push_dry_lists_the_code_and_the_model(tested, hub, project):
    assert tested.returncode == 0
    refused = run_python(hub, project, "-m", "crunch", "push", "--dry", "-m", "a message")
    assert refused.returncode == 1
    assert "- never-heard-of-it" in refused.stdout

    (project / "requirements.txt").write_text("numpy\nscikit-learn\n")
    pushed = run_python(hub, project, "-m", "crunch", "push", "--dry", "-m", "a message")
    assert pushed.returncode == 0, pushed.stdout
    assert "found code file: main.py" in pushed.stdout
    assert "found model file: model.txt" in pushed.stdout
    assert "dry run, not uploading files" in pushed.stdout
    assert "genes_to_predict" not in pushed.stdout
    assert not any(line.startswith("POST") for line in hub.requests)


def test_connect_points_a_client_that_is_already_imported_at_the_hub(hub, tmp_path):
    """What a notebook does, in a plain script: `test()` runs, and an exception of the submission comes out of it."""
    folder = write_tiny_project(tmp_path / "notebook")
    (folder / ".crunchdao" / "project.json").unlink()
    (folder / "script.py").write_text(
        MAIN
        + dedent("""
            import crunch
            from workbench.hub import connect
            hub = connect()
            tools = crunch.load_notebook()
            tools.test()
            os.environ["RAISE"] = "1"
            try:
                tools.test(skip_whitelisted_library_scan=True)
            except ValueError as error:
                print("test() raised", error, len(hub.requests) > 0)
        """)
    )
    ran = run_python(hub, folder, "script.py", CRUNCH_API_BASE_URL="http://127.0.0.1:9/")
    assert ran.returncode == 0, ran.stdout
    assert "infer got ZBTB20 CHD4" in ran.stdout
    assert "test() raised broken on purpose True" in ran.stdout


def test_connect_refuses_when_another_setting_wins(hub, tmp_path):
    script = "import crunch; from workbench.hub import connect; connect()"
    refused = run_python(hub, tmp_path, "-c", script, CRUNCH_ENVIRONMENT="production")
    assert refused.returncode == 1
    assert "RuntimeError: CRUNCH_ENVIRONMENT makes the client use" in refused.stdout


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "v1/nothing"),
        ("GET", "v1/competitions/other"),
        ("POST", "v1/uploads"),
        ("GET", ""),
        ("POST", "v2/users/@me"),
    ],
)
def test_unknown_requests_get_a_404_in_json(hub, method, path):
    response = requests.request(method, hub.url + path, json={"name": "x"}, timeout=10)
    assert response.status_code == 404
    assert response.json()["code"] == "NOT_SERVED_OFFLINE"
    assert f"{method} /{path}" in response.json()["message"]


def test_the_client_understands_the_404(hub):
    with pytest.raises(ApiException, match="this hub is offline and does not serve GET /v1/competitions/other"):
        Client(hub.url, None).competitions.get("other")


def test_libraries_are_answered_for_both_readers(hub):
    convert = CrunchHubWhitelist(api_base_url=hub.url)  # asks for "//v2/libraries"
    assert convert.find_library(alias="sklearn").name == "scikit-learn"
    assert convert.find_library(name="Scikit-Learn").standard is False
    assert convert.find_library(alias="crunch").name == "crunch-cli"
    assert convert.find_library(alias="collections").standard is True
    assert convert.find_library(name="never-heard-of-it") is None

    libraries = list(Client(hub.url, None).libraries.iter())
    names = {library.name for library in libraries}
    assert {"anndata", "scanpy", "json"} <= names
    assert "jupyter" not in names, "requirements.txt is ours; what is allowed is not"
    assert len(names) == len(libraries)
    page = requests.get(hub.url + "v2/libraries?page=1&size=2", timeout=10).json()
    assert [library["name"] for library in page["content"]] == [library.name for library in libraries[2:4]]


def test_users_are_answered(hub):
    assert Client(hub.url, None).users.me.login == Client(hub.url, None).users.get(1).login


def test_setup_signs_in_with_the_placeholder_and_with_no_other_token(hub, tmp_path):
    setup = ["-m", "crunch", "setup", "--force", "--submission", "scratch", "--no-data", "--token"]
    refused = run_python(hub, tmp_path, *setup, "a-bad-token", "broad-obesity-1", "first", ".")
    assert refused.returncode == 1
    assert "Your token seems to have expired or is invalid." in refused.stdout
    done = run_python(hub, tmp_path, *setup, hub_module.TOKEN, "broad-obesity-1", "first", ".")
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / ".crunchdao" / "project.json").read_text()) == hub_module.PROJECT
    assert (tmp_path / ".crunchdao" / "token").read_text() == hub_module.TOKEN


REAL = {"competitionName": "broad-obesity-1", "projectName": "mine", "userId": 42, "sizeVariant": "LARGE"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"project.json": json.dumps(hub_module.PROJECT), "token": hub_module.TOKEN}),
        ({"project.json": json.dumps(REAL), "token": "real"}, {"project.json": json.dumps(REAL), "token": "real"}),
        ({"project.json": json.dumps(REAL)}, {"project.json": json.dumps(REAL)}),  # it signs in with an API key
        ({"token": "real"}, {"project.json": json.dumps(hub_module.PROJECT), "token": "real"}),
    ],
    ids=["empty folder", "real project", "real project, no token", "only a token"],
)
def test_a_real_project_is_never_overwritten(tmp_path, before, after):
    (tmp_path / ".crunchdao").mkdir()
    for name, text in before.items():
        (tmp_path / ".crunchdao" / name).write_text(text)
    write_project(tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / ".crunchdao").iterdir()} == after


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_the_variables_and_serves_until_interrupted(tmp_path, stop):
    """Started as a shell starts a background job: with SIGINT ignored."""
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", sys.executable, "-m", "workbench.hub"]
    command += ["--project", str(tmp_path)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=buffered, stdout=pipe, stderr=pipe, text=True) as process:
        watchdog = Timer(20, process.kill)  # readline would wait for ever for a line that does not come
        watchdog.start()
        lines = [process.stdout.readline().removeprefix("export ").strip() for _ in range(3)]
        variables = dict(line.split("=", 1) for line in lines)
        answer = requests.get(variables["CRUNCH_API_BASE_URL"] + "v1/competitions/broad-obesity-1", timeout=10)
        process.send_signal(stop)
        assert process.wait() == 0, process.stderr.read()
        watchdog.cancel()

    assert answer.json()["format"] == "UNSTRUCTURED"
    assert (tmp_path / ".crunchdao" / "token").read_text() == hub_module.TOKEN
    source = Path(variables["CRUNCH_COMPETITIONS_SOURCE"].removeprefix("local://"))
    assert (source / "competitions" / "broad-obesity-1" / "scoring" / "runner.py").is_file()


def test_the_log_keeps_no_key_and_no_token(project):
    with serve(folder=project) as hub:
        requests.get(hub.url + "v2/users/@me?apiKey=SECRET&sizeVariant=DEFAULT&token=SECRET", timeout=10)
        requests.get(hub.url + "v2/users/@me?SECRET", timeout=10)
        requests.get(hub.url + "v2/libraries?name=numpy&page=", headers={"Authorization": "SECRET"}, timeout=10)
        assert hub.requests == [
            "GET /v2/users/@me?apiKey=...&sizeVariant=DEFAULT&token=...",
            "GET /v2/users/@me?SECRET=...",
            "GET /v2/libraries?name=numpy&page=",
        ]


def raw(hub, *lines, body=b""):
    """What the hub answers to these very bytes."""
    with socket.create_connection(("127.0.0.1", int(hub.url.rsplit(":", 1)[1].strip("/"))), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


POST = "POST /v2/project-tokens/upgrade HTTP/1.1"


@pytest.mark.parametrize(
    ("lines", "body", "status", "says"),
    [
        (["GET /v2/libraries?page=abc HTTP/1.1"], b"", 400, "page: 'abc' is not a whole number"),
        (["GET /v2/libraries?page=-1 HTTP/1.1"], b"", 400, "page: '-1' is not a whole number"),
        (["GET /v2/libraries?size=1e3 HTTP/1.1"], b"", 400, "size: '1e3' is not a whole number"),
        ([POST, "Content-Length: abc"], b"{}", 400, "Content-Length: 'abc' is not a whole number"),
        ([POST, "Content-Length: -5"], b"{}", 400, "Content-Length: '-5' is not a whole number"),
        ([POST, "Content-Length: 1000000000000000"], b"{}", 413, "Content-Length: '1000000000000000' is not"),
        ([POST, f"Content-Length: {'9' * 5000}"], b"{}", 413, "Content-Length: "),
        ([POST, "Content-Length: 5"], b"{not}", 400, "not a JSON object"),
        ([POST, "Content-Length: 4"], b"\xff\xfe{}", 400, "not a JSON object"),
        ([POST, "Content-Length: 3"], b"[1]", 400, "not a JSON object"),
        ([POST, "Content-Length: 100000"], b"[" * 100_000, 400, "not a JSON object"),
        ([POST], b"", 400, "not a JSON object"),
    ],
)
def test_garbage_is_refused_and_the_hub_goes_on(hub, capfd, lines, body, status, says):
    answer = raw(hub, *lines, body=body)
    assert answer.splitlines()[0].split()[1] == str(status), answer
    assert says in answer
    assert requests.get(hub.url + "v2/users/@me", timeout=10).status_code == 200
    assert capfd.readouterr().err == ""


def test_a_large_body_is_read_and_dropped(hub, peak_memory):
    """Unread, it would reset the connection; kept, it would take its size of memory."""

    def upload():
        parts = (bytes(1_000_000) for _ in range(300))
        response = requests.post(hub.url + "v1/uploads", data=Body(parts, 300_000_000), timeout=60)
        assert response.status_code == 404

    assert peak_memory(upload) < 20e6


class Body:
    """300 MB that nobody holds."""

    def __init__(self, parts, length):
        self.parts, self.length = parts, length

    def __len__(self):
        return self.length

    def read(self, _):
        return next(self.parts, b"")


def test_clients_that_hang_up_are_no_news(hub, capfd):
    port = int(hub.url.rsplit(":", 1)[1].strip("/"))
    for sent in (b"", b"GET /v2/lib", f"{POST}\r\nContent-Length: 100\r\n\r\nhalf".encode()):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            connection.sendall(sent)
    assert requests.get(hub.url + "v2/users/@me", timeout=10).status_code == 200
    assert capfd.readouterr().err == ""


def command(*arguments):
    words = [sys.executable, "-m", "workbench.hub", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)


def test_a_port_that_is_taken_or_does_not_exist_is_said(hub, tmp_path):
    port = hub.url.rsplit(":", 1)[1].strip("/")
    taken = command("--port", port)
    assert (taken.returncode, taken.stdout) == (1, "")
    said = taken.stderr.removeprefix("error: ").strip()
    assert said.endswith(f"port {port} cannot be had: Address already in use; choose another")
    assert len(taken.stderr.splitlines()) == 1
    for wrong in ("99999", "-1", "http"):
        refused = command("--port", wrong)
        assert refused.returncode == 2
        assert f"argument --port: '{wrong}' is not a whole number from 0 to 65535" in refused.stderr


def test_a_project_that_is_no_folder_or_holds_no_json_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    refused = command("--project", tmp_path / "file")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert "file: cannot be written to (Not a directory)" in refused.stderr
    (tmp_path / ".crunchdao").mkdir()
    for broken in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / ".crunchdao" / "project.json").write_bytes(broken)
        refused = command("--project", tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
        assert "project.json: not JSON" in refused.stderr
