"""Detectors of one model by the number of images in a step."""

from collections.abc import Mapping

from ilm_plugins.reports.interval import interval, paired, spread
from ilm_plugins.reports.table import of_dicts

from ..papers import published
from . import papers
from .results import Results, by_seed, by_setting

#: Plain norm -> the norm that replaces it.
PAIRS = {"BN": "EN", "GN": "ILMGN"}
METRIC = "bbox/AP"

#: Seed -> box AP.
Values = Mapping[int, float]


def detectors(name: str, results: Results) -> dict[int, dict[str, Values]]:
    """Return images a step -> norm -> values: of comparisons, and of the study's batches of 4."""
    norms = {norm for pair in PAIRS.items() for norm in pair}
    found = {
        int(images): {norm: by_seed(results, comparison, norm, metric=METRIC) for norm in norms}
        for images, comparison in by_setting(results, f"{name}-batch").items()
    }
    table = published.find_table("study-all")
    found[4] = {
        papers.norm_of(cell): papers.values(papers.runs_of(cell, results), table, table.measures[0])
        for cell in table.cells.values()
    }
    return found


def markdown(batches: Mapping[int, Mapping[str, Values]]) -> list[str]:
    """Return a table of images a step -> norm -> values: means, seeds, paired differences."""
    rows = []
    for images, norms in sorted(batches.items()):
        row = {"images a step": str(images)}
        for plain, norm in PAIRS.items():
            for name in (plain, norm):
                row[name] = f"{spread(norms[name].values())} ({len(norms[name])})"
            row[f"{norm} - {plain}"] = interval(paired(norms[norm], norms[plain]))
        rows.append(row)
    return of_dicts(rows)
