"""Training: a Wasserstein GAN with gradient penalty and checkpoints.

In: a calibrated `ConditionalGenerator`, and the training cells. Out: the average of its weights over the steps. Every
draw comes from torch's own stream, whose state is in the checkpoint beside weights and optimisers. Next: `models`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from challenges.common import Bundle, gradient_penalty, load_module, module_arrays
from challenges.synthesis.calibrate import float_tensors
from challenges.synthesis.data import Cells, level_matrix, level_names, one_hot
from challenges.synthesis.networks import (
    AdversarialDiscriminator,
    ClassDiscriminator,
    ConditionalGenerator,
    Drawn,
    soft_cross_entropy,
)
from challenges.synthesis.start import Library
from helpers import DataError
from workbench.commands import one_line

KIND = "synthesis/checkpoint"
BATCH = 64  # cells, drawn with replacement: there is no last, smaller batch
CRITIC_STEPS = 3
RATES = {"generator": 5e-5, "critic": 4e-4, "classes": 1e-3}  # of Adam
BETAS = (0.5, 0.9)
PENALTY = 10.0  # of the gradient, as published
CLASS_WEIGHT = 0.2
MOMENT_WEIGHT = 5.0  # of the squared errors of a batch's means and zero rates, summed over genes
AVERAGING = 0.995
CHECKPOINT_EVERY = 200
BEGIN_ANEW = "remove it to begin anew"


class Training:
    """Networks, optimisers and the average, from one step to the next."""

    def __init__(
        self, generator: ConditionalGenerator, library: Library, cells: Cells, label_mixing: float, device: torch.device
    ) -> None:
        self.cells, self.library, self.label_mixing, self.device = cells, library, label_mixing, device
        self.weights, self.levels = one_hot(cells.labels, cells.types), level_matrix(cells.obs, level_names(cells))
        n_genes, n_types = cells.counts.shape[1], self.weights.shape[1]
        self.generator, self.average = generator, copy.deepcopy(generator)
        self.critic = AdversarialDiscriminator(n_genes, n_types + self.levels.shape[1]).to(device)
        self.classes = ClassDiscriminator(n_genes, n_types).to(device)
        self.networks = {"generator": self.generator, "critic": self.critic, "classes": self.classes}
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), RATES[name], BETAS) for name, network in self.networks.items()
        }
        logs = cells.counts.log1p()
        variance = np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - np.asarray(logs.mean(axis=0)).ravel() ** 2
        share = self.weights.sum(axis=0)[:, None]
        self.scale, self.zero_rates, self.means = float_tensors(  # genes, then twice types x genes
            device,
            np.sqrt(np.maximum(variance, 1e-2)),
            1 - self.weights.T @ (cells.counts > 0) / share,
            self.weights.T @ logs / share,
        )

    def run(self, steps: int, path: Path | None, of: str) -> None:
        """Train up to `steps`; `path` is the checkpoint, `of` says what it belongs to."""
        done = self._resume(path, of) if path and path.exists() else 0
        if done > steps:
            raise DataError(f"{path}: a checkpoint of step {done:,}, beyond --steps {steps:,}; {BEGIN_ANEW}")
        for step in tqdm(range(done, steps), desc="Training", initial=done, total=steps):
            self.step()
            if path and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps):
                self._save(path, step + 1, of)

    # -----------------------------------------------------------------------------------------------------------------
    # One step
    # -----------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Several steps of both discriminators, then one of the generator."""
        for _ in range(CRITIC_STEPS):
            self._critic_step()
        self._generator_step()

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Real cells (scaled), label weights, levels, and library sizes for as many synthetic ones."""
        rows = torch.randint(len(self.cells), (BATCH,)).numpy()
        weights, levels = self.weights[rows], self.levels[rows]
        sizes = self.library.draw(weights, levels, np.random.default_rng(int(torch.randint(2**62, (1,)))))
        real, label, level, library = float_tensors(
            self.device, self.cells.counts[rows].toarray(), weights, levels, sizes
        )
        return self._scaled(real), label, level, library

    def _scaled(self, cells: torch.Tensor) -> torch.Tensor:
        return torch.log1p(cells) / self.scale

    def _generate(self, weights: torch.Tensor, levels: torch.Tensor, library: torch.Tensor) -> Drawn:
        return self.generator(
            torch.randn(len(weights), self.generator.n_noise).to(self.device), weights, levels, library
        )

    def _critic_step(self) -> None:
        real, weights, levels, library = self._batch()
        with torch.no_grad():
            fake = self._scaled(self._generate(weights, levels, library).cells)
        conditions = torch.cat([weights, levels], dim=1)
        loss = self.critic(fake, conditions).mean() - self.critic(real, conditions).mean()
        self._update(
            "critic", loss + PENALTY * gradient_penalty(lambda cells: self.critic(cells, conditions), real, fake)
        )
        cells, weights = self._mixed_up(real, weights)
        self._update("classes", soft_cross_entropy(self.classes(cells), weights).mean())

    def _generator_step(self) -> None:
        real, weights, levels, library = self._batch()
        drawn = self._generate(weights, levels, library)
        fake = self._scaled(drawn.cells)
        loss = -self.critic(fake, torch.cat([weights, levels], dim=1)).mean()
        loss = (
            loss + MOMENT_WEIGHT * self._moments(drawn, weights) + CLASS_WEIGHT * self._recognition(fake, real, weights)
        )
        if self.label_mixing:
            cells, mixed = self._mixed_up(real, weights)
            fake = self._scaled(self._generate(mixed, levels, library).cells)
            loss = loss + CLASS_WEIGHT * self._recognition(fake, cells, mixed)
        self._update("generator", loss)
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                kept.lerp_(now, 1 - AVERAGING)

    def _moments(self, drawn: Drawn, weights: torch.Tensor) -> torch.Tensor:
        """Squared distances of the batch's zero rates and means from those of its labels, summed over genes."""
        zeros = (1 - drawn.open_share).mean(dim=0) - (weights @ self.zero_rates).mean(dim=0)
        means = torch.log1p(drawn.cells).mean(dim=0) - (weights @ self.means).mean(dim=0)
        return (zeros**2).sum() + 0.1 * (means**2).sum()

    def _recognition(self, fake: torch.Tensor, real: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """How much worse synthetic cells are recognised than real ones: types need be no clearer than they are."""
        with torch.no_grad():
            usual = soft_cross_entropy(self.classes(real), weights).mean()
        return functional.relu(soft_cross_entropy(self.classes(fake), weights).mean() - usual)

    def _mixed_up(self, cells: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`label_mixing` of the batch mixed with other cells, values and labels alike (mixup, Zhang et al. 2018)."""
        if not self.label_mixing:
            return cells, weights
        share = torch.rand(len(cells), 1) * (torch.rand(len(cells), 1) < self.label_mixing)
        order, share = torch.randperm(len(cells)).to(self.device), share.to(self.device)
        return torch.lerp(cells, cells[order], share), torch.lerp(weights, weights[order], share)

    def _update(self, name: str, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise DataError(f"training went astray: the loss of the {name} is {loss.item()}; are the values plausible?")
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        parameters = list(self.networks[name].parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            parameter.grad = slope
        optimiser.step()

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints
    # -----------------------------------------------------------------------------------------------------------------

    def _save(self, path: Path, step: int, of: str) -> None:
        arrays = {"random": torch.get_rng_state().numpy(), **module_arrays(self.average, "average")}
        if self.device.type == "cuda":
            arrays["random_cuda"] = torch.cuda.get_rng_state(self.device).numpy()
        for name, network in self.networks.items():
            arrays |= module_arrays(network, f"network/{name}")
            for i, state in self.optimisers[name].state_dict()["state"].items():
                arrays |= {f"optimiser/{name}/{i}/{key}": value.cpu().numpy() for key, value in state.items()}
        Bundle(KIND, {"step": step, "of": of}, arrays).save(path)

    def _resume(self, path: Path, of: str) -> int:
        bundle = Bundle.load(path, KIND, again=BEGIN_ANEW)
        if bundle.settings.get("of") != of:
            raise DataError(f"{path}: a checkpoint of other cells, settings or another seed; {BEGIN_ANEW}")
        try:
            step = self._take(bundle)
        except Exception as error:
            raise DataError(f"{path}: a damaged checkpoint ({one_line(error)}); {BEGIN_ANEW}") from error
        print(f"Resumed at step {step:,} from {path}")
        return step

    def _take(self, bundle: Bundle) -> int:
        load_module(self.average, bundle.under("average"))
        for name, network in self.networks.items():
            load_module(network, bundle.under(f"network/{name}")).train()
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in bundle.under(f"optimiser/{name}").items():
                i, part = key.split("/")
                state.setdefault(int(i), {})[part] = torch.as_tensor(np.asarray(value))
            for number, parameter in enumerate(network.parameters()):
                if any(value.ndim and value.shape != parameter.shape for value in state.get(number, {}).values()):
                    raise DataError(f"the optimiser of {name} does not fit its network")
            groups = self.optimisers[name].state_dict()["param_groups"]
            self.optimisers[name].load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(torch.as_tensor(bundle.arrays["random"]))
        if "random_cuda" in bundle.arrays:
            torch.cuda.set_rng_state(torch.as_tensor(bundle.arrays["random_cuda"]), self.device)
        return int(bundle.settings["step"])
