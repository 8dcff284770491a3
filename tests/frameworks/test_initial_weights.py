"""Layers of a network start with different weights, although norms are built in a row."""

import pytest

from ilm_plugins import NORMS
from ilm_plugins.layers.base import AdaptiveNorm


def mmdet_resnet(key):
    """Each block builds its norms before its convolutions."""
    backbones = pytest.importorskip("mmdet.models.backbones", reason="needs mmdet")
    return initialized(backbones.ResNet(50, norm_cfg=dict(type=key)))


def mmseg_hrnet(key):
    backbones = pytest.importorskip("mmseg.models.backbones", reason="needs mmseg")
    stage = dict(num_modules=1, block="BASIC", num_blocks=(2,), num_channels=(32,))
    stages = [
        dict(stage, num_branches=n, num_blocks=(2,) * n, num_channels=(32, 64, 128, 256)[:n])
        for n in (1, 2, 3, 4)
    ]
    extra = {f"stage{n}": one for n, one in enumerate(stages, 1)}
    return initialized(backbones.HRNet(extra, norm_cfg=dict(type=key)))


def initialized(model):
    model.init_weights()
    return model


def detectron2_fpn(key):
    """It builds the norms of a level's two convolutions together."""
    backbone = pytest.importorskip("detectron2.modeling.backbone", reason="needs detectron2")
    resnet = backbone.resnet
    stages = resnet.ResNet.make_default_stages(50, norm=key)
    bottom_up = resnet.ResNet(resnet.BasicStem(norm=key), stages, out_features=["res3", "res4"])
    return backbone.FPN(bottom_up, ["res3", "res4"], 256, norm=key)


def timm_resnet(key):
    timm = pytest.importorskip("timm", reason="needs timm")
    return timm.create_model("resnet18", norm_layer=key.lower())


def torchvision_resnet(key):
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    return models.resnet18(norm_layer=NORMS[key])


MODELS = mmdet_resnet, mmseg_hrnet, detectron2_fpn, timm_resnet, torchvision_resnet


@pytest.mark.parametrize("key", ["EN", "ILMGN"])
@pytest.mark.parametrize("build", MODELS)
def test_no_two_layers_of_a_network_start_with_equal_weights(build, key):
    layers = {n: m for n, m in build(key).named_modules() if isinstance(m, AdaptiveNorm)}
    tensors = {
        f"{name}.{child}": tuple(module.weight.flatten().tolist())
        for name, layer in layers.items()
        for child, module in layer.named_children()
        if child != "ratio"  # EN's starts at 0
    }
    seen = {}
    for name, values in tensors.items():
        assert values not in seen, f"{name} starts equal to {seen[values]}"
        seen[values] = name
    assert len(layers) > 15
