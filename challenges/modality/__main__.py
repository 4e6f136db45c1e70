"""Command line of modality prediction.

    python -m challenges.modality prepare|train|predict|evaluate --data DIR [--mod1 GEX --mod2 ADT] [--method ridge]

`--data` is a folder, or the common beginning of the files' names. The models are kept in `--work` as
MOD1_MOD2_METHOD.h5, and predictions beside them as MOD1_MOD2_METHOD.h5ad.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from challenges import common
from challenges.modality import data, plots
from challenges.modality.evaluate import on_folds
from challenges.modality.folds import held_out
from challenges.modality.models import METHODS, ReducedModel, make_model
from challenges.modality.networks import LOSSES
from helpers import DataError
from workbench.commands import check_folder, check_outputs


def prepare(options: argparse.Namespace) -> None:
    """Read and check the files, and say what is in them and what evaluate will hold out."""
    pair = _read(options)
    test = f"{pair.test_source.n_obs:,} test cells" if pair.test_source is not None else "no test cells"
    print(f"{pair.dataset_id}: {test}; evaluate holds out {held_out(pair, options.seed)[1]}")


def train(options: argparse.Namespace) -> None:
    """Train a method on the training cells and save the model."""
    pair = _read(options)
    path = _model_file(options, pair)
    check_outputs([path], _inputs(options))
    device = common.pick_device(options.device).type
    model = make_model(
        options.method, accessibility=pair.mod1 == "ATAC", seed=options.seed, device=device, loss=options.loss
    )
    features = pair.train_source.var_names, pair.train_target.var_names
    model.fit(pair.train_source.X, pair.train_target.X, data.batches_of(pair.train_source), features)
    about = {"mod1": pair.mod1, "mod2": pair.mod2, "dataset_id": pair.dataset_id, "fingerprint": pair.fingerprint()}
    common.save_model(path, model, **about)
    print(f"{path} written: {model.chosen()}")


def predict(options: argparse.Namespace) -> None:
    """Predict the second modality of the test cells with a trained model; features are aligned by name."""
    pair = _read(options)
    path = _model_file(options, pair)
    out = options.out or path.with_suffix(".h5ad")
    check_outputs([out], [path, *_inputs(options)])
    model, about = common.load_model(path, ReducedModel)
    if (about.get("mod1"), about.get("mod2")) != (pair.mod1, pair.mod2):
        told = f"trained from {about.get('mod1')} to {about.get('mod2')}, not from {pair.mod1} to {pair.mod2}"
        raise DataError(f"{path}: {told}; train again")
    if model.method != options.method:
        raise DataError(f"{path}: a model of {model.method!r}, not of {options.method!r}; train again")
    if about.get("fingerprint") != pair.fingerprint():
        raise DataError(f"{path}: trained on other cells than those of {options.data}; train again")
    cells = data.same_features(pair.asked, model.source_features_, pair.mod1)
    var = data.same_features(pair.train_target, model.target_features_, pair.mod2).var
    uns = {"dataset_id": pair.dataset_id, "method_id": options.method}
    data.write_prediction(out, cells.obs, var, pair.mod2, model.predict(cells.X), uns)
    print(f"{out} written: {cells.n_obs:,} cells x {len(var):,} features")


def evaluate(options: argparse.Namespace) -> None:
    """Measure methods beside the baselines on held-out cells; each is trained anew on the others."""
    pair = _read(options)
    name = f"{pair.mod1}_{pair.mod2}"
    out, pictures = options.out or options.work / f"{name}_table.csv", options.pictures or options.work
    check_outputs([out], _inputs(options))
    check_folder(pictures)
    pairs, how = held_out(pair, options.seed)
    print(f"Held out: {how}")
    methods = [name for name in METHODS if name in options.method]
    found = on_folds(pairs, methods, options.seed, common.pick_device(options.device).type, options.loss)
    pair, table = found.last, found.table
    common.show_table(out, table)
    rmse = table[(table["metric"] == "RMSE") & table["method"].isin(methods)]
    best = str(rmse.set_index("method")["value"].idxmin())
    figures = {
        f"{name}_cells": plots.predicted_and_measured(pair, found.predictions[best], found.by_feature, best),
        f"{name}_features": plots.by_feature_picture(found.by_feature, methods, best, pair),
    }
    common.save_pictures(pictures, figures)


SYSTEM = common.System(
    name="modality",
    description="Modality prediction: expression, accessibility and surface protein from one another.",
    verbs={"prepare": prepare, "train": train, "predict": predict, "evaluate": evaluate},
    methods=METHODS,
    method="kernel_ridge",
    data="folder, or the common beginning of the files' names",
    result="the predicted cells, as h5ad",
)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers(SYSTEM)
    for name, verb in verbs.items():
        verb.add_argument("--mod1", choices=data.MODALITIES, help="source; default: that of the mod1 file")
        verb.add_argument("--mod2", choices=data.MODALITIES, help="target; default: that of the mod2 file")
        if name in ("train", "evaluate"):
            verb.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="of the adversarial methods' critic")
    options = parser.parse_args(arguments)
    common.run(SYSTEM.verbs[options.verb], options)


def _read(options: argparse.Namespace) -> data.Pair:
    return data.read_pair(options.data, options.mod1, options.mod2)


def _inputs(options: argparse.Namespace) -> list[Path]:
    return data.files_of(options.data, options.mod1, options.mod2)


def _model_file(options: argparse.Namespace, pair: data.Pair) -> Path:
    return options.work / f"{pair.mod1}_{pair.mod2}_{options.method}.h5"


if __name__ == "__main__":
    main()
