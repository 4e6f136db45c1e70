"""Screens: each form in which they are published, what is said of every kind of bad one, and what is kept of them."""

import gzip
import re
import sys
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import write_elem
from threadpoolctl import threadpool_limits

import screens
from helpers import DataError
from screens import COMPONENTS, Screen, read_screen, read_screens, scores_of_ranks, write_screen

GENES = ["MED1", "MED12", "JAK2", "STAT1", "POLR2A"]
RESPONSES = ["IRF1", "STAT1", "LEP", "FABP4"]


@pytest.fixture(autouse=True)
def no_warning_but_those_expected(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if "refused" in request.node.name else "error")
        yield


def frame(rows=GENES, columns=RESPONSES, seed=0):
    """Perturbations x responses."""
    values = np.random.default_rng(seed).normal(size=(len(rows), len(columns))).astype(np.float32)
    return pd.DataFrame(values, index=list(rows), columns=list(columns))


def written(path, content):
    """A file of a text, bytes or data frame in the form its name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".h5ad":
        ad.AnnData(content).write_h5ad(path)
    elif path.suffix == ".parquet":
        content.to_parquet(path)
    else:
        content.to_csv(path, sep="\t" if "tsv" in path.name.lower() else ",")
    return path


def ids(n):
    return [f"ENSG{i:011d}" for i in range(n)]


def published(X, genes=GENES, responses=RESPONSES, cells=None):
    """As Replogle et al. 2022: one row of X per entry of `genes`, the last two `non-targeting`."""
    number = {gene: i for i, gene in enumerate(dict.fromkeys(genes))}
    names = [
        f"{1000 + row}_{gene}_{'P1P2' if row % 2 else 'P1'}_ENSG{number[gene] + 500:011d}"
        if gene != "non-targeting"
        else f"{1000 + row}_non-targeting_non-targeting_non-targeting"
        for row, gene in enumerate(genes)
    ]
    obs = pd.DataFrame({"core_control": [gene == "non-targeting" for gene in genes]}, index=names)
    if cells is not None:
        obs["num_cells_filtered"] = cells
    var = pd.DataFrame({"gene_name": pd.Categorical(responses), "mean": 1.0}, index=ids(len(responses)))
    return ad.AnnData(np.asarray(X, np.float32), obs=obs.rename_axis("gene_transcript"), var=var)


def same(screen, expected, atol=1e-5):
    """The profiles are `expected`, relative to its mean, and no others."""
    assert screen.perturbations.tolist() == sorted(expected.index)
    assert screen.responses.tolist() == sorted(expected.columns)
    found = screen.profiles(expected.index, expected.columns)
    assert found.index.tolist() == list(expected.index)
    assert found.columns.tolist() == list(expected.columns)
    np.testing.assert_allclose(found, expected - expected.mean(), atol=atol)


# ---------------------------------------------------------------------------------------------------------------------
# Forms
# ---------------------------------------------------------------------------------------------------------------------


def test_the_published_form_is_averaged_by_cells_and_controls_are_left_out(tmp_path):
    genes = ["ZC3H18", "MED1", "ZC3H18", "JAK2", "non-targeting", "non-targeting"]
    X = frame(genes, ["A", "B", "A", "C"]).to_numpy()
    cells = [30, 50, 90, 20, 1000, 1000]
    published(X, genes, ["A", "B", "A", "C"], cells).write_h5ad(tmp_path / "s.h5ad")
    rows = {"ZC3H18": X[0] * 0.25 + X[2] * 0.75, "MED1": X[1], "JAK2": X[3]}
    expected = pd.DataFrame({name: [(x[0] + x[2]) / 2, x[1], x[3]] for name, x in rows.items()}, index=list("ABC")).T
    same(read_screen(tmp_path / "s.h5ad"), expected)
    same(read_screen(tmp_path / "s.h5ad", ["JAK2"]), expected)
    cells[2] = np.nan  # counts as one cell
    published(X, genes, ["A", "B", "A", "C"], cells).write_h5ad(tmp_path / "nan.h5ad")
    expected.loc["ZC3H18"] = pd.Series((X[0] * 30 + X[2]) / 31).groupby(["A", "B", "A", "C"]).mean()
    same(read_screen(tmp_path / "nan.h5ad"), expected)
    cells[0] = cells[1] = 0  # so does none
    published(X, genes, ["A", "B", "A", "C"], cells).write_h5ad(tmp_path / "none.h5ad")
    expected.loc["ZC3H18"] = pd.Series((X[0] + X[2]) / 2).groupby(["A", "B", "A", "C"]).mean()
    same(read_screen(tmp_path / "none.h5ad"), expected)


@pytest.mark.parametrize("form", ["dense", "float64", "int", "csr", "csc", "compressed"])
def test_every_kind_of_matrix_is_read(tmp_path, monkeypatch, form):
    monkeypatch.setattr(screens, "SLAB_BYTES", 4 * 4 * 3)  # three rows
    expected = frame() if form != "int" else (frame() * 100).round().astype(np.int32)
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "float64": lambda X: X.astype(np.float64)}
    X = make.get(form, np.asarray)(expected.to_numpy())
    adata = ad.AnnData(X, obs=pd.DataFrame(index=GENES), var=pd.DataFrame(index=RESPONSES))
    adata.write_h5ad(tmp_path / "s.h5ad", compression="gzip" if form == "compressed" else None)
    same(read_screen(tmp_path / "s.h5ad"), expected, atol=1e-3 if form == "int" else 1e-5)


@pytest.mark.parametrize(
    "name", ["t.csv", "t.tsv", "t.csv.gz", "t.TSV.GZ", "t.parquet", "t.h5ad", "R.csv", "R.parquet"]
)
def test_every_format_gives_the_same_screen(tmp_path, name):
    expected, path = frame(), tmp_path / name
    written(path, expected.reset_index() if name == "R.parquet" else expected)
    if name == "R.csv":  # R leaves out the name of the first column
        path.write_text(path.read_text().removeprefix(","))
    same(read_screen(path), expected)


def test_texts_as_they_come(tmp_path):
    """A byte-order mark, R's NA, a gene called NA, spaces and repeated responses."""
    text = "\ufeffgene, A,B,A\nNA,1,2,3\n JAK2 ,4,5,6\nMED1,7,NA,5\nSTAT1,1,1,1\n"
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    expected = pd.DataFrame({"A": [2.0, 5, 6, 1], "B": [2, 5, 8 / 3, 1]}, index=["NA", "JAK2", "MED1", "STAT1"])
    with pytest.warns(UserWarning, match=r"t\.csv: 1 missing or infinite values"):
        same(read_screen(path), expected)


