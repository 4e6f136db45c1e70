"""A file of a screen: its labels, its genes by name and the kind of its values; the matrix stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from contract import CRUNCH
from helpers import DataError, open_element, some
from workbench.adoption.labels import gene_names, similar
from workbench.adoption.values import COUNTS, kind_of


@dataclass(frozen=True)
class Source:
    """A file of the screen: where its matrix is, what kind of values it holds, and what is known of its cells.

    `labels` and `states` have one text per cell, categorical; `genes` one name per column of the matrix.
    """

    path: Path
    element: str  # "X" or "layers/NAME"
    shape: tuple[int, int]
    labels: pd.Series
    states: pd.Series | None
    cells: np.ndarray
    genes: pd.Index
    ids: pd.Index  # as `var` has them
    kind: str


def read_source(path: Path, element: str, perturbation: str, states: str | None) -> Source:
    """A file's labels in the columns `perturbation` and `states` of obs; `element` is "X" or "layers/NAME".

    Raises DataError for what is not there or cannot be read, and for values that are neither counts nor normalised.
    """
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in ("obs", "var") if name not in file]:
                raise DataError(f"{path}: has no {some(missing)}; it is not an AnnData file")
            labels = _column(file["obs"], perturbation, path, "--perturbation")
            in_state = None if states is None else _column(file["obs"], states, path, "--states")
            cells, var = _index(file["obs"]), read_elem(file["var"])
            layers = list(file["layers"]) if "layers" in file else []
            if element not in file:
                beside = f"there are {some(layers)}" if layers else "there are none"
                raise DataError(
                    f"{path}: no layer {element.removeprefix('layers/')}{similar(element[7:], layers)}; {beside}"
                )
            if not hasattr(file[element], "shape") and "encoding-type" not in file[element].attrs:
                raise DataError(f"{path}: written by an old anndata; read it and write it again once")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable .h5ad file ({error})") from error
    with open_element(path, element) as matrix:
        if matrix.shape != (len(labels), len(var)):
            raise DataError(f"{path}: {element} is {matrix.shape}, but obs and var are {(len(labels), len(var))}")
        kind = kind_of(matrix, f"{path}: {element}", layers)
    if in_state is not None and (unknown := sorted(set(in_state.cat.categories) - set(CRUNCH.states))):
        raise DataError(
            f"{path}: obs['{states}'] holds {some(unknown)}; the states that can be predicted are "
            f"{some(CRUNCH.states)}: name them so, or leave --states out"
        )
    ids = pd.Index(var.index.astype(str))
    return Source(path, element, matrix.shape, labels, in_state, cells, gene_names(var), ids, kind)


def _column(obs: Any, name: str, path: Path, option: str) -> pd.Series:
    """A column of `obs` as categorical texts, without reading the others."""
    whole = not isinstance(obs, h5py.Group) or "__categories" in obs  # as old versions of anndata wrote it
    columns = list(read_elem(obs).columns) if whole else [key for key in obs if key != obs.attrs.get("_index")]
    if name not in columns:
        raise DataError(f"{path}: obs has no column {name} ({option}){similar(name, columns)}; it has {some(columns)}")
    values = pd.Series(np.asarray(read_elem(obs)[name]) if whole else read_elem(obs[name]))
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    return values.cat.rename_categories([str(value) for value in values.cat.categories])


def _index(obs: Any) -> np.ndarray:
    if isinstance(obs, h5py.Group) and obs.attrs.get("_index") in obs:
        return np.asarray(read_elem(obs[obs.attrs["_index"]]), object)
    return np.asarray(read_elem(obs).index, object)


def shared_genes(screen: Sequence[Source]) -> pd.Index:
    """The genes that all files have, in the order of the first. Raises DataError for twice the same normalised gene."""
    shared = screen[0].genes.unique()
    for source in screen:
        double = source.genes[source.genes.duplicated()].unique()
        if len(double) and source.kind != COUNTS:
            raise DataError(
                f"{source.path}: genes that stand twice, {some(double)}, can be added up where there are counts alone; "
                "give the counts (--layer), or keep one of each"
            )
        shared = shared[shared.isin(source.genes)]
    if len(shared) < 2:
        raise DataError(
            f"{some(source.path for source in screen)}: have {len(shared)} genes in common; are names alike?"
        )
    return shared


def symbols(screen: Sequence[Source]) -> dict[str, str]:
    """The name of each gene by its identifier, where the two differ."""
    pairs = (pair for source in screen for pair in zip(source.ids, source.genes, strict=True))
    return {identifier: name for identifier, name in pairs if identifier != name}
