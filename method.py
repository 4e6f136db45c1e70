"""A whole method, saving and loading it, and what the platform calls: `train` once, then `infer`.

In: the data folder, and a `Predictor`: an estimator of the mean, one of the proportions, and a generator of cells.
Out: `model.h5` and `expected.csv` in the model folder, then the two predicted files. `Predictor.default()` is what is
submitted unless the notebook names another method.

Your own method is any class with the methods of `MeanEstimator`, `ProportionEstimator` or `CellGenerator`:

    class Halfway:
        def fit(self, means):
            self.middle_ = (means.mean() + means.loc["NC"]) / 2
            return self

        def predict(self, targets):
            return pd.DataFrame([self.middle_] * len(targets), index=targets)

    predictor = Predictor(Halfway(), MedianProportions(), ScaledCells())
    train("data", "resources", predictor=predictor)

Whatever the instance keeps is saved: numbers, texts, None, and arrays, tables, columns and indexes of numbers or of
texts. Anything else is refused by name at the end of `fit`, before a file is touched. `infer` needs the same
`predictor=`, since a saved model holds the names of its classes and not their code.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from combinations import Added, CombinationModel, DeltaMean, for_names, genes_in
from contract import CRUNCH
from helpers import (
    POOL_CELLS,
    Challenge,
    ControlMean,
    DataError,
    GaussianCells,
    MedianProportions,
    PCARidge,
    PerturbationStats,
    PerturbedMean,
    RecentredCells,
    ScaledCells,
    check_measured,
    check_unique,
    constrain_proportions,
    fingerprint,
    load_challenge,
    perturbation_stats,
    pool_rows,
    proportions_table,
    read_array,
    read_cells,
    reading_sealed,
    replacing,
    some,
    text_size,
    text_time,
    write_array,
    write_prediction,
    writing_sealed,
)
from knowledge import FEATURES_FOLDER, GeneKnowledge, file_digests, read_features, training_knowledge, used_files
from response import ResponseModel
from screens import SCREENS_FOLDER, read_screens

MODEL_FILE = "model.h5"
EXPECTED_FILE = "expected.csv"
EXPECTED_COLUMNS = ["error", "pearson"]
MODEL_FORMAT = 4

# ---------------------------------------------------------------------------------------------------------------------
# What an estimator must have. `fit` is given its first argument, and by name those further ones that it declares.
# ---------------------------------------------------------------------------------------------------------------------


@runtime_checkable
class MeanEstimator(Protocol):
    """Predicts the mean expression of unseen knock-outs.

    `fit(means)` takes the training means: perturbations x genes, float64, log2 units, the control among the rows. It
    may declare more arguments, which it is then given by name: `n_cells` (Series: cells by perturbation) and
    `knowledge` (`GeneKnowledge`: what is known of genes, training and predicted ones). It returns the estimator.

    `predict(targets)` gives a DataFrame, targets x genes, in log2 units: one row per target in the order asked for, the
    genes of the training means as columns in any order, finite.

    Optional: `predict_scale(targets)`, a DataFrame, targets x `error` (expected length of the error over all genes,
    log2 units) and `pearson` (expected Pearson delta). Where there is one, `train` writes it as `expected.csv`.
    """

    def fit(self, means: pd.DataFrame, *args: Any, **wanted: Any) -> Any:
        """Learn from the training perturbations."""

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x genes."""


