"""BN-Inception, the CIFAR ResNets and AA-ResNet: keys, sizes, forms, and what they freeze."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

import mmpretrain.models  # noqa: F401 - after it AAResNet is registered
from mmengine.registry import MODELS

from helpers.close import assert_close
from ilm_plugins.errors import UserError
from reproduction.models.aa_resnet import HEADS, KEYS, AugmentedConv2d


def build(kind, **options):
    return MODELS.build({"type": kind, **options})


def meta(kind, **options):
    with torch.device("cpu" if kind == "AAResNet" else "meta"):  # which reads rates from a tensor
        return build(kind, **options).to("meta")


def shapes(model, size):
    return [tuple(y.shape) for y in model(torch.empty(2, 3, size, size, device="meta"))]


def test_parameters_are_the_papers():
    """In millions, with a linear classifier on the last stage."""
    en = {"type": "EN", "reduction": 16}
    for kind, options, last, classes, count in (
        ("BNInception", {}, 1024, 1000, 11.29),  # EN paper, Table 3
        # Printed as 11.30, more than 6 ratios a layer add.
        ("BNInception", {"norm_cfg": {"type": "SN"}}, 1024, 1000, 11.29),
        # Printed as 12.36, which no reading of the paper's Table 1 gives.
        ("BNInception", {"norm_cfg": en}, 1024, 1000, 11.47),
        ("CifarResNet", {"depth": 20}, 64, 10, 0.27),  # He et al., Table 6
        ("CifarResNet", {"depth": 56}, 64, 10, 0.85),
        ("CifarResNet", {"depth": 110}, 64, 10, 1.73),  # printed as 1.7
        ("AAResNet", {"depth": 50}, 2048, 1000, 25.8),  # Bello et al.; EN paper, Table 2
    ):
        model = meta(kind, **options)
        found = (sum(p.numel() for p in model.parameters()) + (last + 1) * classes) / 1e6
        assert round(found, 1 if kind == "AAResNet" else 2) == count, (kind, options)


@pytest.fixture(scope="module")
def inception():
    return meta("BNInception", out_indices=(0, 1, 2))


def test_bn_inception_has_the_papers_shapes(inception):
    expected = [(2, 320, 28, 28), (2, 608, 14, 14), (2, 1024, 7, 7)]
    assert shapes(inception, 224) == expected


def test_bn_inception_has_the_papers_kinds_of_pools(inception):
    pools = [type(m) for m in inception.stages.modules() if "Pool2d" in type(m).__name__]
    assert "".join(kind.__name__[0] for kind in pools) == "AAMAAAAMAM"


def test_bn_inception_has_the_papers_operations(inception):
    """EN paper, Table 3."""
    with FlopCounterMode(display=False) as counter:
        shapes(inception, 224)
    multiply_adds = counter.get_total_flops() / 2 / 2 + 1024 * 1000  # of two images; a classifier
    assert abs(multiply_adds / 2.056e9 - 1) <= 0.015


def test_a_cifar_resnet_has_the_papers_shapes():
    model = meta("CifarResNet", depth=20, out_indices=(0, 1, 2))
    assert shapes(model, 32) == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@pytest.fixture(scope="module")
def aa_resnet():
    return meta("AAResNet", depth=50, out_indices=(0, 1, 2, 3))


def test_aa_resnet_has_the_papers_shapes(aa_resnet):
    sides = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert shapes(aa_resnet, 224) == [(2, channels, side, side) for channels, side in sides]


def test_aa_resnet_refuses_dilations():
    with pytest.raises(UserError, match=r"dilations=\(1, 1, 2, 4\) are not implemented"):
        meta("AAResNet", depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


def test_aa_resnet_attends_in_its_last_two_stages(aa_resnet):
    sizes = [m.size for m in aa_resnet.modules() if isinstance(m, AugmentedConv2d)]
    assert sizes == [14] * (4 + 6) + [7] * 3


def test_images_larger_than_aa_resnets_are_refused(aa_resnet):
    with pytest.raises(ValueError, match="give a larger image_size"):
        shapes(aa_resnet, 256)


def test_option_a_shortcut():
    """Where the branch yields -1: every second pixel, new channels zero on both sides."""
    model = build("CifarResNet", depth=8, init_cfg={"type": "Own"})
    assert model.init_cfg == {"type": "Own"}
    block = model.stages[1][0]
    assert block.conv1.conv.stride == (2, 2), "a block halves the resolution first"
    nn.init.zeros_(block.conv2.norm.weight)
    nn.init.constant_(block.conv2.norm.bias, -1)
    x = 2 * torch.randn(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], (x[:, :, ::2, ::2] - 1).relu())
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def attention(layer, x):
    """Equations 1 to 5 of Bello et al., one query and head at a time."""
    _, height, width = x.shape
    q, k, v = layer.project(x[None])[0].split(layer.split)
    places, last, heads = list(product(range(height), range(width))), layer.size - 1, []
    for q_head, k_head, v_head in zip(*(t.chunk(HEADS) for t in (q, k, v)), strict=True):
        out = torch.empty_like(v_head)
        for i, j in places:
            relative = [layer.height[a - i + last] + layer.width[b - j + last] for a, b in places]
            keys = k_head.flatten(1).T + torch.stack(relative)
            weights = (keys @ q_head[:, i, j] / math.sqrt(KEYS)).softmax(0)
            out[:, i, j] = v_head.flatten(1) @ weights
        heads.append(out)
    return layer.join(torch.cat(heads)[None])[0]


@torch.no_grad()
@pytest.mark.parametrize("stride, halvings", [(1, 0), (2, 1), (1, 1)])
def test_it_is_the_papers_attention_beside_a_convolution(stride, halvings):
    layer = AugmentedConv2d(160, stride, halvings, size=5).double()
    x = torch.randn(2, 160, 4, 6 // (2 - halvings)).double()
    small = avg_pool2d(x, 3, 2, 1, count_include_pad=False) if halvings else x
    expected = torch.stack([attention(layer, image) for image in small])
    convolved = layer.conv(x)
    if halvings and stride == 1:
        expected = interpolate(expected, x.shape[-2:], mode="bilinear")
    assert_close(layer(x), torch.cat([convolved, expected], 1), 2**20)
    assert convolved.shape[1] == 144


def test_frozen_stages_of_aa_resnet():
    """From the start: an optimizer and DistributedDataParallel count them before training."""
    model = meta("AAResNet", depth=50, frozen_stages=2)
    frozen = (model.conv1, model.bn1, model.layer1, model.layer2)
    assert not any(p.requires_grad for stage in frozen for p in stage.parameters())
    assert all(p.requires_grad for p in model.layer3.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "CifarResNet", "depth": 18}, "depth=18 is not 6n"),
        ({"kind": "CifarResNet", "depth": 2}, "depth=2 is not 6n"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        meta(**options)
