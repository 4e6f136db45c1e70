"""Methods of one's own and the built-in ones: fitted, saved, loaded elsewhere, and what is said of a wrong one."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from conftest import read_dense
from own import PREDICTORS, Halfway, MeanShares, SureHalfway, TwoCells
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_info

import helpers
import method
from contract import OBESITY_1 as CRUNCH
from helpers import ControlMean, DataError, MedianProportions, PCARidge, RecentredCells
from knowledge import GeneKnowledge, symbol_table
from method import (
    ESTIMATORS,
    EXPECTED_FILE,
    MODEL_FILE,
    CellGenerator,
    MeanEstimator,
    Predictor,
    ProportionEstimator,
    infer,
    train,
)
from response import ResponseModel
from screens import Screen

ROOT, TESTS = Path(helpers.__file__).parent, Path(__file__).parent
FILES = CRUNCH.prediction_file, CRUNCH.predicted_proportions_file
pytestmark = pytest.mark.filterwarnings("ignore:.* were not measured as genes", "ignore:nothing is known of")


@pytest.fixture(scope="module")
def pool(challenge):
    return helpers.read_cells(challenge.train_path, np.arange(150))


@pytest.fixture
def fit(stats, challenge, pool):
    """Fit a predictor, or an estimator of means beside constants, to the demo data."""

    def fitted(part):
        predictor = part if isinstance(part, Predictor) else Predictor(part, ControlMean(), TwoCells())
        return predictor.fit(stats, challenge.proportions, pool, GeneKnowledge({}))

    return fitted


# ---------------------------------------------------------------------------------------------------------------------
# Saved by one process, loaded by another
# ---------------------------------------------------------------------------------------------------------------------

IN_A_FRESH_PROCESS = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from method import infer
from own import PREDICTORS

folder, targets, genes = Path(sys.argv[3]), sys.argv[4].split(), sys.argv[5].split()
for name, predictor in PREDICTORS.items():
    files = [folder / name / "loaded" / file for file in sys.argv[6:]]
    infer("no such folder", str(folder), *map(str, files), str(folder / name), targets, genes, predictor=predictor)
"""


@pytest.fixture(scope="module")
def saved(demo_folder, challenge, tmp_path_factory):
    """Each method's folder: `model.h5`, what the fitted method predicts (`unsaved`), and a fresh process (`loaded`)."""
    folder = tmp_path_factory.mktemp("methods")
    targets, genes = list(challenge.targets), list(challenge.genes_to_predict)
    for name, predictor in PREDICTORS.items():
        fitted = train(demo_folder, folder / name, predictor=predictor)
        fitted.write(*(folder / name / "unsaved" / file for file in FILES), targets, genes)
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, ROOT, TESTS, folder, " ".join(targets), " ".join(genes)]
    subprocess.run([*command, *FILES], check=True, capture_output=True, text=True, timeout=300)
    return folder


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_fresh_process_predicts_what_the_unsaved_method_does(saved, name, challenge):
    one, other = (read_dense(saved / name / made / FILES[0]) for made in ("unsaved", "loaded"))
    assert one.shape == (100 * len(challenge.targets), len(challenge.genes_to_predict))
    assert np.isfinite(one.X).all()
    np.testing.assert_array_equal(one.X, other.X)
    assert (saved / name / "unsaved" / FILES[1]).read_bytes() == (saved / name / "loaded" / FILES[1]).read_bytes()


def test_the_predictors_differ(saved):
    """Or the tests of this file could not tell one from another."""
    predictions = {(saved / name / "loaded" / FILES[0]).read_bytes() for name in PREDICTORS}
    assert len(predictions) == len(PREDICTORS)


def test_each_built_in_estimator_is_among_them():
    used = {type(part) for predictor in PREDICTORS.values() for part in predictor.parts()}
    assert set(ESTIMATORS.values()) <= used


def test_expected_errors_are_written_by_those_that_have_them_alone(saved):
    with_scale = {name for name in PREDICTORS if (saved / name / EXPECTED_FILE).exists()}
    assert with_scale == {"the default", "response model for both", "combinations", "own mean alone"}


