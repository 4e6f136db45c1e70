"""A prediction beside the baselines and beside real cells, on the challenge's own local truth.

In: a challenge folder with the local truth, and the folder of the two predicted files. Out: the tidy table of
`helpers.score` with a column `method`, and its summary. `workbench.pictures.scores` draws it, `workbench.summary` says
it in words; the notebook shows all three.

    python -m workbench.compare DATA PREDICTION [--sigma scaled|calibrated] [--out table.csv] [--cell-eval]
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

import helpers
from combinations import Added, DeltaMean
from contract import CRUNCH
from helpers import Challenge
from method import READ_PER_SECOND, Predictor
from workbench.commands import check_outputs, command_line
from workbench.evaluation.intervals import write_table

CONTROL = "control"
YOURS = "your prediction"
PCA_STARTER, DELTA_MEAN, ADDED = "PCA-ridge (starter)", "delta-mean (starter)", "effects added up"
STARTER = DELTA_MEAN if CRUNCH.asks_for_doubles else PCA_STARTER
CEILING = "real cells (other half)"


def baselines() -> dict[str, Predictor]:
    """Two constants with real cells, and the published starter with its own cells; not fitted.

    For doubles the mean is that of the singles or doubles, the starter has equal cells, and effects added up are beside
    it; all have the control's shares, as the starter has.
    """
    if CRUNCH.asks_for_doubles:
        return {
            CONTROL: Predictor(helpers.ControlMean(), helpers.ControlMean(), helpers.ScaledCells()),
            "perturbed mean": Predictor(KindMean(), helpers.ControlMean(), helpers.ScaledCells()),
            ADDED: Predictor(Added(), helpers.ControlMean(), helpers.ScaledCells()),
            STARTER: Predictor(DeltaMean(), helpers.ControlMean(), EqualCells()),
        }
    return {
        CONTROL: Predictor(helpers.ControlMean(), helpers.ControlMean(), helpers.ScaledCells()),
        "perturbed mean": Predictor(helpers.PerturbedMean(), helpers.PerturbedMean(), helpers.ScaledCells()),
        STARTER: Predictor(helpers.PCARidge(), helpers.PCARidge(), helpers.GaussianCells()),
    }


class KindMean(BaseEstimator):
    """Baseline: the mean over all training cells of the same kind, single or double. Fitted: `centroids_`."""

    def fit(self, means: pd.DataFrame, n_cells: pd.Series) -> KindMean:
        """Learn from perturbations x G and their numbers of cells."""
        kinds = np.array([CRUNCH.centroid_of(name) for name in means.index])
        rows = {kind: np.average(means[kinds == kind], axis=0, weights=n_cells[kinds == kind]) for kind in set(kinds)}
        self.centroids_ = pd.DataFrame.from_dict(rows, orient="index", columns=means.columns)
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x G."""
        return self.centroids_.loc[[CRUNCH.centroid_of(name) for name in targets]].set_axis(pd.Index(targets))


class EqualCells(BaseEstimator):
    """The cells of the published starter of crunch 2: the mean, repeated."""

    def fit(self) -> EqualCells:
        """Nothing is learned."""
        return self

    def for_genes(self, genes: pd.Index) -> EqualCells:
        """The same for all genes."""
        return self

    def sample(self, target: str, mean: np.ndarray, n_cells: int) -> np.ndarray:
        """The mean, n_cells times."""
        return np.tile(mean.astype(np.float32), (n_cells, 1))


def score_methods(
    challenge: Challenge, methods: Mapping[str, Predictor], *, sigma: float | str = "scaled", keep: str | None = None
) -> tuple[pd.DataFrame, ad.AnnData | None]:
    """Fit each method on the training cells alone, predict the local perturbations and score them.

    Returns the table of `helpers.score` with a first column `method`, and the cells that the method `keep` made.
    """
    truth, targets = local_truth(challenge)
    with helpers.working_on("baselines"):
        stats = helpers.perturbation_stats(challenge.train_path)
        pool = helpers.read_cells(challenge.train_path, helpers.pool_rows(challenge.obs, seed=0))
    tables, kept = {}, None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of targets that were not measured: the same for every method
        for name, predictor in methods.items():
            files = _files(Path(folder))
            predictor.fit(stats, challenge.proportions, pool)
            with helpers.working_on(name):
                predictor.write(*files, targets, challenge.genes_to_predict, mode="disk")
                tables[name] = helpers.score(*files, *truth, sigma=sigma)
            if name == keep:
                kept = ad.read_h5ad(files[0])
    return _with_method(tables), kept


def compare(
    challenge: Challenge, prediction_folder: str | Path, *, sigma: float | str = "scaled"
) -> tuple[pd.DataFrame, ad.AnnData | None]:
    """Score the predicted files beside the baselines, fitted here, and beside the other half of the real cells.

    Returns the table of `helpers.score` with a first column `method`, and the starter's cells (for a picture).
    """
    truth, _ = local_truth(challenge)
    with helpers.working_on(YOURS):  # first: the others cannot be wrong
        yours = helpers.score(*_files(Path(prediction_folder)), *truth, sigma=sigma)
    table, starter = score_methods(challenge, baselines(), sigma=sigma, keep=STARTER)
    with tempfile.TemporaryDirectory() as folder, helpers.working_on(CEILING):
        half, rest = _halves(ad.read_h5ad(truth[0]), Path(folder))
        ceiling = helpers.score(rest, truth[1], half, truth[1], sigma=sigma)
    # Only the cells have a ceiling here: the shares of the other half are not known apart.
    ceiling = ceiling[ceiling["metric"] != "l1_distance"]
    return pd.concat([table, _with_method({YOURS: yours, CEILING: ceiling})], ignore_index=True), starter


