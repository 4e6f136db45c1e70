"""Drug response: files in and out, folds, baselines."""

import numpy as np
import pandas as pd
import pytest
from simulated_responses import GENES, simulated, write

from challenges.drug_response import baselines, data, folds
from helpers import DataError


@pytest.fixture
def table():
    return simulated()


@pytest.fixture
def files(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, *table)


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
