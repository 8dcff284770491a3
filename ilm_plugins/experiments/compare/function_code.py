"""A digest of a function's code, which tells if the function has changed since it made a run."""

import dis
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

#: Types of constants. Lists and other objects may change while the function runs.
PLAIN = bool, int, float, complex, str, bytes, type(None)


def digest_of(function: Any) -> str:
    """Return 12 digits of the SHA-256 of a function's bytecode and what it uses of its module.

    This includes the functions, classes, numbers and texts that other cells of a notebook define.
    Comments do not count. Each version of Python has its own bytecode.
    """
    known = isinstance(function, partial | FunctionType | MethodType)
    parts = _parts(function if known else type(function), None, {}, set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _parts(
    value: Any, module: str | None, names: Mapping[str, Any], seen: set[int]
) -> Iterator[str]:
    """Yield the parts of a value that code of ``module``, with the globals ``names``, uses."""
    inner: list[Any] = []
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, frozenset):
        yield repr(sorted(map(repr, value)))  # the set's order is another one in each process
    elif isinstance(value, tuple):
        inner = [*value]
    elif isinstance(value, partial):
        inner = [value.func, *value.args, *sorted(value.keywords.items())]
    elif isinstance(value, MethodType | staticmethod | classmethod):
        inner = [value.__func__]
    elif isinstance(value, property):
        inner = [value.fget]
    elif isinstance(value, CodeType):
        yield value.co_code.hex()
        yield repr(value.co_names)
        loads = ("LOAD_GLOBAL", "LOAD_NAME")
        used = {one.argval for one in dis.get_instructions(value) if one.opname in loads}
        inner = [*value.co_consts, *(names.get(name) for name in sorted(used))]
    elif isinstance(value, FunctionType | type):
        value = inspect.unwrap(value)
        if id(value) in seen or value.__module__ != (module or value.__module__):
            return
        seen.add(id(value))
        module = value.__module__
        if isinstance(value, type):
            items = sorted(vars(value).items())
            inner = [one for name, one in items if not name.startswith("__") or callable(one)]
            inner += value.__bases__
        else:
            names = value.__globals__
            inner = [value.__code__, value.__defaults__]
            inner += sorted((value.__kwdefaults__ or {}).items())
            full = (cell for cell in value.__closure__ or () if cell != CellType())
            inner += [cell.cell_contents for cell in full]
    for one in inner:
        yield from _parts(one, module, names, seen)
