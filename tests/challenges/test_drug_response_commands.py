"""Drug response: evaluation and the command line."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from simulated_responses import GENES, simulated, write

from challenges.common import load_model
from challenges.drug_response import __main__ as cli
from challenges.drug_response import baselines, data, evaluate, models, networks, plots, training
from challenges.drug_response.kernel import ResponseProcess
from helpers import DataError
from workbench.pictures import style


@pytest.fixture
def table():
    return simulated()


@pytest.fixture
def files(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, *table)


def test_scores_are_what_their_names_say(table):
    _, test = table
    found = evaluate.measure(test * 0.5, test, "half").pivot_table("value", "sm_name", "metric")
    sizes = np.sqrt((test.to_numpy() ** 2).mean(axis=1))
    np.testing.assert_allclose(found["mean row-wise RMSE"], sizes / 2, rtol=1e-5)
    np.testing.assert_allclose(found["error relative to zeros"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[["Pearson", "cosine"]], 1.0, rtol=1e-5)
    zeros = evaluate.measure(test * 0, test, "zeros").pivot_table("value", "sm_name", "metric")
    assert (zeros[["Pearson", "cosine"]] == 0).all(axis=None)
    shuffled = evaluate.measure((test * 0.5).iloc[::-1, ::-1], test, "half").pivot_table("value", "sm_name", "metric")
    pd.testing.assert_frame_equal(shuffled, found)


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def test_train_predict_evaluate_from_the_command_line(files, table, capsys):
    train, test = table
    run("prepare", "--data", files)
    assert "B cells 4, NK cells 24, T cells 24" in capsys.readouterr().out
    run("repro", "--data", files, "--method", "kernel")
    first = (files / "build/drug_response/kernel.csv").read_bytes()
    run("repro", "--data", files, "--method", "kernel")
    assert (files / "build/drug_response/kernel.csv").read_bytes() == first
    written = pd.read_csv(files / "build/drug_response/kernel.csv")
    assert list(written.columns) == ["id", *GENES]
    np.testing.assert_allclose(written[GENES], ResponseProcess().fit(train.sort_index()).predict(test.index), atol=1e-3)
    run("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--method", "kernel", "--out", "table.csv")
    found = pd.read_csv("table.csv")
    assert list(found.columns[:6]) == ["method", "metric", "value", "low", "high", "n"]
    assert set(found["method"]) == {*baselines.BASELINES, "kernel"}
    assert (found["n"] == len(test)).all()
    assert (files / "build/drug_response/picture.png").stat().st_size > 10_000
    run("evaluate", "--data", files, "--method", "kernel", "--out", "folds.csv")
    assert (pd.read_csv("folds.csv")["n"] == 20).all()


@pytest.fixture
def small_table(tmp_path, monkeypatch):
    """The table of hyper-parameters, with small networks."""
    table = pd.read_csv(networks.TABLE, sep="\t")
    dense = table["kind"] == "dense"
    table.loc[dense, ["hidden", "dropout", "embedding", "n_dim", "epochs"]] = ["8,8", "0.1,0.1", 4, 10, 6]
    table.loc[~dense, ["hidden", "embedding", "n_dim", "epochs"]] = ["16,8", 16, 10, 4]
    table.to_csv(tmp_path / "networks.tsv", sep="\t", index=False)
    monkeypatch.setattr(networks, "TABLE", tmp_path / "networks.tsv")
    return tmp_path / "networks.tsv"


def test_repro_chains_both_stages_and_is_the_same_twice(files, small_table, capsys):
    (files / data.SAMPLE_FILE).write_text((files / data.QUERY_FILE).read_text())
    with pytest.raises(SystemExit, match=r"sample_submission.csv: genes that do not agree"):
        run("repro", "--data", files, "--method", "stage_2", "--quick")
    (files / data.SAMPLE_FILE).unlink()
    written = []
    for _ in range(2):
        run("repro", "--data", files, "--method", "stage_2", "--quick")
        written.append([(files / f"build/drug_response/{stage}.csv").read_bytes() for stage in models.STAGES[1:]])
    assert written[0] == written[1]
    assert written[0][0] != written[0][1]
    said = capsys.readouterr().out
    assert "stage_2: 20 x 1 networks, 2 epochs each" in said
    assert re.search(r"Training \(stage_1, stage_2\): about \d+ s", said)
    assert re.search(r"\n  stage_1: .*\n  stage_2: .*\nSubmit stage_[12]: ", said)
    second, about = load_model(files / "build/drug_response/stage_2.h5", *models.CLASSES)
    part = second.parts["stage_2"]
    assert (part.scale_, about["--quick"], len(part.networks_)) == (1.0, True, 20)
    queries = data.read_queries(files / data.QUERY_FILE)
    found = pd.read_csv(files / "build/drug_response/stage_2.csv", index_col="id")
    np.testing.assert_allclose(second.predict(data.pairs_of(queries)), found, atol=1e-3)
    with pytest.raises(SystemExit, match=r"stage_1.h5: trained with other --quick than stage_2 now"):
        run("train", "--data", files, "--method", "stage_2")
    with pytest.raises(SystemExit, match=r"stage_1.h5: trained with other --seed than stage_2 now"):
        run("train", "--data", files, "--method", "stage_2", "--quick", "--seed", 1)


def test_evaluate_trains_again_when_hyper_parameters_changed(files, small_table):
    arguments = ("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--method", "simple", "--quick")
    times = []
    for learning_rate in (None, None, 0.001):
        if learning_rate is not None:
            table = pd.read_csv(small_table, sep="\t").assign(learning_rate=learning_rate)
            table.to_csv(small_table, sep="\t", index=False)
        run(*arguments)
        times.append((files / "build/drug_response/simple.h5").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_every_method_is_measured_beside_every_baseline(files, table, small_table, capsys):
    run("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--quick", "--out", "table.csv")
    found = pd.read_csv("table.csv")
    paired = ["baseline", "difference", "difference_low", "difference_high", "win_rate"]
    assert list(found) == ["method", "metric", "value", "low", "high", "n", *paired]
    assert set(found["method"]) == {*baselines.BASELINES, *models.METHODS}
    assert found.notna().all(axis=None)
    rmse = found[found["metric"] == evaluate.METRICS[0]].set_index("method")
    later = rmse.index.isin(["stage_2", models.PLAIN])
    assert set(rmse["baseline"][later]) == {"stage_1"}
    assert set(rmse["baseline"][~later]) == {baselines.REFERENCE}
    gain = rmse.loc["stage_2", "value"] - rmse.loc["stage_1", "value"]
    assert rmse.loc["stage_2", "difference"] == pytest.approx(gain)
    assert f"stage_2 - stage_1: {gain:+.4f} (" in capsys.readouterr().out
    assert rmse.loc["stage_2", "value"] != rmse.loc[models.PLAIN, "value"]
    fitted = {name: load_model(files / f"build/drug_response/{name}.h5", *models.CLASSES)[0] for name in models.METHODS}
    folds = evaluate.out_of_fold(table[0].sort_index(), fitted)
    errors = folds[folds["metric"] == evaluate.METRICS[0]].groupby("method")["value"].mean()
    assert (errors[models.BLEND] <= errors[list(models.NEEDS[models.BLEND])] + 1e-6).all()


def test_the_choice_does_not_depend_on_the_answers(files, table, capsys):
    said = []
    for answers in (table[1], -table[1]):
        write(files, table[0], answers)
        run("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--method", "kernel", "--out", "t.csv")
        said.append(capsys.readouterr().out[-700:].partition("Which to submit")[2])
    assert said[0] == said[1]
    assert said[0].endswith("Submit kernel: the best out of fold.\n")


def long_table(**errors):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 30)  # of the compound, the same for all methods
    names = [f"D{i}" for i in range(30)]
    parts = [
        pd.DataFrame({"method": name, "sm_name": names, "metric": evaluate.METRICS[0], "value": noise + own})
        for name, own in errors.items()
    ]
    return pd.concat(parts)


def test_the_fastest_of_those_that_the_best_does_not_beat_is_chosen():
    wobble = np.where(np.arange(30) % 2, 0.05, -0.05)
    errors = {evaluate.REFERENCE: 1.0 + wobble / 2, "stage_1": 0.8, "transformer": 0.9}
    chance = evaluate.choose(long_table(**errors, kernel=0.803 + wobble))
    assert chance.method == "kernel"
    assert "faster than stage_1, which is not better by more than chance" in chance.text
    assert evaluate.RULE in chance.text
    sure = evaluate.choose(long_table(**errors, kernel=0.803 + wobble / 100))
    assert (sure.method, sure.text.endswith("Submit stage_1: the best out of fold.")) == ("stage_1", True)
    useless = evaluate.choose(long_table(**{evaluate.REFERENCE: 0.8 + wobble, "kernel": 0.799}))
    assert "no method beats the baseline by more than chance" in useless.text
    assert evaluate.choose(long_table(**{evaluate.REFERENCE: 0.8})).method is None


def test_the_picture_says_what_to_submit_and_draws_the_baseline():
    table = long_table(**{evaluate.REFERENCE: 1.0, "zeros": 1.1, "cell-type mean": 0.95, "simple": 0.9, "kernel": 0.8})
    (axes,) = plots.picture(table, evaluate.choose(table)).axes
    assert "2 of 2 methods beat the baseline" in axes.get_title(loc="left")
    assert "Submit kernel" in axes.get_title(loc="left")
    lines = {line.get_color() for line in axes.lines}
    assert lines == {"black", style.GREY, style.BLUE, style.ORANGE}
    baseline = table.loc[table["method"] == evaluate.REFERENCE, "value"].mean()
    assert any(list(line.get_xdata()) == [baseline, baseline] for line in axes.lines)


def test_answers_that_do_not_fit_are_refused(files, table):
    train, test = table
    with pytest.raises(DataError, match=r"genes that do not agree .* G4"):
        evaluate.on_truth(train, test.drop(columns="G4"), {})
    with pytest.raises(DataError, match=r"rows that are in de_train.parquet too: D00 in B cells"):
        evaluate.on_truth(train, pd.concat([test, train.iloc[:1]]), {})


def test_unknown_labels_get_the_mean_and_are_named(files, capsys):
    run("train", "--data", files, "--method", "kernel")
    (files / data.QUERY_FILE).write_text("id,cell_type,sm_name\n7,Monocytes,D01\n3,B cells,Aspirin\n")
    run("predict", "--data", files, "--method", "kernel")
    said = capsys.readouterr().out
    assert "1 cell types unknown to training" in said
    assert "Monocytes" in said
    assert "Aspirin" in said
    found = pd.read_csv(files / "build/drug_response/kernel.csv", index_col="id")
    assert list(found.index) == [7, 3]
    np.testing.assert_allclose(found.loc[3], simulated()[0].loc["B cells"].mean(), atol=1e-4)


def test_ids_are_texts_and_the_submission_goes_where_it_is_asked_to(files, table):
    rows = table[1].index[:2]
    lines = [f"{i:03},{cell_type},{compound}" for i, (cell_type, compound) in enumerate(rows)]
    (files / data.QUERY_FILE).write_text("\n".join(["id,cell_type,sm_name", *lines]))
    (files / data.SAMPLE_FILE).write_text(",".join(["id", *GENES]) + "\n" + "\n".join(f"{i:03}" for i in range(2)))
    run("repro", "--data", files, "--method", "kernel", "--out", files / "mine.csv")
    assert list(pd.read_csv(files / "mine.csv", dtype={"id": str})["id"]) == ["000", "001"]


HEADER = b"id,cell_type,sm_name\n"


@pytest.mark.parametrize(
    "content", [b"", HEADER + "0,B cells,ß".encode("latin-1"), HEADER + b"0,B cells,D01\n1,B cells,1,2-thing\n"]
)
def test_a_csv_that_cannot_be_read_is_said(files, content):
    (files / data.QUERY_FILE).write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*id_map.csv: not a csv file in UTF-8"):
        run("prepare", "--data", files)


def test_a_work_folder_that_is_a_file_is_said(files):
    (files / "work").write_text("")
    with pytest.raises(SystemExit, match=r"error: work: cannot be written to"):
        run("train", "--data", files, "--method", "kernel", "--work", "work")


def test_a_model_of_another_gene_set_is_refused(files, table, capsys):
    run("train", "--data", files, "--method", "kernel")
    write(files, table[0].drop(columns="G0"), table[1].drop(columns="G0"))
    with pytest.raises(SystemExit, match=r"trained on other genes .* G0; train again"):
        run("predict", "--data", files, "--method", "kernel")


def test_a_stage_that_is_missing_is_asked_for(files):
    with pytest.raises(SystemExit, match=r"stage_1.h5: no such model; train first"):
        run("train", "--data", files, "--method", "stage_2")
    with pytest.raises(SystemExit, match=r"simple.h5: no such model; train first"):
        run("predict", "--data", files)


def test_a_worker_that_dies_is_said(files, small_table, monkeypatch):
    monkeypatch.setattr(training, "_fit_task", _die)
    training._workers.cache_clear()
    with pytest.raises(SystemExit, match="error: a process that trained a network died, perhaps for want of memory"):
        run("train", "--data", files, "--method", "stage_1", "--quick")
    training._workers.cache_clear()


def _die(task):
    os._exit(9)


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_end_with_the_command_and_nothing_is_left(files, stop, status):
    """The real networks of stage 1, which take minutes."""
    words = ["train", "--data", files, "--method", "stage_1", "--work", "work"]
    command = [sys.executable, "-m", "challenges.drug_response", *words]
    root = Path(cli.__file__).resolve().parents[2]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while "Training" not in process.stderr.readline():
        assert process.poll() is None
    workers = psutil.Process(process.pid).children(recursive=True)
    while sum(worker.status() == "running" for worker in workers) == 0:
        workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert "Traceback" not in error
    assert not psutil.wait_procs(workers, 10)[1]
    assert not (files / "work").exists()
