"""Reports of comparisons, from made-up values and from records of the study."""

import csv
import gc
import json
import re
import time

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from statsmodels.stats.proportion import proportion_confint

from ilm_plugins.errors import UserError
from ilm_plugins.experiments.compare import comparison_plot, comparison_report, runs
from ilm_plugins.experiments.compare.comparison_plan import Plan
from ilm_plugins.experiments.compare.config_source import ConfigSource
from ilm_plugins.experiments.compare.results import (
    OWN_TEST,
    ModelSummary,
    Results,
    Value,
    complete,
    main_metric,
    point_of,
)

VALUES = {
    OWN_TEST: {"GN": [40.0, 41.5, 39.0], "ILMGN": [41.0, 42.6, 40.2], "EN": [40.1, 41.0, 39.5]},
    "dusk": {"GN": [20.0, 21.0, 22.0], "ILMGN": [18.0, 25.0, 21.0], "EN": [10.0, 11.1, 12.2]},
}

MODELS = {"GN": ModelSummary(1000, "2 GroupNorm"), "ILMGN": ModelSummary(1016, "2 ILMGroupNorm")}


def results(values=VALUES, factor=1, seeds=3, failures=(), **options):
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
    # Differences 1.0, 1.1, 1.2: t = 19.05 of two degrees of freedom, p = .00274, doubled by Holm.
    # The 90 % interval is rounded to the same ends: t is 2.92 in place of 4.30, of a deviation .1.
    assert cells[:5] == ["ILMGN", "3", "41.3 ± 1.2", "+1.1 [+0.9, +1.3]", "0.005"]
    assert cells[5:] == ["+0.9 to +1.3", "better"]


def report(found):
    return comparison_report.markdown(found, "python -m ilm_plugins compare")


def test_each_further_test_has_a_table():
    assert "21.3 ± 3.5" in row(report(results()), "ILMGN", "## mIoU, dusk")


@pytest.mark.parametrize("norm", ["GN", "SN", "EN", "ILMGN"])
def test_the_page_of_the_studys_results_has_scipys_interval(root, norm):
    values = []
    with (root / "reports" / "study.csv").open(newline="") as file:
        values = [
            Value(
                row["norm"].partition("/")[2],
                int(row["seed"]),
                OWN_TEST,
                "mIoU",
                float(row["value"]),
            )
            for row in csv.DictReader(file)
            if row["comparison"] == "study-seg" and row["metric"] == "mIoU"
        ]
    study = Results(["BN", "GN", "SN", "EN", "ILMGN"], values, "mIoU")
    ours, plain = ([v.value for v in values if v.norm == name] for name in (norm, "BN"))
    expected = scipy.stats.ttest_rel(ours, plain)
    low, high = expected.confidence_interval()
    mean = np.mean(ours) - np.mean(plain)
    assert f" {mean:+.1f} [{low:+.1f}, {high:+.1f}] " in row(report(study), norm)


@pytest.fixture
def collections():
    """A list that gets the generation of each garbage collection; Python starts none by itself."""
    found = []

    def note(phase, info):
        if phase == "start":
            found.append(info["generation"])

    gc.disable()
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)
    gc.enable()


def test_a_report_collects_no_garbage(collections, tmp_path):
    """With torch loaded, a collection takes .1 to .5 s."""
    found = results(margin=1)
    report(found)
    comparison_report.csv_of(found)
    comparison_plot.draw(found, tmp_path / "compare.png")
    assert collections == []


def words(found, norm):
    """What the page says of a norm."""
    return report(found).partition(f"- {norm}: ")[2].partition("\n")[0]


@pytest.mark.parametrize("higher, side", [(True, "better"), (False, "worse")])
def test_a_seen_difference_is_better_or_worse(higher, side):
    start = f"{side} than GN by 1.1 (p = 0.005). "
    assert words(results(higher_is_better=higher), "ILMGN").startswith(start)


def test_a_difference_that_is_not_seen_is_undecided():
    differences = np.subtract(VALUES[OWN_TEST]["EN"], VALUES[OWN_TEST]["GN"])
    p = scipy.stats.ttest_1samp(differences, 0).pvalue
    assert words(results(), "EN").startswith(f"no difference is seen (p = {p:.3f}). ")
    assert row(report(results()), "EN").split("|")[-2].strip() == "undecided"
    assert "undecided" not in words(results(), "EN")


