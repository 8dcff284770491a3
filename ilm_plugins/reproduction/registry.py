"""Every table and figure of the papers, as ``papers.json`` lists them.

A table holds cells; a cell has one figure for each of the table's measures, and what is behind it:

    config        a file below configs/, which is trained, with ``overrides`` KEY=VALUE; or, where
                  ``tests`` names the cell that trains the checkpoint, tested alone. ``starts from``
                  names the cell that trains the backbone
    of            the arguments of the function that ``compute`` names for the whole table, in
                  :mod:`.computed`
    neither       not implemented here

``says`` is the paper's word where it gives no number. A figure of the papers either has cells of
its own, or ``shows`` the curves of tables, or has a ``command`` behind it. Where it shows figures
``against`` a quantity, that stands with its value at the end of cells' names: "GN, batch 64".
"""

import difflib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import UserError

ROOT = Path(__file__).parents[2]
LIST = "tools/reproduce.py list"
NOT_HERE = "not implemented here"


@dataclass(frozen=True)
class Measure:
    """How a figure is read.

    Attributes:
        unit, better: of the figure; "lower" or "higher".
        metrics: name in a framework's output -> (a, b), where the figure is a + b * metric.
        options: those of tools/train_net.py for the test that gives it.
    """

    unit: str
    better: str
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        return f"{self.unit}, {self.better} is better".removeprefix(", ")

    def read(self, metrics: dict[str, float]) -> float | None:
        """The figure, in ``unit``; None where no metric gives it."""
        for name, (offset, factor) in self.metrics.items():
            if metrics.get(name) is not None:
                return offset + factor * metrics[name]
        return None


@dataclass(frozen=True)
class Cell:
    """One row of a table; see above."""

    table: str
    name: str
    paper: tuple[float | None, ...]
    config: str | None = None
    overrides: tuple[str, ...] = ()
    of: dict | None = None
    says: str | None = None
    starts_from: str | None = None
    tests: str | None = None

    @property
    def id(self) -> str:
        return f"{self.table} {self.name}"

    @property
    def experiment(self) -> tuple:
        """What is run: cells that agree in it share their runs."""
        return self.config, self.overrides, self.tests

    @property
    def folder(self) -> Path:
        """Where its runs are, below the folder of all."""
        return Path(self.table, re.sub(r"[^\w.+]+", "-", self.name).strip("-"))


@dataclass(frozen=True)
class Table:
    """A table or a figure of a paper; see above."""

    id: str
    paper: str
    number: str
    title: str
    measures: tuple[str, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    compute: str | None = None
    shows: tuple[str, ...] = ()
    against: str | None = None
    command: str | None = None
    note: str | None = None

    @property
    def decimals(self) -> tuple[int, ...]:
        """Behind the point of the paper's figures, for each measure."""
        columns = zip(*(cell.paper for cell in self.cells.values()), strict=True)
        return tuple(
            max((len(str(v).partition(".")[2]) for v in column if isinstance(v, float)), default=0)
            if any(v is not None for v in column)
            else 2
            for column in columns
        )


@cache
def _content() -> dict:
    return json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))


@cache
def papers() -> dict[str, str]:
    """Key of a paper -> its title and where it appeared."""
    return {key: f"{p['title']}, {p['source']}" for key, p in _content()["papers"].items()}


@cache
def measures() -> dict[str, Measure]:
    """All measures by their names."""
    return {name: Measure(**_tuples(m)) for name, m in _content()["measures"].items()}


@cache
def tables() -> dict[str, Table]:
    """All tables and figures by their ids."""
    found = {}
    for paper, content in _content()["papers"].items():
        for key, options in content["tables"].items():
            options = dict(options)
            cells = {
                name: Cell(key, name, **_tuples(cell))
                for name, cell in options.pop("cells", {}).items()
            }
            found[key] = Table(key, paper, cells=cells, **_tuples(options))
    return found


def _tuples(entry: dict) -> dict:
    """An entry of the file as arguments."""
    lists = {k.replace(" ", "_"): v for k, v in entry.items()}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in lists.items()}


@cache
def homes() -> dict[tuple, Cell]:
    """Experiment -> the first cell that it is behind, under which its runs are saved."""
    found: dict[tuple, Cell] = {}
    for table in tables().values():
        for cell in table.cells.values():
            if cell.config:
                found.setdefault(cell.experiment, cell)
    return found


def home(cell: Cell) -> Cell:
    """The cell under which another's runs are saved: their experiment is the same."""
    return homes()[cell.experiment] if cell.config else cell


def one_table(word: str) -> Table:
    """The table or figure that a user means, by its id.

    Raises:
        UserError: there is none; names near ones.
    """
    (key,) = _match(word, tables(), "table", LIST)
    return tables()[key]


def find(table: str, cell: str | None = None) -> list[Cell]:
    """The cells that a user means.

    Args:
        table: its id, in any case and with any separators: ``en-5``, ``EN 5``.
        cell: its name, likewise; or how the names of several begin; None for all.

    Raises:
        UserError: there is no such table or cell, or nothing to run in it; names near ones.
    """
    found = one_table(table)
    shown = [tables()[key] for key in found.shows] or [found]
    names = dict.fromkeys(name for one in shown for name in one.cells)
    if not names:
        what = f"run {found.command}" if found.command else "it is a drawing"
        raise UserError(f"{found.id}, {found.number}, has no cells to run; {what}")
    if cell is not None:
        source = f"{LIST} {found.id}"
        names = _match(cell, names, f"cell of {found.id}", source, prefixes=True)
    return [one.cells[name] for one in shown for name in names if name in one.cells]


def named(cell_id: str) -> Cell:
    """The cell of an id such as ``en-2 ResNet50/EN``."""
    (cell,) = find(*cell_id.split(" ", 1))
    return cell


def _match(word: str, names, what: str, source: str, prefixes: bool = False) -> list[str]:
    folded = {_fold(name): name for name in names}
    key = _fold(word)
    if key in folded:
        return [folded[key]]
    begun = [name for fold, name in folded.items() if prefixes and key and fold.startswith(key)]
    if begun:
        return begun
    near = difflib.get_close_matches(key, folded, n=4, cutoff=0.4) or list(folded)[:4]
    hint = ", ".join(repr(folded[fold]) for fold in near)
    raise UserError(f"no {what} {word!r}; near ones are {hint}; see {source}")


def _fold(name: str) -> str:
    return re.sub(r"[\s/_,-]+", "", name.lower())
