"""Figures in one style: colour-blind safe colours (Okabe and Ito's), labelled axes.

Each drawing function returns a figure, which :func:`save` writes. ``layers`` are the layers' names,
from the input to the output. Values are (masked) arrays; masked values are not drawn.
"""

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from ..checkpoints import replacing
from ..errors import missing

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image
except ImportError as error:
    raise missing("drawing", error, "analysis") from error

OKABE_ITO = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#CC79A7",
    "#F0E442",
    "#000000",
    # Two more colours, for data sets of ten classes.
    "#999999",
    "#6B3E0A",
)
#: Quantity -> matplotlib's options of its lines.
LINES = {
    "IN": {"color": "#E69F00", "marker": "o"},
    "LN": {"color": "#0072B2", "marker": "s"},
    "BN": {"color": "#009E73", "marker": "^"},
    "GN": {"color": "#CC79A7", "marker": "D"},
    "omega": {"color": "#E69F00", "marker": "o"},
    "beta": {"color": "#56B4E9", "marker": "s"},
}
#: matplotlib's options of a line at the uniform ratio.
UNIFORM = {"color": "0.4", "linestyle": "--", "linewidth": 1}
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
#: Limits of an axis of ratios, with room for the markers at 0 and 1.
RATIOS = (-0.04, 1.04)
#: Maximum number of rows that a heat map names.
NAMED_ROWS = 40
#: Maximum number of classes for which a map of images has a panel each.
NAMED_CLASSES = 20


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a drawing function, so that it draws in the style :data:`STYLE`.

    matplotlib's global settings are restored after each call.
    """

    @functools.wraps(draw)
    def drawing(*args, **options) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **options)

    return drawing


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a width and height in inches."""
    return Figure((width, height), layout="constrained")


def save(fig: Figure, path: Path) -> None:
    """Write a figure to a PNG file of 256 colours, atomically.

    The colours of photos are coarser for it; the file has about a third of the size.
    """
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png")
    with replacing(path) as file, Image.open(drawn) as image:
        colours = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(file, format="PNG", optimize=True)


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


def _width(layers: Sequence[str]) -> float:
    """Return the width in inches of a plot over the layers."""
    return max(7.0, 1.8 + 0.28 * len(layers))


def _name_layers(ax: Axes, layers: Sequence[str]) -> None:
    """Label the x axis of a plot with the layers' names."""
    ax.set_xticks(range(len(layers)), short(layers), rotation=90, fontsize=8)
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel("layer, from the input to the output")


def uniform(ratios: Iterable[np.ndarray]) -> np.ndarray:
    """Return each layer's uniform ratio, 1 / number of its normalizers, (layers).

    Args:
        ratios: for each normalizer an array (layers) or (N, layers), masked where a layer lacks
            it. A layer that lacks all of them has NaN.
    """
    numbers = sum(~np.ma.getmaskarray(np.atleast_2d(values)).all(0) for values in ratios)
    return np.where(numbers, 1 / np.maximum(numbers, 1), np.nan)


def _draw_uniform(ax, levels: np.ndarray, label: str | None = None) -> None:
    """Draw a dashed line at the uniform ratio of each layer; layer i is at i on the x axis."""
    ends = np.stack([np.arange(len(levels)) - 0.5, np.arange(len(levels)) + 0.5], 1)
    ax.plot(ends.ravel(), np.repeat(levels, 2), **UNIFORM, label=label)


@styled
def by_layer(
    layers: Sequence[str],
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    title: str,
) -> Figure:
    """Draw mean and deviation of ratios over images by layer, as in Fig. 4 of the EN paper.

    Args:
        layers: names.
        panels: title -> ratios of a set of images, a panel each, as normalizer, a key of
            :data:`LINES` -> mean and standard deviation over images, (layers) each, masked where a
            layer lacks the normalizer. A dashed line is at each layer's :func:`uniform` ratio.
        title: of the figure.
    """
    fig = figure(_width(layers), 1.6 + 2.6 * len(panels))
    axes = np.atleast_1d(fig.subplots(len(panels), 1, sharex=True, sharey=True))
    x = np.arange(len(layers))
    for ax, (name, ratios) in zip(axes, panels.items(), strict=True):
        for normalizer, (mean, spread) in ratios.items():
            ax.plot(x, mean, **LINES[normalizer], markersize=5, label=normalizer)
            colour = LINES[normalizer]["color"]
            ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        _draw_uniform(ax, uniform([mean for mean, _ in ratios.values()]), label="uniform")
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_ylabel("ratio, mean over images\n(band: standard deviation)")
    axes[0].set_ylim(RATIOS)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=len(labels), loc="outside lower center")
    _name_layers(axes[-1], layers)
    fig.suptitle(title)
    return fig


