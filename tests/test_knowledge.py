"""Feature tables: what each kind of file becomes, and what is said of every kind of bad one."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import helpers
from helpers import DataError
from knowledge import (
    FeatureTable,
    edge_table,
    gene_set_table,
    numeric_table,
    read_features,
    symbol_table,
    training_knowledge,
)
from method import EXPECTED_FILE, MODEL_FILE, Predictor, train

GENES = ["MED1", "MED12", "JAK2", "STAT1", "POLR2A"]


def read(folder, name, content, genes=GENES):
    folder.mkdir(exist_ok=True)
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    return read_features(folder, genes)


def test_kernel_is_the_cosine_and_zero_for_a_missing_gene():
    table = FeatureTable.of(["A", "B", "C"], np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]), power=2)
    np.testing.assert_allclose(
        table.kernel(["B", "X", "A", "C"], ["A", "B"]), [[0.96**2, 1], [0, 0], [1, 0.96**2], [0, 0]]
    )
    assert table.known(["A", "C", "X"]).tolist() == [True, False, False]


def test_gene_sets_weigh_small_sets_more():
    table = gene_set_table({"small": ["A", "B"], "large": list("ABCDEFGH"), "own": ["C"]})
    kernel = table.kernel(["A"], list("BCD"))[0]
    small, large = np.log(9 / 2), np.log(9 / 8)
    assert kernel[0] == pytest.approx(1)
    assert kernel[2] == pytest.approx(large**2 / (small**2 + large**2))  # squared cosine of (small, large) and (large)
    assert kernel[1] < kernel[2]


def test_edges_compare_neighbourhoods_whatever_their_direction():
    table = edge_table(["A", "B", "D"], ["C", "C", "E"])
    kernel = table.kernel(["A"], ["B", "C", "D"])[0]
    assert 0 < kernel[0] < 1
    assert kernel[2] == 0
    turned = edge_table(["C", "C", "E"], ["A", "B", "D"])
    np.testing.assert_allclose(turned.kernel(["A"], ["B", "C", "D"])[0], kernel)


def test_symbols_know_families():
    table = symbol_table([*GENES, "MED13"])
    kernel = pd.Series(table.kernel(["MED1"], [*GENES, "MED13"])[0], index=[*GENES, "MED13"])
    assert kernel["MED1"] == pytest.approx(1)
    assert kernel["MED12"] > 0.3
    assert kernel["MED13"] == pytest.approx(kernel["MED12"])
    assert kernel["JAK2"] == 0


def test_numbers_are_standardised_by_column():
    frame = pd.DataFrame({"small": [1.0, 2, 3, 6], "large": [1000.0, 9000, 2000, 4000]}, index=list("ABCD"))
    kernel = numeric_table(frame).kernel(list("ABCD"), list("ABCD"))
    np.testing.assert_allclose(numeric_table(frame * [5, 0.01]).kernel(list("ABCD"), list("ABCD")), kernel)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet", "t.h5ad"])
def test_every_format_gives_the_same_table(name, tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), index=GENES, columns=["x", "y", "z"])
    folder = tmp_path / "features"
    folder.mkdir()
    if name.endswith("parquet"):
        frame.to_parquet(folder / name)
    elif name.endswith("h5ad"):
        ad.AnnData(frame).write_h5ad(folder / name)
    else:
        frame.to_csv(folder / name, sep="\t" if "tsv" in name else ",")
    (table,) = read_features(folder, GENES).values()
    expected = numeric_table(frame).kernel(GENES, GENES)
    np.testing.assert_allclose(table.kernel(GENES, GENES), expected, atol=1e-12)


def test_gmt_and_edge_list_are_recognised(tmp_path):
    gmt = "SET\tnote\tMED1\tJAK2\t\nOTHER\tnote\tMED12\n"
    table = read(tmp_path / "a", "s.gmt", gmt)["s.gmt"]
    expected = gene_set_table({"SET": ["MED1", "JAK2"], "OTHER": ["MED12"]})
    np.testing.assert_allclose(table.kernel(GENES, GENES), expected.kernel(GENES, GENES))
    table = read(tmp_path / "b", "s.gmt.gz", gzip.compress(gmt.encode()))["s.gmt.gz"]
    np.testing.assert_allclose(table.kernel(GENES, GENES), expected.kernel(GENES, GENES))
    table = read(tmp_path / "c", "e.csv", "target,weight,source\nMED1,0.4,JAK2\nSTAT1,1,JAK2\n")["e.csv"]
    expected = edge_table(["JAK2", "JAK2"], ["MED1", "STAT1"])
    np.testing.assert_allclose(table.kernel(GENES, GENES), expected.kernel(GENES, GENES))


def test_notes_in_the_folder_are_no_tables(tmp_path):
    assert read(tmp_path, "README.md", "about") == {}
    assert read(tmp_path, ".hidden", "about") == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "gene\tx\ty\nMED1\t1\t2\n", r"t\.csv: only one column, 'gene\\tx\\ty'; .* rename it to \.tsv"),
        ("t.tsv", "gene,x\nMED1,1\n", r"t\.tsv: only one column, 'gene,x'; .* rename it to \.csv"),
        ("t.csv", "gene,note\nMED1,a\nJAK2,b\n", r"t\.csv: no column of numbers that vary; it has note"),
        ("t.gmt", "SET without tabs\n", r"t\.gmt: no gene set"),
        ("t.xlsx", "", r"t\.xlsx: not a feature table; use \.gmt, \.csv"),
        ("t.parquet", "nonsense", r"t\.parquet: cannot be read as parquet"),
        ("t.h5ad", "nonsense", r"t\.h5ad: cannot be read as h5ad"),
        ("t.csv", "", r"t\.csv: cannot be read as csv"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*columns left out")
def test_files_that_are_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, content)


@pytest.mark.parametrize(
    ("content", "message", "known"),
    [
        ("gene,x,y\nAAA,1,2\nBBB,2,3\n", r"t\.csv: none of its genes \(AAA, BBB\) is a perturbation", None),
        ("gene,x,y\nmed1,1,2\nJak2,2,1\n", r"t\.csv: gene symbols are not in upper case \(med1, Jak2\)", 2),
        ("gene,x,y\nMED1,1,2\nMED1,3,2\nJAK2,5,1\n", r"t\.csv: repeated genes are averaged: MED1", 2),
        ("gene,x,y\nMED1,1,7\nJAK2,2,7\n", r"t\.csv: columns left out, since they hold one value only: y", 2),
        ("gene,x,y\nMED1,1,inf\nJAK2,2,7\n", r"t\.csv: columns left out, .* missing or infinite values: y", 2),
        ("gene,x,y\nMED1,1,\nJAK2,2,7\n", r"t\.csv: columns left out, .* missing or infinite values: y", 2),
        ("gene,x,y\nMED1,1,abc\nJAK2,2,def\n", r"t\.csv: columns left out, since they hold text: y", 2),
    ],
)
def test_tables_that_are_mended_with_a_warning(tmp_path, content, message, known):
    with pytest.warns(UserWarning, match=message) as caught:
        tables = read(tmp_path, "t.csv", content)
    assert len(caught) == 1
    assert [table.known(GENES).sum() for table in tables.values()] == ([] if known is None else [known])


def test_repeated_genes_are_averaged(tmp_path):
    with pytest.warns(UserWarning, match="averaged"):
        table = read(tmp_path, "t.csv", "gene,x,y\nMED1,1,2\nMED1,3,4\nJAK2,5,1\nSTAT1,0,0\n")["t.csv"]
    frame = pd.DataFrame({"x": [2.0, 5, 0], "y": [3.0, 1, 0]}, index=["MED1", "JAK2", "STAT1"])
    np.testing.assert_allclose(table.kernel(GENES, GENES), numeric_table(frame).kernel(GENES, GENES))


def test_training_features_need_no_outside_data(stats, challenge):
    pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, 0))
    tables = training_knowledge(stats, pool, challenge.signatures, ["NEWGENE1", *challenge.targets]).tables
    assert list(tables) == ["expression", "co-expression", "programs", "signature", "symbol"]
    measured = challenge.targets[challenge.targets.isin(challenge.genes)]
    for name in ("expression", "co-expression", "programs", "symbol"):
        assert tables[name].known(measured).all(), name
    assert tables["symbol"].known(["NEWGENE1"]).all()
    X = pool.to_df()
    genes = X.columns[X.std() > 0.3][:40]
    alike, correlation = tables["co-expression"].kernel(genes, genes), np.corrcoef(X[genes].to_numpy(float).T)
    pairs = np.triu_indices(40, 1)
    assert np.corrcoef(alike[pairs], correlation[pairs])[0, 1] > 0.5
    detection = stats.detection.loc["NC"]
    np.testing.assert_allclose(np.diag(alike), detection[genes] ** 2)


def test_template_is_the_covariance_of_control_cells_turned_round(stats, challenge):
    pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, 0))
    loadings, responses = training_knowledge(stats, pool, challenge.signatures, []).template
    X = pool.to_df()
    genes = X.columns[X.std() > 0.3][:40]
    product = loadings.loc[genes].to_numpy() @ responses[genes].to_numpy()
    pairs = np.triu_indices(40, 1)
    assert np.corrcoef(product[pairs], np.cov(X[genes].to_numpy(float).T)[pairs])[0, 1] < -0.5
    assert (np.diag(product) < 0).all(), "the target itself falls"


def test_user_tables_reach_the_model_through_the_resources_folder(folder, challenge, tmp_path, capsys):
    resources = tmp_path / "resources"
    (resources / "features").mkdir(parents=True)
    names = [*challenge.perturbations, *challenge.targets]
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(len(names), 4)), index=names)
    values.to_csv(resources / "features" / "mine.csv")
    train(str(folder), str(resources))
    said = capsys.readouterr().out
    assert "mine.csv: knows 14 of 14 training and 12 of 12 predicted" in said
    model = Predictor.load(resources / MODEL_FILE).expression
    assert "mine.csv" in model.weights_.index
    assert model.coverage_["mine.csv"] == 1
    expected = pd.read_csv(resources / EXPECTED_FILE)
    assert expected.columns.tolist() == ["gene", "error", "pearson"]
    assert expected["gene"].tolist() == challenge.targets.tolist()


def test_a_bad_table_stops_training_before_anything_is_computed(folder, tmp_path, capsys):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "t.csv").write_text("gene;x\nA;1\n")
    with pytest.raises(DataError, match=r"t\.csv: only one column"):
        train(str(folder), str(tmp_path))
    assert "Reading cells" not in capsys.readouterr().err
    assert not (tmp_path / MODEL_FILE).exists()
