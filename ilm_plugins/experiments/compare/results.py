"""The results of a comparison's runs: tables of values and of differences from the baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from ...errors import UserError
from .plan import OWN_TEST
from .statistics import Difference, holm, paired

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


@dataclass(frozen=True)
class Results:
    """All values of a comparison; the first norm is the baseline."""

    norms: Sequence[str]
    values: Sequence[Value]
    metric: str
    #: Norm -> how its model differs from the baseline's before training; empty without --weights.
    starts: dict[str, str] = field(default_factory=dict)
    #: The file from which norms start unconverted, if there is one.
    unconverted: str | None = None
    #: Norm -> the number of its model's parameters.
    parameters: dict[str, int] = field(default_factory=dict)
    #: Norm -> the number of norms of each class in its model.
    norms_of_model: dict[str, str] = field(default_factory=dict)
    #: Norm -> "seconds" and "memory" of a training step.
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    #: Norm -> overrides that only its runs have.
    overrides_of_norm: dict[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row for each run, test and metric."""
        return pd.DataFrame(self.values, columns=Value._fields)

    @cached_property
    def main(self) -> pd.DataFrame:
        """The rows of the main metric that have a value."""
        frame = self.frame[self.frame["metric"] == self.metric]
        return frame.dropna(subset="value").astype({"value": float})

    @property
    def tests(self) -> list[str]:
        return list(dict.fromkeys(self.main["test"])) or [OWN_TEST]

    @property
    def failures(self) -> list[Value]:
        return [value for value in self.values if value.failure]

    @property
    def point(self) -> float:
        """One point of the main metric: 1, or .01 where all values are fractions."""
        values = self.main["value"].abs()
        return 0.01 if len(values) and values.max() <= 1 else 1.0

    def title(self, test: str) -> str:
        """Return the name of the main metric, and of the test if it is not the config's own."""
        return self.metric if test == OWN_TEST else f"{self.metric}, {test}"

    def by_seed(self, norm: str, test: str) -> dict[int, float]:
        """Return seed -> value of the main metric."""
        rows = self.main[(self.main["norm"] == norm) & (self.main["test"] == test)]
        return dict(zip(rows["seed"], rows["value"], strict=True))

    def differences(self, test: str) -> dict[str, Difference | None]:
        """Return each norm's difference from the baseline, p corrected over the norms."""
        baseline, *others = self.norms
        plain = self.by_seed(baseline, test)
        corrected = holm([paired(self.by_seed(norm, test), plain) for norm in others])
        return dict(zip(others, corrected, strict=True))


def main_metric(values: Iterable[Value], wanted: str | None, best: str | None = None) -> str:
    """Return the metric to compare; UserError if the wanted one is missing.

    Otherwise it is ``best``, by which the config chooses a checkpoint, mIoU, which mmseg's
    evaluator gives behind the pixel accuracy, or the first.
    """
    names = list(dict.fromkeys(v.metric for v in values if v.value is not None))
    for metric in filter(None, (wanted, best)):
        if metric in names:
            return metric
        # A name may have another prefix in a config or a command than in a record, or none.
        for name in names:
            if metric.rpartition("/")[2] == name.rpartition("/")[2]:
                return name
        if metric == wanted and names:
            raise UserError(f"--metric {wanted!r}: the runs have {', '.join(names)}; give one")
    default = "mIoU" if "mIoU" in names else next(iter(names), None)
    return default or wanted or best or "no metric"


def complete(values: Sequence[Value], metric: str) -> list[Value]:
    """Return the values that are known, and a failure for each tested run without ``metric``."""
    tested = {(v.norm, v.seed, v.test): None for v in values if not v.failure}
    known = [v for v in values if v.value is not None or v.failure]
    found = {(v.norm, v.seed, v.test) for v in known if v.metric == metric}
    reason = f"{metric} is not a number, or was not measured"
    return known + [Value(*run, metric, None, reason) for run in tested if run not in found]
