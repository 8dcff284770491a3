"""The auto-encoder by which ILM Norm and its predecessor predict scale and shift."""

import math

import torch
from torch import Tensor

from ..ops import Autoencoder, cast, coarsen, duplicate, moments
from .base import (
    AdaptiveNorm,
    Projection,
    check_choice,
    check_device,
    check_divides,
    check_dtype,
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
    scalar, subtracted from what omega's activation gives: before the weight is added, which so
    keeps its digits however small it is.

    M is ``hidden``, or ``max(2, N // 16)``, which reproduces the papers' parameter counts.
    """

    omega_offset: Tensor
    #: "beta" or "omega": which of the two the mean drives; the variance drives the other.
    mean_drives: str
    #: Whether the layer is as in the paper's equations, with none of its tables' other forms.
    has_papers_form: bool

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
        check_device(name, device)
        check_dtype(name, dtype)
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

    def rescaling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The omega and beta of each instance, by which the standardized x is rescaled (Eq. 2).

        Their distances to ``weight`` and ``bias``, B_omega and B_beta, are what the auto-encoder
        has made of the instance.

        Args:
            x: (N, C, *), the layer's input.

        Returns:
            omega, beta: (N, C) each, at least float32.
        """
        self.check_input(x)
        mean, var = moments(x, self.moment_groups)
        omega, beta = self.predict(mean, var, *cast(self.rescale_tensors(), mean.dtype))
        return omega.flatten(1), beta.flatten(1)

    def rescale(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        omega, beta = self.predict(mean, var, *tensors)
        return self.standardize_and_rescale(mean, var, omega, beta)

    def predict(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Eqs. 3 to 6: omega and beta, (N, key groups, C / key groups), of (N, G') moments."""
        raise NotImplementedError

    def decode(
        self, mean: Tensor, var: Tensor, encode: Tensor, decode_mean: Tensor, decode_var: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 3 to 5 of either paper, before the last activations, of the mean and the variance.

        Returns:
            (N, key groups, 1), both: to be broadcast to the channels of a key group (Eq. 6).
        """
        # Not by products of matrices, and summed over the last dimension: over a leading one torch
        # adds in an order that depends on where in a tensor, hence in a batch, a value is.
        features = torch.stack(coarsen(mean, var, self.num_key_groups))
        embedded = torch.relu(project(features, encode))
        decoders = torch.stack((decode_mean, decode_var)).unsqueeze(1)
        return project(embedded, decoders).unsqueeze(3).unbind(0)

    def by_key_group(self, parameter: Tensor) -> Tensor:
        """(C) as (key groups, C / key groups)."""
        return parameter.view(self.num_key_groups, -1)

    def standardize_and_rescale(
        self, mean: Tensor, var: Tensor, omega: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 1 and 2: the underlying group normalization, rescaled by omega and beta.

        Args:
            mean, var: (N, G') moments of the fine groups, by which x is standardized already.
            omega, beta: (N, key groups, C / key groups).
        """
        n, c = mean.shape[0], self.num_channels
        if self.moment_groups == self.num_groups:
            return omega.reshape(n, c), beta.reshape(n, c)
        of_fine = (n, self.moment_groups, c // self.moment_groups)
        omega, beta = omega.reshape(of_fine), beta.reshape(of_fine)
        # By its larger group x is standardized to ratio * (by its fine group) + offset.
        of_groups = coarsen(mean, var, self.num_groups)
        group_mean, group_var = (duplicate(t, self.moment_groups) for t in of_groups)
        rstd = (group_var + self.eps).rsqrt()
        ratio, offset = (var + self.eps).sqrt() * rstd, (mean - group_mean) * rstd
        scale = omega * ratio.unsqueeze(2)
        shift = beta + omega * offset.unsqueeze(2)
        return scale.view(n, c), shift.view(n, c)

    def autoencoder(self, activations: tuple[str, str], combine: str) -> Autoencoder:
        """``rescale``, described for kernels that compute it themselves."""
        return Autoencoder(
            self.num_groups,
            self.num_key_groups,
            self.hidden,
            self.eps,
            self.mean_drives,
            activations,
            combine,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"num_key_groups={self.num_key_groups}, hidden={self.hidden}, init={self.init!r}"
        )
