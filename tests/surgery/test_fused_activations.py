"""Layers apply the activations that follow them, in known modules only, and give them back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import ilm_plugins as own
from helpers.close import EQUAL, assert_close, assert_equal
from helpers.fused_norms import assert_fuses, results, trained
from helpers.swapped_norms import double, small
from ilm_plugins import NORMS, surgery
from ilm_plugins.layers.activated import FusedActivation
from ilm_plugins.ops.engine.activation import Activation
from ilm_plugins.surgery.norms import KEYS


def chain(norm, activation):
    return nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), norm, activation, nn.Conv2d(32, 2, 1))


ACTIVATIONS = [
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-0.2),
    nn.SiLU(inplace=True),
    nn.Hardswish(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_an_activation_in_a_sequential_is_applied_by_the_norm(activation):
    assert_fuses(chain(own.ILMGroupNorm(32), activation), double(2, 3, 7, 7), 1)


@pytest.mark.parametrize("key", KEYS.values())
def test_every_layer_applies_an_activation(key):
    assert_fuses(chain(NORMS[key](32), nn.SiLU()), double(2, 3, 7, 7), 1)


class Renamed(nn.Sequential):
    """It keeps the forward of Sequential."""


class Backwards(nn.Sequential):
    """Its forward has another order."""

    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


class Reversed(nn.Sequential):
    def __iter__(self):
        return reversed([*self._modules.values()])


class Reading(nn.Module):
    """It reads the norm's output, too."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.act = norm, nn.ReLU()

    def forward(self, x):
        x = self.norm(x)
        return x + self.act(x)


class Own(own.ILMGroupNorm):
    """A user's norm, which applies a function to the result."""

    def normalize(self, *args):
        return super().normalize(*args).tanh()


def test_a_subclass_that_keeps_the_forward_is_known():
    assert_fuses(Renamed(own.ILMGroupNorm(32), nn.ReLU()), double(2, 32, 5, 5), 1)


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: None)
    return module


def shared():
    norm = own.ILMGroupNorm(32)
    return nn.Sequential(norm, nn.ReLU(), nn.Sequential(norm, nn.Tanh()))


def held():
    model = nn.Sequential(own.ILMGroupNorm(32), nn.ReLU())
    model.norms = [model[0]]
    return model


def with_shared_activation():
    relu = nn.ReLU()
    return nn.Sequential(own.ILMGroupNorm(32), relu, nn.Sequential(nn.Identity(), relu))


def parametrized():
    norm = own.ILMGroupNorm(32)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    return nn.Sequential(norm, nn.ReLU())


def replaced():
    model = nn.Sequential(own.ILMGroupNorm(32), nn.ReLU())
    model.forward = lambda x: model[0](x)
    return model


def applying():
    norm = own.ILMGroupNorm(32)
    norm.fused_activation = Activation("silu")
    return nn.Sequential(norm, nn.ReLU())


NOTHING = "no activation follows it in a module whose forward is known"
LEFT = [
    (lambda: Backwards(nn.ReLU(), own.ILMGroupNorm(32)), NOTHING),
    (lambda: Reversed(own.ILMGroupNorm(32), nn.ReLU()), NOTHING),
    (lambda: Reading(own.ILMGroupNorm(32)), NOTHING),
    (lambda: nn.Sequential(own.ILMGroupNorm(32)), NOTHING),
    (lambda: nn.Sequential(own.ILMGroupNorm(32), nn.GELU()), "GELU follows it"),
    (lambda: nn.Sequential(own.ILMGroupNorm(32), nn.Dropout(), nn.ReLU()), "Dropout follows it"),
    (lambda: nn.Sequential(Own(32), nn.ReLU()), "Own cannot apply it"),
    (lambda: nn.Sequential(hooked(own.ILMGroupNorm(32)), nn.ReLU()), "the norm has hooks"),
    (lambda: nn.Sequential(own.ILMGroupNorm(32), hooked(nn.ReLU())), "activation has hooks"),
    (shared, "several modules have the norm"),
    (with_shared_activation, "several modules have its activation"),
    (held, "Sequential.norms also refers to the norm"),
    (parametrized, "cannot apply it"),
    (replaced, NOTHING),
    (applying, "it applies one already"),
]


