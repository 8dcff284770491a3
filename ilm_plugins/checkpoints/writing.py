"""Write checkpoint files whole or not at all."""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import RunError

#: Suffix of a file while it is being written.
PARTIAL = ".partial"


def write(
    contents: Any, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a checkpoint, in the format of its suffix; see :func:`~.reading.read`.

    Args:
        contents: for ``.safetensors`` a dict of tensors; otherwise any object that can be pickled.
        path: the file.
        metadata: texts to store in a ``.safetensors`` file, see :func:`~.reading.read_metadata`.

    Raises:
        RunError: the file cannot be written; an earlier file of this name is unchanged.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            # The format has no shared memory.
            whole = torch.contiguous_format
            own = {k: v.detach().clone(memory_format=whole) for k, v in contents.items()}
            file.write(save(own, {"format": "pt", **(metadata or {})}))
        elif path.suffix == ".pkl":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a file that replaces ``path`` when it is complete and on the disk.

    After a kill or an error at any byte, the earlier content of ``path`` is unchanged.

    Args:
        path: the file to write.
        mode, options: arguments of ``open``; text is UTF-8 by default.

    Raises:
        RunError: the file cannot be written.
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
        # What prevents writing may prevent removal.
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
    """Write a folder's entries to the disk, so that a renaming survives a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some file systems cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove the incomplete files that killed processes left in a folder."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)
