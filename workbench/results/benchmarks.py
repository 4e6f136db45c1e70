"""The benchmarks of RESULTS.md: each a function of the real data's folder, which returns its section of the page.

In: the folder of the real data, or nothing for simulated data. Out: a `Section` with its verdict and sentences, which
are all computed in the same run, and tables and pictures in `build/results/` and `docs/`. Next: `page.py`.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import helpers
from contract import CRUNCH
from knowledge import GeneKnowledge
from response import ResponseModel
from workbench.compare import CEILING, STARTER
from workbench.cross_validate import (
    cross_validate_challenge,
    cross_validate_effects,
    cross_validate_proportions,
)
from workbench.evaluation import methods, pictures
from workbench.evaluation.folds import TRUE_MEAN
from workbench.evaluation.methods import ALL, BOTH, MEDIAN, PCA_RIDGE, WITHOUT, ZERO
from workbench.evaluation.verdicts import verdicts
from workbench.results.data import (
    PRIORS,
    best_constant,
    demo_scores,
    effect_tables,
    held_out_predictions,
    morphic_effects,
    replogle_effects,
    same_gene,
    varied_gene_set,
)
from workbench.results.page import BUILD, Goal, Section, goal, keep, markdown, mean_text, save_picture, text, verdict

DEMO_SEEDS = (101, 102, 103)
REPLOGLE_SEEDS = (10, 11, 12)

# What was asked of each benchmark.
REPLOGLE_TARGET, CHANCE_TARGET, PROPORTIONS_TARGET, MMD_TARGET, ORACLE_TARGET = 0.345, 0.01, 0.0975, 0.15, 0.7
ENOUGH_CELLS = 200  # of a knock-out, so that its two halves hold as many cells as are predicted


def replogle(data: Path, executor: Executor | None) -> Section:
    """585 unseen knock-downs in K562, by rank scores."""
    effects = replogle_effects(data, "K562")
    tables = effect_tables(effects.index, effects.columns, data)
    table = cross_validate_effects(effects, tables, seeds=REPLOGLE_SEEDS[:1], draws=1, executor=executor)
    # One permutation is itself a draw with a standard deviation near 0.01: six, for a mean that can be judged.
    chosen, seeds = [PCA_RIDGE, ALL, methods.SHUFFLED], REPLOGLE_SEEDS
    judged = cross_validate_effects(effects, tables, seeds=seeds, draws=2, only=chosen, executor=executor)
    shuffled = judged[judged["method"] == methods.SHUFFLED]
    table = pd.concat([table[~table["method"].isin(chosen)], judged], ignore_index=True)
    rows = keep(table, "replogle").query("metric == 'pearson'").set_index("method")
    save_picture(pictures.strips(table, ["pearson"]), "results_replogle.png")
    _replogle_picture(effects, tables, table, data)
    reached, chance = rows.loc[ALL], rows.loc[methods.SHUFFLED, "value"]
    body = (
        "Pearson per perturbation against the training mean, 5 folds, mean over three splits that were not used while "
        "the model was chosen (the submitted model, PCA-ridge and shuffled features; the other rows: the first split). "
        "Each knock-down is described by nothing but public gene knowledge.\n\n"
        f"{markdown(rows)}\n\n{_draws(shuffled)}\n\n"
        "![One point per knock-down](docs/results_replogle.png)\n\n"
        "![Learned weights, expected against actual error, and one gene set](docs/results_weights_calibration.png)\n\n"
        "*Left: what the model relies on, fitted to all knock-downs. Middle: the error it expects of a held-out "
        "knock-down against the error it makes. Right: predicted against true effect on the gene set whose effect "
        "varies most.*"
    )
    title = f"Replogle K562 from priors alone, {len(effects)} unseen knock-downs, Pearson"
    return Section(
        title,
        [
            goal(title, reached, REPLOGLE_TARGET),
            Goal(
                "The same with shuffled features",
                f"within {CHANCE_TARGET} of 0",
                f"{chance:+.3f}",
                verdict(abs(chance) <= CHANCE_TARGET),
            ),
        ],
        body,
    )


def _replogle_picture(effects: pd.DataFrame, tables: dict, table: pd.DataFrame, data: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    pictures.kernel_weights(axes[0], ResponseModel().fit(effects, knowledge=GeneKnowledge(tables)))
    pictures.calibration(axes[1], table, ALL, unit="rank score")
    name, genes = varied_gene_set(effects, next((data / "priors").glob("*reactome*.gmt")))
    held_out = held_out_predictions(effects, tables, genes, REPLOGLE_SEEDS[0])
    pictures.gene_set_effect(axes[2], *held_out, name, unit="rank score")
    save_picture(figure, "results_weights_calibration.png")


def _draws(shuffled: pd.DataFrame) -> str:
    """How much one permutation differs from the next."""
    rows = shuffled[shuffled["metric"] == "pearson"]
    means = rows.groupby(["draw", "seed"])["value"].mean()
    return (
        f"`shuffled features` is the mean of {len(means)} permutations. Each of them scores between {means.min():+.3f} "
        f"and {means.max():+.3f}, a spread that the interval does not hold."
    )


def morphic(data: Path, executor: Executor | None) -> Section:
    """31 knocked-out genes in stem cells, all contrasts of a gene left out together."""
    effects, genes = morphic_effects(data)
    names = pd.Index(genes.unique())
    tables = effect_tables(names, effects.columns, data)
    table = cross_validate_effects(effects, tables, groups=genes, n_folds="loo", draws=2, executor=executor)
    table = pd.concat([table, same_gene(effects, genes)], ignore_index=True)
    rows = keep(table, "morphic", baseline=ZERO).query("metric == 'pearson'").set_index("method")
    reached = rows.loc[ALL]
    significant = reached["difference_low"] > 0
    least = reached["difference_high"] - reached["difference"]
    gain = (
        "The gain over zero effect is significant."
        if significant
        else f"**The gain over zero effect is not significant**: {text(reached, which='difference')}. With "
        f"{len(names)} genes only a gain above about {least:.2f} could be told from none."
    )
    body = (
        f"{len(effects)} contrasts of {len(names)} genes x {effects.shape[1]:,} genes, log2 fold changes. Pearson is "
        "taken against the training mean and averaged over the contrasts of a gene; the interval is over genes. The "
        "train mean itself scores 0 by definition. *Zero effect* does not: many knock-outs are weak, and what they "
        "share is the way back to the control. So zero effect is the baseline to beat here.\n\n"
        f"{markdown(rows)}\n\n{gain} The other contrasts of the same gene (last row, the ceiling) exist for "
        f"{rows['n'].iloc[-1]} genes."
    )
    title = "MorPhiC PrS day 6, leave one gene out, Pearson"
    return Section(
        title,
        [
            Goal(title, "positive, 95 % interval without 0", text(reached), verdict(reached["low"] > 0)),
            Goal(
                "The same, gain over zero effect",
                "95 % interval above 0, or why not",
                text(reached, which="difference")
                + f"; only a gain above about {least:.2f} could be told" * (not significant),
                verdict(significant),
            ),
        ],
        body,
    )


def proportions(data: Path, executor: Executor | None) -> Section:
    """The challenge's own training proportions."""
    shares = helpers.read_proportions(data / "obesity_side_files" / CRUNCH.proportions_file)
    table = cross_validate_proportions(shares)
    rows = keep(table, "proportions", baseline="renormalised medians").set_index("method")
    reached, best = rows.loc[MEDIAN], best_constant(shares.drop(index=CRUNCH.control))
    hit, left_out_costs = reached["value"] <= PROPORTIONS_TARGET, reached["value"] - best
    why = ""
    if not hit and left_out_costs > PROPORTIONS_TARGET - best:
        why = (
            f" A constant misses the target of {PROPORTIONS_TARGET}: leaving a knock-out out costs "
            f"{left_out_costs:.5f}, and only {PROPORTIONS_TARGET - best:.5f} are between the best constant and the "
            "target."
        )
    body = (
        f"L1 distance, leave one out over {rows['n'].iloc[0]} knock-outs.\n\n{markdown(rows, digits=4)}\n\n"
        f"The best legal constant, chosen with all answers known (a linear program), has {best:.5f}.{why} The default "
        "is the constant that is best for this loss on the training knock-outs: the same quantile of all shares, "
        "chosen so that they sum to 1."
    )
    title = f"Proportions, {rows['n'].iloc[0]} knock-outs, L1 (lower is better)"
    asked = f"<= {PROPORTIONS_TARGET}, never above the median"
    return Section(title, [Goal(title, asked, text(reached, 4), verdict(hit))], body)


