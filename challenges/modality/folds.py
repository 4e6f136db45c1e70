"""What is held out: the test files' answers, else whole batches, else cells; and the inner folds of tuning.

In: a `Pair`, or the batch of each training cell. Out: pairs with known answers, and how they came about; or rows to
train on and rows to predict. Next: `baselines`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from challenges.modality.data import LEAST_CELLS, Pair, batch_names, batches_of
from helpers import some

FOLDS = 4


def held_out(pair: Pair, seed: int = 0) -> tuple[list[Pair], str]:
    """Pairs with known answers, and how they came about: the test files' answers, else whole batches, else cells."""
    if pair.test_source is not None and pair.test_target is not None:
        known = set(batch_names(pair.train_source))
        new = [name for name in pd.unique(batch_names(pair.test_source)) if name not in known]
        seen = f"of batches that training did not have: {some(new)}" if new else "of the batches of training"
        return [pair], f"the {pair.test_source.n_obs} cells of the test files, {seen}"
    batch = batches_of(pair.train_source)
    fold = batch_folds(batch)
    if fold is not None:
        how = f"whole batches, in {fold.max() + 1} folds"
    else:
        generator = np.random.default_rng(seed)
        fold = np.where(generator.permutation(len(batch)) < len(batch) // 4, 0, -1)
        why = "without one of the batches too few cells are left" if batch.max() else "there is one batch"
        how = f"a quarter of the cells, drawn at random: {why}, so what a new batch costs is not seen"
    splits = []
    for i in np.unique(fold[fold >= 0]):
        source, target = pair.train_source, pair.train_target
        splits.append(
            replace(
                pair,
                train_source=source[fold != i].copy(),
                train_target=target[fold != i].copy(),
                test_source=source[fold == i].copy(),
                test_target=target[fold == i].copy(),
                measured=None,
            )
        )
    return splits, how


def inner_folds(batches: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and to predict: whole batches where there are enough, else cells."""
    fold = batch_folds(batches)
    if fold is None:
        fold = np.random.default_rng(seed).permutation(len(batches)) % FOLDS
    for i in np.unique(fold):
        yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)


def batch_folds(batch: np.ndarray) -> np.ndarray | None:
    """The fold of each cell, whole batches dealt to at most 4.

    None where there is one batch, or where a fold would leave under a quarter of the cells, or under LEAST_CELLS.
    """
    fold = np.unique(batch, return_inverse=True)[1] % FOLDS
    left = len(batch) - np.bincount(fold).max()
    return fold if left >= max(LEAST_CELLS, len(batch) / 4) else None
