"""Command line of the drug response challenge.

    python -m challenges.drug_response prepare|train|predict|repro|evaluate --data DIR [--method stage_2] [--quick]

`--data` holds Kaggle's files. The models are kept in `--work` as METHOD.h5, and submissions beside them as METHOD.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from challenges import common
from challenges.drug_response import data, plots
from challenges.drug_response.evaluate import differences_text, on_folds, on_truth, summary
from challenges.drug_response.models import (
    CLASSES,
    METHODS,
    Model,
    Settings,
    changes,
    check_origin,
    check_responses,
    fit_model,
    provenance,
    what_it_takes,
)
from helpers import DataError, some
from workbench.commands import check_folder, check_outputs


def prepare(options: argparse.Namespace) -> None:
    """Read and check the files, and say what is in them and what training takes."""
    _describe(options, *_read(options))


def train(options: argparse.Namespace) -> None:
    """Train a method and save the model; stage_2 needs the model of stage_1."""
    check_outputs([_model_file(options, options.method)], _inputs(options))
    responses, queries = _read(options)
    _train(options, options.method, responses, queries)


def predict(options: argparse.Namespace) -> None:
    """Predict the rows of id_map.csv, which may be a new one, with a trained model."""
    path, known = _model_file(options, options.method), options.data / data.TRAIN_FILE
    out = options.out or path.with_suffix(".csv")
    check_outputs([out], [path, *_inputs(options)])
    model, about = common.load_model(path, *CLASSES)
    check_origin(path, options.method, about)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    if known.exists():
        check_responses(path, model, about, data.read_responses(known), str(known))
    _check_sample(options, queries, model.genes_)
    _submit(out, model, queries)


def repro(options: argparse.Namespace) -> None:
    """Do all that a method needs, from the files to its submission: of stage_2, both stages."""
    files = [_model_file(options, method) for method in _steps(options.method)]
    check_outputs([options.out, *files, *(path.with_suffix(".csv") for path in files)], _inputs(options))
    responses, queries = _read(options)
    _describe(options, responses, queries)
    for method in _steps(options.method):
        model = _train(options, method, responses, queries)
        wanted = options.out if method == options.method else None
        _submit(wanted or _model_file(options, method).with_suffix(".csv"), model, queries)


def evaluate(options: argparse.Namespace) -> None:
    """Measure methods beside the baselines, on folds or on known answers; missing models are trained."""
    out, pictures = options.out or options.work / "table.csv", options.pictures or options.work
    models = [_model_file(options, name) for name in METHODS]
    check_outputs([out], [options.truth, *models, *_inputs(options)])
    check_folder(pictures)
    responses, queries = _read(options)
    methods = [name for name in METHODS if name in options.method]
    if options.truth:
        fitted = {name: _trained(options, name, responses, queries) for name in methods}
        table = on_truth(responses, data.read_responses(options.truth), fitted)
    else:
        table = on_folds(responses, methods, _settings(options))
    found = summary(table)
    print(differences_text(found))
    common.show_table(out, found)
    common.save_pictures(pictures, {"by_compound": plots.by_compound(table)})


SYSTEM = common.System(
    name="drug_response",
    description="Drug response: a cell type's response to a compound it never met.",
    verbs={"prepare": prepare, "train": train, "predict": predict, "repro": repro, "evaluate": evaluate},
    methods=METHODS,
    method="simple",
    data="folder with de_train.parquet and id_map.csv",
    result="the submission, as csv",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers(SYSTEM)
    for verb in verbs.values():
        verb.add_argument("--quick", action="store_true", help="one repeat and 0.3 of the epochs, to see it run")
    verbs["evaluate"].add_argument(
        "--truth", type=Path, metavar="FILE", help="answers in the form of de_train.parquet; default: folds"
    )
    options = parser.parse_args(arguments)
    common.run(SYSTEM.verbs[options.verb], options)


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(options.seed, options.device, options.quick)


def _model_file(options: argparse.Namespace, method: str) -> Path:
    return options.work / f"{method}.h5"


def _inputs(options: argparse.Namespace) -> list[Path]:
    return [options.data / name for name in (data.TRAIN_FILE, data.QUERY_FILE, data.SAMPLE_FILE)]


def _steps(method: str) -> tuple[str, ...]:
    """The methods to train, each built on those before."""
    return ("stage_1", "stage_2") if method == "stage_2" else (method,)


def _read(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    responses = data.read_responses(options.data / data.TRAIN_FILE)
    data.check_trainable(responses)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    _check_sample(options, queries, responses.columns)
    return responses, queries


def _check_sample(options: argparse.Namespace, queries: pd.DataFrame, genes: pd.Index) -> None:
    if (sample := options.data / data.SAMPLE_FILE).exists():
        data.check_sample(sample, queries, genes)


def _describe(options: argparse.Namespace, responses: pd.DataFrame, queries: pd.DataFrame) -> None:
    by_type = responses.groupby(level="cell_type").size()
    n_compounds = responses.index.unique("sm_name").size
    print(f"{options.data}: {len(responses)} rows, {responses.shape[1]} genes, {n_compounds} compounds")
    print("rows by cell type: " + ", ".join(f"{name} {n}" for name, n in by_type.items()))
    asked = queries["cell_type"].value_counts()
    print(f"{len(queries)} rows to predict: " + ", ".join(f"{name} {n}" for name, n in asked.items()))
    _say_unknown(data.pairs_of(queries), responses.index.unique("cell_type"), responses.index.unique("sm_name"))
    for method in _steps(options.method):
        print(f"{method}: {what_it_takes(method, _settings(options))}")


def _say_unknown(pairs: pd.MultiIndex, cell_types: pd.Index, compounds: pd.Index) -> None:
    for sentence in data.unknown_labels(pairs, cell_types, compounds):
        print(f"warning: {sentence}")


def _train(options: argparse.Namespace, method: str, responses: pd.DataFrame, queries: pd.DataFrame) -> Model:
    """Train and save. Stage 2 takes stage 1 from its file: DataError where that is missing or was trained otherwise."""
    first = None
    if method == "stage_2":
        path = _model_file(options, "stage_1")
        first, about = common.load_model(path, *CLASSES)
        check_origin(path, "stage_1", about)
        now = provenance("stage_1", responses, data.pairs_of(queries), _settings(options))
        if other := changes(about, now):
            raise DataError(f"{path}: trained with other {some(other)} than stage_2 now; train stage_1 again")
    return _fit_and_save(options, method, responses, queries, first)


def _trained(options: argparse.Namespace, method: str, responses: pd.DataFrame, queries: pd.DataFrame) -> Model:
    """The model in `--work` if it is what training now would give, else a new one, which is saved there."""
    path = _model_file(options, method)
    if path.exists():
        model, about = common.load_model(path, *CLASSES)
        if not changes(about, provenance(method, responses, data.pairs_of(queries), _settings(options))):
            return model
    first = _trained(options, "stage_1", responses, queries) if method == "stage_2" else None
    return _fit_and_save(options, method, responses, queries, first)


def _fit_and_save(
    options: argparse.Namespace, method: str, responses: pd.DataFrame, queries: pd.DataFrame, first: Model | None
) -> Model:
    path, pairs, settings = _model_file(options, method), data.pairs_of(queries), _settings(options)
    model = fit_model(method, responses, pairs, settings, first)
    common.save_model(path, model, **provenance(method, responses, pairs, settings))
    print(f"{path} written")
    return model


def _submit(path: Path, model: Model, queries: pd.DataFrame) -> None:
    pairs = data.pairs_of(queries)
    _say_unknown(pairs, model.cell_types_, model.compounds_)
    data.write_submission(path, queries, model.predict(pairs))
    print(f"{path} written: {len(queries)} rows")


if __name__ == "__main__":
    main()
