"""Associate Normalization, ILM Norm's predecessor: submission to ICLR 2019."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..ops import Autoencoder
from .autoencoder import AutoencoderNorm
from .options import check_choice, fit_width
from .projection import sigmoid


class AssocNorm(AutoencoderNorm, nn.GroupNorm):
    r"""Group normalization with associated rescaling.

    With :math:`\mu, \gamma` the means and biased variances of each instance's N key groups (Eq. 3):

    .. math::

        \omega &= \mathrm{sigmoid}(W_2\, \mathrm{ReLU}(W_1 \mu))\!\uparrow + B_\omega \\
        \beta  &= \tanh(W_3\, \mathrm{ReLU}(W_1 \gamma))\!\uparrow + B_\beta \\
        y      &= \omega\, \mathrm{GN}(x) + \beta

    (Eqs. 4 to 6 and 2; the repetition to C entries, :math:`\uparrow`, and C entries of B, which
    give the parameter counts of Table 4, are from ILM Norm's Eq. 6.)

    Args:
        num_key_groups: N, the number of key groups; by default 32, or less where 32 does not divide
            C; None for as many as channels (Table 4, second row).
        combine: how omega and beta are computed from the decoded vector WE, the activation a and
            the learned B, the four forms of Table 5: "a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B".

    For parameters and the other options see
    :class:`~ilm_plugins.layers.autoencoder.AutoencoderNorm`.

    Example:
        >>> layer = AssocNorm(64)
        >>> layer(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    mean_drives = "omega"
    papers_form: Mapping[str, object] = {"combine": "a(WE)+B"}
    network = Autoencoder
    fits_width: Mapping[str, int] = {"num_groups": 32, "num_key_groups": 32}

    def __init__(
        self,
        num_channels: int,
        num_groups: int | str = "auto",
        eps: float = 1e-5,
        *,
        num_key_groups: int | str | None = "auto",
        combine: str = "a(WE)+B",
        hidden: int | None = None,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        if num_key_groups is None:
            num_key_groups = num_channels
        num_groups, num_key_groups = fit_width(
            type(self), num_channels, num_groups=num_groups, num_key_groups=num_key_groups
        )
        check_choice(name, "combine", combine, COMBINE)
        super().__init__(
            num_channels,
            num_groups,
            num_key_groups,
            eps,
            hidden=hidden,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.combine = combine
        self.check_form()

    def predict(self, mean, var, t):
        from_mean, from_var = self.decode(mean, var, t)
        combine = COMBINE[self.combine]

        def activate(decoded: Tensor) -> Tensor:
            return sigmoid(decoded) - t.omega_offset

        omega = combine(activate, from_mean, self.by_key_group(t.weight))
        beta = combine(torch.tanh, from_var, self.by_key_group(t.bias))
        return omega, beta


#: Table 5: functions of the activation a, the decoded WE (N, key groups, 1) and the learned B
#: (key groups, C / key groups), which return omega or beta (N, key groups, C / key groups).
COMBINE = {
    # The gradient of B is 0 instead of None: DistributedDataParallel waits for every parameter.
    "a(WE)": lambda a, decoded, b: a(decoded) + 0 * b,
    "a(WE+B)": lambda a, decoded, b: a(decoded + b),
    "a(WE)*B": lambda a, decoded, b: a(decoded) * b,
    "a(WE)+B": lambda a, decoded, b: a(decoded) + b,
}
