"""Norms swapped in models and in state dicts: what stays the same, what is left, and why."""

import copy
import math
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fresh
import ilm_plugins
import transcription
from ilm_plugins import (
    NORMS,
    AssocNorm,
    AttentiveNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    ILMLayerNorm,
    SparseSwitchNorm,
    SwitchNorm,
    surgery,
)
from ilm_plugins.layers import OptionError
from swaps import SINGLE, change, randomized
from workers import by_fsdp, by_fully_shard, without


def norm(model, name):
    return model.get_submodule(name)


class Small(nn.Module):
    """Two convolutions with norms, and one without."""

    def __init__(self, first, second):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), first, nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(16, 32, 3), second, nn.ReLU(), nn.Conv2d(32, 2, 1))

    def forward(self, x):
        return self.head(self.stem(x))


GN4 = partial(nn.GroupNorm, 4)


def small(make=GN4):
    torch.manual_seed(0)
    return randomized(Small(make(16), make(32)))


# ---- one layer

EXACT = {
    "GN": (lambda: nn.GroupNorm(4, 32, eps=1e-3), "ILMGN", ILMGroupNorm),
    "GN-without-affine": (lambda: nn.GroupNorm(4, 32, affine=False), "ILMGN", ILMGroupNorm),
    "GN-to-Assoc": (lambda: nn.GroupNorm(8, 32), "AssocNorm", AssocNorm),
    "GN-to-AN": (lambda: nn.GroupNorm(8, 32, eps=1e-3), "AN", AttentiveNorm),
    "GN-without-affine-to-AN": (lambda: nn.GroupNorm(8, 32, affine=False), "AN", AttentiveNorm),
    "LN": (lambda: nn.GroupNorm(1, 32), "ILMLN", ILMLayerNorm),
    "IN": (lambda: nn.InstanceNorm2d(32, affine=True, eps=1e-3), "ILMIN", ILMInstanceNorm),
    "IN-without-affine": (lambda: nn.InstanceNorm2d(32), "ILMIN", ILMInstanceNorm),
    "IN1d": (lambda: nn.InstanceNorm1d(32, affine=True), "ILMIN", ILMInstanceNorm),
    "IN3d": (lambda: nn.InstanceNorm3d(32, affine=True), "ILMIN", ILMInstanceNorm),
    "BN": (lambda: nn.BatchNorm2d(32, eps=1e-3, momentum=0.3), "EN", ExemplarNorm),
    "BN-without-affine": (lambda: nn.BatchNorm2d(32, affine=False), "EN", ExemplarNorm),
    "BN1d": (lambda: nn.BatchNorm1d(32), "EN", ExemplarNorm),
    "BN3d": (lambda: nn.BatchNorm3d(32), "EN", ExemplarNorm),
    "SyncBN": (lambda: nn.SyncBatchNorm(32), "EN", ExemplarNorm),
}


def dims_of(plain):
    return next((d for d in (1, 3) if f"{d}d" in type(plain).__name__), 2)


@pytest.mark.parametrize("make, to, layer", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-14), (torch.float32, SINGLE)])
def test_exact_swaps_keep_the_outputs_and_lead_back(make, to, layer, dtype, tolerance):
    # A norm without tensors takes the dtype of its neighbours.
    model = nn.Sequential(randomized(make()), nn.Linear(1, 1)).to(dtype).eval()
    plain = model[0]
    dims = dims_of(plain)
    x = 3 * torch.randn(4, 32, *(5,) * dims, dtype=dtype) + 1
    expected, state, groups = plain(x), plain.state_dict(), getattr(plain, "num_groups", None)
    model, report = surgery.convert(model, to)
    new = model[0]
    assert type(new) is layer and report.converted.keys() == {"0"} and not report.left
    assert new.eps == plain.eps and (groups is None or new.num_groups == groups)
    assert change(expected, new(x)) <= tolerance

    model, report = surgery.revert(model, dims=dims)
    back = model[0]
    assert type(back) is {nn.SyncBatchNorm: nn.BatchNorm2d}.get(type(plain), type(plain))
    assert report.converted.keys() == {"0"} and not back.training
    assert (back.eps, getattr(back, "num_groups", None)) == (plain.eps, groups)
    assert getattr(back, "momentum", None) == getattr(plain, "momentum", None)
    found = back.state_dict()
    assert found.keys() >= state.keys()
    rounding = 3e-16 if dtype.itemsize == 8 else 2e-7
    if to == "AN":  # the weight comes back times a sum of ten products, to the bias one is added
        rounding *= 4
    for name, tensor in state.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=rounding, atol=rounding if to == "AN" else 0
        )
    assert change(expected, back(x)) <= tolerance


@pytest.mark.parametrize("make, to", [EXACT[name][:2] for name in ("GN", "GN-to-AN", "BN")])
def test_exact_swaps_keep_the_outputs_in_training(make, to):
    plain = randomized(make().double())
    x = torch.randn(4, 32, 5, 5, dtype=torch.float64)
    new, _ = surgery.convert(copy.deepcopy(plain), to)
    assert new.training and change(plain(x), new(x)) <= 1e-14
    if to == "EN":
        torch.testing.assert_close(new.running_mean, plain.running_mean)
        torch.testing.assert_close(new.running_var, plain.running_var)
        assert new.num_batches_tracked == plain.num_batches_tracked == 1


def test_a_norm_that_is_the_model_is_replaced_by_what_is_returned():
    plain = nn.GroupNorm(4, 32)
    new, report = surgery.convert(plain, "ILMGN")
    assert type(new) is ILMGroupNorm and report.converted.keys() == {""}
    assert "    (root)" in str(report).splitlines()


@pytest.mark.parametrize(
    "make, to, kept",
    [
        (GN4, "ILMGN", ("weight", "bias")),
        (GN4, "AN", ("weight", "bias")),
        (nn.BatchNorm2d, "EN", ("running_mean", "running_var", "num_batches_tracked")),
        (nn.BatchNorm2d, "SN", ("weight", "bias", "running_mean", "running_var")),
        (SwitchNorm, "SSN", ("weight", "bias", "running_mean", "running_var")),
    ],
)
def test_parameters_and_buffers_are_kept_themselves(make, to, kept):
    plain = make(32)
    new, _ = surgery.convert(plain, to)
    assert type(new) is NORMS[to]
    assert all(getattr(new, name) is getattr(plain, name) for name in kept)


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (GN4, "AN"), (nn.BatchNorm2d, "EN")])
def test_dtype_mode_and_what_is_trained_are_kept(make, to):
    plain = make(32).to(torch.bfloat16).eval()
    plain.bias.requires_grad_(False)
    new, _ = surgery.convert(plain, to)
    floating = [t for t in new.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floating} == {torch.bfloat16}
    assert not any(m.training for m in new.modules())
    trained = {name for name, p in new.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in new.named_parameters()} - {"bias"}
    frozen, _ = surgery.convert(make(32).requires_grad_(False), to)
    assert not any(p.requires_grad for p in frozen.parameters())
    back, _ = surgery.revert(frozen)
    assert not any(p.requires_grad for p in back.parameters())


@pytest.mark.parametrize(
    "make, to",
    [(GN4, "ILMGN"), (GN4, "AN"), (nn.BatchNorm2d, "EN"), (nn.InstanceNorm2d, "ILMIN")],
)
def test_a_model_on_the_meta_device(make, to):
    with torch.device("meta"):
        model = Small(make(16), make(32))
    options = {"reduction": 16} if to == "EN" else {}
    model, report = surgery.convert(model, to, **options)
    assert len(report.converted) == 2
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    _, report = surgery.revert(model)
    assert not report.converted and "meta device" in report.left["stem.1"]


# ---- whole models


