"""Command line of the synthetic cells.

    python -m challenges.synthesis train    --data FILE --label cell_type [--model model.h5]
    python -m challenges.synthesis sample   --n 100 --type "B cell" --mix "B cell:0.5,NK cell:0.5" --out synthetic.h5ad
    python -m challenges.synthesis evaluate --data FILE --label cell_type --out table.csv --plots pictures/

`--data` is an `.h5ad`, the challenge's `train_cite_inputs.h5` (with `metadata.csv` beside it), or by default scanpy's
own `pbmc68k_reduced`. `train` keeps a share of every type out of training; `evaluate` compares on just these cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from challenges import common
from challenges.synthesis import data, evaluate, files, main_job, mixing, plots
from challenges.synthesis.gan import CellGAN
from helpers import DataError, some
from workbench.plots import save_figure
from workbench.tables import write_table

VERBS = {
    "train": "train a generator on labelled cells and save it",
    "sample": "draw synthetic cells of named types or mixtures into an .h5ad",
    "evaluate": "compare synthetic cells with held-out real ones, beside three simpler generators",
}


def train(options: argparse.Namespace) -> None:
    """Train on all but the held-out cells; a killed run goes on from its checkpoint."""
    if not 0 <= options.held_out < 1:
        raise DataError(f"--held-out is a share from 0 to below 1; it was {options.held_out}")
    conditions = [name.strip() for name in (options.conditions or "").split(",") if name.strip()]
    cells = data.read(options.data, options.label, conditions, drop_rare=options.drop_rare)
    training, held_out = data.split(cells, options.held_out, common.derived_seed(options.seed, "held out"))
    print(f"Training on {len(training):,} cells; {len(held_out):,} are held out for evaluate.")
    model = CellGAN(options.steps, options.label_mixing, options.seed, options.device)
    model.fit(training, options.model.with_suffix(".checkpoint.h5"))
    files.save_model(
        options.model,
        model,
        data=str(options.data),
        label=_label(options),
        conditions=conditions,
        fingerprint=training.fingerprint(),
    )
    print(f"Saved {options.model}: {len(model.types_)} types, {len(model.genes_):,} genes, model {model.identity()}.")


def sample(options: argparse.Namespace) -> None:
    """`--n` cells of each `--type` and each `--mix`; of every type where neither is given."""
    if options.n < 1:
        raise DataError(f"--n is the number of cells of each type or mixture, at least 1; it was {options.n}")
    model, about = files.load_model(options.model, options.device)
    wanted = [model.weights(name) for name in options.type]
    wanted += [model.weights(mixing.parse_mix(text)) for text in options.mix]
    weights = np.repeat(wanted or [model.weights(name) for name in model.types_], options.n, axis=0)
    cells = model.sample(weights, _conditions(options.condition), options.seed)
    if options.data:
        genes = data.read(options.data, options.label or about["label"], drop_rare=True).genes
        _check_genes(model, genes, options.data)
        cells = cells.for_genes(genes)
    identity = {
        "model": model.identity(),
        "seed": options.seed,
        "scale": str(model.scale_),
        "label": about["label"],
        "trained_on": about["data"],
        "synthetic": True,
        "types": np.array(model.types_),
    }
    identity |= {name: str(text) for name, text in common.versions().items()}
    made = files.to_anndata(cells, about["label"], weights, identity)
    files.write_cells(options.out, made)
    counts = made.obs[about["label"]].value_counts()
    print(f"Wrote {options.out}: {len(made):,} cells ({some(f'{n} {name}' for name, n in counts.items())}).")


def evaluate_(options: argparse.Namespace) -> None:
    """The table of generators on held-out cells, or with `--challenge` the crunch's own MMD."""
    if options.challenge:
        table = main_job.compare_cells(options.challenge, steps=main_job.GANCells().steps, seed=options.seed)
        _show(table, options.out)
        return
    model, about = files.load_model(options.model, options.device)
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
            f"{cells.source}: {'all' if seen.any() else 'none'} of its cells are training cells of "
            f"{options.model}; evaluate needs the file it was trained on, and held-out cells in it "
            "(train --held-out)"
        )
    training, held_out = cells.take(cells.obs.index.get_indexer(model.trained_on_)), cells.take(~seen)
    if seen.sum() < len(model.trained_on_) or training.fingerprint() != about["fingerprint"]:
        raise DataError(
            f"{cells.source}: cells with the names of training cells of {options.model}, but not with "
            "their values and labels; evaluate needs the file it was trained on"
        )
    table = evaluate.compare(model, training, held_out, draws=options.draws, seed=options.seed)
    _show(evaluate.summary(table), options.out)
    if options.plots:
        _draw(options.plots, model, training, held_out, options.seed)


