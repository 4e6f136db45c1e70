"""A screen of one's own: every layout gives the same folder, what is left out is said, what is wrong is refused."""

import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from workbench.adopt import adopt
from workbench.adoption import files
from workbench.adoption.labels import NO_MATCH, SEVERAL, UNNAMED, Naming
from workbench.predict import predict

GENES = [f"G{i}" for i in range(40)]
NAMES = ["control", *GENES[:10]]
OPTIONS = {"perturbation": "perturbation", "control": "control"}


def counted(seed=0, n=330):
    """Counts of 30 cells of each of 10 perturbations and the control, shuffled; 40 genes."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(rng.gamma(0.5, 6, 40), size=(n, 40)).astype(np.float32)
    X[:, 0] += 1  # no cell is empty
    labels = rng.permutation(np.repeat(NAMES, n // len(NAMES)))
    obs = pd.DataFrame({"perturbation": pd.Categorical(labels)}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=GENES))


def expected(counts):
    """The project's scale, by definition."""
    return np.log2(1 + 1e5 * counts / counts.sum(axis=1, keepdims=True))


def written(adata, path, **options):
    adata.write_h5ad(path, **options)
    return path


def all_cells(folder):
    """Every cell of an adopted folder by name: X, and the perturbation."""
    paths = [folder / CRUNCH.train_file, folder / CRUNCH.local_truth_file]
    parts = [ad.read_h5ad(path) for path in paths if path.exists()]
    X = pd.concat([pd.DataFrame(helpers.dense(part.X), part.obs_names, part.var_names) for part in parts])
    return X, pd.concat([part.obs["gene"].astype(str) for part in parts])


def log_of(adata, base, total):
    counts = adata.X.toarray().astype(float)
    adata.X = sp.csr_matrix(np.log1p(total * counts / counts.sum(axis=1, keepdims=True)) / np.log(base))
    return adata


