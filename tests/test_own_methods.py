"""Methods of one's own beside the built-in ones in a cross-validation, from a file and in worker processes."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

from helpers import DataError, MedianProportions, ScaledCells
from knowledge import symbol_table
from workbench import cross_validate
from workbench.cross_validate import cross_validate_challenge, cross_validate_effects
from workbench.evaluation import methods
from workbench.evaluation.methods import CONTROL_MEAN, MEDIAN, TRAIN_MEAN, load_method, load_methods

MINE = """
import numpy as np
import pandas as pd
from helpers import GaussianCells
from method import Predictor
from of_mine import shift

MEDIANS = None

class Mine:
    def __init__(self, weight=1.0):
        self.weight = weight

    def fit(self, means, knowledge):
        assert knowledge.tables
        self.mean = self.weight * means.drop(index="NC", errors="ignore").mean() + shift
        return self

    def predict(self, targets):
        return pd.DataFrame([self.mean] * len(targets), index=targets)

class Sure(Mine):
    def predict_scale(self, targets):
        return pd.DataFrame({"error": 1.0, "pearson": 0.5}, index=targets)

class Shares:
    def fit(self, proportions, means, n_cells, knowledge):
        assert list(means.index) == list(proportions.index) and n_cells[means.index].min() > 0 and knowledge.tables
        self.row = proportions.loc["NC"]
        return self

    def predict(self, targets):
        return pd.DataFrame([self.row] * len(targets), index=targets)

class SharesOfTheWrongOrder(Shares):
    def predict(self, targets):
        return super().predict(targets)[::-1]

class NeedsCells(Mine):
    def fit(self, means, n_cells):
        return super().fit(means, n_cells)

class NeedsArguments(Mine):
    def __init__(self, weight):
        self.weight = weight

class NoPrediction:
    def fit(self, means):
        return self

METHOD = Predictor(Mine(0.9), Shares(), GaussianCells(3))
WRONG_SHARES = Predictor(Mine(), SharesOfTheWrongOrder(), GaussianCells())
INSTANCE = NeedsArguments(0.8)
"""


@pytest.fixture
def mine(tmp_path):
    """A user's file, which imports another one beside it."""
    (tmp_path / "of_mine.py").write_text("shift = 0.25")
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path / "mine.py"
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(str(tmp_path))]
    sys.modules.pop("of_mine", None)


@pytest.fixture
def effects(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"G{i}" for i in range(9)]
    table = pd.DataFrame(generator.normal(size=(9, 20)), index=names, columns=[f"G{i}" for i in range(5, 25)])
    table.to_csv(tmp_path / "effects.csv")
    return table


def run(tmp_path, *arguments):
    """The summary and the details that the command line writes."""
    out, details = tmp_path / "table.csv", tmp_path / "details.csv"
    cross_validate.main([*map(str, arguments), "--draws", "1", "--out", str(out), "--details", str(details)])
    return pd.read_csv(out), pd.read_csv(details)


@pytest.mark.parametrize("jobs", [1, 2])
def test_own_methods_are_scored_on_all_three_metrics(mine, demo_folder, tmp_path, jobs):
    names = f"{mine}:Mine", f"{mine}:METHOD"
    arguments = ["--data", demo_folder, "--folds", 3, "--jobs", jobs, "--panels", 1, "--only", *names, CONTROL_MEAN]
    table, details = run(tmp_path, *arguments, "--method", names[0], "--method", names[1])
    for name in names:
        own = table[table["method"] == name].set_index("metric")
        assert set(own.index) == {"pearson_delta", "mmd", "l1_distance", "error"}
        assert (own["n"] == 14).all()
        assert np.isfinite(own["value"]).all()
        assert (own["baseline"].dropna() != name).all()
    assert details[details["method"] == names[0]].groupby("metric")["perturbation"].nunique().eq(14).all()
    of = table.set_index(["metric", "method"])["value"]
    assert of["l1_distance", names[0]] == of["l1_distance", MEDIAN], "a class alone goes with the default's proportions"
    assert of["l1_distance", names[1]] == of["l1_distance", CONTROL_MEAN], "a Predictor's own proportions are scored"
    assert of["mmd", names[1]] > 1.5 * of["mmd", names[0]], "a Predictor's own cells are scored: these are alike"


