"""The keys in detectron2's get_norm, at every place where a config takes a NORM."""

import itertools
import sys
import textwrap

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="needs detectron2: make install-detectron2")

from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

import fresh
from ilm_plugins import NORMS, ExemplarNorm, ILMGroupNorm, SwitchNorm
from ilm_plugins.frameworks.detectron2.norms import PerLevelNorm

every_key = pytest.mark.parametrize("key", NORMS)
WITH_RUNNING_STATISTICS = {"EN", "SN", "SSN"}


def classes_of(model):
    """The class of every norm in a model, ours or not, but for the levels of a PerLevelNorm."""
    kinds = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    return {type(m) for m in model.modules() if isinstance(m, kinds)}


@pytest.mark.parametrize(
    "imports",
    [
        "import ilm_plugins; import detectron2.modeling",
        "import detectron2.modeling, detectron2.projects.deeplab; import ilm_plugins",
        pytest.param(
            "import detectron2.layers; import ilm_plugins; import detectron2.modeling",
            marks=pytest.mark.wide,
        ),
        pytest.param(
            "import ilm_plugins; import ilm_plugins; import detectron2.layers; import ilm_plugins",
            marks=pytest.mark.wide,
        ),
    ],
    ids=["before", "after", "between", "repeatedly"],
)
def test_any_import_order(imports):
    code = f"""
    {imports}
    import sys
    import detectron2.layers
    import detectron2.projects.deeplab
    from detectron2.modeling.backbone import fpn, regnet, resnet, vit
    ours = detectron2.layers.get_norm
    assert type(ours("ILMGN", 64)) is ilm_plugins.ILMGroupNorm
    assert not hasattr(ours.__wrapped__, "__wrapped__"), "wrapped twice"
    holders = [m for m in sys.modules.values() if "get_norm" in getattr(m, "__dict__", {{}})
               and m.__name__.startswith("detectron2")]
    assert len(holders) > 8
    for holder in holders:
        assert holder.get_norm is ours, holder
    """
    fresh.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.wide
def test_reloading_changes_nothing():
    code = """
    import importlib
    import detectron2.modeling
    import ilm_plugins
    from detectron2.layers import get_norm
    from ilm_plugins.frameworks.detectron2 import norms

    importlib.reload(norms).install_import_hooks()
    importlib.reload(ilm_plugins)
    assert detectron2.layers.get_norm is get_norm
    assert detectron2.modeling.backbone.fpn.get_norm is get_norm
    """
    fresh.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_key_that_another_package_took_stays_theirs_with_a_warning():
    code = """
    import warnings
    from detectron2.layers import batch_norm

    detectron2s = batch_norm.get_norm

    def theirs(norm, channels):
        if norm == "SN":
            raise ValueError("not a KeyError")
        return ("theirs", channels) if norm == "EN" else detectron2s(norm, channels)

    batch_norm.get_norm = theirs
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import ilm_plugins
    (warning,) = [str(w.message) for w in caught if "ilm_plugins" in str(w.message)]
    assert "knows EN already" in warning
    assert batch_norm.get_norm("EN", 64) == ("theirs", 64)
    assert type(batch_norm.get_norm("SN", 64)) is ilm_plugins.SwitchNorm
    """
    fresh.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize("key", ["ILMGN", "EN"])
def test_resnet_and_fpn(key):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    levels = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = key
    backbone = build_backbone(cfg)
    assert isinstance(backbone, FPN)
    assert classes_of(backbone) == {NORMS[key]}
    stem, stages, pyramid = 1, 4 + 5 + 5 + 5, 2 * 4
    assert sum(type(m) is NORMS[key] for m in backbone.modules()) == stem + stages + pyramid
    for level in backbone(torch.randn(1, 3, 32, 32)).values():
        assert level.shape[1] == 64 and level.isfinite().all()


def retinanet_head(norm, levels=3, kind=RetinaNetHead):
    options = {"num_anchors": 3} if kind is RetinaNetHead else {}
    return kind(
        input_shape=[ShapeSpec(channels=64)] * levels,
        num_classes=4,
        conv_dims=[64, 64],
        norm=norm,
        **options,
    )


@every_key
def test_retinanet_head(key):
    head = retinanet_head(key)
    assert classes_of(head) == {NORMS[key]}
    assert isinstance(head.cls_subnet[1], PerLevelNorm) == (key in WITH_RUNNING_STATISTICS)
    logits, _ = head([torch.randn(2, 64, 8 >> i, 8 >> i) for i in range(3)])
    assert [tuple(level.shape) for level in logits] == [(2, 12, 8 >> i, 8 >> i) for i in range(3)]


@pytest.mark.parametrize("norm", ["EN(reduction=64)", "ILMGN(num_groups=64)"])
def test_retinanets_trial_on_32_channels_does_not_limit_the_options(norm):
    assert retinanet_head(norm).cls_subnet[1] is not None
    with pytest.raises(ValueError, match="for 64 channels"):
        retinanet_head("ILMGN(num_groups=48)")


