"""The door: Kaggle's files in, tables with names out, and submissions back.

In: `de_train.parquet` (`cell_type, sm_name`, other columns about the row, then genes), `id_map.csv`, and where present
`sample_submission.csv`. Out: responses (rows x genes, float32, sorted by cell type and compound, so that the order of
the file does not matter), queries (rows of `id_map.csv`), and a submission written beside and renamed. Next: `folds`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from challenges.common import read_csv
from helpers import DataError, replacing, some
from workbench.commands import one_line

KEYS = ["cell_type", "sm_name"]
ABOUT = [*KEYS, "sm_lincs_id", "SMILES", "control"]  # every other column of de_train.parquet is a gene
# Columns of Kaggle's other tables, and of indices that were saved by mistake: numbers, but no genes.
NO_GENES = {
    *("id", "obs_id", "cell_id", "library_id", "donor_id", "plate_name", "well", "row", "col", "split", "batch"),
    *("dose", "dose_um", "timepoint_hr", "replicate", "n_cells", "index", "level_0", "__index_level_0__"),
}
TRAIN_FILE, QUERY_FILE, SAMPLE_FILE = "de_train.parquet", "id_map.csv", "sample_submission.csv"


def read_responses(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Responses, rows (`cell_type`, `sm_name`) x genes, float32, sign(logFC) x -log10(p) or a score like it.

    Raises DataError for a missing file or column, genes that are not numbers or come twice, columns that are known to
    be no genes, rows that come twice, NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}; put Kaggle's {path.name} there")
    try:
        # Where little memory is left, a pool of threads that cannot begin would be waited for for ever.
        table = pd.read_parquet(path, use_threads=False, pre_buffer=False)
    except Exception as error:
        raise DataError(f"{path}: not a parquet file, or a broken one ({one_line(error)})") from error
    table.columns = table.columns.astype(str)
    if missing := [name for name in KEYS if name not in table]:
        raise DataError(f"{path}: no column {some(missing)}")
    genes = table.columns.difference(ABOUT, sort=False)
    if genes.empty:
        raise DataError(f"{path}: no gene columns beside {some(ABOUT)}")
    if genes.has_duplicates:
        raise DataError(f"{path}: genes that come twice: {some(genes[genes.duplicated()].unique())}")
    if odd := [name for name in genes if name.lower() in NO_GENES or name.startswith("Unnamed") or not name.strip()]:
        raise DataError(f"{path}: columns that are no genes: {some(map(repr, odd))}; leave them out of the file")
    if texts := [name for name in genes if not _is_number(table[name].dtype)]:
        raise DataError(f"{path}: gene columns that are not numbers: {some(texts)}")
    labels = _labels(table, path)
    if labels.has_duplicates:
        raise DataError(f"{path}: rows that come twice: {some(_pairs(labels[labels.duplicated()].unique()))}")
    with np.errstate(over="ignore"):  # seen below
        values = table[genes].to_numpy(np.float32, na_value=np.nan)
    if not np.isfinite(values).all():
        rows, columns = ~np.isfinite(values).all(axis=1), ~np.isfinite(values).all(axis=0)
        raise DataError(
            f"{path}: NaN or infinite targets in rows {some(_pairs(labels[rows]))}, genes {some(genes[columns])}"
        )
    return pd.DataFrame(values, labels, genes).sort_index()


def read_queries(path: str | os.PathLike[str]) -> pd.DataFrame:
    """`id_map.csv`: index `id`, columns `cell_type`, `sm_name` and where it is there `SMILES`, in the file's order.

    Raises DataError for a missing file or column, empty labels, and ids or rows that come twice.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; it says which rows to predict (id, cell_type, sm_name)")
    texts = dict.fromkeys(("id", *KEYS, "SMILES"), str)
    table = read_csv(path, dtype=texts, keep_default_na=False)
    if missing := [name for name in ("id", *KEYS) if name not in table]:
        raise DataError(f"{path}: no column {some(missing)}")
    if table.empty:
        raise DataError(f"{path}: no rows to predict")
    labels = _labels(table, path)
    if labels.has_duplicates:
        raise DataError(f"{path}: rows that come twice: {some(_pairs(labels[labels.duplicated()].unique()))}")
    if (table["id"].str.strip() == "").any():
        raise DataError(f"{path}: {(table['id'].str.strip() == '').sum()} rows without an id; give each its own")
    if table["id"].duplicated().any():
        raise DataError(f"{path}: ids that come twice: {some(table['id'][table['id'].duplicated()].unique())}")
    structures_of(table, path)
    return table.set_index("id")[[*KEYS, *(["SMILES"] if "SMILES" in table else [])]]


