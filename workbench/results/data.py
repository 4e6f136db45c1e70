"""The data behind RESULTS.md: real effects, priors and screens, ceilings that need no model, simulated data.

In: the folder of the real data, or a seed. Out: effects, tables and scores, which `workbench.results` takes next.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.optimize
from sklearn.base import BaseEstimator

import helpers
from contract import CRUNCH
from knowledge import FeatureTable, GeneKnowledge, read_features, symbol_table
from method import fit_predictor
from response import ResponseModel
from screens import Screen, read_screen
from workbench.evaluation.effects import read_effects
from workbench.evaluation.folds import COLUMNS
from workbench.evaluation.methods import PCA_RIDGE, RANDOM_FEATURES
from workbench.simulate import simulate

PRIORS = {  # files of priors/ -> their names on the page
    "c2.cp.reactome.v2023.2.Hs.symbols.gmt": "Reactome",
    "h.all.v7.4.symbols.gmt": "Hallmark",
    "dorothea_hs.csv.gz": "DoRothEA",
    "interactions.csv.gz": "interactions",
}


def effect_tables(names: pd.Index, columns: pd.Index, data: Path) -> dict[str, FeatureTable]:
    """The priors that know one of `names`, under their names on the page, and the gene symbols."""
    own = read_features(data / "priors", names)
    symbol = symbol_table(sorted({*names, *columns}))
    return {"symbol": symbol, **{PRIORS.get(name, name): table for name, table in own.items()}}


def replogle_effects(data: Path, line: str) -> pd.DataFrame:
    """585 knock-downs x 7,225 genes of one cell line, "K562" or "RPE1", by rank scores of the genes that rise."""
    return read_effects(data / f"replogle_{line.lower()}_rank_up.parquet")


def replogle_screen(data: Path, line: str) -> Screen:
    """The same as a screen, as a user's file would be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ranks .* are turned into scores")
        return read_screen(data / f"replogle_{line.lower()}_rank_up.parquet")


class Copied(BaseEstimator):
    """Baseline: a knock-down does here what it did elsewhere, beside the mean of the training ones."""

    def __init__(self, elsewhere: pd.DataFrame) -> None:
        self.elsewhere = elsewhere

    def fit(self, means: pd.DataFrame) -> Copied:
        """Learn both means."""
        self.shift_ = means.mean() - self.elsewhere.loc[means.index].mean()
        return self

    def predict(self, targets: Sequence[str]) -> pd.DataFrame:
        """Targets x responses."""
        return self.elsewhere.loc[list(targets)] + self.shift_


# What a table or screen may be that should not be believed.


def random_table(names: pd.Index, seed: int) -> FeatureTable:
    """50 normal numbers for each gene."""
    return FeatureTable.of(names, np.random.default_rng(seed).standard_normal((len(names), RANDOM_FEATURES)))


def weak_table(effects: pd.DataFrame, seed: int) -> FeatureTable:
    """The 10 first principal components of the true effects, each with 5 times as much noise as it varies."""
    centred = effects.to_numpy() - effects.to_numpy().mean(axis=0)
    truth = np.linalg.svd(centred, full_matrices=False)[0][:, :10] * np.sqrt(len(effects))
    return FeatureTable.of(effects.index, truth + 5 * np.random.default_rng(seed).standard_normal(truth.shape))


def shuffled_screen(screen: Screen, names: pd.Index, seed: int) -> Screen:
    """The profiles of a screen under names to which they do not belong: one for each of `names`."""
    rows = np.random.default_rng(seed).permutation(len(screen.perturbations))[: len(names)]
    return Screen(names, screen.responses, screen.scores[rows], screen.basis)


def morphic_effects(data: Path) -> tuple[pd.DataFrame, pd.Series]:
    """Contrasts x genes without missing values, and the knocked-out gene of each contrast."""
    meta = pd.read_csv(data / "morphic" / "meta.csv")
    chosen = (meta["model"] == "PrS") & (meta["day"] == "day_6") & (meta["cond"] == "nor")
    meta = meta[chosen & ~meta["strategy"].str.contains("revert")]
    table = pd.read_parquet(data / "morphic" / "log2fc.parquet").set_index("symbol")[meta["key"]].dropna()
    table = table[~table.index.duplicated() & (table.index != "")]
    return table.T.rename_axis(columns=None), meta.set_index("key")["gene"]


