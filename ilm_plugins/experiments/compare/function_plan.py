"""The runs of a training function of the user's own, one after the other in this process."""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import UserError, one_line, writing_to
from ...files import lock
from ...frameworks.run_processes import available_gpus
from ...frameworks.run_record import PLAIN, read
from . import comparison, comparison_report
from .comparison_plan import OWN_TEST, AnyPlan
from .function_code import digest_of
from .function_runs import Train
from .results import Results, Value, main_metric
from .runs import is_complete, log_of, metrics
from .script_run import new_record, save


@dataclass(frozen=True)
class FunctionPlan(AnyPlan):
    """A comparison of norms in a training function; the first norm is the baseline."""

    train: Train
    norms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    metric: str | None = None
    margin: float | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        self.check_runs()

    def compare(self, command: str) -> tuple[Results, str]:
        """Make the runs without a result; return the results, and the report that was written."""
        with writing_to(self.output), lock(self.output):
            self.check_settings()
            self._tell_other_code()
            todo = [(seed, norm) for seed in self.seeds for norm in self.norms]
            for seed, norm in (bar := tqdm(todo)):
                bar.set_description(f"{norm}, seed {seed}")
                self._run(norm, seed)
            results = comparison.report(self, {}, command, {}, {})
        return results, comparison_report.markdown(results, command)

    def _run(self, norm: str, seed: int) -> None:
        """Make a run, unless it is complete; UserError if it lacks the metric to compare."""
        folder = self.folder(norm, seed)
        if not is_complete(folder):
            self._train(norm, seed, folder)
        if self.metric is not None:
            found = metrics(self, norm, seed).items()
            main_metric([Value(norm, seed, OWN_TEST, *one) for one in found], self.metric)

    def _train(self, norm: str, seed: int, folder: Path) -> None:
        call = f"{self.name}({norm!r}, {seed}, {str(folder)!r})"
        gpus = min(1, available_gpus())
        record = new_record(call, "function", seed, gpus) | {"code": self._code}
        save(folder, record)
        begun = time.monotonic()
        try:
            found = _numbers(self.train(norm, seed, folder))
        except Exception as error:  # of the user's code: a reason for this run, the others go on
            with log_of(folder).open("a", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            tqdm.write(f"{norm}, seed {seed} failed: {type(error).__name__}: {one_line(error)}")
            return
        seconds = time.monotonic() - begun
        save(folder, record | {"run": 1, "seconds": seconds, "metrics": {PLAIN: found}})

    def _tell_other_code(self) -> None:
        """Print which recorded runs were made by other code of the function."""
        complete = filter(is_complete, self.folders)
        if made := [str(one) for one in complete if read(one).get("code") != self._code]:
            tqdm.write(
                f"{self.name}: {len(made)} runs recorded earlier by other code are kept; to make "
                f"them again, remove {', '.join(made)}, or give another output"
            )

    @cached_property
    def _code(self) -> str:
        return digest_of(self.train)

    @property
    def name(self) -> str:
        return getattr(self.train, "__qualname__", type(self.train).__qualname__)

    def _settings(self) -> dict[str, Any]:
        return {"train": self.name}


def _numbers(found: Any) -> dict[str, float]:
    """Return what a training function returned, as numbers; UserError for anything else."""
    try:
        if not (isinstance(found, Mapping) and found):
            raise TypeError
        return {str(name): float(value) for name, value in found.items()}
    except (TypeError, ValueError):
        raise UserError(f"the function returned {found!r}; return a dict of numbers") from None