@pytest.mark.parametrize("name", ["the default", "own mean alone"])
def test_expected_errors_are_those_of_predict_scale(saved, name, challenge):
    written = pd.read_csv(saved / name / EXPECTED_FILE, index_col="gene")
    model = Predictor.load(saved / name / MODEL_FILE, like=PREDICTORS[name]).expression
    pd.testing.assert_frame_equal(written, model.predict_scale(challenge.targets), check_names=False)
    assert (written["error"] > 0).all()
    assert written["pearson"].min() < written["pearson"].max()
    assert (written["pearson"] != 0).all()


def test_a_stale_file_of_expected_errors_is_removed(demo_folder, tmp_path):
    (tmp_path / EXPECTED_FILE).write_text("of an older method")
    train(demo_folder, tmp_path, predictor=Predictor(Halfway(), MedianProportions(), TwoCells()))
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_FILE]


def test_the_example_at_the_top_of_the_file_runs(demo_folder, tmp_path):
    example = textwrap.dedent(method.__doc__[method.__doc__.index("    class ") : method.__doc__.index("Whatever")])
    (tmp_path / "data").symlink_to(demo_folder)
    command = [sys.executable, "-c", f"from method import *\n{example}"]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300)
    assert (tmp_path / "resources" / MODEL_FILE).exists()


def test_train_leaves_the_method_that_it_was_given_unfitted(saved):
    assert vars(PREDICTORS["own"].expression) == {"way": "half", "control": None}


def test_infer_trains_first_where_there_is_no_model(demo_folder, challenge, tmp_path):
    mine = PREDICTORS["own"]
    files = [tmp_path / "prediction" / file for file in FILES]
    infer(demo_folder, tmp_path, *files, tmp_path, challenge.targets[:2], challenge.genes_to_predict, predictor=mine)
    assert type(Predictor.load(tmp_path / MODEL_FILE, like=mine).expression) is Halfway
    assert ad.read_h5ad(files[0]).n_obs == 200


# ---------------------------------------------------------------------------------------------------------------------
# Tables and screens that a saved model does not know
# ---------------------------------------------------------------------------------------------------------------------

OWN_TABLE, OWN_SCREEN = "features/mine.csv", "screens/theirs.csv"


@pytest.fixture(scope="module")
def taught(demo_folder, challenge, tmp_path_factory):
    """A model folder with a table and a screen, and what was trained with them."""
    folder, names = tmp_path_factory.mktemp("taught"), challenge.perturbations
    for file in (OWN_TABLE, OWN_SCREEN):
        (folder / file).parent.mkdir()
        numbers = np.random.default_rng(0).normal(size=(len(names), 3))
        pd.DataFrame(numbers, names, list(challenge.genes[:3])).to_csv(folder / file)
    (folder / "features" / "about.md").write_text("where it is from")
    train(demo_folder, folder)
    return folder


def predicted(demo_folder, challenge, folder):
    """The bytes of both files, predicted with the model in a folder, and what was warned of."""
    files = [folder / "prediction" / file for file in FILES]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        infer(demo_folder, folder, *files, folder, challenge.targets[:2], challenge.genes_to_predict)
    return [file.read_bytes() for file in files], [str(warning.message) for warning in warned]


def rewritten(path):
    """Another content of the same length."""
    path.write_text(path.read_text().replace("0.1", "0.2"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: shutil.copy(folder / OWN_TABLE, folder / "features/b.csv"), r"added: features/b\.csv\)"),
        (lambda folder: shutil.copy(folder / OWN_SCREEN, folder / "screens/b.csv"), r"added: screens/b\.csv\)"),
        (lambda folder: rewritten(folder / OWN_TABLE), r"changed: features/mine\.csv\)"),
        (lambda folder: shutil.rmtree(folder / "screens"), r"removed: screens/theirs\.csv\)"),
        (
            lambda folder: (folder / OWN_TABLE).rename(folder / "screens/mine.csv"),
            r"added: screens/mine\.csv; removed: features/mine\.csv\)",
        ),
    ],
)
def test_infer_says_which_tables_and_screens_the_model_does_not_know(
    taught, demo_folder, challenge, tmp_path, change, says
):
    folder = Path(shutil.copytree(taught, tmp_path / "resources"))
    before, nothing = predicted(demo_folder, challenge, folder)
    change(folder)
    after, (message,) = predicted(demo_folder, challenge, folder)
    assert nothing == []
    assert re.search(rf"model\.h5: trained with other files than .*{says}; train again", message), message
    assert after == before, "it is a warning: the saved model predicts what it did"


