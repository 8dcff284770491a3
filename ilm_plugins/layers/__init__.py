"""The layers, one file for each paper, and the keys by which frameworks' configs name them."""

from ..errors import OptionError
from .assoc import AssocNorm
from .attentive import AttentiveNorm
from .base import freeze
from .exemplar import ExemplarNorm
from .ilm import ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm
from .registry import NORMS, norm_key, parse_call, parse_norm
from .sparse import SparseSwitchNorm, set_radius
from .switchable import SwitchNorm
from .weight_decay import parameter_groups

__all__ = [
    "NORMS",
    "AssocNorm",
    "AttentiveNorm",
    "ExemplarNorm",
    "ILMGroupNorm",
    "ILMInstanceNorm",
    "ILMLayerNorm",
    "OptionError",
    "SparseSwitchNorm",
    "SwitchNorm",
    "freeze",
    "norm_key",
    "parameter_groups",
    "parse_call",
    "parse_norm",
    "set_radius",
]
