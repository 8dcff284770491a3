"""Write how ratios change over the checkpoints of a training: CSV tables, PNGs, a summary.

==========================  ========================================================================
dynamics_by_layer .csv .png mean ratios of all images by layer (EN paper, Fig. 5)
dynamics_by_class .csv .png mean ratios of each class, as far as there are colours for classes
                            (Figs. 1a and 6); only if the images have classes
dynamics_by_image .csv .png ratios of three images of the first class (Fig. 7): those nearest to, at
                            the median distance of and farthest from the mean of the class at the
                            last checkpoint
dynamics_map .csv .png      the images in two dimensions, at ten checkpoints evenly spread from the
                            first to the last (Fig. 8)
summary.txt                 the returned text
==========================  ========================================================================

Pictures by class and image show six layers, evenly spread over depth; the tables have all. Layers
with the same ratios for all images (SN's) are only in the table and picture by layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.images import Images
from . import plots, tables
from .collect import Ratios

#: Maximum number of layers in the pictures by class and by image.
LAYERS = 6
#: Maximum number of checkpoints in dynamics_map.
MAPS = 10
#: Number of images in dynamics_by_image.
IMAGES = 3

#: Layer -> ratios of all images, at one checkpoint.
OfLayers = Mapping[str, Ratios]


def write_dynamics(
    folder: Path,
    steps: Sequence[int],
    ratios: Sequence[OfLayers],
    images: Images,
    subject: str,
    step_label: str = "epoch",
    embedding: str = "pca",
) -> str:
    """Write how ratios change over the checkpoints of a training; the module lists the files.

    ``summary.txt`` has, for each checkpoint, the mean abs(ratio - 1/K), the standard deviation
    between images (mean over layers and normalizers) and the share of the variance between images
    that lies between classes; then the ratios of classes and images at the last checkpoint. Where
    nothing reached a layer at a checkpoint, as in a mask head without detections, its cells in the
    tables are empty.

    Args:
        folder: an existing folder; files of these names in it are replaced.
        steps: epoch or iteration of each checkpoint, ascending.
        ratios: for each of the ``steps`` layer -> ratios of ``images``, in their order; see
            :func:`~.collect.collect_ratios`; a checkpoint may lack layers.
        images: the images; three are decoded again, to be drawn.
        subject: model and images, for titles.
        step_label: "epoch" or "iteration".
        embedding: method of the maps, "pca" (principal components) or "tsne".

    Returns:
        The text of the summary.

    Raises:
        UserError: an image to be drawn is unreadable.
        RunError: a file cannot be written.
    """
    layers = tables.merge_names(ratios)
    counts = [len(of_step) for of_step in ratios]
    ratios = _filled(ratios, layers)
    report = _DynamicsWriter(folder, steps, images, subject, step_label)
    report.write_by_layer(ratios)

    varying = [name for name in layers if any(tables.varies(of[name]) for of in ratios)]
    own = [tables.values_of({name: of[name] for name in varying}) for of in ratios]
    features = [tables.features_of(values) for values in own if varying]
    lines = [subject, f"{step_label}  mean |lambda - 1/K| over {tables.count_layers(layers)}"]
    if varying:
        lines[-1] += ", standard deviation between images"
        if images.labels is not None:
            lines[-1] += ", share of the variance between images that lies between classes"
    for i, step in enumerate(steps):
        line = f"{step:{len(step_label)}}  {tables.mean_distance(ratios[i]):.4f}"
        if varying:
            deviations = [np.ma.filled(v.std(0).mean(), np.nan) for *_, v in own[i]]
            line += f"  {np.nanmean(deviations):.4f}"
            if images.labels is not None:
                line += f"  {tables.share_between_classes(features[i], images.labels):.3f}"
        but = "" if counts[i] == len(layers) else f"  of the {counts[i]} that got an input"
        lines.append(line + but)
    if varying:
        lines += report.write_by_class(own, varying) if images.labels is not None else []
        lines += report.write_by_image(own, varying, features[-1])
        report.write_map(features, embedding)
    return tables.write_summary(folder, lines)


@dataclass(frozen=True)
class _DynamicsWriter:
    """Writes the files of a report; the attributes are arguments of :func:`write_dynamics`."""

    folder: Path
    steps: Sequence[int]
    images: Images
    subject: str
    step_label: str

    def write_by_layer(self, ratios: Sequence[OfLayers]) -> None:
        """Write dynamics_by_layer.csv and .png; all of ``ratios`` have the same layers."""
        rows = [
            (step, name, normalizer, float(mean), r.distance)
            for step, of_step in zip(self.steps, ratios, strict=True)
            for name, r in of_step.items()
            for normalizer, mean in zip(r.normalizers, r.mean, strict=True)
        ]
        header = "layer", "normalizer", "mean", "layer_mean_abs_from_uniform"
        self._write("by_layer", header, rows)
        means = [
            tables.by_quantity([(layer, n, v.mean(0)) for layer, n, v in tables.values_of(of_step)])
            for of_step in ratios
        ]
        panels = {n: np.ma.concatenate([of_step[n] for of_step in means]) for n in means[0]}
        title = f"Mean ratios over the training\n{self.subject}"
        fig = plots.dynamics(list(ratios[0]), self.steps, panels, title, self.step_label)
        self._save(fig, "by_layer")

    def write_by_class(self, own: Sequence[tables.Values], layers: Sequence[str]) -> list[str]:
        """Write dynamics_by_class.csv and .png; return the ratios at the last checkpoint.

        Args:
            own: for each checkpoint the ratios of images that have classes.
            layers: names of the layers.
        """
        labels = np.asarray(self.images.labels)
        present = np.unique(labels)
        names = [self.images.classes[i] for i in present]
        means = [
            [
                (layer, n, np.ma.stack([v[labels == i].mean(0) for i in present])[:, 0])
                for layer, n, v in values
            ]
            for values in own
        ]
        return self._write_lines("class", names, means, layers)

    def write_by_image(
        self, own: Sequence[tables.Values], layers: Sequence[str], features: np.ndarray
    ) -> list[str]:
        """Write dynamics_by_image.csv and .png; return the ratios at the last checkpoint.

        Args:
            own: for each checkpoint the ratios of all images.
            layers: names of the layers.
            features: (images, D) of the last checkpoint, by which images are chosen.
        """
        labels = self.images.labels
        of_class = np.arange(len(features))
        if labels is not None:
            of_class = np.flatnonzero(np.asarray(labels) == min(labels))
        deviations = features[of_class] - features[of_class].mean(0)
        order = of_class[np.argsort((deviations**2).sum(1), kind="stable")]
        places = np.linspace(0, len(order) - 1, IMAGES).round().astype(int)
        chosen = [int(i) for i in dict.fromkeys(order[places])]
        names = [self.images.caption(i) for i in chosen]
        values = [[(layer, n, v[chosen, 0]) for layer, n, v in of_step] for of_step in own]
        pixels = [self.images[i] for i in chosen]
        return self._write_lines("image", names, values, layers, pixels)

    def _write_lines(
        self,
        what: str,
        names: Sequence[str],
        numbers: Sequence[tables.Values],
        layers: Sequence[str],
        pixels: Sequence[np.ndarray] = (),
    ) -> list[str]:
        """Write dynamics_by_WHAT.csv and .png; return a table of the ratios at the last checkpoint.

        Args:
            what: "class" or "image".
            names: of the classes or images.
            numbers: for each checkpoint layer, normalizer and (names) ratios.
            layers: names of the layers.
            pixels: the images; empty for classes.
        """
        flat = [" ".join(name.split("\n")) for name in names]
        rows = [
            (step, layer, name, normalizer, float(np.ma.filled(value, np.nan)))
            for step, of_step in zip(self.steps, numbers, strict=True)
            for layer, normalizer, values in of_step
            for name, value in zip(flat, values, strict=True)
        ]
        self._write(f"by_{what}", ("layer", what, "normalizer", "ratio"), rows)

        count = min(len(layers), LAYERS)
        shown = [layers[i * (len(layers) - 1) // max(1, count - 1)] for i in range(count)]
        drawn = names[: len(plots.OKABE_ITO)]
        few = [[n for n in of_step if n[0] in shown] for of_step in numbers]
        panels = [tables.by_quantity(of_step) for of_step in few]
        series = {n: np.ma.stack([of[n][: len(drawn)] for of in panels]) for n in panels[0]}
        title = f"Ratios by {what} over the training\n{self.subject}"
        fig = plots.dynamics_of(
            shown, self.steps, drawn, series, title, self.step_label, pixels=pixels
        )
        self._save(fig, f"by_{what}")

        width = max(len(f"{layer} {normalizer}") for layer, normalizer, _ in few[-1])
        columns = [max(len(name), 5) for name in flat]
        heading = "  ".join(f"{n:>{w}}" for n, w in zip(flat, columns, strict=True))
        lines = [f"{f'{self.step_label} {self.steps[-1]}':{width}}  {heading}"]
        for layer, normalizer, values in few[-1]:
            ratios = zip(np.ma.filled(values, np.nan), columns, strict=True)
            cells = "  ".join(f"{value:{w}.3f}" for value, w in ratios)
            lines.append(f"{f'{layer} {normalizer}':{width}}  {cells}")
        return lines

    def write_map(self, features: Sequence[np.ndarray], embedding: str) -> None:
        """Write dynamics_map.csv and .png, if there are at least three images.

        Args:
            features: for each checkpoint (images, D).
            embedding: see :func:`.tables.embed`.
        """
        if len(features[0]) < 3:
            return
        count = min(len(self.steps), MAPS)
        chosen = np.linspace(0, len(self.steps) - 1, count).round().astype(int)
        panels, rows = {}, []
        for i in chosen:
            points = np.zeros((len(features[i]), 2))
            if features[i].any():
                points, _ = tables.embed(features[i], embedding)
            panels[f"{self.step_label} {self.steps[i]}"] = points
            rows += [
                (self.steps[i], name, self.images.class_of(n), *points[n].tolist())
                for n, name in enumerate(self.images.names)
            ]
        self._write("map", ("image", "class", "x", "y"), rows)
        method = {"pca": "Principal components", "tsne": "t-SNE"}[embedding]
        title = f"{method} of the ratios in all layers, {features[0].shape[1]} numbers an image"
        title = f"{title}\n{self.subject}"
        fig = plots.maps(panels, self.images.labels, self.images.classes, title)
        self._save(fig, "map")

    def _write(self, what: str, header: Sequence[str], rows: Iterable[Sequence]) -> None:
        """Write the table dynamics_WHAT.csv, whose first column is the epoch or iteration."""
        tables.write_csv(self.folder / f"dynamics_{what}.csv", (self.step_label, *header), rows)

    def _save(self, fig: plots.Figure, what: str) -> None:
        """Write the picture dynamics_WHAT.png."""
        plots.save(fig, self.folder / f"dynamics_{what}.png")


def _filled(ratios: Sequence[OfLayers], layers: Sequence[str]) -> list[OfLayers]:
    """Return the ratios with all ``layers`` at each checkpoint, NaN where it lacks one."""
    nothing = {
        name: Ratios(r.normalizers, torch.full_like(r.values, torch.nan))
        for of_step in ratios
        for name, r in of_step.items()
    }
    return [{name: (nothing | dict(of_step))[name] for name in layers} for of_step in ratios]
