"""Synthetic cells: scales, networks, training, sampling, evaluation."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from matplotlib.colors import to_hex
from scipy.stats import ks_2samp
from simulated_cells import make_cells

from challenges.common import gradient_penalty, load_model, save_model
from challenges.synthesis import baselines, data, evaluate, folds, mixing, models, networks, plots, start
from challenges.synthesis.models import CellGAN
from challenges.synthesis.scale import Scale, recover
from helpers import DataError
from workbench.pictures.style import BLUE, GREY, ORANGE


@pytest.fixture(scope="module")
def cells():
    return make_cells()


@pytest.fixture(scope="module")
def begun(cells):
    """The start alone, calibrated."""
    return CellGAN(0, device="cpu").fit(cells)


@pytest.fixture(scope="module")
def trained(cells):
    return CellGAN(12, label_mixing=0.5, device="cpu").fit(cells)


@pytest.mark.parametrize("base", [np.e, 2.0, 10.0])
def test_counts_come_back_from_normalised_logarithms(base):
    counts = make_cells(library=400).counts.toarray()
    steps = 1e4 / counts.sum(axis=1)
    X = (np.log1p(counts * steps[:, None]) / np.log(base)).astype(np.float32)
    scale, again, found = recover(sp.csr_matrix(X))
    assert scale == Scale("log", base)
    assert (again.toarray() == counts).all()
    np.testing.assert_allclose(found, steps, rtol=1e-5)
    np.testing.assert_allclose(scale.values(again.toarray(), found), X, atol=1e-5)


def test_counts_come_back_without_the_total_of_all_genes_and_from_rounded_values():
    counts = make_cells(library=400).counts.toarray()
    steps = np.random.default_rng(0).uniform(1, 6, len(counts))  # totals of genes that are not in the file
    scale, again, _ = recover(sp.csr_matrix(np.log1p(counts * steps[:, None]).round(3)))
    assert scale == Scale("log", np.e)
    assert (again.toarray() == counts).mean() > 0.999


def test_a_cell_without_a_count_of_one_is_recovered_too():
    counts = make_cells(library=400).counts.toarray()
    counts[0] = 0
    counts[0, :5] = [2, 3, 5, 7, 4]
    scale, again, _ = recover(sp.csr_matrix(np.log1p(counts * 3.3)))
    assert scale.kind == "log"
    assert again.toarray()[0, :5].tolist() == [2, 3, 5, 7, 4]


def test_the_other_scales_are_told_apart():
    counts = make_cells().counts
    assert recover(counts)[0] == Scale("counts")
    scale, again, steps = recover(counts * 0.37)
    assert scale == Scale("linear")
    assert (again != counts).nnz == 0
    np.testing.assert_allclose(steps, 0.37, rtol=1e-5)
    noisy = counts.copy()
    noisy.data = noisy.data * np.random.default_rng(0).lognormal(size=len(noisy.data))
    assert recover(noisy)[0] == Scale("values")


def test_the_generator_starts_at_the_rates_of_its_types(cells):
    begun = start.start(cells, seed=0)
    share = np.stack([np.asarray(cells.counts[cells.labels == name].sum(axis=0)).ravel() for name in "ABC"])
    share /= share.sum(axis=1, keepdims=True)
    rates = np.exp(begun.log_rates + 0.5 * begun.deviations**2 @ begun.loadings**2)
    assert np.abs(rates - share).max() < 0.01
    loaded = begun.loadings[0] * np.sign(begun.loadings[0, 1])  # half of the genes go up together, the others down
    assert (loaded[1::2] > 0.1).all()
    assert (loaded[::2] < -0.1).all()


def test_zeros_are_exact_and_have_a_gradient(cells):
    generator = networks.ConditionalGenerator(start.start(cells, 0))
    weights, levels, library = torch.eye(3).repeat(20, 1), torch.zeros(60, 0), torch.full((60,), 30.0)
    drawn = generator(torch.randn(60, generator.n_noise), weights, levels, library)
    zeros = drawn.cells == 0
    assert 0.05 < zeros.float().mean() < 0.95
    assert torch.equal(drawn.cells, drawn.cells.round())
    (slope,) = torch.autograd.grad((drawn.cells * zeros).sum(), generator.offset)  # through zeros alone
    assert (slope != 0).float().mean() > 0.9
    assert (slope[torch.isfinite(slope)] >= 0).all()  # an open gate gives larger values


def test_a_truncated_poisson_has_its_mean_and_no_zeros():
    torch.manual_seed(0)
    for rate in (0.01, 0.5, 4.0, 60.0):
        drawn = networks._truncated_poisson(torch.full((20000,), rate))
        assert drawn.min() >= 1
        assert drawn.mean().item() == pytest.approx(rate / -np.expm1(-rate), rel=0.03)


def test_a_batch_of_one_passes_every_network(cells):
    generator = networks.ConditionalGenerator(start.start(cells, 0))
    weights, levels, library = torch.eye(3)[:1], torch.zeros(1, 0), torch.full((1,), 300.0)
    drawn = generator(torch.randn(1, generator.n_noise), weights, levels, library).cells
    critic, classes = networks.AdversarialDiscriminator(40, 3), networks.ClassDiscriminator(40, 3)
    assert critic(drawn, weights).shape == (1,)
    assert classes(drawn).shape == (1, 3)
    assert torch.isfinite(gradient_penalty(lambda cells: critic(cells, weights), drawn + 1, drawn))


def test_soft_cross_entropy_of_one_label_is_the_usual_one():
    logits = torch.randn(5, 3)
    usual = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1]), reduction="none")
    assert torch.allclose(networks.soft_cross_entropy(logits, torch.eye(3)[[0, 1, 2, 0, 1]]), usual)


def test_the_start_has_the_cells_moments_by_gene_and_type(cells, begun):
    made = begun.sample_like(cells, seed=3)
    for label in "ABC":
        real, drawn = (part.counts[part.labels == label].toarray() for part in (cells, made))
        assert np.abs((real == 0).mean(axis=0) - (drawn == 0).mean(axis=0)).mean() < 0.06
        assert np.corrcoef(np.log1p(real).mean(axis=0), np.log1p(drawn).mean(axis=0))[0, 1] > 0.97
    totals = [np.log(np.asarray(part.counts.sum(axis=1))) for part in (cells, made)]
    assert abs(totals[0].mean() - totals[1].mean()) < 0.06
    assert totals[1].std() / totals[0].std() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("kind", ["counts", "values"])
def test_the_gate_takes_up_zeros_beyond_the_counts(kind):
    cells = make_cells(n=600, extra_zeros=0.5, library=3000)
    if kind == "values":
        values = cells.counts.log1p() * 1.0
        values.data = values.data + np.random.default_rng(0).normal(0, 0.05, len(values.data)).astype(np.float32) ** 2
        cells = data.Cells(values, cells.steps, cells.obs, cells.genes, Scale("values"), "made")
    made = CellGAN(0, device="cpu").fit(cells).sample_like(cells)
    real, drawn = (part.counts.toarray() for part in (cells, made))
    assert np.abs((real == 0).mean(axis=0) - (drawn == 0).mean(axis=0)).max() < 0.12
    assert abs((real == 0).mean() - (drawn == 0).mean()) < 0.02
    assert drawn.mean() == pytest.approx(real.mean(), rel=0.1)
    correlation = np.corrcoef(real.mean(axis=0), drawn.mean(axis=0))[0, 1]
    assert correlation > 0.9


def test_values_without_counts_have_each_genes_own_distribution():
    cells = make_cells(n=600, library=3000)
    length = np.random.default_rng(1).lognormal(0, 1, len(cells.genes))  # as of transcripts per million
    values = sp.csr_matrix(np.log1p(cells.counts.toarray() * length).astype(np.float32))
    cells = data.Cells(values, cells.steps, cells.obs, cells.genes, Scale("values"), "made")
    made = CellGAN(3, device="cpu").fit(cells).sample_like(cells)
    for label in "ABC":
        real, drawn = (part.counts[part.labels == label].toarray() for part in (cells, made))
        assert np.corrcoef(real.mean(axis=0), drawn.mean(axis=0))[0, 1] > 0.99
    real, drawn = (part.counts.toarray() for part in (cells, made))
    assert (drawn.max(axis=0) <= real.max(axis=0)).all()
    distances = [ks_2samp(a[a > 0], b[b > 0]).statistic for a, b in zip(real.T, drawn.T, strict=True)]
    assert np.mean(distances) < 0.15
    assert np.corrcoef(real.var(axis=0), drawn.var(axis=0))[0, 1] > 0.9


def test_training_moves_every_network_and_keeps_the_zero_rate(cells, begun, trained):
    moved = dict(trained.generator_.named_parameters())
    for name, parameter in begun.generator_.named_parameters():
        if parameter.numel() and name != "levels":
            assert not torch.equal(parameter, moved[name]), name
    real, made = cells.counts, trained.sample_like(cells).counts
    assert abs(real.nnz - made.nnz) / np.prod(real.shape) < 0.05


def test_the_same_seed_gives_the_same_cells_and_another_seed_others(cells, trained):
    again = CellGAN(12, label_mixing=0.5, device="cpu").fit(cells)
    assert again.identity() == trained.identity()
    assert CellGAN(12, label_mixing=0.5, seed=1, device="cpu").fit(cells).identity() != trained.identity()
    one, same, other = (trained.sample_like(cells, seed=seed).counts for seed in (5, 5, 6))
    assert (one != same).nnz == 0
    assert (one != other).nnz > 0


@pytest.mark.parametrize("types", [("only",), ("A", "B", "two cells")])
def test_one_type_and_types_of_few_cells_are_learned(types):
    cells = make_cells(n=90, types=types[:2])
    cells = (
        cells.take(np.arange(80))
        if len(types) == 1
        else data.Cells(
            cells.counts,
            cells.steps,
            cells.obs.assign(label=[*["two cells"] * 2, *cells.labels[2:]]),
            cells.genes,
            cells.scale,
            "made",
        )
    )
    train, held_out = folds.split(cells, 0.4, 0)
    made = CellGAN(2, label_mixing=0.5, device="cpu").fit(train).sample_like(held_out)
    assert sorted(set(made.labels)) == sorted(types)
    assert 0.5 < made.counts.sum() / held_out.counts.sum() < 2


def test_a_model_comes_back_from_its_file(trained, cells, tmp_path):
    save_model(tmp_path / "model.h5", trained, label="label", data="made")
    again, about = load_model(tmp_path / "model.h5", CellGAN)
    again.set_params(device="cpu")
    assert about == {"label": "label", "data": "made"}
    assert again.identity() == trained.identity()
    assert (again.sample_like(cells).counts != trained.sample_like(cells).counts).nnz == 0


def test_normalised_cells_come_back_on_their_own_scale():
    cells = make_cells(library=400)
    totals = np.asarray(cells.counts.sum(axis=1)).ravel()
    matrix = sp.csr_matrix(np.log1p(cells.counts.toarray() * (1e4 / totals)[:, None]))
    scale, counts, steps = recover(matrix)
    cells = data.Cells(counts, steps, cells.obs, cells.genes, scale, "made")
    made = CellGAN(0, device="cpu").fit(cells).sample_like(cells)
    np.testing.assert_allclose(np.expm1(made.values().astype(float)).sum(axis=1), 1e4, rtol=1e-3)


def test_donor_and_day_shift_expression_and_can_be_asked_for():
    cells = make_cells(n=300)
    donor = np.random.default_rng(1).choice(["d1", "d2"], len(cells), p=[0.7, 0.3])
    counts = cells.counts.toarray()
    counts[:, 0] += 3
    counts[donor == "d2", 0] *= 3
    obs = cells.obs.assign(donor=donor, day="2")
    cells = data.Cells(sp.csr_matrix(counts), cells.steps, obs, cells.genes, cells.scale, "made")
    model = CellGAN(2, device="cpu").fit(cells)
    weights = np.tile(model.weights("A"), (200, 1))
    means = {name: model.sample(weights, {"donor": name}).counts[:, 0].mean() for name in ("d1", "d2")}
    real = {name: counts[(donor == name) & (cells.labels == "A"), 0].mean() for name in means}
    assert means["d2"] - means["d1"] == pytest.approx(real["d2"] - real["d1"], rel=0.35)
    drawn = model.sample(weights).obs
    assert (drawn["donor"] == "d1").mean() == pytest.approx((donor[cells.labels == "A"] == "d1").mean(), abs=0.12)
    with pytest.raises(DataError, match=r"no level 'd9'; the model knows d1, d2"):
        model.sample(weights, {"donor": "d9"})
    with pytest.raises(DataError, match=r"no condition batch; it was trained with donor, day"):
        model.sample(weights, {"batch": "1"})


def test_a_mixture_moves_monotonically_from_one_type_to_the_other(cells, trained):
    positions = mixing.mixing_positions(trained, cells, ("A", "B"))["mean"].to_numpy()
    assert (np.diff(positions) > 0).all()
    assert positions[0] == pytest.approx(0, abs=0.15)
    assert positions[-1] == pytest.approx(1, abs=0.15)


def test_a_mixture_is_read_with_colons_and_commas_in_names():
    assert mixing.parse_mix("B cell:0.5,NK cell:0.5") == {"B cell": 0.5, "NK cell": 0.5}
    assert mixing.parse_mix("T:CD4+, naive:1, B:3") == {"T:CD4+, naive": 1.0, "B": 3.0}


@pytest.mark.parametrize(
    "text", ["", "A", "A:", ":0.5", "A:x", "A:-1,B:2", "A:nan", "A:0,B:0", "A:1,A:2", "A:0.5,B", "A:inf"]
)
def test_a_malformed_mixture_is_refused(text):
    with pytest.raises(DataError, match="expected 'type:weight,type:weight'"):
        mixing.parse_mix(text)


def test_unknown_types_and_settings_are_refused(trained, cells):
    with pytest.raises(DataError, match="unknown type Z; the model knows A, B, C"):
        trained.weights("Z")
    with pytest.raises(DataError, match="from 0 to 1; it was 2"):
        CellGAN(1, label_mixing=2, device="cpu").fit(cells)
    with pytest.raises(DataError, match="steps cannot be negative"):
        CellGAN(-1, device="cpu").fit(cells)


@pytest.fixture(scope="module")
def compared(cells):
    train, held_out = folds.split(cells, 0.5, 0)
    model = CellGAN(0, device="cpu").fit(train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "TREES", 30)
        factors = CellGAN(0, seed=1, device="cpu").fit(train)
        table = evaluate.on_held_out({models.START: factors, models.GAN: model}, train, held_out, draws=2)
    return model, train, held_out, evaluate.summary(table)


def test_the_table_has_every_metric_of_every_generator(compared):
    table = compared[3]
    assert list(table.columns) == ["method", "metric", "value", "low", "high", "n"]
    wide = table.pivot_table(index="metric", columns="method", values="value")
    assert set(wide.index) == set(evaluate.METRICS)
    assert set(wide.columns) == {baselines.REAL, baselines.TRAINING, baselines.INDEPENDENT, models.START, models.GAN}
    assert wide.notna().all(axis=None)
    assert (table["n"] == 2).all()


def test_the_metrics_tell_the_generators_apart(compared):
    wide = compared[3].pivot_table(index="metric", columns="method", values="value")
    assert wide.loc["nearest_training_cell_ratio", baselines.TRAINING] < 0.01  # copies
    assert wide.loc["nearest_training_cell_ratio", models.GAN] > 0.5
    within = wide.loc["gene_correlation_within_types"]
    assert within[baselines.INDEPENDENT] < 0.2
    assert within[models.GAN] > 0.5
    assert wide.loc["library_size_spread_ratio", baselines.INDEPENDENT] < 0.8
    assert wide.loc["accuracy_relative_to_real", models.GAN] > 0.85
    assert (wide.loc["share_of_types"] == 1).all()


def test_real_or_synthetic_is_told_where_it_can_be():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 80, 5))
    assert 0.3 < evaluate.real_or_synthetic(x, y, 0)[0] < 0.7
    assert evaluate.real_or_synthetic(x, y + 3, 0)[0] > 0.98


def test_too_few_held_out_cells_are_refused(cells, trained):
    with pytest.raises(DataError, match="6 held-out cells: too few"):
        evaluate.on_held_out({models.GAN: trained}, cells, cells.take(np.arange(6)))


def test_the_picture_lays_the_model_and_the_baseline_over_real_cells_and_says_what_was_found(compared):
    model, train, held_out, found = compared
    made = evaluate.generators({models.GAN: model}, train, held_out)
    sets = {name: made[name](held_out.labels, 0) for name in (baselines.REAL, baselines.INDEPENDENT, models.GAN)}
    figure = plots.picture(sets, found, models.GAN)
    value = found.set_index(["method", "metric"])["value"]
    agreement = {name: value[name, "gene_correlation_within_types"] for name in sets}
    assert (
        f"gan {agreement[models.GAN]:.2f}, independent genes {agreement[baselines.INDEPENDENT]:.2f}, other real "
        in (figure.get_suptitle())
    )
    for axes, name, colour in zip(figure.axes, (baselines.INDEPENDENT, models.GAN), (ORANGE, BLUE), strict=True):
        assert f"AUC {value[name, 'real_or_synthetic_auc']:.2f}" in axes.get_title()
        real, over = axes.collections
        assert [to_hex(dots.get_facecolor()[0]) for dots in (real, over)] == [GREY, colour]
        assert len(real.get_offsets()) == len(over.get_offsets()) == len(held_out)


def test_the_details_can_be_drawn(compared, tmp_path):
    model, train, held_out, _ = compared
    made = evaluate.generators({models.GAN: model}, train, held_out)
    sets = {name: made[name](held_out.labels, 0) for name in (baselines.REAL, baselines.INDEPENDENT, models.GAN)}
    positions = mixing.mixing_positions(model, held_out, ("A", "B"), n=20)
    drawn = [
        plots.joint_pca(sets),
        plots.moments(sets),
        *plots.by_type(sets),
        plots.mixing_path(positions, ("A", "B"), "Mixtures"),
    ]
    for i, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{i}.png")
        assert all(axis.get_xlabel() or axis.get_title() for axis in figure.axes if axis.get_visible())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_trains_and_samples_twice_the_same(cells):
    made = CellGAN(12, label_mixing=0.5, device="cuda").fit(cells).sample_like(cells)
    assert made.labels.tolist() == cells.labels.tolist()
    assert abs((made.counts.toarray() == 0).mean() - (cells.counts.toarray() == 0).mean()) < 0.03
    again = CellGAN(12, label_mixing=0.5, device="cuda").fit(cells).sample_like(cells)
    assert (again.counts != made.counts).nnz == 0
