"""`python -m workbench.compare` when something stops it: nothing stays behind, and what was computed is printed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_infer

from workbench import compare

ROOT = Path(compare.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, demo_folder, trained, challenge):
    folder = tmp_path_factory.mktemp("predicted")
    run_infer(demo_folder, trained, folder, challenge.local_proportions.index, challenge.genes_to_predict)
    return folder


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_in_the_middle_its_temporary_folder_goes(predicted, demo_folder, tmp_path, stop, status):
    command = [sys.executable, "-m", "workbench.compare", demo_folder, predicted]
    places = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=places, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(stop)
    _, error = process.communicate()
    assert process.returncode == status
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_wrong_prediction_is_found_before_the_baselines_are_fitted(predicted, demo_folder, challenge, monkeypatch):
    def fitted(*_, **__):
        pytest.fail("the baselines came first")

    monkeypatch.setattr(compare, "score_methods", fitted)
    with pytest.raises(compare.helpers.DataError, match="no such file"):
        compare.compare(challenge, predicted / "nowhere")


def test_a_table_that_cannot_be_written_at_the_end_costs_no_result(
    predicted, demo_folder, tmp_path, monkeypatch, capsys
):
    """The folder goes while the scores are computed."""
    score, out = compare.helpers.score, tmp_path / "tables" / "table.csv"
    out.parent.mkdir()

    def score_and_spoil(*arguments, **options):
        if out.parent.is_dir():
            out.parent.rmdir()
            out.parent.write_text("")
        return score(*arguments, **options)

    monkeypatch.setattr(compare.helpers, "score", score_and_spoil)
    monkeypatch.setattr(sys, "argv", ["compare", str(demo_folder), str(predicted), "--out", str(out)])
    with pytest.raises(SystemExit, match=r"^error: .*table\.csv: could not be written"):
        compare.main()
    assert "Pearson delta (higher is better)" in capsys.readouterr().out
