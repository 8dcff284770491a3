"""Functions of other packages that fuse BatchNorm do not take a mixture for it."""

import copy

import pytest
import torch
from torch import nn

from equations.cases import MIXTURES
from helpers.close import assert_equal
from ilm_plugins import NORMS


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
