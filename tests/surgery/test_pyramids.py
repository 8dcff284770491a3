"""Norms of detectron2's RetinaNet and FCOS, which have statistics for each level of a pyramid."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from ilm_plugins import surgery
from swaps import change, randomized


def head_of(norm, kind):
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    shapes = [ShapeSpec(channels=64)] * 3
    return kind(input_shape=shapes, num_classes=4, conv_dims=[64, 64], norm=norm, **options)


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
@pytest.mark.parametrize("key", ["EN", "SSN", "ILMGN"])
def test_a_head_of_batchnorm_is_converted_as_its_norm_builds_it(kind, key):
    plain = randomized(head_of("BN", kind)).double().eval()
    for name in ("weight", "bias"):
        nn.init.uniform_(getattr(plain.cls_subnet[1], name), 0.5, 2)
    features = [torch.randn(2, 64, 8 >> i, 8 >> i, dtype=torch.float64) for i in range(3)]
    expected = plain(features)[0]
    replacing = {"replacing": "BN"} if key == "ILMGN" else {}
    head, report = surgery.convert(copy.deepcopy(plain), key, **replacing)
    subnets = "cls_subnet", "bbox_subnet"
    assert report.converted.keys() == {f"{subnet}.{i}" for subnet in subnets for i in (1, 4)}
    built = head_of(key, kind).double().eval()
    assert head.state_dict().keys() == built.state_dict().keys()
    assert len([*head.parameters()]) == len([*built.parameters()])
    assert len(head._forward_pre_hooks) == len(built._forward_pre_hooks)
    built.load_state_dict(head.state_dict())
    found, of_built = head(features)[0], built(features)[0]
    for level in range(3):
        if key != "ILMGN":
            assert change(of_built[level], found[level]) <= 1e-10
        if key == "EN":
            assert change(expected[level], found[level]) <= 1e-10
    if key == "EN":
        state, _ = surgery.fit_state(plain.state_dict(), built)
        assert state.keys() == built.state_dict().keys()
        torch.testing.assert_close(state, dict(head.state_dict()), rtol=0, atol=0)
        back, report = surgery.revert(head)
        assert len(report.converted) == 4 and not report.left
        assert change(expected[1], back(features)[0][1]) <= 1e-10
