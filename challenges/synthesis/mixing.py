"""Mixtures of types: how they are written, and where they lie.

In: a text like "B cell:0.5,NK cell:0.5", or a model and held-out real cells. Out: label weights, or the positions of
mixtures on the axis that separates two types. Next: `plots`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from challenges.synthesis.data import Cells
from challenges.synthesis.evaluate import analysis
from challenges.synthesis.models import CellGAN
from helpers import DataError

SHARES = np.linspace(0.0, 1.0, 6)


def parse_mix(text: str) -> dict[str, float]:
    """Types and weights of "type:weight,type:weight". A type may hold colons and commas; the weights need not sum to 1.

    Raises DataError for a text of another form, a weight that is negative or not a number, and a type named twice.
    """
    form = f"--mix {text!r}: expected 'type:weight,type:weight', such as 'B cell:0.5,NK cell:0.5'"
    parts: dict[str, float] = {}
    name = ""
    for piece in text.split(","):
        name = f"{name},{piece}" if name else piece
        head, colon, number = name.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            continue  # the comma was part of the type's name
        if not (colon and head.strip()):
            raise DataError(form)
        if not (np.isfinite(weight) and weight >= 0):
            raise DataError(f"{form}; the weight of {head.strip()!r} is {number.strip()}")
        if head.strip() in parts:
            raise DataError(f"{form}; {head.strip()!r} comes twice")
        parts[head.strip()] = weight
        name = ""
    if name or not parts or sum(parts.values()) <= 0:
        raise DataError(form)
    return parts


def mixing_positions(model: CellGAN, real: Cells, ends: tuple[str, str], n: int = 500, seed: int = 0) -> pd.DataFrame:
    """Mixtures of two types on the axis between the means of the real ones (0 and 1): `share, mean, low, high`.

    `low` and `high` are quartiles of `n` synthetic cells of each share.
    """
    values = analysis(real)
    first, second = (values[real.labels == name].mean(axis=0) for name in ends)
    axis = (second - first) / np.sum((second - first) ** 2)
    rows = []
    for share in SHARES:
        weights = model.weights({ends[0]: 1 - share, ends[1]: share})
        at = (analysis(model.sample(np.tile(weights, (n, 1)), seed=seed)) - first) @ axis
        rows.append({"share": share, "mean": at.mean(), "low": np.quantile(at, 0.25), "high": np.quantile(at, 0.75)})
    return pd.DataFrame(rows)
