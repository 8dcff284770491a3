"""The keys by which frameworks' configs name the layers, and detectron2's strings with options."""

import ast
import re
from typing import Any

from torch import nn

from ..errors import OptionError
from .assoc import AssocNorm
from .attentive import AttentiveNorm
from .exemplar import ExemplarNorm
from .ilm import ILMGroupNorm, ILMInstanceNorm, ILMLayerNorm
from .sparse import SparseSwitchNorm
from .switchable import SwitchNorm

#: Registry key -> layer, the same in every framework.
NORMS: dict[str, type[nn.Module]] = {
    "ILMGN": ILMGroupNorm,
    "ILMIN": ILMInstanceNorm,
    "ILMLN": ILMLayerNorm,
    "AssocNorm": AssocNorm,
    "EN": ExemplarNorm,
    "SN": SwitchNorm,
    "SSN": SparseSwitchNorm,
    "AN": AttentiveNorm,
}


def parse_call(norm: str) -> tuple[str, dict[str, Any]]:
    """Split "NAME" or "NAME(option=literal, ...)" into the name, of any norm, and the options.

    Raises:
        OptionError: the string has another form.
    """
    if norm.strip().isidentifier():
        return norm.strip(), {}
    try:
        call = ast.parse(norm.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise SyntaxError
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
        if len(options) < len(call.keywords):  # ``**`` has no name, and a name may come twice
            raise SyntaxError
        return call.func.id, options
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        key = norm_key(norm) or "EN"
        raise OptionError(
            f"NORM {norm!r} cannot be read; write options by name, with literal values, "
            f'such as "{key}(eps=1e-3)"; a text needs quotes'
        ) from None


def norm_key(norm: str) -> str | None:
    """Return the key of :data:`NORMS` that a NORM string begins with, or None."""
    # A space, bracket or punctuation mark may follow, for parse_call to report: not "ENx".
    match = re.match(r"\s*(\w+)(?![^\s()\[\]{}:=,;])", norm)
    return match[1] if match and match[1] in NORMS else None
