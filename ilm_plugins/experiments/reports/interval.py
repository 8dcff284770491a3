"""Paired differences, their intervals and tests, what seeds can show, and all of it as text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, stdev

import numpy as np
from scipy import optimize, stats

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
        reach = self._error * float(stats.t.ppf(1 - ALPHA, self.seeds - 1))
        return self.mean - reach, self.mean + reach

    def p_of_equivalence(self, margin: float) -> float:
        """Return the p of two one-sided t-tests that the difference is within +-``margin``."""
        nearest = (margin - abs(self.mean)) / self._error
        return float(stats.t.sf(nearest, self.seeds - 1))

    @property
    def _error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / self.seeds**0.5

    def power_of(self, difference: float) -> float:
        """Return the probability that a paired t-test of ``seeds`` seeds sees a difference.

        Its p must pass the first, strictest step of Holm's correction for ``tests`` tests.
        """
        freedom, shift = self.seeds - 1, difference / self._error
        limit = stats.t.ppf(1 - ALPHA / self.tests / 2, freedom)
        # The mean over the deviations that seeds can have; scipy's nct is NaN for large shifts. The
        # other side of the test adds less than .001 at the powers that are asked for.
        return float(stats.norm.cdf(shift - limit * _deviations(freedom)).mean())

    @property
    def visible(self) -> float:
        """The difference that ``seeds`` seeds of this deviation show with probability .8."""
        if not self.deviation > 0:  # 0, or NaN
            return self.deviation
        # Two seeds need 16.3 standard errors for one test, more seeds fewer.
        highest = 20 * self.tests * self._error
        return optimize.brentq(lambda difference: self.power_of(difference) - POWER, 0, highest)

    def seeds_for(self, difference: float) -> int | None:
        """Return how many seeds, at least 2, show a difference with probability .8.

        The deviation is taken as known. None without an interval, or for more than
        :data:`MOST_SEEDS`.
        """
        if not self.has_interval:
            return None
        low, high = 1, 2  # too few, maybe enough
        while replace(self, seeds=high).visible > difference:
            low, high = high, 2 * high
            if low >= MOST_SEEDS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            enough = replace(self, seeds=middle).visible <= difference
            low, high = (low, middle) if enough else (middle, high)
        return high if high <= MOST_SEEDS else None


@cache
def _deviations(freedom: int) -> np.ndarray:
    """Return equally probable ratios of a deviation of seeds to the real one."""
    return stats.chi.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom**0.5


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


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Return the differences with their p corrected for their number, by Holm's step-down rule."""
    order = sorted(
        (i for i, one in enumerate(differences) if one is not None and one.is_tested),
        key=lambda i: differences[i].p,
    )
    corrected, largest = list(differences), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * differences[i].p))
        corrected[i] = replace(differences[i], p=largest, tests=len(order))
    return corrected


def signed(value: float, decimals: int = 1) -> str:
    """Format a difference with its sign; one that rounds to 0 has "+", not "-0.0"."""
    return f"{round(value, decimals) + 0:+.{decimals}f}"


def ends(low: float, high: float) -> str:
    """Format the ends of an interval."""
    return f"{signed(low)} to {signed(high)}"


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
