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

#: Columns that stand above the table if they are the same for all runs.
OF_RUNS = ("run", "seeds", "trained", "device", "hours", "commit")
#: A table of more measures has a column for each of them.
IN_ONE_CELL = 2
HEAD = """\
`python -m ilm_plugins reproduce report` wrote these pages from the [records](records) of
`reproduce run TABLE ROW`. A paper's figure and a result are in one row only if the run followed the
full recipe; a run that is shorter, on fewer images or otherwise changed has its own row, whose
label lists the changes. "trained" says if images of CIFAR were re-encoded as JPEG. With several
seeds, a result is the mean, ± the standard deviation.
"""

#: Column -> text.
Row = dict[str, str]
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
    """Return the Markdown of README.md: how many rows of each table were run, and what was not."""
    return "\n".join(["# Reproduction", "", HEAD, *rows_run(published.papers(), groups), ""])


def rows_run(papers: Iterable[str], groups: Groups) -> list[str]:
    """Return the Markdown of a table of how many rows were run, and a line of what was not."""
    rows: list[tuple[str, ...]] = []
    missing = []
    for paper in papers:
        for table in _tables_of(paper):
            if table.cells and _was_run(table, groups):
                link = _link(table.id, groups)
                rows.append((link, f"{table.number}: {table.title}", _count(table, groups)))
        if count := len(_not_run(paper, groups)):
            missing.append(f"[{count} of {published.papers()[paper].name}]({paper}.md#not-run)")
    lines = markdown(("", "", "rows run"), rows) if rows else []
    if missing:
        lines += ["", f"Tables and figures that were not run: {', '.join(missing)}."]
    return lines


def _tables_of(paper: str) -> list[Table]:
    return [table for table in published.tables().values() if table.paper == paper]


def _was_run(table: Table, groups: Groups) -> bool:
    """Whether a row of a table, or of the tables that a figure shows, has a record."""
    parts = [table, *(published.tables()[key] for key in table.shows)]
    return any(groups[cell.canonical.id] for part in parts for cell in part.cells.values())


def _not_run(paper: str, groups: Groups) -> list[Table]:
    """Return the tables and figures without any run; drawings are neither run nor missing."""
    return [
        table
        for table in _tables_of(paper)
        if (table.cells or table.shows or table.command) and not _was_run(table, groups)
    ]


def _count(table: Table, groups: Groups) -> str:
    """Describe how many of a table's rows were run in full, and how many only with changes."""
    runs = (groups[cell.canonical.id] for cell in table.cells.values())
    states = [any(paper_record.is_full(group[0]) for group in found) for found in runs if found]
    full, changed = states.count(True), states.count(False)
    text = f"{full} of {len(table.cells)}"
    return f"{text}, {changed} shortened or otherwise changed" if changed else text


def page(paper: str, groups: Groups, folder: Path) -> str:
    """Return the Markdown of a paper's page: what was run or drawn, and a line of what was not."""
    entry = published.papers()[paper]
    title = f"[{entry.title}]({entry.url})" if entry.url else entry.title
    lines = [f"# {title}, {entry.source}", ""]
    for table in _tables_of(paper):
        is_drawn = (folder / f"{table.id}.png").is_file()
        if not is_drawn and not _was_run(table, groups):
            continue
        lines += [f"## {table.id}", "", f"{table.number}. {table.title}.", ""]
        if table.cells:
            lines += [*table_lines(table, groups), ""]
        elif table.shows:
            lines += [f"Data of {', '.join(_link(key, groups) for key in table.shows)}.", ""]
        if table.note:
            lines += [table.note, ""]
        if is_drawn:
            what = f"Training curves of {table.id}" if table.cells else table.title
            lines += [f"![{what}]({table.id}.png)", ""]
    if missing := _not_run(paper, groups):
        listed = "; ".join(f"{t.id} ({t.number}: {t.title})" for t in missing)
        how = "`reproduce list ID` prints rows, configs, the paper's figures, and what we assume."
        lines += ["## Not run", "", f"{listed}. {how}", ""]
    return "\n".join(lines)


