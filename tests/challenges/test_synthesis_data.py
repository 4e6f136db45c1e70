"""Synthetic cells: what is read, what is refused, what is held out."""

import anndata as ad
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
from simulated_cells import TYPES, make_adata

from challenges.synthesis import data, folds
from contract import OBESITY_1 as CRUNCH
from helpers import DataError


@pytest.fixture
def adata():
    return make_adata()


def test_counts_are_read_from_normalised_values(adata):
    cells = data.from_anndata(adata, "cell_type", ["donor"])
    assert cells.scale.kind == "log"
    assert (cells.counts != adata.layers["counts"].astype(np.float32)).nnz == 0
    np.testing.assert_allclose(cells.values(), adata.X.toarray(), atol=1e-5)
    assert cells.types == sorted(TYPES)
    assert cells.conditions == ["donor"]


def test_scaled_values_give_way_to_raw_and_to_the_counts(adata):
    scaled = adata.copy()
    scaled.X = scaled.X.toarray() - 1
    assert data.from_anndata(scaled, "cell_type").scale.kind == "counts"
    del scaled.layers["counts"]
    scaled.raw = adata
    assert data.from_anndata(scaled, "cell_type").scale.kind == "log"
    scaled.raw = None
    with pytest.raises(DataError, match=r"X has negative values \(down to -1\): scaled or regressed\?"):
        data.from_anndata(scaled, "cell_type")


def test_the_embedded_data_are_counts_behind_logarithms():
    cells = data.read("pbmc68k_reduced")
    assert (len(cells), len(cells.genes), len(cells.types)) == (700, 765, 10)
    assert cells.scale.kind == "log"
    assert cells.counts.max() == 259
    assert abs(1 - cells.counts.nnz / (700 * 765) - 0.674) < 0.001


def test_labels_that_cannot_be_used_are_refused(adata):
    with pytest.raises(DataError, match=r"no column kind in obs; there is cell_type, donor"):
        data.from_anndata(adata, "kind")
    adata.obs["cluster"] = 3
    with pytest.raises(DataError, match=r"obs\['cluster'\] is numeric"):
        data.from_anndata(adata, "cluster")
    adata.obs.loc["cell_4", "cell_type"] = np.nan
    with pytest.raises(DataError, match=r"obs\['cell_type'\] has no value \(NaN\) in 1 of 120 cells"):
        data.from_anndata(adata, "cell_type")
    with pytest.raises(DataError, match="is the label and cannot be a condition"):
        data.from_anndata(make_adata(), "cell_type", ["cell_type"])


def test_the_crunchs_cells_can_be_labelled_by_state(demo_folder):
    adata = ad.read_h5ad(demo_folder / CRUNCH.train_file)
    labels = data.read(demo_folder / CRUNCH.train_file, "state").obs["label"]
    assert set(labels) == set(CRUNCH.states)
    for state in CRUNCH.states:
        assert (adata.obs.loc[labels.index[labels == state], state] == 1).all()
    assert (labels == "lipo").sum() == adata.obs["lipo"].sum()


def test_values_that_cannot_be_used_are_refused(adata):
    del adata.layers["counts"]
    adata.X[3, 4] = np.nan
    with pytest.raises(DataError, match=r"X: NaN or infinite values in cells cell_3$"):
        data.from_anndata(adata, "cell_type")
    adata.X = np.zeros(adata.shape, np.float32)
    with pytest.raises(DataError, match="every value is 0"):
        data.from_anndata(adata, "cell_type")
    twice = make_adata()
    twice.obs_names = ["cell_0", *twice.obs_names[:-1]]
    with pytest.raises(DataError, match="cells that come twice: cell_0"):
        data.from_anndata(twice, "cell_type")


def test_empty_cells_are_left_out_aloud(adata, capsys):
    adata.X[5] = 0
    assert len(data.from_anndata(adata, "cell_type")) == 119
    assert "left out cells without a single count: cell_5" in capsys.readouterr().out


def test_a_type_with_one_cell_is_refused_or_left_out(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc["cell_0", "cell_type"] = "lonely"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match=r"types with a single cell.*: lonely; merge them, or .* --drop-rare"):
        data.read(tmp_path / "cells.h5ad")
    assert "lonely" not in data.read(tmp_path / "cells.h5ad", drop_rare=True).types


