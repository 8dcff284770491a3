"""Attentive Normalization: Li, Sun and Wu, ECCV 2020."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import Attentive, restandardize
from .base import AdaptiveNorm
from .children import Child
from .options import check_choice, check_eps, check_positive, fit_width
from .projection import Projection, project


class AffinePairs(Child):
    """K scales ``weight`` (K, C), drawn around 1, and shifts ``bias`` (K, C), drawn around 0."""

    bias: nn.Parameter

    def __init__(self, num_affine: int, num_channels: int, init: str, **factory) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.empty(num_affine, num_channels, **factory))
        self.bias = nn.Parameter(torch.empty(num_affine, num_channels, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for rows, center in ((self.weight, 1.0), (self.bias, 0.0)):
            nn.init.normal_(rows, center, 0.1)
            if self.init == "identity":  # attentions of 1/2 mix them to 1 and 0
                rows.copy_(balanced(rows, center))

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


def balanced(rows: Tensor, total: float) -> Tensor:
    """Return rows (K, C), all shifted by one vector, so that half of their sum is ``total``."""
    # Their differences stay: equal rows would get equal gradients, and remain equal.
    for _ in range(2):  # the second pass removes the rounding error of the first mean
        rows = rows - rows.mean(0)
    return rows + 2 * total / len(rows)


class AttentiveNorm(AdaptiveNorm, nn.GroupNorm):
    r"""Group normalization with affine pairs mixed by attention, the paper's AN (w/ GN).

    With :math:`\mu, \sigma^2` (C) the means and biased variances of an instance's channels, K pairs
    of a scale :math:`W_k` and a shift :math:`B_k` (C) are mixed by attentions :math:`a` (K):

    .. math::

        a &= \mathrm{hardsigmoid}\left(A \frac{\mu}{\sqrt{\sigma^2 + 10^{-3}}} + b\right),
            \qquad \mathrm{hardsigmoid}(t) = \mathrm{ReLU6}(t + 3) / 6 \\
        y &= \Big(\sum_k a_k W_k\Big) \mathrm{GN}(x) + \sum_k a_k B_k

    This is the form that the authors' code uses in box heads: the attentions depend only on the
    instance. Unlike here, that code computes the attention's variances unbiased (divided by n - 1).

    Parameters: ``weight``, ``bias`` (C), GN's own; ``attention.weight`` A (K, C) and
    ``attention.bias`` b (K); ``pairs.weight`` W and ``pairs.bias`` B (K, C). The authors' GN has no
    weight and bias. Here they start as 1 and 0, so that GroupNorm checkpoints load; the pairs can
    absorb them.

    Args:
        num_groups: groups of the standardization; by default 32, or less where 32 does not divide
            C.
        num_affine: K, the number of pairs; in the four norms of the authors' box head 10, 10, 20
            and 20.
        init: "default" (W normally distributed around 1, B around 0, with a deviation of 0.1; A and
            b as in nn.Linear) or "identity": the layer starts as the GroupNorm that it replaces,
            whichever weight and bias are loaded. A and b are then zero, so that all attentions are
            1/2; the pairs are chosen so that they mix to a scale of 1 and a shift of 0.

    For the other options see :class:`~ilm_plugins.layers.base.AdaptiveNorm`.

    Example:
        >>> layer, x = AttentiveNorm(64, init="identity"), torch.randn(2, 64, 7, 7)
        >>> torch.allclose(layer(x), torch.nn.GroupNorm(32, 64)(x), atol=1e-5)
        True
    """

    network = Attentive
    #: Added to the variance in the attention's features, as in the authors' code.
    feature_eps = 1e-3

    def __init__(
        self,
        num_channels: int,
        num_groups: int | str = "auto",
        eps: float = 1e-5,
        *,
        num_affine: int = 10,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        (num_groups,) = fit_width(type(self), num_channels, num_groups=num_groups)
        num_affine = check_positive(name, "num_affine", num_affine)
        check_choice(name, "init", init, ("default", "identity"))
        eps = check_eps(name, eps)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        num_channels = int(num_channels)  # also of a number of NumPy
        super().__init__(num_groups, num_channels, eps, **factory)
        self.moment_groups = num_channels
        self.num_affine = num_affine
        self.init = init
        maps = "zeros" if init == "identity" else "default"
        self.attention = Projection(num_channels, num_affine, bias=True, init=maps, **factory)
        self.pairs = AffinePairs(num_affine, num_channels, init, **factory)

    def rescale(self, mean, var, *tensors):
        t = self.network.named(*tensors)
        features = mean * (var + self.feature_eps).rsqrt()
        logits = project(features, t.attention_weight, t.attention_bias)
        attentions = nn.functional.relu6(logits + 3) / 6
        pairs = torch.cat((t.pairs_weight, t.pairs_bias), 1)
        # A sum and not a matrix product, in which an instance's result depends on its batch.
        mixed_scale, mixed_shift = (attentions.unsqueeze(2) * pairs).sum(1).chunk(2, 1)
        ratio, offset = restandardize(mean, var, self.num_groups, self.eps)
        scale = mixed_scale * t.weight * ratio
        return scale, mixed_scale * (t.weight * offset + t.bias) + mixed_shift
