"""Paired differences, their intervals and tests, what seeds can show, and all of it as text."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

#: The level of a test, and the probability with which a real difference should be seen.
ALPHA, POWER = 0.05, 0.8
#: No more seeds than these are recommended.
MOST_SEEDS = 1000


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

    def power_of(self, difference: float) -> float:
        """Return the probability that ``seeds`` seeds show a difference, and its sign.

        The deviation is taken as known. p must pass the first, strictest step of Holm's correction.
        """
        alpha = ALPHA / self.tests / 2
        effect = difference / self.deviation
        limit = float(stats.t.isf(alpha, self.seeds - 1))
        # As one side: the other side adds less than .0001 to a power above .3, and would be a
        # difference of the wrong sign. For some effects far above the limit, scipy has NaN or 0.
        if effect * self.seeds**0.5 > 9 * (limit + 1):
            return 1.0
        power = float(TTestPower().power(effect, self.seeds, alpha=alpha, alternative="larger"))
        return 1.0 if np.isnan(power) else power

    def powers_of(self, difference: float) -> tuple[float, float]:
        """Return the power for the ends of the deviation's 95 % interval: the least, the most."""
        freedom = self.seeds - 1
        largest, smallest = (
            self.deviation * float(freedom / stats.chi2.ppf(level, freedom)) ** 0.5
            for level in (ALPHA / 2, 1 - ALPHA / 2)
        )
        least, most = (
            replace(self, deviation=deviation).power_of(difference)
            for deviation in (largest, smallest)
        )
        return least, most

    def seeds_for(self, difference: float) -> int | None:
        """Return how many seeds, at least 2, show a difference with probability .8.

        The deviation is taken as known. None without an interval, or for more than
        :data:`MOST_SEEDS`.
        """
        if not self.has_interval:
            return None
        counts = range(2, MOST_SEEDS + 1)
        i = bisect_left(
            counts, POWER, key=lambda count: replace(self, seeds=count).power_of(difference)
        )
        return counts[i] if i < len(counts) else None


def false_positives(readings: Sequence[Collection[int]]) -> float:
    """Return how often equal norms have a p below .05 by one of several sets of seeds."""
    seeds = sorted({seed for one in readings for seed in one})
    draws = np.random.default_rng(0).normal(size=(20_000, len(seeds)))
    ps = [stats.ttest_1samp(draws[:, np.isin(seeds, [*one])], 0, axis=1).pvalue for one in readings]
    return float((np.min(ps, axis=0) < ALPHA).mean())


def failure_rate(failed: int, runs: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the rate of failures, from 0 to 1."""
    low, high = stats.binomtest(failed, runs).proportion_ci(1 - ALPHA, "wilson")
    return float(low), float(high)


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


def p_value(p: float) -> str:
    """Format a p as "= 0.012"; a p that would round to 0.000 is "< 0.001"."""
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