def test_a_missing_or_broken_file_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        data.read(tmp_path / "none.h5ad")
    (tmp_path / "broken.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 100)
    with pytest.raises(DataError, match=r"not an \.h5ad file, or a broken one"):
        data.read(tmp_path / "broken.h5ad")


def test_a_split_leaves_a_cell_of_each_type_on_either_side(adata):
    cells = data.from_anndata(adata, "cell_type")
    train, held = folds.split(cells, 0.4, 0)
    assert len(train) + len(held) == 120
    assert not set(train.obs.index) & set(held.obs.index)
    few = cells.take(np.arange(6))
    assert all(part.types == few.types for part in folds.split(few, 0.01, 0))


def write_cite(folder, adata, *, blocks=1, as_bytes=True, **compression):
    """pandas' fixed format, with h5py alone, and metadata.csv in another order."""
    text = (lambda names: np.array(list(names), "S")) if as_bytes else (lambda names: np.array(list(names), object))
    kind = None if as_bytes else h5py.string_dtype()
    values, genes = adata.X.toarray(), adata.var_names
    with h5py.File(folder / "train_cite_inputs.h5", "w") as file:
        group = file.create_group("train_cite_inputs")
        group.create_dataset("axis0", data=text(genes), dtype=kind)
        group.create_dataset("axis1", data=text(adata.obs_names), dtype=kind)
        for block in range(blocks):
            chosen = np.arange(len(genes))[block::blocks]
            group.create_dataset(f"block{block}_items", data=text(genes[chosen]), dtype=kind)
            group.create_dataset(f"block{block}_values", data=values[:, chosen], **compression)
    table = adata.obs.rename_axis("cell_id").assign(day=2, technology="citeseq")[::-1]
    table.to_csv(folder / "metadata.csv")
    return folder / "train_cite_inputs.h5"


def test_genes_are_read_without_cells_or_labels(tmp_path, adata):
    path = write_cite(tmp_path, adata)
    (tmp_path / "metadata.csv").unlink()
    assert list(data.gene_names(path, adata.var_names)) == list(data.from_anndata(adata, "cell_type").genes)
    adata.raw = adata.copy()
    fewer = adata[:, :5].copy()
    fewer.write_h5ad(tmp_path / "a.h5ad")
    assert list(data.gene_names(tmp_path / "a.h5ad", adata.var_names)) == list(adata.var_names)
    path.write_bytes(b"no hdf5")
    with pytest.raises(DataError, match=r"train_cite_inputs.h5: not an HDF5 file, or a broken one"):
        data.gene_names(path, adata.var_names)


@pytest.mark.parametrize(("blocks", "as_bytes"), [(1, True), (3, False)])
def test_the_challenges_files_are_read_in_chunks(adata, tmp_path, monkeypatch, blocks, as_bytes):
    monkeypatch.setattr(data, "CHUNK", 50)
    adata.obs.loc["cell_7", "cell_type"] = "hidden"
    compression = {} if as_bytes else hdf5plugin.Blosc()  # as pandas writes with complib="blosc"
    path = write_cite(tmp_path, adata, blocks=blocks, as_bytes=as_bytes, **compression)
    cells = data.read(path, None, ["donor", "day"])
    shown = adata[adata.obs["cell_type"] != "hidden"]
    assert list(cells.obs.index) == list(shown.obs_names)
    assert list(cells.labels) == list(shown.obs["cell_type"])
    assert (cells.obs["donor"] == shown.obs["donor"]).all()
    assert set(cells.obs["day"]) == {"2"}
    assert (cells.counts != shown.layers["counts"].astype(np.float32)).nnz == 0
    assert list(cells.genes) == list(adata.var_names)


def test_the_challenges_files_must_fit_together(adata, tmp_path):
    path = write_cite(tmp_path, adata)
    table = pd.read_csv(tmp_path / "metadata.csv")
    table[table["cell_id"] != "cell_3"].to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(DataError, match=r"metadata.csv: no row for the cells cell_3"):
        data.read(path)
    table.drop(columns="cell_type").to_csv(tmp_path / "metadata.csv", index=False)
    with pytest.raises(DataError, match="no column 'cell_type'"):
        data.read(path)
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(DataError, match=r"metadata.csv: no such file; it names the cells"):
        data.read(path)
    table.to_csv(tmp_path / "metadata.csv", index=False)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not an HDF5 file"):
        data.read(path)