@pytest.mark.parametrize("name, options", [("GN", {}), ("BN", {"reduction": 16})])
def test_a_resnet_evaluates_the_same_and_trains(name, options):
    resnet18 = pytest.importorskip("torchvision", reason="needs torchvision").models.resnet18
    torch.manual_seed(0)
    make = {"GN": partial(nn.GroupNorm, 8), "BN": nn.BatchNorm2d}[name]
    model = randomized(resnet18(norm_layer=make, num_classes=10)).eval()
    x = torch.randn(2, 3, 64, 64)
    single, double = model(x), model.double()(x.double())
    model, report = surgery.convert(model, {"GN": "ILMGN", "BN": "EN"}[name], **options)
    assert len(report.converted) == 20 and not report.left
    assert change(double, model(x.double())) <= 1e-14
    # As far from the exact outputs as the plain model, and no further, but for chance.
    own = change(double, single.double())
    assert change(double, model.float()(x).double()) <= 4 * own + SINGLE

    layers = {n: m for n, m in model.named_modules() if type(m) in NORMS.values()}
    for layer in layers.values() if name == "GN" else ():
        # Then the variances' embedding is never cut off by its ReLU.
        layer.encode.weight.data.abs_()
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    learns = {"GN": "decode_var.weight", "BN": "ratio.weight"}[name]
    assert {f"{layer}.{learns}" for layer in layers} <= moved
    if name == "GN":
        assert any(key.endswith("decode_mean.weight") for key in moved)
    else:
        assert all(layer.weight[:2].any() for layer in layers.values())
    _, report = surgery.revert(model)
    assert not report.converted and report.left.keys() == layers.keys()


def test_frozen_norms_stay_frozen():
    misc = pytest.importorskip("torchvision.ops.misc", reason="needs torchvision")
    model = small(misc.FrozenBatchNorm2d)
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    model, report = surgery.convert(model, "EN", reduction=16)
    assert len(report.converted) == 2 and model.training
    statistics = copy.deepcopy(dict(model.named_buffers()))
    assert change(expected, model(x)) <= SINGLE
    assert not any(p.requires_grad for p in norm(model, "stem.1").parameters())
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())


def frozen_bn_of_transformers(channels):
    """A module as transformers' DETR has, whose forward has its eps of 1e-5."""

    def forward(self, x):
        weight, bias, mean, var = (b.view(-1, 1, 1) for b in self.buffers())
        return (x - mean) * (weight * (var + 1e-5).rsqrt()) + bias

    module = "transformers.models.detr.modeling_detr"
    contents = {"__module__": module, "forward": forward}
    new = type("DetrFrozenBatchNorm2d", (nn.Module,), contents)()
    for name in ("weight", "bias", "running_mean", "running_var"):
        new.register_buffer(name, torch.ones(channels))
    return new


@pytest.mark.parametrize(
    "make",
    [
        frozen_bn_of_transformers,
        "transformers.models.detr.modeling_detr:DetrFrozenBatchNorm2d",
        "transformers.models.rt_detr.modeling_rt_detr:RTDetrFrozenBatchNorm2d",
    ],
)
def test_frozen_norms_of_transformers_become_frozen_en(make):
    if isinstance(make, str):
        pytest.importorskip("tokenizers", reason="needs transformers and tokenizers")
        module, name = make.split(":")
        make = getattr(pytest.importorskip(module, reason="needs transformers"), name)
    model = small(make).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = model(x)
    model, report = surgery.convert(model, "EN", reduction=16)
    assert report.converted.keys() == {"stem.1", "head.1"} and not report.left
    assert all(norm(model, name).frozen for name in report.converted)
    assert change(expected, model(x)) <= 1e-10


def test_what_is_named_like_a_norm_is_listed():
    class RMSNorm(nn.Module):
        pass

    class PreNorm(nn.Sequential):
        pass

    model = nn.Sequential(RMSNorm(), PreNorm(RMSNorm(), nn.BatchNorm2d(32)))
    _, report = surgery.convert(model, "EN")
    assert report.left == dict.fromkeys(["0", "1.0"], "RMSNorm, but EN replaces BatchNorm")
    assert report.converted.keys() == {"1.1"}


# ---- which norms


@pytest.mark.parametrize(
    "choice",
    [
        {"match": "stem.*"},
        {"match": ["stem.?", "neck.*"]},
        {"where": lambda name, module: module.num_channels == 16},
        {"where": lambda name, module: name.startswith("stem")},
    ],
)
def test_norms_are_chosen_by_name_or_predicate(choice):
    model, report = surgery.convert(small(), "ILMGN", **choice)
    assert report.converted == {"stem.1": "GroupNorm -> ILMGroupNorm"} and not report.left
    assert type(norm(model, "head.1")) is nn.GroupNorm
    model, _ = surgery.convert(model, "ILMGN")
    _, report = surgery.revert(model, **choice)
    assert report.converted.keys() == {"stem.1"}


class Adaptive(nn.BatchNorm2d):
    """Like AdaBN: a BatchNorm with a mind of its own."""

    def forward(self, x):
        return super().forward(x) + 1


class Renamed(nn.GroupNorm):
    pass


