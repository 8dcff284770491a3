"""Answers to the questions of docs/evidence.md, from the committed runs of its comparisons.

``questions.json`` has the questions as they were stated before the runs.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ilm_plugins.experiments.reports.interval import Difference, holm
from ilm_plugins.experiments.reports.table import of_dicts

from .comparisons import Pair, difference_cells, pair


class Answer(NamedTuple):
    """One tested difference; ``difference`` is None without runs."""

    task: str
    #: Keys of the plain norm and of the norm that replaces it.
    norms: tuple[str, str]
    values: Pair
    #: The norm minus the plain norm, paired by seed; p is corrected for all questions together.
    difference: Difference | None


@cache
def questions() -> list[dict]:
    return json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))


def answers(folder: Path) -> list[Answer]:
    """Return the answer to each question, from comparisons in a folder."""
    found = []
    for question in questions():
        comparison, test, metric = (question[key] for key in ("comparison", "test", "metric"))
        for norms in question["pairs"]:
            one = pair(folder / comparison, norms, test, metric)
            found.append(Answer(question["task"], tuple(norms), one, one.difference))
    corrected = holm([answer.difference for answer in found])
    return [one._replace(difference=d) for one, d in zip(found, corrected, strict=True)]


def markdown(folder: Path) -> list[str]:
    """Return a table of the answers, and how many differences have no runs yet."""
    every = answers(folder)
    rows = []
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
