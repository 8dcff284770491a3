"""Write reports on the ratios, or omega and beta, of adaptive layers: CSV tables, PNGs, a summary.

:func:`write_ratios` and :func:`write_rescaling` write files under the prefix ``ratios`` or
``rescaling``: by_layer, by_class and by_image (CSV and PNG), rescaling_by_group.csv, spread.png,
map (CSV and PNG), and ``summary.txt``. A *quantity* is a normalizer's ratio, or omega - B_omega or
beta - B_beta. A ratio is one number for an image, and its distance from a mean is the difference.
Omega and beta have one value for each key group: their number for an image, like a distance, is the
root mean square over key groups of the difference from the mean of all images.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..data.images import Images
from ..errors import OptionError
from . import plots
from .collect import Ratios, Rescaling

PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Maximum number of images in PREFIX_by_image.png.
SHOWN = 6


def ratios_frame(ratios: Mapping[str, Ratios], images: Images) -> pd.DataFrame:
    """Return all ratios, a row an image and a column a layer, normalizer and key group 0."""
    columns = {
        (layer, normalizer, 0): values.double().numpy()
        for layer, found in ratios.items()
        for normalizer, values in zip(found.normalizers, found.values.unbind(1), strict=True)
    }
    return _frame(columns, "normalizer", images)


def _frame(columns: Mapping, quantity: str, images: Images) -> pd.DataFrame:
    """Return columns (layer, quantity, key group) -> values of all images as a table."""
    classes = [images.class_of(i) for i in range(len(images))]
    index = pd.MultiIndex.from_arrays([images.names, classes], names=["image", "class"])
    names = pd.MultiIndex.from_tuples(columns, names=["layer", quantity, "key_group"])
    return pd.DataFrame(dict(enumerate(columns.values())), index).set_axis(names, axis=1)


def write_ratios(
    folder: Path,
    ratios: Mapping[str, Ratios],
    images: Images,
    subject: str,
    embedding: str = "pca",
) -> str:
    """Write a report on the ratios of ``images``, see the module; return the summary.

    Layers with the same ratios for all images (SN's, and EN's before training) are only in the
    tables and pictures by layer.
    """
    frame = ratios_frame(ratios, images)
    table = _statistics(_long(frame), "layer", "normalizer")
    shares = [share for found in ratios.values() for share in found.shares.tolist()]
    table["share"] = shares
    _write(table, folder / "ratios_by_layer.csv")
    counts = {len(found.normalizers) for found in ratios.values()}
    uniform = 1 / counts.pop() if len(counts) == 1 else None
    fig = plots.by_layer(_long(frame), f"Mean ratios by layer\n{subject}", uniform)
    plots.save(fig, folder / "ratios_by_layer.png")

    shown = table[["mean", "share"]].unstack(sort=False).swaplevel(axis=1)
    shown.columns = [f"{n} {what}" for n, what in shown.columns]
    shown.insert(0, "|lambda - 1/K|", distances(frame))
    lines = [
        subject,
        f"mean |lambda - 1/K| over layers: {distances(frame).mean():.4f}",
        "a share is the mean ratio times the mean |weight| of the normalizer, over their sum",
        shown.to_string(float_format="{:.4f}".format, na_rep=""),
    ]
    own = frame[varying(frame)]
    if own.shape != frame.shape:
        same = ", ".join(name for name in ratios if name not in own)
        lines.append(f"the ratios are the same for all images in {same}")
    if len(own.columns):
        lines += _write_images(folder, "ratios", own, images, subject, embedding)
    return write_summary(folder, lines)


def write_rescaling(
    folder: Path,
    layers: Mapping[str, Rescaling],
    images: Images,
    subject: str,
    embedding: str = "pca",
) -> str:
    """Write a report on omega and beta of ``images``, see the module; return the summary."""
    columns = {
        (layer, parameter, group): values.double().numpy()
        for layer, found in layers.items()
        for parameter in ("omega", "beta")
        for group, values in enumerate(getattr(found, parameter).unbind(1))
    }
    frame = _frame(columns, "parameter", images)
    table = _statistics(_long(frame), "layer", "parameter")
    _write(table, folder / "rescaling_by_layer.csv")
    groups = _statistics(_long(frame), "layer", "parameter", "key_group")
    _write(groups, folder / "rescaling_by_group.csv")
    table["deviation"] = frame.var(ddof=0).groupby(["layer", "parameter"], sort=False).mean() ** 0.5
    shown = table[["mean", "deviation"]].unstack(sort=False).swaplevel(axis=1)
    shown.columns = [f"{parameter} {what}" for parameter, what in shown.columns]
    lines = [
        subject,
        "means of omega - B_omega and beta - B_beta, and deviations of an image from all images",
        shown.to_string(float_format="{:+.4f}".format),
        *_write_images(folder, "rescaling", frame, images, subject, embedding),
    ]
    return write_summary(folder, lines)


def _write_images(
    folder: Path, prefix: str, frame: pd.DataFrame, images: Images, subject: str, embedding: str
) -> list[str]:
    """Write the files that compare images; return lines of the summary."""
    quantity = frame.columns.names[1]
    long, points = _long(frame), features(frame)
    title = f"{prefix.capitalize()} of images by layer: quartiles, and 5th to 95th percentile"
    spread = long
    if prefix == "rescaling":
        less = _long(frame - frame.mean())
        less[quantity] += ", less the mean of the images"
        spread = pd.concat((long, less), ignore_index=True)
    fig = plots.boxes(spread, quantity, f"{title}\n{subject}")
    plots.save(fig, folder / f"{prefix}_spread.png")

    numbers = frame.droplevel("key_group", axis=1)
    if prefix == "rescaling":
        numbers = _rms(frame - frame.mean())
    far = (points**2).sum(axis=1) ** 0.5
    table = numbers.set_axis([f"{layer}/{q}" for layer, q in numbers.columns], axis=1)
    table.insert(0, "distance", far)
    _write(table, folder / f"{prefix}_by_image.csv")
    order = far.reset_index(drop=True).sort_values(ascending=False, kind="stable")
    repeated = order.index.map(images.class_of).duplicated()
    shown = [*order.index[~repeated], *order.index[repeated]][:SHOWN]
    strips = [(images.caption(i), images[i], numbers.iloc[i].unstack(sort=False)) for i in shown]
    fig = plots.strips(strips, f"Images far from the mean\n{subject}", prefix == "ratios")
    plots.save(fig, folder / f"{prefix}_by_image.png")
    lines = [
        f"standard deviation between images, mean over layers: {deviation(frame):.4f}",
        f"farthest from the mean of all images: {far.idxmax()[0]}, {far.max():.4f}",
    ]
    if images.labels is not None:
        table = _statistics(long, "layer", "class", quantity)
        means = frame.groupby("class").mean() - frame.mean()
        distance = means.droplevel("key_group", axis=1) if prefix == "ratios" else _rms(means)
        table.insert(
            0,
            "distance",
            distance.melt(ignore_index=False)
            .reset_index()
            .set_index(["layer", "class", quantity])["value"],
        )
        _write(table, folder / f"{prefix}_by_class.csv")
        fig = plots.heat_maps(
            table.reset_index(), quantity, f"{prefix.capitalize()} by class\n{subject}"
        )
        plots.save(fig, folder / f"{prefix}_by_class.png")
        share = share_between_classes(points)
        lines.append(f"share of the variance between images that lies between classes: {share:.3f}")
    if len(points) > 2 and points.to_numpy().any():
        found = embed(points, embedding)
        _write(found, folder / f"{prefix}_map.csv")
        title = f"Images by their {prefix} in all layers ({embedding}), {points.shape[1]} numbers"
        fig = plots.scatter(found.reset_index(), f"{title}\n{subject}")
        plots.save(fig, folder / f"{prefix}_map.png")
    return lines


def _long(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each value of a frame, with its image, class, layer and quantity."""
    return frame.melt(ignore_index=False).reset_index()


