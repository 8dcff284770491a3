"""Every table and figure of the papers, as ``papers.json`` lists them, and of ``study.json``.

A table has cells, which are its rows. A cell has one value of the paper for each of the table's
measures, and one of these sources:

    config        a file of the checkout, which is trained, with ``overrides`` KEY=VALUE; where
                  ``norm`` is given, with that norm at the keys ``at``, or wherever the config has
                  a norm, as ``compare`` puts norms; where ``tests`` names another cell, that
                  cell's checkpoint is tested and nothing is trained; where ``starts_from`` names
                  one, its checkpoint is the backbone
    of            the arguments of the function in :mod:`.computed` that the table's ``compute``
                  names

A cell without ``config``, ``at`` or ``imports``, the modules that register its data, has its
table's.
``says`` is the paper's text where it gives no number. In the study, which has no figures of a
paper, ``against`` names the row of the norm that the row's norm replaces. A table's ``note`` says
which settings of its recipes the paper leaves open, and the overrides for the alternatives.
A figure of the papers has cells of its own, or ``shows`` the curves of tables, or has a
``command`` that makes it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ilm_plugins.configs import SCHEME
from ilm_plugins.errors import UserError

#: The checkout, to which the paths of configs are relative.
ROOT = Path(__file__).parents[2]
LIST = "python -m reproduction list"


@dataclass(frozen=True)
class Paper:
    """A paper, or this project's study, which has no URL."""

    name: str
    title: str
    #: Where it appeared.
    source: str
    url: str = ""


@dataclass(frozen=True)
class Measure:
    """One column of a table, and how to compute it from the metrics of a framework."""

    unit: str
    better: str
    #: Name in a framework's output -> (a, b), where the value is a + b * metric.
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: The test that gives the metrics, as a record calls it: "" or "tta".
    test: str = ""
    #: Whether the paper defines the measure; if not, reports give no difference.
    comparable: bool = True

    def read(self, metrics: dict[str, float]) -> float | None:
        """Compute the value from the first metric that is there, or return None."""
        for name, (offset, factor) in self.metrics.items():
            if metrics.get(name) is not None:
                return offset + factor * metrics[name]
        return None


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of a table; the module's docstring explains the attributes."""

    table: str
    name: str
    #: The paper's figure for each of the table's measures, or None.
    paper: list[float | None]
    config: str | None = None
    norm: str | None = None
    at: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    against: str | None = None
    overrides: list[str] = field(default_factory=list)
    of: dict | None = None
    says: str | None = None
    starts_from: str | None = None
    tests: str | None = None

    @property
    def id(self) -> str:
        """The table's id and the row's name, such as ``en-2 ResNet50/EN``."""
        return f"{self.table} {self.name}"


@dataclass(frozen=True, eq=False)
class Table:
    """A table or a figure (drawing) of a paper; the module's docstring explains the attributes."""

    id: str
    #: Key of the paper in :func:`papers`.
    paper: str
    #: As in the paper, such as "Table 5".
    number: str
    title: str
    #: Names of the columns, keys of :func:`measures`.
    measures: list[str] = field(default_factory=list)
    config: str | None = None
    at: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)
    compute: str | None = None
    shows: list[str] = field(default_factory=list)
    #: Figure of a random guess, in the first column.
    chance: float | None = None
    #: A run whose first figure is below this did not learn.
    learned_from: float | None = None
    command: str | None = None
    note: str | None = None
    #: In plain words, if the table compares norms with intervals.
    task: str | None = None

    @property
    def decimals(self) -> list[int]:
        """For each measure, the most decimals in the paper; if none, 2, or 3 without a unit."""
        decimals = []
        for i, name in enumerate(self.measures):
            given = [cell.paper[i] for cell in self.cells.values() if cell.paper[i] is not None]
            others = 2 if measures()[name].unit else 3
            decimals.append(max((len(str(v).partition(".")[2]) for v in given), default=others))
        return decimals

    def texts(self, numbers: Iterable[float | None], sign: str = "") -> list[str]:
        """Format a number, or "-" for None, for each of the measures."""
        # Adding 0 turns a rounded -0.0 into 0.0.
        return [
            "-" if number is None else f"{round(number, n) + 0:{sign}.{n}f}"
            for number, n in zip(numbers, self.decimals, strict=True)
        ]


@cache
def _papers_file() -> dict:
    papers_json, study = (
        json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
        for name in ("papers.json", "study.json")
    )
    return {**papers_json, "papers": papers_json["papers"] | study["papers"]}


@cache
def papers() -> dict[str, Paper]:
    return {
        key: Paper(**{name: text for name, text in paper.items() if name != "tables"})
        for key, paper in _papers_file()["papers"].items()
    }


@cache
def measures() -> dict[str, Measure]:
    return {name: Measure(**m) for name, m in _papers_file()["measures"].items()}


def images() -> dict[str, list[int]]:
    """Return dataset -> number of images in training, validation and for a benchmark's server.

    Of COCO's 118,287 training images, both frameworks leave out 1,021 without objects.
    """
    return _papers_file()["images"]


@cache
def tables() -> dict[str, Table]:
    """Return id -> table, for all tables and figures of all papers, in the order of the file."""
    listed = {}
    for paper, content in _papers_file()["papers"].items():
        for key, options in content["tables"].items():
            common = {"paper": [None] * len(options.get("measures", ()))}
            common |= {
                name: options[name] for name in ("config", "at", "imports") if name in options
            }
            rows = {n: Cell(key, n, **{**common, **c}) for n, c in options.get("cells", {}).items()}
            listed[key] = Table(key, paper, **{**options, "cells": rows})
    return listed


def cells() -> list[Cell]:
    return [cell for table in tables().values() for cell in table.cells.values()]


def argument(config: str) -> str:
    """Return a config as commands take it."""
    below = config.removeprefix("configs/")
    return config if below == config else SCHEME + below


def find_table(key: str) -> Table:
    """Return the table or figure of an id, such as ``en-5``; UserError if there is none."""
    if key not in tables():
        raise UserError(f"no table {key!r}; see {LIST}")
    return tables()[key]


def find(table: str, row: str | None = None) -> list[Cell]:
    """Return a table's row of that name, or all its rows; of a figure, the rows of its tables."""
    entry = find_table(table)
    rows = [c for key in entry.shows or [table] for c in tables()[key].cells.values()]
    if not rows:
        what = f"run {entry.command}" if entry.command else "it is a drawing"
        raise UserError(f"{table}, {entry.number}, has no rows to run; {what}")
    chosen = [cell for cell in rows if row in (None, cell.name)]
    if not chosen:
        raise UserError(f"no row {row!r} of {table}; see {LIST} {table}")
    return chosen


def find_cell(cell_id: str) -> Cell:
    table, name = cell_id.split(" ", 1)
    return tables()[table].cells[name]
