"""What the benchmark compares with, what it counts, and what it writes."""

import json
import sys
import warnings

import pytest
import torch
from torch import nn

import fresh
from benchmarks import layers, measure, report, training, unfused
from cases import KERNELS
from feature_maps import convolutions
from ilm_plugins import NORMS, ILMGroupNorm
from ilm_plugins.ops import cpu


@pytest.mark.parametrize("name", NORMS)
def test_unfused_layers_are_the_layers(name):
    torch.manual_seed(0)
    layer, x = NORMS[name](64), torch.randn(3, 64, 40, 40)
    for parameter in layer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    expected = layer(x)
    # Their variances are divided by one less, of 1600 values or more.
    torch.testing.assert_close(unfused.forward(layer, x), expected, rtol=2e-3, atol=3e-3)


def test_ratios_are_of_times_in_the_same_round():
    assert measure.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == (2, 2, 2)


def test_rounds_are_interleaved():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.interleaved(runs, 2, lambda run: run() or 1.0)
    assert "".join(order) == "ab" * measure.WARM_UP + "abab"
    assert times["a"] == [1.0, 1.0]


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
    maps = 1 if KERNELS == "cpu" else 2  # plain operations make another on the way
    assert maps * x.nbytes <= peak < 1.1 * maps * x.nbytes


