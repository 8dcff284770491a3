"""What the benchmark compares with, what it counts, and what it writes."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks import layers, measure, report, unfused
from ilm_plugins import NORMS, ILMGroupNorm


@pytest.mark.parametrize("name", NORMS)
def test_unfused_layers_are_the_layers(name):
    torch.manual_seed(0)
    layer, x = NORMS[name](64), torch.randn(3, 64, 40, 40)
    expected = layer(x)
    # Their variances are divided by one less, of 1600 values or more.
    torch.testing.assert_close(unfused.forward(layer, x), expected, rtol=2e-3, atol=3e-3)


def test_ratios_are_of_times_in_the_same_round():
    ours, theirs = measure.Times((2.0, 20.0, 200.0)), measure.Times((1.0, 10.0, 100.0))
    assert ours.median == 20
    assert ours.over(theirs) == (2, 2, 2)


def test_rounds_are_interleaved():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.interleaved(runs, 2, lambda run: run() or 1.0)
    assert "".join(order) == "ab" * measure.WARM_UP + "abab"
    assert times["a"].seconds == (1.0, 1.0)


def test_saved_bytes():
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    assert measure.saved_bytes(torch.relu, x, nn.Identity()) == x.nbytes
    assert measure.saved_bytes(lambda x: x.square().exp(), x, nn.Identity()) == 2 * x.nbytes
    norm = nn.GroupNorm(32, 64)
    assert measure.saved_bytes(norm, x, norm) == x.nbytes + 2 * (2 * 32 * 4)


def test_peak_bytes():
    x = torch.randn(1 << 16)
    peak = measure.peak_bytes(lambda: (x + 1) * 2, x.device)
    assert 2 * x.nbytes <= peak < 2 * x.nbytes + 100  # two maps, and the numbers
    layer, x = ILMGroupNorm(64), torch.randn(2, 64, 64, 64)
    with torch.no_grad():
        peak = measure.peak_bytes(lambda: layer(x), x.device)
    assert x.nbytes <= peak < 1.1 * x.nbytes


@pytest.mark.wide
def test_table_json_and_plot(root, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which detectron2 brings")
    options = ["--rounds", "2", "--shapes", "res5", "--no-models", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *options]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert {row["layer"] for row in results["layers"]} == set(NORMS)
    for row in results["layers"]:
        assert row["shape"] == list(layers.SHAPES["res5"])
        for pass_name in ("forward", "both"):
            assert row[pass_name]["over baseline"][0] > 0
    table = (tmp_path / "benchmark.md").read_text()
    assert table.strip() in process.stdout and "| on CUDA | not measured" in table
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_table_of_a_gpu():
    faster = {"over fused": (0.5, 0.4, 0.6)}
    timing = {
        "seconds": 1e-3,
        "over baseline": (0.9, 0.8, 1.0),
        "over unfused": (1 / 7, 1 / 8, 1 / 6),
    }
    row = {
        "layer": "ILMGN",
        "baseline": "GroupNorm",
        "shape name": "FPN",
        "shape": (2, 256, 200, 304),
        "saved bytes": {"this": 101, "baseline": 100},
        "peak bytes": {"this": 101, "baseline": 100},
        "forward": timing,
        "both": {**timing, "over baseline": (1.5, 1.4, 1.6)},
        "forward, graph": {**timing, "over copy": (1.6, 1.5, 1.7)},
        "both, graph": timing,
    }
    results = {
        "device": "NVIDIA",
        "torch": "2",
        "threads": 2,
        "layout": "contiguous",
        "rounds": 9,
        "layers": [row],
        "means": report.means([row]),
        "compiled": [{"layer": "EN", "shape name": "FPN", "forward": faster, "both": faster}],
        "models": [{"model": "Mask R-CNN", "missing": "needs detectron2"}],
    }
    table = report.table(results)
    assert "| EN | FPN | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) |" in table
    assert "1.50 (1.40-1.60) | 94% |" in table  # three passes in 1.6 times the time of two
    assert "| ILMGN / GroupNorm | 0.90 | 0.90 (aim 1.0) | 7.0 |" in table
    assert "not measured" not in table


def test_too_few_rounds_are_told_in_one_line(root):
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1"]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.endswith("error: --rounds 1: a spread needs two at least\n")
