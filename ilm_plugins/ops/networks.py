"""Descriptions of rescale functions, for kernels that compute them themselves."""

from typing import NamedTuple

from torch import nn


class Autoencoder(NamedTuple):
    """The ``rescale`` of ILM Norm and AssocNorm, see layers/autoencoder.py.

    Its tensors are weight, bias (C), encode (M, key groups), decode_mean, decode_var
    (key groups, M) and omega_offset (a scalar), in this order.
    """

    num_groups: int  #: of the standardization
    num_key_groups: int
    hidden: int  #: M
    eps: float
    mean_drives: str  #: "beta" or "omega"; the variance drives the other
    activations: tuple[str, str]  #: for (mean, variance)
    combine: str  #: of AssocNorm's Table 5; "a(WE)+B" is ILM Norm's

    @classmethod
    def of(cls, layer: nn.Module, activations: tuple[str, str], combine: str) -> "Autoencoder":
        """That of an AutoencoderNorm."""
        return cls(
            layer.num_groups,
            layer.num_key_groups,
            layer.hidden,
            layer.eps,
            layer.mean_drives,
            activations,
            combine,
        )
