"""What external data a submission uses: the record in `resources/`, and the sentences that credit it.

In: `resources/sources.json`, and the files in `resources/features/` and `resources/screens/`. Out: the text for the
section "Data and Resources Used" of the method description, and what that section lacks. The platform allows external
data that are credited.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from contract import CRUNCH
from helpers import DataError, replacing
from knowledge import used_files
from screens import SCREENS_FOLDER

RECORD_FILE = "sources.json"
BY_HAND = "added by hand"
NOTHING = "No external data are used: resources/features and resources/screens are empty."
BEGIN, END = "<!-- external data -->", "<!-- end of external data -->"


@dataclass(frozen=True)
class Entry:
    """One file of `resources/`: where it comes from, and how it is credited."""

    name: str  # of the source; of a file of the user's own, its name
    title: str
    file: str  # in `resources/`
    origin: list[str]  # addresses, or BY_HAND
    date: str  # when it came, as 2026-01-31
    md5: list[str]  # of the files that it was made of
    genes: int
    licence: str  # empty where the user has named none
    citation: str


def read_record(resources: Path) -> dict[str, Entry]:
    """The entries, by file; none where there is no record. Raises DataError for a record that cannot be read."""
    path = resources / RECORD_FILE
    if not path.exists():
        return {}
    try:
        entries = [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and add its sources again") from error
    return {entry.file: entry for entry in entries}


def write_entry(resources: Path, entry: Entry) -> None:
    """Add an entry to the record, in place of one for the same file."""
    entries = read_record(resources) | {entry.file: entry}
    text = json.dumps([asdict(entries[file]) for file in sorted(entries)], indent=1)
    with replacing(resources / RECORD_FILE) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def description(resources: str | Path) -> str:
    """The sentences that credit all external data in a folder, one on a line; or one that says that there are none."""
    resources = Path(resources)
    entries = read_record(resources)
    return "\n".join(_sentence(file, entries.get(file)) for file in used_files(resources)) or NOTHING


def _sentence(file: str, entry: Entry | None) -> str:
    folder, _, name = file.partition("/")
    kind = "screen" if folder == SCREENS_FOLDER else "table"
    if entry is None or (entry.origin == [BY_HAND] and entry.name == name):
        what = f"The user's own {kind} {name} is used"
    else:
        what = f"The {kind} {name} is made of {entry.title}"
    return f"{what} ({'; '.join(_credits(entry))})." if _credits(entry) else f"{what}."


def _credits(entry: Entry | None) -> list[str]:
    return [text for text in (entry.licence, entry.citation) if text] if entry else []


def uncredited(text: str, resources: str | Path) -> list[str]:
    """What a method description lacks, one line each: for every file its name, licence and citation must stand in it.

    Comments do not count, nor do line breaks. A text that says that no external data are used while there are some is
    a problem too, and so is a record that cannot be read.
    """
    resources = Path(resources)
    try:
        entries, files = read_record(resources), used_files(resources)
    except DataError as error:
        return [str(error)]
    visible = " ".join(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).split())
    problems = []
    for file in files:
        name = file.partition("/")[2]
        if not name.isascii():
            problems.append(f"{file}: the method description must name it in ASCII; give the file another name.")
        elif not _names(visible, name) or not all(credit in visible for credit in _credits(entries.get(file))):
            sentence = _sentence(file, entries.get(file))
            problems.append(f"{CRUNCH.description_file}: does not credit {file}; add to its last section: {sentence}")
    if files and "no external data" in visible.lower():
        problems.append(
            f"{CRUNCH.description_file}: says that no external data are used, but {files[0]} is; change it."
        )
    return problems


def _names(text: str, file: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(file)}(?![\w-])", text) is not None


def write_description(project: str | Path, resources: str | Path) -> list[Path]:
    """Put the sentences into `Method description.md` and the notebook's copy of it, between the marks; returns both.

    Raises DataError where a file or its marks are missing; then neither is changed.
    """
    project, sentences = Path(project), description(resources)
    page, notebook = project / CRUNCH.description_source, project / "notebook.ipynb"
    if CRUNCH.description_source != CRUNCH.description_file:  # the notebook of this crunch is made from the page
        if not page.is_file():
            raise DataError(f"{page}: no such file; it lies in the project's folder, and no other can be written to")
        return _write_all({page: _between_marks(page.read_text(encoding="utf-8"), sentences, page)})
    try:
        text, cells = page.read_text(encoding="utf-8"), json.loads(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{error}; in the project's folder there are both, and no other can be written to") from error
    found = [cell for cell in cells["cells"] if f"file: {CRUNCH.description_file}" in "".join(cell["source"])]
    if len(found) != 1:
        raise DataError(f"{notebook}: has {len(found)} cells for {CRUNCH.description_file}, not one")
    changed = _between_marks("".join(found[0]["source"]), sentences, notebook)
    found[0]["source"] = changed.splitlines(keepends=True)
    texts = {
        page: _between_marks(text, sentences, page),
        notebook: json.dumps(cells, indent=1, ensure_ascii=False) + "\n",
    }
    return _write_all(texts)


def _write_all(texts: dict[Path, str]) -> list[Path]:
    for path, content in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return list(texts)


def _between_marks(text: str, sentences: str, path: Path) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataError(
            f"{path}: the lines {BEGIN} and {END} are missing; put them around the sentences on external data"
        )
    return f"{before}{BEGIN}\n{sentences}\n{END}{after}"
