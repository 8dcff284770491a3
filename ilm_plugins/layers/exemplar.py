"""Exemplar Normalization: Zhang et al., CVPR 2020."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..ops import Exemplar, cast, moments
from .mixture import MixtureNorm, weighted_sum
from .options import check_choice, check_positive, fit_width
from .projection import ACTIVATIONS, Projection, project

#: Values of the options ``ratio_net`` and ``activation``.
RATIO_NETS = "conv", "no_conv", "mlp"
RATIO_ACTIVATIONS = "tanh", "relu"


class ExemplarNorm(MixtureNorm, nn.GroupNorm):
    r"""Exemplar normalization: each sample's own mixture of normalized maps.

    .. math::

        y_n = \sum_k \left[ \gamma_k \lambda_{nk} \frac{x_n - \mu_k}{\sigma_k} + \beta_k \right],
        \qquad \sigma_k = \sqrt{\mathrm{Var}_k + \epsilon}

    (Eq. 3). With x standardized by channels, :math:`\hat x = (x - \mu_{IN}) / \sigma_{IN}`,

    .. math::

        \frac{x - \mu_k}{\sigma_k}
            = \frac{\sigma_{IN}}{\sigma_k} \hat x + \frac{\mu_{IN} - \mu_k}{\sigma_k},

    hence :math:`y = \mathrm{scale} \cdot \hat x + \mathrm{shift}` with

    .. math::

        \mathrm{scale} &= \sigma_{IN} \sum_k \lambda_k \gamma_k / \sigma_k \\
        \mathrm{shift} &= \sum_k \lambda_k \gamma_k (\mu_{IN} - \mu_k) / \sigma_k + \sum_k \beta_k

    The ratios :math:`\lambda_n` of sample n come from its spatial means :math:`\mu_{IN}` (C) in
    three steps (Section 3.3): normalize them by each of the K statistics, as in the shift, and
    reduce the result to z (K, C/r) with a grouped convolution; correlate, :math:`v = z z^T` (K, K);
    then two linear maps with tanh between them, K*K -> pi*K -> K, and softmax. IN's row of z is
    :math:`\mu_{IN} - \mu_{IN} = 0`. So IN's row and column of v are 0, 5 of the 9 entries for
    K = 3, and the columns of ``expand.weight`` that multiply them have no effect.

    Parameters: ``weight``, ``bias`` (K, C); ``reduce.weight`` (C/r, r, 1); ``expand.weight``
    (pi*K, K*K) and ``expand.bias``; ``ratio.weight`` (K, pi*K) and ``ratio.bias``: 2KC + C + 1953
    in all for K = 3, pi = 50 (Table 1, where the last is Psi(3)). ``ratio`` starts at zero, hence
    the ratios at 1/K. The paper initializes all parameters of the ratios with zero, but then only
    ``ratio.bias`` would ever get a gradient, and all samples would have the same ratios. With
    ``ratio_net="mlp"`` ``expand.weight`` is (C/r, C) and ``ratio.weight`` (K, C/r); "mlp" and
    "no_conv" have no ``reduce``. Buffer, beside the mixtures': ``num_batches_tracked``.

    Args:
        reduction: r, how many channels the network of the ratios reduces to one (Table 8): 32 for
            ResNet-50, 16 for BN-Inception, 8 for ShuffleNetV2 x0.5; by default 32, or less where 32
            does not divide C; unused by "no_conv".
        expansion: pi; the first linear map of that network returns pi*K values (Table 7); unused by
            "mlp".
        ratio_net: "conv"; or, of Table 9, "no_conv" (b: correlates the normalized means themselves)
            or "mlp" (a: C -> C/r -> K on the spatial means).
        activation: "tanh" or "relu" (Table 9, c) between the two linear maps.
        shared_affine: one weight and bias (C) for all normalizers (Table 9, d).

    For the other options, evaluation and freezing see
    :class:`~ilm_plugins.layers.mixture.MixtureNorm`.
    """

    network = Exemplar
    optional_tensors = frozenset({"reduce.weight"})
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
        ratio_net: str = "conv",
        activation: str = "tanh",
        shared_affine: bool = False,
        normalizers: Sequence[str] = ("IN", "LN", "BN"),
        num_groups: int | str = "auto",
        sync: bool | distributed.ProcessGroup = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "ratio_net", ratio_net, RATIO_NETS)
        check_choice(name, "activation", activation, RATIO_ACTIVATIONS)
        expansion = check_positive(name, "expansion", expansion)
        if ratio_net != "no_conv" or reduction == "auto":
            (r,) = fit_width(type(self), num_channels, reduction=reduction)
        else:
            r = check_positive(name, "reduction", reduction)
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
        self.reduction = r
        self.expansion = expansion
        self.ratio_net = ratio_net
        self.activation = activation
        self.shared_affine = bool(shared_affine)

        k, c = len(self.normalizers), num_channels
        factory: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        if not shared_affine:
            self.weight = nn.Parameter(self.weight.detach().repeat(k, 1))
            self.bias = nn.Parameter(self.bias.detach().repeat(k, 1))
        if ratio_net == "conv":
            # A row for each group of r channels, in the shape of nn.Conv1d's weights.
            self.reduce = Projection(r, c // r, **factory)
            self.reduce.weight = nn.Parameter(self.reduce.weight.detach().unsqueeze(2))
        features, hidden = (c, c // r) if ratio_net == "mlp" else (k * k, expansion * k)
        self.hidden = hidden
        self.expand = Projection(features, hidden, bias=True, **factory)
        self.ratio = Projection(hidden, k, bias=True, init="zeros", **factory)
        has_bn = self.running_mean is not None
        tracked = torch.zeros((), dtype=torch.long, device=self.weight.device) if has_bn else None
        self.register_buffer("num_batches_tracked", tracked)

    def ratios(self, x: Tensor) -> Tensor:
        """Return the ratios of each sample: its weights of the normalizers, which sum to 1.

        BN's statistics are the same as in forward, with one exception: in training with ``sync``,
        only this process's batch counts. Nothing is communicated, and running statistics are not
        updated.

        Args:
            x: (N, C, *), the layer's input.

        Returns:
            (N, K) in the order of ``normalizers``, at least float32.
        """
        self.check_input(x)
        mean, var = moments(x, self.moment_groups)
        t = self.network.named(*cast(self.rescale_tensors(), mean.dtype))
        return self._ratios(mean, self._normalize_means(mean, var, t)[1], t)

    @property
    def has_papers_form(self) -> bool:
        options = self.ratio_net, self.activation, self.shared_affine
        return options == ("conv", "tanh", False)

    def unused_options(self) -> list[str]:
        unused = {"no_conv": ["reduction"], "mlp": ["expansion"]}.get(self.ratio_net, [])
        return [*super().unused_options(), *unused]

    def rescale(self, mean, var, *tensors):
        t = self.network.named(*tensors)
        one_over_sigma, normalized_means = self._normalize_means(mean, var, t)
        ratios = self._ratios(mean, normalized_means, t)
        lambda_gamma = (ratios.unsqueeze(2) * t.weight.view(-1, self.num_channels)).unbind(1)
        sigma_in = (var + self.eps).sqrt()
        scale = sigma_in * weighted_sum(lambda_gamma, one_over_sigma)
        shift = weighted_sum(lambda_gamma, normalized_means.unbind(1))
        return scale, shift + t.bias.view(-1, self.num_channels).sum(0)

    def _normalize_means(self, mean, var, t):
        """Return K tensors 1 / sigma_k, and (mu_IN - mu_k) / sigma_k, (N, K, C)."""
        moments = self.normalizer_moments(mean, var, t.running_mean, t.running_variance)
        means, variances = zip(*moments, strict=True)
        one_over_sigma = [(v + self.eps).rsqrt() for v in variances]
        pairs = zip(means, one_over_sigma, strict=True)
        return one_over_sigma, torch.stack([(mean - m) * rstd for m, rstd in pairs], 1)

    def _ratios(self, mean, normalized_means, t):
        """Return the ratios (N, K) by Section 3.3's network; only "mlp" reads ``mean``."""
        if self.ratio_net == "mlp":
            features = mean
        else:
            z = normalized_means
            if t.reduce_weight is not None:  # a grouped convolution with weights (C/r, r, 1)
                reduce = t.reduce_weight.squeeze(2)
                # Not unflatten, which ONNX has from opset 13 on.
                z = (z.reshape(*z.shape[:2], *reduce.shape) * reduce).sum(-1)
            features = project(z, z.unsqueeze(1)).flatten(1)  # v = z z^T
        hidden = ACTIVATIONS[self.activation](project(features, t.expand_weight, t.expand_bias))
        return project(hidden, t.ratio_weight, t.ratio_bias).softmax(1)
