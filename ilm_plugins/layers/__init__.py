"""The layers, one file for each paper, and the keys by which frameworks' configs name them."""

from torch import nn

from ..errors import OptionError
from .assoc import AssocNorm
from .exemplar import ExemplarNorm
from .ilm import ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm
from .switchable import SwitchNorm

#: Registry key -> layer, the same in every framework.
NORMS: dict[str, type[nn.GroupNorm]] = {
    "ILMGN": ILMGroupNorm,
    "ILMIN": ILMInstanceNorm,
    "ILMLN": ILMLayerNorm,
    "AssocNorm": AssocNorm,
    "EN": ExemplarNorm,
    "SN": SwitchNorm,
}

__all__ = [
    "NORMS",
    "AssocNorm",
    "ExemplarNorm",
    "ILMGroupNorm",
    "ILMInstanceNorm",
    "ILMLayerNorm",
    "OptionError",
    "SwitchNorm",
]
