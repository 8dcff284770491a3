"""Every table and figure of the papers, as ``papers.json`` lists them.

A table has cells, which are its rows. A cell has one value of the paper for each of the table's
measures, and one of these sources:

    config        a file below configs/, which is trained, with ``overrides`` KEY=VALUE; where
                  ``tests`` names another cell, that cell's checkpoint is tested and nothing is
                  trained; where ``starts from`` names one, its checkpoint is the backbone
    of            the arguments of the function in :mod:`.computed` that the table's ``compute``
                  names

``says`` is the paper's text where it gives no number. A table's ``note`` says what of its recipes
the paper leaves open or contradicts, what is assumed, and the overrides for the alternatives.
A figure of the papers has cells of its own, or ``shows`` the curves of tables, or has a
``command`` that makes it. If it plots values ``against`` a quantity, the names of cells end in the
quantity and its value: "GN, batch 64". If it ``compares`` norms, cells are named "NETWORK/NORM",
and their gains over the first norm are drawn.
"""

import difflib
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..configs import FOLDER
from ..errors import UserError

#: The folder that holds ``configs/``.
ROOT = FOLDER.parent
LIST = "python -m ilm_plugins reproduce list"


@dataclass(frozen=True)
class Measure:
    """One column of a table, and how to compute it from the metrics of a framework.

    Attributes:
        unit: unit of the values, such as "%"; may be empty.
        better: "lower" or "higher".
        metrics: name in a framework's output -> (a, b), where the value is a + b * metric.
        options: options of tools/train_net.py for the test that gives the metrics.
        comparable: False if the paper does not define it; reports then give no difference.
    """

    unit: str
    better: str
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    comparable: bool = True

    @property
    def described(self) -> str:
        """Unit and direction in words, such as "%, lower is better"."""
        return f"{self.unit}, {self.better} is better".removeprefix(", ")

    def read(self, metrics: dict[str, float]) -> float | None:
        """Compute the value from metrics, name -> value; None if none of this measure's is there.

        Of several, the first in :attr:`metrics` is used.
        """
        for name, (offset, factor) in self.metrics.items():
            if metrics.get(name) is not None:
                return offset + factor * metrics[name]
        return None


@dataclass(frozen=True)
class Cell:
    """One row of a table; the module's docstring explains the attributes.

    Attributes:
        paper: the paper's figure for each of the table's measures; None where it has none.
    """

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
        """The table's id and the cell's name, such as ``en-2 ResNet50/EN``."""
        return f"{self.table} {self.name}"

    @property
    def file(self) -> str:
        """Path of the config; there must be one."""
        return str(ROOT / self.config)

    @property
    def experiment(self) -> tuple:
        """Config, overrides and tested cell: cells with equal ones share their runs."""
        return self.config, self.overrides, self.tests

    @property
    def folder(self) -> Path:
        """Folder of the cell's runs, relative to the folder of all runs."""
        return Path(self.table, re.sub(r"[^\w.+]+", "-", self.name).strip("-"))


@dataclass(frozen=True)
class Table:
    """A table or a figure (drawing) of a paper; the module's docstring explains the attributes.

    Attributes:
        id: such as ``en-5``.
        paper: key of the paper in :func:`papers`.
        number: as in the paper, such as "Table 5".
        measures: names of the columns, keys of :func:`measures`.
        chance: figure of a random guess, in the first column; None if it is of no interest.
        cells: name -> cell, in the paper's order.
    """

    id: str
    paper: str
    number: str
    title: str
    measures: tuple[str, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    compute: str | None = None
    shows: tuple[str, ...] = ()
    against: str | None = None
    compares: tuple[str, ...] = ()
    chance: float | None = None
    command: str | None = None
    note: str | None = None

    @property
    def shown(self) -> str:
        """What a figure takes from the tables that it ``shows``: "curves" or "figures"."""
        return "figures" if self.compares else "curves"

    @property
    def decimals(self) -> tuple[int, ...]:
        """For each measure, the most decimals of a figure in the paper; 2 if it gives no figure.

        Empty for a table without cells.
        """
        columns = zip(*(cell.paper for cell in self.cells.values()), strict=True)
        return tuple(
            max((len(str(v).partition(".")[2]) for v in column if isinstance(v, float)), default=0)
            if any(v is not None for v in column)
            else 2
            for column in columns
        )


@cache
def _papers_file() -> dict:
    """Load ``papers.json``."""
    return json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))


