"""Simulated doubles: what is there, the stated rules and shares, and an answer that the cells bear out."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.special import softmax

import helpers
from contract import CRUNCH
from workbench import simulate as module
from workbench.combine import combine
from workbench.simulate import CONTROL_LOGITS, FILES, IN_STATE, simulate


def single_model(n_genes=8):
    return module._build_model(
        np.random.default_rng(3), n_genes=200, n_listed=150, share=0.5, seen=(n_genes - 5, 0), unseen=(0, 0)
    )


@pytest.fixture(scope="module")
def models():
    """The model of 8 genes alone, and that of their combinations."""
    singles = single_model()
    rng = np.random.default_rng(4)
    return singles, combine(singles, rng, CONTROL_LOGITS, unseen=6, masking=0.25, synergistic=0.5)


def rows_of(model, rule, n_genes=2):
    names = [tuple(dict.fromkeys(set(name.split("+")) - {"NC"})) for name in model.perturbations]
    return [(i, names[i]) for i in np.flatnonzero(model.rule == rule) if len(names[i]) == n_genes]


def shifts(model, name):
    """Everything that a knock-out shifts."""
    at = list(model.perturbations).index(name)
    return np.concatenate([model.shift[at], (model.logits[:, at] - CONTROL_LOGITS).ravel()])


def test_all_kinds_are_there_and_none_twice(models):
    singles, model = models
    genes = sorted(singles.perturbations[1:])
    names = [f"{a}+{b}" for i, a in enumerate(genes) for b in genes[i + 1 :]]
    names += [f"{a}+{a}" for a in genes] + ["+".join(sorted([a, "NC"])) for a in genes] + genes + ["NC", "NC+NC"]
    triples = [name for name in model.perturbations if name.count("+") == 2]
    assert len(triples) == 5
    assert sorted(model.perturbations) == sorted([*names, *triples])
    kinds = pd.Series([name.count("+") + 1 for name in model.perturbations]).groupby(model.group).value_counts()
    assert kinds["local"].to_dict() == {2: 4, 1: 2}
    assert kinds["unseen"].to_dict() == {2: 6}
    assert sorted(model.requested) == sorted(model.perturbations[model.group == "unseen"])


def test_the_shares_of_the_rules_are_those_that_were_stated(models):
    rules = pd.Series(models[1].rule[[name.count("+") == 1 for name in models[1].perturbations]]).value_counts()
    assert rules[["masking", "synergistic", "additive"]].to_dict() == {"masking": 7, "synergistic": 14, "additive": 7}


SUMS = [("additive", 2, 1), ("synergistic", 2, 1.5), ("additive", 3, 1)]


@pytest.mark.parametrize(("rule", "n_genes", "factor"), SUMS)
def test_effects_add_up_or_more_than_that(models, rule, n_genes, factor):
    singles, model = models
    found = rows_of(model, rule, n_genes)
    assert found
    for i, genes in found:
        added = factor * sum(shifts(singles, gene) for gene in genes)
        np.testing.assert_allclose(shifts(model, model.perturbations[i]), added, atol=1e-12)


def test_the_longer_effect_masks_the_other(models):
    singles, model = models
    for i, genes in rows_of(model, "masking"):
        at = [list(singles.perturbations).index(gene) for gene in genes]
        lengths = np.linalg.norm(singles.shift[at] @ singles.loadings[:, :12].T, axis=1)
        longer = shifts(singles, genes[lengths.argmax()])
        np.testing.assert_allclose(shifts(model, model.perturbations[i]), longer, atol=1e-12)


@pytest.mark.parametrize("rule", ["A+A", "A+NC", "single"])
def test_two_guides_for_one_gene_do_what_one_does(models, rule):
    singles, model = models
    found = rows_of(model, rule, 1)
    assert len(found) == 8
    for i, (gene,) in found:
        np.testing.assert_allclose(shifts(model, model.perturbations[i]), shifts(singles, gene), atol=1e-12)


def test_every_gene_of_a_name_is_knocked_out_once(models):
    _, model = models
    for name, targets in zip(model.perturbations, model.target, strict=True):
        held = sorted(set(name.split("+")) - {"NC"})
        assert sorted(model.genes[targets[targets >= 0]]) == held


def test_the_folder_has_the_files_and_cells_of_the_contract(made, challenge):
    assert {path.name for path in (made / "data").iterdir()} == set(FILES)
    assert {"obesity_challenge_2.h5ad", "predict_perturbations_2.txt", "predict_genes_2.txt"} < set(FILES)
    cells = challenge.obs["gene"].value_counts()
    assert cells["NC"] > cells["NC+NC"] > 100
    assert not {"NC", "NC+NC"} & set(challenge.perturbations)
    assert not set(challenge.targets) & set(challenge.perturbations)
    assert {"NC", "NC+NC"} < set(challenge.proportions.index)
    assert sorted(len(name.split("+")) for name in challenge.local_targets) == [1, 1, 2, 2, 2, 2]


def test_centroids_are_the_means_over_the_cells_of_each_kind(challenge):
    train, local = ad.read_h5ad(challenge.train_path), ad.read_h5ad(challenge.local_truth_path)
    gene = train.obs["gene"].astype(str)
    parts = gene.str.split("+").map(len)
    masks = {
        "single_control_centroid_train": gene == "NC",
        "double_control_centroid_train": gene == "NC+NC",
        "single_perturbed_centroid_train": (parts == 1) & (gene != "NC"),
        "double_perturbed_centroid_train": (parts == 2) & (gene != "NC+NC"),
    }
    assert set(local.uns) == set(masks)
    for name, mask in masks.items():
        expected = np.asarray(sp.csr_matrix(train.X[mask.to_numpy()]).mean(axis=0)).ravel()
        np.testing.assert_allclose(local.uns[name], expected, atol=1e-9)


def test_the_cells_bear_the_answer_out(made, challenge, stats):
    with h5py.File(made / "answer.h5") as file:
        names, rule = file["perturbation"].asstr()[:], file["rule"].asstr()[:]
        effect = pd.DataFrame(file["effect"][:].astype(float), index=names)
        means = {name: file[name][:] for name in ("control_mean", "perturbed_mean", "double_perturbed_mean")}
        shares = pd.DataFrame(file["shares"][:], index=names, columns=CRUNCH.states)
        oracle = pd.Series(file["oracle_pearson"][:], index=names)
    assert np.abs(effect.loc["NC+NC"]).max() == 0
    for kind in ("A+A", "additive", "masking", "synergistic"):
        found = [name for name in names[rule == kind] if name in stats.mean.index and stats.n_cells[name] > 40]
        measured = stats.mean.loc[found].to_numpy() - means["control_mean"]
        noise = np.sqrt((stats.variance.loc[found].to_numpy() / stats.n_cells[found].to_numpy()[:, None]).sum())
        assert np.linalg.norm(measured - effect.loc[found].to_numpy()) < 1.15 * noise
        assert np.linalg.norm(effect.loc[found]) > noise
    centroids = stats.centroids()
    assert np.abs(centroids["double_perturbed_centroid_train"] - means["double_perturbed_mean"]).mean() < 0.03
    assert np.abs(centroids["single_perturbed_centroid_train"] - means["perturbed_mean"]).mean() < 0.06
    triples = [name for name in names if name.count("+") == 2]
    assert oracle[triples].isna().all()
    assert oracle[list(challenge.targets)].between(0, 1).all()
    local = challenge.local_proportions[CRUNCH.states]
    assert np.abs(local - shares.loc[local.index]).max().max() < 0.15


def test_log_odds_of_the_states_add_up():
    singles = single_model()
    model = combine(singles, np.random.default_rng(0), CONTROL_LOGITS, unseen=6, masking=0, synergistic=0)
    (i, genes) = rows_of(model, "additive")[0]
    at = [list(singles.perturbations).index(gene) for gene in genes]
    shares = softmax(CONTROL_LOGITS + (singles.logits[1, at] - CONTROL_LOGITS).sum(axis=0)) @ IN_STATE
    np.testing.assert_allclose(softmax(model.logits[1, i]) @ IN_STATE, shares)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masking": 0.7, "synergistic": 0.4}, "two shares, together at most 1"),
        ({"masking": -0.1}, "two shares"),
        ({"perturbations": 5}, "at least 6 genes to knock out"),
        ({"perturbations": 8, "unseen": 24}, "of 28 pairs at most 23"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        simulate(tmp_path / "data", genes=240, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_other_crunch_is_refused(tmp_path):
    (tmp_path / "obesity_challenge_1.h5ad").touch()
    with pytest.raises(ValueError, match="holds the files of broad-obesity-1"):
        simulate(tmp_path, force=True)


def test_the_same_seed_gives_the_same_cells(made, tmp_path):
    simulate(tmp_path / "data", cells=3500, genes=240, perturbations=8, unseen=6, seed=1, counts=False)
    again = helpers.perturbation_stats(tmp_path / "data" / CRUNCH.train_file)
    pd.testing.assert_frame_equal(again.sums, helpers.perturbation_stats(made / "data" / CRUNCH.train_file).sums)