@pytest.fixture
def threads():
    """Two threads of torch, where tests have one otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", layers.SETTINGS)
def test_settings(name, monkeypatch, threads):
    monkeypatch.setitem(layers.SHAPES, "tiny", (2, 64, 4, 4))
    setting, device = layers.SETTINGS[name], torch.device("cpu")
    seen, wall = set(), measure.wall

    def watched(run):
        seen.add((torch.get_num_threads(), cpu.is_built()))
        return wall(run)

    monkeypatch.setattr(measure, "wall", watched)
    case = layers.cases((2, 64, 4, 4), device, setting)["ILMGN"]
    assert case.x.dtype == setting.dtype == case.module.weight.dtype
    assert case.x.is_contiguous(memory_format=setting.layout)
    assert case.module.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(layers.rows(device, name, 2, ["tiny"]))
    assert {row["layer"] for row in rows} == set(NORMS)
    built = cpu.is_built() and name != "without C"
    assert seen == {(1 if name == "one thread" else threads, built)}
    assert torch.get_num_threads() == threads
    for row in rows:
        assert row["bytes"] == case.x.nbytes
        assert row["forward"].keys() >= {"over baseline", "over copy", "copy seconds"}
        assert ("over unfused" in row["both"]) == (name == "float32")


@pytest.mark.wide
def test_tables_json_and_plot(root, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which detectron2 brings")
    options = ["--rounds", "2", "--shapes", "res5", "--parts", "layers", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *options]
    process = fresh.run(command, cwd=root)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert tuple(results["layers"]) == layers.SETTINGS_OF_CPU
    assert results["machine"]["threads"] == 2
    assert (tmp_path / "benchmark.md").read_text() == process.stdout
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_documentation_has_the_tables_of_the_record():
    for page, text in report.documented(*report.records()).items():
        assert "<!-- benchmark: " in text
        assert page.read_text("utf-8") == text, f"{page}: run python -m benchmarks.report"


def test_the_documented_plot_is_of_the_record(root):
    pytest.importorskip("matplotlib", reason="needs matplotlib, which detectron2 brings")
    from PIL import Image

    from ilm_plugins.reproduction import pictures

    record = json.loads(report.RECORD.read_text())
    plotted = Image.open(root / "docs" / "benchmark.png").info["records"]
    assert plotted == pictures.fingerprint(record["layers"]["float32"])


def row_of(layer, milliseconds):
    timing = {
        "seconds": milliseconds / 1e3,
        "copy seconds": 1e-3,
        "compiled seconds": 6e-3,
        "compiled baseline seconds": 3e-3,
        **{f"over {who}": (0.9, 0.8, 1.0) for who in ("baseline", "copy")},
        "over compiled": (0.5, 0.4, 0.6),
        "over compiled baseline": (0.7, 0.6, 0.8),
        "over unfused": (1 / 7, 1 / 8, 1 / 6),
    }
    return {
        "layer": layer,
        "baseline": "GroupNorm",
        "shape name": "FPN",
        "shape": [2, 256, 200, 304],
        "bytes": 10**7,
        "forward": timing,
        "both": {**timing, "over baseline": (1.5, 1.4, 1.6)},
        "saved bytes": {"this": 101, "baseline": 100},
        "peak bytes": {"this": 150, "baseline": 100},
    }


MACHINE = {
    "device": "cpu",
    "processor": "P",
    "kernels for": "avx2",
    "threads": 2,
    "torch": "2",
    "commit": "abc",
}


def test_tables():
    rows = [row_of("ILMGN", 2), row_of("ILMGN", 8)]
    results = {
        "machine": MACHINE,
        "rounds": 9,
        "layers": {"float32": rows, "without C": rows},
        "compiled": rows[:1],
        "models": [{"model": "Mask R-CNN", "missing": "needs detectron2"}],
        "training": {},
    }
    table = report.everything(results)
    assert table.startswith("P, kernels for avx2, 2 threads")
    assert "medians of 9 interleaved rounds, at commit abc." in table
    # Two maps of 10 MB in 2 and in 8 ms, and five.
    assert "| ILMGN / GroupNorm | 0.90 (5.0) | 1.50 (12.5) | 7.0 x | +1.0 % |" in table
    assert "| copying x | (20.0) | (20.0) |  |  |" in table
    assert "| 8.00 | 0.90 (0.80-1.00) | 0.90 (0.80-1.00) | 2.5 | 20.0 | 8.00 |" in table
    assert "| ILMGN / GroupNorm | 0.90 | 1.50 | 1.50 |" in table
    assert "| forward | 0.50 (0.40-0.60) | 0.90 (0.80-1.00) | 0.70 (0.60-0.80) | 2.00 |" in table
    assert "| Mask R-CNN | needs detectron2 |" in table


def test_on_cuda_the_tables_have_the_times_of_the_device():
    row = row_of("ILMGN", 2)
    row["forward, graph"] = {**row["forward"], "over baseline": (0.3, 0.3, 0.3)}
    assert "0.30 (0.30-0.30)" in report.maps({"layers": {"float32": [row]}}, "float32")


def test_too_few_rounds_are_told_in_one_line(root):
    command = [sys.executable, "-m", "benchmarks", "--rounds", "1"]
    process = fresh.run(command, cwd=root)
    assert process.returncode == 2
    assert process.stderr.endswith("error: --rounds 1: a spread needs two at least\n")


@pytest.mark.parametrize("mixed", [False, True])
def test_training_steps(mixed, monkeypatch):
    pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")
    config, _ = training.STEPS["ResNet-20, EN"]
    monkeypatch.setattr(training, "STEPS", {"tiny": (config, (2, 3, 8, 8))})
    monkeypatch.setattr(training, "has_bfloat16", lambda device: mixed)
    chosen = {name: o for name, o in training.OPTIONS.items() if mixed or not o.amp}
    with convolutions() as found:
        (row,) = training.rows(torch.device("cpu"), 2)
    # Each with and without channels last and mixed precision.
    assert set(found) == {(last, amp) for last, _, amp in chosen.values()}
    assert row["seconds"].keys() == row["over plain"].keys() == chosen.keys()
    results = {"training": {"machine": MACHINE, "rounds": 2, "rows": [row]}}
    table = report.training(results)
    assert "| tiny, 2x3x8x8 | " in table and ("mixed" in table) == mixed


def test_a_part_that_was_not_measured_is_kept_in_the_record():
    record = {"machine": 1, "layers": {"float32": [1]}, "compiled": [], "models": [2]}
    record["training"] = {"rows": [3]}
    new = {"machine": 2, "layers": {}, "compiled": [], "models": [], "training": {"rows": [4]}}
    assert report.merged(record, new) == {**record, "training": {"rows": [4]}}
    new |= {"layers": {"float32": [5]}, "training": {}}
    with pytest.raises(SystemExit, match="the results lack models, which the record has"):
        report.merged(record, new)
    new["models"] = [6]
    assert report.merged(record, new) == {**new, "training": {"rows": [3]}}
