"""Reports of what was reproduced: Markdown pages and plots, made only from records of runs.

``groups`` is, throughout, id of a row -> groups of its records, which differ only in their seed;
:func:`by_cell` returns it.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from ...checkpoints import write_text
from ..reports.interval import Difference, interval, paired_interval, spread
from ..reports.table import markdown
from . import paper_record, published
from .paper_record import Record
from .published import Cell, Table

LAST = ("seeds", "trained", "device", "commit")
COLUMNS = ("", "run", "paper", "ours", "ours - paper", *LAST)
STUDY = ("", "result", "difference [95 % interval]", *LAST[:2])
HEAD = """\
`python -m ilm_plugins reproduce report` wrote these pages from the [records](records) of
`reproduce run TABLE ROW`. A paper's figure and a result are in one row only if the run followed the
full recipe; a run that is shorter, on fewer images or otherwise changed has its own row, whose
label lists the changes. The column "trained" says if images of CIFAR were re-encoded as JPEG.
With several seeds, a result is the mean, ± the standard deviation. Records from before commits were
recorded have "-" as commit.
"""

Groups = defaultdict[str, list[list[Record]]]


def write(folder: Path) -> list[Path]:
    """Write README.md, PAPER.md and plots beside a folder of records; return their paths.

    The same records give the same bytes, under one version of matplotlib.
    """
    groups, out = by_cell(folder), folder.parent
    out.mkdir(parents=True, exist_ok=True)
    drawn = [out / f"{t.id}.png" for t in published.tables().values() if draw(t, groups, out)]
    pages = {"README.md": index(groups)}
    pages |= {f"{paper}.md": page(paper, groups, out) for paper in published.papers()}
    for name, text in pages.items():
        write_text(out / name, text)
    return [*(out / name for name in pages), *drawn]


def by_cell(folder: Path) -> Groups:
    """Return id of each row -> groups of its records, which have the same label and settings."""

    def key(run: Record) -> tuple[str, ...]:
        settings = json.dumps([run.get("changes"), run.get("jpeg")], sort_keys=True)
        return run["table"], run["cell"], paper_record.label(run), settings

    records = [paper_record.read(path) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda run: (*key(run), run.get("seed") or 0))
    groups: Groups = defaultdict(list)
    for (table, cell, *_), group in groupby(records, key):
        groups[f"{table} {cell}"].append(list(group))
    return groups


def draw(table: Table, groups: Groups, folder: Path) -> bool:
    """Plot a table's curves, or a study's differences, to ``ID.png``; return whether it has any.

    A table whose measures are not in its curves has no plot: losses alone do not compare norms.
    """
    panels, lines = {}, []
    if table.paper == "study":
        for part in (published.tables()[key] for key in table.shows):
            rows = [*differences(part, groups)]
            if len(rows) > 1:  # one difference is in its table
                title = f"{part.task}: {part.measures[0]}"
                panels[title] = [(name, difference) for name, _, _, difference in rows]
                lines += [(name, group) for name, _, group, _ in rows]
    if not lines:
        curves = [
            (cell.name, _settings(group[0]), group)
            for cell in table.cells.values()
            for group in groups[cell.canonical.id]
            if _logged(group) & table.logged().keys()
        ]
        alike = len({settings for _, settings, _ in curves}) == 1
        lines = [
            (name if alike else f"{name}, {settings}", group) for name, settings, group in curves
        ]
    if lines:
        from . import paper_plots

        figure = paper_plots.differences(panels) if panels else paper_plots.training(table, lines)
        paper_plots.save(figure, folder / f"{table.id}.png", lines)
    return bool(lines)


def _settings(run: Record) -> str:
    return f"{paper_record.label(run)}{', re-encoded' if run['jpeg'] else ''}"


def _logged(group: list[Record]) -> set[str]:
    return {name for run in group for row in run.get("curve") or () for name in row}


def differences(
    table: Table, groups: Groups
) -> Iterator[tuple[str, Cell, list[Record], Difference]]:
    """Yield name, row, group and paired difference of each norm that replaces another."""
    for cell in filter(lambda cell: cell.against, table.cells.values()):
        name = f"{cell.norm_name} - {table.cells[cell.against].norm_name}"
        for group in groups[cell.canonical.id]:
            if difference := _from_plain(table.measures[0], group, cell, table, groups):
                yield name, cell, group, difference


def index(groups: Groups) -> str:
    """Return the Markdown of README.md: all tables, and how many rows of each were run."""
    lines = ["# Reproduction", "", HEAD]
    for paper, title in published.papers().items():
        lines += [f"## [{title}]({paper}.md)", "", *rows_run(paper, groups), ""]
    return "\n".join(lines)


def rows_run(paper: str, groups: Groups) -> list[str]:
    """Return the Markdown of a table of a paper's tables, and how many rows of each were run."""
    rows = []
    for table in _tables_of(paper):
        if table.cells:
            count = _count_cells(table, groups)
        elif table.command:
            count = f"[command]({paper}.md#{table.id})"
        else:
            count = _source(table) or "-"
        rows.append((table.number, table.title, count))
    return markdown(("", "", "rows run"), rows)


