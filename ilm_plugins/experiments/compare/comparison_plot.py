"""The picture of a comparison: every run as a point, and differences with their intervals."""

from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from ...checkpoints import replacing
from .results import Results

STYLE = {"axes.grid": True, "axes.axisbelow": True, "font.size": 9, "grid.alpha": 0.3}
COLOUR = "#0072B2"


@mpl.rc_context(STYLE)
def draw(results: Results, path: Path) -> None:
    """Write a PNG with a row for each test: values by norm, and differences from the baseline."""
    tests, norms = results.tests, list(results.norms)
    figure = Figure((9, 0.9 + (0.7 + 0.3 * len(norms)) * len(tests)), layout="constrained", dpi=120)
    axes = figure.subplots(len(tests), 2, squeeze=False)
    for (left, right), test in zip(axes, tests, strict=True):
        rows = results.main[results.main["test"] == test]
        sns.stripplot(
            rows, x="value", y="norm", order=norms, ax=left, color=COLOUR, alpha=0.6, jitter=False
        )
        for i, norm in enumerate(norms):
            if values := [*results.by_seed(norm, test).values()]:
                left.plot(sum(values) / len(values), i, "|", color="black", markersize=16)
        name = results.title(test)
        left.set(xlabel=name, ylabel="", ylim=(len(norms) - 0.5, -0.5))
        left.set_yticks(range(len(norms)), [_label(results, norm, test) for norm in norms])
        _draw_differences(right, results, test)
        right.set_xlabel(f"{name}: minus {norms[0]}")
    with replacing(path) as file:
        # Without matplotlib's version, equal records give equal bytes.
        figure.savefig(file, format="png", metadata={"Software": None})


def _label(results: Results, norm: str, test: str) -> str:
    """Return a norm, and below it the seeds whose runs failed."""
    failed = ", ".join(map(str, results.failed_seeds(norm, test)))
    return f"{norm}\nfailed: seed {failed}" if failed else norm


def _draw_differences(axis, results: Results, test: str) -> None:
    """Draw each norm's difference, with its interval if it has one; hollow if a run failed."""
    axis.axvline(0, color="0.5")
    differences = results.differences(test)
    plain = results.failed_seeds(results.norms[0], test)
    for i, (norm, difference) in enumerate(differences.items()):
        if difference is None:
            continue
        face = "white" if plain or results.failed_seeds(norm, test) else COLOUR
        half = difference.high - difference.mean if difference.has_interval else 0
        axis.errorbar(difference.mean, i, xerr=half, fmt="o", capsize=3, color=COLOUR, mfc=face)
    axis.set_yticks(range(len(differences)), differences)
    axis.set_ylim(max(1, len(differences)) - 0.5, -0.5)