def _link(key: str, groups: Groups) -> str:
    table = published.tables()[key]
    return f"[{key}]({table.paper}.md#{key})" if _was_run(table, groups) else key


def table_lines(table: Table, groups: Groups) -> list[str]:
    """Return the Markdown of a table: measures, rows of each row's runs, reference scores.

    Rows without any run share one line. A column without any text is left out, and of a paper's
    table one whose text is the same for all runs, which then stands above the table.
    """
    is_study, is_wide = table.paper == "study", len(table.measures) > IN_ONE_CELL
    rows_of = _study_rows if is_study else _wide_rows if is_wide else _rows
    rows: list[Row] = []
    missing, references = 0, {}
    for cell in table.cells.values():
        found = groups[cell.canonical.id]
        rows += rows_of(table, cell, groups)
        missing += not found
        for group in found:
            references |= group[0].get("references", {})
    listed = f"`reproduce list {table.id}` has the paper's figures."
    if missing == len(table.cells):
        return [f"No row was run. {listed}"]
    for what, values in references.items():
        constant = _texts(table, [values.get(name) for name in table.measures])
        row = {"result" if is_study else "ours": " / ".join(constant)}
        if rows_of is _wide_rows:
            row = _by_measure(table, constant)
        rows.append({"": f"{what}, to compare", **row})
    described = [f"{name} ({published.measures()[name].described})" for name in table.measures]
    above = f"{' / '.join(described)}."
    alike = {} if is_study else _alike(rows)
    if said := [text if name == "run" else f"{name} {text}" for name, text in alike.items()]:
        above += f" All runs: {'; '.join(said)}."
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in alike and any(_is_known(row.get(name, "")) for row in rows)
    ]
    lines = [above, "", *markdown(columns, (_trimmed(row, columns) for row in rows))]
    if missing:
        lines += ["", f"Rows not run: {missing} of {len(table.cells)}. {listed}"]
    return lines


def _is_known(text: str) -> bool:
    return bool(text.strip("-/ "))


def _alike(rows: list[Row]) -> Row:
    """Return the columns that are the same for all runs, and not empty."""
    texts = {name: {row[name] for row in rows if name in row} for name in OF_RUNS}
    same = {name: found.pop() for name, found in texts.items() if len(found) == 1}
    return {name: text for name, text in same.items() if _is_known(text)}


def _trimmed(row: Row, columns: Sequence[str]) -> list[str]:
    """Return a row's texts without the empty ones at its end."""
    texts = [row.get(name, "") for name in columns]
    while not texts[-1]:
        texts.pop()
    return texts


def _rows(table: Table, cell: Cell, groups: Groups) -> list[Row]:
    """Return the rows of a row's runs; full recipes stand beside the paper's figures."""
    known = any(value is not None for value in cell.paper)
    paper = ", ".join(filter(None, [known and figures(table, cell.paper), cell.says]))
    full: list[Row] = []
    changed: list[Row] = []
    for group in groups[cell.canonical.id]:
        row = {"": cell.name, "run": paper_record.label(group[0]), "paper": paper}
        row["ours"] = " / ".join(_result(table, group))
        row["ours - paper"] = " / ".join(_less(table, group, cell.paper))
        row |= _details(group)
        if paper_record.is_full(group[0]):
            full.append(row)
        else:
            changed.append(row | {"": f"{cell.name}, ours", "paper": "", "ours - paper": ""})
    if changed and not full:
        full = [{"": cell.name, "run": "not run in full", "paper": paper}]
    return [*full, *changed]


