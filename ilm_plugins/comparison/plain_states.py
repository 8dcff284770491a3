"""What the runs of two norms show before any test: a list of rules, of which the first holds.

A rule returns why the runs are not tested, in at most twenty words, or None.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np

from .unit import Unit

#: The least number of seeds for which a comparison is planned. Fewer tie by chance.
FEWEST = 5
#: Part of a point within which values are at their best end.
SATURATED = 0.1
#: How many times as far as the other runs differ a run is below them that did not learn.
GAP = 4
#: Part of a value that is rounding.
ROUNDING = 1e-9


class Runs(NamedTuple):
    """The runs of two norms by one test: seed -> value by norm, and seed -> reason of failures."""

    baseline: str
    norm: str
    values: Mapping[str, Mapping[int, float]]
    failed: Mapping[str, Mapping[int, str]]
    unit: Unit

    @property
    def all(self) -> list[float]:
        return [value for of_norm in self.values.values() for value in of_norm.values()]

    @property
    def differences(self) -> list[float]:
        ours, plain = self.values[self.norm], self.values[self.baseline]
        return [ours[seed] - plain[seed] for seed in ours if seed in plain]

    def vary(self, values: Iterable[float]) -> bool:
        return bool(np.ptp([*values]) > ROUNDING * max(map(abs, self.all)))


class State(NamedTuple):
    """Why runs are not tested, their verdict, and a reader's next step."""

    reason: str
    word: str
    step: str


def no_result(runs: Runs) -> str | None:
    """Seeds that are left may be the lucky ones."""
    reasons = [reason for of_norm in runs.failed.values() for reason in of_norm.values()]
    diverged = all(reason.startswith("diverged") for reason in reasons)
    return _counted(runs, runs.failed, "diverged" if diverged else "gave no result")


def too_few(runs: Runs) -> str | None:
    few = "No seed has a result of both norms.", "One seed shows nothing.", None
    return few[min(2, len(runs.differences))]


def not_learned(runs: Runs) -> str | None:
    """All values are within a point of the worst that is possible."""
    worst, _ = runs.unit.ends or (math.inf, 0)
    near = all(abs(value - worst) < runs.unit.point for value in runs.all)
    text = f"No run has learned: all values are within {runs.unit.size(1)} of {worst:g}."
    return text if near else None


def saturated(runs: Runs) -> str | None:
    """All values are at the best end, so the metric cannot tell the norms apart."""
    _, best = runs.unit.ends or (0, math.inf)
    near = all(abs(value - best) <= SATURATED * runs.unit.point for value in runs.all)
    text = (
        f"Nothing is left to gain: all values are within {runs.unit.size(SATURATED)} of {best:g}."
    )
    return text if near else None


def collapsed(runs: Runs) -> str | None:
    """Some runs of a norm ended far below its others, and below all of the other norm."""
    return _counted(runs, collapsed_seeds(runs), "did not learn")


def tied(runs: Runs) -> str | None:
    """The differences have no spread, by a coarse metric, or by a training that is broken."""
    if runs.vary(runs.differences):
        return None
    if not runs.vary(runs.all):
        return f"All runs have {runs.all[0]:g}, so this metric cannot tell the norms apart."
    if not any(runs.vary(of_norm.values()) for of_norm in runs.values.values()):
        return "Each norm has one value for all seeds."
    if not any(runs.differences):
        return f"{runs.norm} has {runs.baseline}'s result in each seed."
    return "All seeds have the same difference, which does not tell its spread."


def state(runs: Runs) -> State | None:
    """Return the state of runs that are not tested; None for a comparison that is tested."""
    for rule, step in RULES:
        if reason := rule(runs):
            if rule is tied and len(runs.differences) < FEWEST:
                return State(reason, "undecided", "seeds")
            return State(reason, "not tested", step)
    return None


#: The rules in their order, each with a reader's next step.
RULES = (
    *((no_result, "repeat"), (too_few, "seeds"), (not_learned, "repair"), (saturated, "harder")),
    *((collapsed, "repair"), (tied, "broken")),
)


def collapsed_seeds(runs: Runs) -> dict[str, list[int]]:
    """Return norm -> the seeds whose runs did not learn."""
    plain, ours = (runs.values[norm] for norm in (runs.baseline, runs.norm))
    return {runs.baseline: _collapsed(plain, ours, runs), runs.norm: _collapsed(ours, plain, runs)}


def _collapsed(values: Mapping[int, float], others: Mapping[int, float], runs: Runs) -> list[int]:
    """Return the seeds whose runs did not learn: behind a gap, and at less than half the median.

    The runs that learned must be near the other norm's, else the norm as a whole is worse. Positive
    losses are compared by their logarithms, as equal norms may have losses of any size.
    """
    if len(values) < 3:
        return []
    higher = runs.unit.higher_is_better
    size = float if higher or min(runs.all) <= 0 else math.log
    seeds = sorted(values, key=values.__getitem__, reverse=not higher)  # the worst first
    ordered, rest = [size(values[seed]) for seed in seeds], [*map(size, others.values())]
    gaps = np.abs(np.diff(ordered))
    first = int(gaps.argmax()) + 1
    if gaps[first - 1] <= GAP * max(np.ptp(ordered[first:]), np.ptp(rest)):
        return []
    learned = [values[seed] for seed in seeds[first:]]
    usual = median([*learned, *others.values()])

    def is_little(value: float) -> bool:
        return value < usual / 2 if higher else value > usual * 2

    # Of metrics that may be negative, no part of the median is little.
    is_collapse = usual <= 0 or (
        is_little(values[seeds[first - 1]]) and not is_little(median(learned))
    )
    return seeds[:first] if is_collapse else []


def _counted(runs: Runs, seeds_of: Mapping[str, Collection[int]], what: str) -> str | None:
    """Return "2 of 5 runs with AN (seeds 1, 4) did not learn.", or None without such runs."""
    parts = []
    for norm, seeds in seeds_of.items():
        if seeds:
            total = len(runs.values[norm]) + len(runs.failed[norm])
            named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
            parts.append(f"{len(seeds)} of {total} runs with {norm} ({named})")
    return f"{' and '.join(parts)} {what}." if parts else None
