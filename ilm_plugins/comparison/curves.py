"""Learning curves of a comparison's runs, from their records, and the picture of them."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..frameworks.run.record import read_record
from ..reports import style
from .plan import Plan
from .plot import Layout, wrapped
from .results import Results

#: Names of the total loss in detectron2's and in MMEngine's records.
LOSSES = "total_loss", "loss"
#: Quotient of the largest and the smallest loss from which the axis is logarithmic.
SPAN = 10
#: The end of the line of a run that diverged.
CROSS = {"marker": "x", "ms": 7, "mew": 2, "clip_on": False, "zorder": 3}


class Curve(NamedTuple):
    """The values of a quantity in a run, by step, which counts ``unit``."""

    #: Number of the run's norm.
    norm: int
    values: dict[int, float]
    unit: str = "iterations"
    diverged: bool = False


def curves(plan: Plan, results: Results) -> dict[str, list[Curve]]:
    """Return the curves of the loss and of the main metric, where a run has several values."""
    quantities = {"loss": LOSSES, results.metric: (results.metric,)}
    found: dict[str, list[Curve]] = {name: [] for name in quantities}
    for i, norm in enumerate(plan.norms):
        for seed in plan.seeds:
            record = read_record(plan.folder(norm, seed)) or {}
            points = record.get("curve") or [{}]
            unit = next(iter(points[0]), "")  # a point begins with its step
            for quantity, names in quantities.items():
                values = {
                    point[unit]: point[name]
                    for point in points
                    for name in names
                    if unit in point and isinstance(point.get(name), int | float)
                }
                if values:
                    found[quantity].append(Curve(i, values, unit, "diverged" in record))
    return {name: runs for name, runs in found.items() if any(len(one.values) > 1 for one in runs)}


@style.styled
def figure_of(found: dict[str, list[Curve]], norms: Sequence[str], layout: Layout) -> Figure:
    """Return a plot for each quantity, with a line for each run in the colour of its norm."""
    columns = min(layout.columns, len(found))
    rows = len(found) // columns
    labels = [wrapped(norm, layout) for norm in norms]
    height = 0.6 + 2.4 * rows + 0.2 * len(norms)
    figure = Figure((layout.width, height), layout.dpi, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (name, of_runs) in zip(axes, found.items(), strict=True):
        _draw(axis, name, of_runs)
    lines = [Line2D([], [], **_look(i)) for i in range(len(norms))]
    figure.legend(lines, labels, loc="outside upper left")
    return figure


def _draw(axis: Axes, name: str, of_runs: Sequence[Curve]) -> None:
    """Draw the curves of a quantity; the lines of runs that diverged do not set the scale."""
    learned = [curve for curve in of_runs if not curve.diverged] or of_runs
    values = [value for curve in learned for value in curve.values.values()]
    if name == "loss" and min(values) > 0 and max(values) / min(values) >= SPAN:
        axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    for curve in learned:
        line = [*curve.values], [*curve.values.values()]
        axis.plot(*line, marker=".", markevery=[-1], **_look(curve.norm))
    low, high = axis.set_ylim(axis.get_ylim())
    for curve in (curve for curve in of_runs if curve.diverged):
        (*_, step), (*_, value) = line = [*curve.values], [*curve.values.values()]
        axis.plot(*line, **_look(curve.norm))
        axis.plot(step, min(max(value, low), high), **CROSS | _look(curve.norm))
    axis.set(xlabel=of_runs[0].unit, ylabel=name)


def _look(norm: int) -> dict[str, object]:
    """Return the colour of a norm's lines; further norms have the same colours, dashed."""
    colours = style.OKABE_ITO
    dashed = "--" if norm >= len(colours) else "-"
    return {"color": colours[norm % len(colours)], "linestyle": dashed, "linewidth": 1}
