"""The plain norms that layers replace: a row for each.

A norm of a state dict, without a module, is known by its tensors alone; see :data:`UNTOLD`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..foreign_norms import EXACT, path_of
from ..layers import NORMS
from ..layers.base import AdaptiveNorm
from ..layers.mixture import MixtureNorm

#: Kind of a weight and a bias alone in a state dict: of any plain norm without running statistics,
#: or of no norm.
UNTOLD = "GN or IN"


@dataclass(frozen=True)
class PlainNorm:
    """A plain norm.

    Attributes:
        name: its name in the rules, and in ``replacing``.
        base_class: the class from which its modules derive. Subclasses may compute anything; those
            that compute exactly this norm are in :data:`~..foreign_norms.EXACT`.
        options: the options that a layer takes over, if its constructor has them.
        refusal: returns the reason why a layer of a class cannot replace a module; else None.
        has_statistics: whether its running statistics distinguish it in a state dict.
    """

    name: str
    base_class: type[nn.Module]
    options: tuple[str, ...]
    refusal: Callable[[Any, type[nn.Module]], str | None] = lambda norm, layer: None
    has_statistics: bool = False

    @property
    def title(self) -> str:
        return self.base_class.__name__.lstrip("_")

    @property
    def kind_in_state(self) -> str:
        """What its tensors alone tell."""
        return self.name if self.has_statistics else UNTOLD


def num_channels(norm: Any) -> int | None:
    """Return a norm's number of channels, by torch's attributes or a tensor's length, or None."""
    for name in ("num_channels", "num_features"):
        if hasattr(norm, name):
            return getattr(norm, name)
    if hasattr(norm, "normalized_shape"):
        return norm.normalized_shape[0]
    # FrozenBatchNorm2d of some packages has tensors alone.
    tensors = (getattr(norm, name, None) for name in ("weight", "running_mean"))
    return next((len(tensor) for tensor in tensors if tensor is not None), None)


def plain_module(
    plain_norm: PlainNorm, channels: int, groups: int = 1, dims: int = 2, **options: Any
) -> nn.Module:
    """Return a new GN, IN or BN; options are eps, BN's momentum, device and dtype."""
    if plain_norm.name == "GN":
        return nn.GroupNorm(groups, channels, **options)
    if plain_norm.name == "IN":
        return getattr(nn, f"InstanceNorm{dims}d")(channels, affine=True, **options)
    return getattr(nn, f"BatchNorm{dims}d")(channels, **options)


def exact_plain_norm_of(cls: type[nn.Module]) -> PlainNorm | None:
    """Return the plain norm that a class computes exactly."""
    path = path_of(cls)
    for pattern, name in EXACT.items():
        if re.fullmatch(pattern, path):
            return PLAIN_NORMS[name]
    return None


def is_adaptive(cls: type[nn.Module]) -> bool:
    """Return whether a class is a layer of this package, of NORMS, or derives from one."""
    return issubclass(cls, (AdaptiveNorm, *NORMS.values()))


def plain_norm_of(cls: type[nn.Module]) -> PlainNorm | None:
    """Return the plain norm that a class is or derives from; None for this package's layers."""
    if issubclass(cls, AdaptiveNorm):
        return None
    derived = (
        plain_norm for plain_norm in PLAIN_NORMS.values() if issubclass(cls, plain_norm.base_class)
    )
    return exact_plain_norm_of(cls) or next(derived, None)


def _has_running(norm: nn.Module) -> bool:
    return all(getattr(norm, name, None) is not None for name in ("running_mean", "running_var"))


def _instance_norm_refusal(norm: nn.Module, layer: type[nn.Module]) -> str | None:
    if _has_running(norm):
        return "with track_running_stats, evaluation uses other statistics"
    return None


def _batch_norm_refusal(norm: nn.Module, layer: type[nn.Module]) -> str | None:
    if not issubclass(layer, MixtureNorm):
        return None
    if not _has_running(norm):
        return "without running statistics, evaluation uses the batch's"
    if getattr(norm, "track_running_stats", True) and getattr(norm, "momentum", 0) is None:
        return "momentum=None, a cumulative average; set a number first"
    return None


def _layer_norm_refusal(norm: nn.Module, layer: type[nn.Module]) -> str | None:
    if type(norm) is nn.LayerNorm or len(getattr(norm, "normalized_shape", ())) > 1:
        return (
            "it normalizes the last dimensions; only LayerNorm2d of maps (N, C, H, W) is replaced"
        )
    return None


_ROWS = (
    PlainNorm("GN", nn.GroupNorm, ("num_groups", "eps")),
    PlainNorm("IN", _InstanceNorm, ("eps",), _instance_norm_refusal),
    PlainNorm("BN", _BatchNorm, ("eps", "momentum"), _batch_norm_refusal, has_statistics=True),
    PlainNorm("LN", nn.LayerNorm, ("eps",), _layer_norm_refusal),
)
PLAIN_NORMS = {plain_norm.name: plain_norm for plain_norm in _ROWS}