class Activated(nn.BatchNorm2d):
    """Like timm's norms with an activation in them."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.act = act

    def forward(self, x):
        return self.act(super().forward(x))


@pytest.mark.parametrize("types", [None, [Activated]])
def test_the_modules_of_a_norm_are_not_dropped(types):
    model, report = surgery.convert(nn.Sequential(Activated(32, nn.ReLU())), "EN", types=types)
    assert "runs modules of its own, act, that EN would lack" in report.left["0"]
    assert type(model[0]) is Activated


def test_a_norm_that_runs_nothing_else_is_converted_on_request():
    model = nn.Sequential(Activated(32, nn.Identity())).eval()
    x = torch.randn(2, 32, 3, 3)
    expected = model(x)
    model, report = surgery.convert(model, "EN", types=[Activated])
    assert report.converted and change(expected, model(x)) <= SINGLE


def test_types_are_taken_exactly():
    model = nn.Sequential(nn.GroupNorm(4, 32), Renamed(4, 32))
    _, report = surgery.convert(model, "ILMGN", types=[Renamed])
    assert report.converted.keys() == {"1"}
    assert report.left == {"0": "GroupNorm, which is not among types"}
    with pytest.raises(OptionError, match="types=Small, which derives from none of torch's norms"):
        surgery.convert(model, "ILMGN", types=[Small])


LEFT = {
    "a subclass": (Adaptive(32), "EN", "Adaptive derives from BatchNorm and may compute"),
    "a subclass of GN": (Renamed(4, 32), "ILMGN", "Renamed derives from GroupNorm"),
    "lazy": (nn.LazyBatchNorm2d(), "EN", "LazyBatchNorm2d derives from BatchNorm"),
    "another norm": (
        nn.BatchNorm2d(32),
        "ILMGN",
        "replaces GroupNorm; give replacing='BN' to replace it; outputs then change",
    ),
    "LayerNorm": (nn.LayerNorm(32), "ILMLN", "LayerNorm, but ILMLN replaces GroupNorm"),
    "IN of running statistics": (
        nn.InstanceNorm2d(32, track_running_stats=True),
        "ILMIN",
        "with track_running_stats",
    ),
    "BN of the batch": (nn.BatchNorm2d(32, track_running_stats=False), "EN", "without running"),
    "channels": (nn.GroupNorm(4, 24), "ILMGN", "key_group_size=16 does not divide num_channels=24"),
    "EN's channels": (nn.BatchNorm2d(16), "EN", "reduction=32 does not divide num_channels=16"),
    "several groups": (nn.GroupNorm(4, 32), "ILMLN", "4 groups, where ILMLN has one"),
    "ours": (ILMGroupNorm(32), "ILMGN", "is ILMGroupNorm, already a layer of this package"),
    "parametrized": (
        nn.utils.parametrize.register_parametrization(nn.GroupNorm(4, 32), "weight", nn.Identity()),
        "ILMGN",
        "remove_parametrizations",
    ),
}


@pytest.mark.parametrize("module, to, words", LEFT.values(), ids=LEFT)
def test_what_cannot_be_swapped_is_left_with_the_reason(module, to, words):
    same, report = surgery.convert(module, to)
    assert same is module and words in report.left[""]


@pytest.mark.parametrize(
    "base, path",
    [
        (nn.SyncBatchNorm, "mmcv.utils.parrots_wrapper.SyncBatchNorm"),
        (nn.modules.batchnorm._BatchNorm, "mmcv.cnn.utils.sync_bn._BatchNormXd"),
    ],
)
def test_the_batchnorms_of_mmcv_1_are_known_by_name(base, path):
    module, name = path.rsplit(".", 1)
    plain = type(name, (base,), {"__module__": module})(32)
    new, report = surgery.convert(plain, "EN")
    assert type(new) is ExemplarNorm and not report.left


@pytest.mark.parametrize(
    "options, words",
    [
        ({"to": "XN"}, "to='XN' is unknown; set it to one of 'ILMGN'"),
        ({"key_group_sise": 8}, "unknown option 'key_group_sise'"),
        ({"num_groups": 8}, "num_groups comes from each norm; leave it out"),
        ({"num_channels": 8}, "num_channels comes from each norm; leave it out"),
        ({"device": "cuda"}, "device comes from each norm; leave it out"),
        ({"replacing": "IN"}, "replacing='IN' is unknown; set it to one of 'GN', 'BN'"),
        ({"to": "EN", "replacing": "GN"}, "replacing='GN' is unknown; set it to one of 'BN'"),
        ({"replacing": "BN", "eps": 1}, "eps comes from each norm; leave it out"),
        ({"dtype": torch.half}, "dtype comes from each norm; leave it out"),
        ({"init": "default"}, "init='default': a converted layer starts as the norm"),
        (
            {"match": "backbone.*"},
            r"match='backbone.\*' fits none of the 2 norms, such as 'stem.1'",
        ),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(OptionError, match=words):
        surgery.convert(small(), **{"to": "ILMGN", **options})


def test_options_reach_the_layers():
    model, report = surgery.convert(small(), "ILMGN", key_group_size=8, hidden=3)
    assert len(report.converted) == 2
    assert norm(model, "head.1").num_key_groups == 4 and norm(model, "head.1").hidden == 3
    _, report = surgery.convert(small(), "ILMGN", activations=("relu", "sigmoid"))
    assert "init='identity' does not exist for activations" in report.left["stem.1"]
    _, report = surgery.convert(nn.Sequential(nn.BatchNorm2d(32)), "EN", shared_affine=True)
    assert "cannot compute BN" in report.left["0"]


def tensor_parallel(model):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    return nn.Sequential(model, parallelize_module(nn.Linear(3, 3), mesh, ColwiseParallel()))


WRAPPED = {
    "DDP": (nn.parallel.DistributedDataParallel, "the model", "DistributedDataParallel"),
    "FSDP": (by_fsdp, "the model", "FullyShardedDataParallel"),
    "fully_shard": (by_fully_shard, "the model", "FSDPModule"),
    "tensor parallel": (tensor_parallel, "1", "DTensor"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_model_that_is_wrapped_for_several_processes(process_group, kind):
    wrap, name, called = WRAPPED[kind]
    if reason := without(kind):
        pytest.skip(reason)
    words = r"is wrapped in {}, which .*; convert the plain model, .*\.module .* wrap that$"
    with pytest.raises(OptionError, match=f"^{name} {words.format(called)}"):
        surgery.convert(wrap(small().stem), "ILMGN")
    model = small()
    model.stem = wrap(model.stem)
    with pytest.raises(OptionError, match=rf"^stem\S* {words.format(called)}"):
        surgery.convert(model, "ILMGN", match="head.*")


def test_a_sharded_model_after_a_forward_pass(process_group):
    """Its parameters are plain tensors then, and not for long."""
    if reason := without("fully_shard"):
        pytest.skip(reason)
    model = by_fully_shard(small().stem)
    model(torch.randn(1, 3, 5, 5))
    with pytest.raises(OptionError, match="the model is wrapped in FSDPModule"):
        surgery.revert(model)


# ---- what modules share


def test_a_module_under_two_names_stays_one():
    shared = nn.GroupNorm(4, 16)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.ReLU(), shared)})
    model, report = surgery.convert(model, "ILMGN", match="b.*")
    assert report.converted.keys() == {"a.0", "b.1"}
    assert model["a"][0] is model["b"][1] and type(model["a"][0]) is ILMGroupNorm


def tied(make):
    a, b = make(32), make(32)
    b.weight, b.bias = a.weight, a.bias
    return nn.Sequential(a, b)


@pytest.mark.parametrize("make, to", [(GN4, "ILMGN"), (nn.BatchNorm2d, "EN")])
def test_tied_parameters_stay_tied(make, to):
    model, report = surgery.convert(tied(make), to)
    assert len(report.converted) == 2
    assert model[0].weight is model[1].weight and model[0].bias is model[1].bias
    own = {"ILMGN": "encode", "EN": "running_mean"}[to]
    assert getattr(model[0], own) is not getattr(model[1], own)
    model, _ = surgery.revert(model)
    assert model[0].weight is model[1].weight


def test_all_parameters_of_an_sn_stay_tied_and_frozen():
    """In detectron2's RetinaNet, the levels of the pyramid share them."""
    a, b = SwitchNorm(32), SwitchNorm(32)
    for name in ("weight", "bias", "mean_weight", "var_weight"):
        setattr(b, name, getattr(a, name))
    a.mean_weight.requires_grad_(False)
    model, _ = surgery.convert(nn.Sequential(copy.deepcopy(a)), "SSN")
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["0.mean_weight"]
    _, report = surgery.convert(nn.Sequential(a, b), "SSN", match="0")
    assert report.left == {"0": "its mean_weight is also that of another module, which stays"}
    (first, second), _ = surgery.convert(nn.Sequential(a, b), "SSN")
    assert type(first) is type(second) is SparseSwitchNorm
    assert all(p is getattr(second, name) for name, p in first.named_parameters())


def test_a_parameter_that_is_also_anothers_is_not_torn_apart():
    model, report = surgery.convert(tied(nn.BatchNorm2d), "EN", match="0")
    assert report.left == {"0": "its weight is also that of another module, which stays"}
    assert type(model[0]) is nn.BatchNorm2d and model[0].weight is model[1].weight
    model, report = surgery.convert(tied(GN4), "ILMGN", match="0")
    assert report.converted.keys() == {"0"} and model[0].weight is model[1].weight


@pytest.mark.parametrize(
    "other", [Adaptive, lambda c: nn.BatchNorm2d(c, track_running_stats=False)]
)
def test_a_parameter_is_not_torn_from_a_norm_that_is_left(other):
    a, b, c, d = nn.BatchNorm2d(32), other(32), nn.BatchNorm2d(32), nn.BatchNorm2d(32)
    b.weight, c.bias, c.weight = a.weight, a.bias, d.weight
    model, report = surgery.convert(nn.Sequential(a, b, c, d), "EN")
    assert report.left.keys() == {"0", "1", "2", "3"} and not report.converted
    assert report.left["0"] == "its weight is also that of another module, which stays"
    assert report.left["2"] == "its bias is also that of another module, which stays"
    assert model[0].weight is model[1].weight and model[2].bias is model[0].bias
    assert model[2].weight is model[3].weight


def test_a_norm_with_a_forward_of_its_own_is_left():
    model = nn.Sequential(nn.GroupNorm(4, 32), ILMGroupNorm(32, init="identity"))
    plain = model[0].forward
    model[0].forward = lambda x: 2 * plain(x)
    model[1].forward = plain
    for operate in (lambda m: surgery.convert(m, "ILMGN"), surgery.revert):
        _, report = operate(model)
        (words,) = {*report.left.values()} - {"is ILMGroupNorm, already a layer of this package"}
        assert not report.converted and "its forward was replaced" in words


# ---- notes


def record(module, inputs, output):
    pass


HOOKS = "hooks stay with the module that was replaced: record, record"


def test_hooks_are_reported():
    model = small()
    model.stem[1].register_forward_hook(record)
    model.stem[1].register_full_backward_hook(record)
    model.stem[0].register_forward_hook(record)
    _, report = surgery.convert(model, "ILMGN")
    assert report.notes == {HOOKS: ["stem.1"]} and "hooks stay" in str(report)


@pytest.mark.parametrize(
    "make, to, notes", [(nn.BatchNorm2d, "EN", {HOOKS: [""]}), (GN4, "ILMGN", {})]
)
def test_hooks_of_parameters_are_reported_if_those_are_replaced(make, to, notes):
    plain = make(32)
    plain.weight.register_hook(record)
    plain.bias.register_post_accumulate_grad_hook(record)
    _, report = surgery.convert(plain, to)
    assert report.notes == notes