def test_a_mixture_without_running_statistics_needs_no_levels():
    head = retinanet_head("SN(normalizers=('IN', 'LN'))")
    assert type(head.cls_subnet[1]) is SwitchNorm


@pytest.mark.parametrize("key, kind", [("SN", RetinaNetHead), ("EN", FCOSHead)])
def test_a_head_with_levels_is_traced_not_scripted(key, kind):
    head = retinanet_head(key, kind=kind).eval()
    for level, layer in enumerate(head.cls_subnet[1]):
        layer.running_mean.fill_(level)

    class Traceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, *features):
            return tuple(itertools.chain(*self.head(list(features))))

    features, others = ([torch.randn(n, 64, 8 >> i, 8 >> i) for i in range(3)] for n in (2, 3))
    model = Traceable()
    traced = torch.jit.trace(model, tuple(features), check_trace=False)
    torch.testing.assert_close(traced(*others), model(*others))
    with pytest.raises(NotImplementedError, match="cannot compile this layer"):
        torch.jit.script(head)


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
def test_levels_begin_anew_after_a_forward_pass_that_failed(kind):
    head = retinanet_head("SN", kind=kind).eval()
    features = [torch.randn(2, 64, 8 >> i, 8 >> i) for i in range(3)]
    expected = head(features)[0]
    with pytest.raises(RuntimeError, match="63 channels"):
        head([features[0], torch.randn(2, 63, 4, 4), features[2]])
    for actual, want in zip(head(features)[0], expected, strict=True):
        torch.testing.assert_close(actual, want, rtol=0, atol=0)


def test_retinanet_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.RETINANET.NORM = "EN(reduction=16)"
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert type(model) is META_ARCH_REGISTRY.get("RetinaNet")
    for subnet in (model.head.cls_subnet, model.head.bbox_subnet):
        layers = [m for m in subnet if isinstance(m, PerLevelNorm)]
        assert len(layers) == 4 and all(len(layer) == 5 for layer in layers)
        assert all(layer[0].reduction == 16 for layer in layers)


@pytest.mark.parametrize("key", sorted(WITH_RUNNING_STATISTICS))
def test_levels_share_parameters_and_keep_their_own_running_statistics(key):
    head = retinanet_head(key)
    layer = head.cls_subnet[1]
    separate = [type(layer[0])(64) for _ in range(3)]
    features = [i + (1 + i) * torch.randn(2, 64, 8 >> i, 8 >> i) for i in range(3)]
    for _ in range(2):
        for x, alone in zip(features, separate, strict=True):
            alone.load_state_dict({**alone.state_dict(), **dict(layer[0].named_parameters())})
            torch.testing.assert_close(layer(x), alone(x))
    for level, alone in zip(layer, separate, strict=True):
        torch.testing.assert_close(level.running_mean, alone.running_mean)
        torch.testing.assert_close(level.running_var, alone.running_var)
    assert len(list(layer.parameters())) == len(list(separate[0].parameters()))

    other = retinanet_head(key)
    other.load_state_dict(head.state_dict())
    for a, b in zip(head.eval()(features)[0], other.eval()(features)[0], strict=True):
        torch.testing.assert_close(a, b)


def test_options_ride_in_the_string():
    layer = get_norm("EN(reduction=16, normalizers=('IN', 'LN'))", 64)
    assert (layer.reduction, layer.normalizers) == (16, ("IN", "LN"))
    assert get_norm(" ILMGN ( key_group_size = 8 ) ", 64).num_key_groups == 8
    assert type(get_norm("ILMGN()", 64)) is ILMGroupNorm


@pytest.mark.parametrize(
    "norm, layer",
    [("EN(reduction=16)", ExemplarNorm), (ILMGroupNorm, ILMGroupNorm), ("SN", SwitchNorm)],
)
def test_lazy_config(norm, layer):
    from detectron2.modeling.backbone import BasicStem

    stem = instantiate(LazyCall(BasicStem)(in_channels=3, out_channels=64, norm=norm))
    assert type(stem.conv1.norm) is layer


