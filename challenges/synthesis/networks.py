"""The three networks: conditional generator, class discriminator, adversarial discriminator.

In: noise, label weights (cells x types, rows sum to 1; a mixture is any such row), levels of the conditions (cells x
levels, 0 or 1) and library sizes (cells). Out: cells with exact zeros and a gradient, logits of the type, and the
critic's score. Next: `calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from challenges.synthesis.start import Start

HIDDEN = 128
EXTRA_NOISE = 16  # dimensions beside the loadings', for what the start did not see
LEAST, MOST = -15.0, 20.0  # log rates


@dataclass(frozen=True)
class Drawn:
    """A batch from the generator, both cells x genes: values, and the probability that one is above 0."""

    cells: torch.Tensor
    open_share: torch.Tensor


class ConditionalGenerator(nn.Module):
    """Library size x share of each gene, then a hurdle: a gate that opens, and the value behind it.

    Noise is modulated by its type, z' = mean + noise * deviation (types x noise dimensions), and moves the log rates by
    linear loadings and a small network. The gate opens with probability 1 - exp(-rate * exp(offset)), with an offset by
    type and gene: at 0, the zeros of a Poisson count. Behind it, a count >= 1 (zero-truncated Poisson), or where the
    data hold no counts a value of the gene's own distribution. Forward draws whole counts and exact zeros; backward
    passes straight through to the probability of the gate and the mean behind it (Bengio et al. 2013).
    """

    def __init__(self, start: Start) -> None:
        super().__init__()
        (n_types, n_genes), known = start.log_rates.shape, len(start.loadings)
        self.n_noise = known + EXTRA_NOISE
        self.values = None if start.quantiles is None else PositiveValues(start.quantiles, n_types)
        self.baseline = _parameter(start.log_rates)
        self.levels = _parameter(start.level_rates)
        self.loadings = nn.Parameter(torch.zeros(self.n_noise, n_genes))
        self.mean = nn.Parameter(torch.zeros(n_types, self.n_noise))
        self.deviation = nn.Parameter(torch.ones(n_types, self.n_noise))
        self.own_sd = _parameter(start.own_sd)
        self.offset = nn.Parameter(torch.zeros(n_types, n_genes))
        self.lift = nn.Parameter(torch.zeros(1))
        self.residual = nn.Sequential(
            nn.Linear(self.n_noise + n_types, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_genes)
        )
        with torch.no_grad():
            self.loadings[:known] = torch.as_tensor(start.loadings)
            self.deviation[:, :known] = torch.as_tensor(start.deviations)
            for parameter in self.residual[3].parameters():
                parameter.zero_()

    def log_rates(
        self, moved: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor, library: torch.Tensor
    ) -> torch.Tensor:
        """Log expected counts (cells x genes); they sum to `library` * exp(lift): own variation moves no total."""
        at = weights @ self.baseline + levels @ self.levels + moved - self.own_sd**2 / 2
        return torch.log_softmax(at, dim=1) + self.lift + library.log()[:, None]

    def moved(self, noise: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What noise and own variation add to the log rates (cells x genes) of their type."""
        modulated = weights @ self.mean + noise * (weights @ self.deviation)
        own = self.own_sd * torch.randn(len(noise), self.baseline.shape[1], device=noise.device)
        return modulated @ self.loadings + self.residual(torch.cat([modulated, weights], dim=1)) + own

    def expected(
        self, noise: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor, library: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log rates, the gates' probabilities, and the mean of the value behind each gate (cells x genes)."""
        moved = self.moved(noise, weights)
        log_rate = self.log_rates(moved, weights, levels, library).clamp(LEAST, MOST)
        open_share = -torch.expm1(-(log_rate + weights @ self.offset).clamp(LEAST, MOST).exp())
        if self.values is None:
            rate = log_rate.exp()
            return log_rate, open_share, rate / -torch.expm1(-rate)  # the mean of counts >= 1
        variance = (weights @ self.deviation) ** 2 @ self.loadings**2 + self.own_sd**2
        return log_rate, open_share, self.values(weights, moved / variance.detach().sqrt())

    def forward(self, noise: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor, library: torch.Tensor) -> Drawn:
        """Draw cells; `noise` is cells x n_noise, standard normal."""
        log_rate, open_share, behind = self.expected(noise, weights, levels, library)
        gate = open_share + (torch.bernoulli(open_share.detach()) - open_share).detach()
        if self.values is None:
            behind = behind + (_truncated_poisson(log_rate.detach().exp()) - behind).detach()
        return Drawn(gate * behind, open_share)

    @torch.no_grad()
    def draw(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Cells x genes alone, whole counts where the data hold counts."""
        cells = self(*inputs).cells
        return cells.round() if self.values is None else cells


class PositiveValues(nn.Module):
    """Values above 0 where there are no counts: quantiles of each gene, ranked by what moves the gene's rate.

    `shift` (types x genes) is what a type adds to the rank, in standard deviations of a normal variable.
    """

    def __init__(self, quantiles: np.ndarray, n_types: int) -> None:
        super().__init__()
        self.register_buffer("quantiles", torch.as_tensor(quantiles, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(n_types, len(quantiles)))

    def spread(self) -> torch.Tensor:
        """The standard deviation of each gene's values above 0."""
        return self.get_buffer("quantiles").std(dim=1).clamp_min(1e-6)

    def forward(self, weights: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Values (cells x genes) for label weights and for ranks as standard normal numbers, `moved`."""
        quantiles = self.get_buffer("quantiles")
        n = quantiles.shape[1]
        place = (torch.special.ndtr(moved + weights @ self.shift) * n - 0.5).clamp(0, n - 1)
        below = place.detach().floor().clamp_max(n - 2).long()
        low, high = (quantiles.T.gather(0, at) for at in (below, below + 1))
        return torch.lerp(low, high, place - below)


def _parameter(values: object) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float32).clone())


def _truncated_poisson(rate: torch.Tensor) -> torch.Tensor:
    """Poisson counts given that they are not 0: a first arrival within the interval, and those after it."""
    first = -torch.log1p(torch.rand_like(rate) * torch.expm1(-rate))
    return 1 + torch.poisson((rate - first).clamp_min(0.0))


class ClassDiscriminator(nn.Module):
    """Logits of the type (cells x types), for a cross-entropy: no softmax here, no batch norm anywhere."""

    def __init__(self, n_genes: int, n_types: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_genes, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, n_types)
        )

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Take scaled cells x genes."""
        return self.layers(cells)


class AdversarialDiscriminator(nn.Module):
    """Wasserstein critic: one score per cell, conditioned by projection (Miyato and Koyama 2018).

    No batch norm: the gradient penalty is of single cells, and a batch of one works.
    """

    def __init__(self, n_genes: int, n_conditions: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(n_genes, 2 * HIDDEN), nn.LeakyReLU(0.2), nn.Linear(2 * HIDDEN, HIDDEN), nn.LeakyReLU(0.2)
        )
        self.score = nn.Linear(HIDDEN, 1)
        self.conditions = nn.Parameter(0.02 * torch.randn(n_conditions, HIDDEN))

    def forward(self, cells: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Take scaled cells x genes and cells x (types + levels)."""
        features = self.trunk(cells)
        return self.score(features).squeeze(1) + (features * (conditions @ self.conditions)).sum(dim=1)


def soft_cross_entropy(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (cells) against label weights; for one-hot weights the usual one."""
    return -(weights * functional.log_softmax(logits, dim=1)).sum(dim=1)