@pytest.mark.parametrize("higher", [True, False])
def test_losses_and_gains_are_excluded_by_one_sided_tests(higher):
    differences = np.subtract(VALUES[OWN_TEST]["EN"], VALUES[OWN_TEST]["GN"])
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    loss, gain = (-low, high) if higher else (high, -low)
    excluded = f"A loss of more than {loss:.1f} and a gain of more than {gain:.1f} are excluded"
    assert f" {excluded} (5 % each). " in words(results(higher_is_better=higher), "EN")


@pytest.mark.parametrize("higher, name", [(True, "gain"), (False, "loss")])
def test_a_sure_gain_or_loss_has_two_limits(higher, name):
    text = words(results(higher_is_better=higher), "ILMGN")
    assert text.endswith(f" A {name} of less than 0.9 or more than 1.3 is excluded (5 % each).")


def test_the_power_is_a_range_by_the_deviations_interval():
    """Simulated, by Holm's first step: of two norms, so p must be below .025."""
    deviation = np.std([0.1, -0.5, 0.5], ddof=1)
    draws = np.random.default_rng(0).normal(0, 1, (100_000, 3))
    powers = []
    for level in (0.025, 0.975):
        end = deviation * (2 / scipy.stats.chi2.ppf(level, 2)) ** 0.5
        ps = scipy.stats.ttest_1samp(1 + end * draws, 0, axis=1).pvalue
        powers.append((ps < 0.025).mean())
    found = results().verdicts[OWN_TEST]["EN"].powers
    assert found == pytest.approx(powers, abs=0.01)
    shown = "3 seeds show a difference of 1 point with probability {:.2f} to {:.2f}".format(*found)
    assert words(results(), "EN").endswith(f"{shown}; plan at least 6 seeds for 0.80.")


def test_the_power_is_of_the_margin():
    text = words(results(margin=0.5), "EN")
    assert re.search(
        r" 3 seeds show a difference of 0.5 points with probability \S+ to \S+; plan at least", text
    )


def test_the_power_is_told_only_where_nothing_is_decided():
    assert "with probability" not in words(results(), "ILMGN")
    assert "with probability" not in words(results(margin=2.5), "EN")


def test_an_undecided_norm_has_no_gain_for_sure():
    """With a p of .081, one test without correction excludes 0."""
    values = {OWN_TEST: {"GN": [40.0, 41.0, 42.0], "EN": [40.4, 41.7, 43.2]}}
    found = results(values)
    assert found.differences[OWN_TEST]["EN"].left[0] > 0
    assert " A gain of more than 1.4 is excluded (5 %). " in words(found, "EN")


def test_two_seeds_tell_nothing_yet_unless_they_decide():
    found = results({OWN_TEST: {"GN": [50.0, 50.0], "EN": [49.4, 50.2]}})
    text = words(found, "EN")
    assert text.startswith("these seeds tell nothing yet (p = 0.705). Two differences do not")
    assert "excluded" not in text
    assert row(report(found), "EN").split("|")[-3].strip() == ""
    decided = results(seeds=2, margin=50)
    assert words(decided, "EN").startswith("equivalent to GN within 50 points")


def test_values_near_the_start_tell_nothing_yet():
    values = {OWN_TEST: {"GN": [0.5, 0.3, 0.1], "EN": [0.4, 0.2, 0.3]}}
    text = words(results(values), "EN")
    assert "tell nothing yet" in text
    warning = "All values are below 1 point of 100, as of models that have not learned;"
    assert warning in text
    equivalent = words(results(values, margin=5), "EN")
    assert equivalent.startswith("equivalent to GN within 5 points")
    assert warning in equivalent
    loss = words(results(values, higher_is_better=False), "EN")
    assert "A loss of more than" in loss


def test_an_interval_that_is_wider_than_the_metric_tells_nothing_yet():
    values = {OWN_TEST: {"GN": [20.0, 90.0, 40.0], "EN": [90.0, 10.0, 60.0]}}
    text = words(results(values), "EN")
    assert "The interval is wider than what mIoU can be." in text
    assert "excluded" not in text
    assert "excluded" not in words(results(values, margin=1000), "EN")  # equivalent within that


def test_a_limit_that_the_metric_cannot_reach_is_left_out():
    values = {OWN_TEST: {"GN": [99.0, 99.0, 99.1], "EN": [99.5, 95.0, 98.5]}}
    text = words(results(values), "EN")
    assert re.search(r"\. A loss of more than \S+ is excluded \(5 %\)\. ", text)


