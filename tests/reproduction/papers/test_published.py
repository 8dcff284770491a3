"""The list of the papers' tables: complete, and in agreement with records."""

import re
from pathlib import Path

import pytest

from ilm_plugins.errors import UserError
from reproduction.__main__ import main
from reproduction.pages.results import load
from reproduction.papers import computed, published

ROOT = Path(__file__).parents[3]
TABLES = published.tables()
CELLS = published.cells()
RESULTS = load()
COMPUTED = {
    cell.id: kept[0].figures
    for cell in CELLS
    if TABLES[cell.table].compute and (kept := RESULTS.get(cell.table, {}).get(cell.name))
}
#: Rows that differ from others in the depth or the kind of their model alone.
ALIKE = re.compile(r"en-3-cost |ShuffleNet|ResNet-(34|101|152)\b")


def test_every_rows_figures_can_be_had():
    for cell in CELLS:
        table = TABLES[cell.table]
        assert len(cell.paper) == len(table.measures)
        if cell.config is None:
            assert cell.of
            assert table.compute
            assert cell.id in COMPUTED
        else:
            assert cell.of is None
            assert all(published.measures()[m].metrics for m in table.measures)
            assert table.note, "no word of what is assumed"
        for other in filter(None, (cell.tests, cell.starts_from)):
            assert published.find_cell(other).config


@pytest.mark.parametrize(
    "metrics, figure", [({"bbox/AP": 39.1}, 39.1), ({"bbox/AP": 0.0}, 0.0)], ids=["some", "zero"]
)
def test_a_measure_is_read_from_detectron2s_metrics(metrics, figure):
    assert published.measures()["box AP"].read(metrics) == figure


def test_a_measure_in_percent_is_read_from_mmdets_fraction():
    found = published.measures()["box AP"].read({"coco/bbox_mAP": 0.391})
    assert found == pytest.approx(39.1)


def test_a_row_is_found_by_its_name():
    assert [cell.id for cell in published.find("en-5", "ResNet20/EN")] == ["en-5 ResNet20/EN"]


def test_a_figure_stands_for_the_tables_that_it_shows():
    assert {cell.table for cell in published.find("en-fig3")} == {"en-2", "en-3", "en-5"}


@pytest.mark.parametrize(
    "names", [("en-55",), ("en-5", "ResNt20/EN"), ("en-fig2",), ("en-fig4",)], ids=str
)
def test_what_cannot_be_run_is_named(names):
    with pytest.raises(UserError, match=f"{names[-1]}.*(list|it is a drawing|; run )"):
        published.find(*names)


def test_the_list_of_tables_fits_a_screen(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_the_list_names_all_tables_with_rows(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert {cell.table for cell in CELLS if f"\n{cell.table} " not in printed} == set()


def test_the_list_of_a_table_has_figure_and_config_of_each_row(capsys):
    assert main(["list", "en-5"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("ResNet20/EN")]
    assert "92.41" in line
    assert line.endswith("reproduction/configs/mmpretrain/en/resnet20_cifar10.py 'EN(reduction=8)'")


def test_the_list_of_a_table_has_the_norm_of_each_row(capsys):
    assert main(["list", "study-seg"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("CamVid/EN")]
    assert line.endswith("ilm_plugins://mmseg/camvid/fcn_r18-d8.py 'EN(reduction=16)'")


def marks(name):
    """To count the operations of a model takes seconds."""
    if ALIKE.search(name):
        return pytest.mark.long
    return pytest.mark.wide if "-cost " in name else ()


@pytest.mark.parametrize("name", [pytest.param(k, marks=marks(k)) for k in COMPUTED])
def test_kept_figures_are_those_computed_now(name):
    for package in ("torchvision", "fvcore", *["mmpretrain"] * ("cost" in name)):
        pytest.importorskip(package, reason=f"needs {package}")
    kept = COMPUTED[name]
    assert computed.compute(published.find_cell(name)) == pytest.approx(kept, rel=1e-5)


def test_a_row_is_computed_by_the_command(tmp_path, capsys):
    assert main(["run", "en-1", "GN", "--work-dir", str(tmp_path)]) == 0
    assert "parameters of a layer 128 (paper" in capsys.readouterr().out
