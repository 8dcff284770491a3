"""Functions of other packages that fuse BatchNorm do not take a mixture for it."""

import copy

import pytest
import torch
from torch import nn

from equations.cases import MIXTURES
from helpers.close import assert_equal
from ilm_plugins import NORMS, surgery


class Convolution(nn.Module):
    """A convolution and its norm, ``bn``, as in the detectors of the YOLO family."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 64, 3, bias=False), norm

    def forward(self, x):
        return self.bn(self.conv(x))

    def fuse(self):
        """Fuse the norm as these detectors do: by its attributes, whatever its class."""
        scale = self.bn.weight.div(torch.sqrt(self.bn.eps + self.bn.running_var))
        weight = torch.diag(scale) @ self.conv.weight.flatten(1)
        bias = self.bn.bias - self.bn.running_mean * scale
        fused = nn.Conv2d(3, 64, 3).requires_grad_(False)
        fused.weight.copy_(weight.view_as(fused.weight))
        fused.bias.copy_(bias)
        return fused


@pytest.mark.parametrize("key", MIXTURES)
def test_yolos_way_finds_no_running_var(key):
    with pytest.raises(AttributeError, match="running_var"):
        Convolution(NORMS[key](64)).fuse()


@pytest.mark.parametrize("name", ["repvit_m0_9", "levit_conv_128s", "tiny_vit_5m_224"])
def test_timms_reparameterize_model_finds_no_running_var(name):
    timm = pytest.importorskip("timm", reason="needs timm")
    model = timm.create_model(name, num_classes=7).eval()
    model, _ = surgery.convert(model, "EN")
    with pytest.raises(AttributeError, match="running_var"):
        timm.utils.reparameterize_model(model)


@pytest.mark.parametrize("backbone, arch", [("RepVGG", "A0"), ("MobileOne", "s0")])
def test_mmpretrains_switch_to_deploy_finds_no_running_var(backbone, arch):
    models = pytest.importorskip("mmpretrain.models", reason="needs mmpretrain")
    model, _ = surgery.convert(getattr(models, backbone)(arch), "EN")
    model.eval()
    with pytest.raises(AttributeError, match="running_var"):
        model.switch_to_deploy()


@pytest.mark.parametrize("key", MIXTURES)
def test_mmcvs_fuse_conv_bn_keeps_the_outputs(key):
    cnn = pytest.importorskip("mmcv.cnn", reason="needs mmcv")
    model, x = Convolution(NORMS[key](64)).eval(), torch.randn(2, 3, 8, 8)
    assert_equal(cnn.utils.fuse_conv_bn(copy.deepcopy(model))(x), model(x))


def test_conversion_ends_the_fusing_of_mmcvs_modules_whose_norm_it_replaces():
    cnn = pytest.importorskip("mmcv.cnn", reason="needs mmcv")
    options = {"norm_cfg": {"type": "BN"}, "efficient_conv_bn_eval": True}
    modules = [cnn.ConvModule(3, 64, 3, **options) for _ in range(2)]
    model, x = nn.ModuleList(modules).eval(), torch.randn(2, 3, 8, 8)
    expected = model[0](x)
    surgery.convert(model, "EN", match="0.bn")
    assert [m.efficient_conv_bn_eval_forward is not None for m in model] == [False, True]
    torch.testing.assert_close(model[0](x), expected)
