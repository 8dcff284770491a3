"""Switchable Normalization: Luo et al., ICLR 2019, the baseline of Exemplar Normalization."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops import Switch
from .statistics import MixtureNorm, weighted_sum


class SwitchNorm(MixtureNorm, nn.GroupNorm):
    r"""Switchable normalization: one mixture of statistics for all samples.

    .. math::

        y = \gamma \frac{x - \sum_k \lambda_k \mu_k}{\sqrt{\sum_k \lambda'_k \sigma_k^2 + \epsilon}}
            + \beta, \qquad \lambda = \mathrm{softmax}(w), \quad \lambda' = \mathrm{softmax}(w')

    (Eq. 2 of the EN paper, with separate ratios for means and variances as its authors have them.)

    Parameters: ``weight``, ``bias`` (C); ``mean_weight`` w, ``var_weight`` w' (K). All four get the
    weight decay of norms: detectron2's ``WEIGHT_DECAY_NORM``, MMEngine's ``norm_decay_mult``.
    Buffers: ``running_mean``, ``running_var`` (C). For evaluation and freezing see
    :class:`~ilm_plugins.layers.statistics.MixtureNorm`.

    Shape: input and output (N, C, *), any number of spatial dimensions.

    Args:
        num_channels: C.
        eps: added to the mixed variance.
        momentum: weight of the newest batch in the running statistics.
        normalizers: K of "IN", "LN", "BN", "GN", in the order of ``mean_weight``.
        num_groups: groups of "GN".

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        normalizers: tuple[str, ...] = ("IN", "LN", "BN"),
        num_groups: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_channels, eps, momentum, normalizers, num_groups, device, dtype)
        k = len(self.normalizers)
        self.mean_weight = nn.Parameter(torch.ones(k, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.ones(k, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "mean_weight"):
            nn.init.ones_(self.mean_weight)
            nn.init.ones_(self.var_weight)

    def ratios(self) -> Tensor:
        """The two softmaxes, the same for all samples, in the order of ``normalizers``.

        Returns:
            (2, K): the ratios of the means, and those of the variances; each row sums to 1.
        """
        return torch.stack((self.mean_weight, self.var_weight)).softmax(1)

    def rescale_tensors(self) -> tuple[Tensor | None, ...]:
        own = self.weight, self.bias, self.mean_weight, self.var_weight
        return (*own, *self.running_statistics())

    def network(self) -> Switch:
        return Switch(self.normalizers, self.num_groups, self.eps)

    def rescale(self, mean, var, weight, bias, mean_weight, var_weight, running_mean, running_var):
        statistics = self.statistics(mean, var, running_mean, running_var)
        means, variances = zip(*statistics, strict=True)
        scale = weight * (mix(var_weight, variances) + self.eps).rsqrt()
        shift = scale * mix(mean_weight, apart(mean, means)) + bias
        return scale * (var + self.eps).sqrt(), shift


def apart(mean: Tensor, means: Sequence[Tensor]) -> list[Tensor]:
    """How far the channels' means are from K others, (N, C) each.

    These are mixed, not the means, whose rounding may be large beside the deviation.
    """
    return [mean - m for m in means]


def mix(logits: Tensor, statistics: Sequence[Tensor]) -> Tensor:
    """The mean of K statistics, (N, C), weighted with the softmax of as many logits."""
    return weighted_sum(logits.softmax(0).unbind(), statistics)
