from collections.abc import Mapping, Sequence
from typing import ClassVar

NORMALIZERS = "IN", "LN", "BN", "GN"


class Mixture:
    """A mixture of normalizers, whose last buffers are BN's statistics."""

    __slots__ = ()
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"normalizers": NORMALIZERS}
    normalizers: tuple[str, ...]

    @property
    def mixes_batch(self) -> bool:
        return "BN" in self.normalizers
