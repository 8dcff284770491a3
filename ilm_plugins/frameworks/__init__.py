"""Each framework's own ways, each in one place: nothing outside this folder knows a framework."""

import importlib.util

from torch import nn

from ..layers import NORMS


def installed(framework: str) -> bool:
    """Whether a package can be imported; a mere folder of that name is none."""
    spec = importlib.util.find_spec(framework)
    return spec is not None and spec.origin is not None


def arm() -> None:
    """Make the layers' keys valid in every framework, whether installed or imported yet or not."""
    from . import openmmlab
    from .detectron2 import datasets, norms

    norms.arm()
    datasets.arm()
    openmmlab.arm()


def register(key: str, layer: type[nn.Module]) -> None:
    """Make a layer of your own a NORM of detectron2's and the type of a ``norm_cfg``.

    Registering the same layer again does nothing. A key that a framework, or another package in
    it, has already stays theirs there, with a warning.

    Args:
        key: its name in configs, a Python identifier.
        layer: a class that takes the number of channels first, and its options by name. If it
            derives from nn.GroupNorm, the frameworks treat it as a norm: weight decay, freezing,
            initialization.

    Raises:
        ValueError: the key is no identifier, or another layer's; the layer is no module class.
    """
    if not isinstance(key, str) or not key.isidentifier():
        raise ValueError(f"register: key {key!r} is no identifier; give a name such as 'MyNorm'")
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        raise ValueError(f"register: {layer!r} is no class of nn.Module; give the class itself")
    if NORMS.get(key, layer) is not layer:
        raise ValueError(
            f"register: {key!r} is {NORMS[key].__name__} already; choose another key for "
            f"{layer.__name__}"
        )
    NORMS[key] = layer
    arm()
