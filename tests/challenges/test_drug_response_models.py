"""Drug response: the process, networks, stages."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REAL_DATA
from simulated_responses import GENES, rmse, simulated, tiny_specs

from challenges.common import load_model, reproducible, save_model
from challenges.drug_response import baselines, data, models, networks, training
from challenges.drug_response.compounds import NewCompounds
from challenges.drug_response.ensemble import Ensemble, truncated_svd
from challenges.drug_response.fitted import Fitted
from challenges.drug_response.kernel import ResponseProcess


@pytest.fixture
def table():
    return simulated()


def test_the_process_beats_every_baseline_and_comes_back_from_its_file(table, tmp_path):
    train, test = table
    part = ResponseProcess(rank=3).fit(train)
    model = Fitted({"kernel": part}, {"kernel": 1.0}, train.iloc[:0], NewCompounds().fit(train))
    error = rmse(model.predict(test.index), test)
    for name, make in baselines.BASELINES.items():
        assert error < rmse(make().fit(train).predict(test.index), test), name
    save_model(tmp_path / "m.h5", model, **models.provenance("kernel", train, test.index, models.Settings()))
    again, about = load_model(tmp_path / "m.h5", *models.CLASSES)
    pd.testing.assert_frame_equal(again.predict(test.index), model.predict(test.index))
    assert about["data"] == data.fingerprint(train) != data.fingerprint(train.iloc[1:])


def test_the_process_learns_which_cell_type_takes_over_more(table):
    train, _ = table
    model = ResponseProcess(rank=3).fit(train)
    total = model.own_kernel_ + model.shared_kernel_
    b, nk, t = (model.cell_types_.get_loc(name) for name in ("B cells", "NK cells", "T cells"))
    assert total[b, t] > total[b, nk] > 0


@pytest.mark.parametrize("stage", ["simple", "transformer", "autoencoder"])
def test_a_network_learns_more_than_the_cell_types_mean(table, stage):
    train, test = table
    spec = networks.specs_of(stage)[0]
    small = replace(
        spec,
        hidden=tuple(min(n, 48) for n in spec.hidden),
        dropout=(0.1,) * len(spec.hidden),
        embedding=16,
        epochs=200 if stage == "autoencoder" else 60,
        n_dim=12,
        batch=16,
    )
    found = Ensemble([small], 2, scale=1.0).fit(train).predict(test.index)
    assert rmse(found, test) < rmse(baselines.MeanOf("cell_type").fit(train).predict(test.index), test)


def test_a_prediction_does_not_depend_on_the_rows_beside_it(table):
    train, test = table
    for stage in ("simple", "transformer", "autoencoder"):
        spec = replace(networks.specs_of(stage)[0], epochs=2, n_dim=10)
        model = Ensemble([spec], 1, scale=1.0).fit(train)
        together = model.predict(test.index)
        np.testing.assert_allclose(model.predict(test.index[3:4]), together.iloc[3:4], atol=1e-5)


def test_a_transformers_input_holds_no_target(table):
    """The answer to a training row may not depend on its own response, only on the other rows'."""
    train, _ = table
    Z, _ = truncated_svd(train.to_numpy(np.float64), 10)
    types, compounds = (train.index.unique(name) for name in data.KEYS)
    codes = types.get_indexer(train.index.get_level_values(0)), compounds.get_indexer(train.index.get_level_values(1))
    spec = replace(networks.specs_of("transformer")[0], embedding=16, n_dim=10)
    changed = Z.copy()
    changed[0] = -changed[0]  # keeps the level, which scales all rows
    answers = []
    for coordinates in (Z, changed):
        problem = networks.Problem(*codes, len(types), len(compounds), coordinates)
        with reproducible(0, "test"), torch.no_grad():
            module = networks.Transformer(spec, problem, 10).eval()
            answers.append(module(*(torch.as_tensor(c) for c in codes), torch.as_tensor(coordinates)))
    torch.testing.assert_close(answers[0][0], answers[1][0], atol=1e-5, rtol=1e-5)
    same_compound = [i for i in range(1, len(train)) if codes[1][i] == codes[1][0]]
    assert (answers[0][same_compound] - answers[1][same_compound]).abs().max() > 1e-4


