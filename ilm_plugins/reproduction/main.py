"""The command line of the reproduction; see ``tools/reproduce.py``."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields

from ..checkpoints import loading
from ..frameworks.command import add_traceback, command, example, positive, user_path
from . import record, registry, report, run, run_settings
from .registry import Cell, Table


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands: list, run or report.

    Args:
        argv: the command line without the program's name; default: ``sys.argv[1:]``. Its words
            KEY=VALUE may stand anywhere; they are overrides for "run", and without effect on
            the other commands.

    Returns:
        The exit status: 0; 1 if a run failed; 2 after any other error, such as one in the settings
        of a run; 128 + its number after a signal. Each error is printed to stderr as one line.

    Raises:
        SystemExit: the command line is invalid, or asks for help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Overrides may stand anywhere; taken out first, they are not read as values of options.
    overrides = [word for word in words if run_settings.OVERRIDE.match(word)]
    args = parser().parse_args([word for word in words if word not in overrides])
    args.overrides = overrides
    with loading(unsafe=getattr(args, "unsafe", False)):
        return command(lambda: args.command(args), args, resumes=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the commands list, run and report, which does not know overrides.

    The parsed ``command`` is the function to call with the arguments.
    """
    p = argparse.ArgumentParser(
        description="The papers' tables and figures, run here.",
        epilog=example(
            "reproduce list en-5", "reproduce run en-5 ResNet20/EN --miniature --num-gpus 0"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(required=True, metavar="list | run | report")
    listing = commands.add_parser("list", help="every table and figure, and what is behind it")
    listing.set_defaults(command=list_)
    listing.add_argument("table", nargs="?", help="one of them, such as en-5")

    running = commands.add_parser(
        "run",
        help="train and test a table's rows, or continue them",
        usage="%(prog)s TABLE [ROW] [KEY=VALUE ...] [options]",
        epilog="Runs are in WORK_DIR/TABLE/ROW/seedN, each with its record.json. Words "
        "KEY=VALUE anywhere are overrides for the command train, of all rows alike.",
    )
    running.set_defaults(command=run_)
    running.add_argument("table", help="such as en-5; 'list' has them all")
    running.add_argument(
        "cell", nargs="?", metavar="row", help="such as ResNet20/EN, or how several begin"
    )
    running.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    shorter = running.add_mutually_exclusive_group()
    shorter.add_argument(
        "--miniature",
        action="store_true",
        help="two epochs or iterations on a few generated images",
    )
    for unit in ("epochs", "iterations"):
        shorter.add_argument(
            f"--{unit}",
            type=positive,
            metavar="N",
            help="train for N, with the schedule scaled to it; the result's label says so",
        )
    running.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        metavar="N",
        help="stop after N minutes; the same command resumes",
    )
    running.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs of each run; 0 for the CPU"
    )
    running.add_argument("--jobs", type=positive, default=1, help="runs at once, sharing a device")
    running.add_argument("--data", metavar="DIR", help="the images; default: the config's folder")
    running.add_argument(
        "--augment-batches",
        action="store_true",
        help="crop and flip whole batches of CIFAR's images, on the device that trains",
    )
    running.add_argument("--unsafe", action="store_true", help="run code that files of runs hold")

    reporting = commands.add_parser("report", help="write tables and plots of runs")
    reporting.set_defaults(command=report_)
    reporting.add_argument(
        "--output",
        type=user_path,
        metavar="DIR",
        help="add the runs to the records in DIR/records, and write DIR again; default: "
        "WORK_DIR/reports; 'reports' is this project's own",
    )
    for each in (running, reporting):
        each.add_argument(
            "--work-dir", type=user_path, default=run_settings.DEFAULT_WORK_DIR, metavar="DIR"
        )
    for each in (listing, running, reporting):
        add_traceback(each)
    return p


def list_(args: argparse.Namespace) -> None:
    """Print all tables and figures with their cells, or only ``args.table`` if it is not None.

    Raises:
        UserError: there is no such table.
    """
    chosen = [registry.find_table(args.table)] if args.table else registry.tables().values()
    for table in chosen:
        print(f"\n{table.id}  {registry.papers()[table.paper]}, {table.number}: {table.title}")
        if table.note:
            print(f"  {table.note}")
        if table.cells or table.shows:
            print(f"  python -m ilm_plugins reproduce run {table.id}")
        print(*(f"  {row}" for row in _rows(table)), sep="\n")


def _rows(table: Table) -> list[str]:
    """Return the lines that list a table's cells: a heading, then name, paper's figures and source.

    A cell for which the paper has no number has the paper's text, if any, in place of its figures.
    For a figure without cells: the tables that it shows and its command, or "-" for none.
    """
    if not table.cells:
        rows = [f"{table.shown} of {', '.join(table.shows)}"] if table.shows else []
        return rows + ([table.command] if table.command else []) or ["-"]
    width = max(map(len, table.cells))
    figures = [report.figures(table, cell.paper) for cell in table.cells.values()]
    most = max(map(len, [*figures, " / ".join(table.measures)]))
    rows = [f"{'':{width}}  {' / '.join(table.measures):{most}}"]
    for cell, paper in zip(table.cells.values(), figures, strict=True):
        paper = cell.says if not any(cell.paper) and cell.says else paper
        rows.append(f"{cell.name:{width}}  {paper:{most}}  {_source(cell)}")
    return rows


def _source(cell: Cell) -> str:
    """Return what gives a cell's figures: its config and overrides, or "computed"."""
    if cell.config:
        return shlex.join([cell.config, *cell.overrides])
    return "computed"


def run_(args: argparse.Namespace) -> int:
    """Train, test or compute the chosen cells; return the exit status of :func:`.run.run_all`."""
    options = run.Options(**{f.name: getattr(args, f.name) for f in fields(run.Options)})
    planned = run.plan(registry.find(args.table, args.cell), options)
    return run.run_all(planned, options)


def report_(args: argparse.Namespace) -> None:
    """Copy the records of runs below ``args.work_dir`` to OUTPUT/records; write reports to OUTPUT.

    OUTPUT is ``args.output``, or ``reports`` in the work_dir if that is None. The paths of the
    reports are printed. For the records that :func:`.record.collect` removes or replaces, see that
    function.

    Raises:
        UserError: a record is invalid, or contradicts a collected one; see also
            :func:`.report.write`.
    """
    records = (args.output or args.work_dir / "reports") / "records"
    for path in sorted(args.work_dir.rglob(run.RECORD)):
        record.collect(record.read(path), records)
    for path in report.write(records):
        print(path)
