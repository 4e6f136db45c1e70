"""`workbench.cross_validate` on simulated effects with a known kernel, on the demo folder, and on bad input."""

import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats

import helpers
from contract import OBESITY_1 as CRUNCH
from helpers import DataError, row_correlations
from knowledge import FeatureTable
from response import ResponseModel
from screens import Screen, write_screen
from workbench import cross_validate
from workbench.compare import CEILING, STARTER
from workbench.cross_validate import (
    cross_validate_challenge,
    cross_validate_effects,
    cross_validate_proportions,
    summarise,
)
from workbench.evaluation import methods, pictures
from workbench.evaluation.folds import COLUMNS, TRUE_MEAN, EffectsFold, split
from workbench.evaluation.methods import (
    ALL,
    BOTH,
    CONSTANT,
    MEDIAN,
    PCA_RIDGE,
    SCREENS,
    SHUFFLED,
    TRAIN_MEAN,
    WITHOUT_MINE,
    ZERO,
    Method,
)
from workbench.evaluation.verdicts import HARMS, HELPS, UNCLEAR, verdict, verdict_lines, verdicts
from workbench.pictures.style import BLUE, GREY, RED
from workbench.results import data as results_data
from workbench.results import page as results_page
from workbench.results import transfer as results_transfer

WHAT = ["method", "perturbation", "metric", "seed", "fold", "draw", "panel"]
SIX = ["method", "metric", "value", "low", "high", "n"]


@pytest.fixture(scope="module")
def simulated():
    """30 knock-outs x 80 responses that follow 4 hidden features of the gene, and the table that knows them."""
    generator = np.random.default_rng(0)
    genes = pd.Index([f"G{i}" for i in range(30)])
    features = generator.normal(size=(30, 4))
    effects = features @ generator.normal(size=(4, 80)) + generator.normal(size=(30, 80))
    return pd.DataFrame(effects, index=genes, columns=[f"G{i}" for i in range(15, 95)]), {
        "right": FeatureTable.of(genes, features)
    }


@pytest.fixture(scope="module")
def elsewhere(simulated):
    """The same effects, measured again with half of their variance in noise: a screen of 29 of the 30."""
    effects = simulated[0].iloc[:29]
    values = effects.to_numpy() + np.random.default_rng(5).normal(scale=2.0, size=effects.shape)
    left, lengths, basis = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    return Screen(effects.index, effects.columns, (left * lengths).astype("f4"), basis.astype("f4"))


@pytest.fixture(scope="module")
def noise(simulated):
    """A table that knows nothing: 50 normal numbers for each gene."""
    genes = simulated[0].index
    return FeatureTable.of(genes, np.random.default_rng(7).normal(size=(len(genes), 50)))


@pytest.fixture(scope="module")
def table(simulated):
    return cross_validate_effects(*simulated, n_folds=5, seeds=(0, 1), draws=1)


def same(left, right):
    pd.testing.assert_frame_equal(left[[*WHAT, "value"]], right[[*WHAT, "value"]])


def by_method(table, metric="pearson"):
    return summarise(table).query("metric == @metric").set_index("method")


def test_the_right_table_wins_and_shuffled_names_do_not(table):
    rows = by_method(table)
    assert set(rows.index) == {
        ZERO,
        TRAIN_MEAN,
        PCA_RIDGE,
        CONSTANT,
        "right alone",
        "own response alone",
        ALL,
        "random features",
        SHUFFLED,
    }
    assert rows.loc["right alone", "low"] > 0.5
    assert rows.loc[ALL, "low"] > 0.5
    assert abs(rows.loc[SHUFFLED, "value"]) < 0.15
    assert abs(rows.loc["random features", "value"]) < 0.15
    assert rows.loc[TRAIN_MEAN, "value"] == 0
    assert rows.loc[ALL, "difference_low"] > 0.3
    assert rows.loc[ALL, "win_rate"] > 0.8
    assert rows.loc[ALL, "n"] == 30


