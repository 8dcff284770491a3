"""What EN's and SN's ratios are, written to a folder: tables, pictures and a summary."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import plots
from .collect import Ratios
from .embed import embed, share_between_classes
from .images import Images
from .tables import write_csv, write_summary

#: Images that are shown one by one.
SHOWN = 6


def write_ratios(
    folder: Path,
    ratios: Mapping[str, Ratios],
    images: Images,
    subject: str,
    embedding: str = "pca",
) -> str:
    """Write a model's ratios over images.

    ==============================  ==============================================================
    ratios_by_layer .csv .png       mean and standard deviation over images (EN paper, Fig. 4), and
                                    mean abs(lambda - 1/K)
    ratios_spread .csv .png         how images differ: quantiles
    ratios_by_class .csv .png       means of the classes (Fig. 6); drawn, less that of all images
    ratios_by_image .csv .png       all images; drawn, those that are farthest from the mean, no two
                                    of a class while there are others (Fig. 7)
    ratios_map .csv .png            each image's ratios of all layers, in two dimensions (Fig. 8)
    summary.txt                     what is returned
    ==============================  ==============================================================

    By class nothing is written where there are no classes. Layers whose ratios are the same for all
    images, as SN's are, and EN's before it is trained, are in the tables by layer alone.

    Args:
        folder: is there, and empty.
        ratios: see :func:`~.collect.collect_ratios`; of ``images``, in their order.
        subject: what was looked at, for titles.
        embedding: "pca" or "tsne".

    Returns:
        The summary.

    Raises:
        UserError: scikit-learn is needed, and not installed.
    """
    panels = by_normalizer(ratios)
    layers = list(ratios)
    _by_layer(folder, ratios)
    title = f"Mean ratios by layer\n{subject}"
    plots.save(plots.by_layer(layers, panels, title), folder / "ratios_by_layer.png")
    lines = summary(ratios, subject)
    own = {n: r for n, r in ratios.items() if varies(r)}
    if own:
        constant = [name for name in ratios if name not in own]
        if constant:
            same = "their ratios are the same for all images"
            lines.append(f"in the tables by layer alone, as {same}: {', '.join(constant)}")
        lines += _by_image(folder, own, images, subject, embedding)
    else:
        lines.append("the ratios are the same for all images: nothing more to show")
    return write_summary(folder, lines)


def varies(ratios: Ratios) -> bool:
    """Whether a layer has ratios of each image's own."""
    seen = ratios.values[~ratios.values.isnan().any(1)]
    return bool((seen != seen[:1]).any())


def by_normalizer(ratios: Mapping[str, Ratios]) -> dict[str, np.ma.MaskedArray]:
    """Normalizer -> (images, layers); masked where a layer does not have it, or saw nothing."""
    names = dict.fromkeys(n for r in ratios.values() for n in r.normalizers)
    columns = {name: [_column(r, name) for r in ratios.values()] for name in names}
    return {name: np.ma.masked_invalid(np.stack(c, 1)) for name, c in columns.items()}


def _column(ratios: Ratios, normalizer: str) -> np.ndarray:
    if normalizer not in ratios.normalizers:
        return np.full(len(ratios.values), np.nan)
    return ratios.values[:, ratios.normalizers.index(normalizer)].numpy()


def mean_distance(ratios: Mapping[str, Ratios]) -> float:
    """Mean abs(lambda - 1/K) over layers."""
    return float(np.nanmean([r.distance for r in ratios.values()]))


def summary(ratios: Mapping[str, Ratios], subject: str) -> list[str]:
    """Lines: the mean distance from uniform ratios, overall and by layer."""
    width = max(map(len, ratios))
    lines = [
        subject,
        f"mean |lambda - 1/K| over {len(ratios)} layers: {mean_distance(ratios):.4f}",
        f"{'layer':{width}}  |lambda - 1/K|  mean ratios",
    ]
    for name, r in ratios.items():
        pairs = zip(r.normalizers, r.mean.tolist(), strict=True)
        means = "  ".join(f"{normalizer} {mean:.3f}" for normalizer, mean in pairs)
        lines.append(f"{name:{width}}  {r.distance:14.4f}  {means}")
    return lines


