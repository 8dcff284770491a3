"""Write reports on the ratios, or omega and beta, of adaptive layers: CSV tables and a summary.

A layer's quantities are its normalizers' ratios, or omega - B_omega and beta - B_beta of its key
groups. Tables have the statistics of all images (``by_layer``) and of each class (``by_class``),
and the values of each image (``by_image``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .collect import Ratios, Rescaling
from .images import Images


@dataclass(frozen=True)
class TableFolder:
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
        images = self.images
        return pd.MultiIndex.from_arrays([images.names, images.classes], names=["image", "class"])


def write_ratios(folder: TableFolder, layers: Mapping[str, Ratios]) -> str:
    """Write a report on ratios, see the module; return the summary."""
    values = {
        name: pd.DataFrame(ratios.values.double().numpy(), folder.index(), ratios.normalizers)
        for name, ratios in layers.items()
    }
    frame = pd.concat(values, axis=1, names=["layer", "normalizer"])
    table = _statistics(frame, "layer", "normalizer")
    shares = {
        name: pd.Series(ratios.shares.tolist(), ratios.normalizers)
        for name, ratios in layers.items()
    }
    table["share"] = pd.concat(shares)  # by name: the table may have another order
    folder.table("ratios_by_layer", table)
    return folder.summary(
        "mean and standard deviation (std) over images; a share is the mean ratio times the mean "
        "|weight| of the normalizer, over their sum",
        table[["mean", "std", "share"]].to_string(float_format="{:.4f}".format),
        *_write_images(folder, "ratios", frame),
    )


def write_rescaling(folder: TableFolder, layers: Mapping[str, Rescaling]) -> str:
    """Write a report on omega and beta, see the module; return the summary."""
    values = {
        (name, parameter): pd.DataFrame(values.double().numpy(), folder.index())
        for name, layer in layers.items()
        for parameter, values in (("omega", layer.omega), ("beta", layer.beta))
    }
    frame = pd.concat(values, axis=1, names=["layer", "parameter", "key_group"])
    folder.table("rescaling_by_layer", _statistics(frame, "layer", "parameter", "key_group"))
    of_layers = ["layer", "parameter"]
    means = pd.DataFrame(
        {
            "mean": frame.mean().groupby(of_layers, sort=False).mean(),
            "deviation": frame.var(ddof=0).groupby(of_layers, sort=False).mean() ** 0.5,
        }
    )
    return folder.summary(
        "means of omega - B_omega and beta - B_beta, and deviations of an image from all images",
        means.to_string(float_format="{:+.4f}".format),
        *_write_images(folder, "rescaling", frame),
    )


def _write_images(folder: TableFolder, prefix: str, frame: pd.DataFrame) -> list[str]:
    """Write the files that compare images; return lines of the summary."""
    names = ["/".join(map(str, column)) for column in frame.columns]
    folder.table(f"{prefix}_by_image", frame.set_axis(names, axis=1))
    deviation = frame.std(ddof=0).groupby(level=[0, 1]).mean().mean()
    lines = [f"standard deviation between images, mean over layers: {deviation:.4f}"]
    if any(folder.images.classes):
        quantity = frame.columns.names[1]
        folder.table(f"{prefix}_by_class", _statistics(frame, "layer", "class", quantity))
        share = share_between_classes(frame)
        lines.append(f"share of the variance between images that lies between classes: {share:.3f}")
    return lines


def _statistics(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    long = frame.melt(ignore_index=False).reset_index()
    values = long.groupby(list(names), sort=False)["value"]
    table = values.describe(percentiles=(0.05, 0.25, 0.5, 0.75, 0.95))
    return table.assign(std=values.std(ddof=0))


def share_between_classes(frame: pd.DataFrame) -> float:
    """Return the share, 0 to 1, of the variance between images that lies between classes."""
    values = (frame - frame.mean()).fillna(0)
    total = (values**2).to_numpy().sum()
    within = ((values - values.groupby("class").transform("mean")) ** 2).to_numpy().sum()
    return float(1 - within / total) if total > 0 else 0.0
