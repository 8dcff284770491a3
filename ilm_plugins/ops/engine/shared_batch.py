"""Moments of the batch of all processes, for synchronized BN statistics."""

from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from .pooling import over_batch
from .tracing import is_traced


class Processes(NamedTuple):
    """The processes that share a batch: of a group, or all if it is None."""

    # Only moments are sent: one all-gather forward, one all-reduce backward.

    group: distributed.ProcessGroup | None

    def gather(self, values: Tensor) -> Tensor:
        """Return the values (2C + 1) of all processes, a row each: means, variances and count."""
        size = distributed.get_world_size(self.group)
        gathered = values.new_empty(size * len(values))  # a vector, which gloo asks for
        distributed.all_gather_into_tensor(gathered, values, self.group)
        return gathered.view(size, -1)

    def add_up(self, gradients: Tensor) -> None:
        """Add the gradients (2C) of the pooled moments over the processes, in place."""
        distributed.all_reduce(gradients, group=self.group)


class SharedBatch:
    """The batch of several processes, in one forward pass of one layer.

    Every process must normalize its share, also an empty one, and run the backward pass. Kernels do
    so by ``processes``. Others call ``pool``, whose first call sets ``mean``, ``var`` (C),
    ``count``, the values of a channel, and ``share``, this process's part of them.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    share: Tensor

    def __init__(self, x: Tensor, group: distributed.ProcessGroup | None = None) -> None:
        self.processes = Processes(group)
        self.local_count = x.shape[0] * x.shape[2:].numel()
        self.is_gathered = False

    def pool(self, mean: Tensor, var: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return means and biased variances (C) of the batch of all processes, differentiably."""
        if is_traced(mean):
            raise RuntimeError(
                f"sync=True: got a {type(mean).__name__}, but batch statistics of several "
                "processes need a plain Tensor, outside of tracing, export and torch.func; call "
                "model.eval() before, or set sync=False"
            )
        # By ``others``, each process runs the backward all-reduce, even if its x needs no gradient.
        mean, var = over_batch(mean, var)
        return _Pool.apply(self, mean.squeeze(0), var.squeeze(0), *others)

    def set_moments(self, mean: Tensor, var: Tensor) -> None:
        """Set the moments of the batch of all processes, from those (C) of this process's share."""
        values = torch.cat((mean, var, mean.new_full((1,), self.local_count)))
        rows = self.processes.gather(values)
        means, variances, counts = rows.split((len(mean), len(mean), 1), dim=1)
        self.is_gathered = True
        self.count = counts.sum()
        shares = counts / self.count.clamp(min=1)
        self.share = self.local_count / self.count.clamp(min=1)
        self.mean = (shares * means).sum(0)
        # The law of total variance, see engine/pooling.py.
        self.var = (shares * (variances + (means - self.mean).square())).sum(0)


class _Pool(Function):
    """The autograd function of :meth:`SharedBatch.pool`.

    With D_mean and D_var, gradients of the pooled moments summed over the processes, and a
    process's share of the count::

        dmean = share * (D_mean + 2 * D_var * (mean - pooled mean))            (C)
        dvar  = share * D_var                                                  (C)
    """

    @staticmethod
    def forward(ctx, batch: SharedBatch, mean: Tensor, var: Tensor, *others: Tensor | None):
        if not batch.is_gathered:  # else a second call, which does not communicate
            batch.set_moments(mean, var)
        ctx.batch = batch
        ctx.save_for_backward(mean)
        return batch.mean.clone(), batch.var.clone()

    @staticmethod
    def backward(ctx, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of mean and var (C); RuntimeError for second derivatives."""
        if torch.is_grad_enabled():
            raise no_second_derivatives()
        batch, (mean,) = ctx.batch, ctx.saved_tensors
        gradients = torch.cat((dmean, dvar))
        batch.processes.add_up(gradients)
        dmean, dvar = (gradients * batch.share).chunk(2)
        dmean = torch.addcmul(dmean, dvar, mean - batch.mean, value=2)
        return None, dmean, dvar, *[None] * (len(ctx.needs_input_grad) - 3)


def no_second_derivatives() -> RuntimeError:
    return RuntimeError(
        "sync=True: batch statistics of several processes have no second derivatives, nor several "
        "gradients at once; set sync=False"
    )