@runtime_checkable
class ProportionEstimator(Protocol):
    """Predicts the share of cells in each state.

    `fit(proportions)` takes perturbations x states (pre_adipo, adipo, other, lipo, and the ratio lipo_adipo), the
    control among the rows, and by name where declared `means`, `n_cells` and `knowledge`, as for a `MeanEstimator`.

    `predict(targets)` gives a DataFrame, targets x states: pre_adipo, adipo, other, and lipo_adipo (or lipo). The
    shares need not be valid: `helpers.constrain_proportions` makes them so.
    """

    def fit(self, proportions: pd.DataFrame, *args: Any, **wanted: Any) -> Any:
        """Learn from the training perturbations."""

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x states."""


@runtime_checkable
class CellGenerator(Protocol):
    """Makes the cells of a knock-out around its predicted mean.

    `fit` is given by name what it declares of `means` (the training means, perturbations x genes) and `pool` (AnnData
    of up to 1,000 real control cells). `for_genes(genes)` returns the fitted generator for these genes in this order,
    whose `sample` makes finite cells; a gene may be one that was never measured.

    Optional, for cells whose zeros are the same for all knock-outs, which then make a sparse file: `pattern(n_cells)`
    (bool, n_cells x genes) and `values(target, mean, n_cells)`, the values of `sample` where the pattern is true.
    """

    def fit(self, *args: Any, **wanted: Any) -> Any:
        """Learn from the training cells."""

    def for_genes(self, genes: pd.Index) -> CellGenerator:
        """The generator for these genes, in this order."""

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """n_cells x genes, float32, log2 units; `mean` holds one float32 value per gene."""


def call_with(function: Callable, *first: Any, **offered: Any) -> Any:
    """Call `function` with `first`, and with those of `offered` that its signature names.

    Raises DataError where it needs what is not offered.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function(*first, **offered)
    others = [parameter for parameter in parameters[len(first) :] if parameter.kind is not parameter.VAR_POSITIONAL]
    if unknown := [p.name for p in others if p.default is p.empty and p.name not in offered]:
        raise DataError(f"{function.__qualname__} asks for {some(unknown)}; it can be given {some(offered)}")
    names = {parameter.name for parameter in others}
    return function(*first, **{name: value for name, value in offered.items() if name in names})


