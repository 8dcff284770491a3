"""Plots of the curves that were logged in training, and of differences between norms."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ..reports import style
from ..reports.interval import Difference
from ..reports.style import OKABE_ITO, styled
from .paper_record import Record
from .published import Table

#: Twenty pairs of dashes and marker, all different.
STYLES = mpl.cycler(
    color=OKABE_ITO * 2, linestyle=["-", "--", ":", "-."] * 5, marker=[*"os^vD"] * 4
)
#: The largest difference that is drawn, in points.
LIMIT = 30


@styled
def training(table: Table, lines: Sequence[tuple[str, list[Record]]]) -> Figure:
    """Plot the mean curves of labelled records, a panel for each loss and metric of the table."""
    logged = {name for _, group in lines for r in group for row in r["curve"] for name in row}
    # The total loss, or its parts, then the table's metrics.
    losses = [name for name in ("loss", "total_loss") if name in logged]
    losses = losses or sorted(name for name in logged if "loss" in name)
    labels = table.logged()
    names = losses + sorted(logged & labels.keys())
    columns = min(2, len(names))
    height = -(-len(names) // columns)
    fig = Figure((9, 3 * height + 0.2 * len(lines)), layout="constrained")
    axes = fig.subplots(height, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set_prop_cycle(STYLES)
        for i, (label, group) in enumerate(lines):
            unit = group[0]["unit"]
            means = pd.DataFrame([row for r in group for row in r["curve"]]).groupby(unit).mean()
            curve = means.get(name, pd.Series(dtype=float)).dropna()
            every = max(1, len(curve) // 20)
            marks = {"markevery": (i * every // len(lines), every), "markersize": 4}
            axis.plot(curve.index, curve, label=label, **marks)
            axis.set_xlabel(unit)
        axis.set_ylabel(labels.get(name, name))
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    fig.suptitle(f"{table.id}: {table.title}")
    fig.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", handlelength=4
    )
    return fig


@styled
def differences(panels: Mapping[str, list[tuple[str, Difference]]]) -> Figure:
    """Plot a panel for each task: pairs of norms, each with its difference and interval."""
    counts = [len(rows) for rows in panels.values()]
    # As narrow as labels allow: on a phone, wider figures are illegible.
    fig = Figure((5.5, 0.8 + 0.7 * len(counts) + 0.25 * sum(counts)), layout="constrained")
    ratios = [n + 1 for n in counts]
    axes = fig.subplots(len(counts), sharex=True, squeeze=False, height_ratios=ratios).flat
    for axis, (task, rows) in zip(axes, panels.items(), strict=True):
        style.draw_intervals(axis, rows, OKABE_ITO[0])
        axis.set_title(task)
    label = "difference from the plain norm in points\nand its paired 95 % interval"
    # The interval of two runs that differ much would shrink all others to dots.
    found = [one for rows in panels.values() for _, one in rows]
    low, high = min(one.low for one in found), max(one.high for one in found)
    if max(-low, high) > LIMIT:
        label += f", cut at {LIMIT}"
        axes[0].set_xlim(max(low - 1, -LIMIT), min(high + 1, LIMIT))
    axes[-1].set_xlabel(f"{label};\nright of 0, the first norm is better")
    return fig


def save(fig: Figure, path: Path, lines: Sequence[tuple[str, list[Record]]]) -> None:
    """Write a plot as PNG; 16 digits of the SHA-256 of its curves go to its metadata."""
    shown = str([(label, [record["curve"] for record in group]) for label, group in lines])
    style.save(fig, path, records=hashlib.sha256(shown.encode()).hexdigest()[:16])
