"""RetinaNet's head, which runs each norm over every level of a feature pyramid in turn.

The levels differ, and a mixture (EN, SN, SSN) has one set of running statistics: it is refused.
"""

import functools
import itertools
from types import ModuleType

import wrapt
from torch import nn

from ...errors import OptionError
from ...layers.mixture import MixtureNorm
from ...surgery.checks import reason_of_levels


def extend_retinanet_head(module: ModuleType) -> None:
    if not isinstance(vars(module.RetinaNetHead)["__init__"], wrapt.FunctionWrapper):
        build = functools.partial(_build_head, module)
        wrapt.wrap_function_wrapper(module, "RetinaNetHead.__init__", build)


def _build_head(module: ModuleType, wrapped, head: nn.Module, args, kwargs) -> None:
    """Construct RetinaNet's head; raise OptionError if it has running statistics of a mixture."""
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
    for layer in head.modules():
        if isinstance(layer, MixtureNorm) and layer.running_mean is not None:
            names = f"{type(head).__name__} with {type(layer).__name__}"
            raise OptionError(f"{names}: {reason_of_levels()}")
