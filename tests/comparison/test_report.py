"""Reports of comparisons, from made-up values."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from ilm_plugins.comparison import plot
from ilm_plugins.comparison.answers import answers, headline, notes
from ilm_plugins.comparison.config_source import ConfigSource
from ilm_plugins.comparison.plan import Plan
from ilm_plugins.comparison.report import csv_of, markdown
from ilm_plugins.comparison.results import (
    OWN_TEST,
    History,
    Results,
    Value,
    complete,
    main_metric,
)
from ilm_plugins.comparison.run import outcomes
from ilm_plugins.comparison.unit import decimals, unit_of
from ilm_plugins.errors import UserError
from ilm_plugins.frameworks.run.record import FILE, write_record
from ilm_plugins.reports import style

VALUES = {
    OWN_TEST: {"GN": [40.0, 41.5, 39.0], "ILMGN": [41.0, 42.6, 40.2], "EN": [40.1, 41.0, 39.5]},
    "dusk": {"GN": [20.0, 21.0, 22.0], "ILMGN": [18.0, 25.0, 21.0], "EN": [10.0, 11.1, 12.2]},
}


def results(values=None, factor=1, seeds=3, failures=(), **options):
    values = {OWN_TEST: VALUES[OWN_TEST]} if values is None else values
    found = [
        Value(norm, seed, test, metric, value * factor)
        for test, norms in values.items()
        for norm, numbers in norms.items()
        for seed, value in enumerate(numbers[:seeds])
        for metric in ("mIoU", "aAcc")
    ]
    return Results(["GN", "ILMGN", "EN"], [*found, *failures], "mIoU", **options)


def row(page, norm, title="## mIoU"):
    """The first row of a norm below a title."""
    lines = page.partition(title + "\n")[2].splitlines()
    return next(line for line in lines if line.startswith(f"| {norm}"))


def test_the_table_has_mean_deviation_difference_and_p():
    cells = [cell.strip() for cell in row(report(results()), "ILMGN").split("|")][1:-1]
    # Differences 1.0, 1.1, 1.2: t = 19.05 of two degrees of freedom, p = .00274. The first look has
    # half of 5 %, for two tests: p counts four times. The interval is that of 98.75 %, t = 8.86.
    assert cells == ["ILMGN", "3", "41.27 ± 1.22", "+1.10 [+0.59, +1.61]", "0.011", "better"]


def report(found):
    return markdown(found, "python -m ilm_plugins compare")


#: Norm -> mIoU by seed, of segmenters.
MIOU = {
    "BN": (39.76, 40.39, 39.76),
    "GN": (36.5, 34.1, 36.37),
    "SN": (42.5, 42.49, 41.1),
    "EN": (40.56, 40.93, 37.48),
    "ILMGN": (35.96, 32.76, 33.45),
}


@pytest.mark.parametrize("norm", ["GN", "SN", "EN", "ILMGN"])
def test_a_difference_from_the_first_norm_has_scipys_interval(norm):
    values = [
        Value(name, seed, OWN_TEST, "mIoU", value)
        for name, found in MIOU.items()
        for seed, value in enumerate(found)
    ]
    expected = scipy.stats.ttest_rel(MIOU[norm], MIOU["BN"])
    low, high = expected.confidence_interval(1 - 0.05 / 8)
    mean = np.mean(MIOU[norm]) - np.mean(MIOU["BN"])
    text = report(Results([*MIOU], values, "mIoU"))
    assert f" {mean:+.1f} [{low:+.1f}, {high:+.1f}] " in row(text, norm)


def answer(found, norm="EN"):
    return answers(found, OWN_TEST)[norm]


def pair(plain, ours, **options):
    """The results of GN and EN, from a value for each seed, or a text of a failure."""
    found = []
    for norm, values in (("GN", plain), ("EN", ours)):
        for seed, value in enumerate(values):
            known = (None, value) if isinstance(value, str) else (value, None)
            found.append(Value(norm, seed, OWN_TEST, "mIoU", *known))
    return Results(["GN", "EN"], found, "mIoU", **options)


@pytest.mark.parametrize("higher, side", [(True, "better"), (False, "worse")])
def test_a_seen_difference_is_better_or_worse_with_its_gain(higher, side):
    found = answer(results(higher_is_better=higher), "ILMGN")
    text = "Gain: +1.10 (95 %: +0.59 to +1.61)" if higher else "Loss: 1.10 (95 %: 0.59 to 1.61)"
    assert (found.word, found.text) == (side, f"{text}, p = 0.011.")


def test_the_gain_of_an_undecided_norm_is_students_interval_for_all_tests():
    differences = np.subtract(VALUES[OWN_TEST]["EN"], VALUES[OWN_TEST]["GN"])
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval(1 - 0.05 / 4)
    found = answer(results())
    assert found.word == "undecided"
    mean = differences.mean()
    told = f"No difference is shown. Gain: {mean:+.2f} (95 %: {low:+.2f} to {high:+.2f})."
    assert found.text == told


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("is_high", [True, False])
def test_a_gain_ends_where_the_metric_does(is_high, higher):
    """The mean of GN is 2 from an end, the best one or the worst."""
    values = [[98.0, 99.0, 97.0], [97.0, 96.0, 99.0]]
    if not is_high:
        values = [[100 - value for value in of_norm] for of_norm in values]
    text = answer(pair(*values, unit_name="percent", higher_is_better=higher)).text
    assert ("to +2.0)." if is_high == higher else "95 %: -2.0 to ") in text


def test_the_verdict_of_equivalence_has_the_p_of_two_one_sided_tests():
    plain, ours = [40.0, 41.5, 39.0, 40.5], [40.5, 41.0, 39.4, 40.0]
    differences = np.subtract(ours, plain)
    sides = ((-1, "greater"), (1, "less"))
    p = 2 * max(scipy.stats.ttest_1samp(differences, m, alternative=a).pvalue for m, a in sides)
    found = answer(pair(plain, ours, margin=1))
    assert found.word == "equivalent"
    assert found.text.startswith("Gain: +0.0 (95 %: ")
    assert found.text.endswith(f", within 1 (p = {p:.3f}).")
    assert p > 0.001
    assert answer(pair(plain, ours, margin=0.01)).word == "undecided"


def test_a_margin_is_in_points_of_the_unit():
    plain, ours = [0.40, 0.415, 0.39], [0.402, 0.414, 0.391]
    ps = [
        pair(
            np.multiply(plain, k).tolist(), np.multiply(ours, k).tolist(), margin=1, unit_name=name
        )
        .verdicts[OWN_TEST]["EN"]
        .p_equivalent
        for k, name in ((1, "fraction"), (100, "percent"), (100, "number"))
    ]
    assert ps == pytest.approx([ps[0]] * 3)


def test_a_difference_within_the_margin_is_named():
    text = "EN is better by less than the margin."
    assert text in notes(pair([40.0, 41.0, 42.0], [40.2, 41.21, 42.2], margin=0.5))
    assert text not in notes(pair([40.0, 41.0, 42.0], [45.0, 46.1, 47.0], margin=0.5))


def test_the_notes_name_all_tests_that_were_read_and_the_margins():
    first = pair([40.0, 41.0, 42.0], [40.2, 41.2, 42.3], margin=1)
    found = results(VALUES, history=History(looks=first.looks))
    (text,) = [note for note in notes(found) if "corrected" in note]
    assert text == (
        "p and intervals are corrected, so that equal norms differ in at most 5 % of folders, "
        "whenever you stop: call k, which reads n new differences, multiplies their p by k(k + "
        "1)n. Read here, call 1: EN and GN by mIoU, seeds 0 1 2; call 2: GN and ILMGN by mIoU, "
        "seeds 0 1 2; GN and ILMGN, EN and GN by mIoU, dusk, seeds 0 1 2."
    )
    again = replace(first, margin=2.0, history=History(looks=first.looks))
    assert "Calls had margins of 1, 2." in notes(again)


def test_all_results_of_a_run_that_was_repeated_are_told():
    first = pair([40.0, 41.0, 42.0], [40.2, 41.2, 42.3])
    before = [(*run, value) for run, value in first.reported.items()]
    again = pair([40.0, 41.0, 42.0], [40.2, 44.5, "failed"], history=History(results=before))
    told = "EN, seed 1: 41.2, then 44.5; EN, seed 2: 42.3, then no result."
    assert f"Runs with a result were repeated: {told}" in notes(again)
    assert not any("repeated" in note for note in notes(first))


# ---- what is told without a test


@pytest.mark.parametrize(
    "values, options, text",
    [
        (([40.0], [41.0]), {}, "One seed shows nothing."),
        (([40.0, "failed"], ["failed", 40.0]), {}, "1 of 2 runs with GN (seed 1) and 1 of 2 runs"),
        (([40.0, 41.0], [41.0, "diverged: NaN"]), {}, "1 of 2 runs with EN (seed 1) diverged."),
        (([0.5, 0.99], [0.2, 0.0]), {"unit_name": "percent"}, "No run has learned: all values are"),
        (
            ([99.5, 99.2], [99.9, 99.1]),
            {"unit_name": "percent", "higher_is_better": False},
            "No run has learned: all values are within 1 point of 100.",
        ),
        (([99.95, 99.9], [100.0, 99.92]), {"unit_name": "percent"}, "Nothing is left to gain: all"),
        (
            ([7.0] * 5, [7.0] * 5),
            {},
            "All runs have 7, so this metric cannot tell the norms apart.",
        ),
        (([40.0] * 5, [41.0] * 5), {}, "Each norm has one value for all seeds."),
        (([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]), {}, "EN has GN's result in each seed."),
        (([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]), {}, "All seeds have the same difference, which does"),
        (([51.7, 50.5, 53.9, 52.6, 49.8], [51.3, 4.6, 50.0, 52.6, 4.9]), {}, "2 of 5 runs with AN"),
        (
            ([0.31, 0.30, 0.33], [0.32, 2.31, 0.29]),
            {"higher_is_better": False},
            "1 of 3 runs with EN (seed 1) did not learn.",
        ),
    ],
    ids=[
        *("one seed", "failed", "diverged", "at the start", "an error of 100 %", "at the ceiling"),
        *("one value", "no seed", "no effect", "same differences", "collapsed", "a loss"),
    ],
)
def test_runs_that_tell_nothing_are_not_tested(values, options, text):
    found = pair(*values, margin=50, **options)
    verdict = found.verdicts[OWN_TEST]["EN"]
    assert verdict.word == "not tested"
    assert verdict.state.reason.startswith(text.replace("AN", "EN"))
    difference = found.differences[OWN_TEST]["EN"]
    assert difference is None or not difference.has_interval
    assert len(verdict.state.reason.split()) <= 20


@pytest.mark.parametrize(
    "plain, ours",
    [
        ([0.5, 0.3, 0.1], [1.0, 0.2, 0.3]),
        ([99.5, 99.6, 99.4], [99.6, 99.5, 99.7]),
        ([50.0, 50.4, 49.8], [5.0, 5.2, 4.9]),
        ([50.0, 50.4, 49.8], [30.0, 50.2, 50.1]),
    ],
    ids=["exactly one point", "near the ceiling", "a norm that is worse", "a run that is worse"],
)
def test_runs_that_tell_something_are_tested(plain, ours):
    assert pair(plain, ours, unit_name="percent").differences[OWN_TEST]["EN"].has_interval


def test_a_seed_that_failed_may_not_be_left_out():
    """Its run is in the folder, of an earlier call."""
    failed = [Value("EN", 3, OWN_TEST, "mIoU", None, reason) for reason in ("diverged: NaN",)]
    found = pair([40.0, 41.0, 42.0], [45.0, 46.1, 47.0])
    found = replace(found, history=History([*found.values, *failed]))
    assert found.verdicts[OWN_TEST]["EN"].state.reason == "1 of 4 runs with EN (seed 3) diverged."
    other = failed[0]._replace(failure="mIoU was not measured")
    found = replace(found, history=History([*found.values, other]))
    assert found.verdicts[OWN_TEST]["EN"].word == "better"


SEEDS = "keep GN, or compare with {} seeds in all, enough to show the difference seen ({})."
REPEAT = "correct the cause (see No result); the same command then repeats failed runs."


@pytest.mark.parametrize(
    "values, margin, expected",
    [
        (([40.0, 41.0, 42.0], [45.0, 46.1, 47.0]), None, "use EN in place of GN."),
        (([45.0, 46.1, 47.0], [40.0, 41.0, 42.0]), None, "keep GN."),
        (([40.0, 41.0, 42.0], [40.0, 41.01, 42.0]), 1, "use GN or EN."),
        (
            ([40.0, 41.0, 42.0], [43.0, 46.0, 44.0]),
            None,
            SEEDS.format(7, 3.3),
        ),
        (
            ([40.0, 41.0, 42.0], [43.0, 46.0, 44.0]),
            0.1,
            "keep GN: to show a difference of the margin (0.1) needs more than 50 seeds.",
        ),
        (
            ([40.0, 41.0], [40.3, 41.4]),
            None,
            SEEDS.format(5, 0.35),
        ),
        (([40.0, 41.0], [41.0, 42.0]), None, "compare with at least 5 seeds."),
        (([40.0], [45.0]), None, "compare with at least 5 seeds."),
        (([40.0, 41.0], [40.0, "failed"]), None, REPEAT),
        (([40.0, "failed"], [40.0, 41.0]), None, REPEAT),
        (([1.0, 1.0], [1.0, 0.9999]), None, "compare by a harder test, or by another metric."),
    ],
    ids=[
        *("better", "worse", "equivalent", "as large as seen", "as small as the margin"),
        *("less than five would do", "tied"),
        *("one seed", "failed", "the baseline failed", "saturated"),
    ],
)
def test_a_reader_is_told_what_to_do_next(values, margin, expected):
    assert answer(pair(*values, margin=margin)).next_step == expected


def test_where_a_norm_is_better_the_others_are_not_advised_to_keep_the_baseline():
    values = {"GN": [40.0, 41.0, 42.0], "EN": [45.0, 46.1, 47.0], "ILMGN": [41.0, 40.0, 43.5]}
    found = answers(results({OWN_TEST: values}), OWN_TEST)
    assert (found["EN"].word, found["ILMGN"].word) == ("better", "undecided")
    assert found["ILMGN"].next_step.startswith("use EN, or compare with ")


def headlines(norms, steps=False, **options):
    values = {"GN": [40.0, 41.0, 42.0, 41.5, 40.5], **norms}
    found = [
        Value(norm, seed, OWN_TEST, "mIoU", value)
        for norm, of_norm in values.items()
        for seed, value in enumerate(of_norm)
    ]
    costs = {"GN": {"seconds": 0.5}, "EN": {"seconds": 0.52}} if steps else {}
    return headline(Results([*values], found, "mIoU", steps=costs, **options))


GOOD, BETTER, SAME, OPEN, TORN = (
    [42.0, 43.1, 44.0, 43.4, 42.6],
    [48.0, 49.1, 50.0, 49.4, 48.6],
    [40.1, 40.9, 42.0, 41.6, 40.4],
    [41.0, 39.5, 43.0, 40.5, 41.1],
    [41.0, 4.0, 43.0, 5.0, 41.1],
)


def test_the_first_sentence_is_on_all_norms():
    text = headlines({"SN": OPEN, "EN": OPEN[::-1]}, steps=True)
    cost = "a step takes 1.04 times GN's with EN"
    assert text == f"Keep GN, or add seeds: none of SN, EN is shown to be better; {cost}."
    text = headlines({"EN": BETTER, "IN": OPEN})
    gain = r"\S+ \(95 %: \S+ to \S+\)"
    assert re.fullmatch(rf"Use EN in place of GN: gain {gain}; IN is undecided\.", text)
    assert headlines({"EN": SAME}, margin=1) == "Use GN or EN: they are equivalent within 1."


def test_the_first_sentence_names_all_better_norms_which_are_not_compared_with_each_other():
    text = headlines({"SN": GOOD, "EN": BETTER})
    gains = r"gain \+2\.\S+ \(.*?\) or \+8\.\S+ \(.*?\)"
    assert re.fullmatch(rf"Use SN or EN in place of GN: {gains}\.", text)


def test_the_first_sentence_says_that_a_norm_is_worse():
    worse = [value - 3 for value in SAME]
    assert headlines({"EN": worse}) == "Keep GN: EN did worse."
    text = headlines({"SN": OPEN, "EN": worse})
    assert text == "Keep GN, or add seeds: SN is not shown to be better; EN is worse."


def test_runs_that_did_not_learn_follow_the_answer():
    told = "2 of 5 runs with AN (seeds 1, 3) did not learn."
    step = "Find the cause; often the learning rate is too high. Remove a run to repeat it."
    assert headlines({"AN": TORN}) == f"{step} {told}"
    text = headlines({"SN": OPEN, "AN": TORN})
    untested = f"Not tested: AN. {told}"
    assert text == f"Keep GN, or add seeds: SN is not shown to be better. {untested}"


def test_the_verdicts_by_another_test_follow_the_first_sentence():
    text = headline(results(VALUES))
    assert text.startswith("Use ILMGN in place of GN: ")
    assert text.endswith(". By dusk: ILMGN is undecided, EN is worse.")
    torn = VALUES["dusk"] | {"EN": [20.0, 1.0, 21.0]}
    text = headline(results(VALUES | {"dusk": torn}))
    assert text.endswith(". By dusk: ILMGN is undecided, EN is not tested.")


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, "Compared by mIoU: higher is better."),
        ({"higher_is_better": False, "margin": 2}, "mIoU: lower is better; the margin is 2."),
        ({"measure": "mIoU of a.csv"}, "Compared by mIoU of a.csv: higher is better."),
    ],
)
def test_the_report_begins_with_what_is_compared_and_which_direction_is_better(options, text):
    page = report(results(**options))
    assert text in page
    assert page.index(text) < page.index("##")


# ---- units


@pytest.mark.parametrize(
    "values, higher, unit",
    [
        ([0.2, 1.0], True, "fraction"),
        ([0.2, 1.5], True, "number"),
        ([-0.2, 0.5], True, "number"),
        ([0.2, 0.5], False, "number"),
        ([12.0, 93.0], True, "number"),
    ],
)
def test_the_values_of_an_unknown_metric_tell_its_unit(values, higher, unit):
    assert unit_of(None, higher, [values]).name == unit


@pytest.mark.parametrize(
    "groups, digits",
    [
        ([[51.7, 50.5, 53.9], [51.3, 4.6, 50.0]], 1),
        ([[3.1e-4, 3.3e-4], [2.5e-4, 2.6e-4]], 6),
        ([[0.25], [0.517]], 3),
        ([[0.1 + 0.2, 0.3], [0.3, 0.3]], 3),  # the first two differ by rounding
        ([[4000.0, 5000.0]], 0),
        ([[0.0, 0.0]], 1),
    ],
)
def test_decimals_show_a_third_of_the_smallest_deviation(groups, digits):
    assert decimals(groups) == digits


def test_values_that_their_unit_does_not_have_are_named():
    text = "mIoU has values outside 0 to 1: it is no fraction."
    assert text in report(results(unit_name="fraction"))
    assert text not in report(results(factor=0.01, unit_name="fraction"))


FAILED = [Value("ILMGN", seed, OWN_TEST, "", None, "diverged: NaN") for seed in (3, 4)]


def test_the_table_counts_the_runs_that_learned():
    cells = [c.strip() for c in row(report(results(failures=FAILED)), "ILMGN").split("|")][1:-1]
    assert cells[1] == "3 of 5"
    assert cells[-2:] == ["", "not tested"]


def test_a_further_test_names_runs_that_failed_in_training():
    page = report(results(VALUES, failures=FAILED))
    assert " 3 of 5 " in row(page, "ILMGN", "## mIoU, dusk")


def test_a_run_that_failed_in_a_further_test_counts_in_the_configs_own():
    failed = Value("EN", 2, "dusk", "", None, "failed: no images")
    values = {**VALUES, "dusk": {**VALUES["dusk"], "EN": [10.0, 11.1]}}
    page = report(results(values, failures=[failed]))
    assert row(page, "EN").split("|")[2].strip() == "3"
    assert row(page, "EN", "## mIoU, dusk").split("|")[2].strip() == "2 of 3"


def test_rows_of_the_main_metric_name_failed_runs():
    found = Results(["GN", "ILMGN"], complete([*results().values, *FAILED], "mIoU"), "mIoU")
    failures = [v.failure for v in found.values if v.metric == "mIoU" and v.failure]
    assert failures == ["diverged: NaN"] * 2


def test_a_run_without_a_result_is_listed():
    failure = Value("EN", 3, OWN_TEST, "", None, "diverged: the loss became NaN")
    assert "- EN, seed 3: diverged: the loss became NaN" in report(results(failures=[failure]))


def test_a_norm_without_any_result_keeps_its_row():
    values = {OWN_TEST: {"GN": [40.0, 41.0], "EN": [41.0, 42.0]}}
    page = report(results(values))
    assert "no result" in row(page, "ILMGN")
    assert "No seed has a result of both norms" in page


def test_weights_that_no_norm_converts_are_in_the_report():
    text = report(results(unconverted="bn.pth"))
    assert text.index("The config loads 'bn.pth'. If the file") < text.index("| norm")


def test_the_csv_has_a_row_for_each_run_test_and_metric():
    head, *rows = csv.reader(csv_of(results(failures=FAILED)).splitlines())
    made = ["seconds", "commit", "processor"]
    assert head == ["norm", "seed", "test", "metric", "value", *made, "failure"]
    assert rows[0] == ["GN", "0", "test", "mIoU", "40.0", "", "", "", ""]
    assert rows[-1] == ["ILMGN", "4", "test", "", "", "", "", "", "diverged: NaN"]
    assert len(rows) == 3 * 3 * 2 + len(FAILED)


@pytest.mark.parametrize(
    "names, wanted, of_config, expected",
    [
        ("AR AP", None, None, "AR"),
        ("aAcc mIoU mAcc", None, None, "mIoU"),
        ("coco/bbox_mAP", "bbox_mAP", None, "coco/bbox_mAP"),
        ("a/bbox/AP a/segm/AP b/bbox/AP b/segm/AP", "segm/AP", None, "a/segm/AP"),
        ("coco/AP50 coco/bbox_mAP", None, "val/bbox_mAP", "coco/bbox_mAP"),
        ("aAcc mIoU", None, "mDice", "mIoU"),
    ],
    ids=["the first", "of segmenters", "a prefix", "several tests", "the config's", "not of runs"],
)
def test_the_main_metric_is_the_wanted_the_configs_or_the_usual_one(
    names, wanted, of_config, expected
):
    values = [Value("GN", 0, OWN_TEST, name, 0.4) for name in names.split()]
    assert main_metric(values, wanted, of_config) == expected


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UserError, match=r"--metric 'AP': the runs have mIoU, aAcc"):
        main_metric(results().values, "AP")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function that draws results, and returns the axes of the first test's values."""
    shown = []
    save = plot.Figure.savefig
    monkeypatch.setattr(
        plot.Figure,
        "savefig",
        lambda figure, *args, **options: (shown.append(figure), save(figure, *args, **options)),
    )

    def draw(found):
        style.save(plot.figure_of(found), tmp_path / "compare.png")
        return shown[-1].axes[0]

    return draw


