"""Records of runs: their labels, and the reports that are made of them."""

from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ilm_plugins.__main__ import main
from ilm_plugins.experiments.papers import paper_plots, paper_record, paper_report, published
from ilm_plugins.experiments.reports.interval import Difference

RECIPE = {"length": 165, "batch": 128, "images": 50000, "test_images": 10000, "jpeg": False}
TRAINED = {
    **{"config": "seed0.py", "commit": "0123456789ab", "device": "CPU, Xeon", "seed": 0},
    **{"batch": 128, "images": 50000, "unit": "epochs", "planned": 165, "run": 165},
    **{"seconds": 3600.0, "curve": [{"epochs": 1, "loss": 2.0, "accuracy/top1": 40.0}]},
    **{"metrics": {"": {"accuracy/top1": 90.0}}, "test images": 10000},
}


def recorded(
    cell="en-5 ResNet20/EN", changes=(), parent=None, jpeg=False, miniature=False, **options
):
    """The record of a full recipe, less what ``options`` say."""
    found = {**TRAINED, **{key.replace("_", " "): value for key, value in options.items()}}
    recipe = SimpleNamespace(**{**RECIPE, "jpeg": jpeg})
    more = {"changes": dict(changes), "parent": parent, "miniature": miniature}
    return paper_record.complete(found, published.find_cell(cell), recipe, **more)


def reported(folder, *found, page="en.md"):
    for i, one in enumerate(found):
        paper_record.write(folder / "records" / f"{i}.json", one)
    paper_report.write(folder / "records")
    return (folder / page).read_text()


def rows(page, begins):
    return [line for line in page.splitlines() if line.removeprefix("| ").startswith(begins)]


SHORT = {"planned": 9, "run": 9}
# Only a test: the length and the batch are no part of it.
TESTED = {"cell": "en-4 ImageNet -> WebVision/EN", "planned": 0, "batch": None, "images": None}


@pytest.mark.parametrize(
    "options, label",
    [
        ({}, "full recipe"),
        (SHORT, "shortened: 9 of 165 epochs"),
        ({"planned": 200, "run": 200}, "lengthened: 200 of 165 epochs"),
        ({"run": 40, "metrics": {}}, "unfinished: 40 of 165 epochs"),
        ({"run": 40, "stopped early": True}, "stopped early: 40 of 165 epochs"),
        ({"metrics": {}}, "no figure yet"),
        ({"cell": "en-6 backbone/EN"}, "full recipe"),  # without the figures of its table
        ({"batch": 64}, "batches of 64, not 128"),
        ({"images": 384}, "384 of 50000 images"),
        ({"test_images": 112}, "tested on 112 of 10000 images"),
        ({"changes": {"a.b": 1, "c": "d" * 50}}, f"changed: a.b=1, changed: c={'d' * 40}"),
        ({"miniature": True, "images": 16, "batch": 4}, "miniature"),
        ({"run": 40, "metrics": {}, "diverged": "NaN"}, "full recipe"),
        ({"parent": recorded(**SHORT)}, "from en-5 ResNet20/EN (shortened: 9 of 165 epochs)"),
        ({"parent": recorded(), **TESTED, "run": 0}, "full recipe"),
    ],
)
def test_whatever_differs_from_the_recipe_is_in_the_label(options, label):
    assert paper_record.label(recorded(**options)) == label


def test_only_a_full_recipe_stands_beside_the_papers_figure(tmp_path):
    page = reported(tmp_path, recorded(metrics={"": {"accuracy/top1": 92.0}}), recorded(**SHORT))
    assert rows(page, "ResNet20/EN") == [
        "| ResNet20/EN | full recipe | 92.41 | 92.00 | -0.41 | 165 of 165 epochs |",
        "| ResNet20/EN, ours | shortened: 9 of 165 epochs |  | 90.00 |  | 9 of 165 epochs |",
    ]
    alike = "All runs: seeds 0; device CPU, Xeon; hours 1.00; commit 0123456789ab."
    assert f"top-1 (%, higher is better). {alike}" in page
    index = (tmp_path / "README.md").read_text()
    assert "CIFAR-10 and CIFAR-100, batch 128, 165 epochs | 1 of 18 |" in index


