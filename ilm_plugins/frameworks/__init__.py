"""Integration with detectron2, OpenMMLab and timm; code specific to a framework is only in here."""

from torch import nn

from ..layers import NORMS
from .config import PACKAGES, OpenConfig, framework_of, installed, open_config

__all__ = [
    "PACKAGES",
    "OpenConfig",
    "framework_of",
    "install_import_hooks",
    "installed",
    "open_config",
    "register",
]


def install_import_hooks() -> None:
    """Have every framework, once it is imported, know this package's layers, data and configs."""
    from . import openmmlab, timm
    from .detectron2 import datasets, norms, shipped_configs

    norms.install_import_hooks()
    datasets.install_import_hooks()
    shipped_configs.install_import_hooks()
    openmmlab.install_import_hooks()
    timm.install_import_hooks()


def register(key: str, layer: type[nn.Module]) -> None:
    """Make your own layer valid as a NORM in detectron2 and as the type of a ``norm_cfg``.

    Adds the layer to :data:`ilm_plugins.NORMS`, and calls :func:`install_import_hooks`. Registering
    the same layer again does nothing. Where a framework already has another layer under this key,
    that layer stays in this framework, with a warning.

    Args:
        key: the name of the layer in configs, a Python identifier.
        layer: a class that takes the number of channels first, and its options by name. If it
            derives from nn.GroupNorm, the frameworks treat it as a norm: weight decay, freezing,
            initialization.

    Raises:
        ValueError: the key is not an identifier, or is the key of another layer; or ``layer`` is
            not a subclass of nn.Module.
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
    install_import_hooks()
