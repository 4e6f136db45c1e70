"""Every rule of the platform: a valid submission passes, and each rule broken once is caught."""

import re
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from workbench import validate
from workbench.validate import main, validate_method_description, validate_prediction_folder, validate_submission

PERTURBATIONS = ["ZBTB20", "CHD4", "SOX6"]
GENES = ["PLIN1", "ADIPOQ", "LPL"]


def make_prediction() -> ad.AnnData:
    """Valid cells: 100 a perturbation, one gene more than asked for, in another order, negative values among them."""
    obs = pd.DataFrame({"gene": np.repeat(PERTURBATIONS, 100)}).rename(str)
    X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    return ad.AnnData(X, obs, pd.DataFrame(index=["LPL", "FABP4", "ADIPOQ", "PLIN1"]))


def make_table() -> pd.DataFrame:
    """Valid proportions; the rows and columns stand in another order than asked for."""
    table = {"other": 0.3, "lipo": 0.4, "adipo": 0.4, "pre_adipo": 0.3004, "gene": PERTURBATIONS[::-1]}
    return pd.DataFrame(table)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "prediction"
    folder.mkdir()
    (folder / ".gitkeep").touch()
    make_prediction().write_h5ad(folder / "prediction.h5ad")
    make_table().to_csv(folder / "predict_program_proportion.csv", index=False)
    return folder


def problems_of(folder) -> list[str]:
    return validate_prediction_folder(folder, PERTURBATIONS, GENES)


def test_a_valid_submission_has_no_problem(folder):
    assert problems_of(folder) == []


def test_a_sparse_prediction_is_valid(folder):
    prediction = make_prediction()
    for matrix in (sparse.csr_matrix, sparse.csc_matrix):
        prediction.X = matrix(prediction.X)
        prediction.write_h5ad(folder / "prediction.h5ad")
        assert problems_of(folder) == []


def test_another_number_of_cells_can_be_asked_for(folder):
    files = folder / "prediction.h5ad", folder / "predict_program_proportion.csv"
    assert validate_submission(*files, PERTURBATIONS, GENES) == []
    (problem,) = validate_submission(*files, PERTURBATIONS, GENES, cells_per_perturbation=50)
    assert "ZBTB20 100" in problem
    assert "exactly 50" in problem


def gone(name):
    return lambda folder: (folder / name).unlink()


def extra_file(folder):
    (folder / "scratch.npy").touch()


def extra_folder(folder):
    (folder / "cache").mkdir()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (gone("prediction.h5ad"), "prediction.h5ad: the file is missing"),
        (gone("predict_program_proportion.csv"), "predict_program_proportion.csv: the file is missing"),
        (extra_file, "scratch.npy: unexpected file"),
        (extra_folder, "cache: unexpected file"),
    ],
)
def test_exactly_the_two_files(folder, harm, says):
    harm(folder)
    (problem,) = problems_of(folder)
    assert problem.startswith(says)


def other_column(p):
    p.obs["pre_adipo"] = 0.1
    return p


def renamed_column(p):
    p.obs = p.obs.rename(columns={"gene": "perturbation"})
    return p


def unnamed_cell(p):
    p.obs["gene"] = p.obs["gene"].astype("category")
    p.obs.iloc[7, 0] = np.nan
    return p


def repeated_gene(p):
    p.var_names = ["LPL", "PLIN1", "ADIPOQ", "PLIN1"]
    return p


def with_value(value):
    def harm(p):
        p.X[299, 2] = value
        return p

    return harm


def sparse_nan(p):
    p.X[299, 2] = np.nan
    p.X = sparse.csr_matrix(p.X)
    return p


def no_x(p):
    return ad.AnnData(obs=p.obs, var=p.var)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (other_column, "obs has the columns gene, pre_adipo"),
        (renamed_column, "obs has the columns perturbation"),
        (unnamed_cell, "obs column gene is empty in 1 cells"),
        (lambda p: p[:200].copy(), r"obs column gene lacks 1 \(SOX6\)"),
        (lambda p: p[1:].copy(), "not 100 cells for ZBTB20 99"),
        (lambda p: ad.concat([p, p[:1]], index_unique="-"), "not 100 cells for ZBTB20 101"),
        (lambda p: p[:, ["PLIN1", "FABP4"]].copy(), r"var names lack 2 genes \(ADIPOQ, LPL\)"),
        (repeated_gene, "var names PLIN1 stand more than once"),
        (with_value(np.nan), "X has 1 values that are NaN or infinite, in perturbation SOX6, gene ADIPOQ"),
        (with_value(-np.inf), "X has 1 values that are NaN or infinite, in perturbation SOX6, gene ADIPOQ"),
        (sparse_nan, "X has 1 values that are NaN or infinite"),
        (no_x, "X is missing"),
    ],
)
def test_each_rule_of_the_cells(folder, harm, says, monkeypatch):
    monkeypatch.setattr(validate, "SLAB_VALUES", 64)  # 16 cells a slab: the bad one is in the last, which is not full
    harm(make_prediction()).write_h5ad(folder / "prediction.h5ad")
    problems = problems_of(folder)
    assert any(re.search(f"prediction.h5ad: .*{says}", problem) for problem in problems), problems