def test_rows_that_were_not_run_are_one_line_a_table(tmp_path):
    page = reported(tmp_path, recorded())
    assert not rows(page, "ResNet20/BN")
    assert "Rows not run: 17 of 18. `reproduce list en-5`" in page


def test_tables_and_figures_that_were_not_run_are_one_line_a_page(tmp_path):
    page = reported(tmp_path, recorded())
    sections = [line for line in page.splitlines() if line.startswith("## ")]
    assert sections == ["## en-5", "## en-fig3", "## Not run"]  # Figure 3 shows Table 5
    line, end = page.partition("## Not run\n\n")[2].split("\n", 1)
    assert not end
    listed = [text.split(" (")[0] for text in line.split("; ")]
    others = published.tables().keys() - {"en-5", "en-fig3", "en-fig2", "en-fig1b"}  # drawings
    assert sorted(listed) == sorted(key for key in others if key.startswith("en-"))


def test_the_index_counts_what_was_run_and_what_was_not(tmp_path):
    index = reported(tmp_path, recorded(), page="README.md")
    assert rows(index, "[") == [
        "| [en-5](en.md#en-5) | Table 5: CIFAR-10 and CIFAR-100, batch 128, 165 epochs | 1 of 18 |"
    ]
    assert "[16 of Exemplar Normalization](en.md#not-run)" in index


def test_a_page_begins_with_a_link_to_the_paper(tmp_path):
    page = reported(tmp_path, recorded(), page="ilm.md")
    title = "[Instance-Level Meta Normalization](https://arxiv.org/abs/1904.03516)"
    assert page.startswith(f"# {title}, CVPR 2019\n")


