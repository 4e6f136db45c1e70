"""Small files in the true form of each public source's, as bytes, by the names of the catalogue."""

import gzip
import io
import tempfile
import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

REACTOME_GMT = (
    "Signaling by Insulin receptor\tR-HSA-74752\tINS\tINSR\tIRS1\tGRB2\n"
    "Insulin receptor recycling\tR-HSA-77387\tINS\tINSR\n"
    "Metabolism\tR-HSA-1430728\tPPARG\tLPL\tINS\t\n"
)

# The ontology: lipid droplet is part of the cytoplasm, which is a cellular component; two ways up from "fat cell".
OBO = """\
format-version: 1.2
data-version: releases/2026-01-01
ontology: go

[Term]
id: GO:0005575
name: cellular_component
namespace: cellular_component

[Term]
id: GO:0005737
name: cytoplasm
namespace: cellular_component
is_a: GO:0005575 ! cellular_component

[Term]
id: GO:0005811
name: lipid droplet
namespace: cellular_component
alt_id: GO:0005812
def: "A droplet: neutral lipids." [PMID:1]
synonym: "lipid body" EXACT []
relationship: part_of GO:0005737 {source="x"} ! cytoplasm

[Term]
id: GO:0045444
name: fat cell differentiation
namespace: biological_process
is_a: GO:0008150 {source="x"} ! biological_process
relationship: regulates GO:0005737 ! cytoplasm

[Term]
id: GO:0008150
name: biological_process
namespace: biological_process

[Term]
id: GO:0000005
name: obsolete ribosomal chaperone activity
namespace: molecular_function
is_obsolete: true
replaced_by: GO:0045444

[Typedef]
id: part_of
name: part of
namespace: external
xref: BFO:0000050
is_transitive: true

[Typedef]
id: regulates
"""


def annotation(gene, term, qualifier="involved_in"):
    """A line of GAF 2.2: 17 columns."""
    head = ["UniProtKB", "P0", gene, qualifier, term, "PMID:1", "IDA", "", "P", f"{gene} protein", gene]
    return "\t".join([*head, "protein", "taxon:9606", "20260101", "UniProt", "", ""])


def gaf(lines):
    return gzip.compress("\n".join(["!gaf-version: 2.2", "!", "!generated-by: GOC", *lines, ""]).encode())


DROPLET = [f"PLIN{i}" for i in range(1, 6)]
ANNOTATIONS = [
    *(annotation(gene, "GO:0005811", "located_in") for gene in DROPLET),
    annotation("CIDEC", "GO:0005812", "located_in"),  # a second name of the lipid droplet
    annotation("ACTB", "GO:0005811", "NOT|located_in"),
    annotation("GAPDH", "GO:0005737", "is_active_in"),
    *(annotation(gene, "GO:0000005") for gene in ("A", "B", "C", "D", "E")),
    *(annotation(gene, "GO:0045444") for gene in ("PPARG", "CEBPA")),
]

PROTEINS = {"PPARG": 1, "RXRA": 2, "CEBPA": 3, "LPL": 4, "NA": 5}


def string_id(gene):
    return f"9606.ENSP{PROTEINS[gene]:011d}"


def string_links(links):
    lines = [f"{string_id(a)} {string_id(b)} {score}" for a, b, score in links]
    return gzip.compress("\n".join(["protein1 protein2 combined_score", *lines, ""]).encode())


LINKS = [("PPARG", "RXRA", 999), ("PPARG", "CEBPA", 700), ("CEBPA", "LPL", 699), ("NA", "LPL", 800)]
LINKS += [(b, a, score) for a, b, score in LINKS]  # each stands twice


def string_info():
    lines = [f'{string_id(gene)}\t{gene}\t505\t"Binds boxes, unclosed' for gene in PROTEINS]
    return gzip.compress("\n".join(["#string_protein_id\tpreferred_name\tprotein_size\tannotation", *lines]).encode())


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return buffer.getvalue()


KNOCK_DOWNS = ["MED1", "MED12", "SMG5", "UPF1", "UBL5", "POLR2A"]


def screen_table(seed=5):
    """The rows of a Replogle file: several of one gene, controls, values that are missing or infinite."""
    rng = np.random.default_rng(seed)
    names = [f"{10000 + i}_{gene}_P1P2_ENSG{i:011d}" for i, gene in enumerate(KNOCK_DOWNS)]
    names += ["2397_MED1_P2_ENSG00000000000"]
    names += [f"{10746 + i}_non-targeting_non-targeting_non-targeting" for i in range(3)]
    values = rng.normal(size=(len(names), 30)).astype(np.float32)
    values[1, 3], values[2, 4] = np.nan, np.inf
    obs = pd.DataFrame({"core_control": ["non-targeting" in name for name in names]}, pd.Index(names))
    obs["num_cells_filtered"] = np.arange(10.0, 10.0 + len(names))
    obs.index.name = "gene_transcript"
    var = pd.DataFrame({"gene_name": [f"GENE{j}" for j in range(30)]}, index=[f"ENSG9{j:010d}" for j in range(30)])
    var.index.name = "gene_id"
    return ad.AnnData(values, obs, var)


def screen_file(seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "screen.h5ad")
        screen_table(seed).write_h5ad(path)
        return path.read_bytes()


def raw_files():
    """All of them, by the name of the source."""
    return {
        "reactome": [zipped({"ReactomePathways.gmt": REACTOME_GMT})],
        "go": [gaf(ANNOTATIONS), OBO.encode()],
        "string": [string_links(LINKS), string_info()],
        **{f"replogle_{name}": [screen_file(i)] for i, name in enumerate(("k562_gwps", "k562_essential", "rpe1"), 3)},
    }
