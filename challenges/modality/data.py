"""The door: paired `.h5ad` files in, aligned by name; a predicted modality out, block by block.

In: a folder or the common beginning of files: `*train_mod1.h5ad`, `*train_mod2.h5ad`, `*test_mod1.h5ad` and where known
`*test_mod2.h5ad`, or just two paired files. Out: `Pair`, sparse throughout, and a prediction file that anndata reads.
Next: `reduce`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from helpers import DataError, replacing, some, text_size

MODALITIES = ("GEX", "ATAC", "ADT")
ALIASES = {
    "gex": "GEX",
    "rna": "GEX",
    "gene expression": "GEX",
    "atac": "ATAC",
    "peaks": "ATAC",
    "adt": "ADT",
    "prot": "ADT",
    "protein": "ADT",
    "antibody capture": "ADT",
}
LAYERS = ("normalized", "log_norm")  # in this order, then X
MOST_PEAKS = 10_000  # as the challenge: of accessibility, the most accessible peaks of training are predicted
BLOCK = 2_000_000  # values of a prediction in memory
PARTS = ("train_mod1", "train_mod2", "test_mod1", "test_mod2")
FOLDS = 4
LEAST_CELLS = 20  # to train on: fewer leave nothing for inner folds


@dataclass(frozen=True)
class Pair:
    """Cells with both modalities, and cells with the first. AnnData with a CSR float32 `X`, `obs["batch"]` where known.

    `test_target` is None where the answers are not there; `test_source` where no test cells are.
    """

    mod1: str
    mod2: str
    dataset_id: str
    train_source: ad.AnnData
    train_target: ad.AnnData
    test_source: ad.AnnData | None
    test_target: ad.AnnData | None

    @property
    def asked(self) -> ad.AnnData:
        """The cells to predict. Raises DataError where there are none."""
        if self.test_source is None:
            raise DataError(f"{self.dataset_id}: no test file with {self.mod1}, so there are no cells to predict")
        return self.test_source

    @property
    def answers(self) -> ad.AnnData:
        """The second modality of those cells. Raises DataError where it is not known."""
        if self.test_target is None:
            raise DataError(f"{self.dataset_id}: no test file with {self.mod2}, so predictions cannot be scored")
        return self.test_target


def read_pair(data: str | os.PathLike[str], mod1: str | None = None, mod2: str | None = None) -> Pair:
    """Read and check the files of `data`; `mod1` to `mod2` is the direction, by default that of the files.

    Raises DataError for missing or unpaired files, an unknown modality, other cells, other features, NaN.
    """
    found = _find(Path(data), {name for name in (mod1, mod2) if name})
    train = [_read(found[f"train_{mod}"]) for mod in ("mod1", "mod2")]
    test = [_read(found[name]) if (name := f"test_{mod}") in found else None for mod in ("mod1", "mod2")]
    said = [_modality(cells, found[f"train_{mod}"]) for cells, mod in zip(train, ("mod1", "mod2"), strict=True)]
    names = _named(said, mod1, mod2, found)
    if _direction(names, mod1, mod2, found) != names:
        train, test, names = train[::-1], test[::-1], names[::-1]
    source, target = train
    target = _paired(source, target, "the training files")
    if source.n_obs < LEAST_CELLS:
        raise DataError(f"{data}: {source.n_obs} training cells; at least {LEAST_CELLS} are needed")
    if test[0] is not None:
        test[0] = same_features(test[0], source.var_names, names[0])
    if test[1] is not None:
        test[1] = same_features(test[1], target.var_names, names[1])
        if test[0] is not None:
            test[1] = _paired(test[0], test[1], "the test files")
    if names[1] == "ATAC" and target.n_vars > MOST_PEAKS:
        open_in = np.asarray((target.X > 0).sum(axis=0)).ravel()
        kept = np.sort(np.argsort(-open_in, kind="stable")[:MOST_PEAKS])
        print(f"{names[1]}: the {MOST_PEAKS:,} most accessible of {target.n_vars:,} peaks are predicted")
        target, test[1] = target[:, kept].copy(), test[1][:, kept].copy() if test[1] is not None else None
    _say_oddities(source, names[0], "training")
    _say_oddities(target, names[1], "training")
    if test[0] is not None:
        _say_oddities(test[0], names[0], "test")
    n_batches = int(batches_of(source).max()) + 1
    print(
        f"{names[0]} to {names[1]}: {source.n_obs:,} training cells in {n_batches} batch{'es' * (n_batches > 1)}, "
        f"{source.n_vars:,} to {target.n_vars:,} features"
    )
    file_name = _beginning(found["train_mod1"])[0].rstrip("._") or Path(data).name
    dataset = next((str(cells.uns["dataset_id"]) for cells in train if "dataset_id" in cells.uns), file_name)
    return Pair(names[0], names[1], dataset, source, target, test[0], test[1])


def same_features(cells: ad.AnnData, features: pd.Index, modality: str) -> ad.AnnData:
    """The cells with the features of training, in their order. Raises DataError where one is missing."""
    if len(missing := features.difference(cells.var_names)):
        raise DataError(f"{modality}: {len(missing)} features of training are missing: {some(missing)}")
    if len(extra := cells.var_names.difference(features)):
        print(f"warning: {modality}: {len(extra)} features that training did not have are left out: {some(extra)}")
    return cells if cells.var_names.equals(features) else cells[:, features].copy()


def batches_of(cells: ad.AnnData) -> np.ndarray:
    """The batch of each cell; one batch where `obs["batch"]` is missing."""
    return pd.factorize(batch_names(cells), sort=True)[0]


def batch_names(cells: ad.AnnData) -> np.ndarray:
    """`obs["batch"]` as texts; the same for all where it is missing."""
    return cells.obs["batch"].astype(str).to_numpy() if "batch" in cells.obs else np.full(cells.n_obs, "one batch")


def batch_folds(batch: np.ndarray) -> np.ndarray | None:
    """The fold of each cell, whole batches dealt to at most 4.

    None where there is one batch, or where a fold would leave under a quarter of the cells, or under LEAST_CELLS.
    """
    fold = np.unique(batch, return_inverse=True)[1] % FOLDS
    left = len(batch) - np.bincount(fold).max()
    return fold if left >= max(LEAST_CELLS, len(batch) / 4) else None


def held_out(pair: Pair, seed: int = 0) -> tuple[list[Pair], str]:
    """Pairs with known answers, and how they came about: the test files' answers, else whole batches, else cells."""
    if pair.test_source is not None and pair.test_target is not None:
        known = set(batch_names(pair.train_source))
        new = [name for name in pd.unique(batch_names(pair.test_source)) if name not in known]
        seen = f"of batches that training did not have: {some(new)}" if new else "of the batches of training"
        return [pair], f"the {pair.test_source.n_obs} cells of the test files, {seen}"
    batch = batches_of(pair.train_source)
    fold = batch_folds(batch)
    if fold is not None:
        how = f"whole batches, in {fold.max() + 1} folds"
    else:
        generator = np.random.default_rng(seed)
        fold = np.where(generator.permutation(len(batch)) < len(batch) // 4, 0, -1)
        why = "without one of the batches too few cells are left" if batch.max() else "there is one batch"
        how = f"a quarter of the cells, drawn at random: {why}, so what a new batch costs is not seen"
    splits = []
    for i in np.unique(fold[fold >= 0]):
        source, target = pair.train_source, pair.train_target
        splits.append(
            replace(
                pair,
                train_source=source[fold != i].copy(),
                train_target=target[fold != i].copy(),
                test_source=source[fold == i].copy(),
                test_target=target[fold == i].copy(),
            )
        )
    return splits, how


def write_prediction(
    path: str | os.PathLike[str],
    obs: pd.DataFrame,
    var: pd.DataFrame,
    modality: str,
    block: Callable[[slice], np.ndarray],
    uns: dict[str, str],
) -> None:
    """Write `X` and `layers["normalized"]`, cells x features, float32, by blocks of rows; beside, then renamed."""
    shape = (len(obs), len(var))
    print(f"{path}: {shape[0]:,} cells x {shape[1]:,} features, {text_size(8 * shape[0] * shape[1])} on disk")
    with replacing(Path(path)) as temporary:
        ad.AnnData(obs=obs, var=var.assign(feature_types=modality), uns=dict(uns)).write_h5ad(temporary)
        with h5py.File(temporary, "a") as file:
            file.pop("X", None)
            datasets = [file.create_dataset(name, shape, np.float32) for name in ("X", "layers/normalized")]
            for dataset in datasets:
                dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            step = max(1, BLOCK // max(shape[1], 1))
            for start in tqdm(range(0, shape[0], step), "Predicting", unit="block"):
                rows = slice(start, min(start + step, shape[0]))
                values = block(rows)
                for dataset in datasets:
                    dataset[rows] = values


def _find(data: Path, wanted: set[str]) -> dict[str, Path]:
    """train_mod1, train_mod2 and where there are any test_mod1, test_mod2; of several data sets the one `wanted`."""
    if data.is_file():
        raise DataError(f"{data}: a file; give the folder, or the common beginning of the files' names")
    folder, start = (data, "") if data.is_dir() else (data.parent, data.name)
    files = sorted(folder.glob(f"{start}*.h5ad"))
    if not files:
        raise DataError(f"{data}: no .h5ad files; give the folder, or the common beginning of the files' names")
    sets = _data_sets(files)
    if len(sets) > 1 and wanted:
        sets = {name: found for name, found in sets.items() if wanted <= _modalities(found)} or sets
    if len(sets) > 1:
        raise DataError(f"{data}: several data sets: {some(sets)}; give the beginning of a name")
    if not sets:
        raise DataError(
            f"{data}: neither *train_mod1.h5ad and *train_mod2.h5ad nor two paired files, but "
            f"{some(path.name for path in files)}"
        )
    return next(iter(sets.values()))


def _data_sets(files: list[Path]) -> dict[str, dict[str, Path]]:
    """The files of each data set, by the common beginning of their names."""
    groups: dict[str, dict[str, Path]] = {}
    for path in files:
        beginning, part = _beginning(path)
        groups.setdefault(beginning, {})[part] = path
    sets = {}
    for name, group in groups.items():
        if {"train_mod1", "train_mod2"} <= set(group):
            sets[name] = {part: group[part] for part in PARTS if part in group}
        elif len(group) == 2 and all(part.lower() in ALIASES for part in group):
            sets[name] = dict(zip(PARTS, group.values(), strict=False))
    others = [path for path in files if not path.stem.endswith(PARTS)]
    return sets or ({"": dict(zip(PARTS, others, strict=False))} if len(others) == len(files) == 2 else {})


def _beginning(path: Path) -> tuple[str, str]:
    """A file's name as that of its data set and that of its part."""
    part = next((part for part in PARTS if path.stem.endswith(part)), path.stem.rpartition("_")[2])
    return path.stem.removesuffix(part), part


def _modalities(found: dict[str, Path]) -> set[str | None]:
    """Of the two training files, without their values."""
    return {_modality(_opened(found[name], backed="r"), found[name]) for name in ("train_mod1", "train_mod2")}


def _opened(path: Path, backed: Literal["r"] | None = None) -> ad.AnnData:
    try:
        return ad.read_h5ad(path, backed=backed)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not an h5ad file, or a broken one ({error})") from error


def _read(path: Path) -> ad.AnnData:
    """Normalised values as CSR float32 in `X`; everything else that is large is left out."""
    cells = _opened(path)
    values = next((cells.layers[name] for name in LAYERS if name in cells.layers), cells.X)
    if values is None:
        raise DataError(f"{path}: no X, and none of the layers {some(LAYERS)}")
    values = sp.csr_matrix(values, dtype=np.float32)
    if values.shape[0] == 0 or values.shape[1] < 2:
        raise DataError(f"{path}: {values.shape[0]} cells x {values.shape[1]} features; at least 1 x 2 are needed")
    for what, names in (("cells", cells.obs_names), ("features", cells.var_names)):
        if names.has_duplicates:
            raise DataError(f"{path}: {what} that come twice: {some(names[names.duplicated()].unique())}")
    if not np.isfinite(values.data).all():
        rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
        odd = cells.obs_names[np.unique(rows[~np.isfinite(values.data)])]
        raise DataError(f"{path}: NaN or infinite values in cells {some(odd)}")
    uns = {name: cells.uns[name] for name in ("dataset_id",) if name in cells.uns}
    return ad.AnnData(values, obs=cells.obs, var=cells.var, uns=uns)


def _modality(cells: ad.AnnData, path: Path) -> str | None:
    """What the file says of itself: `var["feature_types"]`, or the last word of its name."""
    if "feature_types" in cells.var:
        types = cells.var["feature_types"].astype(str).unique()
        if len(types) > 1:
            raise DataError(f"{path}: several feature types in one file: {some(types)}; split it by modality")
        if types[0].lower() not in ALIASES:
            raise DataError(f"{path}: unknown feature type {types[0]!r}; known: {some(MODALITIES)}")
        return ALIASES[types[0].lower()]
    return ALIASES.get(path.stem.lower().rpartition("_")[2])


def _named(names: list[str | None], mod1: str | None, mod2: str | None, found: dict[str, Path]) -> list[str]:
    """Both modalities; what a file does not say is taken from the direction that was asked for."""
    if names == [None, None]:
        names = [mod1, mod2]
    elif None in names:
        known = names[1] or names[0]
        other = mod2 if known == mod1 else mod1
        names = [name or other for name in names]
    if None in names or names[0] == names[1]:
        files = some(found[f"train_{mod}"].name for mod in ("mod1", "mod2"))
        raise DataError(f"{files}: modalities {names[0]} and {names[1]}; say --mod1 and --mod2, two different ones")
    return [str(name) for name in names]


def _direction(names: list[str], mod1: str | None, mod2: str | None, found: dict[str, Path]) -> list[str]:
    """The direction that was asked for, or that of the files."""
    if mod1 is None and mod2 is None:
        if not found["train_mod1"].stem.endswith(PARTS):
            raise DataError(f"{found['train_mod1'].parent}: {some(names)}: say --mod1, what to predict from")
        return names
    first = mod1 or next((name for name in names if name != mod2), None)
    second = mod2 or next((name for name in names if name != mod1), None)
    if {first, second} != set(names):
        raise DataError(f"{found['train_mod1'].parent}: holds {names[0]} and {names[1]}, not {first} to {second}")
    return [str(first), str(second)]


def _paired(source: ad.AnnData, target: ad.AnnData, where: str) -> ad.AnnData:
    """`target` with the cells of `source`, in their order; `source` gets the batches that only `target` names."""
    if len(odd := source.obs_names.symmetric_difference(target.obs_names)):
        raise DataError(f"{where}: {len(odd)} cells are in one of the two only, for instance {some(odd, 3)}")
    if not source.obs_names.equals(target.obs_names):
        print(f"{where}: cells stand in another order; aligned by name")
        target = target[source.obs_names].copy()
    if "batch" in target.obs and "batch" not in source.obs:
        source.obs["batch"] = target.obs["batch"]
    return target


def _say_oddities(cells: ad.AnnData, name: str, part: str) -> None:
    """Empty cells and constant features: they harm nothing, but whoever made the files should know."""
    empty = np.diff(cells.X.indptr) == 0
    if empty.any():
        print(f"warning: {name}, {part}: {empty.sum()} empty cells: {some(cells.obs_names[empty], 3)}")
    if part == "training":
        highest, lowest = cells.X.max(axis=0).toarray().ravel(), cells.X.min(axis=0).toarray().ravel()
        if (flat := highest == lowest).any():
            print(f"warning: {name}, {part}: {flat.sum()} constant features: {some(cells.var_names[flat], 3)}")
