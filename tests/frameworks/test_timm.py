"""timm's models take the layers as ``norm_layer``, by key or as a class."""

import warnings

import pytest
import torch
from torch import nn

from ilm_plugins import NORMS, ILMGroupNorm
from ilm_plugins.frameworks.timm import conflicts

timm = pytest.importorskip("timm", reason="needs timm")


@pytest.mark.parametrize("key", NORMS)
def test_a_norm_is_built_by_its_key(key):
    assert type(timm.layers.get_norm_layer(key.lower())(24)) is NORMS[key]


@pytest.mark.parametrize("key", NORMS)
def test_a_norm_joined_with_its_activation_is_built_by_its_key(key):
    norm, applied = timm.layers.get_norm_act_layer(key.lower(), nn.SiLU)(24, inplace=True)
    assert type(norm) is NORMS[key]
    assert norm.fused_activation.name == "silu"
    assert type(applied.original) is nn.SiLU


@pytest.mark.parametrize("key", NORMS)
def test_without_its_activation_a_joined_norm_is_the_norm(key):
    assert type(timm.layers.create_norm_act_layer(key, 24, apply_act=False)) is NORMS[key]


@pytest.mark.parametrize(
    "key, name, words",
    [
        ("Own", "Own", []),
        ("LayerNorm2d", "Own", ["timm has LayerNorm2d already"]),
        ("EvoNorm_B0", "Own", ["timm has EvoNorm_B0 already"]),
        ("Own", "LayerNorm2d", ["timm joins a class named LayerNorm2d"]),
        ("FRN", "BatchNorm2d", ["timm has FRN already", "timm joins a class named BatchNorm2d"]),
    ],
)
def test_a_name_that_timm_has_is_told(key, name, words):
    """By the warning of ``register``, and by ``tests/contract.py``."""
    told = [*conflicts(key, type(name, (ILMGroupNorm,), {}))]
    assert [line[: len(start)] for line, start in zip(told, words, strict=True)] == words


@pytest.mark.parametrize(
    "name, norm_layer",
    [("resnet18", ILMGroupNorm), ("efficientnet_b0", "ilmgn")],
)
def test_models_train_without_batchnorm(name, norm_layer):
    model = timm.create_model(name, norm_layer=norm_layer, num_classes=2)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    modules = list(model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    norms = [module for module in modules if isinstance(module, ILMGroupNorm)]
    assert norms
    assert all(norm.encode.weight.grad is not None for norm in norms)


@pytest.fixture
def with_dropout():
    """A layer with dropout and an activation, which timm builds with options for each part."""
    options = {"act_kwargs": {"negative_slope": 0.5}, "inplace": False, "reduction": 4}
    return timm.layers.get_norm_act_layer("en", nn.LeakyReLU)(8, drop_layer=nn.Dropout, **options)


def test_dropout_comes_before_the_activation(with_dropout):
    kinds = [type(module) for module in with_dropout]
    assert kinds == [NORMS["EN"], nn.Dropout, nn.LeakyReLU]


def test_options_reach_the_norm(with_dropout):
    assert with_dropout[0].reduction == 4


def test_options_reach_the_activation(with_dropout):
    activation = with_dropout[2]
    assert activation.negative_slope == 0.5
    assert not activation.inplace


@pytest.fixture
def pretrained(tmp_path):
    """The function (name, norm of the weights, norm) -> a model that starts from weights.

    For another number of classes, timm accepts missing and unexpected tensors.
    """

    def create(name, stored, norm):
        source = {"file": str(tmp_path / "w.pth")}
        torch.save(timm.create_model(name, norm_layer=stored).state_dict(), source["file"])
        options = {"pretrained": True, "pretrained_cfg_overlay": source, "num_classes": 2}
        return timm.create_model(name, norm_layer=norm, **options)

    return create


@pytest.mark.parametrize("stored, norm", [("batchnorm2d", "sn"), ("groupnorm", "ilmgn")])
def test_pretrained_weights_of_another_norm_give_a_warning(pretrained, stored, norm):
    told = r"ResNet gets another norm's weights for 20 layers, such as bn1, .*surgery\.convert"
    with pytest.warns(UserWarning, match=told):
        pretrained("resnet18", stored, norm)


def test_weights_of_another_norm_with_its_activation_inside_give_a_warning(pretrained):
    told = r"EfficientNet gets another norm's weights for 52 layers, such as bn1\.0, "
    with pytest.warns(UserWarning, match=told):
        pretrained("mobilenetv2_050", "batchnorm2d", "ilmgn")


@pytest.mark.parametrize("norm", ["batchnorm2d", "ilmgn"])
def test_pretrained_weights_of_the_same_norm_give_no_warning(pretrained, norm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrained("mobilenetv2_050", norm, norm)
