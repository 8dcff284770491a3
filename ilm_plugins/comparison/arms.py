"""The arms of a comparison: a norm and own overrides for each compared name."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Arm(NamedTuple):
    """A norm and its own overrides, for one of the compared names."""

    norm: str
    overrides: Sequence[str] = ()


class Arms(dict[str, Arm]):
    """Name -> arm, as ``--arm`` defines it; any other name is a norm without own overrides."""

    def __missing__(self, name: str) -> Arm:
        return Arm(name)

    def settings(self, names: Sequence[str]) -> dict[str, Any]:
        """Return option -> value of the arms with these names, as compare.json has them."""
        return {f"--arm {name}": [self[name].norm, *self[name].overrides] for name in names}
