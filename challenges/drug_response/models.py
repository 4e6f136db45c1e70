"""The methods by name: how each is fitted, and on what it was.

In: the name of a method, responses, and the pairs to predict (stage 2 learns from what stage 1 says of them). Out: a
fitted estimator, which `common.save_model` keeps with its `provenance`. Next: `evaluate`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pandas as pd

from challenges.common import Saved, pick_device
from challenges.drug_response.data import fingerprint
from challenges.drug_response.ensemble import Ensemble
from challenges.drug_response.kernel import ResponseProcess
from challenges.drug_response.networks import NO_PSEUDO, specs_of
from helpers import DataError, some

STAGES = ("simple", "stage_1", "stage_2")
PLAIN = f"stage_2{NO_PSEUDO}"  # what pseudo-labels are worth: the same networks without them
METHODS = ("kernel", *STAGES, PLAIN, "transformer", "autoencoder")
REPEATS, QUICK_REPEATS = 10, 1  # of each network: ten as published
QUICK_EPOCHS = 0.3  # of the epochs


class Model(Saved, Protocol):
    """A fitted method: its labels, its genes, and what it predicts."""

    cell_types_: pd.Index
    compounds_: pd.Index
    genes_: pd.Index

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """Responses, pairs (cell type, compound) x genes."""


CLASSES: tuple[type[Model], ...] = (ResponseProcess, Ensemble)  # what a file may hold


@dataclass(frozen=True)
class Settings:
    """How to train: the same settings and responses give the same model. `quick` is for a first look."""

    seed: int = 0
    device: str = "auto"
    quick: bool = False

    @property
    def repeats(self) -> int:
        """How often each network is trained."""
        return QUICK_REPEATS if self.quick else REPEATS

    @property
    def epoch_share(self) -> float:
        """The share of a network's epochs that it is trained for."""
        return QUICK_EPOCHS if self.quick else 1.0


def fit_model(
    method: str, responses: pd.DataFrame, pairs: pd.MultiIndex, settings: Settings, first: Model | None = None
) -> Model:
    """Fit a method on `responses` (rows x genes).

    Stage 2 trains on further rows, its pseudo-labels: what stage 1 (`first`, or a new one) predicts for those of
    `pairs` whose cell type and compound are known, but not together.
    """
    if method == "kernel":
        return ResponseProcess().fit(responses)
    ensemble = Ensemble(
        specs_of(method),
        settings.repeats,
        epoch_share=settings.epoch_share,
        seed=settings.seed,
        device=pick_device(settings.device).type,
    )
    if method != "stage_2":
        return ensemble.fit(responses)
    first = first or fit_model("stage_1", responses, pairs, settings)
    # Pseudo-labels are on the scale of answers already: nothing is left to tune.
    return ensemble.set_params(scale=1.0).fit(responses, first.predict(pseudo_pairs(pairs, responses)))


def pseudo_pairs(pairs: pd.MultiIndex, responses: pd.DataFrame) -> pd.MultiIndex:
    """Those of `pairs` that `responses` lacks, though it has their cell type and their compound; sorted."""
    new = pairs[~pairs.isin(responses.index)]
    known = [new.get_level_values(i).isin(responses.index.levels[i]) for i in range(2)]
    return new[known[0] & known[1]].sort_values()


def provenance(method: str, responses: pd.DataFrame, pairs: pd.MultiIndex, settings: Settings) -> dict[str, Any]:
    """What a model depends on, to be kept beside it: the same provenance, the same model."""
    specs = [asdict(spec) for spec in specs_of(method)]
    return {
        "method": method,
        "data": fingerprint(responses),
        "rows to predict": fingerprint(responses, pairs) if method == "stage_2" else "",
        "--seed": settings.seed,
        "--quick": settings.quick,
        "hyper-parameters": json.loads(json.dumps(specs)),  # as a file gives them back
    }


def changes(about: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts of two provenances, a file's and the present one, that are not the same."""
    return [part for part in now if about.get(part) != now[part]]


def what_it_takes(method: str, settings: Settings) -> str:
    """How many networks training a method takes, in words."""
    if not (specs := specs_of(method)):
        return "no networks, seconds to fit"
    epochs = sorted({max(1, round(settings.epoch_share * spec.epochs)) for spec in specs})
    many = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
    return f"{len(specs)} x {settings.repeats} networks, {many} epochs each"


def check_origin(path: str | os.PathLike[str], method: str, about: dict[str, Any]) -> None:
    """Raises DataError where the file `path`, whose provenance is `about`, is the model of another method."""
    if about.get("method") != method:
        raise DataError(f"{path}: a model of {about.get('method')!r}, not of {method!r}; train again")


def check_responses(
    path: str | os.PathLike[str], model: Model, about: dict[str, Any], responses: pd.DataFrame, where: str
) -> None:
    """Raises DataError where the model of `path` was trained on other genes or responses than `where` has."""
    odd = model.genes_.symmetric_difference(responses.columns)
    if len(odd):
        raise DataError(f"{path}: trained on other genes than {where} has: {some(odd)}; train again")
    if about["data"] != fingerprint(responses):
        raise DataError(f"{path}: trained on other responses than {where} has; train again")
