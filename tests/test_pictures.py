"""Every picture runs on small data and shows what it claims; no legend covers data."""

import itertools
import re

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import run_infer

from contract import OBESITY_1 as CRUNCH
from method import MODEL_FILE, Predictor
from workbench import compare, pictures
from workbench.compare import CEILING, YOURS
from workbench.pictures import cells as cell_pictures
from workbench.pictures.style import BLUE, GREY, WHOLE_WITHOUT_PART, plain_numbers

mpl.use("agg")
DEMO = "demo data"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def predicted(demo_folder, trained, challenge, tmp_path_factory):
    """Prediction, shares, truth, the table of `compare`, the starter's cells."""
    folder = tmp_path_factory.mktemp("prediction")
    targets = challenge.local_proportions.index
    files = run_infer(demo_folder, trained, folder, targets, challenge.genes_to_predict)
    table, starter = compare.compare(challenge, folder)
    truth = ad.read_h5ad(challenge.local_truth_path)
    return ad.read_h5ad(files[0]), pd.read_csv(files[1], index_col="gene"), truth, table, starter


@pytest.fixture(scope="module")
def effects(trained, challenge, stats):
    control = stats.mean.loc["NC", challenge.genes_to_predict]
    return pictures.strongest_effects(Predictor.load(trained / MODEL_FILE), challenge.targets, control, most=6)


def covered(figure):
    """The legends that overlap the frame of any axes: (text of the legend, title of the axes)."""
    figure.canvas.draw()
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] + figure.legends
    assert legends
    return [
        ([text.get_text() for text in legend.get_texts()], axes.get_title())
        for legend, axes in itertools.product(legends, figure.axes)
        if legend.get_window_extent().padded(-1).overlaps(axes.get_window_extent())
    ]


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def overlapping(boxes):
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.padded(-0.5).overlaps(b.padded(-0.5))]


def test_legends_cover_no_data(challenge, stats, predicted, effects):
    prediction, shares, truth, _, starter = predicted
    assert covered(pictures.data_overview(challenge, stats)) == []
    assert covered(pictures.mmd(prediction, truth, starter)) == []
    assert covered(pictures.l1(shares, challenge.local_proportions)) == []
    first = effects.iloc[0]
    assert covered(pictures.genes_that_move(first, first / 2, name="A")) == []


def test_the_source_stands_in_every_title_or_nowhere(challenge, stats, predicted, effects):
    prediction, shares, truth, table, starter = predicted
    for source in (DEMO, ""):
        figures = [
            pictures.data_overview(challenge, stats, source=source),
            pictures.scores(table, source=source),
            pictures.pearson(prediction, truth, source=source),
            pictures.mmd(prediction, truth, starter, source=source),
            pictures.l1(shares, challenge.local_proportions, source=source),
            pictures.heatmap(effects, source=source),
            pictures.genes_that_move(effects.iloc[0], name="A", source=source),
        ]
        assert {DEMO in figure.get_suptitle() for figure in figures} == {bool(source)}


def test_only_simulated_cells_are_demo_data(challenge, tiny, tmp_path):
    assert pictures.source_of(challenge) == DEMO
    tiny.write_h5ad(tmp_path / CRUNCH.train_file)
    other = challenge.__class__(**{**vars(challenge), "train_path": tmp_path / CRUNCH.train_file})
    assert pictures.source_of(other) == ""


def test_the_strongest_knock_outs_are_named_beside_the_panel_without_overlap(challenge, stats):
    figure = pictures.data_overview(challenge, stats)
    figure.canvas.draw()
    panel = next(axes for axes in figure.axes if axes.get_title() == "Effects against sampling noise")
    names = [text for text in panel.texts if text.get_text() in stats.mean.index]
    assert len(names) == 3
    boxes = [mpl.text.Text.get_window_extent(name) for name in names]
    assert overlapping(boxes) == []
    assert not any(box.overlaps(panel.get_window_extent()) for box in boxes)
    ticks = [label.get_text() for axis in (panel.xaxis, panel.yaxis) for label in axis.get_ticklabels()]
    assert all(re.fullmatch(r"[\d.]*", tick) for tick in ticks)


