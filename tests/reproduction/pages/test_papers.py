"""The papers' tables and plots, from made-up results."""

import pytest

from helpers.made_up_results import run
from ilm_plugins.reports.interval import Difference
from reproduction.pages import papers, plots
from reproduction.pages.results import Run, load
from reproduction.papers import published

WHERE = {"commit": "0123456789ab", "processor": "CPU, Xeon", "seconds": 3600.0}
SHORT = "shortened: 9 of 165 epochs"


def made(cell, values, seed=0, trained="165 of 165 epochs", results=None, **options):
    """Results with a run of a row, by default of the full recipe."""
    table, name = cell.split(" ", 1)
    made = {} if results is None else results
    return run(made, table, name, seed, values, trained=trained, **WHERE, **options)


def rows(results, table, begins):
    lines = papers.table_lines(published.find_table(table), results)
    return [line for line in lines if line.removeprefix("| ").startswith(begins)]


def test_rows_of_one_experiment_share_the_first_rows_runs():
    cell = published.find_cell("ilm-4 ILM+GN, batch 64")
    assert papers.canonical(cell).id == "ilm-1 ILM+GN"


def test_only_a_full_recipe_stands_beside_the_papers_figure():
    results = made("en-5 ResNet20/EN", {"top-1": 92.0})
    short = {"results": results, "run": SHORT, "trained": "9 of 165 epochs"}
    made("en-5 ResNet20/BN", {"top-1": 90.0}, **short)
    assert rows(results, "en-5", "ResNet20/") == [
        f"| ResNet20/BN | {SHORT} |  | 90.00 |  | 9 of 165 epochs |",
        "| ResNet20/EN | full recipe | 92.41 | 92.00 | -0.41 | 165 of 165 epochs |",
    ]
    alike = "All runs: seeds 0; device CPU, Xeon; hours 1.00; commit 0123456789ab."
    assert rows(results, "en-5", "top-1") == [f"top-1 (%, higher is better). {alike}"]
    (counted,) = [line for line in papers.rows_run(["en"], results) if line.startswith("| en-5")]
    assert counted.endswith("165 epochs | 1 of 18, 1 shortened or otherwise changed |")


def test_rows_tables_and_figures_that_were_not_run_are_one_line():
    results = made("en-5 ResNet20/EN", {"top-1": 90.0})
    assert not rows(results, "en-5", "ResNet20/BN")
    (line,) = rows(results, "en-5", "Rows not run")
    assert line.startswith("Rows not run: 17 of 18. `python -m reproduction list en-5`")
    counted, line = papers.rows_run(["en"], results)[-3::2]
    assert counted.startswith("| en-5")
    listed = line.removeprefix("Not run: of Exemplar Normalization ").removesuffix(".").split(", ")
    # Figure 3 shows Table 5; the last two are drawings.
    others = published.tables().keys() - {"en-5", "en-fig3", "en-fig2", "en-fig1b"}
    assert sorted(listed) == sorted(key for key in others if key.startswith("en-"))


def test_seeds_of_one_setting_are_a_mean_with_its_deviation():
    results = {}
    for seed in range(3):
        made("en-5 ResNet20/EN", {"top-1": 90.0 + seed}, seed, results=results)
    (row,) = rows(results, "en-5", "ResNet20/EN")
    assert row.endswith("| 91.00 ± 1.00 | -1.41 |")


def test_runs_of_several_recipes_are_no_mean():
    results = made("en-5 ResNet20/EN", {"top-1": 90.0})
    jpeg = "165 of 165 epochs, on re-encoded JPEG"
    made("en-5 ResNet20/EN", {"top-1": 80.0}, 4, jpeg, results=results)
    with pytest.raises(ValueError, match="en-5 ResNet20/EN has runs of several recipes"):
        rows(results, "en-5", "ResNet20/EN")


def test_a_trivial_prediction_has_a_row_to_compare():
    results = made("ilm-6 IN / IN", {"RMSE": 60.0, "L1": 47.0})
    run(results, "ilm-6", "IN / IN", 0, {"L1": 45.0}, "mean training image")
    (row,) = rows(results, "ilm-6", "mean training")
    assert "to compare | - | - | - | - | 45.00 |" in row


