"""Read checkpoint files without running the code in them."""

import codecs
import functools
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, missing
from .pickles import SizeError, check_nesting, check_pickle, check_torch, is_pickle

#: Environment variables of torch. With the first, torch.load refuses code even if its caller allows
#: it; with the second, torch.load runs code unless its caller forbids it.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: Advice for a checkpoint that is refused because of the code in it.
TRUST = "; if you trust its source, give --unsafe"


@contextmanager
def loading(unsafe: bool = False) -> Iterator[None]:
    """Forbid or allow ``torch.load`` to run code, in this process and in those that it starts.

    It sets torch's environment variables within the block, and restores them at exit.

    Args:
        unsafe: let :func:`read`, and ``torch.load`` where its caller does not forbid it, run code.
    """
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
    """Return whether checkpoints may run code while they are loaded.

    They may within ``loading(unsafe=True)``, or if the user set the variable :data:`ALLOW_CODE`.
    """
    return os.environ.get(ALLOW_CODE) == "1"


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """Return the contents of a checkpoint, with tensors on the CPU, and numpy's arrays as such.

    Args:
        path: a file written by ``torch.save``; a ``.safetensors`` file; or a ``.pkl`` file, a
            pickle of arrays like those of detectron2's model zoo.
        unsafe: unpickle any object in it, which can run any code; always True where
            :func:`code_is_allowed`.

    Returns:
        The object that was saved; for ``.safetensors`` a dict of tensors.

    Raises:
        CheckpointError: the file is missing, truncated or of another format; a package that it
            needs is not installed; or, without ``unsafe``, its contents could run code, or exhaust
            memory or time.
    """
    path = Path(path).expanduser()
    unsafe = unsafe or code_is_allowed()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        contents = (_read_pickle if path.suffix == ".pkl" else _read_torch)(path, unsafe)
        if not unsafe:
            check_nesting(contents)
        return contents
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # an invalid file may raise any error
        reason = _reason(error, path)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {reason}") from error


def _read_pickle(path: Path, unsafe: bool) -> Any:
    """Return the contents of a plain pickle; without ``unsafe``, after checks and without code."""
    if not unsafe:
        check_pickle(path)
    kind = pickle.Unpickler if unsafe else ArrayUnpickler
    with path.open("rb") as file:
        return kind(file, encoding="latin1").load()


def _read_torch(path: Path, unsafe: bool) -> Any:
    """Return the contents of a file of ``torch.save``; without ``unsafe``, after checks."""
    if unsafe:
        return torch.load(path, map_location="cpu", weights_only=False)
    check_torch(path)
    with _allowing_arrays():
        return torch.load(path, map_location="cpu", weights_only=True)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata, names -> texts, of a valid ``.safetensors`` file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _reason(error: Exception, path: Path) -> str:
    """Return why a file cannot be read and how to fix that, from the error and the file."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return str(missing("it", error, "safetensors" if path.suffix == ".safetensors" else None))
    if isinstance(error, SizeError):
        return f"it would exhaust memory or time: {text}{TRUST}"
    if kind := _wrong_kind(path):
        return f"it is {kind}"
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named or "Trying to call" in text or "Can only" in text:
        return f"it holds {named[1] if named else 'more than data'}, which may run code{TRUST}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = text.removeprefix("PytorchStreamReader ").split(". ")[0][:120]
    return f"it is truncated, or not a checkpoint ({type(error).__name__}: {text})"


def _wrong_kind(path: Path) -> str | None:
    """Return a description of a file that is no checkpoint or has the wrong suffix, with advice.

    None is returned if the file seems to be what its name says.
    """
    if os.path.isdir(path):  # also for names that are too long for Path.is_dir
        return "a folder; give a file in it"
    if words := _text(path):
        return f"text, not a checkpoint: {words!r}"
    if (names := _zip_names(path)) is not None:
        if "constants.pkl" in names:
            return "a TorchScript archive; save the state_dict() of its module by torch.save"
        if "data.pkl" not in names:
            return "a zip archive that torch.save did not write; give a checkpoint"
        return "a file of torch.save; rename it to .pth" if path.suffix == ".pkl" else None
    if path.suffix not in (".pkl", ".safetensors") and is_pickle(path):
        return "a plain pickle, not a file of torch.save; rename it to .pkl"
    return None


def _zip_names(path: Path) -> set[str] | None:
    """Return the last parts of the names in a zip archive; None if it is none, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # a damaged archive may raise any error
        return None


def _text(path: Path) -> str | None:
    """Return the first 40 characters of a text file, as one line; None if binary or unreadable."""
    try:
        with path.open("rb") as file:
            text = codecs.getincrementaldecoder("utf-8")().decode(file.read(1000))
    except (OSError, UnicodeDecodeError):
        return None
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return " ".join(text[:40].split()) if readable else None


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy arrays; refuses all other classes."""

    def find_class(self, module: str, name: str) -> Callable:
        """Return the safe replacement for a name; raise UnpicklingError if there is none."""
        # numpy 2 has renamed numpy.core.
        path = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        known = _array_functions() | {"collections.OrderedDict": OrderedDict}
        if path not in known:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known[path]


def _array_functions() -> dict[str, Callable]:
    """Return name in a pickle -> safe function, for arrays of numpy and for bytes.

    Raises:
        ImportError: numpy is not installed.
    """
    from .numpy_pickles import REPLACEMENTS  # numpy is optional

    # Older protocols write bytes as encoded text. torch.load translates Python 2's name.
    empty = {"builtins.bytes": _no_bytes, "__builtin__.bytes": _no_bytes}
    return {**REPLACEMENTS, **empty, "_codecs.encode": codecs.encode}


@contextmanager
def _allowing_arrays() -> Iterator[None]:
    """Let ``torch.load`` read numpy's arrays and numbers within this block only."""
    before = torch.serialization.get_safe_globals()
    allow_arrays()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def allow_arrays() -> None:
    """Let ``torch.load`` read numpy's arrays and numbers, also under the names of numpy 1.

    This adds to torch's safe globals until the process ends; it has no effect without numpy.
    """
    try:
        functions = _array_functions()
    except ImportError:
        return
    for path, function in functions.items():
        for name in {path, path.replace("._core", ".core")}:
            allow(name, function)


def allow(name: str, replacement: Callable) -> None:
    """Let ``torch.load``, where it refuses code, call a replacement for a name in a file.

    This adds to torch's safe globals until the process ends.

    Args:
        name: module and name of the class or function, as in the pickle.
        replacement: a function; or a class, whose ``__name__``, ``__qualname__`` and ``__module__``
            are changed. Neither it nor its ``__setstate__`` may do harm, whatever the arguments.
    """
    torch.serialization.add_safe_globals([_renamed(name, replacement)])


@functools.cache
def _renamed(name: str, replacement: Callable) -> Callable:
    """Rename a class, or wrap a function in one of another name, and return it.

    ``torch.load`` compares the names of what is allowed with those in the file.

    Args:
        name: module and name, such as "numpy.dtype".
        replacement: the class, which is changed in place, or the function, which is not.
    """
    if not isinstance(replacement, type):
        function, replacement = replacement, lambda *args: function(*args)
    replacement.__module__, replacement.__name__ = name.rsplit(".", 1)
    replacement.__qualname__ = replacement.__name__
    return replacement


def _no_bytes() -> bytes:
    """Return an empty bytes object; replaces ``bytes``, which would allocate any given length."""
    return b""
