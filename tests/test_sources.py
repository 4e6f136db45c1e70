"""The commands on sources: what they put into `resources/`, what they record, and whether it is credited."""

import ast
import dataclasses
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from crunch_convert.notebook import extract_from_file
from raw_sources import KNOCK_DOWNS, raw_files
from web import served

import helpers
from contract import OBESITY_1 as CRUNCH
from contract import TRAVELLING
from helpers import only_one
from knowledge import read_features
from screens import read_screens
from workbench import demo, session
from workbench.sources import fetch, record, steps
from workbench.sources.__main__ import main
from workbench.sources.catalogue import SOURCES
from workbench.sources.record import description, read_record, uncredited, used_files
from workbench.validate import validate_method_description

ROOT = Path(helpers.__file__).parent
TABLES = ["reactome", "go", "string"]
SCREENS = ["replogle_k562_gwps", "replogle_k562_essential", "replogle_rpe1"]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, in which the commands run."""
    for name in (CRUNCH.description_file, "notebook.ipynb"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "resources").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def site(project, monkeypatch):
    """The catalogue's files, small, on a server of this machine."""
    monkeypatch.setattr(fetch, "WAITS", (0.0,))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served() as site:
        for name, contents in raw_files().items():
            files = []
            for file, content in zip(SOURCES[name].files, contents, strict=True):
                site.files[f"/{file.name}"] = content
                md5 = hashlib.md5(content).hexdigest() if file.md5 else ""  # noqa: S324
                files.append(dataclasses.replace(file, address=f"{site.address}/{file.name}", md5=md5))
            monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=tuple(files)))
        yield site