def read_structures(path: str | os.PathLike[str]) -> pd.Series:
    """SMILES by compound from the column of `de_train.parquet`; without it, none. Raises as `structures_of`."""
    try:
        names = [field.name for field in pq.read_schema(path)]
        return structures_of(pd.read_parquet(path, columns=[n for n in ("sm_name", "SMILES") if n in names]), path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a parquet file, or a broken one ({one_line(error)})") from error


def structures_of(table: pd.DataFrame, where: str | os.PathLike[str]) -> pd.Series:
    """SMILES (texts) by compound, from the columns `sm_name` and `SMILES`; empty ones are left out.

    Raises DataError for SMILES that are not texts, and for a compound with two of them.
    """
    if "SMILES" not in table:
        return pd.Series([], pd.Index([], name="sm_name"), dtype=object)
    found = table[["sm_name", "SMILES"]].dropna()
    if odd := [repr(text) for text in found["SMILES"] if not isinstance(text, str)]:
        raise DataError(f"{where}: column SMILES holds what are no texts: {some(odd)}")
    found = found.assign(SMILES=found["SMILES"].str.strip())
    found = found[found["SMILES"] != ""].drop_duplicates()
    if (twice := found["sm_name"].duplicated()).any():
        raise DataError(f"{where}: compounds with two different SMILES: {some(found['sm_name'][twice].unique())}")
    return found.set_index("sm_name")["SMILES"].sort_index()


def pairs_of(queries: pd.DataFrame) -> pd.MultiIndex:
    """The rows of `queries` as (cell type, compound)."""
    return pd.MultiIndex.from_frame(queries[KEYS])


def codes(pairs: pd.MultiIndex, cell_types: pd.Index, compounds: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of each pair's labels among the known ones, int64; -1 where unknown."""
    return (
        cell_types.get_indexer(pairs.get_level_values("cell_type")).astype(np.int64),
        compounds.get_indexer(pairs.get_level_values("sm_name")).astype(np.int64),
    )


def check_trainable(responses: pd.DataFrame) -> None:
    """Raises DataError where there is nothing to learn a transfer from."""
    if len(cell_types := responses.index.unique("cell_type")) < 2:
        raise DataError(
            f"{TRAIN_FILE}: one cell type only ({some(cell_types)}); a response is carried over from other types"
        )
    if responses.index.unique("sm_name").size < 3:
        raise DataError(f"{TRAIN_FILE}: {responses.index.unique('sm_name').size} compounds; at least 3 are needed")


def fingerprint(responses: pd.DataFrame, pairs: pd.MultiIndex | None = None) -> str:
    """What names this training table: a hash of its rows, genes and values, and of further `pairs` to learn from."""
    digest = hashlib.sha256()
    for text in (*responses.columns, *_pairs(responses.index), *([] if pairs is None else _pairs(pairs))):
        digest.update(str(text).encode() + b"\0")
    digest.update(np.ascontiguousarray(responses.to_numpy(np.float32)).tobytes())
    return digest.hexdigest()[:16]


def check_sample(path: str | os.PathLike[str], queries: pd.DataFrame, genes: pd.Index) -> None:
    """Raises DataError unless `sample_submission.csv` has the ids of `id_map.csv` and the genes of training.

    Their order may differ: a submission is written in the order of `id_map.csv` and of the training genes.
    """
    sample = read_csv(path, dtype={"id": str}, keep_default_na=False)
    if sample.columns[0] != "id":
        raise DataError(f"{path}: the first column is {sample.columns[0]!r}, not 'id'")
    for what, theirs, ours in (("genes", sample.columns[1:], genes), ("ids", pd.Index(sample["id"]), queries.index)):
        if len(odd := theirs.symmetric_difference(ours)):
            raise DataError(f"{path}: {what} that do not agree with {TRAIN_FILE} and {QUERY_FILE}: {some(odd)}")


def write_submission(path: str | os.PathLike[str], queries: pd.DataFrame, prediction: pd.DataFrame) -> None:
    """Write `id` and the genes in their training order; raises DataError for values that are not finite."""
    values = prediction.to_numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{path}: not written, the prediction holds values that are not finite")
    with replacing(Path(path)) as temporary:
        pd.DataFrame(values, pd.Index(queries.index, name="id"), prediction.columns).to_csv(
            temporary, float_format="%.6g"
        )


def _is_number(dtype: Any) -> bool:
    is_number = pd.api.types.is_numeric_dtype(dtype)
    return is_number and not pd.api.types.is_bool_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)


def _labels(table: pd.DataFrame, path: Path) -> pd.MultiIndex:
    labels = table[KEYS].astype(object)
    empty = labels.isna() | (labels == "")
    if empty.to_numpy().any():
        raise DataError(f"{path}: empty labels in column {some(empty.columns[empty.any()])}")
    return pd.MultiIndex.from_frame(labels.astype(str))


def _pairs(labels: pd.MultiIndex) -> list[str]:
    return [f"{compound} in {cell_type}" for cell_type, compound in labels]
