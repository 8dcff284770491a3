"""Conversions between plain norms and layers that keep the outputs, and back."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ilm_plugins import (
    NORMS,
    AssocNorm,
    AttentiveNorm,
    ExemplarNorm,
    ILMGroupNorm,
    SwitchNorm,
    freeze,
    surgery,
)
from swaps import BOTH, GN4, SINGLE, Small, change, double, randomized, small

#: Plain norm of 32 channels, key of the layer, number of spatial dimensions.
EXACT = {
    "GN": (partial(nn.GroupNorm, 4, eps=1e-3), "ILMGN", 2),
    "GN-without-affine": (partial(nn.GroupNorm, 4, affine=False), "ILMGN", 2),
    "GN-to-Assoc": (partial(nn.GroupNorm, 8), "AssocNorm", 2),
    "GN-to-AN": (partial(nn.GroupNorm, 8, eps=1e-3), "AN", 2),
    "LN": (partial(nn.GroupNorm, 1), "ILMLN", 2),
    "IN": (partial(nn.InstanceNorm2d, affine=True, eps=1e-3), "ILMIN", 2),
    "IN-without-affine": (nn.InstanceNorm2d, "ILMIN", 2),
    "IN1d": (partial(nn.InstanceNorm1d, affine=True), "ILMIN", 1),
    "BN": (partial(nn.BatchNorm2d, eps=1e-3, momentum=0.3), "EN", 2),
    "BN-without-affine": (partial(nn.BatchNorm2d, affine=False), "EN", 2),
    "BN3d": (nn.BatchNorm3d, "EN", 3),
    "SyncBN": (nn.SyncBatchNorm, "EN", 2),
}


@pytest.mark.parametrize("make, to, dims", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, SINGLE)])
def test_outputs_are_kept_in_both_directions(make, to, dims, dtype, tolerance):
    # A norm without tensors takes the dtype of its neighbours.
    model = nn.Sequential(randomized(make(32)), nn.Linear(1, 1)).to(dtype).eval()
    plain = model[0]
    x = (3 * double(4, 32, *(5,) * dims) + 1).to(dtype)
    expected, state, groups = plain(x), plain.state_dict(), getattr(plain, "num_groups", None)
    model, report = surgery.convert(model, to)
    new = model[0]
    assert type(new) is NORMS[to] and report.converted.keys() == {"0"} and not report.left
    assert new.eps == plain.eps and (groups is None or new.num_groups == groups)
    assert change(expected, new(x)) <= tolerance

    model, report = surgery.revert(model, dims=dims)
    back = model[0]
    assert type(back) is {nn.SyncBatchNorm: nn.BatchNorm2d}.get(type(plain), type(plain))
    assert report.converted.keys() == {"0"} and not back.training
    assert (back.eps, getattr(back, "num_groups", None)) == (plain.eps, groups)
    assert getattr(back, "momentum", None) == getattr(plain, "momentum", None)
    assert back.state_dict().keys() >= state.keys()
    assert change(expected, back(x)) <= tolerance


@pytest.mark.parametrize("name", ["GN", "GN-to-AN", "BN"])
def test_outputs_are_kept_in_training(name):
    make, to, _ = EXACT[name]
    plain, x = randomized(make(32).double()), double(4, 32, 5, 5)
    new, _ = surgery.convert(copy.deepcopy(plain), to)
    assert new.training and change(plain(x), new(x)) <= 1e-14
    if to == "EN":
        torch.testing.assert_close(new.running_var, plain.running_var)
        assert new.num_batches_tracked == plain.num_batches_tracked == 1


@pytest.mark.parametrize(
    "make, to, kept",
    [
        (GN4, "ILMGN", ("weight", "bias")),
        (GN4, "AN", ("weight", "bias")),
        (nn.BatchNorm2d, "EN", ("running_mean", "running_var", "num_batches_tracked")),
        (SwitchNorm, "SSN", ("weight", "bias", "running_mean", "running_var")),
    ],
)
def test_tensors_dtype_mode_and_what_is_trained_are_kept(make, to, kept):
    plain = make(32).to(torch.bfloat16).eval()
    plain.bias.requires_grad_(False)
    new, _ = surgery.convert(plain, to)
    assert all(getattr(new, name) is getattr(plain, name) for name in kept)
    floating = [t for t in new.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.bfloat16}
    assert not any(m.training for m in new.modules())
    trained = {name for name, p in new.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in new.named_parameters()} - {"bias"}
    frozen, _ = surgery.convert(make(32).requires_grad_(False), to)
    assert not any(p.requires_grad for p in frozen.parameters())
    back, _ = surgery.revert(frozen)
    assert not any(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (GN4, "AN"), (nn.BatchNorm2d, "EN")])
def test_a_model_on_the_meta_device(make, to):
    with torch.device("meta"):
        model = Small(make(16), make(32))
    model, report = surgery.convert(model, to, **({"reduction": 16} if to == "EN" else {}))
    assert [*report.converted] == BOTH
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    _, report = surgery.revert(model)
    assert not report.converted and "meta device" in report.left["stem.1"]


@pytest.mark.parametrize("to, options", [("ILMGN", {}), ("EN", {"reduction": 16})])
def test_a_resnet_evaluates_the_same_and_learns(to, options):
    resnet18 = pytest.importorskip("torchvision", reason="needs torchvision").models.resnet18
    torch.manual_seed(0)
    make = {"ILMGN": partial(nn.GroupNorm, 8), "EN": nn.BatchNorm2d}[to]
    model, x = (
        randomized(resnet18(norm_layer=make, num_classes=10)).double().eval(),
        double(2, 3, 64, 64),
    )
    expected = model(x)
    model, report = surgery.convert(model, to, **options)
    assert len(report.converted) == 20 and not report.left
    assert change(expected, model(x)) <= 1e-10

    layers = {n: m for n, m in model.named_modules() if type(m) is NORMS[to]}
    for layer in layers.values() if to == "ILMGN" else ():
        # Then the variances' embedding is never cut off by its ReLU.
        layer.encode.weight.data.abs_()
    before = copy.deepcopy(model.train().state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    learns = {"ILMGN": "decode_var.weight", "EN": "ratio.weight"}[to]
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {f"{layer}.{learns}" for layer in layers} <= moved
    _, report = surgery.revert(model)
    assert not report.converted and report.left.keys() == layers.keys()


# ---- back, only where it is exact


class Doubled(ILMGroupNorm, nn.GroupNorm):
    def predict(self, *arguments):
        omega, beta = super().predict(*arguments)
        return 2 * omega, beta


def identity(layer):
    """The layer with the tensors of one that starts as a plain norm, whatever its options are."""
    layer.load_state_dict(type(layer)(32, init="identity").state_dict())
    return layer


PARAMETRIZED = parametrize.register_parametrization(SwitchNorm(32), "weight", nn.Identity())
STAY = [
    (ILMGroupNorm(32), "decoders are not zero"),
    (AttentiveNorm(32), "attention's weight is not zero"),
    (ExemplarNorm(32), "more than BN"),
    (ExemplarNorm(32, shared_affine=True), "cannot compute BN"),
    (ExemplarNorm(32, normalizers=("IN", "LN")), "cannot compute BN"),
    (SwitchNorm(32), "SN does not become BatchNorm2d"),
    (Doubled(32, init="identity"), "Doubled may compute something else than its base"),
    (identity(ILMGroupNorm(32, activations=("sigmoid", "sigmoid"))), "cannot compute a plain norm"),
    (identity(AssocNorm(32, combine="a(WE)*B")), "cannot compute a plain norm"),
    (PARAMETRIZED, "remove_parametrizations"),
]


@pytest.mark.parametrize("layer, words", STAY)
def test_only_what_is_still_a_plain_norm_leads_back(layer, words, monkeypatch):
    monkeypatch.setitem(NORMS, "Doubled", Doubled)
    same, report = surgery.revert(layer)
    assert same is layer and words in report.left[""]


@pytest.mark.parametrize(
    "name",
    ["decode_mean.weight", "decode_var.weight", "omega_offset", "ratio.weight", "ratio.bias"],
)
def test_a_single_value_that_has_moved_keeps_a_layer(name):
    plain, to = (nn.BatchNorm2d(32), "EN") if "ratio" in name else (GN4(32), "ILMGN")
    layer, _ = surgery.convert(plain, to)
    layer.state_dict()[name].view(-1)[0] += 1e-3
    same, report = surgery.revert(layer)
    assert same is layer and report.left


def test_en_finds_bns_row_in_any_order():
    plain, x = randomized(nn.BatchNorm2d(32)).double().eval(), double(2, 32, 5, 5)
    expected = plain(x)
    layer, _ = surgery.convert(plain, "EN", normalizers=("BN", "IN"))
    assert change(expected, layer(x)) <= 1e-14
    back, _ = surgery.revert(copy.deepcopy(layer))
    assert type(back) is nn.BatchNorm2d and change(expected, back(x)) <= 1e-14
    layer.weight.data = layer.weight.data.flip(0)
    same, _ = surgery.revert(layer)
    assert same is layer, "only IN is in use"


def test_remarks_of_what_the_way_back_changes():
    for plain, to in ((GN4(32), "ILMGN"), (nn.BatchNorm2d(32), "EN")):
        layer, report = surgery.convert(plain, to)
        assert not report.notes
        assert not surgery.revert(copy.deepcopy(layer))[1].notes
    assert "no longer frozen" in str(surgery.revert(freeze(layer))[1])
    model, report = surgery.convert(nn.Sequential(nn.SyncBatchNorm(32)), "EN")
    assert model[0].sync is True and not report.notes
    assert "each process's own" in str(surgery.revert(model)[1])


def test_a_norm_that_is_the_model_is_returned_anew():
    new, report = surgery.convert(small().stem[1], "ILMGN")
    assert type(new) is ILMGroupNorm and "    (root)" in str(report).splitlines()