def test_what_is_no_table_is_no_change(taught, demo_folder, challenge, tmp_path):
    folder = Path(shutil.copytree(taught, tmp_path / "resources"))
    (folder / "features" / "about.md").write_text("other words")
    (folder / "screens" / ".hidden.csv").write_text("")
    (folder / "sources.json").write_text("[]")
    os.utime(folder / OWN_TABLE, (0, 0))
    assert predicted(demo_folder, challenge, folder)[1] == []


def test_a_model_has_the_same_bytes_wherever_and_whenever_its_tables_lie(taught, demo_folder, tmp_path):
    folder = Path(shutil.copytree(taught, tmp_path / "elsewhere"))
    (folder / MODEL_FILE).unlink()
    os.utime(folder / OWN_TABLE, (0, 0))
    train(demo_folder, folder)
    assert (folder / MODEL_FILE).read_bytes() == (taught / MODEL_FILE).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# What is saved, and what is refused
# ---------------------------------------------------------------------------------------------------------------------


class Keeper:
    """Keeps what it is given under `kept`, and predicts nothing of interest."""

    def __init__(self, value):
        self.kept = value

    def fit(self, means):
        self.columns = means.columns
        return self

    def predict(self, targets):
        return pd.DataFrame(0.0, index=targets, columns=self.columns)


TABLE = pd.DataFrame({"a": [1.5, 2.5], "b": [0.5, np.nan]}, index=pd.Index(["x", "y"], name="gene"))
KEPT = {
    "vector": np.arange(3.0),
    "matrix": np.arange(6).reshape(2, 3),
    "empty array": np.zeros((0, 4)),
    "0-d": np.array(3.5),
    "0-d text": np.array("text"),
    "bools": np.array([True, False]),
    "float32": np.array([0.1, 0.2], np.float32),
    "texts": np.array(["one", ""]),
    "matrix of texts": np.array([["a", "b"], ["c", "d"]]),
    "table": TABLE,
    "table of bools": TABLE > 1,
    "table of texts": pd.DataFrame([["a", "b"], ["c", "d"]], columns=["first", "second"]),
    "empty table": pd.DataFrame(index=["x"]),
    "column": TABLE["a"],
    "column of texts": pd.Series(["a", "b"], index=[3, 1]),
    "index": TABLE.index,
    "index of numbers": pd.Index([3, 1]),
    "integer": 3,
    "number": 0.5,
    "number of numpy": np.float32(0.1),
    "bool": True,
    "bool of numpy": np.bool_(1),
    "text": "größer",
    "empty text": "",
    "none": None,
}


@pytest.mark.parametrize("kind", KEPT)
def test_every_kind_of_attribute_comes_back_as_it_was(kind, fit, tmp_path):
    predictor, value = fit(Keeper(KEPT[kind])), KEPT[kind]
    predictor.save(tmp_path / "m.h5")
    loaded = Predictor.load(tmp_path / "m.h5", like=predictor).expression
    assert vars(loaded).keys() == vars(predictor.expression).keys() == {"columns", "kept"}
    assert type(loaded.kept) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(loaded.kept, value, check_column_type=False)
    elif isinstance(value, pd.Series):
        pd.testing.assert_series_equal(loaded.kept, value)
    elif isinstance(value, pd.Index):
        pd.testing.assert_index_equal(loaded.kept, value)
    else:
        assert np.asarray(loaded.kept).dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(loaded.kept, value)


