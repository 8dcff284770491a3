"""The results of a comparison's runs: tables of values and of differences from the baseline."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from ...errors import UserError
from ..reports.interval import ALPHA, Difference, holm, one_sided, paired

#: The name of the source's own test in tables.
OWN_TEST = "test"
#: The main metric where no run has a metric.
NO_METRIC = "no metric"
#: Unit of the metric -> a point.
POINTS = {"percent": 1.0, "fraction": 0.01}
#: How many times the training step of each norm is measured.
ROUNDS = 7


class Value(NamedTuple):
    """One metric of one run by one test; ``value`` is None where ``failure`` says why."""

    norm: str
    seed: int
    test: str
    metric: str
    value: float | None
    failure: str | None = None
    #: Of the training, and where and by which commit it was made; None where no record tells.
    seconds: float | None = None
    commit: str | None = None
    processor: str | None = None


class Verdict(NamedTuple):
    """What the seeds of a norm tell about it and the baseline, and the p of the margin's tests."""

    #: "better", "worse", "equivalent", "no worse" (both within the margin), or "undecided".
    word: str
    #: p of "no worse" and of "equivalent", each corrected over the norms; NaN without a test.
    p_no_worse: float
    p_equivalent: float
    #: The least and the most probability, by the deviation's own interval, that the seeds show a
    #: difference of the margin, or of a point.
    powers: tuple[float, float]
    #: How many seeds show it with probability .8; None without a test, or for too many.
    seeds_needed: int | None


class ModelSummary(NamedTuple):
    """The number of parameters and the norms of a model, for the report."""

    parameters: int
    #: The number of norms of each class.
    norms: str


