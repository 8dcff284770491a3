"""The picture of a comparison: every run as a point, and differences with their intervals."""

import textwrap
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reports import style
from .plain_states import collapsed_seeds
from .results import Results

COLOUR = style.OKABE_ITO[4]
#: How the line between runs of one seed looks, and runs without a result, or that did not learn.
PAIR = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
AT_EDGE = {"color": style.OKABE_ITO[3], "ls": "", "ms": 5, "in_layout": False}


class Layout(NamedTuple):
    """The width of a picture: plots beside each other, inches, pixels of an inch."""

    columns: int
    width: float
    dpi: int
    #: Characters in a line of a norm's label.
    characters: int


#: Of compare.png, and of a picture for phones.
WIDE, NARROW = Layout(2, 9.0, 120, 40), Layout(1, 3.6, 200, 16)


def has_differences(results: Results) -> bool:
    """Return whether a norm is compared with the baseline by any test."""
    differences = (one for of_test in results.differences.values() for one in of_test.values())
    return any(one is not None and one.has_interval for one in differences)


def collapsed_runs(results: Results, test: str) -> set[tuple[str, int]]:
    """Return the norms and seeds of the runs that did not learn, next to which others did."""
    found = [collapsed_seeds(results.runs(norm, test)) for norm in results.norms[1:]]
    return {(norm, seed) for one in found for norm, seeds in one.items() for seed in seeds}


@style.styled
def figure_of(results: Results, layout: Layout) -> Figure:
    """Return a row for each test: values by norm, and differences from the baseline, if any.

    Lines connect the runs of one seed. At the worse edge, runs without a result are crosses, and
    runs that did not learn are arrows, which leave the scale to the others.
    """
    kinds = [_draw_runs, _draw_differences] if has_differences(results) else [_draw_runs]
    plots = [(draw_one, test) for test in results.tests for draw_one in kinds]
    columns = min(layout.columns, len(kinds))
    rows = len(plots) // columns
    height = 0.9 + (0.7 + 0.4 * len(results.norms)) * rows
    figure = Figure((layout.width, height), layout.dpi, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (draw_one, test) in zip(axes, plots, strict=True):
        draw_one(axis, results, test)
        labels = [wrapped(label.get_text(), layout) for label in axis.get_yticklabels()]
        axis.set_yticks(axis.get_yticks(), labels)
    return figure


def _draw_runs(axis: Axes, results: Results, test: str) -> None:
    norms, collapsed = list(results.norms), collapsed_runs(results, test)
    shown = [
        {k: v for k, v in results.by_seed(norm, test).items() if (norm, k) not in collapsed}
        for norm in norms
    ]
    for seed in sorted({seed for values in shown for seed in values}):
        runs = [(values[seed], i) for i, values in enumerate(shown) if seed in values]
        axis.plot(*zip(*runs, strict=True), **PAIR)
    # Left of all values, or right.
    edge, arrow = (0.02, "<") if results.higher_is_better else (0.98, ">")
    for i, (norm, values) in enumerate(zip(norms, shown, strict=True)):
        failed, below = (
            len(results.failed_seeds(norm, test)),
            [one[0] for one in collapsed].count(norm),
        )
        markers = ["x"] * failed + [arrow] * below
        for k, marker in enumerate(markers, 1):
            height = i + k / (len(markers) + 1) - 0.5
            where = {"transform": axis.get_yaxis_transform(), "marker": marker}
            axis.plot(edge, height, **where, **AT_EDGE)
        if values:
            axis.scatter([*values.values()], [i] * len(values), 25, COLOUR, alpha=0.6, linewidths=0)
        if values and not below:
            axis.plot(fmean(values.values()), i, "|", color="black", markersize=16)
    axis.set(xlabel=results.title(test), ylabel="", ylim=(len(norms) - 0.5, -0.5))
    axis.set_yticks(range(len(norms)), [_label(results, norm, test) for norm in norms])


def _draw_differences(axis: Axes, results: Results, test: str) -> None:
    style.draw_intervals(axis, [*results.differences[test].items()], COLOUR)
    axis.set_xlabel(f"{results.title(test)}: minus {results.norms[0]}")


def _label(results: Results, norm: str, test: str) -> str:
    """Return a norm, and below it the seeds whose runs have no result."""
    failed = ", ".join(map(str, results.failed_seeds(norm, test)))
    return f"{norm}\nno result: seed {failed}" if failed else norm


def wrapped(label: str, layout: Layout) -> str:
    """Return a label with further breaks in its long lines."""
    return "\n".join(textwrap.fill(line, layout.characters) for line in label.split("\n"))
