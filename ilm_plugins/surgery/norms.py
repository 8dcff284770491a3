"""Recognize norms: which plain norm, or which layer of this package, a module is."""

import re
from collections import Counter

from torch import nn

from .. import layers
from ..foreign_norms import FRAMEWORKS
from .plain_norms import PLAIN_NORMS, is_adaptive, plain_norm_of

#: Layer -> the kind of its tensors, a key of :data:`.norms_in_state_dict.LAYOUTS`. A subclass may
#: compute something else.
LAYERS: dict[type[nn.Module], str] = {
    **dict.fromkeys((layers.ILMGroupNorm, layers.ILMInstanceNorm, layers.ILMLayerNorm), "ILM"),
    layers.AssocNorm: "ILM",
    layers.ExemplarNorm: "EN",
    layers.SwitchNorm: "SN",
    layers.SparseSwitchNorm: "SSN",
    layers.AttentiveNorm: "AN",
}
#: Layer -> its key in the rules: the first of its keys in NORMS.
KEYS = {layers.NORMS[key]: key for key in reversed(layers.NORMS) if layers.NORMS[key] in LAYERS}


def modules_after(norm: nn.Module) -> list[nn.Module]:
    """Return the modules that a norm runs after the normalization."""
    return [m for framework in FRAMEWORKS.values() for m in framework.modules_after(norm)]


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return is_adaptive(type(module)) or plain_norm_of(type(module)) is not None


def may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, or looks like one and contains none.

    A module looks like a norm by its class name, or by BatchNorm's running statistics (InPlaceABN).
    """
    # torch's _WeightNorm and _SpectralNorm compute a weight.
    is_named_so = re.fullmatch(r"(?!_)\w*Norm(2d)?", type(module).__name__)
    looks_so = is_named_so or "running_var" in module._buffers
    inside = (part for part in module.modules() if part is not module)
    return is_norm(module) or (bool(looks_so) and not any(map(may_be_norm, inside)))


def key_of(cls: type[nn.Module]) -> str:
    """Return a class's key in NORMS or PLAIN_NORMS; the class's name, if it has none."""
    plain_norm = None if is_adaptive(cls) else plain_norm_of(cls)
    return plain_norm.name if plain_norm else KEYS.get(cls, cls.__name__)


def kind_of(module: nn.Module) -> str:
    """Return what a norm's tensors are: a key of PLAIN_NORMS or LAYOUTS, or the class's name."""
    return LAYERS.get(type(module)) or key_of(type(module))


def kind_in_state(module: nn.Module) -> str:
    """Return the kind that the tensors of a norm tell, without the module."""
    kind = kind_of(module)
    return PLAIN_NORMS[kind].kind_in_state if kind in PLAIN_NORMS else kind


def count_norms(model: nn.Module) -> str:
    """Return the number of norms of each class, and behind layers of NORMS, of the plain ones."""
    norms = [module for module in model.modules() if may_be_norm(module)]
    classes = Counter(type(norm).__name__ for norm in norms)
    text = ", ".join(f"{n} {name}" for name, n in classes.most_common())
    plain = sum(not is_adaptive(type(norm)) for norm in norms)
    if plain < len(norms):
        text += f" ({len(norms) - plain} adaptive, {plain} plain norms left)"
    return text or "none"
