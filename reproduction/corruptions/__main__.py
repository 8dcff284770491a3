"""Commands: python -m reproduction.corruptions lines | run NAME | merge [FOLDER]."""

import argparse
import sys
from pathlib import Path

from . import records, study


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reproduction.corruptions", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lines", help="print the names of all lines in their order")
    run = commands.add_parser("run", help="train and test what a line names, and write its rows")
    run.add_argument("name")
    merge = commands.add_parser(
        "merge", help="add new rows of runs to reproduction/records/corruptions.csv"
    )
    merge.add_argument("folder", nargs="?", type=Path, default=study.RECORDS)
    options = parser.parse_args()
    named = dict(study.lines())
    if options.command == "lines":
        print(*named, sep="\n")
    elif options.command == "merge":
        before, found = len(study.committed()), study.known(options.folder)
        records.write(study.COMMITTED, found.values())
        print(f"{study.COMMITTED}: {len(found)} rows, {len(found) - before} new")
    elif options.name in named:
        named[options.name]()
    else:
        sys.exit(f"{options.name!r}: no such line; the command lines prints all")


if __name__ == "__main__":
    main()
