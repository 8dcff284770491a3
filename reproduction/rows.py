"""The commands ``list`` and ``run``: list and run the papers' tables and figures."""

import argparse
import os
import shlex
import textwrap
from dataclasses import fields

import torch

from ilm_plugins.comparison import compare_plan
from ilm_plugins.errors import UserError, say
from ilm_plugins.files import make_folder

from .papers import computed, published
from .papers.options import Options
from .papers.paper_runs import comparisons, obstacle


def run(args: argparse.Namespace) -> int | None:
    return {"list": list_, "run": train}[args.action](args)


def list_(args: argparse.Namespace) -> None:
    """Print the tables that have rows, or one table's rows with the sources of their figures."""
    if not args.table:
        say("Tables, and how many rows they have; reproduction list TABLE has the rows")
        tables = published.tables().values()
        for table in (table for table in tables if table.cells):
            line = f"{table.id:10} {len(table.cells):2}  {table.title}"
            say(textwrap.fill(line, 80, subsequent_indent=" " * 15))
        figures = [t.id for t in tables if not t.cells and (t.shows or t.command)]
        say(textwrap.fill(f"Figures of them: {', '.join(figures)}", 80, break_on_hyphens=False))
        return
    table = published.find_table(args.table)
    paper = published.papers()[table.paper]
    say(f"{table.id}  {paper.title}, {paper.source}, {table.number}: {table.title}")
    data = table.shows and f"data of {', '.join(table.shows)}"
    lines = [paper.url, table.note, table.command, data, " / ".join(table.measures)]
    width = max(map(len, table.cells), default=0)
    for cell in table.cells.values():
        source = "computed"
        if cell.config:
            source = shlex.join(
                [published.argument(cell.config), *filter(None, [cell.norm]), *cell.overrides]
            )
        text = " / ".join(table.texts(cell.paper))
        if cell.says and not any(cell.paper):
            text = cell.says
        lines.append(f"{cell.name:{width}}  {text:17}  {source}")
    say(*filter(None, lines))


def train(args: argparse.Namespace) -> int:
    """Compute or train rows; print their figures, and return the exit status."""
    if args.num_gpus is None:
        args.num_gpus = min(1, torch.cuda.device_count())
    if args.num_gpus == 0:
        # Before a framework is imported: wherever one sees a GPU, it picks CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    make_folder(args.work_dir)
    options = Options(**{f.name: getattr(args, f.name) for f in fields(Options)})
    lines, trained, obstacles = [], [], []
    for cell in published.find(args.table, args.row):
        if cell.config is None:
            lines.append(computed.line(cell))
        elif reason := obstacle(cell, options):
            obstacles.append(reason)
        else:
            trained.append(cell)
    if obstacles and not trained:
        raise UserError(obstacles[0])
    status, command = 0, shlex.join(["python", "-m", "reproduction", *args.argv])
    for comparison in [*comparisons(trained, options)]:
        results = compare_plan(comparison.plan, command)
        lines += comparison.lines()
        status |= not results.main
    say(*lines, *(f"not run: {reason}" for reason in obstacles))
    return int(status)
