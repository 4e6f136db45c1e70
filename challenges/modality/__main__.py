"""Command line of modality prediction.

    python -m challenges.modality prepare|train|predict|evaluate --data DIR [--mod1 GEX --mod2 ADT] [--model ...]

`--data` is a folder, or the common beginning of the files' names. Trained models are kept in `--work`, one bundle each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from challenges import common
from challenges.modality import data, plots
from challenges.modality.adversarial import LOSSES
from challenges.modality.evaluate import evaluate, printed
from challenges.modality.models import MODELS, ReducedModel, make_model
from helpers import DataError
from workbench.tables import write_table

VERBS = {
    "prepare": "read and check the files, and say what is in them",
    "train": "train a model and save its bundle",
    "predict": "predict the second modality of the test cells with a trained bundle",
    "evaluate": "score models beside the baselines on held-out cells",
}


def prepare(options: argparse.Namespace) -> None:
    """Check everything; say how `evaluate` will hold out."""
    pair = _read(options)
    test = f"{pair.test_source.n_obs:,} test cells" if pair.test_source is not None else "no test cells"
    print(f"{pair.dataset_id}: {test}; evaluate holds out {data.held_out(pair, options.seed)[1]}")


def train(options: argparse.Namespace) -> None:
    """Fit and save."""
    pair = _read(options)
    model = _model(options.model, pair, options)
    about = {"mod1": pair.mod1, "mod2": pair.mod2, "dataset_id": pair.dataset_id}
    path = _bundle(options, pair.mod1, pair.mod2)
    model.save(path, about, {"source": pair.train_source.var_names, "target": pair.train_target.var_names})
    print(f"{path} written: {model.chosen()}")


def predict(options: argparse.Namespace) -> None:
    """Predict the test cells; their features are aligned by name."""
    pair = _read(options)
    path = _bundle(options, pair.mod1, pair.mod2)
    model, about, names = ReducedModel.load(path)
    if (about["mod1"], about["mod2"]) != (pair.mod1, pair.mod2):
        raise DataError(f"{path}: trained from {about['mod1']} to {about['mod2']}, not from {pair.mod1} to {pair.mod2}")
    cells = data.same_features(pair.asked, names["source"], pair.mod1)
    out = options.out or Path("build/modality") / f"{pair.dataset_id}_{pair.mod1}_{pair.mod2}_{options.model}.h5ad"
    uns = {"dataset_id": pair.dataset_id, "method_id": options.model}
    var = data.same_features(pair.train_target, names["target"], pair.mod2).var
    data.write_prediction(out, cells.obs, var, pair.mod2, model.predict(cells.X).block, uns)
    print(f"{out} written")


def score(options: argparse.Namespace) -> None:
    """Print the table, write it, draw the pictures."""
    pairs, how = data.held_out(_read(options), options.seed)
    print(f"Held out: {how}")
    device = common.pick_device(options.device).type
    scores = evaluate(pairs, options.model, options.seed, device, options.loss)
    print(printed(scores.table))
    if options.out:
        write_table(options.out, scores.table)
    rmse = scores.table[(scores.table["metric"] == "RMSE") & scores.table["method"].isin(options.model)]
    best = str(rmse.set_index("method")["value"].idxmin())
    prefix = f"{scores.last.mod1}_{scores.last.mod2}"
    plots.predicted_and_measured(
        scores.last, scores.predictions[best], scores.by_feature, best, options.pictures / f"{prefix}_cells.png"
    )
    plots.by_feature_picture(scores.by_feature, options.model, scores.last, options.pictures / f"{prefix}_features.png")
    print(f"{options.pictures}/{prefix}_*.png written")


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers("challenges.modality", __doc__.splitlines()[0], VERBS)
    for name, verb in verbs.items():
        verb.add_argument(
            "--data", type=Path, required=True, help="folder, or the common beginning of the files' names"
        )
        verb.add_argument("--mod1", choices=data.MODALITIES, help="source; default: that of the mod1 file")
        verb.add_argument("--mod2", choices=data.MODALITIES, help="target; default: that of the mod2 file")
        if name in ("train", "predict"):
            verb.add_argument("--model", choices=MODELS, default="kernel_ridge")
            verb.add_argument("--work", type=Path, default=Path("build/modality"), help="where bundles are kept")
        if name in ("train", "evaluate"):
            verb.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="of the adversarial model's critic")
    verbs["predict"].add_argument("--out", type=Path, help="h5ad to write; default: in build/modality")
    verbs["evaluate"].add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    verbs["evaluate"].add_argument("--out", type=Path, help="csv: method, metric, value, low, high, n")
    verbs["evaluate"].add_argument("--pictures", type=Path, default=Path("build/modality"), help="folder for pictures")
    options = parser.parse_args(arguments)
    common.run({"prepare": prepare, "train": train, "predict": predict, "evaluate": score}[options.verb], options)


def _read(options: argparse.Namespace) -> data.Pair:
    return data.read_pair(options.data, options.mod1, options.mod2)


def _model(name: str, pair: data.Pair, options: argparse.Namespace) -> ReducedModel:
    model = make_model(
        name,
        accessibility=pair.mod1 == "ATAC",
        seed=options.seed,
        device=common.pick_device(options.device).type,
        loss=options.loss,
    )
    return model.fit(pair.train_source.X, pair.train_target.X, data.batches_of(pair.train_source))


def _bundle(options: argparse.Namespace, mod1: str, mod2: str) -> Path:
    return options.work / f"{mod1}_{mod2}_{options.model}.h5"


if __name__ == "__main__":
    main()
