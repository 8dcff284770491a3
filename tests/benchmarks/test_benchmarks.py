"""What the benchmark compares with, what it counts, and what it writes."""

import json
import sys
import warnings

import pytest
import torch
from torch import nn

from cases import KERNELS
from ilm_plugins import NORMS, ILMGroupNorm
from ilm_plugins.ops import cpu

pytest.importorskip("seaborn", reason="needs the extra ilm_plugins[analysis]")

from benchmarks import __main__ as command
from benchmarks import layers, measure, report, unfused


@pytest.mark.parametrize("name", NORMS)
def test_unfused_layers_are_the_layers(name):
    torch.manual_seed(0)
    layer, x = NORMS[name](64), torch.randn(3, 64, 40, 40)
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    expected = layer(x)
    # Their variances are divided by one less, of 1600 values or more.
    torch.testing.assert_close(unfused.forward(layer, x), expected, rtol=2e-3, atol=3e-3)


def test_ratios_are_of_interleaved_rounds(monkeypatch):
    order, seconds = [], iter([2.0, 1.0, 20.0, 10.0])
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.interleaved(runs, 2, lambda run: run() or next(seconds))
    assert "".join(order) == "ab" * (measure.WARM_UP + 2)
    assert times == {"a": [2.0, 20.0], "b": [1.0, 10.0]}
    assert measure.ratio(*times.values()) == (2, 2, 2)
    assert measure.wall(lambda: torch.randn(10)) > 0


def test_saved_and_peak_bytes():
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    assert measure.saved_bytes(lambda x: x.square().exp(), x, nn.Identity()) == 2 * x.nbytes
    norm = nn.GroupNorm(32, 64)
    assert measure.saved_bytes(norm, x, norm) == x.nbytes + 2 * (2 * 32 * 4)
    x = torch.randn(1 << 16)
    peak = measure.peak_bytes(lambda: (x + 1) * 2, x.device)
    assert 2 * x.nbytes <= peak < 2 * x.nbytes + 100  # two maps, and the numbers
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 64, 64)
    with torch.no_grad():
        peak = measure.peak_bytes(lambda: layer(x), x.device)
    maps = 1 if KERNELS == "cpu" else 2  # plain operations make another on the way
    assert maps * x.nbytes <= peak < 1.1 * maps * x.nbytes


@pytest.mark.parametrize("name", layers.SETTINGS)
def test_settings(name, monkeypatch):
    monkeypatch.setitem(layers.SHAPES, "tiny", (2, 64, 4, 4))
    setting, device = layers.SETTINGS[name], torch.device("cpu")
    seen, wall = set(), measure.wall
    monkeypatch.setattr(
        measure,
        "wall",
        lambda run: seen.add((torch.get_num_threads(), cpu.is_built())) or wall(run),
    )
    case = layers.cases((2, 64, 4, 4), device, setting)["ILMGN"]
    assert case.x.dtype == setting.dtype == case.module.weight.dtype and case.module.training
    assert case.x.is_contiguous(memory_format=setting.layout)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (row,) = layers.rows(device, name, 2, ["tiny"], ["ILMGN"])
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2
    assert seen == {(1 if name == "one thread" else 2, cpu.is_built() and name != "without C")}
    assert row["forward"].keys() >= {"over baseline", "over copy", "copy seconds"}
    assert ("over unfused" in row["both"]) == (name == "float32")


def test_the_command_writes_tables_json_and_a_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layers, "SHAPES", dict.fromkeys(layers.SHAPES, (1, 32, 3, 3)))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    words = "--rounds 2 --shapes res5 --layers ILMGN EN SN --settings float32 --parts layers"
    words = [*words.split(), "--device", "cpu", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    command.main()
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["layer"] for row in results["layers"]["float32"]] == ["ILMGN", "EN", "SN"]
    assert (tmp_path / "benchmark.md").read_text() == capsys.readouterr().out
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_documentation_has_the_tables_of_the_record():
    for page, text in report.documented().items():
        assert "<!-- benchmark: " in text
        assert page.read_text("utf-8") == text, f"{page}: run python -m benchmarks.report"


def test_tables():
    times = {"copy seconds": 1e-3, "compiled seconds": 6e-3, "compiled baseline seconds": 3e-3}
    times |= {f"over {who}": (0.9, 0.8, 1.0) for who in ("baseline", "copy", "compiled baseline")}
    times |= {"over compiled": (0.5, 0.4, 0.6), "over unfused": (1 / 7, 1 / 8, 1 / 6)}

    def row(milliseconds):
        forward = times | {"seconds": milliseconds / 1e3}
        return {
            **{"layer": "ILMGN", "baseline": "GroupNorm", "shape name": "FPN", "shape": [2, 256]},
            **{"bytes": 10**7, "forward": forward},
            "both": {**forward, "over baseline": (1.5, 1.4, 1.6)},
            "saved bytes": {"this": 101, "baseline": 100},
            "peak bytes": {"this": 150, "baseline": 100},
        }

    machine = {"device": "cpu", "processor": "P", "kernels for": "avx2", "threads": 2}
    results = {"machine": machine | {"torch": "2", "commit": "abc"}, "rounds": 9}
    results["layers"] = {"float32": [row(2), row(8)], "without C": [row(2)]}
    results |= {"compiled": [row(2)], "models": [{"model": "M", "missing": "needs detectron2"}]}
    found = report.everything(results)
    assert found.startswith("P, kernels for avx2, 2 threads")
    assert "medians of 9 interleaved rounds, at commit abc." in found
    # Two maps of 10 MB in 2 and in 8 ms, and five.
    assert "| ILMGN / GroupNorm | 0.90 (5.0) | 1.50 (12.5) | 7.0 x | +1.0 % |" in found
    assert "| copying x | (20.0) | (20.0) |  |  |" in found
    assert "| 8.00 | 0.90 (0.80-1.00) | 0.90 (0.80-1.00) | 2.5 | 20.0 | 8.00 |" in found
    assert "| ILMGN / GroupNorm | 0.90 | 1.50 | 1.50 |" in found
    assert "| forward | 0.50 (0.40-0.60) | 0.90 (0.80-1.00) | 0.90 (0.80-1.00) | 2.00 |" in found
    assert "needs detectron2" in found
    # On CUDA, the tables have the times of the device.
    graph = {**row(2), "forward, graph": times | {"seconds": 1, "over baseline": (0.3, 0.3, 0.3)}}
    assert "0.30 (0.30-0.30)" in report.maps({"layers": {"float32": [graph]}})
