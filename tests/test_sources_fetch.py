"""The downloader against a real server on this machine: everything that hosts and lines do to a download."""

import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from web import served

import helpers
from helpers import DataError
from workbench.sources import fetch
from workbench.sources.fetch import UnreachableError, download

ROOT = Path(helpers.__file__).parent
BODY = np.random.default_rng(0).bytes(700_000)  # several blocks
MD5 = hashlib.md5(BODY).hexdigest()  # noqa: S324
TRIES = 1 + len(fetch.WAITS)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(fetch, "WAITS", (0.0,) * (TRIES - 1))
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served() as site:
        site.files["/raw.bin"] = BODY
        yield site


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "raw.bin"


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_is_fetched_by_get_alone_and_nothing_is_left_beside_it(site, path, capsys):
    download(f"{site.address}/raw.bin", path, MD5)
    assert path.read_bytes() == BODY
    assert names(path) == ["raw.bin"]
    assert site.asked == [("GET", "/raw.bin", None)], "a host answers 403 to HEAD"
    assert re.search(r"raw\.bin.*700k/700k", capsys.readouterr().err), "the bar counts bytes"


def test_what_was_interrupted_goes_on_where_it_stopped(site, path):
    """Ctrl+C in a process of its own; then the same command again."""
    site.faults = [("stall", 300_000)]
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from workbench.sources.fetch import download\n"
        f"download('{site.address}/raw.bin', Path('{path}'))"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part, until = path.with_name("raw.bin.part"), time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"Interrupted: {part} keeps 0.3 MB; the same command goes on from there." in said
    kept = part.stat().st_size
    assert part.read_bytes() == BODY[:kept]
    assert not path.exists()
    download(f"{site.address}/raw.bin", path, MD5)
    assert site.ranges_asked() == [None, f"bytes={kept}-"]
    assert path.read_bytes() == BODY
    assert names(path) == ["raw.bin"]


def test_a_body_that_breaks_off_is_fetched_to_its_end(site, path, capsys):
    """More often than there are waits: each time more has arrived."""
    steps = range(1, TRIES + 3)
    site.faults = [("break", 10_000)] * len(steps)
    download(f"{site.address}/raw.bin", path, MD5)
    assert path.read_bytes() == BODY
    assert site.ranges_asked() == [None, *(f"bytes={10_000 * i}-" for i in steps)]
    assert "raw.bin: it broke off after 0.0 MB of 0.7 MB; trying again in 0.0 s." in capsys.readouterr().out


def test_a_host_that_always_breaks_off_at_the_same_place_is_given_up(site, path):
    site.ranges = False
    site.faults = [("break", 10_000)] * 100
    with pytest.raises(UnreachableError, match=r"/raw\.bin: it broke off after 0\.0 MB of 0\.7 MB$"):
        download(f"{site.address}/raw.bin", path, MD5)
    assert len(site.asked) == TRIES
    assert names(path) == ["raw.bin.part", "raw.bin.part.version"]


def test_a_host_that_ignores_ranges_is_read_from_the_beginning(site, path):
    site.ranges, site.faults = False, [("break", 10_000)]
    download(f"{site.address}/raw.bin", path, MD5)
    assert site.ranges_asked() == [None, "bytes=10000-"]
    assert path.read_bytes() == BODY


def test_a_body_of_unknown_length_is_read_to_its_end(site, path):
    site.lengths = False
    download(f"{site.address}/raw.bin", path, MD5)
    assert path.read_bytes() == BODY


def test_another_checksum_names_both_and_keeps_nothing(site, path):
    site.files["/raw.bin"] = BODY[:-1] + b"?"
    found = hashlib.md5(site.files["/raw.bin"]).hexdigest()  # noqa: S324
    with pytest.raises(DataError, match=f"the md5 of what arrived is {found}, not {MD5}") as error:
        download(f"{site.address}/raw.bin", path, MD5)
    assert not isinstance(error.value, UnreachableError), "by hand it would be the same"
    assert names(path) == []


@pytest.mark.parametrize("status", [404, 403, 410])
def test_an_answer_that_will_not_change_is_not_asked_for_again(site, path, status):
    site.faults = [status] * TRIES
    with pytest.raises(UnreachableError, match=rf"/raw\.bin: it answers {status} ") as error:
        download(f"{site.address}/raw.bin", path)
    assert len(site.asked) == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [500, 503, 429, 202])
def test_an_answer_that_passes_is_asked_for_again(site, path, status):
    """202 without a body is what a wall against robots says."""
    site.faults = [status, status]
    download(f"{site.address}/raw.bin", path, MD5)
    assert path.read_bytes() == BODY
    assert len(site.asked) == 3


