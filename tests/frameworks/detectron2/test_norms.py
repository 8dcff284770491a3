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

import fresh
from cases import MIXTURES
from close import EQUAL, assert_close, assert_equal
from ilm_plugins import NORMS, SwitchNorm, surgery
from ilm_plugins.frameworks.detectron2.retinanet import PerLevelNorm
from swaps import randomized

# ---- registration


@pytest.mark.parametrize("first", ["ours", "theirs", "theirs in part"])
def test_keys_are_known_everywhere_in_any_import_order(first):
    fresh.run_program("detectron2_keys.py", first)


def test_a_wrapper_of_another_package_stays_around_ours():
    fresh.run_program("detectron2_wrapped_afterwards.py")


def test_a_key_that_another_package_took_stays_theirs_with_a_warning():
    fresh.run_program("detectron2_wrapped_before.py")


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


def test_spaces_in_the_string_do_not_matter():
    """The width is DeepLab's decoder's."""
    assert get_norm(" ILMGN ( num_groups = 'auto' ) ", 48).num_groups == 16


def test_an_option_in_the_string_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"num_groups=24 does not divide num_channels=64"):
        get_norm("ILMGN(num_groups=24)", 64)


# ---- heads that are shared by the levels of a pyramid


def retinanet_head(norm, kind=RetinaNetHead):
    shapes = [ShapeSpec(channels=64)] * 3
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    return kind(input_shape=shapes, num_classes=4, conv_dims=[64, 64], norm=norm, **options)


def features(images=2):
    return [i + (1 + i) * torch.randn(images, 64, 8 >> i, 8 >> i) for i in range(3)]


def in_float64(given):
    return [x.double() for x in given]


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
@pytest.mark.parametrize("key", [*NORMS, "GN", ""])
def test_only_mixtures_have_levels(key, kind):
    head = retinanet_head(key, kind)
    assert isinstance(head.cls_subnet[1], PerLevelNorm) == (key in MIXTURES)
    assert len(head._forward_pre_hooks) == (key in MIXTURES)


def test_a_mixture_without_bn_has_no_levels():
    assert type(retinanet_head("SN(normalizers=('IN', 'LN'))").cls_subnet[1]) is SwitchNorm


@pytest.mark.parametrize("norm", ["EN(reduction=64)", "ILMGN(num_groups=64)"])
def test_retinanets_trial_on_32_channels_does_not_limit_the_options_of_a_config(norm):
    cfg = get_cfg()
    cfg.MODEL.RETINANET.NORM = norm
    head = RetinaNetHead(cfg, [ShapeSpec(channels=64, stride=8 << i) for i in range(5)])
    layers = [m for m in (*head.cls_subnet, *head.bbox_subnet) if isinstance(m, PerLevelNorm)]
    assert len(layers) == (8 if norm == "EN(reduction=64)" else 0)
    for layer in layers:
        assert [level.reduction for level in layer] == [64] * 5


def test_an_option_that_does_not_fit_retinanets_head_names_the_heads_width():
    with pytest.raises(ValueError, match="num_channels=64"):
        retinanet_head("ILMGN(num_groups=48)")


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_levels_share_their_parameters(key):
    layer = retinanet_head(key).cls_subnet[1]
    assert len(list(layer.parameters())) == len(list(layer[0].parameters()))


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_each_level_computes_as_a_layer_of_its_own_running_statistics(key):
    layer = retinanet_head(key).double().cls_subnet[1]
    separate = [type(layer[0])(64).double() for _ in range(3)]
    given = in_float64(features())
    for _ in range(2):
        for x, alone in zip(given, separate, strict=True):
            alone.load_state_dict({**alone.state_dict(), **dict(layer[0].named_parameters())})
            assert_close(layer(x), alone(x))
    for level, alone in zip(layer, separate, strict=True):
        assert_close(dict(level.named_buffers()), dict(alone.named_buffers()))


@pytest.mark.parametrize("key", ["EN", "SN"])
def test_a_state_dict_has_the_statistics_of_each_level(key):
    head, other = (retinanet_head(key).double() for _ in range(2))
    given = in_float64(features())
    head(given)
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


@pytest.mark.parametrize(
    "key, kind", [("EN", RetinaNetHead), ("SSN", FCOSHead), ("ILMGN", FCOSHead)]
)
def test_a_head_of_batchnorm_becomes_what_the_key_builds(key, kind):
    plain, built = (randomized(retinanet_head(n, kind)).double().eval() for n in ("BN", key))
    head, report = surgery.convert(plain, key, replacing="BN")
    subnets = "cls_subnet", "bbox_subnet"
    assert report.converted.keys() == {f"{subnet}.{i}" for subnet in subnets for i in (1, 4)}
    assert head.state_dict().keys() == built.state_dict().keys()
    assert len([*head.parameters()]) == len([*built.parameters()])
    assert len(head._forward_pre_hooks) == len(built._forward_pre_hooks)
    built.load_state_dict(head.state_dict())
    given = in_float64(features())
    assert_close(built(given)[0], head(given)[0], EQUAL)


@pytest.fixture
def plain():
    """RetinaNet's head with BN, random."""
    return randomized(retinanet_head("BN")).double().eval()


def test_a_head_of_en_computes_what_its_head_of_batchnorm_did(plain):
    head, _ = surgery.convert(copy.deepcopy(plain), "EN")
    given = in_float64(features())
    assert_close(head(given)[0], plain(given)[0], EQUAL)


def test_a_head_of_en_goes_back_to_batchnorm(plain):
    head, _ = surgery.convert(copy.deepcopy(plain), "EN")
    back, report = surgery.revert(head)
    assert len(report.converted) == 4
    given = in_float64(features())
    assert_close(back(given)[0], plain(given)[0], EQUAL)


def test_a_state_dict_of_batchnorm_fits_a_head_of_en_as_the_converted_one(plain):
    head, _ = surgery.convert(copy.deepcopy(plain), "EN")
    state, _ = surgery.fit_state(plain.state_dict(), head)
    assert_equal(dict(state), dict(head.state_dict()))


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


@pytest.mark.parametrize("norm", ["EN", "SN"])
def test_a_frozen_stem_computes_in_training_what_it_computes_in_evaluation(norm):
    model, _ = stepped(norm)
    x = torch.randn(2, 3, 64, 64)
    assert_equal(model.stem(x), model.eval().stem(x))


@pytest.mark.parametrize("norm", NORMS)
def test_affine_parameters_get_the_decay_of_norms(norm):
    model, optimizer = resnet(norm, freeze_at=0)
    groups = optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layers = [module for module in model.modules() if type(module) is NORMS[norm]]
    own = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.dim() > 0}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in own else 0.01), name
