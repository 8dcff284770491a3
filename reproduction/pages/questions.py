"""Answers to the questions of reproduction/results.md, from the committed runs of its comparisons.

``questions.json`` has the questions as they were stated before the runs.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ilm_plugins.reports.table import of_dicts

from .comparisons import Pair, pair, tested
from .results import Results


@cache
def questions() -> list[dict]:
    return json.loads(Path(__file__).with_name("questions.json").read_text(encoding="utf-8"))


def answers(results: Results) -> Iterator[tuple[str, list[str], Pair]]:
    """Yield task, norms and values of each question."""
    for question in questions():
        comparison, test, metric = (question[key] for key in ("comparison", "test", "metric"))
        for norms in question["pairs"]:
            yield question["task"], norms, pair(results, comparison, norms, test, metric)


def markdown(results: Results) -> list[str]:
    """Return a table of the answers."""
    rows = []
    for task, norms, values in answers(results):
        cells = (f"{norm} {mean:.1f}" for norm, mean in zip(norms, values.means, strict=True))
        row = dict(zip(("task", "plain norm", "layer"), (task, *cells), strict=True))
        rows.append((row, values.difference))
    return of_dicts(tested(rows))
