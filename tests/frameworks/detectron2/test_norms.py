"""The keys in detectron2's get_norm, wherever a config takes a NORM; weight decay and freezing."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.solver import build_optimizer

from equations.cases import INDEPENDENT, MIXTURES
from helpers import processes
from helpers.close import EQUAL, assert_close, assert_equal
from helpers.swapped_norms import randomized
from ilm_plugins import NORMS, surgery
from ilm_plugins.layers import OptionError

# ---- registration


@pytest.mark.parametrize("first", ["ours", "theirs", "theirs in part"])
def test_keys_are_known_everywhere_in_any_import_order(first):
    processes.run_program("detectron2_keys.py", first)


def test_a_key_that_another_package_took_stays_theirs_with_a_warning():
    processes.run_program("detectron2_wrapped_before.py")


@pytest.mark.parametrize("nothing", ["", None])
def test_no_norm_stays_none(nothing):
    assert get_norm(nothing, 8) is None


@pytest.mark.parametrize("key", ["GN", "BN"])
def test_detectron2s_keys_are_detectron2s(key):
    assert type(get_norm(key, 64)) is type(get_norm.__wrapped__(key, 64))


def test_a_function_in_place_of_a_key_is_called():
    assert get_norm(lambda channels: ("mine", channels), 8) == ("mine", 8)


@pytest.mark.parametrize("key", ["XN", "EN-2", "EN_b", "SN+GN", "ILM GN", "en", "GN(32)"])
def test_an_unknown_key_is_detectron2s_error(key):
    with pytest.raises(KeyError) as ours:
        get_norm(key, 64)
    assert ours.value.args == (key,)


def test_options_in_the_string_are_the_layers():
    layer = get_norm("EN(reduction=16, normalizers=('IN', 'LN'))", 64)
    assert layer.reduction == 16
    assert layer.normalizers == ("IN", "LN")


# ---- heads that are shared by the levels of a pyramid

REASON = (
    "the levels of a pyramid share this head, and EN, SN and SSN would need running statistics for "
    f"each: build it with one of {', '.join(INDEPENDENT)}"
)
BN_IN_HEAD = {f"{subnet}.{i}" for subnet in ("cls_subnet", "bbox_subnet") for i in (1, 4)}


def retinanet_head(norm, kind=RetinaNetHead):
    shapes = [ShapeSpec(channels=64)] * 3
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    return kind(input_shape=shapes, num_classes=4, conv_dims=[64, 64], norm=norm, **options)


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
@pytest.mark.parametrize("key", MIXTURES)
def test_a_shared_head_refuses_mixtures_and_says_which_layers_work(key, kind):
    for norm in (key, NORMS[key]):
        with pytest.raises(OptionError) as error:
            retinanet_head(norm, kind)
        assert str(error.value) == f"{kind.__name__} with {NORMS[key].__name__}: {REASON}"


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
@pytest.mark.parametrize("key", [*INDEPENDENT, "EN(normalizers=('IN', 'LN'))"])
def test_layers_without_running_statistics_work_in_a_shared_head(key, kind):
    head = retinanet_head(key, kind)
    for outputs in head([torch.randn(2, 64, 8 >> i, 8 >> i) for i in range(3)]):
        assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "naiveSyncBN"])
@pytest.mark.parametrize("key", ["EN", "SN", "ILMGN"])
def test_batchnorms_of_a_shared_head_stay_and_the_report_says_why(norm, key, kind):
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), retinanet_head(norm, kind))
    before = repr(model[2])
    options = {} if key in MIXTURES else {"replacing": "BN"}
    model, report = surgery.convert(model, key, **options)
    assert [*report.converted] == ["1"]
    assert {*report.left.values()} == {REASON}
    levels = [f".{level}" for level in range(3)] if norm == "BN" else [""]
    assert report.left.keys() == {f"2.{name}{level}" for name in BN_IN_HEAD for level in levels}
    assert repr(model[2]) == before


def test_groupnorms_of_a_shared_head_are_converted_and_back():
    plain = randomized(retinanet_head("GN")).double().eval()
    given = [torch.randn(2, 64, 8 >> i, 8 >> i).double() for i in range(3)]
    head, report = surgery.convert(copy.deepcopy(plain), "ILMGN")
    assert report.converted.keys() == BN_IN_HEAD
    assert_close(head(given)[0], plain(given)[0], EQUAL)
    assert repr(surgery.revert(head)[0]) == repr(plain)


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_a_state_dict_of_a_shared_head_of_batchnorm_stays(key):
    state = nn.ModuleDict({"head": retinanet_head("BN"), "bn": nn.BatchNorm2d(64)}).state_dict()
    converted, report = surgery.convert_state(state, key)
    assert [*report.converted] == ["bn"]
    assert report.left == {f"head.{n}.{level}": REASON for n in BN_IN_HEAD for level in range(3)}
    assert_equal(
        {k: t for k, t in converted.items() if k.startswith("head.")},
        {k: t for k, t in state.items() if k.startswith("head.")},
    )


def test_a_state_dict_of_a_shared_head_of_batchnorm_fits_the_same_head():
    state = randomized(retinanet_head("BN")).state_dict()
    fitted, report = surgery.fit_state(state, retinanet_head("BN"))
    assert not report.left
    assert not report.missing
    assert_equal(dict(fitted), dict(state))


# ---- backbones


def resnet(norm, freeze_at):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.RESNETS.NORM = norm
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01, 0.0
    model = build_backbone(cfg).train()
    return model, build_optimizer(cfg, model)


def stepped(norm):
    """A ResNet whose stem and res2 are frozen, after a step; its state dict from before."""
    model, optimizer = resnet(norm, freeze_at=2)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 64, 64))["res3"].square().mean().backward()
    optimizer.step()
    return model, before


def is_frozen(name):
    return name.startswith(("stem", "res2"))


@pytest.mark.parametrize("norm", ["EN", "SN"])
def test_frozen_stages_keep_their_tensors(norm):
    model, before = stepped(norm)
    for name, value in filter(lambda item: is_frozen(item[0]), model.state_dict().items()):
        assert_equal(value, before[name], name)


@pytest.mark.parametrize("norm", ["EN", "SN"])
def test_stages_that_are_not_frozen_are_trained(norm):
    model, before = stepped(norm)
    for name, value in model.state_dict().items():
        if not is_frozen(name) and ("running" in name or name.endswith("norm.weight")):
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("norm", NORMS)
def test_affine_parameters_get_the_decay_of_norms(norm):
    model, optimizer = resnet(norm, freeze_at=0)
    groups = optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layers = [module for module in model.modules() if type(module) is NORMS[norm]]
    own = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.dim() > 0}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in own else 0.01), name
