"""The models of one comparison on test images of several kinds: as filmed, at dusk, altered."""

from pathlib import Path
from statistics import mean

from ..compare.results import OWN_TEST
from ..compare.statistics import Difference
from .paper_report import markdown_head, markdown_row, paired
from .questions import by_seed

#: Name of a test -> what its images are.
CONDITIONS = {
    OWN_TEST: "day",
    "dusk": "dusk",
    "gamma0.7": "darker, gamma .7",
    "gamma0.5": "darker, gamma .5",
    "contrast0.5": "half the contrast",
    "contrast0.25": "a quarter of the contrast",
    "noise0.05": "noise of .05",
    "noise0.1": "noise of .1",
    "blur1": "blur of 1 pixel",
    "blur2": "blur of 2 pixels",
}
#: Plain norm -> the norms that may replace it.
PAIRS = {"BN": ("EN", "EN-without-BN", "SN"), "GN": ("ILMGN",)}
METRIC = "mIoU"


def markdown(folder: Path) -> list[str]:
    """Return a table of mean mIoU: conditions by norms, each with its number of seeds."""
    norms = [norm for plain, others in PAIRS.items() for norm in (plain, *others)]
    counts = {norm: len(by_seed(folder / norm, OWN_TEST, METRIC)) for norm in norms}
    norms = [norm for norm in norms if counts[norm]]
    if not norms:
        return ["No model has been tested yet."]
    lines = markdown_head("mIoU", *(norm.replace("-", " ") for norm in norms))
    lines.append(markdown_row("seeds", *(str(counts[norm]) for norm in norms)))
    for test, title in CONDITIONS.items():
        values = [by_seed(folder / norm, test, METRIC).values() for norm in norms]
        lines.append(markdown_row(title, *(f"{mean(v):.1f}" if v else "-" for v in values)))
    return lines


def panels(folder: Path) -> dict[str, list[tuple[str, Difference]]]:
    """Return pair of norms -> conditions with two seeds or more, and the difference."""
    pairs = {}
    for plain, others in PAIRS.items():
        for norm in others:
            rows = []
            for test, title in CONDITIONS.items():
                ours, theirs = (by_seed(folder / name, test, METRIC) for name in (norm, plain))
                difference = paired(ours, theirs)
                if difference:
                    rows.append((title, difference))
            if rows:
                pairs[f"{norm.replace('-', ' ')} - {plain}"] = rows
    return pairs
