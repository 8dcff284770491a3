"""The picture of a comparison: every run as a point, and differences with their intervals."""

from pathlib import Path

from matplotlib.figure import Figure

from ..reports import style
from .results import Results

COLOUR = style.OKABE_ITO[4]
#: How the line between runs of one seed looks, and a run without a result.
PAIR = {"color": "0.7", "linewidth": 0.6, "zorder": 1}
CROSS = {"color": style.OKABE_ITO[3], "ls": "", "marker": "x", "ms": 5, "in_layout": False}


@style.styled
def draw(results: Results, path: Path) -> None:
    """Write a PNG with a row for each test: values by norm, and differences from the baseline.

    Lines connect the runs of one seed. Runs without a result are crosses at the worse edge.
    """
    tests, norms = results.tests, list(results.norms)
    figure = Figure((9, 0.9 + (0.7 + 0.4 * len(norms)) * len(tests)), layout="constrained")
    axes = figure.subplots(len(tests), 2, squeeze=False)
    for (left, right), test in zip(axes, tests, strict=True):
        for seed in sorted({seed for norm in norms for seed in results.by_seed(norm, test)}):
            runs = [(results.by_seed(norm, test).get(seed), i) for i, norm in enumerate(norms)]
            left.plot(*zip(*(run for run in runs if run[0] is not None), strict=True), **PAIR)
        for i, norm in enumerate(norms):
            failed = len(results.failed_seeds(norm, test))
            heights = [i + (k + 1) / (failed + 1) - 0.5 for k in range(failed)]
            edge = 0.02 if results.higher_is_better else 0.98  # left of all values, or right
            left.plot([edge] * failed, heights, transform=left.get_yaxis_transform(), **CROSS)
            if values := [*results.by_seed(norm, test).values()]:
                left.scatter(values, [i] * len(values), 25, COLOUR, alpha=0.6, linewidths=0)
                left.plot(sum(values) / len(values), i, "|", color="black", markersize=16)
        name = results.title(test)
        left.set(xlabel=name, ylabel="", ylim=(len(norms) - 0.5, -0.5))
        left.set_yticks(range(len(norms)), [_label(results, norm, test) for norm in norms])
        differences = results.differences[test]
        failed = [norm for norm in norms if results.failed_seeds(norm, test)]
        hollow = norms if norms[0] in failed else failed
        style.draw_intervals(right, [*differences.items()], COLOUR, hollow)
        right.set_xlabel(f"{name}: minus {norms[0]}")
    style.save(figure, path)


def _label(results: Results, norm: str, test: str) -> str:
    """Return a norm, and below it the seeds whose runs have no result."""
    failed = ", ".join(map(str, results.failed_seeds(norm, test)))
    return f"{norm}\nno result: seed {failed}" if failed else norm