#: Quantiles of a distribution, their names in tables, and the caption of box plots. Whiskers end at
#: the outermost values within these percentiles.
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
QUANTILE_NAMES = ("min", "q05", "q25", "q50", "q75", "q95", "max")
BOXES = "median and quartiles,\nwhiskers from the 5th to the 95th percentile, grey from min to max"


@styled
def boxes(
    layers: Sequence[str],
    panels: Mapping[str, Sequence[np.ndarray]],
    title: str,
    colours: Sequence[str],
) -> Figure:
    """Draw the distribution of values in each layer as box plots, one panel for each quantity.

    Args:
        layers: names.
        panels: label of the y axis -> values of each layer, in an array of any shape; masked
            values are left out, and a layer with no others has no box.
        title: of the figure.
        colours: of each panel's boxes, in the panels' order; further colours are unused, further
            panels stay empty.
    """
    fig = figure(_width(layers), 1.2 + 2.2 * len(panels))
    axes = np.atleast_1d(fig.subplots(len(panels), 1, sharex=True))
    for ax, (label, values), colour in zip(axes, panels.items(), colours, strict=False):
        present = [np.ma.compressed(of_layer) for of_layer in values]
        for x, found in enumerate(present):
            if found.size:
                ax.plot([x, x], [found.min(), found.max()], color="0.6", linewidth=0.8)
        ax.boxplot(
            present,
            positions=range(len(present)),
            whis=(5, 95),
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour, "linewidth": 0.8},
            medianprops={"color": "black", "linewidth": 1.5},
        )
        ax.set_ylabel(label)
    _name_layers(axes[-1], layers)
    fig.suptitle(title)
    return fig


@styled
def heat_maps(
    layers: Sequence[str],
    rows: Sequence[str],
    panels: Mapping[str, np.ndarray],
    title: str,
    diverging: bool = True,
) -> Figure:
    """Draw the distances of class means as heat maps, with a column for each layer.

    Args:
        layers, rows: names of the layers and classes; with more than :data:`NAMED_ROWS` classes,
            theirs are left out.
        panels: title -> (rows, layers), at least one; all panels have the same colour scale, up to
            the largest absolute value.
        title: of the figure.
        diverging: centre the colours on zero; otherwise they start at zero.
    """
    height = min(max(0.2 * len(rows), 1.4), 8)
    beside = max(3.2, 0.6 + 0.2 * len(layers))
    columns = len(panels) if beside <= 6.5 else 1
    below = math.ceil(len(panels) / columns)
    fig = figure(columns * beside + 2.6, below * (height + 0.3) + 1.8)
    axes = fig.subplots(below, columns, squeeze=False, sharex=True, sharey=True)
    most = max(float(np.abs(values).max()) for values in panels.values()) or 1.0
    limits = {"vmin": -most, "vmax": most, "cmap": "PuOr_r"}
    if not diverging:
        limits = {"vmin": 0, "vmax": most, "cmap": "cividis"}
    for ax, (name, values) in zip(axes.ravel(), panels.items(), strict=True):
        drawn = ax.imshow(values, aspect="auto", **limits)
        ax.grid(False)
        ax.set_title(name)
        ax.spines[:].set_visible(False)
    for ax in axes[-1]:
        _name_layers(ax, layers)
    for ax in axes[:, 0]:
        if len(rows) <= NAMED_ROWS:
            ax.set_yticks(range(len(rows)), rows)
        ax.set_ylabel("class")
    label = "distance of the class mean from the mean of all images"
    fig.colorbar(drawn, ax=axes, label=label, shrink=0.9)
    fig.suptitle(title)
    return fig


def _draw_points(
    ax: Axes, points: np.ndarray, labels: Sequence[int] | None, size: float, alpha: float = 1
) -> None:
    """Draw points (N, 2), coloured by class, or in one colour without labels."""
    of_class = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    # Points are drawn in random order, so that the last class doesn't cover the others.
    order = np.random.default_rng(0).permutation(len(points))
    colours = np.array(OKABE_ITO)[of_class[order] % len(OKABE_ITO)]
    ax.scatter(*points[order].T, s=size, c=colours, alpha=alpha, linewidths=0)