def check_that_all_comes_back(fitted, path):
    """Every attribute of a response model, in both parts that may be one."""
    fitted.save(path)
    loaded = Predictor.load(path, like=fitted)
    assert loaded.describe() == fitted.describe()
    for part in ("expression", "proportions"):
        before, after = vars(getattr(fitted, part)), vars(getattr(loaded, part))
        assert set(before) == set(after)
        for name, value in before.items():
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(after[name], value, check_index_type=False, check_column_type=False)
            elif isinstance(value, pd.Series):
                pd.testing.assert_series_equal(after[name], value, check_index_type=False)
            else:
                assert after[name] == value
    return loaded


def test_what_a_response_model_learned_of_tables_and_screens_comes_back(stats, challenge, pool, tmp_path):
    effects = stats.mean.drop(index="NC") - stats.mean.mean()
    left, lengths, basis = np.linalg.svd(effects - effects.mean(), full_matrices=False)
    screen = Screen(effects.index, effects.columns, (left * lengths).astype("f4"), basis.astype("f4"))
    known = GeneKnowledge({"t": symbol_table(effects.index)}, {"right": screen}, template=screen)
    predictor = Predictor(ResponseModel(), ResponseModel(4), helpers.GaussianCells())
    fitted = predictor.fit(stats, challenge.proportions, pool, known)
    model = check_that_all_comes_back(fitted, tmp_path / "m.h5").expression
    assert model.judged_.loc["right", "enters"] == 1
    assert model.judged_.index.tolist() == ["t", "right", "template", "own response"]
    assert model.transfers_["right"] > 0
    pd.testing.assert_frame_equal(model.predict(challenge.targets), fitted.expression.predict(challenge.targets))


@pytest.mark.parametrize("n", [2, 5])
def test_a_response_model_of_few_knock_outs_comes_back(stats, challenge, pool, tmp_path, n):
    """Too few to learn from, and too few to judge a table."""
    few = stats.mean.index[stats.mean.index != "NC"][:n].append(pd.Index(["NC"]))
    parts = (getattr(stats, name).loc[few] for name in ("sums", "squares", "detected", "n_cells"))
    known = GeneKnowledge({"t": symbol_table([*few, *challenge.targets])})
    predictor = Predictor(ResponseModel(), ResponseModel(), helpers.GaussianCells())
    fitted = predictor.fit(helpers.PerturbationStats(*parts), challenge.proportions, pool, known)
    model = check_that_all_comes_back(fitted, tmp_path / "m.h5").expression
    assert model.judged_.columns.tolist() == ["coverage", "gain", "standard_error", "enters"]
    assert model.judged_["enters"].sum() == 0
    assert model.judged_.empty == (n == 2)
    assert model.transfers_.empty
    assert model.weights_.index.tolist() == ([] if n == 2 else ["constant"])
    pd.testing.assert_frame_equal(model.predict(challenge.targets), fitted.expression.predict(challenge.targets))


