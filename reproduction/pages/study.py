"""The study of norms on small public data: the command of each table, all differences in one."""

import shlex
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain

from ilm_plugins.reports.interval import ALPHA, Difference, signed
from ilm_plugins.reports.table import of_dicts

from ..papers import published
from ..papers.published import Table
from . import papers, questions
from .comparisons import corrected, tested
from .results import Results


def table(entry: Table, results: Results) -> list[str]:
    """Return a table of the records, below the command that trains all of its rows."""
    runs = chain.from_iterable(papers.runs_of(cell, results) for cell in entry.cells.values())
    seeds = sorted({run.seed for run in runs})
    command = comparison(entry, seeds)
    lines = [f"`{command}` trains these rows.", ""] if command else []
    return [*lines, *papers.table_lines(entry, results)]


def comparison(entry: Table, seeds: Iterable[int]) -> str:
    """Return the command ``compare`` that trains all rows of a table; "" if there is none."""
    rows = [*entry.cells.values()]
    alike = all(cell.norm and cell.at == entry.at and not cell.starts_from for cell in rows)
    if not rows or not alike:
        return ""
    norms = [cell.norm for cell in rows if cell.config == entry.config]
    config = published.argument(entry.config)
    at = ["--at", *entry.at] if entry.at else []
    at += [word for module in entry.imports for word in ("--import", module)]
    output = ["--output", f"output/compare/{entry.id}"]
    return shlex.join(
        [
            "python",
            "-m",
            "ilm_plugins",
            "compare",
            config,
            *norms,
            *at,
            "--seeds",
            *map(str, seeds),
            *output,
        ]
    )


def differences(results: Results) -> list[str]:
    """Return the table of all differences of the study from the plain norm."""
    found = _differences(results)
    rows = tested(
        [
            ({"task": entry.task, "measure": entry.measures[0], "norms": norms}, difference)
            for entry, norms, _, difference in found
        ]
    )
    for row, (entry, _, runs, _) in zip(rows, found, strict=True):
        if failed := len(runs) - sum(papers.learned(run, entry) for run in runs):
            row["seeds"] += f" ({failed} more did not learn)"
    return of_dicts(rows)


def summary(results: Results) -> list[str]:
    """Return by norms the range of the differences, and how many are above, below, significant."""
    others = [(norms, difference) for _, norms, _, difference in _differences(results)]
    planned = [
        (f"{norm} - {plain}", values.difference)
        for _, (plain, norm), values in questions.answers(results)
    ]
    groups = corrected(others) + corrected(planned)
    by_norms = defaultdict(list)
    for (norms, one), (_, overall) in zip(groups, corrected(others + planned), strict=True):
        by_norms[norms].append((one, overall.p < ALPHA))
    rows = []
    for norms, compared in by_norms.items():
        means = [signed(mean) for mean in sorted(one.mean for one, _ in compared)]
        row = {"norms": norms, "differences": str(len(means))}
        row["means"] = " to ".join(dict.fromkeys((means[0], means[-1])))
        row["intervals above 0"] = str(sum(one.low > 0 for one, _ in compared))
        row["intervals below 0"] = str(sum(one.high < 0 for one, _ in compared))
        row["significant in its group"] = str(sum(one.p < ALPHA for one, _ in compared))
        row["significant over all"] = str(sum(is_found for _, is_found in compared))
        rows.append(row)
    return of_dicts(rows)


def _differences(results: Results) -> list[tuple[Table, str, list, Difference]]:
    """Return table, norms, runs and difference of each row of the study's tables."""
    return [
        (entry, norms, runs, difference)
        for entry in published.tables().values()
        if entry.task
        for norms, runs, difference in papers.differences(entry, results)
    ]
