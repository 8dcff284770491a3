"""Write checkpoint files whole or not at all."""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import RunError

#: What is being written has this behind its name until it is whole.
PARTIAL = ".partial"


def write(contents: Any, path: str | os.PathLike, notes: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint, in the format that ``path`` ends with; see :func:`read`.

    Args:
        contents: a dict of tensors for ``.safetensors``; what pickle takes for ``.pkl``.
        path: the file.
        notes: words in a ``.safetensors`` beside the tensors, see :func:`notes_of`.

    Raises:
        RunError: it cannot be written; a file that was there stays as it was.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            # In it no two tensors share memory.
            whole = torch.contiguous_format
            own = {k: v.detach().clone(memory_format=whole) for k, v in contents.items()}
            file.write(save(own, {"format": "pt", **(notes or {})}))
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
        RunError: it cannot be written.
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
            raise RunError(
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


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove what runs that were killed while they wrote have left in a folder."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
