"""Recognize norms: which plain norm, or which layer of this package, a module is."""

import copy
import re
from collections.abc import Callable, Iterator

from torch import nn

from .. import layers
from ..layers.base import AdaptiveNorm
from ..layers.levels import PerLevelNorm
from .sources import WITH_ACTIVATION, path_of, source_of

#: detectron2's BatchNorm with one weight and bias for all levels of a pyramid, in RetinaNet's head.
CYCLE = "detectron2.layers.batch_norm.CycleBatchNormList"

#: Layer -> the layout of its tensors, a key of :data:`.rules.LAYOUTS`. A subclass may compute
#: something else.
LAYERS = {
    **dict.fromkeys((layers.ILMGroupNorm, layers.ILMInstanceNorm, layers.ILMLayerNorm), "ILM"),
    layers.AssocNorm: "ILM",
    layers.ExemplarNorm: "EN",
    layers.SwitchNorm: "SN",
    layers.SparseSwitchNorm: "SSN",
    layers.AttentiveNorm: "AN",
}
#: Layer -> its key in the rules: the first of its keys, which is the package's own.
KEYS = {layers.NORMS[key]: key for key in reversed(layers.NORMS) if layers.NORMS[key] in LAYERS}


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return isinstance(module, tuple(layers.NORMS.values())) or source_of(type(module)) is not None


def may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, or looks like one and contains none.

    It does by its name, or by BatchNorm's running statistics, as InPlaceABN.
    """
    looks_so = re.search(r"Norm(2d)?$", type(module).__name__) or "running_var" in module._buffers
    inside = (part for part in module.modules() if part is not module)
    return is_norm(module) or (bool(looks_so) and not any(map(may_be_norm, inside)))


def modules_after(norm: nn.Module) -> list[nn.Module]:
    """Return the modules that a norm of timm runs after the normalization."""
    if not any(cls.__module__ == WITH_ACTIVATION for cls in type(norm).__mro__):
        return []
    after = [getattr(norm, name, None) for name in ("drop", "act")]
    return [module for module in after if not isinstance(module, nn.Identity | None)]


def is_adaptive(cls: type[nn.Module]) -> bool:
    """Return whether a class is a layer of this package, of NORMS, or derives from one."""
    return issubclass(cls, (AdaptiveNorm, *layers.NORMS.values()))


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
    return LAYERS.get(cls) or target_of(cls)


def kind_in_state(module: nn.Module) -> str:
    """Return the kind that the tensors of a norm tell, without the module."""
    source = None if is_adaptive(type(module)) else source_of(type(module))
    return source.kind_in_state if source else kind_of_module(module)


def levels_of(module: nn.Module) -> list[nn.Module]:
    """Return the norms of a module that has one for each level of a pyramid; [] for any other."""
    if isinstance(module, PerLevelNorm):
        return list(module)
    if path_of(type(module)) != CYCLE:
        return []
    levels = [copy.copy(level) for level in module]
    for level in levels:
        level._parameters = level._parameters | module._parameters
        level.affine = "weight" in module._parameters
    return levels


def named_norms(
    model: nn.Module, among: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of norms; of a pyramid's norms, which are found as one, not the levels.

    A module under several names comes once for each.
    """
    within = {level for m in model.modules() if levels_of(m) for level in m.children()}
    for name, module in model.named_modules(remove_duplicate=False):
        if module not in within and among((levels_of(module) or [module])[0]):
            yield name, module


def class_of(norm: nn.Module) -> str:
    """Return the name of a norm's class, such as "BatchNorm2d" or "BatchNorm2d of each level"."""
    levels = levels_of(norm)
    return f"{type(levels[0]).__name__} of each level" if levels else type(norm).__name__