def test_columns_that_describe_the_rows_are_no_responses(tmp_path):
    table = frame(["r1", "r2", "r3", "r4", "r5"])
    expected = table.iloc[1:].set_axis(["B", "C", "A", "D"])
    expected.loc["A"] = table.iloc[0] * 0.25 + table.iloc[3] * 0.75
    table.insert(0, "gene", ["A", "B", "C", "A", "D"])
    table["num_cells_filtered"] = [1, 5, 5, 3, 5]
    for name in ("t.csv", "t.parquet", "t.tsv.gz"):
        same(read_screen(written(tmp_path / name, table)), expected)


def test_the_order_of_rows_and_genes_does_not_matter(tmp_path):
    rng = np.random.default_rng(1)
    genes = [*GENES, "MED1", *(f"G{i}" for i in range(20)), "non-targeting"]
    responses = [*RESPONSES, "LEP", *(f"R{i}" for i in range(30))]
    adata = published(frame(genes, responses), genes, responses, rng.integers(20, 300, len(genes)))
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy().write_h5ad(tmp_path / "b.h5ad")
    a, b = read_screen(tmp_path / "a.h5ad"), read_screen(tmp_path / "b.h5ad")
    assert a.perturbations.equals(b.perturbations)
    assert a.responses.equals(b.responses)
    np.testing.assert_allclose(a.scores @ a.basis, b.scores @ b.basis, atol=1e-5)


def test_cells_are_averaged_by_slabs(tmp_path, peak_memory, monkeypatch):
    monkeypatch.setattr(screens, "SLAB_BYTES", 400_000)
    rng = np.random.default_rng(0)
    gene = rng.choice([*GENES, "NC"], 10_000)
    X = rng.normal(size=(10_000, 500)).astype(np.float32)
    columns = [f"R{i}" for i in range(500)]
    obs = pd.DataFrame({"gene": pd.Categorical(gene)}, index=[f"cell{i}" for i in range(10_000)])
    path = tmp_path / "cells.h5ad"
    ad.AnnData(X, obs=obs, var=pd.DataFrame(index=columns)).write_h5ad(path)
    read_screen(path)  # what is imported at the first call is not counted
    assert peak_memory(lambda: read_screen(path)) < X.nbytes / 2
    expected = pd.DataFrame(X, columns=columns).groupby(gene).mean().drop("NC")
    same(read_screen(path), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [None, ["JAK2", "OTHER"]])
