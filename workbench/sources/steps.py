"""The two ways into `resources/`: a public source by its name, and a file that was fetched by hand.

In: names of the catalogue, or a file. Out: a small file in `resources/features/` or `resources/screens/`, and its entry
in the record. Raw downloads stay in `build/sources/`, which does not travel.
"""

from __future__ import annotations

import datetime
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from contract import MODEL_FOLDER
from helpers import DataError, replacing, text_size
from knowledge import FEATURE_READERS, FEATURES_FOLDER, FeatureTable
from workbench.sources.catalogue import SOURCES, RawFile, Source
from workbench.sources.convert import CONVERTERS
from workbench.sources.fetch import UnreachableError, checksum, download
from workbench.sources.record import BY_HAND, Entry, write_entry

RESOURCES, CACHE = Path(MODEL_FOLDER), Path("build", "sources")
PICKLES = {".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".npy", ".npz"}


def get(names: Iterable[str], resources: Path = RESOURCES, cache: Path = CACHE) -> None:
    """Fetch, convert and record sources by name; what is there already is left as it is.

    Raises DataError, before anything is fetched, for a name that is not in the catalogue; then for the first source
    that cannot be had. What came before it stays.
    """
    names = list(names)
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise DataError(f"{', '.join(unknown)}: no such source; there are {', '.join(SOURCES)}")
    for name in names:
        _get(SOURCES[name], resources, cache)


def _get(source: Source, resources: Path, cache: Path) -> None:
    path, began = resources / source.target, time.perf_counter()
    if path.exists():
        print(f"{source.name}: {path} is there already.")
        return
    _make_cache(cache)
    for file in source.files:
        if _is_cached(file, cache):
            continue
        try:
            download(file.address, cache / file.name, file.md5)
        except UnreachableError as error:
            add = f"python -m workbench.sources add FILE --as {source.kind}"
            folder = "" if resources == RESOURCES else f" --folder {resources}"
            raise UnreachableError(f"{source.name}: {error}. Fetch it by hand, then: {add}{folder}") from error
    _convert(source, resources, cache, [file.address for file in source.files])
    print(f"  took {time.perf_counter() - began:.0f} s; the download stays in {cache}, which does not travel.")


def _make_cache(cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")  # so that a push from any folder leaves it


def _is_cached(file: RawFile, cache: Path) -> bool:
    path = cache / file.name
    return path.exists() and file.md5 in ("", checksum(path))


def _convert(source: Source, resources: Path, cache: Path, origin: list[str]) -> None:
    """From the cache into `resources`, and into the record."""
    files, path = [cache / file.name for file in source.files], resources / source.target
    read, write = CONVERTERS[source.form]
    try:
        found = read(files)
    except DataError:
        for file in source.files:
            if not file.md5:  # nothing else says that it arrived as it was
                (cache / file.name).unlink(missing_ok=True)
        raise
    genes = write(path, found)
    entry = Entry(
        source.name,
        source.title,
        source.target,
        origin,
        _today(),
        [checksum(file) for file in files],
        genes,
        source.licence,
        source.citation,
    )
    write_entry(resources, entry)
    _say(entry, path)


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def _say(entry: Entry, path: Path) -> None:
    print(f"{entry.name}: {path} ({text_size(path.stat().st_size)}) knows {entry.genes:,} genes.")
