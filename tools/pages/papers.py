"""Tables of what was reproduced of the papers, beside the published figures.

``results`` is, throughout, what :func:`.results.load` returns. The runs of a row form groups, which
differ only in their seed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

from ilm_plugins.experiments.compare.results import OWN_TEST
from ilm_plugins.experiments.papers import published
from ilm_plugins.experiments.papers.published import Cell, Table
from ilm_plugins.experiments.reports.interval import Difference, interval, paired, spread
from ilm_plugins.experiments.reports.table import markdown, of_dicts
from ilm_plugins.frameworks.config import AS_IS

from .results import Results, Run

#: Columns that stand above the table if they are the same for all runs.
OF_RUNS = ("run", "seeds", "trained", "device", "hours", "commit")
#: A table of more measures has a column for each of them.
IN_ONE_CELL = 2

#: Column -> text.
Row = dict[str, str]


def groups(results: Results, cell: Cell) -> list[list[Run]]:
    """Return the runs of a row, grouped by their label and by what they trained on."""
    cell = canonical(cell)
    runs = sorted(results.get(cell.table, {}).get(cell.name, ()), key=_settings)
    return [list(group) for _, group in groupby(runs, _settings)]


def canonical(cell: Cell) -> Cell:
    """Return the first row with the same experiment, in whose folder the runs are saved."""
    if cell.config is None:
        return cell
    return next(one for one in published.cells() if _experiment(one) == _experiment(cell))


def _experiment(cell: Cell) -> tuple:
    """Return the settings of training and test: equal for rows that share their runs."""
    norm = None if cell.norm in (None, AS_IS) else (cell.norm, cell.at)
    return cell.config, norm, cell.overrides, cell.tests, cell.starts_from


def _settings(run: Run) -> tuple[str, bool]:
    return run.run, is_jpeg(run)


def is_jpeg(run: Run) -> bool:
    return run.trained.endswith("on re-encoded JPEG")


def learned(run: Run, table: Table) -> bool:
    """Whether a run's first figure is one of a model that learned."""
    figure = run.figures.get(table.measures[0])
    if figure is None:
        return True
    is_chance = table.chance is not None and abs(figure - table.chance) < 1
    is_low = table.learned_from is not None and figure < table.learned_from
    return not is_chance and not is_low


def differences(table: Table, results: Results) -> Iterator[tuple[str, list[Run], Difference]]:
    """Yield name, group and paired difference of each norm that replaces another."""
    for cell in filter(lambda cell: cell.against, table.cells.values()):
        name = f"{cell.norm_name} - {table.cells[cell.against].norm_name}"
        for group in groups(results, cell):
            if difference := _from_plain(table.measures[0], group, cell, table, results):
                yield name, group, difference


def rows_run(papers: Iterable[str], results: Results) -> list[str]:
    """Return the Markdown of a table of how many rows were run, and a line of what was not."""
    rows: list[tuple[str, ...]] = []
    missing = []
    for paper in papers:
        for table in _tables_of(paper):
            if table.cells and _was_run(table, results):
                rows.append((table.id, f"{table.number}: {table.title}", _count(table, results)))
        if keys := _not_run(paper, results):
            missing.append(f"of {published.papers()[paper].name} {', '.join(keys)}")
    lines = markdown(("", "", "rows run"), rows) if rows else []
    if missing:
        lines += ["", f"Not run: {'; '.join(missing)}."]
    return lines


def _tables_of(paper: str) -> list[Table]:
    return [table for table in published.tables().values() if table.paper == paper]


def _was_run(table: Table, results: Results) -> bool:
    """Whether a row of a table, or of the tables that a figure shows, has a record."""
    parts = [table, *(published.tables()[key] for key in table.shows)]
    return any(groups(results, cell) for part in parts for cell in part.cells.values())


def _not_run(paper: str, results: Results) -> list[str]:
    """Return the tables and figures without any run; drawings are neither run nor missing."""
    return [
        table.id
        for table in _tables_of(paper)
        if (table.cells or table.shows or table.command) and not _was_run(table, results)
    ]


def _count(table: Table, results: Results) -> str:
    """Describe how many of a table's rows were run in full, and how many only with changes."""
    runs = (groups(results, cell) for cell in table.cells.values())
    states = [any(group[0].is_full for group in found) for found in runs if found]
    full, changed = states.count(True), states.count(False)
    text = f"{full} of {len(table.cells)}"
    return f"{text}, {changed} shortened or otherwise changed" if changed else text


def table_lines(table: Table, results: Results) -> list[str]:
    """Return the Markdown of a table: measures, rows of each row's runs, reference scores.

    Rows without any run share one line. A column without any text is left out, and of a paper's
    table one whose text is the same for all runs, which then stands above the table.
    """
    is_study, is_wide = table.paper == "study", len(table.measures) > IN_ONE_CELL
    rows_of = _study_rows if is_study else _wide_rows if is_wide else _rows
    rows: list[Row] = []
    missing, references = 0, {}
    for cell in table.cells.values():
        found = groups(results, cell)
        rows += rows_of(table, cell, results)
        missing += not found
        for group in found:
            references |= {t: v for t, v in group[0].values.items() if t != OWN_TEST}
    for what, known in references.items():
        constant = table.texts([known.get(name) for name in table.measures])
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
    lines = [above, "", *of_dicts([{name: row.get(name, "") for name in columns} for row in rows])]
    if missing:
        listed = f"`reproduce list {table.id}` has the paper's figures."
        lines += ["", f"Rows not run: {missing} of {len(table.cells)}. {listed}"]
    return lines


