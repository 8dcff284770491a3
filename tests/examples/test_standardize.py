"""The examples that standardize input images: a change of contrast has no effect."""

import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="needs torchvision")

IMAGE = torch.randint(256, (3, 40, 48), generator=torch.Generator().manual_seed(0)).float()
LESS = 0.5 * IMAGE + 30


def example(root, name):
    return runpy.run_path(str(root / "examples" / f"{name}.py"))


def test_torchvisions_images_have_mean_0_and_deviation_1(root):
    standardize = example(root, "standardize_torchvision")["standardize"]
    found = standardize(IMAGE)
    assert found.mean().abs() < 1e-5
    assert found.std(correction=0) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(standardize(LESS), found, rtol=0, atol=1e-5)
    assert not standardize(torch.full_like(IMAGE, 7.0)).any()


def test_detectron2s_model_gets_the_same_image_at_half_the_contrast(root):
    pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")
    model = object.__new__(example(root, "standardize_detectron2")["StandardizedRCNN"])
    torch.nn.Module.__init__(model)
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    model.register_buffer("pixel_std", torch.ones(3, 1, 1))
    model.backbone = SimpleNamespace(size_divisibility=0, padding_constraints={})
    plain, less = (model.preprocess_image([{"image": x}]).tensor for x in (IMAGE, LESS))
    torch.testing.assert_close(less, plain, rtol=0, atol=1e-5)
    assert plain.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_mmsegs_config_standardizes_last_and_nothing_else_does(root):
    pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")
    from ilm_plugins.frameworks import open_config
    from ilm_plugins.frameworks.openmmlab.standardize_image import StandardizeImage

    cfg = open_config(str(root / "examples" / "standardize_mmseg.py")).config
    for name in ("train", "val", "test"):
        steps = [step.type for step in cfg[f"{name}_dataloader"].dataset.pipeline]
        assert steps[-2:] == ["StandardizeImage", "PackSegInputs"]
    assert cfg.model.data_preprocessor["mean"] is None
    image = IMAGE.permute(1, 2, 0).numpy().astype(np.uint8)
    (plain, less) = (StandardizeImage().transform({"img": x})["img"] for x in (image, image // 2))
    assert plain.dtype == np.float32
    assert plain.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(less - plain).max() < 0.02  # halves are rounded
    assert not StandardizeImage().transform({"img": np.full((4, 4, 3), 9, np.uint8)})["img"].any()
