"""Reports of what was reproduced: Markdown pages and plots, made from the records of runs alone.

``groups`` is, throughout, id of a cell -> groups of the records of its runs; the records of a group
differ in their seed alone. :func:`by_cell` returns it.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..checkpoints import replacing
from . import record, registry
from .registry import Cell, Table

#: Labels of runs whose figures stand in the same row as the paper's.
FULL_LABELS = {"full recipe", "computed"}
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
    """Write the pages and plots on the records in a folder, into the folder's parent.

    The same records give the same bytes, under one version of matplotlib. Existing pages and plots
    are replaced. If the folder is missing or empty, the pages say that nothing was run.

    Args:
        folder: folder of records, one JSON file each; its parent is made if missing.

    Returns:
        The files written: README.md, PAPER.md for each paper, and ID.png for each plot.

    Raises:
        UserError: a record is invalid, or matplotlib is missing and there is a plot to draw.
        RunError: a file cannot be written.
    """
    groups, out = by_cell(folder), folder.parent
    out.mkdir(parents=True, exist_ok=True)
    drawn = [table.id for table in registry.tables().values() if draw(table, groups, out)]
    pages = {"README.md": index(groups)}
    pages |= {f"{paper}.md": page(paper, groups, drawn) for paper in registry.papers()}
    for name, text in pages.items():
        with replacing(out / name) as file:
            file.write(text.encode())
    return [out / name for name in (*pages, *(f"{table}.png" for table in drawn))]


def by_cell(folder: Path) -> Groups:
    """Read a folder's records: id of each cell -> groups of its records.

    Records of a group have the same label and the same :func:`.record.settings`. Groups are sorted
    by these, and the records of a group by their seeds. A missing folder has no records.

    Raises:
        UserError: a JSON file in the folder is not a valid record.
    """

    def key(found: dict[str, Any]) -> tuple[str, ...]:
        return found["table"], found["cell"], found["label"], *record.settings(found)

    records = [record.read(path) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda found: (*key(found), found["seed"] or 0))
    groups: Groups = defaultdict(list)
    for (table, cell, *_), group in groupby(records, key):
        groups[f"{table} {cell}"].append(list(group))
    return groups


def _groups_of(cell: Cell, groups: Groups) -> list[Records]:
    """Return the groups of a cell's runs, which may be saved as those of another cell."""
    return groups.get(registry.canonical_cell(cell).id, [])


def draw(table: Table, groups: Groups, folder: Path) -> bool:
    """Plot a table's training curves, or a figure's lines or bars, to ``folder/ID.png``, if any.

    Args:
        table: the table or figure.
        groups: see the module.
        folder: folder of the picture; it must exist.

    Returns:
        Whether there was anything to plot; if not, nothing is written.

    Raises:
        UserError: there is something to plot, and matplotlib is not installed.
        RunError: the picture cannot be written.
    """
    lines, compared = curves(table, groups), curves_against(table, groups)
    norms = compared_norms(table, groups)
    if not (lines or compared or norms):
        return False
    from . import pictures

    path = folder / f"{table.id}.png"
    if lines:
        shown = [(label, [record["curve"] for record in group]) for label, group in lines]
        pictures.save(pictures.training(table, lines), path, shown)
    elif norms:
        pictures.save(pictures.gains(table, norms), path, norms)
    else:
        measure = registry.tables()[table.shows[0]].measures[0]
        pictures.save(pictures.against(table, compared, measure), path, compared)
    return True


def index(groups: Groups) -> str:
    """Return the Markdown of README.md, which lists all tables and how many cells of each were run.

    ``groups`` is as in the module.
    """
    lines = ["# Reproduction", "", HEAD]
    for paper, title in registry.papers().items():
        lines += [f"## [{title}]({paper}.md)", "", "| | | rows run |", "|---|---|---|"]
        for table in _tables_of(paper):
            lines.append(f"| {table.number} | {table.title} | {_count_cells(table, groups)} |")
        lines.append("")
    return "\n".join(lines)


def _tables_of(paper: str) -> list[Table]:
    """Return a paper's tables and figures, in order; ``paper`` is its key."""
    return [table for table in registry.tables().values() if table.paper == paper]


def _count_cells(table: Table, groups: Groups) -> str:
    """Count, in words, a table's cells by state: run in full, only changed, or not run.

    For a figure without cells: the text of :func:`_source`, or "-".
    """
    if not table.cells:
        return _source(table) or "-"
    cells = table.cells.values()
    labels = [{group[0]["label"] for group in _groups_of(cell, groups)} for cell in cells]
    full = sum(bool(found & FULL_LABELS) for found in labels)
    rest = sum(bool(found) for found in labels) - full
    words = f"{full} of {len(cells)}" if full or rest else f"not run ({len(cells)})"
    return words + f", {rest} shortened or otherwise changed" * bool(rest)


