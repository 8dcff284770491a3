"""The base class of ILM Norm and AssocNorm, with the auto-encoder that predicts scale and shift."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..ops import Autoencoder, cast, coarsen, duplicate, moments, restandardize
from .base import AdaptiveNorm
from .options import check_choice, check_eps, check_positive
from .projection import Projection, project


class AutoencoderNorm(AdaptiveNorm):
    """Group normalization with an auto-encoder, whose outputs are added to weight and bias.

    Key features are the mean and the variance of each of N key groups of channels (Eq. 3 of either
    paper). One encoder W1 embeds both in M values. Decoder W2 maps the mean's embedding back to N
    values, decoder W3 the variance's. Each value is repeated for the channels of its key group. No
    map has a bias.

    Parameters: ``weight``, ``bias`` (C), as in nn.GroupNorm; ``encode.weight`` W1 (M, N);
    ``decode_mean.weight`` W2 and ``decode_var.weight`` W3 (N, M). Buffer: ``omega_offset``, a
    scalar that is subtracted from omega before the weight is added, which keeps its digits.

    For the other arguments see :class:`~ilm_plugins.layers.base.AdaptiveNorm`.

    Args:
        num_groups: groups of the standardization.
        hidden: M, the number of values that the encoder returns; None is ``max(2, N // 16)``, which
            gives the papers' parameter counts.
        init: "default" (as nn.Linear, and as in the authors' code) or "identity": the layer starts
            as exactly the norm that it replaces, whichever weight and bias are loaded. Decoders are
            then zero, and ``omega_offset`` is 1/2. This exists for the papers' equations, not for
            the variants of their tables.
    """

    network = Autoencoder
    omega_offset: Tensor
    #: "beta" or "omega": what the mean predicts; the variance predicts the other.
    mean_drives: str
    #: Option that has the variants of a table of the paper -> its value in the equations.
    papers_form: Mapping[str, object] = {}

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        num_key_groups: int,
        eps: float,
        *,
        hidden: int | None = None,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        check_choice(name, "init", init, ("default", "identity"))
        if hidden is None:
            hidden = max(2, num_key_groups // 16)
        hidden, eps = check_positive(name, "hidden", hidden), check_eps(name, eps)
        num_groups, num_channels = int(num_groups), int(num_channels)  # also of NumPy's numbers
        super().__init__(num_groups, num_channels, eps, device=device, dtype=dtype)
        self.num_key_groups = num_key_groups = int(num_key_groups)
        self.hidden = hidden
        self.init = init
        # The largest groups that divide both the key groups and the groups of the GN.
        self.moment_groups = math.lcm(num_groups, num_key_groups)

        decoder = "zeros" if init == "identity" else "default"
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encode = Projection(num_key_groups, hidden, **factory)
        self.decode_mean = Projection(hidden, num_key_groups, init=decoder, **factory)
        self.decode_var = Projection(hidden, num_key_groups, init=decoder, **factory)
        # Zero decoders leave sigmoid(0) in omega.
        offset = 0.5 if init == "identity" else 0.0
        self.initial_values = {**self.initial_values, "omega_offset": offset}
        self.register_buffer("omega_offset", torch.full((), offset, **factory))

    @property
    def has_papers_form(self) -> bool:
        return all(getattr(self, option) == value for option, value in self.papers_form.items())

    def check_form(self) -> None:
        """Raise OptionError if the layer should start as the identity, but is a variant."""
        for option, value in self.papers_form.items():
            if self.init == "identity" and getattr(self, option) != value:
                raise OptionError(
                    f"{type(self).__name__}: init='identity' does not exist for "
                    f"{option}={getattr(self, option)!r}; set {option}={value!r} or init='default'"
                )

    def rescaling(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the omega and beta (N, C) that rescale the standardized instances of x (Eq. 2).

        The auto-encoder's predictions are omega - ``weight`` and beta - ``bias``.
        """
        self.check_input(x)
        mean, var = moments(x, self.moment_groups)
        omega, beta = self.predict(
            mean, var, self.network.named(*cast(self.rescale_tensors(), mean.dtype))
        )
        return omega.flatten(1), beta.flatten(1)

    def rescale(self, mean: Tensor, var: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        # Eqs. 1 and 2: y = omega * ratio * x_hat + (beta + omega * offset), see restandardize.
        omega, beta = self.predict(mean, var, self.network.named(*tensors))
        omega, beta = omega.flatten(1), beta.flatten(1)
        if self.moment_groups == self.num_groups:  # ratio 1, offset 0
            return omega, beta
        coarse = restandardize(mean, var, self.num_groups, self.eps)
        ratio, offset = (duplicate(t, self.num_channels) for t in coarse)
        return omega * ratio, beta + omega * offset

    def predict(self, mean: Tensor, var: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Compute omega and beta, (N, N', C / N') for N' key groups, from fine groups' moments.

        ``t`` has the network's tensors by name.
        """
        raise NotImplementedError

    def decode(self, mean: Tensor, var: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Return what W2 and W3 decode from mean and variance, (N, key groups, 1) (Eqs. 3 to 5)."""
        # Sum over the last dimension only, without matrix products: in any other sum, the order
        # in which torch adds depends on a value's position in the tensor, hence in the batch.
        features = torch.stack(coarsen(mean, var, self.num_key_groups))
        embedded = torch.relu(project(features, t.encode_weight))
        decoders = torch.stack((t.decode_mean_weight, t.decode_var_weight)).unsqueeze(1)
        from_mean, from_var = project(embedded, decoders).unsqueeze(3).unbind(0)
        return from_mean, from_var

    def by_key_group(self, parameter: Tensor) -> Tensor:
        return parameter.view(self.num_key_groups, -1)
