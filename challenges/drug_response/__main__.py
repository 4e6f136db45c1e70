"""Command line of the drug response challenge.

    python -m challenges.drug_response prepare|train|predict|repro|evaluate --data DIR [--method stage_2] [--quick]

`--data` holds Kaggle's files. The models are kept in `--work` as METHOD.h5, and submissions beside them as METHOD.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from challenges import common
from challenges.drug_response import data, plots
from challenges.drug_response.compounds import NewCompounds
from challenges.drug_response.evaluate import (
    choose,
    differences_text,
    on_folds,
    on_truth,
    out_of_fold,
    summary,
    unseen_text,
)
from challenges.drug_response.fitted import Fitted
from challenges.drug_response.folds import held_out
from challenges.drug_response.models import (
    CLASSES,
    METHODS,
    NEEDS,
    Settings,
    changes,
    check_origin,
    check_responses,
    fit_model,
    provenance,
    seconds,
    what_it_takes,
)
from helpers import DataError, some, text_time
from workbench.commands import check_folder, check_outputs

LOAD_SPEED, PREDICT_SPEED = 1e8, 1e8  # bytes of a model read, and values of a network made, per second


class Files(NamedTuple):
    """What `--data` holds: responses, the rows to predict, SMILES by compound."""

    responses: pd.DataFrame
    queries: pd.DataFrame
    structures: pd.Series

    @property
    def pairs(self) -> pd.MultiIndex:
        """The rows to predict, as (cell type, compound)."""
        return data.pairs_of(self.queries)


def prepare(options: argparse.Namespace) -> None:
    """Read and check the files, and say what is in them and what training takes."""
    _describe(options, _read(options))


def train(options: argparse.Namespace) -> None:
    """Train a method and save the model; stage_2 and blend need the models that they are built on."""
    check_outputs([_model_file(options, options.method)], _inputs(options))
    files = _read(options)
    _say_time("Training", options, [options.method], files)
    _train(options, options.method, files)


def predict(options: argparse.Namespace) -> None:
    """Predict the rows of id_map.csv, which may be a new one, with a trained model."""
    path, known = _model_file(options, options.method), options.data / data.TRAIN_FILE
    out = options.out or path.with_suffix(".csv")
    check_outputs([out], [path, *_inputs(options)])
    model, about = common.load_model(path, *CLASSES)
    check_origin(path, options.method, about)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    took = path.stat().st_size / LOAD_SPEED + len(queries) * model.genes_.size * model.n_networks / PREDICT_SPEED
    print(f"Predicting {len(queries)} rows: {text_time(took)}", flush=True)
    if known.exists():
        check_responses(path, model, about, data.read_responses(known), str(known))
    _check_sample(options, queries, model.genes_)
    _submit(out, model, queries)


def repro(options: argparse.Namespace) -> None:
    """Do all that a method needs, from the files to its submission (of stage_2, both stages); say which to submit."""
    made = [_model_file(options, method) for method in _steps(options.method)]
    check_outputs([options.out, *made, *(path.with_suffix(".csv") for path in made)], _inputs(options))
    files = _read(options)
    _describe(options, files)
    fitted = {}
    for method in _steps(options.method):
        fitted[method] = _train(options, method, files)
        wanted = options.out if method == options.method else None
        _submit(wanted or _model_file(options, method).with_suffix(".csv"), fitted[method], files.queries)
    print(choose(out_of_fold(files.responses, fitted, options.seed)).text)


def evaluate(options: argparse.Namespace) -> None:
    """Measure methods beside the baselines, on folds or on known answers; missing models are trained."""
    out, pictures = options.out or options.work / "table.csv", options.pictures or options.work
    models = [_model_file(options, name) for name in METHODS]
    check_outputs([out], [options.truth, *models, *_inputs(options)])
    check_folder(pictures)
    files = _read(options)
    methods = [name for name in METHODS if name in options.method]
    if options.truth:
        truth = data.read_responses(options.truth)
        missing = [name for name in _with_needed(methods) if _up_to_date(options, name, files) is None]
        _say_time("Training what is missing", options, missing, files)
        fitted = {name: _trained(options, name, files) for name in methods}
        table = on_truth(files.responses, truth, fitted)
        folds = out_of_fold(files.responses, fitted, options.seed)
    else:
        parts = [(train, test.index) for _, train, test in held_out(files.responses, options.seed)]
        wanted = _with_needed(methods)
        print(f"Training on {len(parts)} folds: {text_time(_seconds(options, wanted, parts))}", flush=True)
        folds = table = on_folds(files.responses, methods, _settings(options))
    found, choice = summary(table), choose(folds)
    print(differences_text(found))
    common.show_table(out, found)
    common.save_pictures(pictures, {"picture": plots.picture(table, choice)})
    print(unseen_text(files.responses, files.structures, options.seed))
    print(choice.text)


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
    """The methods to train, each after those that it is built on."""
    return (*NEEDS.get(method, ()), method)


def _with_needed(methods: Iterable[str]) -> list[str]:
    """Those methods and all that they are built on, in the order of METHODS."""
    wanted = {step for method in methods for step in _steps(method)}
    return [name for name in METHODS if name in wanted]


def _seconds(
    options: argparse.Namespace, methods: Iterable[str], parts: Iterable[tuple[pd.DataFrame, pd.MultiIndex]]
) -> float:
    """About how long it takes to fit methods on each of several tables, with the pairs to predict after it."""
    return sum(seconds(name, *part, _settings(options)) for part in parts for name in methods)


def _say_time(doing: str, options: argparse.Namespace, methods: Iterable[str], files: Files) -> None:
    if methods := list(methods):
        took = text_time(_seconds(options, methods, [(files.responses, files.pairs)]))
        print(f"{doing} ({some(methods)}): {took}", flush=True)


def _read(options: argparse.Namespace) -> Files:
    path = options.data / data.TRAIN_FILE
    responses = data.read_responses(path)
    data.check_trainable(responses)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    _check_sample(options, queries, responses.columns)
    return Files(responses, queries, data.read_structures(path))


def _check_sample(options: argparse.Namespace, queries: pd.DataFrame, genes: pd.Index) -> None:
    if (sample := options.data / data.SAMPLE_FILE).exists():
        data.check_sample(sample, queries, genes)


def _describe(options: argparse.Namespace, files: Files) -> None:
    responses, asked = files.responses, files.queries["cell_type"].value_counts()
    by_type, compounds = responses.groupby(level="cell_type").size(), responses.index.unique("sm_name")
    print(f"{options.data}: {len(responses)} rows, {responses.shape[1]} genes, {compounds.size} compounds")
    print("rows by cell type: " + ", ".join(f"{name} {n}" for name, n in by_type.items()))
    print(f"SMILES of {compounds.isin(files.structures.index).sum()} compounds")
    print(f"{len(files.queries)} rows to predict: " + ", ".join(f"{name} {n}" for name, n in asked.items()))
    _say_unknown(NewCompounds().fit(responses, files.structures), compounds, files.queries)
    for method in _steps(options.method):
        print(f"{method}: {what_it_takes(method, _settings(options))}")
    _say_time("Training", options, _steps(options.method), files)


def _say_unknown(new_compounds: NewCompounds, compounds: pd.Index, queries: pd.DataFrame) -> None:
    for sentence in new_compounds.unknown(data.pairs_of(queries), compounds, _asked_structures(queries)):
        print(f"warning: {sentence}")


def _asked_structures(queries: pd.DataFrame) -> pd.Series:
    return data.structures_of(queries, data.QUERY_FILE)


def _train(options: argparse.Namespace, method: str, files: Files) -> Fitted:
    """Train and save. What it is built on comes from files: DataError where one is missing or was trained otherwise."""
    needed = {}
    for name in NEEDS.get(method, ()):
        path = _model_file(options, name)
        needed[name], about = common.load_model(path, *CLASSES)
        check_origin(path, name, about)
        now = _provenance(options, name, files)
        if other := changes(about, now):
            raise DataError(f"{path}: trained with other {some(other)} than {method} now; train {name} again")
    return _fit_and_save(options, method, files, needed)


def _up_to_date(options: argparse.Namespace, method: str, files: Files) -> Fitted | None:
    """The model in `--work` if it is what training now would give."""
    path = _model_file(options, method)
    if not path.exists():
        return None
    model, about = common.load_model(path, *CLASSES)
    return None if changes(about, _provenance(options, method, files)) else model


def _trained(options: argparse.Namespace, method: str, files: Files) -> Fitted:
    """The model in `--work` if it is what training now would give, else a new one, which is saved there."""
    if model := _up_to_date(options, method, files):
        return model
    needed = {name: _trained(options, name, files) for name in NEEDS.get(method, ())}
    return _fit_and_save(options, method, files, needed)


def _fit_and_save(
    options: argparse.Namespace,
    method: str,
    files: Files,
    needed: dict[str, Fitted],
) -> Fitted:
    path = _model_file(options, method)
    model = fit_model(method, files.responses, files.pairs, _settings(options), needed, files.structures)
    common.save_model(path, model, **_provenance(options, method, files))
    print(f"{path} written")
    return model


def _provenance(options: argparse.Namespace, method: str, files: Files) -> dict[str, Any]:
    return provenance(method, files.responses, files.pairs, _settings(options), files.structures)


def _submit(path: Path, model: Fitted, queries: pd.DataFrame) -> None:
    _say_unknown(model.new_compounds, model.compounds_, queries)
    prediction = model.predict(data.pairs_of(queries), _asked_structures(queries))
    data.write_submission(path, queries, prediction)
    print(f"{path} written: {len(queries)} rows")


if __name__ == "__main__":
    main()
