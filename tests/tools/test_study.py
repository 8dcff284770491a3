"""The commands of the study's tables."""

import pytest

from ilm_plugins.experiments.papers import published
from pages import study


def test_a_table_of_norms_names_the_comparison_that_trains_it():
    assert study.comparison(published.find_table("study-box"), [0, 1]) == (
        "python -m ilm_plugins compare ilm_plugins://detectron2/bccd/faster_rcnn_R_18_FPN.yaml "
        "as-is ILMGN AN --at MODEL.ROI_BOX_HEAD.NORM --seeds 0 1 --output output/compare/study-box"
    )


@pytest.mark.parametrize("table", ["study-tune", "study-pix", "en-5", "en-fig4"])
def test_a_table_that_is_no_comparison_names_none(table):
    assert study.comparison(published.find_table(table), [0]) == ""
