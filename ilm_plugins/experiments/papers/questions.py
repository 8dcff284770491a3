"""Answers to the questions of docs/evidence.md, from the committed runs of its comparisons.

``questions.json`` has the questions as they were stated before the runs. A comparison's records lie
where the command ``compare`` writes them, in COMPARISON/NORM/seedN; a norm's folder is called by
its key alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from ...frameworks.run_record import PLAIN, is_complete, read
from ..compare.results import OWN_TEST
from ..compare.statistics import Difference, holm, paired, signed
from .paper_report import markdown_head, markdown_row


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
    uncorrected = list(_answers(folder))
    corrected = holm([difference for *_, difference in uncorrected])
    pairs = zip(uncorrected, corrected, strict=True)
    return [Answer(*answer[:-1], difference) for answer, difference in pairs]


def _answers(folder: Path) -> Iterator[tuple]:
    """Yield the fields of each Answer, with p not yet corrected."""
    for question in questions():
        comparison, test, metric = (question[key] for key in ("comparison", "test", "metric"))
        for names in question["pairs"]:
            plain, ours = (by_seed(folder / comparison / name, test, metric) for name in names)
            seeds = plain.keys() & ours.keys()
            means = [
                mean(values[seed] for seed in seeds) if seeds else float("nan")
                for values in (plain, ours)
            ]
            yield question["task"], *names, *means, paired(ours, plain)


def by_seed(runs: Path, test: str, metric: str) -> dict[int, float]:
    """Return seed -> metric by a test of the complete runs in a norm's folder."""
    below = "" if test == OWN_TEST else test
    values = {}
    for run in sorted(runs.glob("seed*")):
        training, tested = read(run), read(run / below)
        if is_complete(training) and tested and metric in tested["metrics"].get(PLAIN, {}):
            values[training["seed"]] = tested["metrics"][PLAIN][metric]
    return values


def markdown(folder: Path) -> list[str]:
    """Return a table of the answers, and how many differences have no runs yet."""
    every = answers(folder)
    answered = [answer for answer in every if answer.difference]
    columns = "task", "plain norm", "layer", "difference", "95 % interval", "p, corrected"
    columns += "not excluded", "power, 1 point", "seeds"
    lines = []
    if answered:
        lines += markdown_head(*columns)
    for answer in answered:
        difference = answer.difference
        has_interval = difference.has_interval
        cells = (
            answer.task,
            f"{answer.plain} {answer.plain_mean:.1f}",
            f"{answer.norm} {answer.norm_mean:.1f}",
            signed(difference.mean),
            ends(difference.low, difference.high) if has_interval else "-",
            f"{difference.p:.3f}" if has_interval else "-",
            ends(*difference.left) if has_interval else "-",
            f"{difference.power_of(1):.2f}" if has_interval else "-",
            str(difference.seeds),
        )
        lines.append(markdown_row(*cells))
    if missing := len(every) - len(answered):
        if answered:
            lines.append("")
        lines.append(f"Not measured yet: {missing} of {len(every)} differences.")
    return lines


def ends(low: float, high: float) -> str:
    """Format the ends of an interval."""
    return f"{signed(low)} to {signed(high)}"