def _by_layer(folder: Path, ratios: Mapping[str, Ratios]) -> None:
    rows, spread = [], []
    for i, (name, r) in enumerate(ratios.items()):
        for k, normalizer in enumerate(r.normalizers):
            values = r.values[:, k].double()
            values = values[~values.isnan()]
            deviation = values.std(correction=0).item()
            rows.append((i, name, normalizer, values.mean().item(), deviation, r.distance))
            quantiles = np.quantile(values.numpy(), plots.QUANTILES).tolist()
            spread.append((i, name, normalizer, deviation, *quantiles))
    header = ("depth", "layer", "normalizer", "mean", "std", "layer_mean_abs_from_uniform")
    write_csv(folder / "ratios_by_layer.csv", header, rows)
    if any(varies(r) for r in ratios.values()):
        header = ("depth", "layer", "normalizer", "std", *plots.QUANTILE_NAMES)
        write_csv(folder / "ratios_spread.csv", header, spread)


def _by_image(
    folder: Path,
    ratios: Mapping[str, Ratios],
    images: Images,
    subject: str,
    embedding: str,
) -> list[str]:
    panels, layers = by_normalizer(ratios), list(ratios)
    columns = [(name, n) for name, r in ratios.items() for n in r.normalizers]
    features = torch.cat([r.values for r in ratios.values()], 1)
    named = [(images.names[i], images.class_of(i)) for i in range(len(images))]
    header = ("image", "class", *(f"{name}/{normalizer}" for name, normalizer in columns))
    rows = ((*n, *f) for n, f in zip(named, features.tolist(), strict=True))
    write_csv(folder / "ratios_by_image.csv", header, rows)

    spread = {f"ratio of {n}": list(values.T) for n, values in panels.items()}
    colours = [plots.OF_NORMALIZER[n][0] for n in panels]
    title = f"Ratios of images by layer: {plots.BOXES}\n{subject}"
    plots.save(plots.boxes(layers, spread, title, colours), folder / "ratios_spread.png")

    farthest = _farthest(features, images)
    shown = [
        (
            images.caption(i),
            images[i],
            np.ma.stack([values[i] for values in panels.values()]),
        )
        for i in farthest
    ]
    title = f"Images whose ratios are farthest from the mean\n{subject}"
    plots.save(plots.strips(layers, shown, list(panels), title), folder / "ratios_by_image.png")

    deviation = np.nanstd(features.numpy(), 0).mean()
    lines = [f"standard deviation between images, mean over layers: {deviation:.4f}"]
    if images.labels is not None:
        lines.append(_by_class(folder, ratios, panels, features, images, subject))
    if len(images) > 2:
        _map(folder, features, named, images, subject, embedding)
    return lines


def _farthest(features: torch.Tensor, images: Images) -> list[int]:
    """The images to show: the farthest of each class, then the farthest of all."""
    distances = (features - features.nanmean(0)).nan_to_num().square().sum(1)
    order = distances.argsort(descending=True).tolist()
    seen: set[str] = set()
    firsts, others = [], []
    for i in order:
        (others if images.class_of(i) in seen else firsts).append(i)
        seen.add(images.class_of(i))
    return [*firsts, *others][:SHOWN]


def _by_class(
    folder: Path,
    ratios: Mapping[str, Ratios],
    panels: Mapping[str, np.ndarray],
    features: torch.Tensor,
    images: Images,
    subject: str,
) -> str:
    labels, layers = np.asarray(images.labels), list(ratios)
    classes = [i for i in range(len(images.classes)) if (labels == i).any()]
    means = {n: np.ma.stack([v[labels == i].mean(0) for i in classes]) for n, v in panels.items()}
    rows = [
        (layer, images.classes[i], n, means[n].filled(np.nan)[row, column].item())
        for column, (layer, r) in enumerate(ratios.items())
        for row, i in enumerate(classes)
        for n in r.normalizers
    ]
    write_csv(folder / "ratios_by_class.csv", ("layer", "class", "normalizer", "mean"), rows)
    differences = {n: means[n] - v.mean(0) for n, v in panels.items()}
    title = f"Ratios by class, less the mean of all images\n{subject}"
    fig = plots.heat_maps(
        layers,
        [images.classes[i] for i in classes],
        differences,
        title,
        label="class mean - mean of all images",
        row_label="class",
    )
    plots.save(fig, folder / "ratios_by_class.png")
    share = share_between_classes(features, torch.tensor(images.labels))
    return f"share of the variance between images that lies between classes: {share:.3f}"