def _source(table: Table) -> str:
    """Return links to the tables that a figure shows, and its command; "" for neither."""
    shown = ", ".join(f"[{key}]({key.split('-')[0]}.md#{key})" for key in table.shows)
    words = [f"{table.shown} of {shown}"] if shown else []
    return "; ".join(words + ([f"`{table.command}`"] if table.command else []))


def page(paper: str, groups: Groups, drawn: Collection[str]) -> str:
    """Return the Markdown of a paper's page, a section for each table.

    Args:
        paper: the paper's key in :func:`.registry.papers`.
        groups: see the module.
        drawn: ids of the tables and figures for which the page links a plot, ID.png.
    """
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
    """Return the Markdown lines of a table: its measures, the header, and rows for each cell.

    A cell's first row has the paper's figures and, if its full recipe was run, ours; there are two
    such rows if it was run on the original and on re-encoded images. A row follows for each group
    of runs that differ from the recipe. At the end are reference scores, as of the mean image.
    """
    described = [f"{name} ({registry.measures()[name].described})" for name in table.measures]
    lines = [f"{' / '.join(described)}.", "", f"| {' | '.join(COLUMNS)} |"]
    lines.append("|---" * len(COLUMNS) + "|")
    references: dict[str, None] = {}  # rows, in order, each once
    for cell in table.cells.values():
        paper = figures(table, cell.paper) if any(v is not None for v in cell.paper) else ""
        paper = ", ".join(filter(None, [paper, cell.says]))
        of_cell = list(_groups_of(cell, groups))
        status = "not run in full" if of_cell else "not run"
        full, changed = [], []
        for group in of_cell:
            if group[0]["label"] in FULL_LABELS:
                full.append(_group_row(table, cell.name, group, paper, cell.paper))
            else:
                changed.append(_group_row(table, f"{cell.name}, ours", group))
            for what, reference in group[0].get("references", {}).items():
                constant = figures(table, [reference.get(name) for name in table.measures])
                references[_markdown_row(f"{what}, to compare", "", "", constant)] = None
        lines += [*(full or [_markdown_row(cell.name, status, paper)]), *changed]
    return [*lines, *references]


def _group_row(
    table: Table,
    name: str,
    group: Records,
    paper: str = "",
    published: Sequence[float | None] = (),
) -> str:
    """Return the row of a group of runs.

    Args:
        table: the table.
        name: text of the first column.
        group: the records of the runs, at least one; the row's label is that of the first.
        paper: text of the column of the paper's figures.
        published: the paper's figures, for the column of differences; empty for none. Measures
            that are not ``comparable`` have no difference.
    """
    ours = [_values(group, measure) for measure in table.measures]
    comparable = [registry.measures()[measure].comparable for measure in table.measures]
    failures = _failures(group)
    found = [_means(table, ours)] * (any(ours) or not failures) + [failures] * bool(failures)
    differences = [
        mean(values) - value if values and value is not None and compared else None
        for values, value, compared in zip(ours, published, comparable, strict=False)
    ]
    return _markdown_row(
        name,
        group[0]["label"],
        paper,
        ", ".join(found),
        figures(table, differences, sign="+") if differences else "",
        *_provenance(group),
    )


def _failures(group: Records) -> str:
    """Return "did not converge", with the seeds if others of the group did; "" if all did."""
    failed = [r for r in group if not record.converged(r)]
    seeds = f" with seed {_distinct(r['seed'] for r in failed)}" * (len(failed) < len(group))
    return f"did not converge{seeds}" if failed else ""


def _values(group: Records, name: str) -> list[float]:
    """Return one figure of each record in a group that has it; ``name`` is its measure."""
    return [r["figures"][name] for r in group if r["figures"].get(name) is not None]


def _means(table: Table, values: Sequence[list[float]]) -> str:
    """Return each measure's mean over seeds ("-" for none) and, for two or more, ± the deviation.

    The deviation is the sample's standard deviation; measures are separated by " / ".

    Args:
        table: the table, which sets the decimals.
        values: for each measure, its values over seeds.
    """
    means = figures(table, [mean(v) if v else None for v in values]).split(" / ")
    spreads = [
        f" ± {stdev(v):.{n}f}" if len(v) > 1 else ""
        for v, n in zip(values, table.decimals, strict=True)
    ]
    return " / ".join(a + b for a, b in zip(means, spreads, strict=True))


