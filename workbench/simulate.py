"""Write a demo ``data/`` folder with a known answer: simulated cells in exactly the platform's layout.

In: sizes and a seed. Out: the seven files of the platform's ``data/``, which ``helpers.py`` reads next, and on request
a file with the true effects. ``python -m workbench.simulate OUT --answer ANSWER.h5`` takes seconds (8,000 cells x 1,200
genes, 90 MB); ``--full`` is the platform's full size (18 GB). Gene names are invented.

For cell c of perturbation p in state s, and gene j (natural logarithms):
    log m_cj = b_j + W_j.(z_c + d_p) + V_j.e_p + S_js + [j is the target of p] log 0.2        z_c ~ N(0, I)
    mu_cj    = L_c * m_cj / sum_j m_cj                                  library L_c log-normal with mean 30,000
    count_cj ~ negative-binomial with mean mu_cj and size 4             that is Poisson(mu_cj * Gamma(4, 1 / 4))
    X_cj     = log2(1 + 1e5 * count_cj / sum_j count_cj)
b_j is log-normal over genes, so wide that 37 % of the entries are not zero. W_j holds the co-expression loadings on 6
modules, |W_j| = 0.5 for each gene. S_js raises signature genes in their states; lipo is a sub-state of adipo. A
knock-out whose target has the mean count c_p in control cells has the strength r_p = c_p / (1 + c_p) and
    d_p = -r_p * 0.25 * sqrt(share) * W_p / rms_j(W_p.W_j)              against its own co-expression: PREDICTABLE
    e_p =  r_p * 0.25 * sqrt(1 - share) * g_p / rms_j(g_p.V_j)          g_p ~ N(0, I_6): idiosyncratic
    shift of the log odds of the states = r_p * sd_s * (sqrt(share) * A_s.(-W_p / |W_p|) + sqrt(1 - share) * N(0, 1))
so ``share`` (the argument ``predictable``) is the predictable share of an effect's variance over genes. Perturbed genes
that are not in ``var`` follow the same formulas, with a W_p and a c_p that no file shows.

With CRUNCH=2 the knock-outs are combined: `workbench.combine` has the formulas of doubles, and their shares.
"""

import argparse
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from scipy import optimize, sparse, stats
from scipy.special import logsumexp, softmax
from threadpoolctl import threadpool_limits
from tqdm.auto import trange

from contract import CRUNCH, CRUNCHES
from helpers import DataError, only_one
from workbench.combine import combine, n_training
from workbench.commands import command_line, whole

FULL = {
    "cells": 88_202,
    "genes": 21_592,
    "perturbations": CRUNCH.n_training,
    "unseen": CRUNCH.n_targets,
    "listed": 10_238,
    "local_cells": 4_437,
}
if CRUNCH.asks_for_doubles:
    FULL |= {"cells": 90_815, "genes": 36_601, "perturbations": 18, "listed": 36_601, "local_cells": 1_800}
# What each size is, for `--help`.
SIZES = {
    "cells": "cells of the training file, the control's among them (default 7500)",
    "genes": "genes that are measured (default 1200)",
    "perturbations": "knock-outs in the training file (default 40; with CRUNCH=2 genes that are knocked out, each "
    "alone and in pairs, default 12)",
    "unseen": "knock-outs to predict (default 5 %% of the genes, 8 to 60; with CRUNCH=2 doubles, a quarter of all)",
    "listed": "genes to predict (default 93 %% of the genes)",
    "local_cells": "cells of the local knock-outs, the local truth (default 5 %% of the cells, at least 1000)",
}
# Moved in this order, the training file last.
FILES = (
    CRUNCH.local_truth_file,
    CRUNCH.proportions_file,
    CRUNCH.local_proportions_file,
    CRUNCH.signatures_file,
    CRUNCH.targets_file,
    CRUNCH.genes_file,
    CRUNCH.train_file,
)
ANSWER = "answer.h5"  # its name while it is being written
MADE_BY = "made-by"  # an attribute of the files of cells, by which demo data are told from the challenge's
OBS = [
    "nCount_RNA",
    "nFeature_RNA",
    "nCount_guide",
    "nFeature_guide",
    "percent.mt",
    "SampleID",
    "Day",
    "num_features",
    "feature_call",
    "num_umis",
    CRUNCH.perturbation,
    "adipo",
    "pre_adipo",
    "other",
    "lipo",
]
N_LOCAL = 5
MEASURED = 2_087 / 2_863  # share of the perturbed genes that are in genes_to_predict
CONTROL_CELLS = 17_000 / 88_202
DEPTH, DEPTH_SD = 30_000.0, 0.35  # counts of a cell, sd of their logarithm
STORED = 0.357  # share of entries above zero before the states raise genes; with them the platform's 0.369
MODULES, RANK, COEXPRESSION, SIZE = 6, 6, 0.5, 4  # length of W_j and of V_j, |W_j|, size of the negative-binomial
EFFECT, RESIDUAL = 0.25, 0.2  # rms over genes of an effect of strength 1 on log m; what is left of a target
IN_STATE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]])  # rows: pre_adipo, adipo, its lipo, other
CONTROL_LOGITS, STATE_SD = np.log([0.366, 0.188, 0.070, 0.376]), np.array([0.2, 0.3, 0.45, 0.15])  # of those rows
Z = [f"z{k}" for k in range(MODULES)]
SLAB = 500_000  # entries sampled at a time, few enough for the processor's cache; another number draws other cells
WORKERS = min(4, os.cpu_count() or 1)  # changes no result


