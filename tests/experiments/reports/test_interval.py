"""Statistics of comparisons against scipy and closed forms."""

import gc
import math

import numpy as np
import pytest

pytest.importorskip("statsmodels", reason="needs the extra ilm_plugins[compare]")

from scipy import stats
from statsmodels.stats.multitest import multipletests

from ilm_plugins.experiments.reports import interval
from ilm_plugins.experiments.reports.interval import Difference, holm, one_sided, paired

BASELINE = {0: 40.0, 1: 41.5, 2: 39.0, 3: 40.5}
NORM = {0: 41.0, 1: 42.0, 2: 41.5, 3: 40.0}


def test_the_interval_of_paired_differences_is_students():
    found = paired(NORM, BASELINE)
    low, high = stats.t.interval(0.95, 3, 0.875, np.std([1, 0.5, 2.5, -0.5], ddof=1) / 2)
    assert (found.mean, found.low, found.high) == pytest.approx((0.875, low, high))


def test_p_is_that_of_scipys_paired_test():
    expected = stats.ttest_rel([*NORM.values()], [*BASELINE.values()]).pvalue
    assert paired(NORM, BASELINE).p == pytest.approx(expected)


def test_only_common_seeds_are_paired():
    assert paired(NORM, {0: 40.0, 7: 1.0, 1: 41.5}).seeds == 2


def test_without_a_common_seed_there_is_no_difference():
    assert paired(NORM, {7: 1.0}) is None


def test_one_seed_has_no_interval():
    found = paired({0: 2.0}, {0: 1.0})
    assert found.mean == 1
    assert all(math.isnan(value) for value in (found.low, found.high, found.p))


@pytest.mark.parametrize("unit", [1.0, 0.01])  # .51 - .50 and .53 - .52 differ by rounding
def test_equal_differences_have_no_interval(unit):
    found = paired({0: 51 * unit, 1: 53 * unit}, {0: 50 * unit, 1: 52 * unit})
    assert found.mean == pytest.approx(unit)
    assert not found.has_interval
    assert all(math.isnan(value) for value in (found.low, found.high, found.p, found.deviation))


def test_equal_results_are_no_test():
    assert paired(BASELINE, BASELINE).mean == 0
    assert not paired(BASELINE, BASELINE).is_tested


def spread(seeds, deviation, tests=1):
    """A difference of which the power is asked."""
    return Difference(seeds, 0.0, deviation, 0.0, 0.0, 0.5, tests)


def difference(p):
    return Difference(3, 1.0, 1.0, 0.0, 2.0, p)


def test_holm_multiplies_the_smallest_p_by_the_number_of_norms():
    assert [one.p for one in holm([difference(0.01), difference(0.3)])] == [0.02, 0.3]


def test_holms_p_never_falls_below_a_smaller_one():
    found = holm([difference(0.02), difference(0.012), difference(0.03)])
    assert [one.p for one in found] == pytest.approx([0.04, 0.036, 0.04])


def test_holm_leaves_out_norms_without_a_difference():
    missing, single = None, paired({0: 2.0}, {0: 1.0})
    found = holm([missing, single, difference(0.04)])
    assert found[0] is None
    assert found[2].p == 0.04


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


def test_more_norms_need_more_seeds():
    assert spread(3, 1.7, tests=4).seeds_for(1.0) > spread(3, 1.7).seeds_for(1.0)


def test_holm_states_for_how_many_norms_p_is_corrected():
    found = holm([difference(0.01), None, difference(0.3)])
    assert [found[0].tests, found[2].tests] == [2, 2]


def test_a_tiny_difference_needs_too_many_seeds_to_count():
    assert spread(3, 5.0).seeds_for(0.001) is None


def test_no_more_seeds_than_the_most_are_recommended(monkeypatch):
    needed = spread(3, 5.0).seeds_for(1.0)
    monkeypatch.setattr(interval, "MOST_SEEDS", needed)
    assert spread(3, 5.0).seeds_for(1.0) == needed
    monkeypatch.setattr(interval, "MOST_SEEDS", needed - 1)
    assert spread(3, 5.0).seeds_for(1.0) is None


def test_an_unknown_deviation_recommends_no_seeds():
    assert paired({0: 2.0}, {0: 1.0}).seeds_for(1.0) is None


def test_a_difference_that_rounds_to_zero_has_no_minus():
    assert interval.signed(-0.04) == "+0.0"
    assert interval.spread([-0.04]) == "0.0"


def test_one_seed_is_printed_without_an_interval():
    assert interval.interval(paired({0: 1.5}, {0: 1.0})) == "+0.5"


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.5])
def test_two_one_sided_tests_are_those_of_scipy(seeds, margin):
    ours, plain = np.random.default_rng(seeds).normal(0.1, 1, (2, seeds))
    sides = ((-margin, "greater"), (margin, "less"))
    ps = [stats.ttest_1samp(ours - plain, m, alternative=a).pvalue for m, a in sides]
    found = one_sided(dict(enumerate(ours)), dict(enumerate(plain)), margin)
    assert found == pytest.approx(ps)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_90_percent_interval_is_left(seeds):
    ours, plain = np.random.default_rng(seeds).normal(0.1, 1, (2, seeds))
    students = stats.ttest_1samp(ours - plain, 0).confidence_interval(0.9)
    found = paired(dict(enumerate(ours)), dict(enumerate(plain)))
    assert found.left == pytest.approx(students)


def test_no_norm_is_equivalent_within_0():
    assert max(one_sided(NORM, BASELINE, 0.0)) >= 0.5


@pytest.mark.parametrize(
    "values",
    [{0: 1.0}, {0: 1.0, 1: 1.0}, {7: 1.0}, {0: 1.0, 1: float("nan")}],
    ids=["one seed", "equal differences", "no common seed", "NaN"],
)
def test_what_has_no_interval_has_no_test(values):
    baseline = {0: 0.0, 1: 0.0}
    found = paired(values, baseline)
    assert found is None or not found.is_tested
    assert all(map(math.isnan, one_sided(values, baseline, 1.0)))


@pytest.mark.parametrize("count", [1, 2, 12])
def test_holms_p_is_that_of_statsmodels(count, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels calls it each time
    for rounded in np.random.default_rng(count).uniform(0, 0.6, (50, count)).round(2):  # with ties
        expected = multipletests(rounded, method="holm")[1]
        assert [one.p for one in holm([difference(p) for p in rounded])] == pytest.approx(expected)


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


def test_few_seeds_give_a_wide_range_of_power_and_many_a_narrow_one():
    few, many = (spread(seeds, 1.0).powers_of(1.0) for seeds in (3, 1000))
    assert few[0] < 0.1
    assert few[1] > 0.4
    assert many[1] - many[0] < 0.01


@pytest.mark.parametrize(
    "readings, expected",
    [
        ([range(5)], 0.05),
        ([range(3), range(5), range(10)], 0.12),
        ([range(5), range(5)], 0.05),
        ([range(5), range(5, 10)], 1 - 0.95**2),
    ],
    ids=["one", "more seeds", "again", "others"],
)
def test_readings_by_other_seeds_add_false_positives(readings, expected):
    assert interval.false_positives(readings) == pytest.approx(expected, abs=0.01)


def test_a_tiny_p_is_below_a_thousandth():
    texts = [interval.p_value(p) for p in (0.0009999, 0.001, 0.05)]
    assert texts == ["< 0.001", "= 0.001", "= 0.050"]
