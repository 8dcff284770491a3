"""AugMix in a pipeline of OpenMMLab, and the memory format of a training."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv", reason="needs OpenMMLab: make install-openmmlab")

from reproduction.corruptions.openmmlab import AugMix, ChannelsLastHook

PHOTO = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_augmix_mixes_an_image_also_after_a_flip():
    torch.manual_seed(0)
    flipped = PHOTO[:, ::-1]  # a view, as RandomFlip leaves it
    found = AugMix().transform({"img": flipped, "gt_label": 3})
    assert found["gt_label"] == 3
    assert (found["img"].shape, found["img"].dtype) == (PHOTO.shape, np.uint8)
    assert not np.array_equal(found["img"], flipped)
    # A part of the mixture is the image itself.
    assert np.corrcoef(found["img"].ravel(), flipped.ravel())[0, 1] > 0.2


def test_augmix_of_bgr_is_augmix_of_rgb():
    found = []
    for image in (PHOTO, PHOTO[..., ::-1]):
        torch.manual_seed(1)
        found.append(AugMix().transform({"img": image})["img"])
    assert np.array_equal(found[0], found[1][..., ::-1])


def test_augmix_uses_no_operation_that_is_a_corruption(monkeypatch):
    mix = AugMix().mix
    used = set()
    apply = mix._apply_image_or_video_transform

    def recorded(image, name, *args, **options):
        used.add(name)
        return apply(image, name, *args, **options)

    monkeypatch.setattr(mix, "_apply_image_or_video_transform", recorded)
    for _ in range(100):
        mix(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert len(used) == 9
    assert not used & {"Brightness", "Color", "Contrast", "Sharpness"}


def test_the_hook_changes_the_memory_format():
    model = torch.nn.Conv2d(3, 4, 3)
    ChannelsLastHook().before_run(type("Runner", (), {"model": model}))
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
