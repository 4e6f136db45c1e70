"""Several knock-outs at once in a simulated screen: singles, doubles, `A+A`, `A+NC`, triples, and both controls.

In: a `simulate.Model` of single knock-outs. Out: one of all these, with a known rule for each. With s_A for whatever
the knock-out of A shifts (d, e and the log odds of the states of `workbench.simulate`), a double is one of
    additive      s_AB = s_A + s_B
    masking       s_AB = s_A or s_B, whose effect is the longer over all genes
    synergistic   s_AB = 1.5 (s_A + s_B)
and s_A is the shift of `A+A` and `A+NC` too, s_A + s_B + s_C that of a triple. Effects add up on the logarithm of the
mean counts, so on X they do so nearly. A knocked-out gene keeps a fifth of its expression, however many guides it has.
Which doubles are masking and which synergistic is drawn; their numbers are the stated shares, rounded.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from contract import CRUNCH, JOINED

if TYPE_CHECKING:
    from workbench.simulate import Model

SYNERGY = 1.5
LOCAL_SINGLES, LOCAL_DOUBLES = 2, 4  # of the local truth
TRIPLES = 5  # of the training file
CONTROLS = (CRUNCH.control, JOINED.join([CRUNCH.control] * 2))
DOUBLE_CONTROL = 1 / 3  # share of the control cells with two guides


def combine(
    singles: Model, rng: np.random.Generator, resting: np.ndarray, *, unseen: int, masking: float, synergistic: float
) -> Model:
    """The model of a screen of combinations of the genes of `singles`: its perturbations after the control.

    `resting` (4,) are the log odds of the states in control cells. `unseen` doubles are to be predicted; the local
    truth holds 2 singles and 4 doubles; all else is for training.
    """
    names, n = singles.perturbations, len(singles.perturbations) - 1
    pairs = rng.permutation(list(combinations(range(1, n + 1), 2)))
    rules = rng.permutation(_rules(len(pairs), masking, synergistic))
    alone = rng.permutation(np.arange(1, n + 1))
    length = np.linalg.norm(singles.loadings[:, : singles.shift.shape[1]] @ singles.shift.T, axis=0)  # of each effect
    local, new = slice(0, LOCAL_DOUBLES), slice(LOCAL_DOUBLES, LOCAL_DOUBLES + unseen)

    doubles = [((i, j), rule) for (i, j), rule in zip(pairs, rules, strict=True)]
    lone = [((i,), "single") for i in alone]
    training = [*lone[LOCAL_SINGLES:], *doubles[new.stop :]]
    training += [((i, i), "A+A") for i in alone] + [((i, 0), "A+NC") for i in alone]
    triples = rng.permutation(list(combinations(range(1, n + 1), 3)))[:TRIPLES]
    training += [(tuple(genes), "additive") for genes in triples]
    training = [training[i] for i in rng.permutation(len(training))]
    held_out = lone[:LOCAL_SINGLES] + doubles[local]
    groups: dict[str, list] = {"train": training, "local": held_out, "unseen": doubles[new]}
    every = [part for parts in groups.values() for part in parts]

    weight = np.zeros((len(CONTROLS) + len(every), n + 1))  # of each gene's shift
    target = np.full((len(weight), 3), -1)
    for row, (genes, rule) in enumerate(every, len(CONTROLS)):
        held = list(dict.fromkeys(gene for gene in genes if gene))
        kept = [max(held, key=lambda gene: length[gene])] if rule == "masking" else held
        weight[row, kept] = SYNERGY if rule == "synergistic" else 1.0
        target[row, : len(held)] = singles.target[held]
    joined = [*CONTROLS, *(JOINED.join(sorted(names[list(genes)])) for genes, _ in every)]
    sizes = [len(CONTROLS), *map(len, groups.values())]
    group = np.repeat(["control", *groups], sizes).astype(object)
    perturbations = np.array(joined, dtype=object)
    return replace(
        singles,
        requested=rng.permutation(perturbations[group == "unseen"]),
        perturbations=perturbations,
        group=group,
        target=target,
        strength=((weight > 0) * singles.strength).max(axis=1),
        shift=weight @ singles.shift,
        logits=resting + weight @ (singles.logits - resting),
        rule=np.array(["control"] * len(CONTROLS) + [str(rule) for _, rule in every], dtype=object),
    )


def n_training(genes: int, unseen: int) -> int:
    """Perturbations of the training file, without controls."""
    return 3 * genes - LOCAL_SINGLES + genes * (genes - 1) // 2 - LOCAL_DOUBLES - unseen + TRIPLES


def _rules(n: int, masking: float, synergistic: float) -> list[str]:
    """The rule of each of n doubles, in the stated shares."""
    n_masking, n_synergistic = round(masking * n), round(synergistic * n)
    return ["masking"] * n_masking + ["synergistic"] * n_synergistic + ["additive"] * (n - n_masking - n_synergistic)
