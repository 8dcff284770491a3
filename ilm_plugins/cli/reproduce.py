"""The command ``reproduce``: list, run and report the papers' tables and figures."""

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from itertools import takewhile

from ..frameworks.record import FILE
from ..reproduction import record, registry, report
from ..reproduction.run import Options, run_all
from .command import command, new_parser, positive, user_path

#: A word KEY=VALUE.
OVERRIDE = re.compile(r"\w+(\.\w+)*=")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; words KEY=VALUE at the end are overrides."""
    words = list(sys.argv[1:] if argv is None else argv)
    number = len(list(takewhile(OVERRIDE.match, reversed(words))))
    args = parser().parse_args(words[: len(words) - number])
    args.overrides = words[len(words) - number :]
    return command(lambda: args.command(args))


def parser() -> argparse.ArgumentParser:
    """Return the parser of all but the overrides; ``command`` is the function to call."""
    p = new_parser(
        "The papers' tables and figures, run here.",
        "reproduce list en-5",
        "reproduce run en-5 ResNet20/EN --miniature --num-gpus 0",
    )
    commands = p.add_subparsers(required=True, metavar="list | run | report")
    listing = commands.add_parser("list", help="the tables, or one table's rows")
    listing.set_defaults(command=list_)
    listing.add_argument("table", nargs="?", help="such as en-5")

    running = commands.add_parser(
        "run",
        help="train and test a table's rows, or continue them",
        usage="%(prog)s TABLE [ROW] [options] [KEY=VALUE ...]",
        epilog="Runs are in WORK_DIR/TABLE/ROW/seedN, each with its record.json. Words "
        "KEY=VALUE at the end are overrides of the config.",
    )
    running.set_defaults(command=run)
    add = running.add_argument
    add("table", help="such as en-5; 'list' has them all")
    add("row", nargs="?", help="such as ResNet20/EN; default: all")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    shorter = running.add_mutually_exclusive_group()
    what = "a length of two, on a few generated images"
    shorter.add_argument("--miniature", action="store_true", help=what)
    what = "train for N, with the schedule scaled to it; the result's label says so"
    for unit in ("epochs", "iterations"):
        shorter.add_argument(f"--{unit}", type=positive, metavar="N", help=what)
    add("--num-gpus", type=int, metavar="N", help="GPUs of each run; 0 for the CPU")
    add("--data", type=user_path, metavar="DIR", help="the images; default: the config's folder")
    what = "run code that checkpoints and yaml configs hold"
    add("--unsafe", action="store_true", help=what)

    reporting = commands.add_parser("report", help="write tables and plots of runs")
    reporting.set_defaults(command=write_report)
    what = "add the runs to DIR/records, and write DIR again; default: WORK_DIR/reports"
    reporting.add_argument("--output", type=user_path, metavar="DIR", help=what)
    for each in (running, reporting):
        each.add_argument("--work-dir", type=user_path, default=Options.work_dir, metavar="DIR")
    return p


def list_(args: argparse.Namespace) -> None:
    """Print a line for each table, or one table with its rows and what gives their figures."""
    if not args.table:
        for table in registry.tables().values():
            rows = f"{len(table.cells)} rows" if table.cells else ""
            print(f"{table.id:11} {table.number:10} {rows:8} {table.title}"[:100])
        print("reproduce list TABLE has its rows")
        return
    table = registry.find_table(args.table)
    print(f"{table.id}  {registry.papers()[table.paper]}, {table.number}: {table.title}")
    shown = table.shows and f"curves of {', '.join(table.shows)}"
    lines = [table.note, table.command, shown, " / ".join(table.measures)]
    width = max(map(len, table.cells), default=0)
    for cell in table.cells.values():
        source = shlex.join([cell.config, *cell.overrides]) if cell.config else "computed"
        text = (not any(cell.paper) and cell.says) or report.figures(table, cell.paper)
        lines.append(f"{cell.name:{width}}  {text:17}  {source}")
    print(*filter(None, lines), sep="\n")


def run(args: argparse.Namespace) -> int:
    # An exception ends the training, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if args.miniature:
        args.work_dir /= "miniature"
    options = Options(**{f.name: getattr(args, f.name) for f in fields(Options)})
    return run_all(registry.find(args.table, args.row), options)


def write_report(args: argparse.Namespace) -> None:
    """Add the records of runs to a folder of records, write its report, and print the paths."""
    records = (args.output or args.work_dir / "reports") / "records"
    for path in sorted(args.work_dir.rglob(FILE)):
        found = record.read(path)
        if "table" in found:  # a training that was killed lacks it until it goes on
            record.collect(found, records)
    print(*report.write(records), sep="\n")