@pytest.mark.parametrize(
    "make, to, part", [(GN4, "ILMGN", "encode"), (nn.BatchNorm2d, "EN", "ratio")]
)
def test_hooks_within_a_layer_are_reported_where_it_is_reverted(make, to, part):
    model, _ = surgery.convert(nn.Sequential(make(32)), to)
    norm(model, f"0.{part}").register_forward_hook(record)
    norm(model, f"0.{part}").weight.register_hook(record)
    _, report = surgery.revert(model)
    assert report.notes == {HOOKS: ["0"]}


@pytest.mark.parametrize(
    "module, to, words",
    [
        (nn.BatchNorm2d(32), "SN", "SN mixes other statistics"),
        (nn.BatchNorm2d(32), "SSN", "SSN mixes other statistics"),
        (nn.BatchNorm2d(32, momentum=None), "EN", "momentum 0.1"),
    ],
)
def test_what_else_changes_is_noted(module, to, words):
    _, report = surgery.convert(nn.Sequential(module), to)
    assert report.converted and [words in note for note in report.notes] == [True]
    assert words in str(report)


def test_synchronized_statistics_stay_so():
    model, report = surgery.convert(nn.Sequential(nn.SyncBatchNorm(32)), "EN")
    assert model[0].sync is True and not report.notes
    _, report = surgery.revert(model)
    assert "each process's own" in next(iter(report.notes))
    model, report = surgery.convert(nn.Sequential(nn.SyncBatchNorm(32)), "EN", sync=False)
    assert model[0].sync is False and "each process's own" in next(iter(report.notes))


def test_a_plain_swap_has_no_notes():
    for plain, to in ((nn.GroupNorm(4, 32), "ILMGN"), (nn.BatchNorm2d(32), "EN")):
        layer, report = surgery.convert(plain, to)
        assert not report.notes
        _, report = surgery.revert(layer)
        assert not report.notes
    frozen, _ = surgery.convert(nn.BatchNorm2d(32), "EN")
    _, report = surgery.revert(ilm_plugins.freeze(frozen))
    assert "no longer frozen" in next(iter(report.notes))


def test_the_report_lists_names_by_what_became_of_them():
    model = small()
    model.extra = nn.BatchNorm2d(8)
    _, report = surgery.convert(model, "ILMGN")
    assert str(report).splitlines() == [
        "converted, GroupNorm -> ILMGroupNorm (2):",
        "    stem.1",
        "    head.1",
        "left, BatchNorm2d, but ILMGN replaces GroupNorm; "
        "give replacing='BN' to replace it; outputs then change (1):",
        "    extra",
    ]


# ---- BatchNorm to layers of each image's own statistics

OUTPUTS_CHANGE = "outputs change: each image's own statistics take the place of BatchNorm's"
GROUPS = {"ILMGN": 8, "ILMIN": 24, "ILMLN": 1, "AssocNorm": 8}


@pytest.mark.parametrize("to", GROUPS)
@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batchnorm_becomes_a_norm_of_each_image(to, make):
    """The layer starts as GroupNorm or the like, with BatchNorm's weight, bias and eps."""
    plain = randomized(make(24, eps=1e-3)).eval()
    weight, bias = plain.weight, plain.bias
    new, report = surgery.convert(plain, to, replacing="BN")
    assert type(new) is NORMS[to] and not new.training and not report.left
    assert new.weight is weight and new.bias is bias and new.num_groups == GROUPS[to]
    assert [note.startswith(OUTPUTS_CHANGE) for note in report.notes] == [True]
    assert OUTPUTS_CHANGE in str(report)
    x = torch.randn(2, 24, 5, 5)
    expected = nn.functional.group_norm(x, GROUPS[to], weight, bias, 1e-3)
    torch.testing.assert_close(new(x), expected)
    back, _ = surgery.revert(new)
    torch.testing.assert_close(back(x), expected)


