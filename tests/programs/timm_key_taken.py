"""A key of timm stays timm's; arguments: the key of a norm with activation, who comes first."""

import sys
import warnings

from torch import nn

import ilm_plugins

key, first = sys.argv[1:]


class OwnNorm(nn.GroupNorm):
    def __init__(self, num_channels):
        super().__init__(1, num_channels)


def ours():
    ilm_plugins.register(key, OwnNorm)


def theirs():
    import timm.layers


steps = {"ours": (ours, theirs), "theirs": (theirs, ours)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in steps[first]:
        step()
(message,) = [str(w.message) for w in caught if str(w.message).startswith("timm")]
assert message.startswith(f"timm has {key} already, which stays"), message
from timm.layers import get_norm_act_layer, get_norm_layer

assert type(get_norm_act_layer(key, nn.ReLU)(8)).__module__.startswith("timm.")
assert type(get_norm_layer(OwnNorm)(8)) is OwnNorm
assert type(get_norm_act_layer(OwnNorm, nn.ReLU)(8)[0]) is OwnNorm
