"""Norms of frameworks that equal torch's: each is converted as the norm that it equals."""

import re
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import double, randomized
from ilm_plugins import surgery
from ilm_plugins.foreign_norms import EXACT, path_of
from ilm_plugins.surgery.plain_norms import exact_plain_norm_of

C = 32
VITDET = "models.vitdet.modeling_vitdet.VitDetLayerNorm"
EOMT = "models.eomt.modeling_eomt.EomtLayerNorm2d"
GROUP_NORMS = {
    "timm.layers.norm.GroupNorm": {"num_groups": 8},
    "timm.layers.norm.GroupNorm1": {},
    "timm.layers.norm_act.GroupNormAct": {"num_groups": 8, "apply_act": False},
    "timm.layers.norm_act.GroupNorm1Act": {"apply_act": False},
    "transformers.models.poolformer.modeling_poolformer.PoolFormerGroupNorm": {},
}
LAYER_NORMS = {
    "timm.layers.norm.LayerNorm2d": {},
    "timm.layers.norm.LayerNorm2dFp32": {},
    "timm.layers.norm.LayerNormExp2d": {},
    "timm.layers.norm_act.LayerNormAct2d": {"apply_act": False},
    "timm.layers.norm_act.LayerNormAct2dFp32": {"apply_act": False},
    "torchvision.models.convnext.LayerNorm2d": {},
    "detectron2.layers.batch_norm.LayerNorm": {},
    "mmseg.models.utils.san_layers.LayerNorm2d": {},
    f"transformers.{VITDET}": {},
    f"transformers.{EOMT}": {},
}


def build(path, **options):
    module, _, name = path.rpartition(".")
    pytest.importorskip(module.partition(".")[0], reason="the class is of this package")
    return randomized(getattr(import_module(module), name)(C, **options))


@pytest.mark.parametrize("path", GROUP_NORMS)
def test_it_equals_groupnorm_bit_for_bit_and_is_converted(path):
    norm, x = build(path, **GROUP_NORMS[path]).eval(), torch.randn(2, C, 5, 5)
    plain = nn.GroupNorm(GROUP_NORMS[path].get("num_groups", 1), C)
    plain.load_state_dict(norm.state_dict())
    assert_equal(norm(x), plain(x))
    layer, report = surgery.convert(norm.double(), "ILMGN")
    assert report.converted.keys() == {""}
    assert_close(layer(x.double()), plain.double()(x.double()), EQUAL)


@pytest.mark.parametrize("path", LAYER_NORMS)
def test_it_equals_layernorm_of_the_channels_and_is_converted(path):
    norm, x = build(path, **LAYER_NORMS[path]).eval(), torch.randn(2, C, 5, 5)
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    assert exact_plain_norm_of(type(norm)).name == "LN"
    last = functional.layer_norm(x.movedim(1, -1), (C,), weight, bias, norm.eps)
    assert_close(norm(x), last.movedim(-1, 1), 64)
    layer, report = surgery.convert(norm, "ILMGN", replacing="LN")
    assert report.converted.keys() == {""}
    assert_equal([layer.weight.detach(), layer.bias.detach()], [weight, bias])


def test_the_frozen_batchnorm_of_mmdet_becomes_en_with_the_same_outputs():
    wrappers = pytest.importorskip("mmdet.models.layers.brick_wrappers", reason="needs mmdet")
    norm, x = randomized(wrappers.FrozenBatchNorm2d(C)).double().eval(), double(2, C, 5, 5)
    layer, _ = surgery.convert(norm, "EN")
    assert layer.frozen
    assert_close(layer.eval()(x), norm(x), EQUAL)


class OtherNames(nn.Module):
    """A norm whose options and tensors have the given names; a tensor's value may be None."""

    def __init__(self, **named):
        super().__init__()
        for name, value in named.items():
            is_parameter = isinstance(value, torch.Tensor)
            setattr(self, name, nn.Parameter(value) if is_parameter else value)


AFFINE = {"weight": torch.ones(C), "bias": torch.zeros(C)}
GN, BN = {**AFFINE, "num_groups": 8, "eps": 1e-5}, {**AFFINE, "eps": 1e-5, "momentum": 0.1}
RUNNING = {"running_mean": torch.zeros(C), "running_var": torch.ones(C)}


@pytest.mark.parametrize(
    "name, to, named, lacking",
    [
        ("GN", "ILMGN", GN, "num_groups"),
        ("GN", "ILMLN", GN, "num_groups"),
        ("GN", "AN", GN, "eps"),
        ("GN", "AssocNorm", {**GN, "num_channels": C}, "weight"),
        ("IN", "ILMIN", {**AFFINE, "eps": 1e-5}, "eps"),
        ("LN", "ILMGN", {**AFFINE, "eps": 1e-5}, "eps"),
        ("BN", "EN", {**BN, **RUNNING}, "momentum"),
        ("BN", "SN", {**BN, **RUNNING}, "eps"),
        ("BN", "ILMGN", BN, "bias"),
        ("GN", "ILMGN", {**GN, "weight": None, "num_channels": C}, "num_channels"),
    ],
)
def test_a_norm_that_has_an_option_or_a_tensor_by_another_name_is_refused(
    monkeypatch, name, to, named, lacking
):
    monkeypatch.setitem(EXACT, re.escape(path_of(OtherNames)), name)
    norm = OtherNames(**{f"own_{n}" if n == lacking else n: value for n, value in named.items()})
    replacing = name if name in ("BN", "LN") and to == "ILMGN" else None
    same, report = surgery.convert(norm, to, replacing=replacing)
    assert same is norm
    assert report.left == {"": f"it has no {lacking}; give its class torch's names"}


class WidthlessNorm(nn.Module):
    """GroupNorm of four groups, whose width is known by its weight alone."""

    num_groups, eps = 4, 1e-3

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x):
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def test_a_class_with_other_attributes_needs_one_row(monkeypatch):
    monkeypatch.setitem(EXACT, re.escape(path_of(WidthlessNorm)), "GN")
    model = nn.Sequential(randomized(WidthlessNorm())).double()
    x = double(2, C, 5, 5)
    expected = model(x)
    new, report = surgery.convert(model, "ILMGN")
    assert not report.left
    assert_close(new(x), expected, EQUAL)
