"""Moments of coarse groups out of those of finer ones, by the law of total variance.

``var(group) = mean(var) + var(mean)`` adds what is never negative, so nothing cancels, however
large the means are.
"""

from torch import Tensor


def coarsen(mean: Tensor, var: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Pool the moments of fine groups of equal size into those of coarser groups.

    Args:
        mean, var: (N, G') means and biased variances, G' divisible by ``num_groups``.
        num_groups: the number of coarse groups, each of G' / num_groups neighbouring fine ones.

    Returns:
        (N, num_groups) means and biased variances.
    """
    if mean.shape[1] == num_groups:
        return mean, var
    fine = (num_groups, mean.shape[1] // num_groups)
    return _pool(mean.unflatten(1, fine), var.unflatten(1, fine), dim=2)


def over_batch(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the moments (N, G') of each instance into those (1, G') of the whole batch, N >= 1."""
    mean, var = _pool(mean, var, dim=0)
    return mean.unsqueeze(0), var.unsqueeze(0)


def _pool(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    pooled = mean.mean(dim, keepdim=True)
    return pooled.squeeze(dim), var.mean(dim) + (mean - pooled).square().mean(dim)


def duplicate(values: Tensor, num_channels: int) -> Tensor:
    """The operator written as an up arrow in the ILM paper's Eq. 6: (N, G) values to (N, C)."""
    n, groups = values.shape
    return values.unsqueeze(2).expand(n, groups, num_channels // groups).reshape(n, num_channels)