@pytest.mark.parametrize("build, words", LEFT)
def test_what_is_not_known_is_left_alone_and_listed(build, words):
    model = build()
    before = repr(model)
    report = surgery.fuse_activations(model)
    assert not report.converted
    assert [words in reason for reason in report.left.values()] == [True]
    assert repr(model) == before


def test_plain_norms_are_left_alone():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.GroupNorm(1, 3), nn.ReLU())
    assert str(surgery.fuse_activations(model)) == "no norms"
    assert not any(isinstance(m, FusedActivation) for m in model.modules())


def test_patterns_select_layers():
    model, _ = surgery.convert(small(), "ILMGN")
    report = surgery.fuse_activations(model, match="head*")
    assert [*report.converted] == ["head.1"]
    assert not report.left


def test_conversion_fuses_and_its_report_says_what():
    model, x = small(), double(2, 3, 9, 9)
    expected = model(x)
    model.tail = nn.Sequential(nn.GroupNorm(1, 16))
    model, report = surgery.convert(model, "ILMGN", fuse_activations=True)
    assert report.notes == {
        "applies its activation": ["stem.1", "head.1"],
        f"no fusing: {NOTHING}": ["tail.0"],
    }
    assert_close(model(x), expected, EQUAL)


def test_a_fused_layer_is_converted_with_its_activation():
    model = chain(trained(own.SwitchNorm(32)), nn.SiLU()).double()
    surgery.fuse_activations(model)
    expected = results(model, x := double(2, 3, 7, 7))[0]
    model, _ = surgery.convert(model, "SSN")
    assert model[1].fused_activation == Activation("silu")
    assert_close(results(model, x)[0], expected, EQUAL)


def test_the_report_of_a_conversion_names_norms_and_no_activations():
    model = chain(own.ILMGroupNorm(32), nn.ReLU())
    surgery.fuse_activations(model)
    assert [*surgery.convert(model, "EN")[1].left] == ["1"]


def test_reverting_gives_plain_norms_and_all_activations_back():
    """Also that of a layer which stays."""
    plain, x = small(), double(2, 3, 9, 9)
    model, _ = surgery.convert(copy.deepcopy(plain), "ILMGN", fuse_activations=True)
    model, _ = surgery.revert(model)
    assert repr(model) == repr(plain)
    assert_equal(model(x), plain(x))
    model, _ = surgery.convert(copy.deepcopy(plain), "ILMGN", fuse_activations=True)
    trained(model.stem)
    expected = model(x)
    model, report = surgery.revert(model)
    assert [*report.left] == ["stem.1"]
    assert type(model.stem[2]) is nn.ReLU
    assert_close(model(x), expected, EQUAL)


def test_a_layer_outside_known_modules_keeps_its_activation():
    model = Reading(own.ILMGroupNorm(32, init="identity"))
    model.norm.fused_activation = Activation("relu")
    _, report = surgery.revert(model)
    assert "it applies an activation outside" in report.left["norm"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_stay_fused_and_can_be_reverted(clone):
    plain, x = small(), double(2, 3, 9, 9)
    model, _ = surgery.convert(copy.deepcopy(plain), "ILMGN", fuse_activations=True)
    copied, unfused = clone(model), surgery.convert(copy.deepcopy(plain), "ILMGN")[0]
    assert repr(copied) == repr(model) != repr(unfused)
    assert copied.state_dict().keys() == unfused.state_dict().keys()
    assert_equal(copied(x), model(x))
    assert repr(surgery.revert(copied)[0]) == repr(plain)


def test_hooks_see_the_activations_output():
    model, x, seen = chain(own.ILMGroupNorm(32), nn.ReLU()), torch.randn(2, 3, 7, 7), []
    surgery.fuse_activations(model)
    for module in (model[1], model[2]):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x)
    assert_equal(seen[0], seen[1])
    assert seen[0].min() == 0


def test_torch_fx_traces_fused_models():
    model = chain(trained(own.ILMGroupNorm(32)), nn.ReLU())
    surgery.fuse_activations(model)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1", "2", "3"]
    assert_equal(traced(x := torch.randn(2, 3, 7, 7)), model(x))
