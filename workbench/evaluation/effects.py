"""Plain effect matrices: perturbations x responses, read from a file and checked at the door.

In: a csv or parquet file, and where several rows are contrasts of one gene a csv that says so. Out: a data frame and
the gene of each row, which `workbench.cross_validate` takes next.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import DataError, check_header, some
from screens import scores_of_ranks
from workbench.commands import one_line

FEWEST = 3  # perturbations; with fewer there is nothing to learn from when one is left out


def genes_of(effects: pd.DataFrame, groups: pd.Series | None, name: str) -> np.ndarray:
    """The gene of each row (contrasts,), after all checks.

    Raises DataError for duplicated rows or columns, text, missing or infinite values, a row without a gene, or fewer
    than 3 genes; `name` is the file in messages.
    """
    for axis, index in (("perturbations", effects.index), ("columns", effects.columns)):
        if index.has_duplicates:
            hint = "; name each contrast and give their genes as groups" if axis == "perturbations" else ""
            raise DataError(f"{name}: duplicated {axis} {some(index[index.duplicated()].unique())}{hint}")
        if (index.astype(str).str.strip() == "").any():
            raise DataError(f"{name}: empty names among the {axis}")
    if text := [column for column in effects if not pd.api.types.is_numeric_dtype(effects[column])]:
        raise DataError(f"{name}: columns that are not numbers: {some(text)}")
    if not_finite := list(effects.columns[~np.isfinite(effects.to_numpy(float)).all(axis=0)]):
        raise DataError(f"{name}: missing or infinite values in the columns {some(not_finite)}")
    genes = effects.index if groups is None else effects.index.map(groups)
    if missing := list(effects.index[genes.isna()]):
        raise DataError(f"{name}: no gene in the groups for the rows {some(missing)}")
    check_enough(genes.unique(), name)
    return genes.astype(str).to_numpy()


def check_enough(names: pd.Index, where: str) -> None:
    """Refuse fewer than 3 perturbations."""
    if len(names) < FEWEST:
        raise DataError(f"{where}: only {len(names)} perturbations ({some(names)}); at least {FEWEST} are needed")


def read_effects(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Perturbations x responses from a csv (first column: the perturbation) or parquet file (index or first column).

    Ranks, as some screens are published, become scores (`screens.scores_of_ranks`); a printed line says so.
    """
    path = Path(path)
    readers = {".csv": partial(pd.read_csv, converters={0: str}), ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: not a file of effects; use .csv or .parquet")
    _check_file(path)
    try:
        table = readers[path.suffix](path)
    except (OSError, ValueError, ImportError) as error:  # ImportError: parquet needs pyarrow
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {one_line(error)}") from error
    if path.suffix == ".csv":
        check_header(table.columns, path)
    if table.shape[1] > 0 and (path.suffix == ".csv" or isinstance(table.index, pd.RangeIndex)):
        table = table.set_index(table.columns[0])
    if table.shape[1] < 2:
        raise DataError(
            f"{path}: {table.shape[1]} columns beside the names of the perturbations; at least 2 responses are needed, "
            "and in a csv commas between them"
        )
    table = table.set_axis(table.index.astype(str), axis=0).set_axis(table.columns.astype(str), axis=1)
    is_number = all(pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes)
    scores = scores_of_ranks(table) if is_number else None
    if scores is None:
        return table
    print(f"{path}: ranks (1 is the strongest of k) are turned into scores, (k + 1 - rank) / k.")
    return scores


def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would wait for ever
        raise DataError(f"{path}: {'not a' if path.exists() else 'no such'} file")


def read_groups(path: str | os.PathLike[str]) -> pd.Series:
    """The gene of each perturbation: a csv with the perturbation first and the gene second."""
    _check_file(Path(path))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as csv: {one_line(error)}") from error
    if table.shape[1] < 2:
        raise DataError(f"{path}: two columns are needed, the perturbation and its gene; it has {some(table.columns)}")
    groups = table.set_index(table.columns[0])[table.columns[1]]
    if groups.index.has_duplicates:
        repeated = groups.index[groups.index.duplicated()].unique()
        raise DataError(f"{path}: column {table.columns[0]}: duplicated {some(repeated)}")
    return groups
