"""Conversions that change the outputs: BatchNorm to SN and to layers of each image's statistics."""

import inspect

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import BOTH, Small, double, randomized, small
from ilm_plugins import NORMS, ILMGroupNorm, SwitchNorm, freeze, surgery

OUTPUTS_CHANGE = "outputs change: each image's own statistics take the place of BatchNorm's"
GROUPS = {"ILMGN": 8, "ILMIN": 24, "ILMLN": 1, "AssocNorm": 8, "AN": 8}


@pytest.mark.parametrize("to", GROUPS)
def test_batchnorm_becomes_a_norm_of_each_image(to):
    """The layer starts as GroupNorm or the like, with BatchNorm's weight, bias and eps."""
    plain = randomized(nn.BatchNorm2d(24, eps=1e-3)).double().eval()
    weight, bias = plain.weight, plain.bias
    new, report = surgery.convert(plain, to, replacing="BN")
    assert type(new) is NORMS[to]
    assert not new.training
    assert not report.left
    assert new.weight is weight
    assert new.bias is bias
    assert new.num_groups == GROUPS[to]
    assert [note.startswith(OUTPUTS_CHANGE) for note in report.notes] == [True]
    x = double(2, 24, 5, 5)
    expected = nn.functional.group_norm(x, GROUPS[to], weight, bias, 1e-3)
    assert_close(new(x), expected, EQUAL)
    assert_close(surgery.revert(new)[0](x), expected, EQUAL)


@pytest.fixture
def widths():
    """A model of BatchNorms of several widths, one of them bare, converted; the report."""
    bare = nn.BatchNorm2d(64, affine=False, track_running_stats=False)
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in (3, 24, 144)), bare, nn.GroupNorm(4, 64))
    return surgery.convert(model, "ILMGN", replacing="BN")


def test_any_width_of_batchnorm_fits(widths):
    model, _ = widths
    assert [m.num_groups for m in model] == [1, 8, 16, 32, 4]
    assert [m.num_channels // m.num_key_groups for m in model[:4]] == [1, 8, 16, 16]


def test_a_norm_of_another_kind_stays(widths):
    _, report = widths
    assert report.left == {"4": "GroupNorm, but ILMGN replaces BatchNorm"}


def test_a_batchnorm_without_weight_or_statistics_becomes_a_layer_that_is_trained(widths):
    model, _ = widths
    assert model[3].weight.requires_grad


def test_an_option_that_is_given_takes_the_place_of_auto():
    given, _ = surgery.convert(nn.BatchNorm2d(24), "ILMGN", replacing="BN", key_group_size=4)
    assert (given.num_groups, given.num_key_groups) == (8, 6)


def test_batchnorm_of_a_state_dict_becomes_a_norm_of_each_image():
    model, x = small(nn.BatchNorm2d), double(2, 3, 9, 9)
    state, ours = model.state_dict(), Small(ILMGroupNorm(16, "auto"), ILMGroupNorm(32))
    assert "replacing='BN'" in surgery.convert_state(state, "ILMGN")[1].left["stem.1"]
    _, report = surgery.convert_state(small().state_dict(), "ILMGN", match="*", replacing="BN")
    assert report.left["stem.1"] == "GN or IN, but BN is replaced"
    converted = surgery.convert_state(state, "ILMGN", replacing="BN")
    expected, _ = surgery.convert(model, "ILMGN", replacing="BN")
    for found, report in (converted, surgery.fit_state(state, ours)):
        assert [*report.converted] == BOTH
        assert OUTPUTS_CHANGE in str(report)
        ours.load_state_dict(found)
        assert_close(ours(x), expected(x), EQUAL)


@pytest.mark.parametrize("to", ["SN", "SSN"])
def test_sn_keeps_batchnorms_tensors(to):
    plain = randomized(nn.BatchNorm2d(32))
    new, report = surgery.convert(plain, to)
    assert new.weight is plain.weight
    assert new.running_variance is plain.running_var
    assert f"{to} mixes other statistics" in str(report)


@pytest.mark.parametrize("to", ["SN", "SSN"])
def test_sn_loads_batchnorms_converted_state_dict(to):
    state, report = surgery.convert_state(randomized(nn.BatchNorm2d(32)).state_dict(), to)
    NORMS[to](32).load_state_dict(state)
    assert f"{to} mixes other statistics" in str(report)


@pytest.mark.parametrize("normalizers", [("IN", "LN", "BN"), ("BN", "GN")])
@pytest.mark.parametrize("training", [True, False])
def test_sn_becomes_ssn_with_the_same_outputs(normalizers, training):
    x = double(3, 32, 5, 5)
    options = {"normalizers": normalizers, "num_groups": 8}
    layer = randomized(SwitchNorm(32, 0.1, **options).double()).train(training)
    state, _ = surgery.convert_state(layer.state_dict(), "SSN", **options)
    expected, ratios = layer(x), layer.ratios()
    new, report = surgery.convert(layer, "SSN")
    assert report.converted == {"": "SwitchNorm -> SparseSwitchNorm"}
    assert not report.notes
    fixed, _ = surgery.convert(freeze(SwitchNorm(32, sync=True)), "SSN")
    assert fixed.frozen
    assert fixed.sync
    assert not new.frozen
    assert not new.sync
    assert new.training == training
    assert torch.equal(state["mean_weight"], new.mean_weight)
    assert_close([new(x), new.ratios()], [expected, ratios], EQUAL)


def test_no_option_of_sn_is_lost_on_the_way_to_ssn():
    """A new option reaches the SSN, or is refused; one that is no number needs a value here."""
    given = {"normalizers": ("BN", "GN"), "num_groups": 16}
    defaults = {name: p.default for name, p in inspect.signature(SwitchNorm).parameters.items()}
    for name, default in defaults.items():
        if isinstance(default, bool | int | float):
            given[name] = type(default)(not default if isinstance(default, bool) else default / 2)
    assert given.keys() == defaults.keys() - {"num_channels", "device", "dtype"}
    for name, value in given.items():
        options = {"normalizers": given["normalizers"], name: value}
        layer, _ = surgery.convert(SwitchNorm(32, **options), "SSN")
        assert getattr(layer, name) == value != defaults[name]


def test_sn_that_ssn_cannot_compute_is_left():
    model = nn.Sequential(SwitchNorm(32, normalizers=("IN", "BN")))
    _, report = surgery.convert(model, "SSN", normalizers=("IN", "LN", "BN"))
    assert "normalizers=('IN', 'BN'), where the layer has" in report.left["0"]
