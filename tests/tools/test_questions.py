"""Answers to the questions of reports/README.md, from made-up records."""

import numpy as np
import pytest
import scipy.stats

from committed import run
from pages import daylight
from pages.questions import answers, markdown, questions

DAY = {"BN": [40.0, 41.0, 42.5], "EN": [41.0, 42.5, 43.0], "SN": [40.5, 40.0, 43.5]}


@pytest.fixture
def results():
    made = {}
    for norm, values in DAY.items():
        for seed, value in enumerate(values):
            run(made, "daylight", norm, seed, {"mIoU": value})
            run(made, "daylight", norm, seed, {"mIoU": value / 2}, "dusk")
    return made


def answer(results, task, norm):
    """The values and the difference of a norm in a task."""
    return next(
        found for name, norms, *found in answers(results) if (name, norms[1]) == (task, norm)
    )


def test_the_difference_is_paired_by_seed(results):
    _, found = answer(results, "CamVid by day", "EN")
    low, high = scipy.stats.ttest_rel(DAY["EN"], DAY["BN"]).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, low, high))


def test_a_further_test_has_its_own_values(results):
    values, _ = answer(results, "CamVid at dusk", "SN")
    assert values.means[1] == pytest.approx(np.mean(DAY["SN"]) / 2)


def test_p_is_corrected_for_all_questions_that_have_runs(results):
    plain = [scipy.stats.ttest_rel(DAY[n], DAY["BN"]).pvalue for n in ("EN", "SN")]
    # By day and at dusk, where all values are halved: each p stands twice among four.
    assert answer(results, "CamVid by day", "EN")[1].p == pytest.approx(min(plain) * 4)


def test_questions_without_runs_are_counted(results):
    assert markdown(results)[-1] == "Not measured yet: 9 of 13 differences."


def test_an_answer_has_both_means_and_the_difference(results):
    begin = "| CamVid by day | BN 41.2 | EN"
    (line,) = [line for line in markdown(results) if line.startswith(begin)]
    assert "| EN 42.2 | +1.0 | " in line


def test_the_means_are_of_the_seeds_that_both_norms_have(results):
    run(results, "daylight", "BN", 3, {"mIoU": 90.0})
    values, difference = answer(results, "CamVid by day", "EN")
    plain, ours = values.means
    assert ours - plain == pytest.approx(difference.mean)


def test_the_questions_are_those_of_the_page(root):
    """Every task of the table of questions has its pairs in the file."""
    text = (root / "reports" / "README.md").read_text(encoding="utf-8")
    stated = {"day": 3, "dusk": 3, "dark": 1, "converted": 4, "one image": 2}
    assert all(f"\n| {name} |" in text for name in stated)
    assert sum(len(question["pairs"]) for question in questions()) == sum(stated.values())


def test_an_answer_of_one_seed_has_no_interval():
    one = {}
    for norm, value in (("BN", 40.0), ("EN", 41.0)):
        run(one, "daylight", norm, 0, {"mIoU": value})
    (line,) = [line for line in markdown(one) if line.startswith("| CamVid by day")]
    assert line.endswith("| +1.0 | - | - | - | - | 1 |")


def test_conditions_have_the_mean_of_each_norm(results):
    assert "| dusk | 20.6 | 21.1 | 20.7 |" in daylight.conditions(results, "daylight")


def test_conditions_are_compared_by_seed(results):
    """At dusk all values are halved."""
    found = dict(daylight.panels(results)["EN - BN"])["dusk"]
    _, expected = answer(results, "CamVid by day", "EN")
    assert (found.mean, found.low) == pytest.approx((0.5, expected.low / 2))


def test_conditions_have_a_panel_for_each_pair(results):
    assert list(daylight.panels(results)) == ["EN - BN", "SN - BN"]