def test_any_width_of_batchnorm_fits_unless_options_say_otherwise():
    model = nn.Sequential(*(nn.BatchNorm2d(c) for c in (3, 24, 144, 64)), nn.GroupNorm(4, 64))
    model, report = surgery.convert(model, "ILMGN", replacing="BN")
    assert [m.num_groups for m in model] == [1, 8, 16, 32, 4]
    assert [m.num_channels // m.num_key_groups for m in model[:4]] == [1, 8, 16, 16]
    assert report.left == {"4": "GroupNorm, but ILMGN replaces BatchNorm"}
    new, _ = surgery.convert(nn.BatchNorm2d(24), "ILMGN", replacing="BN", num_groups=4)
    assert new.num_groups == 4 and new.num_key_groups == 3


def test_what_batchnorm_lacks_or_froze():
    new, _ = surgery.convert(nn.BatchNorm2d(32, affine=False), "ILMGN", replacing="BN")
    assert torch.equal(new.weight, torch.ones(32)) and new.weight.requires_grad
    new, report = surgery.convert(nn.BatchNorm2d(32).requires_grad_(False), "ILMIN", replacing="BN")
    assert not any(p.requires_grad for p in new.parameters())
    assert [note.startswith(OUTPUTS_CHANGE) for note in report.notes] == [True]


@pytest.mark.parametrize("to", GROUPS)
def test_batchnorm_of_a_state_dict_is_converted_on_request(to):
    bn, gn = small(nn.BatchNorm2d).state_dict(), small().state_dict()
    _, report = surgery.convert_state(bn, to)
    assert not report.converted and "replacing='BN'" in report.left["stem.1"]
    _, report = surgery.convert_state(bn, to, replacing="BN")
    assert report.converted.keys() == {"stem.1", "head.1"}
    _, report = surgery.convert_state(gn, to, match="*", replacing="BN")
    assert report.left["stem.1"] == "GN or IN, but BatchNorm is replaced"


def test_batchnorm_of_a_state_dict_becomes_a_norm_of_each_image():
    model = small(nn.BatchNorm2d)
    state, report = surgery.convert_state(model.state_dict(), "ILMGN", replacing="BN")
    assert report.converted == dict.fromkeys(["stem.1", "head.1"], "BN -> ILMGroupNorm")
    assert OUTPUTS_CHANGE in str(report)
    ours = Small(ILMGroupNorm(16, "auto"), ILMGroupNorm(32))
    fitted, of_fitted = surgery.fit_state(model.state_dict(), ours)
    assert OUTPUTS_CHANGE in str(of_fitted) and fitted.keys() == state.keys()
    ours.load_state_dict(state)
    converted, _ = surgery.convert(model, "ILMGN", replacing="BN")
    x = torch.randn(2, 3, 9, 9)
    assert change(converted(x), ours(x)) <= SINGLE


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_without_statistics_becomes_a_norm_of_each_image(affine):
    old = nn.BatchNorm2d(32, affine=affine, track_running_stats=False)
    new, report = surgery.convert(old, "ILMGN", replacing="BN")
    assert type(new) is ILMGroupNorm and not report.left
    assert [note.partition(":")[0] for note in report.notes] == ["outputs change"]
    torch.testing.assert_close(new.weight, old.weight if affine else torch.ones(32))


# ---- running statistics


@pytest.mark.parametrize("layer", [ExemplarNorm, SwitchNorm])
def test_running_statistics_are_measured_anew(layer):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), layer(32), nn.Dropout(0.5), nn.BatchNorm2d(32), layer(32, momentum=0.3)
    )
    others = copy.deepcopy(model[3].state_dict())
    model[1].eval()
    modes = [m.training for m in model.modules()]
    batches = [5 * torch.randn(4, 3, 6, 6) + 2 for _ in range(3)]
    report = surgery.recalibrate(model, iter(batches))
    assert report.converted == dict.fromkeys("14", "running statistics of 3 batches")
    maps = [model[0](x).transpose(0, 1).flatten(1) for x in batches]
    mean = torch.stack([m.mean(1) for m in maps]).mean(0)
    var = torch.stack([m.var(1) for m in maps]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert [m.training for m in model.modules()] == modes and model[4].momentum == 0.3
    torch.testing.assert_close(model[3].state_dict(), others)
    # BatchNorm in between was in evaluation mode, and nothing was dropped.
    seen = []
    model[1].train()
    model[2].eval(), model[3].eval()
    model[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    model[4].requires_grad_(False)
    for x in batches:
        model(x)
    torch.testing.assert_close(model[4].running_mean, torch.stack(seen).mean(0))


def test_statistics_that_are_nan_are_measured_anew():
    layer = SwitchNorm(4)
    layer.running_mean.fill_(math.nan)
    layer.running_var.fill_(math.inf)
    batches = [torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)]
    surgery.recalibrate(layer, batches)
    expected = SwitchNorm(4)
    surgery.recalibrate(expected, batches)
    torch.testing.assert_close(layer.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert layer.running_var.isfinite().all()


def test_statistics_of_a_layer_that_is_called_by_name_are_measured():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = ExemplarNorm(32)

        def forward(self, x):
            return self.norm(x=x)

    model, x = Named(), torch.randn(4, 32, 3, 3) + 5
    surgery.recalibrate(model, [x])
    torch.testing.assert_close(model.norm.running_mean, x.mean((0, 2, 3)))


def test_layers_without_new_statistics_keep_theirs():
    model = nn.Sequential(SwitchNorm(4), ilm_plugins.freeze(SwitchNorm(4)))
    unused = SwitchNorm(4)
    model.add_module("unused", unused)
    batches = [torch.randn(0, 4, 2, 2), torch.ones(1, 4), torch.full((2, 4, 2, 2), 3.0)]
    report = surgery.recalibrate(model, batches, model[:2])
    assert report.converted.keys() == {"0"}
    assert "frozen" in report.left["1"] and "no batch" in report.left["unused"]
    # The first two batches have no variance, and count for nothing.
    assert torch.equal(model[0].running_mean, torch.full((4,), 3.0))
    assert torch.equal(model[1].running_var, torch.ones(4))
    with pytest.raises(OptionError, match="got no batches"):
        surgery.recalibrate(model, [])
    with pytest.raises(OptionError, match="no EN, SN or SSN with running statistics"):
        surgery.recalibrate(small(), [torch.zeros(1)])
    assert model[0].training and model[0].momentum == 0.1


@pytest.mark.parametrize("failing", [0, 2])
def test_a_batch_that_fails_leaves_the_statistics_as_they_were(failing):
    model = nn.Sequential(ExemplarNorm(32), SwitchNorm(32))
    model(torch.randn(4, 32, 3, 3))
    before = copy.deepcopy(model.state_dict())

    def forward(i):
        model[: 1 if i == failing else 2](torch.randn(4, 32, 3, 3))
        assert not torch.equal(model[0].running_var, before["0.running_var"])
        return 1 / (i - failing)

    with pytest.raises(ZeroDivisionError):
        surgery.recalibrate(model, range(3), forward)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model[0].momentum == 0.1


# ---- back, where it is exact


class Doubled(ILMGroupNorm, nn.GroupNorm):
    def predict(self, *arguments):
        omega, beta = super().predict(*arguments)
        return 2 * omega, beta


def with_identity_of(layer):
    """Give a layer the tensors of one that starts as a plain norm, whatever its options are."""
    layer.load_state_dict(type(layer)(32, init="identity").state_dict())
    return layer


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


@pytest.mark.parametrize(
    "layer, words",
    [
        (ILMGroupNorm(32), "decoders are not zero"),
        (AssocNorm(32), "decoders are not zero"),
        (AttentiveNorm(32), "attention's weight is not zero"),
        (ExemplarNorm(32), "more than BN"),
        (ExemplarNorm(32, shared_affine=True), "cannot compute BN"),
        (ExemplarNorm(32, normalizers=("IN", "LN")), "cannot compute BN"),
        (SwitchNorm(32), "SN does not become BatchNorm2d"),
        (Doubled(32, init="identity"), "Doubled may compute something else than its base"),
        (with_identity_of(ILMGroupNorm(32, activations=("sigmoid", "sigmoid"))), "cannot compute"),
        (with_identity_of(AssocNorm(32, combine="a(WE)*B")), "cannot compute a plain norm"),
        (parametrized(SwitchNorm(32)), "remove_parametrizations"),
        (parametrized(ILMGroupNorm(32, init="identity")), "remove_parametrizations"),
    ],
)
def test_only_what_is_still_a_plain_norm_leads_back(layer, words):
    same, report = surgery.revert(layer)
    assert same is layer and words in report.left[""]


def test_a_registered_subclass_does_not_lead_back(monkeypatch):
    monkeypatch.setitem(NORMS, "Doubled", Doubled)
    _, report = surgery.revert(Doubled(32, init="identity"))
    assert report.left == {"": "Doubled may compute something else than its base"}


@pytest.mark.parametrize(
    "name",
    ["decode_mean.weight", "decode_var.weight", "omega_offset", "ratio.weight", "ratio.bias"],
)
def test_a_single_value_that_has_moved_keeps_a_layer(name):
    plain = nn.BatchNorm2d(32) if "ratio" in name else nn.GroupNorm(4, 32)
    layer, _ = surgery.convert(plain, "EN" if "ratio" in name else "ILMGN")
    layer.state_dict()[name].view(-1)[0] += 1e-3
    same, report = surgery.revert(layer)
    assert same is layer and report.left


def test_en_finds_bns_row_in_any_order():
    plain = randomized(nn.BatchNorm2d(32)).eval()
    x = torch.randn(2, 32, 5, 5)
    expected = plain(x)
    layer, _ = surgery.convert(plain, "EN", normalizers=("BN", "IN"))
    assert change(expected, layer(x)) <= SINGLE
    weight = layer.weight.detach().clone()
    back, _ = surgery.revert(copy.deepcopy(layer))
    assert type(back) is nn.BatchNorm2d and change(expected, back(x)) <= SINGLE
    layer.weight.data = weight.flip(0)
    same, _ = surgery.revert(layer)
    assert same is layer, "only IN is in use"


# ---- state dicts


def test_a_state_dict_is_converted_as_the_model_is():
    model = small()
    state, report = surgery.convert_state(model.state_dict(), "ILMGN", match=["stem.*", "head.*"])
    assert report.converted == dict.fromkeys(["stem.1", "head.1"], "GN or IN -> ILMGroupNorm")
    expected = model(x := torch.randn(2, 3, 9, 9))
    # The layers as a framework's config makes them: not the identity, but for what is loaded.
    ours = Small(ILMGroupNorm(16, 4), ILMGroupNorm(32, 4))
    assert change(expected, ours(x)) > 1e-3
    ours.load_state_dict(state)
    assert norm(ours, "head.1").omega_offset == 0.5
    assert change(expected, ours(x)) <= SINGLE
    back, report = surgery.revert_state(state)
    assert len(report.converted) == 2 and back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())
    _, report = surgery.convert_state(state, "ILMGN", match="*")
    assert not report.converted and report.left == dict.fromkeys(
        ["stem.1", "head.1"], "is ILM, already a layer of this package"
    )


def test_a_state_dict_is_converted_to_attentive_norm_and_back():
    model, x = small(), torch.randn(2, 3, 9, 9)
    ours = Small(AttentiveNorm(16, 4), AttentiveNorm(32, 4))
    converted, report = surgery.convert_state(model.state_dict(), "AN", match="*")
    assert report.converted == dict.fromkeys(["stem.1", "head.1"], "GN or IN -> AttentiveNorm")
    fitted, _ = surgery.fit_state(model.state_dict(), ours)
    rows = norm(ours, "head.1").pairs.weight.detach().clone()
    for state in (converted, fitted):
        assert change(model(x), ours(x)) > 1e-3
        ours.load_state_dict(state)
        assert change(model(x), ours(x)) <= SINGLE
        back, report = surgery.revert_state(state)
        assert len(report.converted) == 2
        torch.testing.assert_close(back, dict(model.state_dict()), rtol=2e-7, atol=1e-7)
        for layer in (norm(ours, "stem.1"), norm(ours, "head.1")):
            layer.reset_parameters()
    moved = fitted["head.1.pairs.weight"] - rows
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    _, report = surgery.convert_state(converted, "AN", match="*")
    assert report.left == dict.fromkeys(
        ["stem.1", "head.1"], "is AN, already a layer of this package"
    )
    converted["stem.1.attention.bias"] += 1  # still a GroupNorm, of other weights
    back, _ = surgery.revert_state(converted)
    plain = Small(nn.GroupNorm(4, 16), nn.GroupNorm(4, 32))
    plain.load_state_dict(back)
    ours.load_state_dict(converted)
    assert change(plain(x), ours(x)) <= SINGLE


def test_batchnorm_is_known_by_its_statistics():
    model = small(nn.BatchNorm2d).eval()
    state, report = surgery.convert_state(model.state_dict(), "EN", reduction=8)
    assert report.converted == dict.fromkeys(["stem.1", "head.1"], "BN -> ExemplarNorm")
    ours = Small(ExemplarNorm(16, reduction=8), ExemplarNorm(32, reduction=8)).eval()
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 9, 9)
    assert change(model(x), ours(x)) <= SINGLE
    back, report = surgery.revert_state(state)
    assert len(report.converted) == 2
    torch.testing.assert_close(back, dict(model.state_dict()), rtol=2e-7, atol=0)
    without_counts = {k: v for k, v in ours.state_dict().items() if "num_batches" not in k}
    back, report = surgery.revert_state(without_counts)
    assert len(report.converted) == 2 and back.keys() == model.state_dict().keys()
    state, report = surgery.convert_state(model.state_dict(), "SN")
    assert "SN mixes" in str(report)
    Small(SwitchNorm(16), SwitchNorm(32)).load_state_dict(state)


