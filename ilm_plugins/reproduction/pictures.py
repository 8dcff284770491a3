"""Plots of runs: curves logged in training, and figures of a paper against a quantity."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Without matplotlib or pandas, this import says how to install them.
from ..analysis.plots import OKABE_ITO, Figure, figure, mpl, pd, styled
from ..checkpoints import replacing
from . import registry
from .registry import Table

STYLES = ("-", "--", ":", "-.")

Points = list[tuple[float, float]]


@styled
def training(table: Table, lines: Sequence[tuple[str, list[dict[str, Any]]]]) -> Figure:
    """Plot the curves logged in training, a panel for each loss and metric of the table.

    ``lines`` are labels and the records whose curves are averaged.
    """
    logged = {name for _, group in lines for r in group for row in r["curve"] for name in row}
    names = _panels(logged, table)
    columns = min(2, len(names))
    height = -(-len(names) // columns)
    fig = figure(6 * columns, 3.6 * height + 0.2 * len(lines))
    axes = fig.subplots(height, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set_prop_cycle(mpl.cycler(linestyle=STYLES) * mpl.cycler(color=OKABE_ITO))
        for label, group in lines:
            unit = group[0]["unit"]
            means = pd.DataFrame([row for r in group for row in r["curve"]]).groupby(unit).mean()
            curve = means.get(name, pd.Series(dtype=float)).dropna()
            marker = "." if len(curve) < 30 else ""
            axis.plot(curve.index, curve, label=label, marker=marker)
            axis.set_xlabel(unit)
        axis.set_ylabel(f"{name}, training" if "_top-" in name else name)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    fig.suptitle(f"{table.id}: {table.title}")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center")
    return fig


def _panels(logged: set[str], table: Table) -> list[str]:
    """Choose what to plot: the total loss, or its parts, then the table's metrics.

    MMPretrain logs the metric accuracy/top1 of a test as accuracy_top-1 in training.
    """
    losses = [name for name in ("loss", "total_loss") if name in logged]
    losses = losses or sorted(name for name in logged if "loss" in name)
    read = {n for name in table.measures for n in registry.measures()[name].metrics}
    read |= {name.replace("/top", "_top-") for name in read}
    return losses + sorted(logged & read)


@styled
def against(table: Table, lines: Mapping[str, tuple[Points, Points]], measure: str) -> Figure:
    """Plot a measure against a quantity such as the batch size, on a logarithmic axis.

    ``lines``: label -> points of the paper, drawn dashed, and ours, drawn solid.
    """
    fig = figure(7, 4.5)
    axis = fig.subplots()
    for (label, both), colour in zip(lines.items(), OKABE_ITO, strict=False):
        for points, whose, style in zip(both, ("the paper", "ours"), ("--", "-"), strict=True):
            if points:
                line = {"color": colour, "linestyle": style, "label": f"{label}, {whose}"}
                face = "none" if style == "--" else colour
                axis.plot(*zip(*points, strict=True), marker="o", markerfacecolor=face, **line)
    sizes = sorted({at for both in lines.values() for points in both for at, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel(table.against)
    axis.set_ylabel(f"{measure} ({registry.measures()[measure].described})")
    axis.legend()
    fig.suptitle(f"{table.id}: {table.title}")
    return fig


@styled
def gains(table: Table, figures: Mapping[str, Mapping[str, tuple[float, float | None]]]) -> Figure:
    """Plot the gains of norms over the first that a drawing ``compares``, as bars.

    The paper's are outlines, ours filled; above each bar is the norm's own figure.
    ``figures``: group of bars -> norm -> the paper's figure and ours, or None.
    """
    base, *others = table.compares
    fig = figure(1.6 * len(figures) + 0.8, 4)
    axis = fig.subplots()
    width = 0.8 / (2 * len(others))
    for i, (norm, colour) in enumerate(zip(others, OKABE_ITO, strict=False)):
        for j, whose in enumerate(("the paper", "ours")):
            of_norm = {
                x: (of[norm][j], of[base][j])
                for x, of in enumerate(figures.values())
                if norm in of and base in of and None not in (of[norm][j], of[base][j])
            }
            places = [x - 0.4 + (2 * i + j + 0.5) * width for x in of_norm]
            heights = [value - least for value, least in of_norm.values()]
            if not of_norm:
                continue
            look = {"edgecolor": colour, "facecolor": colour if j else "none", "linewidth": 1.5}
            bars = axis.bar(places, heights, 0.9 * width, label=f"{norm}, {whose}", **look)
            axis.bar_label(bars, [f"{value:.1f}" for value, _ in of_norm.values()], fontsize=8)
    axis.axhline(0, color="black", linewidth=0.8)
    labels = [f"{label}\n{base} {of[base][0]:.1f}" for label, of in figures.items()]
    axis.set_xticks(range(len(figures)), labels)
    axis.set_ylabel(f"gain over {base}, percentage points\n(top-1 accuracy or mIoU)")
    fig.legend(loc="outside lower center", ncols=2 * len(others))
    fig.suptitle(f"{table.id}: {table.title}")
    return fig


def save(fig: Figure, path: Path, shown: Any) -> None:
    """Write a plot as PNG; the :func:`fingerprint` of what it shows goes to its metadata."""
    with replacing(path) as file:
        # Without matplotlib's version in the metadata, equal records give equal bytes.
        fig.savefig(file, format="png", metadata={"Software": None, "records": fingerprint(shown)})


def fingerprint(shown: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the ``str`` of data."""
    return hashlib.sha256(str(shown).encode()).hexdigest()[:16]
