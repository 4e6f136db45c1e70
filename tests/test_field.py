"""The field's own evaluation, `cell-eval`, on predicted cells: real numbers, sane baselines, one line without it."""

import sys

import anndata as ad
import pandas as pd
import pytest

from contract import OBESITY_1 as CRUNCH
from helpers import DataError
from method import fit_predictor
from workbench.compare import CEILING, YOURS
from workbench.evaluation import field


def test_without_cell_eval_it_says_what_to_install(challenge, monkeypatch):
    monkeypatch.setitem(sys.modules, "cell_eval", None)
    assert not field.available()
    with pytest.raises(DataError, match="pip install cell-eval"):
        field.evaluate(challenge, {})


@pytest.mark.skipif(not field.available(), reason="cell-eval is not installed: nothing is evaluated")
def test_real_cells_come_out_on_top_and_the_repeated_mean_is_found_out(challenge, tmp_path):
    predictor = fit_predictor(challenge)
    targets = challenge.local_proportions.index
    predictor.write(tmp_path / "p.h5ad", tmp_path / "p.csv", targets, challenge.genes_to_predict)
    table = field.evaluate(challenge, {YOURS: ad.read_h5ad(tmp_path / "p.h5ad")})
    assert list(table.columns) == list(field.METRICS)
    assert table.index[0] == YOURS
    assert table.loc[CEILING, "pearson_delta"] == table["pearson_delta"].max()
    assert table.loc[CEILING, "pearson_delta"] > 0.3
    different = table["de_nsig_counts_pred"]
    assert different["training mean, repeated"] > 5 * different[YOURS], "equal cells differ in every gene"
    again = field.evaluate(challenge, {YOURS: ad.read_h5ad(tmp_path / "p.h5ad")})
    pd.testing.assert_frame_equal(table, again)


def test_the_control_is_the_crunchs_and_logarithms_are_natural(challenge):
    control = field._training_cells(challenge, challenge.genes, 0)[0]
    made = field._with_control(control[:3], ["A", "A", "B"], control, challenge.genes)
    assert made.obs[CRUNCH.perturbation].tolist() == ["A", "A", "B"] + [CRUNCH.control] * len(control)
    assert made.X[:3].toarray() == pytest.approx(control[:3] * 0.6931472, rel=1e-5)
