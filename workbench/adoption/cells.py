"""Which cells of a screen are kept, under which perturbation, and which perturbations are set apart to score on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from contract import CRUNCH
from helpers import DataError, some
from workbench.adoption.labels import EMPTY, LEFT_OUT, NO_STATE, TOO_FEW, UNNAMED, Naming, similar
from workbench.adoption.source import Source

FEWEST_CELLS = 10  # of a perturbation that is kept, and of the control
SCORED, SCORED_CELLS = 5, 20  # perturbations that are set apart to score on, at most a fifth; cells of each, at least


@dataclass(frozen=True)
class Cells:
    """All cells of the screen, file after file: `lengths` counts their values, `codes` says which of `names` (-1: out).

    `names` are the kept perturbations, sorted, the control among them; `scored` those set apart; `states` one text per
    cell, or None; `left_out` counts cells by reason.
    """

    lengths: np.ndarray
    names: pd.Index
    codes: np.ndarray
    scored: pd.Index
    states: np.ndarray | None
    left_out: dict[str, int]
    too_few: list[str]

    @classmethod
    def of(cls, screen: Sequence[Source], lengths: np.ndarray, naming: Naming, column: str) -> Cells:
        """Raises DataError without control cells, or for a single perturbation."""
        codes, names = _coded(screen, naming, column)
        reasons = np.where(codes < 0, -codes - 1, -1)  # the number in LEFT_OUT
        states = None
        if screen[0].states is not None:
            states = np.concatenate([np.asarray(source.states.astype(object)) for source in screen])  # type: ignore[union-attr]
            reasons[(reasons < 0) & pd.isna(states)] = LEFT_OUT.index(NO_STATE)
        reasons[(reasons < 0) & (lengths == 0)] = LEFT_OUT.index(EMPTY)
        counts = np.bincount(codes[reasons < 0], minlength=len(names))
        few = counts < FEWEST_CELLS
        where = f"{some(source.path for source in screen)}: obs['{column}']"
        if few[names.get_loc(CRUNCH.control)]:
            n = counts[names.get_loc(CRUNCH.control)]
            raise DataError(f"{where}: {n} usable cells of the control, {naming.control}; {FEWEST_CELLS} are needed")
        reasons[(reasons < 0) & few[np.maximum(codes, 0)]] = LEFT_OUT.index(TOO_FEW)
        kept = names[~few]
        if len(kept) < 3:
            raise DataError(
                f"{where}: {len(kept) - 1 or 'no'} perturbation ({some(kept.drop(CRUNCH.control))}) with "
                f"{FEWEST_CELLS} cells beside the control; two are needed to predict others. Is --perturbation right?"
            )
        left = {reason: int((reasons == i).sum()) for i, reason in enumerate(LEFT_OUT)}
        new = np.where(few, -1, np.cumsum(~few) - 1)
        codes = np.where(reasons < 0, new[np.maximum(codes, 0)], -1).astype(np.int32)
        too_few = [name for name, n in zip(names[few], counts[few], strict=True) if n]
        return cls(lengths, kept, codes, _draw_scored(kept, counts[~few]), states, left, too_few)

    @property
    def perturbations(self) -> pd.Index:
        """Without the control."""
        return self.names.drop(CRUNCH.control)


def _coded(screen: Sequence[Source], naming: Naming, column: str) -> tuple[np.ndarray, pd.Index]:
    """The number of each cell's perturbation among the sorted names; -1 - i where LEFT_OUT[i] is why it is out."""
    found = {label: naming.read(label) for source in screen for label in source.labels.cat.categories}
    names = pd.Index(sorted({name for name, reason in found.values() if not reason} | {CRUNCH.control}))
    number = {
        label: -1 - LEFT_OUT.index(reason) if reason else int(names.get_loc(name))
        for label, (name, reason) in found.items()
    }
    parts = []
    for source in screen:
        of_label = np.array([number[label] for label in source.labels.cat.categories], np.int32)
        of_label = np.append(of_label, -1 - LEFT_OUT.index(UNNAMED))  # the last: code -1, an empty label
        parts.append(of_label[source.labels.cat.codes.to_numpy()])
    codes = np.concatenate(parts)
    if not (codes == names.get_loc(CRUNCH.control)).any():
        labels = pd.concat([source.labels.astype(str) for source in screen]).value_counts()
        raise DataError(
            f"{some(source.path for source in screen)}: no cell of obs['{column}'] is the control {naming.control}"
            f"{similar(naming.control, list(labels.index))}; most cells are {some(labels.index, 5)}"
        )
    return codes, names


def _draw_scored(names: pd.Index, counts: np.ndarray) -> pd.Index:
    """The perturbations of one gene that are set apart to score on: at most SCORED, and at most a fifth of all."""
    enough = [
        name for name, n in zip(names, counts, strict=True) if n >= SCORED_CELLS and len(CRUNCH.genes_of(name)) == 1
    ]
    most = min(SCORED, (len(names) - 1) // 5, len(enough))
    return pd.Index(np.sort(np.random.default_rng(0).choice(np.array(enough, object), most, replace=False)))