def test_each_perturbation_is_held_out_once_a_seed(table):
    counts = table[(table["method"] == ALL) & (table["metric"] == "pearson")].groupby("seed")["perturbation"]
    assert (counts.nunique() == 30).all()
    assert (counts.size() == 30).all()


@pytest.fixture
def predictions(monkeypatch):
    """Every call of `Method.predict`: the training names, the targets, and what was predicted."""
    calls, original = [], methods.Method.predict

    def spy(self, means, n_cells, targets):
        predicted, scale = original(self, means, n_cells, targets)
        calls.append((set(means.index), set(targets), predicted, scale))
        return predicted, scale

    monkeypatch.setattr(methods.Method, "predict", spy)
    return calls


def test_a_held_out_response_does_not_change_its_own_prediction(simulated, predictions):
    effects, tables = simulated
    changed = effects.copy()
    changed.loc["G20"] = 1000.0 * np.random.default_rng(1).normal(size=80)
    found = []
    for frame in (effects, changed):
        predictions.clear()
        cross_validate_effects(frame, tables, n_folds=3, draws=1)
        found.append([(mean.loc["G20"], scale) for _, test, mean, scale in predictions if "G20" in test])
    assert len(found[0]) == 7 + 2
    for (mean, scale), (mean_of_changed, scale_of_changed) in zip(*found, strict=True):
        pd.testing.assert_series_equal(mean, mean_of_changed)
        assert (scale is None) == (scale_of_changed is None)
        if scale is not None:
            pd.testing.assert_frame_equal(scale, scale_of_changed)


def test_the_fold_sees_only_its_training_rows(simulated, predictions):
    effects, tables = simulated
    cross_validate_effects(effects, tables, n_folds=5, only=[ALL, SHUFFLED])
    assert predictions
    assert all(not train & test and train | test == set(effects.index) for train, test, _, _ in predictions)


def test_contrasts_of_one_gene_leave_together_and_count_once(simulated):
    effects, tables = simulated
    twice = pd.concat([effects, effects + 0.1], keys=["a", "b"])
    twice.index = [f"{gene}_{part}" for part, gene in twice.index]
    groups = pd.Series([name.split("_")[0] for name in twice.index], index=twice.index)
    table = cross_validate_effects(twice, tables, groups=groups, only=[ALL, TRAIN_MEAN])
    rows = by_method(table)
    assert rows.loc[ALL, "n"] == 30
    assert rows.loc[ALL, "value"] == pytest.approx(
        by_method(cross_validate_effects(effects, tables, only=[ALL])).loc[ALL, "value"], abs=0.02
    )


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_gives_the_same_table(simulated, table, executor):
    with executor(2) as pool:
        same(cross_validate_effects(*simulated, n_folds=5, seeds=(0, 1), draws=1, executor=pool), table)


def test_leave_one_out_repeats_only_what_is_random(simulated):
    effects, tables = simulated
    chosen = [TRAIN_MEAN, "random features"]
    table = cross_validate_effects(effects.iloc[:8], tables, n_folds="loo", seeds=(0, 1), draws=1, only=chosen)
    assert table.groupby("method")["seed"].nunique().to_dict() == {TRAIN_MEAN: 1, "random features": 2}


def test_split_does_not_depend_on_the_order_and_covers_everything():
    names = pd.Index(list("dacbe"))
    parts, again = split(names, 2, 3), split(names[::-1], 2, 3)
    assert [list(part) for part in parts] == [list(part) for part in again]
    assert sorted(name for part in parts for name in part) == list("abcde")
    assert [list(part) for part in split(names, "loo", 0)] == [[name] for name in "abcde"]
    assert len(split(names, 99, 0)) == 5


def test_row_pearson_is_scipys():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 4, 9))
    b[3] = 2.0
    expected = [scipy.stats.pearsonr(x, y).statistic for x, y in zip(a[:3], b[:3], strict=True)]
    np.testing.assert_allclose(row_correlations(a, b), [*expected, 0.0])


# ---------------------------------------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------------------------------------


