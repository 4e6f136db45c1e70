"""Pictures for the notebook and the report, each a function that returns a matplotlib figure.

`style` (colours, labels, saving) -> `data` (the training cells) -> `scores` (the three scores, and what each looks at)
-> `cells` (UMAP, predicted effects, genes that move) -> `knowledge` (what each table adds). Every function takes
`source`, such as "demo data", and names it in the title. Pictures of a cross-validation are in
`workbench.evaluation.pictures`.
"""

from workbench.pictures.cells import genes_that_move, heatmap, mean_of, strongest_effects, umap
from workbench.pictures.data import data_overview
from workbench.pictures.knowledge import what_helps
from workbench.pictures.scores import l1, mmd, pearson, scores
from workbench.pictures.style import plain_style, save_figure, source_of

__all__ = [
    "data_overview",
    "genes_that_move",
    "heatmap",
    "l1",
    "mean_of",
    "mmd",
    "pearson",
    "plain_style",
    "save_figure",
    "scores",
    "source_of",
    "strongest_effects",
    "umap",
    "what_helps",
]
