"""Files of checkpoints: read without running what is in them, written whole or not at all."""

import functools
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

#: Variables of the environment by which torch.load refuses whatever is no plain data, even where
#: its caller asks for the opposite; or unpickles anything, where its caller says nothing.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOW_CODE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
#: What is being written has this behind its name until it is whole.
PARTIAL = ".partial"
#: What to do about a file ``last_checkpoint``.
NAME_ONE = "write a checkpoint's name into it, or remove it"
#: What to do about a checkpoint that is refused for the code in it.
TRUST = "; if you trust its source, give --unsafe-checkpoints"


class CheckpointError(Exception):
    """A checkpoint cannot be read or written, told in one line: which file, why, what to do."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint cannot be written; what was there before is still there."""


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


def read(path: str | os.PathLike, unsafe: bool = False) -> Any:
    """What a checkpoint holds, on the CPU.

    Args:
        path: a file of ``torch.save``; ``.safetensors``; or a pickle of arrays, ``.pkl``, as
            detectron2's model zoo has them.
        unsafe: unpickle whatever is in it, which can run any code.

    Raises:
        CheckpointError: the file is missing, truncated or none of these; or holds what could run
            code.
    """
    path = Path(path).expanduser()
    unsafe = unsafe or os.environ.get(ALLOW_CODE) == "1"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".pkl":
            unpickler = pickle.Unpickler if unsafe else ArrayUnpickler
            with path.open("rb") as file:
                return unpickler(file, encoding="latin1").load()
        if not unsafe:
            _allow_arrays()
        return torch.load(path, map_location="cpu", weights_only=not unsafe)
    except ImportError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; pip install safetensors") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a file may hold anything, and raise as much
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    trust = f"which may run code{TRUST}"
    named = re.search(r"unsupported (?:global: )?(?:global|class) (\S+)", text, re.IGNORECASE)
    if named:
        return f"it holds {named[1]}, {trust}"
    if "Trying to call" in text or "Can only" in text:
        return f"it holds more than data, {trust}"
    text = text.removeprefix("PytorchStreamReader ").split(". ")[0][:120]
    return f"it is truncated, or no checkpoint ({type(error).__name__}: {text})"


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
    from .arrays import MEANT

    # The older Python's name, too, which torch.load translates.
    empty = {"builtins.bytes": _no_bytes, "__builtin__.bytes": _no_bytes}
    return {**MEANT, **empty, "_codecs.encode": _encode}


@functools.cache
def _allow_arrays() -> None:
    """Have torch.load, too, know numpy's arrays and numbers, under their old names as well."""
    try:
        known = _of_arrays()
    except ImportError:
        return
    for path, meant in known.items():
        for name in {path, path.replace("._core", ".core")}:
            allow(name, meant)


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


def write(contents: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint, in the format that ``path`` ends with; see :func:`read`.

    A ``.safetensors`` takes a dict of tensors, a ``.pkl`` what pickle takes.

    Raises:
        CheckpointWriteError: it cannot be written; a file that was there stays as it was.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            # In it no two tensors share memory.
            whole = torch.contiguous_format
            file.write(
                save({k: v.detach().clone(memory_format=whole) for k, v in contents.items()})
            )
        elif path.suffix == ".pkl":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """A file to write to, which takes the place of ``path`` when it is whole and on the disk.

    Killed at any byte, or out of space, what ``path`` was before is there still.

    Args:
        path: what is to be written.
        mode, options: of Python's ``open``; text is UTF-8 by default.

    Raises:
        CheckpointWriteError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        # What kept it from being written may keep it from being removed.
        with suppress(OSError):
            partial.unlink()
        # torch.save turns a failed write into an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            kept = ". What was there before is still there" if path.parent.is_dir() else ""
            raise CheckpointWriteError(
                f"{str(path)!r} cannot be written: {cause.strerror or cause}; make room, or write "
                f"elsewhere{kept}"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Have a renaming survive a loss of power, where folders can be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_fits(
    path: str | os.PathLike, model: nn.Module, found: Iterable[str], absent: Iterable[str]
) -> None:
    """Raise CheckpointError if a checkpoint is of another model.

    Args:
        path: the checkpoint.
        model: what it was loaded into.
        found: names in the checkpoint.
        absent: names of the model's tensors that are not there, or have another shape there.
    """
    own = model.state_dict().keys()
    if own and own <= {*absent}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: it has none of the {len(own)} tensors "
            f"such as {next(iter(own))}, but {next(iter(found), 'nothing')}; give one of this model"
        )


def named(last: str | os.PathLike) -> str:
    """What a file ``last_checkpoint`` names, which may be nothing.

    Raises:
        CheckpointError: it is no text.
    """
    try:
        return Path(last).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CheckpointError(f"{str(last)!r} is no text; {NAME_ONE}") from None


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove what runs that were killed while they wrote have left in a folder."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def unwrapped(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state dict without the "module." that DistributedDataParallel puts before all names.

    Args:
        state: names -> tensors.
        model: what it is for; a name of its own may begin so.
    """
    wrapped = all(str(name).startswith("module.") for name in state)
    if not wrapped or model.state_dict().keys() & state.keys():
        return dict(state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def absent(state: dict[str, Any], model: nn.Module) -> list[str]:
    """Names of a model's tensors that are not in a state dict, or have another shape there."""
    own = model.state_dict()
    return [name for name, t in own.items() if getattr(state.get(name), "shape", None) != t.shape]
