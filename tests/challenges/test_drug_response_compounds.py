"""Drug response: compounds that were never measured, and the weighted mean of methods."""

import sys

import numpy as np
import pandas as pd
import pytest
from simulated_responses import GENES, rmse, simulated, simulated_families, write

from challenges.drug_response import __main__ as cli
from challenges.drug_response import baselines, compounds, data, evaluate, fitted, folds
from helpers import DataError

NEEDS_RDKIT = pytest.mark.skipif(not compounds.has_rdkit(), reason="STRUCTURES NOT TESTED: pip install rdkit")


@pytest.fixture
def families():
    return simulated_families()


def left_out(responses, names):
    out = responses.index.get_level_values("sm_name").isin(names)
    return responses[~out], responses[out]


@NEEDS_RDKIT
def test_a_structure_gives_a_place_beside_similar_compounds(families):
    responses, structures = families
    train, test = left_out(responses, ["D03", "D20"])
    model = compounds.NewCompounds().fit(train, structures)
    mean = model.predict(test.index)
    pd.testing.assert_frame_equal(mean, baselines.MeanOf("cell_type").fit(train).predict(test.index), atol=1e-5)
    assert rmse(model.predict(test.index, structures), test) < 0.7 * rmse(mean, test)
    noise = train * 0 + np.random.default_rng(1).normal(size=train.shape)  # no effect that structures could explain
    found = compounds.NewCompounds().fit(noise, structures)
    pd.testing.assert_frame_equal(found.predict(test.index, structures), found.predict(test.index))


@NEEDS_RDKIT
def test_one_left_out_is_predicted_in_closed_form_as_by_fitting_without_it(families):
    _, structures = families
    X = compounds.fingerprints(structures, "x")
    K, Y = compounds.tanimoto(X, X), np.random.default_rng(0).normal(size=(len(X), 5))
    rest = np.arange(len(K)) != 4
    expected = K[4, rest] @ np.linalg.solve(K[np.ix_(rest, rest)] + 0.3 * np.eye(rest.sum()), Y[rest])
    np.testing.assert_allclose((Y - compounds.residuals_left_out(K, Y, 0.3))[4], expected)


def test_tanimoto_is_shared_bits_over_bits_of_either():
    bits = np.array([[1.0, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(compounds.tanimoto(bits[1:2], bits), [[1 / 3, 1, 0, 0]])


@NEEDS_RDKIT
def test_evaluation_leaves_compounds_out_and_says_whether_structures_help(families):
    responses, structures = families
    assert "by structure better: -0." in evaluate.unseen_text(responses, structures)
    for train, test in (parts := list(compounds.compounds_left_out(responses))):
        assert not set(train.index.unique("sm_name")) & set(test.index.unique("sm_name"))
    assert sum(len(test) for _, test in parts) == len(responses)


def test_without_structures_or_rdkit_the_mean_is_given_and_the_reason(families, monkeypatch):
    responses, structures = families
    assert "de_train.parquet has no SMILES, so they get the mean" in evaluate.unseen_text(
        responses, structures.iloc[:0]
    )
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert "RDKit is not installed (pip install rdkit), so" in evaluate.unseen_text(responses, structures)
    train, test = left_out(responses, ["D03"])
    model = compounds.NewCompounds().fit(train, structures)
    pd.testing.assert_frame_equal(model.predict(test.index, structures), model.predict(test.index))
    (said,) = model.unknown(test.index, train.index.unique("sm_name"), structures)
    assert "predicted as their cell type's mean, since RDKit is not installed (pip install rdkit): D03" in said


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


@NEEDS_RDKIT
def test_a_new_compound_is_placed_by_the_saved_model_alone(families, tmp_path, capsys):
    responses, structures = families
    train, test = left_out(responses, ["D03"])
    write(tmp_path, train, test, structures)
    common = ("--data", tmp_path, "--method", "kernel", "--work", tmp_path / "work")
    run("train", *common)
    (tmp_path / data.TRAIN_FILE).unlink()
    answers = {}
    for smiles in (structures["D03"], structures["D20"], "", "not a molecule"):
        rows = test.index.to_frame(index=False).assign(SMILES=smiles)
        rows.rename_axis("id").to_csv(tmp_path / data.QUERY_FILE)
        if " " in smiles:
            with pytest.raises(SystemExit, match=r"id_map.csv: column SMILES: RDKit cannot read that of D03; correct"):
                run("predict", *common)
        else:
            run("predict", *common)
            answers[smiles] = pd.read_csv(tmp_path / "work/kernel.csv", index_col="id")[GENES].to_numpy()
    said = capsys.readouterr().out
    assert "1 compounds never measured, placed beside similar ones by SMILES: D03" in said
    assert "1 compounds never measured, predicted as their cell type's mean, without SMILES for" in said
    chain, ring, mean = (np.sqrt(((found - test.to_numpy()) ** 2).mean()) for found in answers.values())
    assert chain < 0.8 * mean < mean < ring


@pytest.mark.parametrize(
    ("smiles", "said"),
    [(["CC", "CO", "CC"], "compounds with two different SMILES: A"), ([1.5, "C", "C"], "holds what are no texts: 1.5")],
)
def test_structures_that_contradict_or_are_no_texts_are_refused(smiles, said):
    table = pd.DataFrame({"sm_name": ["A", "A", "B"], "SMILES": pd.Series(smiles, dtype=object)})
    with pytest.raises(DataError, match=f"file: .*{said}"):
        data.structures_of(table, "file")
    assert list(data.structures_of(table.assign(SMILES=["CC", " CC ", None]), "file").items()) == [("A", "CC")]


def test_the_weights_are_best_on_the_folds_and_a_part_alone_is_among_them():
    truth, _ = simulated()
    rng = np.random.default_rng(0)
    rows = {name: truth + rng.normal(0, sd, truth.shape) for name, sd in (("a", 1.0), ("b", 1.0), ("c", 3.0))}
    found = fitted.best_weights(rows, truth)
    assert found["a"] > 0.3 < found["b"]
    mixed = sum(weight * rows[name] for name, weight in found.items())
    assert rmse(mixed, truth) < 0.8 * min(rmse(part, truth) for part in rows.values())
    assert fitted.best_weights({"a": truth * 0, "b": truth}, truth) == {"a": 0.0, "b": 1.0}
    assert fitted.best_weights({"a": truth.iloc[:0], "b": truth.iloc[:0]}, truth) == {"a": 0.5, "b": 0.5}


def test_no_row_is_held_out_whose_compound_no_other_cell_type_has():
    train, _ = simulated()
    alone = train[~((train.index.get_level_values(0) == "T cells") & (train.index.get_level_values(1) > "D15"))]
    alone = alone[alone.index.get_level_values(0) != "B cells"]
    held = {name: test.index.unique("sm_name") for name, _, test in folds.held_out(alone)}
    assert len(held["NK cells"]) > 5
    assert max(held["NK cells"]) == "D15"
