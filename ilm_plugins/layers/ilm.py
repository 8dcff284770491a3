"""Instance-Level Meta Normalization: Jia, Chen and Chen, CVPR 2019 (arXiv 1904.03516)."""

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import OptionError
from ..ops import Autoencoder
from .autoencoder import AutoencoderNorm
from .options import check_choice, fit_width
from .projection import ACTIVATIONS


class ILMGroupNorm(AutoencoderNorm, nn.GroupNorm):
    r"""Group normalization with Instance-Level Meta rescaling, ILM+GN.

    With :math:`\mu, \gamma` the means and biased variances of each instance's N key groups (Eq. 3):

    .. math::

        \beta  &= \tanh(W_2\, \mathrm{ReLU}(W_1 \mu))\!\uparrow + B_\beta \\
        \omega &= \mathrm{sigmoid}(W_3\, \mathrm{ReLU}(W_1 \gamma))\!\uparrow + B_\omega \\
        y      &= \omega\, \mathrm{GN}(x) + \beta

    (Eqs. 4 to 6 and 2.) ``weight`` is :math:`B_\omega` and ``bias`` :math:`B_\beta`, so a GroupNorm
    checkpoint loads.

    Args:
        key_group_size: channels in a key group, C / N; by default 16, or less where 16 does not
            divide C; 1 for pix2pix and for the "Instance Normalization" strategy of the paper's
            Table 8.
        activations: of the values decoded from (mean, variance), a switch of Table 7; each "tanh",
            "sigmoid", "relu", "leaky_relu", "relu6" or "identity".

    For the other parameters and options see
    :class:`~ilm_plugins.layers.autoencoder.AutoencoderNorm`.

    Example:
        >>> layer = ILMGroupNorm(64)
        >>> layer(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    mean_drives = "beta"
    papers_form: Mapping[str, object] = {"activations": ("tanh", "sigmoid")}
    network = Autoencoder
    fits_width: Mapping[str, int] = {"num_groups": 32, "key_group_size": 16}

    def __init__(
        self,
        num_channels: int,
        num_groups: int | str = "auto",
        eps: float = 1e-5,
        *,
        key_group_size: int | str = "auto",
        activations: tuple[str, str] = ("tanh", "sigmoid"),
        hidden: int | None = None,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = type(self).__name__
        num_groups, key_group_size = fit_width(
            type(self), num_channels, num_groups=num_groups, key_group_size=key_group_size
        )
        if not isinstance(activations, list | tuple) or len(activations) != 2:
            problem = "is not a pair; give two names, for (mean, variance)"
            raise OptionError(f"{name}: activations={activations!r} {problem}")
        for_mean, for_var = activations
        check_choice(name, "activations", for_mean, ACTIVATIONS)
        check_choice(name, "activations", for_var, ACTIVATIONS)
        super().__init__(
            num_channels,
            num_groups,
            num_channels // key_group_size,
            eps,
            hidden=hidden,
            init=init,
            device=device,
            dtype=dtype,
        )
        self.key_group_size = key_group_size
        self.activations = for_mean, for_var
        self.check_form()

    def predict(self, mean, var, t):
        from_mean, from_var = self.decode(mean, var, t)
        for_mean, for_var = (ACTIVATIONS[name] for name in self.activations)
        beta = for_mean(from_mean) + self.by_key_group(t.bias)
        omega = (for_var(from_var) - t.omega_offset) + self.by_key_group(t.weight)
        return omega, beta


class _ILMOfFixedGroups(ILMGroupNorm, nn.GroupNorm):
    #: Groups of the standardization; None stands for the number of channels.
    fixed_groups: int | None = None

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        *,
        key_group_size: int | str = "auto",
        activations: tuple[str, str] = ("tanh", "sigmoid"),
        hidden: int | None = None,
        init: str = "default",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_channels,
            self.fixed_groups or num_channels,
            eps,
            key_group_size=key_group_size,
            activations=activations,
            hidden=hidden,
            init=init,
            device=device,
            dtype=dtype,
        )


class ILMInstanceNorm(_ILMOfFixedGroups, nn.GroupNorm):
    """Instance normalization with Instance-Level Meta rescaling, ILM+IN.

    It is :class:`ILMGroupNorm` with each channel standardized by itself. The standardized value of
    a map with a single pixel is 0, hence the output beta.

    Example:
        >>> layer = ILMInstanceNorm(64, key_group_size=1)
        >>> layer(torch.randn(1, 64, 8, 8, 8)).shape  # a volume
        torch.Size([1, 64, 8, 8, 8])
    """


class ILMLayerNorm(_ILMOfFixedGroups, nn.GroupNorm):
    """Layer normalization with Instance-Level Meta rescaling, ILM+LN.

    It is :class:`ILMGroupNorm` with each instance standardized as one group.

    Example:
        >>> layer = ILMLayerNorm(64)
        >>> layer(torch.randn(2, 64, 500)).shape  # one spatial dimension
        torch.Size([2, 64, 500])
    """

    fixed_groups = 1
