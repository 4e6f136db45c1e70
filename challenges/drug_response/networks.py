"""The networks: from the labels of a row to the coordinates of its response.

In: a row of `networks.tsv` (the published hyper-parameters) and a `Problem`: codes of the labels, and the responses as
coordinates in a truncated SVD. Out: torch modules. Three kinds: `dense` (3rd place of OP2: learned embeddings, then
blocks of dense layer, batch norm, ReLU and dropout, in this order in every model), `transformer` and `autoencoder` (a
student team's entry as it was meant: no target in the input, attention over a sequence that describes ONE row,
statistics without the row itself).
Next: `training`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

TABLE = Path(__file__).with_name("networks.tsv")
NO_PSEUDO = "_no_pseudo"  # ends the name of a stage that is trained without pseudo-labels
HEADS = 8  # of the transformer, as published


@dataclass(frozen=True)
class Spec:
    """A row of `networks.tsv`. `weight` is the model's share in its stage (they need not add up to 1)."""

    stage: str
    model: str
    kind: str
    weight: float
    embedding: int
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    n_dim: int
    batch: int
    learning_rate: float
    epochs: int
    loss: str


def specs_of(name: str) -> list[Spec]:
    """The networks of a model: `simple`, `stage_1`, `stage_2`, `transformer` or `autoencoder`; none of `kernel`.

    `stage_2_no_pseudo` has those of `stage_2`.
    """
    table = pd.read_csv(TABLE, sep="\t", dtype={"model": str, "hidden": str, "dropout": str})
    rows = table[table["stage"] == name.removesuffix(NO_PSEUDO)].drop(columns="source").to_dict("records")
    return [
        Spec(
            **{
                **row,
                "hidden": tuple(int(n) for n in row["hidden"].split(",")),
                "dropout": tuple(float(n) for n in row["dropout"].split(",")),
            }
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Problem:
    """Training rows as numbers: codes of the labels (rows,), how many labels there are, coordinates (rows x dims)."""

    cell_type: np.ndarray
    compound: np.ndarray
    n_cell_types: int
    n_compounds: int
    coordinates: np.ndarray


class LabelEmbedding(nn.Embedding):
    """An embedding in which the code -1 (a label that training did not have) is the mean of the learned ones."""

    def reset_parameters(self) -> None:
        """Start as the published models did: small, so that labels differ only by what is learned."""
        nn.init.uniform_(self.weight, -0.05, 0.05)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (n,) to vectors (n, width)."""
        known = self.weight[codes.clamp(min=0)]
        return torch.where((codes >= 0)[:, None], known, self.weight.mean(0))


class Dropout(nn.Dropout):
    """Torch's dropout, but drawn on the CPU on every device, so that a GPU trains the same networks."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape; as they are in evaluation mode."""
        if not self.training:
            return values
        kept = torch.empty(values.shape).bernoulli_(1 - self.p).div_(1 - self.p)
        return values * kept.to(values.device)


class Dense(nn.Module):
    """Embeddings of cell type and compound -> dense blocks -> `n_dim` coordinates."""

    def __init__(self, spec: Spec, problem: Problem, n_out: int) -> None:
        super().__init__()
        self.cell_type = LabelEmbedding(problem.n_cell_types, spec.embedding)
        self.compound = LabelEmbedding(problem.n_compounds, spec.embedding)
        widths = [2 * spec.embedding, *spec.hidden]
        blocks = [
            nn.Sequential(nn.Linear(n_in, n), nn.BatchNorm1d(n), nn.ReLU(), Dropout(share))
            for n_in, n, share in zip(widths, widths[1:], spec.dropout, strict=False)
        ]
        self.layers = nn.Sequential(*blocks, nn.Linear(widths[-1], n_out))

    def forward(self, cell_type: Tensor, compound: Tensor, own: Tensor | None = None) -> Tensor:
        """Codes (n,), (n,) to coordinates (n, n_dim)."""
        return self.layers(torch.cat([self.cell_type(cell_type), self.compound(compound)], dim=1))


class Transformer(nn.Module):
    """Attention over what is known of one row: its labels, its cell type's mean and its compound's mean.

    The means are of the training rows; a training row is taken out of its own (`own`), so no target is in the input.
    """

    def __init__(self, spec: Spec, problem: Problem, n_out: int) -> None:
        super().__init__()
        width = spec.embedding
        self.cell_type = LabelEmbedding(problem.n_cell_types, width)
        self.compound = LabelEmbedding(problem.n_compounds, width)
        coordinates = torch.as_tensor(problem.coordinates[:, :n_out])
        self.register_buffer("level", coordinates.square().mean().sqrt() + 1e-12)
        for name, codes, n in (
            ("cell_type", problem.cell_type, problem.n_cell_types),
            ("compound", problem.compound, problem.n_compounds),
        ):
            total = torch.zeros(n, n_out).index_add(0, torch.as_tensor(codes), coordinates)
            self.register_buffer(f"{name}_total", total)
            count = torch.zeros(n).index_add(0, torch.as_tensor(codes), torch.ones(len(codes)))
            self.register_buffer(f"{name}_count", count)
        self.from_mean = nn.ModuleList([nn.Linear(n_out, width) for _ in range(2)])
        self.nothing = nn.Parameter(torch.zeros(2, width))  # in the place of a mean of no rows
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        layer.dropout, layer.dropout1, layer.dropout2 = (Dropout(spec.dropout[0]) for _ in range(3))
        self.encoder = nn.TransformerEncoder(layer, len(spec.hidden), nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, n_out)

    def forward(self, cell_type: Tensor, compound: Tensor, own: Tensor | None = None) -> Tensor:
        """Codes (n,), (n,) and, in training, the rows' own coordinates (n, n_dim) to coordinates (n, n_dim)."""
        tokens = [self.cell_type(cell_type), self.compound(compound)]
        for i, (name, codes) in enumerate((("cell_type", cell_type), ("compound", compound))):
            total, count = getattr(self, f"{name}_total")[codes], getattr(self, f"{name}_count")[codes]
            if own is not None:
                total, count = total - own, count - 1
            known = ((count > 0) & (codes >= 0))[:, None]
            mean = total / count.clamp(min=1)[:, None] / self.level
            tokens.append(torch.where(known, self.from_mean[i](mean), self.nothing[i]))
        return self.out(self.encoder(torch.stack(tokens, dim=1)).mean(dim=1)) * self.level


class Autoencoder(nn.Module):
    """An autoencoder of responses, and a network from the labels to its code; only the latter sees a new row.

    It works on all coordinates of the SVD, which is the same as on all genes (a rotation of the training rows), so no
    gene can slip out of its column.
    """

    def __init__(self, spec: Spec, problem: Problem, n_out: int) -> None:
        super().__init__()
        coordinates = torch.as_tensor(problem.coordinates[:, :n_out])
        self.register_buffer("level", coordinates.square().mean().sqrt() + 1e-12)
        share = spec.dropout[0]
        self.encode = _chain([n_out, *spec.hidden], share)
        self.decode = _chain([*reversed(spec.hidden), n_out], share)
        self.cell_type = LabelEmbedding(problem.n_cell_types, spec.embedding)
        self.compound = LabelEmbedding(problem.n_compounds, spec.embedding)
        self.latent = _chain([2 * spec.embedding, *spec.hidden], share)

    def forward(self, cell_type: Tensor, compound: Tensor, own: Tensor | None = None) -> Tensor:
        """Codes (n,), (n,) to coordinates (n, n_dim)."""
        labels = torch.cat([self.cell_type(cell_type), self.compound(compound)], dim=1)
        return self.decode(self.latent(labels)) * self.level


KINDS = {"dense": Dense, "transformer": Transformer, "autoencoder": Autoencoder}


def make_network(spec: Spec, problem: Problem) -> nn.Module:
    """The network of a specification, with random weights from torch's own stream."""
    return KINDS[spec.kind](spec, problem, n_out(spec, problem))


def n_out(spec: Spec, problem: Problem) -> int:
    """How many coordinates the network gives: `n_dim`, or all that the training rows have."""
    return min(spec.n_dim, problem.coordinates.shape[1])


def _chain(widths: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers[:-2])
