"""Write reports on the ratios, or omega and beta, of adaptive layers: CSV tables, PNGs, a summary.

:func:`write_ratios` and :func:`write_rescaling` write the same files, under the prefix ``ratios``
or ``rescaling``; :func:`write_comparison` compares reports on ratios. A *quantity* is a
normalizer's ratio, or omega - B_omega or beta - B_beta:

========================  ==========================================================================
PREFIX_by_layer .csv      distribution of each quantity over images and key groups
PREFIX_by_group .csv      the same by key group; rescaling only
PREFIX_spread .png        these distributions as boxes; for rescaling, also less the mean of images
ratios_by_layer .png      mean and standard deviation of the ratios over depth
PREFIX_by_class .csv .png the same by class, and the distance of the class mean from the mean of all
                          images; only if the images have classes
PREFIX_by_image .csv .png one number an image, layer and quantity; drawn for the images that are
                          farthest from the mean, of different classes first
PREFIX_map .csv .png      the images in two dimensions, if there are at least three
summary.txt               the returned text
========================  ==========================================================================

A ratio is one number for an image, and its distance from a mean is the difference. Omega and beta
have one value for each key group: their number for an image, like a distance, is the root mean
square over key groups of the difference from the mean of all images.
"""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import replacing
from ..data.images import Images
from ..errors import OptionError, UserError, missing
from . import plots
from .collect import Ratios, Rescaling

try:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
except ImportError as error:
    raise missing("drawing", error, "analysis") from error

#: Layer, quantity and values, (images, key groups), layer by layer; a ratio has one column. Values
#: are masked where nothing of an image reached the layer.
Values = Sequence[tuple[str, str, np.ma.MaskedArray]]
STATISTICS = ("mean", "std", *plots.QUANTILE_NAMES)
#: Prefix -> header of the column of quantities.
COLUMNS = {"ratios": "normalizer", "rescaling": "parameter"}
#: Quantity -> its label in pictures. For a normalizer's ratio the label is "ratio of NAME".
LABELS = {"omega": r"$\omega - B_\omega$", "beta": r"$\beta - B_\beta$"}
#: Maximum number of images in PREFIX_by_image.png.
SHOWN = 6
#: Methods of :func:`embed`.
EMBEDDINGS = ("pca", "tsne")


