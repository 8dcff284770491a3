"""Detectors of one model by the number of images in a step."""

from collections.abc import Mapping

from ilm_plugins.experiments.papers import paper_record, published
from ilm_plugins.experiments.papers.paper_report import Groups
from ilm_plugins.experiments.reports.interval import interval, paired_interval, spread
from ilm_plugins.experiments.reports.table import of_dicts
from ilm_plugins.frameworks.run_record import PLAIN

from .comparisons import by_seed, by_setting

#: Plain norm -> the norm that replaces it.
PAIRS = {"BN": "EN", "GN": "ILMGN"}
METRIC = "bbox/AP"

#: Seed -> box AP.
Values = Mapping[int, float]


def detectors(name: str, groups: Groups) -> dict[int, dict[str, Values]]:
    """Return images a step -> norm -> values: of comparisons, and of the study's batches of 4."""
    norms = {norm for pair in PAIRS.items() for norm in pair}
    found = {
        int(images): {norm: by_seed(folder / norm, metric=METRIC) for norm in norms}
        for images, folder in by_setting(f"{name}-batch").items()
    }
    found[4] = {
        cell.norm_name: {
            run["seed"]: run["metrics"][PLAIN][METRIC]
            for run in group
            if paper_record.learned(run) and METRIC in run["metrics"].get(PLAIN, {})
        }
        for cell in published.find_table("study-all").cells.values()
        for group in groups[cell.canonical.id]
        if paper_record.is_full(group[0])
    }
    return found


def markdown(batches: Mapping[int, Mapping[str, Values]]) -> list[str]:
    """Return a table of images a step -> norm -> values: means, seeds, paired differences."""
    rows = []
    for images, norms in sorted(batches.items()):
        row = {"images a step": str(images)}
        for plain, norm in PAIRS.items():
            theirs, ours = (norms.get(name, {}) for name in (plain, norm))
            row |= {plain: _mean(theirs), norm: _mean(ours)}
            one = paired_interval(ours, theirs)
            row[f"{norm} - {plain}"] = interval(one) if one else "-"
        rows.append(row)
    return of_dicts(rows)


def _mean(values: Values) -> str:
    """Format a mean with its standard deviation and, in brackets, the number of seeds."""
    return f"{spread(values.values())} ({len(values)})" if values else "-"