def _tables_of(paper: str) -> list[Table]:
    return [table for table in published.tables().values() if table.paper == paper]


def _count_cells(table: Table, groups: Groups) -> str:
    """Describe how many of a table's rows were run in full, and how many only with changes."""
    runs = (groups[cell.canonical.id] for cell in table.cells.values())
    states = [any(paper_record.is_full(group[0]) for group in found) for found in runs if found]
    full, changed = states.count(True), states.count(False)
    if not full and not changed:
        return f"not run ({len(table.cells)})"
    text = f"{full} of {len(table.cells)}"
    return f"{text}, {changed} shortened or otherwise changed" if changed else text


def _source(table: Table) -> str:
    """Return a figure's command, or links to the tables that it shows, if any."""
    if table.command:
        return f"`{table.command}`"
    links = ", ".join(f"[{key}]({key.split('-')[0]}.md#{key})" for key in table.shows)
    return links and f"data of {links}"


def page(paper: str, groups: Groups, folder: Path) -> str:
    """Return the Markdown of a paper's page, which shows the plots in a folder.

    Drawings, which have neither rows nor a command, are left out.
    """
    lines = [f"# {published.papers()[paper]}", ""]
    for table in _tables_of(paper):
        if not (table.cells or table.note or _source(table)):
            continue
        lines += [f"## {table.id}", "", f"{table.number}. {table.title}.", ""]
        if table.note:
            lines += [table.note, ""]
        if table.cells:
            lines += table_lines(table, groups)
        elif source := _source(table):
            lines.append(source)
        lines.append("")
        if (folder / f"{table.id}.png").is_file():
            what = f"Training curves of {table.id}" if table.cells else table.title
            lines += [f"![{what}]({table.id}.png)", ""]
    return "\n".join(lines)


def table_lines(table: Table, groups: Groups) -> list[str]:
    """Return the Markdown of a table: header, rows of each row's runs, reference scores.

    Only full recipes stand beside the paper's figures; other groups of runs have rows of their own.
    Rows without any run share one line.
    """
    columns, rows, missing = STUDY if table.paper == "study" else COLUMNS, [], 0
    references: dict[str, dict[str, float]] = {}
    for cell in table.cells.values():
        paper = figures(table, cell.paper) if any(v is not None for v in cell.paper) else ""
        paper = ", ".join(filter(None, [paper, cell.says]))
        full, changed = [], []
        for group in groups[cell.canonical.id]:
            is_full = paper_record.is_full(group[0])
            if table.paper == "study":
                row = _study_row(table, group, cell, groups)
            elif is_full:
                row = _group_row(table, group, cell.name, paper, _less(table, group, cell.paper))
            else:
                row = _group_row(table, group, f"{cell.name}, ours")
            (full if is_full else changed).append(row)
            references |= group[0].get("references", {})
        if changed and not full and table.paper != "study":
            full = [[cell.name, "not run in full", paper]]
        if not full and not changed:
            missing += 1
        rows += [*full, *changed]
    for what, values in references.items():
        constant = figures(table, [values.get(name) for name in table.measures])
        empty = [""] * (columns.index("result" if columns is STUDY else "ours") - 1)
        rows.append([f"{what}, to compare", *empty, constant])
    described = [f"{name} ({published.measures()[name].described})" for name in table.measures]
    lines = [f"{' / '.join(described)}.", "", *markdown(columns, rows)]
    if missing:
        listed = f"`reproduce list {table.id}` has the paper's figures."
        if missing == len(table.cells):
            return [f"No row was run. {listed}"]
        lines += ["", f"Rows not run: {missing} of {len(table.cells)}. {listed}"]
    return lines


