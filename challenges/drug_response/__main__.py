"""Command line of the drug response challenge.

    python -m challenges.drug_response prepare|train|predict|repro|evaluate --data DIR [--stage ... | --model ...]

`--data` holds Kaggle's files. Trained models are kept in `--work`, one bundle each; submissions go to `submissions/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from challenges import common
from challenges.drug_response import data, evaluate, plots
from challenges.drug_response.models import (
    MODELS,
    STAGES,
    Options,
    Trained,
    check_genes,
    fit_model,
    load_model,
    save_model,
    unlike,
    what_it_takes,
)
from helpers import DataError, some
from workbench.tables import write_table

VERBS = {
    "prepare": "read and check the files, and say what is in them",
    "train": "train a stage or a model and save its bundle",
    "predict": "predict the rows of id_map.csv with a trained bundle",
    "repro": "everything a stage needs, from the files to its submission",
    "evaluate": "score models beside the baselines, on folds or on known answers",
}
PEERS = [name for name in MODELS if name not in STAGES]
SUBMISSIONS = Path("submissions")


def prepare(options: argparse.Namespace) -> None:
    """Check everything before hours are spent."""
    _describe(options, *_read(options))


def _describe(options: argparse.Namespace, responses: pd.DataFrame, queries: pd.DataFrame) -> None:
    sparse = responses.groupby(level="cell_type").size()
    print(
        f"{options.data}: {len(responses)} rows, {responses.shape[1]} genes, "
        f"{responses.index.unique('sm_name').size} compounds; rows by cell type: "
        + ", ".join(f"{name} {n}" for name, n in sparse.items())
    )
    print(
        f"{len(queries)} rows to predict: "
        + ", ".join(f"{name} {n}" for name, n in queries["cell_type"].value_counts().items())
    )
    _say_unknown(data.pairs_of(queries), responses.index.unique("cell_type"), responses.index.unique("sm_name"))
    for name in _steps(options):
        print(f"{name}: {what_it_takes(name, _how(options))}")


def train(options: argparse.Namespace) -> None:
    """Train one model; stage 2 needs the bundle of stage 1."""
    _train(options, *_read(options))


def _train(options: argparse.Namespace, responses: pd.DataFrame, queries: pd.DataFrame) -> None:
    name, how = _name(options), _how(options)
    first = None
    if name == "stage_2":
        first, about = load_model(_bundle(options, "stage_1"))
        if other := unlike(about, "stage_1", data.fingerprint(responses), how):
            raise DataError(
                f"{_bundle(options, 'stage_1')}: trained with other {some(other)} than stage_2 now; train stage_1 again"
            )
    model = fit_model(name, responses, data.pairs_of(queries), how, first)
    save_model(_bundle(options, name), name, model, _mark(name, responses, queries), how)
    print(f"{_bundle(options, name)} written")


def predict(options: argparse.Namespace) -> None:
    """Predict `id_map.csv`, which may be a new one."""
    path, known = _bundle(options, _name(options)), options.data / data.TRAIN_FILE
    model, _ = load_model(path)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    if known.exists():
        check_genes(path, model, data.read_responses(known).columns, str(known))
    _check_sample(options, queries, model.genes_)
    _submit(options, model, queries)


def _submit(options: argparse.Namespace, model: Trained, queries: pd.DataFrame) -> None:
    pairs = data.pairs_of(queries)
    _say_unknown(pairs, model.cell_types_, model.compounds_)
    out = SUBMISSIONS / f"{_name(options)}_submission.csv"
    data.write_submission(out, queries, model.predict(pairs))
    print(f"{out} written: {len(queries)} rows")


def repro(options: argparse.Namespace) -> None:
    """Prepare, then train and predict each stage that the wanted one builds on."""
    responses, queries = _read(options)
    _describe(options, responses, queries)
    for name in _steps(options):
        step = argparse.Namespace(**{**vars(options), **({"stage": name} if name in STAGES else {})})
        _train(step, responses, queries)
        _submit(step, load_model(_bundle(step, name))[0], queries)


def score(options: argparse.Namespace) -> None:
    """Print the table, write it, draw the picture."""
    responses, queries = _read(options)
    how = _how(options)
    chosen = [name for name in MODELS if name in (*options.stage, *options.model)] or list(MODELS)
    if options.truth:
        fitted = {name: _trained(options, name, responses, queries, how) for name in chosen}
        table = evaluate.on_truth(responses, data.read_responses(options.truth), fitted)
    else:
        table = evaluate.on_folds(responses, chosen, how)
    found = evaluate.summary(table)
    print(evaluate.printed(found))
    if options.out:
        write_table(options.out, evaluate.tidy(found))
    plots.by_compound(table, chosen, options.picture)
    print(f"{options.picture} written")


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser, verbs = common.parsers("challenges.drug_response", __doc__.splitlines()[0], VERBS)
    for name, verb in verbs.items():
        verb.add_argument(
            "--data", type=Path, required=True, metavar="DIR", help="folder with de_train.parquet and id_map.csv"
        )
        verb.add_argument("--work", type=Path, default=Path("build/drug_response"), help="where bundles are kept")
        verb.add_argument("--quick", action="store_true", help="one repeat and 0.3 of the epochs, to see it run")
        stage_help = "simple: one network; stage_1: seven; stage_2: twenty on pseudo-labels"
        if name == "evaluate":
            verb.add_argument("--stage", choices=STAGES, nargs="+", default=[], help=stage_help)
            verb.add_argument("--model", choices=PEERS, nargs="+", default=[], help="default: all stages and models")
        else:
            verb.add_argument("--stage", choices=STAGES, help=f"{stage_help}; default simple")
            verb.add_argument("--model", choices=PEERS, help="a peer instead of a stage")
    verbs["evaluate"].add_argument("--truth", type=Path, help="answers in the form of de_train.parquet; default: folds")
    verbs["evaluate"].add_argument("--out", type=Path, help="csv: method, metric, value, low, high, n")
    verbs["evaluate"].add_argument("--picture", type=Path, default=Path("build/drug_response/by_compound.png"))
    options = parser.parse_args(arguments)
    run = {"prepare": prepare, "train": train, "predict": predict, "repro": repro, "evaluate": score}
    common.run(run[options.verb], options)


def _read(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    responses = data.read_responses(options.data / data.TRAIN_FILE)
    data.check_trainable(responses)
    queries = data.read_queries(options.data / data.QUERY_FILE)
    _check_sample(options, queries, responses.columns)
    return responses, queries


def _check_sample(options: argparse.Namespace, queries: pd.DataFrame, genes: pd.Index) -> None:
    if (sample := options.data / data.SAMPLE_FILE).exists():
        data.check_sample(sample, queries, genes)


def _trained(
    options: argparse.Namespace, name: str, responses: pd.DataFrame, queries: pd.DataFrame, how: Options
) -> Trained:
    """The bundle of that name if it was trained on these data in this way, else a new one, which is saved."""
    path, mark = _bundle(options, name), _mark(name, responses, queries)
    if path.exists():
        model, about = load_model(path)
        if not unlike(about, name, mark, how):
            return model
    first = _trained(options, "stage_1", responses, queries, how) if name == "stage_2" else None
    model = fit_model(name, responses, data.pairs_of(queries), how, first)
    save_model(path, name, model, mark, how)
    return model


def _mark(name: str, responses: pd.DataFrame, queries: pd.DataFrame) -> str:
    """What a bundle was trained on; for stage 2 the rows it has pseudo-labels of too."""
    return data.fingerprint(responses, data.pairs_of(queries) if name == "stage_2" else None)


def _name(options: argparse.Namespace) -> str:
    return options.model or options.stage or "simple"


def _steps(options: argparse.Namespace) -> tuple[str, ...]:
    """The models to train, each built on those before."""
    return ("stage_1", "stage_2") if _name(options) == "stage_2" else (_name(options),)


def _how(options: argparse.Namespace) -> Options:
    return Options(options.seed, options.device, options.quick)


def _bundle(options: argparse.Namespace, name: str) -> Path:
    return options.work / f"{name}.h5"


def _say_unknown(pairs: pd.MultiIndex, cell_types: pd.Index, compounds: pd.Index) -> None:
    for sentence in data.unknown_labels(pairs, cell_types, compounds):
        print(f"warning: {sentence}")


if __name__ == "__main__":
    main()
