"""Statistics of comparisons against scipy and closed forms."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra ilm_plugins[compare]")

from scipy import stats

from ilm_plugins.reports import interval
from ilm_plugins.reports.interval import Difference, paired

BASELINE = {0: 40.0, 1: 41.5, 2: 39.0, 3: 40.5}
NORM = {0: 41.0, 1: 42.0, 2: 41.5, 3: 40.0}


def test_the_interval_of_paired_differences_is_students():
    found = paired(NORM, BASELINE)
    low, high = stats.t.interval(0.95, 3, 0.875, np.std([1, 0.5, 2.5, -0.5], ddof=1) / 2)
    assert (found.mean, found.low, found.high) == pytest.approx((0.875, low, high))


def test_several_tests_widen_the_interval_and_multiply_p():
    found = paired(NORM, BASELINE).corrected(3)
    differences = np.array([1, 0.5, 2.5, -0.5])
    expected = stats.ttest_1samp(differences, 0)
    ends = expected.confidence_interval(1 - 0.05 / 3)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert (found.p, found.tests) == (pytest.approx(3 * expected.pvalue), 3)


def test_only_common_seeds_are_paired():
    assert paired(NORM, {0: 40.0, 7: 1.0, 1: 41.5}).seeds == 2


def test_without_a_common_seed_there_is_no_difference():
    assert paired(NORM, {7: 1.0}) is None


@pytest.mark.parametrize("unit", [1.0, 0.01])  # .51 - .50 and .53 - .52 differ by rounding
def test_equal_differences_have_no_interval(unit):
    found = paired({0: 51 * unit, 1: 53 * unit}, {0: 50 * unit, 1: 52 * unit})
    assert found.mean == pytest.approx(unit)
    assert not found.has_interval
    assert all(math.isnan(value) for value in (found.low, found.high, found.p, found.deviation))


def spread(seeds, deviation, tests=1):
    """A difference of which the power is asked."""
    return Difference(seeds, 0.0, deviation, 0.0, 0.0, 0.5, tests)


@pytest.mark.parametrize(
    "seeds, effect, tests",
    [(3, 3.26, 1), (5, 1.68, 1), (10, 1.0, 1), (34, 0.496, 1), (2, 115.4, 10), (5, 2.47, 4)],
)
def test_power_is_the_share_of_simulated_tests_that_see_the_difference(seeds, effect, tests):
    draws = np.random.default_rng(0).normal(effect, 1, (20_000, seeds))
    share = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / tests).mean()
    # Three standard errors of the share.
    assert abs(spread(seeds, 1.0, tests).power_of(effect) - share) < 3 * (0.2 / 20_000) ** 0.5
    assert abs(share - 0.8) < 0.02


def test_as_many_seeds_as_needed_show_the_difference():
    seeds = spread(3, 1.7).seeds_for(1.0)
    enough, less = (spread(n, 1.7).power_of(1.0) for n in (seeds, seeds - 1))
    assert less < 0.8 <= enough


def test_more_than_fifty_seeds_are_not_counted():
    assert spread(3, 2.4).seeds_for(1.0) == 48
    assert spread(3, 2.6).seeds_for(1.0) is None


TWO = Difference(2, 0.25, 1.0, -0.96, 1.46, 0.5)
ONE = paired({0: 1.5}, {0: 1.0})


@pytest.mark.parametrize(
    "text, values, expected",
    [
        (interval.signed, (-0.04,), "+0.0"),  # not -0.0
        (interval.signed, (-0.04, 2), "-0.04"),
        (interval.spread, ([-0.04],), "0.0"),
        (interval.spread, ([],), "-"),
        (interval.spread, ([1.0, 2.0],), "1.5 ± 0.7"),
        (interval.spread, ([1.251], 2), "1.25"),
        (interval.ends, (-0.96, 1.46), "-1.0 to +1.5"),
        (interval.interval, (TWO,), "+0.2 [-1.0, +1.5]"),
        (interval.interval, (TWO, 2), "+0.25 [-0.96, +1.46]"),
        (interval.interval, (ONE,), "+0.5"),
    ],
)
def test_numbers_are_printed_with_their_sign_and_decimals(text, values, expected):
    assert text(*values) == expected


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.5])
def test_two_one_sided_tests_are_those_of_scipy(seeds, margin):
    ours, plain = np.random.default_rng(seeds).normal(0.1, 1, (2, seeds))
    sides = ((-margin, "greater"), (margin, "less"))
    ps = [stats.ttest_1samp(ours - plain, m, alternative=a).pvalue for m, a in sides]
    found = paired(dict(enumerate(ours)), dict(enumerate(plain)))
    assert found.p_within(margin) == pytest.approx(max(ps))
    assert found.corrected(3).p_within(margin) == pytest.approx(min(1, 3 * max(ps)))


@pytest.mark.parametrize(
    "values",
    [{0: 1.0}, {0: 1.0, 1: 1.0}, {7: 1.0}, {0: 1.0, 1: float("nan")}],
    ids=["one seed", "equal differences", "no common seed", "NaN"],
)
def test_what_has_no_interval_has_no_test(values):
    baseline = {0: 0.0, 1: 0.0}
    found = paired(values, baseline)
    assert found is None or not found.has_interval
    assert found is None or math.isnan(found.corrected(2).p)
    assert found is None or math.isnan(found.p_within(1.0))


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8, 50, 10_000])
@pytest.mark.parametrize("tests", [1, 3, 20])
def test_power_is_known_for_small_and_large_differences(seeds, tests):
    """It is the mean, over the deviations that seeds can have, of the power with each of them."""
    ratios = stats.chi.ppf((np.arange(20_000) + 0.5) / 20_000, seeds - 1) / (seeds - 1) ** 0.5
    limits = stats.t.ppf(1 - 0.025 / tests, seeds - 1) * ratios
    one = spread(seeds, 2.0, tests)
    for share in (0.02, 0.5, 1, 2, 5, 50, 1e3, 1e9):
        effect = share * 2.0 * (limits.mean() + 1) / seeds**0.5
        expected = stats.norm.cdf(effect / 2 * seeds**0.5 - limits).mean()
        assert one.power_of(effect) == pytest.approx(expected, abs=1e-4)


def test_a_p_near_its_ends_is_no_number():
    texts = [interval.p_value(p) for p in (0.0009999, 0.001, 0.05, 0.99, 1)]
    assert texts == ["< 0.001", "= 0.001", "= 0.050", "= 0.990", "> 0.99"]