REFUSED = {
    "a fitted scikit-learn model": (Ridge().fit([[0.0], [1.0]], [0.0, 1.0]), "is a Ridge, which cannot be saved"),
    "a dict": ({"a": 1}, "is a dict, which cannot be saved"),
    "a list": ([1.0], "is a list, which cannot be saved"),
    "a sparse matrix": (sp.eye_array(2).tocsr(), "is a csr_array, which cannot be saved"),
    "a masked array": (np.ma.array([1.0, 2.0], mask=[0, 1]), "is a MaskedArray, which cannot be saved"),
    "a mixed table": (TABLE.assign(word="x"), "holds float64, object; keep numbers and texts apart"),
    "integers beside floats": (TABLE.assign(n=1), "holds float64, int64; keep numbers and texts apart"),
    "a gap among texts": (pd.Series(["a", None]), "holds object; keep numbers and texts apart, .* none missing"),
    "categories": (pd.Series(["a"], dtype="category"), "holds category"),
    "an array of objects": (np.array([{}, 1], object), "holds object"),
    "dates": (np.array(["2020-01-01"], "datetime64[D]"), r"holds datetime64\[D\]"),
    "several levels": (pd.MultiIndex.from_tuples([("a", 1)]), "an index of several levels cannot be saved"),
    "rows of several levels": (TABLE.set_index("a", append=True), "an index of several levels cannot be saved"),
    "a name of several levels": (TABLE["a"].rename(("a", "b")), "the name of its values or index is a tuple"),
    "an endless integer": (2**70, "integers beyond 64 bits"),
    "the character 0": ("a\0b", "texts with the character 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name_at_the_end_of_fit(kind, fit):
    value, message = REFUSED[kind]
    with pytest.raises(DataError, match=rf"Keeper\.kept.*{message}"):
        fit(Keeper(value))


def test_what_cannot_be_saved_leaves_the_old_model_as_it_was(demo_folder, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "resources")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=r"Keeper\.kept is a dict"):
        train(demo_folder, folder, predictor=Predictor(Keeper({}), MedianProportions(), TwoCells()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_wrong_scale_leaves_the_old_model_as_it_was(demo_folder, trained, tmp_path):
    class Vague(Halfway):
        def predict_scale(self, targets):
            return pd.DataFrame({"error": 1.0}, index=targets)

    folder = shutil.copytree(trained, tmp_path / "resources")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=r"Vague\.predict_scale: no column pearson"):
        train(demo_folder, folder, predictor=Predictor(Vague(), MedianProportions(), TwoCells()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_class_with_the_name_of_a_built_in_one_is_refused(fit):
    """Loading would make the built-in one of it."""
    named = type("PCARidge", (Halfway,), {"__module__": "mine"})
    with pytest.raises(DataError, match="PCARidge is the name of a built-in estimator too"):
        fit(named())


def test_a_fit_that_changes_its_own_parameter_is_refused(fit):
    class Restless(Halfway):
        def fit(self, means, n_cells, knowledge):
            self.way = "other"
            return self

    with pytest.raises(DataError, match=r"Restless\.fit changed its own parameters, .*'half'.* to .*'other'"):
        fit(Restless())


def everything_in(item, path="/"):
    """Every array of an HDF5 file, those of the attributes too, with its dtype."""
    for name, value in item.attrs.items():
        yield f"{path}@{name}", item.attrs.get_id(name).dtype, np.asarray(value)
    if isinstance(item, h5py.Dataset):
        yield path, item.dtype, np.asarray(item[()])
    else:
        for name, part in item.items():
            yield from everything_in(part, f"{path}{name}/")


@pytest.mark.parametrize("name", ["the default", "the starter", "own"])
def test_the_model_file_holds_numbers_and_texts_alone(saved, name):
    """No pickle can hide: not as text, nor as opaque bytes, in a dataset or an attribute."""
    with h5py.File(saved / name / MODEL_FILE) as file:
        found = list(everything_in(file))
    assert len(found) > 20
    for place, dtype, values in found:
        assert dtype.kind in "biuf" or h5py.check_string_dtype(dtype), f"{place}: {dtype}"
        for text in values.ravel() if dtype.kind not in "biuf" else []:
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            assert raw.decode("utf-8").isprintable(), place
            assert not raw.startswith((b"\x80", b"gAS", b"cos\n", b"(")), f"{place}: a pickle, perhaps"
        if dtype == np.uint8:
            assert not values.tobytes().startswith(b"\x80"), f"{place}: a pickle, perhaps"


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def infer_with(resources, challenge, predictor, tmp_path):
    files = [tmp_path / "prediction" / file for file in FILES]
    infer("", tmp_path, *files, resources, challenge.targets, challenge.genes_to_predict, predictor=predictor)


def test_a_class_that_loading_does_not_know_is_named_and_how_to_make_it_known(saved, challenge, tmp_path):
    with pytest.raises(DataError, match=r"holds the estimator Halfway.*infer\(\.\.\., predictor=Predictor\(\.\.\.\)\)"):
        infer_with(saved / "own", challenge, None, tmp_path)
    with pytest.raises(DataError, match=r"holds the estimator MeanShares.*Predictor\.load\(path, like="):
        Predictor.load(saved / "own" / MODEL_FILE, like=Predictor(Halfway(), ControlMean(), TwoCells()))
    assert not (tmp_path / "prediction").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("the default", r"the saved model is PCARidge\(.*, but the method is now ResponseModel\(.*; train again"),
        ("own", r"the saved model is PCARidge\(.*, but the method is now Halfway\(way='half'\)"),
        (Predictor(PCARidge(4, 0.3), PCARidge(3), helpers.GaussianCells(7)), r"alpha=0\.2.* is now .*alpha=0\.3"),
        (Predictor(PCARidge(4, 0.2), PCARidge(3), RecentredCells()), r"GaussianCells\(seed=7\), but .* RecentredCells"),
    ],
)
def test_a_saved_model_of_another_method_is_refused_by_name(saved, challenge, asked, message, tmp_path):
    predictor = PREDICTORS[asked] if isinstance(asked, str) else asked
    with pytest.raises(DataError, match=message):
        infer_with(saved / "the starter", challenge, predictor, tmp_path)
    assert not (tmp_path / "prediction").exists()


def test_a_response_model_of_another_rank_is_another_method(saved):
    asked = Predictor(ResponseModel(6), ResponseModel(own_response=False), helpers.GaussianCells())
    name = "response model for both"
    assert PREDICTORS[name].describe() == (
        "ResponseModel(rank=5, own_response=True), ResponseModel(rank=120, own_response=False), GaussianCells(seed=0)"
    )
    with pytest.raises(DataError, match=r"is ResponseModel\(rank=5, .* is now ResponseModel\(rank=6, own_resp"):
        Predictor.load(saved / name / MODEL_FILE, like=asked)


def test_parameters_of_a_class_without_get_params_are_compared_too(saved):
    other = Predictor(Halfway("all the way"), MeanShares(), TwoCells())
    with pytest.raises(DataError, match=r"Halfway\(way='half'\).* is now Halfway\(way='all the way'\)"):
        Predictor.load(saved / "own" / MODEL_FILE, like=other)


# ---------------------------------------------------------------------------------------------------------------------
# Wrong parts, wrong predictions
# ---------------------------------------------------------------------------------------------------------------------


def test_built_in_and_own_estimators_follow_the_protocols():
    for predictor in PREDICTORS.values():
        assert isinstance(predictor.expression, MeanEstimator)
        assert isinstance(predictor.proportions, ProportionEstimator)
        assert isinstance(predictor.cells, CellGenerator)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((Halfway, MeanShares(), TwoCells()), r"expression is the class Halfway: give an instance, Halfway\(\)"),
        ((Halfway(), MeanShares(), TwoCells), r"cells is the class TwoCells"),
        ((TwoCells(), MeanShares(), TwoCells()), "expression: TwoCells has no method predict; see MeanEstimator"),
        ((Halfway(), object(), TwoCells()), "proportions: object has no method fit, predict; see ProportionEst"),
        ((Halfway(), MeanShares(), Halfway()), "cells: Halfway has no method for_genes, sample; see CellGenerator"),
    ],
)
def test_a_part_without_its_methods_is_refused_by_name(parts, message):
    with pytest.raises(DataError, match=message):
        Predictor(*parts)