def _wide_rows(table: Table, cell: Cell, groups: Groups) -> list[Row]:
    """Return the paper's row, and below it those of a row's runs, with a column each measure."""
    full: list[Row] = []
    changed: list[Row] = []
    for group in groups[cell.canonical.id]:
        label = paper_record.label(group[0])
        row = {"": cell.name, "run": label, **_by_measure(table, _result(table, group))}
        row |= _details(group)
        if paper_record.is_full(group[0]):
            full.append(row)
            less = _less(table, group, cell.paper)
            if any(map(_is_known, less)):
                full.append({"": f"{cell.name}, ours - paper", **_by_measure(table, less)})
        else:
            changed.append(row | {"": f"{cell.name}, ours"})
    if full or changed:
        name = ", ".join(filter(None, [cell.name, "paper", cell.says]))
        full.insert(0, {"": name, **_by_measure(table, _texts(table, cell.paper))})
    return [*full, *changed]


def _by_measure(table: Table, texts: Sequence[str]) -> Row:
    """Return measure -> text; "did not learn" stands in the first column alone."""
    return dict(zip(table.measures, texts, strict=False))


def _study_rows(table: Table, cell: Cell, groups: Groups) -> list[Row]:
    """Return the rows of a row of the study, with differences from the plain norm."""
    full: list[Row] = []
    changed: list[Row] = []
    for group in groups[cell.canonical.id]:
        row = {"": cell.name, "result": " / ".join(_result(table, group))}
        row["difference [95 % interval]"] = _compared(table, group, cell, groups)
        details = _details(group)
        row |= {name: details[name] for name in ("seeds", "trained")}
        if paper_record.is_full(group[0]):
            full.append(row)
        else:
            changed.append(row | {"": f"{cell.name}, {paper_record.label(group[0])}"})
    return [*full, *changed]


def _result(table: Table, group: list[Record]) -> list[str]:
    """Return a group's result for each measure, or that it did not learn."""
    measures = zip(table.measures, table.decimals, strict=True)
    texts = [spread(_by_seed(group, name).values(), n) for name, n in measures]
    learned = sum(map(paper_record.learned, group))
    if not learned:
        return ["did not learn"]
    if learned < len(group):
        texts[0] = f"{learned} of {len(group)} learned: {texts[0]}"
    return texts


def _details(group: list[Record]) -> Row:
    """Return the texts of a group's columns from the seeds on."""
    commits = _distinct(r["commit"] for r in group)
    if "run" not in group[0]:  # computed
        return {"seeds": "", "trained": "", "device": "", "hours": "", "commit": commits}
    length = _distinct(f"{r['run']} of {r['recipe']} {r['unit']}" for r in group)
    if not group[0]["recipe"]:
        length = "test"
    if group[0]["jpeg"]:
        length = f"{length}, on re-encoded JPEG"
    return {
        "seeds": _distinct(r["seed"] for r in group),
        "trained": length,
        "device": _distinct(r["device"] for r in group),
        "hours": f"{mean(r['seconds'] for r in group) / 3600:.2f}",
        "commit": commits,
    }


def _by_seed(group: list[Record], measure: str) -> dict[int | None, float]:
    """Return seed -> figure of the runs that learned."""
    learned = filter(paper_record.learned, group)
    return {r.get("seed"): r["figures"][measure] for r in learned if measure in r["figures"]}


def _less(table: Table, group: list[Record], given: Sequence[float | None]) -> list[str]:
    """Return the differences of a group's means from published figures that are comparable."""
    differences = []
    for measure, theirs in zip(table.measures, given, strict=True):
        values = _by_seed(group, measure).values()
        known = values and theirs is not None and published.measures()[measure].comparable
        differences.append(mean(values) - theirs if known else None)
    return _texts(table, differences, sign="+")


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


def figures(table: Table, values: Sequence[float | None]) -> str:
    """Format a number, or "-" for None, for each of a table's measures, separated by " / "."""
    return " / ".join(_texts(table, values))


def _texts(table: Table, values: Sequence[float | None], sign: str = "") -> list[str]:
    # Adding 0 turns a rounded -0.0 into 0.0.
    return [
        "-" if value is None else f"{round(value, n) + 0:{sign}.{n}f}"
        for value, n in zip(values, table.decimals, strict=True)
    ]
