"""Layers apply activations in timm's norms, detectron2's Conv2d and mmcv's ConvModule."""

import copy
import pickle
from functools import wraps
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.close import EQUAL, assert_close, assert_equal
from helpers.fused_norms import assert_fuses, results, trained
from helpers.swapped_norms import double
from ilm_plugins import ILMGroupNorm, surgery
from ilm_plugins.layers import OptionError

NORM = {"type": "ILMGN"}
NOTHING = "no activation follows it in a module whose forward is known"


def module_of(name):
    """An installed framework's module; the test is skipped without it."""
    pytest.importorskip(name.partition(".")[0], reason="needs the framework")
    return import_module(name)


def test_the_way_of_a_decorated_forward_is_not_known(monkeypatch):
    cls = module_of("detectron2.layers").Conv2d
    model, known = cls(3, 32, 3, norm=ILMGroupNorm(32), activation=nn.ReLU()), cls.forward
    monkeypatch.setattr(cls, "forward", wraps(known)(lambda conv, x: -known(conv, x)))
    assert surgery.fuse_activations(model).left == {"norm": NOTHING}


def test_the_way_of_a_subclass_with_a_forward_of_its_own_is_not_known():
    class Gated(module_of("mmcv.cnn").ConvModule):
        def forward(self, x):
            return self.bn_of(x).mean() * super().forward(x)

        def bn_of(self, x):
            return self.norm(self.conv(x))

    report = assert_fuses(Gated(32, 32, 3, norm_cfg=NORM), double(2, 32, 6, 6), 0)
    assert [*report.left.values()] == [NOTHING]


def test_a_subclass_that_inherits_the_forward_is_known():
    class Named(module_of("mmcv.cnn").ConvModule):
        pass

    assert_fuses(Named(32, 32, 3, norm_cfg=NORM), double(2, 32, 6, 6), 1)


@pytest.mark.parametrize(
    "activation", [functional.relu, functional.relu_, functional.silu, nn.LeakyReLU()]
)
def test_detectron2s_convolution_takes_functions_and_modules(activation):
    conv = module_of("detectron2.layers").Conv2d
    model = conv(3, 32, 3, bias=False, norm=ILMGroupNorm(32), activation=activation)
    assert_fuses(model, double(2, 3, 6, 6), 1)
    surgery.fuse_activations(model)
    model = pickle.loads(pickle.dumps(model))
    surgery.revert(model)
    assert repr(model.activation) == repr(activation)


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


@pytest.mark.parametrize("parts", [(False,), (True, False), (False, False)], ids=str)
def test_a_fused_conv_module_refuses_a_call_without_norm_or_activation(parts):
    model = trained(module_of("mmcv.cnn").ConvModule(32, 32, 3, norm_cfg=NORM)).double()
    x = double(2, 32, 6, 6)
    expected, options = model(x, *parts), dict(zip(("activate", "norm"), parts, strict=False))
    surgery.fuse_activations(model)
    with pytest.raises(OptionError, match=r"without one of them; call surgery\.revert"):
        model(x, *parts)
    with pytest.raises(OptionError, match="without one of them"):
        model(x, **options)
    surgery.fusing.unfuse(model)
    assert_equal(model(x, *parts), expected)


@pytest.mark.parametrize(
    "run",
    [
        torch.fx.symbolic_trace,
        lambda model: torch.compile(model, fullgraph=True, backend="eager"),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
    ids=["fx", "compile", "copy", "pickle"],
)
def test_a_fused_conv_module_is_traced_and_copied(run):
    conv = module_of("mmcv.cnn").ConvModule(3, 64, 3, norm_cfg=NORM)
    model, x = trained(nn.Sequential(conv, nn.Identity())).eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    surgery.fuse_activations(model)
    assert_close(run(model)(x), expected)


def test_a_copy_of_a_fused_conv_module_leads_back():
    model = module_of("mmcv.cnn").ConvModule(3, 64, 3, norm_cfg=NORM)
    before = repr(model)
    surgery.fuse_activations(model)
    copied = copy.deepcopy(model)
    surgery.fusing.unfuse(copied)
    assert repr(copied) == before
    assert not copied._forward_pre_hooks


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
