"""A stage: many networks, each trained several times, as one estimator.

In: responses (and, for stage 2, pseudo-labels). Out: predictions: the median over repeats, the weighted mean over
networks, times a scale tuned in validation, clipped to what training saw of each gene. Next: `fitted`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from challenges.common import Bundle, check_arrays, check_codes, check_module, under
from challenges.drug_response.baselines import row_rmse
from challenges.drug_response.data import codes
from challenges.drug_response.folds import held_out
from challenges.drug_response.networks import Problem, Spec, make_network
from challenges.drug_response.training import Task, apply_network, fit_networks
from helpers import DataError, some, text_size

SCALES = np.round(np.arange(0.3, 1.31, 0.05), 2)
TUNING_REPEATS = 2  # of each network on each inner fold
LAYOUT = {  # of the arrays in a file: T cell types, C compounds, G genes, R training rows, D dimensions
    "genes": "names G",
    "cell_types": "names T",
    "compounds": "names C",
    "components": "numbers D G",
    "coordinates": "numbers R D",
    **dict.fromkeys(("lowest", "highest"), "numbers G"),
    **dict.fromkeys(("cell_type", "compound"), "whole R"),
}


class Ensemble(BaseEstimator):
    """The networks of a stage. `scale` multiplies the prediction; None: the best on the inner folds.

    `epoch_share` shortens the training (quick looks). Fitted: `cell_types_`, `compounds_`, `genes_`, `components_`
    (dims x genes, of the SVD), `networks_` (weights by model and repeat), `scale_`, `lowest_`, `highest_` (per gene),
    and `out_of_fold_`: what it predicts for the rows of `responses` that the inner folds hold out, rows x genes.
    """

    KIND = "drug_response/ensemble"

    def __init__(
        self,
        specs: Sequence[Spec],
        repeats: int = 10,
        *,
        scale: float | None = None,
        epoch_share: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.specs = specs
        self.repeats = repeats
        self.scale = scale
        self.epoch_share = epoch_share
        self.seed = seed
        self.device = device

    def fit(
        self, responses: pd.DataFrame, pseudo: pd.DataFrame | None = None, folds_pseudo: pd.DataFrame | None = None
    ) -> Ensemble:
        """Train on the rows of `responses`, and on those of `pseudo` (same genes), which count as known.

        Inside each inner fold, the rows held out are pseudo-labelled by `folds_pseudo`, where it is given. The inner
        folds are left out where the scale is given and they are not.
        """
        self.prepare(responses, pseudo)
        inner = []
        if self.scale is None or folds_pseudo is not None:
            for _, train, test in held_out(responses, self.seed):
                labels = None if folds_pseudo is None else folds_pseudo.loc[test.index]
                inner.append((self._inner().prepare(train, labels), test))
        _train([*(fold for fold, _ in inner), self])
        found = [fold.predict(test.index) for fold, test in inner]
        self.scale_ = _best_scale(found, responses) if self.scale is None else self.scale
        self.out_of_fold_ = pd.concat([self.scale_ * part for part in (responses.iloc[:0], *found)])
        return self

    def predict(self, pairs: pd.MultiIndex) -> pd.DataFrame:
        """Responses, pairs x genes, float32."""
        at = self._codes(pairs)
        total = np.zeros((len(pairs), len(self.genes_)))
        shares = np.array([spec.weight for spec in self.specs]) / sum(spec.weight for spec in self.specs)
        for i, (spec, share) in enumerate(zip(self.specs, shares, strict=True)):
            repeats = []
            for arrays in self.networks_[i]:
                found = apply_network(spec, self.problem_, arrays, *at)
                repeats.append(found @ self.components_[: found.shape[1]])
            total += share * np.median(repeats, axis=0)
        values = np.clip(self.scale_ * total, self.lowest_, self.highest_)
        return pd.DataFrame(values.astype(np.float32), pairs, self.genes_)

    def to_bundle(self) -> Bundle:
        """All that `predict` needs, as plain data."""
        settings = {
            "specs": [asdict(spec) for spec in self.specs],
            "scale": float(self.scale_),
            "seed": self.seed,
            "repeats": self.repeats,
            "epoch_share": self.epoch_share,
        }
        arrays = {
            "genes": _texts(self.genes_),
            "cell_types": _texts(self.cell_types_),
            "compounds": _texts(self.compounds_),
            "components": self.components_,
            "lowest": self.lowest_,
            "highest": self.highest_,
            "cell_type": self.problem_.cell_type,
            "compound": self.problem_.compound,
            "coordinates": self.problem_.coordinates,
        }
        for spec, repeats in zip(self.specs, self.networks_, strict=True):
            for repeat, network in enumerate(repeats):
                arrays |= {f"models/{spec.model}/{repeat}/{name}": array for name, array in network.items()}
        return Bundle(self.KIND, settings, arrays)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Ensemble:
        """The fitted estimator again. Raises DataError for settings and arrays that do not fit together."""
        settings, arrays = bundle.settings, bundle.arrays
        sizes = check_arrays(arrays, LAYOUT)
        check_codes(arrays["cell_type"], sizes["T"], "cell_type")
        check_codes(arrays["compound"], sizes["C"], "compound")
        specs = [
            Spec(**{**spec, "hidden": tuple(spec["hidden"]), "dropout": tuple(spec["dropout"])})
            for spec in settings["specs"]
        ]
        self = cls(specs, settings["repeats"], epoch_share=settings["epoch_share"], seed=settings["seed"])
        self.scale_ = settings["scale"]
        self.genes_ = pd.Index(arrays["genes"])
        self.cell_types_ = pd.Index(arrays["cell_types"], name="cell_type")
        self.compounds_ = pd.Index(arrays["compounds"], name="sm_name")
        self.components_, self.lowest_, self.highest_ = (arrays[name] for name in ("components", "lowest", "highest"))
        self.problem_ = Problem(
            arrays["cell_type"],
            arrays["compound"],
            len(self.cell_types_),
            len(self.compounds_),
            arrays["coordinates"],
        )
        if not 0 < self.repeats * len(specs) <= len(arrays):
            raise DataError(f"{len(specs)} networks and {self.repeats} repeats of each, which it does not hold")
        self.networks_ = [
            [bundle.under(f"models/{spec.model}/{repeat}") for repeat in range(self.repeats)] for spec in specs
        ]
        for spec, repeats in zip(specs, self.networks_, strict=True):
            for network in repeats:
                check_module(partial(make_network, spec, self.problem_), under(network, "net"))
        weights = [float(spec.weight) for spec in specs]
        if not (np.isfinite([*weights, float(self.scale_)]).all() and sum(weights) > 0):
            raise DataError(f"the weights of its networks are {weights}, the scale is {self.scale_}")
        return self

    def _codes(self, pairs: pd.MultiIndex) -> tuple[np.ndarray, np.ndarray]:
        return codes(pairs, self.cell_types_, self.compounds_)

    def prepare(self, responses: pd.DataFrame, pseudo: pd.DataFrame | None = None) -> Ensemble:
        """Fit all but the networks and the scale: labels, range of each gene, SVD."""
        rows = responses if pseudo is None else pd.concat([responses, pseudo[responses.columns]])
        self.genes_ = responses.columns
        self.cell_types_, self.compounds_ = (rows.index.unique(name).sort_values() for name in ("cell_type", "sm_name"))
        self.lowest_, self.highest_ = responses.to_numpy().min(axis=0), responses.to_numpy().max(axis=0)
        coordinates, self.components_ = truncated_svd(rows.to_numpy(np.float64), max(spec.n_dim for spec in self.specs))
        self.problem_ = Problem(*self._codes(rows.index), len(self.cell_types_), len(self.compounds_), coordinates)
        self.scale_ = 1.0
        return self

    def _inner(self) -> Ensemble:
        return Ensemble(
            self.specs,
            min(self.repeats, TUNING_REPEATS),
            scale=1.0,
            epoch_share=self.epoch_share,
            seed=self.seed,
            device=self.device,
        )

    def tasks(self) -> list[Task]:
        """Every repeat of every network, to train."""
        n_rows = len(self.problem_.cell_type)
        if large := [spec.model for spec in self.specs if spec.batch > n_rows]:
            print(f"{n_rows} rows, fewer than a batch of {some(large)}: there an epoch is one batch")
        specs = [replace(spec, epochs=max(1, round(self.epoch_share * spec.epochs))) for spec in self.specs]
        return [
            Task(spec, self.problem_, self.seed, repeat, self.device)
            for spec in specs
            for repeat in range(self.repeats)
        ]

    def memory(self) -> float:
        """Bytes of the largest network (weights, gradients, moments) and of the rows; torch adds 0.3 GB per process."""
        widths = max(self.specs, key=lambda spec: sum(spec.hidden))
        sizes = [2 * widths.embedding, *widths.hidden, self.components_.shape[0]]
        return 16 * sum(a * b for a, b in itertools.pairwise(sizes)) + self.problem_.coordinates.nbytes


def _train(ensembles: Sequence[Ensemble]) -> None:
    """Train the networks of prepared ensembles, all under one progress bar, so that it shows the time of the whole."""
    tasks = [task for ensemble in ensembles for task in ensemble.tasks()]
    memory = text_size(max(ensemble.memory() for ensemble in ensembles))
    tuning = f" ({len(ensembles) - 1} inner folds for the scale among them)" if len(ensembles) > 1 else ""
    fitted = iter(fit_networks(tasks, f"Training {len(tasks)} networks, {memory} each{tuning}"))
    for ensemble in ensembles:
        ensemble.networks_ = [[next(fitted) for _ in range(ensemble.repeats)] for _ in ensemble.specs]


def _best_scale(folds: Sequence[pd.DataFrame], responses: pd.DataFrame) -> float:
    """The scale with the least mean row-wise RMSE, mean over the inner folds' predictions; 1 where there are none."""
    errors = np.zeros(len(SCALES))
    for found in folds:
        truth = responses.loc[found.index]
        errors += [row_rmse(scale * found, truth).mean() for scale in SCALES]
    return float(SCALES[errors.argmin()]) if folds else 1.0


def truncated_svd(Y: np.ndarray, n_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (rows x dims) and components (dims x genes), float32, of the leading singular vectors of `Y`.

    Exact and with fixed signs, from the rows' Gram matrix: there are far fewer rows than genes.
    """
    values, U = np.linalg.eigh(Y @ Y.T)
    keep = np.flatnonzero(values > values[-1] * 1e-10)[::-1][:n_dim]
    U, sizes = U[:, keep], np.sqrt(values[keep])
    U *= np.sign(U[np.abs(U).argmax(axis=0), np.arange(U.shape[1])])
    return (U * sizes).astype(np.float32), (U.T @ Y / sizes[:, None]).astype(np.float32)


def _texts(index: pd.Index) -> np.ndarray:
    return index.to_numpy().astype(str)