@pytest.fixture
def offline(project, monkeypatch):
    """The catalogue's own addresses, on a machine that finds no host."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def nowhere(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# get and list
# ---------------------------------------------------------------------------------------------------------------------


def test_the_catalogue_names_each_source_once_with_a_way_to_get_and_to_credit_it():
    assert list(SOURCES) == [*TABLES, *SCREENS]
    files = [file for source in SOURCES.values() for file in source.files]
    assert len({file.name for file in files}) == len({file.address for file in files}) == len(files)
    for name, source in SOURCES.items():
        assert source.kind == ("table" if name in TABLES else "screen")
        assert source.target.startswith("features/" if name in TABLES else f"screens/{name}.h5ad")
        assert f"{source.title}{source.licence}{source.citation}".isascii()
        assert source.licence.startswith("CC")
        assert "doi:10." in source.citation
    assert all(file.address.startswith("https://") for file in files)
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) for name in SCREENS for file in SOURCES[name].files)


def test_get_puts_every_source_where_the_model_reads_it(site, project, capsys):
    assert main(["get", *SOURCES]) == 0
    said = capsys.readouterr().out
    resources = project / "resources"
    assert files_below(resources) == sorted(["sources.json", *(source.target for source in SOURCES.values())])
    tables = read_features(resources / "features", ["INSR", "PLIN1", "PPARG"])
    assert set(tables) == {"reactome.gmt.gz", "go.gmt.gz", "string.csv.gz"}
    assert set(read_screens(resources / "screens", KNOCK_DOWNS)) == {f"{name}.h5ad" for name in SCREENS}
    cache = project / "build" / "sources"
    assert files_below(cache) == sorted([".gitignore", *(f.name for s in SOURCES.values() for f in s.files)])
    assert (cache / ".gitignore").read_text() == "*\n"
    assert {asked for asked, *_ in site.asked} == {"GET"}
    for source in SOURCES.values():
        entry = read_record(resources)[source.target]
        assert re.search(
            rf"^{source.name}: resources/{source.target} \(0\.0 MB\) knows {entry.genes} genes\.$", said, re.MULTILINE
        )
    took = re.findall(r"  It took \d+ s\. The download stays in build/sources, which does not travel\.", said)
    assert len(took) == len(SOURCES)
    assert said.count(": 2 missing or infinite values") == len(SCREENS)
    assert said.endswith("Credit it in the method description: python -m workbench.sources describe --write\n")


def test_get_of_what_is_there_says_so_and_fetches_nothing(site, project, capsys):
    main(["get", "reactome"])
    before, asked = (project / "resources" / "sources.json").read_bytes(), len(site.asked)
    assert main(["get", "reactome"]) == 0
    assert "reactome: resources/features/reactome.gmt.gz is there already." in capsys.readouterr().out
    assert len(site.asked) == asked
    assert (project / "resources" / "sources.json").read_bytes() == before


def test_a_file_that_a_killed_run_did_not_record_is_recorded_without_fetching_it_again(site, project):
    main(["get", "reactome"])
    record, asked = project / "resources" / "sources.json", len(site.asked)
    before = record.read_bytes()
    record.unlink()
    assert main(["get", "reactome"]) == 0
    assert record.read_bytes() == before
    assert len(site.asked) == asked


def test_two_runs_at_once_are_refused(site, project, capsys):
    with only_one(project / "build" / "sources"):
        assert main(["get", "reactome"]) == 1
    assert "build/sources: another run is writing it" in capsys.readouterr().err
    assert main(["get", "reactome"]) == 0


def test_get_into_another_folder(site, project):
    assert main(["get", "reactome", "--folder", "elsewhere/model"]) == 0
    assert files_below(project / "elsewhere") == ["model/features/reactome.gmt.gz", "model/sources.json"]
    assert files_below(project / "resources") == []


def test_a_raw_file_that_is_in_the_cache_is_not_fetched_again(site, project):
    main(["get", "replogle_rpe1", "go"])
    shutil.rmtree(project / "resources")
    before = len(site.asked)
    assert main(["get", "replogle_rpe1", "go"]) == 0
    assert len(site.asked) == before
    assert len(read_record(project / "resources")) == 2


def test_a_raw_file_in_the_cache_with_another_checksum_is_fetched_again(site, project):
    (project / "build" / "sources").mkdir(parents=True)
    (project / "build" / "sources" / SOURCES["replogle_rpe1"].files[0].name).write_bytes(b"half of it")
    assert main(["get", "replogle_rpe1"]) == 0
    assert len(site.asked) == 1


def test_a_name_that_is_not_in_the_catalogue_is_said_before_anything_is_fetched(site, capsys):
    assert main(["get", "reactome", "encode"]) == 1
    assert capsys.readouterr().err == f"encode: no such source; there are {', '.join(SOURCES)}\n"
    assert site.asked == []


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_network_one_line_says_what_to_fetch_and_what_to_do_with_it(offline, project, capsys, name):
    file = SOURCES[name].files[0]
    assert main(["get", name]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{name}: ")]
    (line,) = said
    assert line == (
        f"{name}: {file.address}: its host is not found (is there a network?). Fetch it by hand as {file.name}, then: "
        f"python -m workbench.sources add {file.name} --as {SOURCES[name].kind}"
    )
    assert files_below(project / "resources") == []


def test_a_missing_file_is_said_with_the_command_for_this_folder(site, project, capsys):
    del site.files["/go-basic.obo"]
    assert main(["get", "go", "--folder", "model"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"go: {site.address}/go-basic.obo: it answers 404 Not Found. Fetch it by hand as go-basic.obo, then: "
        "python -m workbench.sources add go-basic.obo --as table --folder model"
    )
    assert (project / "build" / "sources" / "goa_human.gaf.gz").exists(), "what came stays"
    assert not (project / "model").exists()


def test_a_file_that_is_no_such_source_is_thrown_away_so_that_the_next_get_fetches_it(site, project, capsys):
    """A page of a portal in place of the file, with status 200."""
    good, site.files["/ReactomePathways.gmt.zip"] = site.files["/ReactomePathways.gmt.zip"], b"<html>sign in</html>"
    assert main(["get", "reactome"]) == 1
    assert "ReactomePathways.gmt.zip: does not have the form of this source" in capsys.readouterr().err
    assert files_below(project / "resources") == []
    site.files["/ReactomePathways.gmt.zip"] = good
    assert main(["get", "reactome"]) == 0


def test_an_interrupted_get_ends_with_130(site, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(urllib.request, "urlopen", interrupt)
    assert main(["get", "reactome"]) == 130
    assert "ReactomePathways.gmt.zip.part keeps 0.0 MB; the same command goes on" in capsys.readouterr().out


def test_list_says_what_there_is_and_what_is_here(site, capsys):
    main(["get", "go"])
    capsys.readouterr()
    assert main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["source", "knows", "download", "licence", "there", "citation"]
    assert [line.split()[0] for line in lines] == list(SOURCES)
    for line, source in zip(lines, SOURCES.values(), strict=True):
        assert line.endswith(source.citation)
        assert f"  {source.licence} " in line
        there = source.name == "go"
        assert ("  yes  " in line, "  no  " in line) == (there, not there)
    assert re.search("about 11,000 genes +0.3 MB", lines[0])
    assert re.search("  7 genes +45.0 MB", lines[1]), "what is here is counted"
    assert re.search("about 9,900 knock-downs +357.0 MB", lines[3])


def test_the_command_as_it_is_typed(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "workbench.sources", *arguments, "--folder", tmp_path]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    described = run("describe")
    assert (described.returncode, described.stdout, described.stderr) == (0, f"{record.NOTHING}\n", "")
    unknown = run("get", "encode")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# add
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_a_raw_file_fetched_by_hand_becomes_its_source(site, project, capsys, name):
    source = SOURCES[name]
    for file in source.files:
        (project / file.name).write_bytes(site.files[f"/{file.name}"])
        assert main(["add", file.name, "--as", source.kind]) == 0
    assert site.asked == []
    assert files_below(project / "resources") == sorted([source.target, "sources.json"])
    entry = read_record(project / "resources")[source.target]
    assert (entry.name, entry.origin, entry.licence) == (name, ["added by hand"], source.licence)
    waits = (
        f"{name}: {source.files[0].name} is kept in build/sources. Add its other file too: {source.files[-1].address}\n"
    )
    assert (waits in capsys.readouterr().out) == (len(source.files) == 2)


def test_a_raw_file_is_known_by_its_checksum_too(site, project):
    (project / "35775512").write_bytes(site.files["/rpe1_normalized_bulk_01.h5ad"])
    assert main(["add", "35775512", "--as", "screen"]) == 0
    assert list(read_record(project / "resources")) == ["screens/replogle_rpe1.h5ad"]


def test_a_raw_file_added_twice_changes_nothing(site, project, capsys):
    (project / "ReactomePathways.gmt.zip").write_bytes(site.files["/ReactomePathways.gmt.zip"])
    main(["add", "ReactomePathways.gmt.zip", "--as", "table"])
    assert main(["add", "ReactomePathways.gmt.zip", "--as", "table"]) == 0
    assert "reactome.gmt.gz is there already." in capsys.readouterr().out


def own_table(path):
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(4, 3)), ["PPARG", "LPL", "CEBPA", "RXRA"])
    frame.to_csv(path)
    return path


def own_screen(path, seed=2):
    frame = pd.DataFrame(np.random.default_rng(seed).normal(size=(5, 8)), KNOCK_DOWNS[:5], [f"G{i}" for i in range(8)])
    frame.to_csv(path)
    return path


def test_a_table_of_ones_own_is_checked_copied_and_recorded(project, capsys):
    own_table(project / "vectors.csv")
    arguments = ["--licence", "CC0 1.0", "--citation", "Doe et\n  al. 2025 "]
    assert main(["add", "vectors.csv", "--as", "table", *arguments]) == 0
    copied = project / "resources" / "features" / "vectors.csv"
    assert copied.read_bytes() == (project / "vectors.csv").read_bytes()
    assert "vectors.csv: resources/features/vectors.csv (0.0 MB) knows 4 genes." in capsys.readouterr().out
    (entry,) = read_record(project / "resources").values()
    assert (entry.licence, entry.citation, entry.genes, entry.origin) == (
        "CC0 1.0",
        "Doe et al. 2025",
        4,
        ["added by hand"],
    )
    assert entry.md5 == [hashlib.md5(copied.read_bytes()).hexdigest()]  # noqa: S324
    assert set(read_features(copied.parent, ["PPARG"])) == {"vectors.csv"}


def test_a_screen_of_ones_own_is_made_small(project):
    own_screen(project / "mine.csv")
    assert main(["add", "mine.csv", "--as", "screen"]) == 0
    assert files_below(project / "resources") == ["screens/mine.h5ad", "sources.json"]
    (screen,) = read_screens(project / "resources" / "screens", KNOCK_DOWNS).values()
    assert list(screen.perturbations) == sorted(KNOCK_DOWNS[:5])
    assert main(["add", "mine.csv", "--as", "screen"]) == 0, "the same again"


def test_a_file_that_lies_in_resources_already_is_recorded_where_it_is(project):
    (project / "resources" / "features").mkdir()
    path = own_table(project / "resources" / "features" / "x.csv")
    before = path.read_bytes()
    assert main(["add", str(path), "--as", "table", "--licence", "MIT"]) == 0
    assert path.read_bytes() == before
    assert read_record(project / "resources")["features/x.csv"].licence == "MIT"


def test_what_the_reader_warns_of_is_said_in_a_line(project, capsys):
    own_table(project / "vectors.csv")
    frame = pd.read_csv(project / "vectors.csv", index_col=0).assign(notes="text")
    frame.to_csv(project / "vectors.csv")
    assert main(["add", "vectors.csv", "--as", "table"]) == 0
    assert "  vectors.csv: columns left out, since they hold text: notes\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["table", "screen"])
def test_another_file_is_never_overwritten(project, capsys, kind):
    make = own_table if kind == "table" else own_screen
    make(project / "mine.csv")
    main(["add", "mine.csv", "--as", kind])
    before = {name: (project / "resources" / name).read_bytes() for name in files_below(project / "resources")}
    (project / "mine.csv").write_text(
        (project / "mine.csv").read_text().replace("PPARG", "PPARA").replace("MED1,", "MED9,")
    )
    assert main(["add", "mine.csv", "--as", kind]) == 1
    assert "another file is there already; delete it, or give mine.csv another name" in capsys.readouterr().err
    assert {name: (project / "resources" / name).read_bytes() for name in files_below(project / "resources")} == before


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "name", ["vectors.pkl", "vectors.PICKLE", "vectors.pkl.gz", "vectors.csv", "vectors.npy", "vectors.pt"]
)
@pytest.mark.parametrize("kind", ["table", "screen"])
def test_pickles_are_refused_unread(project, capsys, name, kind):
    """By name, and under the name of a table by how they begin."""
    import pickle  # noqa: PLC0415

    (project / name).write_bytes(pickle.dumps(Malicious(), protocol=4 if name == "vectors.csv" else 0))
    assert main(["add", name, "--as", kind]) == 1
    assert (
        capsys.readouterr().err
        == f"{name}: a pickle can run any code and is not read; have it as .csv, .parquet or .h5ad\n"
    )
    assert not (project / "executed").exists()
    assert files_below(project / "resources") == []


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("gone.csv", None, "table", "gone.csv: no such file"),
        ("notes.txt", b"x", "table", "notes.txt: not a feature table; use .gmt, .csv"),
        ("notes.txt", b"x", "screen", "notes.txt: not a screen"),
        ("sets.gmt", b"one\n", "table", "sets.gmt: no gene set"),
        ("sets.gmt.gz", b"\x1f\x8b\x08\x00", "table", "sets.gmt.gz: cannot be read as a feature table"),
        ("table.h5ad", b"\x89HDF", "table", "table.h5ad: cannot be read as a feature table"),
        ("table.csv", b"a\nb\n", "table", "table.csv: only one column"),
        ("screen.csv", b"a,b\nc,d\n", "screen", "screen.csv: "),
        ("caf\u00e9.csv", b"a,b\nc,1\n", "table", "ASCII only"),
        ("rpe1_normalized_bulk_01.h5ad", b"half", "screen", "but its md5 is"),
        (
            "rpe1_normalized_bulk_01.h5ad",
            b"half",
            "table",
            "belongs to the source replogle_rpe1, a screen: give --as screen",
        ),
        ("go-basic.obo", b"", "screen", "belongs to the source go, a table: give --as table"),
    ],
)
def test_what_cannot_be_added_is_said_in_one_line_and_nothing_is_written(project, capsys, name, content, kind, says):
    if content is not None:
        (project / name).write_bytes(content)
    assert main(["add", name, "--as", kind]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert files_below(project / "resources") == []


def test_the_credit_of_a_public_source_is_not_overruled(site, project, capsys):
    (project / "go-basic.obo").write_text("x")
    assert main(["add", "go-basic.obo", "--as", "table", "--licence", "mine"]) == 1
    assert "belongs to the source go, whose licence and citation are known" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The record and the credit
# ---------------------------------------------------------------------------------------------------------------------


def test_the_record_says_where_each_file_comes_from(site, project):
    main(["get", "string", "reactome"])
    kept = json.loads((project / "resources" / "sources.json").read_text())
    assert [entry["file"] for entry in kept] == ["features/reactome.gmt.gz", "features/string.csv.gz"]
    string = kept[1]
    assert string["origin"] == [f"{site.address}/{file.name}" for file in SOURCES["string"].files]
    assert string["md5"] == [
        hashlib.md5(site.files[f"/{file.name}"]).hexdigest()  # noqa: S324
        for file in SOURCES["string"].files
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", string["date"])
    assert (string["licence"], string["citation"]) == ("CC BY 4.0", SOURCES["string"].citation)


@pytest.mark.parametrize("text", ["{", "[{}]", '[{"name": "x"}]', "3"])
def test_a_record_that_cannot_be_read_is_named(project, capsys, text):
    (project / "resources" / "sources.json").write_text(text)
    assert main(["list"]) == 1
    assert capsys.readouterr().err.startswith("resources/sources.json: cannot be read (")
    (problem,) = uncredited("text", project / "resources")
    assert "resources/sources.json: cannot be read (" in problem


def test_the_description_credits_what_is_there_and_nothing_else(site, project, capsys):
    resources = project / "resources"
    assert description(resources) == record.NOTHING
    main(["get", "reactome", "replogle_rpe1", "go"])
    own_table(project / "mine.csv")
    main(["add", "mine.csv", "--as", "table", "--licence", "MIT"])
    own_table(resources / "features" / "unrecorded.csv")
    (resources / "features" / "notes.md").write_text("not read by the model")
    (resources / "features" / "go.gmt.gz").unlink()
    capsys.readouterr()
    rpe1 = SOURCES["replogle_rpe1"]
    assert main(["describe"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "The user's own table mine.csv is used (MIT).",
        f"The table reactome.gmt.gz is made of Reactome pathways (CC0 1.0; {SOURCES['reactome'].citation}).",
        "The user's own table unrecorded.csv is used.",
        f"The screen replogle_rpe1.h5ad is made of {rpe1.title} (CC BY 4.0; {rpe1.citation}).",
    ]


def test_the_stored_description_and_notebook_say_that_there_are_none():
    """As `describe --write` leaves them in the project as it is given out."""
    for name in (CRUNCH.description_file, "notebook.ipynb"):
        assert (ROOT / name).read_text().count(record.NOTHING) == 1
    assert not used_files(ROOT / "resources") or uncredited(
        (ROOT / CRUNCH.description_file).read_text(), ROOT / "resources"
    )


def test_describe_write_changes_both_copies_between_the_marks_and_nothing_else(site, project):
    page, notebook = project / CRUNCH.description_file, project / "notebook.ipynb"
    before = page.read_text(), notebook.read_text()
    main(["get", "reactome", "replogle_rpe1"])
    assert main(["describe", "--write"]) == 0
    sentences = description(project / "resources")
    assert page.read_text() == before[0].replace(record.NOTHING, sentences)
    (embedded,) = extract_from_file(notebook).embedded_files
    assert embedded.content == page.read_text().strip()
    assert len(notebook.read_text().splitlines()) == len(before[1].splitlines()) + 1, "the notebook's form is kept"
    assert validate_method_description(page) == []
    shutil.rmtree(project / "resources")
    assert main(["describe", "--write"]) == 0
    assert (page.read_text(), notebook.read_text()) == before, "and back"


@pytest.mark.parametrize("damage", ["mark", "cell", "file", "cell's mark"])
def test_describe_write_without_its_marks_changes_nothing(site, project, capsys, damage):
    page, notebook = project / CRUNCH.description_file, project / "notebook.ipynb"
    main(["get", "reactome"])
    if damage == "mark":
        page.write_text(page.read_text().replace(record.END, ""))
    if damage == "cell":
        notebook.write_text(notebook.read_text().replace("file: Method", "file: My method"))
    if damage == "cell's mark":
        notebook.write_text(notebook.read_text().replace(record.BEGIN, ""))
    if damage == "file":
        page.unlink()
    before = files_below(project), notebook.read_text(), page.exists() and page.read_text()
    assert main(["describe", "--write"]) == 1
    assert len(capsys.readouterr().err.splitlines()) > 0
    assert (files_below(project), notebook.read_text(), page.exists() and page.read_text()) == before


def test_a_description_must_credit_every_file(site, project, capsys):
    """File, licence and citation; a comment is no credit, a line break no matter."""
    page = project / CRUNCH.description_file
    main(["get", "reactome"])
    sentence = description(project / "resources")
    lacks, contradicts = validate_method_description(page)
    assert lacks == (
        "Method description.md: does not credit features/reactome.gmt.gz; add to its last section: " + sentence
    )
    assert contradicts.startswith("Method description.md: says that no external data are used")
    text = page.read_text().replace(record.NOTHING, sentence)
    assert validate_method_description(text, resources=project / "resources") == []
    assert validate_method_description(text) == []
    for harmed in (
        text.replace("reactome.gmt.gz", "pathways.gmt.gz"),
        text.replace("reactome.gmt.gz", "myreactome.gmt.gz"),
        text.replace("CC0 1.0", "free"),
        text.replace("Milacic", "Somebody"),
        text.replace(sentence, f"<!-- {sentence} -->"),
    ):
        (problem,) = validate_method_description(harmed, resources=project / "resources")
        assert "does not credit features/reactome.gmt.gz" in problem
    for same in (text.replace("made of Reactome", "made\nof\nReactome"), text.replace(sentence, f"# More\n{sentence}")):
        assert validate_method_description(same, resources=project / "resources") == []


def test_a_file_of_ones_own_must_be_named(project):
    (project / "resources" / "screens").mkdir()
    own_screen(project / "resources" / "screens" / "mine.csv")
    own_screen(project / "resources" / "screens" / "caf\u00e9.csv")
    ascii_only, lacks, _ = validate_method_description(project / CRUNCH.description_file)
    assert "give the file another name" in ascii_only
    assert lacks.endswith(
        "does not credit screens/mine.csv; add to its last section: The user's own screen mine.csv is used."
    )


def test_the_demo_reminds_of_the_credit_and_goes_on(project):
    assert demo.reminder(project) == ""
    (project / "resources" / "features").mkdir()
    own_table(project / "resources" / "features" / "mine.csv")
    said = demo.reminder(project)
    assert said.startswith("\nBefore you submit:\n  Method description.md: does not credit features/mine.csv; add")


# ---------------------------------------------------------------------------------------------------------------------
# The notebook, and what travels
# ---------------------------------------------------------------------------------------------------------------------


def notebook_cell(name):
    (cell,) = [cell for cell in nbformat.read(ROOT / "notebook.ipynb", as_version=4).cells if cell.id == name]
    return cell


def test_the_notebook_names_every_source_with_its_size():
    text = notebook_cell("sources-text").source
    for source in SOURCES.values():
        assert re.search(rf"`{source.name}`\s\({source.size / 1e6:.3g} MB", text)


def test_the_notebooks_cell_with_nothing_to_fetch_says_nothing_and_opens_no_socket(monkeypatch, capsys):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    monkeypatch.setattr(steps, "get", lambda *_: pytest.fail("something was fetched"))
    exec(notebook_cell("sources").source, {"session": session})  # noqa: S102
    assert capsys.readouterr() == ("", "")


def test_the_notebook_fetches_what_it_is_told_and_says_how_to_credit_it(site, project, capsys):
    exec(notebook_cell("sources").source.replace("[]", '["reactome", "replogle_rpe1"]'), {"session": session})  # noqa: S102
    said = capsys.readouterr().out
    assert said.endswith(f"between its two marks:\n{description(project / 'resources')}\n")
    assert set(used_files(project / "resources")) == {"features/reactome.gmt.gz", "screens/replogle_rpe1.h5ad"}
    session.fetch("reactome")
    assert "is there already" in capsys.readouterr().out


def test_what_the_notebook_cannot_fetch_ends_the_cell_with_one_line(offline, project):
    with pytest.raises(session.Stop, match=r"its host is not found .* python -m workbench\.sources add ") as stop:
        session.fetch(["string"])
    assert len(str(stop.value).splitlines()) == 1
    with pytest.raises(session.Stop, match="encode: no such source"):
        session.fetch(["encode"])


def test_sources_stay_out_of_what_travels():
    """`main.py` and the modules fetch nothing and name no host."""
    converted = extract_from_file(ROOT / "notebook.ipynb")
    kept = [ast.unparse(node) for node in ast.parse(converted.source_code).body]
    texts = ["\n".join(kept), *((ROOT / name).read_text() for name in TRAVELLING)]
    hosts = {file.address.split("/")[2] for source in SOURCES.values() for file in source.files}
    for text in texts:
        assert not any(word in text for word in ("SOURCES", "urllib", "workbench.sources", *hosts))
