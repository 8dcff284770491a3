"""A comparison of norms in a training script of the user's own, given by its command line."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

from ...errors import UserError
from ...frameworks import run_record
from .comparison_plan import AnyPlan
from .runs import log_of
from .script_metric import ScriptMetric
from .script_run import ENDED, measure

#: Placeholder -> what it stands for.
PLACEHOLDERS = {
    "norm": "the norm",
    "seed": "the seed, as several --seeds are given",
    "output": "the folder to which the run writes",
}
#: A text, and the placeholder behind it.
Part = tuple[str, str | None]


@dataclass(frozen=True)
class ScriptPlan(AnyPlan):
    """A comparison as ``--command`` describes it; the first norm is the baseline."""

    command: str
    norms: Sequence[str]
    seeds: Sequence[int]
    output: Path
    source: ScriptMetric
    num_gpus: int = 0
    margin: float | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        self.check_runs()
        used = {name for parts in self._template for _, name in parts if name is not None}
        if unknown := sorted(used.difference(PLACEHOLDERS)):
            raise UserError(
                f"--command: unknown placeholder {{{unknown[0]}}}; give {{norm}}, {{seed}} and "
                "{output}, and {{ and }} for braces"
            )
        for name, what in PLACEHOLDERS.items():
            if name not in used and (name != "seed" or len(self.seeds) > 1):
                raise UserError(f"--command lacks {{{name}}}; write it for {what}")

    @cached_property
    def _template(self) -> list[list[Part]]:
        """For each word of the command, its parts: a text and the placeholder behind it."""
        try:
            words = shlex.split(self.command)
            if not words:
                raise ValueError("it is empty")
            return [[_part(*part) for part in Formatter().parse(word)] for word in words]
        except ValueError as error:
            raise UserError(f"--command {self.command!r}: {error}; correct it") from error

    def words(self, norm: str, seed: int) -> list[str]:
        """Return the words of a run's command."""
        output = str(self.folder(norm, seed).absolute())
        values = {"norm": norm, "seed": str(seed), "output": output}
        return [
            "".join(text + (values[name] if name is not None else "") for text, name in parts)
            for parts in self._template
        ]

    @property
    def metric(self) -> str:
        return self.source.name

    def curve(self, folder: Path) -> list[float]:
        try:
            return [value for value in self.source.values(folder) if math.isfinite(value)]
        except UserError:  # a run without a result
            return []

    def training(self, norm: str, seed: int) -> list[str]:
        """Return the arguments that run the script, or read its metric if it has ended."""
        options = ["--metric", str(self.source), "--seed", seed, "--num-gpus", self.num_gpus]
        folder = self.folder(norm, seed)
        return ["run-script", *map(str, options), str(folder), "--", *self.words(norm, seed)]

    def evaluation(self, norm: str, seed: int, *_: Any) -> list[str]:
        """Return the arguments that read the metric of a script that has ended."""
        return self.training(norm, seed)

    def prepare(self) -> None:
        """Read the metric of ended runs whose record lacks it, or has another.

        UserError if a run that has another lacks this one.
        """
        for folder in self.folders:
            record = run_record.read(folder) or {}
            is_complete = run_record.is_complete(record)
            if record.get(ENDED) and not (is_complete and record["metric"] == str(self.source)):
                try:
                    measure(folder, self.source)
                except UserError as error:  # a reason for this run
                    if is_complete:
                        raise
                    with log_of(folder).open("a", encoding="utf-8") as file:
                        print(error, file=file)
        self.check_found()

    def check_found(self) -> None:
        """Raise UserError if scripts have ended well, but none with the metric."""
        ended = None
        for folder in self.folders:
            record = run_record.read(folder) or {}
            if run_record.is_complete(record):
                return
            if record.get(ENDED) and record.get("metric") == str(self.source):
                ended = ended or folder
        if ended:
            self.source.read(ended)  # raises the reason

    def shown(self, norm: str, seed: int) -> str:
        return shlex.join(self.words(norm, seed))

    def _settings(self) -> dict[str, Any]:
        return {"--command": self.command, "--gpus": self.num_gpus}


def _part(text: str, name: str | None, form: str | None, conversion: str | None) -> Part:
    """Return a text and the placeholder behind it, with its format, which none may have."""
    return text, name and name + (f"!{conversion}" if conversion else "") + (form and f":{form}")