def test_the_picture_shows_each_run(drawn):
    left = drawn(results())
    points = [tuple(map(float, p.get_offsets()[:, 0])) for p in left.collections]
    assert sorted(map(sorted, points)) == sorted(map(sorted, VALUES[OWN_TEST].values()))


def test_the_picture_connects_the_runs_of_a_seed(drawn):
    lines = [[*line.get_xdata()] for line in drawn(results()).lines]
    for values in zip(*VALUES[OWN_TEST].values(), strict=True):
        assert [*values] in lines


def test_a_failed_run_leaves_the_other_norms_of_its_seed_connected(drawn):
    values = {OWN_TEST: {**VALUES[OWN_TEST], "ILMGN": [41.0, 42.6]}}
    failed = Value("ILMGN", 2, OWN_TEST, "", None, "diverged: NaN")
    lines = [[*line.get_xdata()] for line in drawn(results(values, failures=[failed])).lines]
    assert [39.0, 39.5] in lines


@pytest.mark.parametrize("higher", [True, False])
def test_runs_that_failed_or_collapsed_are_at_the_worse_edge_and_leave_the_scale(drawn, higher):
    """Without the bar of a mean, near which no run would be."""
    sign = 1 if higher else -1
    ours = [41.0, 41.0 - sign * 39, 40.2] if higher else [41.0, 900.0, 40.2]
    values = {OWN_TEST: VALUES[OWN_TEST] | {"ILMGN": ours}}
    left = drawn(results(values, failures=FAILED, higher_is_better=higher))
    edge = [line for line in left.lines if line.get_marker() in ("x", "<", ">")]
    assert [line.get_marker() for line in edge] == ["x", "x", "<" if higher else ">"]
    for line in edge:
        ((x, y),) = line.get_transform().transform(line.get_xydata())
        x, y = left.transData.inverted().transform((x, y))
        assert round(y) == 1  # the second norm's row
        assert x < 39 if higher else x > 41.5
    assert np.ptp(left.get_xlim()) < 5
    bars = [line.get_ydata()[0] for line in left.lines if line.get_marker() == "|"]
    assert bars == [0, 2]
    untested = [(text.get_text(), text.get_position()[1]) for text in left.figure.axes[1].texts]
    assert untested == [("not tested", 0)]


