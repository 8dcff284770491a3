"""What the benchmark compares with, what it counts, and what it writes."""

import io
import json
import sys
import warnings
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

from ilm_plugins import ILMGroupNorm
from ilm_plugins.ops import cpu

pytest.importorskip("seaborn", reason="needs seaborn: requirements/test.txt")

from benchmarks import __main__ as command
from benchmarks import layers, measure, report


def test_ratios_are_of_interleaved_rounds(monkeypatch):
    order, seconds = [], iter([2.0, 1.0, 20.0, 10.0])
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.interleaved(runs, 2, lambda run: run() or next(seconds))
    assert "".join(order) == "ab" * (measure.WARM_UP + 2)
    assert times == {"a": [2.0, 20.0], "b": [1.0, 10.0]}
    assert measure.ratio(*times.values()) == (2, 2, 2)
    assert measure.wall(lambda: torch.randn(10)) > 0


def test_saved_bytes_are_of_all_tensors_kept_for_the_backward_pass():
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    assert measure.saved_bytes(nn.Identity(), lambda x: x.square().exp(), x) == 2 * x.nbytes


def test_saved_bytes_leave_out_parameters():
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    norm = nn.GroupNorm(32, 64)
    assert measure.saved_bytes(norm, norm, x) == x.nbytes + 2 * (2 * 32 * 4)


def test_peak_bytes_are_of_all_tensors_alive_at_once():
    x = torch.randn(1 << 16)
    peak = measure.peak_bytes(lambda: (x + 1) * 2, x.device)
    assert 2 * x.nbytes <= peak < 2 * x.nbytes + 100  # two maps, and the numbers


@pytest.mark.parametrize("name", layers.SETTINGS_OF_CPU)
def test_settings(name, monkeypatch):
    seen, threads = set(), torch.get_num_threads

    def wall(run):
        x = run.__self__.x
        last = x.is_contiguous(memory_format=torch.channels_last)
        seen.add((run.__name__, threads(), cpu.is_built(), last, x.dtype))
        return 3.0 ** isinstance(run.__self__.module, ILMGroupNorm) * (1 + (run.__name__ == "both"))

    monkeypatch.setattr(measure, "wall", wall)
    monkeypatch.setitem(layers.SHAPES, "tiny", (2, 64, 4, 4))
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (row,) = layers.rows(torch.device("cpu"), name, 2, ["tiny"], ["ILMGN"])
    after = threads()
    torch.set_num_threads(1)
    assert after == 2
    of = 1 if name == "one thread" else 2, cpu.is_built() and name != "without C"
    of = *of, name == "channels last", torch.bfloat16 if name == "bfloat16" else torch.float32
    assert seen == {(which, *of) for which in ("forward", "both", "copy")}
    assert row["forward"]["over copy"] == (1, 1, 1)
    assert row["both"]["over baseline"] == (3, 3, 3)
    assert ("over unfused" in row["both"]) == (name == "float32")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that the command has written, and what it has printed."""
    folder, printed = tmp_path_factory.mktemp("benchmark"), io.StringIO()
    words = "--rounds 2 --shapes res5 --layers ILMGN EN SN --settings float32 --parts layers"
    words = [*words.split(), "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(layers, "SHAPES", dict.fromkeys(layers.SHAPES, (1, 32, 3, 3)))
        patch.setattr(torch, "set_num_threads", lambda number: None)
        patch.setattr(sys, "argv", ["benchmarks", *words])
        command.main()
    return folder, printed.getvalue()


def test_the_command_writes_its_results(written):
    results = json.loads((written[0] / "benchmark.json").read_text())
    assert [row["layer"] for row in results["layers"]["float32"]] == ["ILMGN", "EN", "SN"]


def test_the_command_prints_the_tables_that_it_writes(written):
    folder, printed = written
    assert (folder / "benchmark.md").read_text() == printed


def test_results_become_the_record_and_its_tables_are_written_into_the_pages(monkeypatch, tmp_path):
    measured, page = report.RECORD, tmp_path / "page.md"
    page.write_text("<!-- benchmark: short -->\nold\n<!-- end -->\n")
    files = {"RECORD": tmp_path / "record.json", "CHART": tmp_path / "chart.png", "PAGES": (page,)}
    for name, value in files.items():
        monkeypatch.setattr(report, name, value)
    report.main(measured)
    assert report.RECORD.read_text() == measured.read_text()
    assert report.short(json.loads(measured.read_text())) in page.read_text()
    assert report.CHART.exists()


def test_documentation_has_the_tables_of_the_record():
    for page, text in report.documented().items():
        assert "<!-- benchmark: " in text
        assert page.read_text("utf-8") == text, f"{page}: run python -m benchmarks.report"
