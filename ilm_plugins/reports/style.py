"""The style of all plots: colours, fonts, and how intervals are drawn and pictures saved."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import replacing

if TYPE_CHECKING:
    from .interval import Difference  # imports scipy

#: Okabe and Ito's colour-blind safe colours, and two more for datasets of ten classes.
OKABE_ITO = (
    *("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442", "#000000"),
    *("#999999", "#6B3E0A"),
)
#: Decorates functions, so that they draw in this style.
styled = mpl.rc_context(
    {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.titlesize": 10,
        "figure.dpi": 120,
        "figure.titlesize": 12,
        "font.size": 9,
        "grid.alpha": 0.3,
        "image.interpolation": "nearest",
        "legend.frameon": False,
        "text.parse_math": False,  # names of files may have two "$"
    }
)


def draw_intervals(
    axis: Axes, rows: Sequence[tuple[str, "Difference | None"]], colour: str
) -> None:
    """Draw a row for each name: its difference, if it has an interval, and a line at 0."""
    for i, (_, difference) in enumerate(rows):
        if difference is not None and difference.has_interval:
            ends = [[difference.mean - difference.low], [difference.high - difference.mean]]
            axis.errorbar(difference.mean, i, xerr=ends, fmt="o", capsize=3, color=colour)
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axis.axvline(0, color="0.5")


def save(figure: Figure, path: Path, **metadata: str) -> None:
    """Write a figure as PNG with metadata."""
    with replacing(path) as file:
        file.write(png(figure, **metadata))


@styled
def png(figure: Figure, **metadata: str) -> bytes:
    """Return a figure as PNG with metadata."""
    file = io.BytesIO()
    # Without matplotlib's version in the metadata, equal records give equal bytes.
    figure.savefig(file, format="png", metadata={"Software": None, **metadata})
    return file.getvalue()


def uri(picture: bytes, kind: str) -> str:
    """Return a picture of a kind such as "png" as the source of an image in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