# ---------------------------------------------------------------------------------------------------------------------
# A whole method
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictor:
    """A whole method: how the mean, the proportions and the cells of a knock-out are made."""

    expression: MeanEstimator
    proportions: ProportionEstimator
    cells: CellGenerator
    trained_on: str = field(default="", init=False)  # `helpers.fingerprint` of the training file, where there was one
    files: dict[str, str] = field(default_factory=dict, init=False)  # `knowledge.file_digests` of its model folder

    PARTS = {"expression": MeanEstimator, "proportions": ProportionEstimator, "cells": CellGenerator}  # noqa: RUF012

    def __post_init__(self) -> None:
        """Refuse a part without the methods it needs."""
        self.has_proportions = True  # until it is fitted without them
        for name, protocol in self.PARTS.items():
            part = getattr(self, name)
            needed = [method for method in vars(protocol) if callable(vars(protocol)[method]) and method[0] != "_"]
            if isinstance(part, type):
                raise DataError(f"{name} is the class {part.__name__}: give an instance, {part.__name__}()")
            if lacking := [method for method in needed if not callable(getattr(part, method, None))]:
                raise DataError(f"{name}: {type(part).__name__} has no method {some(lacking)}; see {protocol.__name__}")

    @classmethod
    def default(cls) -> Predictor:
        """What is submitted unless the notebook names another method."""
        return cls(ResponseModel(), MedianProportions(), ScaledCells())

    def fit(
        self,
        stats: PerturbationStats,
        proportions: pd.DataFrame | None,
        pool: ad.AnnData,
        knowledge: GeneKnowledge | None = None,
    ) -> Predictor:
        """Fit all three parts; the same bytes for any number of threads, since BLAS is held to one.

        Without `proportions` that part is not fitted, and no proportions are predicted. Raises DataError for a fitted
        attribute that cannot be saved, and for what loading would mistake for another.
        """
        self.expression = for_names(self.expression, stats.mean.index)
        asked = [_describe(part) for part in self.parts()]
        means, n_cells = stats.mean, stats.n_cells
        if all(map(CRUNCH.is_control, means.index)):
            raise DataError(f"no perturbation to learn from: there is {some(means.index) or 'none'} alone")
        knowledge = knowledge or GeneKnowledge({})
        with threadpool_limits(1):
            call_with(self.expression.fit, means, n_cells=n_cells, knowledge=knowledge)
            if proportions is not None:
                shares = proportions.loc[means.index]
                call_with(self.proportions.fit, shares, means=means, n_cells=n_cells, knowledge=knowledge)
            call_with(self.cells.fit, means=means, pool=pool)
        self.genes, self.has_proportions = means.columns, proportions is not None
        for part, before in zip(self.parts(), asked, strict=True):
            _check_can_be_saved(part, before)
        return self

    def predict_means(self, targets: Sequence[str]) -> pd.DataFrame:
        """The expression part's prediction, checked: targets x genes. Raises DataError for a wrong shape or NaN."""
        return checked_prediction(self.expression, targets, self.genes, "the genes of the training file")

    def predict_proportions(self, targets: Sequence[str]) -> pd.DataFrame:
        """The predicted shares, checked and made valid: targets x pre_adipo, adipo, lipo, other.

        Raises DataError where the method was fitted without proportions.
        """
        if not self.has_proportions:
            raise DataError("the model was fitted to a screen without states: it predicts no proportions")
        return checked_shares(self.proportions, targets)

    def write(
        self,
        prediction_path: str | Path,
        proportions_path: str | Path,
        targets: Sequence[str],
        genes: Sequence[str],
        *,
        cells_per_perturbation: int = CRUNCH.cells_per_perturbation,
        mode: str = "auto",
    ) -> None:
        """Predict `targets` on `genes` (in that order) and write both files; the cells alone without proportions.

        A repeated target is predicted once, and a gene that was never measured is predicted as 0 (not detected),
        each with a warning. Raises DataError for nothing to predict, repeated genes, genes of which most were never
        measured, and for predictions that cannot be. Neither file is replaced before both can be.
        """
        names, columns = self._checked_targets(targets), self._checked_genes(genes)
        known = columns[columns.isin(self.genes)]
        with threadpool_limits(1):
            means = self.predict_means(names)[known].astype(np.float32)
            if len(known) < len(columns):
                means = means.reindex(columns=columns, fill_value=0.0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the same targets were listed a line above
                shares = self.predict_proportions(names) if self.has_proportions else None
        below = int((means.to_numpy() < 0).sum())
        if below and hasattr(self.cells, "pattern"):  # such cells are never negative
            print(f"{below:,} of {means.size:,} predicted means lie below 0; their cells hold 0.")
        if shares is None:
            write_prediction(
                prediction_path, means, self.cells, cells_per_perturbation=cells_per_perturbation, mode=mode
            )
            return
        with replacing(Path(proportions_path)) as temporary:
            proportions_table(shares).to_csv(temporary, index=False)
            write_prediction(
                prediction_path, means, self.cells, cells_per_perturbation=cells_per_perturbation, mode=mode
            )

    @staticmethod
    def _checked_targets(targets: Sequence[str]) -> pd.Index:
        index = _names(targets, "predict_perturbations")
        if index.has_duplicates:
            warnings.warn(f"listed twice, predicted once: {some(index[index.duplicated()].unique())}", stacklevel=3)
        if controls := list(filter(CRUNCH.is_control, index)):
            warnings.warn(f"{some(controls)} is the control; it is predicted as a knock-out is", stacklevel=3)
        return index.unique()

    def _checked_genes(self, genes: Sequence[str]) -> pd.Index:
        index = _names(genes, "genes_to_predict")
        check_unique(index, "genes_to_predict")
        unknown = check_measured(index, self.genes, "genes_to_predict")
        if len(unknown):
            warnings.warn(f"never measured, predicted as 0: {some(unknown)}", stacklevel=3)
        return index

    def save(self, path: str | Path) -> None:
        """Write the fitted model as HDF5, without pickle. Raises DataError for an attribute that cannot be saved."""
        with writing_sealed(Path(path)) as file:
            file.attrs["format"], file.attrs["trained on"] = MODEL_FORMAT, self.trained_on
            if not self.has_proportions:
                file.attrs["proportions"] = False
            write_array(file, "genes", self.genes.to_numpy())
            write_array(file, "files", np.array([*self.files.items()], object).reshape(-1, 2))
            for part in self.PARTS:
                _write_estimator(file.create_group(part), getattr(self, part))

    @classmethod
    def load(cls, path: str | Path, like: Predictor | None = None) -> Predictor:
        """Read a saved model. `like` is a predictor whose classes may be in it, beside the built-in ones.

        Raises DataError for a file that is no saved model, damaged or of another version, for a class that is not
        known, and where `like` is another method than the saved one. Nothing in the file is trusted.
        """
        again = f"delete {path} and train again"
        known = ESTIMATORS | {type(part).__name__: type(part) for part in (like.parts() if like else ())}
        with reading_sealed(Path(path), again) as file:
            if _attribute(file, "format") != MODEL_FORMAT:
                raise DataError(f"{path}: made by another version of method.py; {again}")
            predictor = cls(*(_read_estimator(file[part], known, path) for part in cls.PARTS))
            predictor.genes, predictor.trained_on = pd.Index(read_array(file["genes"])), _attribute(file, "trained on")
            predictor.has_proportions = bool(file.attrs.get("proportions", True))
            predictor.files = dict(read_array(file["files"]).tolist())
        if like is not None and isinstance(predictor.expression, CombinationModel):
            like = replace(like, expression=for_names(like.expression, ["A+B"]))
        if like is not None and (saved := predictor.describe()) != (asked := like.describe()):
            raise DataError(f"{path}: the saved model is {saved}, but the method is now {asked}; train again")
        return predictor

    def parts(self) -> tuple[MeanEstimator, ProportionEstimator, CellGenerator]:
        """The three parts, in order."""
        return self.expression, self.proportions, self.cells

    def describe(self) -> str:
        """The parts with their parameters: `ResponseModel(rank=120, ...), MedianProportions(), ...`."""
        return ", ".join(_describe(part) for part in self.parts())


def _names(given: Sequence[str], what: str) -> pd.Index:
    """The names that are asked for. Raises DataError where there are none, or some are no texts: NaN, say."""
    names = [given] if isinstance(given, str) else list(given)
    if odd := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise DataError(f"{what} holds {some(map(repr, odd))}, which is no name; take it out")
    if not names:
        raise DataError(f"{what} is empty: there is nothing to predict")
    return pd.Index(names)


def _describe(estimator: Any) -> str:
    """`PCARidge(alpha=0.1, ...)`: the arguments of `__init__` that the instance keeps under their names."""
    names, kept = inspect.signature(type(estimator)).parameters, vars(estimator)
    settings = {name: kept[name] for name in names if name in kept}
    shown = [f"{name}={value!r}" for name, value in settings.items() if isinstance(value, bool | int | float | str)]
    return f"{type(estimator).__name__}({', '.join(shown)})"


def checked_prediction(estimator: Any, targets: Sequence[str], columns: Sequence[str], what: str) -> pd.DataFrame:
    """What `estimator` predicts, with its rows in order. Raises DataError where it breaks its contract."""
    name, names = f"{type(estimator).__name__}.predict", pd.Index(targets)
    return _checked_table(estimator.predict(names), name, names, columns, what)


def _checked_table(table: Any, name: str, names: pd.Index, columns: Sequence[str], what: str) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"{name} gave a {type(table).__name__}; it must give a DataFrame, targets x {what}")
    check_unique(table.columns, f"{name}: columns")
    if list(table.index) != list(names):
        raise DataError(
            f"{name} gave {len(table)} rows ({some(table.index, 3)}); it must give one row per target, in order "
            f"({len(names)}: {some(names, 3)})"
        )
    if missing := list(pd.Index(columns).difference(table.columns)):
        raise DataError(f"{name}: no column {some(missing)}; the columns must be {what}")
    if text := [column for column, dtype in table.dtypes.items() if dtype.kind not in "biuf"]:
        raise DataError(f"{name}: the columns {some(text)} do not hold numbers")
    finite = np.isfinite(table.to_numpy(np.float64)).all(axis=1)
    if not finite.all():
        raise DataError(f"{name}: missing or infinite values for {some(names[~finite])}")
    return table


