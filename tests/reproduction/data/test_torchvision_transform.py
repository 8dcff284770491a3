"""Functions of torchvision as a step of OpenMMLab's pipelines."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.transforms", reason="needs OpenMMLab: make install-openmmlab")

from reproduction.data.torchvision_transform import TorchvisionTransform

BLUE_GREEN_RED = np.random.default_rng(0).integers(256, size=(12, 16, 3), dtype=np.uint8)


def apply(name, image=BLUE_GREEN_RED, path="a.png", **options):
    """The image that the transform returns, of one in mmcv's order of colors."""
    return TorchvisionTransform(name, **options)({"img": image, "img_path": path})["img"]


def noisy(path="a.png"):
    return apply("gaussian_noise", path=path, sigma=0.1)


def test_noise_is_the_same_in_every_test():
    torch.manual_seed(1)
    first = noisy("data/a.png")
    torch.manual_seed(2)
    assert np.array_equal(noisy("elsewhere/a.png"), first)
    assert not np.array_equal(first, BLUE_GREEN_RED)


def test_each_image_has_its_own_noise():
    noises = [noisy(path).astype(int) - BLUE_GREEN_RED for path in ("a.png", "b.png")]
    assert (noises[0] != noises[1]).mean() > 0.5


def test_noise_leaves_torchs_random_numbers_as_they_are():
    before = torch.get_rng_state()
    noisy()
    assert torch.equal(torch.get_rng_state(), before)


def test_gamma_2_squares_the_values_between_0_and_1():
    exact = (BLUE_GREEN_RED / 255) ** 2 * 255
    # uint8: a unit for each of torchvision's rounding modes.
    assert np.abs(apply("adjust_gamma", gamma=2.0) - exact).max() < 1


@pytest.mark.parametrize("channel, weight", [(0, 0.1140), (1, 0.5870), (2, 0.2989)])
def test_functions_of_color_get_red_green_and_blue_right(channel, weight):
    """Luma of a pure color: blue, green and red in the order of mmcv."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., channel] = 200
    gray = apply("adjust_saturation", image, saturation_factor=0.0)
    assert np.abs(gray - 200 * weight).max() < 1


def test_a_symmetric_blur_keeps_each_color_in_its_channel():
    image = np.zeros((9, 9, 3), np.uint8)
    image[..., 2] = 100
    assert np.array_equal(apply("gaussian_blur", image, kernel_size=9, sigma=1.0), image)


def test_only_the_image_is_blurred():
    labels = np.arange(16 * 12, dtype=np.uint8).reshape(12, 16)
    image, kept = BLUE_GREEN_RED.copy(), labels.copy()
    given = {"img": image, "img_path": "a.png", "gt_seg_map": labels, "img_shape": (12, 16)}
    found = TorchvisionTransform("gaussian_blur", kernel_size=9, sigma=1.0)(given)
    assert found["img"].std() < 0.5 * BLUE_GREEN_RED.std()
    assert np.array_equal(found["gt_seg_map"], kept)
    assert found["img_shape"] == (12, 16)
    assert np.array_equal(image, BLUE_GREEN_RED), "the array that was given is not written to"


def test_the_image_stays_a_contiguous_array_of_bytes():
    found = apply("adjust_contrast", contrast_factor=0.5)
    assert (found.dtype, found.shape) == (np.uint8, BLUE_GREEN_RED.shape)
    assert found.flags.c_contiguous
