"""What the runs of two norms show before any test: a list of rules, of which the first holds.

A rule returns why the runs tell nothing, in at most twenty words, or None.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median
from typing import NamedTuple

import numpy as np

from .unit import Unit

#: Part of a point within which values are at their best end.
SATURATED = 0.1
#: How many times as far as the other runs differ a run is below them that did not learn.
GAP = 3
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
    """The metric can't tell the norms apart: all values are equal, or at the best end."""
    if not runs.vary(runs.all):
        return f"All runs have {runs.all[0]:g}, so this metric cannot tell the norms apart."
    _, best = runs.unit.ends or (0, math.inf)
    near = all(abs(value - best) <= SATURATED * runs.unit.point for value in runs.all)
    text = (
        f"Nothing is left to gain: all values are within {runs.unit.size(SATURATED)} of {best:g}."
    )
    return text if near else None


def collapsed(runs: Runs) -> str | None:
    """Some runs of a norm ended far below its others, and below all of the other norm."""
    one, other = (runs.values[norm] for norm in (runs.baseline, runs.norm))
    found = {runs.baseline: _collapsed(one, other, runs), runs.norm: _collapsed(other, one, runs)}
    return _counted(runs, found, "did not learn")


def ignores_seed(runs: Runs) -> str | None:
    text = "Each norm has one value for all seeds: the training probably ignores its seed."
    return None if any(runs.vary(one.values()) for one in runs.values.values()) else text


def no_effect(runs: Runs) -> str | None:
    equal = f"{runs.norm} has {runs.baseline}'s result in each seed"
    text = f"{equal}: it had no effect, or the metric is coarse."
    return None if any(runs.differences) else text


def equal_differences(runs: Runs) -> str | None:
    text = "All seeds have the same difference, which does not tell its spread."
    return None if runs.vary(runs.differences) else text


#: In their order; a comparison that they let pass is tested.
RULES = (
    *(no_result, too_few, not_learned, saturated, collapsed),
    *(ignores_seed, no_effect, equal_differences),
)


def _collapsed(values: Mapping[int, float], others: Mapping[int, float], runs: Runs) -> list[int]:
    """Return the seeds whose runs did not learn: behind a gap, and at less than half the median."""
    if len(values) < 3:
        return []
    sign = 1 if runs.unit.higher_is_better else -1
    seeds = sorted(values, key=lambda seed: sign * values[seed])  # the worst first
    ordered = [values[seed] for seed in seeds]
    gaps = np.abs(np.diff(ordered))
    first = int(gaps.argmax()) + 1
    learned, rest = ordered[first:], [*others.values()]
    usual, best = median([*learned, *rest]), ordered[first - 1]
    is_far = gaps[first - 1] > GAP * max(np.ptp(learned), np.ptp(rest))
    if usual > 0:  # of metrics that may be negative, no part of the median is little
        is_far &= best < usual / 2 if sign == 1 else best > usual * 2
    return seeds[:first] if is_far else []


def _counted(runs: Runs, found: Mapping[str, Collection[int]], what: str) -> str | None:
    """Return "2 of 5 runs with AN (seeds 1, 4) did not learn.", or None without such runs."""
    parts = []
    for norm, seeds in found.items():
        if seeds:
            total = len(runs.values[norm]) + len(runs.failed[norm])
            named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
            parts.append(f"{len(seeds)} of {total} runs with {norm} ({named})")
    return f"{' and '.join(parts)} {what}." if parts else None
