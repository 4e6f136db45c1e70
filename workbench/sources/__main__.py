"""Tell the model more of the genes: public gene sets, graphs and screens, fetched into `resources/` and credited.

    python -m workbench.sources list                         what there is
    python -m workbench.sources get reactome replogle_rpe1   fetch, make small, record
    python -m workbench.sources add FILE --as screen         a file that you fetched yourself; or --as table
    python -m workbench.sources describe --write             credit all of it in the method description

In: the network, or a file. Out: `resources/features/`, `resources/screens/`, `resources/sources.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from helpers import DataError, text_size
from workbench.commands import one_line
from workbench.sources import record, steps
from workbench.sources.catalogue import SOURCES


def listing(resources: Path) -> str:
    """The catalogue as a table: what each source knows, takes and costs in credit, and whether it is in `resources`."""
    rows = [("source", "knows", "download", "licence", "there", "citation")]
    entries = record.read_record(resources)
    for source in SOURCES.values():
        what = "knock-downs" if source.kind == "screen" else "genes"
        entry = entries.get(source.target)
        knows = f"{entry.genes:,} {what}" if entry else f"about {source.genes:,} {what}"
        there = "yes" if (resources / source.target).exists() else "no"
        rows.append((source.name, knows, text_size(source.size), source.licence, there, source.citation))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when all went well, 1 with one line that says what did not, 130 when interrupted."""
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--folder", type=Path, default=steps.RESOURCES, help="default: resources")
    parser = argparse.ArgumentParser(prog="python -m workbench.sources", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[folder], help="what there is")
    get = commands.add_parser("get", parents=[folder], help="fetch sources, make them small, record them")
    get.add_argument("names", nargs="+", metavar="NAME")
    add = commands.add_parser("add", parents=[folder], help="take a file that you fetched yourself")
    add.add_argument("file", type=Path, metavar="FILE")
    add.add_argument("--as", dest="kind", choices=["screen", "table"], required=True)
    add.add_argument("--licence", default="", help="of a file of your own, for the method description")
    add.add_argument("--citation", default="", help="likewise")
    describe = commands.add_parser("describe", parents=[folder], help="print what credits all of it")
    describe.add_argument("--write", action="store_true", help="into Method description.md and notebook.ipynb")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (DataError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "list":
        print(listing(options.folder))
    elif options.command == "get":
        steps.get(options.names, options.folder)
    elif options.command == "add":
        steps.add(options.file, options.kind, options.folder, licence=options.licence, citation=options.citation)
    elif options.write:
        print("Written:", ", ".join(map(str, record.write_description(Path(), options.folder))))
    else:
        print(record.description(options.folder))
    if options.command in ("get", "add") and record.used_files(options.folder):
        print("Credit it in the method description: python -m workbench.sources describe --write")


if __name__ == "__main__":
    raise SystemExit(main())
