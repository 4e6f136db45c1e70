"""The generators by name: fitted on `Cells`, sampled by label weights.

In: training cells. Out: `CellGAN`, whose `sample` gives `Cells` on the file's own scale. `start` is its closed form
alone, a Poisson-lognormal model with correlated factors; `gan` goes on from there with adversarial training. A
checkpoint holds everything that moves, random states too, so that a killed run ends in the same model.
Next: `evaluate`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from challenges.common import (
    Bundle,
    check_arrays,
    derived_seed,
    load_module,
    module_arrays,
    pick_device,
    reproducible,
)
from challenges.synthesis.calibrate import calibrate
from challenges.synthesis.data import Cells, level_matrix, level_names
from challenges.synthesis.networks import EXTRA_NOISE, ConditionalGenerator
from challenges.synthesis.scale import KINDS, Scale
from challenges.synthesis.start import QUANTILES, Library, Start, start
from challenges.synthesis.training import Training
from helpers import DataError, some

START, GAN = METHODS = ("start", "gan")
SAMPLED_AT_ONCE = 1000
TIMED_CELLS, TIMED_STEPS = 2000, 10  # to say how long training takes
LAYOUT = {  # of the arrays in a file: T types, L levels, G genes, Q quantiles, N training cells, S kinds of cells seen
    "genes": "names G",
    "trained_on": "names N",
    "seen_count": "whole S",
    **{f"library/{name}": "numbers T" for name in ("mean", "sd", "step_intercept")},
    "library/shift": "numbers L",
    "library/quantiles": "numbers Q",
    "library/step_slope": "numbers",
    "library/step_sd": "numbers",
    "generator/baseline": "numbers T G",
    "generator/levels": "numbers L G",
    "generator/loadings": "numbers K G",
    "generator/deviation": "numbers T K",
    "generator/own_sd": "numbers G",
}


class CellGAN(BaseEstimator):
    """A generator of labelled cells.

    `steps` counts generator updates (0: the start alone, calibrated); `label_mixing` is the share of a batch that is
    also trained with labels mixed between two types. Fitted attributes end in `_`.
    """

    KIND = "synthesis"

    def __init__(self, steps: int = 1000, label_mixing: float = 0.0, seed: int = 0, device: str = "auto") -> None:
        self.steps = steps
        self.label_mixing = label_mixing
        self.seed = seed
        self.device = device

    def fit(self, cells: Cells, checkpoint: str | os.PathLike[str] | None = None) -> CellGAN:
        """Learn from these cells. With a path for a checkpoint, go on from it where it is there.

        The checkpoint is left: whoever has saved the model removes it.
        """
        device = pick_device(self.device)
        if not 0 <= self.label_mixing <= 1:
            raise DataError(f"label mixing is a share of the batch, from 0 to 1; it was {self.label_mixing}")
        if self.steps < 0:
            raise DataError(f"steps cannot be negative; it was {self.steps}")
        self.types_, self.levels_, self.genes_ = cells.types, level_names(cells), cells.genes
        self.scale_, self.trained_on_ = cells.scale, cells.obs.index
        self.seen_ = cells.obs.value_counts(sort=False).reset_index()
        begun = start(cells, self.seed)
        self.library_ = begun.library
        with reproducible(self.seed, "synthesis", "train"):
            generator = ConditionalGenerator(begun).to(device)
            calibrate(generator, begun.library, cells)
            if self.steps:
                training = Training(generator, begun.library, cells, self.label_mixing, device)
                path = Path(checkpoint) if checkpoint else None
                training.run(self.steps, path, f"{cells.fingerprint()}/{self.seed}/{self.label_mixing}")
                generator = training.average
        self.generator_ = generator.cpu().eval()
        return self

    def weights(self, names: Mapping[str, float] | str) -> np.ndarray:
        """Label weights (types) of a type, or of a mixture by name. Raises DataError for an unknown type."""
        parts = {names: 1.0} if isinstance(names, str) else dict(names)
        if unknown := sorted(set(parts) - set(self.types_)):
            raise DataError(f"unknown type {some(unknown)}; the model knows {some(self.types_, 50)}")
        row = np.array([parts.get(name, 0.0) for name in self.types_], float)
        if not np.isfinite(row).all() or (row < 0).any() or not row.any():
            raise DataError(f"the weights of a mixture are positive numbers; they were {parts}")
        row /= row.max()  # whose sum, unlike that of huge numbers, is finite
        return row / row.sum()

    def sample(self, weights: np.ndarray, conditions: Mapping[str, str] | None = None, seed: int = 0) -> Cells:
        """One cell per row of `weights` (cells x types), on the scale of the training file.

        Conditions that are not given are drawn as often as the training cells of the (main) type have them. Their label
        is the type, or the mixture written out.
        """
        check_is_fitted(self)
        weights = np.asarray(weights, float)
        random = np.random.default_rng(derived_seed(seed, "synthesis", "sample"))
        obs = self._conditions(weights, dict(conditions or {}), random)
        levels = level_matrix(obs, self.levels_)
        library = self.library_.draw(weights, levels, random)
        device = pick_device(self.device)
        generator = self.generator_.to(device)
        parts = []
        with reproducible(seed, "synthesis", "sample"):
            for first in range(0, len(weights), SAMPLED_AT_ONCE):
                rows = slice(first, first + SAMPLED_AT_ONCE)
                tensors = [torch.as_tensor(part[rows], dtype=torch.float32) for part in (weights, levels, library)]
                noise = torch.randn(len(tensors[0]), generator.n_noise)
                parts.append(generator.draw(*(tensor.to(device) for tensor in (noise, *tensors))).cpu().numpy())
        self.generator_ = generator.cpu()
        counts = np.concatenate(parts) if parts else np.zeros((0, len(self.genes_)), np.float32)
        normalised = self.scale_.kind in {"log", "linear"}
        steps = self.library_.steps(counts.sum(axis=1), weights, random) if normalised else np.ones(len(counts))
        return Cells(sp.csr_matrix(counts), steps, obs, self.genes_, self.scale_, "synthetic cells")

    def sample_like(self, cells: Cells, seed: int = 0) -> Cells:
        """One cell of the type of each of these cells."""
        return self.sample_labels(cells.labels, seed)

    def sample_labels(self, labels: np.ndarray, seed: int = 0) -> Cells:
        """One cell of each of these types."""
        return self.sample(np.stack([self.weights(name) for name in labels]), seed=seed)

    def _conditions(self, weights: np.ndarray, given: dict[str, str], random: np.random.Generator) -> pd.DataFrame:
        names = [name for name in self.seen_ if name not in {"label", "count"}]
        if unknown := sorted(set(given) - set(names)):
            raise DataError(f"the model has no condition {some(unknown)}; it was trained with {some(names) or 'none'}")
        for name, level in given.items():
            if (name, level) not in self.levels_:
                known = [there for condition, there in self.levels_ if condition == name]
                raise DataError(f"condition {name!r} has no level {level!r}; the model knows {some(known)}")
        main = np.array(self.types_, object)[weights.argmax(axis=1)] if len(weights) else np.array([], object)
        table = pd.DataFrame({"label": [self._written(row) for row in weights]}, dtype=object)
        for name in names:
            table[name] = given.get(name, "")
        for label in sorted(set(main)) if set(names) - set(given) else []:
            seen = self.seen_[self.seen_["label"] == label]
            rows = random.choice(
                len(seen), int((main == label).sum()), p=(seen["count"] / seen["count"].sum()).to_numpy()
            )
            for name in set(names) - set(given):
                table.loc[main == label, name] = seen[name].to_numpy()[rows]
        return table.set_index(pd.Index([f"synthetic_{i}" for i in range(len(table))], name="cell"))

    def _written(self, row: np.ndarray) -> str:
        inside = np.flatnonzero(row > 0)
        if len(inside) == 1:
            return self.types_[inside[0]]
        return ",".join(f"{self.types_[i]}:{row[i]:.4g}" for i in inside)

    # -----------------------------------------------------------------------------------------------------------------
    # Files
    # -----------------------------------------------------------------------------------------------------------------

    def to_bundle(self) -> Bundle:
        """All that `sample` needs, as plain data."""
        check_is_fitted(self)
        conditions = [name for name in self.seen_ if name != "count"]
        settings = {
            "steps": self.steps,
            "label_mixing": self.label_mixing,
            "seed": self.seed,
            "types": self.types_,
            "levels": [list(level) for level in self.levels_],
            "scale": [self.scale_.kind, self.scale_.base],
            "conditions": conditions,
        }
        arrays = {
            "genes": self.genes_.to_numpy(),
            "trained_on": self.trained_on_.to_numpy(),
            "seen_count": self.seen_["count"].to_numpy(),
            **module_arrays(self.generator_, "generator"),
            **{f"seen/{name}": self.seen_[name].to_numpy() for name in conditions},
            **{f"library/{name}": value for name, value in vars(self.library_).items()},
        }
        return Bundle(self.KIND, settings, arrays)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> CellGAN:
        """The fitted estimator again; it samples on the device that `set_params(device=...)` names.

        Raises DataError for settings and arrays that do not fit together.
        """
        settings, arrays = bundle.settings, bundle.arrays
        lengths = {"T": len(settings["types"]), "L": len(settings["levels"]), "Q": len(QUANTILES)}
        layout = LAYOUT | {f"seen/{name}": "texts S" for name in settings["conditions"]}
        if settings["scale"][0] == "values":
            layout["generator/values.quantiles"] = "numbers G V"
        check_arrays(arrays, layout, **lengths)
        if settings["scale"][0] not in KINDS or not np.isfinite(settings["scale"][1]):
            raise DataError(f"its scale is {settings['scale']}")
        if not (set(arrays["seen/label"]) <= set(settings["types"]) and (arrays["seen_count"] > 0).all()):
            raise DataError("the cells that it has seen are not of its types")
        made = cls(settings["steps"], settings["label_mixing"], settings["seed"])
        made.types_ = settings["types"]
        made.levels_ = [(name, level) for name, level in settings["levels"]]
        made.scale_ = Scale(*settings["scale"])
        made.genes_, made.trained_on_ = pd.Index(arrays["genes"]), pd.Index(arrays["trained_on"], name="cell")
        made.library_ = Library(**bundle.under("library"))
        made.seen_ = pd.DataFrame({name: arrays[f"seen/{name}"] for name in settings["conditions"]})
        made.seen_["count"] = arrays["seen_count"]
        tensors = bundle.under("generator")
        shapes = Start(
            tensors["baseline"],
            tensors["levels"],
            tensors["loadings"][:-EXTRA_NOISE],
            tensors["deviation"][:, :-EXTRA_NOISE],
            tensors["own_sd"],
            tensors.get("values.quantiles"),
            made.library_,
        )
        generator = ConditionalGenerator(shapes)
        load_module(generator, tensors)
        made.generator_ = generator
        return made

    def identity(self) -> str:
        """16 hexadecimal digits: the same for the same generator of the same genes and types."""
        digest = hashlib.sha256("\n".join([*self.types_, *self.genes_]).encode())
        for _, tensor in sorted(self.generator_.state_dict().items()):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def seconds_to_train(cells: Cells, steps: int, seed: int = 0, device: str = "auto") -> float:
    """About how long `CellGAN(steps).fit(cells)` takes here, by a few steps on at most some of the cells."""
    rows = np.random.default_rng(seed).permutation(len(cells))[:TIMED_CELLS]
    some_cells, there = cells.take(np.sort(rows)), pick_device(device)
    began = time.perf_counter()
    begun = start(some_cells, seed)
    with reproducible(seed, "synthesis", "time"):
        generator = ConditionalGenerator(begun).to(there)
        calibrate(generator, begun.library, some_cells)
        training = Training(generator, begun.library, some_cells, 0.0, there)
        before_steps = time.perf_counter()
        for _ in range(TIMED_STEPS if steps else 0):
            training.step()
    per_step = (time.perf_counter() - before_steps) / TIMED_STEPS
    return (before_steps - began) * len(cells) / len(some_cells) + steps * per_step