@pytest.mark.parametrize(
    "case",
    ["obs column", "obs index", "var column", "var index", "versions", "obs ids for the responses"],
)
def test_ensembl_ids_become_symbols_by_what_the_file_says(tmp_path, case, wanted):
    X = frame(GENES, [*GENES, "LEP"]).to_numpy()
    symbols, numbers = [*GENES, "LEP"], ids(6)
    obs, var = pd.DataFrame(index=GENES), pd.DataFrame(index=symbols)
    if case == "obs column":  # ids in the index, symbols beside them
        obs = pd.DataFrame({"gene_name": GENES}, index=numbers[:5])
    elif case == "obs index":  # the other way round
        obs = pd.DataFrame({"gene": numbers[:5]}, index=GENES)
    elif case == "obs ids for the responses":
        obs = pd.DataFrame({"gene_symbol": pd.Categorical([*GENES[:4], "LEP"])}, index=[*numbers[:4], numbers[5]])
        var, symbols = pd.DataFrame(index=[*numbers[:4], "POLR2A", numbers[5]]), [*GENES, "LEP"]
    else:  # the responses know both
        obs = pd.DataFrame(index=numbers[:5])
        columns = (
            {"index": symbols, "gene_ids": numbers} if case == "var index" else {"index": numbers, "symbol": symbols}
        )
        var = pd.DataFrame(columns).set_index("index")
    if case == "versions":
        obs.index = [f"{number}.{i}" for i, number in enumerate(obs.index)]
        var.index = [f"{number}.{i + 7}" for i, number in enumerate(var.index)]
    ad.AnnData(X, obs=obs, var=var).write_h5ad(tmp_path / "s.h5ad")
    rows = [*GENES[:4], "LEP"] if case == "obs ids for the responses" else GENES
    same(read_screen(tmp_path / "s.h5ad", wanted), pd.DataFrame(X, rows, symbols))


def test_published_rows_name_responses_that_have_no_symbol(tmp_path):
    adata = published(frame(), [*GENES])
    adata.var = pd.DataFrame(index=[f"ENSG{i + 500:011d}" for i in range(4)])
    adata.write_h5ad(tmp_path / "s.h5ad")
    assert read_screen(tmp_path / "s.h5ad").responses.tolist() == sorted(GENES[:4])


def test_ids_without_a_symbol_are_told_of_and_stay(tmp_path):
    expected = frame(ids(5))
    path = written(tmp_path / "t.csv", expected.rename(index=lambda name: name + ".3"))
    with pytest.warns(
        UserWarning, match=r"t\.csv: 5 perturbations keep their Ensembl id \(ENSG00000000000, .* gene_name"
    ):
        same(read_screen(path, GENES), expected)


def test_a_symbol_that_is_missing_names_nothing(tmp_path):
    expected = frame(GENES, GENES)
    var = pd.DataFrame({"gene_name": [*GENES[:4], None]}, index=ids(5))
    ad.AnnData(expected.to_numpy(), obs=pd.DataFrame(index=ids(5)), var=var).write_h5ad(tmp_path / "s.h5ad")
    with pytest.warns(UserWarning, match=r"s\.h5ad: 1 perturbations keep their Ensembl id \(ENSG00000000004\)"):
        same(read_screen(tmp_path / "s.h5ad"), expected[GENES[:4]].set_axis([*GENES[:4], ids(5)[4]]))


