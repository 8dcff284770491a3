"""Pairs of norms of the committed comparisons, and differences as cells of tables."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import mean
from typing import NamedTuple

from scipy import stats

from ilm_plugins.reports.interval import ALPHA, Difference, ends, p_value, paired, signed
from ilm_plugins.reports.table import of_dicts

from .results import Results, by_seed, by_setting

#: What a table can tell of a difference.
COLUMNS = "difference", "95 % interval", "p, corrected", "not excluded", "power, 1 point", "seeds"


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
    """Return rows that end with a difference, with p corrected for all rows together."""
    differences = holm([row[-1] for row in rows])
    return [(*row[:-1], one) for row, one in zip(rows, differences, strict=True)]


def rates(results: Results, begin: str, metric: str) -> list[str]:
    """Return a table of one seed's metric by norm and learning rate, "-" for a missing run."""
    comparisons = by_setting(results, f"{begin}-rate")
    rows = []
    for norm in sorted({norm for one in comparisons.values() for norm in results[one]}):
        row = {"": norm.replace("-", " ")}
        for rate, comparison in comparisons.items():
            row[f"{rate:g}"] = mean_cell(by_seed(results, comparison, norm, metric=metric).values())
        rows.append(row)
    return of_dicts(rows) if rows else ["No run has ended yet."]


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with their p corrected for their number, by Holm's step-down rule."""
    tested = [i for i, one in enumerate(differences) if one.has_interval]
    corrected, largest = list(differences), 0.0
    for step, i in enumerate(sorted(tested, key=lambda i: differences[i].p)):
        largest = max(largest, min(1.0, (len(tested) - step) * differences[i].p))
        corrected[i] = replace(differences[i], p=largest, tests=len(tested))
    return corrected


def tested(
    rows: Sequence[tuple[dict[str, str], Difference]], columns: Sequence[str] = COLUMNS
) -> list[dict[str, str]]:
    """Return each row with cells of its difference, p corrected for all rows together."""
    cells = ((row, difference_cells(one)) for row, one in corrected(rows))
    return [row | {name: found[name] for name in columns} for row, found in cells]


def not_excluded(difference: Difference) -> tuple[float, float]:
    """Return the differences that two one-sided tests at 5 % do not exclude: the 90 % interval."""
    error = difference.deviation / difference.seeds**0.5
    reach = float(stats.t.isf(ALPHA, difference.seeds - 1)) * error
    return difference.mean - reach, difference.mean + reach


def mean_cell(values: Collection[float]) -> str:
    return f"{mean(values):.1f}" if values else "-"


def difference_cells(difference: Difference) -> dict[str, str]:
    """Return column -> cell of a difference; "-" for what one seed does not tell."""
    cells = ["-"] * 4
    if difference.has_interval:
        interval, left = ends(difference.low, difference.high), ends(*not_excluded(difference))
        p = p_value(difference.p).removeprefix("= ")
        cells = [interval, p, left, f"{difference.power_of(1):.2f}"]
    every = signed(difference.mean), *cells, str(difference.seeds)
    return dict(zip(COLUMNS, every, strict=True))
