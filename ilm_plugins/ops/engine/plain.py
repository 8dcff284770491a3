"""A backend of plain torch operations, for devices without kernels and installs without a compiler.

It saves as little for the backward pass as the kernels do, but takes more time and memory.

Every backend is a module with these functions, for equations in :func:`.autograd.adaptive_norm`.
They take a non-empty x (N, C, *), contiguous or channels last, and dy in the layout of x; the
statistics mean, var, slope and offset are (N, G'), scale and shift (N, C), at least float32.
Results of x's shape have the dtype and layout of x.

``moments`` returns means and biased variances (2, N, G'). ``find_plan`` returns the plan of kernels
that compute a network, too, or None where they do not; see engine/plans.py. Of the network's
tensors it takes only the first one's dtype, and whether BN's statistics, the last ones, are None.
"""

import torch
from torch import Tensor

from . import reference
from .activation import Activation
from .network import Network, Tensors
from .pooling import duplicate
from .reference import per_channel

__all__ = ["affine", "dx", "find_plan", "moments", "sums"]


def moments(x: Tensor, num_groups: int) -> Tensor:
    return torch.stack(reference.moments(x, num_groups))


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * (x - mean) + shift (N, C, *); mean is (N, G'), scale and shift are (N, C)."""
    y = _centered(x, mean).mul_(per_channel(scale, x)).add_(per_channel(shift, x))
    return y.to(x.dtype)


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums (N, C) of dy * (x - mean) and of dy over the map; mean is (N, G')."""
    dy, centered = dy.to(mean.dtype), _centered(x, mean)
    positions = tuple(range(2, x.dim()))
    products = dy * centered
    return (products.sum(positions), dy.sum(positions)) if positions else (products, dy)


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Return scale * dy + slope * (x - mean) + offset (N, C, *).

    scale is (N, C); mean, slope and offset are (N, G').
    """
    slope, offset = (per_channel(duplicate(t, x.shape[1]), x) for t in (slope, offset))
    result = _centered(x, mean).mul_(slope).add_(offset)
    return result.addcmul_(dy.to(mean.dtype), per_channel(scale, x)).to(x.dtype)


def find_plan(
    x: Tensor,
    num_groups: int,
    network: Network,
    tensors: Tensors,
    activation: Activation | None = None,
) -> None:
    """Return None: no kernels compute the network."""


def _centered(x: Tensor, mean: Tensor) -> Tensor:
    return torch.sub(x.to(mean.dtype), per_channel(duplicate(mean, x.shape[1]), x))
