"""Adaptive normalization layers for detectron2, OpenMMLab and plain PyTorch."""

from . import frameworks
from .configs import get_config_file
from .frameworks import register
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
    set_radius,
)
from .ops import use_backend
from .version import __version__ as __version__

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
    "freeze",
    "get_config_file",
    "register",
    "set_radius",
    "use_backend",
]

frameworks.install_import_hooks()
