"""Feature tables: what each kind of file becomes, and what is said of every kind of bad one."""

import gzip
import re
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

import helpers
import knowledge
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from knowledge import (
    FeatureTable,
    edge_table,
    gene_set_table,
    numeric_table,
    read_features,
    screen_table,
    symbol_table,
    training_knowledge,
)
from method import EXPECTED_FILE, MODEL_FILE, Predictor, train
from screens import Screen

GENES = ["MED1", "MED12", "JAK2", "STAT1", "POLR2A"]


def read(folder, name, content, genes=GENES):
    folder.mkdir(exist_ok=True)
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    return read_features(folder, genes)


def kernel_of(table, left, right):
    """Of a table with one power."""
    (only,) = table.kernels(left, right)
    return only


def test_kernels_are_powers_of_the_cosine_and_zero_for_a_missing_gene():
    table = FeatureTable.of(["A", "B", "C"], np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]), powers=(1, 2, 3))
    for power, found in zip((1, 2, 3), table.kernels(["B", "X", "A", "C"], ["A", "B"]), strict=True):
        np.testing.assert_allclose(found, [[0.96**power, 1], [0, 0], [1, 0.96**power], [0, 0]])
    assert table.known(["A", "C", "X"]).tolist() == [True, False, False]


@pytest.mark.parametrize("lengths", [None, pd.Series([0.5, 2.0, 0.0, 1.0, 3.0], list("ABCDE"))])
def test_sparse_and_dense_features_give_the_same_kernels(lengths):
    """C has the length 0 where lengths are given, and D has no features."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 8)) * (rng.random((5, 8)) < 0.6)
    values[3] = 0
    dense, sparse = (
        FeatureTable.of(list("ABCDE"), matrix, (1, 3), lengths) for matrix in (values, sp.csr_matrix(values))
    )
    assert sp.issparse(sparse.features)
    assert not sp.issparse(dense.features)
    genes = ["E", "X", "A", "D", "B", "C"]
    for one, other in zip(dense.kernels(genes, genes[1:]), sparse.kernels(genes, genes[1:]), strict=True):
        assert type(one) is type(other) is np.ndarray
        np.testing.assert_allclose(one, other, atol=1e-12)
    wanted = {gene: float(gene in "ABCE") if lengths is None else lengths.get(gene, 0) for gene in genes} | {"D": 0}
    for table in (dense, sparse):
        whole, diagonals = table.kernels(genes, genes), table.diagonals(genes)
        for power, kernels, diagonal in zip((1, 3), whole, diagonals, strict=True):
            np.testing.assert_allclose(diagonal, np.diag(kernels), atol=1e-12)
            np.testing.assert_allclose(diagonal, [wanted[gene] ** (2 * power) for gene in genes], atol=1e-12)
        np.testing.assert_allclose(whole[1], whole[0] ** 3, atol=1e-12)


def test_a_table_without_powers_knows_its_genes_and_makes_no_kernel():
    table = FeatureTable(pd.Index(["A", "B"]), sp.csr_matrix((2, 1)), powers=())
    assert table.known(["A", "X"]).tolist() == [True, False]
    assert table.kernels(["A"], ["B"]) == table.diagonals(["A"]) == []


def test_a_screen_compares_profiles_whose_components_weigh_by_the_root_of_their_length(monkeypatch):
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    lengths = np.array([9.0, 4.0, 1.0, 0.25])
    scores = (axes[:, :4] * lengths).astype(np.float32)
    names = pd.Index([f"K{i}" for i in range(30)])
    screen = Screen(names, pd.Index(list("ABCD")), scores, np.eye(4, dtype=np.float32))
    rows = axes[:, :4] * np.sqrt(lengths)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine, cube = screen_table(screen).kernels(names, names)
    np.testing.assert_allclose(cosine, rows @ rows.T, atol=1e-6)
    np.testing.assert_allclose(cube, (rows @ rows.T) ** 3, atol=1e-6)
    monkeypatch.setattr(knowledge, "SIMILARITY_COMPONENTS", 2)
    rows = axes[:, :2] * np.sqrt(lengths[:2])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(screen_table(screen).kernels(names, names)[0], rows @ rows.T, atol=1e-6)


def test_a_component_of_a_screen_may_be_empty():
    """Of a file in the small form, say."""
    scores = np.array([[1.0, 0], [0.5, 0], [-1, 0]], np.float32)
    screen = Screen(pd.Index(list("ABC")), pd.Index(list("XY")), scores, np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(screen_table(screen).kernels(["A", "B"], ["C"])[0], [[-1], [-1]])


def test_gene_sets_weigh_small_sets_more():
    table = gene_set_table({"small": ["A", "B"], "large": list("ABCDEFGH"), "own": ["C"]})
    kernel = kernel_of(table, ["A"], list("BCD"))[0]
    small, large = np.log(9 / 2), np.log(9 / 8)
    assert kernel[0] == pytest.approx(1)
    assert kernel[2] == pytest.approx(large**2 / (small**2 + large**2))  # squared cosine of (small, large) and (large)
    assert kernel[1] < kernel[2]


def test_edges_compare_neighbourhoods_whatever_their_direction():
    table = edge_table(["A", "B", "D"], ["C", "C", "E"])
    kernel = kernel_of(table, ["A"], ["B", "C", "D"])[0]
    assert 0 < kernel[0] < 1
    assert kernel[2] == 0
    turned = edge_table(["C", "C", "E"], ["A", "B", "D"])
    np.testing.assert_allclose(kernel_of(turned, ["A"], ["B", "C", "D"])[0], kernel)


def test_symbols_know_families():
    table = symbol_table([*GENES, "MED13"])
    kernel = pd.Series(kernel_of(table, ["MED1"], [*GENES, "MED13"])[0], index=[*GENES, "MED13"])
    assert kernel["MED1"] == pytest.approx(1)
    assert kernel["MED12"] > 0.3
    assert kernel["MED13"] == pytest.approx(kernel["MED12"])
    assert kernel["JAK2"] == 0


def test_numbers_are_standardised_by_column():
    frame = pd.DataFrame({"small": [1.0, 2, 3, 6], "large": [1000.0, 9000, 2000, 4000]}, index=list("ABCD"))
    kernel = kernel_of(numeric_table(frame), list("ABCD"), list("ABCD"))
    np.testing.assert_allclose(kernel_of(numeric_table(frame * [5, 0.01]), list("ABCD"), list("ABCD")), kernel)


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
    expected = kernel_of(numeric_table(frame), GENES, GENES)
    np.testing.assert_allclose(kernel_of(table, GENES, GENES), expected, atol=1e-12)


def test_gmt_and_edge_list_are_recognised(tmp_path):
    gmt = "SET\tnote\tMED1\tJAK2\t\nOTHER\tnote\tMED12\n"
    table = read(tmp_path / "a", "s.gmt", gmt)["s.gmt"]
    expected = gene_set_table({"SET": ["MED1", "JAK2"], "OTHER": ["MED12"]})
    np.testing.assert_allclose(kernel_of(table, GENES, GENES), kernel_of(expected, GENES, GENES))
    table = read(tmp_path / "b", "s.gmt.gz", gzip.compress(gmt.encode()))["s.gmt.gz"]
    np.testing.assert_allclose(kernel_of(table, GENES, GENES), kernel_of(expected, GENES, GENES))
    table = read(tmp_path / "c", "e.csv", "target,weight,source\nMED1,0.4,JAK2\nSTAT1,1,JAK2\n")["e.csv"]
    expected = edge_table(["JAK2", "JAK2"], ["MED1", "STAT1"])
    np.testing.assert_allclose(kernel_of(table, GENES, GENES), kernel_of(expected, GENES, GENES))


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
        (
            "t.csv.gz",
            gzip.compress(b"gene,x\nMED1,1\nJAK2,2\n")[:-12],
            r"t\.csv\.gz: cannot be read as csv: .*ended before",
        ),
        (
            "t.gmt.gz",
            gzip.compress(b"SET\tnote\tMED1\tJAK2\n")[:-12],
            r"t\.gmt\.gz: cannot be read as gmt: .*ended before",
        ),
        ("t.gmt.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"damaged " * 9, r"t\.gmt\.gz: cannot be read as gmt"),
        ("t.gmt.gz", b"SET\tnote\tMED1\n", r"t\.gmt\.gz: cannot be read as gmt: Not a gzipped file"),
        ("t.gmt", b"SET\tnote\tMED\xff\n", r"t\.gmt: cannot be read as gmt: .*codec can't decode"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*columns left out")
def test_files_that_are_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, name, content)
    assert "\n" not in str(error.value)


def test_parquet_without_its_reader_is_one_line(tmp_path, monkeypatch):
    pd.DataFrame({"x": [1.0, 2.0]}, index=GENES[:2]).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet: .*pyarrow") as error:
        read_features(tmp_path, GENES)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Element '/mine' was written without encoding")
def test_a_table_that_is_no_anndata_is_named(tmp_path):
    with h5py.File(tmp_path / "t.h5ad", "w") as file:
        file["mine"] = np.ones(3)
    with pytest.raises(DataError, match=r"t\.h5ad: cannot be read as h5ad") as error:
        read_features(tmp_path, GENES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message", "known"),
    [
        ("gene,x,y\nAAA,1,2\nBBB,2,3\n", r"t\.csv: none of its genes \(AAA, BBB\) is a perturbation", None),
        ("gene,x,y\nmed1,1,2\nJak2,2,1\n", r"t\.csv: gene symbols are not in upper case \(med1, Jak2\)", 2),
        ("gene,x,y\nMED1,1,2\nJak2,2,1\nOther,3,1\n", r"t\.csv: gene symbols are not in upper case \(Jak2\)", 2),
        ("gene,x,y\nMED1,1,2\n,2,1\nJAK2,3,1\n", r"t\.csv: 1 rows without a gene are left out", 2),
        ("source,target\nMED1,JAK2\n,JAK2\nSTAT1,\n", r"t\.csv: 2 edges without a source or target are left out", 2),
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


def test_sets_of_one_name_are_joined(tmp_path):
    with pytest.warns(UserWarning, match=r"t\.gmt: sets of the same name are joined: S"):
        table = read(tmp_path, "t.gmt", "\ufeffS\tn\tMED1\nT\tn\tSTAT1\tA\tB\nS\tn\tJAK2\n")["t.gmt"]
    assert kernel_of(table, ["MED1"], ["JAK2"]) == pytest.approx(1.0)


@pytest.mark.filterwarnings("error")
def test_columns_may_be_called_by_numbers(tmp_path):
    assert read(tmp_path, "t.csv", ",0,1\nMED1,1,2\nJAK2,2,1\n")["t.csv"].known(GENES).sum() == 2


def test_repeated_genes_are_averaged(tmp_path):
    with pytest.warns(UserWarning, match="averaged"):
        table = read(tmp_path, "t.csv", "gene,x,y\nMED1,1,2\nMED1,3,4\nJAK2,5,1\nSTAT1,0,0\n")["t.csv"]
    frame = pd.DataFrame({"x": [2.0, 5, 0], "y": [3.0, 1, 0]}, index=["MED1", "JAK2", "STAT1"])
    np.testing.assert_allclose(kernel_of(table, GENES, GENES), kernel_of(numeric_table(frame), GENES, GENES))


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
    alike, correlation = kernel_of(tables["co-expression"], genes, genes), np.corrcoef(X[genes].to_numpy(float).T)
    pairs = np.triu_indices(40, 1)
    assert np.corrcoef(alike[pairs], correlation[pairs])[0, 1] > 0.5
    detection = stats.detection.loc["NC"]
    np.testing.assert_allclose(np.diag(alike), detection[genes] ** 2)


def test_template_is_the_covariance_of_control_cells_turned_round(stats, challenge):
    pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, 0))
    template = training_knowledge(stats, pool, challenge.signatures, []).template
    X = pool.to_df()
    genes = X.columns[X.std() > 0.3][:40]
    product = template.profiles(genes, genes).to_numpy()
    pairs = np.triu_indices(40, 1)
    assert np.corrcoef(product[pairs], np.cov(X[genes].to_numpy(float).T)[pairs])[0, 1] < -0.5
    assert (np.diag(product) < 0).all(), "the target itself falls"


@pytest.fixture(scope="module")
def effects(stats):
    """What the training knock-outs do, and for the targets mixtures of that: knock-outs x genes."""
    means = stats.mean.drop(index=CRUNCH.control)
    return means - means.mean()


@pytest.fixture(scope="module")
def elsewhere(effects, challenge):
    """What another screen might have measured: the effects of training knock-outs, mixtures of them for the targets."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(len(challenge.targets), len(effects))) @ effects.to_numpy() / np.sqrt(len(effects))
    table = pd.concat([effects, pd.DataFrame(mixed, challenge.targets, effects.columns)])
    return table * rng.uniform(0.5, 1.5, table.shape[1]) + 0.2 * table.to_numpy().std() * rng.normal(size=table.shape)