def test_a_tiny_p_is_not_printed_as_zero():
    values = {OWN_TEST: {"GN": [40.0, 41.5, 39.0], "EN": [41.0, 42.5001, 40.0]}}
    page = report(results(values))
    assert row(page, "EN").split("|")[5].strip() == "< 0.001"
    assert "(p < 0.001)" in page
    assert "0.000" not in page


def test_a_reading_alone_has_no_warning():
    assert "was read before" not in report(results(readings=[range(3)]))


@pytest.mark.parametrize(
    "counts, before, share",
    [([3, 5, 10], "3 and 5 seeds, and now at 10", 12), ([*range(2, 11)], "8 and 9 seeds", 20)],
)
def test_further_readings_say_what_they_do_to_p(counts, before, share):
    text = report(results(readings=[range(count) for count in counts]))
    assert before in text
    found = int(re.search(r"in (\d+) % of all comparisons, not in 5 %", text)[1])
    assert abs(found - share) <= 1


def corrected_ps(margin, *alternatives):
    """The larger p of one-sided tests for ILMGN and EN, by Holm's correction."""
    plain, shift = np.array(VALUES[OWN_TEST]["GN"]), {"greater": -margin, "less": margin}
    ps = []
    for norm in ("ILMGN", "EN"):
        differences = VALUES[OWN_TEST][norm] - plain
        tests = (
            scipy.stats.ttest_1samp(differences, shift[side], alternative=side)
            for side in alternatives
        )
        ps.append(max(test.pvalue for test in tests))
    smaller = ps.index(min(ps))
    ps[smaller] *= 2
    ps[1 - smaller] = max(ps)
    return ps


def test_a_norm_is_equivalent_within_the_margin():
    found = results(margin=2.5)
    *_, p = corrected_ps(2.5, "greater", "less")
    assert words(found, "EN").startswith(f"equivalent to GN within 2.5 points (p = {p:.3f}). ")
    assert row(report(found), "EN").split("|")[-2].strip() == "equivalent"


def test_a_norm_that_only_loses_less_than_the_margin_is_no_worse():
    p_loss, p = corrected_ps(1, "greater")[1], corrected_ps(1, "greater", "less")[1]
    expected = f"no worse than GN within 1 point (p = {p_loss:.3f}), not shown to be equivalent"
    assert words(results(margin=1), "EN").startswith(f"{expected} (p = {p:.3f}). ")


def test_a_loss_within_the_margin_is_a_gain_where_lower_is_better():
    # EN's differences are mostly above 0.
    higher, lower = (
        results(margin=1, higher_is_better=side).verdicts[OWN_TEST]["EN"] for side in (True, False)
    )
    assert [higher.p_no_worse, lower.p_no_worse] == pytest.approx(
        [corrected_ps(1, side)[1] for side in ("greater", "less")]
    )
    assert higher.p_equivalent == lower.p_equivalent


def test_a_margin_that_the_seeds_cannot_tell_leaves_a_norm_undecided():
    text = words(results(margin=0.1), "EN")
    start = "no difference is seen (p = 0.919), not shown to be equivalent within 0.1 points "
    assert text.startswith(start)


@pytest.mark.parametrize("higher, side", [(True, "better"), (False, "worse")])
def test_a_seen_difference_within_the_margin_is_called_both(higher, side):
    found = results(margin=2.5, higher_is_better=higher)
    start = f"{side} than GN by 1.1 (p = 0.005), but equivalent within 2.5 points (p = "
    assert words(found, "ILMGN").startswith(start)
    assert row(report(found), "ILMGN").split("|")[-2].strip() == f"{side}, within the margin"


def test_a_margin_of_a_fraction_is_in_hundredths():
    points, fraction = results(margin=2.5), results(factor=0.01, point=0.01, margin=2.5)
    ps = [found.verdicts[OWN_TEST]["EN"].p_equivalent for found in (points, fraction)]
    assert ps[0] == pytest.approx(ps[1])
    assert "equivalent to GN within 0.025 (p = " in words(fraction, "EN")