def test_a_fit_that_asks_for_what_there_is_not_is_told_what_there_is(fit):
    class Demanding(Halfway):
        def fit(self, means, weather):
            return self

    with pytest.raises(DataError, match=r"Demanding\.fit asks for weather; it can be given n_cells, knowledge"):
        fit(Demanding())


def wrong(change):
    """An estimator whose prediction is changed by a function."""

    class Wrong(SureHalfway):
        def predict(self, targets):
            return change(super().predict(targets))

    return Wrong()


WRONG = {
    "an array": (lambda table: table.to_numpy(), r"gave a ndarray; it must give a DataFrame"),
    "too few rows": (lambda table: table.iloc[:2], r"gave 2 rows .*one row per target, in order \(3: "),
    "too many rows": (lambda table: pd.concat([table, table]), "gave 6 rows"),
    "another order": (lambda table: table.iloc[::-1], "one row per target, in order"),
    "rows by number": (lambda table: table.reset_index(drop=True), r"gave 3 rows \(0, 1, 2\)"),
    "missing genes": (lambda table: table.iloc[:, 2:], "no column .*; the columns must be the genes of the training"),
    "a gene twice": (lambda table: table.iloc[:, [0, *range(240)]], "columns: duplicated names"),
    "NaN": (lambda table: table.mask(table == table.iloc[0, 0]), "missing or infinite values for"),
    "infinite": (lambda table: table + np.inf, "missing or infinite values for"),
    "texts": (lambda table: table.astype(str), "do not hold numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_prediction_is_one_clear_error_that_names_the_class(kind, fit, challenge, tmp_path):
    change, message = WRONG[kind]
    predictor = fit(wrong(change))
    with pytest.raises(DataError, match=rf"^Wrong\.predict.*{message}"):
        predictor.write(tmp_path / "p", tmp_path / "s", challenge.targets[:3], challenge.genes_to_predict)
    assert not list(tmp_path.iterdir())


def test_genes_in_any_order_and_more_of_them_are_welcome(fit, challenge):
    right, turned = (
        fit(wrong(change)).predict_means(challenge.targets)[challenge.genes]
        for change in (lambda table: table, lambda table: table.iloc[:, ::-1].assign(MORE=1.0))
    )
    pd.testing.assert_frame_equal(right, turned)


def test_shares_without_a_state_are_refused(fit, challenge):
    for states in (["pre_adipo", "adipo", "lipo"], CRUNCH.shares):

        class Few(MeanShares):
            def predict(self, targets, states=states):
                return super().predict(targets)[states]

        with pytest.raises(DataError, match=r"Few\.predict: no column (other|lipo_adipo, and no lipo either)"):
            fit(Predictor(Halfway(), Few(), TwoCells())).predict_proportions(challenge.targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[1:], r"gave \(99, 240\) for .*; it must give cells x genes, \(100, 240\)"),
        (lambda cells: cells.T, r"gave \(240, 100\)"),
        (lambda cells: cells * np.nan, "missing or infinite values for"),
    ],
)
def test_wrong_cells_are_refused_by_name_and_nothing_is_written(change, message, fit, challenge, tmp_path):
    class Broken(TwoCells):
        def for_genes(self, genes):
            self.spread = self.spread[genes]
            return self

        def sample(self, target, mean, n_cells):
            return change(super().sample(target, mean, n_cells))

    predictor = fit(Predictor(Halfway(), MeanShares(), Broken()))
    with pytest.raises(DataError, match=rf"Broken\.sample.*{message}"):
        predictor.write(tmp_path / "p", tmp_path / "s", challenge.targets, challenge.genes)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# The house's conventions
