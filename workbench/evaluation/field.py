"""The field's own evaluation of predicted cells, `cell-eval`, beside the baselines and the ceiling that matter there.

In: a challenge folder, and predicted cells. Out: a table, methods x metrics, means over the
local perturbations. Nothing is computed here: cells are put into the layout that `cell-eval` wants (natural logarithms,
the same real control cells on both sides) and its own table comes back. It is optional: `pip install cell-eval`.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import helpers
from contract import CRUNCH
from helpers import Challenge, DataError
from workbench.compare import CEILING, local_truth

CONTROL_CELLS = 400  # on both sides
METRICS = {  # of cell-eval, with what they say; the last two are counts, to be compared with each other
    "roc_auc": "ROC AUC of the genes found different",
    "pr_auc": "PR AUC of the genes found different",
    "overlap_at_N": "overlap of the top genes",
    "de_direction_match": "direction of the changes right",
    "pearson_delta": "Pearson delta against control",
    "mse_delta": "mean squared error of the delta",
    "discrimination_score_cosine": "discrimination (cosine)",
    "de_nsig_counts_pred": "genes found different, predicted",
    "de_nsig_counts_real": "genes found different, real",
}


def available() -> bool:
    """Whether `cell-eval` is installed."""
    try:
        import cell_eval  # noqa: F401, PLC0415 - optional
    except ImportError:
        return False
    return True


def evaluate(
    challenge: Challenge, predictions: Mapping[str, ad.AnnData], truth: ad.AnnData | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """Methods x `METRICS`: the predictions, three baselines, and real cells set aside as the ceiling.

    `truth` are the real cells (default: the local truth); all predictions hold its perturbations. The baselines are
    real control cells, random perturbed cells, and the training mean repeated. The ceiling has half of the true cells
    as its prediction and the other half as its truth. Raises DataError without `cell-eval` or without a truth.
    """
    if not available():
        raise DataError("cell-eval is not installed: `pip install cell-eval`")
    if truth is None:
        truth = ad.read_h5ad(local_truth(challenge)[0][0])
    genes = next(iter(predictions.values())).var_names
    genes = genes[genes.isin(truth.var_names)]
    names = truth.obs[CRUNCH.perturbation].astype(str).to_numpy()
    real = helpers.dense(truth[:, genes].X).astype(np.float32)
    control, other_control, perturbed = _training_cells(challenge, genes, seed)
    targets = np.repeat(np.unique(names), CRUNCH.cells_per_perturbation)
    mean = helpers.perturbation_stats(challenge.train_path).perturbed_centroid()[genes].to_numpy(np.float32)
    generator = np.random.default_rng(seed)
    cases = {
        name: (helpers.dense(prediction[:, genes].X), prediction.obs[CRUNCH.perturbation].astype(str).to_numpy())
        for name, prediction in predictions.items()
    }
    for name, cells in (("real control cells", other_control), ("random perturbed cells", perturbed)):
        cases[name] = cells[generator.integers(len(cells), size=len(targets))], targets
    cases["training mean, repeated"] = np.tile(mean, (len(targets), 1)), targets
    rows = {}
    for name in helpers.progress_bar("cell-eval", iterable=list(cases), unit="method"):
        made, made_names = cases[name]
        rows[name] = _evaluated(made, made_names, real, names, control, genes)
    number = pd.Series(names).groupby(names).cumcount().to_numpy()
    half, rest = number % 2 == 0, number % 2 == 1
    rows[CEILING] = _evaluated(real[rest], names[rest], real[half], names[half], control, genes)
    return pd.DataFrame(rows).T


def _training_cells(challenge: Challenge, genes: pd.Index, seed: int) -> list[np.ndarray]:
    """Of the training file, dense, float32: control cells, as many other control cells, and perturbed cells."""
    is_control = (challenge.obs[CRUNCH.perturbation] == CRUNCH.control).to_numpy()
    generator = np.random.default_rng(seed)
    control, perturbed = (generator.permutation(np.flatnonzero(part)) for part in (is_control, ~is_control))
    half = min(CONTROL_CELLS, len(control) // 2)
    parts = [control[:half], control[half : 2 * half], perturbed[:CONTROL_CELLS]]
    return [helpers.dense(helpers.read_cells(challenge.train_path, np.sort(part))[:, genes].X) for part in parts]


def _evaluated(
    predicted: np.ndarray,
    predicted_names: np.ndarray,
    real: np.ndarray,
    real_names: np.ndarray,
    control: np.ndarray,
    genes: pd.Index,
) -> pd.Series:
    """The means of `METRICS` over perturbations, as `cell-eval` computes them."""
    from cell_eval import MetricsEvaluator  # noqa: PLC0415 - optional

    made = _with_control(np.maximum(predicted, 0.0), predicted_names, control, genes)
    true = _with_control(real, real_names, control, genes)
    logging.getLogger("cell_eval").setLevel(logging.ERROR)
    silence = io.StringIO()  # of a bar for each of its metrics
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stdout(silence),
        redirect_stderr(silence),
    ):
        warnings.simplefilter("ignore")
        evaluator = MetricsEvaluator(
            made, true, control_pert=CRUNCH.control, pert_col=CRUNCH.perturbation, num_threads=1, outdir=folder
        )
        found, _ = evaluator.compute(
            profile="full", skip_metrics=["clustering_agreement", "pearson_edistance"], write_csv=False
        )
    table = found.to_pandas().set_index("perturbation")
    return table.reindex(columns=list(METRICS)).astype(float).mean()


def _with_control(cells: np.ndarray, names: np.ndarray, control: np.ndarray, genes: pd.Index) -> ad.AnnData:
    """Cells and control cells in natural logarithms, with the perturbation of each."""
    X = np.concatenate([cells, control]) * np.float32(np.log(2.0))
    obs = pd.DataFrame({CRUNCH.perturbation: pd.Categorical([*names, *[CRUNCH.control] * len(control)])})
    return ad.AnnData(
        sp.csr_matrix(X.astype(np.float32)), obs=obs.set_axis(obs.index.astype(str)), var=pd.DataFrame(index=genes)
    )
