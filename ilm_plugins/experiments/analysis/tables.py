"""Write reports on the ratios, or omega and beta, of adaptive layers: CSV tables and a summary.

:func:`write_ratios` and :func:`write_rescaling` write tables under the prefix ``ratios`` or
``rescaling``, by_layer, by_class and by_image, rescaling_by_group and ``summary.txt``. A *quantity*
is a normalizer's ratio, or omega - B_omega or beta - B_beta. A ratio is one number for an image,
and its distance from a mean is the difference. Omega and beta have one value for each key group:
their number for an image, like a distance, is the root mean square over key groups of the
difference from the mean of all images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..data.images import Images
from .collect import Ratios, Rescaling


@dataclass(frozen=True)
class Report:
    """A folder for a report; ``subject`` is the title."""

    folder: Path
    images: Images
    subject: str

    def table(self, name: str, frame: pd.DataFrame) -> None:
        path = self.folder / f"{name}.csv"
        # Names of files may be no Unicode.
        frame.to_csv(path, float_format="%.6g", errors="backslashreplace")

    def summary(self, *lines: str) -> str:
        """Write the subject and lines to ``summary.txt``; return them as one text."""
        text = "\n".join((self.subject, *lines))
        (self.folder / "summary.txt").write_text(
            f"{text}\n", encoding="utf-8", errors="backslashreplace"
        )
        return text

    def index(self) -> pd.MultiIndex:
        classes = [self.images.class_of(i) for i in range(len(self.images))]
        return pd.MultiIndex.from_arrays([self.images.names, classes], names=["image", "class"])

    def ratios(self, layers: Mapping[str, Ratios]) -> pd.DataFrame:
        """Return the ratios of layers, with a row for each image, a column for each normalizer."""
        values = {
            name: pd.DataFrame(ratios.values.double().numpy(), self.index(), ratios.normalizers)
            for name, ratios in layers.items()
        }
        return pd.concat(values, axis=1, names=["layer", "normalizer"])


def write_ratios(report: Report, ratios: Mapping[str, Ratios]) -> str:
    """Write a report on ratios, see the module; return the summary."""
    frame = report.ratios(ratios)
    table = _statistics(frame, "layer", "normalizer")
    shares = {
        name: pd.Series(layer.shares.tolist(), layer.normalizers) for name, layer in ratios.items()
    }
    table["share"] = pd.concat(shares)  # by name: the table may have another order
    report.table("ratios_by_layer", table)
    lines = [
        f"mean |lambda - 1/K| over layers: {distances(frame).mean():.4f}",
        "a share is the mean ratio times the mean |weight| of the normalizer, over their sum",
        table[["mean", "share"]].to_string(float_format="{:.4f}".format),
    ]
    differing = frame[varying(frame)]  # without SN's, and EN's before training
    if differing.shape != frame.shape:
        same = ", ".join(name for name in ratios if name not in differing)
        lines.append(f"the ratios are the same for all images in {same}")
    if len(differing.columns):
        means = differing.groupby("class").mean() - differing.mean()
        lines += _write_images(report, "ratios", differing, differing, means)
    return report.summary(*lines)


def write_rescaling(report: Report, layers: Mapping[str, Rescaling]) -> str:
    """Write a report on omega and beta, see the module; return the summary."""
    values = {
        (name, parameter): pd.DataFrame(values.double().numpy(), report.index())
        for name, layer in layers.items()
        for parameter, values in (("omega", layer.omega), ("beta", layer.beta))
    }
    frame = pd.concat(values, axis=1, names=["layer", "parameter", "key_group"])
    table = _statistics(frame, "layer", "parameter")
    report.table("rescaling_by_layer", table)
    groups = _statistics(frame, "layer", "parameter", "key_group")
    report.table("rescaling_by_group", groups)
    centered = frame - frame.mean()
    table["deviation"] = frame.var(ddof=0).groupby(["layer", "parameter"], sort=False).mean() ** 0.5
    numbers, means = _rms(centered), _rms(centered.groupby("class").mean())
    return report.summary(
        "means of omega - B_omega and beta - B_beta, and deviations of an image from all images",
        table[["mean", "deviation"]].to_string(float_format="{:+.4f}".format),
        *_write_images(report, "rescaling", frame, numbers, means),
    )


def _write_images(
    report: Report, prefix: str, frame: pd.DataFrame, numbers: pd.DataFrame, means: pd.DataFrame
) -> list[str]:
    """Write the files that compare images; return lines of the summary."""
    # ``numbers`` has each image's number in each layer, ``means`` each class's distance.
    quantity, points, images = frame.columns.names[1], features(frame), report.images
    far = (points**2).sum(axis=1) ** 0.5
    table = numbers.set_axis([f"{layer}/{q}" for layer, q in numbers.columns], axis=1)
    table.insert(0, "distance", far)
    report.table(f"{prefix}_by_image", table)
    lines = [
        f"standard deviation between images, mean over layers: {deviation(frame):.4f}",
        f"farthest from the mean of all images: {far.idxmax()[0]}, {far.max():.4f}",
    ]
    if images.labels is not None:
        table = _statistics(frame, "layer", "class", quantity)
        table.insert(0, "distance", means.unstack().reorder_levels(table.index.names))
        report.table(f"{prefix}_by_class", table)
        share = share_between_classes(points)
        lines.append(f"share of the variance between images that lies between classes: {share:.3f}")
    return lines


def long(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each value of a frame, with its image, class, layer and quantity."""
    return frame.melt(ignore_index=False).reset_index()


def _statistics(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    values = long(frame).groupby(list(names), sort=False)["value"]
    table = values.describe(percentiles=(0.05, 0.25, 0.5, 0.75, 0.95))
    return table.assign(std=values.std(ddof=0))


def _rms(frame: pd.DataFrame) -> pd.DataFrame:
    return (frame**2).T.groupby(level=[0, 1], sort=False).mean().T ** 0.5


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
    """Return the values less their means over images, all quantities weighted alike; 0 for NaN."""
    numbers = pd.Series(1, frame.columns).groupby(level=[0, 1]).transform("size")
    return ((frame - frame.mean()) / numbers**0.5).fillna(0)


def share_between_classes(points: pd.DataFrame) -> float:
    """Return the share, 0 to 1, of the variance of points that lies between classes."""
    total = ((points - points.mean()) ** 2).to_numpy().sum()
    within = ((points - points.groupby("class").transform("mean")) ** 2).to_numpy().sum()
    return float(1 - within / total) if total > 0 else 0.0
