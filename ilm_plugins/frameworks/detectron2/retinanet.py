"""RetinaNet's head, whose norms run over every level of a feature pyramid in turn.

Each level of a mixture (EN, SN, SSN) has its own running statistics, as under detectron2's
CycleBatchNormList. Surgery swaps the norms of all levels as one, by :class:`Heads`.
"""

import copy
import functools
import itertools
from types import ModuleType
from typing import Any

import wrapt
from torch import Tensor, nn

from ...errors import OptionError
from ...foreign_norms import Framework
from ...layers.mixture import MixtureNorm


class PerLevelNorm(nn.ModuleList):
    """One norm for all levels, which share its parameters; each has its own running statistics.

    The module must be called once for each level, in order.
    """

    def __init__(self, layer: nn.Module, num_levels: int) -> None:
        shared = {id(parameter): parameter for parameter in layer.parameters()}
        super().__init__(copy.deepcopy(layer, dict(shared)) for _ in range(num_levels))
        self.level = 0

    def forward(self, x: Tensor) -> Tensor:
        layer = self[self.level]
        self.level = (self.level + 1) % len(self)
        return layer(x)


def restart_levels(head: nn.Module, *_inputs) -> None:
    for module in head.modules():
        if isinstance(module, PerLevelNorm):
            module.level = 0


# ---- how a head is built


def extend_retinanet_head(module: ModuleType) -> None:
    if not isinstance(vars(module.RetinaNetHead)["__init__"], wrapt.FunctionWrapper):
        build = functools.partial(_build_head, module)
        wrapt.wrap_function_wrapper(module, "RetinaNetHead.__init__", build)


def _build_head(module: ModuleType, wrapped, head: nn.Module, args, kwargs) -> None:
    """Construct RetinaNet's head; give each level its own running statistics of a mixture."""
    get_norm, calls = module.get_norm, itertools.count()

    def get_norm_or_none(norm, channels):
        try:
            return get_norm(norm, channels)
        except OptionError:
            # The head first tests the norm on 32 channels, whatever its own number of channels.
            if next(calls) == 0 and channels == 32:
                return None
            raise

    module.get_norm = get_norm_or_none
    try:
        wrapped(*args, **kwargs)
    finally:
        module.get_norm = get_norm
    for subnet in (head.cls_subnet, head.bbox_subnet):
        for name, layer in list(subnet.named_children()):
            if isinstance(layer, MixtureNorm) and layer.running_mean is not None:
                subnet.register_module(name, PerLevelNorm(layer, head._num_features))
    set_restart(head)


def set_restart(head: nn.Module) -> None:
    """Have a head restart the levels of its norms, if it has norms of several levels."""
    for key, hook in [*head._forward_pre_hooks.items()]:
        if hook is restart_levels:
            del head._forward_pre_hooks[key]
    if any(isinstance(module, PerLevelNorm) for module in head.modules()):
        head.register_forward_pre_hook(restart_levels)


# ---- how its norms are swapped


class Heads(Framework):
    """Norms of all levels as one norm, and back.

    Args:
        joined_batchnorms: detectron2's class CycleBatchNormList.
    """

    def __init__(self, joined_batchnorms: type) -> None:
        self.joined_batchnorms: Any = joined_batchnorms

    def levels(self, module: nn.Module) -> list[nn.Module]:
        if isinstance(module, PerLevelNorm):
            return list(module)
        if type(module) is not self.joined_batchnorms:
            return []
        levels = [copy.copy(level) for level in module]
        for level in levels:
            level._parameters = level._parameters | module._parameters
            level.affine = "weight" in module._parameters
        return levels

    def join_levels(self, levels: list[nn.Module]) -> nn.Module:
        """Return a norm for all levels, with the parameters of the first, the buffers of each."""
        if getattr(levels[0], "running_mean", None) is None:
            return levels[0]
        if not isinstance(levels[0], MixtureNorm):
            return self._join_batchnorms(levels)
        new = PerLevelNorm(levels[0], len(levels)).train(levels[0].training)
        for new_level, level in zip(new, levels, strict=True):
            new_level._buffers.update(level._buffers)
        return new

    def _join_batchnorms(self, levels: list[nn.Module]) -> nn.Module:
        """Return what detectron2 has in the head for ``NORM: BN``."""
        new = self.joined_batchnorms(len(levels), num_features=levels[0].num_features)
        new.weight, new.bias = levels[0].weight, levels[0].bias
        new.training = levels[0].training
        for i, level in enumerate(levels):
            level.weight = level.bias = None
            level.affine = False
            new[i] = level
        return new

    def finish(self, model: nn.Module) -> None:
        """Have the heads in a model restart the levels of their norms."""
        for module in model.modules():
            if any(cls.__name__ == "RetinaNetHead" for cls in type(module).__mro__):
                set_restart(module)