@pytest.mark.parametrize("seeds, p", [(1, "nan"), (2, "number")])
def test_two_seeds_are_the_least_that_tell_of_the_margin(seeds, p):
    verdict = results(seeds=seeds, margin=50).verdicts[OWN_TEST]["EN"]
    assert np.isnan(verdict.p_equivalent) == (p == "nan")
    assert verdict.word == ("undecided" if p == "nan" else "equivalent")


def test_equal_results_are_not_called_equivalent():
    """A norm that had no effect."""
    found = results({OWN_TEST: {"GN": [80.0, 82.0], "EN": [80.0, 82.0]}}, margin=1)
    assert found.verdicts[OWN_TEST]["EN"].word == "undecided"


def test_one_seed_shows_nothing():
    assert "- EN: one seed shows nothing; give more --seeds." in report(results(seeds=1))


def test_equal_differences_show_nothing():
    page = report(results({OWN_TEST: {"GN": [80.0, 82.0], "EN": [81.0, 83.0]}}))
    words = "- EN: all seeds have the same difference, +1.0, so its spread is unknown;"
    assert words in page
    assert "p = 0" not in page


def test_equal_results_are_called_equal():
    page = report(results({OWN_TEST: {"GN": [80.0, 82.0], "EN": [80.0, 82.0]}}))
    assert "- EN: all 2 seeds have the result of GN, so the norm probably had no effect;" in page
    assert [cell.strip() for cell in row(page, "EN").split("|")][4:6] == ["+0.0", ""]


def test_equal_results_are_no_test_of_holms_correction():
    values = {OWN_TEST: {**VALUES[OWN_TEST], "EN": VALUES[OWN_TEST]["GN"]}}
    # Uncorrected: in VALUES, where Holm's rule has two tests, it is .005.
    assert results(values).differences[OWN_TEST]["ILMGN"].p == pytest.approx(0.00274, abs=1e-5)


def test_fractions_have_points_of_a_hundredth():
    found = results(factor=0.01, point=0.01)
    assert "+0.011 [+0.009, +0.013]" in report(found)


def test_percentages_below_1_have_points_of_1():
    assert "All values are below 1 point of 100" in report(results(factor=0.01))


def test_a_fraction_above_1_is_named():
    text = "mIoU has values above 1, so it is no fraction: --unit percent."
    assert text in report(results(point=0.01))
    assert text not in report(results(factor=0.01, point=0.01))
    assert text not in report(results(point=0.01, higher_is_better=False))


@pytest.mark.parametrize("largest, point", [(1.0, 0.01), (1.5, 1.0)])
def test_the_values_of_an_unknown_metric_tell_its_unit(largest, point):
    values = [Value("GN", seed, OWN_TEST, "mine", v) for seed, v in enumerate((0.2, largest))]
    assert point_of(values, "mine") == point


FAILED = [Value("ILMGN", seed, OWN_TEST, "", None, "diverged: NaN") for seed in (3, 4)]


@pytest.mark.parametrize("norm", ["ILMGN", "GN"], ids=["the norm", "the baseline"])
def test_a_norm_is_not_called_better_where_a_run_failed(norm):
    failed = Value(norm, 3, OWN_TEST, "", None, "diverged: NaN")
    found = results(failures=[failed], margin=5)
    text = words(found, "ILMGN")
    assert text.startswith("no test, as ")
    assert f"1 of 4 runs with {norm} have no result (seed 3: diverged; 95 % " in text
    assert text.endswith(". The other seeds differ by +1.1 [+0.9, +1.3].")
    assert found.verdicts[OWN_TEST]["ILMGN"].word == "undecided"


def test_the_rates_of_failures_have_intervals():
    """Wilson's; they overlap far, so 2 of 5 against 0 of 3 says little."""
    text = words(results(failures=FAILED), "ILMGN")
    rates = [proportion_confint(*pair, method="wilson") for pair in ((0, 3), (2, 5))]
    for low, high in rates:
        assert f"95 % interval of the rate: {100 * low:.0f} % to {100 * high:.0f} %)" in text


def test_the_table_counts_the_runs_that_learned():
    cells = [c.strip() for c in row(report(results(failures=FAILED)), "ILMGN").split("|")][1:-1]
    assert cells[1] == "3 of 5"
    assert cells[-3:] == ["", "", "undecided"]


def test_a_further_test_names_runs_that_failed_in_training():
    page = report(results(failures=FAILED))
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
    assert "no seed has a result of both norms" in page


