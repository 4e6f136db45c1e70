"""Command line of modality prediction.

    python -m challenges.modality prepare|train|predict|evaluate --data DIR [--mod1 GEX --mod2 ADT] [--method ridge]

`--data` is a folder, or the common beginning of the files' names; of `predict` the file with the cells, or a folder
with a test file. The models are kept in `--work` as MOD1_MOD2_METHOD.h5, and predictions beside them as
MOD1_MOD2_METHOD.h5ad.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from challenges import common
from challenges.modality import data, plots
from challenges.modality.baselines import BASELINES
from challenges.modality.evaluate import on_folds
from challenges.modality.folds import held_out
from challenges.modality.models import METHODS, ReducedModel, make_model, seconds_to_fit
from challenges.modality.networks import LOSSES
from challenges.modality.scale import AS_THEY_ARE, DONE, SCALES, Scale
from helpers import DataError, some, text_time
from workbench.commands import check_folder, check_outputs

PREDICT_SPEED, MEASURE_SPEED = 2e7, 1e7  # values predicted and written, and compared with the answers, per second


def prepare(options: argparse.Namespace) -> None:
    """Read and check the files, and say what is in them and what evaluate will hold out."""
    pair = _read(options)
    test = f"{pair.test_source.n_obs:,} test cells" if pair.test_source is not None else "no test cells"
    print(f"{pair.dataset_id}: {test}; evaluate holds out {held_out(pair, options.seed)[1]}")
    print(f"{options.method}: training takes {text_time(_seconds(options, [options.method], [pair]))} here")


def train(options: argparse.Namespace) -> None:
    """Train a method on the training cells and save the model."""
    pair = _read(options)
    path = _model_file(options, pair)
    check_outputs([path], _inputs(options))
    print(f"Training {options.method}: {text_time(_seconds(options, [options.method], [pair]))}", flush=True)
    device = common.pick_device(options.device).type
    peaks = {"accessibility": pair.mod1 == "ATAC", "sparse": pair.mod2 == "ATAC"}
    model = make_model(options.method, **peaks, seed=options.seed, device=device, loss=options.loss)
    features = pair.train_source.var_names, pair.train_target.var_names
    batches = data.batches_of(pair.train_source)
    model.fit(pair.train_source.X, pair.train_target.X, batches, features, pair.source_scale)
    about = {"mod1": pair.mod1, "mod2": pair.mod2, "dataset_id": pair.dataset_id, "fingerprint": pair.fingerprint()}
    common.save_model(path, model, **about, values=DONE[pair.target_scale.way])
    print(f"{path} written: {model.chosen()}")


def predict(options: argparse.Namespace) -> None:
    """Predict the second modality of cells with a trained model; the model and the cells' file are all it needs."""
    file, mod1 = data.asked_file(options.data, options.mod1, options.mod2)
    path, mod2 = _trained_file(options, mod1)
    out = options.out or path.with_suffix(".h5ad")
    training = data.has_training(options.data)
    check_outputs([out], [path, file, *(data.files_of(options.data, mod1, mod2) if training else [])])
    model, about = common.load_model(path, ReducedModel)
    if (about.get("mod1"), about.get("mod2")) != (mod1, mod2):
        told = f"trained from {about.get('mod1')} to {about.get('mod2')}, not from {mod1} to {mod2}"
        raise DataError(f"{path}: {told}; train again")
    if model.method != options.method:
        raise DataError(f"{path}: a model of {model.method!r}, not of {options.method!r}; train again")
    cells, measured = data.read_asked(file, mod1, model.source_features_, model.scale_, path)
    if training:
        _check_training(options, path, about, model.scale_, cells, file)
    var = pd.DataFrame(index=model.target_features_)
    took = text_time(cells.n_obs * len(var) / PREDICT_SPEED)
    print(f"Predicting {cells.n_obs:,} cells x {len(var):,} features: {took}", flush=True)
    uns = {
        "dataset_id": str(cells.uns.get("dataset_id", about.get("dataset_id"))),
        "method_id": options.method,
        "values": str(about.get("values")),
    }
    found = model.predict(cells.X, measured)
    data.write_prediction(out, cells.obs, var, mod2, found, uns)
    sparse = f", sparse: values below {found.threshold:.3g} are 0" if found.threshold else ""
    print(f"{out} written: {cells.n_obs:,} cells x {len(var):,} features of {mod2}{sparse}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure methods beside the baselines on held-out cells; each is trained anew on the others."""
    pair = _read(options)
    name = f"{pair.mod1}_{pair.mod2}"
    out, pictures = options.out or options.work / f"{name}_table.csv", options.pictures or options.work
    check_outputs([out], _inputs(options))
    check_folder(pictures)
    pairs, how = held_out(pair, options.seed)
    methods = [name for name in METHODS if name in options.method]
    took = (
        _seconds(options, methods, pairs)
        + sum(np.prod(pair.answers.shape) for pair in pairs) * (len(methods) + len(BASELINES)) / MEASURE_SPEED
    )
    print(f"Held out: {how}\nTraining and measuring {some(methods)}: {text_time(took)}", flush=True)
    found = on_folds(pairs, methods, options.seed, common.pick_device(options.device).type, options.loss)
    pair, table = found.last, found.table
    common.show_table(out, table)
    rmse = table[(table["metric"] == "RMSE") & table["method"].isin(methods)]
    best = str(rmse.set_index("method")["value"].idxmin())
    figures = {
        f"{name}_picture": plots.picture(table, best, pair),
        f"{name}_detail_cells": plots.predicted_and_measured(pair, found.predictions[best], found.by_feature, best),
        f"{name}_detail_features": plots.by_feature_picture(found.by_feature, methods, best, pair),
    }
    common.save_pictures(pictures, figures)


SYSTEM = common.System(
    name="modality",
    description="Modality prediction: expression, accessibility and surface protein from one another.",
    verbs={"prepare": prepare, "train": train, "predict": predict, "evaluate": evaluate},
    methods=METHODS,
    method="kernel_ridge",
    data="folder, or the common beginning of the files' names; predict: the file with the cells, or its folder",
    result="the predicted cells, as h5ad",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers(SYSTEM)
    for name, verb in verbs.items():
        verb.add_argument("--mod1", choices=data.MODALITIES, help="source; default: that of the mod1 file")
        verb.add_argument("--mod2", choices=data.MODALITIES, help="target; default: that of the mod2 file")
        if name != "predict":
            verb.add_argument("--scale", choices=SCALES, default="auto", help="as-is: counts are not normalised")
        if name in ("train", "evaluate"):
            verb.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="of the adversarial methods' critic")
    options = parser.parse_args(arguments)
    common.run(SYSTEM.verbs[options.verb], options)


def _read(options: argparse.Namespace) -> data.Pair:
    return data.read_pair(options.data, options.mod1, options.mod2, as_is=options.scale == "as-is")


def _seconds(options: argparse.Namespace, methods: Iterable[str], pairs: Iterable[data.Pair]) -> float:
    """About how long it takes to fit methods on each of several pairs."""
    device, loss = common.pick_device(options.device).type, getattr(options, "loss", LOSSES[0])
    parts = [(pair.train_source.X, pair.train_target.X) for pair in pairs]
    return sum(seconds_to_fit(methods, *part, device=device, loss=loss) for part in parts)


def _inputs(options: argparse.Namespace) -> list[Path]:
    return data.files_of(options.data, options.mod1, options.mod2)


def _model_file(options: argparse.Namespace, pair: data.Pair) -> Path:
    return options.work / f"{pair.mod1}_{pair.mod2}_{options.method}.h5"


def _trained_file(options: argparse.Namespace, mod1: str) -> tuple[Path, str]:
    """The model from `mod1` to `--mod2`, or to whatever one was trained for; and its target."""
    targets = [options.mod2] if options.mod2 else [name for name in data.MODALITIES if name != mod1]
    paths = {options.work / f"{mod1}_{name}_{options.method}.h5": name for name in targets}
    there = [path for path in paths if path.exists()]
    if len(there) > 1:
        raise DataError(f"{options.work}: {some(path.name for path in there)}; say --mod2, what to predict")
    if not there:
        raise DataError(f"{options.work}: {' or '.join(path.name for path in paths)}: no such model; train first")
    return there[0], paths[there[0]]


def _check_training(
    options: argparse.Namespace, path: Path, about: dict[str, Any], scale: Scale, cells: ad.AnnData, file: Path
) -> None:
    """Raises DataError where the training files that lie there are not those of the model, or hold the cells asked for.

    They are not needed, but an old model beside new files is a mistake.
    """
    as_is = scale.way == AS_THEY_ARE
    pair = data.read_pair(options.data, about["mod1"], about["mod2"], as_is=as_is, parts=data.TRAINING)
    if about.get("fingerprint") != pair.fingerprint():
        raise DataError(f"{path}: trained on other cells than those of {options.data}; train again")
    data.check_new(pair.train_source, cells, file)


if __name__ == "__main__":
    main()
