"""A key of timm stays timm's; arguments: the key, our class's name, who comes first."""

import sys
import warnings
from contextlib import suppress

from torch import nn

import ilm_plugins

key, name, first = sys.argv[1:]


class OwnNorm(nn.GroupNorm):
    def __init__(self, num_channels):
        super().__init__(1, num_channels)


class Another(nn.GroupNorm):
    pass


OwnNorm.__name__ = name


def ours():
    ilm_plugins.register(key, OwnNorm)


def theirs():
    import timm.layers


def with_activation(message):
    """timm has no such norm without activation, so the name is unknown there."""
    assert message.startswith(f"timm has {key} already, which stays"), message
    with suppress(KeyError):
        assert not get_norm_layer(key)
    assert type(get_norm_act_layer(key, nn.ReLU)(8)).__module__.startswith("timm.")
    assert type(get_norm_layer(OwnNorm)(8)) is OwnNorm
    assert type(get_norm_act_layer(OwnNorm, nn.ReLU)(8)[0]) is OwnNorm


def plain(message):
    assert message.startswith(f"timm has {key} already, which stays"), message
    assert get_norm_layer(key.lower()).__module__.startswith("timm.")
    with suppress(KeyError):
        assert not get_norm_act_layer(key.lower(), nn.ReLU)


def class_of_timms_name(message):
    assert f"timm joins a class named {name} with its activation" in message, message
    assert type(get_norm_act_layer(key.lower(), nn.ReLU)(8)[0]) is OwnNorm


steps = {"ours": (ours, theirs), "theirs": (theirs, ours)}
checks = {
    "FRN": with_activation,
    "EvoNorm_B0": with_activation,
    "SimpleNorm": plain,
    "Own": class_of_timms_name,
}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for step in steps[first]:
        step()
    ilm_plugins.register("Another", Another)
(message,) = [str(w.message) for w in caught if str(w.message).startswith("timm")]
from timm.layers import get_norm_act_layer, get_norm_layer

checks[key](message)
