"""RetinaNet's head, which runs each norm over every level of a feature pyramid in turn.

The levels differ, and a mixture (EN, SN, SSN) has one set of running statistics: it is refused.
"""

from types import ModuleType

import wrapt
from torch import nn

from ...errors import OptionError
from ...layers.mixture import MixtureNorm
from ...surgery.checks import reason_of_levels


def extend_retinanet_head(module: ModuleType) -> None:
    if not isinstance(vars(module.RetinaNetHead)["__init__"], wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(module, "RetinaNetHead.__init__", _build_head)


def _build_head(wrapped, head: nn.Module, args: tuple, options: dict) -> None:
    """Construct RetinaNet's head; raise OptionError if it has running statistics of a mixture."""
    wrapped(*args, **options)
    for layer in head.modules():
        if isinstance(layer, MixtureNorm) and layer.running_mean is not None:
            names = f"{type(head).__name__} with {type(layer).__name__}"
            raise OptionError(f"{names}: {reason_of_levels()}")