LAYOUTS = {
    "compressed CSR of float32": lambda a: a,
    "dense": lambda a: setattr(a, "X", a.X.toarray()),
    "whole numbers": lambda a: setattr(a, "X", a.X.astype(np.int64)),
    "natural logarithms of 10,000": lambda a: log_of(a, np.e, 1e4) and None,
    "natural logarithms, single precision": lambda a: setattr(a, "X", log_of(a, np.e, 1e4).X.astype(np.float32)),
    "log2 of a million": lambda a: log_of(a, 2, 1e6) and None,
    "the project's scale": lambda a: log_of(a, 2, 1e5) and None,
    "per million": lambda a: setattr(a, "X", sp.csr_matrix(1e6 * a.X.toarray() / a.X.toarray().sum(axis=1)[:, None])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_cells(tmp_path, layout, capsys):
    adata = counted()
    truth = expected(adata.X.toarray().astype(float))
    LAYOUTS[layout](adata)
    source = written(adata, tmp_path / "screen.h5ad", compression="gzip")
    challenge = adopt([source], tmp_path / "out", **OPTIONS)
    X, labels = all_cells(challenge.folder)
    np.testing.assert_allclose(X.loc[adata.obs_names], truth, rtol=2e-6, atol=2e-6)
    assert (labels[adata.obs_names] == adata.obs["perturbation"].astype(str).replace("control", "NC")).all()
    assert list(challenge.genes) == GENES
    said = capsys.readouterr().out
    assert ("counts" in said) == (layout in ("compressed CSR of float32", "dense", "whole numbers"))


def test_the_folder_is_one_of_the_challenge(tmp_path):
    adata = counted()
    challenge = adopt([written(adata, tmp_path / "screen.h5ad")], tmp_path / "out", **OPTIONS)
    assert list(challenge.obs["gene"]) == sorted(challenge.obs["gene"]), "a perturbation's cells lie together"
    assert len(challenge.perturbations) == 8
    assert len(challenge.local_targets) == 2, "a fifth"
    assert not set(challenge.local_targets) & set(challenge.perturbations)
    assert {*challenge.local_targets, *challenge.perturbations} == set(NAMES[1:])
    assert list(challenge.targets) == GENES[10:], "the measured genes that were not perturbed"
    assert list(challenge.genes_to_predict) == GENES
    assert challenge.proportions is None
    stats = helpers.perturbation_stats(challenge.train_path)
    assert (stats.n_cells == 30).all()
    truth = ad.read_h5ad(challenge.local_truth_path)
    np.testing.assert_allclose(truth.uns["control_centroid_train"], stats.mean.loc["NC"], rtol=1e-6)
    np.testing.assert_allclose(truth.uns["perturbed_centroid_train"], stats.perturbed_centroid(), rtol=1e-6)
    assert ad.read_h5ad(challenge.train_path).X.dtype == np.float32


def test_values_of_an_unknown_scale_are_taken_as_they_are(tmp_path, capsys):
    adata = log_of(counted(), np.e, 1e4)[:, 5:].copy()  # without five genes the totals differ
    challenge = adopt([written(adata, tmp_path / "screen.h5ad")], tmp_path / "out", **OPTIONS)
    X, _ = all_cells(challenge.folder)
    np.testing.assert_array_equal(X.loc[adata.obs_names], adata.X.toarray().astype(np.float32))
    assert "a scale that the cells do not tell" in capsys.readouterr().out


def test_a_layer_is_read_in_place_of_x(tmp_path):
    adata = counted()
    truth = expected(adata.X.toarray().astype(float))
    adata.layers["counts"] = adata.X.copy()
    adata.X = sp.csr_matrix(adata.X.toarray() - 1.0)
    source = written(adata, tmp_path / "screen.h5ad")
    with pytest.raises(DataError, match=r"negative values, down to -1: .* --layer names another matrix \(counts\)"):
        adopt([source], tmp_path / "out", **OPTIONS)
    X, _ = all_cells(adopt([source], tmp_path / "out", **OPTIONS, layer="counts").folder)
    np.testing.assert_allclose(X.loc[adata.obs_names], truth, rtol=2e-6)


def test_ensembl_identifiers_become_names_and_counts_of_one_name_are_added(tmp_path, capsys):
    adata = counted()
    truth = expected(adata.X.toarray().astype(float))
    symbols = [*GENES[:38], "G5", None]  # G38 is called G5 as well, G39 has no name
    identifiers = [f"ENSG{i:011d}" for i in range(40)]
    adata.var = pd.DataFrame({"gene_name": symbols}, index=identifiers)
    adata.obs["gene"] = (
        adata.obs["perturbation"].astype(str).replace({"control": "non-targeting", "G3": identifiers[3]})
    )
    source = written(adata, tmp_path / "screen.h5ad")
    challenge = adopt([source], tmp_path / "out", perturbation="gene", control="non-targeting")
    assert list(challenge.genes) == [*GENES[:38], identifiers[39]]
    assert {*challenge.perturbations, *challenge.local_targets} == set(NAMES[1:])
    X, _ = all_cells(challenge.folder)
    X = X.loc[adata.obs_names]
    np.testing.assert_allclose(X["G7"], truth[:, 7], rtol=2e-6, atol=2e-6)
    both = np.log2(1 + (2 ** truth[:, 5] - 1) + (2 ** truth[:, 38] - 1))
    np.testing.assert_allclose(X["G5"], both, rtol=2e-6, atol=2e-6)
    assert "1 genes stand twice: their counts are added up" in capsys.readouterr().out
    source = written(log_of(adata, 2, 1e5), tmp_path / "logs.h5ad")
    with pytest.raises(DataError, match="genes that stand twice, G5, can be added up where there are counts alone"):
        adopt([source], tmp_path / "other", perturbation="gene", control="non-targeting")


def test_several_files_are_one_screen(tmp_path, capsys):
    """In another order of genes, one of them without a gene, one normalised; the names of the cells are the same."""
    adata = counted()
    truth = expected(adata.X.toarray().astype(float))
    first, second = adata[:200].copy(), adata[200:].copy()
    second = log_of(second, np.e, 1e4)[:, ::-1].copy()
    third = counted(seed=1)[:, :-1].copy()
    paths = [written(part, tmp_path / f"{i}.h5ad") for i, part in enumerate((first, second, third))]
    challenge = adopt(paths, tmp_path / "out", **OPTIONS)
    assert list(challenge.genes) == GENES[:-1]
    assert "1 genes are not in all files" in capsys.readouterr().out
    X, labels = all_cells(challenge.folder)
    assert len(X) == 660
    assert X.index.is_unique
    names = [f"cell{i}-{i}" for i in range(330)]
    np.testing.assert_allclose(X.loc[names], truth[:, :-1], rtol=2e-6, atol=2e-6)
    assert (labels[names].to_numpy() == adata.obs["perturbation"].astype(str).replace("control", "NC")).all()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("G1", "G1"),
        ("control", "NC"),
        ("G2_G1", "G1+G2"),
        ("G2+G1", "G1+G2"),
        ("G1+G1", "G1+G1"),
        ("G1_control", "G1"),
        ("control+G1", "G1"),
        ("control+control", "NC"),
        ("unmeasured_control", "unmeasured"),
        ("nobody_control", "nobody"),
        ("unmeasured_G1", "G1+unmeasured"),  # `unmeasured` is a label of its own
        ("G1_17", "G1_17"),  # 17 is no gene: without a pattern the name stays
        ("H_1", "H_1"),  # a measured gene
        ("ENSG00000000001", "G1"),
        ("G1|G1", "G1"),
        ("G1|control", "G1"),
        ("nan", UNNAMED),
        ("", UNNAMED),
        ("Unassigned", UNNAMED),
        ("multiplet", SEVERAL),
        ("G1|G2", SEVERAL),
        ("G1; G2", SEVERAL),
        ("G1,G2", SEVERAL),
    ],
)
def test_how_a_label_is_read(label, name):
    naming = Naming("control", frozenset([*GENES, "H_1"]), {"ENSG00000000001": "G1"}, None, frozenset(["unmeasured"]))
    assert name in naming.read(label)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("G1g2", "G1"),
        ("NTg4", "NC"),
        ("G1g1|G1g3", "G1"),
        ("G1g1|NTg3", "G1"),
        ("G1g1|G2g1", SEVERAL),
        ("G2g1+G1g1", "G1+G2"),
        ("G1", "G1"),
        ("G1 without a guide", NO_MATCH),
    ],
)
def test_a_pattern_finds_the_gene_of_a_guide(label, name):
    naming = Naming("NT", frozenset(GENES), {}, re.compile(r"^(.+)g\d+$"), frozenset())
    assert name in naming.read(label)


