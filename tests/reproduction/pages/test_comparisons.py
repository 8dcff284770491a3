"""The corrections of the pages' tables, against scipy and statsmodels."""

import gc

import numpy as np
import pytest

pytest.importorskip("statsmodels", reason="needs requirements/test.txt")

from scipy import stats
from statsmodels.stats.multitest import multipletests

from ilm_plugins.reports.interval import Difference, paired
from reproduction.pages.comparisons import difference_cells, holm, not_excluded


def difference(p):
    return Difference(3, 1.0, 1.0, 0.0, 2.0, p)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_holms_p_is_that_of_statsmodels(count, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels calls it each time
    for rounded in np.random.default_rng(count).uniform(0, 0.6, (50, count)).round(2):  # with ties
        expected = multipletests(rounded, method="holm")[1]
        found = holm([difference(p) for p in rounded])
        assert [one.p for one in found] == pytest.approx(expected)
        assert {one.tests for one in found} == {count}


def test_holm_leaves_out_differences_of_one_seed():
    *_, found = holm([paired({0: 2.0}, {0: 1.0}), difference(0.04)])
    assert found.p == 0.04


def test_one_sided_tests_leave_the_90_percent_interval():
    ours, plain = np.random.default_rng(0).normal(0.1, 1, (2, 5))
    students = stats.ttest_1samp(ours - plain, 0).confidence_interval(0.9)
    found = paired(dict(enumerate(ours)), dict(enumerate(plain)))
    assert not_excluded(found) == pytest.approx(students)


def test_a_p_below_a_thousandth_is_not_written_as_zero():
    one = paired({0: 9.99, 1: 10.0, 2: 10.01}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert difference_cells(one)["p, corrected"] == "< 0.001"
