"""Parameter counts that the papers print."""

import pytest
import torch
from torch import nn

from ilm_plugins import AttentiveNorm, ExemplarNorm, SwitchNorm


def count(depth, norm_layer=nn.BatchNorm2d):
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    with torch.device("meta"):
        model = getattr(torchvision.models, f"resnet{depth}")(norm_layer=norm_layer)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("channels", [64, 256])
def test_exemplar_norm_table_1(channels):
    parameters = sum(p.numel() for p in ExemplarNorm(channels).parameters())
    assert parameters == 2 * 3 * channels + channels + 1953


def test_switch_norm_table_1():
    assert sum(p.numel() for p in SwitchNorm(64).parameters()) == 2 * 64 + 2 * 3


def test_attentive_norms_box_head():
    # The authors' Mask R-CNN has 45.91 M parameters without norms in FPN and heads, and 45.96 M
    # with GN in FPN and mask head, and AN in the box head, whose GN has no weights there;
    # convolutions before a norm have no bias.
    pairs, plain = (10, 10, 20, 20), 8 + 4
    counts = [sum(p.numel() for p in AttentiveNorm(256, num_affine=k).parameters()) for k in pairs]
    assert counts == [k * (3 * 256 + 1) + 2 * 256 for k in pairs]
    added = sum(counts) - len(pairs) * 2 * 256 + plain * 2 * 256 - (len(pairs) + plain) * 256
    assert round(added / 1e6, 2) == round(45.96 - 45.91, 2)


def test_resnet_50_with_exemplar_norm():
    # 25.79 M by Table 1's formula; the paper's Table 2 prints 25.91 M, which fits two ratio
    # networks without biases in each layer.
    assert round(count(50, ExemplarNorm) / 1e6, 2) == 25.79
    assert round(count(50, SwitchNorm) / 1e6, 2) == 25.56
