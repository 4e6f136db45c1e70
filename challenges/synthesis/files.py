"""Synthetic cells as files.

In: `Cells` from `CellGAN.sample`. Out: an `.h5ad` with X on the training file's scale, `layers["counts"]` where counts
are known, the label and the conditions in `obs`, the label weights in `obsm`, and in `uns["synthesis"]` which model
made them. Models are bundles: `save_model`, `load_model`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from challenges.common import Bundle
from challenges.synthesis.data import Cells
from challenges.synthesis.gan import KIND, CellGAN
from helpers import replacing

UNS = "synthesis"


def to_anndata(
    cells: Cells, label: str, weights: np.ndarray | None = None, about: dict[str, Any] | None = None
) -> ad.AnnData:
    """The cells as AnnData; `weights` (cells x types, as in `about["types"]`) and `about` go into `obsm` and `uns`."""
    obs = cells.obs.rename(columns={"label": label}).astype("category").rename_axis(index=None)
    made = ad.AnnData(sp.csr_matrix(cells.values()), obs=obs, var=pd.DataFrame(index=cells.genes))
    if cells.scale.kind != "values":
        made.layers["counts"] = cells.counts.copy()
    if weights is not None:
        made.obsm["label_weights"] = weights
    made.uns[UNS] = about or {}
    return made


def write_cells(path: str | os.PathLike[str], cells: ad.AnnData) -> None:
    """Write beside and rename; raises DataError when the disk is full or read-only."""
    with replacing(Path(path)) as temporary:
        cells.write_h5ad(temporary, compression="gzip")


def save_model(path: str | os.PathLike[str], model: CellGAN, **about: Any) -> None:
    """One HDF5 file without pickle; `about` (label, data, held_out, ...) is read back by `load_model`."""
    model.bundle(about=about).save(path)


def load_model(path: str | os.PathLike[str], device: str = "auto") -> tuple[CellGAN, dict[str, Any]]:
    """The model and what `save_model` was told. Raises DataError for a missing, broken or foreign file."""
    bundle = Bundle.load(path, KIND)
    return CellGAN.from_bundle(bundle, device), bundle.settings["about"]
