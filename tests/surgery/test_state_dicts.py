"""Norms of state dicts, with and without a model."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import BOTH, GN4, Block, Small, double, randomized, small
from ilm_plugins import (
    NORMS,
    AttentiveNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    SwitchNorm,
    surgery,
)
from ilm_plugins import SparseSwitchNorm as SSN
from ilm_plugins.layers import OptionError

KINDS = {
    "ILMGN": (GN4, lambda c: ILMGroupNorm(c, 4), "GN or IN", {}),
    "AN": (GN4, lambda c: AttentiveNorm(c, 4), "GN or IN", {}),
    "EN": (nn.BatchNorm2d, lambda c: ExemplarNorm(c, reduction=8), "BN", {"reduction": 8}),
}


@pytest.mark.parametrize("own", [nn.BatchNorm2d, ExemplarNorm])
def test_a_norm_that_the_file_lacks_takes_no_tensors_of_another(own):
    """By OpenMMLab's names, which follow the type, ``in1`` might be the file's ``bn1``."""
    plain = nn.ModuleDict({"bn1": nn.BatchNorm2d(64)})
    nn.init.constant_(plain["bn1"].running_mean, 5.0)
    model = nn.ModuleDict({"in1": ILMInstanceNorm(64), "bn1": own(64)})
    state, report = surgery.fit_state(plain.state_dict(), model)
    model.load_state_dict(state, strict=False)
    assert "in1" not in report.converted
    assert torch.equal(model["bn1"].running_mean, torch.full((64,), 5.0))


@pytest.mark.parametrize("layer", [SSN, SwitchNorm, ExemplarNorm])
def test_equal_mixtures_side_by_side_are_two_norms(layer):
    """As for two domains: copies have the same parameters, but are no levels of one norm."""
    model = nn.ModuleDict({"norms": nn.ModuleList([norm := layer(32), copy.deepcopy(norm)])})
    _, report = surgery.fit_state(model.state_dict(), copy.deepcopy(model))
    assert not report.left
    _, report = surgery.convert_state(model.state_dict(), "SSN", match="norms.1")
    assert [*report.converted] == (["norms.1"] if layer is SwitchNorm else [])


def test_equal_ens_side_by_side_become_two_batchnorms():
    en, _ = surgery.convert(nn.Sequential(nn.BatchNorm2d(32)), "EN")
    model = nn.ModuleDict({"norms": nn.ModuleList([en[0], copy.deepcopy(en[0])])})
    state, _ = surgery.revert_state(model.state_dict())
    assert state.keys() == surgery.revert(model)[0].state_dict().keys()


@pytest.mark.parametrize("to", ["ILMGN", "AN", "EN"])
def test_a_model_on_the_meta_device_gets_values(to):
    make, layer, _, _ = KINDS[to]
    plain, x = nn.Sequential(make(32)).double().eval(), double(2, 32, 5, 5)
    with torch.device("meta"):
        model = nn.Sequential(layer(32)).double().eval()
    state, _ = surgery.fit_state(plain.state_dict(), model)
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert_close(model(x), plain(x), EQUAL)


def test_a_state_dict_on_the_meta_device_stays_there():
    state = nn.BatchNorm2d(32, device="meta").state_dict(prefix="norm.")
    state, report = surgery.convert_state(state, "EN")
    assert report.converted
    assert {tensor.device.type for tensor in state.values()} == {"meta"}


@pytest.mark.parametrize("to", KINDS)
def test_a_state_dict_is_converted_as_the_model_is(to):
    make, layer, kind, options = KINDS[to]
    plain, ours, x = small(make).eval(), Small(layer(16), layer(32)).eval(), double(2, 3, 9, 9)
    state = plain.state_dict()
    # Layers as a framework's config makes them: not the identity, but for what is loaded.
    assert (plain(x) - ours(x)).abs().max() > 1e-3
    converted, report = surgery.convert_state(state, to, match=["stem.*", "head.*"], **options)
    assert report.converted == dict.fromkeys(BOTH, f"{kind} -> {NORMS[to].__name__}")
    assert "a state dict has no eps, num_groups or normalizers" in str(report)
    wrapped = nn.ModuleDict({"module": plain})
    fitted, report = surgery.fit_state(wrapped.state_dict(), ours)
    assert [*report.converted] == BOTH
    assert not report.left
    assert not report.missing
    assert not report.notes, "the model has eps, num_groups and normalizers"
    for found in (converted, fitted):
        if to == "EN":
            assert found._metadata["stem.1"] == {"version": 2}
        ours.load_state_dict(found)
        assert_close(ours(x), plain(x), EQUAL)
        for back in (surgery.revert_state(found)[0], surgery.fit_state(found, plain)[0]):
            assert_close(dict(back), dict(state), 16)
    _, report = surgery.convert_state(found, to, match="*", **options)
    assert "already a layer of this package" in report.left["stem.1"]


def test_a_weight_with_a_bias_alone_is_converted_only_if_named():
    _, report = surgery.convert_state(small().state_dict(), "ILMGN")
    assert not report.converted
    assert "match its name" in report.left["stem.1"]


@pytest.mark.parametrize("to", KINDS)
def test_counters_within_norms_change_nothing(to):
    """As thop adds them to each module."""
    make, _, _, options = KINDS[to]
    plain = small(make)
    counters = {f"{name}.total_ops": torch.zeros(1) for name, _ in plain.named_modules() if name}
    state, report = surgery.convert_state(
        {**plain.state_dict(), **counters}, to, match=BOTH, **options
    )
    assert [*report.converted] == BOTH
    assert counters.keys() <= state.keys()
    back, _ = surgery.revert_state(state)
    assert_close(dict(back), {**plain.state_dict(), **counters}, 16)


def with_gate(norm):
    norm.gate = nn.Parameter(torch.ones(32))
    return norm


def pruned(norm):
    return prune.identity(norm, "weight")


@pytest.mark.parametrize(
    "norm, names, to",
    [
        (with_gate(nn.BatchNorm2d(32)), "gate", "EN"),
        (with_gate(nn.GroupNorm(4, 32)), "gate", "ILMGN"),
        (with_gate(SwitchNorm(32)), "gate", "SSN"),
        (pruned(nn.BatchNorm2d(32)), "weight_mask, weight_orig", "EN"),
    ],
)
def test_a_norm_with_further_tensors_is_named(norm, names, to):
    before = Block("0", norm).state_dict()
    state, report = surgery.convert_state(before, to, match="0")
    assert f"it has {names}" in report.left["0"]
    assert_equal(dict(state), dict(before))


def test_a_norm_with_further_tensors_fits_a_model_of_its_kind():
    state = Block("0", with_gate(nn.BatchNorm2d(32))).state_dict()
    fitted, report = surgery.fit_state(state, Block("0", nn.BatchNorm2d(32)))
    assert_equal(dict(fitted), dict(state))
    assert report.left == {"0.gate": "the model has nothing of this name"}


def test_a_norm_of_a_state_dict_stays_if_an_option_does_not_divide_its_width():
    state = small().state_dict()
    _, report = surgery.convert_state(state, "ILMGN", match="*", key_group_size=32)
    assert report.converted.keys() == {"head.1"}
    assert "does not divide num_channels=16" in report.left["stem.1"]


def test_what_does_not_fit_a_model_is_listed():
    state = small().state_dict() | {"old": torch.zeros(1)}
    state["head.3.weight"] = torch.zeros(7, 32, 1, 1)
    ours = Small(ILMGroupNorm(32), ILMGroupNorm(32, 4))
    ours.extra, ours.gn1 = ILMInstanceNorm(32), nn.GroupNorm(1, 4)
    state |= dict.fromkeys(("in1.weight", "in1.bias"), torch.ones(4))  # may be of any module
    _, report = surgery.fit_state(state, ours)
    assert report.converted == {"head.1": "GN or IN -> ILMGroupNorm"}
    assert report.left["stem.1"] == "weight has shape (16,), shape (32,) in the layer"
    assert "where the model has shape (2, 32, 1, 1)" in report.left["head.3.weight"]
    assert report.left["old"] == "the model has nothing of this name"
    assert {"extra.weight", "gn1.weight"} <= {*report.missing}


class Scaled(nn.GroupNorm):
    """A norm of the user's own, with the tensors of GroupNorm."""


