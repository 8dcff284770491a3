"""Plots of the pages: differences between norms, and the curves of a table's trainings."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ilm_plugins.reports import style
from ilm_plugins.reports.interval import Difference
from ilm_plugins.reports.style import OKABE_ITO, styled

from ..papers import published
from ..papers.published import Table
from . import folds, papers
from .results import Results, curves

save = style.save
#: Twenty pairs of dashes and marker, all different.
STYLES = mpl.cycler(
    color=OKABE_ITO * 2, linestyle=["-", "--", ":", "-."] * 5, marker=[*"os^vD"] * 4
)
#: Colours of a plot -> the colours in their places if the browser prefers a dark mode.
DARK = {"#ffffff": "#0d1117", "#000000": "#e6edf3", "#b0b0b0": "#5c6570", "#0072b2": "#56b4e9"}
#: The largest difference that is drawn, in points.
LIMIT = 30
#: Model -> label, its vertical alignment, colour and marker in the plot of the finding.
FINDING = {
    "BN": ("BN", "center", OKABE_ITO[7], "o"),
    "BN standardized": ("BN, inputs\nstandardized", "bottom", OKABE_ITO[2], "s"),
    folds.ADAPTED: ("BN, statistics\nof test images", "center", OKABE_ITO[4], "^"),
    "EN": ("EN", "center", OKABE_ITO[3], "D"),
}
#: First letters of a model -> its colour in the plot of corrupted images.
CORRUPTED = {"BN": OKABE_ITO[7], "EN": OKABE_ITO[3], "SN": OKABE_ITO[0]}


def study(results: Results) -> Figure:
    """Plot the study's differences, a panel for each table with two or more."""
    panels = {}
    for table in (published.tables()[key] for key in published.find_table("study").shows):
        rows = [(name, one) for name, _, one in papers.differences(table, results)]
        if len(rows) > 1:  # one difference is in its table
            panels[f"{table.task}: {table.measures[0]}"] = rows
    return differences(panels)


@styled
def training(table: Table) -> Figure:
    """Plot the mean curves of a table's rows, a panel for each loss and metric of the table."""
    lines = curves(table.id)
    labels = _labels(table)
    logged = {name for rows in lines.values() for row in rows for name in row}
    names = ["loss", *sorted(logged & labels.keys())]
    # As narrow as labels allow: on a phone, wider figures are illegible.
    fig = Figure((3.8, 2 * len(names) + 0.2 * len(lines)), layout="constrained")
    axes = fig.subplots(len(names), sharex=True, squeeze=False).flat
    for axis, name in zip(axes, names, strict=True):
        axis.set_prop_cycle(STYLES)
        for i, (norm, rows) in enumerate(lines.items()):
            means = pd.DataFrame(rows).groupby("epochs").mean()
            curve = means.get(name, pd.Series(dtype=float)).dropna()
            every = max(1, len(curve) // 20)
            marks = {"markevery": (i * every // len(lines), every), "markersize": 4}
            axis.plot(curve.index, curve, label=norm, **marks)
        axis.set_title(labels.get(name, name))
    axes[-1].set_xlabel("epochs")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", handlelength=4)
    return fig


def _labels(table: Table) -> dict[str, str]:
    """Return the metrics of all measures, as frameworks log them -> label of an axis."""
    labels = {}
    for name in table.measures:
        measure = published.measures()[name]
        for metric, (offset, factor) in measure.metrics.items():
            is_shown = offset == 0 and factor == 1
            what, unit = (name, f" ({papers.described(measure)})") if is_shown else (metric, "")
            labels[metric] = f"{what}{unit}"
            # MMPretrain logs the metric accuracy/top1 of a test as accuracy_top-1 in training.
            if "/top" in metric:
                labels[metric.replace("/top", "_top-")] = f"{what} in training{unit}"
    return labels


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


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, whose colours follow the reader's light or dark mode."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    rules = [
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    ]
    rules.append(f"svg {{ fill: {DARK['#000000']} }}")  # where black is not written
    style = f"<style>@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}</style>"
    path.write_text(file.getvalue().replace("</svg>", f"{style}\n</svg>"), encoding="utf-8")


@styled
def finding(models: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot the mIoU of models by day over the contrast, and at dusk: means, and seeds as dots."""
    fig = Figure((4.8, 3.2), layout="constrained")
    by_day, dusk = fig.subplots(ncols=2, sharey=True, width_ratios=(3.4, 1))
    panels = {by_day: ("day", "half", "a quarter"), dusk: ("dusk",)}
    for i, (model, (label, side, colour, marker)) in enumerate(FINDING.items()):
        for axis, kinds in panels.items():
            places = range(len(kinds)) if axis is by_day else [i]
            for x, kind in zip(places, kinds, strict=True):
                seeds = models[model][kind]
                axis.scatter([x] * len(seeds), seeds, s=5, color=colour, alpha=0.4, lw=0)
            means = [fmean(models[model][kind]) for kind in kinds]
            axis.plot(places, means, color=colour, marker=marker, markersize=5)
            if axis is by_day:
                beside = {"xytext": (8, 0), "textcoords": "offset points", "va": side}
                axis.annotate(label, (places[-1], means[-1]), color=colour, **beside)
    low = "At low contrast, EN loses less than BN;\nBN with standardized inputs loses nothing."
    dark = "At dusk, EN is lowest; BN with the test images' statistics is highest."
    fig.suptitle(f"{low}\n{dark}", fontsize=9)
    by_day.set_xticks(range(3), ["unchanged", "half", "a quarter"])
    by_day.set_xlim(-0.25, 3.25)
    by_day.set_ylim(0, 45)
    by_day.set_title("daytime, by contrast")
    by_day.set_ylabel("mIoU")
    dusk.set_xticks([])
    dusk.set_xlim(-0.7, len(FINDING) - 0.3)
    dusk.set_title("at dusk")
    return fig


@styled
def corrupted(models: dict[str, list[float]], clean: dict[str, list[float]]) -> Figure:
    """Plot the top-1 of models on corrupted images, and beside it on clean images (open)."""
    drawn = [model for model in models if not model.endswith(" 1")]
    fig = Figure((5.5, 0.9 + 0.25 * len(drawn)), layout="constrained")
    axis = fig.subplots()
    for y, model in enumerate(drawn):
        colour = CORRUPTED[model[:2]]
        for seeds, face in ((models[model], colour), (clean[model], "none")):
            axis.scatter(seeds, [y] * len(seeds), s=5, color=colour, alpha=0.4, lw=0)
            axis.plot(fmean(seeds), y, "o", color=colour, markerfacecolor=face)
    axis.set_yticks(range(len(drawn)), drawn)
    axis.invert_yaxis()
    bn, augmix = (fmean(seeds) for model, seeds in models.items() if model not in drawn)
    fig.supxlabel(
        "top-1, %: mean over 14 corruptions (filled), clean images (open)\n"
        f"statistics of N: of each N test images; of 1, not drawn: {bn:.0f}, AugMix {augmix:.0f}",
        fontsize=9,
    )
    return fig
