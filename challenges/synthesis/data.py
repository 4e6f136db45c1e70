"""The door: a file of labelled cells in, counts (or values) with labels out, and synthetic cells back into a file.

In: an `.h5ad` with a label column, `pbmc68k_reduced` (ships with scanpy), or the challenge's `train_cite_inputs.h5`
with `metadata.csv` beside it, read in chunks. Out: `Cells`, whose matrix holds counts wherever counts can be recovered,
and a `Scale` that puts counts back on the file's own scale. Next: `folds`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import hdf5plugin  # noqa: F401 - teaches h5py the filters that pandas writes with, blosc among them
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from challenges.common import checked_matrix, read_csv, read_h5ad
from challenges.synthesis.scale import Scale, recover
from contract import CRUNCH
from helpers import DataError, some, text_size
from workbench.commands import one_line
from workbench.validate import stored_elsewhere

EMBEDDED = "pbmc68k_reduced"
EMBEDDED_LABEL = "bulk_labels"
LABEL = "cell_type"
CHUNK = 1000  # cells: 88 MB at the challenge's 22,050 genes
HIDDEN = "hidden"  # the challenge's name for a label that it does not give
METADATA = "metadata.csv"
UNS = "synthesis"  # where a file says which model made it
STATE = "state"  # the label made of the crunch's four columns of cell states


@dataclass(frozen=True)
class Cells:
    """Labelled cells of one file.

    `counts` (cells x genes, CSR, float32) are counts, or the file's own values where `scale.kind` is "values"; `steps`
    (cells) is what one count is worth before the logarithm (1 for raw counts). `obs` has the column `label`, and one
    column of texts a condition (donor, day, ...). Names of cells and genes are unique.
    """

    counts: sp.csr_matrix
    steps: np.ndarray
    obs: pd.DataFrame
    genes: pd.Index
    scale: Scale
    source: str

    def __post_init__(self) -> None:
        for names, what in ((self.genes, "genes"), (self.obs.index, "cells")):
            if names.has_duplicates:
                twice = some(names[names.duplicated()].unique())
                raise DataError(
                    f"{self.source}: {what} that come twice: {twice}; rename them (anndata: "
                    "var_names_make_unique, obs_names_make_unique)"
                )

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def labels(self) -> np.ndarray:
        """The type of each cell, as texts."""
        return self.obs["label"].to_numpy()

    @property
    def types(self) -> list[str]:
        """The types, sorted."""
        return sorted(set(self.labels))

    @property
    def conditions(self) -> list[str]:
        """The columns of obs beside the label."""
        return [name for name in self.obs if name != "label"]

    def take(self, rows: np.ndarray) -> Cells:
        """These rows (numbers or a mask)."""
        return replace(self, counts=self.counts[rows], steps=self.steps[rows], obs=self.obs.iloc[rows])

    def for_genes(self, genes: Sequence[str]) -> Cells:
        """These cells on these genes, in this order. Raises DataError for genes that the file does not have."""
        if missing := [name for name in genes if name not in self.genes]:
            raise DataError(f"{self.source}: not the genes of the model; missing here: {some(missing)}")
        return replace(self, counts=self.counts[:, self.genes.get_indexer(pd.Index(genes))], genes=pd.Index(genes))

    def values(self) -> np.ndarray:
        """Cells x genes on the file's own scale, float32."""
        return self.scale.values(self.counts.toarray(), self.steps)

    def fingerprint(self) -> str:
        """A hash of cells, labels and values: tells whether a checkpoint or a model belongs to these cells."""
        digest, counts = hashlib.sha256(), self.counts.sorted_indices()
        for part in (counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64), self.steps):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update("\n".join([*self.obs.index, *map(str, self.obs.to_numpy().ravel()), *self.genes]).encode())
        return digest.hexdigest()[:16]


def read(
    source: str | os.PathLike[str], label: str | None = None, conditions: Sequence[str] = (), *, drop_rare: bool = False
) -> Cells:
    """Read a file of labelled cells; `label` defaults to `cell_type` (`bulk_labels` for the embedded data).

    Raises DataError for a missing or unreadable file or column, a numeric or incomplete label, NaN, infinite or
    negative values, names that come twice, and a type with a single cell unless `drop_rare` leaves it out.
    """
    if str(source) == EMBEDDED:
        import scanpy  # noqa: PLC0415 - 60 MB that other files do without

        adata = scanpy.datasets.pbmc68k_reduced()
        cells = from_anndata(adata, label or EMBEDDED_LABEL, conditions, EMBEDDED)
    elif not Path(source).is_file():
        what = "a folder, or no plain file" if Path(source).exists() else "no such file"
        raise DataError(f"{source}: {what}; name an .h5ad, train_cite_inputs.h5, or {EMBEDDED}")
    elif Path(source).suffix == ".h5ad":
        cells = from_anndata(read_h5ad(source), label or LABEL, conditions, str(source))
    else:
        cells = read_cite(Path(source), label or LABEL, conditions)
    return _with_enough_cells(cells, drop_rare)


