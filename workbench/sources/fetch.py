"""Fetches one file over HTTP: resumed where it stopped, tried again when the line drops, checked before it counts.

In: an address, and a path. Out: the file there, or `DataError` in one line. What has arrived lies beside it as `.part`,
with a note of the version that it is of. Only GET is used: some hosts refuse HEAD. Next: `convert.py`.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm.auto import tqdm

from helpers import DataError, progress_bar, text_size

WAITS = (1, 2, 4, 8)  # seconds before each further try, from the first again whenever more has arrived
SILENCE = 30.0  # seconds without a byte, after which a try is given up
BLOCK = 1 << 18
BUSY = (408, 425, 429)  # answers that pass, as those from 500 on do
HEADERS = {"User-Agent": "broad-obesity-1 (Python urllib)", "Accept-Encoding": "identity"}


class UnreachableError(DataError):
    """The file could not be had from its address; by hand it may."""


def download(address: str, path: Path, md5: str = "") -> None:
    """Fetch `address` into `path`, which appears when all of it is there and has the checksum `md5` (if given).

    Raises UnreachableError when the host cannot be reached, refuses or keeps breaking off, and DataError for another
    checksum (what arrived is then deleted) or a full disk. An interrupt leaves the `.part`, and says so.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with progress_bar(path.name, unit="B", unit_scale=True) as bar:
            _persist(address, part, bar)
    except OSError as error:
        raise DataError(
            f"{part}: cannot be written ({error.strerror or error}); free the disk and try again"
        ) from error
    except KeyboardInterrupt:
        print(f"Interrupted: {part} keeps {text_size(_length(part))}; the same command goes on from there.", flush=True)
        raise
    _note(part).unlink(missing_ok=True)
    found = checksum(part)
    if md5 and found != md5:
        part.unlink()
        raise DataError(f"{address}: the md5 of what arrived is {found}, not {md5}; it was deleted: try again")
    part.replace(path)


def checksum(path: Path) -> str:
    """The md5 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _persist(address: str, part: Path, bar: tqdm) -> None:
    """Try until `part` is whole; give up after as many tries without a further byte as there are waits."""
    most, waits = _length(part), iter(WAITS)
    while True:
        try:
            why = _try(address, part, bar)
        except urllib.error.HTTPError as error:
            why = f"it answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in BUSY:
                raise UnreachableError(f"{address}: {why}") from None
        except (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException) as error:
            why = _in_words(error)
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                raise UnreachableError(f"{address}: {why}") from None
        if not why:
            return
        if _length(part) > most:
            most, waits = _length(part), iter(WAITS)
        wait = next(waits, None)
        if wait is None:
            raise UnreachableError(f"{address}: {why}")
        tqdm.write(f"{part.stem}: {why}; trying again in {wait} s.")
        time.sleep(wait)


def _try(address: str, part: Path, bar: tqdm) -> str:
    """Ask once for what `part` lacks; returns why it is still not whole, or nothing."""
    have = _length(part)
    ranged = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(address, headers=HEADERS | ranged)  # noqa: S310 - the catalogue has no file:
    try:
        with urllib.request.urlopen(request, timeout=SILENCE) as response:  # noqa: S310
            return _receive(response, part, bar)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        with error:
            whole = error.headers.get("Content-Range") == f"bytes */{have}" and _is_same(part, error.headers)
        return "" if whole else _start_again(part)


def _receive(response: HTTPResponse, part: Path, bar: tqdm) -> str:
    """Write the body to `part`, at its end or from its beginning; returns why it is still not whole, or nothing."""
    have, total = _length(part), response.headers.get("Content-Length", "")
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not span or int(span[1]) != have or not _is_same(part, response.headers):
            return _start_again(part)
        total = span[2]
    elif response.status == 200:  # all of it, whatever was asked for
        have = 0
    else:
        return f"it answers {response.status} {response.reason}, without the file"
    whole = int(total) if total.isdigit() else None
    bar.reset(whole)
    bar.update(have)
    with part.open("ab" if have else "wb") as file:
        if not have:
            _note(part).write_text(_version(response.headers))
        while block := response.read1(BLOCK):
            file.write(block)
            bar.update(len(block))
    if whole is not None and _length(part) < whole:
        return f"it broke off after {text_size(_length(part))} of {text_size(whole)}"
    return ""


def _start_again(part: Path) -> str:
    part.unlink(missing_ok=True)
    return "what had arrived is of another version of the file and was deleted"


def _note(part: Path) -> Path:
    """Where it stands which version of the file `part` is of."""
    return part.with_name(f"{part.name}.version")


def _version(headers: Message) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _is_same(part: Path, headers: Message) -> bool:
    """Whether an answer is of the version that `part` began with, as far as the host says."""
    noted = _note(part).read_text() if _note(part).exists() else ""
    return _version(headers) in ("", noted)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _in_words(error: Exception) -> str:
    """What happened to a connection, in one line."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"nothing came for {SILENCE:g} s"
    if isinstance(reason, socket.gaierror):
        return "its host is not found (is there a network?)"
    return str(getattr(reason, "strerror", "") or reason or type(reason).__name__)
