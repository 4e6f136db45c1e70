"""How the label of a cell is read: which genes were perturbed in it, and whether the cell can be used.

In: the labels of a screen (`STAT1`, `STAT1g2`, `A_B`, `A+B`, `control`, `ENSG...`, empty). Out: the perturbation of
each, `A`, `A+B` or the control, or why cells of that label are left out. `workbench.adopt` uses it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from contract import CRUNCH
from helpers import DataError

SEVERAL, UNNAMED, NO_MATCH = "several guides called", "no perturbation named", "not matched by --guide-pattern"
TOO_FEW, NO_STATE, EMPTY = "too few cells of their perturbation", "no state", "no value above 0"
LEFT_OUT = (UNNAMED, SEVERAL, NO_MATCH, NO_STATE, EMPTY, TOO_FEW)

NO_NAME = {"", "nan", "none", "null", "na", "n/a", "<na>", "unassigned", "unknown", "negative", "no guide", "no_guide"}
MANY = {"multiple", "multiplet", "doublet", "multiple guides", "multi"}
CALLS = re.compile(r"[|;,]")  # between the guides that were called in one cell
SYMBOLS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "feature_name", "gene_short_name")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")


@dataclass(frozen=True)
class Naming:
    """Reads labels. `genes` are the measured genes, `symbols` the names of genes by identifier, `labels` all labels."""

    control: str
    genes: frozenset[str]
    symbols: dict[str, str]
    pattern: re.Pattern[str] | None
    labels: frozenset[str]

    def read(self, label: str) -> tuple[str, str]:
        """The perturbation that a label names, and why its cells are left out; one of the two is empty.

        Guides of one gene are that gene, and a control guide beside a gene says nothing: `A_control` is `A`. Guides
        of several genes between `|`, `;` or `,` were called by chance, and such cells are left out; `A+B`, and `A_B`
        where both are genes, are meant: `A+B`, in alphabetical order. A gene is what is measured, or a label itself.
        """
        if label == self.control:
            return CRUNCH.control, ""
        if label not in self.genes:
            if label.strip().lower() in NO_NAME:
                return "", UNNAMED
            if label.strip().lower() in MANY:
                return "", SEVERAL
        found = [self._called(call.strip()) for call in CALLS.split(label)]
        if any(name is None for name in found):
            return "", NO_MATCH
        perturbed = sorted({name for name in found if name and name != CRUNCH.control})
        if len(perturbed) > 1:
            return "", SEVERAL
        return (perturbed or [CRUNCH.control])[0], ""

    def _called(self, call: str) -> str | None:
        """The perturbation of one call; None where the pattern finds nothing."""
        parts = [self._gene(part.strip()) for part in call.split("+")] if call != self.control else [CRUNCH.control]
        if any(part is None for part in parts):
            return None
        names = [name for part in parts if part for name in self._pair(part) if name != CRUNCH.control]
        return "+".join(sorted(names)) or CRUNCH.control

    def _gene(self, part: str) -> str | None:
        if self.pattern is not None and part != self.control and part not in self.genes:
            match = self.pattern.search(part)
            part = (match.group(1) if match.re.groups else match.group(0)) if match else ""
            if not part:
                return None
        if part == self.control:
            return CRUNCH.control
        if part == CRUNCH.control:
            raise DataError(f"a perturbation is called {part}, the name that the control is given here; rename it")
        return self.symbols.get(part, part)

    def _pair(self, name: str) -> list[str]:
        """`A_B` as A and B, where all are genes, or one is the control; else the name itself."""
        if name in self.genes or name == CRUNCH.control or "_" not in name:
            return [name]
        parts = name.split("_")
        if self.control in parts or all(
            part in self.genes or part in self.symbols or part in self.labels for part in parts
        ):
            return [CRUNCH.control if part == self.control else self.symbols.get(part, part) for part in parts]
        return [name]


def gene_names(var: pd.DataFrame) -> pd.Index:
    """The genes' names: the index of `var`, or a column of symbols where the index holds Ensembl identifiers.

    A gene without a symbol keeps its identifier.
    """
    index = pd.Index(var.index.astype(str))
    column = next((name for name in SYMBOLS if name in var), None)
    if column is None or not len(index) or index.str.match(ENSEMBL).mean() < 0.5:
        return index
    names = var[column].astype(str).str.strip()
    named = var[column].notna().to_numpy() & ~names.str.lower().isin(NO_NAME - {"na"}).to_numpy()
    return pd.Index(names.where(named, index.to_numpy()).to_numpy())


def similar(name: str, names: Sequence[object]) -> str:
    """`; did you mean X?` for a message, or nothing."""
    lower = {str(known).lower(): str(known) for known in names}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(lower[word] for word in close)}?" if close else ""
