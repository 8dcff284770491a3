"""Associate Normalization, ILM Norm's predecessor: submission to ICLR 2019."""

import torch
from torch import Tensor, nn

from ..ops import Autoencoder
from .autoencoder import AutoencoderNorm
from .base import OptionError, check_choice, check_divides, sigmoid


class AssocNorm(AutoencoderNorm, nn.GroupNorm):
    r"""Group normalization with associated rescaling.

    With :math:`\mu, \gamma` the means and biased variances of each instance's key groups (Eq. 3):

    .. math::

        \omega &= \mathrm{sigmoid}(W_2\, \mathrm{ReLU}(W_1 \mu))\!\uparrow + B_\omega \\
        \beta  &= \tanh(W_3\, \mathrm{ReLU}(W_1 \gamma))\!\uparrow + B_\beta \\
        y      &= \omega\, \mathrm{GN}(x) + \beta

    (Eqs. 4 to 6 and 2.) Here the mean drives omega and the variance beta, the other way round than
    in :class:`~ilm_plugins.ILMGroupNorm`; the parameters have the same names and shapes.

    Shape: input and output (N, C, *), any number of spatial dimensions.

    Args:
        num_channels: C.
        num_groups: groups of the standardization.
        eps: added to the variance.
        num_key_groups: key groups; 32 in the paper, None for one a channel, which is its Table 4's
            second row.
        hidden: length of the embedding; ``max(2, num_key_groups // 16)`` by default, which gives
            Table 4.
        combine: how the decoded vector D and B make omega and beta, the four forms of Table 5:
            "a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B".
        init: "default", "normal" (as the paper says) or "identity", see ILMGroupNorm.

    Raises:
        ValueError: num_channels is not divisible by num_groups or num_key_groups, an option is
            unknown, or ``init="identity"`` is asked of a form other than "a(WE)+B".
    """

    mean_drives = "omega"

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        *,
        num_key_groups: int | None = 32,
        hidden: int | None = None,
        combine: str = "a(WE)+B",
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        if num_key_groups is None:
            num_key_groups = num_channels
        check_divides(name, num_channels, "num_key_groups", num_key_groups)
        check_choice(name, "combine", combine, COMBINE)
        if init == "identity" and combine != "a(WE)+B":
            raise OptionError(
                f"{name}: init='identity' does not exist for combine={combine!r}; "
                "set combine='a(WE)+B' or init='default'"
            )
        super().__init__(num_channels, num_groups, num_key_groups, eps, hidden, init, device, dtype)
        self.combine = combine

    @property
    def has_papers_form(self) -> bool:
        return self.combine == "a(WE)+B"

    def network(self) -> Autoencoder:
        return self.autoencoder(("sigmoid", "tanh"), combine=self.combine)

    def predict(self, mean, var, weight, bias, encode, decode_mean, decode_var, omega_offset):
        from_mean, from_var = self.decode(mean, var, encode, decode_mean, decode_var)
        combine = COMBINE[self.combine]

        def activate(decoded: Tensor) -> Tensor:
            return sigmoid(decoded) - omega_offset

        omega = combine(activate, from_mean, self.by_key_group(weight))
        beta = combine(torch.tanh, from_var, self.by_key_group(bias))
        return omega, beta

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, combine={self.combine!r}"


def _without_bias(a, decoded: Tensor, b: Tensor) -> Tensor:
    # B gets a gradient of 0 rather than none: distributed training waits for every parameter.
    return a(decoded) + 0 * b


#: Table 5: activation, decoded W E (N, key groups, 1), learned B (key groups, C / key groups) ->
#: omega or beta (N, key groups, C / key groups).
COMBINE = {
    "a(WE)": _without_bias,
    "a(WE+B)": lambda a, decoded, b: a(decoded + b),
    "a(WE)*B": lambda a, decoded, b: a(decoded) * b,
    "a(WE)+B": lambda a, decoded, b: a(decoded) + b,
}