def _map(
    folder: Path,
    features: torch.Tensor,
    named: Sequence[tuple[str, str]],
    images: Images,
    subject: str,
    embedding: str,
) -> None:
    points, axes = embed(features, embedding)
    rows = ((*n, *point) for n, point in zip(named, points.tolist(), strict=True))
    write_csv(folder / "ratios_map.csv", ("image", "class", "x", "y"), rows)
    title = f"Images by their ratios in all layers, {features.shape[1]} numbers each\n{subject}"
    fig = plots.scatter(points.numpy(), images.labels, images.classes, title, axes)
    plots.save(fig, folder / "ratios_map.png")


def write_dynamics(
    folder: Path,
    steps: Sequence[int],
    ratios: Sequence[Mapping[str, Ratios]],
    subject: str,
    step_label: str = "epoch",
) -> str:
    """Write how the mean ratios change over checkpoints (EN paper, Fig. 5).

    ``dynamics.csv`` has all layers, ``dynamics.png`` at most :data:`PANELS`, evenly over depth;
    ``summary.txt`` mean abs(lambda - 1/K) of each checkpoint. A layer that got nothing at a
    checkpoint, as a mask head without detections, has NaN there, which is empty in the table.

    Args:
        steps: of the checkpoints, rising.
        ratios: of each, see :func:`~.collect.collect_ratios`.

    Returns:
        The summary.
    """
    layers = _merged(ratios)
    counts = [len(found) for found in ratios]
    nothing = {
        name: Ratios(r.normalizers, torch.full_like(r.values, torch.nan))
        for found in ratios
        for name, r in found.items()
    }
    ratios = [{name: (nothing | found)[name] for name in layers} for found in ratios]
    rows = [
        (step, name, normalizer, float(mean), found[name].distance)
        for step, found in zip(steps, ratios, strict=True)
        for name in layers
        for normalizer, mean in zip(found[name].normalizers, found[name].mean, strict=True)
    ]
    header = (step_label, "layer", "normalizer", "mean", "layer_mean_abs_from_uniform")
    write_csv(folder / "dynamics.csv", header, rows)
    count = min(len(layers), PANELS)
    shown = [layers[i * (len(layers) - 1) // max(1, count - 1)] for i in range(count)]
    means = [by_normalizer({n: found[n] for n in shown}) for found in ratios]
    panels = {n: np.ma.stack([m[n].mean(0) for m in means]) for n in means[0]}
    some = "" if count == len(layers) else f", {count} of {len(layers)} layers"
    title = f"Mean ratios over the training{some}\n{subject}"
    fig = plots.dynamics(shown, list(steps), panels, title, step_label)
    plots.save(fig, folder / "dynamics.png")
    lines = [subject, f"{step_label}  mean |lambda - 1/K| over {len(layers)} layers"]
    for step, found, count in zip(steps, ratios, counts, strict=True):
        but = "" if count == len(layers) else f"  of the {count} that got anything"
        lines.append(f"{step:{len(step_label)}}  {mean_distance(found):.4f}{but}")
    return write_summary(folder, lines)


def _merged(orders: Iterable[Collection[str]]) -> list[str]:
    """All names, each behind what it follows in its own order, the longest order first."""
    merged: list[str] = []
    for names in sorted(orders, key=len, reverse=True):
        place = 0
        for name in names:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


#: Layers of which the dynamics are drawn.
PANELS = 20