# ---------------------------------------------------------------------------------------------------------------------


def test_every_part_works_on_one_thread_of_blas(demo_folder, challenge, tmp_path):
    """So that the number of threads cannot change a bit."""
    seen = {}

    def look(doing):
        seen[doing] = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    class Watching(SureHalfway):
        def fit(self, means, n_cells, knowledge):
            look("fit")
            return super().fit(means, n_cells, knowledge)

        def predict(self, targets):
            look("predict")
            return super().predict(targets)

        def predict_scale(self, targets):
            look("predict_scale")
            return super().predict_scale(targets)

    class WatchingCells(TwoCells):
        def fit(self, means, pool):
            look("fit of cells")
            return super().fit(means, pool)

    before = threadpool_info()
    fitted = train(demo_folder, tmp_path, predictor=Predictor(Watching(), MeanShares(), WatchingCells()))
    fitted.write(tmp_path / "p", tmp_path / "s", challenge.targets, challenge.genes)
    assert seen == {"fit": {1}, "fit of cells": {1}, "predict_scale": {1}, "predict": {1}}
    assert threadpool_info() == before


@pytest.mark.parametrize("name", ESTIMATORS)
def test_built_in_estimators_keep_scikit_learns_conventions(name):
    model = ESTIMATORS[name]()
    other = (
        PCARidge(4, 0.5)
        if name == "PCARidge"
        else ResponseModel(30, own_response=False)
        if name == "ResponseModel"
        else model
    )
    assert clone(other).get_params() == other.get_params()
    assert not [attribute for attribute in vars(model) if attribute.endswith("_")]
    if hasattr(model, "predict"):
        with pytest.raises(NotFittedError):
            model.predict(["A"])