@dataclass(frozen=True)
class Results:
    """All values of a comparison; the first norm is the baseline."""

    norms: Sequence[str]
    values: Sequence[Value]
    metric: str
    #: One point of the main metric: 1, or .01 of a fraction.
    point: float = 1.0
    #: Points of the main metric within which a norm counts as equivalent to the baseline.
    margin: float | None = None
    higher_is_better: bool = True
    #: The seeds of each reading of the comparison, this one included.
    readings: Sequence[Collection[int]] = ()
    #: Norm -> how its model differs from the baseline's before training; empty without --weights.
    starts: dict[str, str] = field(default_factory=dict)
    #: Which runs are of other code than the others, if there are any.
    other_code: str | None = None
    #: The file from which norms start unconverted, if there is one.
    unconverted: str | None = None
    #: Norm -> its model's numbers of parameters and norms.
    models: dict[str, ModelSummary] = field(default_factory=dict)
    #: Norm -> "seconds" and "memory" of a training step.
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Norm -> all overrides that not all norms have; empty for code of the user's own.
    settings_of_norms: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def main(self) -> dict[tuple[str, str], dict[int, float]]:
        """(norm, test) -> seed -> value of the main metric, for all runs that have one."""
        found = defaultdict(dict)
        for value in self.values:
            if value.metric == self.metric and value.value is not None:
                found[value.norm, value.test][value.seed] = value.value
        return dict(found)

    @property
    def tests(self) -> list[str]:
        return list(dict.fromkeys(test for _, test in self.main)) or [OWN_TEST]

    @property
    def failures(self) -> list[Value]:
        return [value for value in self.values if value.failure]

    def title(self, test: str) -> str:
        """Return the name of the main metric, and of the test if it is not the config's own."""
        return self.metric if test == OWN_TEST else f"{self.metric}, {test}"

    def by_seed(self, norm: str, test: str) -> dict[int, float]:
        """Return seed -> value of the main metric."""
        return self.main.get((norm, test), {})

    def failed_seeds(self, norm: str, test: str) -> dict[int, str]:
        """Return seed -> reason of a norm's runs without a value of the main metric."""
        found = self.by_seed(norm, test)
        return {
            value.seed: value.failure
            for value in self.failures
            if value.norm == norm and value.test in (test, OWN_TEST) and value.seed not in found
        }

    def seeds_of(self, norm: str, test: str) -> str:
        """Return the number of a norm's runs, "3 of 5" where two have no result."""
        found, failed = self.by_seed(norm, test), self.failed_seeds(norm, test)
        return f"{len(found)} of {len(found) + len(failed)}" if failed else str(len(found))

    @cached_property
    def largest(self) -> float | None:
        """The largest possible value of a percentage or a fraction; None for another metric."""
        largest = 100 * self.point
        values = [value for found in self.main.values() for value in found.values()]
        is_share = self.higher_is_better and all(0 <= value <= largest for value in values)
        return largest if is_share else None

    def are_equal(self, norm: str, test: str) -> bool:
        """Return whether a norm's runs have the baseline's values in all of their common seeds."""
        plain = self.by_seed(self.norms[0], test)
        ours = self.by_seed(norm, test)
        return all(ours[seed] == plain[seed] for seed in ours if seed in plain)

    @property
    def visible_points(self) -> float:
        """The points of the difference whose power is told."""
        return self.margin or 1.0

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference | None]]:
        """Test -> norm -> its difference from the baseline, p corrected over the norms.

        If a run of either norm failed there is no test, as the seeds left may be the lucky ones.
        """
        return {test: self._differences(test) for test in self.tests}

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Test -> norm, but the baseline -> what its seeds tell; "undecided" without a test."""
        return {test: self._verdicts(test) for test in self.tests}

    def _differences(self, test: str) -> dict[str, Difference | None]:
        baseline, *others = self.norms
        plain = self.by_seed(baseline, test)
        found = []
        for norm in others:
            difference = paired(self.by_seed(norm, test), plain)
            failed = self.failed_seeds(norm, test) or self.failed_seeds(baseline, test)
            if difference and failed:
                difference = replace(difference, p=float("nan"))
            found.append(difference)
        return dict(zip(others, holm(found), strict=True))

    def _verdicts(self, test: str) -> dict[str, Verdict]:
        differences = self.differences[test]
        no_worse, equivalent = [], []
        for norm, difference in differences.items():
            above = below = float("nan")
            if difference and difference.is_tested and self.margin is not None:
                values = self.by_seed(norm, test), self.by_seed(self.norms[0], test)
                above, below = one_sided(*values, self.margin * self.point)
            no_loss = above if self.higher_is_better else below
            no_worse.append(difference and replace(difference, p=no_loss))
            equivalent.append(difference and replace(difference, p=max(above, below)))
        pairs = zip(holm(no_worse), holm(equivalent), strict=True)
        return {
            norm: self._verdict(difference, *(one.p if one else float("nan") for one in pair))
            for (norm, difference), pair in zip(differences.items(), pairs, strict=True)
        }

    def _verdict(
        self, difference: Difference | None, p_no_worse: float, p_equivalent: float
    ) -> Verdict:
        word = "undecided"
        if difference and difference.p < ALPHA:
            word = "better" if (difference.mean > 0) == self.higher_is_better else "worse"
        elif p_equivalent < ALPHA:
            word = "equivalent"
        elif p_no_worse < ALPHA:
            word = "no worse"
        if difference is None or not difference.is_tested:
            return Verdict(word, p_no_worse, p_equivalent, (float("nan"), float("nan")), None)
        size = self.visible_points * self.point
        powers, needed = difference.powers_of(size), difference.seeds_for(size)
        return Verdict(word, p_no_worse, p_equivalent, powers, needed)


def main_metric(values: Iterable[Value], wanted: str | None, best: str | None = None) -> str:
    """Return the metric to compare; UserError if the wanted one is missing.

    Otherwise it is ``best``, by which the config chooses a checkpoint, mIoU, which mmseg's
    evaluator gives behind the pixel accuracy, or the first.
    """
    values = [value for value in values if value.metric]
    known = [v.metric for v in values if v.value is not None]
    names = list(dict.fromkeys([*known, *(v.metric for v in values)]))  # those of NaN come last
    for metric in filter(None, (wanted, best)):
        if metric in names:
            return metric
        # A name may have another prefix in a config or a command than in a record, or none.
        for ending in (metric, metric.rpartition("/")[2]):
            for name in names:
                if f"/{name}".endswith(f"/{ending}"):
                    return name
        if metric == wanted and names:
            raise UserError(f"--metric {wanted!r}: the runs have {', '.join(names)}; give one")
    default = "mIoU" if "mIoU" in names else next(iter(names), None)
    return default or wanted or best or NO_METRIC


def point_of(values: Iterable[Value], metric: str) -> float:
    """Return a point of a metric of unknown unit: .01 if no value is above 1, else 1."""
    found = [abs(v.value) for v in values if v.metric == metric and v.value is not None]
    return 0.01 if found and max(found) <= 1 else 1.0


def complete(values: Sequence[Value], metric: str) -> list[Value]:
    """Return the values that are known, and a failure for each tested run without ``metric``.

    All failures are of ``metric``, so that a table of it has them, too.
    """
    tested = {(v.norm, v.seed, v.test): None for v in values if not v.failure}
    known = [v._replace(metric=metric) if v.failure else v for v in values]
    known = [v for v in known if v.failure or (v.value is not None and math.isfinite(v.value))]
    found = {(v.norm, v.seed, v.test) for v in known if v.metric == metric}
    with_metric = {(v.norm, v.seed, v.test) for v in values if v.metric == metric}
    for run in tested:
        if run not in found:
            reason = f"{metric} was not measured"
            if run in with_metric:
                reason = f"{metric} is NaN or infinite"
            elif metric == NO_METRIC:
                reason = "nothing was measured"
            known.append(Value(*run, metric, None, reason))
    return known
