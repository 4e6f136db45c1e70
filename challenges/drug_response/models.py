"""The methods by name: how each is fitted, and on what it was.

In: the name of a method, responses, the pairs to predict (stage 2 learns from what stage 1 says of them), and the
methods that it is built on. Out: a `Fitted`, which `common.save_model` keeps with its `provenance`. Next: `evaluate`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from challenges.common import pick_device
from challenges.drug_response.compounds import NewCompounds
from challenges.drug_response.data import fingerprint
from challenges.drug_response.ensemble import TUNING_REPEATS, Ensemble
from challenges.drug_response.fitted import Fitted, blend
from challenges.drug_response.folds import held_out
from challenges.drug_response.kernel import ResponseProcess
from challenges.drug_response.networks import NO_PSEUDO, specs_of
from challenges.drug_response.training import START_SECONDS, n_workers, seconds_per_epoch
from helpers import DataError, some

STAGES = ("simple", "stage_1", "stage_2")
PLAIN = f"stage_2{NO_PSEUDO}"  # what pseudo-labels are worth: the same networks without them
BLEND = "blend"  # the weighted mean of all methods without pseudo-labels
WITHOUT_PSEUDO = ("kernel", "simple", "autoencoder", "transformer", "stage_1", PLAIN)
METHODS = (*WITHOUT_PSEUDO, "stage_2", BLEND)  # the fastest first: of two as good, the first is recommended
NEEDS = {"stage_2": ("stage_1",), BLEND: WITHOUT_PSEUDO}  # the methods that one is built on
REPEATS, QUICK_REPEATS = 10, 1  # of each network: ten as published
QUICK_EPOCHS = 0.3  # of the epochs
KERNEL_SPEED = 4e7  # cubed rows per second that the Gaussian process is fitted at


CLASSES = (Fitted,)  # what a file may hold


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
    method: str,
    responses: pd.DataFrame,
    pairs: pd.MultiIndex,
    settings: Settings,
    fitted: Mapping[str, Fitted] | None = None,
    structures: pd.Series | None = None,
) -> Fitted:
    """Fit a method on `responses` (rows x genes), and predict its inner folds with what is fitted inside them.

    What `NEEDS` names of it is taken from `fitted`, or fitted anew. `structures` holds SMILES by compound. Stage 2
    trains on further rows, its pseudo-labels: what stage 1 predicts for those of `pairs` whose cell type and compound
    are known, but not together.
    """
    fitted = fitted or {}
    needed = {
        name: fitted[name] if name in fitted else fit_model(name, responses, pairs, settings, None, structures)
        for name in NEEDS.get(method, ())
    }
    if method == BLEND:
        return blend(needed, responses)
    new_compounds = NewCompounds().fit(responses, structures)
    if method == "kernel":
        folds = list(held_out(responses, settings.seed))
        rows = [ResponseProcess().fit(train).predict(test.index) for _, train, test in folds]
        made = ResponseProcess().fit(responses)
        return Fitted({method: made}, {method: 1.0}, pd.concat([responses.iloc[:0], *rows]), new_compounds)
    ensemble = Ensemble(
        specs_of(method),
        settings.repeats,
        epoch_share=settings.epoch_share,
        seed=settings.seed,
        device=pick_device(settings.device).type,
    )
    if method == "stage_2":
        first = needed["stage_1"]
        # Pseudo-labels are on the scale of answers already: nothing is left to tune.
        labels = first.predict(pseudo_pairs(pairs, responses))
        ensemble.set_params(scale=1.0).fit(responses, labels, first.out_of_fold)
    else:
        ensemble.fit(responses)
    return Fitted({method: ensemble}, {method: 1.0}, ensemble.out_of_fold_, new_compounds)


def pseudo_pairs(pairs: pd.MultiIndex, responses: pd.DataFrame) -> pd.MultiIndex:
    """Those of `pairs` that `responses` lacks, though it has their cell type and their compound; sorted."""
    new = pairs[~pairs.isin(responses.index)]
    known = [new.get_level_values(i).isin(responses.index.levels[i]) for i in range(2)]
    return new[known[0] & known[1]].sort_values()


def provenance(
    method: str,
    responses: pd.DataFrame,
    pairs: pd.MultiIndex,
    settings: Settings,
    structures: pd.Series | None = None,
) -> dict[str, Any]:
    """What a model depends on, to be kept beside it: the same provenance, the same model."""
    specs = [asdict(spec) for name in (method, *NEEDS.get(method, ())) for spec in specs_of(name)]
    return {
        "method": method,
        "data": fingerprint(responses),
        "rows to predict": fingerprint(responses, pairs) if method == "stage_2" else "",
        "SMILES": "" if structures is None else hashlib.sha256(structures.to_json().encode()).hexdigest()[:16],
        "--seed": settings.seed,
        "--quick": settings.quick,
        "hyper-parameters": json.loads(json.dumps(specs)),  # as a file gives them back
    }


def changes(about: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The parts of two provenances, a file's and the present one, that are not the same."""
    return [part for part in now if about.get(part) != now[part]]


def what_it_takes(method: str, settings: Settings) -> str:
    """How many networks training a method takes beyond those of the methods that it is built on, in words."""
    if method == BLEND:
        return f"a weighted mean of {', '.join(NEEDS[BLEND])}"
    if not (specs := specs_of(method)):
        return "no networks, seconds to fit"
    epochs = sorted({max(1, round(settings.epoch_share * spec.epochs)) for spec in specs})
    many = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
    return f"{len(specs)} x {settings.repeats} networks, {many} epochs each"


def seconds(method: str, responses: pd.DataFrame, pairs: pd.MultiIndex, settings: Settings) -> float:
    """About how long fitting a method takes here, without the methods that it is built on.

    Two epochs of each of its networks are timed, on random numbers of the same size.
    """
    n_folds = sum(1 for _ in held_out(responses, settings.seed))
    n_rows = len(responses) + (len(pseudo_pairs(pairs, responses)) if method == "stage_2" else 0)
    if method == "kernel":
        return 1 + (1 + n_folds) * len(responses) ** 3 / KERNEL_SPEED
    fits = settings.repeats + n_folds * min(settings.repeats, TUNING_REPEATS)
    device = pick_device(settings.device).type
    epochs = [(max(1, round(settings.epoch_share * spec.epochs)), spec) for spec in specs_of(method)]
    each = sum(n * seconds_per_epoch(spec, n_rows, device) for n, spec in epochs)
    return START_SECONDS + fits * each / n_workers(device) if epochs else 1.0


def check_origin(path: str | os.PathLike[str], method: str, about: dict[str, Any]) -> None:
    """Raises DataError where the file `path`, whose provenance is `about`, is the model of another method."""
    if about.get("method") != method:
        raise DataError(f"{path}: a model of {about.get('method')!r}, not of {method!r}; train again")


def check_responses(
    path: str | os.PathLike[str], model: Fitted, about: dict[str, Any], responses: pd.DataFrame, where: str
) -> None:
    """Raises DataError where the model of `path` was trained on other genes or responses than `where` has."""
    odd = model.genes_.symmetric_difference(responses.columns)
    if len(odd):
        raise DataError(f"{path}: trained on other genes than {where} has: {some(odd)}; train again")
    if about["data"] != fingerprint(responses):
        raise DataError(f"{path}: trained on other responses than {where} has; train again")
