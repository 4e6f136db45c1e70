"""Calibration: a generator at its start is moved until its moments are those of the training cells.

In: a `ConditionalGenerator` at its start, its library sizes, and the training cells. Out: nothing; its rates and gates
have been moved. All moments are tensors of 2 x types x genes: the share of cells above 0, and the mean of all cells.
Next: `training`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from challenges.synthesis.data import Cells, level_matrix, level_names, one_hot
from challenges.synthesis.networks import ConditionalGenerator
from challenges.synthesis.start import Library

ROUNDS = 5, 6  # of calibration: all types together, each apart
MOST_DRAWN, DRAWN_VALUES = 512, 20_000_000  # cells of each type per round: fewer, at least 64, if values are many
CALIBRATION_PRIOR = 20.0  # cells that a type's own zero rates and means are shrunk by
STRIDE = 0.7  # of the way, per round


@torch.no_grad()
def calibrate(generator: ConditionalGenerator, library: Library, cells: Cells) -> None:
    """Move rates and gates until means and zero rates are those of the training cells, of all types, then of each.

    A type of few cells is moved part of the way from what all have in common. The gates hardly move for molecule
    counts, whose zeros are a Poisson count's; they take up the excess zeros of others (reads, values without counts).
    """
    device = generator.lift.device
    n_cells = [int((cells.labels == name).sum()) for name in cells.types]
    share = torch.tensor([n / len(cells) for n in n_cells], device=device)
    own = torch.tensor([n / (n + CALIBRATION_PRIOR) for n in n_cells], device=device)[:, None]
    real, drawing = real_moments(cells, device), _Drawing(generator, library, cells)
    together, apart = ROUNDS
    pooled = _over_types(real, share)
    for _ in range(together):
        _add(generator, moves(generator, pooled, _over_types(drawing.moments(), share), torch.ones(1, device=device)))
    wanted = torch.lerp(drawing.moments(), real, own)
    for _ in range(apart):
        _add(generator, moves(generator, wanted, drawing.moments(), share))


def moves(generator: ConditionalGenerator, wanted: Tensor, now: Tensor, share: Tensor) -> dict[str, Tensor]:
    """What brings the moments `now` to those `wanted` (2 x types x genes): by parameter, what to add to it.

    `share` (types) is each type's share of the cells. A gate is set by its log rate, so a rate that moves takes its
    gate along; what the gate is to keep is taken off again. Nothing moves by more than 1 at a time.
    """
    gates = _gate(wanted[0]) - _gate(now[0])
    if generator.values is not None:
        deviations = (_behind(wanted) - _behind(now)) / generator.values.spread()
        return {"values.shift": deviations.clamp(-1, 1), "offset": gates}
    ratios = (_above(wanted[1]) / _above(now[1])).log().clamp(-1, 1)
    common = share @ (wanted[1].sum(dim=1) / now[1].sum(dim=1)).log()  # the softmax would take it back
    return {"lift": common, "baseline": ratios - common, "offset": gates - ratios}


def real_moments(cells: Cells, device: torch.device) -> Tensor:
    """The moments of the training cells, 2 x types x genes, float32."""
    parts = []
    for name in cells.types:
        counts = cells.counts[cells.labels == name]
        shown, mean = counts.getnnz(axis=0) / counts.shape[0], np.asarray(counts.mean(axis=0)).ravel()
        parts.append(torch.stack(float_tensors(device, shown, mean)))
    return torch.stack(parts, dim=1)


class _Drawing:
    """Draws cells like the training cells, and takes their moments."""

    def __init__(self, generator: ConditionalGenerator, library: Library, cells: Cells) -> None:
        self.generator, self.library, self.cells = generator, library, cells
        self.levels = level_matrix(cells.obs, level_names(cells))
        self.rows_of = [np.flatnonzero(cells.labels == name) for name in cells.types]
        self.n_drawn = int(np.clip(DRAWN_VALUES // (len(self.rows_of) * len(cells.genes)), 64, MOST_DRAWN))
        self.random = np.random.default_rng(0)

    def moments(self) -> Tensor:
        """2 (share of open gates, mean) x types x genes, of `n_drawn` new cells of each type."""
        device, parts = self.generator.lift.device, []
        for rows in self.rows_of:
            chosen = rows[self.random.integers(len(rows), size=self.n_drawn)]
            weights, levels = one_hot(self.cells.labels[chosen], self.cells.types), self.levels[chosen]
            sizes = self.library.draw(weights, levels, self.random)
            noise = torch.randn(self.n_drawn, self.generator.n_noise).to(device)
            _, open_share, behind = self.generator.expected(noise, *float_tensors(device, weights, levels, sizes))
            parts.append(torch.stack([open_share.mean(dim=0), (open_share * behind).mean(dim=0)]))
        return torch.stack(parts, dim=1)


def float_tensors(device: torch.device, *parts: np.ndarray) -> list[Tensor]:
    """Arrays as float32 tensors on the device."""
    return [torch.as_tensor(np.asarray(part), dtype=torch.float32, device=device) for part in parts]


def _add(generator: ConditionalGenerator, found: dict[str, Tensor]) -> None:
    """Add a share of each move to its parameter."""
    for name, move in found.items():
        generator.get_parameter(name).add_(STRIDE * move)


def _over_types(moments: Tensor, share: Tensor) -> Tensor:
    """The moments of all cells together, 2 x 1 x genes."""
    return torch.einsum("t,ktg->kg", share, moments)[:, None]


def _behind(moments: Tensor) -> Tensor:
    """The mean of the values above 0, types x genes."""
    return moments[1] / _above(moments[0])


def _above(means: Tensor) -> Tensor:
    return means.clamp_min(1e-6)


def _gate(open_share: Tensor) -> Tensor:
    """Where the gate's log rate must be for this probability."""
    return torch.log(-torch.log1p(-open_share.clamp(1e-4, 1 - 1e-4)))