def test_steps_are_shown_by_the_baselines():
    steps = {"GN": {"seconds": 0.2}, "ILMGN": {"seconds": 0.21}}
    found = results(models=MODELS, steps=steps)
    cells = [cell.strip() for cell in row(report(found), "ILMGN", "## Cost").split("|")][1:-1]
    assert cells == ["ILMGN", "2 ILMGroupNorm", "1,016", "0.210 s", "1.05"]


def test_the_wall_time_of_each_norms_runs_is_shown():
    values = [Value("GN", seed, OWN_TEST, "mIoU", 40.0, seconds=80.0 + seed) for seed in (0, 20)]
    assert "| GN     | 0:01:30" in report(Results(["GN", "EN"], values, "mIoU"))
    short = [value._replace(seconds=1.0) for value in values]
    assert "wall time" not in report(Results(["GN", "EN"], short, "mIoU"))


def test_memory_is_shown_where_it_was_measured():
    steps = {norm: {"seconds": 0.2, "memory": 3 * 2**20} for norm in ("GN", "ILMGN")}
    found = results(models=MODELS, steps=steps)
    assert "3 MiB" in row(report(found), "ILMGN", "## Cost")


def test_how_models_differ_at_the_start_is_listed():
    assert "- EN: the same" in report(results(starts={"EN": "the same"}))


def test_weights_that_no_norm_converts_are_in_the_report():
    text = report(results(unconverted="bn.pth"))
    assert text.index("The config loads 'bn.pth'. If the file") < text.index("| norm")


def test_the_csv_has_a_row_for_each_run_test_and_metric():
    head, *rows = csv.reader(comparison_report.csv_of(results(failures=FAILED)).splitlines())
    made = ["seconds", "commit", "processor"]
    assert head == ["norm", "seed", "test", "metric", "value", *made, "failure"]
    assert rows[0] == ["GN", "0", "test", "mIoU", "40.0", "", "", "", ""]
    assert rows[-1] == ["ILMGN", "4", "test", "", "", "", "", "", "diverged: NaN"]
    assert len(rows) == 2 * 3 * 3 * 2 + len(FAILED)


def test_the_main_metric_is_the_first_without_a_choice():
    assert main_metric(results().values, None) == "mIoU"


def test_segmenters_are_compared_by_miou_without_a_choice():
    values = [Value("GN", 0, OWN_TEST, metric, 1.0) for metric in ("aAcc", "mIoU", "mAcc")]
    assert main_metric(values, None) == "mIoU"


def test_the_main_metric_is_found_without_its_prefix():
    assert main_metric([Value("GN", 0, OWN_TEST, "coco/bbox_mAP", 0.4)], "bbox_mAP") == (
        "coco/bbox_mAP"
    )


def test_the_main_metric_is_of_the_wanted_task_among_several_test_sets():
    names = [f"{data}/{task}/AP" for data in ("a", "b") for task in ("bbox", "segm")]
    values = [Value("GN", 0, OWN_TEST, name, 0.4) for name in names]
    assert main_metric(values, "segm/AP") == "a/segm/AP"


def test_the_configs_metric_is_found_under_another_prefix():
    values = [Value("GN", 0, "test", name, 1.0) for name in ("coco/AP50", "coco/bbox_mAP")]
    assert main_metric(values, None, "val/bbox_mAP") == "coco/bbox_mAP"


def test_a_configs_metric_that_the_runs_lack_is_no_mistake():
    assert main_metric(results().values, None, "mDice") == "mIoU"


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UserError, match=r"--metric 'AP': the runs have mIoU, aAcc"):
        main_metric(results().values, "AP")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function that draws results, and returns the axes of the first test's values."""
    shown = []
    save = comparison_plot.Figure.savefig
    monkeypatch.setattr(
        comparison_plot.Figure,
        "savefig",
        lambda figure, *args, **options: (shown.append(figure), save(figure, *args, **options)),
    )

    def draw(found):
        comparison_plot.draw(found, tmp_path / "compare.png")
        return shown[-1].axes[0]

    return draw


def test_the_picture_shows_each_run(drawn):
    left = drawn(results())
    points = [tuple(map(float, p.get_offsets()[:, 0])) for p in left.collections]
    assert sorted(map(sorted, points)) == sorted(map(sorted, VALUES[OWN_TEST].values()))


