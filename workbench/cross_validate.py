"""What a method is worth on knock-outs it has not seen: leave-perturbations-out, with baselines, ablations and ceiling.

    python -m workbench.cross_validate --data FOLDER --out table.csv                        a challenge folder
    python -m workbench.cross_validate --effects FILE --out table.csv                       perturbations x responses
    ... --features DIR --screens DIR                                                        do my files help?
    ... --method mine.py:Mine                                                               your own class beside them

In: a folder in the challenge's layout, or a csv or parquet file whose rows are perturbations (first column or index)
and whose other columns are responses (log fold changes, ranks or any other numbers). Out: a tidy table, one row per
method and metric (`summarise`); `--details` adds the table with one row per perturbation. For every file in DIR the
submitted method runs without it too, and the last lines printed say whether the file helps. Whatever is tuned is tuned
inside `ResponseModel.fit`, on the training perturbations of the fold. `workbench.evaluation.methods` says what is
compared, `workbench.evaluation.folds` how a fold is scored, `workbench.evaluation.pictures` draws the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import helpers
from combinations import for_names, genes_in
from contract import CRUNCH
from helpers import Challenge, DataError, bandwidth, draw_panels, open_matrix, some
from knowledge import FeatureTable, GeneKnowledge, read_features, symbol_table, training_knowledge
from response import ResponseModel
from screens import Screen, read_screens
from workbench.commands import check_outputs, command_line, whole
from workbench.compare import STARTER
from workbench.evaluation import intervals, methods
from workbench.evaluation.effects import check_enough, genes_of, read_effects, read_groups
from workbench.evaluation.folds import ChallengeFold, EffectsFold, proportion_rows, run_all, split
from workbench.evaluation.methods import Method, load_methods, own_methods, random_methods
from workbench.evaluation.verdicts import verdict_lines

HIGHER_IS_BETTER = ("pearson", "pearson_delta", "expected_pearson")
METRICS = ("pearson", "pearson_delta", "mmd", "l1_distance", "error", "expected_error", "expected_pearson")  # in order
BASELINES = (STARTER, methods.DELTA_MEAN, methods.PCA_RIDGE, methods.ZERO, methods.TRAIN_MEAN, methods.PERTURBED_MEAN)


def cross_validate_effects(
    effects: pd.DataFrame,
    tables: dict[str, FeatureTable],
    *,
    screens: Mapping[str, Screen] | None = None,
    mine: Collection[str] = (),
    groups: pd.Series | None = None,
    n_folds: int | str = 5,
    seeds: Sequence[int] = (0,),
    draws: int = 2,
    zero_effect: bool | None = None,
    own: Sequence[str] = (),
    only: Sequence[str] | None = None,
    executor: Executor | None = None,
    name: str = "effects",
) -> pd.DataFrame:
    """Leave perturbations out of a matrix of effects, perturbations x responses.

    `tables` and `screens` are what is known of the genes; for each of those named in `mine` the full model runs without
    it, too. `groups` is the gene of each row: all contrasts of one gene leave together, train as their mean, and count
    once. `n_folds` is a number or "loo"; with "loo" the seeds differ in the random methods only. `draws` is the number
    of random tables and of permutations a seed. `zero_effect` adds the prediction 0 (default: where effects have both
    signs, since 0 is no effect only there). `own` names methods of yours (`methods.load_method`), which run beside the
    built-in ones: here without a control among the means, and without `n_cells`. `only` restricts all to these names.
    `name` stands in messages.

    The reference of Pearson is the mean of the training genes; `error` is the length of the prediction's error, in
    the units of `effects`. Returns one row per method, perturbation, metric, seed, fold and draw (`folds.COLUMNS`).
    Raises DataError for fewer than 3 genes, duplicated rows or columns, non-finite values, or where no table or screen
    knows any of the perturbations.
    """
    genes = genes_of(effects, groups, name)
    names = pd.Index(np.unique(genes))
    knowledge = GeneKnowledge(tables, dict(screens or {}))
    known = {part: table.genes for part, table in knowledge.tables.items()}
    known |= {part: screen.perturbations for part, screen in knowledge.screens.items()}
    if known and not any(genes_in(names).isin(genes).any() for genes in known.values()):
        raise DataError(
            f"{name}: none of its perturbations ({some(names, 3)}) is in any table or screen: {some(known)}"
        )
    if zero_effect is None:
        zero_effect = bool((effects.to_numpy() < 0).any())
    fixed = methods.effect_baselines(names, effects.columns, zero_effect=zero_effect)
    fixed += [*methods.model_methods(knowledge, names, effects.columns, mine), *own_methods(own, knowledge)]

    def fold(test: pd.Index, chosen: list[Method], seed: int, number: int) -> EffectsFold:
        return EffectsFold(effects, genes, test, chosen, seed, number)

    return run_all(_folds(fold, names, fixed, knowledge, n_folds, seeds, draws, only), executor)


def cross_validate_challenge(
    challenge: Challenge,
    *,
    features: str | Path | None = None,
    screens: str | Path | None = None,
    n_folds: int | str = 5,
    seeds: Sequence[int] = (0,),
    n_panels: int = 3,
    panel_size: int = 1000,
    sigma: float | str = "scaled",
    draws: int = 2,
    own: Sequence[str] = (),
    only: Sequence[str] | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Leave perturbations out of the training cells of a challenge folder; the platform's three metrics.

    `features` and `screens` are folders of the user's own files; for each file the full model runs without it, too. The
    statistics are sums, so the cells are read once. Feature tables and the base of the cells come from control
    cells alone, and so are the same in every fold. `sigma` is as in `helpers.score`, "calibrated" being the mean
    squared distance between 500 training cells. MMD and Pearson delta are taken on `n_panels` random panels of
    `panel_size` genes (one panel of all genes where there are no more), and on 100 written cells. Two ceilings: one
    half of the real cells of a knock-out against the other, where there are at least 20; and, for MMD alone, the
    written cells scaled to the true mean. MMD grows when cells are few: compare halves of 100 cells or more.

    Returns the table of `cross_validate_effects`, in which `error` is in expression units over all genes.
    """
    with threadpool_limits(1):
        names, genes = challenge.perturbations, challenge.genes
        check_enough(names, str(challenge.train_path))
        tables, elsewhere = _given(features, screens, genes_in(names))
        parts, knowledge = _prepare(challenge, (n_panels, panel_size), sigma)
    knowledge = replace(knowledge, tables=knowledge.tables | tables, screens=elsewhere)
    fixed = [
        *methods.challenge_baselines(names),
        *methods.model_methods(knowledge, names, genes, [*tables, *elsewhere]),
    ]
    name = methods.full_name(knowledge) + methods.RECENTRED
    recentred = Method(name, for_names(ResponseModel(), names), knowledge, cells=helpers.RecentredCells())
    fixed += [recentred, *own_methods(own, knowledge)]

    def fold(test: pd.Index, chosen: list[Method], seed: int, number: int) -> ChallengeFold:
        return ChallengeFold(**parts, test=test, methods=chosen, seed=seed, fold=number)

    return run_all(_folds(fold, names, fixed, knowledge, n_folds, seeds, draws, only), executor)


