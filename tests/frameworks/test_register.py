"""Layers of one's own under a key."""

import sys

import pytest
from torch import nn

import fresh
import ilm_plugins
from ilm_plugins import NORMS
from ilm_plugins.frameworks import installed


class OwnNorm(nn.GroupNorm):
    def __init__(self, num_channels, num_groups=1, eps=1e-5):
        super().__init__(num_groups, num_channels, eps)


@pytest.fixture
def own():
    """OwnNorm, registered twice, until the test ends."""
    for _ in range(2):
        ilm_plugins.register("Own_Norm", OwnNorm)
    yield OwnNorm
    del NORMS["Own_Norm"]
    if "mmengine.registry" in sys.modules:
        sys.modules["mmengine.registry"].MODELS.module_dict.pop("Own_Norm", None)
    getattr(sys.modules.get("timm.layers.create_norm"), "_NORM_MAP", {}).pop("ownnorm", None)
    getattr(sys.modules.get("timm.layers.create_norm_act"), "_NORM_ACT_MAP", {}).pop(
        "ownnorm", None
    )


def test_detectron2_finds_it_once_registered(request):
    layers = pytest.importorskip("detectron2.layers", reason="needs detectron2")
    with pytest.raises(KeyError):
        layers.get_norm("Own_Norm", 8)
    own = request.getfixturevalue("own")
    layer = layers.get_norm("Own_Norm(eps=1e-3)", 8)
    assert type(layer) is own and layer.eps == 1e-3 and layer.num_channels == 8


def test_mmcv_finds_it_once_registered(own):
    bricks = pytest.importorskip("mmcv.cnn", reason="needs OpenMMLab")
    assert type(bricks.build_norm_layer({"type": "Own_Norm"}, 8)[1]) is own


def test_timm_finds_it_once_registered(own):
    layers = pytest.importorskip("timm.layers", reason="needs timm")
    assert type(layers.get_norm_layer("Own_Norm")(8)) is own
    assert type(layers.get_norm_act_layer("Own_Norm", nn.SiLU)(8)[0]) is own


A_KEY_OF_THE_FRAMEWORKS = """
import importlib, warnings
from torch import nn
import ilm_plugins

OwnNorm = type("OwnNorm", (nn.GroupNorm,), dict())

def ours():
    ilm_plugins.register("BN", OwnNorm)

def theirs():
    return [importlib.import_module(name) for name in {modules}]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in {order}:
        step()
    ilm_plugins.register("OwnNorm", OwnNorm)
told = [str(w.message) for w in caught if "ilm_plugins" in str(w.message)]
assert len(told) == len({modules}) and all("BN" in text for text in told), told
for module in theirs():
    d2 = module.__name__ == "detectron2.layers"
    found = module.get_norm("BN", 8) if d2 else module.build_norm_layer(dict(type="BN"), 8)[1]
    assert isinstance(found, nn.modules.batchnorm._BatchNorm), found
"""


@pytest.mark.parametrize("order", ["(ours, theirs)", "(theirs, ours)"])
def test_a_key_of_a_framework_stays_theirs_with_a_warning(order):
    modules = [m for m in ("detectron2.layers", "mmcv.cnn") if installed(m.partition(".")[0])]
    code = A_KEY_OF_THE_FRAMEWORKS.format(order=order, modules=modules)
    fresh.run([sys.executable, "-c", code], check=True)


A_KEY_OF_TIMM = """
import warnings
from torch import nn
import ilm_plugins

class {name}(nn.GroupNorm):
    def __init__(self, num_channels):
        super().__init__(1, num_channels)

def ours():
    ilm_plugins.register("{key}", {name})

def theirs():
    import timm.layers

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in {order}:
        step()
    ilm_plugins.register("Another", type("Another", (nn.GroupNorm,), dict()))
(told,) = [str(w.message) for w in caught if str(w.message).startswith("timm")]
from timm.layers import get_norm_act_layer, get_norm_layer
"""
IN_BOTH_ORDERS = pytest.mark.parametrize("order", ["(ours, theirs)", "(theirs, ours)"])


@IN_BOTH_ORDERS
@pytest.mark.parametrize("key", ["FRN", "EvoNorm_B0"])
def test_a_key_that_timm_has_for_a_norm_with_activation_is_nowhere_ours(order, key):
    """timm has no such norm without activation, so the name is unknown there."""
    pytest.importorskip("timm", reason="needs timm")
    code = A_KEY_OF_TIMM.format(key=key, name="OwnNorm", order=order)
    code += f"""
assert told.startswith("timm has {key} already, which stays"), told
try:
    assert not get_norm_layer("{key}")
except KeyError:
    pass
assert get_norm_act_layer("{key}", nn.ReLU)(8).__class__.__module__.startswith("timm.")
assert type(get_norm_layer(OwnNorm)(8)) is OwnNorm
assert type(get_norm_act_layer(OwnNorm, nn.ReLU)(8)[0]) is OwnNorm
"""
    fresh.run([sys.executable, "-c", code], check=True)


@IN_BOTH_ORDERS
def test_a_key_that_timm_has_for_a_plain_norm_stays_timms_joined_with_its_activation_too(order):
    pytest.importorskip("timm", reason="needs timm")
    code = A_KEY_OF_TIMM.format(key="SimpleNorm", name="OwnNorm", order=order)
    code += """
assert told.startswith("timm has SimpleNorm already, which stays"), told
assert get_norm_layer("simplenorm").__module__.startswith("timm.")
try:
    assert not get_norm_act_layer("simplenorm", nn.ReLU)
except KeyError:
    pass
"""
    fresh.run([sys.executable, "-c", code], check=True)


@IN_BOTH_ORDERS
def test_a_class_that_timm_would_replace_by_its_name_gives_a_warning(order):
    pytest.importorskip("timm", reason="needs timm")
    code = A_KEY_OF_TIMM.format(key="Own", name="LayerNorm2d", order=order)
    code += """
assert "timm joins a class named LayerNorm2d with its activation" in told, told
assert type(get_norm_act_layer("own", nn.ReLU)(8)[0]) is LayerNorm2d
"""
    fresh.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "key, layer, message",
    [
        ("EN", OwnNorm, "'EN' is ExemplarNorm already"),
        ("my norm", OwnNorm, "key 'my norm' is no identifier"),
        ("OwnNorm", OwnNorm(8), "is no class of nn.Module"),
        ("OwnNorm", int, "is no class of nn.Module"),
    ],
)
def test_what_cannot_be_registered(key, layer, message):
    before = dict(NORMS)
    with pytest.raises(ValueError, match=message):
        ilm_plugins.register(key, layer)
    assert before == NORMS