def test_summary_by_hand():
    values = {ZERO: [0.0, 0.2, 0.1], "mine": [0.3, 0.4, 0.0]}
    rows = [
        (method, f"P{i}", "pearson", value + shift, 0, 0, 0, panel, 2.0, 100.0, method == "mine")
        for method, numbers in values.items()
        for i, value in enumerate(numbers)
        for panel, shift in enumerate((-0.05, 0.05))
    ]
    summary = summarise(pd.DataFrame(rows, columns=COLUMNS))
    assert list(summary.columns[:6]) == SIX
    mine = summary.set_index("method").loc["mine"]
    half = 4.302653 * np.std([0.3, 0.4, 0.0], ddof=1) / np.sqrt(3)
    assert mine[["value", "low", "high"]].to_list() == pytest.approx([0.7 / 3, 0.7 / 3 - half, 0.7 / 3 + half])
    assert (mine["n"], mine["baseline"], mine["win_rate"]) == (3, ZERO, pytest.approx(2 / 3))
    half = 4.302653 * np.std([0.3, 0.2, -0.1], ddof=1) / np.sqrt(3)
    assert mine["difference"] == pytest.approx(0.4 / 3)
    assert mine["difference_high"] == pytest.approx(0.4 / 3 + half)
    assert mine["seconds"] == 2.0
    assert summary.set_index("method")["submitted"].to_dict() == {ZERO: False, "mine": True}


def test_lower_is_better_for_distances():
    frame = pd.DataFrame(
        {
            "method": [ZERO, "mine"],
            "perturbation": "P",
            "metric": "mmd",
            "value": [2.0, 1.0],
            "seconds": 1.0,
            "peak_mb": 1.0,
            "submitted": False,
        }
    )
    mine = summarise(frame).set_index("method").loc["mine"]
    assert mine["win_rate"] == 1.0
    assert np.isnan(mine["low"])  # one perturbation has no interval


# ---------------------------------------------------------------------------------------------------------------------
# Screens, and whether a table helps
# ---------------------------------------------------------------------------------------------------------------------


def test_a_table_of_the_truth_helps_and_a_random_one_makes_no_difference(simulated, noise):
    effects, tables = simulated
    mine = ["right", "random"]
    chosen = [ALL, "without right", "without random", WITHOUT_MINE]
    table = cross_validate_effects(effects, tables | {"random": noise}, mine=mine, only=chosen)
    found = verdicts(table)
    assert found["verdict"].to_dict() == {"without right": HELPS, "without random": UNCLEAR, WITHOUT_MINE: HELPS}
    assert found.loc["without right", "low"] > 0.3
    assert abs(found.loc["without random", "difference"]) < 0.01
    rows = by_method(table)
    assert found["difference"].to_dict() == pytest.approx(
        {name: rows.loc[ALL, "value"] - rows.loc[name, "value"] for name in chosen[1:]}
    )
    assert (found["n"] == 30).all()


def test_a_screen_runs_alone_and_is_left_out_and_the_full_method_is_submitted(simulated, elsewhere):
    effects, tables = simulated
    table = cross_validate_effects(effects, tables, screens={"other": elsewhere}, mine=["other"], draws=1)
    rows = by_method(table)
    assert set(rows.index) == {
        ZERO,
        TRAIN_MEAN,
        PCA_RIDGE,
        CONSTANT,
        "right alone",
        "other alone",
        "own response alone",
        SCREENS,
        "without other",
        "random features",
        SHUFFLED,
    }
    assert rows.index[rows["submitted"]].to_list() == [SCREENS]
    assert rows.loc["other alone", "low"] > 0.3
    assert rows.loc["without other", "value"] < rows.loc[SCREENS, "value"]
    assert verdicts(table)["verdict"].to_dict() == {"without other": HELPS}
    plain = by_method(cross_validate_effects(effects, tables, only=[ALL]))
    assert rows.loc["without other", "value"] == pytest.approx(plain.loc[ALL, "value"], abs=1e-9)


def test_a_verdict_is_an_interval_beside_zero():
    gains = pd.Series([0.019, 0.02, 0.021, np.nan])
    assert verdict(gains)["verdict"] == HELPS
    assert verdict(-gains)["verdict"] == HARMS
    assert verdict(gains - 0.02)["verdict"] == UNCLEAR
    assert verdict(0 * gains)["verdict"] == UNCLEAR
    assert verdict(gains.iloc[:1])["verdict"] == UNCLEAR  # one perturbation has no interval
    assert verdict(gains)["n"] == 3


