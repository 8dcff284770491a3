"""Paired differences, their intervals and tests, what seeds can show, and all of it as text."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

#: The level of a test, and the probability with which a real difference should be seen.
ALPHA, POWER = 0.05, 0.8
#: No more seeds than these are recommended.
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Difference:
    """The mean difference of a norm from the baseline over common seeds, with its 95 % interval.

    With one seed, ``mean`` alone is known; the other statistics are NaN. So they are if all seeds
    have the same difference, 0 included, which does not tell its spread.
    """

    seeds: int
    mean: float
    deviation: float
    low: float
    high: float
    #: p-value of the two-sided paired t-test; Holm's correction changes it. NaN without a test.
    p: float
    #: The number of tests for which p is corrected.
    tests: int = 1

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.low))

    @property
    def is_tested(self) -> bool:
        return bool(np.isfinite(self.p))

    @property
    def left(self) -> tuple[float, float]:
        """The differences that two one-sided tests at 5 % do not exclude: the 90 % interval."""
        reach = float(stats.t.ppf(1 - ALPHA, self.seeds - 1)) * self.deviation / self.seeds**0.5
        return self.mean - reach, self.mean + reach

    @property
    def _test(self) -> dict[str, float | str]:
        """The first, strictest step of Holm's correction for ``tests`` two-sided tests."""
        # As one side: scipy has NaN for the other side of large differences, which adds less than
        # .0001 to a power above .3, and which would be a difference of the wrong sign.
        return {"alpha": ALPHA / self.tests / 2, "alternative": "larger"}

    def power_of(self, difference: float) -> float:
        """Return the probability that ``seeds`` seeds show a difference, and its sign.

        The deviation is taken as known. p must pass the first step of Holm's correction.
        """
        effect = difference / self.deviation
        return float(TTestPower().power(effect, self.seeds, **self._test))

    @property
    def visible(self) -> float:
        """The difference that ``seeds`` seeds of this deviation show with probability .8."""
        if not self.deviation > 0:  # 0, or NaN
            return self.deviation
        effect = TTestPower().solve_power(nobs=self.seeds, power=POWER, **self._test)
        return float(effect) * self.deviation

    def seeds_for(self, difference: float) -> int | None:
        """Return how many seeds, at least 2, show a difference with probability .8.

        The deviation is taken as known. None without an interval, or for more than
        :data:`MOST_SEEDS`.
        """
        if not self.has_interval:
            return None
        counts = range(2, MOST_SEEDS + 1)
        i = bisect_left(counts, True, key=lambda n: replace(self, seeds=n).visible <= difference)
        return counts[i] if i < len(counts) else None


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Compare seed -> value of a norm with that of the baseline; None without a common seed."""
    differences = np.array([values[seed] - baseline[seed] for seed in values if seed in baseline])
    if not len(differences):
        return None
    mean = float(differences.mean())
    rounding = 1e-9 * max(map(abs, values.values()))
    if len(differences) == 1 or np.ptp(differences) <= rounding:
        return Difference(len(differences), mean, *[float("nan")] * 4)
    deviation = float(differences.std(ddof=1))
    test = stats.ttest_1samp(differences, 0)
    low, high = map(float, test.confidence_interval(1 - ALPHA))
    return Difference(len(differences), mean, deviation, low, high, float(test.pvalue))


def paired_interval(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """Compare as :func:`paired`; None for a difference without an interval, too."""
    difference = paired(values, baseline)
    return difference if difference and difference.has_interval else None


def one_sided(
    values: Mapping[int, float], baseline: Mapping[int, float], margin: float
) -> tuple[float, float]:
    """Return the p of two one-sided paired t-tests: of a difference above -margin, below margin.

    The larger p is that of equivalence. NaN without an interval.
    """
    if paired_interval(values, baseline) is None:
        return float("nan"), float("nan")
    pairs = np.array([(values[seed], baseline[seed]) for seed in values if seed in baseline])
    _, (_, above, _), (_, below, _) = ttost_paired(*pairs.T, -margin, margin)
    return float(above), float(below)


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Return the differences with their p corrected for their number, by Holm's step-down rule."""
    tested = [i for i, one in enumerate(differences) if one is not None and one.is_tested]
    corrected, largest = list(differences), 0.0
    # Not by statsmodels' multipletests, which collects garbage in each call: with torch .1 s.
    for step, i in enumerate(sorted(tested, key=lambda i: differences[i].p)):
        largest = max(largest, min(1.0, (len(tested) - step) * differences[i].p))
        corrected[i] = replace(differences[i], p=largest, tests=len(tested))
    return corrected


def signed(value: float, decimals: int = 1) -> str:
    """Format a difference with its sign; one that rounds to 0 has "+", not "-0.0"."""
    return f"{round(value, decimals) + 0:+.{decimals}f}"


def ends(low: float, high: float, decimals: int = 1) -> str:
    """Format the ends of an interval."""
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def interval(difference: Difference, decimals: int = 1) -> str:
    """Format a mean difference and its interval, if it has one."""
    texts = [signed(end, decimals) for end in (difference.low, difference.high)]
    text = signed(difference.mean, decimals)
    return f"{text} [{', '.join(texts)}]" if difference.has_interval else text


def spread(values: Iterable[float], decimals: int = 1) -> str:
    """Format a mean and, of several values, the sample's standard deviation; "-" for no value."""
    values = [*values]
    if not values:
        return "-"
    text = f"{round(fmean(values), decimals) + 0:.{decimals}f}"  # not "-0.0"
    return text + (f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else "")
