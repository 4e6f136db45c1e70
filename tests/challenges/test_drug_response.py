"""Drug response: files in and out, inner folds, baselines, the process, networks, stages, the command line."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REAL_DATA

from challenges.drug_response import __main__ as cli
from challenges.drug_response import baselines, data, evaluate, folds, models, networks
from challenges.drug_response.ensemble import Ensemble, truncated_svd
from challenges.drug_response.kernel import ResponseProcess
from helpers import DataError

GENES = [f"G{i}" for i in range(40)]


def simulated(n_compounds=24, sparse_known=4, seed=0):
    """All rows of three cell types: a mean of each, and effects of compounds (rank 3) that the types share in part."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n_compounds, 3)) @ rng.normal(size=(3, len(GENES)))
    rows = {}
    for cell_type, share in (("B cells", 0.9), ("NK cells", 0.7), ("T cells", 0.9)):
        mean = rng.normal(size=len(GENES))
        for i in range(n_compounds):
            rows[cell_type, f"D{i:02}"] = mean + share * effects[i] + rng.normal(0, 0.5, len(GENES))
    table = pd.DataFrame(rows, GENES, dtype=np.float32).T.rename_axis(data.KEYS)
    unknown = (table.index.get_level_values(0) == "B cells") & (
        table.index.get_level_values(1) >= f"D{sparse_known:02}"
    )
    return table[~unknown], table[unknown]


def write(folder, train, test):
    """Kaggle's files."""
    about = train.index.to_frame(index=False).assign(sm_lincs_id="", SMILES="", control=False)
    pd.concat([about, train.reset_index(drop=True)], axis=1).to_parquet(folder / data.TRAIN_FILE)
    about = test.index.to_frame(index=False).assign(sm_lincs_id="", SMILES="", control=False)
    pd.concat([about, test.reset_index(drop=True)], axis=1).to_parquet(folder / "de_test.parquet")
    queries = test.index.to_frame(index=False)
    queries.rename_axis("id").to_csv(folder / data.QUERY_FILE)
    return folder


@pytest.fixture
def table():
    return simulated()


@pytest.fixture
def files(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, *table)


def tiny_specs(stage="stage_1", n=2):
    return [replace(spec, hidden=(16, 8), dropout=(0.1, 0.1), embedding=4, epochs=6, n_dim=10, batch=16)
            for spec in networks.specs_of(stage)[:n]]  # fmt: skip


def rmse(prediction, truth):
    return baselines.row_rmse(prediction, truth).mean()


# Files


