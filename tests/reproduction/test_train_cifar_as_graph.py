"""CIFAR as a CUDA graph, on the CPU: the same steps, without a graph."""

import importlib.util
import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

models = pytest.importorskip("torchvision.models", reason="needs torchvision")


@pytest.fixture
def tool(root, monkeypatch):
    path = root / "reproduction" / "train_cifar_as_graph.py"
    spec = importlib.util.spec_from_file_location("train_cifar_as_graph", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BATCH", 4)
    return module


def test_a_batch_has_crops_and_flips_of_padded_images(tool):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labels = torch.arange(8)
    batches = tool.Batches(torch.from_numpy(images), labels, 2, 0)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    assert batches.steps == 2
    for rows in batches.rows.tolist():
        expected = []
        for image, top, left, flipped in rows:
            crop = padded[image, top : top + 32, left : left + 32]
            expected.append(crop[:, ::-1] if flipped else crop)
        x, found = batches.next()
        assert found.tolist() == [image for image, *_ in rows]
        torch.testing.assert_close(x, tool.normalized(torch.from_numpy(np.stack(expected))))
    epochs = batches.rows[:, :, 0].reshape(2, 8)
    assert epochs.sort(1).values.tolist() == [[*range(8)]] * 2
    assert {*batches.rows[:, :, 1:3].flatten().tolist()} <= {*range(9)}


def test_each_norm_has_its_errors_and_says_what_it_is(tool, tmp_path, monkeypatch):
    """Of a smaller network and images: processors without bfloat16 are slow in it."""
    monkeypatch.setattr(tool, "resnet50", models.resnet18)
    monkeypatch.setattr(tool, "SIZE", 8)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        files = []
        for _ in range(8):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "JPEG")
            files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        offsets = np.cumsum([0, *map(len, files)])
        arrays = {"jpeg": np.concatenate(files), "offsets": offsets, "labels": np.arange(8)}
        np.savez(tmp_path / f"{split}.npz", **arrays)
    options = ["--data", str(tmp_path), "--output", str(tmp_path), "--epochs", "2", "--images", "4"]
    monkeypatch.setattr(sys, "argv", ["train_cifar_as_graph.py", "LN", "ILMLN", *options])
    tool.main()
    for norm in ("LN", "ILMLN"):
        result = json.loads((tmp_path / f"{norm}-0.json").read_text())
        assert "not the paper's recipe" in result["note"]
        (last,) = result["curve"]
        assert last["epochs"] == 2
        assert math.isfinite(last["loss"])
        assert last["error"] in (0, 25, 50, 75, 100)
