"""Norms without running statistics, as test-time adaptation sets them, and where they may lead."""

import copy

import pytest
import torch
from torch import nn

from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import Block, double, randomized
from ilm_plugins import SparseSwitchNorm, SwitchNorm, surgery
from ilm_plugins.layers.mixture import RUNNING

WITHOUT_BN = {"normalizers": ("IN", "LN", "GN")}


def without_statistics(layer):
    """The layer in evaluation, in which it uses the batch's statistics."""
    layer = randomized(layer.double()).eval()
    for name in RUNNING:
        setattr(layer, name, None)
    return layer


def fixed_on(row, **options):
    layer = without_statistics(SparseSwitchNorm(32, **options))
    for fixed in (layer.mean_fixed, layer.var_fixed):
        fixed.copy_(torch.eye(3)[row])
    return layer


#: Layers that need the statistics which they lack -> the norm that they would become.
LACKING = [
    (fixed_on(2), "BatchNorm2d", surgery.revert, surgery.revert_state),
    (
        without_statistics(SwitchNorm(32)),
        "SparseSwitchNorm",
        lambda model: surgery.convert(model, "SSN"),
        lambda state: surgery.convert_state(state, "SSN"),
    ),
]
every_lacking = pytest.mark.parametrize(
    "layer, target, change, change_state", LACKING, ids=["SSN", "SN"]
)


@every_lacking
def test_no_statistics_are_made_up_for_a_model(layer, target, change, change_state):
    same, report = change(layer)
    assert same is layer
    assert "it has no running_mean" in report.left[""]
    assert f"which {target} needs" in report.left[""]


@every_lacking
def test_no_statistics_are_made_up_for_a_state_dict(layer, target, change, change_state):
    state, report = change_state(layer.state_dict())
    assert state.keys() == layer.state_dict().keys()
    assert f"which {target} needs" in report.left[""]


@pytest.mark.parametrize(
    "layer, norm",
    [(fixed_on(2), nn.BatchNorm2d(32)), (LACKING[1][0], SparseSwitchNorm(32))],
    ids=["SSN", "SN"],
)
def test_no_statistics_are_made_up_to_fit_a_model(layer, norm):
    _, report = surgery.fit_state(Block("0", layer).state_dict(), Block("0", norm))
    assert "it has no running_mean" in report.left["0"]


def test_a_state_dict_of_normalizers_without_bn_does_not_become_a_layer_with_bn():
    state = without_statistics(SwitchNorm(32, **WITHOUT_BN)).state_dict()
    _, report = surgery.convert_state(state, "SSN")
    assert "which SparseSwitchNorm needs" in report.left[""]


def test_a_ratio_fixed_on_a_third_normalizer_does_not_become_batchnorm_without_statistics():
    _, report = surgery.revert_state(fixed_on(2, **WITHOUT_BN).state_dict())
    assert "which BatchNorm2d needs" in report.left[""]


@pytest.mark.parametrize("row, kind", [(0, nn.InstanceNorm2d), (1, nn.GroupNorm)])
def test_ratios_that_are_fixed_on_a_norm_of_each_image_need_no_statistics(row, kind):
    layer, x = fixed_on(row), double(2, 32, 5, 5)
    back, _ = surgery.revert(copy.deepcopy(layer))
    assert type(back) is kind
    assert_close(back(x), layer(x), EQUAL)


def test_sn_without_bn_becomes_ssn_without_bn():
    layer, x = without_statistics(SwitchNorm(32, **WITHOUT_BN)), double(2, 32, 5, 5)
    expected = layer(x)
    new, report = surgery.convert(layer, "SSN")
    assert report.converted
    assert_close(new(x), expected, EQUAL)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_no_scale_or_shift_is_made_up(name):
    layer = SwitchNorm(32)
    setattr(layer, name, None)
    _, report = surgery.convert(layer, "SSN")
    assert report.left[""] == f"it has no {name}, which SparseSwitchNorm needs"