@pytest.mark.parametrize(
    ("obs", "wanted", "found"),
    [
        ({"gene": GENES}, None, GENES),
        ({"perturbation": GENES, "gene": ["x"] * 5}, None, GENES),  # one value names nothing
        ({"perturbation": list("PQRST"), "gene_symbol": GENES}, ["JAK2"], GENES),
        ({"gene_symbol": list("PQRST"), "perturbation": GENES}, ["JAK2"], GENES),
        ({"gene": range(5)}, None, list("abcde")),  # numbers name nothing
        ({"gene": list("PQRST")}, ["c"], list("abcde")),  # the index
        ({"gene": ["", "nan", None, *GENES[:3]]}, None, GENES[:3]),
        ({"gene": ["NC", *GENES[:3], "JAK2+MED1"]}, None, [*GENES[:3], "JAK2+MED1"]),
        ({"gene": ["ctrl", "MED1+ctrl", "ctrl+JAK2", "JAK2+MED1"]}, None, ["MED1", "JAK2", "JAK2+MED1"]),
    ],
)
def test_names_stand_in_the_index_or_in_a_column(tmp_path, obs, wanted, found):
    n = len(next(iter(obs.values())))
    table = frame(list("abcdef")[:n])
    ad.AnnData(table.to_numpy(), obs=pd.DataFrame(obs, index=table.index)).write_h5ad(tmp_path / "s.h5ad")
    assert read_screen(tmp_path / "s.h5ad", wanted).perturbations.tolist() == sorted(found)


@pytest.mark.parametrize(
    "name",
    [
        *("control", "Control", "CTRL", "NC", "nc", "non-targeting", "Non_Targeting", "non-targeting_00123", "NTC"),
        *("ntc-4", "DMSO", "dmso_0.1", "vehicle", "Negative Control", "scrambled", "safe-targeting", "untreated"),
        *("ctrl+ctrl", "", " "),
    ],
)
def test_controls_are_no_perturbations(tmp_path, name):
    expected = frame()
    path = written(tmp_path / "t.tsv", pd.concat([expected, frame([name], seed=1) + 100]))
    same(read_screen(path), expected)


@pytest.mark.parametrize("name", ["CONTROL2A", "NTRK1", "NCOA1", "WT1", "MOCS1", "NEGR1", "CTRC"])
def test_genes_are_no_controls(tmp_path, name):
    expected = frame([*GENES, name])
    same(read_screen(written(tmp_path / "t.csv", expected)), expected)


@pytest.mark.parametrize("file", ["t.csv", "t.h5ad", "small.h5ad"])
def test_other_case_is_matched_with_one_warning(tmp_path, file):
    expected, path = frame(), tmp_path / file
    mouse = expected.rename(index=str.capitalize, columns=str.capitalize)
    written(tmp_path / "t.h5ad", mouse)
    written(path, mouse)
    if file == "small.h5ad":
        write_screen(path, read_screen(tmp_path / "t.h5ad"))
    with pytest.warns(UserWarning, match=r"gene symbols are not in upper case \(Jak2, |\(Med1, ") as caught:
        found = read_screen(path, [*GENES, "STAT1"])
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{path}: ")
    assert sorted(found.perturbations) == sorted(GENES)
    assert sorted(found.responses) == sorted(RESPONSES)
    assert sorted(read_screen(path).perturbations) == sorted(mouse.index), "as they are, where nobody asks for any"


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.h5ad", "t.csv", "t.parquet"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_missing_counts_as_the_mean_and_what_is_mostly_missing_is_left_out(tmp_path, name, bad):
    table = frame([*GENES, "MED1", "LOST"], [*RESPONSES, "GONE"]).astype(np.float64)
    table.iloc[:4, 4] = bad  # of 7 rows
    table.iloc[6] = bad
    table.iloc[0, 0] = bad  # MED1 has another row
    table.iloc[1, 1] = bad
    expected = table.replace([np.inf, -np.inf, 1e39], np.nan).groupby(level=0, sort=False).mean()
    expected = expected.drop(index="LOST", columns="GONE")
    assert expected.isna().to_numpy().sum() == 1
    path = tmp_path / name
    if name == "s.h5ad":
        obs = pd.DataFrame({"gene": list(table.index)}, index=list("abcdefg"))
        ad.AnnData(table.to_numpy(), obs=obs, var=pd.DataFrame(index=table.columns)).write_h5ad(path)
    else:
        written(path, table)
    said = "11 missing or infinite values; responses left out: GONE; perturbations left out: LOST; elsewhere"
    with pytest.warns(UserWarning, match=f"{re.escape(f'{path}: {said}')}") as caught:
        same(read_screen(path), expected.fillna(expected.mean()))
    assert len(caught) == 1