def checked_shares(estimator: Any, targets: Sequence[str]) -> pd.DataFrame:
    """What `estimator` predicts of the states, checked and made valid: targets x pre_adipo, adipo, lipo, other."""
    table = checked_prediction(estimator, targets, CRUNCH.shares, "the states")
    if not {CRUNCH.part, CRUNCH.ratio} & set(table.columns):
        raise DataError(f"{type(estimator).__name__}.predict: no column {CRUNCH.ratio}, and no {CRUNCH.part} either")
    return constrain_proportions(table)


def checked_scale(estimator: Any, targets: Sequence[str]) -> pd.DataFrame | None:
    """What `estimator` expects of its own errors: targets x `error` and `pearson`. None without a `predict_scale`."""
    if not hasattr(estimator, "predict_scale"):
        return None
    name, names = f"{type(estimator).__name__}.predict_scale", pd.Index(targets)
    return _checked_table(estimator.predict_scale(names), name, names, EXPECTED_COLUMNS, "`error` and `pearson`")


# ---------------------------------------------------------------------------------------------------------------------
# Saving and loading: every attribute of an estimator, without pickle
# ---------------------------------------------------------------------------------------------------------------------

ESTIMATORS: dict[str, type] = {
    cls.__name__: cls
    for cls in [
        ControlMean,
        PerturbedMean,
        PCARidge,
        ResponseModel,
        CombinationModel,
        DeltaMean,
        Added,
        MedianProportions,
        GaussianCells,
        ScaledCells,
        RecentredCells,
    ]
}


