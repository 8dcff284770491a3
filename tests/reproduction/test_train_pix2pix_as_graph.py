"""Pix2pix as a CUDA graph, on the CPU: the same steps, without a graph."""

import json
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine", reason="needs OpenMMLab: make install-openmmlab")

from ilm_plugins.pix2pix.pairs import jitter


@pytest.fixture(scope="module")
def tool(root):
    return runpy.run_path(str(root / "reproduction" / "train_pix2pix_as_graph.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pairs of noise, 64 x 32 pixels."""
    path, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for i in range(4):
        pixels = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return path


def test_crops_on_the_device_are_those_of_the_dataset(tool, folder):
    options = {"direction": "right-to-left", "size": 32, "load_size": 36, "flip": 0.5}
    pairs = tool["Pairs"](options, str(folder), 3, 0, torch.device("cpu"))
    rows = pairs.rows.tolist()
    assert {row[3] for row in rows} == {0, 1}
    assert [sorted(row[0] for row in rows[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    for image, top, left, flipped in rows:

        class Fixed:
            integers = staticmethod(lambda *args, **options: (top, left))  # noqa: B023
            random = staticmethod(lambda: 1 - flipped)  # noqa: B023

        photo = Image.open(folder / f"{image}.png")
        halves = photo.crop((32, 0, 64, 32)), photo.crop((0, 0, 32, 32))
        expected = np.stack(jitter(halves, 32, 36, 0.5, Fixed()))
        np.testing.assert_array_equal(pairs.next().permute(0, 2, 3, 1).numpy(), expected)


def test_each_config_has_its_losses_and_metrics(tool, folder, tmp_path, root, monkeypatch):
    names = []
    for norm, options in {"IN": "", "ILMIN": ", key_group_size=1"}.items():
        config = tmp_path / f"{norm}.py"
        config.write_text(f"""
_base_ = {str(root / "reproduction" / "configs" / "pix2pix" / "facades128.py")!r}
train_dataloader = dict(dataset=dict(images=(0, 3), size=32, load_size=36))
test_dataloader = dict(dataset=dict(images=(3, 4), size=32, mean_of=dict(images=(0, 3))))
cfg = dict(_delete_=True, type={norm!r}{options})
model = dict(
    generator=dict(size=32, width=4, norm_cfg=cfg), discriminator=dict(width=4, norm_cfg=cfg)
)
""")
        names.append(str(config))
    options = ["--data", str(folder), "--output", str(tmp_path), "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["train_pix2pix_as_graph.py", *names, *options])
    tool["main"]()
    for norm in ("IN", "ILMIN"):
        result = json.loads((tmp_path / norm / "result.json").read_text())
        assert len(result["curve"]) == 2
        values = [*result["metrics"].values(), *result["curve"][-1].values()]
        assert all(map(math.isfinite, values))
        names = [
            f"{image}{name}" for image in ("", "mean_image/") for name in ("rmse", "ssim", "l1")
        ]
        assert sorted(result["metrics"]) == sorted(names)
        assert (tmp_path / norm / "test" / "3.png").exists()