RANKS = [[0, 2, 1, 0], [1, 2, 4, 3], [0, 0, 0, 0], [0, 0, 0, 1], [3, 1, 0, 2]]
SCORES = [[0, 0.5, 1, 0], [1, 0.75, 0.25, 0.5], [0, 0, 0, 0], [0, 0, 0, 1], [1 / 3, 1, 0, 2 / 3]]


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_ranks_become_scores(dtype):
    ranks = pd.DataFrame(RANKS, GENES, RESPONSES, dtype=dtype)
    pd.testing.assert_frame_equal(scores_of_ranks(ranks), pd.DataFrame(SCORES, GENES, RESPONSES, dtype=np.float32))
    np.testing.assert_allclose(scores_of_ranks(ranks.to_numpy()), np.float32(SCORES))


@pytest.mark.parametrize(
    "row", [[0, 1, 1, 0], [0, 2, 3, 0], [2, 0, 0, 0], [1, 2, 3, 5], [0, -1, 1, 0], [0, 1.5, 1, 0], [0, 1, np.nan, 2]]
)
def test_one_row_that_is_no_ranking_makes_numbers_of_all(tmp_path, monkeypatch, row):
    monkeypatch.setattr(screens, "SLAB_BYTES", 4 * 4 * 2)  # two rows
    table = pd.DataFrame([*RANKS[:4], row], GENES, RESPONSES)
    assert scores_of_ranks(table) is None
    if not np.isnan(row).any():
        same(read_screen(written(tmp_path / "t.csv", table)), table)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.h5ad"])
def test_a_file_of_ranks_says_so(tmp_path, monkeypatch, name):
    monkeypatch.setattr(screens, "SLAB_BYTES", 4 * 4 * 2)  # two rows
    # Controls may hold anything.
    table = pd.DataFrame([*RANKS, [7, 7, 7, 7]], [*GENES, "NC"], RESPONSES, dtype=np.float32)
    with pytest.warns(
        UserWarning, match=r"ranks \(1 is the strongest of k\) are turned into scores, \(k \+ 1 - rank\)"
    ):
        same(read_screen(written(tmp_path / name, table)), pd.DataFrame(SCORES, GENES, RESPONSES))
    with pytest.raises(UserWarning, match="turned into scores"):  # where warnings are errors, they say what they are
        read_screen(tmp_path / name)


def test_components_are_exact_where_they_are_few_and_the_best_where_not():
    rng = np.random.default_rng(0)
    for shape in ((30, 900), (COMPONENTS, 700), (900, 60)):
        values = rng.normal(size=shape).astype(np.float32)
        scores, basis = screens._components(values)
        assert scores.dtype == basis.dtype == np.float32
        np.testing.assert_allclose(scores @ basis, values, atol=1e-5)
    strength = np.arange(1, 801) ** -0.5  # falls slowly: the hard case
    values = (rng.normal(size=(900, 800)) * strength @ rng.normal(size=(800, 1000))).astype(np.float32)
    values -= values.mean(axis=0)
    scores, basis = screens._components(values)
    assert scores.shape == (900, COMPONENTS)
    np.testing.assert_allclose(basis @ basis.T, np.eye(COMPONENTS), atol=1e-5)
    lengths = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    left = np.linalg.norm(values - scores @ basis)
    assert left < 1.005 * np.linalg.norm(lengths[COMPONENTS:])
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0)[:100], lengths[:100], rtol=1e-4)


def test_components_that_are_none_are_left_out():
    values = np.random.default_rng(0).normal(size=(40, 2)) @ np.random.default_rng(1).normal(size=(2, 50))
    scores, basis = screens._components(values.astype(np.float32))
    assert (scores.shape, basis.shape) == ((40, 2), (2, 50))


def test_the_same_bytes_whatever_the_threads():
    values = np.random.default_rng(0).normal(size=(700, 900)).astype(np.float32)
    with threadpool_limits(1):
        expected = screens._components(values)
    with threadpool_limits(4):
        found = screens._components(values)
    for left, right in zip(expected, found, strict=True):
        assert left.tobytes() == right.tobytes()


