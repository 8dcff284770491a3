"""Attention-augmented convolutions, against the paper's formulas position by position."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

pytest.importorskip("mmpretrain", reason="needs OpenMMLab: make install-openmmlab")

import mmpretrain.models
from mmengine.registry import MODELS

from ilm_plugins.frameworks.openmmlab.models.aa_resnet import HEADS, KEYS, AugmentedConv2d

assert mmpretrain.models  # after it AAResNet is registered


def attention(layer, x):
    """Equations 1 to 5 of Bello et al., one query, head and key at a time."""
    _, height, width = x.shape
    q, k, v = layer.project(x[None])[0].split(layer.split)
    places = [(i, j) for i in range(height) for j in range(width)]
    heads = []
    for q_head, k_head, v_head in zip(*(t.chunk(HEADS) for t in (q, k, v)), strict=True):
        out = torch.empty_like(v_head)
        for i, j in places:
            query = q_head[:, i, j]
            logits = []
            for a, b in places:
                relative = (
                    layer.height[a - i + layer.size - 1] + layer.width[b - j + layer.size - 1]
                )
                logits.append(query @ (k_head[:, a, b] + relative) / math.sqrt(KEYS))
            weights = torch.stack(logits).softmax(0)
            out[:, i, j] = sum(
                w * v_head[:, a, b] for w, (a, b) in zip(weights, places, strict=True)
            )
        heads.append(out)
    return layer.join(torch.cat(heads)[None])[0]


@torch.no_grad()
@pytest.mark.parametrize("stride, halvings", [(1, 0), (2, 1), (1, 1)])
def test_it_is_the_papers_attention_beside_a_convolution(stride, halvings):
    torch.manual_seed(0)
    layer = AugmentedConv2d(160, stride, halvings, size=5).double()
    x = torch.randn(2, 160, 4, 6 // (2 - halvings)).double()
    y = layer(x)
    small = avg_pool2d(x, 3, 2, 1, count_include_pad=False) if halvings else x
    expected = torch.stack([attention(layer, image) for image in small])
    convolved = layer.conv(x)
    if halvings and stride == 1:
        expected = interpolate(expected, x.shape[-2:], mode="bilinear")
    torch.testing.assert_close(y, torch.cat([convolved, expected], 1))
    assert y.shape[1] == 160 and convolved.shape[1] == 144


def build(depth=50, **options):
    return MODELS.build({"type": "AAResNet", "depth": depth, **options})


def test_parameters_and_shapes():
    model = build(out_indices=(0, 1, 2, 3)).to("meta")
    outputs = model(torch.empty(2, 3, 224, 224, device="meta"))
    classifier = 2049 * 1000
    millions = (sum(p.numel() for p in model.parameters()) + classifier) / 1e6
    assert round(millions, 1) == 25.8  # Bello et al.; EN paper, Table 2
    sides = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert [tuple(y.shape) for y in outputs] == [(2, c, side, side) for c, side in sides]
    sizes = [m.size for m in model.modules() if isinstance(m, AugmentedConv2d)]
    assert sizes == [14] * (4 + 6) + [7] * 3


def test_a_step_moves_every_parameter():
    torch.manual_seed(0)
    model = build(image_size=64, zero_init_residual=False)
    model.train()
    model(torch.randn(2, 3, 64, 64))[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_larger_image_is_an_error():
    model = build(image_size=64).to("meta")
    with pytest.raises(ValueError, match="over 6 pixels, but embeddings for 4; give"):
        model(torch.empty(1, 3, 96, 64, device="meta"))


def test_frozen_stages_have_no_trainable_parameters():
    """From the start: an optimizer and DistributedDataParallel count them before training."""
    model = build(50, frozen_stages=2)
    frozen = (model.conv1, model.bn1, model.layer1, model.layer2)
    assert not any(p.requires_grad for stage in frozen for p in stage.parameters())
    assert all(p.requires_grad for p in model.layer3.parameters())
