"""The data folder: read once, checked at the door, every error names the file and what to do."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError


def test_everything_is_read_and_labelled(challenge):
    assert challenge.obs.columns.tolist() == ["gene", *CRUNCH.states]
    assert len(challenge.obs) == 1500
    assert len(challenge.genes) == 240
    assert len(challenge.perturbations) == 14
    assert "NC" not in challenge.perturbations
    assert set(challenge.proportions.index) == {*challenge.perturbations, "NC"}
    assert challenge.genes_to_predict.isin(challenge.genes).all()
    assert not challenge.targets.isin(challenge.perturbations).any()
    assert len(challenge.local_proportions) == 5


def test_orders_of_the_files_are_kept(challenge, demo_folder):
    names = (demo_folder / "genes_to_predict.txt").read_text().split()
    assert challenge.genes_to_predict.tolist() == names
    shared = challenge.genes[challenge.genes.isin(names)].tolist()
    assert shared != names, "the demo must hold the trap: another order than var"


def test_local_truth_is_optional(folder):
    (folder / CRUNCH.local_truth_file).unlink()
    (folder / CRUNCH.local_proportions_file).unlink()
    challenge = helpers.load_challenge(folder)
    assert challenge.local_truth_path is None
    assert challenge.local_proportions is None


@pytest.mark.parametrize(
    "name",
    [
        CRUNCH.train_file,
        CRUNCH.proportions_file,
        "signature_genes.csv",
        "predict_perturbations.txt",
        "genes_to_predict.txt",
    ],
)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        helpers.load_challenge(folder)


def test_truncated_h5ad(folder):
    path = folder / CRUNCH.train_file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"obesity_challenge_1\.h5ad: not a readable HDF5 file"):
        helpers.load_challenge(folder)


def rewrite(folder, change):
    adata = ad.read_h5ad(folder / CRUNCH.train_file)
    change(adata).write_h5ad(folder / CRUNCH.train_file)


def test_no_control_cells(folder):
    rewrite(folder, lambda adata: adata[adata.obs["gene"] != "NC"].copy())
    with pytest.raises(DataError, match="no control cells"):
        helpers.load_challenge(folder)


def test_missing_column_lists_those_there_are(folder):
    def drop(adata):
        del adata.obs["lipo"]
        return adata

    rewrite(folder, drop)
    with pytest.raises(DataError, match="no column lipo; it has nCount_RNA"):
        helpers.load_challenge(folder)


def test_duplicated_genes_of_var(folder):
    with h5py.File(folder / CRUNCH.train_file, "r+") as file:
        names = file["var"][file["var"].attrs["_index"]]
        names[1] = names[0]
        duplicated = names[0].decode()
    with pytest.raises(DataError, match=f"duplicated names {duplicated}"):
        helpers.load_challenge(folder)


def test_states_must_part_the_cells(folder):
    def both(adata):
        adata.obs["adipo"] = adata.obs["pre_adipo"] = 1
        return adata

    rewrite(folder, both)
    with pytest.raises(DataError, match=r"pre_adipo \+ adipo \+ other must be 1"):
        helpers.load_challenge(folder)


@pytest.mark.parametrize("name", ["genes_to_predict.txt", "predict_perturbations.txt"])
def test_duplicated_and_empty_lists(folder, name):
    names = (folder / name).read_text().split()
    (folder / name).write_text("\n".join([*names, names[3]]))
    with pytest.raises(DataError, match=f"{name}: duplicated names {names[3]}"):
        helpers.load_challenge(folder)
    (folder / name).write_text("\n")
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        helpers.load_challenge(folder)


def test_proportions_by_name_and_complete(folder, challenge):
    path = folder / CRUNCH.proportions_file
    table = pd.read_csv(path)
    table.iloc[::-1].to_csv(path, index=False)
    pd.testing.assert_frame_equal(helpers.load_challenge(folder).proportions.iloc[::-1], challenge.proportions)
    lost = challenge.perturbations[2]
    table[table["gene"] != lost].to_csv(path, index=False)
    with pytest.raises(DataError, match=f"no row for the perturbations {lost}"):
        helpers.load_challenge(folder)
    table.assign(adipo=float("nan")).to_csv(path, index=False)
    with pytest.raises(DataError, match="values are missing in column adipo"):
        helpers.load_challenge(folder)


@pytest.mark.parametrize(
    "name", [CRUNCH.genes_file, CRUNCH.targets_file, CRUNCH.proportions_file, "signature_genes.csv"]
)
def test_texts_may_begin_with_a_byte_order_mark(folder, challenge, name):
    (folder / name).write_text("\ufeff" + (folder / name).read_text().replace("\n", "\r\n"), encoding="utf-8")
    read = helpers.load_challenge(folder)
    assert read.targets.equals(challenge.targets)
    assert read.genes_to_predict.equals(challenge.genes_to_predict)
    pd.testing.assert_frame_equal(read.proportions, challenge.proportions)
    pd.testing.assert_frame_equal(read.signatures, challenge.signatures)


def test_names_that_look_like_missing_values_are_names(folder):
    for name in (CRUNCH.targets_file, CRUNCH.genes_file):
        with (folder / name).open("a") as file:
            file.write("\nNA\nnan\nnull\n")
    with (folder / CRUNCH.proportions_file).open("a") as file:
        file.write("NA,0.5,0.25,0.25,0.0,0.0\n")
    read = helpers.load_challenge(folder)
    assert read.targets[-3:].tolist() == read.genes_to_predict[-3:].tolist() == ["NA", "nan", "null"]
    assert read.proportions.index[-1] == "NA"


def test_an_anndata_is_checked_as_a_file_is(tiny):
    tiny.obs["gene"] = tiny.obs["gene"].where(tiny.obs["gene"] != "A")
    with pytest.raises(DataError, match=r"the AnnData: obs\['gene'\] is empty for 20 cells"):
        helpers.perturbation_stats(tiny)
    tiny.obs["gene"] = "A"
    tiny.obs["adipo"] = -tiny.obs["adipo"]
    with pytest.raises(DataError, match=r"the AnnData: obs\['adipo'\] must be 0 or 1"):
        helpers.perturbation_stats(tiny, by_state=True)
    for wrong in (None, np.full(tiny.shape, "a")):
        adata = ad.AnnData(None, obs=tiny.obs, var=tiny.var)
        adata._X = wrong
        with pytest.raises(DataError, match=r"the AnnData: X holds .* not numbers by cells x genes"):
            helpers.perturbation_stats(adata)


def test_a_gene_may_be_called_na(folder):
    path = folder / "signature_genes.csv"
    path.write_text(path.read_text().rstrip() + "\nlipo,NA\n")
    assert "NA" in set(helpers.load_challenge(folder).signatures["sig_gene"])
