"""Exemplar Normalization: Zhang et al., CVPR 2020."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..ops import Exemplar, cast, moments
from .mixture import MixtureNorm, weighted_sum
from .options import check_positive, fit_width
from .projection import Projection, project


class ExemplarNorm(MixtureNorm, nn.GroupNorm):
    r"""Exemplar normalization: each sample's own mixture of normalized maps.

    .. math::

        y_n = \sum_k \left[ \gamma_k \lambda_{nk} \frac{x_n - \mu_k}{\sigma_k} + \beta_k \right],
        \qquad \sigma_k = \sqrt{\mathrm{Var}_k + \epsilon}

    (Eq. 3). With :math:`\hat x = (x - \mu_{IN}) / \sigma_{IN}`, standardized by channels, this is
    :math:`y = \mathrm{scale} \cdot \hat x + \mathrm{shift}` with

    .. math::

        \mathrm{scale} &= \sigma_{IN} \sum_k \lambda_k \gamma_k / \sigma_k \\
        \mathrm{shift} &= \sum_k \lambda_k \gamma_k (\mu_{IN} - \mu_k) / \sigma_k + \sum_k \beta_k

    The ratios :math:`\lambda_n` of sample n come from its spatial means :math:`\mu_{IN}` (C) in
    three steps (Section 3.3): normalize them by each of the K statistics, as in the shift, and
    reduce the result to z (K, C/r) with a grouped convolution; correlate, :math:`v = z z^T` (K, K);
    then two linear maps with tanh between them, K*K -> pi*K -> K, and softmax. IN's row of z is 0,
    so IN's row and column of v, and their columns of ``expand.weight``, have no effect.

    Parameters: ``weight``, ``bias`` (K, C); ``reduce.weight`` (C/r, r, 1); ``expand.weight``
    (pi*K, K*K) and ``expand.bias``; ``ratio.weight`` (K, pi*K) and ``ratio.bias``: 2KC + C + 1953
    in all for K = 3, pi = 50 (Table 1, where the last is Psi(3)). ``ratio`` starts at zero, hence
    the ratios at 1/K. Buffer, beside the mixtures': ``num_batches_tracked``.

    Args:
        reduction: r, how many channels the network of the ratios reduces to one (Table 8): 32 for
            ResNet-50, 16 for BN-Inception, 8 for ShuffleNetV2 x0.5; by default 32, or less where 32
            does not divide C.
        expansion: pi; the first linear map of that network returns pi*K values (Table 7).

    For the other options, evaluation and freezing see
    :class:`~ilm_plugins.layers.mixture.MixtureNorm`.

    Example:
        >>> layer, x = ExemplarNorm(64), torch.randn(2, 64, 7, 7)
        >>> layer(x).shape
        torch.Size([2, 64, 7, 7])
        >>> layer.ratios(x).shape  # for each image, the weights of IN, LN and BN
        torch.Size([2, 3])
    """

    network = Exemplar
    fits_width: Mapping[str, int] = {"num_groups": 32, "reduction": 32}
    num_batches_tracked: Tensor | None
    initial_values: Mapping[str, float] = {**MixtureNorm.initial_values, "num_batches_tracked": 0}

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        reduction: int | str = "auto",
        expansion: int = 50,
        normalizers: Sequence[str] = ("IN", "LN", "BN"),
        num_groups: int | str = "auto",
        sync: bool | distributed.ProcessGroup = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        (r,) = fit_width(type(self), num_channels, reduction=reduction)
        expansion = check_positive(type(self).__name__, "expansion", expansion)
        super().__init__(
            num_channels,
            eps,
            momentum,
            normalizers=normalizers,
            num_groups=num_groups,
            sync=sync,
            device=device,
            dtype=dtype,
        )
        k, c = len(self.normalizers), num_channels
        self.reduction = r
        self.expansion = expansion
        self.hidden = expansion * k

        factory: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.weight = nn.Parameter(self.weight.detach().repeat(k, 1))
        self.bias = nn.Parameter(self.bias.detach().repeat(k, 1))
        # A row for each group of r channels, in the shape of nn.Conv1d's weights.
        self.reduce = Projection(r, c // r, **factory)
        self.reduce.weight = nn.Parameter(self.reduce.weight.detach().unsqueeze(2))
        self.expand = Projection(k * k, self.hidden, bias=True, **factory)
        self.ratio = Projection(self.hidden, k, bias=True, init="zeros", **factory)
        has_bn = self.running_mean is not None
        tracked = torch.zeros((), dtype=torch.long, device=self.weight.device) if has_bn else None
        self.register_buffer("num_batches_tracked", tracked)

    def ratios(self, x: Tensor) -> Tensor:
        """Return the ratios of each sample: its weights of the normalizers, which sum to 1.

        BN has the same statistics as in forward. In training with ``sync``, it has the statistics
        of this process's batch alone. Running statistics are not updated.

        Args:
            x: (N, C, *), the layer's input.

        Returns:
            (N, K) in the order of ``normalizers``, at least float32.
        """
        self.check_input(x)
        mean, var = moments(x, self.moment_groups)
        t = self.network.named(*cast(self.rescale_tensors(), mean.dtype))
        return self.predict_ratios(mean, self.normalize_means(mean, var, t)[1], t)

    def rescale(self, mean, var, *tensors):
        t = self.network.named(*tensors)
        one_over_sigma, normalized_means = self.normalize_means(mean, var, t)
        ratios = self.predict_ratios(mean, normalized_means, t)
        lambda_gamma = (ratios.unsqueeze(2) * t.weight).unbind(1)
        sigma_in = (var + self.eps).sqrt()
        scale = sigma_in * weighted_sum(lambda_gamma, one_over_sigma)
        shift = weighted_sum(lambda_gamma, normalized_means.unbind(1)) + t.bias.sum(0)
        return scale, shift

    def normalize_means(self, mean, var, t):
        """Return K tensors 1 / sigma_k, and (mu_IN - mu_k) / sigma_k, (N, K, C)."""
        of_normalizers = self.normalizer_moments(mean, var, t.running_mean, t.running_variance)
        means, variances = zip(*of_normalizers, strict=True)
        one_over_sigma = [(v + self.eps).rsqrt() for v in variances]
        pairs = zip(means, one_over_sigma, strict=True)
        return one_over_sigma, torch.stack([(mean - m) * rstd for m, rstd in pairs], 1)

    def predict_ratios(self, mean, normalized_means, t):
        """Return the ratios (N, K) of Section 3.3, from mu_IN (N, C) and what it normalizes to."""
        features = self.correlate(normalized_means, t).flatten(1)
        hidden = torch.tanh(project(features, t.expand_weight, t.expand_bias))
        return project(hidden, t.ratio_weight, t.ratio_bias).softmax(1)

    def correlate(self, normalized_means, t):
        """Return v = z z^T (N, K, K) of the means, reduced by a grouped convolution."""
        reduce = t.reduce_weight.squeeze(2)
        # Not unflatten, which ONNX has from opset 13 on.
        runs = normalized_means.reshape(*normalized_means.shape[:2], *reduce.shape)
        z = (runs * reduce).sum(-1)
        return project(z, z.unsqueeze(1))
