"""The picture of a comparison: every run as a point, and differences with their intervals."""

import textwrap
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reports import style
from .plain_states import collapsed_seeds
from .results import Results

COLOUR = style.OKABE_ITO[4]
#: How the line between runs of one seed looks, and runs without a result, or that did not learn.
PAIR = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
AT_EDGE = {"color": style.OKABE_ITO[3], "ls": "", "ms": 5, "in_layout": False}
#: Characters in a line of a norm's label.
LABEL = 40


def has_differences(results: Results) -> bool:
    """Return whether a norm is compared with the baseline by any test."""
    tests = results.differences.values()
    return any(one and one.has_interval for of_test in tests for one in of_test.values())


def collapsed_runs(results: Results, test: str) -> set[tuple[str, int]]:
    """Return the norms and seeds of the runs that did not learn, next to which others did."""
    runs = set()
    for norm in results.norms[1:]:
        for name, seeds in collapsed_seeds(results.runs(norm, test)).items():
            runs |= {(name, seed) for seed in seeds}
    return runs


@style.styled
def figure_of(results: Results) -> Figure:
    """Return a row for each test: values by norm, and differences from the baseline, if any.

    Lines connect the runs of one seed. At the worse edge, runs without a result are crosses, and
    runs that did not learn are arrows, which leave the scale to the others.
    """
    draws = [_draw_runs, _draw_differences] if has_differences(results) else [_draw_runs]
    height = 0.9 + (0.7 + 0.4 * len(results.norms)) * len(results.tests)
    figure = Figure((9.0, height), 120, layout="constrained")
    axes = figure.subplots(len(results.tests), len(draws), squeeze=False)
    for row, test in zip(axes, results.tests, strict=True):
        for axis, draw in zip(row, draws, strict=True):
            draw(axis, results, test)
            labels = [textwrap.fill(one.get_text(), LABEL) for one in axis.get_yticklabels()]
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
        failed = len(results.failed_seeds(norm, test))
        below = [run[0] for run in collapsed].count(norm)
        markers = ["x"] * failed + [arrow] * below
        for k, marker in enumerate(markers, 1):
            height = i + k / (len(markers) + 1) - 0.5
            where = {"transform": axis.get_yaxis_transform(), "marker": marker}
            axis.plot(edge, height, **where, **AT_EDGE)
        if values:
            axis.scatter([*values.values()], [i] * len(values), 25, COLOUR, alpha=0.6, linewidths=0)
        if values and not markers:
            axis.plot(fmean(values.values()), i, "|", color="black", markersize=16)
    axis.set(xlabel=results.title(test), ylabel="", ylim=(len(norms) - 0.5, -0.5))
    axis.set_yticks(range(len(norms)), norms)


def _draw_differences(axis: Axes, results: Results, test: str) -> None:
    rows = [*results.differences[test].items()]
    style.draw_intervals(axis, rows, COLOUR)
    for i, (_, difference) in enumerate(rows):
        if difference is None or not difference.has_interval:
            axis.text(0.02, i, "not tested", transform=axis.get_yaxis_transform(), va="center")
    axis.set_xlabel(f"{results.title(test)}: minus {results.norms[0]}")