def _check_can_be_saved(estimator: Any, before: str) -> None:
    """Raises DataError for what would not come back; `before` is how the estimator was described before its fit."""
    name, after = type(estimator).__name__, _describe(estimator)
    if name in ESTIMATORS and type(estimator).__module__ != ESTIMATORS[name].__module__:
        raise DataError(f"{name} is the name of a built-in estimator too; give your class another one")
    if after != before:
        raise DataError(f"{name}.fit changed its own parameters, {before} to {after}; keep what is learned elsewhere")
    for attribute, value in vars(estimator).items():
        _kind(value, f"{name}.{attribute}")


def _kind(value: Any, where: str) -> str:
    """How a value is saved. Raises DataError, which names it, for one that would not come back as it is."""
    if value is None:
        return "none"
    if isinstance(value, bool | int | float | str | np.bool_ | np.integer | np.floating):
        if "\0" in str(value) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            raise DataError(f"{where}: neither integers beyond 64 bits nor texts with the character 0 can be saved")
        # The type of numpy's own numbers decides how exact the arithmetic is.
        return "number" if isinstance(value, np.generic) and not isinstance(value, str) else "scalar"
    kinds = {pd.DataFrame: "table", pd.Series: "column", pd.Index: "index"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(value, cls)), None)
    if type(value) is np.ndarray:  # a masked array would lose its mask
        kind = "array"
    if kind is None:
        raise DataError(
            f"{where} is a {type(value).__name__}, which cannot be saved; keep tables, arrays, numbers, texts or None "
            "(of a fitted scikit-learn model its arrays, such as coef_ and intercept_)"
        )
    for part in _labelled(value).values():
        if isinstance(part, pd.MultiIndex):
            raise DataError(f"{where}: an index of several levels cannot be saved; join its names")
        dtypes = part.dtypes.unique() if isinstance(part, pd.DataFrame) else [part.dtype]
        own = [dtype for dtype in dtypes if not isinstance(dtype, np.dtype | pd.StringDtype)]  # categories, say
        array = np.asarray(part)
        is_text = array.dtype.kind not in "biuf" and all(isinstance(x, str) and "\0" not in x for x in array.flat)
        if own or len(dtypes) > 1 or not (is_text or array.dtype.kind in "biuf"):
            raise DataError(
                f"{where} holds {some(dtypes)}; keep numbers and texts apart, one type in each, none missing"
            )
        if isinstance(part, pd.Series | pd.Index):
            _kind(part.name, f"{where}: the name of its values or index")
    return kind