def test_no_verdict_where_nothing_was_left_out_or_nothing_is_submitted(table, simulated):
    assert verdict_lines(table) == []
    part = cross_validate_effects(*simulated, mine=["right"], only=["without right"])
    assert verdict_lines(part) == []


def test_the_reference_weighs_the_cells(simulated):
    """The mean weighed by cells is the reference, so that it scores 0."""
    effects, _ = simulated
    n_cells = pd.Series(np.arange(1, 31) ** 2.0, effects.index)
    weighed = Method("weighed", helpers.PerturbedMean())
    fold = EffectsFold(effects, effects.index.to_numpy(), effects.index[:5], [weighed], 0, 0, n_cells)
    scores = fold.run().query("metric == 'pearson'").set_index("perturbation")["value"]
    assert np.allclose(scores, 0, atol=1e-6)
    unweighed = EffectsFold(effects, effects.index.to_numpy(), effects.index[:5], [weighed], 0, 0)
    errors = [part.run().query("metric == 'error'")["value"].to_numpy() for part in (fold, unweighed)]
    assert not np.allclose(*errors)


# ---------------------------------------------------------------------------------------------------------------------
# A challenge folder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(challenge):
    return cross_validate_challenge(challenge, n_folds=3, n_panels=2, panel_size=100, draws=1)


def test_challenge_has_the_three_metrics_and_the_ceiling(cells, challenge):
    summary = summarise(cells)
    assert set(summary["metric"]) >= {"pearson_delta", "mmd", "l1_distance"}
    mmd, pearson = (summary[summary["metric"] == name].set_index("method") for name in ("mmd", "pearson_delta"))
    assert {STARTER, PCA_RIDGE, CEILING, TRUE_MEAN, CONSTANT, ALL, SHUFFLED} <= set(mmd.index)
    assert mmd.loc[TRUE_MEAN, "value"] < mmd.loc[ALL, "value"]
    assert TRUE_MEAN not in pearson.index
    assert mmd.loc[STARTER, "value"] > 5 * mmd.loc[ALL, "value"]
    assert pearson.loc["perturbed mean", "value"] == 0
    assert pearson.loc[CEILING, "value"] > pearson.loc[ALL, "value"]
    assert mmd.loc[ALL, "n"] == len(challenge.perturbations)
    assert set(cells["panel"]) == {0, 1}


def test_one_method_is_submitted_for_each_metric_of_a_challenge(cells):
    summary = summarise(cells)
    submitted = summary[summary["submitted"]].groupby("metric")["method"].agg(list).to_dict()
    assert submitted == {
        **{name: [BOTH] for name in ("pearson_delta", "mmd", "error", "expected_error", "expected_pearson")},
        "l1_distance": [MEDIAN],
    }


def test_challenge_scores_are_the_platforms(cells, challenge, stats):
    """One held-out perturbation by hand: the control's cells against its real ones."""
    names = challenge.perturbations
    test = split(names, 3, 0)[0]
    X = helpers.ad.read_h5ad(challenge.train_path)
    panel = helpers.draw_panels(challenge.genes, challenge.genes, None, 2, 100, 0)[1]
    gene = challenge.obs["gene"].to_numpy()
    train = ~np.isin(gene, [*test, CRUNCH.control])
    reference = X[train, panel].X.toarray().mean(axis=0)
    true = X[gene == test[0], panel].X.toarray()
    control = stats.mean.loc[CRUNCH.control, panel].to_numpy()
    row = cells[(cells["method"] == "control") & (cells["perturbation"] == test[0]) & (cells["panel"] == 1)]
    value = row.set_index("metric")["value"]
    expected = np.corrcoef(true.mean(axis=0) - reference, control - reference)[0, 1]
    assert value["pearson_delta"] == pytest.approx(expected)
    assert 0 < value["mmd"] < 1


