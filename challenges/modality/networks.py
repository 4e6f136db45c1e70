"""The adversarial networks: a generator from source to target coordinates, and a critic that sees PAIRS.

In: a `Recipe`, and coordinates of cells. Out: torch modules. The source document's design (WGAN-GP or hinge,
five critic steps, Adam with betas 0 and 0.99, a learning rate that falls to 0) with what it lacked: pairs, a paired
loss, and a penalty of the right shape (Gulrajani et al. 2017).
Next: `training`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOSSES = ("wgan-gp", "hinge")


@dataclass(frozen=True)
class Recipe:
    """How to train. With `paired_weight` 0 only the critic ties the output to the cell.

    With `pairs` False as well, the critic sees the target alone, and nothing ties it: the source document's own design.
    """

    paired_weight: float = 1.0
    adversarial_weight: float = 0.1
    pairs: bool = True
    loss: str = LOSSES[0]
    critic_steps: int = 5
    generator_steps: int = 300
    batch: int = 64
    components: int = 50  # of the source, that the generator sees
    width: int = 128
    learning_rate: float = 1e-3
    dropout: float = 0.3
    ridge: float = 1.0  # of the ridge regression that the generator starts from, in mean variances
    repeats: int = 3


class Generator(nn.Module):
    """A perceptron that learns what ridge regression leaves; without a paired loss it learns everything."""

    def __init__(self, n_source: int, n_target: int, recipe: Recipe) -> None:
        super().__init__()
        last = nn.Linear(recipe.width, n_target)
        if recipe.paired_weight:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(n_source, recipe.width),
            nn.GELU(),
            nn.Dropout(recipe.dropout),
            nn.Linear(recipe.width, recipe.width),
            nn.GELU(),
            nn.Dropout(recipe.dropout),
            last,
        )

    def forward(self, source: Tensor, start: Tensor) -> Tensor:
        """Cells x source components and where to start, cells x target components, to cells x target components."""
        return start + self.layers(source)


class Critic(nn.Module):
    """How much a pair of coordinates looks like a cell: (cells x source, cells x target) to cells."""

    def __init__(self, n_source: int, n_target: int, width: int) -> None:
        super().__init__()
        widths = n_source + n_target, width, width
        self.layers = nn.Sequential(
            nn.Linear(*widths[:2]), nn.GELU(), nn.Linear(*widths[1:]), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The score of each pair."""
        return self.layers(torch.cat([source, target], dim=1)).squeeze(1)
