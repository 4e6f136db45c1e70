"""The door: paired `.h5ad` files in, aligned by name; a predicted modality out, block by block.

In: a folder or the common beginning of files: `*train_mod1.h5ad`, `*train_mod2.h5ad`, `*test_mod1.h5ad` and where known
`*test_mod2.h5ad`, or just two paired files; to predict with a trained model, one file. Out: `Pair`, sparse throughout,
with counts normalised; and a prediction file that anndata reads. Next: `folds`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from challenges.common import checked_matrix, read_h5ad, write_cells
from challenges.modality.scale import AS_THEY_ARE, DONE, Scale, check_same, normalised, scale_of
from helpers import DataError, some
from workbench.adoption.values import COUNTS

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
LAYERS = ("normalized", "log_norm")  # in this order, then X, then the layer of counts
MOST_PEAKS = 10_000  # as the challenge: of accessibility, the most accessible peaks of training are predicted
PARTS = ("train_mod1", "train_mod2", "test_mod1", "test_mod2")
TRAINING, TESTING = PARTS[:2], PARTS[2:]
LEAST_CELLS = 20  # to train on: fewer leave nothing for inner folds


@dataclass(frozen=True)
class Pair:
    """Cells with both modalities, and cells with the first. AnnData with a CSR float32 `X`, `obs["batch"]` where known.

    `test_target` is None where the answers are not there; `test_source` where no test cells are. `measured` (features
    of the source, bool) are those that the test cells have, None for all; the others hold zeros there. `source_scale`
    and `target_scale` say what the values are; where they were counts, `layers["counts"]` has these.
    """

    mod1: str
    mod2: str
    dataset_id: str
    train_source: ad.AnnData
    train_target: ad.AnnData
    test_source: ad.AnnData | None
    test_target: ad.AnnData | None
    measured: np.ndarray | None = None
    source_scale: Scale = field(default_factory=Scale)
    target_scale: Scale = field(default_factory=Scale)

    def fingerprint(self) -> str:
        """A hash of the training cells: tells whether a model belongs to them."""
        digest = hashlib.sha256()
        for part in (self.train_source, self.train_target):
            digest.update("\n".join([*part.obs_names, *part.var_names, *batch_names(part)]).encode())
            values = part.X.sorted_indices()
            for array in (values.data, values.indices.astype(np.int64), values.indptr.astype(np.int64)):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

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


def read_pair(
    data: str | os.PathLike[str],
    mod1: str | None = None,
    mod2: str | None = None,
    *,
    as_is: bool = False,
    parts: Sequence[str] = PARTS,
) -> Pair:
    """Read and check the files of `data`; `mod1` to `mod2` is the direction, by default that of the files.

    Counts are normalised, unless `as_is` leaves them alone. Of the four files those of `parts` are read. Raises
    DataError for missing or unpaired files, an unknown modality, other cells, other features, NaN, training and test
    files on two scales, and training cells among the test cells.
    """
    files = _find(Path(data), {name for name in (mod1, mod2) if name})
    files = {part: path for part, path in files.items() if part in parts}
    cells, places = {}, {}
    for part, path in files.items():
        cells[part], places[part] = _read(path)
    part_of = _parts_by_modality(files, cells, mod1, mod2)
    source_name, target_name = _direction(list(part_of), mod1, mod2, files["train_mod1"])
    scales, measured = {}, None
    for name, part in part_of.items():
        train, test = f"train_{part}", f"test_{part}"
        scales[name] = scale_of(cells[train], places[train], name, as_is=as_is)
        _say_scale(scales[name], name)
        if test in cells:
            check_same(scales[name], cells[test], places[test], name, str(files[test]), files[train].name)
            check_new(cells[train], cells[test], files[test])
            cells[test], known = with_features(cells[test], cells[train].var_names, str(files[test]))
            if name == source_name:
                measured = None if known.all() else known
            elif not known.all():
                raise DataError(
                    f"{files[test]}: without these features there are no answers; add them, or drop the file"
                )
            cells[test] = normalised(scales[name], cells[test], str(files[test]), known)
        cells[train] = normalised(scales[name], cells[train], str(files[train]))
    train_source, train_target = (cells[f"train_{part_of[name]}"] for name in (source_name, target_name))
    test_source, test_target = (cells.get(f"test_{part_of[name]}") for name in (source_name, target_name))
    train_target = _paired(train_source, train_target, "the training files")
    if train_source.n_obs < LEAST_CELLS:
        raise DataError(f"{data}: {train_source.n_obs} training cells; at least {LEAST_CELLS} are needed")
    if test_source is not None and test_target is not None:
        test_target = _paired(test_source, test_target, "the test files")
    if target_name == "ATAC":
        train_target, test_target = _most_accessible(train_target, test_target)
    named = next((str(part.uns["dataset_id"]) for part in cells.values() if "dataset_id" in part.uns), None)
    dataset = named or _beginning(files["train_mod1"])[0].rstrip("._") or Path(data).name
    pair = Pair(
        *(source_name, target_name, dataset, train_source, train_target, test_source, test_target, measured),
        *(scales[source_name], scales[target_name]),
    )
    _describe(pair)
    return pair


def asked_file(data: Path, mod1: str | None, mod2: str | None) -> tuple[Path, str]:
    """The file with the cells to predict, and its modality: `data` itself, or the test file with `mod1` in the folder.

    Raises DataError where there is none, where there are several, and for a file that does not say what it holds.
    """
    files = [data] if data.is_file() else [path for path in _h5ad_files(data) if path.stem.endswith(TESTING)]
    held = {path: _modality(read_h5ad(path, backed="r"), path) for path in files}
    if data.is_file() and mod1 and held[data] not in (None, mod1):
        raise DataError(f"{data}: holds {held[data]}, not {mod1}")
    fitting = [path for path, name in held.items() if name in (None, mod1) or (mod1 is None and name != mod2)]
    first = [path for path in fitting if path.stem.endswith("test_mod1")]
    if len(found := first if len(fitting) > 1 else fitting) != 1:
        what = f"test file with {mod1}" if mod1 else "test file"
        told = (
            f"several: {some(path.name for path in found)}" if found else f"no {what}, so there are no cells to predict"
        )
        raise DataError(f"{data}: {told}; name one .h5ad file")
    path, name = found[0], held[found[0]] or mod1
    if name is None:
        raise DataError(f"{path}: does not say what its values are; say --mod1")
    return path, name


def read_asked(
    path: Path, modality: str, features: pd.Index, scale: Scale, model: Path
) -> tuple[ad.AnnData, np.ndarray]:
    """Cells to predict with a trained model, on its scale and with its features; and which of these they have.

    Raises DataError as `read_pair`; `model` is named where the scales differ.
    """
    cells, place = _read(path)
    check_same(scale, cells, place, modality, str(path), str(model))
    cells, measured = with_features(cells, features, str(path))
    if scale.kind == COUNTS:
        print(f"{modality}: counts in {place}: {DONE[scale.way]}")
    cells = normalised(scale, cells, str(path), measured)
    _say_oddities(cells, modality, "to predict")
    return cells, measured


def with_features(cells: ad.AnnData, features: pd.Index, where: str) -> tuple[ad.AnnData, np.ndarray]:
    """The cells with the features of training, in their order, and which of these they have (bool).

    Those that are missing hold zeros; their number is said, and that of the features that training did not have.
    Raises DataError, which begins with `where`, where none is there.
    """
    places = cells.var_names.get_indexer(features)
    known = places >= 0
    if not known.any():
        raise DataError(
            f"{where}: none of the {len(features)} features of training, such as {some(features[:3])}, but "
            f"{some(cells.var_names[:3])}; name them alike"
        )
    if not known.all():
        print(f"warning: {where}: {(~known).sum()} features of training are missing: {some(features[~known])}")
    if len(extra := cells.var_names.difference(features)):
        print(f"warning: {where}: {len(extra)} features that training did not have are left out: {some(extra)}")
    if cells.var_names.equals(features):
        return cells, known
    X = cells.X[:, places[known]].tocsr()
    X = sp.csr_matrix((X.data, np.flatnonzero(known)[X.indices], X.indptr), (cells.n_obs, len(features)))
    var = cells.var.reindex(features) if not known.all() else cells.var.loc[features]
    return ad.AnnData(X, obs=cells.obs, var=var, uns=dict(cells.uns)), known


def batches_of(cells: ad.AnnData) -> np.ndarray:
    """The batch of each cell; one batch where `obs["batch"]` is missing."""
    return pd.factorize(batch_names(cells), sort=True)[0]


def batch_names(cells: ad.AnnData) -> np.ndarray:
    """`obs["batch"]` as texts; the same for all where it is missing."""
    return cells.obs["batch"].astype(str).to_numpy() if "batch" in cells.obs else np.full(cells.n_obs, "one batch")


@dataclass(frozen=True)
class Prediction:
    """Predicted features, cells x features: `block(rows)` is the dense float32 values of a slice of cells.

    With a `threshold` above 0 it is written sparse, and values below are 0 in the file (`written`).
    """

    shape: tuple[int, int]
    block: Callable[[slice], np.ndarray]
    threshold: float = 0.0

    def written(self, rows: slice) -> np.ndarray:
        """As `block`, with 0 for what is below the threshold."""
        values = self.block(rows)
        values[np.abs(values) < self.threshold] = 0.0
        return values

    def dense(self) -> np.ndarray:
        """All of it."""
        return self.block(slice(0, self.shape[0]))

    def columns(self, columns: np.ndarray) -> np.ndarray:
        """Some features of all cells, 500 cells at a time."""
        return np.concatenate([self.block(slice(i, i + 500))[:, columns] for i in range(0, self.shape[0], 500)])


def write_prediction(
    path: str | os.PathLike[str],
    obs: pd.DataFrame,
    var: pd.DataFrame,
    modality: str,
    prediction: Prediction,
    uns: dict[str, str],
) -> None:
    """Write the prediction into `X` and `layers["normalized"]` (cells x features, float32), by blocks of cells.

    Both are one matrix on disk: CSR where the prediction has a threshold, which `uns["threshold"]` states.
    """
    stated = {"threshold": prediction.threshold} if prediction.threshold else {}
    labels = ad.AnnData(obs=obs, var=var.assign(feature_types=modality), uns={**uns, **stated})
    write_cells(path, labels, prediction.written, ("X", "layers/normalized"), sparse=prediction.threshold > 0)


def files_of(data: Path, mod1: str | None = None, mod2: str | None = None) -> list[Path]:
    """The files that `read_pair` reads."""
    return list(_find(Path(data), {name for name in (mod1, mod2) if name}).values())


def has_training(data: Path) -> bool:
    """Whether training files lie there."""
    return not data.is_file() and any(path.stem.endswith(TRAINING) for path in _h5ad_files(data))


def _find(data: Path, wanted: set[str]) -> dict[str, Path]:
    """train_mod1, train_mod2 and where there are any test_mod1, test_mod2; of several data sets the one `wanted`."""
    if data.is_file():
        raise DataError(f"{data}: a file; give the folder, or the common beginning of the files' names")
    files = _h5ad_files(data)
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


def _h5ad_files(data: Path) -> list[Path]:
    """Those of a folder, or with a common beginning. Raises DataError where there are none."""
    folder, start = (data, "") if data.is_dir() else (data.parent, data.name)
    there = folder.iterdir() if folder.is_dir() else iter(())  # no glob: a name may hold its characters
    files = sorted(path for path in there if path.name.startswith(start) and path.suffix == ".h5ad")
    if not files:
        raise DataError(f"{data}: no .h5ad files; give the folder, or the common beginning of the files' names")
    return files


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
    return {_modality(read_h5ad(found[name], backed="r"), found[name]) for name in ("train_mod1", "train_mod2")}


def _read(path: Path) -> tuple[ad.AnnData, str]:
    """The values as CSR float32 in `X`, and where they were; everything else that is large is left out."""
    cells = read_h5ad(path)
    layer = next((name for name in LAYERS if name in cells.layers), "X" if cells.X is not None else "counts")
    found = cells.X if layer == "X" else cells.layers.get(layer)
    if found is None:
        raise DataError(f"{path}: no X, and none of the layers {some([*LAYERS, 'counts'])}")
    values = checked_matrix(found, str(path), cells.obs_names)
    if values.shape[0] == 0 or values.shape[1] < 2:
        raise DataError(f"{path}: {values.shape[0]} cells x {values.shape[1]} features; at least 1 x 2 are needed")
    for what, names in (("cells", cells.obs_names), ("features", cells.var_names)):
        if names.has_duplicates:
            raise DataError(f"{path}: {what} that come twice: {some(names[names.duplicated()].unique())}")
    uns = {name: cells.uns[name] for name in ("dataset_id",) if name in cells.uns}
    return ad.AnnData(values, obs=cells.obs, var=cells.var, uns=uns), layer


def check_new(training: ad.AnnData, test: ad.AnnData, path: Path) -> None:
    """Raises DataError where cells of the test (whose file is `path`) are training cells: of one name and value."""
    shared, features = (
        getattr(training, names).intersection(getattr(test, names)) for names in ("obs_names", "var_names")
    )
    if len(shared) and len(features):
        ours, theirs = (cells[shared, features].X for cells in (training, test))
        same = np.diff(sp.csr_matrix(ours != theirs).indptr) == 0
        if (same & (np.diff(theirs.indptr) > 0)).any():
            raise DataError(f"{path}: training cells among the test cells: {some(shared[same])}; leave them out")


def _say_scale(scale: Scale, name: str) -> None:
    if scale.kind == COUNTS:
        kept = "" if scale.way == AS_THEY_ARE else " (--scale as-is leaves them alone)"
        print(f"{name}: counts in {scale.place}: {DONE[scale.way]}{kept}")


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


def _parts_by_modality(
    files: dict[str, Path], cells: dict[str, ad.AnnData], mod1: str | None, mod2: str | None
) -> dict[str, str]:
    """Which files hold each modality, in the order of the files: `{"GEX": "mod1", "ADT": "mod2"}`.

    Where neither file says what it is, they are `mod1` and `mod2`; where one says it, the other is the other one asked
    for. Raises DataError where that does not give two different modalities.
    """
    said = {part: _modality(cells[f"train_{part}"], files[f"train_{part}"]) for part in ("mod1", "mod2")}
    if not any(said.values()):
        said = {"mod1": mod1, "mod2": mod2}
    for part, other in (("mod1", "mod2"), ("mod2", "mod1")):
        if said[part] is None:
            said[part] = mod2 if said[other] == mod1 else mod1
    found = {name: part for part, name in said.items() if name}
    if len(found) < 2:
        names = some(files[f"train_{part}"].name for part in said)
        raise DataError(
            f"{names}: modalities {said['mod1']} and {said['mod2']}; say --mod1 and --mod2, two different ones"
        )
    return found


def _direction(held: list[str], mod1: str | None, mod2: str | None, path: Path) -> tuple[str, str]:
    """What to predict from, and what: as asked for, else as the files are numbered. `path` is the first file.

    Raises DataError where the files hold other modalities, and where neither they nor the options say a direction.
    """
    first, second = held
    if mod1 is None and mod2 is None:
        if not path.stem.endswith(PARTS):
            raise DataError(f"{path.parent}: {some(held)}: say --mod1, what to predict from")
        return first, second
    source = mod1 or (second if mod2 == first else first)
    target = mod2 or (second if source == first else first)
    if {source, target} != {first, second}:
        raise DataError(f"{path.parent}: holds {first} and {second}, not {source} to {target}")
    return source, target


def _most_accessible(train: ad.AnnData, test: ad.AnnData | None) -> tuple[ad.AnnData, ad.AnnData | None]:
    """Both with the peaks that are open in most training cells, at most MOST_PEAKS."""
    if train.n_vars <= MOST_PEAKS:
        return train, test
    open_in = np.asarray((train.X > 0).sum(axis=0)).ravel()
    kept = np.sort(np.argsort(-open_in, kind="stable")[:MOST_PEAKS])
    print(f"ATAC: the {MOST_PEAKS:,} most accessible of {train.n_vars:,} peaks are predicted")
    return train[:, kept].copy(), None if test is None else test[:, kept].copy()


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


def _describe(pair: Pair) -> None:
    """Say what is odd, and what there is."""
    _say_oddities(pair.train_source, pair.mod1, "training")
    _say_oddities(pair.train_target, pair.mod2, "training")
    if pair.test_source is not None:
        _say_oddities(pair.test_source, pair.mod1, "test")
    n_batches = len(set(batch_names(pair.train_source)))
    print(
        f"{pair.mod1} to {pair.mod2}: {pair.train_source.n_obs:,} training cells "
        f"in {n_batches} batch{'es' * (n_batches > 1)}, "
        f"{pair.train_source.n_vars:,} to {pair.train_target.n_vars:,} features"
    )


def _say_oddities(cells: ad.AnnData, name: str, part: str) -> None:
    """Empty cells and constant features: they harm nothing, but whoever made the files should know."""
    empty = np.diff(cells.X.indptr) == 0
    if empty.any():
        print(f"warning: {name}, {part}: {empty.sum()} empty cells: {some(cells.obs_names[empty], 3)}")
    if part == "training":
        highest, lowest = cells.X.max(axis=0).toarray().ravel(), cells.X.min(axis=0).toarray().ravel()
        if (flat := highest == lowest).any():
            print(f"warning: {name}, {part}: {flat.sum()} constant features: {some(cells.var_names[flat], 3)}")
