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
