"""Recognize norms: which plain norm, or which layer of this package, a module is."""

import copy
import re
from collections.abc import Callable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .. import layers
from ..layers.base import AdaptiveNorm
from ..layers.levels import PerLevelNorm

#: Name of a plain norm -> its base class.
BASES = {"GN": nn.GroupNorm, "IN": _InstanceNorm, "BN": _BatchNorm, "LN": nn.LayerNorm}
#: Module of timm's classes, whose ``drop`` and ``act`` run after the norm.
WITH_ACTIVATION = "timm.layers.norm_act"
#: Classes that compute exactly a plain norm; of frameworks by name, because none is imported here.
#: Subclasses may compute anything.
PLAIN = {
    nn.GroupNorm,
    nn.SyncBatchNorm,
    *(getattr(nn, f"{kind}Norm{d}d") for kind in ("Batch", "Instance") for d in (1, 2, 3)),
    "mmengine.model.utils._BatchNormXd",
    "mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm",
    *(f"{WITH_ACTIVATION}.{n}" for n in ("BatchNormAct2d", "SyncBatchNormAct", "GroupNormAct")),
}
#: Packages whose classes named FrozenBatchNorm2d, DetrFrozenBatchNorm2d and the like compute
#: BatchNorm from buffers, with an eps of 1e-5 if they have none.
WITH_FROZEN_BN = {"detectron2", "timm", "torchvision", "transformers"}
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


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_frozen_bn(cls: type) -> bool:
    named_so = re.search(r"FrozenBatchNorm(Act)?2d$", cls.__name__)
    return bool(named_so) and cls.__module__.partition(".")[0] in WITH_FROZEN_BN


def is_plain(cls: type) -> bool:
    """Return whether a class computes exactly the plain norm of its family."""
    return cls in PLAIN or path_of(cls) in PLAIN or is_frozen_bn(cls)


def family(module: nn.Module) -> str | None:
    """Return the plain norm that a module is or derives from, a key of :data:`BASES`; or None."""
    if is_frozen_bn(type(module)):
        return "BN"
    return next((name for name, base in BASES.items() if isinstance(module, base)), None)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return isinstance(module, tuple(layers.NORMS.values())) or family(module) is not None


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


def kind_of_module(module: nn.Module) -> str:
    """Return the kind of a norm's tensors; the name of its class for other norms."""
    if isinstance(module, (AdaptiveNorm, *layers.NORMS.values())) or not family(module):
        return LAYERS.get(type(module), type(module).__name__)
    return "BN" if family(module) == "BN" else "GN or IN"


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