def write(folder, tables):
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / name)


def noise_like(table, seed):
    return pd.DataFrame(np.random.default_rng(seed).normal(size=table.shape), table.index, table.columns)


def line_about(name, said):
    (line,) = [line for line in said.splitlines() if line.startswith(f"  {name}: ")]
    return line


def test_user_tables_reach_the_model_through_the_resources_folder(demo_folder, challenge, elsewhere, tmp_path, capsys):
    left, lengths, _ = np.linalg.svd(elsewhere, full_matrices=False)
    right = pd.DataFrame(left[:, :6] * lengths[:6], index=elsewhere.index)
    write(tmp_path / "features", {"right.csv": right, "noise.csv": noise_like(right, 1)})
    train(demo_folder, tmp_path)
    said = capsys.readouterr().out
    known = "knows 14 of 14 training and 12 of 12 predicted knock-outs; adds"
    number = r"[+-]0\.\d{3} ± 0\.\d{3} out of fold"
    assert re.fullmatch(rf"  right\.csv: {known} {number}; weight [\de.+-]+", line_about("right.csv", said))
    assert re.fullmatch(rf"  noise\.csv: {known} {number}; left out", line_about("noise.csv", said))
    model = Predictor.load(tmp_path / MODEL_FILE).expression
    assert "right.csv" in model.weights_.index
    assert "noise.csv" not in model.weights_.index
    assert model.judged_.loc[["right.csv", "noise.csv"], "coverage"].tolist() == [1, 1]
    expected = pd.read_csv(tmp_path / EXPECTED_FILE)
    assert expected.columns.tolist() == ["gene", "error", "pearson"]
    assert expected["gene"].tolist() == challenge.targets.tolist()


