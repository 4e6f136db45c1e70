"""The adversarial model: a generator from source to target coordinates, judged by a critic that sees PAIRS.

In: coordinates of training cells. Out: the generators' weights as arrays (the critic is not kept), and predicted
coordinates. The source document's design (WGAN-GP or hinge, five critic steps, Adam with betas 0 and 0.99, a learning
rate that falls to 0) with what it lacked: pairs, a paired loss, a penalty of the right shape (Gulrajani et al. 2017).
Next: `models`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from challenges.common import gradient_penalty, load_module, module_arrays, reproducible, under
from challenges.modality.maps import Arrays, apply_ridge, fit_ridge

LOSSES = ("wgan-gp", "hinge")
PENALTY = 10.0  # lambda of the gradient penalty


@dataclass(frozen=True)
class Recipe:
    """How to train. With `paired_weight` 0 only the critic ties the output to the cell.

    With `pairs` False as well, the critic sees the target alone and nothing does: the source document's own design.
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


def fit_adversarial(Z: np.ndarray, T: np.ndarray, recipe: Recipe, seed: int, device: str = "cpu") -> Arrays:
    """Train `repeats` generators, which are averaged, on coordinates of cells (rows)."""
    base = fit_ridge(Z, T, recipe.ridge, seed)
    if not recipe.paired_weight:
        base["slope"] = np.zeros_like(base["slope"])
    left = T - apply_ridge(base, Z)
    arrays = {f"base/{name}": array for name, array in base.items()}
    # The first component of an uncentred SVD is the mean cell: its size says nothing of the differences between cells.
    arrays |= {
        "scale": np.array(max(Z[:, 1:].std() if Z.shape[1] > 1 else Z.std(), 1e-9)),
        "level": np.array(max(left.std(), 1e-9)),
    }
    source, start = _inputs(arrays, Z, recipe)
    target = torch.as_tensor((T - base["centre"]) / arrays["level"], dtype=torch.float32)
    for repeat in range(recipe.repeats):
        with reproducible(seed, "adversarial", repeat):
            generator = _fit_one(source.to(device), start.to(device), target.to(device), recipe)
            arrays |= module_arrays(generator, str(repeat))
    return arrays


def apply_adversarial(arrays: Arrays, Z: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Predicted coordinates, cells x components of the target."""
    source, start = _inputs(arrays, Z, recipe)
    total = np.zeros(tuple(start.shape))
    for repeat in range(recipe.repeats):
        with reproducible(0, "predict"), torch.no_grad():
            generator = load_module(Generator(source.shape[1], start.shape[1], recipe), under(arrays, str(repeat)))
            total += generator(source, start).numpy() / recipe.repeats
    return arrays["base/centre"] + arrays["level"] * total


def _inputs(arrays: Arrays, Z: np.ndarray, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """What the generator sees of the source, and the ridge regression it starts from, in units of what ridge leaves."""
    base = under(arrays, "base")
    source = ((Z - base["mean"]) / arrays["scale"])[:, : recipe.components]
    start = (apply_ridge(base, Z) - base["centre"]) / arrays["level"]
    return torch.as_tensor(source, dtype=torch.float32), torch.as_tensor(start, dtype=torch.float32)


def _fit_one(source: Tensor, start: Tensor, target: Tensor, recipe: Recipe) -> Generator:
    n_source, n_target = source.shape[1], target.shape[1]
    generator = Generator(n_source, n_target, recipe).to(source.device)
    critic = Critic(n_source, n_target, recipe.width).to(source.device)
    steps = {generator: recipe.generator_steps, critic: recipe.generator_steps * recipe.critic_steps}
    optimisers = [torch.optim.Adam(module.parameters(), recipe.learning_rate, betas=(0.0, 0.99)) for module in steps]
    schedules = [
        torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, n)
        for optimiser, n in zip(optimisers, steps.values(), strict=True)
    ]

    def step(i: int, loss: Tensor) -> None:
        optimisers[i].zero_grad()
        loss.backward()
        optimisers[i].step()
        schedules[i].step()

    seen = source if recipe.pairs else torch.zeros_like(source)
    for _ in range(recipe.generator_steps):
        for _ in range(recipe.critic_steps if recipe.adversarial_weight else 0):
            rows = _batch(source, recipe)
            fake = generator(source[rows], start[rows]).detach()
            step(1, _critic_loss(critic, seen[rows], target[rows], fake, recipe.loss))
        rows = _batch(source, recipe)
        made = generator(source[rows], start[rows])
        loss = recipe.paired_weight * (made - target[rows]).square().sum(dim=1).mean()
        if recipe.adversarial_weight:
            loss = loss - recipe.adversarial_weight * critic(seen[rows], made).mean()
        step(0, loss)
    return generator


def _critic_loss(critic: Critic, source: Tensor, real: Tensor, fake: Tensor, loss: str) -> Tensor:
    if loss == "hinge":
        return (1 - critic(source, real)).relu().mean() + (1 + critic(source, fake)).relu().mean()
    worse = critic(source, fake).mean() - critic(source, real).mean()
    return worse + PENALTY * gradient_penalty(lambda between: critic(source, between), real, fake)


def _batch(source: Tensor, recipe: Recipe) -> Tensor:
    """Rows drawn at random, always a whole batch: no last batch of one."""
    return torch.randint(len(source), (min(recipe.batch, len(source)),))
