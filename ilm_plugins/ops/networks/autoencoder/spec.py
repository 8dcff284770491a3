from typing import ClassVar, NamedTuple

from ...engine.network import Network


class _Options(NamedTuple):
    num_groups: int  #: of the standardization
    num_key_groups: int
    hidden: int  #: M
    eps: float
    mean_drives: str  #: "beta" or "omega", what the mean predicts; the variance predicts the other


class Autoencoder(_Options, Network):
    """The ``rescale`` of ILM Norm and AssocNorm, see layers/autoencoder.py."""

    __slots__ = ()
    parameters = "weight", "bias", "encode.weight", "decode_mean.weight", "decode_var.weight"
    buffers = ("omega_offset",)
    choices: ClassVar = {"mean_drives": ("omega", "beta")}

    def sizes(self, channels: int) -> dict[str, int]:
        matrix = self.hidden * self.num_key_groups
        return {
            "weight": channels,
            "bias": channels,
            "encode.weight": matrix,
            "decode_mean.weight": matrix,
            "decode_var.weight": matrix,
            "omega_offset": 1,
        }

    def coarse_groups(self, channels: int) -> tuple[int, ...]:
        return self.num_key_groups, self.num_groups