@pytest.mark.parametrize("jobs", [1, 2])
def test_own_methods_beside_all_others_on_effects(mine, effects, tmp_path, jobs):
    names = f"{mine}:Sure", f"{mine}:METHOD", f"{mine}:INSTANCE"
    own = [word for name in names for word in ("--method", name)]
    table, details = run(tmp_path, "--effects", tmp_path / "effects.csv", "--folds", 3, "--jobs", jobs, *own)
    assert {*names, TRAIN_MEAN, methods.ALL, methods.SHUFFLED} <= set(table["method"])
    metrics = table.groupby("method")["metric"].agg(set)
    assert metrics[names[0]] == {"pearson", "error", "expected_error", "expected_pearson"}
    assert metrics[names[1]] == {"pearson", "error"}
    one = details[(details["method"] == names[0]) & (details["metric"] == "error")].set_index("perturbation")["value"]
    by_hand = effects.drop(index=details.query("fold == 0")["perturbation"].unique()).mean() + 0.25
    held_out = details.query("fold == 0")["perturbation"].iloc[0]
    assert one[held_out] == pytest.approx(np.linalg.norm(effects.loc[held_out] - by_hand))


def test_processes_that_start_afresh_know_the_class_too(mine, effects):
    """On some systems worker processes are no copies of their parent."""
    name = f"{mine}:Mine"
    tables, options = {"symbol": symbol_table(effects.index)}, {"own": [name], "only": [name], "n_folds": 3}
    afresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, afresh, initializer=load_methods, initargs=([name],)) as executor:
        there = cross_validate_effects(effects, tables, **options, executor=executor)
    here = cross_validate_effects(effects, tables, **options)
    pd.testing.assert_series_equal(there["value"], here["value"])


def test_the_same_file_is_read_once_and_takes_no_other_modules_place(mine, tmp_path):
    """A user may well call a file `method.py`."""
    copy = tmp_path / "other" / "method.py"
    copy.parent.mkdir()
    copy.write_text(MINE)
    ours = sys.modules["method"]
    first, second = load_method(f"{mine}:METHOD"), load_method(f"{copy}:METHOD")
    assert load_method(f"{mine}:METHOD") is first
    assert type(first.expression) is not type(second.expression)
    assert sys.modules["method"] is ours


def test_a_class_alone_goes_with_the_defaults_other_parts(mine):
    predictor = load_method(f"{mine}:Mine")
    assert [type(part) for part in predictor.parts()[1:]] == [MedianProportions, ScaledCells]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "expected module:NAME or file.py:NAME"),
        ("nowhere.py:Mine", r"nowhere\.py cannot be imported: .*No such file"),
        ("no_module_of_this_name:Mine", "cannot be imported: No module named"),
        ("mine.py:Yours", r"mine\.py has no Yours; it has .*Mine.*METHOD"),
        ("broken.py:Mine", r"broken\.py cannot be imported: "),
        ("mine.py:NeedsArguments", r"NeedsArguments\(\) cannot be made without arguments .*name an instance"),
        ("mine.py:NoPrediction", "expression: NoPrediction has no method predict"),
        ("mine.py:shift", "expression: float has no method fit, predict"),
    ],
)
def test_a_method_that_cannot_be_found_or_used_ends_the_job_before_anything_is_read(mine, name, message, monkeypatch):
    monkeypatch.chdir(mine.parent)
    (mine.parent / "broken.py").write_text("class Mine(:\n")
    with pytest.raises(SystemExit, match=f"error: --method {name}.*{message}"):
        cross_validate.main(["--data", "there is no such folder", "--method", name, "--out", "table.csv"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("NeedsCells", r"NeedsCells\.fit asks for n_cells; it can be given knowledge"), ("Mine", "no method nobody")],
)
def test_what_a_matrix_of_effects_cannot_give_is_said(mine, effects, tmp_path, name, message):
    arguments = ["--effects", tmp_path / "effects.csv", "--method", f"{mine}:{name}", "--folds", 3]
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *arguments, "--only", f"{mine}:{name}" if name != "Mine" else "nobody")


def test_wrong_shares_are_an_error_that_names_the_class(mine, challenge):
    name = f"{mine}:WRONG_SHARES"
    with pytest.raises(DataError, match=r"^SharesOfTheWrongOrder\.predict gave .*one row per target, in order"):
        cross_validate_challenge(challenge, n_folds=3, n_panels=1, own=[name], only=[name])
