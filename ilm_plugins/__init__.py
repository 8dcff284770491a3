"""Adaptive normalization layers for detectron2, OpenMMLab and plain PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .configs import get_config_file
from .frameworks import install_import_hooks, register
from .version import __version__ as __version__

if TYPE_CHECKING:  # __getattr__ imports these, most of which need torch, on first use
    from .comparison.function_api import compare
    from .layers import (
        NORMS,
        AssocNorm,
        AttentiveNorm,
        ExemplarNorm,
        ILMGroupNorm,
        ILMInstanceNorm,
        ILMLayerNorm,
        SparseSwitchNorm,
        SwitchNorm,
        freeze,
        parameter_groups,
        set_radius,
    )
    from .ops import use_backend

__all__ = [
    "NORMS",
    "AssocNorm",
    "AttentiveNorm",
    "ExemplarNorm",
    "ILMGroupNorm",
    "ILMInstanceNorm",
    "ILMLayerNorm",
    "SparseSwitchNorm",
    "SwitchNorm",
    "compare",
    "freeze",
    "get_config_file",
    "parameter_groups",
    "register",
    "set_radius",
    "use_backend",
]

#: Subpackages that need no import of their own.
_SUBPACKAGES = ("layers", "ops", "surgery")
#: Name -> the module that has it, where that is not ``layers``.
_MODULES = {"compare": "comparison.function_api", "use_backend": "ops"}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f".{name}", __name__)
    if name in __all__:
        module = _MODULES.get(name, "layers")
        return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


install_import_hooks()
