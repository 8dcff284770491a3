"""Write files whole or not at all: after a failure or a kill the earlier file is still there."""

import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import UserError
from .reading import format_of, safetensors

#: Suffix of a file while it is being written, after its own name and the thread's number.
PARTIAL = ".ilm_plugins-partial"


def write(
    contents: Any, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a checkpoint in the format of its name, torch's if unknown.

    For a ``.safetensors`` file, the contents must be a dict of tensors, and ``metadata`` is stored
    beside them; other formats ignore ``metadata``. In a ``.pkl``, tensors become arrays of numpy,
    as in detectron2's model zoo; UserError if numpy lacks their dtype.
    """
    path = Path(path).expanduser()
    kind = format_of(path)
    with replacing(path) as file:
        if kind == "safetensors":
            # The format cannot store tensors that share memory.
            tensors = {name: _contiguous(tensor, name) for name, tensor in contents.items()}
            file.write(safetensors(path).save(tensors, {**(metadata or {}), "format": "pt"}))
        elif kind == "pickle":
            ArrayPickler(file).dump(contents)
        else:
            torch.save(contents, file)


def _contiguous(tensor: Tensor, name: str) -> Tensor:
    """Return a contiguous copy; UserError if the tensor is not strided, but sparse."""
    if tensor.layout != torch.strided:
        raise UserError(
            f"{name} is {tensor.layout}, which a .safetensors cannot hold; give the file the "
            "ending .pth"
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)


class ArrayPickler(pickle.Pickler):
    """Pickles tensors as arrays of numpy."""

    def reducer_override(self, value: Any) -> Any:
        return to_array(value).__reduce__() if isinstance(value, Tensor) else NotImplemented


def to_array(tensor: Tensor, name: str = "a tensor") -> Any:
    """Return a tensor as an array of numpy; UserError if numpy has none of its dtype or layout."""
    try:
        return tensor.numpy(force=True)
    except TypeError as error:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise UserError(
            f"{name} is {kind}, which a .pkl cannot hold; give the file the ending .pth"
        ) from error


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file, which replaces ``path`` once the block ends and the disk has it."""
    path = Path(os.path.realpath(path))
    # Shortened, because the ending could make a long name too long for the file system.
    partial = path.with_name(f"{path.name[:200]}.{threading.get_native_id()}{PARTIAL}")
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # after a kill, remove_partial removes it


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes left directly in a folder."""
    for path in Path(folder).iterdir():
        if re.fullmatch(rf".+\.\d+{re.escape(PARTIAL)}", path.name) and path.is_file():
            path.unlink(missing_ok=True)
