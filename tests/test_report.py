"""What a user reads: the summary in words, the report without logs and network, what commands say of themselves."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import run_infer
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import helpers
from contract import OBESITY_1 as CRUNCH
from workbench import compare, cross_validate, demo, report, simulate
from workbench.compare import CEILING, CONTROL, STARTER, YOURS
from workbench.summary import Summary

ROOT = Path(helpers.__file__).parent
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def scored(values):
    """A table of scores: {method: {metric: one value per knock-out}}."""
    rows = [
        (method, f"K{i}", metric, 0, 100, 232.0, "scaled", value)
        for method, metrics in values.items()
        for metric, column in metrics.items()
        for i, value in enumerate(column)
    ]
    columns = ["method", "perturbation", "metric", "panel", "n_genes", "sigma", "sigma_rule", "value"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def table():
    return scored(
        {
            CONTROL: {"pearson_delta": [0.1, 0.2, 0.3], "mmd": [0.10, 0.11, 0.12], "l1_distance": [0.1, 0.2, 0.3]},
            STARTER: {"pearson_delta": [0.0, 0.1, 0.2], "mmd": [1.0, 1.1, 1.2], "l1_distance": [0.4, 0.4, 0.4]},
            YOURS: {"pearson_delta": [0.4, 0.5, 0.61], "mmd": [0.2, 0.21, 0.23], "l1_distance": [0.0, 0.2, 0.4]},
            CEILING: {"pearson_delta": [0.3, 0.3, 0.3], "mmd": [0.05, 0.06, 0.07]},
        }
    )


def test_the_summary_gives_means_directions_and_verdicts(challenge, table):
    summary = Summary(challenge, table)
    scores = summary.scores()
    assert scores.loc["pearson_delta"].to_dict() == pytest.approx(
        {YOURS: 1.51 / 3, CONTROL: 0.2, STARTER: 0.1, CEILING: 0.3}
    )
    assert summary.verdicts()["words"].to_dict() == {
        "pearson_delta": "better than control",
        "mmd": "worse than control",
        "l1_distance": "no clear difference to control",
    }
    for text in (repr(summary), summary._repr_markdown_()):
        for metric in CRUNCH.metrics.values():
            (line,) = [line for line in text.split("\n") if line.lstrip("| ").startswith(metric.title)]
            assert metric.direction in line
        assert "0.503" in text
        assert "noisy estimate" in text
        assert "nan" not in text
    assert "What to do next" in summary._repr_markdown_()


def test_the_summary_says_demo_data_of_demo_data_only(challenge, table, tiny, tmp_path):
    tiny.write_h5ad(tmp_path / CRUNCH.train_file)
    real = challenge.__class__(**{**vars(challenge), "train_path": tmp_path / CRUNCH.train_file})
    for shown, is_demo in ((Summary(challenge, table), True), (Summary(real, table), False)):
        for text in (repr(shown), shown._repr_markdown_()):
            assert ("Demo data" in text) == is_demo
        assert ("say nothing about the challenge" in shown._repr_markdown_()) == is_demo


def test_one_knock_out_has_no_interval_and_no_verdict(challenge, table):
    one = Summary(challenge, table[table["perturbation"] == "K0"]).verdicts()
    assert set(one["words"]) == {"no clear difference to control"}
    assert one.loc["mmd", "difference"] == "+0.100"


def test_the_table_of_compare_names_the_directions(table):
    shown = compare.summary(table)
    assert list(shown.columns) == [f"{metric.title} ({metric.direction})" for metric in CRUNCH.metrics.values()]
    assert list(shown.index) == [CONTROL, STARTER, YOURS, CEILING]
    assert shown.iloc[0, 0].startswith("0.200 ± 0.058")


@pytest.fixture
def noisy():
    """A notebook with everything that a report must not show."""
    bar = {report.BAR: {"model_id": "x"}, "text/plain": "scoring:   0%|          | 0/5"}
    outputs = [
        new_output("stream", name="stdout", text="loaded crunch tools for module\navailable ram: 1 gb\n----\n"),
        new_output("stream", name="stderr", text="12:00:00 running local test\n"),
        new_output("display_data", data=bar),
        new_output("stream", name="stdout", text="Training on cells\n"),
        new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"}),
        new_output("stream", name="stdout", text="Saved model\n"),
    ]
    badge = "[![Open](https://img.shields.io/badge/x)](https://colab.research.google.com/)"
    summary = new_output("display_data", data={"text/markdown": "**fine**", "text/plain": "plain words"})
    state = {report.BAR.replace("view", "state"): {"state": {}, "version_major": 2, "version_minor": 0}}
    return new_notebook(
        metadata={"widgets": state},
        cells=[
            new_markdown_cell(f"# A title\n\n{badge}\n\nIntroduction"),
            new_markdown_cell("## In short", id=report.SUMMARY[0]),
            new_code_cell("secret_code()", id=report.SUMMARY[1], outputs=[summary]),
            new_markdown_cell("## Set up\n\nText. More."),
            new_code_cell("secret_code()", id="picture", outputs=outputs),
            new_markdown_cell("---\nfile: Method description.md\n---\n\n# Method Description\n\nText"),
        ],
    )


def test_the_report_needs_no_network_and_shows_no_log(noisy):
    html = report.html(noisy, title="Report")
    assert "<script" not in html
    assert re.findall(r'(?:src|href)="?https?:', html) == []
    for word in ("stderr", "running local test", "scoring:", "available ram", "secret_code", "shields", "file: Method"):
        assert word not in html
    for word in ("Training on cells\nSaved model", "<strong>fine</strong>", "Introduction", f"base64,{PIXEL}"):
        assert word in html
    assert 'alt="Set up' in html
    assert html.index("A title") < html.index("In short") < html.index("Introduction") < html.index("Set up")


def test_the_report_says_demo_data_of_demo_data_only(noisy):
    assert report.html(noisy, title="Report", source="demo data").count("demo data") == 2
    assert "demo data" not in report.html(noisy, title="Report")


def test_the_notebook_itself_stays_as_it_was(noisy):
    before = nbformat.writes(noisy)
    report.html(noisy, title="Report")
    assert nbformat.writes(noisy) == before


def test_pictures_are_saved_by_the_name_of_their_cell(noisy, tmp_path):
    (path,) = report.save_pictures(noisy, tmp_path / "pictures")
    assert path.name == "picture.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert report.printed(noisy, report.SUMMARY[1]) == "plain words"


def test_the_bar_names_the_place_in_the_notebook():
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    at = {cell.id: demo._place(notebook, i) for i, cell in enumerate(notebook.cells)}
    assert at["cell-00"] == "start"
    assert at["cell-08"] == "2. The data"
    assert at["umap"] == "5. What came out: All cells in one plane"
    assert ":" not in demo._place(notebook, len(notebook.cells) - 1)  # a new section has no bold words yet


def test_compare_says_how_long_it_takes_and_its_bars_name_the_method(demo_folder, trained, challenge, tmp_path):
    targets = challenge.local_proportions.index
    run_infer(demo_folder, trained, tmp_path, targets, challenge.genes_to_predict)
    command = [sys.executable, "-m", "workbench.compare", demo_folder, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first = done.stdout.split("\n")[0]
    assert re.search(r"about \d+ s", first)
    for metric in CRUNCH.metrics.values():
        assert f"{metric.title} ({metric.direction})" in done.stdout
    bars = {line.split("%")[0].rsplit(":", 1)[0] for line in re.split(r"[\r\n]", done.stderr) if "%|" in line}
    scoring = {f"{method}: scoring" for method in (CONTROL, "perturbed mean", STARTER, YOURS, CEILING)}
    assert scoring <= bars
    assert all(": " in bar for bar in bars)


def test_every_option_of_simulate_is_explained():
    assert [action.dest for action in simulate._parser()._actions if not action.help] == []
    assert "default 7500" in simulate._parser().format_help()


def test_the_commands_that_the_summary_prints_are_understood(challenge, table):
    steps = " ".join(Summary(challenge, table).next_steps())
    commands = re.findall(r"`python -m workbench\.cross_validate ([^`]*)`", steps)
    assert commands
    for command in commands:
        assert cross_validate._options(command.split()).folds == "loo"
