"""Answers to the questions of reproduction/results.md, from made-up records."""

import pytest
import scipy.stats

from helpers.made_up_results import run
from reproduction.pages import daylight
from reproduction.pages.questions import markdown, questions

VALUES = {
    "BN": [40.0, 41.0, 42.5],
    "EN": [41.0, 42.5, 43.0],
    "SN": [40.5, 40.0, 43.5],
    "GN": [39.0, 40.5, 40.0],
    "ILMGN": [39.5, 40.0, 42.0],
    "EN-without-BN": [38.0, 38.5, 41.0],
}


@pytest.fixture
def results():
    """All norms of all questions; at dusk, all values are halved."""
    made = {}
    for norm, values in VALUES.items():
        for seed, value in enumerate(values):
            for test in daylight.CONDITIONS:
                half = value / 2 if test == "dusk" else value
                for comparison in ("daylight", "daylight-converted"):
                    run(made, comparison, norm, seed, {"mIoU": half}, test)
            run(made, "bccd-batch1", norm, seed, {"bbox/AP": value})
    return made


def answer(results, task, norm):
    """Column -> cell of a norm in a task."""
    heads, _, *rows = ([cell.strip() for cell in row.split("|")] for row in markdown(results))
    found = (dict(zip(heads, row, strict=True)) for row in rows)
    return next(one for one in found if one["task"] == task and one["layer"].startswith(f"{norm} "))


def test_an_answer_has_both_means_and_their_difference_paired_by_seed(results):
    low, high = scipy.stats.ttest_rel(VALUES["EN"], VALUES["BN"]).confidence_interval()
    found = answer(results, "CamVid by day", "EN")
    names = "plain norm", "layer", "difference", "95 % interval", "seeds"
    shown = [found[name] for name in names]
    assert shown == ["BN 41.2", "EN 42.2", "+1.0", f"{low:+.1f} to {high:+.1f}", "3"]


def test_a_further_test_has_its_own_values(results):
    assert answer(results, "CamVid at dusk", "SN")["layer"] == "SN 20.7"


def test_p_is_corrected_for_all_questions(results):
    ours = [value + gain for value, gain in zip(VALUES["BN"], (4.0, 4.3, 4.4), strict=True)]
    for seed, value in enumerate(ours):
        run(results, "bccd-batch1", "EN", seed, {"bbox/AP": value})
    p = scipy.stats.ttest_rel(ours, VALUES["BN"]).pvalue
    found = answer(results, "BCCD, one image a step", "EN")["p, corrected"]
    assert float(found) == pytest.approx(13 * p, abs=5e-4)


def test_the_means_are_of_the_seeds_that_both_norms_have(results):
    run(results, "daylight", "BN", 3, {"mIoU": 90.0})
    assert answer(results, "CamVid by day", "EN")["plain norm"] == "BN 41.2"


def test_the_questions_are_those_of_the_page(root):
    """Every task of the table of questions has its pairs in the file."""
    text = (root / "reproduction" / "results.md").read_text(encoding="utf-8")
    stated = {"day": 3, "dusk": 3, "dark": 1, "converted": 4, "one image": 2}
    assert all(f"\n| {name} |" in text for name in stated)
    assert sum(len(question["pairs"]) for question in questions()) == sum(stated.values())


def test_conditions_have_the_mean_of_each_norm(results):
    columns = "| mIoU | BN | EN | EN without BN | SN | GN | ILMGN |"
    first, *_, last = daylight.conditions(results, "daylight")[:5]
    assert first == columns
    assert last == "| dusk | 20.6 | 21.1 | 19.6 | 20.7 | 19.9 | 20.2 |"


def test_conditions_are_compared_by_seed(results):
    found = dict(daylight.panels(results)["EN - BN"])["dusk"]
    low = scipy.stats.ttest_rel(VALUES["EN"], VALUES["BN"]).confidence_interval().low
    assert (found.mean, found.low) == pytest.approx((0.5, low / 2))