@pytest.mark.parametrize(
    "cell", ["assoc-4 ResNet-18, 32 key groups", "en-5 ResNet20/EN", "ilm-6 IN / IN"]
)
def test_no_column_of_a_table_is_empty(cell, root, tmp_path):
    name = str(published.find_cell(cell).folder).replace("/", "-")
    (path, *_) = (root / "reports" / "records").glob(f"{name}*.json")
    page = reported(tmp_path, paper_record.read(path), page=f"{cell.split('-')[0]}.md")
    head, _, *body = ([*line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|")
    columns = zip_longest(head, *body, fillvalue="")
    assert all(any(text.strip(" -/") for text in column) for _, *column in columns)
    assert not {"commit", "seeds"} & {name.strip() for name in head}


def test_seeds_of_one_setting_are_a_mean_with_its_deviation(tmp_path):
    found = [recorded(seed=i, metrics={"": {"accuracy/top1": 90.0 + i}}) for i in range(3)]
    page = reported(tmp_path, *found)
    (row,) = rows(page, "ResNet20/EN")
    assert row.endswith("| 91.00 ± 1.00 | -1.41 |")
    assert "All runs: full recipe; seeds 0, 1, 2; trained" in page


def test_runs_on_re_encoded_images_have_a_row(tmp_path):
    _, jpeg = rows(reported(tmp_path, recorded(), recorded(seed=4, jpeg=True)), "ResNet20/EN")
    assert "165 of 165 epochs, on re-encoded JPEG" in jpeg


def test_runs_of_different_changes_have_a_row_each(tmp_path):
    """Labels shorten a value to 40 characters."""
    found = [recorded(seed=i, changes={"a": "x" * 40 + str(i)}) for i in range(2)]
    assert len([row for row in rows(reported(tmp_path, *found), "ResNet20/EN, ours")]) == 2


TRANSLATION = {"rmse": 60.0, "l1": 47.0, "mean_image/l1": 45.0}


def test_a_trivial_prediction_has_a_row_to_compare(tmp_path):
    found = recorded("ilm-6 IN / IN", metrics={"": TRANSLATION})
    (row,) = rows(reported(tmp_path, found, page="ilm.md"), "mean training")
    assert "to compare | - | - | - | - | 45.00 |" in row


def test_a_table_of_many_measures_has_a_column_for_each(tmp_path):
    found = recorded("ilm-6 IN / IN", metrics={"": TRANSLATION})
    assert rows(reported(tmp_path, found, page="ilm.md"), "IN / IN") == [
        "| IN / IN, paper | 108.17 | 108.17 | 0.441 | 0.372 | - |",
        "| IN / IN | 60.00 | 103.92 | - | - | 47.00 |",
    ]


def test_differences_from_many_figures_of_the_paper_are_a_row(tmp_path):
    metrics = {"bbox/AP": 40.0, "bbox/AP50": 60.0, "segm/AP": 35.0}
    found = recorded("ilm-5 GN, batch 16", metrics={"": metrics})
    (row,) = rows(reported(tmp_path, found, page="ilm.md"), "GN, batch 16, ours - paper")
    assert row == "| GN, batch 16, ours - paper | +0.90 | -0.33 | - | +0.23 | - | - |"


def test_a_measure_that_the_paper_does_not_define_has_no_difference(tmp_path):
    found = recorded("ilm-6 IN / IN", metrics={"": TRANSLATION})
    assert not rows(reported(tmp_path, found, page="ilm.md"), "IN / IN, ours - paper")


def test_the_studys_norms_are_compared_with_the_norm_that_they_replace(tmp_path):
    found = []
    for row, figures in (("GN", (50.0, 51.0, 52.0)), ("ILMGN", (51.0, 51.5, 54.0))):
        for seed, ap in enumerate(figures):
            found.append(
                recorded(
                    f"study-box BCCD box head/{row}",
                    seed=seed,
                    unit="iterations",
                    curve=[{"iterations": 10, "loss": 1.0}],
                    metrics={"": {"bbox/AP": ap}},
                )
            )
    gn, ilmgn = rows(reported(tmp_path, *found, page="study.md"), "BCCD box head/")[:2]
    assert "| BCCD box head/GN | 51.00 ± 1.00 / - |  | 0, 1, 2 |" in gn
    # Differences 1, 0.5 and 2: mean 7/6, deviation 0.76376, t 4.303 at 2 degrees of freedom.
    assert "| 52.17 ± 1.61 / - | +1.17 [-0.73, +3.06] / - from GN |" in ilmgn


#: Metric -> row -> figure: two differences in the box head, one in segmentation.
TASKS = {
    "bbox/AP": {f"study-box BCCD box head/{norm}": 50 for norm in ("GN", "ILMGN", "AN")},
    "mIoU": {"study-seg CamVid/BN": 40, "study-seg CamVid/SN": 42},
}


def test_a_plot_of_differences_has_a_panel_for_each_task_with_several(tmp_path, monkeypatch):
    found = [
        recorded(row, seed=seed, metrics={"": {metric: ap + place * seed}})
        for metric, tasks in TASKS.items()
        for place, (row, ap) in enumerate(tasks.items())
        for seed in (0, 1)
    ]
    for i, one in enumerate(found):
        paper_record.write(tmp_path / f"{i}.json", one)
    drawn, draw = [], paper_plots.differences

    def record(panels):
        drawn.append(panels)
        return draw(panels)

    monkeypatch.setattr(paper_plots, "differences", record)
    groups = paper_report.by_cell(tmp_path)
    assert paper_report.draw(published.find_table("study"), groups, tmp_path)
    (panels,) = drawn
    assert [[pair for pair, _ in rows] for rows in panels.values()] == [["ILMGN - GN", "AN - GN"]]


def test_plots_skip_values_that_are_null_in_the_record():
    """As a detector has them for sizes of objects that its test lacks."""
    points = [(1, None, None), (2, 3.0, None)]
    curve = [{"epochs": i, "loss": y, "bbox/APl": ap} for i, y, ap in points]
    lines = [("EN", [recorded(curve=curve)])]
    (axis,) = paper_plots.training(published.find_table("en-5"), lines).axes
    assert axis.lines[0].get_xydata().tolist() == [[2, 3.0]]


def test_a_plot_of_a_training_names_the_measure_with_its_unit():
    curve = [{"epochs": 1, "accuracy/top1": 40.0, "accuracy_top-1": 50.0}]
    axes = paper_plots.training(
        published.find_table("en-5"), [("EN", [recorded(curve=curve)])]
    ).axes
    labels = "top-1 (%, higher is better)", "top-1 in training (%, higher is better)"
    assert tuple(axis.get_ylabel() for axis in axes) == labels


def test_a_plot_of_a_metric_that_is_no_measure_has_the_metrics_name():
    """The paper's error is 100 - accuracy/top1."""
    curve = [{"epochs": 1, "accuracy/top1": 40.0}]
    (axis,) = paper_plots.training(
        published.find_table("ilm-1"), [("GN", [recorded(curve=curve)])]
    ).axes
    assert axis.get_ylabel() == "accuracy/top1"


def test_runs_that_log_no_measure_have_no_plot(tmp_path):
    curve = [{"epochs": 1, "loss_G_L1": 0.3}]
    paper_record.write(tmp_path / "0.json", recorded("ilm-6 IN / IN", curve=curve, metrics={}))
    groups = paper_report.by_cell(tmp_path)
    assert not paper_report.draw(published.find_table("ilm-6"), groups, tmp_path)


def test_plots_of_trainings_have_the_means_over_seeds():
    curves = ([{"epochs": i + 1, "loss": y} for i, y in enumerate(ys)] for ys in ((4, 2), (5, 3)))
    lines = [("EN", [recorded(curve=curve) for curve in curves])]
    (axis,) = paper_plots.training(published.find_table("en-5"), lines).axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 4.5], [2, 2.5]]


