"""LayerNorm2d of timm and torchvision, which normalizes the channels of each pixel."""

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import Block, double, randomized
from ilm_plugins import NORMS, surgery
from ilm_plugins.layers import OptionError

C = 24
#: Key -> groups of the GroupNorm as which the layer starts.
GROUPS = {"ILMGN": 8, "ILMIN": 24, "ILMLN": 1, "AssocNorm": 8}


@pytest.fixture(params=["timm.layers.norm", "torchvision.models.convnext"])
def layer_norm(request):
    """A norm of pixels, of random weights."""
    module = pytest.importorskip(request.param, reason="needs timm or torchvision")
    return randomized(module.LayerNorm2d(C, eps=1e-3)).double()


@pytest.fixture
def state(layer_norm):
    return Block("norm", layer_norm).state_dict()


@pytest.mark.parametrize("to", GROUPS)
def test_it_becomes_a_norm_of_each_image(layer_norm, to):
    weight, bias, x = layer_norm.weight, layer_norm.bias, double(2, C, 5, 5)
    layer, report = surgery.convert(layer_norm, to, replacing="LN")
    assert report.converted == {"": f"LayerNorm2d -> {NORMS[to].__name__}"}
    expected = nn.functional.group_norm(x, GROUPS[to], weight, bias, 1e-3)
    assert_close(layer(x), expected, EQUAL)


def test_the_report_tells_that_outputs_change(layer_norm):
    _, report = surgery.convert(layer_norm, "ILMLN", replacing="LN")
    (note,) = report.notes
    assert note.startswith("outputs change: each image's statistics take the place of each pixel's")


def test_it_stays_unless_it_is_asked_for(layer_norm):
    same, report = surgery.convert(layer_norm, "ILMLN")
    assert same is layer_norm
    assert "replaces GroupNorm; give --replacing LN, or replacing='LN'" in report.left[""]


@pytest.mark.parametrize("norm", [nn.LayerNorm(C), nn.LayerNorm((C, 5, 5))], ids=str)
def test_torchs_own_stays_because_of_its_dimensions(norm):
    _, report = surgery.convert(norm, "ILMLN", replacing="LN", types=[nn.LayerNorm])
    assert "normalizes the last dimensions" in report.left[""]


def test_nobody_is_advised_to_replace_torchs_own():
    _, report = surgery.convert(nn.LayerNorm(C), "ILMLN")
    assert "--replacing" not in report.left[""]


def test_a_layer_without_a_rule_is_not_offered(layer_norm):
    with pytest.raises(OptionError, match="replacing='LN' is unknown; set it to one of 'BN'"):
        surgery.convert(layer_norm, "EN", replacing="LN")


def test_a_norm_without_parameters_becomes_a_layer_of_scale_1():
    convnext = pytest.importorskip("torchvision.models.convnext", reason="needs torchvision")
    plain = convnext.LayerNorm2d(C, elementwise_affine=False)
    layer, _ = surgery.convert(plain, "ILMLN", replacing="LN")
    assert_equal(layer.weight.detach(), torch.ones(C))
    assert_equal(layer.bias.detach(), torch.zeros(C))


def test_the_way_back_leads_to_the_norm_of_each_image(layer_norm):
    x = double(2, C, 5, 5)
    layer, _ = surgery.convert(layer_norm, "ILMLN", replacing="LN")
    expected = layer(x)
    back, _ = surgery.revert(layer)
    assert type(back) is nn.GroupNorm
    assert_close(back(x), expected, EQUAL)


def test_a_state_dict_becomes_what_the_model_becomes(layer_norm, state):
    found, _ = surgery.convert_state(state, "ILMLN", match="norm", replacing="LN")
    model, _ = surgery.convert(Block("norm", layer_norm), "ILMLN", replacing="LN")
    model.load_state_dict(found)
    x = double(2, C, 5, 5)
    expected = nn.functional.group_norm(x, 1, state["norm.weight"], state["norm.bias"], 1e-3)
    assert_close(model.norm(x), expected, EQUAL)


def test_the_report_on_a_state_dict_tells_that_outputs_change(state):
    _, report = surgery.convert_state(state, "ILMLN", match="norm", replacing="LN")
    assert "the place of each pixel's" in str(report)


def test_the_report_on_a_groupnorm_in_a_state_dict_tells_no_change(state):
    _, report = surgery.convert_state(state, "ILMLN", match="norm", key_group_size=8)
    assert report.converted
    assert "outputs change:" not in str(report)


def test_a_layers_state_dict_does_not_fit_a_model_of_it(layer_norm, state):
    layers, _ = surgery.convert_state(state, "ILMLN", match="norm", replacing="LN")
    _, report = surgery.fit_state(layers, Block("norm", layer_norm))
    assert report.left["norm"] == "ILM does not become LayerNorm2d"
