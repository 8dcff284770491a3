"""Older names of an option, a key and a buffer work wherever names are taken, with a warning."""

import sys

import pytest
import torch
from converting import run
from torch import nn

from close import assert_equal
from ilm_plugins import ILMGroupNorm, surgery
from ilm_plugins.checkpoints import read
from ilm_plugins.frameworks import install_import_hooks
from ilm_plugins.layers import OptionError, norm_key, parse_call
from ilm_plugins.layers.renamed import RENAMED

#: A rename of each kind, older names first.
NAMES = {"OldGN": "ILMGN", "key_size": "key_group_size", "shift": "omega_offset"}
NORM = "OldGN(key_size=8)"


@pytest.fixture(autouse=True)
def renamed(monkeypatch):
    for older, name in NAMES.items():
        monkeypatch.setitem(RENAMED, older, name)
    yield
    for module, maps in {
        "mmengine.registry": lambda module: [module.MODELS.module_dict],
        "timm.layers.create_norm": lambda module: [module._NORM_MAP],
        "timm.layers.create_norm_act": lambda module: [module._NORM_ACT_MAP],
    }.items():
        for names in maps(sys.modules[module]) if module in sys.modules else ():
            names.pop("OldGN", None)
            names.pop("oldgn", None)


def by_constructor():
    return ILMGroupNorm(64, key_size=8)


def by_detectron2():
    layers = pytest.importorskip("detectron2.layers", reason="needs detectron2")
    return layers.get_norm(NORM, 64)


def by_mmcv():
    cnn = pytest.importorskip("mmcv.cnn", reason="needs OpenMMLab")
    install_import_hooks()
    return cnn.build_norm_layer({"type": "OldGN", "key_size": 8}, 64)[1]


def by_timm():
    layers = pytest.importorskip("timm.layers", reason="needs timm")
    install_import_hooks()
    return layers.get_norm_layer("oldgn")(64, key_size=8)


def by_surgery():
    return surgery.convert(nn.GroupNorm(32, 64), "OldGN", key_size=8)[0]


def by_surgery_with_options_by_default():
    """``replacing`` makes all options "auto" that are not given."""
    return surgery.convert(nn.BatchNorm2d(64), "OldGN", replacing="BN", key_size=8)[0]


ENTRIES = [
    *(by_constructor, by_detectron2, by_mmcv, by_timm, by_surgery),
    by_surgery_with_options_by_default,
]


@pytest.mark.parametrize("build", ENTRIES)
def test_a_layer_is_built_with_a_warning(build):
    older = ["key_size"] if build is by_constructor else ["OldGN", "key_size"]
    with pytest.warns(FutureWarning) as told:
        layer = build()
    assert type(layer) is ILMGroupNorm
    assert layer.key_group_size == 8
    messages = {str(w.message) for w in told if w.category is FutureWarning}
    assert messages == {f"{o} is called {NAMES[o]} now; write {NAMES[o]}" for o in older}


def test_an_option_reaches_a_subclass_that_hands_its_options_on():
    class Own(ILMGroupNorm):
        def __init__(self, num_channels, **options):
            super().__init__(num_channels, **options)

    with pytest.warns(FutureWarning, match="key_size"):
        assert Own(64, key_size=8).key_group_size == 8


def test_a_state_dict_is_converted_by_the_command(tmp_path):
    torch.save({"gn.weight": torch.ones(64), "gn.bias": torch.zeros(64)}, tmp_path / "in.pth")
    with pytest.warns(FutureWarning, match="OldGN is called ILMGN"):
        assert run(tmp_path / "in.pth", tmp_path / "out.pth", "--to", NORM, "--match", "gn") == 0
    assert read(tmp_path / "out.pth")["gn.encode.weight"].shape == (2, 8)


def test_a_norm_of_compare_is_read_as_todays_norm():
    with pytest.warns(FutureWarning, match="OldGN is called ILMGN"):
        assert parse_call(NORM) == ("ILMGN", {"key_size": 8})
    assert norm_key(NORM) == "ILMGN"


def test_a_tensor_loads(recwarn):
    layer, other = ILMGroupNorm(64, init="identity"), ILMGroupNorm(64)
    state = {name.replace("omega_offset", "shift"): t for name, t in layer.state_dict().items()}
    other.load_state_dict(state)
    assert_equal(other.state_dict(), layer.state_dict())
    assert not recwarn


def test_an_option_under_both_names_is_refused():
    words = "key_size and key_group_size are the same option"
    with pytest.warns(FutureWarning), pytest.raises(OptionError, match=words):
        ILMGroupNorm(64, key_size=8, key_group_size=16)


def test_an_older_name_that_a_class_has_keeps_its_meaning(monkeypatch, recwarn):
    monkeypatch.setitem(RENAMED, "num_groups", "key_group_size")
    assert ILMGroupNorm(64, num_groups=8).num_groups == 8
    assert not recwarn
