"""The picture of a comparison: every run as a point, and differences with their intervals."""

import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reports import style
from .results import Results

COLOUR = style.OKABE_ITO[4]
#: How the line between runs of one seed looks, and a run without a result.
PAIR = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
CROSS = {"color": style.OKABE_ITO[3], "ls": "", "marker": "x", "ms": 5, "in_layout": False}


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
    """Return whether a norm has a seed in common with the baseline by any test."""
    return any(one for test in results.tests for one in results.differences[test].values())


@style.styled
def figure_of(results: Results, layout: Layout) -> Figure:
    """Return a row for each test: values by norm, and differences from the baseline, if any.

    Lines connect the runs of one seed. Runs without a result are crosses at the worse edge.
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
    norms = list(results.norms)
    for seed in sorted({seed for norm in norms for seed in results.by_seed(norm, test)}):
        runs = [(results.by_seed(norm, test).get(seed), i) for i, norm in enumerate(norms)]
        axis.plot(*zip(*(run for run in runs if run[0] is not None), strict=True), **PAIR)
    for i, norm in enumerate(norms):
        failed = len(results.failed_seeds(norm, test))
        heights = [i + (k + 1) / (failed + 1) - 0.5 for k in range(failed)]
        edge = 0.02 if results.higher_is_better else 0.98  # left of all values, or right
        axis.plot([edge] * failed, heights, transform=axis.get_yaxis_transform(), **CROSS)
        if values := [*results.by_seed(norm, test).values()]:
            axis.scatter(values, [i] * len(values), 25, COLOUR, alpha=0.6, linewidths=0)
            axis.plot(sum(values) / len(values), i, "|", color="black", markersize=16)
    axis.set(xlabel=results.title(test), ylabel="", ylim=(len(norms) - 0.5, -0.5))
    axis.set_yticks(range(len(norms)), [_label(results, norm, test) for norm in norms])


def _draw_differences(axis: Axes, results: Results, test: str) -> None:
    """Draw intervals, hollow where nothing is told."""
    verdicts = results.verdicts[test].items()
    hollow = [norm for norm, verdict in verdicts if verdict.word == "not told"]
    style.draw_intervals(axis, [*results.differences[test].items()], COLOUR, hollow)
    axis.set_xlabel(f"{results.title(test)}: minus {results.norms[0]}")


def _label(results: Results, norm: str, test: str) -> str:
    """Return a norm, and below it the seeds whose runs have no result."""
    failed = ", ".join(map(str, results.failed_seeds(norm, test)))
    return f"{norm}\nno result: seed {failed}" if failed else norm


def wrapped(label: str, layout: Layout) -> str:
    """Return a label with further breaks in its long lines."""
    return "\n".join(textwrap.fill(line, layout.characters) for line in label.split("\n"))