def test_a_norm_of_the_users_own_is_not_taken_for_a_groupnorm(monkeypatch):
    monkeypatch.setitem(NORMS, "Scaled", Scaled)
    fitted, report = surgery.fit_state(small().state_dict(), small(partial(Scaled, 4)))
    assert report.left["stem.1"] == "GN or IN does not become Scaled"
    assert fitted.keys() == small().state_dict().keys()
    assert not report.converted
    with pytest.raises(OptionError, match="'Scaled' is no norm to convert to"):
        surgery.convert(small(), "Scaled")


@pytest.mark.parametrize("names", [("gn1", "in1"), ("bn1", "gn1"), ("gn1", "bn1")])
def test_one_stored_norm_goes_to_one_norm_of_the_model(names):
    """To the norm of its name, else to the first; nothing is made up for the other."""
    plain = nn.ModuleDict({"bn1": nn.BatchNorm2d(32)})
    model = nn.ModuleDict({name: ExemplarNorm(32) for name in names})
    state, report = surgery.fit_state(plain.state_dict(), model)
    owner = "bn1" if "bn1" in names else names[0]
    (other,) = {*names} - {owner}
    assert report.converted == {owner: "BN -> ExemplarNorm"}
    assert {key.partition(".")[0] for key in state} == {owner}
    assert f"{other}.weight" in report.missing