def thp1(data: Path, executor: Executor | None) -> Section:
    """Real cells in the challenge's layout."""
    challenge = helpers.load_challenge(data / "thp1_challenge")
    table = cross_validate_challenge(
        challenge, features=data / "priors", n_folds="loo", sigma="calibrated", draws=2, executor=executor
    )
    names = {name: name for name in table["method"].unique()}
    for file, short in PRIORS.items():
        names |= {f"{file} alone": f"{short} alone", f"{WITHOUT}{file}": f"{WITHOUT}{short}"}
    table["method"] = table["method"].map(names)
    summary = keep(table, "thp1")
    save_picture(pictures.strips(table, ["pearson_delta", "mmd", "l1_distance"]), "results_thp1.png")
    parts = {metric: rows.set_index("method") for metric, rows in summary.groupby("metric", sort=False)}
    cells, gain = parts["mmd"], parts["pearson_delta"].loc[BOTH]
    wide, pearson = (pictures.by_perturbation(table, metric) for metric in ("mmd", "pearson_delta"))
    n_cells = challenge.obs[CRUNCH.perturbation].value_counts()[wide.index]
    large = n_cells >= ENOUGH_CELLS
    ratios = [rows[BOTH].mean() / rows[CEILING].mean() - 1.0 for rows in (wide, wide[large])]
    body = (
        f"{len(challenge.perturbations)} knock-outs, {len(challenge.obs):,} real cells x {len(challenge.genes)} genes "
        "(all of them one panel), leave one out, 100 written cells, bandwidth of MMD calibrated on the cells. Gene "
        "knowledge: the control cells and the priors. All rows but the starter's write scaled real cells.\n\n"
        f"{_thp1_table(parts)}\n\n![One point per knock-out](docs/results_thp1.png)\n\n"
        f"{_thp1_pearson(pearson, challenge)}\n\n{_what_priors_add(table)}\n\n"
        f"{_thp1_mmd(wide, n_cells, ratios)}"
    )
    over_constant = pearson[BOTH] - pearson[methods.CONSTANT]
    goals = [
        Goal(
            "THP-1, 20 knock-outs, MMD of real cells",
            f"within {MMD_TARGET:.0%} of the other half of the real cells",
            f"{ratios[1]:+.0%} ({ratios[0]:+.0%} counting small knock-outs; starter {cells.loc[STARTER, 'value']:.2f})",
            verdict(ratios[1] <= MMD_TARGET),
        ),
        Goal(
            "THP-1, Pearson over PCA-ridge",
            "95 % interval above 0",
            text(gain, which="difference"),
            verdict(gain["difference_low"] > 0),
        ),
        Goal(
            "THP-1, Pearson beside the learned constant",
            f"not below it ({pearson[methods.CONSTANT].mean():.3f})",
            f"{pearson[BOTH].mean():.3f}; {mean_text(over_constant, '+')}",
            verdict(over_constant.mean() >= 0),
        ),
    ]
    return Section("THP-1, 20 knock-outs, real cells", goals, body)


