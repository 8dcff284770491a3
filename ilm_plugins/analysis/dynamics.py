"""Write how ratios change over the checkpoints of a training: CSV tables, PNGs, a summary.

``dynamics_by_layer`` has the mean ratios of all images (EN paper, Fig. 5), ``by_class`` those of
each class (Figs. 1a and 6), ``by_image`` the ratios of three images of the first class (Fig. 7):
nearest to, midway from and farthest from the mean of the class at the last checkpoint; ``map`` has
the images in two dimensions at ten checkpoints (Fig. 8). Pictures by class and image show six
layers, evenly spread over depth; the tables have all. Layers with the same ratios for all images
(SN's) are only in the table and picture by layer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from ..data.images import Images
from . import plots, tables
from .collect import Ratios

#: Maximum number of layers in the pictures by class and by image, of maps, and of images drawn.
LAYERS, MAPS, IMAGES = 6, 10, 3


def write_dynamics(
    folder: Path,
    steps: Sequence[int],
    ratios: Sequence[Mapping[str, Ratios]],
    images: Images,
    subject: str,
    step: str = "epoch",
    embedding: str = "pca",
) -> str:
    """Write the report on the ratios of ``images`` at each of ``steps``; return the summary.

    ``summary.txt`` has, for each checkpoint, the mean abs(ratio - 1/K), the standard deviation
    between images and the share of the variance between images that lies between classes.
    """
    frames = dict(zip(steps, (tables.ratios_frame(of, images) for of in ratios), strict=True))
    whole = pd.concat(frames, names=[step], sort=False).droplevel("key_group", axis=1)
    _write(folder, "by_layer", whole.groupby(step).mean(), step, "normalizer", subject)

    vary = {name for frame in frames.values() for name in tables.varying(frame)}
    own = [name for name in whole.columns.unique("layer") if name in vary]
    rows, points = {}, {}
    for at, frame in frames.items():
        rows[at] = {"mean |lambda - 1/K|": tables.distances(frame).mean()}
        frame = frame[[name for name in own if name in frame]]
        if own:
            points[at] = tables.features(frame)
            rows[at]["deviation between images"] = tables.deviation(frame)
        if own and images.labels is not None:
            rows[at]["share of it between classes"] = tables.share_between_classes(points[at])
    summary = pd.DataFrame.from_dict(rows, "index").rename_axis(step)
    lines = [subject, summary.to_string(float_format="{:.4f}".format)]
    if own:
        whole, shown = whole[own], _spread(own, LAYERS)
        if images.labels is not None:
            means = whole.groupby([step, "class"]).mean()
            lines += _write(folder, "by_class", means, step, "class", subject, shown)
        pixels = {images.names[i]: images[i] for i in _choose(points[steps[-1]], images)}
        of_images = whole[whole.index.get_level_values("image").isin(pixels)].droplevel("class")
        lines += _write(folder, "by_image", of_images, step, "image", subject, shown, pixels)
    if own and len(images) > 2:
        maps = {at: tables.embed(points[at], embedding) for at in _spread(steps, MAPS)}
        found = pd.concat(maps, names=[step])
        found.to_csv(folder / "dynamics_map.csv", float_format="%.6g")
        title = f"Images by their ratios in all layers ({embedding})\n{subject}"
        plots.save(plots.scatter(found.reset_index(), title, step), folder / "dynamics_map.png")
    return tables.write_summary(folder, lines)


def _spread(items: Sequence, count: int) -> list:
    """Return up to ``count`` items, evenly spread from the first to the last."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _choose(points: pd.DataFrame, images: Images) -> list[int]:
    """Return the images of the first class nearest to, midway from and farthest from its mean."""
    chosen = points.reset_index(drop=True)
    if images.labels is not None:
        chosen = chosen[[label == min(images.labels) for label in images.labels]]
    far = ((chosen - chosen.mean()) ** 2).sum(axis=1).sort_values(kind="stable")
    return _spread(list(far.index), IMAGES)


def _write(
    folder: Path,
    what: str,
    table: pd.DataFrame,
    step: str,
    hue: str,
    subject: str,
    shown: Sequence[str] | None = None,
    pixels: Mapping = MappingProxyType({}),
) -> list[str]:
    """Write dynamics_WHAT .csv and .png; return the ratios of ``shown`` at the last checkpoint."""
    long = table.melt(ignore_index=False).reset_index()
    long.to_csv(folder / f"dynamics_{what}.csv", index=False, float_format="%.6g")
    drawn = long if shown is None else long[long["layer"].isin(shown)]
    title = f"Ratios by {hue} over the training\n{subject}"
    fig = plots.dynamics(drawn, step, hue, title, pixels)
    plots.save(fig, folder / f"dynamics_{what}.png")
    if shown is None:
        return []
    last = drawn[drawn[step] == drawn[step].max()].set_index(["layer", "normalizer", hue])["value"]
    ratios = last.unstack(sort=False)
    return [f"at {step} {drawn[step].max()}:", ratios.to_string(float_format="{:.4f}".format)]