def test_a_weight_and_a_bias_alone_are_converted_only_if_named():
    state = small().state_dict()
    same, report = surgery.convert_state(state, "ILMGN")
    assert same.keys() == state.keys() and not report.converted
    assert "match it" in report.left["stem.1"]
    _, report = surgery.convert_state(state, "EN")
    assert report.left["stem.1"] == "GN or IN does not become ExemplarNorm"
    with pytest.raises(OptionError, match="fits none of the 2 norms"):
        surgery.convert_state(state, "ILMGN", match="roi_heads.*")
    _, report = surgery.convert_state(state, "ILMGN", match="*", activations=("relu", "relu"))
    assert "cannot compute a plain norm" in report.left["stem.1"]
    _, report = surgery.fit_state(state, Small(ILMGroupNorm(32), ILMGroupNorm(32)))
    assert report.converted.keys() == {"head.1"}
    assert report.left["stem.1"] == "weight has shape (16,), shape (32,) in the layer"
    _, report = surgery.convert_state(state, "ILMGN", match="*", key_group_size=32)
    assert report.converted.keys() == {"head.1"}
    assert "does not divide num_channels=16" in report.left["stem.1"]


def test_a_state_dict_is_made_to_fit_a_model():
    model = small()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.head.3.weight"] = torch.zeros(7, 32, 1, 1)
    state["module.old"] = torch.zeros(1)
    ours = Small(nn.GroupNorm(4, 16), ILMGroupNorm(32, 4))
    ours.extra = ILMGroupNorm(32)
    fitted, report = surgery.fit_state(state, ours)
    assert report.converted == {"head.1": "GN or IN -> ILMGroupNorm"}
    assert report.left == {
        "head.3.weight": "shape (7, 32, 1, 1), where the model has shape (2, 32, 1, 1)",
        "old": "the model has nothing of this name",
    }
    assert {name.split(".")[0] for name in report.missing} == {"extra"} and len(report.missing) == 6
    del fitted["head.3.weight"]
    ours.load_state_dict(fitted, strict=False)
    model.head[3].load_state_dict(ours.head[3].state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert change(model(x), ours(x)) <= SINGLE
    back, report = surgery.fit_state(fitted, small())
    assert report.converted == {"head.1": "ILM -> GroupNorm"}
    assert torch.equal(back["head.1.weight"], state["module.head.1.weight"])


class Scaled(nn.Module):
    """A norm of the user's own, with the tensors of GroupNorm."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))


def test_a_norm_of_the_users_own_is_not_taken_for_a_groupnorm(monkeypatch):
    monkeypatch.setitem(NORMS, "Scaled", Scaled)
    ours = small(Scaled)
    for make, kind in ((GN4, "GN or IN"), (nn.BatchNorm2d, "BN")):
        state = small(make).state_dict()
        fitted, report = surgery.fit_state(state, ours)
        words = f"{kind} does not become Scaled"
        assert report.left.items() >= {"stem.1": words, "head.1": words}.items()
        assert fitted.keys() == state.keys() and not report.converted


class Versioned(nn.Module):
    """A module that takes a state dict without a version for an old one, as torchvision's do."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(32)

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *args)


@pytest.mark.parametrize(
    "wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_versions_of_modules_are_kept(wrapper):
    plain = nn.Sequential(Versioned())
    wrapped = plain
    for name in wrapper.split(".")[-2::-1]:
        wrapped = nn.ModuleDict({name: wrapped})
    ours, _ = surgery.convert(copy.deepcopy(plain), "EN")
    found = [surgery.fit_state(wrapped.state_dict(), ours)[0]]
    if not wrapper:
        found.append(surgery.convert_state(plain.state_dict(), "EN")[0])
    for state in found:
        ours.load_state_dict(state)


def test_what_a_state_dict_does_not_tell_is_told_once():
    plain = randomized(Small(nn.GroupNorm(8, 16, eps=1e-3), nn.GroupNorm(4, 32)))
    words = "a state dict has no eps, num_groups or normalizers; where a layer has others, outputs "
    words += "change"
    state, report = surgery.convert_state(plain.state_dict(), "ILMGN", match="*")
    assert str(report).splitlines()[-1] == f"note, {words}"
    _, report = surgery.revert_state(state)
    assert report.notes == {words: []}
    _, report = surgery.convert_state(state, "ILMGN", match="*")
    assert not report.converted and not report.notes
    ours = Small(ILMGroupNorm(16, 4, eps=1e-3), ILMGroupNorm(32, 4))
    _, report = surgery.fit_state(plain.state_dict(), ours)
    assert report.notes == {f"{words} (the model has eps 1e-05, 0.001 and num_groups 4)": []}
    bn, en = (nn.Sequential(norm(32, eps=1e-3)) for norm in (nn.BatchNorm2d, ExemplarNorm))
    _, report = surgery.fit_state(bn.state_dict(), en)
    assert report.notes == {f"{words} (the model has eps 0.001)": []}


def test_a_norm_that_had_no_tensors_is_told():
    plain = Small(nn.InstanceNorm2d(16), nn.InstanceNorm2d(32, affine=True))
    ours = Small(ILMInstanceNorm(16), ILMInstanceNorm(32))
    fitted, report = surgery.fit_state(plain.state_dict(), ours)
    words = (
        "the state has no tensors for this layer; if a norm without weights was there, build the "
        "layer with init='identity'"
    )
    assert report.notes[words] == ["stem.1"] and "stem.1.weight" in report.missing
    ours = Small(ILMInstanceNorm(16, init="identity"), ILMInstanceNorm(32))
    fitted, report = surgery.fit_state(plain.state_dict(), ours)
    assert words not in report.notes
    ours.load_state_dict(fitted, strict=False)
    ours.stem[0].load_state_dict(plain.stem[0].state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert change(plain(x), ours(x)) <= SINGLE


class Block(nn.Module):
    def __init__(self, name, norm):
        super().__init__()
        self.add_module(name, norm)


def test_what_openmmlab_names_by_type_is_found():
    plain = randomized(Block("bn1", nn.BatchNorm2d(32)))
    ours = Block("gn1", ExemplarNorm(32))
    nn.init.normal_(ours.gn1.ratio.weight)
    state, report = surgery.fit_state(plain.state_dict(), ours)
    assert report.converted == {"gn1": "BN -> ExemplarNorm"} and not report.left
    ours.load_state_dict(state)
    x = torch.randn(2, 32, 3, 3)
    assert change(plain.bn1.eval()(x), ours.gn1.eval()(x)) <= SINGLE


def test_what_openmmlab_names_by_another_type_is_renamed():
    """As of a model whose norms were converted in place."""
    trained, ours = (Block(name, ExemplarNorm(32)) for name in ("bn1", "gn1"))
    state, report = surgery.fit_state(trained.state_dict(), ours)
    assert report.converted == {"gn1": "renamed"} and not report.left and not report.missing
    ours.load_state_dict(state)
    x = torch.randn(2, 32, 3, 3)
    assert torch.equal(trained.bn1(x), ours.gn1(x))


class SharedAffine(nn.Module):
    """Norms of each level of a pyramid with one weight and bias, as detectron2's RetinaNet has."""

    def __init__(self, make, **options):
        super().__init__()
        self.levels = nn.ModuleList(make(32, **options) for _ in range(2))
        self.add_module("0", self.levels[0])
        self.add_module("1", self.levels[1])
        del self.levels
        if "affine" in options:
            self.weight, self.bias = (nn.Parameter(torch.randn(32)) for _ in range(2))


def test_batchnorms_with_one_weight_keep_it():
    plain = SharedAffine(nn.BatchNorm2d, affine=False).eval()
    for norm in plain.children():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    ours = SharedAffine(ExemplarNorm).eval()
    state, report = surgery.fit_state(plain.state_dict(), ours)
    assert report.converted == dict.fromkeys("01", "BN -> ExemplarNorm")
    ours.load_state_dict(state, strict=False)
    x = torch.randn(2, 32, 3, 3)
    for norm, new in zip(plain.children(), ours.children(), strict=True):
        expected = norm(x) * plain.weight.view(-1, 1, 1) + plain.bias.view(-1, 1, 1)
        assert change(expected, new(x)) <= SINGLE


def test_a_shared_weight_that_the_model_has_is_not_applied_twice():
    plain = SharedAffine(nn.BatchNorm2d, affine=False)
    ours, _ = surgery.convert(copy.deepcopy(plain), "EN")
    wanted = copy.deepcopy(ours.state_dict())
    state, _ = surgery.fit_state(plain.state_dict(), ours)
    assert state.keys() >= {"weight", "bias"}
    ours.load_state_dict(state, strict=False)
    torch.testing.assert_close(ours.state_dict(), wanted, rtol=0, atol=0)


def test_a_weight_is_not_dropped_where_the_models_norm_has_none():
    model = nn.Sequential(nn.BatchNorm2d(32, affine=False))
    layer, _ = surgery.convert(randomized(nn.BatchNorm2d(32)), "EN")
    _, report = surgery.fit_state(nn.Sequential(layer).state_dict(), model)
    assert not report.converted
    assert report.left["0"] in {
        f"it has a {n}, which BatchNorm2d lacks" for n in ("weight", "bias")
    }
    layer, _ = surgery.convert(nn.BatchNorm2d(32), "EN")
    _, report = surgery.fit_state(nn.Sequential(layer).state_dict(), model)
    assert report.converted == {"0": "EN -> BatchNorm2d"}


#: A plain norm of 32 channels -> the normalizer that it computes.
PLAIN_NORMS = {
    "IN": [nn.InstanceNorm2d(32, affine=True), nn.GroupNorm(32, 32)],
    "LN": [nn.GroupNorm(1, 32)],
    "BN": [nn.BatchNorm2d(32)],
    "none": [nn.GroupNorm(8, 32)],
}


@pytest.mark.parametrize("fixed", ["IN", "LN", "BN"])
def test_fixed_ratios_become_only_the_norm_that_they_choose(fixed):
    layer = SparseSwitchNorm(32)
    for part in (layer.mean_fixed, layer.var_fixed):
        part[layer.normalizers.index(fixed)] = 1
    for kind, norms in PLAIN_NORMS.items():
        for norm in norms:
            _, report = surgery.fit_state(
                {f"0.{k}": v for k, v in layer.state_dict().items()}, nn.Sequential(norm)
            )
            assert bool(report.converted) == (kind == fixed)
            assert fixed == kind or f"its ratios are fixed on {fixed}" in report.left["0"]


@pytest.mark.parametrize(
    "plain, layer, options",
    [(nn.BatchNorm2d, ExemplarNorm, {}), (GN4, ILMGroupNorm, {"num_groups": 4})],
)
def test_a_norm_of_two_names_is_converted_under_both(plain, layer, options):
    def siamese(norm):
        return nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)}).eval()

    old, new = siamese(randomized(plain(32))), siamese(layer(32, **options))
    state, report = surgery.fit_state(old.state_dict(), new)
    assert report.converted.keys() == {"a", "b.0"} and not report.missing
    new.load_state_dict(state)
    x = torch.randn(2, 32, 3, 3)
    assert change(old["a"](x), new["a"](x)) <= SINGLE


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_norms_that_are_not_of_floats_are_left(dtype):
    state = {f"0.{k}": v.to(dtype) for k, v in nn.BatchNorm2d(32).state_dict().items()}
    same, report = surgery.convert_state(state, "EN")
    assert same == state and report.left == {"0": "it has no tensor of floats"}