def _with_method(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, names=["method"]).reset_index(level="method").reset_index(drop=True)


def local_truth(challenge: Challenge) -> tuple[tuple[Path, Path | None], pd.Index]:
    """The two files of the local truth (no proportions where the screen has no states), and its perturbations."""
    has_states = challenge.proportions is not None
    if challenge.local_truth_path is None or (has_states and challenge.local_proportions is None):
        raise helpers.DataError(f"{challenge.folder}: no local truth, so there is nothing to compare with")
    shares = challenge.folder / CRUNCH.local_proportions_file if has_states else None
    return (challenge.local_truth_path, shares), challenge.local_targets


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / CRUNCH.prediction_file, folder / CRUNCH.predicted_proportions_file


def _halves(truth: ad.AnnData, folder: Path) -> tuple[Path, Path]:
    """Every second cell of each perturbation as truth, the first 100 of the others as the prediction."""
    number = truth.obs.groupby(CRUNCH.perturbation, observed=True).cumcount().to_numpy()
    paths = folder / "half.h5ad", folder / "rest.h5ad"
    for path, rows in zip(paths, (number % 2 == 0, (number % 2 == 1) & (number < 200)), strict=True):
        truth[rows].copy().write_h5ad(path)
    return paths


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Methods x metrics, in the table's order: mean ± standard error over perturbations [spread over panels].

    A column is called as the metric, with its direction.
    """
    values = table.groupby(["method", "metric", "perturbation"], sort=False)["value"].mean()
    grouped = values.groupby(["method", "metric"], sort=False)
    mean, error = grouped.mean(), (grouped.std() / np.sqrt(grouped.size())).fillna(0.0)
    by_panel = table.groupby(["method", "metric", "panel"], sort=False)["value"].mean()
    spread = by_panel.groupby(["method", "metric"], sort=False).std()
    text = mean.map("{:.3f}".format) + " ± " + error.map("{:.3f}".format)
    text += spread.map(" [{:.3f}]".format, na_action="ignore").fillna("")
    wide = text.unstack("metric")  # noqa: PD010 - texts cannot be averaged, so not pivot_table
    metrics = helpers.scored_metrics(table)
    wide = wide.loc[table["method"].unique(), metrics].fillna("")
    wide.columns = pd.Index([f"{CRUNCH.metrics[name].title} ({CRUNCH.metrics[name].direction})" for name in metrics])
    return wide.rename_axis(index=None)


def seconds(challenge: Challenge) -> float:
    """About how long `compare` takes: it reads the training cells once, and makes and scores five predictions."""
    read = 2 * challenge.train_path.stat().st_size / READ_PER_SECOND
    return 3 + read + 0.3 * len(challenge.local_targets)


@command_line()
def main() -> None:
    """Command line: print the summary, and write the table where asked."""
    parser = argparse.ArgumentParser(prog="python -m workbench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="challenge folder with the local truth")
    parser.add_argument("prediction", type=Path, help="folder of the two predicted files")
    parser.add_argument("--sigma", default="scaled", choices=["scaled", "calibrated"], help="bandwidth of MMD")
    parser.add_argument("--out", type=Path, help="write the tidy table as csv")
    parser.add_argument("--cell-eval", action="store_true", help="cell-eval's table, too (pip install cell-eval)")
    options = parser.parse_args()
    files = _files(options.prediction)
    if not files[0].is_file():
        raise helpers.DataError(f"{files[0]}: no such file; PREDICTION is the folder of the two predicted files")
    check_outputs([options.out], [*files, *(path for path in options.data.glob("*") if path.is_file())])
    if options.cell_eval and importlib.util.find_spec("cell_eval") is None:
        raise helpers.DataError("--cell-eval: cell-eval is not installed: `pip install cell-eval`")
    challenge = helpers.load_challenge(options.data)
    if challenge.proportions is not None and not files[1].is_file():
        raise helpers.DataError(f"{files[1]}: no such file; PREDICTION is the folder of the two predicted files")
    print(
        f"Scoring {options.prediction} on {options.data}, beside {len(baselines())} baselines and real cells: "
        f"{helpers.text_time(seconds(challenge))}."
    )
    table, _ = compare(challenge, options.prediction, sigma=options.sigma)
    panels = table[table["metric"] == "mmd"][["n_genes", "sigma", "sigma_rule"]].drop_duplicates().iloc[0]
    print(summary(table).to_string())
    print(
        f"mean ± standard error over perturbations [spread over panels]; panels of {panels['n_genes']} genes, "
        f"sigma {panels['sigma']:.0f}, {panels['sigma_rule']}",
        flush=True,
    )
    if options.out:
        write_table(options.out, table)
    if options.cell_eval:
        from workbench.evaluation import field  # noqa: PLC0415 - it reads the names of the rows above from here

        print("\nThe field's own evaluation takes about a minute.")
        prediction = ad.read_h5ad(options.prediction / CRUNCH.prediction_file)
        print(field.evaluate(challenge, {YOURS: prediction}).rename(columns=field.METRICS).T.round(3).to_string())


if __name__ == "__main__":
    main()