def gene_names(source: str | os.PathLike[str], known: pd.Index) -> pd.Index:
    """The genes of a file in its order, without its cells; of X and `raw`, those of which more are `known`.

    Raises DataError for a missing or unreadable file, and genes that come twice.
    """
    path = Path(source)
    if str(source) == EMBEDDED:
        return read(source).genes
    if path.suffix == ".h5ad":
        adata = read_h5ad(path, backed="r")
        there = [adata.var_names, *([adata.raw.var_names] if adata.raw is not None else [])]
        genes = max(there, key=lambda names: names.isin(known).sum()).astype(str)
    elif not path.is_file():
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name an .h5ad or {EMBEDDED}")
    else:
        try:
            with h5py.File(path, "r") as file:
                _check_within(file, path)
                genes = pd.Index(_axis(_frame(file, path)["axis0"], path))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path}: not an HDF5 file, or a broken one ({one_line(error)})") from error
    if genes.has_duplicates:
        raise DataError(f"{path}: genes that come twice: {some(genes[genes.duplicated()].unique())}")
    return genes


def from_anndata(adata: ad.AnnData, label: str, conditions: Sequence[str] = (), source: str = "AnnData") -> Cells:
    """Take labelled cells that are in memory; errors are those of `read`, which calls it.

    Of X, `raw` and `layers["counts"]` the first is taken that holds counts. Normalised values hold them where every
    value of a cell is a multiple of one step. Where none of the three does, X (or `raw`, where X is scaled) is taken as
    values. The crunch's own files can be labelled by `state`.
    """
    obs = _labels(_with_state(adata.obs), label, conditions, source)
    candidates: list[tuple[str, Any, pd.Index]] = [("X", adata.X, adata.var_names)]
    if adata.raw is not None:
        candidates.append(("raw.X", adata.raw.X, adata.raw.var_names))
    if "counts" in adata.layers:
        candidates.append(("layers['counts']", adata.layers["counts"], adata.var_names))
    taken, complaints = None, []
    for place, X, genes in candidates:
        if X is None:
            continue
        try:
            matrix = _checked(X, f"{source}: {place}", adata.obs_names)
            _check_amounts(matrix, f"{source}: {place}")
        except DataError as error:
            complaints.append(error)
            continue
        scale, counts, steps = recover(matrix)
        if taken is None or scale.kind != "values":
            taken = scale, counts, steps, genes, place
        if scale.kind != "values":
            break
    if taken is None:
        there = some(adata.layers) or "none"
        raise (
            complaints[0]
            if complaints
            else DataError(f"{source}: no values in X, raw or layers['counts']; there are the layers: {there}")
        )
    scale, counts, steps, genes, place = taken
    cells = Cells(counts, steps, obs, pd.Index(genes.astype(str)), scale, source)
    if len(genes) < 2:
        raise DataError(f"{source}: {len(genes)} genes in {place}; at least 2 are needed")
    print(f"{source}: {len(cells):,} cells x {len(genes):,} genes from {place}, {len(cells.types)} types; {scale}")
    return _without_empty(cells)


def to_anndata(
    cells: Cells, label: str, weights: np.ndarray | None = None, about: dict[str, Any] | None = None
) -> ad.AnnData:
    """Cells as AnnData: X on the file's own scale, `layers["counts"]` where counts are known, labels in `obs[label]`.

    `weights` (cells x types, as in `about["types"]`) go into `obsm["label_weights"]`, `about` into `uns["synthesis"]`.
    """
    obs = cells.obs.rename(columns={"label": label}).astype("category").rename_axis(index=None)
    made = ad.AnnData(sp.csr_matrix(cells.values()), obs=obs, var=pd.DataFrame(index=cells.genes))
    if cells.scale.kind != "values":
        made.layers["counts"] = cells.counts.copy()
    if weights is not None:
        made.obsm["label_weights"] = weights
    made.uns[UNS] = about or {}
    return made


