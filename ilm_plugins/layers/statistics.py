"""The pool of normalizers that EN and SN mix, and the running statistics of the batch's one."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..ops import coarsen, duplicate, over_batch
from .base import (
    AdaptiveNorm,
    OptionError,
    check_choice,
    check_device,
    check_divides,
    check_dtype,
    check_eps,
    check_positive,
    is_number,
)

NORMALIZERS = ("IN", "LN", "BN", "GN")


class MixtureNorm(AdaptiveNorm):
    """A mixture of K of the normalizers IN, LN, BN and GN.

    BN's statistics are the batch's, of this process alone, while the layer trains; they are kept as
    running statistics in torch's convention (``momentum`` is the weight of the new value, the
    stored variance is unbiased), which take their place in evaluation.

    **Freezing.** Where neither ``weight`` nor ``bias`` requires a gradient, the layer is frozen, as
    a FrozenBatchNorm is: in training mode too it uses its running statistics and leaves them as
    they are. That is what detectron2's FREEZE_AT and OpenMMLab's frozen_stages mean for BatchNorm;
    both freeze by ``requires_grad``. Hence a stateless call (``torch.func.functional_call``) with
    detached parameters is one of a frozen layer, too; hand over parameters that require gradients.
    So is a replica of nn.DataParallel's; use DistributedDataParallel.

    Args:
        normalizers: which of "IN", "LN", "BN", "GN" to mix, in the order of the parameters' rows.
        num_groups: groups of "GN", where it is among them.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_channels: int,
        eps: float,
        momentum: float,
        normalizers: Sequence[str],
        num_groups: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(normalizers, list | tuple) or not normalizers:
            raise OptionError(
                f"{name}: normalizers={normalizers!r} is empty or no tuple; "
                "list at least one of 'IN', 'LN', 'BN', 'GN'"
            )
        for normalizer in normalizers:
            check_choice(name, "normalizers", normalizer, NORMALIZERS)
        normalizers = tuple(normalizers)
        if len(set(normalizers)) != len(normalizers):
            raise OptionError(
                f"{name}: normalizers={normalizers!r} repeats one; list each once at most"
            )
        check_positive(name, "num_channels", num_channels)
        check_eps(name, eps)
        check_device(name, device)
        check_dtype(name, dtype)
        if not is_number(momentum) or not 0 <= momentum <= 1:
            raise OptionError(
                f"{name}: momentum={momentum!r} is not between 0 and 1; "
                "set the weight of the newest batch in the running statistics, 0.1 by default"
            )
        if "GN" in normalizers:
            check_divides(name, num_channels, "num_groups", num_groups)
        super().__init__(1, num_channels, eps, device=device, dtype=dtype)
        self.momentum = momentum
        self.normalizers = normalizers
        self.num_groups = num_groups if "GN" in normalizers else 1
        has_bn = "BN" in normalizers
        zeros = torch.zeros(num_channels, device=device, dtype=dtype) if has_bn else None
        ones = torch.ones(num_channels, device=device, dtype=dtype) if has_bn else None
        self.register_buffer("running_mean", zeros)
        self.register_buffer("running_var", ones)

    @property
    def moment_groups(self) -> int:
        """Each channel's moments are the finest that the mixture needs."""
        return self.num_channels

    @property
    def frozen(self) -> bool:
        """Whether the running statistics stand still in training, too; see Freezing."""
        return not (_requires_grad(self.weight) or _requires_grad(self.bias))

    @property
    def uses_batch_statistics(self) -> bool:
        return "BN" in self.normalizers and self.training and not self.frozen

    def reset_running_stats(self) -> None:
        """Mean 0 and variance 1, as before the first batch."""
        if self.running_mean is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "running_mean"):
            self.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        y, mean, var = self.normalize(x)
        if self.uses_batch_statistics:
            self.update_running_stats(mean, var, count=x.numel() // self.num_channels)
        return y

    def update_running_stats(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch.

        Args:
            mean, var: (N, C) moments of each instance's channels, detached.
            count: values of one channel in the batch, N times the spatial size. A single value has
                no variance, and changes nothing.
        """
        if count < 2:
            return
        mean, var = over_batch(mean, var)
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean[0].to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased[0].to(self.running_var), self.momentum)

    def running_statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """What stands in for the batch's statistics: running mean and variance (C), or Nones."""
        if self.uses_batch_statistics or self.running_mean is None:
            return None, None
        if self.frozen or not torch.is_grad_enabled() or torch.jit.is_tracing():
            return self.running_mean, self.running_var
        # They are kept for the backward pass, before which a training pass may change them.
        return self.running_mean.clone(), self.running_var.clone()

    def statistics(
        self, mean: Tensor, var: Tensor, running_mean: Tensor | None, running_var: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """The K normalizers' means and biased variances.

        Args:
            mean, var: (N, C) moments of each instance's channels.
            running_mean, running_var: (C), for BN in place of the batch's own; or None.

        Returns:
            K pairs of mean and variance, each (N, C), or (N, 1) or (1, C) where all channels or all
            instances share one.
        """
        found = []
        for normalizer in self.normalizers:
            if normalizer == "IN":
                found.append((mean, var))
            elif normalizer == "BN" and running_mean is None:
                found.append(over_batch(mean, var))
            elif normalizer == "BN":
                found.append((running_mean.unsqueeze(0), running_var.unsqueeze(0)))
            elif normalizer == "LN":
                found.append(coarsen(mean, var, 1))
            else:
                groups = coarsen(mean, var, self.num_groups)
                found.append(tuple(duplicate(t, self.num_channels) for t in groups))
        return found

    def extra_repr(self) -> str:
        groups = f", num_groups={self.num_groups}" if "GN" in self.normalizers else ""
        return (
            f"{self.num_channels}, eps={self.eps}, momentum={self.momentum}, "
            f"normalizers={self.normalizers}{groups}"
        )


def _requires_grad(parameter: Tensor) -> bool:
    """``parameter.requires_grad``, which torch.func.vmap hides in a wrapper."""
    if not torch.compiler.is_compiling():
        while torch._C._functorch.is_batchedtensor(parameter):
            parameter = torch._C._functorch.get_unwrapped(parameter)
    return parameter.requires_grad


def weighted_sum(weights: Iterable[Tensor], values: Iterable[Tensor]) -> Tensor:
    """Of K weights and K values."""
    return reduce(add, (weight * value for weight, value in zip(weights, values, strict=True)))
