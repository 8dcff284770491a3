"""The auto-encoder by which ILM Norm and its predecessor predict scale and shift."""

import math

import torch
from torch import Tensor, nn

from ..ops import coarsen, duplicate
from .base import (
    AdaptiveNorm,
    Projection,
    check_choice,
    check_divides,
    check_eps,
    check_positive,
    project,
)


class AutoencoderNorm(AdaptiveNorm):
    """A group normalization whose weight and bias are moved by an auto-encoder of key features.

    Key features are the mean and the variance of each of N key groups of channels (Eq. 3 of either
    paper). One encoder W1 embeds both, two decoders W2 and W3 lead back to N values each, which are
    duplicated to C channels. No map has a bias.

    Parameters: ``weight``, ``bias`` (C), as in nn.GroupNorm; ``encode.weight`` W1 (M, N);
    ``decode_mean.weight`` W2 and ``decode_var.weight`` W3 (N, M). Buffer: ``omega_offset``, a
    scalar, subtracted from omega.

    M is ``hidden``, or ``max(2, N // 16)``, which reproduces the papers' parameter counts.
    """

    omega_offset: Tensor

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        num_key_groups: int,
        eps: float,
        hidden: int | None,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        name = type(self).__name__
        check_divides(name, num_channels, "num_groups", num_groups)
        check_choice(name, "init", init, ("default", "normal", "identity"))
        if hidden is None:
            hidden = max(2, num_key_groups // 16)
        check_positive(name, "hidden", hidden)
        check_eps(name, eps)
        super().__init__(num_groups, num_channels, eps, device=device, dtype=dtype)
        self.num_key_groups = num_key_groups
        self.hidden = hidden
        self.init = init
        self.moment_groups = math.lcm(num_groups, num_key_groups)

        encoder = "normal" if init == "normal" else "default"
        decoder = "zeros" if init == "identity" else encoder
        factory = {"device": device, "dtype": dtype}
        self.encode = Projection(num_key_groups, hidden, init=encoder, **factory)
        self.decode_mean = Projection(hidden, num_key_groups, init=decoder, **factory)
        self.decode_var = Projection(hidden, num_key_groups, init=decoder, **factory)
        self.register_buffer("omega_offset", torch.full((), self.initial_offset, **factory))

    @property
    def initial_offset(self) -> float:
        """What zero decoders leave in omega, sigmoid(0), where it is not wanted."""
        return 0.5 if self.init == "identity" else 0.0

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "omega_offset"):
            self.omega_offset.fill_(self.initial_offset)

    def rescale_tensors(self) -> tuple[Tensor, ...]:
        return (
            self.weight,
            self.bias,
            self.encode.weight,
            self.decode_mean.weight,
            self.decode_var.weight,
            self.omega_offset,
        )

    def decode(self, key_features: Tensor, encode: Tensor, decoder: Tensor) -> Tensor:
        """(N, key groups) to (N, C): Eqs. 4 and 5 of either paper, before the last activation."""
        embedded = nn.functional.relu(project(key_features, encode))
        return duplicate(project(embedded, decoder), self.num_channels)

    def standardize_and_rescale(
        self, mean: Tensor, var: Tensor, omega: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 1 and 2: the underlying group normalization, rescaled by (N, C) omega and beta."""
        group_mean, group_var = coarsen(mean, var, self.num_groups)
        c = self.num_channels
        scale = omega * duplicate((group_var + self.eps).rsqrt(), c)
        return scale, scale * (duplicate(mean, c) - duplicate(group_mean, c)) + beta

    def key_features(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 3: (N, key groups) means and biased variances."""
        return coarsen(mean, var, self.num_key_groups)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"num_key_groups={self.num_key_groups}, hidden={self.hidden}, init={self.init!r}"
        )