def test_proportions_are_the_tables_own(challenge):
    table = cross_validate_proportions(challenge.proportions)
    shares = challenge.proportions
    name = challenge.perturbations[3]
    model = helpers.MedianProportions().fit(shares.drop(index=name))
    by_hand = helpers.l1_by_perturbation(shares.loc[[name]], helpers.constrain_proportions(model.predict([name])))
    row = table[(table["method"] == methods.MEDIAN) & (table["perturbation"] == name)]
    assert row["value"].item() == pytest.approx(by_hand.item())


# ---------------------------------------------------------------------------------------------------------------------
# Command lines, pictures, the page, bad input
# ---------------------------------------------------------------------------------------------------------------------


def test_command_line_for_effects(simulated, tmp_path, capsys):
    effects, _ = simulated
    effects.rename_axis("perturbation").to_csv(tmp_path / "effects.csv")
    (tmp_path / "features").mkdir()
    pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), index=effects.index).to_csv(tmp_path / "features/a.csv")
    out, details = tmp_path / "new" / "table.csv", tmp_path / "details.csv"
    cross_validate.main(
        [
            "--effects",
            str(tmp_path / "effects.csv"),
            "--features",
            str(tmp_path / "features"),
            "--folds",
            "3",
            "--draws",
            "1",
            "--out",
            str(out),
            "--details",
            str(details),
        ]
    )
    assert list(pd.read_csv(out).columns[:6]) == SIX
    assert "a.csv alone" in set(pd.read_csv(out)["method"])
    assert "30 rows of 30 perturbed genes x 80 responses" in capsys.readouterr().out
    assert set(WHAT) <= set(pd.read_csv(details))


@pytest.fixture
def files(simulated, elsewhere, tmp_path):
    """Options for the effects and folders of the user's own: a table made from the truth, a random one, a screen."""
    simulated[0].to_csv(tmp_path / "effects.csv")
    features, screens = tmp_path / "features", tmp_path / "screens"
    features.mkdir()
    screens.mkdir()
    genes, values = simulated[0].index, simulated[0].to_numpy()
    truth = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[0][:, :4]
    for name, numbers in (("truth", truth), ("random", np.random.default_rng(9).normal(size=(30, 50)))):
        pd.DataFrame(numbers, index=genes).to_csv(features / f"{name}.csv")
    write_screen(screens / "other.h5ad", elsewhere)
    return ["--effects", tmp_path / "effects.csv", "--features", features, "--screens", screens]


def run_command(*arguments):
    cross_validate.main([*map(str, arguments), "--draws", "1"])


def test_the_last_lines_say_which_file_helps(files, tmp_path, capsys):
    run_command(*files, "--out", tmp_path / "table.csv")
    said = capsys.readouterr().out
    assert "screen other.h5ad: knows 29 of 30 perturbed genes and 80 of 80 responses" in said
    last = said.rstrip().split("\n")[-5:]
    assert next(line.split("  ")[0] for line in said.split("\n") if line.startswith("* ")) == f"* {SCREENS}"
    assert [line.split("  ")[1] for line in last] == [SCREENS, "random.csv", "truth.csv", "other.h5ad", "all of mine"]
    assert last[0].endswith("submitted")
    assert last[1].endswith(UNCLEAR)
    assert last[2].endswith(HELPS)
    assert last[4].endswith(HELPS)
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["submitted"].dtype == bool
    assert set(table.loc[table["submitted"], "method"]) == {SCREENS}
    assert {"other.h5ad alone", "without other.h5ad", "without truth.csv", WITHOUT_MINE} <= set(table["method"])


def test_folders_of_screens_that_cannot_be_used_are_refused(files, simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_validate, "run_all", lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit, match="none: no such folder of screens"):
        run_command(*files[:2], "--screens", tmp_path / "none")
    far = tmp_path / "far"
    far.mkdir()
    with pytest.raises(SystemExit, match="far: no screen knows any of the perturbations"):
        run_command(*files[:2], "--screens", far)
    simulated[0].set_axis([f"X{i}" for i in range(30)]).to_csv(far / "far.csv")
    with pytest.warns(UserWarning, match=r"far\.csv"), pytest.raises(SystemExit, match="far: no screen knows any"):
        run_command(*files[:2], "--screens", far)
    simulated[0].to_csv(far / "truth.csv")
    with (
        pytest.warns(UserWarning, match="far"),
        pytest.raises(SystemExit, match=r"both hold truth\.csv; rename one of them"),
    ):
        run_command(*files[:4], "--screens", far)