def test_equal_results_give_an_equal_picture(tmp_path):
    for name in ("a.png", "b.png"):
        style.save(plot.figure_of(results()), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_failure(value, tmp_path):
    plan = Plan(ConfigSource("fcn.py"), ["GN"], [0], tmp_path)
    (folder := plan.folder("GN", 0)).mkdir(parents=True)
    record = {"run": 1, "planned": 1, "metrics": {"": {"AP": value}}}
    write_record(folder / FILE, record)
    (failed,) = complete(outcomes.collect(plan), "AP")
    assert (failed.value, failed.failure) == (None, "AP is NaN or infinite")


def test_a_metric_that_is_nan_in_all_runs_is_named():
    """A detector that finds nothing."""
    values = [Value(norm, 0, OWN_TEST, "bbox/AP", None) for norm in ("GN", "ILMGN")]
    metric = main_metric(values, None)
    page = report(Results(["GN", "ILMGN"], complete(values, metric), metric))
    assert "- GN, seed 0: bbox/AP is NaN or infinite" in page


def test_a_run_without_the_main_metric_is_not_measured():
    values = [Value("GN", seed, OWN_TEST, "AP", 40.0) for seed in (0, 1)]
    (failed,) = complete([*values, Value("GN", 2, OWN_TEST, "AR", 30.0)], "AP")[3:]
    assert failed.failure == "AP was not measured"
