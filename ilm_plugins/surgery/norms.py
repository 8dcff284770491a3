"""Recognize norms: which plain norm, or which layer of this package, a module is."""

import copy
import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .. import layers
from ..layers.base import AdaptiveNorm
from ..layers.levels import PerLevelNorm

#: Name of a plain norm -> its base class.
BASES = {"GN": nn.GroupNorm, "IN": _InstanceNorm, "BN": _BatchNorm, "LN": nn.LayerNorm}
#: Classes that compute exactly a plain norm. Their subclasses may compute something else.
PLAIN = {nn.GroupNorm, nn.SyncBatchNorm}
PLAIN |= {getattr(nn, f"{kind}Norm{dims}d") for kind in ("Batch", "Instance") for dims in (1, 2, 3)}
#: The same for classes of the frameworks, by name, because no framework is imported here.
PLAIN_BY_NAME = {
    "mmengine.model.utils._BatchNormXd": "BN",
    "mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm": "BN",
    "mmcv.cnn.utils.sync_bn._BatchNormXd": "BN",
    "mmcv.utils.parrots_wrapper.SyncBatchNorm": "BN",
}
#: A plain norm with the modules ``drop`` and ``act`` after it.
WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d": "BN",
    "timm.layers.norm_act.SyncBatchNormAct": "BN",
    "timm.layers.norm_act.FrozenBatchNormAct2d": "BN",
    "timm.layers.norm_act.GroupNormAct": "GN",
}
#: Packages whose classes named FrozenBatchNorm2d, or DetrFrozenBatchNorm2d and the like, compute
#: BatchNorm from buffers, with an eps of 1e-5 if they have none.
WITH_FROZEN_BN = {"detectron2", "torchvision", "transformers"}
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


def named_family(cls: type) -> str | None:
    """Return the plain norm that a framework's class computes, known by its name; or None."""
    package = cls.__module__.partition(".")[0]
    if package in WITH_FROZEN_BN and cls.__name__.endswith("FrozenBatchNorm2d"):
        return "BN"
    return (PLAIN_BY_NAME | WITH_ACTIVATION).get(path_of(cls))


def family(module: nn.Module) -> str | None:
    """Return the plain norm that a module is or derives from, a key of :data:`BASES`; or None."""
    named = named_family(type(module))
    return named or next((f for f, base in BASES.items() if isinstance(module, base)), None)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is, or derives from, a plain norm or a layer of NORMS."""
    return isinstance(module, tuple(layers.NORMS.values())) or family(module) is not None


def may_be_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, or is named like one and contains none."""
    if is_norm(module):
        return True
    named_so = re.search(r"Norm(2d)?$", type(module).__name__)
    return bool(named_so) and not any(map(may_be_norm, list(module.modules())[1:]))


def kind_of_class(cls: type) -> str:
    """Return the layout of a layer's tensors, a value of LAYERS; the class's name for others."""
    return LAYERS.get(cls, cls.__name__)


def kind_of_module(module: nn.Module) -> str:
    """Return the kind of a norm's tensors; the name of its class for other norms."""
    plain = None if isinstance(module, (AdaptiveNorm, *layers.NORMS.values())) else family(module)
    kinds = {"GN": "GN or IN", "IN": "GN or IN", "LN": "GN or IN", "BN": "BN"}
    return kinds.get(plain) or kind_of_class(type(module))


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


def class_of(norm: nn.Module) -> str:
    """Return the name of a norm's class, such as "BatchNorm2d" or "BatchNorm2d of each level"."""
    levels = levels_of(norm)
    return f"{type(levels[0]).__name__} of each level" if levels else type(norm).__name__


def is_synchronized(norm: nn.Module) -> bool:
    """Return whether a norm takes the batch's statistics over all processes."""
    return isinstance(norm, nn.SyncBatchNorm) or bool(getattr(norm, "sync", False))
