"""What the runs of two norms show before any test: a list of rules, of which the first holds.

A rule returns why the runs tell nothing, in at most twenty words, or None.
"""

from collections.abc import Iterable, Mapping
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
    failed = {norm: reasons for norm, reasons in runs.failed.items() if reasons}
    if not failed:
        return None
    diverged = all(
        one.startswith("diverged") for found in failed.values() for one in found.values()
    )
    counts = [_count(runs, norm, found) for norm, found in failed.items()]
    what = "diverged" if diverged else "gave no result"
    return f"{' and '.join(counts)} {what}."


def too_few(runs: Runs) -> str | None:
    count = len(runs.differences)
    if count > 1:
        return None
    return "One seed shows nothing." if count else "No seed has a result of both norms."


def not_learned(runs: Runs) -> str | None:
    """All values are within a point of the worst that is possible."""
    if runs.unit.ends is None:
        return None
    worst, _ = runs.unit.ends
    if any(abs(value - worst) >= runs.unit.point for value in runs.all):
        return None
    return f"No run has learned: all values are within {runs.unit.size(1)} of {worst:g}."


def saturated(runs: Runs) -> str | None:
    """The metric can't tell the norms apart: all values are equal, or at the best end."""
    if not runs.vary(runs.all):
        return f"All runs have {runs.all[0]:g}, so this metric cannot tell the norms apart."
    if runs.unit.ends is None:
        return None
    _, best = runs.unit.ends
    if any(abs(value - best) > SATURATED * runs.unit.point for value in runs.all):
        return None
    return (
        f"Nothing is left to gain: all values are within {runs.unit.size(SATURATED)} of {best:g}."
    )


def collapsed(runs: Runs) -> str | None:
    """Some runs of a norm ended far below its others, and below all of the other norm."""
    found = {}
    for norm, of_seeds in runs.values.items():
        (others,) = (of.values() for name, of in runs.values.items() if name != norm)
        if low := _collapsed(of_seeds, [*others], runs.unit.higher_is_better):
            found[norm] = low
    if not found:
        return None
    return f"{' and '.join(_count(runs, norm, low) for norm, low in found.items())} did not learn."


def ignores_seed(runs: Runs) -> str | None:
    if any(runs.vary(of_norm.values()) for of_norm in runs.values.values()):
        return None
    return "Each norm has one value for all seeds: the training probably ignores its seed."


def no_effect(runs: Runs) -> str | None:
    if any(runs.differences):
        return None
    return (
        f"{runs.norm} has {runs.baseline}'s result in each seed: it had no effect, or the metric "
        "is coarse."
    )


def equal_differences(runs: Runs) -> str | None:
    if runs.vary(runs.differences):
        return None
    return "All seeds have the same difference, which does not tell its spread."


#: In their order; a comparison that they let pass is tested.
RULES = (
    *(no_result, too_few, not_learned, saturated, collapsed),
    *(ignores_seed, no_effect, equal_differences),
)


def _collapsed(
    values: Mapping[int, float], others: list[float], higher_is_better: bool
) -> list[int]:
    """Return the seeds whose runs did not learn: behind a gap, and at less than half the median."""
    seeds = sorted(
        values, key=lambda seed: values[seed], reverse=not higher_is_better
    )  # worst first
    ordered = [values[seed] for seed in seeds]
    gaps = np.abs(np.diff(ordered))
    if len(ordered) < 3 or not len(others):
        return []
    first = int(gaps.argmax()) + 1
    low, learned = ordered[:first], ordered[first:]
    usual = median([*learned, *others])
    is_far = gaps[first - 1] > GAP * max(np.ptp(learned), np.ptp(others))
    if usual > 0:  # of metrics that may be negative, no part of the median is little
        is_far &= low[-1] < usual / 2 if higher_is_better else low[-1] > usual * 2
    return sorted(seeds[:first]) if is_far else []


def _count(runs: Runs, norm: str, seeds: Iterable[int]) -> str:
    """Return "2 of 5 runs with AN (seeds 1, 4)"."""
    seeds = sorted(seeds)
    total = len(runs.values[norm]) + len(runs.failed[norm])
    numbers = ", ".join(map(str, seeds))
    return f"{len(seeds)} of {total} runs with {norm} (seed{'s' * (len(seeds) > 1)} {numbers})"