def test_screens_of_a_challenge_folder(demo_folder, challenge, tmp_path, capsys):
    """The screen is the training effects themselves, so it must help; the template is part of what is submitted."""
    means = helpers.perturbation_stats(challenge.train_path).mean.drop(index=CRUNCH.control)
    screens = tmp_path / "screens"
    screens.mkdir()
    means.to_csv(screens / "same.csv")
    full = f"{SCREENS} + template"
    chosen = ["--only", CONSTANT, "same.csv alone", full, "without same.csv", SCREENS]
    arguments = ["--data", demo_folder, "--screens", screens, "--folds", 7, "--panels", 1, *chosen]
    run_command(*arguments, "--out", tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv")
    assert set(table.loc[table["submitted"], "method"]) == {full, MEDIAN}
    scores = table[table["metric"] == "pearson_delta"].set_index("method")["value"]
    assert scores["same.csv alone"] > scores[CONSTANT] + 0.2
    assert re.search(r"  same\.csv +\+0\.\d+ .* helps$", capsys.readouterr().out.rstrip().split("\n")[-1])


def test_ranks_become_scores_and_other_numbers_stay(simulated, tmp_path, capsys):
    ranks = simulated[0].rank(axis=1, ascending=False).astype(int)
    ranks = ranks.where(ranks <= 10, 0)
    ranks.to_csv(tmp_path / "ranks.csv")
    ranks.to_parquet(tmp_path / "ranks.parquet")
    expected = ((11 - ranks) / 10).where(ranks > 0, 0.0)
    for name in ("ranks.csv", "ranks.parquet"):
        found = cross_validate.read_effects(tmp_path / name)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_names=False, atol=1e-6)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{tmp_path / name}: ranks")
    simulated[0].to_csv(tmp_path / "effects.csv")
    found = cross_validate.read_effects(tmp_path / "effects.csv")
    pd.testing.assert_frame_equal(found, simulated[0], check_names=False)
    assert capsys.readouterr().out == ""


def test_command_line_for_a_challenge_folder(demo_folder, tmp_path):
    cross_validate.main(
        [
            "--data",
            str(demo_folder),
            "--folds",
            "2",
            "--panels",
            "1",
            "--jobs",
            "2",
            "--sigma",
            "2000",
            "--only",
            "control",
            ALL,
            "--out",
            str(tmp_path / "table.csv"),
        ]
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns[:6]) == SIX
    assert set(table["metric"]) >= {"pearson_delta", "mmd", "l1_distance"}


def test_pictures_are_drawn(table, cells, simulated):
    figure = pictures.strips(table, ["pearson"])
    assert len(pictures.strips(cells, ["pearson_delta", "mmd", "l1_distance"]).axes) == 3
    axis = figure.axes[0]
    pictures.calibration(axis, table, ALL, unit="log2 units")
    wide = pictures.by_perturbation(table, "pearson")
    assert wide.shape == (30, 9)
    pictures.score_against(axis, wide[[ALL]], pd.Series(range(30), wide.index), label="effect", metric="pearson")
    pictures.kernel_weights(axis, ResponseModel().fit(simulated[0]))
    genes = simulated[0].columns[:9]
    true, predicted = results_data.held_out_predictions(simulated[0], simulated[1], genes, seed=0)
    assert sorted(predicted.index) == sorted(simulated[0].index)
    assert np.corrcoef(true.mean(axis=1), predicted.mean(axis=1))[0, 1] > 0.2
    pictures.gene_set_effect(axis, true, predicted, "a set", unit="log2 units")
    assert axis.get_xlabel()


