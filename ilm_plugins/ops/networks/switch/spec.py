from typing import ClassVar, NamedTuple

from ...engine.network import BATCH, Network
from ..mixed_normalizers import Mixture


class _Options(NamedTuple):
    normalizers: tuple[str, ...]
    num_groups: int  #: of "GN"
    eps: float
    momentum: float  #: of the running statistics


class Switch(Mixture, _Options, Network):
    """The ``rescale`` of SN, see layers/switchable.py."""

    __slots__ = ()
    parameters = "weight", "bias", "mean_weight", "var_weight"
    buffers: ClassVar[tuple[str, ...]] = BATCH

    def sizes(self, channels: int) -> dict[str, int]:
        k = len(self.normalizers)
        sizes = {"weight": channels, "bias": channels, "mean_weight": k, "var_weight": k}
        return sizes | dict.fromkeys(BATCH, channels)


class SparseSwitch(Switch):
    """The ``rescale`` of SSN, see layers/sparse.py."""

    __slots__ = ()
    buffers = "radius", "mean_fixed", "var_fixed", *BATCH

    def sizes(self, channels: int) -> dict[str, int]:
        k = len(self.normalizers)
        return super().sizes(channels) | {"radius": 1, "mean_fixed": k, "var_fixed": k}
