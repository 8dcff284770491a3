"""The unit of a metric: its ends, its points, its direction and its digits."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import ceil, log10
from statistics import stdev


@dataclass(frozen=True)
class Unit:
    """How the values of a metric are read and shown."""

    name: str
    #: The value of one point, in which a margin is given.
    point: float = 1.0
    #: The largest possible value, where 0 is the least; None for a metric without ends.
    largest: float | None = None
    higher_is_better: bool = True
    #: Decimals of values and differences.
    digits: int = 1

    @property
    def ends(self) -> tuple[float, float] | None:
        """The worst and the best possible value."""
        if self.largest is None:
            return None
        return (0.0, self.largest) if self.higher_is_better else (self.largest, 0.0)

    def exceeded(self, values: Iterable[float]) -> bool:
        """Return whether a value is beyond the ends."""
        return self.largest is not None and not all(0 <= value <= self.largest for value in values)

    def gain(self, low: float, high: float) -> tuple[float, float]:
        """Return an interval of differences as one of gains, which are above 0 if it is better."""
        return (low, high) if self.higher_is_better else (-high, -low)

    def shown(self, size: float) -> str:
        """Return the size of a difference in words."""
        return f"{size:.{self.digits}f}{' points' if self.name == 'percent' else ''}"

    def size(self, points: float) -> str:
        """Return a number of points in words, as a value where a point is not 1 %."""
        if self.name != "percent":
            return f"{points * self.point:g}"
        return "1 point" if points == 1 else f"{points:g} points"


#: Name -> unit, as the option ``--unit`` has it.
UNITS = {
    unit.name: unit
    for unit in (Unit("percent", 1.0, 100.0), Unit("fraction", 0.01, 1.0), Unit("number"))
}


def unit_of(name: str | None, higher_is_better: bool, groups: Iterable[Collection[float]]) -> Unit:
    """Return the unit of groups of values, each of one norm; of an unknown name, as they tell.

    A metric that should be high is then a fraction if all values are in 0..1, all others have no
    ends. Values beyond the ends of a named unit show that it has none.
    """
    values = [value for group in groups for value in group]
    is_share = higher_is_better and all(0 <= value <= 1 for value in values)
    unit = UNITS[name or ("fraction" if is_share else "number")]
    largest = None if unit.exceeded(values) else unit.largest
    return replace(unit, largest=largest, higher_is_better=higher_is_better)


def decimals(
    groups: Collection[Collection[float]], differences: Iterable[Collection[float]] = ()
) -> int:
    """Return how many decimals show a third of the smallest deviation of a group or of differences.

    Without any deviation, they show a 300th of the largest value.
    """
    largest = max((abs(value) for group in groups for value in group), default=0.0)
    deviations = [stdev(group) for group in (*groups, *differences) if len(group) > 1]
    sizes = [deviation for deviation in deviations if deviation > 1e-9 * largest] or [largest / 100]
    return max(0, ceil(log10(3 / min(sizes)) - 1e-9)) if largest else 1