def _labelled(value: Any) -> dict[str, Any]:
    """The parts of a table, column, index or array: its values, and the index and columns that it has."""
    if isinstance(value, pd.DataFrame):
        return {"values": value, "index": value.index, "columns": value.columns}
    return {"values": value, "index": value.index} if isinstance(value, pd.Series) else {"values": value}


def _write_estimator(group: h5py.Group, estimator: Any) -> None:
    """The class's name and every attribute of the instance, each with its kind."""
    group.attrs["class"] = type(estimator).__name__
    for name, value in vars(estimator).items():
        part = group.create_group(name)
        part.attrs["kind"] = kind = _kind(value, f"{type(estimator).__name__}.{name}")
        if kind in ("scalar", "number"):
            part.attrs["value"] = value
        elif kind != "none":
            for label, values in _labelled(value).items():
                _write_values(part, label, values)


def _write_values(group: h5py.Group, label: str, values: Any) -> None:
    array = np.asarray(values)
    write_array(group, label, np.atleast_1d(array))  # HDF5 compresses no scalar
    attributes = group[label].attrs
    if array.ndim == 0:
        attributes["scalar"] = True
    if array.dtype.kind == "U":
        attributes["fixed length"] = True
    if isinstance(values, pd.Series | pd.Index) and values.name is not None:
        attributes["name"] = values.name


def _read_estimator(group: h5py.Group, known: dict[str, type], path: str | Path) -> Any:
    name = _attribute(group, "class")
    if name not in known:
        raise DataError(
            f"{path}: holds the estimator {name}, which is not a built-in one ({some(ESTIMATORS)}). Say what it is: "
            f"`infer(..., predictor=Predictor(...))` or `Predictor.load(path, like=Predictor(...))` with {name} in it"
        )
    estimator: Any = object.__new__(known[name])  # its __init__ might ask for what is not saved
    if hidden := [attribute for attribute in group if hasattr(known[name], attribute)]:
        raise ValueError(f"{some(hidden)} would hide what {name} has")
    vars(estimator).update({attribute: _read_value(part) for attribute, part in group.items()})
    return estimator