def difference(mean: float, low: float, high: float) -> Difference:
    return Difference(5, mean, 1.0, low, high, 0.5)


def test_plots_of_differences_have_the_ends_of_intervals():
    (axis,) = paper_plots.differences({"BCCD": [("EN - BN", difference(1.0, 0.5, 2.0))]}).axes
    (interval,) = axis.containers[0].lines[2]
    assert interval.get_segments()[0].tolist() == [[0.5, 0], [2, 0]]


def test_plots_of_differences_are_cut_off_at_wide_intervals():
    (axis,) = paper_plots.differences({"BCCD": [("AN - GN", difference(-9.0, -300.0, 12.0))]}).axes
    assert axis.get_xlim()[0] == -paper_plots.LIMIT
    assert 12 < axis.get_xlim()[1] < paper_plots.LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {"run": 3, "metrics": {}, "diverged": "the loss became NaN"},
        {"metrics": {"": {"accuracy/top1": 10.5}}},
    ],
    ids=["diverged", "guesses"],
)
def test_a_run_without_a_useful_result_did_not_learn(options, tmp_path):
    run = recorded("ilm-7 (relu, relu)", **options, curve=[])
    (row,) = rows(reported(tmp_path, run, page="ilm.md"), "(relu, relu)")
    assert row.startswith("| (relu, relu) | did not converge | did not learn |")


def box_head(norm: str, seed: int, ap: float) -> dict:
    """Return the record of a run of the study's detectors."""
    metrics = {"": {"bbox/AP": ap, "bbox/AP50": ap}}
    return recorded(f"study-box BCCD box head/{norm}", seed=seed, metrics=metrics)


