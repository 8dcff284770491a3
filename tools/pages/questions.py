"""Answers to the questions of docs/evidence.md, from the committed runs of its comparisons.

``questions.json`` has the questions as they were stated before the runs.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ilm_plugins.experiments.reports.interval import Difference, holm
from ilm_plugins.experiments.reports.table import of_dicts

from .comparisons import difference_cells, pair


@dataclass(frozen=True)
class Answer:
    """One tested difference; ``difference`` is None, and the means are NaN, without runs."""

    task: str
    plain: str
    norm: str
    #: Means over the seeds that both norms have.
    plain_mean: float
    norm_mean: float
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
            found.append(Answer(question["task"], *norms, *one.means, one.difference))
    corrected = holm([answer.difference for answer in found])
    return [replace(one, difference=d) for one, d in zip(found, corrected, strict=True)]


def markdown(folder: Path) -> list[str]:
    """Return a table of the answers, and how many differences have no runs yet."""
    every = answers(folder)
    rows = [
        {
            "task": answer.task,
            "plain norm": f"{answer.plain} {answer.plain_mean:.1f}",
            "layer": f"{answer.norm} {answer.norm_mean:.1f}",
            **difference_cells(answer.difference),
        }
        for answer in every
        if answer.difference
    ]
    lines = of_dicts(rows) if rows else []
    if missing := len(every) - len(rows):
        lines += [""] if rows else []
        lines.append(f"Not measured yet: {missing} of {len(every)} differences.")
    return lines
