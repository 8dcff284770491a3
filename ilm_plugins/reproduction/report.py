"""Reports of what was reproduced: Markdown and curves, from the records of runs alone."""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..checkpoints import replacing
from . import record, registry
from .registry import NOT_HERE, Cell, Table

#: Labels of what stands beside a paper's figure.
WHOLE = {"full recipe", "computed"}
COLUMNS = ("", "run", "paper", "ours", "ours - paper", "seeds", "trained", "device", "commit")
HEAD = """\
Written by `python tools/reproduce.py report` from [records](records) of runs, which
`python tools/reproduce.py run TABLE CELL` makes. Beside a paper's figure stand full recipes alone:
a run that is shorter, on fewer images or otherwise changed has a row of its own, which says so.
Where there are several seeds, figures are means and, behind ±, standard deviations.
"""

Records = list[dict[str, Any]]


def write(folder: Path) -> list[Path]:
    """Write the reports on the records in a folder, beside that folder.

    The same records give the same bytes, under one version of matplotlib.

    Returns:
        The files.
    """
    found = by_cell(folder)
    pages = {"README.md": index(found)}
    pages |= {f"{paper}.md": page(paper, found) for paper in registry.papers()}
    out = folder.parent
    out.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        with replacing(out / name) as file:
            file.write(text.encode())
    drawn = [draw(table, found, out) for table in registry.tables().values()]
    return [out / name for name in pages] + [path for path in drawn if path]


def by_cell(folder: Path) -> dict[str, Records]:
    """A folder's records by their cells' ids."""
    found: dict[str, Records] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        one = record.read(path)
        found[f"{one['table']} {one['cell']}"].append(one)
    return found


def draw(table: Table, filed: dict[str, Records], folder: Path) -> Path | None:
    """Draw a table's curves, or a figure's lines, if there are any.

    Raises:
        UserError: matplotlib is not installed.
    """
    lines, compared = curves(table, filed), series(table, filed)
    if not (lines or compared):
        return None
    from . import pictures

    path = folder / f"{table.id}.png"
    if lines:
        shown = [(label, [record["curve"] for record in group]) for label, group in lines]
        pictures.save(pictures.training(table, lines), path, shown)
    else:
        measure = registry.tables()[table.shows[0]].measures[0]
        pictures.save(pictures.against(table, compared, measure), path, compared)
    return path


def index(filed: dict[str, Records]) -> str:
    """The page of all tables and figures."""
    lines = ["# Reproduction", "", HEAD]
    for paper, title in registry.papers().items():
        lines += [f"## [{title}]({paper}.md)", "", "| | | cells run |", "|---|---|---|"]
        for table in _of(paper):
            lines.append(f"| {table.number} | {table.title} | {_state(table, filed)} |")
        lines.append("")
    return "\n".join(lines)


def _of(paper: str) -> list[Table]:
    return [table for table in registry.tables().values() if table.paper == paper]


def _state(table: Table, filed: dict[str, Records]) -> str:
    if not table.cells:
        return _behind(table)
    here = [c for c in table.cells.values() if c.config or c.of is not None]
    labels = [{r["label"] for r in filed.get(registry.home(cell).id, ())} for cell in here]
    whole = sum(bool(found & WHOLE) for found in labels)
    rest = sum(bool(found) for found in labels) - whole
    words = f"{whole} of {len(here)}" if whole or rest else f"not run ({len(here)})"
    others = len(table.cells) - len(here)
    return (
        words
        + f", {rest} shortened or otherwise changed" * bool(rest)
        + f"; {others} {NOT_HERE}" * bool(others)
    )


def _behind(table: Table) -> str:
    shown = ", ".join(f"[{key}]({key.split('-')[0]}.md#{key})" for key in table.shows)
    words = [f"curves of {shown}"] if shown else []
    return "; ".join(words + ([f"`{table.command}`"] if table.command else [])) or "-"


def page(paper: str, filed: dict[str, Records]) -> str:
    """A paper's page: a table for each of its own."""
    lines = [f"# {registry.papers()[paper]}", ""]
    for table in _of(paper):
        lines += [f"## {table.id}", "", f"{table.number}. {table.title}.", ""]
        lines += [table.note, ""] if table.note else []
        if not table.cells:
            lines += [_behind(table), ""]
            if series(table, filed):
                lines += [f"![{table.title}]({table.id}.png)", ""]
            continue
        lines += _table(table, filed)
        if curves(table, filed):
            lines += ["", f"![Training curves of {table.id}]({table.id}.png)"]
        lines.append("")
    return "\n".join(lines)


