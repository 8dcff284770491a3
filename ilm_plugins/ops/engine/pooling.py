"""Moments of coarse groups from the moments of finer ones, by the law of total variance.

``var(group) = mean(var) + var(mean)`` is a sum of two terms that are never negative, so no digits
cancel, however large the means are.
"""

import torch
from torch import Tensor


def coarsen(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Pool the moments of fine groups of equal size into moments of coarser groups.

    Args:
        mean, var: (N, G') means and biased variances, G' divisible by ``num_groups``.
        num_groups: the number of coarse groups, each of G' / num_groups neighbouring fine ones.

    Returns:
        (N, num_groups) means and biased variances; ``mean`` and ``var`` themselves if G' is already
        ``num_groups``.
    """
    n, fine = mean.shape
    if fine == num_groups:
        return mean, var
    groups = (n, num_groups, fine // num_groups)
    return pool(mean.view(groups), var.view(groups), dim=2)


def over_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the moments (N, G') of instances into moments (1, G') of the batch; zeros if N = 0."""
    if mean.shape[0] == 0:
        return mean.sum(0, keepdim=True), var.sum(0, keepdim=True)
    mean, var = pool(mean, var, dim=0)
    return mean.unsqueeze(0), var.unsqueeze(0)


def pool(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Pool means and biased variances of equally large sets along a dimension."""
    pooled = mean.mean(dim)
    off_center = mean - pooled.unsqueeze(dim)
    return pooled, torch.addcmul(var, off_center, off_center).mean(dim)


def restandardize(mean: Tensor, var: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return ratio and offset (N, G'): coarse groups standardize x to ratio * x_hat + offset.

    Here x_hat is x standardized by fine groups of moments mu, var; mu_g, var_g are coarse ones::

        (x - mu_g) / sqrt(var_g + eps) = ratio * x_hat + offset
    """
    coarse = coarsen(mean, var, num_groups)
    coarse_mean, coarse_var = (duplicate(t, mean.shape[1]) for t in coarse)
    rstd = (coarse_var + eps).rsqrt()
    return (var + eps).sqrt() * rstd, (mean - coarse_mean) * rstd


def duplicate(values: Tensor, num_channels: int) -> Tensor:
    """Repeat values (N, G) of groups for their channels: (N, C)."""
    return values.unsqueeze(2).expand(-1, -1, num_channels // values.shape[1]).flatten(1)