def test_dropout_draws_what_torch_draws_and_rests_in_evaluation():
    module, rows = networks.Dropout(0.3), torch.rand(50, 20)
    torch.manual_seed(1)
    mine = module(rows)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, torch.nn.functional.dropout(rows, 0.3), atol=0, rtol=0)
    assert torch.equal(module.eval()(rows), rows)


def test_a_last_batch_of_one_joins_the_one_before():
    sizes = [len(rows) for rows in training.batches(33, 16, torch.Generator().manual_seed(0))]
    assert sizes == [16, 17]
    assert [len(rows) for rows in training.batches(5, 16, torch.Generator())] == [5]
    rows = torch.cat(list(training.batches(33, 16, torch.Generator().manual_seed(0))))
    assert sorted(rows.tolist()) == list(range(33))


def test_the_svd_is_exact_and_its_signs_are_fixed(table):
    Y = table[0].to_numpy(np.float64)
    coordinates, components = truncated_svd(Y, 999)
    np.testing.assert_allclose(coordinates @ components, Y, atol=1e-4)
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-5)
    again, _ = truncated_svd(Y[::-1], 999)
    np.testing.assert_allclose(again[::-1], coordinates, atol=1e-3)


def test_an_ensemble_is_the_clipped_scaled_weighted_mean_of_medians(table):
    train, test = table
    specs = tiny_specs()
    model = Ensemble(specs, 3, scale=0.8).fit(train)
    codes = model._codes(test.index)
    total = 0.0
    for spec, repeats in zip(specs, model.networks_, strict=True):
        found = [training.apply_network(spec, model.problem_, arrays, *codes) for arrays in repeats]
        total += spec.weight * np.median([f @ model.components_[: f.shape[1]] for f in found], axis=0)
    expected = np.clip(0.8 * total / sum(spec.weight for spec in specs), train.min().to_numpy(), train.max().to_numpy())
    np.testing.assert_allclose(model.predict(test.index), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(table, tmp_path):
    train, test = table
    specs = tiny_specs()
    together = Ensemble(specs, 2, scale=1.0).fit(train)
    alone = training.fit_network(specs[1], together.problem_, 0, 1, "cpu")
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together.networks_[1][1][name])
    other = Ensemble(specs, 2, scale=1.0, seed=1).fit(train)
    assert not np.array_equal(other.predict(test.index), together.predict(test.index))


def test_pseudo_labels_are_rows_to_learn_from_but_set_no_range(table):
    train, test = table
    first = Ensemble(tiny_specs(), 1, scale=1.0).fit(train)
    pseudo = first.predict(test.index)
    second = Ensemble(tiny_specs("stage_2"), 1, scale=1.0).fit(train, pseudo)
    assert len(second.problem_.cell_type) == len(train) + len(test)
    np.testing.assert_allclose(second.highest_, train.max())  # the range is that of real rows


def test_stage_2_is_trained_on_what_stage_1_predicts_for_new_pairs_of_known_labels(table, monkeypatch):
    train, test = table
    unknown = pd.MultiIndex.from_tuples([("B cells", "Aspirin"), ("Monocytes", "D05")], names=data.KEYS)
    pairs = test.index.append(unknown).append(train.index[:3])
    spec = replace(tiny_specs("stage_2", 1)[0], epochs=200)
    monkeypatch.setattr(models, "specs_of", lambda method: [spec])
    settings = models.Settings(quick=True)

    class First:
        """Stage 1: whatever it answers, stage 2 must have learned."""

        def __init__(self, answer):
            self.answer = answer
            self.out_of_fold = train * 0 + answer

        def predict(self, asked):
            assert list(asked) == sorted(test.index)
            return pd.DataFrame(self.answer, asked, GENES, dtype=np.float32)

    found = {}
    for answer in (-3.0, 3.0):
        model = models.fit_model("stage_2", train, pairs, settings, {"stage_1": First(answer)}).parts["stage_2"]
        assert len(model.problem_.cell_type) == len(train) + len(test)
        found[answer] = model.predict(test.index).to_numpy().mean()
        plain = models.fit_model(models.PLAIN, train, pairs, settings).parts[models.PLAIN]
        assert len(plain.problem_.cell_type) == len(train)
    assert found[-3.0] < -0.5
    assert found[3.0] > 0.5