def cross_validate_proportions(
    proportions: pd.DataFrame, *, n_folds: int | str = "loo", seeds: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Constant predictions of the shares (perturbations x states, the control among them); the table of the others."""
    names = helpers.without_controls(proportions).index
    tables = [
        proportion_rows(proportions, test, None, seed, number)
        for seed in (seeds[:1] if n_folds == "loo" else seeds)
        for number, test in enumerate(split(names, n_folds, seed))
    ]
    return pd.concat(tables, ignore_index=True)


def _prepare(challenge: Challenge, panels: tuple[int, int], sigma: float | str) -> tuple[dict[str, Any], GeneKnowledge]:
    """What all folds share: members of `ChallengeFold`, and what the training file says of the genes."""
    stats = helpers.perturbation_stats(challenge.train_path)
    rows = np.flatnonzero(challenge.obs[CRUNCH.perturbation].map(CRUNCH.is_control).to_numpy(bool))
    control = challenge.obs.iloc[rows]  # the pool must not hold cells that are held out
    pool = helpers.read_cells(challenge.train_path, rows[helpers.pool_rows(control, seed=0)])
    knowledge = training_knowledge(stats, pool, challenge.signatures, genes_in(challenge.perturbations))
    drawn = draw_panels(challenge.genes, challenge.genes, None, *panels, seed=0)
    with open_matrix(challenge.train_path, [CRUNCH.perturbation]) as (matrix, _, genes, _):
        sigmas = [bandwidth(sigma, panel, matrix, genes) for panel in drawn]
    print(f"Panels of {len(drawn[0])} genes; bandwidth of MMD {sigmas[0][0]:.4g}, {sigmas[0][1]}.")
    base = helpers.ScaledCells().fit(pool)
    parts = {
        "path": challenge.train_path,
        "means": stats.mean,
        "n_cells": stats.n_cells,
        "proportions": challenge.proportions,
        "pool": pool,
        "base": base,
        "panels": [(panel, width) for panel, (width, _) in zip(drawn, sigmas, strict=True)],
    }
    return parts, knowledge


def _given(
    features: str | Path | None, screens: str | Path | None, names: pd.Index
) -> tuple[dict[str, FeatureTable], dict[str, Screen]]:
    """The user's tables and screens; refused when a folder gives none that knows a perturbation."""
    tables = {} if features is None else _read_folder(features, read_features, names, "table")
    elsewhere = {} if screens is None else _read_folder(screens, read_screens, names, "screen")
    if both := [name for name in tables if name in elsewhere]:
        raise DataError(f"{features} and {screens}: both hold {some(both)}; rename one of them")
    return tables, elsewhere


def _read_folder(folder: str | Path, read: Callable[[str | Path, pd.Index], dict], names: pd.Index, what: str) -> dict:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder of {what}s")
    found = read(folder, names)
    if not found:
        raise DataError(f"{folder}: no {what} knows any of the perturbations ({some(names, 3)})")
    return found


def _folds(
    make: Callable[[pd.Index, list[Method], int, int], Any],
    names: pd.Index,
    fixed: list[Method],
    knowledge: GeneKnowledge,
    n_folds: int | str,
    seeds: Sequence[int],
    draws: int,
    only: Sequence[str] | None,
) -> list:
    """One fold object per seed and part. Leave-one-out has one split: later seeds run the random methods alone.

    Where there are combinations, they are held out and their singles stay; so do those that are never scored.
    """
    if only is not None:
        known = [method.name for method in fixed] + [methods.RANDOM, methods.SHUFFLED]
        if unknown := sorted(set(only) - set(known)):
            raise DataError(f"no method {some(unknown)}; there are {some(known, 30)}")
    folds = []
    combinations = [CRUNCH.is_combination(name) and bool(CRUNCH.centroid_of(name)) for name in names]
    held_out = names[combinations] if any(combinations) else names
    for seed in seeds:
        parts = split(held_out, n_folds, seed)
        chosen = random_methods(knowledge, names, seed, draws)
        if len(parts) < len(held_out) or seed == seeds[0]:
            chosen = fixed + chosen
        chosen = [method for method in chosen if only is None or method.name in only]
        folds += [make(test, chosen, seed, number) for number, test in enumerate(parts) if chosen]
    return folds


# ---------------------------------------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame, baseline: str | None = None) -> pd.DataFrame:
    """Tidy summary, one row per method and metric (`workbench.evaluation.intervals.summarise`), over perturbations.

    Differences are to `baseline` where given, else to the first of `BASELINES` that has the metric. `seconds` is the
    mean time of a fit with its predictions, `peak_mb` the largest memory of the process meanwhile. `submitted` marks
    the method that is submitted by default: one for the mean and the cells, one for the proportions.
    """
    baselines = BASELINES if baseline is None else (baseline, *BASELINES)
    summary = intervals.summarise(
        table, "perturbation", metrics=METRICS, higher_is_better=HIGHER_IS_BETTER, baselines=baselines
    )
    cost = table.groupby("method", sort=False).agg({"seconds": "mean", "peak_mb": "max", "submitted": "any"})
    return summary.join(cost, on="method")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workbench.cross_validate", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder in the challenge's layout")
    source.add_argument("--effects", type=Path, help="perturbations x responses, csv or parquet")
    parser.add_argument("--features", type=Path, help="folder of feature tables, as resources/features/")
    parser.add_argument("--screens", type=Path, help="folder of other screens, as resources/screens/")
    parser.add_argument("--groups", type=Path, help="csv: perturbation, gene (rows of one gene leave together)")
    parser.add_argument("--folds", type=_n_folds, default=5, help="a number, or loo (leave one out); default 5")
    parser.add_argument("--seeds", type=whole(1), default=1, help="number of random splits; default 1")
    parser.add_argument("--draws", type=whole(0), default=2, help="random tables and permutations per seed; default 2")
    parser.add_argument("--panels", type=whole(1), default=3, help="random panels of 1,000 genes; default 3")
    parser.add_argument(
        "--sigma", type=_sigma, default="scaled", help="bandwidth of MMD: scaled, calibrated or a number"
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a method of yours beside the built-in ones: mine.py:Mine (a class that predicts means) or main:METHOD "
        "(a whole Predictor, whose cells and proportions are scored too); may be given several times",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only the methods of these names")
    parser.add_argument("--jobs", type=whole(1), default=1, help="processes; default 1")
    parser.add_argument("--out", type=Path, help="csv: method, metric, value, low, high, n, ...")
    parser.add_argument("--details", type=Path, help="csv with one row per perturbation")
    options = parser.parse_args(arguments)
    if options.groups and options.data:
        parser.error("--groups goes with --effects")
    return options


def _inputs(options: argparse.Namespace) -> list[Path]:
    """The files that are read, as far as options name them or their folder."""
    folders = [folder for folder in (options.data, options.features, options.screens) if folder]
    own = [Path(name.rpartition(":")[0]) for name in options.method]
    files = [path for path in (options.effects, options.groups, *own) if path]
    return [*files, *(path for folder in folders for path in folder.glob("*") if path.is_file())]


def _n_folds(text: str) -> int | str:
    if text != "loo" and (not text.isdecimal() or int(text) < 2):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'loo' nor a number from 2 on")
    return text if text == "loo" else int(text)


def _sigma(text: str) -> float | str:
    if text in ("scaled", "calibrated"):
        return text
    with suppress(ValueError):
        if 0 < float(text) < np.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'scaled' nor 'calibrated' nor a positive number")


def _run(options: argparse.Namespace, executor: Executor | None) -> pd.DataFrame:
    common = {
        "n_folds": options.folds,
        "seeds": tuple(range(options.seeds)),
        "draws": options.draws,
        "own": options.method,
        "only": options.only,
        "executor": executor,
    }
    how = "leave one out" if options.folds == "loo" else f"{options.folds} folds x {options.seeds} splits"
    if options.data:
        challenge = helpers.load_challenge(options.data)
        print(
            f"{options.data}: {len(challenge.perturbations)} perturbations, {len(challenge.obs):,} cells x "
            f"{len(challenge.genes):,} genes; {how}."
        )
        return cross_validate_challenge(
            challenge,
            features=options.features,
            screens=options.screens,
            n_panels=options.panels,
            sigma=options.sigma,
            **common,
        )
    effects = read_effects(options.effects)
    groups = read_groups(options.groups) if options.groups else None
    names = pd.Index(np.unique(genes_of(effects, groups, str(options.effects))))
    genes, several = genes_in(names), sum(map(CRUNCH.is_combination, names))
    mine, screens = _given(options.features, options.screens, genes)
    tables = {"symbol": symbol_table(sorted({*genes, *effects.columns}))} | mine
    print(
        f"{options.effects}: {len(effects)} rows of {len(genes)} perturbed genes x {effects.shape[1]:,} responses; "
        f"{how}." + f" The {several} combinations are held out, singles stay." * bool(several)
    )
    for name, table in tables.items():
        print(f"  feature table {name}: knows {table.known(genes).sum()} of {len(genes)} perturbed genes")
    for name, screen in screens.items():
        print(
            f"  screen {name}: knows {genes.isin(screen.perturbations).sum()} of {len(genes)} perturbed genes and "
            f"{effects.columns.isin(screen.responses).sum():,} of {effects.shape[1]:,} responses"
        )
    table = cross_validate_effects(
        effects, tables, screens=screens, mine=[*mine, *screens], groups=groups, name=str(options.effects), **common
    )
    if several:
        whole = for_names(ResponseModel(), names).fit(
            effects.groupby(genes_of(effects, groups, "")).mean(), knowledge=GeneKnowledge(tables, screens)
        )
        print(f"\n{whole.describe()}")
    return table


def _executor(options: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """`--jobs` processes, each of which imports your methods; None for one job."""
    if options.jobs == 1:
        return nullcontext()
    return ProcessPoolExecutor(options.jobs, initializer=load_methods, initargs=(options.method,))


@command_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: print the summary, and write it."""
    options = _options(arguments)
    check_outputs([options.out, options.details], _inputs(options))
    load_methods(options.method)  # what cannot be used fails before anything is read
    with _executor(options) as executor:
        table = _run(options, executor)
    summary = summarise(table)
    print("\n".join([_printed(summary, options.method), *verdict_lines(table)]), flush=True)
    for path, frame in ((options.out, summary), (options.details, table)):
        if path is not None:
            intervals.write_table(path, frame)


SCORES = ("pearson", *CRUNCH.metrics)  # what is printed; the table holds the errors too


def _printed(summary: pd.DataFrame, own: Sequence[str]) -> str:
    """One short table per score: mean and interval, paired difference, and which rows are submitted or yours."""
    parts = []
    for metric in [name for name in SCORES if name in set(summary["metric"])]:
        rows = summary[summary["metric"] == metric]
        direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
        baseline = rows["baseline"].dropna().iloc[0] if "baseline" in rows and rows["baseline"].notna().any() else ""
        against = f"; difference to {baseline}" if baseline else ""
        parts.append(f"\n{metric} ({direction} is better){against}")
        for _, row in rows.iterrows():
            mark = ">" if row["method"] in own else "*" if row["submitted"] else " "
            line = f"{mark} {row['method']:44.44} {row['value']:8.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            if baseline and row["method"] != baseline and np.isfinite(row["difference"]):
                line += f"  {row['difference']:+.4f} [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            parts.append(line)
    legend = (
        "\n* submitted by default; > your own. Brackets: 95 % intervals over perturbations; differences are paired."
    )
    return "\n".join([*parts, legend])


if __name__ == "__main__":
    main()
