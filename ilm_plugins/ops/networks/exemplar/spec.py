from typing import ClassVar, NamedTuple

from ...engine.network import BATCH, Network
from ..mixed_normalizers import Mixture


class _Options(NamedTuple):
    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    momentum: float  #: of the running statistics
    hidden: int  #: values between the two linear maps
    reduction: int  #: r


class Exemplar(Mixture, _Options, Network):
    """The ``rescale`` of EN, see layers/exemplar.py."""

    __slots__ = ()
    parameters = (
        *("weight", "bias", "reduce.weight"),
        *("expand.weight", "expand.bias", "ratio.weight", "ratio.bias"),
    )
    buffers: ClassVar[tuple[str, ...]] = BATCH

    def sizes(self, channels: int) -> dict[str, int]:
        k, hidden = len(self.normalizers), self.hidden
        return {
            "weight": k * channels,
            "bias": k * channels,
            "reduce.weight": channels,
            "expand.weight": hidden * k * k,
            "expand.bias": hidden,
            "ratio.weight": k * hidden,
            "ratio.bias": k,
            **dict.fromkeys(BATCH, channels),
        }

    def gradient_sizes(self, channels: int) -> dict[str, int]:
        return super().gradient_sizes(channels) | {"bias": channels}  # its rows have the same

    def check(self, channels: int, num_groups: int) -> None:
        if self.reduction < 1 or channels % self.reduction:
            raise RuntimeError(
                f"reduction={self.reduction} does not fit {channels} channels; build a new layer "
                "instead of changing its options"
            )
        super().check(channels, num_groups)