def test_profiles_are_of_the_names_asked_for(tmp_path):
    table = frame()
    screen = read_screen(written(tmp_path / "t.csv", table))
    found = screen.profiles(["JAK2", "MED1"], ["LEP", "LEP", "IRF1"])
    expected = (table - table.mean()).loc[["JAK2", "MED1"], ["LEP", "LEP", "IRF1"]]
    pd.testing.assert_frame_equal(found, expected.astype(np.float32), atol=1e-6)
    with pytest.raises(KeyError, match="lacks the perturbations OTHER"):
        screen.profiles(["JAK2", "OTHER"], ["LEP"])
    with pytest.raises(KeyError, match="lacks the responses JAK2"):
        screen.profiles(["JAK2"], ["LEP", "JAK2"])


# ---------------------------------------------------------------------------------------------------------------------
# The small form
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1.0, 1e8, 1e-8])
@pytest.mark.parametrize("shape", [(12, 30), (450, 600)])
def test_the_small_form_comes_back_within_a_thousandth(tmp_path, unit, shape):
    rng = np.random.default_rng(0)
    strength = 10.0 ** -np.arange(0, 3, 0.25)  # the last components are a thousand times as small
    values = rng.normal(size=(shape[0], 12)) * strength @ rng.normal(size=(12, shape[1])) * unit
    if shape[0] > COMPONENTS:
        values += rng.normal(size=shape) * unit
    table = pd.DataFrame(values, [f"P{i}" for i in range(shape[0])], [f"R{i}" for i in range(shape[1])])
    whole = read_screen(written(tmp_path / "t.parquet", table))
    write_screen(tmp_path / "small.h5ad", whole)
    small = read_screen(tmp_path / "small.h5ad", ["P1"])
    assert small.perturbations.equals(whole.perturbations)
    assert small.responses.equals(whole.responses)
    assert small.scores.dtype == small.basis.dtype == np.float32
    profiles = whole.scores @ whole.basis
    error = small.scores @ small.basis - profiles
    assert np.sqrt((error**2).mean()) < 1e-3 * np.sqrt((profiles**2).mean())
    np.testing.assert_allclose(np.linalg.norm(small.scores, axis=0), np.linalg.norm(whole.scores, axis=0), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(small.basis, axis=1), 1, rtol=1e-3)
    write_screen(tmp_path / "again.h5ad", small)
    again = read_screen(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.basis, small.basis)
    np.testing.assert_allclose(again.scores, small.scores, rtol=1e-6)
    with h5py.File(tmp_path / "again.h5ad", "a") as file:
        write_elem(file, "X", None)  # as newer versions of anndata say that there is none
    np.testing.assert_array_equal(read_screen(tmp_path / "again.h5ad").scores, again.scores)
    adata = ad.read_h5ad(tmp_path / "small.h5ad")
    assert adata.X is None
    assert adata.obsm["components"].dtype == adata.varm["components"].dtype == np.float16
    if shape[0] > COMPONENTS:
        assert (tmp_path / "small.h5ad").stat().st_size < 2.2 * COMPONENTS * sum(shape)


def test_a_component_may_be_empty(tmp_path):
    scores = np.array([[1, 0], [2, 0], [-3, 0]], np.float32)
    write_screen(
        tmp_path / "s.h5ad", Screen(pd.Index(GENES[:3]), pd.Index(RESPONSES), scores, np.eye(4, dtype="f4")[:2])
    )
    np.testing.assert_allclose(read_screen(tmp_path / "s.h5ad").scores, scores, rtol=1e-3)


def small_form(path, change):
    write_screen(path, Screen(pd.Index(GENES), pd.Index(RESPONSES), np.ones((5, 1), "f4"), np.ones((1, 4), "f4")))
    adata = ad.read_h5ad(path)
    change(adata)
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.uns.clear(), "neither X nor components; put perturbations x responses into X"),
        (lambda a: a.obsm.clear(), "neither X nor components"),
        (lambda a: a.uns.update(components=np.ones(2)), r"components \(5, 1\) and \(4, 1\) do not fit together"),
        (lambda a: a.obsm.update(components=np.full((5, 1), np.nan)), "missing or infinite values in the components"),
        (lambda a: a.uns.update(components={"scale": 1.0}), "cannot be read as h5ad"),
        (lambda a: setattr(a, "obs_names", list("AABCD")), "obs: duplicated names A"),
        (lambda a: setattr(a, "var_names", list("ABCB")), "var: duplicated names B"),
    ],
)
def test_a_small_form_that_was_changed_is_refused(tmp_path, change, message):
    path = small_form(tmp_path / "s.h5ad", change)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: {message}"):
        read_screen(path)


