"""Files of checkpoints: read without running what is in them, written whole or not at all."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

#: Makes torch.load refuse whatever is no plain data, in this process and its children, even where
#: a caller asks for the opposite.
REFUSE_CODE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
#: What is being written has this behind its name until it is whole.
PARTIAL = ".partial"


class CheckpointError(Exception):
    """A checkpoint cannot be read or written, told in one line: which file, why, what to do."""


def refuse_code() -> None:
    """From now on no ``torch.load`` runs foreign code, in this process and those it starts."""
    os.environ[REFUSE_CODE] = "1"


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
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                return (pickle.Unpickler if unsafe else ArrayUnpickler)(
                    file, encoding="latin1"
                ).load()
        return torch.load(path, map_location="cpu", weights_only=not unsafe)
    except ImportError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; pip install safetensors") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist; give a file") from error
    except Exception as error:  # a file may hold anything, and raise as much
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    for sign in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if sign in text:
            name = text.split(sign)[1].split()[0]
            return (
                f"it holds {name}, which may run code; if you trust its source, give "
                "--unsafe-checkpoints"
            )
    return f"it is truncated, or no checkpoint ({type(error).__name__}: {text[:120]})"


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy's arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Callable:
        # numpy 2 has renamed numpy.core.
        path = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        known = _of_arrays()
        if path not in known:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known[path]


def _of_arrays() -> dict[str, Callable]:
    import numpy as np

    multiarray = getattr(np, "_core", getattr(np, "core", None)).multiarray
    return {
        "numpy._core.multiarray._reconstruct": multiarray._reconstruct,
        "numpy._core.multiarray.scalar": multiarray.scalar,
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _encode,
    }


def _encode(text: str, encoding: str) -> bytes:
    """How older protocols spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"Unsupported class codec {encoding}")
    return text.encode("latin1")


def write(contents: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint, in the format that ``path`` ends with; see :func:`read`.

    A ``.safetensors`` takes a dict of tensors, a ``.pkl`` what pickle takes.

    Raises:
        CheckpointError: it cannot be written; a file that was there stays as it was.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save({k: v.detach().contiguous() for k, v in contents.items()}))
        elif path.suffix == ".pkl":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` when it is whole and on the disk.

    Killed at any byte, or out of space, what ``path`` was before is there still.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch.save turns a failed write into an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise CheckpointError(
                f"{str(path)!r} cannot be written: {cause.strerror or cause}; make room, or write "
                "elsewhere. What was there before is still there"
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


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove what runs that were killed while they wrote have left in a folder."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
