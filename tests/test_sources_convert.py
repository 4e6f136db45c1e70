"""Each source's conversion from a small file of the true form; what the model's own readers make of the result."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from raw_sources import (
    DROPLET,
    KNOCK_DOWNS,
    LINKS,
    OBO,
    REACTOME_GMT,
    annotation,
    gaf,
    raw_files,
    screen_table,
    string_info,
    string_links,
    zipped,
)

from helpers import DataError
from knowledge import read_features
from screens import read_screen
from workbench.sources import convert
from workbench.sources.catalogue import SOURCES
from workbench.sources.convert import CONVERTERS


def converted(folder, name, *contents):
    """The converted file of the source `name`, made of raw files with these contents, and the number of genes."""
    source = SOURCES[name]
    files = [folder / file.name for file in source.files]
    for file, content in zip(files, contents or raw_files()[name], strict=True):
        file.write_bytes(content)
    read, write = CONVERTERS[source.form]
    path = folder / source.target
    return path, write(path, read(files))


def sets_of(path):
    lines = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return {identifier: (name, set(genes)) for identifier, name, *genes in lines}


def test_reactome_becomes_a_gmt_by_identifier(tmp_path):
    path, genes = converted(tmp_path, "reactome")
    assert path == tmp_path / "features" / "reactome.gmt.gz"
    assert sets_of(path) == {
        "R-HSA-74752": ("Signaling by Insulin receptor", {"INS", "INSR", "IRS1", "GRB2"}),
        "R-HSA-77387": ("Insulin receptor recycling", {"INS", "INSR"}),
        "R-HSA-1430728": ("Metabolism", {"PPARG", "LPL", "INS"}),
    }
    assert genes == 6
    table = read_features(path.parent, ["INSR", "PPARG"])["reactome.gmt.gz"]
    assert set(table.genes) == {"INS", "INSR", "IRS1", "GRB2", "PPARG", "LPL"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            zipped({"a.gmt": REACTOME_GMT, "b.gmt": REACTOME_GMT}),
            r"holds 2 files that end in \.gmt, not one: a\.gmt, b\.",
        ),
        (zipped({"README.txt": "x"}), r"holds 0 files that end in \.gmt"),
        (zipped({"a.gmt": ""}), "nothing is left"),
        (zipped({"a.gmt": "one column\n"}), "does not have the form of this source"),
        (b"<html>Maintenance</html>", "does not have the form of this source .BadZipFile"),
        (zipped({"a.gmt": REACTOME_GMT})[:-40], "does not have the form of this source"),
    ],
)
def test_a_zip_that_is_not_the_sources_is_named(tmp_path, content, says):
    with pytest.raises(DataError, match=says) as error:
        converted(tmp_path, "reactome", content)
    assert str(error.value).startswith(str(tmp_path / "ReactomePathways.gmt.zip"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "features").exists()


def test_a_zip_with_other_files_beside_the_one_is_read(tmp_path):
    path, _ = converted(tmp_path, "reactome", zipped({"README.txt": "x", "R.gmt": REACTOME_GMT}))
    assert len(sets_of(path)) == 3


def test_go_annotations_reach_all_ancestors(tmp_path):
    """By is_a and part_of, not by regulates; NOT and obsolete terms do not count; a second name is the same term."""
    path, genes = converted(tmp_path, "go")
    droplet = {*DROPLET, "CIDEC"}
    assert sets_of(path) == {
        "GO:0005575": ("cellular_component", droplet | {"GAPDH"}),
        "GO:0005737": ("cytoplasm", droplet | {"GAPDH"}),
        "GO:0005811": ("lipid droplet", droplet),
    }
    assert genes == 7
    assert path.name == "go.gmt.gz"
    assert read_features(path.parent, ["PLIN1", "GAPDH"])["go.gmt.gz"].known(["PLIN1", "ACTB"]).tolist() == [
        True,
        False,
    ]


def test_go_sets_have_5_to_500_genes(tmp_path):
    def annotated(n):
        return gaf(annotation(f"G{i}", "GO:0005811") for i in range(n))

    for n in (5, 500):
        path, genes = converted(tmp_path, "go", annotated(n), OBO.encode())
        assert genes == n
        assert set(sets_of(path)) == {"GO:0005575", "GO:0005737", "GO:0005811"}
    for n in (4, 501):
        with pytest.raises(DataError, match=r"goa_human\.gaf\.gz: nothing is left"):
            converted(tmp_path, "go", annotated(n), OBO.encode())


@pytest.mark.parametrize(
    ("annotations", "ontology", "named"),
    [
        (gaf([annotation("A", "GO:1")])[:30], OBO, "goa_human.gaf.gz"),
        (gaf(["UniProtKB\tP0"]), OBO, "goa_human.gaf.gz"),
        (b"<html>", OBO, "goa_human.gaf.gz"),
        (gaf([annotation("A", "GO:1")]), "a\n[Term]\nid: GO:1\n", "go-basic.obo"),
        (gaf([annotation("A", "GO:1")]), "<html>sign in</html>", "go-basic.obo"),
    ],
)
def test_go_files_of_another_form_are_named(tmp_path, annotations, ontology, named):
    with pytest.raises(DataError, match=r"does not have the form of this source|nothing is left") as error:
        converted(tmp_path, "go", annotations, ontology.encode())
    assert str(error.value).startswith(str(tmp_path / named))


def test_string_becomes_edges_of_high_confidence_between_symbols(tmp_path, monkeypatch):
    """700 and more, each once; read in parts."""
    monkeypatch.setattr(convert, "ROWS", 3)
    path, genes = converted(tmp_path, "string")
    edges = pd.read_csv(path, keep_default_na=False)
    assert list(edges.columns) == ["source", "target"]
    assert edges.to_numpy().tolist() == [["CEBPA", "PPARG"], ["LPL", "NA"], ["PPARG", "RXRA"]]
    assert genes == 5
    table = read_features(path.parent, ["PPARG", "LPL"])["string.csv.gz"]
    (kernel,) = table.kernels(["CEBPA"], ["PPARG", "LPL"])
    assert kernel[0, 0] > kernel[0, 1] == 0


def test_proteins_that_share_a_symbol_make_no_edge_with_themselves_and_none_twice(tmp_path):
    info = gzip.decompress(string_info()).decode().replace("\tRXRA\t", "\tPPARG\t")
    path, _ = converted(
        tmp_path, "string", string_links([*LINKS, ("RXRA", "CEBPA", 900)]), gzip.compress(info.encode())
    )
    assert pd.read_csv(path, keep_default_na=False).to_numpy().tolist() == [["CEBPA", "PPARG"], ["LPL", "NA"]]


@pytest.mark.parametrize(
    ("links", "info", "named"),
    [
        (string_links(LINKS)[:40], string_info(), "links"),
        (gzip.compress(b"protein1 protein2\na b\n"), string_info(), "links"),
        (string_links([("PPARG", "RXRA", 150)]), string_info(), "links"),
        (string_links(LINKS), b"<html>", "info"),
        (string_links(LINKS), gzip.compress(b"#string_protein_id\tname\n"), "info"),
    ],
)
def test_string_files_of_another_form_are_named(tmp_path, links, info, named):
    with pytest.raises(DataError, match=rf"9606\.protein\.{named}\.v12\.0\.txt\.gz: "):
        converted(tmp_path, "string", links, info)


@pytest.mark.filterwarnings("ignore:.*missing or infinite:UserWarning")
def test_a_replogle_screen_becomes_small_with_its_symbols(tmp_path):
    path, genes = converted(tmp_path, "replogle_rpe1")
    assert path == tmp_path / "screens" / "replogle_rpe1.h5ad"
    assert genes == len(KNOCK_DOWNS)
    kept, whole = read_screen(path), read_screen(tmp_path / SOURCES["replogle_rpe1"].files[0].name)
    assert list(kept.perturbations) == sorted(KNOCK_DOWNS)
    assert set(kept.responses) == {f"GENE{j}" for j in range(30)}
    names = kept.perturbations, kept.responses
    np.testing.assert_allclose(kept.profiles(*names), whole.profiles(*names), atol=5e-3)
    raw = screen_table()
    both, smg5 = raw.X[[0, 6]], raw.X[2]
    profile = whole.profiles(["MED1", "SMG5"], ["GENE7", "GENE8"]).to_numpy()
    cells = raw.obs["num_cells_filtered"].to_numpy()[[0, 6]]
    difference = (cells @ both / cells.sum() - smg5)[[7, 8]]
    np.testing.assert_allclose(profile[0] - profile[1], difference, atol=1e-5)


def test_a_screen_that_is_broken_off_is_named(tmp_path):
    content = raw_files()["replogle_rpe1"][0]
    with pytest.raises(DataError, match=r"rpe1_normalized_bulk_01\.h5ad: cannot be read as h5ad"):
        converted(tmp_path, "replogle_rpe1", content[: len(content) // 2])


@pytest.mark.parametrize("name", ["reactome", "go", "string"])
def test_the_same_raw_files_give_the_same_bytes(tmp_path, name):
    first, _ = converted(tmp_path, name)
    before = first.read_bytes()
    assert before[4:8] == b"\0\0\0\0", "no time of writing"
    again, _ = converted(tmp_path, name)
    assert again.read_bytes() == before


@pytest.mark.parametrize("name", ["reactome", "go", "string"])
def test_tables_hold_genes_and_sets_alone(tmp_path, name):
    path, _ = converted(tmp_path, name)
    content = gzip.decompress(path.read_bytes())
    for word in (b"9606", b"ENSP", b"UniProtKB", b"taxon", b"IDA"):
        assert word not in content


@pytest.mark.filterwarnings("ignore:.*missing or infinite:UserWarning")
def test_screens_hold_gene_names_alone(tmp_path):
    """No row of the study and nothing that it says of its rows."""
    path, _ = converted(tmp_path, "replogle_k562_essential")
    kept = ad.read_h5ad(path)
    assert list(kept.obs_names) == sorted(KNOCK_DOWNS)
    assert set(kept.var_names) == {f"GENE{j}" for j in range(30)}
    assert kept.obs.columns.empty
    assert kept.var.columns.empty
    assert kept.X is None