def test_a_screen_is_written_as_h5ad(tmp_path):
    screen = Screen(pd.Index(GENES), pd.Index(RESPONSES), np.ones((5, 1), "f4"), np.ones((1, 4), "f4"))
    with pytest.raises(DataError, match=r"s\.csv: a screen is written as \.h5ad"):
        write_screen(tmp_path / "s.csv", screen)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and folders
# ---------------------------------------------------------------------------------------------------------------------

GTF = (
    '#!genome\nchr1\tHAVANA\tgene\t1\t9\t.\t+\t.\tgene_id "ENSG1";\nchr1\tHAVANA\tgene\t2\t8\t.\t+\t.\tgene_id "E2";\n'
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.pkl",
            b"\x80\x04",
            r"a pickle can run any code; never unpickle a download; save it as csv, parquet or h5ad",
        ),
        ("t.pkl.gz", b"", r"a pickle can run any code; never unpickle a download"),
        ("t.pt", b"", r"a pickle can run any code; never unpickle a download"),
        ("t.gtf.gz", b"", r"not a screen; use \.h5ad, \.parquet, \.csv, \.csv\.gz, \.tsv, \.tsv\.gz"),
        ("t.h5ad.gz", b"", r"not a screen; use"),
        ("t.xlsx", b"", r"not a screen; use"),
        ("noend", b"", r"not a screen; use"),
        ("t.tsv", GTF, r"only one column, #!genome; a \.csv is separated by commas, a \.tsv by tabs"),
        ("t.csv", "gene\tx\ty\nMED1\t1\t2\n", r"only one column, gene\tx\ty; a \.csv is separated by commas"),
        ("t.csv", "", r"cannot be read as csv, perhaps a broken download: "),
        ("t.csv", "gene,x,y\n", r"cannot be read as csv"),
        ("t.csv", "gene,x,y\nA,1,2\nB,1,2,3,4\n", r"cannot be read as csv"),
        ("t.csv", b"gene,x\n\xff\xfe,1\n", r"cannot be read as csv"),
        ("t.csv.gz", gzip.compress(b"gene,x,y\nA,1,2\n" * 99)[:-20], r"cannot be read as csv\.gz"),
        ("t.csv.gz", "gene,x,y\nA,1,2\n", r"cannot be read as csv\.gz"),
        ("t.csv", "gene,x,note\nA,1,a\nB,2,b\nC,3,c\n", r"columns that are not numbers: note; take them out"),
        ("t.csv", "gene,x,y\nA,1,2\nB,2;5,3\nC,3,4\n", r"columns that are not numbers: x; take them out"),
        ("t.csv", "gene,x,y\nA,1,2\nB,2,3\n", r"only 2 perturbations besides controls \(A, B\); at least 3 are needed"),
        ("t.csv", "gene,x,y\nA,1,2\nB,2,3\nA,4,4\nNC,5,5\n", r"only 2 perturbations besides controls \(A, B\)"),
        ("t.csv", "gene,x,y\nNC,1,2\nctrl,2,3\nNTC,4,4\n", r"only 0 perturbations besides controls \(\); at least 3"),
        ("t.csv", "gene,x\nA,1\nB,2\nC,3\n", r"only 1 responses with numbers \(x\); at least 2 are needed"),
        ("t.csv", "gene,x,x\nA,1,2\nB,2,3\nC,3,4\n", r"only 1 responses with numbers \(x\)"),
        ("t.csv", "gene,x,y\nA,1,\nB,2,\nC,3,\n", r"only 1 responses with numbers \(x\)"),
        ("t.csv", "gene,x,y\nA,,\nB,,\nC,,\n", r"only 0 (perturbations|responses)"),
        ("t.csv", "gene,x,y\nA,0.1,7\nB,0.1,7\nC,0.1,7\n", r"every perturbation has the same values"),
        ("t.parquet", b"nonsense", r"cannot be read as parquet"),
        ("t.parquet", pd.DataFrame({"x": [1.0, 2, 3], "y": [1.0, 2, 4]}), r"no names of perturbations in the index or"),
        ("t.parquet", frame().assign(note="a"), r"columns that are not numbers: note"),
        ("t.h5ad", b"nonsense", r"cannot be read as h5ad, perhaps a broken download"),
        ("t.h5ad", frame(["NC", "A", "control", "B"]), r"only 2 perturbations besides controls \(A, B\)"),
        ("t.h5ad", frame(columns=["x"]), r"only 1 responses"),
        ("t.h5ad", frame() * 0, r"every perturbation has the same values"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: {message}") as caught:
        read_screen(path, GENES)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        read_screens(tmp_path, GENES)


def test_h5ad_files_that_are_refused(tmp_path):
    path = tmp_path / "s.h5ad"
    ad.AnnData(obs=pd.DataFrame(index=GENES), var=pd.DataFrame(index=RESPONSES)).write_h5ad(path)
    with pytest.raises(DataError, match=r"s\.h5ad: neither X nor components"):
        read_screen(path)
    ad.AnnData(np.ones((5, 0), np.float32), obs=pd.DataFrame(index=GENES)).write_h5ad(path)
    with pytest.raises(DataError, match=r"s\.h5ad: only 0 responses with numbers \(\); at least 2 are needed"):
        read_screen(path)
    whole = frame([f"P{i}" for i in range(99)], [f"R{i}" for i in range(999)])
    content = written(path, whole).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"s\.h5ad: cannot be read as h5ad, perhaps a broken download: "):
        read_screen(path)
    for damage, message in (
        (lambda file: file.__delitem__("obs"), "cannot be read as h5ad"),
        (lambda file: file["obs"].attrs.update({"encoding-type": "of tomorrow"}), "cannot be read as h5ad"),
        (
            lambda file: (file.__delitem__("X"), file.create_dataset("X", data=np.ones((3, 3)))),
            r"X is \(3, 3\), but obs",
        ),
        (
            lambda file: (file.__delitem__("obs"), file.create_dataset("obs", data=np.ones(99))),
            "obs or var is no table",
        ),
    ):
        written(path, whole)
        with h5py.File(path, "a") as file:
            damage(file)
        with pytest.raises(DataError, match=rf"s\.h5ad: {message}"):
            read_screen(path)


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    path = written(tmp_path / "t.parquet", frame())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    with pytest.raises(
        DataError, match=r"t\.parquet: reading parquet needs pyarrow; install it, or save .* as csv or h5ad"
    ):
        read_screen(path)