def test_what_is_left_out_is_counted_and_said(tmp_path, capsys):
    adata = counted()
    labels = adata.obs["perturbation"].astype(object).to_numpy().copy()
    G1 = np.flatnonzero(labels == "G1")
    labels[G1[:4]], labels[G1[4:7]] = None, "G1|G2"
    labels[G1[7:25]] = "G3"  # five are left
    adata.obs["perturbation"] = pd.Categorical(labels)
    X = adata.X.toarray()
    X[G1[28]] = 0
    adata.X = sp.csr_matrix(X)
    challenge = adopt([written(adata, tmp_path / "screen.h5ad")], tmp_path / "out", **OPTIONS)
    said = capsys.readouterr().out
    assert "Kept: 318 cells, 30 of them control, and 9 perturbations." in said
    assert "4 cells, no perturbation named" in said
    assert "3 cells, several guides called" in said
    assert "1 cells, no value above 0" in said
    assert "4 cells, too few cells of their perturbation (G1; 10 are needed)" in said
    X, labels = all_cells(challenge.folder)
    assert len(X) == 318
    assert "G1" not in set(labels)
    assert "G1" in challenge.targets


def test_targets_genes_and_doubles(tmp_path, capsys):
    adata = counted()
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace("G9", "G9_G8")
    (tmp_path / "targets").write_text("G30\nG1\nOTHER\nG30+G31\n")
    (tmp_path / "genes").write_text("G5\nG2\nmissing\n")
    source = written(adata, tmp_path / "screen.h5ad")
    lists = {"targets": tmp_path / "targets", "genes": tmp_path / "genes"}
    challenge = adopt([source], tmp_path / "out", **OPTIONS, **lists)
    assert list(challenge.targets) == ["G30", "OTHER", "G30+G31"]
    assert list(challenge.genes_to_predict) == ["G5", "G2"]
    assert "G8+G9" in challenge.perturbations, "what is scored is a single gene"
    said = capsys.readouterr().out
    assert "1 of several genes" in said
    assert "1 of 4 targets left out" in said
    assert "1 genes left out, which were not measured: missing" in said


