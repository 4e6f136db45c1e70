"""The two ways into `resources/`: a public source by its name, and a file that was fetched by hand.

In: names of the catalogue, or a file. Out: a small file in `resources/features/` or `resources/screens/`, and its entry
in the record. Raw downloads stay in `build/sources/`, which does not travel.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from contract import CRUNCH, MODEL_FOLDER
from helpers import DataError, only_one, replacing, text_size
from knowledge import FEATURE_READERS, FEATURES_FOLDER
from screens import SCREENS_FOLDER, read_screen, write_screen
from workbench.commands import check_folder
from workbench.sources.catalogue import SOURCES, RawFile, Source
from workbench.sources.convert import CONVERTERS
from workbench.sources.fetch import UnreachableError, checksum, download
from workbench.sources.record import BY_HAND, Entry, read_record, write_entry

RESOURCES, CACHE = Path(CRUNCH.folder, MODEL_FOLDER), Path("build", "sources")
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
    with _alone(resources, cache):
        for name in names:
            _get(SOURCES[name], resources, cache)


def _get(source: Source, resources: Path, cache: Path) -> None:
    began = time.perf_counter()
    if _is_there(source, resources, cache):
        return
    for file in source.files:
        if _is_cached(file, cache):
            continue
        _ignore_cache(cache)
        try:
            download(file.address, cache / file.name, file.md5)
        except UnreachableError as error:
            add = f"python -m workbench.sources add {file.name} --as {source.kind}"
            folder = "" if resources == RESOURCES else f" --folder {resources}"
            by_hand = f"Fetch it by hand as {file.name}, then: {add}{folder}"
            raise UnreachableError(f"{source.name}: {error}. {by_hand}") from error
    _convert(source, resources, cache, [file.address for file in source.files])
    print(f"  It took {time.perf_counter() - began:.0f} s. The download stays in {cache}, which does not travel.")


def _is_there(source: Source, resources: Path, cache: Path) -> bool:
    """Whether a source needs no more work, and say so. A run that was killed may have written its file unrecorded."""
    path = resources / source.target
    is_unrecorded = source.target not in read_record(resources) and all(
        _is_cached(file, cache) for file in source.files
    )
    if not path.exists() or is_unrecorded:
        return False
    print(f"{source.name}: {path} is there already.")
    return True


def _is_cached(file: RawFile, cache: Path) -> bool:
    path = cache / file.name
    return path.exists() and file.md5 in ("", checksum(path))


def _ignore_cache(cache: Path) -> None:
    """Make the folder, and tell git to leave it: the crunch client sends what git does not ignore."""
    with replacing(cache / ".gitignore") as temporary:
        temporary.write_text("*\n")


def _convert(source: Source, resources: Path, cache: Path, origin: list[str]) -> None:
    """From the cache into `resources`, and into the record."""
    files = [cache / file.name for file in source.files]
    read, write = CONVERTERS[source.form]
    try:
        with _plain_warnings():
            found = read(files)
    except DataError:
        for file in source.files:
            if not file.md5:  # perhaps it did not arrive as it was
                (cache / file.name).unlink(missing_ok=True)
        raise
    genes = write(resources / source.target, found)
    _record(
        resources,
        Entry(
            source.name,
            source.title,
            source.target,
            origin,
            _today(),
            [checksum(file) for file in files],
            genes,
            source.licence,
            source.citation,
        ),
    )


def add(
    file: Path,
    kind: str,
    resources: Path = RESOURCES,
    cache: Path = CACHE,
    licence: str = "",
    citation: str = "",
) -> None:
    """Take a file that was fetched by hand, as a `screen` or a `table`.

    A raw file of the catalogue, known by its name or checksum, is converted as that source once all its files are
    there. Any other file must be readable as a screen or as a feature table; `licence` and `citation` are what credits
    it. Raises DataError for one that is not, for pickles, and where another file has its place.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    _refuse_pickles(file)
    licence, citation = (" ".join(text.split()) for text in (licence, citation))
    if not f"{file.name}{licence}{citation}".isascii():
        raise DataError(f"{file}: its name, licence and citation go into the method description, which is ASCII only")
    md5 = checksum(file)
    with _alone(resources, cache):
        for source in SOURCES.values():
            for raw in source.files:
                if raw.name == file.name or raw.md5 == md5:
                    _check_raw(file, md5, raw, source, kind, licence or citation)
                    _add_raw(file, raw, source, resources, cache)
                    return
        (_add_screen if kind == "screen" else _add_table)(file, md5, resources, licence, citation)


