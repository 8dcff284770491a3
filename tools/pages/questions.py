"""Answers to the questions of reports/README.md, from the committed runs of its comparisons.

``questions.json`` has the questions as they were stated before the runs.
"""

import json
from functools import cache
from pathlib import Path

from ilm_plugins.experiments.reports.interval import Difference
from ilm_plugins.experiments.reports.table import of_dicts

from .comparisons import Pair, corrected, difference_cells, pair
from .results import Results


@cache
def questions() -> list[dict]:
    return json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))


def answers(results: Results) -> list[tuple[str, list[str], Pair, Difference | None]]:
    """Return task, norms, values and the corrected difference of each question.

    The difference is None if its runs are missing.
    """
    found = []
    for question in questions():
        comparison, test, metric = (question[key] for key in ("comparison", "test", "metric"))
        for norms in question["pairs"]:
            values = pair(results, comparison, norms, test, metric)
            found.append((question["task"], norms, values, values.difference))
    return corrected(found)


def markdown(results: Results) -> list[str]:
    """Return a table of the answers, and how many differences have no runs yet."""
    every, rows = answers(results), []
    for task, norms, values, difference in every:
        if difference:
            cells = (f"{norm} {mean:.1f}" for norm, mean in zip(norms, values.means, strict=True))
            row = dict(zip(("task", "plain norm", "layer"), (task, *cells), strict=True))
            rows.append(row | difference_cells(difference))
    lines = of_dicts(rows) if rows else []
    if missing := len(every) - len(rows):
        lines += [""] if rows else []
        lines.append(f"Not measured yet: {missing} of {len(every)} differences.")
    return lines