def _attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute that is one number or one text; ValueError for any other, before it is read."""
    stored = item.attrs.get_id(name)
    if stored.shape != () or not (stored.dtype.kind in "biuf" or h5py.check_string_dtype(stored.dtype)):
        raise ValueError(f"{name} is neither a number nor a text")
    return item.attrs[name]


def _read_value(part: h5py.Group) -> Any:
    kind = _attribute(part, "kind")
    if kind == "none":
        return None
    if kind in ("scalar", "number"):
        value = _attribute(part, "value")
        return value.item() if kind == "scalar" and isinstance(value, np.generic) else value
    values, name = _read_values(part["values"])
    if kind == "array":
        return values
    if kind == "index":
        return _read_index(part["values"])
    index = _read_index(part["index"])
    if kind == "column":
        return pd.Series(values, index, name=name)
    return pd.DataFrame(values, index, _read_index(part["columns"]))


def _read_index(dataset: h5py.Dataset) -> pd.Index:
    values, name = _read_values(dataset)
    return pd.Index(values, name=name)


def _read_values(dataset: h5py.Dataset) -> tuple[np.ndarray, Any]:
    """The array, and the name of the column or index."""
    values, name = read_array(dataset), _attribute(dataset, "name") if "name" in dataset.attrs else None
    if "fixed length" in dataset.attrs:
        values = values.astype(str)
    if "scalar" in dataset.attrs:
        values = values.reshape(())
    return values, name.item() if isinstance(name, np.generic) else name


# ---------------------------------------------------------------------------------------------------------------------
# What the platform calls
# ---------------------------------------------------------------------------------------------------------------------


def fit_predictor(
    challenge: Challenge,
    predictor: Predictor | None = None,
    *,
    features: str | Path | None = None,
    screens: str | Path | None = None,
    seed: int = 0,
) -> Predictor:
    """Fit a method (default: `Predictor.default()`) to the training cells of a challenge folder; returns a fitted copy.

    `features` is a folder of the user's own feature tables (`knowledge.read_features`), `screens` one of other screens
    (`screens.read_screens`); `seed` draws the control cells from which the base is herded and co-expression is
    computed.
    """
    predictor = copy.deepcopy(predictor) if predictor is not None else Predictor.default()
    size, n_perturbations = challenge.train_path.stat().st_size, len(challenge.perturbations)
    memory = (64 * n_perturbations + 12 * POOL_CELLS) * len(challenge.genes) + 330 * len(challenge.obs) + 0.4e9
    print(
        f"Training on {len(challenge.obs):,} cells x {len(challenge.genes):,} genes ({text_size(size)} on disk), "
        f"{n_perturbations} perturbations. It takes {text_time(2 + size / READ_PER_SECOND)} and about "
        f"{text_size(memory)} of memory."
    )
    perturbations = challenge.perturbations.union(challenge.targets).union(challenge.local_targets)
    names, wanted = genes_in(perturbations), genes_in(challenge.targets)
    if len(unmeasured := wanted[~wanted.isin(challenge.genes)]):
        warnings.warn(
            f"{CRUNCH.targets_file}: {len(unmeasured)} of {len(wanted)} are no genes of the training cells, "
            f"so only their names and your own tables say anything of them: {some(unmeasured)}",
            stacklevel=2,
        )
    own = read_features(features, names) if features is not None else {}
    elsewhere = read_screens(screens, names) if screens is not None else {}
    if both := sorted(own.keys() & elsewhere.keys()):
        raise DataError(f"{some(both)}: in {features} and in {screens}; rename one of each two")
    stats = perturbation_stats(challenge.train_path)
    pool = read_cells(challenge.train_path, pool_rows(challenge.obs, seed))
    with threadpool_limits(1):
        knowledge = training_knowledge(stats, pool, challenge.signatures, names)
    knowledge = replace(knowledge, tables=knowledge.tables | own, screens=elsewhere)
    predictor.fit(stats, challenge.proportions, pool, knowledge)
    predictor.trained_on = fingerprint(challenge.train_path)
    _say_what_is_known(challenge, knowledge, predictor.expression)
    if isinstance(predictor.expression, CombinationModel):
        print(f"  {predictor.expression.describe()}")
    return predictor


READ_PER_SECOND = 1e9  # bytes of a training file, of which the layer of counts is not read


def _say_what_is_known(challenge: Challenge, knowledge: GeneKnowledge, model: Any) -> None:
    """One line per table and screen: whose knock-outs it knows, what it adds out of fold, and its learned weight."""
    weights, transfers, judged = (getattr(model, name, None) for name in ("weights_", "transfers_", "judged_"))
    known = {name: table.genes for name, table in knowledge.tables.items()}
    known |= {name: screen.perturbations for name, screen in knowledge.screens.items()}
    for name, genes in known.items():
        training, predicted = (
            f"{names.isin(genes).sum()} of {len(names)}"
            for names in (genes_in(challenge.perturbations), genes_in(challenge.targets))
        )
        line = f"  {name}: knows {training} training and {predicted} predicted knock-outs"
        if judged is not None and name in judged.index:
            line += f"; adds {judged.loc[name, 'gain']:+.3f} ± {judged.loc[name, 'standard_error']:.3f} out of fold"
            if not judged.loc[name, "enters"]:
                line += "; left out"
            elif weights is not None and name in weights:
                line += f"; weight {weights[name]:.2g}"
                line += f"; transfer {transfers[name]:.2f}" if transfers is not None and name in transfers else ""
        print(line)
    if judged is not None and len(judged) and not judged["enters"].any():
        print("  None enters: together they are not clearly better than the one direction that all knock-outs share.")


def train(
    data_directory_path: str | Path,
    model_directory_path: str | Path,
    *,
    seed: int = 0,
    predictor: Predictor | None = None,
) -> Predictor:
    """Fit a method (default: `Predictor.default()`) on the data folder and save it into the model folder.

    Uses the feature tables in the model folder's `features/` and the screens in its `screens/`, where there are any.
    Beside the model it writes `expected.csv`, where the method has a `predict_scale`: for each target, how large an
    error and which Pearson correlation it expects. A model folder that cannot be written to costs a warning, not the
    fitted model, which is returned.
    """
    challenge, folder = load_challenge(data_directory_path), Path(model_directory_path)
    files = file_digests(folder)
    fitted = fit_predictor(
        challenge, predictor, features=folder / FEATURES_FOLDER, screens=folder / SCREENS_FOLDER, seed=seed
    )
    fitted.files = files
    with threadpool_limits(1):
        expected = checked_scale(fitted.expression, challenge.targets)
    path = folder / MODEL_FILE
    try:
        fitted.save(path)
        _write_expected(folder / EXPECTED_FILE, expected)
    except DataError as error:
        warnings.warn(f"the model was fitted but not saved: {error}", stacklevel=2)
        return fitted
    Predictor.load(path, like=predictor)  # what cannot be loaded fails here, not in the cloud
    print(f"Saved {path} ({text_size(path.stat().st_size)}).")
    return fitted


def _write_expected(path: Path, expected: pd.DataFrame | None) -> None:
    """The method's own expectation of its errors; an older method's is removed where this one has none."""
    if expected is None:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        expected.rename_axis(CRUNCH.perturbation).to_csv(temporary)


def warn_of_other_files(fitted: Predictor, path: Path) -> None:
    """Warn where the tables and screens beside a saved model, `path`, are others than those it was trained with."""
    then, now = fitted.files, file_digests(path.parent)
    changes = {
        "added": now.keys() - then.keys(),
        "changed": {name for name in now.keys() & then.keys() if now[name] != then[name]},
        "removed": then.keys() - now.keys(),
    }
    if found := "; ".join(f"{what}: {some(sorted(names))}" for what, names in changes.items() if names):
        warnings.warn(
            f"{path}: trained with other files than {path.parent} now holds, and does not know of that ({found}); "
            "train again, or put them back as they were",
            stacklevel=3,
        )


def infer(
    data_directory_path: str | Path,
    prediction_directory_path: str | Path,
    prediction_h5ad_file_path: str | Path,
    program_proportion_csv_file_path: str | Path,
    model_directory_path: str | Path,
    predict_perturbations: Sequence[str],
    genes_to_predict: Sequence[str],
    cells_per_perturbation: int = CRUNCH.cells_per_perturbation,
    *,
    seed: int = 0,
    predictor: Predictor | None = None,
) -> None:
    """Predict with the saved model, which is all it needs; with an empty model folder it trains first.

    `seed` and `predictor` are what was given to `train`. A warning names the feature tables and screens in the model
    folder that were added, changed or removed since: the saved model does not know of that. Raises DataError when the
    saved model is another one, or was trained on other cells than those of the data folder, where it holds any, and for
    an output that is an input.
    """
    folder, data = Path(model_directory_path), Path(data_directory_path)
    path, outputs = folder / MODEL_FILE, (prediction_h5ad_file_path, program_proportion_csv_file_path)
    inputs = [path, *(data / name for name in CRUNCH.data_files), *(folder / name for name in used_files(folder))]
    for output in outputs:
        if Path(output).resolve() in [file.resolve() for file in inputs]:
            raise DataError(f"{output}: an input, which would be overwritten; name another file")
    if len({Path(output).resolve() for output in outputs}) < len(outputs):
        raise DataError(f"{output}: the cells and the proportions cannot both be written there; name two files")
    if path.exists():
        fitted, cells = Predictor.load(path, like=predictor), data / CRUNCH.train_file
        if fitted.trained_on and cells.exists() and fingerprint(cells) != fitted.trained_on:
            raise DataError(f"{path}: trained on other cells than those of {cells}; delete it and train again")
        warn_of_other_files(fitted, path)
    else:
        print(f"No {path}: training first.")
        fitted = train(data_directory_path, model_directory_path, seed=seed, predictor=predictor)
    fitted.write(
        prediction_h5ad_file_path,
        program_proportion_csv_file_path,
        predict_perturbations,
        genes_to_predict,
        cells_per_perturbation=cells_per_perturbation,
    )
