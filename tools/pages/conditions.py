"""The models of one comparison on test images of several kinds: as filmed, at dusk, altered."""

from pathlib import Path

from ilm_plugins.experiments.compare.results import OWN_TEST
from ilm_plugins.experiments.reports.interval import Difference
from ilm_plugins.experiments.reports.table import markdown as table

from .comparisons import by_seed, mean_cell, pair

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


def markdown(folder: Path) -> list[str]:
    """Return a table of mean mIoU: conditions by norms, each with its number of seeds."""
    norms = [norm for plain, others in PAIRS.items() for norm in (plain, *others)]
    counts = {norm: len(by_seed(folder / norm)) for norm in norms}
    norms = [norm for norm in norms if counts[norm]]
    if not norms:
        return ["No model has been tested yet."]
    rows = [["seeds", *(str(counts[norm]) for norm in norms)]]
    for test, title in CONDITIONS.items():
        rows.append([title, *(mean_cell(by_seed(folder / n, test).values()) for n in norms)])
    return table(("mIoU", *(norm.replace("-", " ") for norm in norms)), rows)


def panels(folder: Path) -> dict[str, list[tuple[str, Difference]]]:
    """Return pair of norms -> conditions with two seeds or more, and the difference."""
    pairs = {}
    for plain, norm in ((plain, norm) for plain, others in PAIRS.items() for norm in others):
        rows = []
        for test, title in CONDITIONS.items():
            difference = pair(folder, (plain, norm), test).difference
            if difference and difference.has_interval:
                rows.append((title, difference))
        if rows:
            pairs[f"{norm.replace('-', ' ')} - {plain}"] = rows
    return pairs
