"""Every shipped pix2pix config: what is built equals the papers' words."""

import pytest
from torch import nn

pytest.importorskip("mmengine", reason="needs MMEngine: make install-openmmlab")
pytest.importorskip("torchmetrics", reason="needs torchmetrics, of the extra ilm_plugins[pix2pix]")

from helpers.mmengine_configs import configs, described_translation, load, norms, skeleton
from helpers.recipes import recipe
from ilm_plugins import ILMInstanceNorm

CLASSES = {"in": nn.InstanceNorm2d, "ilmin": ILMInstanceNorm}


@pytest.mark.parametrize("config", configs("pix2pix"))
def test_a_config_is_the_papers_and_has_the_norms_of_its_name(config):
    cfg = load(f"pix2pix/{config}")
    built, model = described_translation(cfg), skeleton(cfg)
    for name, value in recipe("pix2pix", config).items():
        assert built[name] == (tuple(value) if isinstance(value, list) else value), name
    _, *kinds = config.removesuffix(".py").split("_")
    for network, kind in zip((model.generator, model.discriminator), kinds, strict=True):
        layers = norms(network).values()
        assert {type(layer) for layer in layers} == {CLASSES[kind]}
        assert all(layer.weight is not None for layer in layers)