@dataclass(frozen=True)
class _ReportWriter:
    """Writes the files of a report on ratios or on rescaling; the module's description lists them.

    Attributes:
        folder: folder of the files.
        prefix: "ratios" or "rescaling".
        values: of all layers, from the input to the output.
        images: the images of the values, in the same order.
        subject: model, checkpoint and images, for titles.
    """

    folder: Path
    prefix: str
    values: Values
    images: Images
    subject: str

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(dict.fromkeys(layer for layer, *_ in self.values))

    def write_layers(self) -> None:
        """Write PREFIX_by_layer.csv, and for rescaling PREFIX_by_group.csv: the distributions."""
        by_layer, by_group = [], []
        depths = {layer: depth for depth, layer in enumerate(self.layers)}
        for layer, quantity, values in self.values:
            place = depths[layer], layer, quantity
            by_layer.append((*place, *_statistics(values)))
            by_group += [(*place, i, *_statistics(group)) for i, group in enumerate(values.T)]
        header = "depth", "layer", COLUMNS[self.prefix]
        self._write("by_layer", (*header, *STATISTICS), by_layer)
        if self.prefix == "rescaling":
            self._write("by_group", (*header, "key_group", *STATISTICS), by_group)

    def write_images(self, embedding: str) -> list[str]:
        """Write the files that compare images; return lines of the summary.

        These are the files spread, by_image, by_class (only if the images have classes) and map
        (only for three or more images that differ). ``embedding`` is the method of the map, "pca"
        or "tsne".
        """
        self._draw_spread()
        features = features_of(self.values)
        distances = np.sqrt((features**2).sum(1))
        self._write_by_image(distances)
        deviations = [values.std(0).mean() for *_, values in self.values]
        farthest = self.images.names[distances.argmax()]
        lines = [
            f"standard deviation between images, mean over layers: {np.ma.mean(deviations):.4f}",
            f"farthest from the mean of all images: {farthest}, {distances.max():.4f}",
        ]
        if self.images.labels is not None:
            self._write_by_class()
            share = share_between_classes(features, self.images.labels)
            lines.append(
                f"share of the variance between images that lies between classes: {share:.3f}"
            )
        if len(features) > 2 and features.any():
            self._write_map(features, embedding)
        return lines

    def _one_number(self, values: np.ma.MaskedArray) -> np.ma.MaskedArray:
        """Return (N, key groups) as (N): a ratio as it is, others as root mean squares."""
        return values[:, 0] if self.prefix == "ratios" else rms(values)

    def _draw_spread(self) -> None:
        """Draw PREFIX_spread.png: the distributions of the values by layer, as boxes."""
        panels, colours = defaultdict(lambda: [np.ma.masked_all(1)] * len(self.layers)), []
        for layer, quantity, values in self.values:
            depth, label = self.layers.index(layer), _label(quantity)
            panels[label][depth] = values
            if self.prefix == "rescaling":
                panels[f"{label},\nless the mean"][depth] = values - values.mean(0)
            colours += [plots.LINES[quantity]["color"]] * (len(panels) - len(colours))
        title = f"{self.prefix.capitalize()} of images by layer: {plots.BOXES}\n{self.subject}"
        self._save(plots.boxes(self.layers, panels, title, colours), "spread")

    def _write_by_image(self, distances: np.ndarray) -> None:
        """Write PREFIX_by_image.csv, and draw the images that are farthest from the mean.

        At most :data:`SHOWN` images are drawn, the farthest of each class first, to
        PREFIX_by_image.png. ``distances`` (images) are their distances from the mean of all images.
        """
        numbers = [
            (layer, quantity, self._one_number(v if self.prefix == "ratios" else v - v.mean(0)))
            for layer, quantity, v in self.values
        ]
        table = np.ma.stack([n for *_, n in numbers], 1).filled(np.nan).tolist()
        named = zip(self._names_and_classes(), distances.tolist(), table, strict=True)
        header = ("image", "class", "distance", *(f"{layer}/{q}" for layer, q, _ in numbers))
        self._write("by_image", header, [(*names, far, *row) for names, far, row in named])

        series = by_quantity(numbers)
        classes = [self.images.class_of(i) for i in range(len(self.images))]
        order = np.argsort(-distances, kind="stable").tolist()
        firsts = {classes[i]: i for i in reversed(order)}.values()
        shown = [*(i for i in order if i in firsts), *(i for i in order if i not in firsts)][:SHOWN]
        strips = [
            (self.images.caption(i), self.images[i], {q: s[i] for q, s in series.items()})
            for i in shown
        ]
        title = f"Images that are farthest from the mean\n{self.subject}"
        level = None
        if self.prefix == "ratios":
            level = plots.uniform(series.values())
        self._save(plots.strips(self.layers, strips, title, level), "by_image")

    def _write_by_class(self) -> None:
        """Write PREFIX_by_class.csv, and draw its heat maps to PREFIX_by_class.png.

        The images must have labels; classes without images are left out.
        """
        labels = np.asarray(self.images.labels)
        present = np.unique(labels)
        names = [self.images.classes[i] for i in present]
        rows, distances = [], []
        for layer, quantity, values in self.values:
            of_classes = [values[labels == i] for i in present]
            deviations = np.ma.stack([v.mean(0) for v in of_classes]) - values.mean(0)
            far = self._one_number(deviations)
            distances.append((layer, quantity, far))
            rows += [
                (layer, name, quantity, distance, *_statistics(v))
                for name, distance, v in zip(
                    names, far.filled(np.nan).tolist(), of_classes, strict=True
                )
            ]
        header = "layer", "class", COLUMNS[self.prefix], "distance", *STATISTICS
        self._write("by_class", header, rows)
        fig = plots.heat_maps(
            self.layers,
            names,
            {_label(quantity): panel for quantity, panel in by_quantity(distances).items()},
            f"{self.prefix.capitalize()} by class\n{self.subject}",
            diverging=self.prefix == "ratios",
        )
        self._save(fig, "by_class")

    def _write_map(self, features: np.ndarray, embedding: str) -> None:
        """Write PREFIX_map.csv and PREFIX_map.png: the images in two dimensions; see :func:`embed`.

        ``features`` is (images, D), ``embedding`` is "pca" or "tsne".
        """
        points, axes = embed(features, embedding)
        rows = [
            (*n, *point)
            for n, point in zip(self._names_and_classes(), points.tolist(), strict=True)
        ]
        self._write("map", ("image", "class", "x", "y"), rows)
        title = f"Images by their {self.prefix} in all layers, {features.shape[1]} numbers each"
        images = self.images
        fig = plots.scatter(points, images.labels, images.classes, f"{title}\n{self.subject}", axes)
        self._save(fig, "map")

    def _names_and_classes(self) -> list[tuple[str, str]]:
        """Return the name and the class of each image."""
        return [(name, self.images.class_of(i)) for i, name in enumerate(self.images.names)]

    def _write(self, what: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the table PREFIX_what.csv."""
        write_csv(self.folder / f"{self.prefix}_{what}.csv", header, rows)

    def _save(self, fig: plots.Figure, what: str) -> None:
        """Write the picture PREFIX_what.png."""
        plots.save(fig, self.folder / f"{self.prefix}_{what}.png")


def write_ratios(
    folder: Path,
    ratios: Mapping[str, Ratios],
    images: Images,
    subject: str,
    embedding: str = "pca",
) -> str:
    """Write a report on a model's ratios: CSV tables, PNG pictures and ``summary.txt``.

    The module's description lists the files. Layers with the same ratios for all images (SN's, and
    EN's before training) are only in the tables and pictures by layer.

    Args:
        folder: an existing folder; files of a former report in it are replaced one by one.
        ratios: layer -> ratios of ``images``, in their order, on the CPU; at least one layer; see
            :func:`~.collect.collect_ratios`.
        images: the images; a few are decoded again, to be drawn.
        subject: model, checkpoint and images, for titles.
        embedding: method of the map, "pca" (principal components) or "tsne".

    Returns:
        The text of the summary.

    Raises:
        UserError: an image to be drawn is unreadable.
        RunError: a file cannot be written.
    """
    report = _ReportWriter(folder, "ratios", values_of(ratios), images, subject)
    report.write_layers()
    of_images = by_quantity([(layer, n, v[:, 0]) for layer, n, v in report.values])
    moments = {n: (v.mean(0), v.std(0)) for n, v in of_images.items()}
    fig = plots.by_layer(report.layers, {subject: moments}, "Mean ratios by layer")
    plots.save(fig, folder / "ratios_by_layer.png")

    width = max(map(len, ratios))
    lines = [
        subject,
        f"mean |lambda - 1/K| over {count_layers(ratios)}: {mean_distance(ratios):.4f}",
        f"{'layer':{width}}  |lambda - 1/K|  mean ratios",
    ]
    for name, r in ratios.items():
        pairs = zip(r.normalizers, r.mean.tolist(), strict=True)
        shown = "  ".join(f"{normalizer} {mean:.3f}" for normalizer, mean in pairs)
        lines.append(f"{name:{width}}  {r.distance:14.4f}  {shown}")

    own = {name: r for name, r in ratios.items() if varies(r)}
    constant = [name for name in ratios if name not in own]
    if own and constant:
        same = "their ratios are the same for all images"
        lines.append(f"in the tables by layer alone, as {same}: {', '.join(constant)}")
    if own:
        lines += replace(report, values=values_of(own)).write_images(embedding)
    else:
        lines.append("the ratios are the same for all images: nothing more to show")
    return write_summary(folder, lines)


def count_layers(names: Iterable[str]) -> str:
    """Return the number of layers with its noun; SN's have two sets of ratios each.

    Args:
        names: layers, or sets of ratios LAYER.mean and LAYER.var.
    """
    layers = {name.removesuffix(".mean").removesuffix(".var") for name in names}
    return f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'}"


def write_rescaling(
    folder: Path,
    layers: Mapping[str, Rescaling],
    images: Images,
    subject: str,
    embedding: str = "pca",
) -> str:
    """Write a report on a model's omega and beta: CSV tables, PNG pictures and ``summary.txt``.

    The other arguments, the result and the errors are those of :func:`write_ratios`.

    Args:
        layers: layer -> its omega and beta, minus weight and bias, for ``images``, in their order,
            on the CPU; at least one layer; see :func:`~.collect.collect_rescaling`.
    """
    values = [
        (name, parameter, np.ma.masked_invalid(getattr(layer, parameter).numpy()))
        for name, layer in layers.items()
        for parameter in ("omega", "beta")
    ]
    report = _ReportWriter(folder, "rescaling", values, images, subject)
    report.write_layers()
    width = max(map(len, layers))
    lines = [
        subject,
        "mean of omega - B_omega and of beta - B_beta, +- deviation of an image from all images",
        f"{'layer':{width}}  {'omega':18}  beta",
    ]
    of = [f"{v.mean():+.4f} +- {math.sqrt(v.var(0).mean()):.4f}" for *_, v in values]
    for name, omega, beta in zip(layers, of[::2], of[1::2], strict=True):
        lines.append(f"{name:{width}}  {omega:18}  {beta}")
    return write_summary(folder, lines + report.write_images(embedding))


def write_comparison(folder: Path, reports: Sequence[str | os.PathLike]) -> str:
    """Draw the mean ratios by layer of several reports, as of two data sets (EN paper, Fig. 4).

    ``comparison.png`` has a panel for each report, ``summary.txt`` the mean ratios.

    Args:
        folder: an existing folder; files of these names in it are replaced.
        reports: at least one folder that :func:`write_ratios` wrote; their models may differ.

    Returns:
        The text of the summary.

    Raises:
        UserError: a folder has no such report.
        RunError: a file cannot be written.
    """
    read = [_read_report(Path(report)) for report in reports]
    layers = merge_names([list(of_layers) for _, of_layers in read])
    names = list(dict.fromkeys(n for _, of in read for found in of.values() for n in found))
    panels = {}
    for i, (subject, of_layers) in enumerate(read, 1):
        cells = np.array([[of_layers.get(x, {}).get(n, MISSING) for x in layers] for n in names])
        mean, std = np.moveaxis(np.ma.masked_invalid(cells), 2, 0)
        panels[f"{i}: {subject}"] = {n: (mean[k], std[k]) for k, n in enumerate(names)}
    plots.save(plots.by_layer(layers, panels, "Mean ratios by layer"), folder / "comparison.png")

    width = max(map(len, layers))
    columns = [f"{n} {i}" for n in names for i in range(1, len(read) + 1)]
    lines = [*panels, f"{'layer':{width}}  {'  '.join(f'{c:>5}' for c in columns)}"]
    of_columns = np.ma.stack([panel[n][0] for n in names for panel in panels.values()])
    for layer, values in zip(layers, of_columns.filled(np.nan).T, strict=True):
        lines.append(f"{layer:{width}}  {'  '.join(f'{v:5.3f}' for v in values)}")
    first, *others = panels.values()
    for i, other in enumerate(others, 2):
        far = {n: np.ma.abs(other[n][0] - first[n][0]).mean() for n in names}
        of_names = "  ".join(f"{n} {value:.3f}" for n, value in far.items())
        lines.append(f"mean |difference| of {i} from 1 over layers: {of_names}")
    return write_summary(folder, lines)


#: Mean and standard deviation of a ratio that a layer does not have.
MISSING = (math.nan, math.nan)


def _read_report(folder: Path) -> tuple[str, dict[str, dict[str, tuple[float, float]]]]:
    """Read a report on ratios.

    Returns:
        Its subject; and layer -> normalizer -> mean and standard deviation over images, NaN where
        nothing reached the layer.

    Raises:
        UserError: the folder has no such report, or its files are damaged.
    """
    of_layers: dict[str, dict[str, tuple[float, float]]] = {}
    try:
        subject = (folder / "summary.txt").read_text(encoding="utf-8").splitlines()[0]
        with (folder / "ratios_by_layer.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                moments = tuple(float(row[name] or "nan") for name in ("mean", "std"))
                of_layers.setdefault(row["layer"], {})[row["normalizer"]] = moments
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{folder} has no report on ratios ({type(error).__name__}: {error}); "
            "give a folder that 'analyze.py ratios' wrote"
        ) from error
    if not of_layers:
        raise UserError(f"{folder / 'ratios_by_layer.csv'} has no rows; write the report again")
    return subject, of_layers


def embed(features: np.ndarray, method: str = "pca") -> tuple[np.ndarray, tuple[str, str]]:
    """Map features to two dimensions.

    Args:
        features: (N, D) without NaN, N >= 3 and D >= 2.
        method: "pca", each component with its largest loading positive; or "tsne" (van der Maaten
            and Hinton, JMLR 2008), which starts from the principal components, with random seed 0.

    Returns:
        Points (N, 2), and the labels of the two axes.

    Raises:
        OptionError: the method is unknown.
    """
    if method not in EMBEDDINGS:
        raise OptionError(f"unknown method {method!r} of a map; give one of {EMBEDDINGS}")
    if method == "pca":
        pca = PCA(2, svd_solver="full")
        points = pca.fit_transform(features)
        first, second = (
            f"principal component {i} ({share:.0%} of the variance)"
            for i, share in enumerate(pca.explained_variance_ratio_, 1)
        )
        return points, (first, second)
    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    return tsne.fit_transform(features), ("t-SNE 1", "t-SNE 2")


def features_of(values: Values) -> np.ndarray:
    """Return all values of each image, less their means over images: (images, D).

    They are divided by the square root of their number in a layer, to weigh layers equally; masked
    values are 0.
    """
    deviations = [of_layer - of_layer.mean(0) for *_, of_layer in values]
    return np.concatenate([d.filled(0) / math.sqrt(d.shape[1]) for d in deviations], 1)


def share_between_classes(features: np.ndarray, labels: Sequence[int]) -> float:
    """Return the share, 0 to 1, of the variance of features that lies between classes.

    It is 0 if all rows are equal.

    Args:
        features: (N, D).
        labels: class of each row.
    """
    labels = np.asarray(labels)
    total = ((features - features.mean(0)) ** 2).sum()
    within = sum(
        ((of_class - of_class.mean(0)) ** 2).sum()
        for of_class in (features[labels == i] for i in np.unique(labels))
    )
    return float(1 - within / total) if total > 0 else 0.0


def varies(ratios: Ratios) -> bool:
    """Return whether the ratios of a layer differ between images; rows of NaN are ignored."""
    seen = ratios.values[~ratios.values.isnan().any(1)]
    return bool((seen != seen[:1]).any())


def rms(values: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Return the root mean square over key groups: (N, key groups) -> (N)."""
    return np.ma.sqrt((values**2).mean(1))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically.

    Floats have six significant digits; NaN becomes an empty cell. An existing file is replaced.

    Raises:
        RunError: the file cannot be written.
    """
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def write_summary(folder: Path, lines: Iterable[str]) -> str:
    """Write lines to ``summary.txt`` in a folder, atomically; return them as one text.

    Raises:
        RunError: the file cannot be written.
    """
    text = "\n".join(lines)
    with replacing(folder / "summary.txt", "w") as file:
        file.write(f"{text}\n")
    return text


def _cell(value: Any) -> Any:
    """Return a CSV cell: floats with six significant digits, NaN as an empty string."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _label(quantity: str) -> str:
    """Return the label of a quantity in pictures."""
    return LABELS.get(quantity, f"ratio of {quantity}")


def _statistics(values: np.ma.MaskedArray) -> tuple[float, ...]:
    """Return the :data:`STATISTICS` of the unmasked values; NaN if all are masked."""
    present = values.compressed().astype(float)
    if not present.size:
        return (math.nan,) * len(STATISTICS)
    quantiles = np.quantile(present, plots.QUANTILES)
    return tuple(map(float, (present.mean(), present.std(), *quantiles)))


def by_quantity(numbers: Values) -> dict[str, np.ma.MaskedArray]:
    """Return quantity -> (N, layers), masked where a layer lacks the quantity.

    Args:
        numbers: layer, quantity and (N) values, layer by layer.
    """
    columns = {(layer, quantity): values for layer, quantity, values in numbers}
    layers, quantities = (dict.fromkeys(names) for names in zip(*columns, strict=True))
    missing = np.ma.masked_all(len(numbers[0][2]))
    return {
        quantity: np.ma.stack([columns.get((layer, quantity), missing) for layer in layers], 1)
        for quantity in quantities
    }


def values_of(ratios: Mapping[str, Ratios]) -> Values:
    """Return layer, normalizer and ratios, (images, 1), with NaN masked."""
    return [
        (layer, normalizer, np.ma.masked_invalid(column[:, None].numpy()))
        for layer, r in ratios.items()
        for normalizer, column in zip(r.normalizers, r.values.unbind(1), strict=True)
    ]


def mean_distance(ratios: Mapping[str, Ratios]) -> float:
    """Return the mean of abs(ratio - 1/K) over layers."""
    return float(np.nanmean([r.distance for r in ratios.values()]))


def merge_names(orders: Iterable[Collection[str]]) -> list[str]:
    """Merge lists of names into one without repetitions, which keeps the order of the lists.

    A name that longer lists lack comes right behind its predecessor in its own list. Where lists
    disagree on the order, the longer one decides.
    """
    merged: list[str] = []
    for names in sorted(orders, key=len, reverse=True):
        place = 0
        for name in names:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged
