"""Moments of coarse groups out of those of finer ones, by the law of total variance.

``var(group) = mean(var) + var(mean)`` adds what is never negative, so nothing cancels, however
large the means are.
"""

import torch
from torch import Tensor


def coarsen(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Pool the moments of fine groups of equal size into those of coarser groups.

    Args:
        mean, var: (N, G') means and biased variances, G' divisible by ``num_groups``.
        num_groups: the number of coarse groups, each of G' / num_groups neighbouring fine ones.

    Returns:
        (N, num_groups) means and biased variances.
    """
    n, fine = mean.shape
    if fine == num_groups:
        return mean, var
    groups = (n, num_groups, fine // num_groups)
    return pool(mean.view(groups), var.view(groups), dim=2)


def coarsen_vjp(
    mean: Tensor, coarse_mean: Tensor, dmean: Tensor, dvar: Tensor
) -> tuple[Tensor, Tensor]:
    """The vector-Jacobian product of :func:`coarsen`.

    Args:
        mean: (N, G') means of the fine groups.
        coarse_mean, dmean, dvar: (N, G) means of the coarse groups; gradients of their moments.

    Returns:
        (N, G') gradients of the fine means and variances.
    """
    n, groups = coarse_mean.shape
    size = mean.shape[1] // groups
    if size == 1:
        return dmean, dvar
    off_center = mean.view(n, groups, size) - coarse_mean.unsqueeze(2)
    dvar = (dvar / size).unsqueeze(2)
    dmean = torch.addcmul((dmean / size).unsqueeze(2), off_center, dvar, value=2)
    return dmean.view_as(mean), dvar.expand_as(off_center).reshape(mean.shape)


def over_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the moments (N, G') of instances into those (1, G') of the batch; zeros for N = 0."""
    if mean.shape[0] == 0:
        return mean.new_zeros(1, mean.shape[1]), var.new_zeros(1, var.shape[1])
    mean, var = pool(mean, var, dim=0)
    return mean.unsqueeze(0), var.unsqueeze(0)


def over_batch_vjp(
    mean: Tensor, batch_mean: Tensor, dmean: Tensor, dvar: Tensor
) -> tuple[Tensor, Tensor]:
    """The vector-Jacobian product of :func:`over_batch`.

    Args:
        mean: (N, G') means of the instances.
        batch_mean, dmean, dvar: (1, G') means of the batch; gradients of its moments.

    Returns:
        (N, G') gradients of the means; (1, G') that of the variances, the same for every instance.
    """
    n = mean.shape[0]
    dvar = dvar / n
    return torch.addcmul(dmean / n, mean - batch_mean, dvar, value=2), dvar


def sum_groups(values: Tensor, num_groups: int) -> Tensor:
    """(N, *) values summed within num_groups equal groups of neighbours, (N, num_groups).

    Many sums of few elements each are faster as a product of matrices on the CPU. Its rounding may
    depend on N, so this is for gradients.
    """
    groups = values.reshape(values.shape[0], num_groups, -1)
    if groups.numel() < MANY or groups.is_cuda:
        return groups.sum(2)
    rows = groups.flatten(0, 1)
    return torch.mv(rows, rows.new_ones(rows.shape[1])).view(-1, num_groups)


#: From so many elements on, a sum by a product of matrices pays.
MANY = 1 << 16


def pool(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Moments of the union of what has the moments along a dimension, in equal numbers."""
    if dim > 0 and mean.shape[dim] == 1:
        return mean.squeeze(dim), var.squeeze(dim)
    pooled = _mean(mean, dim)
    off_center = mean - pooled.unsqueeze(dim)
    return pooled, _mean(torch.addcmul(var, off_center, off_center), dim)


def _mean(values: Tensor, dim: int) -> Tensor:
    size = values.shape[dim]
    if dim > 0 and size == 2:  # torch's sum of two takes four times as long
        first, second = values.unbind(dim)
        return torch.lerp(first, second, 0.5)
    return values.sum(dim) * (1 / size)


def duplicate(values: Tensor, num_channels: int) -> Tensor:
    """The operator written as an up arrow in the ILM paper's Eq. 6: (N, G) values to (N, C)."""
    return values.unsqueeze(2).expand(-1, -1, num_channels // values.shape[1]).flatten(1)