def test_a_screen_reaches_the_model_through_the_resources_folder(demo_folder, challenge, elsewhere, tmp_path, capsys):
    """It is said what it adds, and a knock-out that it measured is predicted as it measured it."""
    without = train(demo_folder, tmp_path / "without").predict_means(challenge.targets)
    write(
        tmp_path / "screens",
        {"right.csv": elsewhere.drop(index=challenge.targets[0]), "noise.csv": noise_like(elsewhere, 1)},
    )
    (tmp_path / "screens" / "README.md").write_text("about")
    capsys.readouterr()
    train(demo_folder, tmp_path)
    said = capsys.readouterr().out
    model = Predictor.load(tmp_path / MODEL_FILE)
    judged, transfer = model.expression.judged_, model.expression.transfers_["right.csv"]
    assert judged.loc["right.csv", "gain"] > 0.1
    assert transfer > 0.1
    assert line_about("right.csv", said) == (
        "  right.csv: knows 14 of 14 training and 11 of 12 predicted knock-outs; adds "
        f"{judged.loc['right.csv', 'gain']:+.3f} ± {judged.loc['right.csv', 'standard_error']:.3f} out of fold; "
        f"weight {model.expression.weights_['right.csv']:.2g}; transfer {transfer:.2f}"
    )
    assert line_about("noise.csv", said).endswith("out of fold; left out")
    assert "noise.csv" not in model.expression.transfers_.index
    truth = elsewhere.loc[challenge.targets[1:]].to_numpy()
    hits = [
        helpers.row_correlations((table - model.expression.reference_)[model.genes].to_numpy()[1:], truth).mean()
        for table in (model.predict_means(challenge.targets), without)
    ]
    assert hits[0] > 0.6 > hits[1] + 0.3