def test_numbers_of_another_kind_or_shape_are_refused(folder):
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        del file["X"]
        file["X"] = np.full((300, 4), b"0.1")
    assert "not numbers" in problems_of(folder)[0]
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        del file["X"]
        file["X"] = np.zeros((4, 300))
    assert "X is (4, 300), obs and var say (300, 4)" in problems_of(folder)[0]


def test_a_file_that_is_no_h5ad_is_named(folder):
    (folder / "prediction.h5ad").write_text("gene,value\n")
    assert "prediction.h5ad: not a readable h5ad file" in problems_of(folder)[0]


def cell(row, column, value):
    def harm(table):
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return harm


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda t: t.drop(columns="lipo"), "the columns lack lipo"),
        (lambda t: t.assign(lipo_adipo=1.0), "the columns lipo_adipo are not allowed"),
        (lambda t: t.iloc[1:], "column gene lacks SOX6"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "column gene repeats SOX6"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(gene="NC")]), "column gene has unasked NC"),
        (cell(1, "gene", None), "column gene is NaN in 1 rows"),
        (cell(1, "other", None), "column other is NaN for CHD4"),
        (cell(1, "adipo", np.inf), "column adipo is infinite for CHD4"),
        (cell(1, "lipo", "a tenth"), "column lipo is no number for CHD4"),
        (cell(1, "lipo", 0.41), "column lipo exceeds adipo for CHD4"),
        (cell(1, "lipo", -0.1), "column lipo is negative for CHD4"),
        (lambda t: t.assign(pre_adipo=[1.2, 0.3, 0.3], other=[-0.6, 0.3, 0.3]), "column other is negative for SOX6"),
        (cell(1, "other", 0.302), "pre_adipo \\+ adipo \\+ other is not 1 for CHD4"),
        (cell(2, "other", 0.297), "pre_adipo \\+ adipo \\+ other is not 1 for ZBTB20"),
    ],
)
def test_each_rule_of_the_proportions(folder, harm, says):
    harm(make_table()).to_csv(folder / "predict_program_proportion.csv", index=False)
    problems = problems_of(folder)
    assert any(re.search(f"predict_program_proportion.csv: .*{says}", problem) for problem in problems), problems


def test_an_index_column_and_an_empty_table_are_refused(folder):
    path = folder / "predict_program_proportion.csv"
    make_table().to_csv(path)
    assert "the columns Unnamed: 0 are not allowed" in problems_of(folder)[0]
    path.write_text("")
    assert "not a readable CSV file" in problems_of(folder)[0]


def test_a_problem_names_the_first_few_and_counts_the_rest(folder):
    asked = [*PERTURBATIONS, *(f"GENE{i}" for i in range(8))]
    problems = validate_prediction_folder(folder, asked, GENES)
    assert "GENE0, GENE1, GENE2, GENE3, GENE4 and 3 more" in problems[0]


METHOD = """# Method Description
<!-- what was done -->
We predict cells. Each is drawn! Why? For two reasons: speed; and
calm.

# Rationale
It works. It is small. It is fast. It is short.
# Data and Resources Used
The organisers' data
"""


def test_a_valid_method_description_has_no_problem(tmp_path):
    path = tmp_path / "Method description.md"
    path.write_text(METHOD, newline="\r\n")
    assert validate_method_description(METHOD) == []
    assert validate_method_description(path) == []
    assert validate_method_description(str(path), submission=tmp_path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (METHOD + "x" * 4 * 1024 * 1024, "bytes, at most 4194304"),
        (METHOD + "caf\u00e9", r"outside ASCII ('\xe9')"),
        (METHOD.replace("# Rationale", "# Reason"), "0 headings `# Rationale`"),
        (METHOD.replace("# Rationale\n", "Rationale\n"), "0 headings `# Rationale`"),
        (METHOD.replace("# Rationale\n", "<!-- # Rationale -->Because\n"), "0 headings `# Rationale`"),
        (METHOD + "## Method Description\n", "2 headings `# Method Description`"),
        (METHOD.replace(" Used", ""), "0 headings `# Data and Resources Used`"),
        (METHOD.replace("It is short.", ""), "14 sentences or lines, 15 are needed"),
        (METHOD.replace("It is short.", "<!-- a. b. -->"), "14 sentences or lines, 15 are needed"),
        (METHOD.replace("It is short.", "<!-- a.\nb.\n-->"), "14 sentences or lines, 15 are needed"),
    ],
)
def test_each_rule_of_the_method_description(text, says):
    (problem,) = validate_method_description(text)
    assert problem.startswith("Method description.md: ")
    assert says in problem


