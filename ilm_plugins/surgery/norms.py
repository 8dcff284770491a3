"""Recognize norms: which plain norm, or which layer of this package, a module is."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from .. import layers
from ..foreign_norms import FRAMEWORKS, LEVELED
from .sources import is_adaptive, source_of

#: Layer -> the layout of its tensors, a key of :data:`.rules.LAYOUTS`. A subclass may compute
#: something else.
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


@dataclass(frozen=True)
class Parts:
    """The norms of a module: one for each level of a pyramid, or the module itself.

    ``join`` makes a module of as many other norms.
    """

    norms: list[nn.Module]
    join: Callable[[list[nn.Module]], nn.Module]
    is_pyramid: bool = True


def parts_of(module: nn.Module) -> Parts:
    for framework in FRAMEWORKS.values():
        if levels := framework.levels(module):
            return Parts(levels, framework.join_levels)
    return Parts([module], lambda norms: norms[0], is_pyramid=False)


def is_named_as_pyramid(name: str) -> bool:
    """Return whether a norm of a state dict has a name of norms of several levels."""
    return any(re.fullmatch(pattern, name) for pattern in LEVELED)


def modules_after(norm: nn.Module) -> list[nn.Module]:
    """Return the modules that a norm runs after the normalization."""
    return [m for framework in FRAMEWORKS.values() for m in framework.modules_after(norm)]


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return is_adaptive(type(module)) or source_of(type(module)) is not None


def may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, or looks like one and contains none.

    A module looks like a norm by its class name, or by BatchNorm's running statistics (InPlaceABN).
    torch's weight_norm and spectral_norm are no norms: they compute a weight.
    """
    if type(module).__module__ == "torch.nn.utils.parametrizations":
        return False
    looks_so = re.search(r"Norm(2d)?$", type(module).__name__) or "running_var" in module._buffers
    inside = (part for part in module.modules() if part is not module)
    return is_norm(module) or (bool(looks_so) and not any(map(may_be_norm, inside)))


def target_of(cls: type[nn.Module]) -> str:
    """Return a norm's name as a target of the rules: a layer's key, or a plain norm's name.

    Of all other norms, it is the name of the class, to which no rule leads.
    """
    source = None if is_adaptive(cls) else source_of(cls)
    return source.name if source else KEYS.get(cls, cls.__name__)


def kind_of_module(module: nn.Module) -> str:
    """Return a norm's kind: a plain norm's name, or the layout of a layer's tensors.

    Of all other norms, it is the name of the class.
    """
    cls = type(module)
    source = source_of(cls)
    return LAYERS.get(cls) or (source.name if source else target_of(cls))


def kind_in_state(module: nn.Module) -> str:
    """Return the kind that the tensors of a norm tell, without the module."""
    cls = type(module)
    source = None if is_adaptive(cls) else source_of(cls)
    return source.kind_in_state if source else LAYERS.get(cls) or target_of(cls)


def named_norms(
    model: nn.Module, among: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of norms. A pyramid is one norm; its levels are skipped.

    A module under several names comes once for each.
    """
    pyramids = [module for module in model.modules() if parts_of(module).is_pyramid]
    within = {level for module in pyramids for level in module.children()}
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in within and among(parts_of(module).norms[0]):
            yield name, module


def count_norms(model: nn.Module) -> str:
    """Return the number of norms of each class, and behind layers of NORMS, of the plain ones."""
    norms = [module for _, module in named_norms(model, may_be_norm)]
    text = ", ".join(f"{n} {name}" for name, n in Counter(map(class_of, norms)).most_common())
    plain = sum(not is_adaptive(type(parts_of(norm).norms[0])) for norm in norms)
    if plain < len(norms):
        text += f" ({len(norms) - plain} adaptive, {plain} plain norms left)"
    return text or "none"


def class_of(norm: nn.Module) -> str:
    """Return the name of a norm's class, such as "BatchNorm2d" or "BatchNorm2d of each level"."""
    parts = parts_of(norm)
    name = type(parts.norms[0]).__name__
    return f"{name} of each level" if parts.is_pyramid else name
