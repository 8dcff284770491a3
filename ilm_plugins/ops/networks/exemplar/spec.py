from typing import ClassVar, NamedTuple

from ...engine.network import BATCH, Network
from ..mixture.spec import Mixture


class _Options(NamedTuple):
    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    hidden: int  #: values between the two linear maps
    reduction: int  #: unused by "no_conv"
    activation: str
    ratio_net: str
    shared_affine: bool
    momentum: float  #: of the running statistics


class Exemplar(Mixture, _Options, Network):
    """The ``rescale`` of EN, see layers/exemplar.py."""

    __slots__ = ()
    parameters = (
        *("weight", "bias", "reduce.weight"),
        *("expand.weight", "expand.bias", "ratio.weight", "ratio.bias"),
    )
    buffers: ClassVar[tuple[str, ...]] = BATCH
    optional = {"reduce.weight": lambda self: self.ratio_net != "conv"}  # noqa: RUF012

    def sizes(self, channels: int) -> dict[str, int]:
        k, hidden = len(self.normalizers), self.hidden
        affine = channels if self.shared_affine else k * channels
        return {
            "weight": affine,
            "bias": affine,
            "reduce.weight": channels,
            "expand.weight": hidden * (channels if self.ratio_net == "mlp" else k * k),
            "expand.bias": hidden,
            "ratio.weight": k * hidden,
            "ratio.bias": k,
            **dict.fromkeys(BATCH, channels),
        }

    def gradient_sizes(self, channels: int) -> dict[str, int]:
        return super().gradient_sizes(channels) | {"bias": channels}  # its rows have the same

    def check(self, channels: int, num_groups: int) -> None:
        reduces = self.ratio_net != "no_conv"
        if reduces and (self.reduction < 1 or channels % self.reduction):
            raise RuntimeError(
                f"reduction={self.reduction} does not fit {channels} channels; build a new layer "
                "instead of changing its options"
            )
        super().check(channels, num_groups)
