"""The answers on standardized inputs, from made-up records."""

import pytest
import scipy.stats

from helpers.made_up_results import run
from reproduction.pages import folds
from reproduction.pages.daylight import REESTIMATED, TESTS

BN = [38.0, 39.0, 40.5]
EN = [40.0, 42.5, 42.0]


@pytest.fixture
def results():
    """Three seeds; the two folds are 4 points apart, and a fourth seed has one fold only."""
    made = {}
    for comparison, shift in zip(folds.FOLDS.values(), (2, -2), strict=True):
        for end in ("", "-standardized"):
            for norm, values in (("BN", BN), ("EN", EN)):
                for seed, value in enumerate(values):
                    for test in TESTS.values():
                        run(made, comparison + end, norm, seed, {"mIoU": value + shift}, test)
                        if (end, norm) == ("", "BN"):
                            again = test + REESTIMATED
                            run(made, comparison, norm, seed, {"mIoU": value + 2 * shift}, again)
    for test in TESTS.values():
        run(made, folds.FOLDS["0016E5"], "EN", 3, {"mIoU": 90.0}, test)
    return made


def rows(lines):
    heads, _, *rest = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(heads, row, strict=True)) for row in rest]


def test_the_unit_is_a_seeds_mean_over_the_folds(results):
    run(results, folds.FOLDS["0016E5"], "EN", 0, {"mIoU": 52.0}, "contrast0.5")  # was 42
    half, *_ = rows(folds.answers(results))
    assert half["difference"] == "+4.0"
    assert half["0016E5 held out"].startswith("+5.7 [")
    assert half["0006R0 held out"].startswith("+2.3 [")


def test_p_is_corrected_over_the_three_questions(results):
    p = scipy.stats.ttest_rel(EN, BN).pvalue
    for row in rows(folds.answers(results)):
        assert float(row["p, corrected"]) == pytest.approx(3 * p, abs=5e-4)


def test_a_row_says_what_follows(results):
    for seed, gain in enumerate((5.0, 5.1, 5.2)):  # by day only
        for comparison, shift in zip(folds.FOLDS.values(), (2, -2), strict=True):
            value = {"mIoU": BN[seed] + shift - gain}
            run(results, f"{comparison}-standardized", "EN", seed, value, TESTS["day"])
    found = [row["so"] for row in rows(folds.answers(results))]
    assert found == ["undecided", "keep BN standardized", "undecided"]


def test_a_seed_counts_when_all_its_models_and_tests_have_run(results):
    assert rows(folds.means(results))[2]["day"] == "41.5"  # without 90


def test_a_change_by_day_is_shown_for_each_fold_and_the_others_over_both(results):
    _, adapted, *_ = rows(folds.changes(results))
    names = "models", "day, 0016E5", "day, 0006R0", "dusk"
    # The same difference for all seeds has no interval.
    assert [adapted[name] for name in names] == [
        "BN, test images' statistics - BN",
        "+2.0",
        "-2.0",
        "+0.0",
    ]