def test_the_order_of_rows_in_the_file_does_not_matter(files, table):
    train, _ = table
    read = data.read_responses(files / data.TRAIN_FILE)
    pd.testing.assert_frame_equal(read, train.sort_index())
    write(files, train.sample(frac=1, random_state=1), table[1])
    pd.testing.assert_frame_equal(data.read_responses(files / data.TRAIN_FILE), read)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.drop(columns="sm_name"), "no column sm_name"),
        (lambda t: t[["cell_type", "sm_name", "SMILES"]], "no gene columns"),
        (lambda t: t.assign(G3="x"), "not numbers: G3"),
        (lambda t: pd.concat([t, t.iloc[[0]]], ignore_index=True), "come twice: D00 in B cells"),
        (lambda t: t.assign(G5=t["G5"].where(t.index != 0)), "NaN .* D00 in B cells.* G5"),
        (lambda t: t.assign(cell_type=t["cell_type"].where(t.index != 1)), "empty labels in column cell_type"),
        (lambda t: t[t["cell_type"] == "T cells"], "one cell type only"),
    ],
)
def test_a_damaged_training_table_is_refused(files, damage, said):
    path = files / data.TRAIN_FILE
    damage(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(DataError, match=said):
        data.check_trainable(data.read_responses(path))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["id,cell_type", "0,B cells"], "no column sm_name"),
        (["id,cell_type,sm_name", "0,B cells,D1", "1,B cells,D1"], "rows that come twice: D1 in B cells"),
        (["id,cell_type,sm_name", "0,B cells,D1", "0,B cells,D2"], "ids that come twice: 0"),
        (["id,cell_type,sm_name", "0,,D1"], "empty labels in column cell_type"),
        (["id,cell_type,sm_name"], "no rows"),
    ],
)
def test_a_damaged_id_map_is_refused(tmp_path, lines, said):
    (tmp_path / "id_map.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=said):
        data.read_queries(tmp_path / "id_map.csv")


def test_a_missing_or_broken_file_is_named(tmp_path):
    for read, name in ((data.read_responses, data.TRAIN_FILE), (data.read_queries, data.QUERY_FILE)):
        with pytest.raises(DataError, match=f"{name}: no such file"):
            read(tmp_path / name)
    (tmp_path / data.TRAIN_FILE).write_text("x")
    with pytest.raises(DataError, match="not a parquet file"):
        data.read_responses(tmp_path / data.TRAIN_FILE)


def test_the_sample_submission_is_compared_by_name(files, table):
    queries, genes = data.read_queries(files / data.QUERY_FILE), pd.Index(GENES)
    sample = pd.DataFrame(0.0, queries.index[::-1], GENES[::-1])
    sample.to_csv(files / data.SAMPLE_FILE)
    data.check_sample(files / data.SAMPLE_FILE, queries, genes)
    for odd, said in ((sample.drop(columns="G7"), "genes .* G7"), (sample.iloc[1:], f"ids .* {queries.index[-1]}")):
        odd.to_csv(files / data.SAMPLE_FILE)
        with pytest.raises(DataError, match=said):
            data.check_sample(files / data.SAMPLE_FILE, queries, genes)


# Folds and baselines


def test_inner_folds_have_the_shape_of_the_test(table):
    train, _ = table
    found = {cell_type: (inner, test) for cell_type, inner, test in folds.held_out(train)}
    assert list(found) == ["NK cells", "T cells"]
    for cell_type, (inner, test) in found.items():
        assert set(test.index.get_level_values(0)) == {cell_type}
        kept = inner.xs(cell_type).index
        assert list(kept) == ["D00", "D01", "D02", "D03"]  # what the sparse type has
        assert len(inner) + len(test) == len(train)


def test_without_a_sparse_type_an_eighth_stays_known(table):
    train, test = table
    for cell_type, inner, held in folds.held_out(pd.concat([train, test]).sort_index()):
        assert len(inner.xs(cell_type)) == 3
        assert len(held) == 21


def test_baselines_are_the_means_they_are_named_after(table):
    train, test = table
    pairs = test.index[:1].append(pd.MultiIndex.from_tuples([("new", "D05"), ("B cells", "new")], names=data.KEYS))
    own, compound = train.xs("B cells").mean(), train.xs("D04", level=1).mean()
    np.testing.assert_allclose(baselines.MeanOf("cell_type").fit(train).predict(pairs).iloc[0], own, atol=1e-6)
    np.testing.assert_allclose(baselines.MeanOf("sm_name").fit(train).predict(pairs).iloc[0], compound, atol=1e-6)
    np.testing.assert_allclose(baselines.MeanOf("cell_type").fit(train).predict(pairs).iloc[1], train.mean(), atol=1e-6)
    np.testing.assert_allclose(
        baselines.MixOfMeans(0.5).fit(train).predict(pairs).iloc[0], (own + compound) / 2, atol=1e-6
    )
    np.testing.assert_allclose(baselines.MeanOf().fit(train).predict(pairs).iloc[2], train.mean(), atol=1e-6)
    assert (baselines.Zeros().fit(train).predict(pairs) == 0).all(axis=None)


def test_full_rank_denoising_changes_nothing(table):
    train, _ = table
    beyond = train - train.groupby(level=0).transform("mean")
    np.testing.assert_allclose(baselines.denoised_effects(train, 99), beyond.groupby(level=1).mean(), atol=1e-5)
    assert np.linalg.matrix_rank(baselines.denoised_effects(train, 2), tol=1e-4) == 2


def test_a_sparse_type_with_other_compounds_leaves_some_known(table):
    train, _ = table
    names = train.index.get_level_values(1)
    foreign = train.rename(index=lambda name: f"X{name[1:]}", level=1)[train.index.get_level_values(0) == "B cells"]
    for cell_type, inner, _ in folds.held_out(pd.concat([train[names >= "D04"], foreign]).sort_index()):
        assert len(inner.xs(cell_type)) == 2


# Models


def test_the_process_beats_every_baseline_and_comes_back_from_its_bundle(table, tmp_path):
    train, test = table
    model = ResponseProcess(rank=3).fit(train)
    error = rmse(model.predict(test.index), test)
    for name, make in models.BASELINES.items():
        assert error < rmse(make().fit(train).predict(test.index), test), name
    models.save_model(tmp_path / "m.h5", "kernel", model, data.fingerprint(train), models.Options())
    again, about = models.load_model(tmp_path / "m.h5")
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
    small = replace(spec, hidden=tuple(min(n, 48) for n in spec.hidden), dropout=(0.1,) * len(spec.hidden),
                    embedding=16, epochs=200 if stage == "autoencoder" else 60, n_dim=12, batch=16)  # fmt: skip
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
        with networks.reproducible(0, "test"), torch.no_grad():
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
    sizes = [len(rows) for rows in networks.batches(33, 16, torch.Generator().manual_seed(0))]
    assert sizes == [16, 17]
    assert [len(rows) for rows in networks.batches(5, 16, torch.Generator())] == [5]
    rows = torch.cat(list(networks.batches(33, 16, torch.Generator().manual_seed(0))))
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
        found = [networks.apply_network(spec, model.problem_, arrays, *codes) for arrays in repeats]
        total += spec.weight * np.median([f @ model.components_[: f.shape[1]] for f in found], axis=0)
    expected = np.clip(0.8 * total / sum(spec.weight for spec in specs), train.min().to_numpy(), train.max().to_numpy())
    np.testing.assert_allclose(model.predict(test.index), expected, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(table, tmp_path):
    train, test = table
    specs = tiny_specs()
    together = Ensemble(specs, 2, scale=1.0).fit(train)
    alone = networks.fit_network(specs[1], together.problem_, 0, 1, "cpu")
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together.networks_[1][1][name])
    other = Ensemble(specs, 2, scale=1.0, seed=1).fit(train)
    assert not np.array_equal(other.predict(test.index), together.predict(test.index))


def test_stage_2_learns_from_the_answers_of_stage_1(table):
    train, test = table
    first = Ensemble(tiny_specs(), 1, scale=1.0).fit(train)
    pseudo = first.predict(test.index)
    second = Ensemble(tiny_specs("stage_2"), 1, scale=1.0).fit(train, pseudo)
    assert len(second.problem_.cell_type) == len(train) + len(test)
    np.testing.assert_allclose(second.highest_, train.max())  # the range is that of real rows


def test_the_scale_is_tuned_where_answers_are_too_large(table):
    train, _ = table
    noise = train * 0 + np.random.default_rng(0).normal(size=train.shape)  # nothing to learn: shrink
    assert Ensemble(tiny_specs(n=1), 1).fit(noise.astype(np.float32)).scale_ < 0.6


def test_published_hyper_parameters_are_read_whole():
    assert [len(networks.specs_of(stage)) for stage in models.STAGES] == [1, 7, 20]
    seven = networks.specs_of("simple")[0]
    assert (seven.hidden, seven.dropout) == ((712, 400, 232, 216), (0.4904, 0.032372, 0.111383, 0.019885))
    assert (seven.embedding, seven.n_dim, seven.batch, seven.learning_rate, seven.epochs) == (
        48, 100, 128, 0.00553, 141,
    )  # fmt: skip
    shares = [round(spec.weight, 3) for spec in networks.specs_of("stage_1")]
    assert shares == [0.152, 0.715, 0.755, 0.058, 0.96, 0.497, 0.988]
    twenty = networks.specs_of("stage_2")
    assert {spec.epochs for spec in twenty} == {200}
    assert (min(spec.n_dim for spec in twenty), max(spec.n_dim for spec in twenty)) == (50, 246)
    assert [spec.loss for spec in twenty] == ["mae"] * 8 + ["mrrmse"] * 12
    for spec in (*twenty, *networks.specs_of("stage_1")):
        assert len(spec.hidden) == len(spec.dropout)


# Evaluation and command line


def test_scores_are_what_their_names_say(table):
    _, test = table
    found = evaluate.scores(test * 0.5, test, "half").pivot_table("value", "sm_name", "metric")
    sizes = np.sqrt((test.to_numpy() ** 2).mean(axis=1))
    np.testing.assert_allclose(found["mean row-wise RMSE"], sizes / 2, rtol=1e-5)
    np.testing.assert_allclose(found["error relative to zeros"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[["Pearson", "cosine"]], 1.0, rtol=1e-5)
    zeros = evaluate.scores(test * 0, test, "zeros").pivot_table("value", "sm_name", "metric")
    assert (zeros[["Pearson", "cosine"]] == 0).all(axis=None)
    shuffled = evaluate.scores((test * 0.5).iloc[::-1, ::-1], test, "half").pivot_table("value", "sm_name", "metric")
    pd.testing.assert_frame_equal(shuffled, found)


def run(*arguments):
    cli.main([str(argument) for argument in arguments])


def test_train_predict_evaluate_from_the_command_line(files, table, capsys):
    train, test = table
    run("prepare", "--data", files)
    assert "B cells 4, NK cells 24, T cells 24" in capsys.readouterr().out
    run("repro", "--data", files, "--model", "kernel")
    first = (files / "submissions/kernel_submission.csv").read_bytes()
    run("repro", "--data", files, "--model", "kernel")
    assert (files / "submissions/kernel_submission.csv").read_bytes() == first
    written = pd.read_csv(files / "submissions/kernel_submission.csv")
    assert list(written.columns) == ["id", *GENES]
    np.testing.assert_allclose(written[GENES], ResponseProcess().fit(train.sort_index()).predict(test.index), atol=1e-3)
    run("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--model", "kernel", "--out", "table.csv")
    found = pd.read_csv("table.csv")
    assert list(found.columns[:6]) == ["method", "metric", "value", "low", "high", "n"]
    assert set(found["method"]) == {*models.BASELINES, "kernel"}
    assert (found["n"] == len(test)).all()
    assert (files / "build/drug_response/by_compound.png").stat().st_size > 10_000
    run("evaluate", "--data", files, "--model", "kernel", "--out", "folds.csv")
    assert (pd.read_csv("folds.csv")["n"] == 20).all()


@pytest.fixture
def small_table(tmp_path, monkeypatch):
    """The table of hyper-parameters, with small networks."""
    table = pd.read_csv(networks.TABLE, sep="\t")
    dense = table["kind"] == "dense"
    table.loc[dense, ["hidden", "dropout", "embedding", "n_dim", "epochs"]] = ["8,8", "0.1,0.1", 4, 10, 6]
    table.loc[~dense, ["hidden", "embedding", "n_dim", "epochs"]] = ["16,8", 16, 10, 4]
    table.to_csv(tmp_path / "networks.tsv", sep="\t", index=False)
    monkeypatch.setattr(networks, "TABLE", tmp_path / "networks.tsv")
    return tmp_path / "networks.tsv"


def test_repro_chains_both_stages_and_is_the_same_twice(files, small_table, capsys):
    (files / data.SAMPLE_FILE).write_text((files / data.QUERY_FILE).read_text())
    with pytest.raises(SystemExit, match=r"sample_submission.csv: genes that do not agree"):
        run("repro", "--data", files, "--stage", "stage_2", "--quick")
    (files / data.SAMPLE_FILE).unlink()
    written = []
    for _ in range(2):
        run("repro", "--data", files, "--stage", "stage_2", "--quick")
        written.append([(files / f"submissions/{stage}_submission.csv").read_bytes() for stage in models.STAGES[1:]])
    assert written[0] == written[1]
    assert written[0][0] != written[0][1]
    assert "stage_2: 20 x 1 networks, 2 epochs each" in capsys.readouterr().out
    second, about = models.load_model(files / "build/drug_response/stage_2.h5")
    assert (second.scale_, about["quick"], len(second.networks_)) == (1.0, True, 20)
    queries = data.read_queries(files / data.QUERY_FILE)
    found = pd.read_csv(files / "submissions/stage_2_submission.csv", index_col="id")
    np.testing.assert_allclose(second.predict(data.pairs_of(queries)), found, atol=1e-3)
    with pytest.raises(SystemExit, match=r"stage_1.h5: trained with other --quick than stage_2 now"):
        run("train", "--data", files, "--stage", "stage_2")
    with pytest.raises(SystemExit, match=r"stage_1.h5: trained with other --seed than stage_2 now"):
        run("train", "--data", files, "--stage", "stage_2", "--quick", "--seed", 1)


def test_evaluate_trains_again_when_hyper_parameters_changed(files, small_table):
    arguments = ("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--stage", "simple", "--quick")
    times = []
    for learning_rate in (None, None, 0.001):
        if learning_rate is not None:
            table = pd.read_csv(small_table, sep="\t").assign(learning_rate=learning_rate)
            table.to_csv(small_table, sep="\t", index=False)
        run(*arguments)
        times.append((files / "build/drug_response/simple.h5").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_every_model_is_scored_beside_every_baseline(files, table, small_table, capsys):
    run("evaluate", "--data", files, "--truth", files / "de_test.parquet", "--quick", "--out", "table.csv")
    found = pd.read_csv("table.csv")
    assert list(found) == ["method", "metric", "value", "low", "high", "n"]
    assert set(found["method"]) == {*models.BASELINES, *models.MODELS}
    assert found.notna().all(axis=None)
    rmse_of = found[found["metric"] == evaluate.METRICS[0]].set_index("method")
    to_mix, to_first = (found[found["metric"] == f"{evaluate.METRICS[0]} minus that of {name}"].set_index("method")
                        for name in (models.REFERENCE, "stage_1"))  # fmt: skip
    assert set(to_first.index) == {"stage_2", models.PLAIN}
    assert set(to_mix.index) == {*rmse_of.index} - {*to_first.index}
    gain = rmse_of.loc["stage_2", "value"] - rmse_of.loc["stage_1", "value"]
    assert to_first.loc["stage_2", "value"] == pytest.approx(gain)
    assert f"stage_2 - stage_1: {gain:+.4f} (" in capsys.readouterr().out
    assert rmse_of.loc["stage_2", "value"] != rmse_of.loc[models.PLAIN, "value"]


def test_answers_that_do_not_fit_are_refused(files, table):
    train, test = table
    with pytest.raises(DataError, match=r"genes that do not agree .* G4"):
        evaluate.on_truth(train, test.drop(columns="G4"), {})
    with pytest.raises(DataError, match=r"rows that are in de_train.parquet too: D00 in B cells"):
        evaluate.on_truth(train, pd.concat([test, train.iloc[:1]]), {})


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


def test_unknown_labels_get_the_mean_and_are_named(files, capsys):
    run("train", "--data", files, "--model", "kernel")
    (files / data.QUERY_FILE).write_text("id,cell_type,sm_name\n7,Monocytes,D01\n3,B cells,Aspirin\n")
    run("predict", "--data", files, "--model", "kernel")
    said = capsys.readouterr().out
    assert "1 cell types unknown to training" in said
    assert "Monocytes" in said
    assert "Aspirin" in said
    assert list(pd.read_csv(files / "submissions/kernel_submission.csv")["id"]) == [7, 3]


def test_ids_are_texts_and_a_model_comes_before_a_stage(files, table):
    rows = table[1].index[:2]
    lines = [f"{i:03},{cell_type},{compound}" for i, (cell_type, compound) in enumerate(rows)]
    (files / data.QUERY_FILE).write_text("\n".join(["id,cell_type,sm_name", *lines]))
    (files / data.SAMPLE_FILE).write_text(",".join(["id", *GENES]) + "\n" + "\n".join(f"{i:03}" for i in range(2)))
    run("repro", "--data", files, "--stage", "simple", "--model", "kernel")
    assert list(pd.read_csv(files / "submissions/kernel_submission.csv", dtype={"id": str})["id"]) == ["000", "001"]


HEADER = b"id,cell_type,sm_name\n"


@pytest.mark.parametrize(
    "content", [b"", HEADER + "0,B cells,ß".encode("latin-1"), HEADER + b"0,B cells,D01\n1,B cells,1,2-thing\n"]
)
def test_a_csv_that_cannot_be_read_is_said(files, content):
    (files / data.QUERY_FILE).write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: .*id_map.csv: not a csv file in UTF-8"):
        run("prepare", "--data", files)


def test_a_work_folder_that_is_a_file_is_said(files):
    (files / "work").write_text("")
    with pytest.raises(SystemExit, match=r"error: work/kernel.h5: could not be written"):
        run("train", "--data", files, "--model", "kernel", "--work", "work")


def test_an_unknown_label_has_the_mean_of_the_learned_embeddings():
    table = networks.LabelEmbedding(3, 2)
    torch.testing.assert_close(table(torch.tensor([-1, 2])), torch.stack([table.weight.mean(0), table.weight[2]]))


def test_a_bundle_of_another_gene_set_is_refused(files, table, capsys):
    run("train", "--data", files, "--model", "kernel")
    write(files, table[0].drop(columns="G0"), table[1].drop(columns="G0"))
    with pytest.raises(SystemExit, match=r"trained on other genes .* G0; train again"):
        run("predict", "--data", files, "--model", "kernel")


def test_a_stage_that_is_missing_is_asked_for(files):
    with pytest.raises(SystemExit, match=r"stage_1.h5: no such bundle; train first"):
        run("train", "--data", files, "--stage", "stage_2")
    with pytest.raises(SystemExit, match=r"simple.h5: no such bundle; train first"):
        run("predict", "--data", files)


def test_real_rows_the_process_beats_the_best_published_mix():
    folder = REAL_DATA / "op2"
    if not folder.exists():
        pytest.skip(f"REAL RESPONSES NOT TESTED: {folder} is not there (set REAL_DATA to its parent)")
    train, test = (data.read_responses(folder / f"de_{part}.parquet") for part in ("train", "test"))
    assert rmse(models.BASELINES[models.REFERENCE]().fit(train).predict(test.index), test) == pytest.approx(
        0.942, abs=0.001
    )
    assert rmse(ResponseProcess().fit(train).predict(test.index), test) < 0.92


# GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["stage_1", "transformer", "autoencoder"])
def test_a_gpu_trains_the_same_networks(table, name):
    train, test = table
    specs = [replace(spec, epochs=6, n_dim=10, batch=16) for spec in networks.specs_of(name)[:2]]
    here, there = (Ensemble(specs, 1, scale=1.0, device=device).fit(train).predict(test.index)
                   for device in ("cpu", "cuda"))  # fmt: skip
    assert rmse(there, here) < 0.02 * rmse(here, test)