def _draw(folder: Path, model: CellGAN, training: data.Cells, held_out: data.Cells, seed: int) -> None:
    real = held_out.take(np.sort(np.random.default_rng(seed).permutation(len(held_out))[:2000]))
    made = evaluate.generators(model, training, real)
    sets = {name: made[name](real.labels, seed) for name in (evaluate.REAL, evaluate.INDEPENDENT, evaluate.GAN)}
    figures = {"pca": plots.joint_pca(sets), "moments": plots.moments(sets)}
    figures["zero_rates_by_type"], figures["variance_by_type"] = plots.by_type(sets)
    common_types = pd.Series(held_out.labels).value_counts().index
    if len(common_types) > 1:
        ends = (common_types[0], common_types[1])
        figures["mixing"] = plots.mixing_path(
            mixing.mixing_positions(model, held_out, ends), ends, "Mixtures of two types"
        )
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png", dpi=120)
    print(f"Wrote {some(f'{name}.png' for name in figures)} to {folder}.")


def _show(table: pd.DataFrame, out: Path | None) -> None:
    wide = table.pivot_table(index="metric", columns="generator", values="value", sort=False)
    print(wide.to_string(float_format="{:.3f}".format))
    if out:
        write_table(out, table)
        print(f"Wrote {out}.")


def _check_genes(model: CellGAN, genes: pd.Index, source: object) -> None:
    """Raises DataError where the sets of genes differ."""
    missing, new = model.genes_.difference(genes), genes.difference(model.genes_)
    if len(missing) or len(new):
        raise DataError(
            f"{source}: not the gene set of the model ({len(model.genes_):,} genes); missing: "
            f"{some(missing, 5) or 'none'}; unknown to the model: {some(new, 5) or 'none'}"
        )


def _conditions(texts: list[str]) -> dict[str, str]:
    if wrong := [text for text in texts if "=" not in text]:
        raise DataError(f"--condition {wrong[0]!r}: expected name=level, such as donor=31800")
    return {name.strip(): level.strip() for name, _, level in (text.partition("=") for text in texts)}


def _label(options: argparse.Namespace) -> str:
    return options.label or (data.EMBEDDED_LABEL if str(options.data) == data.EMBEDDED else data.LABEL)


def _parser() -> argparse.ArgumentParser:
    parser, verbs = common.parsers("challenges.synthesis", (__doc__ or "").splitlines()[0], VERBS)
    for verb, part in verbs.items():
        part.add_argument(
            "--data",
            default=data.EMBEDDED if verb == "train" else None,
            help=f".h5ad, train_cite_inputs.h5 or {data.EMBEDDED} (train: the default)",
        )
        part.add_argument(
            "--label",
            help=f"column of the types (crunch files: {data.STATE} too); default {data.LABEL}, or the model's",
        )
        part.add_argument(
            "--model", type=Path, default=Path("synthesis.h5"), help="the trained model; default synthesis.h5"
        )
    part = verbs["train"]
    part.add_argument("--conditions", metavar="DONOR,DAY", help="columns that shift expression beside the type")
    part.add_argument("--steps", type=int, default=CellGAN().steps, help="generator updates; default %(default)s")
    part.add_argument("--label-mixing", type=float, default=0.0, help="share of a batch with mixed labels; default 0")
    part.add_argument("--held-out", type=float, default=0.4, help="share of each type kept for evaluate; default 0.4")
    part.add_argument("--drop-rare", action="store_true", help="leave out types with a single cell")
    part = verbs["sample"]
    part.add_argument("--n", type=int, default=100, help="cells of each type or mixture; default 100")
    part.add_argument("--type", action="append", default=[], help="a type; may be given again")
    part.add_argument(
        "--mix", action="append", default=[], metavar="TYPE:WEIGHT,...", help="a mixture; may be given again"
    )
    part.add_argument(
        "--condition", action="append", default=[], metavar="NAME=LEVEL", help="donor, day, ...; else drawn"
    )
    part.add_argument("--out", type=Path, default=Path("synthetic.h5ad"), help="default synthetic.h5ad")
    part = verbs["evaluate"]
    part.add_argument("--out", type=Path, help="write the table as csv: generator, metric, value, low, high, n")
    part.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the pictures there")
    part.add_argument("--draws", type=int, default=5, help="halves of the held-out cells and samples; default 5")
    part.add_argument("--challenge", type=Path, metavar="FOLDER", help="instead: the crunch's MMD on its local truth")
    return parser


def main() -> None:
    """Run the verb."""
    options = _parser().parse_args()
    common.run({"train": train, "sample": sample, "evaluate": evaluate_}[options.verb], options)


if __name__ == "__main__":
    main()
