"""Reports of what was reproduced: Markdown pages and plots, made from the records of runs alone.

``groups`` is, throughout, id of a row -> groups of its records, which differ in their seed alone;
:func:`by_cell` returns it.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from . import record, registry
from .registry import Cell, Table

COLUMNS = ("", "run", "paper", "ours", "ours - paper", "seeds", "trained", "device", "commit")
HEAD = """\
Written by `python -m ilm_plugins reproduce report` from [records](records) of runs, which
`reproduce run TABLE ROW` makes. A result beside a paper's is always of the full recipe:
a run that is shorter, on fewer images or otherwise changed has a row of its own, which says so.
Images of CIFAR may be re-encoded as JPEG, which the column "trained" says.
Where there are several seeds, results are means and, behind ±, standard deviations.
"-" under commit: the run is older than the records of commits.
"""

Records = list[dict[str, Any]]
Groups = dict[str, list[Records]]


def write(folder: Path) -> list[Path]:
    """Write README.md, PAPER.md and plots of a folder of records into its parent; return paths.

    The same records give the same bytes, under one version of matplotlib.
    """
    groups, out = by_cell(folder), folder.parent
    out.mkdir(parents=True, exist_ok=True)
    drawn = [table.id for table in registry.tables().values() if draw(table, groups, out)]
    pages = {"README.md": index(groups)}
    pages |= {f"{paper}.md": page(paper, groups, drawn) for paper in registry.papers()}
    for name, text in pages.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in (*pages, *(f"{table}.png" for table in drawn))]


def by_cell(folder: Path) -> Groups:
    """Return id of each row -> groups of its records, which have the same label and settings."""

    def key(found: dict[str, Any]) -> tuple[str, ...]:
        settings = json.dumps([found.get("changes"), found.get("jpeg")], sort_keys=True)
        return found["table"], found["cell"], record.label(found), settings

    records = [record.read(path) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda found: (*key(found), found.get("seed") or 0))
    groups: Groups = defaultdict(list)
    for (table, cell, *_), group in groupby(records, key):
        groups[f"{table} {cell}"].append(list(group))
    return groups


def _groups_of(cell: Cell, groups: Groups) -> list[Records]:
    """Return the groups of a row's runs, which may be saved as those of another row."""
    return groups.get(cell.canonical.id, [])


def draw(table: Table, groups: Groups, folder: Path) -> bool:
    """Plot a table's curves, or a figure's lines or bars, to ``ID.png``; return whether it did."""
    lines, compared = curves(table, groups), curves_against(table, groups)
    norms = compared_norms(table, groups)
    if not (lines or compared or norms):
        return False
    from . import pictures

    path = folder / f"{table.id}.png"
    if lines:
        shown = [(label, [found["curve"] for found in group]) for label, group in lines]
        pictures.save(pictures.training(table, lines), path, shown)
    elif norms:
        pictures.save(pictures.gains(table, norms), path, norms)
    else:
        measure = registry.tables()[table.shows[0]].measures[0]
        pictures.save(pictures.against(table, compared, measure), path, compared)
    return True


def index(groups: Groups) -> str:
    """Return the Markdown of README.md: all tables, and how many rows of each were run."""
    lines = ["# Reproduction", "", HEAD]
    for paper, title in registry.papers().items():
        lines += [f"## [{title}]({paper}.md)", "", "| | | rows run |", "|---|---|---|"]
        for table in _tables_of(paper):
            lines.append(f"| {table.number} | {table.title} | {_count_cells(table, groups)} |")
        lines.append("")
    return "\n".join(lines)


def _tables_of(paper: str) -> list[Table]:
    return [table for table in registry.tables().values() if table.paper == paper]


def _count_cells(table: Table, groups: Groups) -> str:
    """Count, in words, a table's rows by state: run in full, only changed, or not run."""
    if not table.cells:
        return _source(table) or "-"
    cells = table.cells.values()
    found = [[record.is_full(group[0]) for group in _groups_of(cell, groups)] for cell in cells]
    full = sum(map(any, found))
    rest = sum(map(bool, found)) - full
    words = f"{full} of {len(cells)}" if full or rest else f"not run ({len(cells)})"
    return words + f", {rest} shortened or otherwise changed" * bool(rest)


