"""The results of a comparison's runs: tables of values and of differences from the baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from ..errors import UserError
from ..reports.interval import ALPHA, Difference, paired
from .plain_states import Runs, State, state
from .unit import Unit, decimals, unit_of

#: The name of the source's own test in tables.
OWN_TEST = "test"
#: The end of the reason of a run that has other metrics only.
NOT_MEASURED = "was not measured"


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


class Reading(NamedTuple):
    """A tested difference, by all that chooses its numbers."""

    #: Sorted, as either may be the baseline.
    norms: tuple[str, str]
    test: str
    #: The metric; of a script with its file and rule.
    measure: str
    seeds: tuple[int, ...]
    #: How many results of its runs were replaced before.
    repeats: int = 0


class Look(NamedTuple):
    """The margin of a call, and the readings that are new in it."""

    margin: float | None
    readings: tuple[Reading, ...]


class Verdict(NamedTuple):
    """What the seeds of a norm tell about it and the baseline."""

    #: "better", "worse", "equivalent", "undecided", or "not tested".
    word: str
    #: Why there is no test, and a reader's next step.
    state: State | None = None
    #: p of equivalence within the margin; NaN without a test.
    p_equivalent: float = float("nan")


@dataclass(frozen=True)
class History:
    """What the folder of a comparison has, of this call and of all earlier ones."""

    #: The values of all runs.
    values: Sequence[Value] = ()
    #: Norm, seed, test and reason of each run without a result, those that were repeated, too.
    failures: Sequence[tuple[str, int, str, str]] = ()
    #: Norm, seed, test, measure and value of each result that was reported.
    results: Sequence[tuple[str, int, str, str, float]] = ()
    looks: Sequence[Look] = ()


@dataclass(frozen=True)
class Results:
    """All values of a comparison; the first norm is the baseline."""

    norms: Sequence[str]
    values: Sequence[Value]
    metric: str
    #: Name of the main metric's unit, see :data:`.unit.UNITS`; None to tell it by the values.
    unit_name: str | None = None
    #: Points of the main metric within which a norm counts as equivalent to the baseline.
    margin: float | None = None
    higher_is_better: bool = True
    #: The metric in words; of a script with its file and rule. By default its name.
    measure: str = ""
    history: History = History()
    #: How runs differ by more than their norm: in their code, versions, devices or settings.
    confounded: Sequence[str] = ()
    #: The file from which norms start unconverted, if there is one.
    unconverted: str | None = None
    #: Norm -> "seconds" of a training step.
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def main(self) -> dict[tuple[str, str], dict[int, float]]:
        """(norm, test) -> seed -> value of the main metric, for all runs that have one."""
        values: dict[tuple[str, str], dict[int, float]] = {}
        for value in self.values:
            if value.metric == self.metric and value.value is not None:
                values.setdefault((value.norm, value.test), {})[value.seed] = value.value
        return values

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

    @cached_property
    def left_out(self) -> list[Value]:
        """The values of the folder's runs that this call leaves out."""
        ours = {(value.norm, value.seed) for value in self.values}
        return [value for value in self.history.values if (value.norm, value.seed) not in ours]

    def failed_seeds(self, norm: str, test: str) -> dict[int, str]:
        """Return seed -> reason of a norm's runs without a value of the main metric.

        Those that this call leaves out count: leaving them out would be a choice by the result.
        """
        by_seed = self.by_seed(norm, test)
        left_out = [
            value for value in self.left_out if not (value.failure or "").endswith(NOT_MEASURED)
        ]
        return {
            value.seed: value.failure
            for value in (*self.values, *left_out)
            if value.failure and value.norm == norm
            if value.test in (test, OWN_TEST) and value.seed not in by_seed
        }

    def seeds_of(self, norm: str, test: str) -> str:
        """Return the number of a norm's runs, "3 of 5" where two have no result."""
        known, failed = self.by_seed(norm, test), self.failed_seeds(norm, test)
        return f"{len(known)} of {len(known) + len(failed)}" if failed else str(len(known))

    @cached_property
    def unit(self) -> Unit:
        """The unit of the main metric, whose digits show its smallest deviation."""
        groups = [[*of_seeds.values()] for of_seeds in self.main.values()]
        plain = {test: self.by_seed(self.norms[0], test) for test in self.tests}
        differences = [
            [value - plain[test][seed] for seed, value in of_seeds.items() if seed in plain[test]]
            for (norm, test), of_seeds in self.main.items()
            if norm != self.norms[0]
        ]
        unit = unit_of(self.unit_name, self.higher_is_better, groups)
        return replace(unit, digits=decimals(groups, differences))

    def runs(self, norm: str, test: str) -> Runs:
        """Return the runs of a norm and of the baseline."""
        both = self.norms[0], norm
        return Runs(
            *both,
            {name: self.by_seed(name, test) for name in both},
            {name: self.failed_seeds(name, test) for name in both},
            self.unit,
        )

    @cached_property
    def reported(self) -> dict[tuple[str, int, str, str], float]:
        """Norm, seed, test and measure of each result of this call -> its value."""
        names = {self.metric: self.measure or self.metric}
        return {
            (v.norm, v.seed, v.test, names.get(v.metric, v.metric)): v.value
            for v in self.values
            if v.value is not None
        }

    @cached_property
    def repeats(self) -> dict[tuple[str, int, str], list[float | None]]:
        """Norm, seed, test -> all results of a run that was repeated; None where it has none now.

        Runs that this call leaves out do not count.
        """
        measure, tests = self.measure or self.metric, {value.test for value in self.values}
        left_out = {(value.norm, value.seed) for value in self.left_out}
        values_of: dict[tuple[str, int, str], dict[float | None, None]] = {}
        for norm, seed, test, by, value in self.history.results:
            if by == measure and test in tests and (norm, seed) not in left_out:
                values_of.setdefault((norm, seed, test), {})[value] = None
        for run, values in values_of.items():
            values[self.reported.get((*run, measure))] = None
        return {run: [*values] for run, values in values_of.items() if len(values) > 1}

    @cached_property
    def looks(self) -> list[Look]:
        """What each call of the folder has read and no earlier one, this call last."""
        earlier = [*self.history.looks]
        known = {reading for look in earlier for reading in look.readings}
        tested = [self._reading(norm, test) for test in self.tests for norm in self.norms[1:]]
        new = [reading for reading in tested if reading is not None and reading not in known]
        margins = {look.margin for look in earlier}
        is_new = new or (self.margin not in margins and any(tested))
        return [*earlier, Look(self.margin, (*new,))] if is_new else earlier

    def _reading(self, norm: str, test: str) -> Reading | None:
        """Return the reading of a norm's difference; None for one that is not tested."""
        if self._states[test][norm] is not None:
            return None
        pair = sorted((norm, self.norms[0]))
        seeds = sorted(set.intersection(*({*self.by_seed(name, test)} for name in pair)))
        runs = [(name, seed, test) for name in pair for seed in seeds]
        repeats = sum(len(self.repeats.get(run, [0])) - 1 for run in runs)
        return Reading((*pair,), test, self.measure or self.metric, (*seeds,), repeats)

    def _tests_of(self, reading: Reading) -> int:
        """Return by how many tests p of a reading is corrected.

        In the k-th look with n readings, it is k (k + 1) n: the errors of all looks then add up to
        at most 5 %, however many there are, and whenever a reader stops.
        """
        looks = [look.readings for look in self.looks if look.readings]
        place, readings = next(look for look in enumerate(looks, 1) if reading in look[1])
        return place * (place + 1) * len(readings)

    @cached_property
    def _states(self) -> dict[str, dict[str, State | None]]:
        """Test -> norm, but the baseline -> why it is not tested, or None."""
        norms = self.norms[1:]
        return {test: {norm: state(self.runs(norm, test)) for norm in norms} for test in self.tests}

    @cached_property
    def differences(self) -> dict[str, dict[str, Difference | None]]:
        """Test -> norm -> its difference from the baseline, corrected for all tests of the folder.

        Without interval and p where it is not tested.
        """
        norms = self.norms[1:]
        return {test: {norm: self._difference(norm, test) for norm in norms} for test in self.tests}

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Test -> norm, but the baseline -> what its seeds tell."""
        norms = self.norms[1:]
        return {test: {norm: self._verdict(norm, test) for norm in norms} for test in self.tests}

    def _difference(self, norm: str, test: str) -> Difference | None:
        difference = paired(self.by_seed(norm, test), self.by_seed(self.norms[0], test))
        if difference is None or not difference.has_interval:
            return difference
        if reading := self._reading(norm, test):
            return difference.corrected(self._tests_of(reading))
        return replace(difference, **dict.fromkeys(("low", "high", "p"), float("nan")))

    def _verdict(self, norm: str, test: str) -> Verdict:
        difference = self.differences[test][norm]
        if untested := self._states[test][norm]:
            return Verdict(untested.word, untested)
        p = float("nan")
        if self.margin is not None:
            p = difference.p_within(self.margin * self.unit.point)
        if difference.p < ALPHA:
            gain = (difference.mean > 0) == self.higher_is_better
            return Verdict("better" if gain else "worse", p_equivalent=p)
        return Verdict("equivalent" if p < ALPHA else "undecided", p_equivalent=p)


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
    return default or wanted or best or "no metric"


def complete(values: Sequence[Value], metric: str) -> list[Value]:
    """Return the values that are known, and a failure for each tested run without ``metric``.

    All failures are of ``metric``, so that a table of it has them, too.
    """
    of_metric = {v[:3]: v.value for v in values if v.metric == metric}
    known = [v._replace(metric=metric) if v.failure else v for v in values]
    known = [v for v in known if v.failure or v.value is not None]
    for run in dict.fromkeys(v[:3] for v in values if not v.failure):
        if of_metric.get(run) is None:
            reason = "is NaN or infinite" if run in of_metric else NOT_MEASURED
            known.append(Value(*run, metric, None, f"{metric} {reason}"))
    return known
