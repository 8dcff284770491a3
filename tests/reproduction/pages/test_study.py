"""The commands of the study's tables."""

import pytest

from helpers.made_up_results import run
from reproduction.pages import study
from reproduction.pages.questions import questions
from reproduction.papers import published


def test_a_table_of_norms_names_the_comparison_that_trains_it():
    assert study.comparison(published.find_table("study-box"), [0, 1]) == (
        "python -m ilm_plugins compare "
        "reproduction/configs/detectron2/bccd/faster_rcnn_R_18_FPN.yaml as-is ILMGN AN "
        "--at MODEL.ROI_BOX_HEAD.NORM --import reproduction.data.bccd --seeds 0 1 "
        "--output output/compare/study-box"
    )


@pytest.mark.parametrize("table", ["study-tune", "study-pix", "en-5", "en-fig4"])
def test_a_table_that_is_no_comparison_names_none(table):
    assert study.comparison(published.find_table(table), [0]) == ""


def test_the_summary_counts_significance_within_each_group_and_over_all():
    """p = .034 of a planned test is below .05, unless another difference is counted with it."""
    made, values = {}, {"BN": [40.0, 41.0, 42.0], "EN": [41.0, 42.2, 42.6]}
    for question in questions():
        for norm in {norm for pair in question["pairs"] for norm in pair}:
            for seed, value in enumerate(values["BN"]):
                values_of = {question["metric"]: value}
                run(made, question["comparison"], norm, seed, values_of, question["test"])
    for norm, ours in values.items():
        for seed, value in enumerate(ours):
            run(made, "daylight", norm, seed, {"mIoU": value})
            other = value if norm == "BN" else [40.0, 43.0, 40.0][seed]
            run(made, "study-seg", f"CamVid/{norm}", seed, {"mIoU": other})
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in study.summary(made))
    (row,) = (row for row in rows if row[0] == "EN - BN")
    assert row == ["EN - BN", "6", "+0.0 to +0.9", "1", "0", "1", "0"]