def test_the_submitted_method_is_blue(table):
    axis = pictures.strips(table, ["pearson"]).axes[0]
    colours = {
        label.get_text(): mpl.colors.to_hex(points.get_facecolor()[0])
        for label, points in zip(axis.get_yticklabels(), axis.collections, strict=True)
    }
    assert [name for name, colour in colours.items() if colour == BLUE] == [ALL]


def test_verdicts_are_drawn_with_their_intervals_and_colours():
    found = pd.DataFrame(
        [(0.2, 0.1, 0.3, 9, HELPS), (-0.2, -0.3, -0.1, 9, HARMS), (0.0, 0.0, 0.0, 9, UNCLEAR)],
        ["without a.csv", "without b.csv", WITHOUT_MINE],
        ["difference", "low", "high", "n", "verdict"],
    )
    _, axis = plt.subplots()
    pictures.verdicts(axis, found, unit="Pearson")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a.csv", "b.csv", "all of mine"]
    assert axis.yaxis_inverted()
    points = [(*part.get_offsets()[0], mpl.colors.to_hex(part.get_facecolor()[0])) for part in axis.collections]
    assert points == [(0.2, 0, BLUE), (-0.2, 1, RED), (0.0, 2, GREY)]
    bars = [tuple(line.get_xdata()) for line in axis.lines[:3]]
    assert bars == [(0.1, 0.3), (-0.3, -0.1), (0.0, 0.0)]
    assert "Pearson" in axis.get_xlabel()
    assert "95 % interval" in axis.get_xlabel()


def test_the_page_reads(table, tmp_path):
    rows = summarise(table).query("metric == 'pearson'").set_index("method")
    reached = rows.loc[ALL]
    value = reached["value"]
    goals = [
        results_page.goal("Title", reached, 0.3),
        results_page.goal("Too much", reached, value + 0.01, value + 0.02),
        results_page.goal("Far", reached, value - 0.02, value - 0.01),
        results_page.goal("Near", reached, value - 0.02, value + 0.01),
    ]
    results_page.Section("Title of the part", goals, results_page.markdown(rows), 12.0).save(tmp_path / "name.json")
    page = results_page.page({"name": results_page.Section.load(tmp_path / "name.json")})
    assert f"| [Title](#name) | >= 0.3 | {value:.4f} [" in page
    (line,) = [line for line in page.split("\n") if line.startswith("| [Too much]")]
    assert "(moonshot 0." in line
    assert line.endswith("| **no** |")
    (line,) = [line for line in page.split("\n") if line.startswith("| [Far]")]
    assert line.endswith("| yes, and the moonshot |")
    (line,) = [line for line in page.split("\n") if line.startswith("| [Near]")]
    assert line.endswith("| yes |")
    assert "## Title of the part" in page
    assert [line.split("|")[1].strip() for line in page.split("\n") if line.startswith("| **")] == [f"**{ALL}**"]
    assert "--only name` (12 s)" in page


def test_what_is_added_to_see_harm(simulated, elsewhere):
    """A weak table is a little like the truth, which shows over many; shuffled screens and random tables are not."""
    effects, _ = simulated
    names = effects.index
    centred = effects - effects.mean()
    truth = row_products(centred.to_numpy())

    def agreement(make, of, seeds):
        products = np.mean([row_products(make(of, seed).rows(names)) for seed in range(seeds)], axis=0)
        return np.corrcoef(products, truth)[0, 1]

    assert agreement(results_data.weak_table, effects, 200) > 0.2
    assert abs(agreement(results_data.weak_table, effects, 1)) < 0.2
    assert abs(agreement(results_data.random_table, names, 200)) < 0.15
    part = names[:20]
    shuffled = results_data.shuffled_screen(elsewhere, part, 0)
    assert list(shuffled.perturbations) == list(part)
    at = [int(np.flatnonzero((elsewhere.scores == row).all(axis=1))[0]) for row in shuffled.scores]
    assert len(set(at)) == 20
    assert sum(i == j for i, j in enumerate(at)) < 5