def test_results_are_of_the_runs_that_learned(tmp_path):
    """A mean of runs at 4 and at 50 describes neither."""
    runs = [box_head("AN", seed, ap) for seed, ap in enumerate((50, 4, 52))]
    (row,) = rows(reported(tmp_path, *runs, page="study.md"), "BCCD box head/AN")
    assert "| 2 of 3 learned: 51.00 ± 1.41 / 51.00 ± 1.41 |" in row


def test_differences_are_of_seeds_with_which_both_norms_learned(tmp_path):
    ours = [box_head("AN", seed, ap) for seed, ap in enumerate((50, 4, 52))]
    plain = [box_head("GN", seed, ap) for seed, ap in enumerate((51, 60, 54))]
    (row,) = rows(reported(tmp_path, *ours, *plain, page="study.md"), "BCCD box head/AN")
    # Differences -1 and -2: -1.5 ± 12.706 * .5.
    assert "| -1.50 [-7.85, +4.85] /" in row


def test_the_command_reports_the_runs_in_its_folder(tmp_path, capsys):
    paper_record.write(tmp_path / "ilm-1" / "GN" / "seed0" / "record.json", recorded("ilm-1 GN"))
    # A training that was killed: reproduction has not completed its record.
    paper_record.write(tmp_path / "en-5" / "ResNet20-BN" / "seed0" / "record.json", TRAINED)
    assert main(["reproduce", "report", "--work-dir", str(tmp_path)]) == 0
    out = tmp_path / "reports"
    assert str(out / "README.md") in capsys.readouterr().out.splitlines()
    assert [path.name for path in (out / "records").iterdir()] == ["ilm-1-GN-seed0.json"]
    # It is in every table with its config.
    (row, *_) = rows((out / "assoc.md").read_text(), "GN")
    assert row.startswith("| GN | 7.02 | 10.00 |")
    assert (out / "assoc-1.png").is_file()


def test_a_finished_run_replaces_its_record(tmp_path):
    begun, finished = recorded(run=40, metrics={}), recorded()
    (path,) = {paper_record.collect(found, tmp_path) for found in (begun, finished)}
    assert paper_record.read(path)["run"] == 165


def test_a_finished_record_stays_beside_an_unfinished_one(tmp_path):
    for found in (recorded(), recorded(run=1)):
        path = paper_record.collect(found, tmp_path)
    assert paper_record.read(path)["run"] == 165


@pytest.mark.parametrize("other", [{"changes": {"a": 1}}, {"seed": 1}], ids=["changed", "seed"])
def test_a_run_of_other_settings_keeps_the_record(tmp_path, other):
    paths = {paper_record.collect(found, tmp_path) for found in (recorded(), recorded(**other))}
    assert len(paths) == 2


def test_the_projects_records_are_named_as_collected(root, tmp_path):
    for path in (root / "reports" / "records").glob("*.json"):
        copy = paper_record.collect(paper_record.read(path), tmp_path / "records")
        assert (copy.name, copy.read_bytes()) == (path.name, path.read_bytes())


def test_the_projects_plots_are_those_of_its_records(root, tmp_path):
    """`python tools/write_pages.py` draws them."""
    groups = paper_report.by_cell(root / "reports" / "records")
    for key in ("study", "en-5"):
        assert paper_report.draw(published.find_table(key), groups, tmp_path)
        own = root / "docs" / "reproduction" / f"{key}.png"
        # Another matplotlib draws other pixels of the same record.
        drawn = Image.open(tmp_path / own.name).info["records"]
        assert Image.open(own).info["records"] == drawn, own


def test_a_report_is_written_again_from_its_own_records(root, tmp_path, capsys):
    for path in (root / "reports" / "records").glob("en-5-*.json"):
        paper_record.collect(paper_record.read(path), tmp_path / "records")
    words = "--work-dir", str(tmp_path / "no"), "--output", str(tmp_path)
    assert main(["reproduce", "report", *words]) == 0
    written = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert written >= {"README.md", "en.md", "en-5.png"}
