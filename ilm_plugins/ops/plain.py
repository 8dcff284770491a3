"""A backend of plain torch operations, for devices without kernels and installs without a compiler.

It saves as little for the backward pass as the kernels do, x and statistics, but each pass
allocates intermediate maps and reads and writes memory several times.
"""

import torch
from torch import Tensor

from .moments import duplicate
from .networks import Network
from .reference import moments, per_channel

__all__ = ["affine", "dx", "moments", "runs", "sums"]


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """See :class:`~.networks.Kernels`."""
    y = _centered(x, mean).mul_(per_channel(scale, x)).add_(per_channel(shift, x))
    return y.to(x.dtype)


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`~.networks.Kernels`."""
    dy, centered = dy.to(mean.dtype), _centered(x, mean)
    positions = tuple(range(2, x.dim()))
    return tuple(t.sum(positions) if positions else t for t in (dy * centered, dy))


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """See :class:`~.networks.Kernels`."""
    slope, offset = (per_channel(duplicate(t, x.shape[1]), x) for t in (slope, offset))
    result = _centered(x, mean).mul_(slope).add_(offset)
    return result.addcmul_(dy.to(mean.dtype), per_channel(scale, x)).to(x.dtype)


def runs(network: Network, x: Tensor, num_groups: int) -> bool:
    """Return False: there are no kernels that compute a whole network."""
    return False


def _centered(x: Tensor, mean: Tensor) -> Tensor:
    """Return x - mean in mean's dtype, with mean (N, G') of channel groups."""
    return torch.sub(x.to(mean.dtype), per_channel(duplicate(mean, x.shape[1]), x))
