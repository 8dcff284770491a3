"""Figures in one style, most of them by seaborn from long tables; :func:`save` writes them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot
from matplotlib.figure import Figure

#: Okabe and Ito's colour-blind safe colours, and two more for data sets of ten classes.
OKABE_ITO = (
    *("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442", "#000000"),
    *("#999999", "#6B3E0A"),
)
#: Normalizer or parameter -> its colour.
COLOURS = {"IN": "#E69F00", "LN": "#0072B2", "BN": "#009E73", "GN": "#CC79A7"}
COLOURS |= {"omega": "#E69F00", "beta": "#56B4E9"}
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 120,
    "figure.titlesize": 12,
    "font.size": 9,
    "grid.alpha": 0.3,
    "image.interpolation": "nearest",
    "legend.frameon": False,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a drawing function, so that it draws in the style :data:`STYLE`."""

    @functools.wraps(draw)
    def drawing(*args, **options) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return drawing


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a width and height in inches."""
    return Figure((width, height), layout="constrained")


def save(fig: Figure, path: Path) -> None:
    """Write a figure as PNG, with all that lies beside its axes, and close the figure."""
    fig.savefig(path, bbox_inches="tight")
    pyplot.close(fig)


def short(names: Sequence[str]) -> list[str]:
    """Shorten dotted names by the leading and trailing words that all of them share.

    Each keeps at least one word: "net.a.bn" and "net.b.bn" become "a" and "b".
    """
    words = [name.split(".") for name in names]
    if len(words) < 2:
        return list(names)
    least = min(map(len, words)) - 1

    def common(parts: list[list[str]]) -> int:
        alike = (len(set(column)) == 1 for column in zip(*parts, strict=False))
        return next((i for i, same in enumerate(alike) if not same), least)

    first = min(common(words), least)
    last = min(common([w[::-1] for w in words]), least - first)
    return [".".join(w[first : len(w) - last]) for w in words]


def _shortened(table: pd.DataFrame) -> pd.DataFrame:
    """Return a long table with its column "layer" shortened; the layers keep their order."""
    layers = list(dict.fromkeys(table["layer"]))
    return table.assign(layer=table["layer"].map(dict(zip(layers, short(layers), strict=True))))


def _width(table: pd.DataFrame) -> float:
    """Return the width in inches of a plot over the layers."""
    return max(6.0, 1.5 + 0.28 * table["layer"].nunique())


@styled
def by_layer(table: pd.DataFrame, title: str, uniform: float | None) -> Figure:
    """Draw mean and standard deviation of ratios by layer, as in Fig. 4 of the EN paper.

    ``table`` has columns layer, normalizer and value; ``uniform`` is at a dashed line.
    """
    fig, ax = pyplot.subplots(figsize=(_width(table), 4))
    names = {"hue": "normalizer", "style": "normalizer", "palette": COLOURS}
    options = {"errorbar": "sd", "markers": True, "dashes": False, "err_kws": {"linewidth": 0}}
    sns.lineplot(_shortened(table), x="layer", y="value", ax=ax, **names, **options)
    if uniform:
        ax.axhline(uniform, color="0.4", linestyle="--", linewidth=1)
    ax.set(ylabel="ratio: mean and standard deviation", title=title, ylim=(-0.04, 1.04))
    ax.tick_params("x", rotation=90)
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1))
    return fig


@styled
def boxes(table: pd.DataFrame, quantity: str, title: str) -> Figure:
    """Draw the distribution of values in each layer as boxes, a panel for each quantity."""
    colours = {name: COLOURS[name.split(",")[0]] for name in dict.fromkeys(table[quantity])}
    drawn = {"kind": "box", "whis": (5, 95), "showfliers": False, "palette": colours}
    names = {"x": "layer", "y": "value", "row": quantity, "hue": quantity}
    size = {"height": 2.2, "aspect": _width(table) / 2.2, "sharey": False, "legend": False}
    grid = sns.catplot(_shortened(table), **names, **drawn, **size)
    grid.tick_params("x", rotation=90)
    grid.set_titles("{row_name}").set_axis_labels("", "")
    grid.figure.suptitle(title, y=1, va="bottom")
    return grid.figure


@styled
def heat_maps(table: pd.DataFrame, quantity: str, title: str) -> Figure:
    """Draw the distances of class means from the mean of all images, a panel for each quantity.

    ``table`` has columns layer, class, ``quantity`` and distance.
    """
    table, parts = _shortened(table), list(dict.fromkeys(table[quantity]))
    height = min(max(0.22 * table["class"].nunique(), 1.6), 8)
    size = (_width(table), len(parts) * height + 1.2)
    fig, axes = pyplot.subplots(
        len(parts), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    most = table["distance"].abs().max()
    colours = {"cmap": "cividis", "vmin": 0, "vmax": most}
    if (table["distance"] < 0).any():
        colours = {"cmap": "PuOr_r", "vmin": -most, "vmax": most}
    order = list(dict.fromkeys(table["layer"]))
    for ax, part in zip(axes.flat, parts, strict=True):
        cells = table[table[quantity] == part].pivot(index="class", columns="layer")["distance"]
        label = {"label": "distance of the class mean"} if ax is axes[-1, 0] else {}
        sns.heatmap(cells.reindex(columns=order), ax=ax, xticklabels=1, cbar_kws=label, **colours)
        ax.set(title=part, xlabel="", ylabel="")
    fig.suptitle(title)
    return fig


@styled
def strips(
    images: Sequence[tuple[str, np.ndarray, pd.DataFrame]], title: str, ratios: bool
) -> Figure:
    """Draw single images: caption, pixels (H, W, 3), and a table of layers x quantities."""
    width = 1.5 + 0.28 * len(images[0][2])
    most = max(values.max(axis=None) for *_, values in images)
    fig = figure(max(width, 6) + 1.5, 1.15 * len(images) + 1.7)
    axes = fig.subplots(len(images), 2, squeeze=False, width_ratios=(1.5, max(width, 6)))
    for (left, right), (caption, pixels, values) in zip(axes, images, strict=True):
        left.imshow(pixels)
        left.set_title(caption, fontsize=8)
        left.axis("off")
        values = values.set_axis(short(list(values.index)))
        values.plot(ax=right, color=COLOURS, marker="o", markersize=3, legend=False)
        right.set(ylim=(-0.04, 1.04) if ratios else (0, 1.1 * most), xlabel="")
        right.set_xticks(range(len(values)), values.index, rotation=90)
        right.tick_params(labelbottom=right is axes[-1, 1])
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    fig.suptitle(title)
    return fig


@styled
def scatter(points: pd.DataFrame, title: str, panel: str | None = None) -> Figure:
    """Draw points, columns x, y and class, a panel for each value of the column ``panel``."""
    points = points.sample(frac=1, random_state=0)  # so that the last class covers no other
    classes = sorted(points["class"].unique())
    colours = sns.color_palette(
        OKABE_ITO if len(classes) <= len(OKABE_ITO) else "husl", len(classes)
    )
    names = {"hue": "class", "hue_order": classes, "palette": colours} if len(classes) > 1 else {}
    size = {"height": 5, "s": 16}
    if panel:
        order = sorted(points[panel].unique())
        size = {"height": 2, "s": 8, "col": panel, "col_wrap": 5, "col_order": order}
        size["facet_kws"] = {"sharex": False, "sharey": False}
    grid = sns.relplot(points, x="x", y="y", linewidth=0, alpha=0.8, **names, **size)
    grid.set_axis_labels("", "").set(xticks=[], yticks=[])
    grid.figure.suptitle(title, y=1, va="bottom")
    return grid.figure


@styled
def dynamics(table: pd.DataFrame, step: str, hue: str, title: str, pixels: Mapping) -> Figure:
    """Draw ratios over the training; ``table`` has columns step, layer, normalizer, value, ``hue``.

    A panel is a layer, or a layer and a normalizer if ``hue`` is not the normalizer; ``pixels`` of
    images, name -> (H, W, 3), are drawn at the right.
    """
    size = {"col": "layer", "col_wrap": 5, "height": 1.8, "aspect": 1.3}
    titles, colours = (
        "{col_name}",
        {name: COLOURS[name] for name in dict.fromkeys(table["normalizer"])},
    )
    if hue != "normalizer":
        size = {"row": "layer", "col": "normalizer", "height": 1.5, "aspect": 1.9}
        size["facet_kws"] = {"sharey": False}
        titles = "{row_name}: {col_name}"
        colours = dict(zip(dict.fromkeys(table[hue]), OKABE_ITO, strict=False))
    table = _shortened(table[table[hue].isin(colours)])
    options = {"kind": "line", "errorbar": None, "palette": colours, "hue_order": list(colours)}
    options["legend"] = not pixels  # whose frames have the colours
    grid = sns.relplot(table, x=step, y="value", hue=hue, **size, **options)
    grid.set_titles(titles)
    grid.set_axis_labels(step, "ratio").figure.suptitle(title, y=1, va="bottom")
    for i, (name, image) in enumerate(pixels.items()):
        ax = grid.figure.add_axes((1.01, 0.62 - 0.31 * i, 0.12, 0.26))
        ax.imshow(image)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=8)
        ax.spines[:].set(visible=True, color=colours[name], linewidth=3)
    return grid.figure
