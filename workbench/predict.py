"""Cells of knock-outs that were never measured, as an AnnData file that scanpy and pertpy read as any other.

    python -m workbench.predict DATA --targets A,B,A+B --out predicted.h5ad

In: a data folder (`python -m workbench.adopt` makes one of any screen). Out: `predicted.h5ad` and `predicted.csv`. The
first holds 100 cells of each target, and real control cells. X is log2(1 + 1e5 * count / total) (`uns["log1p"]`
says so to scanpy), `obs["perturbation"]` (the control is called `control`), `obs["predicted"]`, and what the model
expects of itself, `obs["expected_pearson"]` and `obs["expected_error"]`. The second lists the genes that move most.

The model is `model.h5` in DATA/resources (or `--resources`), with the tables and screens that lie there; it is trained
where there is none, or where the training file is newer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

import helpers
from combinations import CombinationModel, for_names, genes_in
from contract import CRUNCH, MODEL_FOLDER
from helpers import Challenge, DataError, progress_bar, replacing_all, some, text_size
from knowledge import used_files
from method import EXPECTED_COLUMNS, EXPECTED_FILE, MODEL_FILE, Predictor, checked_scale, train, warn_of_other_files
from workbench.adoption.labels import similar
from workbench.commands import check_outputs, command_line

CONTROL = "control"  # how the field calls it
CONTROL_CELLS = 1000  # real ones in the file, at most
TOP_GENES = 50  # of each target in the table
SHOWN_TARGETS, SHOWN_GENES = 10, 5  # printed: targets, and genes that rise and that fall


def predict(
    data: str | Path, targets: Sequence[str], *, resources: str | Path | None = None, seed: int = 0
) -> tuple[ad.AnnData, pd.DataFrame]:
    """The predicted cells of `targets` beside real control cells, and the table of the genes that move most.

    The cells are as the module says. The table has a row for each target and gene: `perturbation, gene, effect,
    predicted, control` (means in log2 units; the effect is their difference), strongest first, TOP_GENES for each
    target. `seed` draws the control cells. Raises DataError for targets that cannot be predicted.
    """
    challenge = helpers.load_challenge(data)
    names = _checked_targets(targets, challenge)
    fitted = _model(challenge, Path(data) / MODEL_FOLDER if resources is None else Path(resources), names, seed)
    control = helpers.perturbation_stats(challenge.train_path).mean.loc[CRUNCH.control, fitted.genes]
    _check_memory(len(names), control)
    with threadpool_limits(1):
        means = fitted.predict_means(names)[fitted.genes].clip(lower=0.0)
        scale = checked_scale(fitted.expression, names)
        cells = _cells(fitted, means)
    return _beside_control(challenge, cells, means, scale, fitted, seed), _table(means, control)


def _checked_targets(targets: Sequence[str], challenge: Challenge) -> pd.Index:
    names = pd.Index([str(target).strip() for target in targets if str(target).strip()]).unique()
    if names.empty:
        raise DataError("--targets names no gene")
    measured = {frozenset(CRUNCH.genes_of(name)) for name in challenge.perturbations}
    if there := [name for name in names if frozenset(CRUNCH.genes_of(name)) in measured]:
        raise DataError(f"--targets {some(there)}: measured, so their real cells are in {challenge.train_path}")
    if controls := [name for name in names if not CRUNCH.genes_of(name)]:
        raise DataError(f"--targets {some(controls)}: the control; name genes, or combinations such as A+B")
    known = challenge.genes.union(genes_in(challenge.perturbations)).union(genes_in(challenge.targets))
    known, genes = known.union(genes_in(challenge.local_targets)), genes_in(names)
    if len(unknown := genes[~genes.isin(known)]):
        raise DataError(
            f"--targets {some(unknown)}: neither measured as a gene nor in {challenge.folder / CRUNCH.targets_file}"
            f"{similar(unknown[0], list(known))}"
        )
    return names


def _model(challenge: Challenge, folder: Path, names: pd.Index, seed: int) -> Predictor:
    """The saved model, or a new one where there is none, the training file is newer, or it knows no combinations."""
    path, method = folder / MODEL_FILE, Predictor.default()
    method.expression = for_names(method.expression, names)
    if path.exists() and path.stat().st_mtime >= challenge.train_path.stat().st_mtime:
        fitted = Predictor.load(path)
        if not fitted.genes.equals(challenge.genes):
            raise DataError(f"{path}: trained on other genes than those of {challenge.train_path}; delete it")
        if not isinstance(method.expression, CombinationModel) or isinstance(fitted.expression, CombinationModel):
            print(f"Using {path}; delete it to train again.")
            warn_of_other_files(fitted, path)
            return fitted
        print(f"{path} is of single knock-outs; training again for combinations.")
    return train(challenge.folder, folder, seed=seed, predictor=method)


def _check_memory(n_targets: int, control: pd.Series) -> None:
    n_cells = n_targets * CRUNCH.cells_per_perturbation
    needed = n_cells * len(control) * 8 + 2 * n_targets * len(control) * 8  # at most
    if needed > (free := helpers.free_memory()):
        raise DataError(
            f"--targets: the cells of {n_targets} targets take up to {text_size(needed)} of memory, and "
            f"{text_size(free)} are free; name fewer at a time"
        )


def _cells(fitted: Predictor, means: pd.DataFrame) -> sp.csr_matrix:
    """Cells of each target, one target after the other: CSR, float32."""
    generator, parts = fitted.cells.for_genes(means.columns), []
    for name in progress_bar("making cells", iterable=means.index, unit="target"):
        mean = means.loc[name].to_numpy(np.float32)
        parts.append(sp.csr_matrix(helpers.checked_cells(generator, name, mean, CRUNCH.cells_per_perturbation)))
    return sp.vstack(parts).tocsr()


def _beside_control(
    challenge: Challenge,
    cells: sp.csr_matrix,
    means: pd.DataFrame,
    scale: pd.DataFrame | None,
    fitted: Predictor,
    seed: int,
) -> ad.AnnData:
    rows = np.flatnonzero((challenge.obs[CRUNCH.perturbation] == CRUNCH.control).to_numpy())
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:CONTROL_CELLS])
    real = sp.csr_matrix(helpers.read_cells(challenge.train_path, rows)[:, means.columns].X)
    n, per_target = len(rows), CRUNCH.cells_per_perturbation
    of_cell = means.index.repeat(per_target)
    numbers = [f"{name}-{i}" for name in means.index for i in range(1, per_target + 1)]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical([CONTROL] * n + list(of_cell), categories=[CONTROL, *means.index]),
            "predicted": np.repeat([False, True], [n, len(of_cell)]),
        },
        index=pd.Index([*challenge.obs.index[rows].astype(str), *numbers], dtype=object),
    )
    for column in EXPECTED_COLUMNS:
        values = np.full(len(of_cell), np.nan) if scale is None else scale.loc[of_cell, column].to_numpy(np.float64)
        obs[f"expected_{column}"] = np.concatenate([np.full(n, np.nan), values])
    adata = ad.AnnData(
        sp.vstack([real, cells]).tocsr().astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(means.columns.astype(str), dtype=object, name=None)),
    )
    adata.uns["log1p"] = {"base": 2.0}
    adata.uns["predicted_by"] = fitted.describe()
    return adata


def _table(means: pd.DataFrame, control: pd.Series) -> pd.DataFrame:
    """The genes of each target that move most, strongest first."""
    parts = []
    for name, mean in means.iterrows():
        table = pd.DataFrame({"effect": mean - control, "predicted": mean, "control": control})
        table = table.loc[table["effect"].abs().sort_values(ascending=False, kind="stable").index[:TOP_GENES]]
        table.insert(0, "perturbation", name)
        parts.append(table.rename_axis("gene").reset_index())
    columns = ["perturbation", "gene", "effect", "predicted", "control"]
    return pd.concat(parts, ignore_index=True)[columns]


def _say(adata: ad.AnnData, table: pd.DataFrame) -> None:
    """The genes that rise and fall most, a line for each target."""
    expected = adata.obs[adata.obs["predicted"]].groupby("perturbation", observed=True)["expected_pearson"].first()
    shown = list(table["perturbation"].unique()[:SHOWN_TARGETS])
    print("Predicted effects, mean minus that of control cells, log2 units:")
    for name in shown:
        effect = table[table["perturbation"] == name].set_index("gene")["effect"]
        rises = [f"{gene} {value:+.2f}" for gene, value in effect[effect > 0][:SHOWN_GENES].items()]
        falls = [f"{gene} {value:+.2f}" for gene, value in effect[effect < 0][:SHOWN_GENES].items()]
        sure = f" (expected Pearson {expected[name]:.2f})" if np.isfinite(expected[name]) else ""
        print(f"  {name}{sure}: {', '.join(rises + falls)}")
    effects = set(table.groupby("perturbation", sort=False)["effect"].agg(tuple))
    if len(expected) > 1 and len(effects) == 1:
        print("  All are the same: the model knows nothing that tells these targets apart.")
    if len(expected) > len(shown):
        print(f"  ... and {len(expected) - len(shown)} more")


@command_line()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.predict", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a data folder, as `python -m workbench.adopt` makes it")
    parser.add_argument(
        "--targets", required=True, metavar="A,B,A+B", help="genes to knock out and combinations, between commas"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".h5ad; a .csv of genes goes beside it")
    parser.add_argument("--resources", type=Path, metavar="DIR", help="of model, features/, screens/ (DATA/resources)")
    options = parser.parse_args()
    if options.out.suffix != ".h5ad":
        raise DataError(f"--out {options.out}: name a file that ends in .h5ad")
    outputs = [options.out, options.out.with_suffix(".csv")]
    resources = options.data / MODEL_FOLDER if options.resources is None else options.resources
    known = [resources / name for name in (EXPECTED_FILE, *used_files(resources))]
    check_outputs(outputs, [*options.data.glob("*"), *known])
    adata, table = predict(options.data, options.targets.split(","), resources=resources)
    with replacing_all(outputs) as (cells, genes):
        adata.write_h5ad(cells, compression="gzip")
        table.to_csv(genes, index=False, float_format="%.5g")
    _say(adata, table)
    n = int(adata.obs["predicted"].sum())
    print(
        f"{outputs[0]}: {n:,} predicted and {adata.n_obs - n:,} real control cells; {outputs[1]}: the genes that move."
    )


if __name__ == "__main__":
    main()
