"""Predicted cells beside real cells: the section of RESULTS.md on what other tools ask of cells.

In: the folder of the real data, and simulated data, made here. Out: a `Section`, pictures in `docs/`. Next: `page.py`.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import helpers
from contract import CRUNCH
from knowledge import training_knowledge
from method import CellGenerator, fit_predictor
from response import ResponseModel
from workbench.compare import local_truth
from workbench.evaluation import field, likeness
from workbench.results.page import BUILD, Goal, Section, mean_text, save_picture, verdict
from workbench.simulate import simulate

AMPLITUDES = (1.0, 1.5, 2.0)
TRUE = "scaled to the true mean"


def cells(data: Path, executor: Executor | None) -> Section:
    """Predicted cells beside real ones, on one simulated data set and on THP-1."""
    demo_folder = BUILD / "demo_cells"
    if not (demo_folder / CRUNCH.train_file).exists():
        simulate(demo_folder)
    parts, hits, lines = [], [], []
    for title, folder, sigma in (
        ("Demo data", demo_folder, "scaled"),
        ("THP-1", data / "thp1_challenge", "calibrated"),
    ):
        challenge = helpers.load_challenge(folder)
        predictor = fit_predictor(challenge)
        means = predictor.predict_means(local_truth(challenge)[1])
        rows = helpers.pool_rows(challenge.obs, seed=0)
        recentred = helpers.RecentredCells().fit(helpers.read_cells(challenge.train_path, rows))
        generators = {"recentred cells": recentred, "scaled cells": predictor.cells}
        table = likeness.likeness(challenge, means, generators, sigma=sigma)
        table.to_csv(BUILD / f"cells_{folder.name}.csv", index=False)
        picture = f"results_cells_{'demo' if sigma == 'scaled' else 'thp1'}.png"
        save_picture(likeness.picture(challenge, means, generators, title), picture)
        text_of_part, hit, line = _cells_part(title, table)
        parts.append(f"{text_of_part}\n\n![{title}: zeros per gene, variance against mean](docs/{picture})")
        hits.append(hit)
        lines.append(line)
    title, asked = (
        "Predicted cells beside real cells",
        "zeros within .02, none negative, forest below .75, MMD not worse by .0005",
    )
    goals = [Goal(title, asked, "; ".join(lines), verdict(all(hits)))]
    return Section(title, goals, "\n\n".join([*parts, _field_part(data)]))


def _cells_part(title: str, table: pd.DataFrame) -> tuple[str, bool, str]:
    """The table of one data set, whether scaled cells reach what was asked, and their line."""
    wide = table.pivot_table(index="generator", columns="metric", values="value", sort=False)[list(likeness.METRICS)]
    lines = [f"| {title} | {' | '.join(likeness.METRICS.values())} |", "|---" * (len(wide.columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.4f}' for value in row)} |" for name, row in wide.iterrows()]
    by_perturbation = table[table["metric"] == "mmd"].pivot_table(
        index="perturbation", columns="generator", values="value"
    )
    worse = by_perturbation["scaled cells"] - by_perturbation["recentred cells"]
    scaled = wide.loc["scaled cells"]
    hit = abs(scaled["zeros"]) <= 0.02 and scaled["negative"] == 0 and scaled["auc"] < 0.75 and worse.mean() <= 0.0005
    line = f"{title}: zeros {scaled['zeros']:+.3f}, forest {scaled['auc']:.2f}, MMD {worse.mean():+.4f}"
    text_of_part = (
        "\n".join(lines)
        + f"\n\nMMD of scaled cells minus that of recentred ones, paired over {len(worse)} knock-outs: "
        f"{mean_text(worse, '+', 4)}."
    )
    return text_of_part, bool(hit), line


def _field_part(data: Path) -> str:
    """What `cell-eval` says, with one sentence on the number of genes that differ."""
    if not field.available():
        return "`cell-eval` was not installed in this run, so its table is missing."
    table = left_out_field(helpers.load_challenge(data / "thp1_challenge"))
    lines = [f"| cell-eval, THP-1, leave one out | {' | '.join(table.index)} |", "|---" * (len(table) + 1) + "|"]
    for column, says in {**field.METRICS, "mmd": "MMD of the platform"}.items():
        shown = ["" if np.isnan(value) else f"{value:.3f}" for value in table[column]]
        lines.append(f"| {says} | {' | '.join(shown)} |")
    found, real = table["de_nsig_counts_pred"], table["de_nsig_counts_real"].iloc[0]
    factor = max(real / found.iloc[0], found.iloc[0] / real)
    verdict_on_it = "reached" if factor <= 2 else "**missed**"
    sentences = [
        f"The genes found different are {found.iloc[0]:.1f} predicted and {real:.1f} real.",
        f"That is a factor of {factor:.1f} (asked: 2, {verdict_on_it}).",
        f"With the true mean the same 100 cells show {found[TRUE]:.1f}, since the real knock-outs have more cells.",
        "An amplitude multiplies the predicted effect on the control: it brings more different genes, and costs MMD.",
        "The control cells are the same on both sides.",
    ]
    return "\n".join(lines) + "\n\n" + " ".join(sentences)


def left_out_field(challenge: helpers.Challenge) -> pd.DataFrame:
    """What `cell-eval` and MMD say of the training knock-outs, each predicted without its cells: methods x metrics."""
    stats = helpers.perturbation_stats(challenge.train_path)
    pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, seed=0))
    knowledge = training_knowledge(stats, pool, challenge.signatures, challenge.perturbations)
    names = challenge.perturbations
    means = {}
    for name in helpers.progress_bar("leaving knock-outs out", iterable=list(names), unit="knock-out"):
        model = ResponseModel().fit(stats.mean.drop(index=name), stats.n_cells.drop(index=name), knowledge)
        means[name] = model.predict([name]).loc[name].to_numpy(np.float32)
    predictions = {}
    for amplitude in AMPLITUDES:
        cells = helpers.ScaledCells(amplitude=amplitude).fit(pool, stats.mean).for_genes(challenge.genes)
        label = "this project" if amplitude == 1.0 else f"this project, amplitude {amplitude:g}"
        predictions[label] = _as_anndata(cells, means, challenge.genes)
    cells = helpers.ScaledCells().fit(pool).for_genes(challenge.genes)
    true_means = {name: stats.mean.loc[name].to_numpy(np.float32) for name in names}
    predictions[TRUE] = _as_anndata(cells, true_means, challenge.genes)
    rows = np.flatnonzero((challenge.obs[CRUNCH.perturbation] != CRUNCH.control).to_numpy())
    truth = helpers.read_cells(challenge.train_path, rows)
    table = field.evaluate(challenge, predictions, truth)
    with helpers.open_matrix(truth, [CRUNCH.perturbation]) as (matrix, _, genes, _):
        sigma, _ = helpers.bandwidth("calibrated", genes, matrix, genes)
    table["mmd"] = pd.Series({label: _mmd(prediction, truth, sigma) for label, prediction in predictions.items()})
    table.to_csv(BUILD / "cells_field.csv")
    return table


def _mmd(prediction: ad.AnnData, truth: ad.AnnData, sigma: float) -> float:
    """The platform's MMD, mean over the perturbations."""
    values = []
    for name in prediction.obs[CRUNCH.perturbation].unique():
        made, real = (
            helpers.dense(cells[(cells.obs[CRUNCH.perturbation] == name).to_numpy()].X) for cells in (prediction, truth)
        )
        values.append(helpers.mmd(real.astype(np.float64), made.astype(np.float64), sigma))
    return float(np.mean(values))


def _as_anndata(cells: CellGenerator, means: dict[str, np.ndarray], genes: pd.Index) -> ad.AnnData:
    n_cells = CRUNCH.cells_per_perturbation
    X = np.concatenate([cells.sample(name, mean, n_cells) for name, mean in means.items()])
    obs = pd.DataFrame({CRUNCH.perturbation: np.repeat(list(means), n_cells)})
    return ad.AnnData(X, obs=obs.set_axis(obs.index.astype(str)), var=pd.DataFrame(index=genes))