@pytest.mark.parametrize(
    "old, new", [("bn1", "gn1"), ("in1", "gn1"), ("agn2", "gn2"), ("norm", "norm.0")]
)
@pytest.mark.parametrize("make, words", [(nn.BatchNorm2d, "BN -> "), (ExemplarNorm, "renamed")])
def test_norms_of_other_names_are_found(old, new, make, words):
    """gn1 is OpenMMLab's name for bn1 of another type; norm.0 has timm's activation beside it."""
    plain, ours = randomized(Block(old, make(32))).eval(), ExemplarNorm(32).double().eval()
    name, *within = new.split(".")
    model = Block(name, nn.Sequential(ours) if within else ours)
    state, report = surgery.fit_state(plain.state_dict(), model)
    assert report.converted[new].startswith(words)
    assert not report.left
    assert not report.missing
    model.load_state_dict(state)
    x = double(2, 32, 3, 3)
    assert_close(ours(x), plain.get_submodule(old)(x), EQUAL)


@pytest.mark.parametrize("i, fixed", [(0, "IN"), (1, "LN"), (2, "BN")])
def test_fixed_ratios_become_only_the_norm_that_they_choose(i, fixed):
    norms = {"IN": nn.GroupNorm(32, 32), "LN": nn.GroupNorm(1, 32), "BN": nn.BatchNorm2d(32)}
    layer, x = randomized(SSN(32).double().eval()), double(2, 32, 5, 5)
    layer.mean_fixed.copy_(torch.eye(3)[i]), layer.var_fixed.copy_(torch.eye(3)[i])
    state, _ = surgery.revert_state(layer.state_dict())
    back, _ = surgery.revert(copy.deepcopy(layer))
    assert ("running_mean" in state) == (fixed == "BN")
    assert "radius" not in state
    assert_close(back(x), layer(x), EQUAL)
    instances = nn.InstanceNorm2d(32, affine=True)
    for kind, norm in (*norms.items(), ("IN", instances), ("none", nn.GroupNorm(8, 32))):
        _, report = surgery.fit_state(Block("0", layer).state_dict(), Block("0", norm))
        assert kind == fixed or f"its ratios are fixed on {fixed}" in report.left["0"]
        assert bool(report.converted) == (kind == fixed)
    layer.var_fixed.copy_(layer.var_fixed.roll(1))  # means and variances of two norms
    _, report = surgery.fit_state(Block("0", layer).state_dict(), Block("0", norms[fixed]))
    assert not report.converted


@pytest.fixture
def averaged():
    """The average of an SSN's models from before and after its ratios were fixed."""
    layer = SSN(32).double()
    for logits in (layer.mean_weight, layer.var_weight):
        logits.data = torch.tensor([0.0, 0.1, 0.3]).double()
    model = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    model.update_parameters(layer)  # copies
    layer.set_radius(1.0)
    model.update_parameters(layer)
    assert model.module.mean_fixed.tolist() == [0, 0, 0.5]
    return model.module.eval()


def test_an_average_of_fixed_ratios_is_not_taken_for_fixed(averaged):
    _, report = surgery.revert(averaged)
    assert "not fixed on one normalizer" in report.left[""]


def test_an_average_of_fixed_ratios_in_a_state_dict_is_not_taken_for_fixed(averaged):
    _, report = surgery.revert_state(averaged.state_dict())
    assert "not fixed on one normalizer" in report.left[""]


def test_a_weight_is_not_dropped_where_the_models_norm_has_none():
    model = Block("0", nn.BatchNorm2d(32, affine=False))
    trained = nn.BatchNorm2d(32)
    trained.weight.data[7] = 2
    for plain, fits in ((trained, False), (nn.BatchNorm2d(32), True)):
        layer, _ = surgery.convert(plain, "EN")
        _, report = surgery.fit_state(Block("0", layer).state_dict(), model)
        assert bool(report.converted) == fits
        assert fits or "which BatchNorm2d lacks" in report.left["0"]
