"""The public sources: what each knows, where its files lie, in which form, and how it wants to be credited.

Data only. Sizes and numbers of genes are about right, since most sources have a new release every few months; a
checksum stands where the file never changes. Next: `fetch.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RawFile:
    """A file as its host offers it."""

    name: str  # in the cache, and when a browser has saved it
    address: str
    size: int  # bytes, about
    md5: str = ""  # empty where every release has another


@dataclass(frozen=True)
class Source:
    """A public source of knowledge, and the file that it becomes in `resources/`."""

    name: str
    title: str  # how the method description calls it
    form: str  # what `convert.CONVERTERS` makes of the files
    files: tuple[RawFile, ...]
    target: str  # the file in `resources/`
    genes: int  # about how many genes (of a screen: knock-downs) it knows
    licence: str
    citation: str

    @property
    def kind(self) -> str:
        """`table` or `screen`: how the model uses it."""
        return "screen" if self.form == "screen" else "table"

    @property
    def size(self) -> int:
        """Bytes to download, about."""
        return sum(file.size for file in self.files)


_FIGSHARE = "https://ndownloader.figshare.com/files"  # figshare.com/ndownloader wants a browser
_GO = "https://current.geneontology.org"
_STRING = "https://stringdb-downloads.org/download"
_REPLOGLE = "Replogle et al., Cell 185 (2022) 2559, doi:10.1016/j.cell.2022.05.013"


def _replogle(name: str, title: str, file: RawFile, genes: int) -> Source:
    target = f"screens/{name}.h5ad"
    return Source(name, f"{title} of Replogle et al. 2022", "screen", (file,), target, genes, "CC BY 4.0", _REPLOGLE)


_ALL = (
    Source(
        name="reactome",
        title="Reactome pathways",
        form="reactome",
        files=(
            RawFile(
                "ReactomePathways.gmt.zip", "https://reactome.org/download/current/ReactomePathways.gmt.zip", 300_000
            ),
        ),
        target="features/reactome.gmt.gz",
        genes=11_000,
        licence="CC0 1.0",
        citation="Milacic et al., Nucleic Acids Research 52 (2024) D672, doi:10.1093/nar/gkad1025",
    ),
    Source(
        name="go",
        title="Gene Ontology annotations",
        form="go",
        files=(
            RawFile("goa_human.gaf.gz", f"{_GO}/annotations/goa_human.gaf.gz", 10_000_000),
            RawFile("go-basic.obo", f"{_GO}/ontology/go-basic.obo", 35_000_000),
        ),
        target="features/go.gmt.gz",
        genes=18_000,
        licence="CC BY 4.0",
        citation="The Gene Ontology Consortium, Genetics 224 (2023) iyad031, doi:10.1093/genetics/iyad031",
    ),
    Source(
        name="string",
        title="STRING 12.0 protein associations",
        form="string",
        files=(
            RawFile(
                "9606.protein.links.v12.0.txt.gz",
                f"{_STRING}/protein.links.v12.0/9606.protein.links.v12.0.txt.gz",
                80_000_000,
            ),
            RawFile(
                "9606.protein.info.v12.0.txt.gz",
                f"{_STRING}/protein.info.v12.0/9606.protein.info.v12.0.txt.gz",
                2_000_000,
            ),
        ),
        target="features/string.csv.gz",
        genes=16_000,
        licence="CC BY 4.0",
        citation="Szklarczyk et al., Nucleic Acids Research 51 (2023) D638, doi:10.1093/nar/gkac1000",
    ),
    _replogle(
        "replogle_k562_gwps",
        "the genome-wide K562 screen",
        RawFile(
            "K562_gwps_normalized_bulk_01.h5ad",
            f"{_FIGSHARE}/35773217",
            357_000_000,
            "a3dfaa94ea8724217f5ecb1e14a5f0c8",
        ),
        9_900,
    ),
    _replogle(
        "replogle_k562_essential",
        "the K562 screen of essential genes",
        RawFile(
            "K562_essential_normalized_bulk_01.h5ad",
            f"{_FIGSHARE}/35780870",
            80_000_000,
            "30496767641cd2e660ee6ecb5baee132",
        ),
        2_100,
    ),
    _replogle(
        "replogle_rpe1",
        "the RPE1 screen of essential genes",
        RawFile(
            "rpe1_normalized_bulk_01.h5ad", f"{_FIGSHARE}/35775512", 95_000_000, "6f1e7d6a09e2f869759e3c4526b7f171"
        ),
        2_400,
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