def test_neither_the_order_of_files_nor_the_threads_change_a_byte_of_the_model(
    demo_folder, effects, elsewhere, tmp_path, monkeypatch
):
    wide = pd.concat(
        [elsewhere, noise_like(pd.DataFrame(index=[f"K{i}" for i in range(200)], columns=effects.columns), 2)]
    )
    tables = {"a.csv": wide, "b.csv": elsewhere + noise_like(elsewhere, 3), "c.csv": noise_like(elsewhere, 4)}
    few = {name: table.iloc[:, :40] for name, table in tables.items()}
    glob, models = Path.glob, []
    for threads, order in ((1, list), (2, lambda paths: list(paths)[::-1])):
        folder = tmp_path / str(threads)
        write(folder / "screens", dict(order(tables.items())))
        write(folder / "features", {f"table {name}": table for name, table in order(few.items())})
        monkeypatch.setattr(Path, "glob", lambda self, pattern, order=order: order(sorted(glob(self, pattern))))
        with threadpool_limits(threads):
            train(demo_folder, folder)
        models.append((folder / MODEL_FILE).read_bytes())
    assert models[0] == models[1]
    judged = Predictor.load(tmp_path / "1" / MODEL_FILE).expression.judged_
    assert judged.loc[["a.csv", "table a.csv"], "enters"].sum() > 0


def test_one_name_for_a_table_and_a_screen_is_refused(demo_folder, elsewhere, tmp_path):
    for part in ("features", "screens"):
        write(tmp_path / part, {"mine.csv": elsewhere})
    with pytest.raises(DataError, match=r"^mine\.csv: in .*features and in .*screens; rename one"):
        train(demo_folder, tmp_path)
    assert not (tmp_path / MODEL_FILE).exists()


def test_a_bad_table_stops_training_before_anything_is_computed(folder, tmp_path, capsys):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "t.csv").write_text("gene;x\nA;1\n")
    with pytest.raises(DataError, match=r"t\.csv: only one column"):
        train(str(folder), str(tmp_path))
    assert "Reading cells" not in capsys.readouterr().err
    assert not (tmp_path / MODEL_FILE).exists()
