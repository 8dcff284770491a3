"""Figures by seaborn from long tables, which have the columns layer and value, and others."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot
from seaborn.axisgrid import Grid

from ..reports.style import OKABE_ITO, styled

#: Normalizer or parameter -> its colour.
COLOURS = {"IN": "#E69F00", "LN": "#0072B2", "BN": "#009E73", "GN": "#CC79A7"}
COLOURS |= {"omega": "#E69F00", "beta": "#56B4E9"}
#: The label of the axis of layers.
LAYERS = "layer, from the input to the output"


@styled
def save(grid: Grid, path: Path, title: str) -> None:
    """Write a figure as PNG, with a title above its panels, and close it."""
    # At the left, where a phone shows the first part of a wide picture.
    grid.figure.suptitle(title, x=0, y=1, ha="left", va="bottom")
    grid.savefig(path)
    pyplot.close(grid.figure)


def short(names: Sequence[str]) -> list[str]:
    """Shorten dotted names by the words that all share at an end; each keeps at least one word."""
    if len(names) < 2:
        return list(names)
    words = [name.split(".") for name in names]
    first = _shared([w[:-1] for w in words])
    last = _shared([w[:first:-1] for w in words])
    return [".".join(w[first : len(w) - last]) for w in words]


def _shared(words: list[list[str]]) -> int:
    columns = zip(*words, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _shortened(table: pd.DataFrame) -> pd.DataFrame:
    layers = table["layer"].unique()
    return table.assign(layer=table["layer"].map(dict(zip(layers, short(layers), strict=True))))


def _colours(names: pd.Series) -> dict:
    return {name: COLOURS[name.split(",")[0]] for name in names.unique()}


def _palette(count: int) -> list:
    return sns.color_palette(OKABE_ITO if count <= len(OKABE_ITO) else "husl", count)


def _size(table: pd.DataFrame, height: float) -> dict[str, float]:
    return {"height": height, "aspect": max(6.0, 1.5 + 0.28 * table["layer"].nunique()) / height}


@styled
def by_layer(table: pd.DataFrame, hue: str, pixels: Mapping[str, np.ndarray] | None = None):
    """Draw the mean and deviation by layer, in the panels of the table or one for each image."""
    options = {"hue": hue, "style": hue, "palette": _colours(table[hue])}
    options |= {"errorbar": "sd", "markers": True, "dashes": False, "err_kws": {"linewidth": 0}}
    if pixels:
        options |= {"row": "image", "row_order": list(pixels), **_size(table, 1.4)}
    else:
        options |= {"row": "panel", **_size(table, 3.5)}
    grid = sns.relplot(_shortened(table), kind="line", x="layer", y="value", **options)
    number = "distance" if hue == "parameter" else "ratio"
    grid.tick_params("x", rotation=90).set_titles("{row_name}").set_axis_labels(LAYERS, number)
    if not pixels:
        for panel, ax in grid.axes_dict.items():
            ax.set(title="", ylabel=panel)
    grid.tight_layout()  # with the rotated names, so that the legend is below them
    sns.move_legend(grid, "upper left", bbox_to_anchor=(0, 0), ncols=4, title=None)
    for ax, image in zip(grid.axes[:, 0], (pixels or {}).values(), strict=False):
        inset = ax.inset_axes((-0.35, 0, 0.25, 1))
        inset.imshow(image)
        inset.axis("off")
    return grid


@styled
def boxes(table: pd.DataFrame, quantity: str):
    """Draw the distribution of values in each layer as boxes, a panel for each quantity."""
    options = {"hue": quantity, "palette": _colours(table[quantity]), "legend": False}
    options |= {"row": quantity, "sharey": False, "whis": (5, 95), "showfliers": False}
    table = _shortened(table)
    grid = sns.catplot(table, kind="box", x="layer", y="value", **options, **_size(table, 2.2))
    return grid.tick_params("x", rotation=90).set_titles("{row_name}").set_axis_labels(LAYERS, "")


@styled
def heat_maps(table: pd.DataFrame, quantity: str):
    """Draw the column distance by class and layer, a panel for each quantity."""
    table, most = _shortened(table), table["distance"].abs().max()
    colours = {"cmap": "cividis", "vmin": 0, "vmax": most, "cbar_kws": {"label": "distance"}}
    if (table["distance"] < 0).any():
        colours |= {"cmap": "PuOr_r", "vmin": -most}

    def draw(data: pd.DataFrame, **_) -> None:
        cells = data.pivot(index="class", columns="layer", values="distance")
        sns.heatmap(cells[data["layer"].unique()], xticklabels=1, yticklabels=1, **colours)

    size = _size(table, min(max(0.22 * table["class"].nunique() + 0.4, 1.6), 8))
    grid = sns.FacetGrid(table, row=quantity, **size).map_dataframe(draw)
    grid.tick_params("x", rotation=90).set_titles("{row_name}")
    return grid.set_axis_labels(LAYERS, "class")


@styled
def scatter(points: pd.DataFrame, panel: str | None = None):
    """Draw points, columns x, y and class, a panel for each value of the column ``panel``."""
    points = points.sample(frac=1, random_state=0)  # so that the last class covers no other
    classes = sorted(points["class"].unique())
    options = {"height": 5, "s": 16, "linewidth": 0, "alpha": 0.8}
    if len(classes) > 1:
        options |= {"hue": "class", "hue_order": classes, "palette": _palette(len(classes))}
        options |= {"style": "class", "style_order": classes}
    if panel:
        options |= {"height": 2, "s": 12, "col": panel, "col_wrap": 5}
        options |= {"col_order": sorted(points[panel].unique())}
        options["facet_kws"] = {"sharex": False, "sharey": False}
    grid = sns.relplot(points, x="x", y="y", **options)
    return grid.set_axis_labels("dimension 1", "dimension 2").set(xticks=[], yticks=[])


@styled
def dynamics(table: pd.DataFrame, step: str, hue: str, pixels: Mapping[str, np.ndarray]):
    """Draw ratios over the training by layer, with the images in ``pixels`` at the left."""
    names = table[hue].unique()
    if hue == "normalizer":
        options = {"col": "layer", "col_wrap": 5, "height": 1.8, "aspect": 1.3}
        colours = _colours(table[hue])
    else:
        options = {"row": "layer", "col": "normalizer", "height": 1.5, "aspect": 1.9}
        options["facet_kws"] = {"sharey": False}
        colours = dict(zip(names, _palette(len(names)), strict=True))
    options |= {"hue": hue, "style": hue, "palette": colours, "errorbar": None}
    grid = sns.relplot(_shortened(table), kind="line", x=step, y="value", **options)
    titles = "{col_name}" if hue == "normalizer" else "{row_name}: {col_name}"
    grid.set_titles(titles).set_axis_labels(step, "ratio")
    for i, (name, image) in enumerate(pixels.items()):
        ax = grid.figure.add_axes((-0.16, 0.62 - 0.31 * i, 0.12, 0.26))
        ax.imshow(image)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=8)
        ax.spines[:].set(visible=True, color=colours[name], linewidth=3)
    return grid
