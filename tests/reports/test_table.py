"""Tables in Markdown."""

from ilm_plugins.reports.table import markdown, of_dicts


def test_a_bar_in_a_cell_ends_no_column():
    assert markdown(["a"], [["x|y"]]) == ["| a |", "|---|", r"| x\|y |"]


def test_a_cell_that_a_row_lacks_is_empty():
    assert of_dicts([{"a": "1"}, {"b": "2"}])[2:] == ["| 1 |  |", "|  | 2 |"]


def test_aligned_columns_have_one_width():
    lines = of_dicts(
        [{"norm": "GN", "p": ""}, {"norm": "ILMGN(eps=1)", "p": "0.005"}], aligned=True
    )
    assert len({*map(len, lines)}) == 1
    assert lines[1] == "|:-------------|:------|"