def one_hot(names: np.ndarray, among: list[str]) -> np.ndarray:
    """Rows of an identity matrix, float64: names x among."""
    return (names[:, None] == np.array(among, object)[None, :]).astype(float)


def level_names(cells: Cells) -> list[tuple[str, str]]:
    """(condition, level) of every condition, sorted."""
    return [(name, level) for name in cells.conditions for level in sorted(set(cells.obs[name]))]


def level_matrix(obs: pd.DataFrame, levels: list[tuple[str, str]]) -> np.ndarray:
    """Cells x levels, 0 or 1."""
    columns = [(obs[name] == level).to_numpy(float) for name, level in levels]
    return np.stack(columns, axis=1) if columns else np.zeros((len(obs), 0))


# ---------------------------------------------------------------------------------------------------------------------
# The challenge's own files
# ---------------------------------------------------------------------------------------------------------------------


def read_cite(path: Path, label: str, conditions: Sequence[str] = ()) -> Cells:
    """`train_cite_inputs.h5` (pandas' fixed format, one key) and `metadata.csv`, in chunks of CHUNK cells.

    Only a chunk is ever dense. Cells whose label is "hidden" are left out.
    """
    metadata = _read_metadata(path.with_name(METADATA))
    try:
        with h5py.File(path, "r") as file:
            obs, genes, parts = _read_frame(file, path, metadata, label, conditions)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not an HDF5 file, or a broken one ({one_line(error)})") from error
    matrix = sp.vstack(parts, format="csr", dtype=np.float32)
    _check_amounts(matrix, str(path))
    scale, counts, steps = recover(matrix)
    print(f"{path}: {len(obs):,} cells x {len(genes):,} genes, {text_size(matrix.data.nbytes * 2)} in memory; {scale}")
    return _without_empty(Cells(counts, steps, obs, pd.Index(genes), scale, str(path)))


def _read_frame(
    file: h5py.File, path: Path, metadata: pd.DataFrame, label: str, conditions: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray, list[sp.csr_matrix]]:
    """Labels, genes, and the cells with a label that is shown, chunk by chunk."""
    _check_within(file, path)
    group, labels = _frame(file, path), path.with_name(METADATA)
    genes, names = (_axis(group[axis], path) for axis in ("axis0", "axis1"))
    if missing := sorted(set(names) - set(metadata.index)):
        raise DataError(f"{labels}: no row for the cells {some(missing)}")
    about = metadata.loc[names]
    if label not in about:
        raise DataError(f"{labels}: no column {label!r}; there is {some(about.columns)}")
    shown = (about[label] != HIDDEN).to_numpy()
    if not shown.any():
        raise DataError(f"{labels}: the column {label!r} is {HIDDEN!r} in all of the cells of {path.name}")
    obs = _labels(about[shown], label, conditions, str(labels))
    parts = [
        _checked(chunk[shown[rows]], str(path), about.index[rows][shown[rows]])
        for rows, chunk in _chunks(group, genes, path)
    ]
    return obs, genes, parts


def _read_metadata(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise DataError(f"{path}: no such file; it names the cells: cell_id, day, donor, cell_type, technology")
    table = read_csv(path, dtype={"day": str, "donor": str, "cell_id": str, "cell_type": str})
    if "cell_id" not in table:
        raise DataError(f"{path}: no column 'cell_id'; there is {some(table.columns)}")
    if table["cell_id"].duplicated().any():
        raise DataError(f"{path}: cells that come twice: {some(table['cell_id'][table['cell_id'].duplicated()])}")
    return table.set_index("cell_id")


def _frame(file: h5py.File, path: Path) -> h5py.Group:
    groups = [item for item in file.values() if isinstance(item, h5py.Group) and {"axis0", "axis1"} <= set(item)]
    if len(groups) != 1:
        raise DataError(f"{path}: {len(groups)} tables in pandas' fixed format; one was expected (train_cite_inputs)")
    return groups[0]


def _check_within(file: h5py.File, path: Path) -> None:
    if elsewhere := stored_elsewhere(file):
        raise DataError(f"{path}: {some(elsewhere)} lie in another file; write them into this one")


def _axis(dataset: h5py.Dataset, path: Path) -> np.ndarray:
    if dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype):
        return np.array([item.decode() if isinstance(item, bytes) else str(item) for item in dataset[:]], object)
    raise DataError(f"{path}: {dataset.name} is of {dataset.dtype}, not texts (a pickled index is not read)")