@contextmanager
def _alone(resources: Path, cache: Path) -> Iterator[None]:
    """Two runs would write one download, and each would lose the other's entry in the record."""
    for folder in (resources, cache):
        check_folder(folder)
    with only_one(cache):
        yield


def _check_raw(file: Path, md5: str, raw: RawFile, source: Source, kind: str, credit: str) -> None:
    if kind != source.kind:
        raise DataError(f"{file}: belongs to the source {source.name}, a {source.kind}: give --as {source.kind}")
    if raw.md5 not in ("", md5):
        raise DataError(
            f"{file}: is called as a file of {source.name}, but its md5 is {md5}, not {raw.md5}; fetch it again, or "
            "give it another name to add it as your own"
        )
    if credit:
        raise DataError(f"{file}: belongs to the source {source.name}, whose licence and citation are known")


def _add_raw(file: Path, raw: RawFile, source: Source, resources: Path, cache: Path) -> None:
    if _is_there(source, resources, cache):
        return
    _ignore_cache(cache)
    if file.resolve() != (cache / raw.name).resolve():
        with replacing(cache / raw.name) as temporary:
            shutil.copyfile(file, temporary)
    missing = [other.address for other in source.files if not _is_cached(other, cache)]
    if missing:
        print(f"{source.name}: {raw.name} is kept in {cache}. Add its other file too: {', '.join(missing)}")
        return
    _convert(source, resources, cache, [BY_HAND])


def _add_table(file: Path, md5: str, resources: Path, licence: str, citation: str) -> None:
    read = FEATURE_READERS.get(file.name.removesuffix(".gz").rpartition(".")[2].lower())
    if read is None:
        raise DataError(f"{file}: not a feature table; use {', '.join('.' + name for name in FEATURE_READERS)}")
    target = f"{FEATURES_FOLDER}/{file.name}"
    path = resources / target
    if path.exists() and checksum(path) != md5:
        raise DataError(f"{path}: another file is there already; delete it, or give {file} another name")
    try:
        with _plain_warnings():
            table = read(file, pd.Index([], dtype=str))
    except (OSError, EOFError, ValueError, KeyError, ImportError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read as a feature table: {error}") from error
    if not path.exists():
        with replacing(path) as temporary:
            shutil.copyfile(file, temporary)
    _record(resources, _own(file.name, target, md5, len(table.genes), licence, citation))


def _add_screen(file: Path, md5: str, resources: Path, licence: str, citation: str) -> None:
    name = f"{file.name.removesuffix('.gz').rpartition('.')[0]}.h5ad"
    target = f"{SCREENS_FOLDER}/{name}"
    path = resources / target
    before = read_record(resources).get(target)
    if path.exists() and checksum(path) != md5 and (before is None or before.md5 != [md5]):
        raise DataError(f"{path}: another file is there already; delete it, or give {file} another name")
    with _plain_warnings():
        screen = read_screen(file)
    if not path.exists():
        write_screen(path, screen)
    _record(resources, _own(name, target, md5, len(screen.perturbations), licence, citation))


def _own(name: str, target: str, md5: str, genes: int, licence: str, citation: str) -> Entry:
    return Entry(name, name, target, [BY_HAND], _today(), [md5], genes, licence, citation)


def _record(resources: Path, entry: Entry) -> None:
    write_entry(resources, entry)
    path = resources / entry.file
    print(f"{entry.name}: {path} ({text_size(path.stat().st_size)}) knows {entry.genes:,} genes.")


def _refuse_pickles(file: Path) -> None:
    """By their names and by how they begin; nothing of them is read."""
    with file.open("rb") as content:
        begins = content.read(2)
    if {ending.lower() for ending in file.suffixes} & PICKLES or begins[:1] == b"\x80":
        raise DataError(f"{file}: a pickle can run any code and is not read; have it as .csv, .parquet or .h5ad")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as lines of the screen."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in said:
        print(f"  {warning.message}")


def _today() -> str:
    return dt.datetime.now(tz=dt.UTC).date().isoformat()