def _thp1_pearson(scores: pd.DataFrame, challenge: helpers.Challenge) -> str:
    """What the Pearson column (perturbations x methods) does and does not say."""
    stats = helpers.perturbation_stats(challenge.train_path)
    effects = stats.mean.drop(index=CRUNCH.control) - stats.perturbed_centroid()
    variance = np.linalg.svd(effects.to_numpy(), compute_uv=False) ** 2
    far = (scores[BOTH].abs() > 0.5).sum()
    gains = [
        f"{mean_text(scores[BOTH] - scores[name], '+')} over {name}"
        for name in (methods.CONSTANT, methods.CONTROL_MEAN, methods.SHUFFLED)
    ]
    unmeasured = (~challenge.perturbations.isin(challenge.genes)).sum()
    return (
        f"**One direction holds {variance[0] / variance.sum():.0%} of the effects' variance**, so a knock-out scores "
        f"high or low by the sign it is given: {far} of {len(scores)} score above 0.5 or below -0.5. The model's gain "
        f"is {', '.join(gains)}. PCA-ridge scores {scores[STARTER].mean():+.2f}: it has no features for the "
        f"{unmeasured} targets that are not among the {len(challenge.genes)} genes, and its intercept is the mean of "
        f"the other {len(scores) - unmeasured}."
    )


def _what_priors_add(table: pd.DataFrame) -> str:
    """The verdicts on the user's files, which the priors are here, in a sentence."""
    found = verdicts(table)
    parts = [
        f"{str(name).removeprefix(WITHOUT)} {text(row, which='difference')} ({row['verdict']})"
        for name, row in found.rename(columns={"low": "difference_low", "high": "difference_high"}).iterrows()
    ]
    return f"What the priors add to the Pearson of what is submitted, as `cross_validate` says it: {'; '.join(parts)}."