def _chunks(group: h5py.Group, genes: np.ndarray, path: Path) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows and their dense values, blocks put together in the order of `axis0`."""
    blocks = [name.removesuffix("_values") for name in group if name.endswith("_values")]
    position = pd.Series(np.arange(len(genes)), index=genes)
    n = len(group["axis1"])
    columns = {block: position.loc[_axis(group[f"{block}_items"], path)].to_numpy() for block in blocks}
    if sorted(np.concatenate([*columns.values()]) if columns else []) != list(range(len(genes))):
        raise DataError(f"{path}: its blocks do not hold every gene of axis0 once")
    for start in tqdm(range(0, n, CHUNK), desc=f"Reading {path.name}", disable=n <= CHUNK):
        rows = slice(start, min(start + CHUNK, n))
        values = np.empty((rows.stop - start, len(genes)), np.float32)
        for block in blocks:
            values[:, columns[block]] = group[f"{block}_values"][rows]
        yield rows, values


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _with_state(obs: pd.DataFrame) -> pd.DataFrame:
    """With a column `state` where the crunch's columns of 0 and 1 are there; a lipo cell is also an adipo cell."""
    if STATE in obs or not {*CRUNCH.states} <= {*obs}:
        return obs
    state = obs[CRUNCH.shares].astype(int).idxmax(axis=1)
    return obs.assign(**{STATE: state.mask(obs["lipo"].astype(int) == 1, "lipo")})


def _labels(obs: pd.DataFrame, label: str, conditions: Sequence[str], source: str) -> pd.DataFrame:
    if missing := [name for name in (label, *conditions) if name not in obs]:
        raise DataError(f"{source}: no column {some(missing)} in obs; there is {some(obs.columns) or 'none'}")
    if label in conditions:
        raise DataError(f"{source}: {label!r} is the label and cannot be a condition as well")
    if taken := [name for name in conditions if name in ("label", "count")]:
        raise DataError(f"{source}: a condition cannot be called {some(taken)}; rename the column")
    if pd.api.types.is_numeric_dtype(obs[label]):
        raise DataError(
            f"{source}: obs[{label!r}] is numeric, not names of types; choose a column of texts "
            f"(or make it one: obs[{label!r}].astype(str))"
        )
    for name in (label, *conditions):
        if n := int(obs[name].isna().sum()):
            raise DataError(
                f"{source}: obs[{name!r}] has no value (NaN) in {n} of {len(obs)} cells; "
                "leave these cells out, or give them a name"
            )
    columns: Mapping[str, Any] = {"label": obs[label], **{name: obs[name] for name in conditions}}
    table = pd.DataFrame({name: column.astype(str).to_numpy(object) for name, column in columns.items()})
    return table.set_index(obs.index.astype(str).rename("cell"))


def _checked(X: Any, where: str, cells: pd.Index) -> sp.csr_matrix:
    matrix = checked_matrix(X, where, cells)
    if len(matrix.data) and matrix.data.min() < 0:
        raise DataError(
            f"{where} has negative values (down to {matrix.data.min():.3g}): scaled or regressed? "
            "Give counts or log-normalised values, in X, in raw or in layers['counts']"
        )
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def _check_amounts(matrix: sp.csr_matrix, where: str) -> None:
    if matrix.nnz and (matrix.data == 1).all():
        raise DataError(f"{where} holds 0 and 1 only: what is there and what is not, but not how much; give counts")


def _without_empty(cells: Cells) -> Cells:
    empty = np.diff(cells.counts.indptr) == 0
    if empty.all():
        raise DataError(f"{cells.source}: every value is 0")
    if empty.any():
        print(f"{cells.source}: left out cells without a single count: {some(cells.obs.index[empty], 3)}")
        return cells.take(~empty)
    return cells


def _with_enough_cells(cells: Cells, drop_rare: bool) -> Cells:
    n = cells.obs["label"].value_counts()
    rare = sorted(n.index[n < 2])
    if rare and not drop_rare:
        raise DataError(
            f"{cells.source}: types with a single cell, of which nothing about spread can be learned: "
            f"{some(rare)}; merge them, or leave them out with --drop-rare"
        )
    if len(n) == len(rare):
        raise DataError(f"{cells.source}: no type has two cells")
    if rare:
        print(f"{cells.source}: left out types with a single cell: {some(rare)}")
    return cells.take(~np.isin(cells.labels, rare)) if rare else cells
