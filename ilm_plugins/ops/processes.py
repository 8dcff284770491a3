"""Moments of the batch of all processes, for synchronized BN statistics."""

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from .backends import is_traced
from .moments import over_batch


class SharedBatch:
    """The batch of all processes of a group, in one forward pass of one layer.

    Every process must call :meth:`pool`, even with an empty batch, and must run the backward pass.
    Only moments are sent: one all-gather forward, one all-reduce backward.

    Args:
        x: (N, C, *), this process's share of the batch; N may be 0, and may differ between
            processes.
        group: the processes; None for all.

    Attributes:
        mean, var: (C) means and biased variances of the batch; None until :meth:`pool` is called.
        count: values of a channel in the batch, a scalar tensor, so that the host need not wait for
            it; None until then.

    Raises:
        RuntimeError: x is of a subclass of Tensor, or belongs to a computation that is recorded or
            transformed, see :func:`~ilm_plugins.ops.backends.is_traced`.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    count: Tensor | None = None

    def __init__(self, x: Tensor, group: distributed.ProcessGroup | None = None) -> None:
        if is_traced(x):
            raise RuntimeError(
                f"sync=True: got a {type(x).__name__}, but batch statistics of several processes "
                "need a plain Tensor, outside of tracing, export and torch.func; call model.eval() "
                "before, or set sync=False"
            )
        self.own_count = x.shape[0] * x.shape[2:].numel()
        self.group = group

    def pool(self, mean: Tensor, var: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the means and biased variances (C) of the batch of all processes, differentiably.

        The first call communicates. Further calls return the same values, whatever their arguments,
        for a backward pass that computes a layer's scale and shift again.

        Args:
            mean, var: (N, C) moments of each instance's channels, in this process.
            others: other tensors that may need gradients. They are not read. As inputs, they make
                every process take part in the all-reduce of the backward pass, also where x needs
                no gradient, and before DistributedDataParallel's own.
        """
        mean, var = over_batch(mean, var)
        return _Pool.apply(self, mean.squeeze(0), var.squeeze(0), *others)

    def gather(self, mean: Tensor, var: Tensor) -> None:
        """All-gather the moments (C) of each process's share; set mean, var and count of all."""
        own = torch.cat((mean.new_full((1,), self.own_count), mean, var))
        rows = [torch.empty_like(own) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(rows, own, self.group)
        counts, means, variances = torch.stack(rows).split((1, len(mean), len(mean)), dim=1)
        self.count = counts.sum()
        shares = counts / self.count.clamp(min=1)
        self.mean = (shares * means).sum(0)
        # The law of total variance, see ops/moments.py.
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
        """Return the pooled mean and var (C); ``others`` make autograd call ``backward``."""
        if batch.count is None:
            batch.gather(mean, var)
        ctx.batch = batch
        ctx.save_for_backward(mean)
        return batch.mean.clone(), batch.var.clone()

    @staticmethod
    def backward(ctx, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of mean and var (C); None for all other arguments.

        Raises:
            RuntimeError: second derivatives are asked for.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sync=True: batch statistics of several processes have no second derivatives, "
                "nor several gradients at once; set sync=False"
            )
        batch, (mean,) = ctx.batch, ctx.saved_tensors
        gradients = torch.stack((dmean, dvar))
        distributed.all_reduce(gradients, group=batch.group)
        dmean, dvar = gradients * (batch.own_count / batch.count.clamp(min=1))
        dmean = torch.addcmul(dmean, dvar, mean - batch.mean, value=2)
        return None, dmean, dvar, *[None] * (len(ctx.needs_input_grad) - 3)