def _table(table: Table, filed: dict[str, Records]) -> list[str]:
    described = [f"{name} ({registry.measures()[name].described})" for name in table.measures]
    lines = [f"{' / '.join(described)}.", "", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|---" * len(COLUMNS) + "|")
    for cell in table.cells.values():
        groups = grouped(filed.get(registry.home(cell).id, []))
        whole = [group for group in groups if group[0]["label"] in WHOLE]
        lines.append(_row(table, cell, whole[0] if whole else []))
        for group in groups:
            if group not in whole:
                lines += _rows_of_their_own(table, cell, group)
    return lines


def grouped(found: Records) -> list[Records]:
    """Records of a cell that are seeds of one run: by labels and changes, in the order of seeds."""

    def run(record: dict[str, Any]) -> tuple[str, str]:
        # A label does not tell all of a change.
        return record["label"], json.dumps(record.get("changes"), sort_keys=True)

    ordered = sorted(found, key=lambda record: (*run(record), record["seed"] or 0))
    return [list(group) for _, group in groupby(ordered, run)]


def _row(table: Table, cell: Cell, group: Records) -> str:
    """A row with the paper's figures."""
    paper = figures(table, cell.paper) if any(v is not None for v in cell.paper) else ""
    paper = ", ".join(filter(None, [paper, cell.says]))
    if cell.config is None and cell.of is None:
        return _line(cell.name, NOT_HERE, paper)
    if not group:
        return _line(cell.name, "not run", paper)
    ours = [_values(group, name) for name in table.measures]
    differences = figures(
        table,
        [
            None if not values or value is None else mean(values) - value
            for values, value in zip(ours, cell.paper, strict=True)
        ],
        sign="+",
    )
    return _line(
        cell.name, group[0]["label"], paper, _spread(table, ours), differences, *_origin(group)
    )


def _rows_of_their_own(table: Table, cell: Cell, group: Records) -> list[str]:
    """Rows of a run that is no full recipe, and of what to compare it with."""
    label = group[0]["label"]
    values = [_values(group, name) for name in table.measures]
    lines = [_line(f"{cell.name}, ours", label, "", _spread(table, values), "", *_origin(group))]
    for what, reference in group[0].get("references", {}).items():
        constant = figures(table, [reference.get(name) for name in table.measures])
        lines.append(_line(f"{what}, to compare", "", "", constant))
    return lines


def _values(group: Records, name: str) -> list[float]:
    return [r["figures"][name] for r in group if r["figures"].get(name) is not None]


def _spread(table: Table, values: Sequence[list[float]]) -> str:
    """Means, and behind ± the standard deviations of several."""
    means = figures(table, [mean(v) if v else None for v in values]).split(" / ")
    spreads = [
        f" ± {stdev(v):.{n}f}" if len(v) > 1 else ""
        for v, n in zip(values, table.decimals, strict=True)
    ]
    return " / ".join(a + b for a, b in zip(means, spreads, strict=True))


def _origin(group: Records) -> list[str]:
    """Seeds, length, device and commit of runs."""
    first = group[0]
    if first["label"] == "computed":
        return ["", "", "", _some(r["commit"] for r in group)]
    length = f"{first['run']} of {first['recipe']} {first['unit']}" if first["recipe"] else "test"
    hours = mean(r["seconds"] for r in group) / 3600
    jpeg = ", on re-encoded JPEG" if any(r["packed"] for r in group) else ""
    return [
        _some(r["seed"] for r in group),
        length + jpeg,
        f"{_some(r['device'] for r in group)}, {hours:.2f} h",
        _some(r["commit"] for r in group),
    ]


def _some(values) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def _line(*cells: str) -> str:
    filled = [*cells, *[""] * (len(COLUMNS) - len(cells))]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in filled)} |"


def figures(table: Table, values: Sequence[float | None], sign: str = "") -> str:
    """A row's numbers, with as many decimals as the paper gives; "-" where there is none."""
    pairs = zip(values, table.decimals, strict=True)
    # Adding 0 makes 0 of what is rounded to -0.
    return " / ".join("-" if v is None else f"{round(v, n) + 0:{sign}.{n}f}" for v, n in pairs)


def curves(table: Table, filed: dict[str, Records]) -> list[tuple[str, Records]]:
    """Labels of lines, and the records that each is the mean of."""
    return [
        (f"{cell.name}, {group[0]['label']}", group)
        for cell in table.cells.values()
        for group in grouped(filed.get(registry.home(cell).id, []))
        if any(record["curve"] for record in group)
    ]


def series(table: Table, filed: dict[str, Records]) -> dict[str, tuple[list, list]]:
    """Lines of a figure against a quantity: name -> its points in the paper, and those run here.

    A point is (quantity, figure). Empty where nothing was run as the recipe has it.
    """
    found: dict[str, tuple[list, list]] = {}
    for shown in (registry.tables()[key] for key in table.shows if table.against):
        for cell in shown.cells.values():
            name, _, at = cell.name.partition(f", {table.against} ")
            paper, ours = found.setdefault(name, ([], []))
            paper.append((int(at), cell.paper[0]))
            for group in grouped(filed.get(registry.home(cell).id, [])):
                values = _values(group, shown.measures[0])
                if group[0]["label"] in WHOLE and values:
                    ours.append((int(at), mean(values)))
    if not any(ours for _, ours in found.values()):
        return {}
    return {name: (sorted(paper), sorted(ours)) for name, (paper, ours) in found.items()}
