"""Norms that have a weight and no bias, or a bias and no weight."""

import copy

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import Block, double, randomized
from ilm_plugins import NORMS, surgery
from ilm_plugins.surgery.norms import KEYS

C = 64
#: Key -> a plain norm that it replaces with the same outputs in evaluation.
EXACT = {
    "ILMGN": lambda: nn.GroupNorm(8, C),
    "ILMIN": lambda: nn.InstanceNorm2d(C, affine=True),
    "ILMLN": lambda: nn.GroupNorm(1, C),
    "AssocNorm": lambda: nn.GroupNorm(8, C),
    "EN": lambda: nn.BatchNorm2d(C),
    "AN": lambda: nn.GroupNorm(8, C),
}
IDENTITY = {"weight": torch.ones(C).double(), "bias": torch.zeros(C).double()}


@pytest.fixture(params=IDENTITY)
def lacking(request):
    """The name of the tensor that the norm lacks."""
    return request.param


def half(norm, lacking):
    norm = randomized(norm).double().eval()
    setattr(norm, lacking, None)
    return norm


def whole(norm):
    """A norm that computes the same, with both tensors."""
    norm = copy.deepcopy(norm)
    for name, value in IDENTITY.items():
        if getattr(norm, name) is None:
            setattr(norm, name, nn.Parameter(value.clone()))
    return norm


@pytest.mark.parametrize("to", EXACT)
def test_outputs_are_kept(to, lacking):
    plain, x = half(EXACT[to](), lacking), double(2, C, 5, 5)
    expected = plain(x)
    assert_close(surgery.convert(plain, to)[0](x), expected, EQUAL)


@pytest.mark.parametrize("to", KEYS.values())
def test_a_batchnorm_becomes_what_a_whole_one_becomes(to, lacking):
    plain, x = half(nn.BatchNorm2d(C), lacking), double(2, C, 5, 5)
    torch.manual_seed(0)
    expected, _ = surgery.convert(whole(plain), to, replacing="BN")
    torch.manual_seed(0)
    found, report = surgery.convert(plain, to, replacing="BN")
    assert report.converted
    assert_equal(found.state_dict(), expected.state_dict())
    assert_close(found(x), expected(x), EQUAL)


@pytest.mark.parametrize("to", KEYS.values())
def test_a_batchnorm_of_a_state_dict_becomes_what_a_whole_one_becomes(to, lacking):
    plain = half(nn.BatchNorm2d(C), lacking)
    torch.manual_seed(0)
    expected, _ = surgery.convert_state(whole(plain).state_dict(), to, replacing="BN")
    torch.manual_seed(0)
    found, report = surgery.convert_state(plain.state_dict(), to, replacing="BN")
    assert report.converted
    assert_equal(dict(found), dict(expected))


@pytest.mark.parametrize("to", EXACT)
def test_a_state_dict_fits_a_model_with_the_same_outputs(to, lacking):
    plain, x = half(EXACT[to](), lacking), double(2, C, 5, 5)
    model = Block("norm", surgery.convert(EXACT[to](), to)[0].double().eval())
    state, report = surgery.fit_state(Block("norm", plain).state_dict(), model)
    assert report.converted.keys() == {"norm"}
    model.load_state_dict(state)
    assert_close(model.norm(x), plain(x), EQUAL)


def test_a_weight_or_a_bias_alone_in_a_state_dict_is_left_with_the_reason(lacking):
    plain = half(nn.GroupNorm(8, C), lacking)
    state, report = surgery.convert_state(Block("norm", plain).state_dict(), "ILMGN", match="norm")
    assert f"has no {lacking}" in report.left["norm"]
    assert_equal(dict(state), dict(Block("norm", plain).state_dict()))


@pytest.mark.parametrize("to", EXACT)
def test_a_whole_norm_fits_a_model_that_lacks_what_it_does_not_use(to, lacking):
    plain = half(EXACT[to](), lacking)
    layer, _ = surgery.convert(copy.deepcopy(plain), to)
    state, report = surgery.fit_state(Block("n", layer).state_dict(), Block("n", plain))
    assert report.converted
    assert_close(dict(state), dict(Block("n", plain).state_dict()), 16)


@pytest.mark.parametrize("to", EXACT)
def test_a_tensor_that_the_models_norm_lacks_is_not_dropped(to, lacking):
    plain = half(EXACT[to](), lacking)
    layer, _ = surgery.convert(randomized(EXACT[to]()).double().eval(), to)
    _, report = surgery.fit_state(Block("n", layer).state_dict(), Block("n", plain))
    assert report.left["n"] == f"it has a {lacking}, which {type(plain).__name__} lacks"


@pytest.mark.parametrize("to", KEYS.values())
def test_a_layer_without_one_of_its_tensors_is_left(to, lacking):
    layer = NORMS[to](C)
    setattr(layer, lacking, None)
    same, report = surgery.revert(layer)
    assert same is layer
    assert f"its {lacking} is missing" in report.left[""]


class Broken(nn.BatchNorm2d):
    """A norm without an attribute that a conversion reads."""

    @property
    def momentum(self):
        raise KeyError("momentum")

    @momentum.setter
    def momentum(self, value):
        pass


def test_a_conversion_that_fails_leaves_the_model_as_it_was():
    norms = [randomized(make(C)) for make in (nn.BatchNorm2d, Broken, nn.BatchNorm2d)]
    norms[0].bias.requires_grad_(False)
    norms[2].requires_grad_(False)
    model = nn.Sequential(*norms)
    before = {name: (p, p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    with pytest.raises(KeyError, match="momentum"):
        surgery.convert(model, "EN", types=[nn.BatchNorm2d, Broken])
    assert all(now is then for now, then in zip(model, norms, strict=True))
    for name, p in model.named_parameters():
        then, trained, value = before[name]
        assert p is then
        assert p.requires_grad == trained
        assert_equal(p, value)


def test_a_return_that_fails_leaves_the_model_as_it_was():
    layers = [surgery.convert(randomized(nn.BatchNorm2d(C)), "EN")[0] for _ in range(2)]
    del layers[1].momentum
    model = nn.Sequential(*layers)
    with pytest.raises(AttributeError, match="momentum"):
        surgery.revert(model)
    assert model[0] is layers[0]