def _statistics(long: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Return count, mean, deviation and quantiles of the values in each group."""
    values = long.groupby(list(names), sort=False)["value"]
    table = values.describe(percentiles=PERCENTILES)
    return table.assign(std=values.std(ddof=0))


def _rms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the root mean square over the key groups."""
    of_groups = (frame**2).T.groupby(level=[0, 1], sort=False)
    return of_groups.mean().T ** 0.5


def _write(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, float_format="%.6g")


def write_summary(folder: Path, lines: Iterable[str]) -> str:
    """Write lines to ``summary.txt`` in a folder; return them as one text."""
    text = "\n".join(lines)
    (folder / "summary.txt").write_text(f"{text}\n", encoding="utf-8")
    return text


def distances(frame: pd.DataFrame) -> pd.Series:
    """Return each layer's mean of abs(ratio - 1/K)."""
    layers = frame.columns.get_level_values("layer")
    uniform = 1 / layers.map(layers.value_counts())
    return (frame - uniform).abs().mean().groupby("layer", sort=False).mean()


def varying(frame: pd.DataFrame) -> list[str]:
    """Return the layers whose ratios differ between images."""
    differ = frame.max() > frame.min()
    return list(differ[differ].index.unique("layer"))


def deviation(frame: pd.DataFrame) -> float:
    """Return the standard deviation between images, mean over layers and quantities."""
    return frame.std(ddof=0).groupby(level=[0, 1]).mean().mean()


def features(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the values less their means over images, 0 for NaN.

    They are divided by the square root of their number in a layer, to weigh layers equally.
    """
    numbers = frame.columns.to_frame().groupby(level=[0, 1])["key_group"].transform("size")
    return ((frame - frame.mean()) / numbers**0.5).fillna(0)


def share_between_classes(points: pd.DataFrame) -> float:
    """Return the share, 0 to 1, of the variance of points that lies between classes."""
    total = ((points - points.mean()) ** 2).to_numpy().sum()
    within = ((points - points.groupby("class").transform("mean")) ** 2).to_numpy().sum()
    return float(1 - within / total) if total > 0 else 0.0


def embed(points: pd.DataFrame, method: str = "pca") -> pd.DataFrame:
    """Map points to columns x and y, by "pca" or "tsne" (van der Maaten and Hinton, JMLR 2008)."""
    if method not in ("pca", "tsne"):
        raise OptionError(f"unknown method {method!r} of a map; give pca or tsne")
    if not points.to_numpy().any():
        return pd.DataFrame(0.0, points.index, ["x", "y"])
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
    mapped = (PCA(2, svd_solver="full") if method == "pca" else tsne).fit_transform(
        points.to_numpy()
    )
    return pd.DataFrame(mapped, points.index, ["x", "y"])
