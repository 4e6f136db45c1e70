"""The report for the browser: the executed notebook without code, logs and remote resources, its summary on top.

In: an executed notebook. Out: one HTML file that needs no network and no script, and each picture as a png.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

SUMMARY = ("in-short", "in-short-scores")  # cells of the notebook, by id
REMOTE_IMAGE = re.compile(r"\[?!\[[^\]]*\]\(https?://[^)]*\)(\]\([^)]*\))?")  # a badge, with its link
EMBEDDED_FILE = re.compile(r"\A---\nfile: (.*)\n---\n")  # the head of a cell that becomes a file
CLIENT_HEAD = re.compile(r"loaded crunch tools.*?----\n", re.DOTALL)  # what the crunch client prints of the machine
BAR = "application/vnd.jupyter.widget-view+json"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #e2e8f0; padding-top: 1rem; }}
img {{ max-width: 100%; }}
pre {{ font-size: 13px; background: #f7fafc; padding: 0.6rem; white-space: pre-wrap; }}
code {{ font-size: 0.9em; background: #f7fafc; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 14px; }}
th, td {{ border: none; border-bottom: 1px solid #e2e8f0; padding: 0.25rem 0.7rem; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
thead th {{ vertical-align: bottom; border-bottom: 2px solid #a0aec0; }}
.anchor-link, .prompt {{ display: none; }}
.label {{ background: #fefcbf; padding: 0.4rem 0.8rem; }}
</style>
</head>
<body>
{label}
{body}
</body>
</html>
"""


def html(notebook: NotebookNode, *, title: str, source: str = "") -> str:
    """The page. `source`, such as "demo data", becomes a label above everything and stands in the title."""
    body, _ = HTMLExporter(template_name="basic", exclude_input=True).from_notebook_node(readable(notebook))
    label = f'<p class="label">This report was made of <b>{source}</b>.</p>' if source else ""
    return PAGE.format(title=f"{title} ({source})" if source else title, label=label, body=body)


def readable(notebook: NotebookNode) -> NotebookNode:
    """A copy for reading: the summary after the title; no logs, progress bars or remote pictures."""
    copy = nbformat.from_dict(notebook)
    copy.metadata.pop("widgets", None)  # the progress bars' state, which would become a script
    summary = [cell for cell in copy.cells if cell.get("id") in SUMMARY]
    others = [cell for cell in copy.cells if cell.get("id") not in SUMMARY]
    heading, _, rest = others[0].source.partition("\n")  # of the notebook: the summary comes right below
    copy.cells = [new_markdown_cell(heading), *summary, new_markdown_cell(f"## About\n{rest}"), *others[1:]]
    above = ""
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            above = re.sub(r"[#*`]", "", " ".join(cell.source.split()).split(". ")[0]).strip()
            cell.source = REMOTE_IMAGE.sub("", cell.source)
            if EMBEDDED_FILE.match(cell.source):
                cell.source = re.sub(r"^#", "###", EMBEDDED_FILE.sub("", cell.source), flags=re.MULTILINE)
        elif cell.cell_type == "code":
            cell.outputs = _joined([output for output in cell.outputs if _is_result(output)])
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.metadata["image/png"] = {"alt": above}  # for those who hear the report
    return copy


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What is printed in one block, first, since progress bars cut it to pieces; without the client's head."""
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    printed = CLIENT_HEAD.sub("", printed).strip("\n")
    results = [output for output in outputs if output.output_type != "stream"]
    return [*([new_output("stream", text=printed)] if printed else []), *results]


def _is_result(output: NotebookNode) -> bool:
    return output.get("name") != "stderr" and BAR not in output.get("data", {})


def save_pictures(notebook: NotebookNode, folder: Path) -> list[Path]:
    """Every picture as `CELL.png`, by the id of its cell; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                paths.append(folder / f"{cell.id}.png")
                paths[-1].write_bytes(base64.b64decode(output.data["image/png"]))
    return paths


def printed(notebook: NotebookNode, cell_id: str) -> str:
    """What a cell shows as plain text."""
    outputs = next(cell for cell in notebook.cells if cell.get("id") == cell_id).outputs
    return "\n".join(output["data"]["text/plain"] for output in outputs if "data" in output)