def test_states_become_shares(tmp_path):
    adata = counted()
    states = np.random.default_rng(0).choice(CRUNCH.states, adata.n_obs).astype(object)
    states[0] = None
    adata.obs["state"] = pd.Categorical(states)
    source = written(adata, tmp_path / "screen.h5ad")
    challenge = adopt([source], tmp_path / "out", **OPTIONS, states="state")
    assert len(challenge.obs) + len(challenge.local_targets) * 30 in (329, 330)
    own = adata.obs.assign(perturbation=adata.obs["perturbation"].astype(str).replace("control", "NC"))[1:]
    of_all = pd.concat([challenge.proportions, challenge.local_proportions])
    for state in CRUNCH.states:
        is_in = own["state"].isin([state, *(["lipo"] if state == "adipo" else [])])
        share = is_in.groupby(own["perturbation"]).mean()
        pd.testing.assert_series_equal(of_all[state].sort_index(), share, check_names=False, check_index_type=False)
    # A second screen without states takes the tables of the first away.
    adopt([source], tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / CRUNCH.proportions_file).exists()
    assert helpers.load_challenge(tmp_path / "out").proportions is None


def test_any_executor_and_any_size_of_task_give_the_same_files(tmp_path, monkeypatch):
    source = written(counted(), tmp_path / "screen.h5ad")
    adopt([source], tmp_path / "threads", **OPTIONS)
    with ProcessPoolExecutor(2) as executor:
        adopt([source], tmp_path / "processes", **OPTIONS, executor=executor)
    monkeypatch.setattr(files, "TASK_VALUES", 500)
    adopt([source], tmp_path / "small", **OPTIONS)
    for name in (CRUNCH.train_file, CRUNCH.local_truth_file):
        first, *others = (h5py.File(tmp_path / how / name) for how in ("threads", "processes", "small"))
        for other in others:
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(first["X"][part], other["X"][part])


def test_the_screen_is_never_in_memory(tmp_path, peak_memory, monkeypatch):
    monkeypatch.setattr(files, "TASK_VALUES", 200_000)
    rng = np.random.default_rng(0)
    X = sp.random(8000, 1000, density=0.5, format="csr", random_state=0)
    X.data = np.ceil(5 * X.data)
    obs = pd.DataFrame({"perturbation": rng.choice(NAMES, 8000)}, index=np.arange(8000).astype(str))
    source = written(ad.AnnData(X, obs=obs), tmp_path / "screen.h5ad")
    del X
    peak = peak_memory(lambda: adopt([source], tmp_path / "out", **OPTIONS))
    assert peak < source.stat().st_size / 2


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, in one line
# ---------------------------------------------------------------------------------------------------------------------


def labelled(name, value):
    def harm(adata):
        labels = adata.obs["perturbation"].astype(str)
        adata.obs["perturbation"] = labels.where(labels.isin([name, "control"]) if name else labels != "control", value)

    return harm


def values(change, place="X"):
    def harm(adata):
        X = adata.X.copy()
        X.data = change(X.data)
        if place == "X":
            adata.X = X
        else:
            adata.layers[place] = X

    return harm


REFUSED = [
    ({"control": "contrl"}, None, r"is the control contrl; did you mean control\?"),
    ({"control": "NT"}, None, r"no cell of obs\['perturbation'\] is the control NT; most cells are \w+, "),
    ({"perturbation": "perturbaton"}, None, r"no column perturbaton \(--perturbation\); did you mean perturbation\?"),
    ({"states": "cluster"}, None, r"no column cluster \(--states\)"),
    ({"states": "perturbation"}, None, r"obs\['perturbation'\] holds G0, .*the states that can be predicted are"),
    ({"layer": "count"}, values(np.copy, "counts"), r"no layer count; did you mean counts\?"),
    ({"layer": "counts"}, values(lambda x: x + 0.5, "counts"), "no whole numbers, so these are no counts"),
    ({"layer": "counts"}, values(np.negative, "counts"), "layers/counts holds negative values"),
    ({"guide_pattern": "("}, None, r"--guide-pattern \(: not a regular expression"),
    ({}, values(np.negative), "X holds negative values"),
    ({}, values(lambda x: np.where(x > 5, np.nan, x)), "X holds infinite values or NaN"),
    ({}, values(lambda x: x * 17.3), "neither counts nor normalised"),
    ({}, labelled("G1", "unassigned"), r"1 perturbation \(G1\) with 10 cells beside the control; two are needed"),
    ({}, lambda a: setattr(a, "X", a.X.tocsc()), "X is stored by genes"),
    ({}, lambda a: setattr(a, "obs", a.obs.astype(str).replace("G1", "NC")), "a perturbation is called NC"),
    ({"targets": "screen.h5ad"}, None, "cannot be read as a text of one name a line"),
    ({"targets": "missing.txt"}, None, "missing.txt: cannot be read"),
]