def test_the_picture_names_failed_seeds(drawn):
    labels = [label.get_text() for label in drawn(results(failures=FAILED)).get_yticklabels()]
    assert labels == ["GN", "ILMGN\nno result: seed 3, 4", "EN"]


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
def test_the_picture_has_a_cross_at_the_worse_edge_for_each_run_that_failed(drawn, higher):
    left = drawn(results(failures=FAILED, higher_is_better=higher))
    (crosses,) = [line for line in left.lines if line.get_marker() == "x" and len(line.get_xdata())]
    places = left.transData.inverted().transform(
        crosses.get_transform().transform(crosses.get_xydata())
    )
    assert len(places) == len(FAILED)
    assert all(round(y) == 1 for _, y in places)  # the second norm's row
    values = [value for norm in VALUES[OWN_TEST].values() for value in norm]
    assert all(x < min(values) if higher else x > max(values) for x, _ in places)


def test_equal_results_give_an_equal_picture(tmp_path):
    for name in ("a.png", "b.png"):
        comparison_plot.draw(results(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_run_whose_metric_is_nan_is_a_failure():
    """A detector that finds nothing has an AP of NaN, which a record keeps as null."""
    values = [Value("GN", seed, OWN_TEST, "AP", 40.0) for seed in (0, 1)]
    values += [Value("AN", 0, OWN_TEST, "AP", 44.0), Value("AN", 1, OWN_TEST, "AP", None)]
    (failed,) = Results(["GN", "AN"], complete(values, "AP"), "AP").failures
    assert (failed.norm, failed.seed) == ("AN", 1)
    assert failed.failure == "AP is NaN or infinite"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_failure(value):
    (failed,) = complete([Value("GN", 0, OWN_TEST, "AP", value)], "AP")
    assert (failed.value, failed.failure) == (None, "AP is NaN or infinite")


def test_a_run_that_failed_is_one_failure():
    value = Value("GN", 0, OWN_TEST, "", None, "failed: no memory")
    assert complete([value], "AP") == [value._replace(metric="AP")]


def test_a_metric_that_is_nan_in_all_runs_is_named():
    """A detector that finds nothing."""
    values = [Value(norm, 0, OWN_TEST, "bbox/AP", None) for norm in ("GN", "ILMGN")]
    metric = main_metric(values, None)
    page = report(Results(["GN", "ILMGN"], complete(values, metric), metric))
    assert "- GN, seed 0: bbox/AP is NaN or infinite" in page


def test_runs_without_any_metric_have_a_reason():
    values = [Value("GN", 0, OWN_TEST, "", None)]
    (failed,) = complete(values, main_metric(values, None))
    assert failed.failure == "nothing was measured"


def test_a_run_without_the_main_metric_is_not_measured():
    values = [Value("GN", seed, OWN_TEST, "AP", 40.0) for seed in (0, 1)]
    (failed,) = complete([*values, Value("GN", 2, OWN_TEST, "AR", 30.0)], "AP")[3:]
    assert failed.failure == "AP was not measured"


def test_steps_are_explained_only_where_they_were_measured():
    assert "A step is the median" not in report(results(models=MODELS))


def test_forty_runs_are_read_and_reported_within_five_seconds(tmp_path):
    """Of the process's own time: reading the records, all tables and texts, and the picture."""
    norms, seeds = [f"N{i}" for i in range(8)], range(5)
    source = ConfigSource("fcn.py", tests={"dusk": "dusk.py"})
    plan = Plan(source, norms, seeds, tmp_path)
    generator = np.random.default_rng(0)
    curve = [{"run": i, "loss": 1 / (i + 1)} for i in range(100)]
    for norm in norms:
        for seed in seeds:
            for test in ("", "dusk"):
                metrics = {"mIoU": generator.normal(50), "aAcc": 80.0}
                found = {"run": 9, "planned": 9, "curve": curve, "metrics": {"": metrics}}
                folder = plan.folder(norm, seed, test)
                folder.mkdir(parents=True)
                (folder / "record.json").write_text(json.dumps(found))
    started = time.process_time()
    values = runs.collect(plan)
    read = Results(norms, complete(values, "mIoU"), "mIoU", margin=1)
    page = report(read)
    comparison_report.csv_of(read)
    comparison_plot.draw(read, tmp_path / "compare.png")
    assert time.process_time() - started < 5
    assert len(read.main[norms[-1], "dusk"]) == 5
    assert page.count(" is excluded (5 %") + page.count(" are excluded (5 %") == 2 * 7
