"""Pictures of records: what was logged over trainings, and figures against a quantity."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from ..analysis.plots import OKABE_ITO, figure, styled
from ..checkpoints import replacing
from . import registry
from .registry import Table

STYLES = ("-", "--", ":", "-.")

Points = list[tuple[float, float]]


@styled
def training(table: Table, lines: Sequence[tuple[str, list[dict[str, Any]]]]) -> Figure:
    """What was logged over trainings, a panel for each quantity.

    Args:
        lines: labels, and the records that each line is the mean of.
    """
    logged = {name for _, group in lines for r in group for row in r["curve"] for name in row}
    names = _panels(logged, table)
    columns = min(2, len(names))
    height = -(-len(names) // columns)
    fig = figure(6 * columns, 3.6 * height + 0.2 * len(lines))
    axes = fig.subplots(height, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for i, (label, group) in enumerate(lines):
            unit = group[0]["unit"]
            points = _mean_curve([r["curve"] for r in group], unit, name)
            style = STYLES[i // len(OKABE_ITO) % len(STYLES)]
            axis.plot(
                *(zip(*points, strict=True) if points else ((), ())),
                label=label,
                color=OKABE_ITO[i % len(OKABE_ITO)],
                linestyle=style,
                marker="." * (len(points) < 30),
            )
            axis.set_xlabel(unit)
        axis.set_ylabel(f"{name}, training" if "_top-" in name else name)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    fig.suptitle(f"{table.id}: {table.title}")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center")
    return fig


def _panels(logged: set[str], table: Table) -> list[str]:
    """What to draw of what was logged: the loss, or its parts, and what the table measures.

    MMPretrain has accuracy_top-1 on training batches, and accuracy/top1 in a test.
    """
    losses = [name for name in ("loss", "total_loss") if name in logged]
    losses = losses or sorted(name for name in logged if "loss" in name)
    read = {n for name in table.measures for n in registry.measures()[name].metrics}
    read |= {name.replace("/top", "_top-") for name in read}
    return losses + sorted(logged & read)


def _mean_curve(found: Iterable[list[dict]], unit: str, name: str) -> Points:
    values: dict[float, list[float]] = defaultdict(list)
    for rows in found:
        for row in rows:
            if name in row:
                values[row[unit]].append(row[name])
    return [(at, mean(v)) for at, v in sorted(values.items())]


@styled
def against(table: Table, lines: Mapping[str, tuple[Points, Points]], measure: str) -> Figure:
    """Figures against a quantity that doubles: the paper's, dashed, and ours.

    Args:
        lines: label -> (quantity, figure) of the paper, and ours.
    """
    fig = figure(7, 4.5)
    axis = fig.subplots()
    for (label, both), colour in zip(lines.items(), OKABE_ITO, strict=False):
        for points, whose, style in zip(both, ("the paper", "ours"), ("--", "-"), strict=True):
            if points:
                marker = {"marker": "o", "markerfacecolor": "none" if style == "--" else colour}
                axis.plot(
                    *zip(*points, strict=True),
                    label=f"{label}, {whose}",
                    color=colour,
                    linestyle=style,
                    **marker,
                )
    sizes = sorted({at for both in lines.values() for points in both for at, _ in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel(table.against)
    axis.set_ylabel(f"{measure} ({registry.measures()[measure].described})")
    axis.legend()
    fig.suptitle(f"{table.id}: {table.title}")
    return fig


def save(fig: Figure, path: Path, shown: Any) -> None:
    """Write a PNG, whose metadata say under "records" what it shows."""
    fingerprint = hashlib.sha256(str(shown).encode()).hexdigest()[:16]
    with replacing(path) as file:
        # Its version would have the same records give other bytes.
        fig.savefig(file, format="png", metadata={"Software": None, "records": fingerprint})