def test_the_method_description_lies_at_the_top(tmp_path):
    (tmp_path / "resources").mkdir()
    missing, inside, misnamed = (
        tmp_path / p for p in ("Method description.md", "resources/Method description.md", "METHOD.md")
    )
    inside.write_text(METHOD)
    misnamed.write_text(METHOD)
    assert "the file is missing" in validate_method_description(missing)[0]
    for path, submission in ((inside, None), (inside, tmp_path), (misnamed, None)):
        (problem,) = validate_method_description(path, submission=submission)
        assert "put it at the top level of the submission" in problem


def test_the_command_prints_ok_or_the_problems(folder, tmp_path, capsys):
    data, method = tmp_path / "data", tmp_path / "Method description.md"
    data.mkdir()
    (data / "program_proportion_local_gtruth.csv").write_text("gene,adipo\nSOX6,0.1\nZBTB20,0.1\nCHD4,0.1\n")
    (data / "predict_perturbations.txt").write_text("PPARG\nCEBPA\n")
    (data / "genes_to_predict.txt").write_text("PLIN1\nLPL\n")
    method.write_text(METHOD)

    assert main([str(folder), str(data), str(method)]) == 0
    assert capsys.readouterr().out == "OK\n"
    assert main([str(folder), str(data), "--cloud"]) == 1
    assert "prediction.h5ad: obs column gene lacks 2 (PPARG, CEBPA)" in capsys.readouterr().out
    shutil.copy(method, method.with_name("README.md"))
    assert main([str(folder), str(data), str(method.with_name("README.md"))]) == 1


def test_genes_may_be_called_na_and_names_may_hold_spaces(tmp_path):
    """One name a line, as `helpers` reads them, with or without a byte-order mark."""
    names = ["NA", "nan", "null", "HLA A", "None"]
    folder, data = tmp_path / "prediction", tmp_path / "data"
    for made in (folder, data):
        made.mkdir()
    obs = pd.DataFrame({"gene": np.repeat(names, 100)}).rename(str)
    cells = ad.AnnData(np.zeros((500, 5), np.float32), obs, pd.DataFrame(index=names))
    cells.write_h5ad(folder / "prediction.h5ad")
    table = pd.DataFrame({"gene": names, "pre_adipo": 0.3, "adipo": 0.4, "lipo": 0.1, "other": 0.3})
    table.to_csv(folder / "predict_program_proportion.csv", index=False)
    table.to_csv(data / "program_proportion_local_gtruth.csv", index=False)
    (data / "genes_to_predict.txt").write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    (data / "predict_perturbations.txt").write_text(" NA\r\nnan \r\n\nnull\nHLA A\nNone", encoding="utf-8-sig")
    for words in ([], ["--cloud"]):
        assert main([str(folder), str(data), *words]) == 0


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("dataset", "place", "value", "says"),
    [
        ("indices", 5, 10**6, "X has values outside its (4 genes|300 cells)"),
        ("indices", -1, -1, "X has values outside its (4 genes|300 cells)"),
        ("indptr", 1, 0, ""),
        ("indptr", 0, 1, "X has an indptr that does not rise from 0 to its 1200 values"),
        ("indptr", 2, 1199, "X has an indptr that does not rise"),
        ("indptr", -1, 1199, "X has an indptr that does not rise"),
    ],
)
def test_sparse_values_lie_where_they_can(folder, kind, dataset, place, value, says, monkeypatch):
    monkeypatch.setattr(validate, "SLAB_VALUES", 64)
    prediction = make_prediction()
    prediction.X = kind(prediction.X)
    prediction.write_h5ad(folder / "prediction.h5ad")
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        file["X"][dataset][place] = value
    problems = problems_of(folder)
    assert len(problems) == bool(says)
    if says:
        assert re.search(says, problems[0])


def test_fewer_indices_than_values_are_seen(folder):
    prediction = make_prediction()
    prediction.X = sparse.csr_matrix(prediction.X)
    prediction.write_h5ad(folder / "prediction.h5ad")
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        short = file["X/indices"][:-1]
        del file["X/indices"]
        file["X/indices"] = short
    assert "X has 1199 indices for 1200 values" in problems_of(folder)[0]


def test_cells_that_lie_in_another_file_are_refused(folder, tmp_path):
    shutil.copy(folder / "prediction.h5ad", tmp_path / "secret.h5")
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "X")
    assert problems_of(folder) == ["prediction.h5ad: X lie in another file, which does not travel; write them here."]


@pytest.mark.parametrize("harm", ["obs", "var", "columns", "version"])
def test_a_file_of_another_make_is_a_problem_and_no_error(folder, harm):
    with h5py.File(folder / "prediction.h5ad", "r+") as file:
        if harm == "version":
            file["obs"].attrs["encoding-version"] = "9.9"
        elif harm == "columns":
            del file["obs/gene"]
        else:
            del file[harm]
            file[harm] = np.zeros(300)
    (problem,) = problems_of(folder)
    assert problem.startswith("prediction.h5ad: not a readable h5ad file (")
    assert "\n" not in problem
