"""The picture of a comparison: every run as a point, and differences with their intervals."""

from pathlib import Path

from matplotlib.figure import Figure

from ..reports import style
from .results import Results

COLOUR = style.OKABE_ITO[4]


@style.styled
def draw(results: Results, path: Path) -> None:
    """Write a PNG with a row for each test: values by norm, and differences from the baseline."""
    tests, norms = results.tests, list(results.norms)
    figure = Figure((9, 0.9 + (0.7 + 0.3 * len(norms)) * len(tests)), layout="constrained")
    axes = figure.subplots(len(tests), 2, squeeze=False)
    for (left, right), test in zip(axes, tests, strict=True):
        for i, norm in enumerate(norms):
            if values := [*results.by_seed(norm, test).values()]:
                left.scatter(values, [i] * len(values), 25, COLOUR, alpha=0.6, linewidths=0)
                left.plot(sum(values) / len(values), i, "|", color="black", markersize=16)
        name = results.title(test)
        left.set(xlabel=name, ylabel="", ylim=(len(norms) - 0.5, -0.5))
        left.set_yticks(range(len(norms)), [_label(results, norm, test) for norm in norms])
        differences = results.differences(test)
        failed = [norm for norm in norms if results.failed_seeds(norm, test)]
        hollow = norms if norms[0] in failed else failed
        style.draw_intervals(right, [*differences.items()], COLOUR, hollow)
        right.set_xlabel(f"{name}: minus {norms[0]}")
    style.save(figure, path)


def _label(results: Results, norm: str, test: str) -> str:
    """Return a norm, and below it the seeds whose runs failed."""
    failed = ", ".join(map(str, results.failed_seeds(norm, test)))
    return f"{norm}\nfailed: seed {failed}" if failed else norm
