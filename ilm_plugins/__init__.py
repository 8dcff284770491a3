"""Adaptive normalization layers for detectron2, OpenMMLab and plain PyTorch."""

from . import integrations, pix2pix
from .integrations import register
from .layers import (
    NORMS,
    AssocNorm,
    ExemplarNorm,
    ILMGroupNorm,
    ILMInstanceNorm,
    ILMLayerNorm,
    SwitchNorm,
)
from .ops import use_backend

__version__ = "0.1.0"

__all__ = [
    "NORMS",
    "AssocNorm",
    "ExemplarNorm",
    "ILMGroupNorm",
    "ILMInstanceNorm",
    "ILMLayerNorm",
    "SwitchNorm",
    "register",
    "use_backend",
]

integrations.arm()
pix2pix.arm()