def test_text_at_the_end_of_a_long_file_is_one_error(tmp_path):
    head = ",".join(["gene", *(f"x{i}" for i in range(100))])
    path = written(tmp_path / "t.csv", f"{head}\n{('MED1' + ',1' * 100 + chr(10)) * 20_000}JAK2,a{',2' * 99}\n")
    with pytest.raises(DataError, match=r"columns that are not numbers: x0; take them out"):
        read_screen(path)


def test_progress_names_the_file(tmp_path, capsys):
    read_screen(written(tmp_path / "k562.csv", frame([f"P{i}" for i in range(450)], [f"R{i}" for i in range(450)])))
    said = capsys.readouterr().err
    assert "k562.csv: reading perturbations" in said
    assert "k562.csv: finding components" in said


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"s\.h5ad: no such file"):
        read_screen(tmp_path / "s.h5ad")


def test_a_folder_gives_its_screens_by_name(tmp_path):
    folder = tmp_path / "screens"
    assert read_screens(folder, GENES) == {}
    written(folder / "b.csv", frame())
    written(folder / "a.parquet", frame([*GENES[:3], "X1"]))
    for name in ("README.md", "licence.txt", "sources.json", ".hidden.pkl"):
        written(folder / name, "about")
    found = read_screens(folder, iter(GENES))
    assert list(found) == ["a.parquet", "b.csv"]
    same(found["b.csv"], frame())
    written(folder / "drugs.csv", frame(["aspirin", "caffeine", "water"]))
    message = (
        r"drugs\.csv: none of its perturbations \(aspirin, caffeine, water\) is a perturbation or target; left out"
    )
    with pytest.warns(UserWarning, match=message):
        assert list(read_screens(folder, GENES)) == ["a.parquet", "b.csv"]
    written(folder / "sets.gmt", "SET\tnote\tMED1\n")
    with pytest.raises(DataError, match=r"sets\.gmt: not a screen"), pytest.warns(UserWarning, match="left out"):
        read_screens(folder, GENES)