def _provenance(group: Records) -> list[str]:
    """Return the last four columns: seeds, length of training, device and hours, commit.

    Seeds, lengths, devices and commits of all records are listed; the hours are their mean. A
    computed cell has the commit alone.
    """
    first = group[0]
    if first["label"] == "computed":
        return ["", "", "", _distinct(r["commit"] for r in group)]
    length = _distinct(f"{r['run']} of {r['recipe']} {r['unit']}" for r in group)
    length = length if first["recipe"] else "test"
    hours = mean(r["seconds"] for r in group) / 3600
    jpeg = ", on re-encoded JPEG" if first["packed"] else ""
    return [
        _distinct(r["seed"] for r in group),
        length + jpeg,
        f"{_distinct(r['device'] for r in group)}, {hours:.2f} h",
        _distinct(r["commit"] for r in group),
    ]


def _distinct(values) -> str:
    """Join the different values that are not None, in order; "-" if there are none."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def _markdown_row(*cells: str) -> str:
    """Return a row of Markdown, "|" escaped, and filled up to all columns with empty cells."""
    filled = [*cells, *[""] * (len(COLUMNS) - len(cells))]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in filled)} |"


def figures(table: Table, values: Sequence[float | None], sign: str = "") -> str:
    """Format a row's numbers, separated by " / ".

    Args:
        table: the table, which sets each measure's decimals.
        values: a number for each of the table's measures, in order; None is shown as "-".
        sign: "+" to write the sign of positive numbers.
    """
    pairs = zip(values, table.decimals, strict=True)
    # Adding 0 turns a rounded -0.0 into 0.0.
    return " / ".join("-" if v is None else f"{round(v, n) + 0:{sign}.{n}f}" for v, n in pairs)


def curves(table: Table, groups: Groups) -> list[tuple[str, Records]]:
    """Return the lines of a table's plot: labels, and the records whose curves they average.

    There is a line for each group of a cell, unless none of its records has a curve.
    """
    return [
        (f"{cell.name}, {group[0]['label']}" + ", re-encoded" * group[0]["packed"], group)
        for cell in table.cells.values()
        for group in _groups_of(cell, groups)
        if any(record["curve"] for record in group)
    ]


def curves_against(table: Table, groups: Groups) -> dict[str, tuple[list, list]]:
    """Return the lines of a figure against a quantity, such as batch size.

    Args:
        table: the figure; it ``shows`` tables whose cells are named "LINE, QUANTITY NUMBER".
        groups: see the module.

    Returns:
        Name of the line -> the paper's points and ours, each (quantity, figure) in rising order.
        Figures are of the first measure, ours the mean over the seeds of a full recipe. Empty if no
        full recipe was run, or the figure is not ``against`` a quantity.
    """
    found: dict[str, tuple[list, list]] = {}
    for shown in (registry.tables()[key] for key in table.shows if table.against):
        for cell in shown.cells.values():
            name, _, at = cell.name.partition(f", {table.against} ")
            paper, ours = found.setdefault(name, ([], []))
            paper.append((int(at), cell.paper[0]))
            for group in _groups_of(cell, groups):
                values = _values(group, shown.measures[0])
                if group[0]["label"] in FULL_LABELS and values:
                    ours.append((int(at), mean(values)))
    if not any(ours for _, ours in found.values()):
        return {}
    return {name: (sorted(paper), sorted(ours)) for name, (paper, ours) in found.items()}


def compared_norms(
    table: Table, groups: Groups
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Return the figures of a drawing that ``compares`` norms.

    Args:
        table: the drawing; it ``shows`` tables whose cells are named "NETWORK/NORM".
        groups: see the module.

    Returns:
        Network and table, on two lines -> norm -> the paper's figure of the first measure and ours,
        the mean over the seeds of a full recipe, None if that was not run. SyncBN counts as BN.
        Cells with a text of the paper's are left out, such as those of a test server. Empty if the
        drawing compares no norms.
    """
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for shown in (registry.tables()[key] for key in table.shows if table.compares):
        for cell in shown.cells.values():
            network, _, norm = cell.name.rpartition("/")
            norm, paper = norm.removeprefix("Sync"), cell.paper[0]
            if norm in table.compares and paper is not None and cell.says is None:
                full = [g for g in _groups_of(cell, groups) if g[0]["label"] in FULL_LABELS]
                ours = [v for group in full for v in _values(group, shown.measures[0])]
                label = f"{network}\n{shown.number}"
                found.setdefault(label, {})[norm] = (paper, mean(ours) if ours else None)
    return found
