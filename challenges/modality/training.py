"""Training of the adversarial model: what ridge regression leaves, learned by generators against critics.

In: coordinates of training cells and a `Recipe`. Out: the generators' weights as arrays (critics are not kept), and
from these arrays predicted coordinates. Next: `models`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from challenges.common import gradient_penalty, load_module, module_arrays, reproducible, under
from challenges.modality.maps import Arrays, apply_ridge, fit_ridge
from challenges.modality.networks import Critic, Generator, Recipe

PENALTY = 10.0  # lambda of the gradient penalty


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
