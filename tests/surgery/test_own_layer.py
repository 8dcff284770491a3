"""A layer of a user's own that joins the tables of surgery, as docs/adding-a-normalizer.md says."""

import copy

import pytest
import torch
from torch import nn

import ilm_plugins
from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import double, randomized
from ilm_plugins import NORMS, surgery
from ilm_plugins.surgery import norms, norms_in_state_dict, rules


@pytest.fixture
def own(root, monkeypatch):
    """The page's InstanceLayerNorm, in the tables that the page names, with a rule to and fro."""
    page, names = (root / "docs" / "adding-a-normalizer.md").read_text("utf-8"), {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    layer = names["InstanceLayerNorm"]
    monkeypatch.setitem(NORMS, "ILN", layer)
    monkeypatch.setitem(norms.LAYERS, layer, "ILN")
    monkeypatch.setitem(norms.KEYS, layer, "ILN")
    layout = norms_in_state_dict._layout_of(layer)
    monkeypatch.setitem(norms_in_state_dict.LAYOUTS, "ILN", layout)

    def to_own(tensors, layer):
        return {**tensors, "rho": torch.ones_like(tensors["weight"])}

    def back(tensors, layer):
        if (tensors["rho"] != 1).any():
            raise rules.Refused("it mixes LN")
        return tensors

    added = rules.Rule("IN", ("ILN",), to_own), rules.Rule("ILN", ("IN",), back)
    monkeypatch.setattr(rules, "RULES", (*rules.RULES, *added))
    return layer


def plain():
    norm = randomized(nn.InstanceNorm2d(8, affine=True))
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm).double()


def test_a_model_is_converted_and_comes_back(own):
    model, x = plain(), double(2, 3, 5, 5)
    expected = model(x)
    converted, _ = surgery.convert(copy.deepcopy(model), "ILN")
    assert type(converted[1]) is own
    assert_close(converted(x), expected, EQUAL)
    back, _ = surgery.revert(converted)
    assert type(back[1]) is nn.InstanceNorm2d
    assert_close(dict(back.state_dict()), dict(model.state_dict()), 16)


def test_a_state_dict_is_converted_and_comes_back(own):
    state = plain().state_dict()
    converted, _ = surgery.convert_state(state, "ILN", match="1")
    assert "1.rho" in converted
    assert_close(dict(surgery.revert_state(converted)[0]), dict(state), 16)


def test_what_is_no_plain_norm_stays_with_the_rules_reason(own):
    model, _ = surgery.convert(plain(), "ILN")
    nn.init.constant_(model[1].rho, 0.5)
    assert surgery.revert_state(model.state_dict())[1].left == {"1": "it mixes LN"}
    assert surgery.revert(model)[1].left == {"1": "it mixes LN"}


def test_it_is_registered_and_computes_its_equation(own):
    ilm_plugins.register("ILN", own)
    layer, x = own(6).double(), double(3, 6, 5, 4)
    instance = nn.functional.layer_norm(x, x.shape[1:], eps=layer.eps)
    expected = (nn.functional.instance_norm(x, eps=layer.eps) + instance) / 2
    assert_close(layer(x), expected, EQUAL)
