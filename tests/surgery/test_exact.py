"""Conversions between plain norms and layers that keep the outputs, and back."""

import copy
from functools import partial

import pytest
import torch
from torch import distributed, nn

import ilm_plugins as own
from helpers.close import EQUAL, assert_close
from helpers.swapped_norms import BOTH, GN4, Small, double, randomized
from ilm_plugins import NORMS, surgery

#: Plain norm of 32 channels, key of the layer.
EXACT = [
    (partial(nn.GroupNorm, 4, eps=1e-3), "ILMGN"),
    (partial(nn.GroupNorm, 4, affine=False), "ILMGN"),
    (partial(nn.GroupNorm, 8), "AssocNorm"),
    (partial(nn.GroupNorm, 8, eps=1e-3), "AN"),
    (partial(nn.GroupNorm, 1), "ILMLN"),
    (partial(nn.InstanceNorm2d, affine=True, eps=1e-3), "ILMIN"),
    (nn.InstanceNorm1d, "ILMIN"),
    (partial(nn.BatchNorm2d, eps=1e-3, momentum=0.3), "EN"),
    (partial(nn.BatchNorm1d, affine=False), "EN"),
    (nn.BatchNorm3d, "EN"),
    (nn.SyncBatchNorm, "EN"),
]


@pytest.mark.parametrize("make, to", EXACT)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_kept_in_both_directions(make, to, training):
    # A norm without tensors takes the dtype of its neighbours.
    model = nn.Sequential(randomized(make(32)), nn.Linear(1, 1)).double().train(training)
    plain = model[0]
    dims = next((d for d in (1, 3) if f"{d}d" in type(plain).__name__), 2)
    x = 3 * double(4, 32, *(5,) * dims) + 1
    if isinstance(plain, nn.SyncBatchNorm):
        plain.eval()  # it trains only on GPUs
    expected = plain(x)
    model, report = surgery.convert(model, to)
    assert type(model[0]) is NORMS[to]
    assert not report.left
    assert not report.notes
    assert_close(copy.deepcopy(model[0])(x), expected, EQUAL)
    model, report = surgery.revert(model, dims=dims)
    back = model[0]
    assert type(back) is {nn.SyncBatchNorm: nn.BatchNorm2d}.get(type(plain), type(plain))
    assert report.converted.keys() == {"0"}
    assert back.training == plain.training
    for name in ("eps", "num_groups", "momentum"):
        assert getattr(back, name, None) == getattr(plain, name, None)
    assert_close(back(x), expected, EQUAL)


KEPT = [
    (GN4, "ILMGN", ("weight", "bias")),
    (GN4, "AN", ("weight", "bias")),
    (nn.BatchNorm2d, "EN", ("running_mean", "num_batches_tracked")),
    (own.SwitchNorm, "SSN", ("weight", "bias", "running_mean", "running_variance")),
]
each_pair = pytest.mark.parametrize("make, to", [case[:2] for case in KEPT])


@pytest.fixture
def converted(make, to):
    """A norm of 16 bits in evaluation mode, whose bias is fixed, and the layer that replaces it."""
    plain = make(32).to(torch.bfloat16).eval()
    plain.bias.requires_grad_(False)
    return plain, surgery.convert(plain, to)[0]


@pytest.mark.parametrize("make, to, kept", KEPT)
def test_tensors_are_kept(converted, kept):
    plain, new = converted
    for name in kept:
        assert getattr(new, name) is getattr(plain, name), name


@each_pair
def test_the_dtype_is_kept(converted):
    _, new = converted
    floating = [t for t in new.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.bfloat16}


@each_pair
def test_the_mode_is_kept(converted):
    _, new = converted
    assert not any(m.training for m in new.modules())


@each_pair
def test_a_fixed_parameter_stays_fixed(converted):
    _, new = converted
    assert {name for name, p in new.named_parameters() if not p.requires_grad} == {"bias"}


@each_pair
def test_a_fixed_norm_stays_fixed_in_both_directions(make, to):
    fixed, _ = surgery.convert(make(32).requires_grad_(False), to)
    for model in (fixed, surgery.revert(copy.deepcopy(fixed))[0]):
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (nn.BatchNorm2d, "EN")])
def test_a_model_on_the_meta_device(make, to):
    with torch.device("meta"):
        model = Small(make(32), make(32))
    model, report = surgery.convert(model, to)
    assert [*report.converted] == BOTH
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert "meta device" in surgery.revert(model)[1].left["stem.1"]


class Renamed(own.ILMGroupNorm, nn.GroupNorm):
    pass


STAY = [
    (own.ILMGroupNorm(32), "decoders are not zero"),
    (own.AttentiveNorm(32), "attention's weight is not zero"),
    (own.ExemplarNorm(32), "more than BN"),
    (own.ExemplarNorm(32, normalizers=("IN", "LN")), "cannot compute BN"),
    (own.SwitchNorm(32), "SN does not become a plain norm"),
    (Renamed(32, init="identity"), "Renamed does not become a plain norm"),
    (own.AssocNorm(32, combine="a(WE)*B"), "cannot compute a plain norm"),
]


@pytest.mark.parametrize("layer, words", STAY)
def test_only_what_is_still_a_plain_norm_leads_back(layer, words):
    same, report = surgery.revert(layer)
    assert same is layer
    assert words in report.left[""]


