"""Read checkpoints; code in them runs only if the caller allows that."""

import codecs
import functools
import os
import pickle
import re
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import CheckpointError, UserError, missing

#: Environment variables of torch. With the first, torch.load refuses code even if its caller allows
#: it; with the second, torch.load runs code unless its caller forbids it.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: Ending of a checkpoint's name -> its format. Files of other names are read as torch's.
FORMATS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), "torch"),
    ".pkl": "pickle",
    ".safetensors": "safetensors",
}


@contextmanager
def loading(unsafe: bool = False) -> Iterator[None]:
    """Forbid or allow ``torch.load`` to run code, in this process and its child processes."""
    before = {name: os.environ.pop(name, None) for name in (REFUSE_CODE, ALLOW_CODE)}
    os.environ[ALLOW_CODE if unsafe else REFUSE_CODE] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def code_is_allowed() -> bool:
    """Whether checkpoints may run code: within ``loading(unsafe=True)``, or by the environment."""
    return os.environ.get(ALLOW_CODE) == "1"


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """Return the contents of a checkpoint, with tensors on the CPU, and numpy's arrays as such.

    Raises:
        CheckpointError: the file is missing or damaged, or holds code that is not allowed.
        UserError: the package safetensors is missing.
    """
    path = Path(path).expanduser()
    unsafe = unsafe or code_is_allowed()
    kind = FORMATS.get(path.suffix)
    try:
        if kind == "safetensors":
            return safetensors(path).load_file(path)
        return (_read_pickle if kind == "pickle" else _read_torch)(path, unsafe)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a damaged file may raise any error
        reason = _reason(error, path)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def safetensors(path: Path) -> ModuleType:
    """Return the module ``safetensors.torch``, which ``path`` needs; UserError without one."""
    try:
        from safetensors import torch

        return torch
    except ImportError as error:  # numpy's, too
        raise missing(str(path), error, "safetensors") from error


def _read_pickle(path: Path, unsafe: bool) -> Any:
    with path.open("rb") as file:
        return (pickle.Unpickler if unsafe else ArrayUnpickler)(file, encoding="latin1").load()


def _read_torch(path: Path, unsafe: bool) -> Any:
    # torch before 2.6 runs the code in these two formats even with weights_only.
    if not unsafe and tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("Unsupported class tarfile.TarFile")
    if not unsafe and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise pickle.UnpicklingError("Unsupported class torch.jit.ScriptModule")
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(data_types())
    try:
        return torch.load(path, map_location="cpu", weights_only=not unsafe)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _reason(error: Exception, path: Path) -> str:
    """Return why a file cannot be read, in one line."""
    text = " ".join(str(error).split())
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named or "Trying to call" in text or "Can only" in text:
        what = named[1] if named else "more than data"
        return f"it holds {what}, which may run code; if you trust its source, give --unsafe"
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                return "it is a pointer of git-lfs; run 'git lfs pull'"
    return f"it is truncated, or not a checkpoint ({type(error).__name__}: {text[:120]})"


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy's arrays; refuses all other classes."""

    def find_class(self, module: str, name: str) -> Callable:
        found = _array_functions().get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return found


@functools.cache
def _array_functions() -> dict[str, Callable]:
    """Return name in a pickle -> function or class; ImportError without numpy."""
    import numpy as np

    array = np.zeros(1)
    functions = {
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        # Older protocols write bytes as encoded text.
        "_codecs.encode": codecs.encode,
        "builtins.bytes": bytes,
        "__builtin__.bytes": bytes,
        "collections.OrderedDict": OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        functions[f"{core}.multiarray._reconstruct"] = array.__reduce__()[0]
        functions[f"{core}.multiarray.scalar"] = array[0].__reduce__()[0]
        functions[f"{core}.numeric._frombuffer"] = array.__reduce_ex__(5)[0]
    return functions


#: Stands for MMEngine's log of values where MMEngine is not imported.
HistoryBuffer = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})


def data_types() -> list[Callable]:
    """Return what arrays and MMEngine's logs need from ``torch.serialization.add_safe_globals``."""
    return [*_array_types(), _log_type(), _named("builtins.getattr", _statistic)]


def _log_type() -> type:
    return getattr(sys.modules.get(HistoryBuffer.__module__), "HistoryBuffer", HistoryBuffer)


def _statistic(owner: type, name: str) -> Callable | None:
    """Return a method that a pickled log names; getattr itself could reach any code."""
    if owner is not _log_type() or name.startswith("_"):
        raise pickle.UnpicklingError("Unsupported global builtins.getattr")
    return getattr(owner, name, None)


@functools.cache
def _array_types() -> list[Callable]:
    try:
        import numpy as np
    except ImportError:
        return []
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSU"}
    return [*kinds, *(_named(name, function) for name, function in _array_functions().items())]


@functools.cache
def _named(name: str, function: Callable) -> Callable:
    """Return ``function`` if it is a class called ``name``, else a wrapper called ``name``."""
    if isinstance(function, type) and f"{function.__module__}.{function.__name__}" == name:
        return function

    def call(*args):
        return function(*args)

    call.__module__, call.__name__ = name.rsplit(".", 1)
    call.__qualname__ = call.__name__
    return call
