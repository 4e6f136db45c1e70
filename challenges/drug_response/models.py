"""The models by name: how each is fitted, saved and loaded.

In: a name, responses, and the pairs to predict (stage 2 learns from what stage 1 says of them). Out: a fitted
estimator, or its bundle. Next: `evaluate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd

from challenges.common import Bundle, pick_device
from challenges.drug_response import baselines
from challenges.drug_response.ensemble import Ensemble
from challenges.drug_response.kernel import ResponseProcess
from challenges.drug_response.networks import NO_PSEUDO, specs_of
from helpers import DataError, some

KIND = "drug_response"
STAGES = ("simple", "stage_1", "stage_2")
PLAIN = f"stage_2{NO_PSEUDO}"  # what pseudo-labels are worth: the same networks without them
MODELS = ("kernel", *STAGES, PLAIN, "transformer", "autoencoder")
REPEATS, QUICK_REPEATS, QUICK_EPOCHS = 10, 1, 0.3  # ten as published; quick: once, fewer epochs


class Model(Protocol):
    """What baselines and models share."""

    def fit(self, responses: pd.DataFrame) -> Self:
        """Learn from rows (cell type, compound) x genes."""

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """Responses of pairs x genes."""


class Trained(Model, Protocol):
    """What a model has once it is fitted: its labels, its genes, and a bundle."""

    cell_types_: pd.Index
    compounds_: pd.Index
    genes_: pd.Index

    def to_bundle(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings and arrays."""


BASELINES: dict[str, Callable[[], Model]] = {
    "zeros": baselines.Zeros,
    "train mean": baselines.MeanOf,
    "cell-type mean": lambda: baselines.MeanOf("cell_type"),
    "compound mean": lambda: baselines.MeanOf("sm_name"),
    "half compound + half cell type": lambda: baselines.MixOfMeans(0.5),
    "best mix of the two means": baselines.MixOfMeans,
    "cell type + 0.6 x rank-20 effect": baselines.DenoisedEffect,
}
REFERENCE = "half compound + half cell type"  # what paired differences are taken to


@dataclass(frozen=True)
class Options:
    """How to train: the same seed gives the same file."""

    seed: int = 0
    device: str = "auto"
    quick: bool = False


def fit_model(
    name: str, responses: pd.DataFrame, pairs: pd.MultiIndex, options: Options, first: Model | None = None
) -> Trained:
    """Fit a model; stage 2 adds stage 1's answers for `pairs` (`first`, or a new one) to its rows."""
    if name == "kernel":
        return ResponseProcess().fit(responses)
    ensemble = Ensemble(
        specs_of(name),
        QUICK_REPEATS if options.quick else REPEATS,
        epoch_share=QUICK_EPOCHS if options.quick else 1.0,
        seed=options.seed,
        device=pick_device(options.device).type,
    )
    if name != "stage_2":
        return ensemble.fit(responses)
    first = first or fit_model("stage_1", responses, pairs, options)
    new = pairs[~pairs.isin(responses.index)]
    known = new[
        new.get_level_values(0).isin(responses.index.levels[0])
        & new.get_level_values(1).isin(responses.index.levels[1])
    ]
    # Pseudo-labels are on the scale of answers already: nothing is left to tune.
    return ensemble.set_params(scale=1.0).fit(responses, first.predict(known.sort_values()))


def save_model(path: str | os.PathLike[str], name: str, model: Trained, fingerprint: str, options: Options) -> None:
    """Write the bundle; `fingerprint` names the training table."""
    settings, arrays = model.to_bundle()
    about = {"model": name, "data": fingerprint, "quick": options.quick, "train_seed": options.seed}
    Bundle(KIND, {**about, "fitted": settings}, arrays).save(path)


def load_model(path: str | os.PathLike[str]) -> tuple[Trained, dict]:
    """The fitted model and what its bundle says of it (`model`, `data`, `quick`, `train_seed`)."""
    bundle = Bundle.load(path, KIND)
    kind = ResponseProcess if bundle.settings["model"] == "kernel" else Ensemble
    return kind.from_bundle(bundle.settings["fitted"], bundle.arrays), bundle.settings


def unlike(about: dict, name: str, fingerprint: str, options: Options) -> list[str]:
    """What of a bundle that says this of itself was other than these data, options and hyper-parameters."""
    specs = json.loads(json.dumps([asdict(spec) for spec in specs_of(name)]))
    now = {
        "data": about["data"] == fingerprint,
        "--quick": about["quick"] == options.quick,
        "--seed": about["train_seed"] == options.seed,
        "hyper-parameters": about["fitted"].get("specs", []) == specs,
    }
    return [what for what, same in now.items() if not same]


def what_it_takes(name: str, options: Options) -> str:
    """How many networks training a model takes, in words."""
    repeats = QUICK_REPEATS if options.quick else REPEATS
    if not (specs := specs_of(name)):
        return "no networks, seconds to fit"
    epochs = sorted({max(1, round(spec.epochs * (QUICK_EPOCHS if options.quick else 1))) for spec in specs})
    return f"{len(specs)} x {repeats} networks, {epochs[0]}{f' to {epochs[-1]}' if len(epochs) > 1 else ''} epochs each"


def check_genes(path: str | os.PathLike[str], model: Trained, genes: pd.Index, where: str) -> None:
    """Raises DataError where the bundle was trained on other genes than `where` has."""
    odd = model.genes_.symmetric_difference(genes)
    if len(odd):
        raise DataError(f"{path}: trained on other genes than {where} has: {some(odd)}; train again")