def _source(table: Table) -> str:
    """Return links to the tables that a figure shows, and its command."""
    shown = ", ".join(f"[{key}]({key.split('-')[0]}.md#{key})" for key in table.shows)
    words = [f"{table.shown} of {shown}"] if shown else []
    return "; ".join(words + ([f"`{table.command}`"] if table.command else []))


def page(paper: str, groups: Groups, drawn: Collection[str]) -> str:
    """Return the Markdown of a paper's page; ``drawn`` are the tables that have a plot, ID.png."""
    lines = [f"# {registry.papers()[paper]}", ""]
    for table in _tables_of(paper):
        lines += [f"## {table.id}", "", f"{table.number}. {table.title}.", ""]
        lines += [table.note, ""] if table.note else []
        lines += _table_lines(table, groups) if table.cells else filter(None, [_source(table)])
        lines.append("")
        if table.id in drawn:
            what = f"Training curves of {table.id}" if table.cells else table.title
            lines += [f"![{what}]({table.id}.png)", ""]
    return "\n".join(lines)


def _table_lines(table: Table, groups: Groups) -> list[str]:
    """Return the Markdown of a table: header, rows of each row's runs, reference scores.

    Only full recipes stand beside the paper's figures; other groups of runs have rows of their own.
    """
    described = [f"{name} ({registry.measures()[name].described})" for name in table.measures]
    lines = [f"{' / '.join(described)}.", "", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|---" * len(COLUMNS) + "|")
    references: dict[str, None] = {}  # rows, in order, each once
    for cell in table.cells.values():
        paper = figures(table, cell.paper) if any(v is not None for v in cell.paper) else ""
        paper = ", ".join(filter(None, [paper, cell.says]))
        of_cell = list(_groups_of(cell, groups))
        full, changed = [], []
        for group in of_cell:
            if record.is_full(group[0]):
                full.append(_group_row(table, cell.name, group, paper, cell.paper))
            else:
                changed.append(_group_row(table, f"{cell.name}, ours", group))
            for what, reference in group[0].get("references", {}).items():
                constant = figures(table, [reference.get(name) for name in table.measures])
                references[_markdown_row(f"{what}, to compare", "", "", constant)] = None
        status = "not run in full" if of_cell else "not run"
        lines += [*(full or [_markdown_row(cell.name, status, paper)]), *changed]
    return [*lines, *references]


def _group_row(
    table: Table,
    name: str,
    group: Records,
    paper: str = "",
    published: Sequence[float | None] = (),
) -> str:
    """Return the row of a group of runs, with differences from the published figures, if any."""
    ours = [_values(group, measure) for measure in table.measures]
    comparable = [registry.measures()[measure].comparable for measure in table.measures]
    failed = [found for found in group if not record.converged(found)]
    texts = [_means(table, ours)] if any(ours) or not failed else []
    if failed:
        seeds = f" with seed {_distinct(r['seed'] for r in failed)}" * (len(failed) < len(group))
        texts.append(f"did not converge{seeds}")
    differences = [
        mean(values) - value if values and value is not None and compared else None
        for values, value, compared in zip(ours, published, comparable, strict=False)
    ]
    return _markdown_row(
        name,
        record.label(group[0]),
        paper,
        ", ".join(texts),
        figures(table, differences, sign="+") if differences else "",
        *_provenance(group),
    )


def _values(group: Records, measure: str) -> list[float]:
    return [found["figures"][measure] for found in group if measure in found["figures"]]


def _means(table: Table, values: Sequence[list[float]]) -> str:
    """Return each measure's mean over seeds and, for two or more, ± the sample's deviation."""
    means = figures(table, [mean(v) if v else None for v in values]).split(" / ")
    spreads = [
        f" ± {stdev(v):.{n}f}" if len(v) > 1 else ""
        for v, n in zip(values, table.decimals, strict=True)
    ]
    return " / ".join(a + b for a, b in zip(means, spreads, strict=True))


def _provenance(group: Records) -> list[str]:
    """Return the last four columns: seeds, length of training, device and mean hours, commit."""
    commits = _distinct(r["commit"] for r in group)
    if record.label(group[0]) == "computed":
        return ["", "", "", commits]
    length = _distinct(f"{r['run']} of {r['recipe']} {r['unit']}" for r in group)
    length = length if group[0]["recipe"] else "test"
    hours = mean(r["seconds"] for r in group) / 3600
    return [
        _distinct(r["seed"] for r in group),
        length + ", on re-encoded JPEG" * group[0]["jpeg"],
        f"{_distinct(r['device'] for r in group)}, {hours:.2f} h",
        commits,
    ]


def _distinct(values: Iterable[Any]) -> str:
    """Join the different values that are not None, in order; "-" if there are none."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def _markdown_row(*cells: str) -> str:
    """Return a row of Markdown, "|" escaped, and filled up to all columns with empty cells."""
    filled = [*cells, *[""] * (len(COLUMNS) - len(cells))]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in filled)} |"


def figures(table: Table, values: Sequence[float | None], sign: str = "") -> str:
    """Format a number, or "-" for None, for each of a table's measures, separated by " / "."""
    pairs = zip(values, table.decimals, strict=True)
    # Adding 0 turns a rounded -0.0 into 0.0.
    return " / ".join("-" if v is None else f"{round(v, n) + 0:{sign}.{n}f}" for v, n in pairs)


def curves(table: Table, groups: Groups) -> list[tuple[str, Records]]:
    """Return the lines of a table's plot: labels, and the records whose curves they average."""
    return [
        (f"{cell.name}, {record.label(group[0])}" + ", re-encoded" * group[0]["jpeg"], group)
        for cell in table.cells.values()
        for group in _groups_of(cell, groups)
        if any(found.get("curve") for found in group)
    ]


def curves_against(table: Table, groups: Groups) -> dict[str, tuple[list, list]]:
    """Return the lines of a figure ``against`` a quantity, such as batch size.

    Name of a line -> points (quantity, first measure) of the paper and of our full recipes, in
    rising order. Rows are named "LINE, QUANTITY NUMBER". Empty if no full recipe was run.
    """
    found: dict[str, tuple[list, list]] = {}
    for shown in (registry.tables()[key] for key in table.shows if table.against):
        for cell in shown.cells.values():
            name, _, at = cell.name.partition(f", {table.against} ")
            paper, ours = found.setdefault(name, ([], []))
            paper.append((int(at), cell.paper[0]))
            if values := _full_values(cell, groups):
                ours.append((int(at), mean(values)))
    if not any(ours for _, ours in found.values()):
        return {}
    return {name: (sorted(paper), sorted(ours)) for name, (paper, ours) in found.items()}


def compared_norms(
    table: Table, groups: Groups
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Return the figures of a drawing that ``compares`` norms, which are the ends of rows' names.

    Network and table -> norm -> the paper's figure of the first measure, and our full recipes' or
    None. SyncBN counts as BN; rows with a text of the paper's, as of a test server, are left out.
    """
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for shown in (registry.tables()[key] for key in table.shows if table.compares):
        for cell in shown.cells.values():
            network, _, norm = cell.name.rpartition("/")
            norm, paper = norm.removeprefix("Sync"), cell.paper[0]
            if norm in table.compares and paper is not None and cell.says is None:
                ours = _full_values(cell, groups)
                label = f"{network}\n{shown.number}"
                found.setdefault(label, {})[norm] = (paper, mean(ours) if ours else None)
    return found


def _full_values(cell: Cell, groups: Groups) -> list[float]:
    """Return the first measure of a row's full recipes."""
    measure = registry.tables()[cell.table].measures[0]
    full = [group for group in _groups_of(cell, groups) if record.is_full(group[0])]
    return [value for group in full for value in _values(group, measure)]
