"""Write files atomically: after a failure the earlier file is still there, unchanged."""

import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import RunError, missing

#: Suffix of a file while it is being written, after its own name and the process's number.
PARTIAL = ".ilm_plugins-partial"

#: Ending of a checkpoint's name -> the format in which it is written.
FORMATS = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), "torch"),
    ".pkl": "pickle",
    ".safetensors": "safetensors",
}


def write(
    contents: Any, path: str | os.PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a checkpoint atomically, in the format of its suffix.

    Args:
        contents: for ``.safetensors`` a dict of tensors; otherwise any object that can be pickled.
        path: the file: ``.safetensors``, ``.pkl`` for a plain pickle, or any other suffix for the
            format of ``torch.save``.
        metadata: names -> texts to store in a ``.safetensors`` file, beside "format"; ignored in
            other formats.

    Raises:
        UserError: ``.safetensors`` needs a package that is not installed.
        RunError: the file cannot be written, for example because its folder is missing; an earlier
            file of this name is unchanged.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            # The format cannot store tensors that share memory.
            whole = torch.contiguous_format
            own = {k: v.detach().clone(memory_format=whole) for k, v in contents.items()}
            try:
                from safetensors.torch import save

                data = save(own, {"format": "pt", **(metadata or {})})
            except ImportError as error:  # numpy's, too
                raise missing(str(path), error, "safetensors") from error
            file.write(data)
        elif path.suffix == ".pkl":
            pickle.dump(contents, file)
        else:
            torch.save(contents, file)


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file that replaces ``path`` at the end of the block, once it is on the disk.

    If the block fails or the process is killed, the earlier content of ``path`` is unchanged. The
    temporary file is beside ``path``, with the process's number and :data:`PARTIAL` appended to its
    name; a failure removes it, a killed process leaves it (see :func:`remove_partial`).

    Args:
        path: the file to write; its folder must exist. An earlier file's permissions are kept. A
            link stays one, to the new file. A device or a pipe is opened itself, and its errors
            pass unchanged.
        mode, options: arguments of ``open``; text is UTF-8 by default.

    Raises:
        RunError: the file cannot be written, or the block raised an OSError. Other exceptions of
            the block pass unchanged.
    """
    path = Path(path)
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):
        with path.open(mode, **options) as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # there is no earlier file, or its system has no permissions
            shutil.copymode(path, partial)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        # The failure that prevents writing may prevent removal, too.
        with suppress(OSError):
            partial.unlink()
        # torch.save raises an error of its own type when a write fails.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            kept = ". What was there before is still there" if path.parent.is_dir() else ""
            raise RunError(
                f"{str(path)!r} cannot be written: {cause.strerror or cause}; make room, or write "
                f"elsewhere{kept}"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a renaming survives a loss of power.

    A folder that cannot be opened is skipped.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # some file systems cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes left directly in a folder."""
    for path in Path(folder).iterdir():
        if re.fullmatch(rf".+\.\d+{re.escape(PARTIAL)}", path.name) and path.is_file():
            path.unlink(missing_ok=True)