@pytest.mark.parametrize("make, to", [(nn.BatchNorm2d, "EN"), (GN4, "ILMGN"), (GN4, "AN")])
def test_a_single_value_that_has_moved_keeps_a_layer_or_its_outputs(make, to):
    layer, x = surgery.convert(make(32), to)[0].double().eval(), double(2, 32, 5, 5)
    for key in layer.state_dict():
        moved = copy.deepcopy(layer)
        moved.state_dict()[key].view(-1)[0] += 1e-3 if key != "num_batches_tracked" else 1
        expected = moved(x)
        assert_close(surgery.revert(moved)[0](x), expected, EQUAL, name=key)
    if to == "AN":  # its attentions may be any constants
        nn.init.normal_(randomized(layer.double()).attention.bias, 0, 2)
        x = double(2, 32, 5, 5)
        assert_close(surgery.revert(copy.deepcopy(layer))[0](x), layer(x), EQUAL)


def test_en_finds_bns_row_in_any_order():
    plain, x = randomized(nn.BatchNorm2d(32)).double().eval(), double(2, 32, 5, 5)
    expected = plain(x)
    layer, _ = surgery.convert(plain, "EN", normalizers=("BN", "IN"))
    back, _ = surgery.revert(copy.deepcopy(layer))
    assert_close([layer(x), back(x)], [expected] * 2, EQUAL)
    layer.weight.data = layer.weight.data.flip(0)
    assert surgery.revert(layer)[0] is layer, "only IN is in use"


def test_the_way_back_notes_that_statistics_move():
    some = distributed.ProcessGroup(0, 1)
    norms = [nn.SyncBatchNorm(32, process_group=group) for group in (some, None)]
    layers = [surgery.convert(norm, "EN")[0] for norm in norms]
    assert [layer.sync for layer in layers] == [some, True]
    told = str(surgery.revert(own.freeze(layers[1]))[1])
    assert "no longer frozen" in told
    assert "no longer synchronized" in told


@pytest.mark.parametrize("norm, to", [("BatchNorm", "EN"), ("InstanceNorm", "ILMIN")])
def test_norms_of_any_dimensions_come_back_in_one_call(norm, to):
    classes = [getattr(nn, f"{norm}{dims}d") for dims in (1, 2, 3)]
    model, _ = surgery.convert(nn.Sequential(*(make(32) for make in classes)), to)
    assert [type(m) for m in surgery.revert(model)[0]] == classes


def without(norm, *names):
    """A norm without a weight or a bias, as later releases of torch build one."""
    for name in names:
        setattr(norm, name, None)
    norm.affine = norm.weight is not None
    return norm


@pytest.mark.parametrize("lacking", [("bias",), ("weight",), ("weight", "bias")])
@pytest.mark.parametrize(
    "make, to",
    [
        (GN4, "ILMGN"),
        (GN4, "AN"),
        (nn.BatchNorm2d, "EN"),
        (partial(nn.InstanceNorm2d, affine=True), "ILMIN"),
    ],
)
class TestNormsWithoutWeightOrBias:
    def test_they_come_back_without(self, make, to, lacking):
        plain = randomized(Small(without(make(16), *lacking), make(32))).eval()
        model, _ = surgery.revert(surgery.convert(copy.deepcopy(plain), to)[0])
        assert repr(model) == repr(plain)  # so it has affine=False again
        assert_close(dict(model.state_dict()), dict(plain.state_dict()), 16)
        x = double(2, 3, 9, 9)
        assert_close(model.eval()(x), plain(x), EQUAL)

    def test_they_come_back_with_what_was_trained(self, make, to, lacking):
        plain = randomized(Small(without(make(16), *lacking), make(32))).eval()
        x = double(2, 3, 9, 9)
        layers, _ = surgery.convert(plain, to)
        for name in lacking:
            values = getattr(layers.stem[1], name).data
            values[..., :] = torch.linspace(0.5, 2, 16)
        expected = layers(x)
        model, _ = surgery.revert(layers)
        assert {*lacking} <= dict(model.stem[1].named_parameters()).keys()
        assert_close(model.eval()(x), expected, EQUAL)


def test_a_dead_channel_keeps_its_outputs():
    """Its running variance is 0, so that its weight is divided by the root of eps alone."""
    plain = randomized(nn.BatchNorm2d(32)).double().eval()
    plain.running_var[3] = 0
    x = double(2, 32, 5, 5)
    x[:, 3] = plain.running_mean[3]
    x[0, 3, 0, 0] += 1e-3
    layer, _ = surgery.convert(copy.deepcopy(plain), "EN")
    state, _ = surgery.convert_state(plain.state_dict(), "EN")
    assert state["running_variance"][3] == 0
    assert_close(layer(x), plain(x), EQUAL)
    assert_close(surgery.revert(layer)[0].eval()(x), plain(x), EQUAL)


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (nn.BatchNorm2d, "EN")])
@pytest.mark.parametrize("fixed", ["weight", "bias"])
def test_what_is_fixed_is_fixed_on_the_way_back(make, to, fixed):
    plain = make(32)
    getattr(plain, fixed).requires_grad_(False)
    back, _ = surgery.revert(surgery.convert(plain, to)[0])
    assert [name for name, p in back.named_parameters() if not p.requires_grad] == [fixed]
