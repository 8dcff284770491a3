"""Read checkpoint files without running the code in them."""

import codecs
import io
import os
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .pickles import SizeError, check_nesting, check_pickle, check_torch

#: Variables of the environment by which torch.load refuses whatever is no plain data, even where
#: its caller asks for the opposite; or unpickles anything, where its caller says nothing.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: What to do about a checkpoint that is refused for the code in it.
TRUST = "; if you trust its source, give --unsafe"


@contextmanager
def loading(unsafe: bool = False) -> Iterator[None]:
    """Have no ``torch.load`` run foreign code, in this process and those that it starts meanwhile.

    Args:
        unsafe: have :func:`read`, and each ``torch.load`` that does not say otherwise, run it.
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
    """Return whether this runs within :func:`loading` with ``unsafe``, or where torch's variable
    for it is set."""
    return os.environ.get(ALLOW_CODE) == "1"


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """What a checkpoint holds, on the CPU.

    Args:
        path: a file of ``torch.save``; ``.safetensors``; or a pickle of arrays, ``.pkl``, as
            detectron2's model zoo has them.
        unsafe: unpickle whatever is in it, which can run any code.

    Raises:
        CheckpointError: the file is missing, truncated or none of these; or holds what could run
            code, or exhaust memory or time.
    """
    path = Path(path).expanduser()
    unsafe = unsafe or code_is_allowed()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if not unsafe:
            return _read_data(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return pickle.Unpickler(file, encoding="latin1").load()
        return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: {error}; pip install {error.name}"
        ) from error
    except SizeError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: it would exhaust memory or time: "
            f"{error}{TRUST}"
        ) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a file may hold anything, and raise as much
        why = _why(error, path, unsafe)
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {why}") from error


def _read_data(path: Path) -> Any:
    """Unpickle a file without running code, if the sizes in it fit the file."""
    if path.suffix == ".pkl":
        check_pickle(path)
        with path.open("rb") as file:
            contents = ArrayUnpickler(file, encoding="latin1").load()
    else:
        check_torch(path)
        with _arrays_allowed():
            contents = torch.load(path, map_location="cpu", weights_only=True)
    check_nesting(contents)
    return contents


def notes_of(path: str | os.PathLike) -> dict[str, str]:
    """The words that a ``.safetensors`` file, which can be read, has beside its tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _why(error: Exception, path: Path, unsafe: bool) -> str:
    text = " ".join(str(error).split())
    trust = f"which may run code{TRUST}"
    if not unsafe and (name := _foreign(path)):
        return f"it holds {name}, {trust}"
    if words := _words(path):
        return f"it is text, no checkpoint: {words!r}"
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named:
        return f"it holds {named[1]}, {trust}"
    if "Trying to call" in text or "Can only" in text:
        return f"it holds more than data, {trust}"
    text = text.removeprefix("PytorchStreamReader ").split(". ")[0][:120]
    return f"it is truncated, or no checkpoint ({type(error).__name__}: {text})"


def _foreign(path: Path) -> str | None:
    """The first name in a bare pickle, one that torch.save has not wrapped, that may be code.

    None where a file is none, or is longer than a megabyte. Nothing is loaded.
    """
    with suppress(Exception):
        pushed, memo, names = [], {}, []
        for opcode, argument, _ in pickletools.genops(io.BytesIO(_head(path, 1 << 20))):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                words = argument.split(" ", 1) if argument else map(str, pushed[-2:])
                names.append(".".join(words).replace("numpy.core.", "numpy._core."))
            if opcode.name == "MEMOIZE" or "PUT" in opcode.name:
                memo[len(memo) if argument is None else argument] = pushed[-1]
            else:
                pushed.append(memo.get(argument) if "GET" in opcode.name else argument)
        known = {*_of_arrays(), "collections.OrderedDict"}
        return next((name for name in names if name not in known), None)
    return None


def _words(path: Path) -> str | None:
    """How a file of text begins; None of any other file."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(_head(path, 1000))
    except (OSError, UnicodeDecodeError):
        return None
    readable = all(letter.isprintable() or letter.isspace() for letter in text)
    return " ".join(text[:40].split()) if readable else None


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy's arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Callable:
        # numpy 2 has renamed numpy.core.
        path = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        known = _of_arrays() | {"collections.OrderedDict": OrderedDict}
        if path not in known:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known[path]


def _of_arrays() -> dict[str, Callable]:
    # numpy need not be there for anything else.
    from .numpy_pickles import MEANT

    # The older Python's name, too, which torch.load translates.
    empty = {"builtins.bytes": _no_bytes, "__builtin__.bytes": _no_bytes}
    return {**MEANT, **empty, "_codecs.encode": _encode}


def _allow_arrays() -> None:
    """Have torch.load, too, know numpy's arrays and numbers, under their old names as well."""
    try:
        known = _of_arrays()
    except ImportError:
        return
    for path, meant in known.items():
        for name in {path, path.replace("._core", ".core")}:
            allow(name, meant)


@contextmanager
def _arrays_allowed() -> Iterator[None]:
    """Allow numpy's arrays and numbers in this block; other loaders may have their own classes."""
    before = torch.serialization.get_safe_globals()
    _allow_arrays()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def allow(name: str, meant: Callable) -> None:
    """Have torch.load, where it refuses code, call ``meant`` wherever a file names ``name``.

    Args:
        name: module and name, as pickle has them.
        meant: a class, which is called so from then on, or a function; neither it nor its
            ``__setstate__`` can do harm, whatever the arguments.
    """
    if not isinstance(meant, type):
        called, meant = meant, lambda *args: called(*args)
    # torch.load looks for what is allowed by the names that it bears.
    meant.__module__, meant.__name__ = name.rsplit(".", 1)
    meant.__qualname__ = meant.__name__
    torch.serialization.add_safe_globals([meant])


def _encode(text: str, encoding: str) -> bytes:
    """How older protocols spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"Unsupported class codec {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How older protocols spell that there are none."""
    return b""