def test_names_that_are_not_words_are_left_alone():
    model = small()
    others = {0: torch.ones(32), "stem.1._extra_state": None}
    state = {**model.state_dict(), **others}
    _, report = surgery.convert_state(state, "ILMGN", match="*")
    assert report.converted.keys() == {"stem.1", "head.1"}
    fitted, report = surgery.fit_state(state, small(lambda c: ILMGroupNorm(c, 4)))
    assert report.converted.keys() == {"stem.1", "head.1"} and others.items() <= fitted.items()
    assert report.left == dict.fromkeys(map(str, others), "the model has nothing of this name")
    averaged = surgery.average_sums(state, 3)
    assert averaged == state


# ---- the papers' released code


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def released_ilm(hidden=2):
    """The state dict of a released ILM+GN layer of 64 channels, in key groups of 16."""
    encode = double(hidden, 4)
    return {
        "weight_bias": double(1, 64, 1, 1),
        "bias_bias": double(1, 64, 1, 1),
        "fc_embed.0.weight": encode,
        "fc_weight.0.0.weight": encode,
        "fc_weight.1.weight": double(4, hidden),
        "fc_bias.0.0.weight": encode,
        "fc_bias.1.weight": double(4, hidden),
    }


@pytest.mark.parametrize("hidden", [1, 2])
def test_released_ilm_loads_by_name(hidden):
    theirs, x = released_ilm(hidden), 3 * double(2, 64, 5, 5) + 1
    # But for the released code's variances, which are divided by n - 1.
    expected = transcription.ilm_norm(
        x,
        theirs["weight_bias"].flatten(),
        theirs["bias_bias"].flatten(),
        theirs["fc_embed.0.weight"],
        decode_mean=theirs["fc_bias.1.weight"],
        decode_var=theirs["fc_weight.1.weight"],
        num_groups=4,
        key_group_size=16,
        eps=1e-5,
    )
    state = {f"layer1.norm.{name}": tensor for name, tensor in theirs.items()}
    model = nn.ModuleDict({"layer1": nn.ModuleDict({"norm": ILMGroupNorm(64, 4)})}).double()
    layer = norm(model, "layer1.norm")
    assert layer.hidden == 2
    converted, report = surgery.convert_state(state, "ILMGN")
    assert report.converted == {"layer1.norm": "released ILM -> ILMGroupNorm"}
    assert "divides variances by n - 1" in str(report)
    for found in (converted, surgery.fit_state(state, model)[0]):
        nn.init.normal_(layer.decode_var.weight)
        model.load_state_dict(found)
        assert change(expected, layer(x)) <= 1e-14


@pytest.mark.parametrize(
    "to, options, words",
    [
        ("ILMGN", {"key_group_size": 8}, "set key_group_size=16"),
        ("ILMGN", {"hidden": 1}, "set hidden=2"),
        ("AssocNorm", {}, "released ILM layer does not become AssocNorm"),
        ("SN", {}, "released ILM does not become SwitchNorm"),
    ],
)
def test_released_ilm_that_does_not_fit(to, options, words):
    _, report = surgery.convert_state(released_ilm(), to, **options)
    assert words in report.left[""]


def released_sn(k=3):
    """The state dict of a released SN layer of 32 channels and k normalizers."""
    state = {"weight": double(1, 32, 1, 1), "bias": double(1, 32, 1, 1)}
    state |= {"mean_weight": double(k), "var_weight": double(k)}
    if k == 3:
        state |= {"running_mean": double(1, 32, 1), "running_var": double(1, 32, 1).exp()}
    return state


@pytest.mark.parametrize("k, other", [(3, ("IN", "BN", "LN")), (2, ("IN", "LN", "BN"))])
def test_released_sn_loads_by_name(k, other):
    theirs, x, normalizers = released_sn(k), double(2, 32, 5, 5), ("IN", "LN", "BN")[:k]
    options = {name: tensor.flatten() for name, tensor in theirs.items()}
    expected = transcription.switch_norm(x, **options, normalizers=normalizers, eps=1e-5)
    state, report = surgery.convert_state(theirs, "SN", normalizers=normalizers)
    assert report.converted == {"": "released SN -> SwitchNorm"}
    ours = SwitchNorm(32, normalizers=normalizers).double().eval()
    ours.load_state_dict(state)
    assert change(expected, ours(x)) <= 1e-13
    _, report = surgery.convert_state(theirs, "SN", normalizers=other)
    assert f"set normalizers={normalizers}" in report.left[""]


