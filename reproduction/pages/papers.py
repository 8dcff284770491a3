"""Tables of what was reproduced of the papers, beside the published figures.

``results`` is, throughout, what :func:`.results.load` returns. The runs of a row differ only in
their seed.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import mean
from typing import Any

from ilm_plugins.frameworks import AS_IS
from ilm_plugins.reports.interval import Difference, interval, paired, spread
from ilm_plugins.reports.table import markdown, of_dicts

from ..papers import published
from ..papers.published import Cell, Measure, Table
from .results import OWN_TEST, Results, Run

#: Columns that stand above the table if they are the same for all runs.
OF_RUNS = ("run", "seeds", "trained", "device", "hours", "commit")
#: A table of more measures has a column for each of them.
IN_ONE_CELL = 2

#: Column -> text.
Row = dict[str, str]


def runs_of(cell: Cell, results: Results) -> list[Run]:
    """Return the runs of a row."""
    cell = canonical(cell)
    runs = results.get(cell.table, {}).get(cell.name, [])
    if len({(run.run, run.trained) for run in runs}) > 1:
        raise ValueError(f"{cell.table} {cell.name} has runs of several recipes: keep those of one")
    return runs


def canonical(cell: Cell) -> Cell:
    """Return the first row with the same experiment, in whose folder the runs are saved."""
    if cell.config is None:
        return cell
    return next(one for one in published.cells() if _experiment(one) == _experiment(cell))


def _experiment(cell: Cell) -> tuple:
    """Return the settings of training and test: equal for rows that share their runs."""
    norm = None if cell.norm in (None, AS_IS) else (cell.norm, cell.at)
    return cell.config, norm, cell.overrides, cell.tests, cell.starts_from


def described(measure: Measure) -> str:
    """Return unit and direction in words, such as "%, lower is better"."""
    return f"{measure.unit}, {measure.better} is better".removeprefix(", ")


def norm_of(row: Cell) -> str:
    """Return the part after "TASK/" in the name of a row of the study."""
    return row.name.partition("/")[2]


def learned(run: Run, table: Table) -> bool:
    """Whether a run's first figure is one of a model that learned."""
    figure = run.figures.get(table.measures[0])
    if figure is None:
        return True
    is_chance = table.chance is not None and abs(figure - table.chance) < 1
    is_low = table.learned_from is not None and figure < table.learned_from
    return not is_chance and not is_low


def differences(table: Table, results: Results) -> Iterator[tuple[str, list[Run], Difference]]:
    """Yield name, runs and paired difference of each norm that replaces another."""
    for cell in filter(lambda cell: cell.against, table.cells.values()):
        name = f"{norm_of(cell)} - {norm_of(table.cells[cell.against])}"
        if difference := _from_plain(table.measures[0], cell, table, results):
            yield name, runs_of(cell, results), difference


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
    return any(runs_of(cell, results) for part in parts for cell in part.cells.values())


def _not_run(paper: str, results: Results) -> list[str]:
    """Return the tables and figures without any run; drawings are neither run nor missing."""
    return [
        table.id
        for table in _tables_of(paper)
        if (table.cells or table.shows or table.command) and not _was_run(table, results)
    ]


def _count(table: Table, results: Results) -> str:
    """Describe how many of a table's rows were run in full, and how many only with changes."""
    runs = (runs_of(cell, results) for cell in table.cells.values())
    states = [found[0].is_full for found in runs if found]
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
        runs = runs_of(cell, results)
        missing += not runs
        if runs:
            rows += rows_of(table, cell, results)
            references |= {t: v for t, v in runs[0].values.items() if t != OWN_TEST}
    for what, known in references.items():
        constant = table.texts([known.get(name) for name in table.measures])
        row = {"result" if is_study else "ours": " / ".join(constant)}
        if rows_of is _wide_rows:
            row = _by_measure(table, constant)
        rows.append({"": f"{what}, to compare", **row})
    measures = [f"{name} ({described(published.measures()[name])})" for name in table.measures]
    above = f"{' / '.join(measures)}."
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
        listed = f"`python -m reproduction list {table.id}` has the paper's figures."
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
    """Return a row with the paper's figures beside runs of the full recipe."""
    runs = runs_of(cell, results)
    row = {"": cell.name, "run": runs[0].run, "paper": "", "ours": " / ".join(_result(table, runs))}
    row["ours - paper"] = ""
    if runs[0].is_full:
        is_printed = any(value is not None for value in cell.paper)
        paper = is_printed and " / ".join(table.texts(cell.paper))
        row["paper"] = ", ".join(filter(None, [paper, cell.says]))
        row["ours - paper"] = " / ".join(_less(table, runs, cell.paper))
    return [row | _details(runs)]


