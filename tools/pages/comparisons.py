"""Pairs of norms of the committed comparisons, and differences as cells of tables."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import NamedTuple

from scipy import stats

from ilm_plugins.experiments.reports.interval import ALPHA, Difference, ends, paired, signed

from .results import Results, by_seed


class Pair(NamedTuple):
    """Seed -> value of a plain norm and of the norm that replaces it."""

    plain: dict[int, float]
    ours: dict[int, float]

    @property
    def difference(self) -> Difference | None:
        return paired(self.ours, self.plain)

    @property
    def means(self) -> list[float]:
        """The means over the seeds that both norms have; NaN without such seeds."""
        seeds = self.plain.keys() & self.ours.keys()
        return [mean(one[seed] for seed in seeds) if seeds else float("nan") for one in self]


def pair(
    results: Results, comparison: str, norms: tuple[str, str], test: str, metric: str = "mIoU"
) -> Pair:
    """Return the values of two norms of a comparison, the plain norm first."""
    return Pair(*(by_seed(results, comparison, norm, test, metric) for norm in norms))


def corrected(rows: Sequence[tuple]) -> list[tuple]:
    """Return rows that end with a difference or None, with p corrected for all rows together."""
    differences = holm([row[-1] for row in rows])
    return [(*row[:-1], one) for row, one in zip(rows, differences, strict=True)]


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Return the differences with their p corrected for their number, by Holm's step-down rule."""
    tested = [i for i, one in enumerate(differences) if one is not None and one.is_tested]
    corrected, largest = list(differences), 0.0
    for step, i in enumerate(sorted(tested, key=lambda i: differences[i].p)):
        largest = max(largest, min(1.0, (len(tested) - step) * differences[i].p))
        corrected[i] = replace(differences[i], p=largest, tests=len(tested))
    return corrected


def paired_interval(
    values: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """Compare seed -> value of a norm with that of the baseline; None without an interval."""
    difference = paired(values, baseline)
    return difference if difference and difference.has_interval else None


def not_excluded(difference: Difference) -> tuple[float, float]:
    """Return the differences that two one-sided tests at 5 % do not exclude: the 90 % interval."""
    error = difference.deviation / difference.seeds**0.5
    reach = float(stats.t.isf(ALPHA, difference.seeds - 1)) * error
    return difference.mean - reach, difference.mean + reach


def mean_cell(values: Collection[float]) -> str:
    return f"{mean(values):.1f}" if values else "-"


def difference_cells(difference: Difference) -> dict[str, str]:
    """Return column -> cell of a difference; "-" for what one seed does not tell."""
    columns = "95 % interval", "p, corrected", "not excluded", "power, 1 point"
    cells = ["-"] * len(columns)
    if difference.has_interval:
        interval, left = ends(difference.low, difference.high), ends(*not_excluded(difference))
        cells = [interval, f"{difference.p:.3f}", left, f"{difference.power_of(1):.2f}"]
    texts = dict(zip(columns, cells, strict=True))
    return {"difference": signed(difference.mean), **texts, "seeds": str(difference.seeds)}