@dataclass(frozen=True)
class Model:
    """All but the cells, for G measured genes and P perturbations in the order NC, train, local, other unseen ones."""

    genes: np.ndarray  # (G,) names in var order
    listed: np.ndarray  # genes_to_predict
    requested: np.ndarray  # predict_perturbations
    signatures: pd.DataFrame  # program, sig_gene
    perturbations: np.ndarray  # (P,) names
    group: np.ndarray  # (P,) "control", "train", "local" or "unseen"
    target: np.ndarray  # (P,) position in genes, -1 where there is none; of combinations (P, 3)
    strength: np.ndarray  # (P,) r
    loadings: np.ndarray  # (G, 6 + 6 + 4) float32, [W, V, b + S]
    shift: np.ndarray  # (P, 6 + 6) float64, [d, e]
    logits: np.ndarray  # (2, P, 4) log odds of the rows of IN_STATE: the predictable part, all
    rule: np.ndarray | None = None  # (P,) how the knock-outs of a combination go together


def simulate(
    out: str | Path,
    *,
    cells: int = 7_500,
    genes: int = 1_200,
    perturbations: int | None = None,
    unseen: int | None = None,
    listed: int | None = None,
    local_cells: int | None = None,
    predictable: float = 0.5,
    masking: float = 0.25,
    synergistic: float = 0.25,
    seed: int = 0,
    counts: bool = True,
    answer: str | Path | None = None,
    force: bool = False,
) -> None:
    """Write the seven files into ``out``, all of them or none; the same arguments give the same arrays.

    ``perturbations``: of the training file, without NC (default 40); with CRUNCH=2 the genes that are knocked out
    (default 12), each alone and in pairs, of which the shares ``masking`` and ``synergistic`` do not add up.
    ``unseen``: names in predict_perturbations (default 5 % of the genes, 8 to 60; with CRUNCH=2 a quarter of the
    pairs); as on the platform, the local ones are not among them. ``listed``: names in genes_to_predict
    (default 93 % of the genes). ``local_cells``: of the local truth (default 5 % of ``cells``, at least 1,000).
    ``counts``: whether to write ``layers/counts``. ``force``: replace an earlier run.

    ``answer``: an HDF5 file outside ``out``, on the scale of X and in var order. ``effect`` (P, G) float32 is the true
    mean of a perturbation minus that of control cells, ``predictable`` the same without the unpredictable parts;
    ``perturbation`` (P,), ``group`` (P,) and ``gene`` (G,) are the names; ``control_mean`` and ``perturbed_mean`` (over
    training cells) (G,) float64; ``shares`` and ``predictable_shares`` (P, 4) of pre_adipo, adipo, other, lipo;
    ``strength`` (P,) is r_p; ``oracle_pearson`` (P,) is the Pearson delta, free of sampling error, of the oracle, which
    predicts ``control_mean + predictable``. With CRUNCH=2 ``rule`` (P,) is single, A+A, A+NC, additive, masking or
    synergistic, ``strength`` that of the strongest gene, and ``double_perturbed_mean`` the mean over doubles, as
    ``perturbed_mean`` is over singles; triples, never scored, have no oracle (NaN).

    Raises ValueError for sizes that do not fit together, FileExistsError for an earlier run without ``force``, OSError
    where the disk is too small, ``helpers.DataError`` while another run writes into the same folder.
    """
    doubles = CRUNCH.asks_for_doubles
    perturbations = (12 if doubles else 40) if perturbations is None else perturbations
    n_pairs = perturbations * (perturbations - 1) // 2
    unseen = (n_pairs // 4 if doubles else min(60, max(8, genes // 20))) if unseen is None else unseen
    listed = round(0.93 * genes) if listed is None else listed
    local_cells = max(200 * N_LOCAL, cells // 20) if local_cells is None else local_cells
    out, answer = Path(out).resolve(), None if answer is None else Path(answer).resolve()
    n_seen, n_new = round(MEASURED * perturbations), round(MEASURED * unseen)
    if doubles:  # of their genes all are measured; the model below has those of the local truth, too
        _check_combinations(perturbations, unseen, n_pairs, masking, synergistic)
        n_seen, n_new = perturbations - N_LOCAL, 0
    known = n_training(perturbations, unseen) if doubles else perturbations
    _check_sizes(
        cells=cells,
        genes=genes,
        perturbations=known,
        unseen=unseen,
        listed=listed,
        local_cells=local_cells,
        measured=n_seen + n_new + N_LOCAL,
        predictable=predictable,
    )
    rows = 1.5 * 0.37 * cells * (1 + counts) + local_cells + (known + unseen + 6) * (answer is not None)
    _check_places(out, answer, needed=int(1.1 * 8 * genes * rows) + 1_000_000, force=force)

    seeds = np.random.SeedSequence(seed).spawn(5)
    model = _build_model(
        np.random.default_rng(seeds[0]),
        n_genes=genes,
        n_listed=listed,
        share=predictable,
        seen=(n_seen, 0 if doubles else perturbations - n_seen),
        unseen=(n_new, 0 if doubles else unseen - n_new),
    )
    rng = np.random.default_rng(seeds[1])
    if doubles:
        model = combine(model, rng, CONTROL_LOGITS, unseen=unseen, masking=masking, synergistic=synergistic)
    train = _draw_cells(rng, model, _training_sizes(rng, cells, known), ["control", "train"])
    sizes = np.array([len(part) for part in np.array_split(np.arange(local_cells), (model.group == "local").sum())])
    local = _draw_cells(np.random.default_rng(seeds[2]), model, sizes, ["local"])
    # Sums of products depend on the number of threads of BLAS, and a mean near a step decides a count.
    with threadpool_limits(1), only_one(out), _all_or_nothing(out) as folder:
        centroids = _write_training(
            folder / CRUNCH.train_file, model, train, seeds[3], ["X", "layers/counts"][: 1 + counts]
        )
        _write_local_truth(folder / CRUNCH.local_truth_file, model, local, seeds[4], centroids)
        _write_small_files(folder, rng, model, train, local)
        if answer is not None:
            _write_answer(folder / ANSWER, model, np.bincount(train["perturbation"], minlength=len(model.group)))
            shutil.move(folder / ANSWER, answer)


def is_simulated(path: str | Path) -> bool:
    """Whether a file of cells was made by this module: demo data, not the challenge's.

    Raises ``helpers.DataError`` for a file that cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            return MADE_BY in file.attrs
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file, perhaps a broken download: {error}") from error


def _check_sizes(
    *,
    cells: int,
    genes: int,
    perturbations: int,
    unseen: int,
    listed: int,
    local_cells: int,
    measured: int,
    predictable: float,
) -> None:
    fewest = 1 if CRUNCH.asks_for_doubles else 8
    rules = {
        f"genes={genes}: at least 60 are needed": genes >= 60,
        f"perturbations={perturbations}: at least 2 are needed": perturbations >= 2,
        f"cells={cells}: at least 10 for each of {perturbations + 1} groups": cells >= 10 * (perturbations + 1),
        f"unseen={unseen}: at least {fewest} are needed": unseen >= fewest,
        f"genes={genes}: {measured} of them would be perturbed, more than half": measured <= genes / 2,
        f"listed={listed}: must lie between {measured} perturbed and {genes} genes": measured <= listed <= genes,
        f"local_cells={local_cells}: at least {N_LOCAL} are needed": local_cells >= N_LOCAL,
        f"predictable={predictable}: must lie between 0 and 1": 0 <= predictable <= 1,
    }
    if broken := [message for message, kept in rules.items() if not kept]:
        raise ValueError("; ".join(broken))


def _check_combinations(genes: int, unseen: int, n_pairs: int, masking: float, synergistic: float) -> None:
    rules = {
        f"perturbations={genes}: at least 6 genes to knock out are needed": genes >= 6,
        f"unseen={unseen}: of {n_pairs} pairs at most {n_pairs - 5}, so that some are measured": unseen <= n_pairs - 5,
        f"masking={masking} and synergistic={synergistic}: two shares, together at most 1": masking >= 0
        and synergistic >= 0
        and masking + synergistic <= 1,
    }
    if broken := [message for message, kept in rules.items() if not kept]:
        raise ValueError("; ".join(broken))


def _check_places(out: Path, answer: Path | None, *, needed: int, force: bool) -> None:
    if not next(folder for folder in out.parents if folder.exists()).is_dir():
        raise ValueError(f"{out}: a part of its path is a file")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder")
    if answer is not None and (answer.is_relative_to(out) or answer.is_dir() or not answer.parent.is_dir()):
        raise ValueError(f"the answer {answer} must be a file outside {out}, in a folder that exists")
    for other in CRUNCHES.values():
        if other.train_file != CRUNCH.train_file and (out / other.train_file).exists():
            raise ValueError(
                f"{out} holds the files of {other.name}, of which some have the same names; choose another"
            )
    for path in (out / CRUNCH.train_file, answer):
        if path is not None and path.exists() and not force:
            raise FileExistsError(f"{path} already exists; --force (force=True) replaces it")
    free = shutil.disk_usage(next(folder for folder in out.parents if folder.exists())).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.2f} GB are needed at {out.parent}, {free / 1e9:.2f} GB are free")


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` whose files move into ``out`` at the end; other files in ``out`` stay."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and (foreign := {path.name for path in partial.iterdir()} - {*FILES, ANSWER}):
        raise FileExistsError(f"the files are made in {partial}, but it holds {min(foreign)}")
    shutil.rmtree(partial, ignore_errors=True)  # a killed run's
    partial.mkdir(parents=True)
    try:
        yield partial
        out.mkdir(exist_ok=True)
        (out / CRUNCH.train_file).unlink(missing_ok=True)
        for name in FILES:
            (partial / name).replace(out / name)
    finally:
        shutil.rmtree(partial)


# The model: genes, perturbations, effects.


def _build_model(
    rng: np.random.Generator,
    *,
    n_genes: int,
    seen: tuple[int, int],
    unseen: tuple[int, int],
    n_listed: int,
    share: float,
) -> Model:
    """``seen`` and ``unseen``: how many perturbed genes are measured and how many are not."""
    names = np.append(
        _gene_names(rng, n_genes + seen[1] + unseen[1]), CRUNCH.control
    )  # NC: a target that is not expressed
    genes, mean = names[:n_genes], rng.permutation(_mean_counts(n_genes))
    every_mean = np.concatenate([mean, rng.choice(mean, seen[1] + unseen[1]), [0.0]])
    strength = every_mean / (1 + every_mean)
    weight = (strength[:n_genes] + 0.02) / (strength[:n_genes] + 0.02).sum()  # screens target expressed genes
    chosen = rng.choice(n_genes, seen[0] + unseen[0] + N_LOCAL, replace=False, p=weight)
    local, train, new = np.split(rng.permutation(chosen), [N_LOCAL, N_LOCAL + seen[0]])
    hidden_train, hidden_new = np.split(np.arange(n_genes, len(names) - 1), [seen[1]])
    train, new = rng.permutation(np.append(train, hidden_train)), rng.permutation(np.append(new, hidden_new))
    perturbed = np.concatenate([[len(names) - 1], train, local, new])

    modules = np.eye(MODULES)[rng.integers(MODULES, size=len(names))] + rng.normal(0, 0.3, (len(names), MODULES))
    sign = np.where(rng.random((len(names), 1)) < 0.25, -1, 1)  # a quarter of the genes run against their module
    modules *= COEXPRESSION * sign / np.linalg.norm(modules, axis=1, keepdims=True)
    own = rng.standard_normal((n_genes, RANK))
    signatures, raised = _signatures(rng, genes)
    variance = strength[perturbed, None] ** 2 * [share, 1 - share]
    shift, logits = _effects(rng, modules[:n_genes], own, modules[perturbed], variance)
    rank = rng.random(n_genes) - (np.isin(genes, signatures["sig_gene"]) & (rng.random(n_genes) < 0.97))
    rank[perturbed[perturbed < n_genes]] = -2  # so all perturbed and nearly all signature genes are listed
    return Model(
        genes=genes,
        listed=genes[rng.permutation(np.argsort(rank)[:n_listed])],
        signatures=signatures,
        requested=rng.permutation(names[new]),
        perturbations=names[perturbed],
        target=np.where(perturbed < n_genes, perturbed, -1),
        group=np.repeat(["control", "train", "local", "unseen"], [1, len(train), N_LOCAL, len(new)]).astype(object),
        strength=strength[perturbed],
        shift=shift,
        logits=logits,
        loadings=np.hstack([modules[:n_genes], own, np.log(mean)[:, None] + raised]).astype(np.float32),
    )


def _gene_names(rng: np.random.Generator, n: int) -> np.ndarray:
    """``n`` different invented symbols like KRD12; the first 13 are mitochondrial, for ``percent.mt``."""
    code = rng.choice(26**3 * 40, n, replace=False)
    letters = np.array([chr(ord("A") + i) for i in range(26)], dtype=object)
    number = (code // 26**3 + 1).astype(str).astype(object)
    names = letters[code % 26] + letters[code // 26 % 26] + letters[code // 26**2 % 26] + number
    names[:13] = "MT-" + names[:13]
    return names


def _mean_counts(n: int) -> np.ndarray:
    """(n,) log-normal mean counts in control cells that sum to DEPTH, so wide that STORED of the entries are > 0."""
    normal, cap = stats.norm.ppf((np.arange(n) + 0.5) / n), max(0.02, 20 / n) * DEPTH  # no gene takes over the cell
    spread = np.expm1(COEXPRESSION**2 + np.log1p(1 / SIZE) + DEPTH_SD**2)  # a gene's dispersion over control cells

    def means(width: float) -> np.ndarray:
        centre = optimize.brentq(lambda c: np.minimum(np.exp(c + width * normal), cap).sum() - DEPTH, -100, 20)
        return np.minimum(np.exp(centre + width * normal), cap)

    return means(optimize.brentq(lambda w: np.mean(1 - (1 + spread * means(w)) ** (-1 / spread)) - STORED, 0.05, 20))


def _signatures(rng: np.random.Generator, genes: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """The signature genes (a gene may serve several programs) and S (G, 4)."""
    programs = {
        "pre-adipo": (50, 40, [1, 0, 0, 0]),
        "adipo": (50, 40, [0, 1, 1, 0]),
        "lipo": (472, 20, [0, 0.2, 0.8, 0]),
        "thermo": (316, 25, [0, 0.3, 0.3, 0]),
    }
    tables, raised = [], np.zeros((len(genes), 4))
    for program, (most, one_in, by_state) in programs.items():
        chosen = rng.choice(len(genes), min(most, len(genes) // one_in), replace=False)
        raised[chosen] += np.array(by_state)
        tables.append(pd.DataFrame({"program": program, "sig_gene": genes[chosen]}))
    return pd.concat(tables, ignore_index=True), raised


def _effects(
    rng: np.random.Generator, W: np.ndarray, V: np.ndarray, W_p: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``shift`` and ``logits``; W_p (P, 6) are the targets' loadings, ``variance`` (P, 2) is r^2 [share, 1 - share]."""
    known, random = np.sqrt(variance).T[:, :, None]
    g = rng.standard_normal((len(W_p), RANK))
    d, e = (v / np.sqrt((v @ (B.T @ B / len(B)) * v).sum(axis=1, keepdims=True)) for v, B in ((-W_p, W), (g, V)))
    by_module = -W_p / COEXPRESSION @ rng.standard_normal((MODULES, 4))
    predictable = CONTROL_LOGITS + STATE_SD * known * by_module
    logits = np.stack([predictable, predictable + STATE_SD * random * rng.standard_normal((len(W_p), 4))])
    return EFFECT * np.hstack([known * d, random * e]), logits


# The cells.


def _training_sizes(rng: np.random.Generator, cells: int, perturbations: int) -> np.ndarray:
    """(1 + perturbations,) cells of NC and of each perturbation; of many perturbations two have very few.

    With CRUNCH=2 cells of NC+NC, after NC, are a third of the control cells.
    """
    weights = rng.lognormal(0, 0.3, perturbations)
    if perturbations >= 20:
        weights[:2] = 0.05, 0.15
    sizes = np.maximum(3, ((1 - CONTROL_CELLS) * cells * weights / weights.sum()).astype(int))
    n_control = cells - sizes.sum()
    return np.append([n_control - n_control // 3, n_control // 3] if CRUNCH.asks_for_doubles else n_control, sizes)


def _draw_cells(rng: np.random.Generator, model: Model, sizes: np.ndarray, groups: list[str]) -> pd.DataFrame:
    """One row per cell, sorted by the perturbation's name: all that is known of a cell before its counts are drawn."""
    members = np.flatnonzero(np.isin(model.group, groups))
    order = np.argsort(model.perturbations[members])
    perturbation = np.repeat(members[order], sizes[order])
    n, gene = len(perturbation), model.perturbations[perturbation]
    state = (rng.random((n, 1)) > softmax(model.logits[1], axis=1).cumsum(axis=1)[perturbation, :3]).sum(axis=1)
    sample, guide = rng.integers(1, 9, n).astype(str), rng.integers(1, 4, n).astype(str).astype(object)
    umis, background = 1 + rng.negative_binomial(2, 0.02, n), rng.poisson(1.0, n)
    columns = {
        "nCount_guide": umis + background,
        "nFeature_guide": 1 + np.minimum(background, 3),
        "SampleID": pd.Categorical(np.char.add("S", sample)),
        "Day": pd.Categorical(np.full(n, "D14")),
        "num_features": np.array([CRUNCH.n_guides(name) for name in gene], np.int64),
        "feature_call": pd.Categorical(gene + "_" + guide),
        "num_umis": umis,
        CRUNCH.perturbation: pd.Categorical(gene),
        **dict(zip(CRUNCH.states, IN_STATE[state].T, strict=True)),
        "perturbation": perturbation,
        "state": state,
        "library": DEPTH * rng.lognormal(-(DEPTH_SD**2) / 2, DEPTH_SD, n),
        **dict(zip(Z, rng.standard_normal((MODULES, n)), strict=True)),
    }
    return pd.DataFrame(columns, pd.Index([f"{groups[-1]}{i:06d}-{s}" for i, s in enumerate(sample)], dtype=object))


def _draw_uniform(
    model: Model, cells: pd.DataFrame, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, P(0) and uniform numbers, (n, G) float32; a count is above zero where the number is above P(0)."""
    perturbation = cells["perturbation"].to_numpy()
    position = np.hstack([model.shift[perturbation], np.eye(4)[cells["state"]]])
    position[:, :MODULES] += cells[Z].to_numpy()
    mean = position.astype(np.float32) @ model.loadings.T
    np.exp(mean, out=mean)
    for target in np.atleast_2d(model.target.T):
        knocked_out = np.flatnonzero(target[perturbation] >= 0)
        mean[knocked_out, target[perturbation[knocked_out]]] *= RESIDUAL
    mean *= (cells["library"].to_numpy(np.float32) / mean.sum(axis=1))[:, None]
    zero = np.square(np.square(SIZE / (SIZE + mean)))  # to the power SIZE, faster
    return mean, zero, rng.random(mean.shape, dtype=np.float32)


def _sample_counts(model: Model, cells: pd.DataFrame, seed: np.random.SeedSequence) -> sparse.csr_matrix:
    """Counts (n, G) float64 of some cells; the same seed gives the same counts.

    Small means by inversion, so that a zero costs no more than one uniform number, large ones as a Poisson of a gamma.
    """
    rng, shape = np.random.default_rng(seed), (len(cells), len(model.genes))
    mean, zero, uniform = _draw_uniform(model, cells, rng)
    at = np.flatnonzero(uniform > zero)
    mean, zero, uniform = (a.ravel()[at] for a in (mean, zero, uniform))
    counts = np.ones(len(at))
    again = np.flatnonzero(mean > 4)
    while len(again):  # given that it is above zero
        counts[again] = rng.poisson(mean[again] * rng.standard_gamma(SIZE, len(again), dtype=np.float32) / SIZE)
        again = again[counts[again] == 0]
    still = np.flatnonzero(mean <= 4)
    odds, probability, uniform = mean[still] / (mean[still] + SIZE), zero[still], uniform[still]
    below = probability.copy()
    for k in range(1, 40):  # at a mean of 4 higher counts have the probability 1e-9
        probability *= odds * np.float32((SIZE + k - 1) / k)
        below += probability
        more = uniform > below
        still, odds, probability, below, uniform = (a[more] for a in (still, odds, probability, below, uniform))
        counts[still] += 1
    ends = np.searchsorted(at, np.arange(shape[0] + 1) * shape[1])
    return sparse.csr_matrix((counts, (at % shape[1]).astype(np.int32), ends), shape)


def _in_order(function: Callable, shape: tuple[int, int], seed: np.random.SeedSequence, label: str) -> Iterator:
    """``function(rows, seed)`` of slabs of cells on threads, few results waiting, so that memory stays bounded."""
    step, waiting = max(1, SLAB // shape[1]), deque[Future]()
    with ThreadPoolExecutor(WORKERS) as pool:
        for i in trange(-(-shape[0] // step), desc=label, unit="slab"):
            slab_seed = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i))  # as spawn, without state
            waiting.append(pool.submit(function, slice(i * step, min((i + 1) * step, shape[0])), slab_seed))
            if len(waiting) > 2 * WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# The files.


def _log_x(counts: np.ndarray, total: np.ndarray | float) -> np.ndarray:
    return np.log2(1 + CRUNCH.scale * counts / total)


def _write_training(
    path: Path, model: Model, cells: pd.DataFrame, seed: np.random.SeedSequence, places: list[str]
) -> dict[str, np.ndarray]:
    """Write the training file slab by slab; returns the mean X (G,) of control and of perturbed cells, of each kind.

    A contiguous dataset needs its number of stored values before the first is written, so where the counts are above
    zero is drawn twice from the same seeds.
    """
    shape, total, mitochondrial = (len(cells), len(model.genes)), np.zeros(len(cells)), np.zeros(len(cells))
    kind = np.array([CRUNCH.centroid_of(name) for name in cells[CRUNCH.perturbation]])
    groups = (kind[:, None] == CRUNCH.centroids).astype(float)
    summed = np.column_stack([np.ones(shape[1]), [gene.startswith("MT-") for gene in model.genes]])

    def stored(rows: slice, seed: np.random.SeedSequence) -> np.ndarray:
        _, zero, uniform = _draw_uniform(model, cells[rows], np.random.default_rng(seed))
        return np.count_nonzero(uniform > zero, axis=1)

    def values(rows: slice, seed: np.random.SeedSequence) -> tuple:
        counts = _sample_counts(model, cells[rows], seed)
        total[rows], mitochondrial[rows] = (counts @ summed).T
        x = counts.copy()
        x.data = _log_x(counts.data, np.repeat(total[rows], np.diff(counts.indptr)))
        return rows, counts.indices, {"X": x.data, "layers/counts": counts.data}, x.T @ groups[rows]

    n_stored = np.concatenate(list(_in_order(stored, shape, seed, "count stored values")))
    ends, sums = np.append(0, np.cumsum(n_stored)), np.zeros((shape[1], groups.shape[1]))
    with h5py.File(path, "w") as file:
        for place in places:
            csr = file.create_group(place)
            csr.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
            csr.create_dataset("data", (ends[-1],), np.float64)
            csr.create_dataset("indices", (ends[-1],), np.int32)
            csr["indptr"] = ends.astype(np.int32 if ends[-1] <= np.iinfo(np.int32).max else np.int64)
        for rows, indices, data, slab_sums in _in_order(values, shape, seed, "write training cells"):
            where = slice(ends[rows.start], ends[rows.stop])
            for place in places:
                file[place]["data"][where], file[place]["indices"][where] = data[place], indices
            sums += slab_sums
        obs = cells.assign(nCount_RNA=total.astype(int), nFeature_RNA=n_stored)
        _write_frame(file, obs.assign(**{"percent.mt": 100 * mitochondrial / total})[OBS], model.genes)
    return dict(zip(CRUNCH.centroids, (sums / groups.sum(axis=0)).T, strict=True))


def _write_frame(file: h5py.File, obs: pd.DataFrame, genes: np.ndarray, **uns: np.ndarray) -> None:
    """Everything of an AnnData file but its matrices."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0", MADE_BY: "workbench.simulate"})
    parts = {"obs": obs, "var": pd.DataFrame(index=pd.Index(genes, dtype=object)), "uns": uns}
    for name, part in {**parts, "obsm": {}, "varm": {}, "obsp": {}, "varp": {}}.items():
        write_elem(file, name, part)
    file.require_group("layers").attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})


def _write_local_truth(
    path: Path, model: Model, cells: pd.DataFrame, seed: np.random.SeedSequence, centroids: dict[str, np.ndarray]
) -> None:
    def dense(rows: slice, seed: np.random.SeedSequence) -> tuple[slice, np.ndarray]:
        counts = _sample_counts(model, cells[rows], seed).toarray()
        return rows, _log_x(counts, counts.sum(axis=1, keepdims=True))

    with h5py.File(path, "w") as file:
        _write_frame(file, cells[[CRUNCH.perturbation]], model.genes, **centroids)
        x = file.create_dataset("X", (len(cells), len(model.genes)), np.float64)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for rows, values in _in_order(dense, x.shape, seed, "write local truth"):
            x[rows] = values


def _write_small_files(
    folder: Path, rng: np.random.Generator, model: Model, train: pd.DataFrame, local: pd.DataFrame
) -> None:
    for name, cells in ((CRUNCH.proportions_file, train), (CRUNCH.local_proportions_file, local)):
        table = cells.groupby(CRUNCH.perturbation, observed=True)[CRUNCH.states].mean()
        table[CRUNCH.ratio] = (table[CRUNCH.part] / table[CRUNCH.whole]).fillna(
            0.0
        )  # 0 / 0 is 0 in the platform's file
        table.iloc[rng.permutation(len(table))].to_csv(folder / name)
    model.signatures.to_csv(folder / CRUNCH.signatures_file, index=False)
    for name, genes in ((CRUNCH.targets_file, model.requested), (CRUNCH.genes_file, model.listed)):
        (folder / name).write_text("\n".join(genes))  # the platform's lists end without a line break


# The answer.


def _write_answer(path: Path, model: Model, cells: np.ndarray) -> None:
    """The true means on the scale of X, as ``simulate`` describes; ``cells`` (P,) counts the training cells."""
    shape = len(model.group), len(model.genes)
    kinds = np.array([CRUNCH.centroid_of(name) for name in model.perturbations])
    weights = {kind: cells * (model.group == "train") * (kinds == kind) for kind in CRUNCH.centroids[1::2]}
    scored, curve = np.isin(model.genes, model.listed), _expected_x()
    control, oracle = _true_mean(model, 0, curve, idiosyncratic=True), np.full(shape[0], np.nan)
    known, shares = softmax(model.logits, axis=2) @ IN_STATE
    references = {kind: np.zeros(shape[1]) for kind in weights}  # less the control's mean
    with h5py.File(path, "w") as file:
        effect, predictable = (file.create_dataset(name, shape, np.float32) for name in ("effect", "predictable"))
        for p in trange(shape[0], desc="true means", unit="perturbation"):
            effect[p] = _true_mean(model, p, curve, idiosyncratic=True) - control
            predictable[p] = _true_mean(model, p, curve, idiosyncratic=False) - control
            for kind, weight in weights.items():
                references[kind] += effect[p] * weight[p] / weight.sum()
        for p in np.flatnonzero(np.isin(kinds, list(references))):
            reference = references[kinds[p]]
            oracle[p] = np.corrcoef((effect[p] - reference)[scored], (predictable[p] - reference)[scored])[0, 1]
        means = dict(zip(("perturbed_mean", "double_perturbed_mean"), references.values(), strict=False))
        numbers = {
            "control_mean": control,
            **{name: control + reference for name, reference in means.items()},
            "strength": model.strength,
            "shares": shares,
            "predictable_shares": known,
            "oracle_pearson": oracle,
        }
        names = {"gene": model.genes, "perturbation": model.perturbations, "group": model.group}
        names |= {} if model.rule is None else {"rule": model.rule}
        for name, values in {**numbers, **names}.items():
            file[name] = values


def _true_mean(model: Model, p: int, curve: tuple[np.ndarray, np.ndarray], *, idiosyncratic: bool) -> np.ndarray:
    """(G,) float64 expected X of perturbation ``p``: the curve at the genes' log mean counts, averaged over states."""
    n = MODULES + RANK * idiosyncratic
    by_state = model.loadings[:, MODULES + RANK :].T + model.loadings[:, :n] @ model.shift[p, :n]
    for target in np.atleast_1d(model.target[p]):
        by_state[:, target] += np.log(RESIDUAL) * (target >= 0)
    by_state += np.log(DEPTH) - logsumexp(by_state, axis=1, keepdims=True)
    return softmax(model.logits[int(idiosyncratic), p]) @ np.interp(by_state, *curve)


def _expected_x() -> tuple[np.ndarray, np.ndarray]:
    """Log mean counts, and the expected X there over library sizes, modules, gamma and Poisson.

    One curve serves every gene because |W_j| and the size are the same for all. It leaves out that the modules also
    move a cell's total a little.
    """
    fine, grid, k = np.linspace(-22, 16, 1_000), np.linspace(-16, 12, 600), np.arange(400)
    rate = np.exp(fine)
    probability, large = stats.poisson.pmf(k, rate[:, None]), rate > 200
    node, weight = np.polynomial.hermite_e.hermegauss(9)
    weight /= weight.sum()
    gamma = np.log(stats.gamma.ppf((np.arange(64) + 0.5) / 64, SIZE, scale=1 / SIZE))
    noise = np.add.outer(COEXPRESSION * node - COEXPRESSION**2 / 2, gamma)
    expected = np.zeros(len(grid))
    for library, of_library in zip(DEPTH_SD * node - DEPTH_SD**2 / 2, weight, strict=True):
        at_rate = probability @ _log_x(k, DEPTH * np.exp(library))
        bend = 0.5 / (rate[large] * np.log(2))  # second order in the Poisson noise
        at_rate[large] = _log_x(rate[large], DEPTH * np.exp(library)) - bend
        at_grid = np.interp(grid[:, None, None] + library + noise, fine, at_rate)
        expected += of_library * (at_grid.mean(axis=2) @ weight)
    return grid, expected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workbench.simulate",
        description="Write a demo data/ folder in the platform's layout: seven files of simulated cells (90 MB).",
    )
    parser.add_argument("out", type=Path, help="the folder for the seven files; other files in it stay")
    for name, about in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=whole(0), metavar="N", help=about)
    parser.add_argument(
        "--seed", type=whole(0), metavar="N", help="of all draws: the same seed gives the same cells (default 0)"
    )
    parser.add_argument(
        "--predictable",
        type=float,
        metavar="SHARE",
        help="share of the effects' variance that follows from the data, 0 to 1; the rest is luck (default 0.5)",
    )
    for name in ("masking", "synergistic"):
        about = f"with CRUNCH=2, share of the doubles that are {name} (default 0.25)"
        parser.add_argument(f"--{name}", type=float, metavar="SHARE", help=about)
    parser.add_argument("--full", action="store_true", help="the platform's full size instead: 18 GB, minutes")
    parser.add_argument("--answer", type=Path, metavar="FILE", help="write the true effects too: HDF5, outside OUT")
    parser.add_argument(
        "--no-counts",
        dest="counts",
        action="store_false",
        help="leave the raw counts (layers/counts) out: half the size",
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier run made; without it, an error")
    return parser


@command_line()
def main() -> None:
    """Run the command line: ``python -m workbench.simulate --help``."""
    parser = _parser()
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    started, sizes = time.monotonic(), FULL if given.pop("full") else {}
    try:
        simulate(**{**sizes, **given})
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    size = sum((given["out"] / name).stat().st_size for name in FILES)
    print(f"{given['out']}: {size / 1e6:,.1f} MB in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
