"""Every saved model, each array and each setting of it changed in turn: "damaged: train again", never anything else."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import simulated_cells
import simulated_pairs
import simulated_responses

from challenges.common import Bundle, load_model, save_model
from challenges.drug_response import networks
from challenges.drug_response.compounds import NewCompounds
from challenges.drug_response.ensemble import Ensemble
from challenges.drug_response.fitted import Fitted
from challenges.drug_response.kernel import ResponseProcess
from challenges.modality import models as modality
from challenges.synthesis.models import CellGAN
from challenges.synthesis.scale import Scale
from helpers import DataError

TINY = {"epochs": 2, "n_dim": 6, "hidden": (8, 8), "dropout": (0.1, 0.1)}


def ensemble(stage):
    (spec, *_) = networks.specs_of(stage)
    spec = replace(spec, **TINY, embedding=8, batch=16)
    return Ensemble([spec], 2, scale=1.0).fit(simulated_responses.simulated()[0])


def mixed():
    train, structures = simulated_responses.simulated_families()
    parts = {"simple": Ensemble([replace(networks.specs_of("simple")[0], **TINY, embedding=8, batch=16)], 2, scale=1.0)}
    parts |= {"kernel": ResponseProcess()}
    weights = dict.fromkeys(parts, 0.5)
    fitted = {name: part.fit(train) for name, part in parts.items()}
    return Fitted(fitted, weights, train.iloc[:5], NewCompounds().fit(train, structures))


def reduced(method):
    source, target = (cells.X for cells in simulated_pairs.simulated())
    recipes = {name: replace(recipe, generator_steps=3, repeats=2) for name, recipe in modality.RECIPES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modality, "RECIPES", recipes)
        features = tuple(pd.Index([f"{name}{i}" for i in range(n)]) for name, n in (("s", 30), ("t", 12)))
        return modality.ReducedModel(method).fit(source, target, np.zeros(80, int), features)


def cells(kind):
    made = simulated_cells.make_cells(60, 20)
    made = replace(made, obs=made.obs.assign(donor="d1"))
    if kind == "values":
        made = replace(made, counts=sp.csr_matrix(made.counts.toarray() / 3.7), scale=Scale("values"))
    return CellGAN(steps=0, device="cpu").fit(made)


MODELS = {
    "kernel": lambda: ResponseProcess().fit(simulated_responses.simulated()[0]),
    **{stage: lambda stage=stage: ensemble(stage) for stage in ("simple", "transformer", "autoencoder")},
    "mixed": mixed,
    **{name: lambda name=name: reduced(name) for name in ("knn", "ridge", "kernel_ridge", "adversarial")},
    **{kind: lambda kind=kind: cells(kind) for kind in ("counts", "values")},
}
# What a model may lack or hold otherwise: what it was made with, and prediction does not need.
FREE = {"rank", "seed", "steps", "label_mixing", "epoch_share", "accessibility", "value", "label", "conditions"}
FREE |= {"trained_on", "library/sd", "seen_count", "seen/label", "seen/donor", "new_compounds/structures"}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    model = MODELS[request.param]()
    path = tmp_path_factory.mktemp("model") / "model.h5"
    save_model(path, model)
    return type(model), Bundle.load(path, model.KIND), path.with_name("changed.h5")


def longer(array):
    return np.concatenate([array, array]) if array.ndim else np.stack([array, array])


def damaged_by(saved, change):
    """Whether the model is refused as damaged once its bundle is changed, in one line."""
    kind, bundle, path = saved
    settings, arrays = dict(bundle.settings), dict(bundle.arrays)
    change(settings, arrays)
    Bundle(bundle.kind, settings, arrays).save(path)
    said = complaint(path, kind)
    assert re.fullmatch(rf"{path}: damaged \(.*\); train again", said) or not said
    return bool(said)


def complaint(path, kind):
    try:
        load_model(path, kind)
    except DataError as error:
        return str(error)
    return ""


def test_the_model_itself_is_fine(saved):
    assert not damaged_by(saved, lambda settings, arrays: None)


def test_an_array_that_is_missing_or_of_another_shape_or_kind(saved):
    for name, array in saved[1].arrays.items():
        assert damaged_by(saved, lambda _, arrays, name=name: arrays.pop(name)), name
        changes = [longer(array), np.full(array.shape, "text")]
        changes += [] if array.dtype.kind == "f" else [np.full(array.shape, 1.5)]
        changes += [array[..., None], np.zeros((0, *array.shape[1:]))]
        for i, other in enumerate(changes):
            if name in FREE or name.startswith("seen/"):
                continue
            assert damaged_by(saved, lambda _, arrays, name=name, other=other: arrays.update({name: other})), (name, i)


def test_a_setting_that_is_missing_or_something_else(saved):
    for name in saved[1].settings:
        assert damaged_by(saved, lambda settings, _, name=name: settings.pop(name)), name
        for other in (None, "text", [], {"a": 1}, float("nan")):
            if name not in FREE:
                changed = damaged_by(saved, lambda settings, _, name=name, o=other: settings.update({name: o}))
                assert changed, (name, other)


def test_huge_settings_are_seen_before_memory_is_asked_for(saved, peak_memory):
    def change(settings, arrays):
        if "parts" in settings:
            settings["parts"]["simple"]["settings"]["specs"][0] |= {"hidden": [10**9, 10**9], "embedding": 10**9}
        elif "specs" in settings:
            settings["specs"][0] |= {"hidden": [10**9, 10**9], "embedding": 10**9}
        elif "recipe" in settings:
            settings["recipe"] |= {"width": 10**9, "repeats": 10**9}
        else:
            settings["types" if "types" in settings else "none"] = ["A"] * 10_000

    kind, bundle, path = saved
    if bundle.kind.endswith("kernel") or bundle.settings.get("method") in ("knn", "ridge", "kernel_ridge"):
        return  # they hold nothing that says how large something is
    assert peak_memory(lambda: damaged_by((kind, Bundle(**vars(bundle)), path), change)) < 50e6
    assert damaged_by((kind, Bundle(**vars(bundle)), path), change)


def test_weights_that_are_no_shares(saved):
    def change(settings, arrays, weight):
        settings["parts"] = {name: {**part, "weight": weight} for name, part in settings["parts"].items()}

    for weight in (0.7, -1.0, float("nan"), "text") if "parts" in saved[1].settings else ():
        assert damaged_by(saved, partial(change, weight=weight)), weight


def test_codes_that_point_nowhere(saved):
    for name in ("cell_type", "compound", "map/part", "out_of_fold/cell_type", "out_of_fold/compound"):
        if name in saved[1].arrays:
            for value in (-1, 10**6):
                wrong = np.full_like(saved[1].arrays[name], value)
                assert damaged_by(saved, lambda _, arrays, name=name, wrong=wrong: arrays.update({name: wrong})), name
