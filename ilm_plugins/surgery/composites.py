"""Norms with an activation inside, and norms of several levels: of timm, detectron2 and ours."""

import sys
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.levels import PerLevelNorm, restart_levels
from . import norms
from .rules import refuse
from .sources import WITH_ACTIVATION


def join_activation(norm: nn.Module, after: Iterable[nn.Module]) -> nn.Module | None:
    """Return a plain norm as timm's class with modules to run after it; None if it has no class."""
    classes = sys.modules.get(WITH_ACTIVATION)
    if classes is None or type(norm) not in (nn.BatchNorm2d, nn.GroupNorm):
        return None
    channels, eps = norm.weight.numel(), norm.eps
    if type(norm) is nn.BatchNorm2d:
        new = classes.BatchNormAct2d(channels, eps, norm.momentum, apply_act=False)
    else:
        new = classes.GroupNormAct(channels, norm.num_groups, eps, apply_act=False)
    new._parameters, new._buffers = norm._parameters, norm._buffers
    *drop, new.act = after
    if drop:
        (new.drop,) = drop
    new.training = norm.training
    return new


def join_levels(levels: list[nn.Module]) -> nn.Module:
    """Return one norm for all levels, with the parameters of the first and the buffers of each."""
    if getattr(levels[0], "running_mean", None) is None:
        return levels[0]
    if isinstance(levels[0], _BatchNorm):
        return _join_batchnorms(levels)
    new = PerLevelNorm(levels[0], len(levels)).train(levels[0].training)
    for level, own in zip(new, levels, strict=True):
        level._buffers.update(own._buffers)
    return new


def _join_batchnorms(levels: list[_BatchNorm]) -> nn.Module:
    """Return what detectron2 has in RetinaNet's head for ``NORM: BN``."""
    module, name = norms.CYCLE.rsplit(".", 1)
    words = "detectron2 has the BatchNorm of several levels; import it"
    refuse(module not in sys.modules, words)
    new = getattr(sys.modules[module], name)(len(levels), num_features=levels[0].num_features)
    new.weight, new.bias = levels[0].weight, levels[0].bias
    new.training = levels[0].training
    for i, level in enumerate(levels):
        level.weight = level.bias = None
        level.affine = False
        new[i] = level
    return new


def set_restart(head: nn.Module) -> None:
    """Have RetinaNet's head restart the levels of its norms, if it has norms of several levels."""
    for key, hook in [*head._forward_pre_hooks.items()]:
        if hook is restart_levels:
            del head._forward_pre_hooks[key]
    if any(isinstance(module, PerLevelNorm) for module in head.modules()):
        head.register_forward_pre_hook(restart_levels)
