"""Command line of the synthetic cells.

    python -m challenges.synthesis prepare|train  --data FILE --label cell_type [--method gan]
    python -m challenges.synthesis sample         --n 100 --type "B cell" --mix "B cell:0.5,NK cell:0.5" --out FILE.h5ad
    python -m challenges.synthesis evaluate

`--data` is an `.h5ad`, the challenge's `train_cite_inputs.h5` (with `metadata.csv` beside it), or by default scanpy's
own `pbmc68k_reduced`. The models are kept in `--work` as METHOD.h5. `train` keeps a share of every type out of
training; `evaluate` compares on just these cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from challenges import common
from challenges.synthesis import data, main_job, mixing, plots
from challenges.synthesis.baselines import INDEPENDENT, REAL
from challenges.synthesis.evaluate import generators, on_held_out, summary
from challenges.synthesis.folds import split
from challenges.synthesis.models import GAN, METHODS, START, CellGAN, seconds_to_train
from helpers import DataError, free_memory, only_one, some, text_size, text_time
from workbench.commands import check_folder, check_outputs, whole

SAMPLE_SPEED = 1e7  # values drawn and written per second
PICTURED = 2000  # held-out cells at most, in the pictures


def prepare(options: argparse.Namespace) -> None:
    """Read and check the file, and say what is in it, what is held out and how long training takes."""
    training, held_out = _split(options)
    counts = pd.DataFrame({"training": _by_type(training), "held out": _by_type(held_out)}).fillna(0).astype(int)
    counts.insert(0, "cells", counts.sum(axis=1))
    print(counts.rename_axis("type").to_string())
    for name in training.conditions:
        print(f"{name}: {some(sorted(set(training.obs[name])))}")
    seconds = seconds_to_train(training, _steps(options), options.seed, options.device)
    print(f"{options.method}: {_steps(options):,} steps; training takes {text_time(seconds)} here")


def train(options: argparse.Namespace) -> None:
    """Train on all but the held-out cells and save the model; a killed run goes on from its checkpoint."""
    path = _model_file(options, options.method)
    checkpoint = path.with_suffix(".checkpoint.h5")
    check_outputs([path, checkpoint], [options.data])
    with only_one(path):  # two runs would take each other's checkpoint
        training, held_out = _split(options)
        took = text_time(seconds_to_train(training, _steps(options), options.seed, options.device))
        print(f"Training on {len(training):,} cells: {took}; {len(held_out):,} are held out for evaluate.", flush=True)
        model = CellGAN(_steps(options), options.label_mixing, options.seed, options.device)
        model.fit(training, checkpoint)
        about = {"label": _label(options), "conditions": training.conditions, "fingerprint": training.fingerprint()}
        common.save_model(path, model, data=str(_data(options)), **about)
        checkpoint.unlink(missing_ok=True)  # not before the model is safe
    print(f"{path} written: {len(model.types_)} types, {len(model.genes_):,} genes, model {model.identity()}")


def sample(options: argparse.Namespace) -> None:
    """Draw synthetic cells of named types or mixtures, or of every type, into an .h5ad."""
    path = _model_file(options, options.method)
    out = options.out or path.with_suffix(".h5ad")
    check_outputs([out], [path, options.data])
    model, about = _load(options, options.method)
    wanted = [model.weights(name) for name in options.type]
    wanted += [model.weights(mixing.parse_mix(text)) for text in options.mix]
    wanted = wanted or [model.weights(name) for name in model.types_]
    _check_memory(len(wanted) * options.n, len(model.genes_), "fewer cells (--n)")
    genes = _shared_genes(model, options.data) if options.data else None
    weights = np.repeat(wanted, options.n, axis=0)
    took = text_time(len(weights) * len(model.genes_) / SAMPLE_SPEED)
    print(f"Drawing {len(weights):,} cells x {len(model.genes_):,} genes: {took}", flush=True)
    cells = model.sample(weights, _conditions(options.condition), options.seed)
    cells = cells if genes is None else cells.for_genes(genes)
    made = data.to_anndata(cells, about["label"], weights, _identity(model, about, options.seed))
    common.write_cells(out, made)
    counts = made.obs[about["label"]].value_counts()
    print(f"{out} written: {len(made):,} cells ({some(f'{n} {name}' for name, n in counts.items())})")


def evaluate(options: argparse.Namespace) -> None:
    """Compare synthetic cells with held-out real ones, beside simpler generators."""
    out = options.out or options.work / ("challenge.csv" if options.challenge else "table.csv")
    pictures, models_there = options.pictures or options.work, [_model_file(options, name) for name in METHODS]
    check_outputs([out], [options.data, *models_there])
    check_folder(pictures)
    if options.challenge:
        common.show_table(out, main_job.compare_cells(options.challenge, seed=options.seed))
        return
    name = GAN if GAN in options.method else START
    model, about = _load(options, name)
    training, held_out = _known_and_new(options, model, about)
    models = {name: model}
    if name == GAN and START in options.method:  # what adversarial training began from
        models = {START: CellGAN(0, seed=model.seed, device=model.device).fit(training), GAN: model}
    table = on_held_out(models, training, held_out, draws=options.draws, seed=options.seed)
    found = summary(table)
    common.show_table(out, found, rows="metric")
    figures = _figures({name: model}, found, training, held_out, options.seed)
    common.save_pictures(pictures, figures)


SYSTEM = common.System(
    name="synthesis",
    description="Synthetic cells: a conditional GAN that draws cells of a named type.",
    verbs={"prepare": prepare, "train": train, "sample": sample, "evaluate": evaluate},
    methods=METHODS,
    method=GAN,
    data=f".h5ad, train_cite_inputs.h5 or {data.EMBEDDED}; default of prepare and train: {data.EMBEDDED}, "
    "of evaluate: what the model was trained on; sample: a file whose genes are taken, in its order",
    result="the synthetic cells, as h5ad",
    data_needed=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers(SYSTEM)
    for verb in verbs.values():
        verb.add_argument(
            "--label",
            help=f"column of the types (crunch files: {data.STATE} too); default {data.LABEL}, or the model's",
        )
    for name in ("prepare", "train"):
        _add_training_options(verbs[name])
    _add_sampling_options(verbs["sample"])
    verbs["evaluate"].add_argument(
        "--draws", type=whole(1), default=5, metavar="N", help="halves of the held-out cells; default 5"
    )
    verbs["evaluate"].add_argument(
        "--challenge", type=Path, metavar="DIR", help="instead: the crunch's MMD on its local truth"
    )
    options = parser.parse_args(arguments)
    common.run(SYSTEM.verbs[options.verb], options)


def _add_training_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--conditions", metavar="DONOR,DAY", help="columns that shift expression beside the type")
    verb.add_argument(
        "--steps",
        type=whole(0),
        default=CellGAN().steps,
        metavar="N",
        help="generator updates of gan; default %(default)s",
    )
    verb.add_argument(
        "--label-mixing", type=float, default=0.0, metavar="X", help="share of a batch with mixed labels; default 0"
    )
    verb.add_argument(
        "--held-out", type=float, default=0.4, metavar="X", help="share of each type kept for evaluate; default 0.4"
    )
    verb.add_argument("--drop-rare", action="store_true", help="leave out types with a single cell")


def _add_sampling_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--n", type=whole(1), default=100, metavar="N", help="cells of each type or mixture; default 100")
    verb.add_argument("--type", action="append", default=[], metavar="TYPE", help="a type; may be given again")
    verb.add_argument(
        "--mix", action="append", default=[], metavar="TYPE:WEIGHT,...", help="a mixture; may be given again"
    )
    verb.add_argument(
        "--condition", action="append", default=[], metavar="NAME=LEVEL", help="donor, day, ...; else drawn"
    )


def _data(options: argparse.Namespace) -> Path | str:
    return options.data or data.EMBEDDED


def _label(options: argparse.Namespace) -> str:
    return options.label or (data.EMBEDDED_LABEL if str(_data(options)) == data.EMBEDDED else data.LABEL)


def _steps(options: argparse.Namespace) -> int:
    return 0 if options.method == START else options.steps


def _model_file(options: argparse.Namespace, method: str) -> Path:
    return options.work / f"{method}.h5"


def _load(options: argparse.Namespace, method: str) -> tuple[CellGAN, dict[str, Any]]:
    path = _model_file(options, method)
    model, about = common.load_model(path, CellGAN)
    found = START if model.steps == 0 else GAN
    if not {"label", "conditions", "fingerprint", "data"} <= set(about) or found != method:
        raise DataError(f"{path}: a model of {found!r}, not of {method!r}, or of unknown cells; train again")
    return model.set_params(device=options.device), about


def _check_memory(n_cells: int, n_genes: int, what: str) -> None:
    """Raises DataError for cells that would not fit: about four float32 matrices of them are there at a time."""
    needed, free = 16 * n_cells * n_genes, free_memory()
    if needed > free:
        raise DataError(
            f"{n_cells:,} cells x {n_genes:,} genes take {text_size(needed)} of memory, {text_size(free)} are free; "
            f"ask for {what}"
        )


def _split(options: argparse.Namespace) -> tuple[data.Cells, data.Cells]:
    """Training cells and held-out cells of `--data`."""
    if not 0 <= options.held_out < 1:
        raise DataError(f"--held-out is a share from 0 to below 1; it was {options.held_out}")
    conditions = [name.strip() for name in (options.conditions or "").split(",") if name.strip()]
    cells = data.read(_data(options), options.label, conditions, drop_rare=options.drop_rare)
    return split(cells, options.held_out, common.derived_seed(options.seed, "held out"))


def _known_and_new(options: argparse.Namespace, model: CellGAN, about: dict[str, Any]) -> tuple[data.Cells, data.Cells]:
    """The cells that the model was trained on, and the others of the file. Raises DataError for another file."""
    cells = data.read(
        options.data or about["data"], options.label or about["label"], about["conditions"], drop_rare=True
    )
    _check_genes(model, cells.genes, cells.source)
    cells = cells.for_genes(model.genes_)
    if unknown := sorted(set(cells.labels) - set(model.types_)):
        raise DataError(f"{cells.source}: types that the model does not know: {some(unknown)}")
    seen = cells.obs.index.isin(model.trained_on_)
    if not seen.any() or seen.all():
        raise DataError(
            f"{cells.source}: {'all' if seen.any() else 'none'} of its cells are training cells of the model; evaluate "
            "needs the file it was trained on, and held-out cells in it (train --held-out)"
        )
    training, held_out = cells.take(cells.obs.index.get_indexer(model.trained_on_)), cells.take(~seen)
    if seen.sum() < len(model.trained_on_) or training.fingerprint() != about["fingerprint"]:
        raise DataError(
            f"{cells.source}: cells with the names of training cells of the model, but not with their values and "
            "labels; evaluate needs the file it was trained on"
        )
    return training, held_out


def _figures(
    model: Mapping[str, CellGAN], found: pd.DataFrame, training: data.Cells, held_out: data.Cells, seed: int
) -> dict[str, Any]:
    """Pictures of held-out cells, independent genes and one model (by name), and what was `found` of them."""
    real = held_out.take(np.sort(np.random.default_rng(seed).permutation(len(held_out))[:PICTURED]))
    made = generators(model, training, real)
    sets = {name: made[name](real.labels, seed) for name in (REAL, INDEPENDENT, *model)}
    (name,) = model
    zeros, variance = plots.by_type(sets)
    figures = {
        "picture": plots.picture(sets, found, name),
        "detail_pca": plots.joint_pca(sets),
        "detail_moments": plots.moments(sets),
        "detail_zero_rates_by_type": zeros,
        "detail_variance_by_type": variance,
    }
    common_types = pd.Series(held_out.labels).value_counts().index
    if len(common_types) > 1:
        ends = (common_types[0], common_types[1])
        positions = mixing.mixing_positions(model[name], held_out, ends)
        figures["detail_mixing"] = plots.mixing_path(positions, ends, "Mixtures of two types")
    return figures


def _identity(model: CellGAN, about: dict[str, Any], seed: int) -> dict[str, Any]:
    """Which model made the cells, for `uns`."""
    return {
        "model": model.identity(),
        "seed": seed,
        "scale": str(model.scale_),
        "label": about["label"],
        "trained_on": about["data"],
        "synthetic": True,
        "types": np.array(model.types_),
        **common.versions(),
    }


def _check_genes(model: CellGAN, genes: pd.Index, source: object) -> None:
    """Raises DataError where the sets of genes differ."""
    missing, new = model.genes_.difference(genes), genes.difference(model.genes_)
    if len(missing) or len(new):
        raise DataError(
            f"{source}: not the gene set of the model ({len(model.genes_):,} genes); missing: "
            f"{some(missing, 5) or 'none'}; unknown to the model: {some(new, 5) or 'none'}"
        )


def _shared_genes(model: CellGAN, source: Path) -> pd.Index:
    """The genes of a file that the model has, in the file's order; says how many either has alone.

    Raises DataError where they share none.
    """
    genes = data.gene_names(source, model.genes_)
    shared, missing = genes[genes.isin(model.genes_)], model.genes_.difference(genes)
    if shared.empty:
        raise DataError(f"{source}: none of the genes of the model, such as {some(model.genes_, 3)}; name them alike")
    if len(missing):
        print(f"warning: {source}: {len(missing)} genes of the model are missing, and left out: {some(missing)}")
    if len(unknown := genes.difference(model.genes_)):
        print(f"warning: {source}: {len(unknown)} genes unknown to the model get no values: {some(unknown)}")
    return shared


def _conditions(texts: list[str]) -> dict[str, str]:
    if wrong := [text for text in texts if "=" not in text]:
        raise DataError(f"--condition {wrong[0]!r}: expected name=level, such as donor=31800")
    return {name.strip(): level.strip() for name, _, level in (text.partition("=") for text in texts)}


def _by_type(cells: data.Cells) -> pd.Series:
    return cells.obs["label"].value_counts()


if __name__ == "__main__":
    main()
