"""The stand-in for mmcv's compiled operators, compared with them."""

import importlib.util
from pathlib import Path

import pytest
import torch

from close import assert_close

compiled = pytest.importorskip(
    "mmcv._ext", reason="needs mmcv with compiled operators: make install-openmmlab"
)
FILE = Path(__file__).parents[2] / "stand_ins" / "mmcv_ext.py"
if Path(compiled.__file__) == FILE:
    pytest.skip(
        "needs mmcv with compiled operators: make install-openmmlab", allow_module_level=True
    )
SPEC = importlib.util.spec_from_file_location("mmcv_ext", FILE)
stand_in = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stand_in)
pytestmark = pytest.mark.wide


def boxes(count):
    corners = 40 * torch.rand(count, 2)
    return torch.cat([corners, corners + 1 + 20 * torch.rand(count, 2)], 1)


def test_the_same_boxes_are_kept():
    for count, threshold, offset in ((0, 0.3, 0), (1, 0.7, 1), (300, 0.3, 1), (300, 0.7, 0)):
        candidates, scores = boxes(count), torch.rand(count)
        options = {"iou_threshold": threshold, "offset": offset}
        kept = [ext.nms(candidates, scores, **options) for ext in (stand_in, compiled)]
        assert torch.equal(*kept)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_same_regions_are_pooled(sampling_ratio, aligned):
    features = torch.randn(2, 3, 16, 20)
    rois = torch.cat([torch.randint(2, (9, 1)).float(), boxes(9)], 1)
    grad = torch.randn(9, 3, 7, 5)
    options = {"aligned_height": 7, "aligned_width": 5, "spatial_scale": 0.25, "pool_mode": 1}
    options |= {"sampling_ratio": sampling_ratio, "aligned": aligned}
    found = []
    for ext in (stand_in, compiled):
        pooled, back, unused = torch.zeros(9, 3, 7, 5), torch.zeros_like(features), torch.zeros(0)
        ext.roi_align_forward(features, rois, pooled, unused, unused, **options)
        ext.roi_align_backward(grad, rois, unused, unused, back, **options)
        found.append((pooled, back))
    assert_close(*found, 32)


def test_other_operators_say_what_they_need():
    with pytest.raises(NotImplementedError, match="softnms needs mmcv's compiled operators"):
        stand_in.softnms()