@cache
def papers() -> dict[str, str]:
    """Return key of each paper -> its title and where it appeared."""
    return {key: f"{p['title']}, {p['source']}" for key, p in _papers_file()["papers"].items()}


@cache
def measures() -> dict[str, Measure]:
    """Return name -> measure, for all tables."""
    return {name: Measure(**_as_arguments(m)) for name, m in _papers_file()["measures"].items()}


@cache
def tables() -> dict[str, Table]:
    """Return id -> table, for all tables and figures of all papers, in the order of the file.

    The dict is cached, so callers must not change it.
    """
    found = {}
    for paper, content in _papers_file()["papers"].items():
        for key, options in content["tables"].items():
            options = dict(options)
            cells = {
                name: Cell(key, name, **_as_arguments(cell))
                for name, cell in options.pop("cells", {}).items()
            }
            found[key] = Table(key, paper, cells=cells, **_as_arguments(options))
    return found


def _as_arguments(entry: dict) -> dict:
    """Turn an entry of ``papers.json`` into arguments: "_" for spaces, tuples for lists."""
    lists = {k.replace(" ", "_"): v for k, v in entry.items()}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in lists.items()}


def cells() -> list[Cell]:
    """Return the cells of all tables, in order."""
    return [cell for table in tables().values() for cell in table.cells.values()]


def canonical_cell(cell: Cell) -> Cell:
    """Return the first cell with the same experiment, in whose folder the runs are saved."""
    if cell.config is None:
        return cell
    return next(other for other in cells() if other.experiment == cell.experiment)


def find_table(word: str) -> Table:
    """Return the table or figure of an id, ignoring case and separators (spaces and any of "/_,-").

    Raises:
        UserError: there is no such table; the message suggests similar ids.
    """
    (key,) = _match(word, tables(), "table", LIST)
    return tables()[key]


def find(table: str, cell: str | None = None) -> list[Cell]:
    """Return the cells that a user asks for.

    Args:
        table: id of a table or figure, in any case and with any separators: ``en-5``, ``EN 5``.
        cell: name of a cell, likewise, or the beginning of one or several names; None for all
            cells. A full name counts as such, even if longer names begin with it.

    Returns:
        Cells of the table, in the paper's order; for a figure that ``shows`` tables, of those.

    Raises:
        UserError: there is no such table or cell (the message suggests similar ones), or the table
            has no cells to run.
    """
    found = find_table(table)
    shown = [tables()[key] for key in found.shows] or [found]
    names = dict.fromkeys(name for one in shown for name in one.cells)
    if not names:
        what = f"run {found.command}" if found.command else "it is a drawing"
        raise UserError(f"{found.id}, {found.number}, has no rows to run; {what}")
    if cell is not None:
        source = f"{LIST} {found.id}"
        names = _match(cell, names, f"row of {found.id}", source, prefixes=True)
    return [one.cells[name] for one in shown for name in names if name in one.cells]


def find_cell(cell_id: str) -> Cell:
    """Return the cell of an id such as ``en-2 ResNet50/EN``.

    The beginning of its name is enough, if no other cell of the table begins so.

    Raises:
        UserError: there is no such cell.
        ValueError: the id is of several cells.
    """
    (cell,) = find(*cell_id.split(" ", 1))
    return cell


def _match(word: str, names, what: str, source: str, prefixes: bool = False) -> list[str]:
    """Return the names that a user's word stands for, ignoring case and separators.

    Args:
        word: what the user typed.
        names: the known names.
        what: kind of name, for the error message.
        source: the command that lists the names, for the error message.
        prefixes: whether the word may also be the beginning of one or several names.

    Returns:
        The name that equals the word; else, with ``prefixes``, all names that begin with it.

    Raises:
        UserError: no name matches; the message suggests similar ones.
    """
    folded = {_normalized(name): name for name in names}
    key = _normalized(word)
    if key in folded:
        return [folded[key]]
    begun = [name for fold, name in folded.items() if prefixes and key and fold.startswith(key)]
    if begun:
        return begun
    near = difflib.get_close_matches(key, folded, n=4, cutoff=0.4) or list(folded)[:4]
    hint = ", ".join(repr(folded[fold]) for fold in near)
    raise UserError(f"no {what} {word!r}; near ones are {hint}; see {source}")


def _normalized(name: str) -> str:
    """Return a name in lower case without separators, for comparison."""
    return re.sub(r"[\s/_,-]+", "", name.lower())
