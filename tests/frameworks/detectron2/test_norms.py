"""The keys in detectron2's get_norm, wherever a config takes a NORM; weight decay and freezing."""

import copy
import itertools
import sys

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

import fresh
from close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, SwitchNorm, surgery
from ilm_plugins.frameworks.detectron2.retinanet import PerLevelNorm
from swaps import randomized

MIXTURES = ("EN", "SN", "SSN")


# ---- registration

#: What is imported first -> code; all end with ilm_plugins and detectron2's modules imported.
ORDERS = {
    "ours": "import ilm_plugins; import detectron2.layers; import ilm_plugins",
    "theirs": """
import inspect, pickle
import detectron2.modeling, detectron2.projects.deeplab
from detectron2.layers import get_norm

pickled, signature = pickle.dumps(get_norm), inspect.signature(get_norm)
import ilm_plugins

assert pickle.loads(pickled) is detectron2.layers.get_norm is get_norm
assert pickle.dumps(get_norm) == pickled and inspect.signature(get_norm) == signature
""",
    "theirs in part": "import detectron2.layers; import ilm_plugins",
}
EVERYWHERE = """
import sys
import detectron2.layers
import detectron2.projects.deeplab
from detectron2.modeling.backbone import fpn, regnet, resnet, vit

ours = detectron2.layers.get_norm
assert type(ours("ILMGN", 64)) is ilm_plugins.ILMGroupNorm
assert not hasattr(ours.__wrapped__, "__wrapped__"), "wrapped twice"
holders = [m for m in sys.modules.values() if "get_norm" in getattr(m, "__dict__", {})
           and m.__name__.startswith("detectron2")]
assert len(holders) > 8
for holder in holders:
    assert holder.get_norm is ours, holder
"""
#: Another package's wrapper of get_norm, which knows Own and EN.
THEIRS = """
import warnings
import detectron2.modeling
from detectron2.layers import batch_norm

def wrap(get_norm):
    def theirs(norm, channels):
        if norm == "SN" and FIRST:
            raise ValueError("not a KeyError")
        own = ("Own", "EN") if FIRST else ("Own",)
        return ("theirs", channels) if norm in own else get_norm(norm, channels)
    return theirs

batch_norm.get_norm = wrap(batch_norm.get_norm)
"""
BOTH = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ilm_plugins
    from ilm_plugins.frameworks import install_import_hooks
    install_import_hooks()
