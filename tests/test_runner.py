"""The runner, called through the client's own loader with contexts of our own: local and cloud."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cloud import Context, Submission, load_runner

import helpers
import method
from method import Predictor
from response import ResponseModel
from workbench.hub import PLATFORM

LOCAL, CLOUD = ["ZBTB20", "CHD4"], ["PPARG", "CEBPA", "KLF4"]  # neither is sorted
GENES = ["PLIN1", "ADIPOQ", "LPL", "FABP4"]


@pytest.fixture(scope="module")
def runner():
    return load_runner(PLATFORM)


@pytest.fixture
def folder(tmp_path):
    """data/, an empty model/ and an empty prediction/, which holds .gitkeep as in the repository."""
    for name in ("data", "model", "prediction"):
        (tmp_path / name).mkdir()
    (tmp_path / "prediction" / ".gitkeep").touch()
    (tmp_path / "data" / "program_proportion_local_gtruth.csv").write_text("gene,adipo\n" + ",0.3\n".join([*LOCAL, ""]))
    (tmp_path / "data" / "predict_perturbations.txt").write_text("\n".join(CLOUD))
    (tmp_path / "data" / "genes_to_predict.txt").write_text("\n".join(GENES) + "\n")
    return tmp_path


def write_prediction(
    prediction_h5ad_file_path,
    program_proportion_csv_file_path,
    predict_perturbations,
    genes_to_predict,
    cells_per_perturbation=100,
):
    """A valid `infer`; column g of every cell holds g, so that a lost or moved gene shows."""
    obs = pd.DataFrame({"gene": np.repeat(predict_perturbations, cells_per_perturbation)}).rename(str)
    X = np.tile(np.arange(len(genes_to_predict), dtype=np.float32), (len(obs), 1))
    ad.AnnData(X, obs, pd.DataFrame(index=genes_to_predict)).write_h5ad(prediction_h5ad_file_path)
    table = pd.DataFrame({"gene": predict_perturbations, "pre_adipo": 0.3, "adipo": 0.4, "lipo": 0.1, "other": 0.3})
    table.to_csv(program_proportion_csv_file_path, index=False)


def no_train(data_directory_path, model_directory_path):
    raise AssertionError("train was not asked for")


@pytest.mark.parametrize(("local", "asked"), [(True, LOCAL), (False, CLOUD)], ids=["local", "cloud"])
def test_infer_gets_the_contracts_arguments_by_name(runner, folder, local, asked):
    got = {}

    def infer(
        *,
        model_directory_path,
        data_directory_path,
        prediction_directory_path,
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        predict_perturbations,
        genes_to_predict,
        cells_per_perturbation=100,
    ):
        got.update(locals())
        names = (
            "prediction_h5ad_file_path",
            "program_proportion_csv_file_path",
            "predict_perturbations",
            "genes_to_predict",
        )
        write_prediction(**{name: got[name] for name in names})

    context = Context(runner, folder, Submission(train=no_train, infer=infer), local=local, train=False).run()

    got.pop("got", None)
    assert got == {
        **context.folders,
        "prediction_h5ad_file_path": str(folder / "prediction" / "prediction.h5ad"),
        "program_proportion_csv_file_path": str(folder / "prediction" / "predict_program_proportion.csv"),
        "predict_perturbations": asked,
        "genes_to_predict": GENES,
        "cells_per_perturbation": 100,  # its default: the runner has no other number to give
    }
    assert context.errors == []


def test_cells_per_perturbation_is_never_passed(runner, folder):
    got = []

    def infer(cells_per_perturbation):
        got.append(cells_per_perturbation)

    Context(runner, folder, Submission(infer=infer), local=True, train=False).run()
    assert got == [None]


@pytest.mark.parametrize("local", [True, False])
def test_train_is_called_first_and_only_when_forced(runner, folder, local):
    calls = []

    def train(data_directory_path, model_directory_path):
        calls.append((data_directory_path, model_directory_path))

    submission = Submission(train=train, infer=write_prediction)
    assert Context(runner, folder, submission, local=local, train=False).run().commands == ["infer"]
    assert calls == []
    assert Context(runner, folder, submission, local=local, train=True).run().commands == ["train", "infer"]
    assert calls == [(str(folder / "data"), str(folder / "model"))]


def test_infer_on_an_empty_model_folder_may_train_itself(runner, folder):
    def train(data_directory_path, model_directory_path):
        (Path(model_directory_path) / "model.txt").write_text("trained")

    def infer(
        *,
        data_directory_path,
        model_directory_path,
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        predict_perturbations,
        genes_to_predict,
    ):
        assert not list(Path(model_directory_path).iterdir())
        train(data_directory_path, model_directory_path)
        write_prediction(
            prediction_h5ad_file_path, program_proportion_csv_file_path, predict_perturbations, genes_to_predict
        )

    context = Context(runner, folder, Submission(train=train, infer=infer), local=True, train=False).run()
    assert context.errors == []
    assert (folder / "model" / "model.txt").read_text() == "trained"


def test_the_prediction_folder_is_emptied_before_infer(runner, folder):
    seen = []
    (folder / "prediction" / "old" / "deep").mkdir(parents=True)
    for name in ("prediction.h5ad", "notes.txt", "old/deep/file"):
        (folder / "prediction" / name).write_text("from an earlier run")

    def infer(prediction_directory_path):
        seen.extend(path.name for path in Path(prediction_directory_path).iterdir())

    context = Context(runner, folder, Submission(infer=infer), local=True, train=False).run()
    assert seen == [".gitkeep"]
    assert [error.split(":")[0] for error in context.errors[:2]] == [
        "prediction.h5ad",
        "predict_program_proportion.csv",
    ]


def test_unexpected_files_and_broken_rules_are_reported(runner, folder):
    def infer(prediction_h5ad_file_path, program_proportion_csv_file_path, predict_perturbations, genes_to_predict):
        write_prediction(
            prediction_h5ad_file_path, program_proportion_csv_file_path, predict_perturbations[:1], genes_to_predict
        )
        (folder / "prediction" / "debug.log").touch()

    errors = Context(runner, folder, Submission(infer=infer), local=True, train=False).run().errors
    assert any(error.startswith("debug.log: unexpected file") for error in errors)
    assert any("prediction.h5ad" in error and "CHD4" in error for error in errors)
    assert any("predict_program_proportion.csv" in error and "CHD4" in error for error in errors)
    assert errors[-1].startswith("3 problem(s)")


def test_the_cloud_keeps_what_is_scored(runner, folder):
    (folder / "data" / "perturbations_to_score.txt").write_text("KLF4\nPPARG\n")
    (folder / "data" / "genes_to_score.txt").write_text("LPL\nADIPOQ\n")
    context = Context(runner, folder, Submission(infer=write_prediction), local=False, train=False).run()

    prediction = ad.read_h5ad(folder / "prediction" / "prediction.h5ad")
    assert context.errors == []
    assert prediction.obs["gene"].value_counts().to_dict() == {"PPARG": 100, "KLF4": 100}
    assert prediction.to_df().iloc[0].to_dict() == {"ADIPOQ": 1, "LPL": 2}
    table = pd.read_csv(folder / "prediction" / "predict_program_proportion.csv")
    assert table["gene"].tolist() == CLOUD  # the table is scored whole


def test_the_cloud_keeps_all_when_nothing_says_what_is_scored(runner, folder):
    Context(runner, folder, Submission(infer=write_prediction), local=False, train=False).run()
    assert ad.read_h5ad(folder / "prediction" / "prediction.h5ad").shape == (300, 4)


@pytest.mark.parametrize("command", ["train", "infer"])
def test_an_exception_of_the_submission_comes_out(runner, folder, command):
    def broken():
        raise ZeroDivisionError("broken on purpose")

    functions = {"train": lambda: None, "infer": lambda: None, command: broken}
    context = Context(runner, folder, Submission(**functions), local=True, train=True)
    with pytest.raises(ZeroDivisionError, match="broken on purpose"):
        context.run()


def test_a_missing_function_is_named(runner, folder):
    with pytest.raises(ValueError, match="no `infer` function found"):
        Context(runner, folder, Submission(), local=True, train=False).run()


@pytest.mark.parametrize(("twice", "commands"), [(True, ["infer", "infer"]), (None, ["infer"])])
def test_infer_runs_twice_when_the_check_is_asked_for_and_only_then(runner, folder, twice, commands):
    context = Context(runner, folder, Submission(infer=write_prediction), local=True, train=False, twice=twice).run()
    assert context.commands == commands
    assert context.deterministic is twice
    assert context.errors == []
    assert (folder / "prediction" / "prediction.h5ad").exists()


@pytest.mark.parametrize("changed", ["prediction.h5ad", "predict_program_proportion.csv", "genes", "missing"])
def test_another_second_prediction_is_reported_with_its_file(runner, folder, changed):
    calls = []

    def infer(prediction_h5ad_file_path, program_proportion_csv_file_path, predict_perturbations, genes_to_predict):
        calls.append(len(calls))
        if changed == "missing" and calls[-1]:
            return
        files = Path(prediction_h5ad_file_path), Path(program_proportion_csv_file_path)
        write_prediction(*files, predict_perturbations, genes_to_predict)
        adata = ad.read_h5ad(files[0])
        if changed == "prediction.h5ad":
            adata.X[-1, -1] += calls[-1] * 1e-6
        if changed == "genes":
            adata.var_names = adata.var_names if calls[-1] else adata.var_names[::-1]
        adata.write_h5ad(files[0])
        if changed == "predict_program_proportion.csv" and calls[-1]:
            files[1].write_text(files[1].read_text().replace("0.1,", "0.10001,"))

    context = Context(runner, folder, Submission(infer=infer), local=True, train=False, twice=True).run()
    assert context.deterministic is False
    name = changed if changed.endswith("csv") else "prediction.h5ad"
    names = [name, "predict_program_proportion.csv"] if changed == "missing" else [name]
    assert [error for error in context.errors if "second run" in error] == [
        f"{name}: the second run of infer gave other values than the first" for name in names
    ]


BUILT_IN = [
    Predictor(helpers.ControlMean(), helpers.ControlMean(), helpers.GaussianCells()),
    Predictor(helpers.PerturbedMean(), helpers.PerturbedMean(), helpers.RecentredCells()),
    Predictor(helpers.PCARidge(), helpers.PCARidge(), helpers.GaussianCells()),
    Predictor(ResponseModel(), helpers.MedianProportions(), helpers.ScaledCells()),
]


@pytest.mark.filterwarnings("ignore:.*were not measured as genes")
@pytest.mark.parametrize("predictor", BUILT_IN, ids=lambda predictor: type(predictor.expression).__name__)
def test_every_built_in_estimator_runs_under_the_runner(runner, demo_folder, tmp_path, predictor):
    """As a participant who names it in the notebook: trained and tried at home, then loaded in the cloud."""

    def train(data_directory_path, model_directory_path):
        method.train(data_directory_path, model_directory_path, predictor=predictor)

    def infer(
        data_directory_path,
        prediction_directory_path,
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        model_directory_path,
        predict_perturbations,
        genes_to_predict,
        cells_per_perturbation=100,
    ):
        given = {name: value for name, value in locals().items() if name != "predictor"}
        method.infer(**given, predictor=predictor)

    (tmp_path / "data").symlink_to(demo_folder)
    for name in ("model", "prediction"):
        (tmp_path / name).mkdir()
    submission = Submission(train=train, infer=infer)
    at_home = Context(runner, tmp_path, submission, local=True, train=True, twice=True).run()
    assert (at_home.errors, at_home.deterministic) == ([], True)
    in_the_cloud = Context(runner, tmp_path, Submission(train=no_train, infer=infer), local=False, train=False).run()
    assert in_the_cloud.errors == []


def test_every_estimator_that_can_be_loaded_is_among_those_tried():
    tried = {type(part).__name__ for predictor in BUILT_IN for part in predictor.parts()}
    assert tried == set(method.ESTIMATORS)


def test_the_runner_of_crunch_2_is_this_one_under_its_own_contract(folder):
    """Whatever the environment says: genes under both names, six columns, the lists of that crunch."""
    runner = load_runner(PLATFORM, "broad-obesity-2")
    for name in ("predict_perturbations", "genes_to_predict"):
        (folder / "data" / f"{name}.txt").unlink()
    (folder / "data" / "predict_perturbations_2.txt").write_text("A+B\nA+C\n")
    (folder / "data" / "predict_genes_2.txt").write_text("\n".join(GENES))
    got = []

    def infer(
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        predict_perturbations,
        genes_to_predict,
        predict_genes,
    ):
        got.append((predict_perturbations, genes_to_predict, predict_genes))
        files = prediction_h5ad_file_path, program_proportion_csv_file_path
        write_prediction(*files, predict_perturbations, predict_genes)

    context = Context(runner, folder, Submission(infer=infer), local=False, train=False).run()
    assert got == [(["A+B", "A+C"], GENES, GENES)]
    assert context.errors[0].startswith("predict_program_proportion.csv: the columns lack lipo_adipo")
    assert len(context.errors) == 2
