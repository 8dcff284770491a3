"""A training function of the user's own, whose runs are made one after the other in this process.

A digest of its code tells if the function has changed since it made a run.
"""

import dis
import hashlib
import inspect
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError, one_line, printable
from ..frameworks.run.processes import available_gpus
from ..frameworks.run.record import PLAIN
from .plan import Plan, Source
from .run_folders import is_complete, log_of, new_record, note_failure, open_to_add, save
from .runs import check_metric

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
            found = _numbers(self.train(norm, seed, folder))
        except Exception as error:  # of the user's code: a reason for this run, the others go on
            with open_to_add(log_of(folder)) as file:
                traceback.print_exception(error, file=file)
            note_failure(folder)
            failed = f"{norm}, seed {seed} failed: {type(error).__name__}: {one_line(error)}"
            tqdm.write(printable(failed))
            return
        seconds = time.monotonic() - begun
        save(folder, record | {"run": 1, "seconds": seconds, "metrics": {PLAIN: found}})


def _numbers(found: Any) -> dict[str, float]:
    """Return what a training function returned, as numbers; UserError for anything else."""
    try:
        if not (isinstance(found, Mapping) and found):
            raise TypeError
        # A loss may have its gradient, of which float() would warn.
        plain = {n: v.detach() if isinstance(v, torch.Tensor) else v for n, v in found.items()}
        return {str(name): float(value) for name, value in plain.items()}
    except (TypeError, ValueError):
        raise UserError(f"the function returned {found!r}; return a dict of numbers") from None


def digest_of(function: Any) -> str:
    """Return 12 digits of the SHA-256 of a function's bytecode and what it uses of its module.

    This includes the functions, classes, numbers and texts that other cells of a notebook define.
    Comments do not count. Each version of Python has its own bytecode.
    """
    known = isinstance(function, partial | FunctionType | MethodType)
    texts = _Reader().texts(function if known else type(function))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


class _Reader:
    """Reads the code and the constants that a function uses from its own module."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        #: The module of the first function or class, and what it defines.
        self._module: str | None = None
        self._globals: Mapping[str, Any] = {}

    def texts(self, value: Any) -> Iterator[str]:
        """Yield texts of a value and of all values in it, which change with its code."""
        if isinstance(value, CONSTANTS):
            yield repr(value)
        elif isinstance(value, frozenset):
            yield repr(sorted(map(repr, value)))  # the set's order is another one in each process
        elif isinstance(value, CodeType):
            yield value.co_code.hex()
            yield repr(value.co_names)
        for one in self._inner(value):
            yield from self.texts(one)

    def _inner(self, value: Any) -> Sequence[Any]:
        match value:
            case tuple():
                return value
            case partial():
                return [value.func, *value.args, *sorted(value.keywords.items())]
            case MethodType() | staticmethod() | classmethod():
                return [value.__func__]
            case property():
                return [value.fget]
            case CodeType():
                loads = ("LOAD_GLOBAL", "LOAD_NAME")
                used = {one.argval for one in dis.get_instructions(value) if one.opname in loads}
                return [*value.co_consts, *(self._globals.get(name) for name in sorted(used))]
            case FunctionType() | type():
                return self._definition(inspect.unwrap(value))
        return []

    def _definition(self, value: Any) -> Sequence[Any]:
        """Return the parts of a function or class; [] in another module, and the second time."""
        self._module = self._module or value.__module__
        if id(value) in self._seen or value.__module__ != self._module:
            return []
        self._seen.add(id(value))
        if isinstance(value, type):
            items = sorted(vars(value).items())
            own = [one for name, one in items if not name.startswith("__") or callable(one)]
            return [*own, *value.__bases__]
        self._globals = value.__globals__
        full = [cell for cell in value.__closure__ or () if cell != CellType()]
        defaults = sorted((value.__kwdefaults__ or {}).items())
        return [value.__code__, value.__defaults__, *defaults, *(c.cell_contents for c in full)]
