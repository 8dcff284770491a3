"""Moments of the batch of all processes, for synchronized BN statistics."""

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from .backends import is_traced
from .moments import over_batch


class SharedBatch:
    """The batch of all processes of a group (None: all), in one forward pass of one layer.

    Every process must call ``pool``, also with an empty batch, and run the backward pass. ``mean``,
    ``var`` (C), ``count``, the values of a channel, and ``share``, this process's part of them, are
    set by the first ``pool``.
    """

    # Only moments are sent: one all-gather forward, one all-reduce backward.

    mean: Tensor
    var: Tensor
    count: Tensor
    share: Tensor

    def __init__(self, x: Tensor, group: distributed.ProcessGroup | None = None) -> None:
        if is_traced(x):
            raise RuntimeError(
                f"sync=True: got a {type(x).__name__}, but batch statistics of several processes "
                "need a plain Tensor, outside of tracing, export and torch.func; call model.eval() "
                "before, or set sync=False"
            )
        self.local_count = x.shape[0] * x.shape[2:].numel()
        self.group = group
        self.is_gathered = False

    def pool(self, mean: Tensor, var: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return means and biased variances (C) of the batch of all processes, differentiably."""
        # By ``others``, each process runs the backward all-reduce, even if its x needs no gradient.
        mean, var = over_batch(mean, var)
        return _Pool.apply(self, mean.squeeze(0), var.squeeze(0), *others)

    def exchange(self, moments: Tensor) -> None:
        """Replace the moments (2, C) of this process's batch by those of all processes' batch."""
        self.gather(*moments)
        torch.stack((self.mean, self.var), out=moments)

    def gather(self, mean: Tensor, var: Tensor) -> None:
        """All-gather the moments (C) of each process's share; set mean, var and count of all."""
        local = torch.cat((mean.new_full((1,), self.local_count), mean, var))
        size = distributed.get_world_size(self.group)
        gathered = local.new_empty(size * len(local))  # a vector, which gloo asks for
        distributed.all_gather_into_tensor(gathered, local, self.group)
        rows = gathered.view(size, -1)
        counts, means, variances = rows.split((1, len(mean), len(mean)), dim=1)
        self.is_gathered = True
        self.count = counts.sum()
        shares = counts / self.count.clamp(min=1)
        self.share = shares[distributed.get_rank(self.group)]
        self.mean = (shares * means).sum(0)
        # The law of total variance, see engine/moments.py.
        self.var = (shares * (variances + (means - self.mean).square())).sum(0)

    def reduce(self, gradients: Tensor) -> Tensor:
        """Return this process's share of the gradients (2, C) of all, from those of its instances.

        The gradients are of the pooled moments.
        """
        distributed.all_reduce(gradients, group=self.group)
        return gradients * self.share


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
            batch.gather(mean, var)
        ctx.batch = batch
        ctx.save_for_backward(mean)
        return batch.mean.clone(), batch.var.clone()

    @staticmethod
    def backward(ctx, dmean: Tensor, dvar: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of mean and var (C); RuntimeError for second derivatives."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sync=True: batch statistics of several processes have no second derivatives, "
                "nor several gradients at once; set sync=False"
            )
        batch, (mean,) = ctx.batch, ctx.saved_tensors
        dmean, dvar = batch.reduce(torch.stack((dmean, dvar)))
        dmean = torch.addcmul(dmean, dvar, mean - batch.mean, value=2)
        return None, dmean, dvar, *[None] * (len(ctx.needs_input_grad) - 3)