def _group_row(
    table: Table, group: list[Record], name: str, paper: str = "", difference: str = ""
) -> list[str]:
    """Return the row of a group of runs; ``paper`` and ``difference`` are texts of columns."""
    result, *last = _group_texts(table, group)
    return [name, paper_record.label(group[0]), paper, result, difference, *last]


def _study_row(table: Table, group: list[Record], cell: Cell, groups: Groups) -> list[str]:
    """Return the row of a group of the study's runs, with differences from the plain norm."""
    label = paper_record.label(group[0])
    name = cell.name if paper_record.is_full(group[0]) else f"{cell.name}, {label}"
    result, seeds, length, *_ = _group_texts(table, group)
    return [name, result, _compared(table, group, cell, groups), seeds, length]


def _group_texts(table: Table, group: list[Record]) -> list[str]:
    """Return a group's result, and the texts of the columns LAST."""
    measures = zip(table.measures, table.decimals, strict=True)
    result = " / ".join(spread(_by_seed(group, name).values(), n) for name, n in measures)
    learned = sum(map(paper_record.learned, group))
    if not learned:
        result = "did not learn"
    if 0 < learned < len(group):
        result = f"{learned} of {len(group)} learned: {result}"
    commits = _distinct(r["commit"] for r in group)
    if "run" not in group[0]:  # computed
        return [result, "", "", "", commits]
    length = _distinct(f"{r['run']} of {r['recipe']} {r['unit']}" for r in group)
    if not group[0]["recipe"]:
        length = "test"
    if group[0]["jpeg"]:
        length = f"{length}, on re-encoded JPEG"
    hours = mean(r["seconds"] for r in group) / 3600
    return [
        result,
        _distinct(r["seed"] for r in group),
        length,
        f"{_distinct(r['device'] for r in group)}, {hours:.2f} h",
        commits,
    ]


def _by_seed(group: list[Record], measure: str) -> dict[int | None, float]:
    """Return seed -> figure of the runs that learned."""
    learned = filter(paper_record.learned, group)
    return {r.get("seed"): r["figures"][measure] for r in learned if measure in r["figures"]}


def _less(table: Table, group: list[Record], given: Sequence[float | None]) -> str:
    """Return the differences of a group's means from published figures that are comparable."""
    differences = []
    for measure, theirs in zip(table.measures, given, strict=True):
        values = _by_seed(group, measure).values()
        known = values and theirs is not None and published.measures()[measure].comparable
        differences.append(mean(values) - theirs if known else None)
    return figures(table, differences, sign="+")


def _compared(table: Table, group: list[Record], cell: Cell, groups: Groups) -> str:
    """Return paired differences from the norm that is replaced, if any."""
    if not cell.against:
        return ""
    texts = []
    for measure, n in zip(table.measures, table.decimals, strict=True):
        one = _from_plain(measure, group, cell, table, groups)
        texts.append(interval(one, n) if one else "-")
    return f"{' / '.join(texts)} from {table.cells[cell.against].norm_name}"


def _from_plain(
    measure: str, group: list[Record], cell: Cell, table: Table, groups: Groups
) -> Difference | None:
    """Return a group's paired difference from the norm that is replaced, if it has an interval."""
    plain = groups[table.cells[cell.against].canonical.id]
    alike = [one for one in plain if paper_record.label(one[0]) == paper_record.label(group[0])]
    if not alike:
        return None
    return paired_interval(_by_seed(group, measure), _by_seed(alike[0], measure))


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def figures(table: Table, values: Sequence[float | None], sign: str = "") -> str:
    """Format a number, or "-" for None, for each of a table's measures, separated by " / "."""
    # Adding 0 turns a rounded -0.0 into 0.0.
    return " / ".join(
        "-" if value is None else f"{round(value, n) + 0:{sign}.{n}f}"
        for value, n in zip(values, table.decimals, strict=True)
    )