def test_logarithmic_ticks_are_plain_numbers():
    figure, axes = plt.subplots()
    axes.set(xscale="log", xlim=(0.03, 3000))
    plain_numbers(axes.xaxis)
    figure.canvas.draw()
    assert {"0.05", "0.1", "1", "2000"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_the_numbers_of_the_scores_are_the_means_of_the_table(predicted):
    table = predicted[3]
    figure = pictures.scores(table)
    methods = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    means = table.groupby(["metric", "method", "perturbation"])["value"].mean().groupby(["metric", "method"]).mean()
    for axes, (name, metric) in zip(figure.axes, CRUNCH.metrics.items(), strict=True):
        assert axes.get_title() == f"{metric.title}\n({metric.direction})"
        shown = {methods[round(text.get_position()[1])]: text.get_text() for text in axes.texts[:-1]}
        assert shown == {method: f"{value:.3f}" for method, value in means[name].items()}
        bars = {methods[round(np.mean(bar.get_ydata()))]: bar.get_xdata()[0] for bar in axes.lines if bar.get_lw() == 2}
        assert bars == pytest.approx(means[name].to_dict())
    assert "noisy" in figure.get_supxlabel()
    without = pictures.scores(table[table["method"] != CEILING])
    assert "noisy" not in without.get_supxlabel()


def test_pearson_panels_have_a_diagonal_and_equal_axes(predicted):
    prediction, _, truth, table, _ = predicted
    figure = pictures.pearson(prediction, truth)
    assert len(figure.axes) == 5
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()
        assert axes.get_aspect() == 1.0
        (diagonal,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata())
        assert tuple(diagonal.get_xdata()) == axes.get_xlim()
        points = np.concatenate([part.get_offsets() for part in axes.collections])
        assert len(points) == len(prediction.var_names)
        assert np.abs(points).max() <= axes.get_xlim()[1]
    scores = (
        table[(table["method"] == YOURS) & (table["metric"] == "pearson_delta")].groupby("perturbation")["value"].mean()
    )
    shown = {title.split(":")[0]: float(title.split("=")[1]) for title in (axes.get_title() for axes in figure.axes)}
    assert shown == pytest.approx(scores.to_dict(), abs=0.006)  # one panel of all genes, as in the table


def test_l1_says_that_adipo_is_without_lipo_and_equal_predictions_are_meant(predicted, challenge):
    shares, true = predicted[1], challenge.local_proportions
    figure = pictures.l1(shares, true)
    assert WHOLE_WITHOUT_PART in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "by design" in figure.get_suptitle()
    heights = {patch.get_label(): patch for patch in figure.axes[0].containers}
    first = heights[WHOLE_WITHOUT_PART].patches[0].get_height()
    assert first == pytest.approx(true["adipo"].iloc[0] - true["lipo"].iloc[0])
    assert "by design" not in pictures.l1(true, true).get_suptitle()


def test_strongest_effects_are_the_same_in_blocks(trained, challenge, stats, monkeypatch):
    predictor, control = Predictor.load(trained / MODEL_FILE), stats.mean.loc["NC", challenge.genes_to_predict]
    all_at_once = predictor.predict_means(challenge.targets)[control.index] - control
    strongest = (all_at_once**2).sum(axis=1).sort_values(ascending=False, kind="stable").index[:4]
    monkeypatch.setattr(cell_pictures, "TARGETS_AT_ONCE", 3)
    found = pictures.strongest_effects(predictor, challenge.targets, control, most=4)
    pd.testing.assert_frame_equal(found, all_at_once.loc[strongest], check_names=False)


def test_the_heatmap_shows_the_effects_by_name_relative_to_control(effects):
    figure = pictures.heatmap(effects, genes=10)
    axes, bar = figure.axes
    rows, columns = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    assert sorted(columns) == sorted(effects.abs().max().nlargest(10).index)
    assert np.array_equal(axes.images[0].get_array(), effects.loc[rows, columns])
    low, high = axes.images[0].get_clim()
    assert low == -high
    assert "control cells (NC)" in bar.get_ylabel()
    assert "log2 units" in bar.get_ylabel()


def test_genes_that_move_are_the_largest_with_their_size():
    predicted = pd.Series({"up": 0.5, "little": 0.01, "down": -0.7, "less": -0.2, "more": 0.3})
    real = pd.Series({"up": 0.4, "down": -1.2})
    figure = pictures.genes_that_move(predicted, real, name="X", most=2)
    rise, fall = ([label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes)
    assert (rise, fall) == (["up", "more"], ["down", "less"])
    assert {"+0.50", "+0.40", "+0.30"} <= set(texts(figure.axes[0]))
    assert {"-0.70", "-1.20", "-0.20"} <= set(texts(figure.axes[1]))
    assert "nan" not in "".join(texts(figure))


def test_what_helps_shows_gains_with_their_errors_and_what_was_left_out(trained):
    model = Predictor.load(trained / MODEL_FILE).expression
    figure = pictures.what_helps(model, source=DEMO)
    (axes,) = figure.axes
    judged = model.judged_.sort_values("gain", ascending=False)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{name} (knows {share:.0%})" for name, share in judged["coverage"].items()]
    assert {"expression", "template", "own response"} <= set(judged.index)
    places = [tuple(part.get_offsets()[0]) for part in axes.collections]
    assert places == [(gain, row) for row, gain in enumerate(judged["gain"])]
    colours = [mpl.colors.to_hex(part.get_facecolor()[0]) for part in axes.collections]
    assert colours == [BLUE if enters else GREY for enters in judged["enters"]]
    assert set(colours) == {BLUE, GREY}
    bars = np.array([line.get_xdata() for line in axes.lines[: len(judged)]])
    np.testing.assert_allclose(np.diff(bars)[:, 0] / 2, judged["standard_error"])
    assert axes.yaxis_inverted()
    assert DEMO in figure.get_suptitle()
    assert covered(figure) == []


def test_mean_of_is_by_name(tiny):
    genes = pd.Index(["C", "A", "missing"])
    mean = pictures.mean_of(tiny, "A", genes)
    assert mean["C"] == pytest.approx(tiny[tiny.obs["gene"] == "A", "C"].X.toarray().mean())
    assert np.isnan(mean["missing"])


def test_umap_draws_each_kind_by_colour_and_the_same_again(challenge, predicted, capfd):
    prediction, _, truth, _, _ = predicted
    figures = [pictures.umap(challenge, prediction, truth, most=60, source=DEMO) for _ in range(2)]
    states, kinds = figures[0].axes
    assert sum(len(part.get_offsets()) for part in states.collections) == 60
    assert [len(part.get_offsets()) for part in kinds.collections] == [60, 60, 60]
    labels = [text.get_text() for text in states.get_legend().get_texts()]
    assert labels[2].startswith(f"{WHOLE_WITHOUT_PART} (")
    assert "180 cells" in figures[0].get_suptitle()
    assert DEMO in figures[0].get_suptitle()
    assert covered(figures[0]) == []
    places = [np.concatenate([part.get_offsets() for part in figure.axes[1].collections]) for figure in figures]
    assert np.array_equal(*places)
    assert "WARNING" not in "".join(capfd.readouterr())


def test_plain_style_leaves_alone_that_a_notebook_shows_later_figures():
    before = mpl.rcParams["interactive"]
    try:
        mpl.rcParams["interactive"] = False
        with pictures.plain_style():
            assert mpl.rcParams["font.size"] == 9
            mpl.rcParams["interactive"] = True  # as the backend of a notebook does with the first figure
        assert mpl.rcParams["interactive"]
        assert mpl.rcParams["font.size"] == 10
    finally:
        mpl.rcParams["interactive"] = before
