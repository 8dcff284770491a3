"""Norms of detectron2's RetinaNet and FCOS, which have statistics for each level of a pyramid."""

import copy

import pytest
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from close import EQUAL, assert_close, assert_equal
from ilm_plugins import surgery
from swaps import double, randomized


def head_of(norm, kind):
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    options |= {"input_shape": [ShapeSpec(channels=64)] * 3, "norm": norm}
    return randomized(kind(num_classes=4, conv_dims=[64, 64], **options)).double().eval()


@pytest.mark.parametrize("key", ["EN", "SSN", "ILMGN"])
def test_a_head_of_batchnorm_becomes_what_the_key_builds(key):
    kind = RetinaNetHead if key == "EN" else FCOSHead
    plain, features = head_of("BN", kind), [double(2, 64, 8 >> i, 8 >> i) for i in range(3)]
    nn.init.uniform_(plain.cls_subnet[1].weight, 0.5, 2)
    nn.init.uniform_(plain.cls_subnet[1].bias, 0.5, 2)
    head, report = surgery.convert(copy.deepcopy(plain), key, replacing="BN")
    subnets = "cls_subnet", "bbox_subnet"
    assert report.converted.keys() == {f"{subnet}.{i}" for subnet in subnets for i in (1, 4)}
    built = head_of(key, kind)
    assert head.state_dict().keys() == built.state_dict().keys()
    assert len([*head.parameters()]) == len([*built.parameters()])
    assert len(head._forward_pre_hooks) == len(built._forward_pre_hooks)
    built.load_state_dict(head.state_dict())
    assert_close(built(features)[0], head(features)[0], EQUAL)
    if key == "EN":
        state, _ = surgery.fit_state(plain.state_dict(), built)
        assert_equal(dict(state), dict(head.state_dict()))
        back, report = surgery.revert(copy.deepcopy(head))
        assert len(report.converted) == 4
        for model in (head, back):
            assert_close(model(features)[0], plain(features)[0], EQUAL)
