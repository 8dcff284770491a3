"""Layers apply the activations of known modules of torchvision, timm, detectron2 and OpenMMLab."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module

import pytest
import torch
from fused import assert_fuses, results, trained
from torch import nn
from torch.nn import functional

from close import EQUAL, assert_close, assert_equal
from ilm_plugins import ExemplarNorm, ILMGroupNorm, surgery
from swaps import double

NORM = {"type": "ILMGN"}


def module_of(name):
    """An installed framework's module; the test is skipped without it."""
    pytest.importorskip(name.partition(".")[0], reason="needs the framework")
    return import_module(name)


def torchvisions(block, **options):
    cls = getattr(module_of("torchvision.models.resnet"), block)
    return cls(128, 128 // cls.expansion, norm_layer=ILMGroupNorm, **options)


def timms(block, **options):
    cls = getattr(module_of("timm.models.resnet"), block)
    return cls(128, 128 // cls.expansion, norm_layer=ILMGroupNorm, **options)


def mmdets(block, package="mmdet", **options):
    cls = getattr(module_of(f"{package}.models.backbones.resnet"), block)
    return cls(128, 128 // cls.expansion, norm_cfg=NORM, **options)


def mmpretrains(block, **options):
    cls = getattr(module_of("mmpretrain.models.backbones.resnet"), block)
    return cls(128, 128, norm_cfg=NORM, **options)


def mmcvs(block, **options):
    cls = getattr(module_of("mmcv.cnn.resnet"), block)
    model = cls(128, 128 // cls.expansion, **options)
    return surgery.convert(model, "ILMGN", replacing="BN")[0]


def detectron2s(block, **options):
    resnet = module_of("detectron2.modeling.backbone.resnet")
    if block == "BottleneckBlock":
        options = {"bottleneck_channels": 32, **options}
    return getattr(resnet, block)(128, 128, norm="ILMGN", **options)


def shortcut():
    return nn.Sequential(nn.Conv2d(128, 128, 1, bias=False), ILMGroupNorm(128))


BLOCKS = [
    (torchvisions, "BasicBlock", {}, 0),
    (torchvisions, "Bottleneck", {}, 0),
    (torchvisions, "Bottleneck", {"downsample": shortcut}, 0),
    (timms, "BasicBlock", {}, 1),
    (timms, "Bottleneck", {"downsample": shortcut}, 2),
    (timms, "Bottleneck", {"act_layer": nn.SiLU}, 2),  # the last one adds the shortcut
    (timms, "Bottleneck", {"attn_layer": "se"}, 2),
    (timms, "BasicBlock", {"drop_block": partial(nn.Dropout, 0.0)}, 0),
    (mmdets, "BasicBlock", {}, 0),
    (mmdets, "Bottleneck", {"downsample": shortcut}, 0),
    (partial(mmdets, package="mmseg"), "Bottleneck", {}, 0),
    (mmpretrains, "BasicBlock", {"downsample": shortcut}, 0),
    (mmpretrains, "Bottleneck", {}, 0),
    (mmpretrains, "Bottleneck", {"drop_path_rate": 1e-3}, 0),
    (mmcvs, "BasicBlock", {}, 0),
    (mmcvs, "Bottleneck", {"downsample": shortcut}, 0),
    (detectron2s, "BasicBlock", {}, 0),
    (detectron2s, "BottleneckBlock", {}, 0),
]


@pytest.mark.parametrize("make, block, options, number", BLOCKS)
def test_a_resnet_blocks_norms_apply_its_activations(make, block, options, number):
    options = {name: v() if v is shortcut else v for name, v in options.items()}
    assert_fuses(make(block, **options), double(2, 128, 6, 6), number)


def test_plugins_of_blocks_stay_where_they_are():
    plugin = {"cfg": {"type": "ContextBlock", "ratio": 0.25}, "position": "after_conv2"}
    model = mmdets("Bottleneck", plugins=[plugin])
    report = assert_fuses(model, double(2, 128, 6, 6), 0)
    assert {*report.left.values()} == {"the block has with_plugins"}


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    class Gated(module_of("torchvision.models.resnet").Bottleneck):
        def forward(self, x):
            return self.bn1(self.conv1(x)).sigmoid().mean() * super().forward(x)

    report = assert_fuses(Gated(128, 32, norm_layer=ILMGroupNorm), double(2, 128, 6, 6), 0)
    assert len(report.left) == 3


@pytest.mark.parametrize("activation", [functional.relu, functional.relu_, functional.silu])
def test_detectron2s_convolution_takes_functions(activation):
    conv = module_of("detectron2.layers").Conv2d
    model = conv(3, 32, 3, bias=False, norm=ILMGroupNorm(32), activation=activation)
    assert_fuses(model, double(2, 3, 6, 6), 1)
    surgery.fuse_activations(model)
    model = pickle.loads(pickle.dumps(model))
    surgery.revert(model)
    assert model.activation is activation


def test_detectron2s_convolution_takes_modules():
    conv = module_of("detectron2.layers").Conv2d
    norm = ILMGroupNorm(32)
    model = conv(3, 32, 3, bias=False, norm=norm, activation=nn.LeakyReLU())
    assert_fuses(model, double(2, 3, 6, 6), 1)


def _own_forward(convolution):
    forward = convolution.forward
    convolution.forward = lambda x: forward(x) - 1


@pytest.mark.parametrize("conv", ["conv1", "conv2", "conv3"])
@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.register_forward_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_hook(lambda *_: None),
        _own_forward,
    ],
    ids=["hook", "backward hook", "forward"],
)
def test_a_convolution_of_detectron2_with_hooks_or_its_own_forward_keeps_the_block(change, conv):
    block = detectron2s("BottleneckBlock")
    change(getattr(block, conv))
    report = surgery.fuse_activations(block)
    assert not report.converted
    assert len(report.left) == 3


def test_detectron2s_stem():
    stem = module_of("detectron2.modeling.backbone.resnet").BasicStem(norm="ILMGN")
    assert_fuses(stem, double(2, 3, 16, 16), 1)


CONV_MODULES = [
    ({"type": "ReLU"}, {}, 1),
    ({"type": "SiLU"}, {}, 1),
    ({"type": "Swish"}, {}, 1),
    ({"type": "HSwish"}, {}, 1),
    ({"type": "LeakyReLU", "negative_slope": 0.1}, {}, 1),
    ({"type": "GELU"}, {}, 0),
    (None, {}, 0),
    ({"type": "ReLU"}, {"order": ("norm", "act", "conv")}, 1),
    ({"type": "ReLU", "inplace": False}, {"order": ("act", "norm", "conv")}, 0),
]


@pytest.mark.parametrize("act, options, number", CONV_MODULES)
def test_mmcvs_conv_module(act, options, number):
    cnn = module_of("mmcv.cnn")
    model = cnn.ConvModule(32, 32, 3, norm_cfg=NORM, act_cfg=act, **options)
    assert_fuses(model, double(2, 32, 6, 6), number)


def test_a_conv_module_leaves_out_what_a_call_says():
    model = trained(module_of("mmcv.cnn").ConvModule(32, 32, 3, norm_cfg=NORM)).double()
    fused, x = copy.deepcopy(model), double(2, 32, 6, 6)
    surgery.fuse_activations(fused)
    for options in ({"activate": False}, {"norm": False}, {"activate": False, "norm": False}, {}):
        assert_close(fused(x, **options), model(x, **options), EQUAL)


class Calls(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x, activate=False) + self.conv(x) + self.conv(x, norm=False)


def test_a_call_of_a_conv_module_that_leaves_something_out_is_recorded():
    conv = module_of("mmcv.cnn").ConvModule(3, 64, 3, norm_cfg=NORM)
    model, x = trained(Calls(conv)).eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    surgery.fuse_activations(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for run in (model, torch.fx.symbolic_trace(model), compiled):
        assert_close(run(x), expected)


def test_calls_of_a_conv_module_in_threads_do_not_meet():
    conv = module_of("mmcv.cnn").ConvModule(3, 64, 3, norm_cfg=NORM)
    model, x = trained(conv).eval(), torch.randn(2, 3, 8, 8)
    expected = [model(x, activate=activate) for activate in (False, True)]
    surgery.fuse_activations(model)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda i: model(x, activate=bool(i % 2)), range(100))]
    for i, y in enumerate(found):
        assert_close(y, expected[i % 2])


@pytest.mark.parametrize("name", ["Swish", "HardSwish"])
def test_timms_own_activations(name):
    activations = module_of("timm.layers.activations")
    model = nn.Sequential(ILMGroupNorm(32), getattr(activations, name)(inplace=True))
    assert_fuses(model, double(2, 32, 6, 6), 1)


# ---- whole models


@pytest.fixture
def resnet():
    build = module_of("torchvision.models").resnet50
    return trained(build(norm_layer=ExemplarNorm, num_classes=2)).double()


def test_torchvisions_resnet(resnet):
    assert_fuses(resnet, double(2, 3, 32, 32), 1)


def test_torchvisions_detectors_run_the_children_of_their_backbone(resnet):
    getter = module_of("torchvision.models._utils").IntermediateLayerGetter
    backbone = getter(resnet, {"layer1": "a", "layer2": "b"})
    assert_fuses(backbone, double(2, 3, 32, 32), 1)
    assert_fuses(getter(resnet, {"bn1": "a", "layer1": "b"}), double(2, 3, 32, 32), 0)


def test_torch_fx_traces_a_fused_resnet_and_keeps_the_names_of_its_nodes(resnet):
    names = module_of("torchvision.models.feature_extraction")
    resnet.eval()
    before = {*names.get_graph_node_names(resnet)[1]}
    surgery.fuse_activations(resnet)
    assert {*names.get_graph_node_names(resnet)[1]} == before
    traced, x = torch.fx.symbolic_trace(resnet), double(2, 3, 32, 32)
    assert_equal(traced(x), resnet(x))


def test_timms_resnet_and_its_features():
    timm = module_of("timm")
    model = timm.create_model("resnet50", norm_layer=ILMGroupNorm, num_classes=2)
    assert_fuses(model, double(2, 3, 32, 32), 1 + 2 * 16)
    model = timm.create_model("resnet18", norm_layer=ILMGroupNorm, features_only=True)
    assert_fuses(model, double(2, 3, 32, 32), 1 + 8)


def test_mmdets_resnet():
    module_of("mmdet.models")
    from mmdet.registry import MODELS

    options = {"depth": 50, "norm_cfg": NORM, "norm_eval": False, "frozen_stages": -1}
    model = MODELS.build({"type": "ResNet", **options})
    assert_fuses(model, double(2, 3, 32, 32), 1)


def test_detectron2s_resnet():
    build = module_of("detectron2.modeling").build_backbone
    cfg = module_of("detectron2.config").get_cfg()
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.DEVICE = "ILMGN", "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    assert_fuses(build(cfg), double(2, 3, 32, 32), 1)


@pytest.mark.parametrize("key", ["ilmgn", ILMGroupNorm])
def test_timms_norms_with_an_activation_are_fused_at_once(key):
    timm = module_of("timm")
    model = timm.create_model("efficientnet_b0", norm_layer=key, num_classes=2)
    applied = [m for m in model.modules() if getattr(m, "fused_activation", None)]
    assert {m.fused_activation.name for m in applied} == {"silu"}
    plain = timm.create_model("efficientnet_b0", num_classes=2)
    norms = [m for m in plain.modules() if type(m).__name__ == "BatchNormAct2d"]
    assert len(applied) == sum(not isinstance(m.act, nn.Identity) for m in norms)


def test_conversion_of_timms_norms_fuses_at_once_and_keeps_names():
    model = module_of("timm").create_model("test_efficientnet", num_classes=2).double()
    trained(model)
    converted, _ = surgery.convert(copy.deepcopy(model), "EN")
    assert any(getattr(m, "fused_activation", None) for m in converted.modules())
    assert {"conv_stem.weight", "bn1.0.weight"} <= converted.state_dict().keys()
    x = double(2, 3, 32, 32)
    model.eval(), converted.eval()
    assert_close(results(converted, x)[0], results(model, x)[0], EQUAL)
    back, _ = surgery.revert(converted)
    assert repr(back) == repr(model)
    assert_close(back(x), model(x), EQUAL)
