"""Paired differences, their intervals and tests, what seeds can show, and all of it as text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy import stats

#: The level of a test, and the probability with which a real difference should be seen.
ALPHA, POWER = 0.05, 0.8
#: No more seeds than these settle a question.
MOST_SEEDS = 50


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
    #: p-value of the two-sided paired t-test; NaN without a test.
    p: float
    #: The number of tests for which p is corrected.
    tests: int = 1

    @property
    def has_interval(self) -> bool:
        """Whether the difference has an interval, and with it a p."""
        return bool(np.isfinite(self.low))

    @property
    def _error(self) -> float:
        return self.deviation / self.seeds**0.5

    def corrected(self, tests: int) -> "Difference":
        """Return the difference with p and interval corrected for several tests, by Bonferroni."""
        reach = float(stats.t.isf(ALPHA / tests / 2, self.seeds - 1)) * self._error
        p = float(np.minimum(1, self.p * tests / self.tests))
        return replace(self, low=self.mean - reach, high=self.mean + reach, p=p, tests=tests)

    def p_within(self, margin: float) -> float:
        """Return the p of equivalence, the larger of two one-sided tests, corrected as p is."""
        p = stats.t.sf((margin - abs(self.mean)) / self._error, self.seeds - 1)
        return float(np.minimum(1, self.tests * p))

    def power_of(self, difference: float) -> float:
        """Return the probability that ``seeds`` seeds show a difference, and its sign.

        The deviation is taken as known. p must pass the strictest test of the correction.
        """
        limit = float(stats.t.isf(ALPHA / self.tests / 2, self.seeds - 1))
        center = difference / self._error
        # As one side: the other side adds less than .0001 to a power above .3, and would be a
        # difference of the wrong sign. For some effects far above the limit, scipy has NaN or 0.
        return 1.0 if center > 9 * limit else float(stats.nct.sf(limit, self.seeds - 1, center))

    def seeds_for(self, difference: float) -> int | None:
        """Return how many seeds show a difference with probability .8.

        The deviation is taken as known. None for more than :data:`MOST_SEEDS`.
        """
        counts = range(2, MOST_SEEDS + 1)
        enough = (n for n in counts if replace(self, seeds=n).power_of(difference) >= POWER)
        return next(enough, None)


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
    p = float(stats.ttest_1samp(differences, 0).pvalue)
    return Difference(len(differences), mean, deviation, mean, mean, p).corrected(1)


def p_value(p: float) -> str:
    """Format a p as "= 0.012", and its ends as "< 0.001" and "> 0.99"."""
    if p > 0.99:
        return "> 0.99"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


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
