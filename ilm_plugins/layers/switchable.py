"""Switchable Normalization: Luo et al., ICLR 2019, the baseline of Exemplar Normalization."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Switch
from .mixture import MixtureNorm, weighted_sum


class SwitchNorm(MixtureNorm, nn.GroupNorm):
    r"""Switchable normalization: one mixture of statistics for all samples.

    .. math::

        y = \gamma \frac{x - \mu}{\sigma} + \beta, \qquad \mu = \sum_k \lambda_k \mu_k, \quad
        \sigma = \sqrt{\textstyle\sum_k \lambda'_k \sigma_k^2 + \epsilon}, \qquad
        \lambda = \mathrm{softmax}(w), \quad \lambda' = \mathrm{softmax}(w')

    (Eq. 2 of the EN paper, with separate ratios for means and variances as in its authors' code.)
    With x standardized by channels, :math:`\hat x = (x - \mu_{IN}) / \sigma_{IN}`, this is
    :math:`y = \mathrm{scale} \cdot \hat x + \mathrm{shift}` with

    .. math::

        \mathrm{scale} &= \gamma\, \sigma_{IN} / \sigma \\
        \mathrm{shift} &= \gamma\, (\mu_{IN} - \mu) / \sigma + \beta

    Parameters: ``weight``, ``bias`` (C); ``mean_weight`` w, ``var_weight`` w' (K). All four get the
    weight decay of norms. For options, buffers, evaluation and freezing see
    :class:`~ilm_plugins.layers.mixture.MixtureNorm`.

    Example:
        >>> layer = SwitchNorm(64)
        >>> layer(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
        >>> layer.ratios().shape  # of means and variances, the weights of IN, LN and BN
        torch.Size([2, 3])
    """

    network = Switch
    initial_values: Mapping[str, float] = {
        **MixtureNorm.initial_values,
        "mean_weight": 1.0,
        "var_weight": 1.0,
    }

    def register_ratios(self, logits: Tensor) -> None:
        self.mean_weight = nn.Parameter(logits)
        self.var_weight = nn.Parameter(logits.clone())

    def ratios(self) -> Tensor:
        """Return the weights of the normalizers, which are the same for all samples.

        Returns:
            (2, K) in the order of ``normalizers``: the ratios lambda of the means and lambda' of
            the variances; each row sums to 1.
        """
        return self.ratios_of(self.network.named(*self.rescale_tensors()))

    def ratios_of(self, t: Any) -> Tensor:
        return self.to_ratios(torch.stack((t.mean_weight, t.var_weight)), t)

    def to_ratios(self, logits: Tensor, t: Any) -> Tensor:
        return logits.softmax(1)

    def rescale(self, mean, var, *tensors):
        t = self.network.named(*tensors)
        moments = self.normalizer_moments(mean, var, t.running_mean, t.running_variance)
        means, variances = zip(*moments, strict=True)
        mean_ratios, var_ratios = (row.unbind() for row in self.ratios_of(t).unbind())
        # mu_IN - mu as a sum of differences: rounding of large means can exceed the deviation.
        off_mean = weighted_sum(mean_ratios, [mean - m for m in means])
        gamma_over_sigma = t.weight * (weighted_sum(var_ratios, variances) + self.eps).rsqrt()
        sigma_in = (var + self.eps).sqrt()
        return gamma_over_sigma * sigma_in, gamma_over_sigma * off_mean + t.bias
