class Mixture:
    """A mixture of normalizers, whose last buffers are BN's statistics."""

    __slots__ = ()
    normalizers: tuple[str, ...]

    @property
    def mixes_batch(self) -> bool:
        return "BN" in self.normalizers
