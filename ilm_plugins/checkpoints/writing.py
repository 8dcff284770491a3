"""Write files whole or not at all: after a failure or a kill the earlier file is still there."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from .reading import FORMATS, safetensors

#: Suffix of a file while it is being written, after its own name and the process's number.
PARTIAL = ".ilm_plugins-partial"


def write(contents: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint in the format of its name, torch's if unknown.

    For a ``.safetensors`` file, the contents must be a dict of tensors.
    """
    path = Path(path).expanduser()
    kind = FORMATS.get(path.suffix)
    with replacing(path) as file:
        if kind == "safetensors":
            # The format cannot store tensors that share memory.
            contiguous = torch.contiguous_format
            tensors = {k: v.detach().clone(memory_format=contiguous) for k, v in contents.items()}
            file.write(safetensors(path).save(tensors, {"format": "pt"}))
        elif kind == "pickle":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file, which replaces ``path`` once the block ends and the disk has it."""
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # after a kill, remove_partial removes it


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes left directly in a folder."""
    for path in Path(folder).iterdir():
        if re.fullmatch(rf".+\.\d+{re.escape(PARTIAL)}", path.name) and path.is_file():
            path.unlink(missing_ok=True)