def test_the_released_sn_of_vectors_has_no_in():
    theirs = {k: v.view(1, -1) if v.numel() == 32 else v[:2] for k, v in released_sn().items()}
    x, normalizers = double(4, 32), ("LN", "BN")
    options = {name: tensor.flatten() for name, tensor in theirs.items()}
    expected = transcription.switch_norm(x, **options, normalizers=normalizers, eps=1e-5)
    state, _ = surgery.convert_state(theirs, "SN", normalizers=normalizers)
    ours = SwitchNorm(32, normalizers=normalizers).double().eval()
    ours.load_state_dict(state)
    assert change(expected, ours(x)) <= 1e-13
    _, report = surgery.convert_state(theirs, "SN", normalizers=("IN", "LN"))
    assert "set normalizers=('LN', 'BN')" in report.left[""]


@pytest.mark.parametrize("normalizers", [("IN", "LN", "BN"), ("BN", "GN")])
@pytest.mark.parametrize("training", [True, False])
def test_sn_becomes_ssn_with_the_same_outputs(normalizers, training):
    x = double(3, 32, 5, 5)
    layer = randomized(SwitchNorm(32, 0.1, normalizers=normalizers, num_groups=8).double())
    layer.train(training)
    new, report = surgery.convert(nn.Sequential(copy.deepcopy(layer)), "SSN")
    assert report.converted == {"0": "SwitchNorm -> SparseSwitchNorm"} and not report.notes
    assert new[0].training == training and new[0].radius == 0
    assert change(layer(x), new(x)) <= 1e-13
    torch.testing.assert_close(new[0].ratios(), layer.ratios())
    options = {"normalizers": normalizers, "num_groups": 8}
    state, report = surgery.convert_state(layer.state_dict(), "SSN", **options)
    assert report.converted == {"": "SN -> SparseSwitchNorm"}
    torch.testing.assert_close(state, new[0].state_dict(), rtol=0, atol=0)


def test_sn_keeps_its_normalizers():
    model = nn.Sequential(SwitchNorm(32, normalizers=("IN", "BN")), nn.BatchNorm2d(32))
    model, report = surgery.convert(model, "SSN", normalizers=("IN", "LN", "BN"))
    assert report.converted.keys() == {"1"} and type(model[0]) is SwitchNorm
    assert "where the SwitchNorm has ('IN', 'BN')" in report.left["0"]


def test_sn_without_ratios_is_left():
    layer = SwitchNorm(32)
    layer.var_weight.data[1] = torch.inf
    same, report = surgery.convert(layer, "SSN")
    assert same is layer and "var_weight has NaN or infinite logits" in report.left[""]


def released_ssn(mean_fixed, var_fixed):
    """The state dict of a released SSN layer of 32 channels at radius .4."""
    state = released_sn() | {"radius": torch.full((1,), 0.4)}
    return state | {
        "mean_fixed": torch.tensor([mean_fixed]),
        "var_fixed": torch.tensor([var_fixed]),
    }


@pytest.mark.parametrize("fixed", [False, True])
def test_released_ssn_loads_by_name(fixed):
    theirs, x = released_ssn(fixed, False), double(2, 32, 5, 5)
    state, report = surgery.convert_state({f"bn1.{n}": t for n, t in theirs.items()}, "SSN")
    assert report.converted == {"bn1": "released SSN -> SparseSwitchNorm"}
    assert any("divides variances by n - 1" in note for note in report.notes)
    ours = SparseSwitchNorm(32).double().eval()
    ours.load_state_dict({name.removeprefix("bn1."): t for name, t in state.items()})
    assert ours.radius.item() == pytest.approx(0.4)
    logits = theirs["mean_weight"], theirs["var_weight"]
    expected = [transcription.sparsestmax(v, ours.radius.item()) for v in logits]
    if fixed:
        expected[0] = nn.functional.one_hot(logits[0].argmax(), 3).double()
    torch.testing.assert_close(ours.ratios(), torch.stack(expected))
    options = {n: theirs[n].flatten() for n in ("weight", "bias", "running_mean", "running_var")}
    ratios = iter(expected)
    y = transcription.switch_norm(
        x, mean_weight=logits[0], var_weight=logits[1], eps=1e-5, to_ratios=lambda _: next(ratios),
        **options,
    )  # fmt: skip
    assert change(y, ours(x)) <= 1e-13


def test_released_sn_becomes_ssn():
    theirs = released_sn()
    state, report = surgery.convert_state(theirs, "SSN")
    assert report.converted == {"": "released SN -> SparseSwitchNorm"}
    torch.testing.assert_close(state["mean_weight"], theirs["mean_weight"].softmax(0))
    assert not state["radius"].any() and not state["var_fixed"].any()


def test_released_sums_become_statistics():
    batches, other = 2 * double(3, 4, 32, 5, 5) + 1, torch.ones(1)
    means, variances = batches.mean((1, 3, 4)), batches.var((1, 3, 4), correction=0)
    sums = {"running_mean": means.sum(0), "running_var": (means**2 + variances).sum(0)}
    sums = {name: tensor.view(1, 32, 1) for name, tensor in sums.items()}
    state = {f"norm.{name}": tensor for name, tensor in (released_sn() | sums).items()}
    averaged = surgery.average_sums({**state, "other.weight": other}, batches=3)
    assert averaged["other.weight"] is other
    torch.testing.assert_close(averaged["norm.running_mean"].flatten(), means.mean(0))
    # By the law of total variance, as all batches are of one size.
    variance = batches.var((0, 1, 3, 4), correction=0)
    torch.testing.assert_close(averaged["norm.running_var"].flatten(), variance)
    with pytest.raises(OptionError, match="batches=0"):
        surgery.average_sums(state, 0)


def released_an(k):
    """The state dict of a released AN layer of 64 channels, over GroupNorm."""
    attention = {"weight": double(k, 64, 1, 1), "bias": double(k)}
    attention = {f"attention_weights.attention.0.{n}": t for n, t in attention.items()}
    return {"weight_": double(k, 64), "bias_": double(k, 64), **attention}


def test_released_an_loads_by_name():
    theirs, x = released_an(20), double(2, 64, 5, 5)
    # But for the released code's variances, which are divided by n - 1.
    expected = transcription.attentive_norm(
        x,
        torch.ones(64).double(),
        torch.zeros(64).double(),
        theirs["attention_weights.attention.0.weight"].flatten(1),
        theirs["attention_weights.attention.0.bias"],
        theirs["weight_"],
        theirs["bias_"],
        num_groups=32,
        eps=1e-5,
    )
    state = {f"agn1.{name}": tensor for name, tensor in theirs.items()}
    model = Block("gn1", AttentiveNorm(64, num_affine=20).double())
    converted, report = surgery.convert_state(state, "AN")
    assert report.converted == {"agn1": "released AN -> AttentiveNorm"}
    assert "divides variances by n - 1" in str(report)
    converted = {name.replace("agn1", "gn1"): t for name, t in converted.items()}
    for found in (converted, surgery.fit_state(state, model)[0]):
        model.gn1.reset_parameters()
        model.load_state_dict(found)
        assert change(expected, model.gn1(x)) <= 1e-13
    _, report = surgery.convert_state(state, "AN", num_affine=10)
    assert "set num_affine=20" in report.left["agn1"]
    bn = nn.BatchNorm2d(64, affine=False).state_dict()
    _, report = surgery.convert_state({**theirs, **bn}, "AN")
    assert report.left == {"": "released AN with another norm does not become AttentiveNorm"}


def test_importing_surgery_imports_no_framework(root):
    code = (
        "import sys\n"
        "for name in [n for n in sys.modules if n.startswith('torchvision')]:\n"
        "    del sys.modules[name]\n"
        "import ilm_plugins.surgery\n"
        "print({'detectron2', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', "
        "'timm'} & {*sys.modules})"
    )
    done = fresh.run([sys.executable, "-c", code], cwd=root)
    assert done.stdout.strip() == "set()", done.stderr
