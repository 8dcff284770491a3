"""BN-Inception and the CIFAR ResNets: sizes, shapes, what they freeze."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

from mmengine.registry import MODELS

from ilm_plugins import ExemplarNorm
from ilm_plugins.frameworks.openmmlab.models import BNInception, CifarResNet

EN_16 = {"type": "EN", "reduction": 16}


def build(kind, **options):
    with torch.device("meta"):
        return MODELS.build({"type": kind, **options})


def count(model, classes):
    """Parameters, in millions, of a backbone with a linear classifier on its last stage."""
    channels = {BNInception: 1024, CifarResNet: 64}[type(model)]
    return (sum(p.numel() for p in model.parameters()) + (channels + 1) * classes) / 1e6


def shapes(model, size):
    return [tuple(y.shape) for y in model(torch.empty(2, 3, size, size, device="meta"))]


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]


@pytest.mark.parametrize(
    ("norm_cfg", "millions"),
    [
        ({"type": "BN"}, 11.29),  # EN paper, Table 3
        ({"type": "SN"}, 11.29),  # printed as 11.30, more than 6 ratios a layer add
        (EN_16, 11.47),  # printed as 12.36, which no reading of the paper's Table 1 gives
    ],
    ids=["BN", "SN", "EN"],
)
def test_bn_inception_parameters(norm_cfg, millions):
    assert round(count(build("BNInception", norm_cfg=norm_cfg), 1000), 2) == millions


def test_bn_inception_operations():
    with FlopCounterMode(display=False) as counter:
        shapes(build("BNInception"), 224)
    multiply_adds = counter.get_total_flops() / 2 / 2 + 1024 * 1000  # of two images; a classifier
    assert multiply_adds == pytest.approx(2.056e9, rel=0.015)  # EN paper, Table 3


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85), (110, 1.73)])
def test_cifar_resnet_parameters(depth, millions):
    # He et al., Table 6, where the last is 1.7.
    model = build("CifarResNet", depth=depth)
    assert round(count(model, 10), 2) == millions
    assert len(norms(model)) == depth - 1


def test_shapes_of_all_stages():
    inception = build("BNInception", out_indices=(0, 1, 2))
    assert shapes(inception, 224) == [(2, 320, 28, 28), (2, 608, 14, 14), (2, 1024, 7, 7)]
    resnet = build("CifarResNet", depth=20, out_indices=(0, 1, 2))
    assert shapes(resnet, 32) == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert shapes(build("CifarResNet", depth=20), 32) == [(2, 64, 8, 8)]


def test_every_parameter_of_an_en_network_gets_a_gradient():
    torch.manual_seed(0)
    model = MODELS.build({"type": "CifarResNet", "depth": 20, "norm_cfg": EN_16})
    model.train()(torch.randn(4, 3, 32, 32))[0].square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_option_a_shortcut():
    """Where the branch yields nothing: every second pixel, new channels zero on both sides."""
    model = MODELS.build({"type": "CifarResNet", "depth": 8})
    block = model.stages[1][0]
    nn.init.zeros_(block.conv2.norm.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_a_cifar_block_halves_the_resolution_first():
    """Its second convolution has a quarter of the pixels: 40.6 M multiply-adds for ResNet-20."""
    with FlopCounterMode(display=False) as counter:
        shapes(build("CifarResNet", depth=20), 32)
    same = 9 * 16 * 16 * 32 * 32  # a convolution of any stage that keeps width and resolution
    convolutions = 9 * 3 * 16 * 32 * 32 + 2 * same / 2 + 16 * same
    assert counter.get_total_flops() / 2 / 2 == convolutions  # of two images


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages(frozen_stages):
    norm_cfg = {"type": "EN", "reduction": 8}
    options = {"depth": 8, "norm_cfg": norm_cfg, "frozen_stages": frozen_stages}
    model = MODELS.build({"type": "CifarResNet", **options}).train()
    parts = [model.stem, *model.stages]
    before = [[b.clone() for b in part.buffers()] for part in parts]
    model(torch.randn(2, 3, 32, 32))
    for index, part in enumerate(parts):
        trains = index > frozen_stages
        assert all(p.requires_grad == trains for p in part.parameters())
        assert all(m.training == trains for m in part.modules())
        moved = [not torch.equal(*pair) for pair in zip(before[index], part.buffers(), strict=True)]
        assert all(moved) if trains else not any(moved)


@pytest.mark.parametrize("key", ["BN", "EN"])
def test_norm_eval_keeps_running_statistics(key):
    norm_cfg = {"type": key, **({"reduction": 8} if key == "EN" else {})}
    model = MODELS.build(
        {"type": "CifarResNet", "depth": 8, "norm_cfg": norm_cfg, "norm_eval": True}
    ).train()
    assert model.training and not any(m.training for m in norms(model))
    assert all(isinstance(m, nn.BatchNorm2d | ExemplarNorm) for m in norms(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "CifarResNet", "depth": 18}, "depth=18 is not 6n"),
        ({"type": "CifarResNet", "depth": 20, "out_indices": (3,)}, "choose from 0 to 2"),
        ({"type": "BNInception", "frozen_stages": 4}, "choose from -1 to 3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(options.pop("type"), **options)
