"""Time and memory of a fit on a lab's screen: thousands of perturbations, five tables and another screen.

    python -m workbench.fit_bench PERTURBATIONS RESPONSES [LANDMARKS]

In: nothing; responses and knowledge are drawn from common factors. Out: a line of JSON with seconds, peak memory and
the correlation of 500 held-out perturbations. `workbench.bench` runs it at growing sizes, in processes of their own.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

import response
from helpers import row_correlations
from knowledge import FeatureTable, GeneKnowledge, edge_table, gene_set_table, numeric_table
from response import ResponseModel
from screens import Screen

FACTORS, HELD_OUT, NOISE = 60, 500, 12.0


def lab_screen(n: int, n_responses: int) -> tuple[pd.DataFrame, GeneKnowledge]:
    """Responses of n + 500 perturbations (rows), half of them the perturbed genes', and what is known of these."""
    generator = np.random.default_rng(0)
    total = n + HELD_OUT
    names = pd.Index([f"P{i:05d}" for i in range(total)])
    own = names[-min(total, n_responses // 2) :]
    columns = own.append(pd.Index([f"R{i:05d}" for i in range(n_responses - len(own))]))
    factors = generator.standard_normal((total, FACTORS))
    mixing = generator.standard_normal((FACTORS, n_responses))
    values = np.empty((total, n_responses))
    for start in range(0, total, 1000):  # by slabs, so that the peak of the memory is that of the fit
        part = slice(start, start + 1000)
        noise = NOISE * generator.standard_normal(values[part].shape)
        values[part] = np.tanh(factors[part]) @ mixing + noise
    elsewhere = (factors + 0.7 * generator.standard_normal(factors.shape)).astype(np.float32)
    basis = (mixing + 0.5 * generator.standard_normal(mixing.shape)).astype(np.float32)
    tables = {f"vectors {i}": _vectors(names, factors, 1.0 + i, generator) for i in range(3)}
    sets = _sets(names, factors, 40, generator)
    tables["sets"] = gene_set_table(sets)
    near = _sets(names, factors, 20, generator).values()
    edges = [(name, end) for name, ends in zip(names, near, strict=False) for end in ends]
    tables["graph"] = edge_table(*zip(*edges, strict=True))
    knowledge = GeneKnowledge(tables, {"screen": Screen(names, columns, elsewhere, basis)})
    return pd.DataFrame(values, names, columns), knowledge


def _vectors(names: pd.Index, factors: np.ndarray, noise: float, generator: np.random.Generator) -> FeatureTable:
    mixed = factors @ generator.standard_normal((FACTORS, 50)) / np.sqrt(FACTORS)
    return numeric_table(pd.DataFrame(mixed + noise * generator.standard_normal(mixed.shape), index=names))


def _sets(names: pd.Index, factors: np.ndarray, size: int, generator: np.random.Generator) -> dict[str, list[str]]:
    """1,500 sets of the perturbations that lie farthest in a random direction, blurred."""
    along = factors @ generator.standard_normal((FACTORS, 1500))
    along += 2.0 * np.sqrt(FACTORS) / 8.0 * generator.standard_normal(along.shape)
    order = np.argsort(-along, axis=0)[:size]
    return {f"set {j}": names[order[:, j]].tolist() for j in range(order.shape[1])}


def main() -> None:
    """Command line."""
    n, n_responses, *landmarks = (int(text) for text in sys.argv[1:])
    if landmarks:
        response.LANDMARKS = landmarks[0]
    responses, knowledge = lab_screen(n, n_responses)
    train, test = responses[HELD_OUT:], responses[:HELD_OUT]
    began = time.perf_counter()
    with threadpool_limits(1):
        model = ResponseModel().fit(train, knowledge=knowledge)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    predicted = model.predict(test.index) - model.reference_
    value = row_correlations((test - model.reference_).to_numpy(), predicted.to_numpy()).mean()
    print(json.dumps({"seconds": seconds, "peak_gb": peak, "value": float(value)}))


if __name__ == "__main__":
    main()
