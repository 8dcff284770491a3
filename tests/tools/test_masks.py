"""tools/draw_masks.py: the picture of what segmenters predict."""

import runpy

import numpy as np
import pytest

pytest.importorskip("mmseg", reason="needs OpenMMLab: make install-openmmlab")


@pytest.fixture(scope="module")
def draw(root):
    return runpy.run_path(str(root / "tools" / "draw_masks.py"))["draw"]


@pytest.fixture(scope="module")
def drawn(draw):
    photo = np.zeros((6, 8, 3), np.uint8)
    mask = np.zeros((6, 8), int)
    mask[0, 0], mask[0, 1] = 1, 255
    return draw({"photo": [photo], "annotation": [mask], "BN": [mask]}, ["sky", "road"])


def test_each_model_has_a_column(drawn):
    assert [axis.get_title() for axis in drawn.axes] == ["photo", "annotation", "BN"]


def test_the_legend_names_each_class_by_its_colour(drawn):
    patches = {patch.get_label(): patch.get_facecolor() for patch in drawn.legends[0].get_patches()}
    (image,) = drawn.axes[2].images
    assert list(patches) == ["sky", "road"]
    assert image.to_rgba(image.get_array())[0, 0] == pytest.approx(patches["road"])


def test_twenty_classes_have_twenty_colours(draw):
    masks = {"photo": [np.zeros((4, 5, 3), np.uint8)], "BN": [np.arange(20).reshape(4, 5)]}
    drawn = draw(masks, [f"class {i}" for i in range(20)])
    (image,) = drawn.axes[1].images
    patches = [patch.get_facecolor() for patch in drawn.legends[0].get_patches()]
    assert len({*patches}) == 20
    assert image.to_rgba(image.get_array())[2, 4] == pytest.approx(patches[14])


def test_pixels_without_a_class_are_white(drawn):
    (image,) = drawn.axes[1].images
    assert image.to_rgba(image.get_array())[0, 1] == pytest.approx([1, 1, 1, 1])