def test_the_scale_is_tuned_where_answers_are_too_large(table):
    train, _ = table
    noise = train * 0 + np.random.default_rng(0).normal(size=train.shape)  # nothing to learn: shrink
    assert Ensemble(tiny_specs(n=1), 1).fit(noise.astype(np.float32)).scale_ < 0.6


def test_published_hyper_parameters_are_read_whole():
    assert [len(networks.specs_of(stage)) for stage in models.STAGES] == [1, 7, 20]
    seven = networks.specs_of("simple")[0]
    assert (seven.hidden, seven.dropout) == ((712, 400, 232, 216), (0.4904, 0.032372, 0.111383, 0.019885))
    assert (seven.embedding, seven.n_dim, seven.batch, seven.learning_rate, seven.epochs) == (
        48,
        100,
        128,
        0.00553,
        141,
    )
    shares = [round(spec.weight, 3) for spec in networks.specs_of("stage_1")]
    assert shares == [0.152, 0.715, 0.755, 0.058, 0.96, 0.497, 0.988]
    twenty = networks.specs_of("stage_2")
    assert {spec.epochs for spec in twenty} == {200}
    assert (min(spec.n_dim for spec in twenty), max(spec.n_dim for spec in twenty)) == (50, 246)
    assert [spec.loss for spec in twenty] == ["mae"] * 8 + ["mrrmse"] * 12
    for spec in (*twenty, *networks.specs_of("stage_1")):
        assert len(spec.hidden) == len(spec.dropout)


def test_fewer_rows_than_a_batch_are_said_and_a_last_batch_of_one_trains(table, capsys):
    train, test = table
    spec = tiny_specs(n=1)[0]
    model = Ensemble([replace(spec, batch=999)], 1, scale=1.0).fit(train)
    assert "52 rows, fewer than a batch of 1" in capsys.readouterr().out
    assert np.isfinite(model.predict(test.index)).all(axis=None)
    Ensemble([replace(spec, batch=len(train) - 1)], 1, scale=1.0).fit(train)


def test_n_dim_is_cut_to_what_the_rows_have(table):
    train, _ = table
    few = train[train.index.get_level_values(1) < "D03"]
    model = Ensemble([replace(tiny_specs(n=1)[0], n_dim=500)], 1, scale=1.0).fit(few)
    assert model.components_.shape == (9, len(GENES))


def test_an_unknown_label_has_the_mean_of_the_learned_embeddings():
    table = networks.LabelEmbedding(3, 2)
    torch.testing.assert_close(table(torch.tensor([-1, 2])), torch.stack([table.weight.mean(0), table.weight[2]]))


def test_real_rows_the_process_beats_the_best_published_mix():
    folder = REAL_DATA / "op2"
    if not folder.exists():
        pytest.skip(f"REAL RESPONSES NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    train, test = (data.read_responses(folder / f"de_{part}.parquet") for part in ("train", "test"))
    assert rmse(baselines.BASELINES[baselines.REFERENCE]().fit(train).predict(test.index), test) == pytest.approx(
        0.942, abs=0.001
    )
    assert rmse(ResponseProcess().fit(train).predict(test.index), test) < 0.92


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["stage_1", "transformer", "autoencoder"])
def test_a_gpu_trains_the_same_networks(table, name):
    train, test = table
    specs = [replace(spec, epochs=6, n_dim=10, batch=16) for spec in networks.specs_of(name)[:2]]
    here, there = (
        Ensemble(specs, 1, scale=1.0, device=device).fit(train).predict(test.index) for device in ("cpu", "cuda")
    )
    assert rmse(there, here) < 0.02 * rmse(here, test)