def _wide_rows(table: Table, cell: Cell, results: Results) -> list[Row]:
    """Return the paper's row, and below it that of the runs, with a column each measure."""
    runs = runs_of(cell, results)
    ours = {"": f"{cell.name}, ours", "run": runs[0].run}
    ours |= _by_measure(table, _result(table, runs)) | _details(runs)
    return [{"": f"{cell.name}, paper", **_by_measure(table, table.texts(cell.paper))}, ours]


def _by_measure(table: Table, texts: Sequence[str]) -> Row:
    """Return measure -> text; "did not learn" stands in the first column alone."""
    return dict(zip(table.measures, texts, strict=False))


def _study_rows(table: Table, cell: Cell, results: Results) -> list[Row]:
    """Return a row of the study, with differences from the plain norm."""
    runs = runs_of(cell, results)
    name = cell.name if runs[0].is_full else f"{cell.name}, {runs[0].run}"
    row = {"": name, "result": " / ".join(_result(table, runs))}
    row["difference [95 % interval]"] = _compared(table, cell, results)
    details = _details(runs)
    return [row | {name: details[name] for name in ("seeds", "trained")}]


def _result(table: Table, runs: list[Run]) -> list[str]:
    """Return the result of runs for each measure, or that it did not learn."""
    measures = zip(table.measures, table.decimals, strict=True)
    texts = [spread(values(runs, table, name).values(), n) for name, n in measures]
    count = sum(learned(run, table) for run in runs)
    if not count:
        return ["did not learn"]
    if count < len(runs):
        texts[0] = f"{count} of {len(runs)} learned: {texts[0]}"
    return texts


def _details(runs: list[Run]) -> Row:
    """Return the texts of the columns of runs from the seeds on."""
    commits = _distinct(run.commit or None for run in runs)
    if not runs[0].trained:  # computed
        return {"seeds": "", "trained": "", "device": "", "hours": "", "commit": commits}
    return {
        "seeds": _distinct(run.seed for run in runs),
        "trained": _distinct(run.trained for run in runs),
        "device": _distinct(run.processor for run in runs),
        "hours": f"{mean(run.seconds for run in runs) / 3600:.2f}",
        "commit": commits,
    }


def values(runs: list[Run], table: Table, measure: str) -> dict[int | None, float]:
    """Return seed -> figure of the runs that learned."""
    found = (run for run in runs if learned(run, table) and measure in run.figures)
    return {run.seed: run.figures[measure] for run in found}


def _less(table: Table, runs: list[Run], given: Sequence[float | None]) -> list[str]:
    """Return the differences of means over runs from published figures that are comparable."""
    less = []
    for measure, theirs in zip(table.measures, given, strict=True):
        found = values(runs, table, measure).values()
        known = found and theirs is not None and published.measures()[measure].comparable
        less.append(mean(found) - theirs if known else None)
    return table.texts(less, sign="+")


def _compared(table: Table, cell: Cell, results: Results) -> str:
    """Return paired differences from the norm that is replaced, if any."""
    if not cell.against:
        return ""
    texts = []
    for measure, n in zip(table.measures, table.decimals, strict=True):
        one = _from_plain(measure, cell, table, results)
        texts.append(interval(one, n) if one else "-")
    return f"{' / '.join(texts)} from {norm_of(table.cells[cell.against])}"


def _from_plain(measure: str, cell: Cell, table: Table, results: Results) -> Difference | None:
    """Return the paired difference from the norm that is replaced, if it has an interval."""
    both = (runs_of(one, results) for one in (cell, table.cells[cell.against]))
    one = paired(*(values(runs, table, measure) for runs in both))
    return one if one and one.has_interval else None


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"
