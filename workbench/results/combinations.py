"""The section of RESULTS.md on combinations: real single knock-downs, and what a stated rule makes of two of them.

In: the folder of the real data. Out: a `Section`, in which the model stands beside the published baseline, the mean of
combinations and the measured effects added up. Next: `page.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from combinations import CombinationModel, genes_in
from knowledge import GeneKnowledge
from workbench.evaluation import pictures
from workbench.evaluation.folds import EffectsFold, run_all
from workbench.evaluation.intervals import interval
from workbench.evaluation.methods import (
    ADDED,
    ALL,
    DELTA_MEAN,
    TRAIN_MEAN,
    CombinationMean,
    Method,
    combination_baselines,
)
from workbench.results.data import effect_tables, replogle_effects
from workbench.results.page import Goal, Section, keep, markdown, mean_text, verdict

SEEDS = (10, 11, 12)
N_RESPONSES, N_GENES, N_SINGLES = 2500, 120, 100  # 20 genes have no single
N_TRAINING, N_TEST = 120, 150  # pairs
NOISE = 1.0  # of a measurement, in standard deviations of the effects: as large as they are
SHARES = {"additive": 0.5, "masking": 0.3, "synergistic": 0.2}  # of the pairs of a mixed screen

Rule = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _additive(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return x + y


def _damped(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 0.6 * (x + y)


def _masking(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return x if np.linalg.norm(x) > np.linalg.norm(y) else y


def _synergistic(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 1.3 * (x + y) + 0.5 * generator.normal(size=len(x)) * np.concatenate([x, y]).std()


def _mixed(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    kinds = {"additive": _additive, "masking": _masking, "synergistic": _synergistic}
    return kinds[generator.choice(list(SHARES), p=list(SHARES.values()))](x, y, generator)


RULES: dict[str, tuple[str, Rule]] = {
    "additive": ("the sum of both effects", _additive),
    "damped": ("0.6 of the sum", _damped),
    "masking": ("the longer effect alone", _masking),
    "synergistic": ("1.3 of the sum, and a direction of its own half as long as an effect", _synergistic),
    "mixed": (", ".join(f"{share:.0%} {kind}" for kind, share in SHARES.items()), _mixed),
}


@dataclass(frozen=True)
class World:
    """Measured training effects, then the true effects of the pairs `test`: perturbations x responses."""

    effects: pd.DataFrame
    test: pd.Index


def world(singles: pd.DataFrame, rule: Rule, seed: int) -> World:
    """Singles of some genes and random pairs of all, with what `rule` makes of their true effects, and noise."""
    generator = np.random.default_rng(seed)
    singles = singles.iloc[generator.permutation(len(singles))[:N_GENES]]
    singles = singles.iloc[:, generator.permutation(singles.shape[1])[:N_RESPONSES]]
    pairs = [(i, j) for i in range(N_GENES) for j in range(i)]
    pairs = [pairs[k] for k in generator.permutation(len(pairs))[: N_TRAINING + N_TEST]]
    effects = singles.to_numpy()
    true = np.array([rule(effects[i], effects[j], generator) for i, j in pairs])
    names = [f"{singles.index[i]}+{singles.index[j]}" for i, j in pairs]
    table = pd.DataFrame(np.vstack([effects[:N_SINGLES], true]), [*singles.index[:N_SINGLES], *names], singles.columns)
    table.iloc[:-N_TEST] += NOISE * effects.std() * generator.normal(size=(len(table) - N_TEST, table.shape[1]))
    return World(table, table.index[-N_TEST:])


def combinations(data: Path, executor: Executor | None) -> Section:
    """Pairs of real knock-downs, combined by five stated rules."""
    singles, parts, goals = replogle_effects(data, "K562"), [], []
    for name, (what, rule) in RULES.items():
        folds, found = [], []
        for seed in SEEDS:
            made = world(singles, rule, seed)
            known = GeneKnowledge(effect_tables(genes_in(made.effects.index), made.effects.columns, data))
            methods = [Method(TRAIN_MEAN, CombinationMean()), *combination_baselines()]
            methods.append(Method(ALL, CombinationModel(), known, submitted=True))
            folds.append(EffectsFold(made.effects, made.effects.index.to_numpy(), made.test, methods, seed, 0))
            found.append(CombinationModel().fit(made.effects.drop(index=made.test), knowledge=known).found_)
        table = run_all(folds, executor)
        rows = keep(table, f"combinations_{name}", DELTA_MEAN).query("metric == 'pearson'").set_index("method")
        scores, learned = pictures.by_perturbation(table, "pearson"), pd.DataFrame(found).mean()
        gain = scores[ALL] - scores[ADDED]
        hit = gain.mean() >= 0 if name == "additive" else interval(gain, ("value", "low", "high"))["low"] > 0
        goals.append(
            Goal(
                f"Pairs, {name}: gain over the measured effects added up, Pearson",
                "not below 0" if name == "additive" else "95 % interval above 0",
                mean_text(gain, "+"),
                verdict(bool(hit)),
            )
        )
        parts.append(
            f"**{name.capitalize()}**: {what}. Found: {learned['factor']:.2f} of the length of the measured sum, blend "
            f"{learned['blend']:.2f} (0 adds up, 1 is the longest alone).\n\n{markdown(rows)}"
        )
    body = (
        f"The true effects of {N_GENES} knock-downs in K562, {N_SINGLES} of them measured alone, and {N_TRAINING} "
        f"measured pairs of any of them; {N_TEST} unseen pairs are predicted, {len(SEEDS)} draws. A measurement has "
        "noise as large as the effects, the truth has none, so 1 is the ceiling. The published baseline is the mean of "
        "combinations and what each gene alone differs from the mean of singles. *Effects added up* takes the measured "
        "effects as they are. For a file of real pairs the same comparison is `python -m workbench.cross_validate "
        "--effects FILE`.\n\n" + "\n\n".join(parts)
    )
    return Section("Two knock-downs at once, by stated rules", goals, body)
