"""Types that torch.load accepts beside torch's own: numpy's arrays and MMEngine's logs."""

import functools
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .pickled import FUNCTIONS, Array, Dtype, check


class HistoryBuffer:
    """Replaces MMEngine's log of values where MMEngine is not imported."""

    __module__ = "mmengine.logging.history_buffer"

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def data_types() -> list[Callable]:
    """Return the arguments of torch's ``add_safe_globals`` for arrays and MMEngine's logs."""
    functions = {**FUNCTIONS, "builtins.getattr": _statistic}
    return [Array, Dtype, _log_type(), *(_named(*pair) for pair in functions.items())]


@contextmanager
def accepting_data() -> Iterator[None]:
    """Have torch.load accept :func:`data_types`; other names that were accepted stay so."""
    before = torch.serialization.get_safe_globals()
    accept_data()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def accept_data() -> None:
    """Have torch.load accept :func:`data_types`, also in place of numpy's own functions."""
    ours = data_types()
    names = {*map(_name_of, ours)}
    others = [g for g in torch.serialization.get_safe_globals() if _name_of(g) not in names]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *ours])


def _name_of(accepted: Callable | tuple[Callable, str]) -> str:
    """Return the name in a pickle that an entry of torch's list accepts."""
    if isinstance(accepted, tuple):
        return accepted[1]
    return f"{accepted.__module__}.{accepted.__qualname__}"


@functools.cache
def _named(name: str, function: Callable) -> Callable:
    """Return a function that torch accepts under a name in a pickle."""

    def call(*args):
        return function(*args)

    return _rename(call, *name.rsplit(".", 1))


def _rename(function: Any, module: str, name: str) -> Any:
    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


def _log_type() -> type:
    """Return a class of logs that checks the state in a file."""
    module = sys.modules.get(HistoryBuffer.__module__)
    return _checked(getattr(module, "HistoryBuffer", HistoryBuffer))


@functools.cache
def _checked(base: type) -> type:
    """Return a subclass of a log's class; an object becomes one of ``base`` with its state."""

    class Log(base):
        def __init__(self, *args: object) -> None:
            check(False, "a log that is not pickled as MMEngine does")

        def __setstate__(self, state: dict[str, Any]) -> None:
            histories = {name: state[name] for name in ("_log_history", "_count_history")}
            plain = all(isinstance(history, Array) for history in histories.values())
            check(plain and type(state["max_length"]) is int, "a log without arrays and a length")
            # Functions in the state are left out: MMEngine would give them to all logs.
            self.__class__ = base
            arrays = {name: history.build() for name, history in histories.items()}
            self.__setstate__({"max_length": state["max_length"], **arrays})

    return _rename(Log, base.__module__, base.__name__)


def _statistic(owner: type, name: str) -> None:
    """Replace a method that a pickled log names; getattr itself could reach any code."""
    if owner is not _log_type() or name.startswith("_"):
        raise pickle.UnpicklingError("Unsupported global builtins.getattr")
