"""A key of the frameworks stays theirs; arguments: who comes first, then the modules to import."""

import importlib
import sys
import warnings

from torch import nn

import ilm_plugins

first, *modules = sys.argv[1:]


class OwnNorm(nn.GroupNorm):
    pass


def ours():
    ilm_plugins.register("BN", OwnNorm)


def theirs():
    for name in modules:
        importlib.import_module(name)


steps = {"ours": (ours, theirs), "theirs": (theirs, ours)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in steps[first]:
        step()
    ilm_plugins.register("OwnNorm", OwnNorm)
messages = [str(w.message) for w in caught if "ilm_plugins" in str(w.message)]
assert len(messages) == len(modules), messages
for message in messages:
    assert "BN" in message, messages
for name in modules:
    module = importlib.import_module(name)
    if name == "detectron2.layers":
        norm = module.get_norm("BN", 8)
    else:
        _, norm = module.build_norm_layer({"type": "BN"}, 8)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm), norm
