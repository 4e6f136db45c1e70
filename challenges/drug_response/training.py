"""Training: one network at a time, or many in several processes.

In: a `Spec`, a `Problem`, a seed and the number of the repeat. Out: the weights as arrays of a bundle, the same for the
same arguments in whichever process and order; and from weights, predicted coordinates. Next: `ensemble`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own custom
from tqdm.auto import tqdm

from challenges.common import load_module, module_arrays, reproducible, under
from challenges.drug_response.networks import Autoencoder, Problem, Spec, make_network, n_out
from helpers import DataError

LATENT_SHARE = 0.5  # of the autoencoder's epochs that its second network gets
TIMED_EPOCHS, TIMED_LABELS = 2, 20  # to say how long training takes
START_SECONDS = 8.0  # until the processes have started
CONTENTION = 1.3  # how much slower a network trains beside others than alone


class Task(NamedTuple):
    """One network to train: what `fit_network` takes."""

    spec: Spec
    problem: Problem
    seed: int
    repeat: int
    device: str


def fit_networks(tasks: Sequence[Task], said: str) -> list[dict[str, np.ndarray]]:
    """The weights of each task, in their order: one process per core, or on a GPU one after the other.

    `said` stands before the progress bar. Raises DataError when a process dies.
    """
    if len(tasks) == 1 or tasks[0].device != "cpu":
        return [fit_network(*task) for task in tqdm(tasks, said, unit="network")]
    try:
        return list(tqdm(_workers().map(_fit_task, tasks), said, len(tasks), unit="network"))
    except BrokenProcessPool as error:
        raise DataError("a process that trained a network died, perhaps for want of memory") from error


@cache
def _workers() -> ProcessPoolExecutor:
    """One process per core, for the whole command: each takes seconds to start."""
    return ProcessPoolExecutor(os.cpu_count() or 1, multiprocessing.get_context("spawn"), _leave_interrupts)


def n_workers(device: str) -> float:
    """How many networks are trained at once, in units of one that is trained alone."""
    n = (os.cpu_count() or 1) if device == "cpu" else 1
    return n / CONTENTION if n > 1 else 1.0


def seconds_per_epoch(spec: Spec, n_rows: int, device: str) -> float:
    """How long an epoch of this network takes here, by a few on random numbers."""
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, TIMED_LABELS, n_rows) for _ in range(2)]
    coordinates = rng.normal(size=(n_rows, min(spec.n_dim, n_rows))).astype(np.float32)
    problem = Problem(labels[0], labels[1], TIMED_LABELS, TIMED_LABELS, coordinates)
    _warm_up(device)
    started = time.perf_counter()
    fit_network(replace(spec, epochs=TIMED_EPOCHS), problem, 0, 0, device)
    return (time.perf_counter() - started) / TIMED_EPOCHS


@cache
def _warm_up(device: str) -> None:
    """The first step of a process loads what the later ones have."""
    values = torch.ones(4, 4, device=device, requires_grad=True)
    values.square().sum().backward()
    torch.optim.Adam([values], fused=True).step()


def _leave_interrupts() -> None:
    """A worker leaves an interrupt to the command, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fit_task(task: Task) -> dict[str, np.ndarray]:
    return fit_network(*task)


def fit_network(spec: Spec, problem: Problem, seed: int, repeat: int, device: str) -> dict[str, np.ndarray]:
    """The weights of one repeat of one network; the same for the same arguments, whatever else runs."""
    with reproducible(seed, spec.stage, spec.model, repeat) as generator:
        module = make_network(spec, problem).to(device)
        cell_type, compound = (torch.as_tensor(codes, device=device) for codes in (problem.cell_type, problem.compound))
        target = torch.as_tensor(problem.coordinates[:, : n_out(spec, problem)], device=device)

        def error(rows: Tensor) -> Tensor:
            return LOSSES[spec.loss](module(cell_type[rows], compound[rows], target[rows]), target[rows])

        if isinstance(module, Autoencoder):
            _fit_autoencoder(module, spec, (cell_type, compound), target, generator)
        else:
            _optimise(module.parameters(), error, spec, len(target), spec.epochs, generator)
        return module_arrays(module, "net")


def apply_network(
    spec: Spec, problem: Problem, arrays: dict[str, np.ndarray], cell_type: np.ndarray, compound: np.ndarray
) -> np.ndarray:
    """Coordinates (rows x n_dim) of labels by their codes, -1 where unknown."""
    with reproducible(0, "predict"), torch.no_grad():
        module = load_module(make_network(spec, problem), under(arrays, "net"))
        return module(torch.as_tensor(cell_type), torch.as_tensor(compound)).numpy()


def batches(n_rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of one epoch in random order; a last batch of one, which batch norm cannot use, joins the one before."""
    order = torch.randperm(n_rows, generator=generator)
    cuts = list(range(size, n_rows, size))
    if cuts and n_rows - cuts[-1] == 1:
        cuts.pop()
    yield from torch.tensor_split(order, cuts)


def _mean_row_rmse(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target).square().mean(dim=1) + 1e-12).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mae": F.l1_loss,
    "mrrmse": _mean_row_rmse,
    "huber": F.huber_loss,
    "mse": F.mse_loss,
}


def _optimise(
    parameters: Iterable[nn.Parameter],
    error: Callable[[Tensor], Tensor],
    spec: Spec,
    n_rows: int,
    epochs: int,
    generator: torch.Generator,
) -> None:
    # eps of the published framework
    optimiser = torch.optim.Adam(parameters, lr=spec.learning_rate, eps=1e-7, fused=True)
    for _ in range(epochs):
        for rows in batches(n_rows, spec.batch, generator):
            optimiser.zero_grad()
            error(rows).backward()
            optimiser.step()


def _fit_autoencoder(
    module: Autoencoder, spec: Spec, labels: tuple[Tensor, Tensor], target: Tensor, generator: torch.Generator
) -> None:
    """First responses to themselves, then labels to the codes of the responses; the codes stay as they are."""
    scaled = target / module.get_buffer("level")
    _optimise(
        [*module.encode.parameters(), *module.decode.parameters()],
        lambda rows: F.mse_loss(module.decode(module.encode(scaled[rows])), scaled[rows]),
        spec,
        len(target),
        spec.epochs,
        generator,
    )
    with torch.no_grad():
        codes = module.encode.eval()(scaled)

    def error(rows: Tensor) -> Tensor:
        cell_type, compound = (codes[rows] for codes in labels)
        return F.mse_loss(
            module.latent(torch.cat([module.cell_type(cell_type), module.compound(compound)], dim=1)), codes[rows]
        )

    parameters = [*module.cell_type.parameters(), *module.compound.parameters(), *module.latent.parameters()]
    _optimise(parameters, error, spec, len(target), round(spec.epochs * LATENT_SHARE), generator)
