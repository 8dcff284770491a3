"""Modules that surgery swaps as one: norms of several levels, and timm's with an activation."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .sources import GENERAL_BN, WITH_ACTIVATION


@dataclass(frozen=True)
class Pyramids:
    """How a framework builds norms with running statistics for each level of a feature pyramid.

    Attributes:
        split: returns a module's norms, one for each level; [] if it is no such module.
        join: returns the module for norms of each level.
        finish: is called with a model after norms were replaced.
    """

    split: Callable[[nn.Module], list[nn.Module]]
    join: Callable[[list[nn.Module]], nn.Module]
    finish: Callable[[nn.Module], None]


#: Framework -> its norms of several levels; an import hook fills it.
PYRAMIDS: dict[str, Pyramids] = {}


@dataclass(frozen=True)
class Parts:
    """The norms of a module: one for each level of a pyramid, or the module itself.

    ``join`` makes a module of as many other norms.
    """

    norms: list[nn.Module]
    join: Callable[[list[nn.Module]], nn.Module]
    is_pyramid: bool = True


def parts_of(module: nn.Module) -> Parts:
    for pyramids in PYRAMIDS.values():
        if levels := pyramids.split(module):
            return Parts(levels, pyramids.join)
    return Parts([module], lambda norms: norms[0], is_pyramid=False)


def is_named_as_pyramid(name: str) -> bool:
    """Return whether a norm of a state dict has a name as in the head of detectron2's RetinaNet."""
    return re.fullmatch(r"(.*\.|)(cls|bbox)_subnet\.\d+", name) is not None


def modules_after(norm: nn.Module) -> list[nn.Module]:
    """Return the modules that a norm of timm runs after the normalization."""
    if not any(cls.__module__ == WITH_ACTIVATION for cls in type(norm).__mro__):
        return []
    after = [getattr(norm, name, None) for name in ("drop", "act")]
    return [module for module in after if not isinstance(module, nn.Identity | None)]


def join_activation(norm: Any, after: Iterable[nn.Module]) -> nn.Module | None:
    """Return a plain norm as timm's class with modules to run after it; None if it has no class."""
    classes = sys.modules.get(WITH_ACTIVATION)
    if classes is None or type(norm) not in (nn.BatchNorm2d, nn.GroupNorm):
        return None
    channels, eps = norm.weight.numel(), norm.eps
    if type(norm) is nn.BatchNorm2d:
        new = classes.BatchNormAct2d(channels, eps, norm.momentum, apply_act=False)
    else:
        new = classes.GroupNormAct(channels, norm.num_groups, eps, apply_act=False)
    *drop, new.act = after
    if drop:
        (new.drop,) = drop
    return _with_tensors(new, norm)


def as_replaced(norm: Any, path: str) -> nn.Module:
    """Return a plain norm as the framework's class that a layer had replaced; else the norm.

    Args:
        path: module and name of the class, "" if unknown.
    """
    module, _, name = path.rpartition(".")
    if module == WITH_ACTIVATION:  # of a norm without an activation
        return join_activation(norm, [nn.Identity()]) or norm
    if path == GENERAL_BN and module in sys.modules and isinstance(norm, _BatchNorm):
        general = getattr(sys.modules[module], name)
        return _with_tensors(general(norm.num_features, norm.eps, norm.momentum), norm)
    return norm


def _with_tensors(new: Any, norm: nn.Module) -> nn.Module:
    """Give a norm the tensors and the mode of another one."""
    new._parameters, new._buffers = norm._parameters, norm._buffers
    new.training = norm.training
    return new