@pytest.mark.parametrize("status", [500, 202])
def test_an_answer_that_does_not_pass_ends_with_one_line(site, path, status):
    site.faults = [status] * 100
    with pytest.raises(UnreachableError, match=f"it answers {status} "):
        download(f"{site.address}/raw.bin", path, MD5)
    assert len(site.asked) == TRIES
    assert not path.exists()


@pytest.mark.parametrize("fault", ["silent", ("stall", 100_000)])
def test_a_silent_host_is_left_and_asked_again(site, path, fault):
    site.faults = [fault]
    began = time.monotonic()
    download(f"{site.address}/raw.bin", path, MD5)
    assert path.read_bytes() == BODY
    assert fetch.SILENCE < time.monotonic() - began < 10
    assert site.ranges_asked() == [None, None if fault == "silent" else "bytes=100000-"]


def test_a_host_that_stays_silent_is_given_up(site, path, monkeypatch):
    monkeypatch.setattr(fetch, "WAITS", (0.0,))
    site.faults = ["silent"] * 9
    with pytest.raises(UnreachableError, match=r"nothing came for 0\.3 s"):
        download(f"{site.address}/raw.bin", path)


def test_a_redirect_is_followed_with_the_range(site, path):
    site.moved["/files/1"] = f"{site.address}/raw.bin"
    path.parent.mkdir()
    path.with_name("raw.bin.part").write_bytes(BODY[:5])
    download(f"{site.address}/files/1", path, MD5)
    assert path.read_bytes() == BODY
    assert site.asked == [("GET", "/files/1", "bytes=5-"), ("GET", "/raw.bin", "bytes=5-")]


def test_a_redirect_in_a_circle_ends(site, path):
    site.moved["/files/1"] = f"{site.address}/files/1"
    with pytest.raises(UnreachableError, match=r"it answers 302 .*infinite loop"):
        download(f"{site.address}/files/1", path)


def test_a_part_that_is_whole_already_is_taken(site, path):
    path.parent.mkdir()
    path.with_name("raw.bin.part").write_bytes(BODY)
    download(f"{site.address}/raw.bin", path, MD5)
    assert site.ranges_asked() == [f"bytes={len(BODY)}-"]
    assert path.read_bytes() == BODY


def test_a_part_that_is_longer_than_the_file_is_thrown_away(site, path):
    path.parent.mkdir()
    path.with_name("raw.bin.part").write_bytes(BODY + b"more")
    download(f"{site.address}/raw.bin", path)
    assert site.ranges_asked() == [f"bytes={len(BODY) + 4}-", None]
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("kept", [1000, len(BODY)])
def test_a_part_of_another_release_is_not_mixed_with_this_one(site, path, kept):
    """The current release has no fixed checksum, so nothing else would tell."""
    site.tags["/raw.bin"], site.faults = '"july"', [("break", 1000), 404]
    with pytest.raises(UnreachableError):
        download(f"{site.address}/raw.bin", path)
    assert names(path) == ["raw.bin.part", "raw.bin.part.version"]
    path.with_name("raw.bin.part").write_bytes(BODY[:kept])
    site.tags["/raw.bin"], site.files["/raw.bin"] = '"august"', BODY[::-1]
    download(f"{site.address}/raw.bin", path)
    assert path.read_bytes() == BODY[::-1]
    assert names(path) == ["raw.bin"]
    assert site.ranges_asked()[-2:] == [f"bytes={kept}-", None]


def test_a_part_of_the_same_release_is_gone_on_with(site, path):
    site.tags["/raw.bin"], site.faults = '"july"', [("break", 1000)]
    download(f"{site.address}/raw.bin", path)
    assert path.read_bytes() == BODY
    assert site.ranges_asked() == [None, "bytes=1000-"]


def test_a_refused_connection_is_tried_again_and_said_in_one_line(path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "WAITS", (0.0, 0.01))
    with served() as site:
        pass
    with pytest.raises(UnreachableError, match=r"Connection refused$") as error:
        download(f"{site.address}/raw.bin", path)
    assert str(error.value).startswith(site.address)
    assert capsys.readouterr().out.count("Connection refused; trying again in ") == 2


def test_the_waits_grow():
    assert list(fetch.WAITS) == sorted(set(fetch.WAITS))


def test_a_host_that_is_not_found_is_said_at_once(path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(UnreachableError, match=r"its host is not found \(is there a network\?\)"):
        download("http://no-such-host.invalid/raw.bin", path)


def test_a_folder_that_cannot_be_made_is_no_fault_of_the_host(site, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"raw\.bin\.part: cannot be written") as error:
        download(f"{site.address}/raw.bin", tmp_path / "cache" / "raw.bin")
    assert not isinstance(error.value, UnreachableError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_no_fault_of_the_host(site, path):
    path.parent.mkdir()
    path.with_name("raw.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written .No space left on device") as error:
        download(f"{site.address}/raw.bin", path)
    assert not isinstance(error.value, UnreachableError)
    assert len(site.asked) == 1
