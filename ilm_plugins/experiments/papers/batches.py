"""Detectors of one model by the number of images in a step."""

from collections.abc import Mapping
from statistics import mean, stdev

from ..compare.statistics import interval
from .paper_report import markdown_head, markdown_row, paired

#: Plain norm -> the norm that replaces it.
PAIRS = {"BN": "EN", "GN": "ILMGN"}
METRIC = "bbox/AP"

#: Seed -> box AP.
Values = Mapping[int, float]


def markdown(batches: Mapping[int, Mapping[str, Values]]) -> list[str]:
    """Return a table of images a step -> norm -> values: means, seeds, paired differences."""
    columns = [
        title for plain, norm in PAIRS.items() for title in (plain, norm, f"{norm} - {plain}")
    ]
    lines = markdown_head("images a step", *columns)
    for images, norms in sorted(batches.items()):
        cells = []
        for plain, norm in PAIRS.items():
            ours, theirs = norms.get(norm, {}), norms.get(plain, {})
            cells += [_mean(theirs), _mean(ours), _difference(ours, theirs)]
        lines.append(markdown_row(str(images), *cells))
    return lines


def _mean(values: Values) -> str:
    """Format a mean with its standard deviation and, in brackets, the number of seeds."""
    if not values:
        return "-"
    spread = f" ± {stdev(values.values()):.1f}" if len(values) > 1 else ""
    return f"{mean(values.values()):.1f}{spread} ({len(values)})"


def _difference(ours: Values, plain: Values) -> str:
    one = paired(ours, plain)
    return interval(one) if one else "-"
