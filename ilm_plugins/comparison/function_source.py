"""A training function of the user's own, whose runs are made one after the other in this process.

A digest of its code tells if the function has changed since it made a run.
"""

import hashlib
import inspect
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError, one_line, printable
from ..frameworks.run.processes import available_gpus
from ..frameworks.run.record import PLAIN
from .plan import Plan, Source
from .run.folders import is_complete, log_of, new_record, note_failure, open_to_add, save
from .run.outcomes import check_metric

Train = Callable[[str, int, Path], Mapping[str, float]]
#: Types of constants. Lists and other objects may change while the function runs.
CONSTANTS = bool, int, float, complex, str, bytes, type(None)


@dataclass(frozen=True)
class FunctionSource(Source):
    """A function that trains one model."""

    train: Train

    @property
    def name(self) -> str:
        return getattr(self.train, "__qualname__", type(self.train).__qualname__)

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.train)

    def code(self, norm: str, seed: int, folder: Path) -> str:
        return self._digest

    def settings(self, plan: Plan) -> dict[str, Any]:
        return {"train": self.name}

    def make_runs(self, plan: Plan) -> None:
        """Make the runs without a result; UserError if a run lacks the metric to compare."""
        todo = [(seed, norm) for seed in plan.seeds for norm in plan.norms]
        for seed, norm in (bar := tqdm(todo)):
            bar.set_description(f"{norm}, seed {seed}")
            if not is_complete(folder := plan.folder(norm, seed)):
                self._train(norm, seed, folder)
            check_metric(plan, norm, seed)

    def _train(self, norm: str, seed: int, folder: Path) -> None:
        call = f"{self.name}({norm!r}, {seed}, {str(folder)!r})"
        gpus = min(1, available_gpus())
        record = new_record(call, "function", self._digest, seed, gpus)
        save(folder, record)
        begun = time.monotonic()
        try:
            metrics = _numbers(self.train(norm, seed, folder))
        except Exception as error:  # of the user's code: a reason for this run, the others go on
            with open_to_add(log_of(folder)) as file:
                traceback.print_exception(error, file=file)
            note_failure(folder)
            failed = f"{norm}, seed {seed} failed: {type(error).__name__}: {one_line(error)}"
            tqdm.write(printable(failed))
            return
        seconds = time.monotonic() - begun
        save(folder, record | {"run": 1, "seconds": seconds, "metrics": {PLAIN: metrics}})


def _numbers(metrics: Any) -> dict[str, float]:
    """Return what a training function returned, as numbers; UserError for anything else."""
    try:
        if not (isinstance(metrics, Mapping) and metrics):
            raise TypeError
        # A loss may have its gradient, of which float() would warn.
        plain = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in metrics.items()}
        return {str(name): float(value) for name, value in plain.items()}
    except (TypeError, ValueError):
        raise UserError(f"the function returned {metrics!r}; return a dict of numbers") from None


def digest_of(function: Any) -> str:
    """Return 12 digits of the SHA-256 of a function's source and what it uses of its module.

    This includes the functions, classes, numbers and texts that other cells of a notebook define.
    """
    texts: set[str] = set()
    known = isinstance(function, partial | FunctionType | MethodType)
    _read(function if known else type(function), function.__class__.__name__, None, texts)
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:12]


def _read(value: Any, name: str, module: str | None, texts: set[str]) -> None:
    """Add the sources and constants of a value, and of what it uses, to texts.

    Only the functions and classes of the first value's module count.
    """
    value = inspect.unwrap(getattr(value, "__func__", value)) if callable(value) else value
    used: Mapping[str, Any] = {}
    if isinstance(value, CONSTANTS):
        texts.add(f"{name} = {value!r}")
    elif isinstance(value, partial):
        used = {"": value.func, **{str(i): argument for i, argument in enumerate(value.args)}}
        used |= value.keywords
    elif isinstance(value, FunctionType | type) and value.__module__ == (
        module or value.__module__
    ):
        module = value.__module__
        if isinstance(value, type):  # a notebook has no file, by which inspect finds a class
            own = {
                n: member for n, member in vars(value).items() if n not in ("__module__", "__doc__")
            }
            used = own | {base.__name__: base for base in value.__bases__}
        elif (source := _source(value)) not in texts:
            texts.add(source)
            known = value.__globals__ | inspect.getclosurevars(value).nonlocals
            used = {word: known.get(word) for word in set(re.findall(r"\w+", source))}
    for inner, inner_value in used.items():
        _read(inner_value, inner, module, texts)


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except OSError:  # of a function that was typed into a terminal
        return function.__qualname__