@pytest.mark.parametrize(("options", "harm", "says"), REFUSED)
def test_what_is_wrong_is_refused_in_one_line(tmp_path, options, harm, says):
    adata = counted()
    if harm is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            harm(adata)
    source = written(adata, tmp_path / "screen.h5ad")
    options = {name: str(tmp_path / value) if name == "targets" else value for name, value in options.items()}
    with pytest.raises(DataError, match=says) as caught:
        adopt([source], tmp_path / "out", **OPTIONS | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_value_far_from_those_that_were_looked_at_is_found(tmp_path):
    adata = counted(n=1100)
    first = int(adata.X.indptr[107])
    adata.X.data[first] = 0.5
    with pytest.raises(DataError, match="X, cells 0 to 1100, holds values that are no whole numbers, but other cells"):
        adopt([written(adata, tmp_path / "screen.h5ad")], tmp_path / "out", **OPTIONS)
    assert list((tmp_path / "out").iterdir()) == []


def test_places_that_are_inputs_or_not_ours_are_refused(tmp_path, demo_folder):
    source = written(counted(), tmp_path / "screen.h5ad")
    for out, says in ((source, "must not be a file"), (tmp_path, "the folder of screen.h5ad, which is an input")):
        with pytest.raises(DataError, match=says):
            adopt([source], out, **OPTIONS)
    with pytest.raises(DataError, match="is named twice"):
        adopt([source, source], tmp_path / "out", **OPTIONS)
    with pytest.raises(DataError, match=r"nothing\.h5ad: no such file"):
        adopt([tmp_path / "nothing.h5ad"], tmp_path / "out", **OPTIONS)
    theirs = shutil.copytree(demo_folder, tmp_path / "theirs")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    with pytest.raises(DataError, match="is there and was not made by this command"):
        adopt([source], theirs, **OPTIONS)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


def test_the_command_says_what_it_did(tmp_path):
    source = written(counted(), tmp_path / "screen.h5ad")
    command = [sys.executable, "-m", "workbench.adopt", source, tmp_path / "out", "--perturbation", "perturbation"]
    root = Path(helpers.__file__).parent
    done = subprocess.run([*command, "--control", "control"], capture_output=True, text=True, check=True, cwd=root)
    assert "X holds counts; they are normalised" in done.stdout
    assert "Set apart to score on: G" in done.stdout
    assert helpers.load_challenge(tmp_path / "out").genes.equals(pd.Index(GENES))
    wrong = subprocess.run([*command, "--control", "NT"], capture_output=True, text=True, check=False, cwd=root)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: ")


# ---------------------------------------------------------------------------------------------------------------------
# Real cells
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_folder, tmp_path_factory):
    """THP-1 in scPerturb's layout, shuffled and compressed: all cells normalised, and the training cells as counts."""
    folder = tmp_path_factory.mktemp("thp1")
    train, truth = (ad.read_h5ad(real_folder / name) for name in (CRUNCH.train_file, CRUNCH.local_truth_file))
    X = sp.vstack([sp.csr_matrix(part.X) for part in (train, truth)]).tocsr()
    gene = pd.concat([part.obs["gene"].astype(str) for part in (train, truth)])
    both = ad.AnnData(X, obs=pd.DataFrame({"perturbation": gene.replace("NC", "control")}), var=train.var[[]])
    counts = ad.AnnData(train.layers["counts"], obs=train.obs.copy(), var=train.var[[]])
    counts.obs["perturbation"] = counts.obs["gene"].astype(str).replace("NC", "control")
    state = counts.obs[CRUNCH.shares].idxmax(axis=1)
    counts.obs["state"] = state.where(counts.obs["lipo"] == 0, "lipo")
    for name, adata in (("normalised", both), ("counts", counts)):
        order = np.random.default_rng(0).permutation(adata.n_obs)
        adata[order].copy().write_h5ad(folder / f"{name}.h5ad", compression="gzip")
    return folder, both, train


