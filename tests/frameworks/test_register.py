"""Layers of one's own under a key."""

import sys

import pytest
from torch import nn

import ilm_plugins
from helpers import processes
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
    assert type(layer) is own
    assert layer.eps == 1e-3
    assert layer.num_channels == 8


def test_mmcv_finds_it_once_registered(own):
    bricks = pytest.importorskip("mmcv.cnn", reason="needs OpenMMLab")
    assert type(bricks.build_norm_layer({"type": "Own_Norm"}, 8)[1]) is own


def test_timm_finds_it_once_registered(own):
    layers = pytest.importorskip("timm.layers", reason="needs timm")
    assert type(layers.get_norm_layer("Own_Norm")(8)) is own
    assert type(layers.get_norm_act_layer("Own_Norm", nn.SiLU)(8)[0]) is own


IN_BOTH_ORDERS = pytest.mark.parametrize("first", ["ours", "theirs"])


@IN_BOTH_ORDERS
def test_a_key_of_a_framework_stays_theirs_with_a_warning(first):
    modules = [m for m in ("detectron2.layers", "mmcv.cnn") if installed(m.partition(".")[0])]
    processes.run_program("framework_key_taken.py", first, *modules)


@IN_BOTH_ORDERS
def test_a_key_that_timm_has_gives_a_warning_and_stays_timms(first):
    pytest.importorskip("timm", reason="needs timm")
    processes.run_program("timm_key_taken.py", "EvoNorm_B0", first)


def test_a_release_that_is_not_fitted_is_imported_and_told_in_one_line(tmp_path):
    processes.run_program("unknown_releases.py", tmp_path)


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