def same_gene(effects: pd.DataFrame, genes: pd.Series) -> pd.DataFrame:
    """The ceiling: each contrast predicted by the mean of the gene's other contrasts; genes with one have none."""
    rows = []
    for gene in genes.unique():
        mine = effects[genes == gene].to_numpy()
        if len(mine) < 2:
            continue
        reference = effects[genes != gene].groupby(genes[genes != gene]).mean().mean().to_numpy()
        others = (mine.sum(axis=0) - mine) / (len(mine) - 1)
        value = helpers.row_correlations(mine - reference, others - reference).mean()
        rows.append(("other contrasts of the gene", gene, "pearson", value, 0, 0, 0, 0, np.nan, np.nan, False))
    return pd.DataFrame(rows, columns=COLUMNS)


def best_constant(shares: pd.DataFrame) -> float:
    """The least mean L1 distance of one legal prediction for all rows: a linear program, and a median for the ratio."""
    S, n = shares[CRUNCH.shares].to_numpy(), len(shares)
    # Unknowns: the 3 shares, then the deviation of each row in each share.
    step = np.vstack([np.eye(3)] * n)
    slack, true = np.eye(3 * n), S.ravel()
    found = scipy.optimize.linprog(
        np.r_[np.zeros(3), np.full(3 * n, CRUNCH.share_weight / n)],
        A_ub=np.block([[step, -slack], [-step, -slack]]),
        b_ub=np.r_[true, -true],
        A_eq=np.r_[np.ones(3), np.zeros(3 * n)][None],
        b_eq=[1.0],
        bounds=(0, 1),
    )
    ratio = shares[CRUNCH.ratio]
    return float(found.fun + CRUNCH.ratio_weight * (ratio - ratio.median()).abs().mean())


def demo_scores(seed: int, folder: Path) -> pd.DataFrame:
    """Pearson of the model, PCA-ridge and the oracle for each unseen knock-out of one simulated data set."""
    answer = folder.with_suffix(".h5")
    folder.parent.mkdir(parents=True, exist_ok=True)
    simulate(folder, seed=seed, answer=answer, force=True)
    challenge = helpers.load_challenge(folder)
    model = fit_predictor(challenge).expression
    stats = helpers.perturbation_stats(challenge.train_path)
    ridge = helpers.PCARidge().fit(stats.mean)
    with h5py.File(answer) as file:
        names, group, genes = (file[key].asstr()[:] for key in ("perturbation", "group", "gene"))
        effect, control, reference = (file[key][:] for key in ("effect", "control_mean", "perturbed_mean"))
        oracle = pd.Series(file["oracle_pearson"][:], index=names)
    unseen = pd.Index(names[np.isin(group, ["local", "unseen"])])
    truth = pd.DataFrame(effect + control - reference, index=names, columns=genes)
    scored = challenge.genes_to_predict
    reference = stats.perturbed_centroid()[scored].to_numpy()
    true = truth.loc[unseen, scored].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        predicted = {"this model": model.predict(unseen)[scored], PCA_RIDGE: ridge.predict(unseen)[scored]}
    values = {name: helpers.row_correlations(true, table.to_numpy() - reference) for name, table in predicted.items()}
    values["oracle"] = oracle[unseen].to_numpy()
    about = pd.DataFrame(
        {
            "perturbation": unseen,
            "seed": seed,
            "measured": unseen.isin(genes),
            "effect": np.linalg.norm(pd.DataFrame(effect, index=names).loc[unseen], axis=1),
            "expression": stats.mean.loc[CRUNCH.control].reindex(unseen).to_numpy(),
        }
    )
    return pd.concat([about.assign(method=name, value=value) for name, value in values.items()], ignore_index=True)


def varied_gene_set(effects: pd.DataFrame, path: Path) -> tuple[str, pd.Index]:
    """The set of a `.gmt` (15 to 60 genes measured) whose mean effect varies most between perturbations."""
    sets = {line.split("\t")[0]: line.rstrip("\n").split("\t")[2:] for line in path.read_text().splitlines()}
    measured = {name: effects.columns[effects.columns.isin(genes)] for name, genes in sets.items()}
    spread = {name: effects[genes].mean(axis=1).std() for name, genes in measured.items() if 15 <= len(genes) <= 60}
    name = max(spread, key=lambda key: spread[key])
    return name, measured[name]


def held_out_predictions(
    effects: pd.DataFrame, tables: dict[str, FeatureTable], columns: pd.Index, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """True and predicted residuals (perturbations x `columns`), each from four fifths of the others."""
    folds = np.random.default_rng(seed).permutation(len(effects)) % 5
    true, predicted = [], []
    for fold in range(5):
        test = effects.index[folds == fold]
        model = ResponseModel().fit(effects[folds != fold], knowledge=GeneKnowledge(tables))
        true.append(effects.loc[test, columns] - model.reference_[columns])
        predicted.append(model.predict(test)[columns] - model.reference_[columns])
    return pd.concat(true), pd.concat(predicted)