told = [str(w.message) for w in caught if "ilm_plugins" in str(w.message)]
assert len(told) == FIRST and all("knows EN already" in text for text in told), told
found = batch_norm.get_norm
assert found("Own", 64) == ("theirs", 64) and found("", 64) is None
assert found("EN", 64) == ("theirs", 64) if FIRST else "Exemplar" in str(found("EN", 64))
assert type(found("SN", 64)) is ilm_plugins.SwitchNorm
assert type(found("FrozenBN", 64)) is batch_norm.FrozenBatchNorm2d
"""


@pytest.mark.parametrize("first", ORDERS)
def test_keys_are_known_everywhere_in_any_import_order(first):
    code = ORDERS[first] + "\n" + EVERYWHERE
    code += "FIRST = False" + THEIRS + BOTH if first == "ours" else ""
    fresh.run([sys.executable, "-c", code], check=True)


def test_a_key_that_another_package_took_stays_theirs_with_a_warning():
    fresh.run([sys.executable, "-c", "FIRST = True" + THEIRS + BOTH], check=True)


def test_other_norms_are_untouched():
    original = get_norm.__wrapped__
    assert get_norm("", 8) is None and get_norm(None, 8) is None
    assert type(get_norm("GN", 64)) is nn.GroupNorm
    assert type(get_norm("BN", 64)) is type(original("BN", 64))
    assert get_norm(lambda channels: ("mine", channels), 8) == ("mine", 8)
    for unknown in ("XN", "EN-2", "EN_b", "SN+GN", "ILM GN", "en", "GN(32)"):
        with pytest.raises(KeyError) as ours:
            get_norm(unknown, 64)
        assert ours.value.args == (unknown,)


def test_options_in_the_string():
    layer = get_norm("EN(reduction=16, normalizers=('IN', 'LN'))", 64)
    assert (layer.reduction, layer.normalizers) == (16, ("IN", "LN"))
    assert get_norm(" ILMGN ( num_groups = 'auto' ) ", 48).num_groups == 16  # DeepLab's decoder
    with pytest.raises(ValueError, match=r"num_groups=24 does not divide num_channels=64"):
        get_norm("ILMGN(num_groups=24)", 64)


def retinanet_head(norm, kind=RetinaNetHead):
    shapes = [ShapeSpec(channels=64)] * 3
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    return kind(input_shape=shapes, num_classes=4, conv_dims=[64, 64], norm=norm, **options)


def features(images=2):
    return [i + (1 + i) * torch.randn(images, 64, 8 >> i, 8 >> i) for i in range(3)]


def test_only_mixtures_have_levels():
    for key, kind in itertools.product([*NORMS, "GN", ""], (RetinaNetHead, FCOSHead)):
        head = retinanet_head(key, kind)
        assert isinstance(head.cls_subnet[1], PerLevelNorm) == (key in MIXTURES), (key, kind)
        assert len(head._forward_pre_hooks) == (key in MIXTURES), (key, kind)
    without_statistics = retinanet_head("SN(normalizers=('IN', 'LN'))").cls_subnet[1]
    assert type(without_statistics) is SwitchNorm


@pytest.mark.parametrize("norm", ["EN(reduction=64)", "ILMGN(num_groups=64)"])
def test_retinanets_trial_on_32_channels_does_not_limit_the_options_of_a_config(norm):
    cfg = get_cfg()
    cfg.MODEL.RETINANET.NORM = norm
    head = RetinaNetHead(cfg, [ShapeSpec(channels=64, stride=8 << i) for i in range(5)])
    layers = [m for m in (*head.cls_subnet, *head.bbox_subnet) if isinstance(m, PerLevelNorm)]
    assert len(layers) == (8 if norm == "EN(reduction=64)" else 0)
    assert all(len(layer) == 5 and layer[0].reduction == 64 for layer in layers)
    with pytest.raises(ValueError, match="num_channels=64"):
        retinanet_head("ILMGN(num_groups=48)")


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_levels_share_parameters_and_keep_their_own_running_statistics(key):
    head = retinanet_head(key).double()
    layer = head.cls_subnet[1]
    separate = [type(layer[0])(64).double() for _ in range(3)]
    given = [x.double() for x in features()]
    for _ in range(2):
        for x, alone in zip(given, separate, strict=True):
            alone.load_state_dict({**alone.state_dict(), **dict(layer[0].named_parameters())})
            assert_close(layer(x), alone(x))
    for level, alone in zip(layer, separate, strict=True):
        assert_close(dict(level.named_buffers()), dict(alone.named_buffers()))
    assert len(list(layer.parameters())) == len(list(separate[0].parameters()))
    other = retinanet_head(key).double()
    other.load_state_dict(head.state_dict())
    assert_equal(other.eval()(given), head.eval()(given))


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
def test_levels_begin_anew_after_a_forward_pass_that_failed(kind):
    head = retinanet_head("SN", kind).eval()
    given = features()
    expected = head(given)
    with pytest.raises(RuntimeError, match="63 channels"):
        head([given[0], torch.randn(2, 63, 4, 4), given[2]])
    assert_equal(head(given), expected)


def test_a_head_with_levels_can_be_traced():
    head = retinanet_head("SN").eval().requires_grad_(False)
    for level, layer in enumerate(head.cls_subnet[1]):
        layer.running_mean.fill_(level)

    class Logits(nn.Module):
        def forward(self, *given):
            return tuple(head(list(given))[0])

    traced, others = torch.jit.trace(Logits(), tuple(features()), check_trace=False), features(3)
    assert_close(traced(*others), Logits()(*others))


@pytest.mark.parametrize("key", ["EN", "SSN", "ILMGN"])
def test_a_head_of_batchnorm_becomes_what_the_key_builds(key):
    kind = RetinaNetHead if key == "EN" else FCOSHead
    plain, built = (randomized(retinanet_head(n, kind)).double().eval() for n in ("BN", key))
    given = [x.double() for x in features()]
    head, report = surgery.convert(copy.deepcopy(plain), key, replacing="BN")
    subnets = "cls_subnet", "bbox_subnet"
    assert report.converted.keys() == {f"{subnet}.{i}" for subnet in subnets for i in (1, 4)}
    assert head.state_dict().keys() == built.state_dict().keys()
    assert len([*head.parameters()]) == len([*built.parameters()])
    assert len(head._forward_pre_hooks) == len(built._forward_pre_hooks)
    built.load_state_dict(head.state_dict())
    assert_close(built(given)[0], head(given)[0], EQUAL)
    if key == "EN":
        state, _ = surgery.fit_state(plain.state_dict(), built)
        assert_equal(dict(state), dict(head.state_dict()))
        back, report = surgery.revert(copy.deepcopy(head))
        assert len(report.converted) == 4
        for model in (head, back):
            assert_close(model(given)[0], plain(given)[0], EQUAL)


def resnet(norm, freeze_at):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3"]
    cfg.MODEL.RESNETS.NORM = norm
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01, 0.0
    model = build_backbone(cfg).train()
    return model, build_optimizer(cfg, model)


@pytest.mark.parametrize("norm", ["EN", "SN"])
def test_frozen_stages_keep_and_use_their_running_statistics(norm):
    model, optimizer = resnet(norm, freeze_at=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    model(x)["res3"].square().mean().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        if name.startswith(("stem", "res2")):
            assert not moved, name
        elif "running" in name or name.endswith("norm.weight"):
            assert moved, name
    # The frozen stem computes in training what it computes in evaluation.
    assert_equal(model.stem(x), model.eval().stem(x))


@pytest.mark.parametrize("norm", ["ILMGN", "EN", "SN", "SSN", "AN"])
def test_affine_parameters_get_the_decay_of_norms(norm):
    model, optimizer = resnet(norm, freeze_at=0)
    names = ["weight", "bias"] + ["mean_weight", "var_weight"] * (norm in ("SN", "SSN"))
    groups = optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layers = [module for module in model.modules() if type(module) is NORMS[norm]]
    own = {id(getattr(layer, name)) for layer in layers for name in names}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in own else 0.01), name