def _thp1_mmd(wide: pd.DataFrame, n_cells: pd.Series, ratios: list[float]) -> str:
    """MMD (perturbations x methods) beside both ceilings, over all knock-outs and over those with many cells."""
    large = n_cells >= ENOUGH_CELLS
    gap = wide[BOTH] - wide[CEILING]
    floor, ceiling = wide.loc[large, TRUE_MEAN].mean(), wide.loc[large, CEILING].mean()
    halves = ", ".join(str(n // 2) for n in sorted(n_cells[~large]))
    cells = "are not the reason" if floor <= 1.05 * ceiling else "are a part of the reason"
    return (
        f"**MMD {'reaches' if ratios[1] <= MMD_TARGET else 'misses'} its target**: on the {large.sum()} knock-outs "
        f"with {ENOUGH_CELLS} cells or more, for which prediction and ceiling both compare 100 cells with 100, it is "
        f"{ratios[1]:+.0%} beside the other half of the real cells. Over all {len(wide)} the ratio is {ratios[0]:+.0%} "
        f"(paired difference {mean_text(gap, '+')}); the halves of the others hold {halves} cells, and few cells lift "
        f"the ceiling. The cells {cells}: the same base moved to the true mean has {floor:.3f} on those {large.sum()}, "
        f"the other half of the real cells {ceiling:.3f}. The largest gaps are those of "
        f"{', '.join(gap[large].nlargest(4).index)}. Scaled minus recentred cells, paired over "
        f"all {len(wide)}: {mean_text(wide[BOTH] - wide[BOTH + methods.RECENTRED], '+', 4)}."
    )


def _thp1_table(parts: dict[str, pd.DataFrame]) -> str:
    """All methods with their three metrics, from the summaries by metric."""
    columns = (
        ("Pearson delta", "pearson_delta", "value"),
        (f"difference to {STARTER}", "pearson_delta", "difference"),
        ("MMD", "mmd", "value"),
        ("L1 of the shares", "l1_distance", "value"),
    )
    lines = [f"| method | {' | '.join(title for title, _, _ in columns)} |", "|---" * 5 + "|"]
    names = [*parts["mmd"].index, *parts["l1_distance"].index.difference(parts["mmd"].index, sort=False)]
    for method in names:
        shown = [
            text(parts[metric].loc[method], which=which)
            if method in parts[metric].index and (which, method) != ("difference", STARTER)
            else ""
            for _, metric, which in columns
        ]
        lines.append(f"| {f'**{method}**' if method in (BOTH, MEDIAN) else method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def demo(data: Path, executor: Executor | None) -> Section:
    """Simulated data whose truth is known, three seeds."""
    folders = [BUILD / f"demo_{seed}" for seed in DEMO_SEEDS]
    run_here = executor.map if executor else map
    scores = pd.concat(run_here(demo_scores, DEMO_SEEDS, folders), ignore_index=True)
    scores.to_csv(BUILD / "demo_details.csv", index=False)
    scores["perturbation"] += " " + scores["seed"].astype(str)
    wide = scores.pivot_table(index="perturbation", columns="method", values="value", sort=False)
    about = scores.drop_duplicates("perturbation").set_index("perturbation")
    measured = about["measured"]
    _demo_picture(wide[["this model", PCA_RIDGE, "oracle"]], about)
    groups = {"all": wide, "target measured": wide[measured], "target not measured": wide[~measured]}
    lines = ["| unseen knock-outs | n | oracle | this model | of the oracle | PCA-ridge |", "|---|---|---|---|---|---|"]
    shares = {}
    for name, part in groups.items():
        mean = part.mean()
        shares[name] = mean["this model"] / mean["oracle"]
        lines.append(
            f"| {name} | {len(part)} | {mean['oracle']:.3f} | {mean_text(part['this model'])} | "
            f"{shares[name]:.0%} | {mean_text(part[PCA_RIDGE])} |"
        )
    body = (
        "Simulated cells in the platform's layout (7,500 cells x 1,200 genes, 40 training knock-outs), three seeds. "
        "Pearson delta of the predicted mean against the true, noise-free effect of knock-outs that have no cells. The "
        "oracle knows the predictable half of every effect.\n\n" + "\n".join(lines) + "\n\n"
        "![Scores against effect size and target expression](docs/results_demo.png)\n\n"
        "No file says anything of a target that was not measured but its invented name: for it the model can only "
        "predict what knock-outs have in common, while the oracle knows it all the same. The simulation follows the "
        "rule that the template assumes (what is co-expressed with the target falls with it), so this benchmark "
        "flatters the template; on real data it has to earn its weight."
    )
    title = "Demo data with a known answer, share of the oracle's Pearson"
    reached = f"{shares['all']:.0%} of all, {shares['target measured']:.0%} of those whose target was measured"
    return Section(
        title, [Goal(title, f">= {ORACLE_TARGET:.0%}", reached, verdict(shares["all"] >= ORACLE_TARGET))], body
    )


def _demo_picture(scores: pd.DataFrame, about: pd.DataFrame) -> None:
    """Scores (perturbations x methods) against the size of the effect, and the expression of measured targets."""
    measured = about["measured"]
    expression = about.loc[measured, "expression"]
    label = "length of the true effect (log2 units, over all genes)"
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    pictures.score_against(axes[0], scores, about["effect"], metric="pearson_delta", label=label)
    label = "mean expression of the target in control cells (log2 units)"
    pictures.score_against(axes[1], scores[measured], expression, metric="pearson_delta", label=label)
    save_picture(figure, "results_demo.png")
