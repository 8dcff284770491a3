"""Reports of comparisons, from made-up values and from records of the study."""

import csv
import json

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("matplotlib", reason="needs the extra ilm_plugins[compare]")

from ilm_plugins.errors import UserError
from ilm_plugins.experiments.compare import comparison_plot, comparison_report
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
    assert cells == ["ILMGN", "3", "41.3 ± 1.2", "+1.1 [+0.9, +1.3]", "0.005"]


def report(found):
    return comparison_report.markdown(found, "python -m ilm_plugins compare")


def test_each_further_test_has_a_table():
    assert "21.3 ± 3.5" in row(report(results()), "ILMGN", "## mIoU, dusk")


@pytest.mark.parametrize("norm", ["GN", "SN", "EN", "ILMGN"])
def test_the_page_of_the_studys_records_has_scipys_interval(root, norm):
    values = []
    for path in sorted((root / "reports" / "records").glob("study-seg-*.json")):
        found = json.loads(path.read_text())
        norm_of_run, figure = found["cell"].partition("/")[2], found["figures"]["mIoU"]
        values.append(Value(norm_of_run, found["seed"], OWN_TEST, "mIoU", figure))
    study = Results(["BN", "GN", "SN", "EN", "ILMGN"], values, "mIoU")
    ours, plain = ([v.value for v in values if v.norm == name] for name in (norm, "BN"))
    expected = scipy.stats.ttest_rel(ours, plain)
    low, high = expected.confidence_interval()
    mean = np.mean(ours) - np.mean(plain)
    assert f" {mean:+.1f} [{low:+.1f}, {high:+.1f}] " in row(report(study), norm)


def test_a_seen_difference_is_put_into_words():
    assert "- ILMGN: 1.1 above GN (p = 0.005). A difference of 1 needs 3 seeds." in report(
        results()
    )


def test_a_difference_that_is_not_seen_tells_what_the_seeds_would_show():
    words = "- EN: no difference was seen; 3 seeds would show differences above 2.3."
    assert words in report(results())


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
    assert results(values).differences(OWN_TEST)["ILMGN"].p == pytest.approx(0.00274, abs=1e-5)


def test_fractions_have_points_of_a_hundredth():
    found = results(factor=0.01, point=0.01)
    assert "+0.011 [+0.009, +0.013]" in report(found)


def test_percentages_below_1_have_points_of_1():
    assert "A difference of 1 needs" in report(results(factor=0.01))


@pytest.mark.parametrize("largest, point", [(1.0, 0.01), (1.5, 1.0)])
def test_the_values_of_an_unknown_metric_tell_its_unit(largest, point):
    values = [Value("GN", seed, OWN_TEST, "mine", v) for seed, v in enumerate((0.2, largest))]
    assert point_of(values, "mine") == point


FAILED = [Value("ILMGN", seed, OWN_TEST, "", None, "diverged: NaN") for seed in (3, 4)]


@pytest.mark.parametrize("norm", ["ILMGN", "GN"], ids=["the norm", "the baseline"])
def test_a_norm_is_not_called_better_where_a_run_failed(norm):
    failed = Value(norm, 3, OWN_TEST, "", None, "diverged: NaN")
    page = report(results(failures=[failed]))
    words = f"- ILMGN: neither better nor worse, as {norm} seed 3 (diverged) failed; the other"
    assert f"{words} seeds differ by +1.1 [+0.9, +1.3]." in page
    assert "above" not in page.partition("- ILMGN")[2].partition("\n")[0]


def test_the_table_names_failed_runs():
    cells = [c.strip() for c in row(report(results(failures=FAILED)), "ILMGN").split("|")][1:-1]
    assert cells[1] == "3 of 5"
    assert cells[-1] == "no test: ILMGN seed 3 (diverged), ILMGN seed 4 (diverged) failed"


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


def test_memory_is_shown_where_it_was_measured():
    steps = {norm: {"seconds": 0.2, "memory": 3 * 2**20} for norm in ("GN", "ILMGN")}
    found = results(models=MODELS, steps=steps)
    assert "3 MiB" in row(report(found), "ILMGN", "## Cost")


def test_overrides_for_a_norm_are_listed():
    overrides = {"EN": ["SOLVER.BASE_LR", "0.1"]}
    assert "- EN: `SOLVER.BASE_LR 0.1`" in report(results(overrides_of_norm=overrides))


def test_how_models_differ_at_the_start_is_listed():
    assert "- EN: the same" in report(results(starts={"EN": "the same"}))


def test_weights_that_no_norm_converts_are_in_the_report():
    text = report(results(unconverted="bn.pth"))
    assert "## At the start\n\nThe config loads 'bn.pth'. If the file" in text


def test_the_csv_has_a_row_for_each_run_test_and_metric():
    head, *rows = csv.reader(comparison_report.csv_of(results(failures=FAILED)).splitlines())
    assert head == ["norm", "seed", "test", "metric", "value", "failure"]
    assert rows[0] == ["GN", "0", "test", "mIoU", "40.0", ""]
    assert rows[-1] == ["ILMGN", "4", "test", "", "", "diverged: NaN"]
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


def test_the_picture_shows_each_run(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comparison_plot.Figure, "savefig", lambda figure, *_, **__: shown.append(figure)
    )
    comparison_plot.draw(results(), tmp_path / "compare.png")
    left = shown[0].axes[0]
    points = [tuple(map(float, p.get_offsets()[:, 0])) for p in left.collections]
    assert sorted(map(sorted, points)) == sorted(map(sorted, VALUES[OWN_TEST].values()))


def test_the_picture_names_failed_seeds(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        comparison_plot.Figure, "savefig", lambda figure, *_, **__: shown.append(figure)
    )
    comparison_plot.draw(results(failures=FAILED), tmp_path / "compare.png")
    labels = [label.get_text() for label in shown[0].axes[0].get_yticklabels()]
    assert labels == ["GN", "ILMGN\nfailed: seed 3, 4", "EN"]


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
    assert failed.failure == "AP is not a number, or was not measured"


def test_a_run_that_failed_is_one_failure():
    value = Value("GN", 0, OWN_TEST, "", None, "failed: no memory")
    assert complete([value], "AP") == [value._replace(metric="AP")]


def test_a_metric_that_is_nan_in_all_runs_is_named():
    """A detector that finds nothing."""
    values = [Value(norm, 0, OWN_TEST, "bbox/AP", None) for norm in ("GN", "ILMGN")]
    metric = main_metric(values, None)
    page = report(Results(["GN", "ILMGN"], complete(values, metric), metric))
    assert "- GN, seed 0: bbox/AP is not a number, or was not measured" in page


def test_runs_without_any_metric_have_a_reason():
    values = [Value("GN", 0, OWN_TEST, "", None)]
    (failed,) = complete(values, main_metric(values, None))
    assert failed.failure == "the evaluation gave no number"


def test_steps_are_explained_only_where_they_were_measured():
    assert "A step is the median" not in report(results(models=MODELS))
