from typing import NamedTuple

from ...engine.network import Network


class _Options(NamedTuple):
    num_groups: int  #: of the standardization
    eps: float
    num_affine: int  #: K
    feature_eps: float  #: added to the variance in the attention's features


class Attentive(_Options, Network):
    """The ``rescale`` of AN, see layers/attentive.py."""

    __slots__ = ()
    parameters = (
        *("weight", "bias", "attention.weight", "attention.bias"),
        *("pairs.weight", "pairs.bias"),
    )

    def sizes(self, channels: int) -> dict[str, int]:
        rows = self.num_affine * channels
        return {
            "weight": channels,
            "bias": channels,
            "attention.weight": rows,
            "attention.bias": self.num_affine,
            "pairs.weight": rows,
            "pairs.bias": rows,
        }