@pytest.mark.parametrize(
    "norm, words",
    [
        ("EN(16)", ["EN(16)", "by name"]),
        ("EN(reduction=16", ["EN(reduction=16", "literal"]),
        ("EN(reduction=C//4)", ["literal"]),
        ("EN(**{})", ["by name"]),
        ("EN(eps=1e-3, eps=1e-4)", ["literal"]),
        ("EN(dtype='float16')", ["EN(dtype='float16')", "64 channels", "dtype"]),
        ("EN)", ["'EN)'", "by name", "literal"]),
        (" EN reduction=16", [" EN reduction=16", "by name"]),
        ("ILMGN:8", ["ILMGN:8", 'such as "ILMGN(eps=1e-3)"']),
        ("ILMGN(group_count=3)", ["unknown option 'group_count'", "key_group_size"]),
        ("ILMGN(num_channels=3)", ["num_channels=3", "the model gives num_channels=64", "leave"]),
        ("EN(device='x')", ["EN(device='x')", "64 channels", "device type"]),
        ("ILMGN(num_groups=24)", ["num_groups=24", "64", "num_groups=32"]),
    ],
)
def test_unreadable_strings_are_told_in_one_line(norm, words):
    with pytest.raises(ValueError) as caught:
        get_norm(norm, 64)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_ours_is_untouched():
    original = get_norm
    while hasattr(original, "__wrapped__"):
        original = original.__wrapped__
    assert get_norm("", 8) is None and get_norm(None, 8) is None
    assert type(get_norm("GN", 64)) is nn.GroupNorm
    assert type(get_norm("BN", 64)) is type(original("BN", 64))
    assert get_norm(lambda channels: ("mine", channels), 8) == ("mine", 8)
    for unknown in ("XN", "EN-2", "EN.b", "EN_b", "SN+GN", "ILM GN", "en", "GN(32)"):
        with pytest.raises(KeyError) as ours:
            get_norm(unknown, 64)
        with pytest.raises(KeyError) as theirs:
            original(unknown, 64)
        assert ours.value.args == theirs.value.args


STOCK_DETECTOR = """
import pickle
import ilm_plugins
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.export import scripting_with_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes

cfg = model_zoo.get_config("COCO-Detection/{config}")
if "MODEL" in cfg:
    cfg.MODEL.DEVICE = "cpu"
model = {build}.eval()
assert not model.head._forward_pre_hooks
assert b"ilm_plugins" not in pickle.dumps(model)
fields = dict(pred_boxes=Boxes, scores=torch.Tensor, pred_classes=torch.Tensor)
scripted = {script}
print("scripted")
"""


@pytest.mark.parametrize(
    "config, build, script",
    [
        (
            "retinanet_R_50_FPN_1x.yaml",
            "build_model(cfg)",
            "scripting_with_instances(model, fields)",
        ),
        ("fcos_R_50_FPN_1x.py", "instantiate(cfg.model)", "torch.jit.script(model.head)"),
    ],
    ids=["RetinaNet", "FCOS"],
)
@pytest.mark.wide
def test_a_stock_detector_is_as_without_the_plugin(config, build, script):
    code = STOCK_DETECTOR.format(config=config, build=build, script=script)
    done = fresh.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("scripted\n"), done.stderr[-3000:]


@pytest.mark.parametrize("kind", [RetinaNetHead, FCOSHead])
def test_only_heads_with_a_per_level_norm_have_a_hook(kind):
    hooks = {key: len(retinanet_head(key, kind=kind)._forward_pre_hooks) for key in [*NORMS, "GN"]}
    assert hooks == {key: int(key in WITH_RUNNING_STATISTICS) for key in hooks}


HELD_BEFORE = """
import functools, inspect, pickle
from detectron2.config import LazyCall, instantiate
from detectron2.layers import batch_norm, get_norm

partial = functools.partial(get_norm, out_channels=64)
lazy = LazyCall(get_norm)(norm="EN", out_channels=64)
pickled, signature = pickle.dumps(get_norm), inspect.signature(get_norm)

def by_default(norm, get=get_norm):
    return get(norm, 64)

class Head:
    norms = [get_norm]

import ilm_plugins

for found in (partial("EN"), instantiate(lazy), by_default("EN"), Head.norms[0]("EN", 64)):
    assert type(found) is ilm_plugins.ExemplarNorm
assert pickle.loads(pickled) is batch_norm.get_norm is get_norm
assert pickle.dumps(get_norm) == pickled and inspect.signature(get_norm) == signature
assert inspect.getsource(get_norm).count("FrozenBN") and "FrozenBN" in get_norm.__doc__
try:
    partial("XN")
except KeyError as error:
    assert error.args == ("XN",)
else:
    raise AssertionError
"""


def test_references_from_before_the_import_know_the_keys():
    fresh.run([sys.executable, "-c", HELD_BEFORE], check=True)


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_packages_wrapper_and_ours_live_together(first):
    again = "install_import_hooks()"
    ours = f"import ilm_plugins; from ilm_plugins.frameworks import install_import_hooks; {again}"
    theirs = """
import detectron2.modeling
from detectron2.layers import batch_norm
def wrap(get_norm):
    return lambda norm, channels: "theirs" if norm == "Own" else get_norm(norm, channels)
batch_norm.get_norm = wrap(batch_norm.get_norm)
"""
    order = [theirs, ours] if first == "theirs" else [ours, theirs, again]
    check = """
found = batch_norm.get_norm
assert found("Own", 64) == "theirs" and found("", 64) is None
assert type(found("EN", 64)) is ilm_plugins.ExemplarNorm
assert type(found("FrozenBN", 64)) is batch_norm.FrozenBatchNorm2d
"""
    fresh.run([sys.executable, "-c", "\n".join([*order, check])], check=True)