@styled
def scatter(
    points: np.ndarray,
    labels: Sequence[int] | None,
    classes: Sequence[str],
    title: str,
    axes: tuple[str, str],
) -> Figure:
    """Draw points (N, 2), coloured by class; beside them a panel for each class.

    A panel shows the points of its class over all others in grey, under the name of the class.
    With more than :data:`NAMED_CLASSES` classes, or without labels, there are no such panels. The
    ten colours of :data:`OKABE_ITO` repeat.

    Args:
        points: of N images.
        labels: class index of each image, or None for one colour.
        classes: names; empty without labels.
        title: of the figure.
        axes: labels of the x and y axis.
    """
    few = labels is not None and len(classes) <= NAMED_CLASSES
    fig = figure(13 if few else 7, 6)
    left, *right = fig.subfigures(1, 2, width_ratios=(6, 7)) if few else (fig,)
    ax = left.subplots()
    size = float(np.clip(12000 / len(points), 4, 28))
    _draw_points(ax, points, labels, size, alpha=0.7)
    ax.set_xlabel(axes[0])
    ax.set_ylabel(axes[1])
    if few:
        columns = math.ceil(math.sqrt(len(classes)))
        rows = math.ceil(len(classes) / columns)
        panels = right[0].subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in panels.ravel()[len(classes) :]:
            panel.remove()
        drawn = zip(panels.ravel(), classes, cycle(OKABE_ITO), strict=False)
        for i, (panel, name, colour) in enumerate(drawn):
            panel.scatter(*points.T, s=1, c="0.85", linewidths=0)
            of_class = points[np.asarray(labels) == i]
            panel.scatter(*of_class.T, s=size / 2, c=colour, linewidths=0)
            panel.set_title(name)
            panel.tick_params(labelbottom=False, labelleft=False)
    fig.suptitle(title)
    return fig


@styled
def strips(
    layers: Sequence[str],
    images: Sequence[tuple[str, np.ndarray, Mapping[str, np.ndarray]]],
    title: str,
    level: np.ndarray | None = None,
) -> Figure:
    """Draw single images, each beside a plot of its values by layer.

    Args:
        layers: names.
        images: for each image its caption; its pixels (H, W, 3), floats in [0, 1] or uint8; and
            for each quantity, a key of :data:`LINES`, one value >= 0 for each layer. There is at
            least one image, and all have the same quantities.
        title: of the figure.
        level: the :func:`uniform` ratio of each layer, at which a dashed line is drawn; None if
            values are not ratios.
    """
    fig = figure(_width(layers) + 1.5, 1.15 * len(images) + 1.7)
    axes = fig.subplots(len(images), 2, squeeze=False, width_ratios=(1.5, _width(layers)))
    drawn = np.ma.stack([values for *_, numbers in images for values in numbers.values()])
    for (left, right), (caption, pixels, numbers) in zip(axes, images, strict=True):
        left.imshow(pixels)
        left.set_title(caption, fontsize=8)
        left.axis("off")
        for quantity, values in numbers.items():
            right.plot(values, **LINES[quantity], markersize=3, label=quantity)
        if level is not None:
            _draw_uniform(right, level)
            right.set_ylim(RATIOS)
        else:
            right.set_ylim(0, float(drawn.max()) * 1.1 or 1)
    for right in axes[:-1, 1]:
        right.sharex(axes[-1, 1])
        right.tick_params(labelbottom=False)
    _name_layers(axes[-1, 1], layers)
    axes[0, 1].legend(ncols=len(numbers), loc="lower right", bbox_to_anchor=(1, 1))
    fig.suptitle(title)
    return fig


def _marker_size(steps: Sequence[int]) -> int:
    """Return the size of the markers on a line over the training; 0 where they would touch."""
    return 3 if len(steps) <= 30 else 0


@styled
def dynamics(
    layers: Sequence[str],
    steps: Sequence[int],
    ratios: Mapping[str, np.ndarray],
    title: str,
    step_label: str,
) -> Figure:
    """Draw mean ratios over the training, one panel per layer, as in Fig. 5 of the EN paper.

    Args:
        layers: names.
        steps: epoch or iteration of each checkpoint.
        ratios: normalizer, a key of :data:`LINES` -> array (checkpoints, layers), masked where a
            layer lacks the normalizer. A dashed line is at each layer's :func:`uniform` ratio.
        title: of the figure.
        step_label: label of the x axis.
    """
    levels = uniform(ratios.values())
    columns = min(5, len(layers))
    rows = math.ceil(len(layers) / columns)
    fig = figure(max(5, 2.3 * columns), 1.6 * rows + 0.7)
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(layers) :]:
        ax.axis("off")
    for i, (ax, name) in enumerate(zip(axes, short(layers), strict=False)):
        for normalizer, values in ratios.items():
            size = _marker_size(steps)
            ax.plot(steps, values[:, i], **LINES[normalizer], markersize=size, label=normalizer)
        ax.axhline(levels[i], **UNIFORM)
        ax.set_title(name, fontsize=8)
    axes[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    fig.supxlabel(step_label, fontsize=9)
    for ax in axes[::columns]:
        ax.set_ylabel("ratio")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=len(ratios), loc="outside upper right")
    fig.suptitle(title, x=0.01, ha="left")
    return fig