def test_many_figures_of_the_paper_are_a_row():
    results = made("ilm-5 GN, batch 16", {"box AP": 40.0, "box AP50": 60.0, "mask AP": 35.0})
    paper, ours = rows(results, "ilm-5", "GN, batch 16")
    assert paper.startswith("| GN, batch 16, paper | 39.10 | 60.33 |")
    assert ours.startswith("| GN, batch 16, ours | 40.00 | 60.00 | - | 35.00 |")


def box_head(norm, figures):
    """Results of the study's detectors, seed by seed."""
    results = {}
    for name, values in {norm: figures, "GN": (51.0, 60.0, 54.0)}.items():
        for seed, ap in enumerate(values):
            made(f"study-box BCCD box head/{name}", {"box AP": ap}, seed, results=results)
    return results


def test_a_run_at_chance_did_not_learn():
    results = made("ilm-7 (relu, relu)", {"error": 89.5})
    (row,) = rows(results, "ilm-7", "(relu, relu)")
    assert row.startswith("| (relu, relu) | did not converge | did not learn |")


def test_results_and_differences_are_of_the_seeds_that_learned():
    """A mean of runs at 4 and at 50 describes neither."""
    (row,) = rows(box_head("AN", (50.0, 4.0, 52.0)), "study-box", "BCCD box head/AN")
    assert "| 2 of 3 learned: 51.00 ± 1.41 / - |" in row
    # Differences -1 and -2: -1.5 ± 12.706 * .5.
    assert "| -1.50 [-7.85, +4.85] /" in row


def test_a_plot_of_a_training_has_the_means_over_seeds(monkeypatch):
    points = [{"epochs": epoch, "loss": loss} for epoch, loss in ((1, 2.0), (2, 1.0), (2, 1.5))]
    monkeypatch.setattr(plots, "curves", lambda table: {"ResNet20/BN": points})
    (axis,) = plots.training(published.find_table("en-5")).axes
    (line,) = axis.lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 1.25]]


def difference(mean: float, low: float, high: float) -> Difference:
    return Difference(5, mean, 1.0, low, high, 0.5)


def test_plots_of_differences_have_the_ends_of_intervals():
    (axis,) = plots.differences({"BCCD": [("EN - BN", difference(1.0, 0.5, 2.0))]}).axes
    (interval,) = axis.containers[0].lines[2]
    assert interval.get_segments()[0].tolist() == [[0.5, 0], [2, 0]]


def test_plots_of_differences_are_cut_off_at_wide_intervals():
    (axis,) = plots.differences({"BCCD": [("AN - GN", difference(-9.0, -300.0, 12.0))]}).axes
    assert axis.get_xlim()[0] == -plots.LIMIT
    assert 12 < axis.get_xlim()[1] < plots.LIMIT


def test_results_are_read_line_by_line(tmp_path):
    (tmp_path / "a.csv").write_text(
        "comparison,norm,seed,test,metric,value,run,seconds,commit\n"
        "x,EN,1,test,mIoU,40.5,,60,abc\nx,EN,1,dusk,mIoU,20,,,abc\nx,EN,2,test,mIoU,,,60,abc\n"
    )
    one, two = load(tmp_path)["x"]["EN"]
    assert one == Run(
        1, seconds=60.0, commit="abc", values={"test": {"mIoU": 40.5}, "dusk": {"mIoU": 20.0}}
    )
    assert not two.values


def test_a_plot_as_svg_has_the_same_bytes_again_and_colours_for_dark_mode(tmp_path):
    figure = plots.differences({"BCCD": [("EN - BN", difference(1.0, 0.5, 2.0))]})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plots.save_svg(figure, tmp_path / name / "plot.svg")
    text = (tmp_path / "one" / "plot.svg").read_text("utf-8")
    assert text == (tmp_path / "two" / "plot.svg").read_text("utf-8")
    assert 'style="fill: #ffffff"' in text
    dark = text.partition("@media (prefers-color-scheme: dark)")[2]
    assert '[style*="fill: #ffffff"] { fill: #0d1117 !important }' in dark
