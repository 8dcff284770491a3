"""Plots of the pages: differences between norms, and the curves of a table's trainings."""

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ilm_plugins.experiments.papers import published
from ilm_plugins.experiments.papers.published import Table
from ilm_plugins.experiments.reports import style
from ilm_plugins.experiments.reports.interval import Difference
from ilm_plugins.experiments.reports.style import OKABE_ITO, styled

from . import papers
from .results import FOLDER, Results, curves

save = style.save
#: Twenty pairs of dashes and marker, all different.
STYLES = mpl.cycler(
    color=OKABE_ITO * 2, linestyle=["-", "--", ":", "-."] * 5, marker=[*"os^vD"] * 4
)
#: The largest difference that is drawn, in points.
LIMIT = 30


def study(results: Results) -> Figure:
    """Plot the study's differences, a panel for each table with two or more."""
    panels = {}
    for table in (published.tables()[key] for key in published.find_table("study").shows):
        rows = [(name, one) for name, _, one in papers.differences(table, results)]
        if len(rows) > 1:  # one difference is in its table
            panels[f"{table.task}: {table.measures[0]}"] = rows
    return differences(panels)


@styled
def training(table: Table, results: Results) -> Figure:
    """Plot the mean curves of a table's rows, a panel for each loss and metric of the table."""
    points = curves(FOLDER)
    lines = []
    for cell in table.cells.values():
        for group in papers.groups(results, cell):
            found = [points.get((table.id, cell.name, run.seed, run.run), ()) for run in group]
            jpeg = ", re-encoded" if papers.is_jpeg(group[0]) else ""
            lines.append((cell.name, f"{group[0].run}{jpeg}", [row for c in found for row in c]))
    alike = len({settings for _, settings, _ in lines}) == 1
    labels = table.logged()
    logged = {name for *_, rows in lines for row in rows for name in row}
    names = ["loss", *sorted(logged & labels.keys())]
    # As narrow as labels allow: on a phone, wider figures are illegible.
    fig = Figure((3.8, 2 * len(names) + 0.2 * len(lines)), layout="constrained")
    axes = fig.subplots(len(names), sharex=True, squeeze=False).flat
    for axis, name in zip(axes, names, strict=True):
        axis.set_prop_cycle(STYLES)
        for i, (cell, settings, rows) in enumerate(lines):
            means = pd.DataFrame(rows).groupby("epochs").mean()
            curve = means.get(name, pd.Series(dtype=float)).dropna()
            every = max(1, len(curve) // 20)
            marks = {"markevery": (i * every // len(lines), every), "markersize": 4}
            label = cell if alike else f"{cell}, {settings}"
            axis.plot(curve.index, curve, label=label, **marks)
        axis.set_title(labels.get(name, name))
    axes[-1].set_xlabel("epochs")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", handlelength=4)
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
