"""Write files whole or not at all: after a failure or a kill the earlier file is still there."""

import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import UserError, writing_to
from .formats import format_of

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
    with replacing(path) as file:
        format_of(path).write(contents, metadata or {}, file)


@contextmanager
def replacing(
    path: str | os.PathLike, mode: str = "wb", *, new: bool = False, **options
) -> Iterator[IO]:
    """Open a temporary file, which becomes ``path`` once the block ends and the disk has it.

    UserError if ``path`` is a folder, device or pipe, or ``new`` and it exists by then.
    """
    path = Path(os.path.realpath(path))
    check_regular(path)
    # Shortened, because the ending could make a long name too long for the file system.
    partial = path.with_name(f"{path.name[:200]}.{threading.get_native_id()}{PARTIAL}")
    try:
        with writing_to(path):
            with partial.open(mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if new:
                _reserve(path)
            elif path.is_file():
                shutil.copymode(path, partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # after a kill, remove_partial removes it


def _reserve(path: Path) -> None:
    """Make an empty file; UserError if the file exists."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{str(path)!r} exists by now; give another name") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole, in its folder, which is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def check_regular(path: str | os.PathLike) -> None:
    """Raise UserError if a path leads to a folder, a device or a pipe, which no file replaces."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a device or a pipe"
        raise UserError(f"{os.fspath(path)!r} is {kind}; give a file")


def remove_partial(folder: str | os.PathLike, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder, or only those of a name.

    Nothing else may write to these files then.
    """
    start = ".+" if name is None else re.escape(name[:200])
    form = re.compile(rf"{start}\.\d+{re.escape(PARTIAL)}", re.DOTALL)
    for path in Path(folder).iterdir():
        if form.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