def _is_known(text: str) -> bool:
    return bool(text.strip("-/ "))


def _alike(rows: list[Row]) -> Row:
    """Return the columns that are the same for all runs, and not empty."""
    texts = {name: {row[name] for row in rows if name in row} for name in OF_RUNS}
    same = {name: found.pop() for name, found in texts.items() if len(found) == 1}
    return {name: text for name, text in same.items() if _is_known(text)}


def _rows(table: Table, cell: Cell, results: Results) -> list[Row]:
    """Return the rows of a row's runs; only full recipes stand beside the paper's figures."""
    is_printed = any(value is not None for value in cell.paper)
    paper = ", ".join(filter(None, [is_printed and " / ".join(table.texts(cell.paper)), cell.says]))
    rows = []
    for group in groups(results, cell):
        less = " / ".join(_less(table, group, cell.paper))
        beside = (paper, less) if group[0].is_full else ("", "")
        row = {"": cell.name, "run": group[0].run, "paper": beside[0]}
        row |= {"ours": " / ".join(_result(table, group)), "ours - paper": beside[1]}
        rows.append(row | _details(group))
    return rows


def _wide_rows(table: Table, cell: Cell, results: Results) -> list[Row]:
    """Return the paper's row, and below it those of a row's runs, with a column each measure."""
    rows = []
    for group in groups(results, cell):
        row = {"": f"{cell.name}, ours", "run": group[0].run}
        rows.append(row | _by_measure(table, _result(table, group)) | _details(group))
    paper = {"": f"{cell.name}, paper", **_by_measure(table, table.texts(cell.paper))}
    return [paper, *rows] if rows else []


def _by_measure(table: Table, texts: Sequence[str]) -> Row:
    """Return measure -> text; "did not learn" stands in the first column alone."""
    return dict(zip(table.measures, texts, strict=False))


def _study_rows(table: Table, cell: Cell, results: Results) -> list[Row]:
    """Return the rows of a row of the study, with differences from the plain norm."""
    rows = []
    for group in groups(results, cell):
        name = cell.name if group[0].is_full else f"{cell.name}, {group[0].run}"
        row = {"": name, "result": " / ".join(_result(table, group))}
        row["difference [95 % interval]"] = _compared(table, group, cell, results)
        details = _details(group)
        rows.append(row | {name: details[name] for name in ("seeds", "trained")})
    return rows


def _result(table: Table, group: list[Run]) -> list[str]:
    """Return a group's result for each measure, or that it did not learn."""
    measures = zip(table.measures, table.decimals, strict=True)
    texts = [spread(values(group, table, name).values(), n) for name, n in measures]
    count = sum(learned(run, table) for run in group)
    if not count:
        return ["did not learn"]
    if count < len(group):
        texts[0] = f"{count} of {len(group)} learned: {texts[0]}"
    return texts


def _details(group: list[Run]) -> Row:
    """Return the texts of a group's columns from the seeds on."""
    commits = _distinct(run.commit or None for run in group)
    if not group[0].trained:  # computed
        return {"seeds": "", "trained": "", "device": "", "hours": "", "commit": commits}
    return {
        "seeds": _distinct(run.seed for run in group),
        "trained": _distinct(run.trained for run in group),
        "device": _distinct(run.processor for run in group),
        "hours": f"{mean(run.seconds for run in group) / 3600:.2f}",
        "commit": commits,
    }


def values(group: list[Run], table: Table, measure: str) -> dict[int | None, float]:
    """Return seed -> figure of the runs that learned."""
    runs = [run for run in group if learned(run, table) and measure in run.figures]
    return {run.seed: run.figures[measure] for run in runs}


def _less(table: Table, group: list[Run], given: Sequence[float | None]) -> list[str]:
    """Return the differences of a group's means from published figures that are comparable."""
    less = []
    for measure, theirs in zip(table.measures, given, strict=True):
        found = values(group, table, measure).values()
        known = found and theirs is not None and published.measures()[measure].comparable
        less.append(mean(found) - theirs if known else None)
    return table.texts(less, sign="+")


def _compared(table: Table, group: list[Run], cell: Cell, results: Results) -> str:
    """Return paired differences from the norm that is replaced, if any."""
    if not cell.against:
        return ""
    texts = []
    for measure, n in zip(table.measures, table.decimals, strict=True):
        one = _from_plain(measure, group, cell, table, results)
        texts.append(interval(one, n) if one else "-")
    return f"{' / '.join(texts)} from {table.cells[cell.against].norm_name}"


def _from_plain(
    measure: str, group: list[Run], cell: Cell, table: Table, results: Results
) -> Difference | None:
    """Return a group's paired difference from the norm that is replaced, if it has an interval."""
    plain = groups(results, table.cells[cell.against])
    alike = [one for one in plain if one[0].run == group[0].run]
    if not alike:
        return None
    one = paired(values(group, table, measure), values(alike[0], table, measure))
    return one if one and one.has_interval else None


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"
