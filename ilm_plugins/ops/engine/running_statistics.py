"""BN's running statistics, where torch computes the batch's moments; kernels update them alone."""

from typing import Any

from torch import Tensor

from .pooling import pool
from .shared_batch import SharedBatch


def update(
    running: tuple, x: Tensor, mean: Tensor, var: Tensor, batch: SharedBatch | None = None
) -> None:
    """Update running statistics by the batch of x (N, C, *), or by that of several processes.

    Args:
        running: BN's running mean and variance (C), the weight of the newest batch, and the number
            of batches, if it is counted; () updates nothing.
        mean, var: the moments (N, C) of x.
    """
    if not running:
        return
    if batch is None:
        update_by(running, mean, var, x.numel() // x.shape[1])
    else:
        update_by(running, batch.mean.unsqueeze(0), batch.var.unsqueeze(0), batch.count)


def update_by(running: tuple, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """Update running statistics by the moments (N, C) of a batch with ``count`` values a channel.

    Below two values, which have no unbiased variance, they stay.
    """
    running_mean, running_var, momentum, *tracked = running
    more: Any = 1  # torch takes ten microseconds longer to add True
    if isinstance(count, Tensor):  # of several devices, which the host must not read
        more = count > 1
        momentum, count = more.to(running_mean) * momentum, count.clamp(min=2)
    elif count < 2:
        return
    mean, var = pool(mean, var, dim=0)
    unbiased = var * (count / (count - 1))
    running_mean.lerp_(mean.to(running_mean), momentum)
    running_var.lerp_(unbiased.to(running_var), momentum)
    for number in tracked:
        number.add_(more)