def row_products(rows):
    """The products of all pairs of different rows, brought to length 1."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def test_a_copy_of_another_screen_is_its_difference_to_the_same_training_mean(simulated):
    effects, _ = simulated
    far = effects * 2 + 7
    train, test = effects.iloc[:20], effects.iloc[20:]
    predicted = results_data.Copied(far).fit(train).predict(test.index)
    expected = train.mean() + 2 * (test - train.mean())
    pd.testing.assert_frame_equal(predicted, expected)


def test_draws_of_training_knock_downs_hold_out_all_others(simulated):
    names = simulated[0].index
    large, small = (results_transfer._all_but(names, n, 3) for n in (20, 8))
    for much, little in zip(large, small, strict=True):
        assert (len(much), len(little)) == (10, 22)
        assert set(much) < set(little) < set(names)
    assert set(small[0]) != set(small[1])


def test_best_constant_is_the_best(challenge):
    shares = challenge.proportions.drop(index=CRUNCH.control)
    best = results_data.best_constant(shares)
    fitted = helpers.MedianProportions().fit(shares).predict(shares.index)
    reached = helpers.l1_by_perturbation(shares, helpers.constrain_proportions(fitted)).mean()
    assert best <= reached + 1e-9
    assert best == pytest.approx(reached, rel=0.02)


BAD = {
    "duplicated perturbations G0": lambda frame: pd.concat([frame, frame.iloc[[0]]]),
    "not numbers: word": lambda frame: frame.assign(word="x"),
    "infinite values in the columns G40": lambda frame: frame.assign(G40=np.inf),
    "values in the columns G41": lambda frame: frame.assign(G41=np.nan),
    "only 2 perturbations": lambda frame: frame.iloc[:2],
    "only 1 perturbations": lambda frame: frame.iloc[:1],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_effects_are_refused_before_anything_is_computed(simulated, tmp_path, message, monkeypatch):
    path = tmp_path / "effects.csv"
    BAD[message](simulated[0]).to_csv(path)
    monkeypatch.setattr(cross_validate, "run_all", lambda *_: pytest.fail("computed"))
    with pytest.raises(SystemExit, match=message) as raised:
        cross_validate.main(["--effects", str(path), "--out", str(tmp_path / "table.csv")])
    assert "effects.csv" in str(raised.value)


def test_other_bad_files(simulated, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        cross_validate.read_effects(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"use \.csv or \.parquet"):
        cross_validate.read_effects(tmp_path / "table.xlsx")
    (tmp_path / "one.csv").write_text("gene\nA\n")
    with pytest.raises(DataError, match=r"one\.csv: 0 columns beside the names"):
        cross_validate.read_effects(tmp_path / "one.csv")
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read"):
        cross_validate.read_effects(tmp_path / "broken.parquet")
    (tmp_path / "groups.csv").write_text("row,gene\nA,B\nA,C\n")
    with pytest.raises(DataError, match="column row: duplicated A"):
        cross_validate.read_groups(tmp_path / "groups.csv")
    with pytest.raises(DataError, match="no gene in the groups for the rows G1"):
        cross_validate_effects(simulated[0], {}, groups=pd.Series({"G0": "G0"}))
    with pytest.raises(DataError, match="none of its perturbations"):
        cross_validate_effects(simulated[0], {"far": FeatureTable.of(["X"], [[1.0]])})


def test_a_folder_of_features_that_know_nobody_is_refused(simulated, tmp_path):
    simulated[0].to_parquet(tmp_path / "effects.parquet")
    (tmp_path / "features").mkdir()
    pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 1.0]}, index=["X", "Y"]).to_csv(tmp_path / "features" / "far.csv")
    arguments = ["--effects", str(tmp_path / "effects.parquet"), "--features", str(tmp_path / "features")]
    with pytest.warns(UserWarning, match="far.csv"), pytest.raises(SystemExit, match="no table knows any"):
        cross_validate.main([*arguments, "--out", str(tmp_path / "table.csv")])


def test_three_perturbations_give_a_result(simulated):
    summary = summarise(cross_validate_effects(simulated[0].iloc[:3], simulated[1], n_folds="loo"))
    assert np.isfinite(summary.query("metric == 'pearson'")["value"]).all()
