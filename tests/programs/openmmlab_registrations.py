"""OpenMMLab knows keys, hook and configs; the arguments are an order of imports and a config."""

import importlib
import sys

ORDERS = {
    "ours first": ["ilm_plugins", "mmcv.cnn"],
    "theirs first": ["mmcv.cnn", "mmengine.config", "mmengine.runner", "ilm_plugins"],
    "ours between": ["mmengine.runner", "ilm_plugins", "mmcv.cnn"],
}
_, order, path = sys.argv
for name in ORDERS[order]:
    importlib.import_module(name)

import ilm_plugins
from mmcv.cnn import build_norm_layer
from mmengine.config import Config
from mmengine.registry import HOOKS
import mmengine.runner

for key, layer in ilm_plugins.NORMS.items():
    name, built = build_norm_layer({"type": key}, 64, postfix=2)
    assert type(built) is layer, (key, built)
    assert built.num_channels == 64, (key, built)
    assert name == "gn2", "weights of GroupNorm models keep their names"
assert HOOKS.get("RadiusHook").__module__.startswith("ilm_plugins.")
assert Config.fromfile(path).norm_cfg.type == "EN"
