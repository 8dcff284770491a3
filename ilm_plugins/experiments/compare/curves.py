"""Learning curves of a comparison's runs, as lines of a picture in SVG."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from ...frameworks.run_logs import scalars
from ...frameworks.run_record import read
from .comparison_plan import Plan
from .results import Results

#: Names of the total loss in detectron2's and in MMEngine's logs.
LOSSES = "total_loss", "loss"
#: Most points of a line.
POINTS = 200
#: A panel's width and height, and the ends of its axes, in pixels of SVG.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 60, 525, 12, 255
#: Quotient of the largest and the smallest loss from which the axis is logarithmic.
SPAN = 10


class Curve(NamedTuple):
    """The values of a quantity in a run, by step, which counts ``unit``."""

    #: Number of the run's norm.
    norm: int
    title: str
    values: dict[int, float]
    unit: str = "iterations"
    diverged: bool = False


class Line(NamedTuple):
    """A curve in a panel: pixels "x,y x,y ...", and the last of them."""

    curve: Curve
    points: str
    end: tuple[float, float]


class Panel(NamedTuple):
    """The curves of one quantity; a tick is its position in pixels and its text."""

    name: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def panels(plan: Plan, results: Results) -> list[Panel]:
    """Return a panel of the loss and one of the main metric, if runs have logged them.

    The values come from the framework's logs, or from a run's record, which has more in a short
    training that counts iterations. A script's metric has several values if its file does.
    """
    quantities = {"loss": LOSSES, results.metric: (results.metric,)}
    curves: dict[str, list[Curve]] = {name: [] for name in quantities}
    for i, norm in enumerate(plan.norms):
        for seed in plan.seeds:
            folder = plan.folder(norm, seed)
            record = read(folder) or {}
            logged, recorded = scalars(folder), _recorded(record)
            own = plan.source.curve(folder)
            for name in recorded:
                is_denser = len(recorded[name]) > len(logged.get(name, ()))
                if name not in logged or (is_denser and record["unit"] == "iterations"):
                    logged[name] = recorded[name]
            for quantity, names in quantities.items():
                values = next((logged[name] for name in names if name in logged), None)
                unit = record.get("unit", "iterations")
                if values and max(values) > record.get("planned", 0):
                    unit = "iterations"  # MMEngine logs losses of epochs by iteration
                if quantity == results.metric and len(own) > 1:
                    values, unit = dict(enumerate(own, 1)), "values"
                if values:
                    # detectron2 logs the test after the training one iteration behind its end.
                    end = record.get("planned", 0)
                    if unit == record.get("unit") and max(values) == end + 1:
                        values = {min(step, end): value for step, value in values.items()}
                    one = Curve(i, f"{norm}, seed {seed}", values, unit, "diverged" in record)
                    curves[quantity].append(one)
    return [panel(name, found) for name, found in curves.items() if found]


def _recorded(record: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Return name -> step -> value of all numbers of a record's curve."""
    found: dict[str, dict[int, float]] = {}
    for point in record.get("curve", ()):
        step = point.get(record.get("unit"))
        for name, value in point.items():
            if isinstance(value, int | float) and isinstance(step, int):
                found.setdefault(name, {})[step] = value
    return found


def panel(name: str, curves: Sequence[Curve]) -> Panel:
    """Place curves in a panel; those of diverged runs may leave it, where other runs end below."""
    learned = [curve for curve in curves if not curve.diverged] or curves
    values = [value for curve in learned for value in curve.values.values()]
    low, high = min(values), max(values)
    logarithmic = name == "loss" and low > 0 and high / low >= SPAN
    if not logarithmic:
        margin = 0.05 * (high - low) or abs(low) or 1.0
        low, high = low - margin, high + margin
    last = max(max(curve.values) for curve in curves) or 1

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / last, 1)

    def y(value: float) -> float:
        ends = (value, low, high)
        if logarithmic:
            value, first, end = (math.log(max(one, low / SPAN)) for one in ends)
        else:
            value, first, end = ends
        height = BOTTOM - (BOTTOM - TOP) * (value - first) / (end - first)
        return round(min(max(height, TOP - HEIGHT), 2 * HEIGHT), 1)

    lines = []
    for curve in curves:
        steps = sorted(curve.values)
        kept = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))
        points = [(x(steps[i]), y(curve.values[steps[i]])) for i in kept]
        end = points[-1][0], min(max(points[-1][1], TOP), BOTTOM)
        lines.append(Line(curve, " ".join(f"{a:g},{b:g}" for a, b in points), end))
    locator = LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(5)
    heights = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    widths = MaxNLocator(5, integer=True).tick_values(0, last)
    return Panel(
        name,
        curves[0].unit,
        lines,
        [(x(tick), f"{tick:,.0f}") for tick in widths if 0 <= tick <= last],
        [(y(tick), f"{tick:g}") for tick in heights],
    )