def test_real_cells_come_back_as_they_were(real, tmp_path):
    """The challenge has them per 1,000, the project's scale is per 100,000: the same counts."""
    folder, both, _ = real
    challenge = adopt([folder / "normalised.h5ad"], tmp_path / "out", **OPTIONS)
    X, labels = all_cells(challenge.folder)
    assert set(X.index) == set(both.obs_names)
    assert list(challenge.genes) == list(both.var_names)
    assert (labels[both.obs_names] == both.obs["perturbation"].replace("control", "NC")).all()
    np.testing.assert_allclose(X.loc[both.obs_names], np.log2(1 + 100 * (2 ** both.X.toarray() - 1)), atol=2e-6)
    assert len(challenge.local_targets) == 5


def test_real_counts_and_guides_give_the_same(real, real_folder, tmp_path):
    folder, _, train = real
    source = folder / "counts.h5ad"
    challenge = adopt([source], tmp_path / "counts", **OPTIONS, states="state")
    X, labels = all_cells(challenge.folder)
    np.testing.assert_allclose(
        X.loc[train.obs_names], np.log2(1 + 100 * (2 ** helpers.dense(train.X) - 1)), rtol=1e-6, atol=2e-6
    )
    theirs = helpers.load_challenge(real_folder).proportions
    ours = pd.concat([challenge.proportions, challenge.local_proportions])
    np.testing.assert_allclose(ours.loc[theirs.index, theirs.columns], theirs, atol=1e-9)
    by_guide = adopt(
        [source], tmp_path / "guides", perturbation="feature_call", control="NT", guide_pattern=r"^(.+?)g\d+$"
    )
    others, called = all_cells(by_guide.folder)
    assert (called[labels.index] == labels).all()
    np.testing.assert_array_equal(others.loc[X.index], X)


def test_doubles_of_a_screen_are_learned_from_and_predicted(tmp_path, capsys):
    """Effects of 12 singles on logarithms, and of 30 pairs their sum; six more pairs were never measured."""
    rng = np.random.default_rng(4)
    base, effects = rng.normal(2.0, 1.0, 40), rng.normal(size=(12, 40)) * 0.7
    pairs = [(i, j) for i in range(12) for j in range(i)]
    pairs = [pairs[k] for k in rng.permutation(len(pairs))[:36]]
    names = ["control", *GENES[:12], *(f"{GENES[i]}_{GENES[j]}" for i, j in pairs[:30])]
    shifts = [0 * base, *effects, *(effects[i] + effects[j] for i, j in pairs[:30])]
    labels = np.repeat(names, 30)
    X = rng.poisson(np.exp(base + np.repeat(shifts, 30, axis=0)) * 5).astype(np.float32)
    X[:, -1] += 1
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell{i}" for i in range(len(labels))])
    source = written(ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=GENES)), tmp_path / "screen.h5ad")
    adopt([source], tmp_path / "mine", **OPTIONS)
    unseen = [f"{GENES[j]}+{GENES[i]}" for i, j in pairs[30:]]
    cells, _ = predict(tmp_path / "mine", unseen)
    assert "30 combinations follow" in capsys.readouterr().out
    assert cells.obs["perturbation"].value_counts()[unseen].eq(100).all()

    def scaled(shift):
        return np.log2(1 + 1e5 * np.exp(base + shift) / np.exp(base + shift).sum())

    control = scaled(0 * base)
    for name, (i, j) in zip(unseen, pairs[30:], strict=True):
        mean = np.asarray(cells[cells.obs["perturbation"] == name].X.mean(axis=0)).ravel()
        true = pd.Series(scaled(effects[i] + effects[j]) - control, GENES)[cells.var_names]
        assert np.corrcoef(mean - pd.Series(control, GENES)[cells.var_names], true)[0, 1] > 0.9
