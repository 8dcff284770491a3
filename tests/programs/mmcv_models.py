"""mmcv builds its modules with every key, and norm_eval works; the argument is imported first."""

import importlib
import sys
import warnings

warnings.filterwarnings("error", module="ilm_plugins")
importlib.import_module(sys.argv[1])

import ilm_plugins
import mmcv
import torch
from mmcv.cnn import ConvModule

try:
    from mmcv.runner import BaseModule
except ImportError:
    from mmengine.model import BaseModule

for key, layer in ilm_plugins.NORMS.items():
    module = ConvModule(3, 64, 1, norm_cfg=dict(type=key))
    assert type(module.gn) is layer, (key, module)
    assert module(torch.randn(2, 3, 4, 4)).isfinite().all(), key


class Backbone(BaseModule):
    norm_eval = True


backbone = Backbone()
backbone.norm = ilm_plugins.SwitchNorm(8)
assert not backbone.train().norm.training
assert backbone.training
print(mmcv.__file__)
