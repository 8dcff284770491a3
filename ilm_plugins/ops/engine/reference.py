"""``adaptive_norm`` by differentiable torch operations; all backends must agree with it."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from .activation import Activation
from .pooling import duplicate
from .shared_batch import SharedBatch

#: A function of mean, var and further tensors that returns scale and shift.
Rescale = Callable[..., tuple[Tensor, Tensor]]


class Equation(NamedTuple):
    """What :func:`.autograd.adaptive_norm` computes, by any backend."""

    num_groups: int
    eps: float
    rescale: Rescale
    activation: Activation | None = None
    batch: SharedBatch | None = None


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each instance's channel groups, in two passes over x.

    Args:
        x: (N, C, *) in any layout.
        num_groups: G', a divisor of C.

    Returns:
        (N, G') means and (N, G') variances; zeros where a group has no element.
    """
    mean, var, _ = _center(x, num_groups)
    return mean, var


def adaptive_norm(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Rescale,
    *tensors: Tensor | None,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`.autograd.adaptive_norm` so that autograd can differentiate it twice."""
    mean, var, centered = _center(x, num_groups)
    scale, shift = rescale(mean, var, *cast(tensors, mean.dtype))
    scale = scale * duplicate((var + eps).rsqrt(), x.shape[1])
    # Centered values are scaled, because scale * x + shift cancels where the mean is large.
    y = per_channel(scale, x) * centered + per_channel(shift, x)
    if activation is not None:
        y = activation(y)
    return y.to(x.dtype), mean.detach(), var.detach()


def cast(tensors: Iterable[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def _center(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and var (N, G') of channel groups, and x - mean, in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = _group_mean(x, num_groups)
    # x keeps its four dimensions here, because element-wise operations then keep its layout.
    centered = x - per_channel(duplicate(mean, x.shape[1]), x)
    var = _group_mean(centered.square(), num_groups)
    if x.shape[1] == num_groups and math.prod(x.shape[2:]) <= 1:
        # A single value minus its mean is 0, and so is the gradient. Computed, the gradient would
        # be the difference of two large ones, by which it loses its digits.
        centered = centered.detach()
    return mean, torch.where(var == torch.inf, torch.nan, var), centered


def _group_mean(x: Tensor, num_groups: int) -> Tensor:
    """Return the means (N, G') of groups over channels and positions; zeros for an empty x."""
    # The mean of an empty map is NaN, and would reach the parameters' gradients; its sum is 0. Not
    # the number of images, which an exporter may not know.
    # `> 0`, because torch 2.6 recompiles for each size if the number itself is the condition.
    positions = math.prod(x.shape[2:])  # torch.Size.numel would fix the sizes in a graph
    average = torch.mean if positions > 0 else torch.sum
    if x.dim() > 2:
        # Positions come first: over positions and channels at once, torch adds all values of a
        # channels last map one after the other, in float32.
        x = average(x, tuple(range(2, x.dim())))
    return average(x.view(x.shape[0], num_groups, x.shape[1] // num_groups), 2)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(values.shape + (1,) * (x.dim() - 2))
