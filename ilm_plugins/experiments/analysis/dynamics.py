"""Write how ratios change over the checkpoints of a training: CSV tables, PNGs, a summary.

``dynamics_by_layer`` has the mean ratios of all images (EN paper, Fig. 5), ``by_class`` the means
of each class (Figs. 1a and 6), ``by_image`` the ratios of three images of the first class (Fig. 7),
``map`` the images in two dimensions at ten checkpoints (Fig. 8). Pictures by class and image show
six layers, tables show all layers. Layers with the same ratios for all images are only in
``by_layer``.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from ..data.images import Images
from . import plots, tables
from .collect import Ratios
from .tables import Report

#: Maximum number of layers in the pictures by class and by image, of maps, and of images drawn.
LAYERS, MAPS, IMAGES = 6, 10, 3


def write_dynamics(
    report: Report, steps: Sequence[int], ratios: Sequence[Mapping[str, Ratios]], step: str
) -> str:
    """Write the report on the ratios at each of ``steps``; return the summary."""
    images = report.images
    frames = dict(zip(steps, map(report.ratios, ratios), strict=True))
    whole = pd.concat(frames, names=[step], sort=False)
    vary = {name for frame in frames.values() for name in tables.varying(frame)}
    differing = whole[[name for name in whole.columns.unique("layer") if name in vary]]
    points = {at: tables.features(differing.loc[at]) for at in steps}
    columns = {"mean |lambda - 1/K|": {at: tables.distances(whole.loc[at]).mean() for at in steps}}
    if vary:
        columns["deviation between images"] = {
            at: tables.deviation(differing.loc[at]) for at in steps
        }
    if vary and images.labels is not None:
        shares = {at: tables.share_between_classes(points[at]) for at in steps}
        columns["share of it between classes"] = shares
    summary = pd.DataFrame(columns).rename_axis(step)
    lines = [summary.to_string(float_format="{:.4f}".format)]
    _write(report, "by_layer", whole.groupby(step).mean(), "normalizer")
    if vary and images.labels is not None:
        means = differing.groupby([step, "class"]).mean()
        lines += _write(report, "by_class", means, "class")
    if vary:
        pixels = {images.names[i]: images[i] for i in _choose(points[steps[-1]], images)}
        drawn = differing[differing.index.isin(pixels, level="image")].droplevel("class")
        lines += _write(report, "by_image", drawn, "image", pixels)
    if vary and len(images) > 2:
        maps = {at: tables.embed(points[at], report.embedding) for at in _spread(steps, MAPS)}
        embedded = pd.concat(maps, names=[step])
        report.table("dynamics_map", embedded)
        title = f"Images by their ratios in all layers ({report.embedding})"
        report.picture("dynamics_map", plots.scatter(embedded.reset_index(), step), title)
    return report.summary(*lines)


def _spread(items: Sequence, count: int) -> list:
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _choose(points: pd.DataFrame, images: Images) -> list[int]:
    """Return up to IMAGES indices of the first class's images, spread by distance from its mean."""
    chosen = points.reset_index(drop=True)
    if images.labels is not None:
        chosen = chosen[[label == min(images.labels) for label in images.labels]]
    far = ((chosen - chosen.mean()) ** 2).sum(axis=1).sort_values(kind="stable")
    return _spread(list(far.index), IMAGES)


def _write(
    report: Report, what: str, table: pd.DataFrame, hue: str, pixels: Mapping = MappingProxyType({})
) -> list[str]:
    """Write dynamics_WHAT .csv and .png; return the ratios drawn at the last checkpoint."""
    long, step = tables.long(table), table.index.names[0]
    report.table(f"dynamics_{what}", long, index=False)
    if hue != "normalizer":
        long = long[long["layer"].isin(_spread(long["layer"].unique(), LAYERS))]
    grid = plots.dynamics(long, step, hue, pixels)
    report.picture(f"dynamics_{what}", grid, f"Ratios by {hue} over the training")
    last = long[long[step] == long[step].max()]
    ratios = last.pivot_table("value", ["layer", "normalizer"], hue, sort=False)
    return [f"at {step} {long[step].max()}:", ratios.to_string(float_format="{:.4f}".format)]