@styled
def dynamics_of(
    layers: Sequence[str],
    steps: Sequence[int],
    names: Sequence[str],
    ratios: Mapping[str, np.ndarray],
    title: str,
    step_label: str,
    pixels: Sequence[np.ndarray] = (),
) -> Figure:
    """Draw ratios of classes or images over the training, as in Figs. 1a, 6 and 7 of the EN paper.

    Rows are layers, columns normalizers. Each panel has its own scale, of some 0.1 at least.

    Args:
        layers: names.
        steps: epoch or iteration of each checkpoint.
        names: of the classes or images, a line each; at most ten, a colour of :data:`OKABE_ITO`
            each.
        ratios: normalizer -> (checkpoints, names, layers).
        title: of the figure.
        step_label: label of the x axis.
        pixels: the images, (H, W, 3) each, to be drawn at the left; empty for classes.
    """
    beside = 1.5 if len(pixels) else 0
    fig = figure(2.5 * len(ratios) + 0.8 + beside, 1.3 * len(layers) + 1.6)
    right = fig
    if len(pixels):
        left, right = fig.subfigures(1, 2, width_ratios=(beside, 2.5 * len(ratios) + 0.8))
        frames = zip(left.subplots(len(pixels), 1, squeeze=False).flat, pixels, strict=True)
        for i, (ax, image) in enumerate(frames):
            ax.imshow(image)
            ax.grid(False)
            ax.set(xticks=[], yticks=[])
            ax.set_title(names[i], fontsize=8)
            ax.spines[:].set(visible=True, color=OKABE_ITO[i], linewidth=3)
    axes = right.subplots(len(layers), len(ratios), squeeze=False, sharex=True)
    for row, layer in enumerate(short(layers)):
        for ax, (normalizer, values) in zip(axes[row], ratios.items(), strict=True):
            for i, name in enumerate(names):
                line = {"color": OKABE_ITO[i], "marker": "o", "markersize": _marker_size(steps)}
                ax.plot(steps, values[:, i, row], **line, linewidth=1.2, label=name)
            low, high = ax.get_ylim()
            wider = max(0, 0.1 - (high - low)) / 2
            ax.set_ylim(max(low - wider, -0.01), min(high + wider, 1.01))
            if row == 0:
                ax.set_title(f"ratio of {normalizer}")
        axes[row, 0].set_ylabel(layer, fontsize=8)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for ax in axes[-1]:
        ax.set_xlabel(step_label)
    if not len(pixels):
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=min(5, len(names)), loc="outside lower center")
    fig.suptitle(title)
    return fig


@styled
def maps(
    panels: Mapping[str, np.ndarray],
    labels: Sequence[int] | None,
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Draw several maps of the same images, coloured by class, as in Fig. 8 of the EN paper.

    With more than :data:`NAMED_CLASSES` classes there is no legend; the ten colours repeat.

    Args:
        panels: title -> points (N, 2). Each panel has its own scale, without numbers.
        labels: class index of each image, or None for one colour.
        classes: names; empty without labels.
        title: of the figure.
    """
    columns = min(5, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig = figure(max(5, 2.2 * columns), 2.2 * rows + 1.2)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (name, points) in zip(axes, panels.items(), strict=False):
        _draw_points(ax, points, labels, float(np.clip(3000 / len(points), 2, 12)))
        ax.set_title(name)
        ax.set(xticks=[], yticks=[])
    if labels is not None and len(classes) <= NAMED_CLASSES:
        named = zip(classes, cycle(OKABE_ITO), strict=False)
        dots = [axes[0].scatter([], [], s=16, c=colour, label=n) for n, colour in named]
        fig.legend(handles=dots, ncols=max(4, 2 * columns), loc="outside lower center")
    fig.suptitle(title)
    return fig
