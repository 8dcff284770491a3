"""Write files whole or not at all: after a failure or a kill the earlier file is still there."""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import UserError, writing_to
from .formats import format_of

try:
    import fcntl
except ImportError:  # on Windows, where the partial file of a killed process stays
    fcntl = None  # type: ignore[assignment]

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
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file, which replaces ``path`` once the block ends and the disk has it.

    UserError if the disk is full, read-only or broken, or ``path`` is a folder, device or pipe.
    """
    path = Path(os.path.realpath(path))
    with _partial(path, mode, **options) as file:
        yield file
        _sync(file)
        if path.is_file():
            shutil.copymode(path, file.name)
        os.replace(file.name, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole, in its folder, which is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def create(files: Mapping[Path, Callable[[IO], Any]]) -> None:
    """Write new files, all or none; a kill between two renames leaves only the first ones.

    Args:
        files: path -> a function that writes the contents to an open file; the last path gets its
            name when all others have theirs.

    Raises:
        UserError: a path exists.
    """
    made: list[Path] = []
    with ExitStack() as stack:
        opened = {}
        for path, dump_to in files.items():
            path = Path(os.path.realpath(path.expanduser()))
            opened[path] = file = stack.enter_context(_partial(path, "wb"))
            dump_to(file)
            _sync(file)
        try:
            for path, file in opened.items():
                path.open("x").close()  # no other process makes it from now on
                made.append(path)
                os.replace(file.name, path)
        except BaseException as error:
            for path in made:
                path.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                raise UserError(f"{error.filename!r} exists by now; give another name") from error
            raise


@contextmanager
def _partial(path: Path, mode: str, **options) -> Iterator[IO]:
    """Open a locked temporary file beside ``path``; it is removed unless it was renamed."""
    check_regular(path)
    # Shortened, because the ending could make a long name too long for the file system.
    name = path.name[:200]
    _remove_stale(path.parent, name)
    partial = path.with_name(f"{name}.{threading.get_native_id()}{PARTIAL}")
    try:
        with writing_to(path), _open_locked(partial, mode, **options) as file:
            yield file
    finally:
        partial.unlink(missing_ok=True)  # after a kill, _remove_stale or remove_partial removes it


def check_regular(path: str | os.PathLike) -> None:
    """Raise UserError if a path leads to a folder, a device or a pipe, which no file replaces."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a device or a pipe"
        raise UserError(f"{os.fspath(path)!r} is {kind}; give a file")


def _open_locked(partial: Path, mode: str, **options) -> IO:
    """Open and lock a file, again if another process removed it before the lock."""
    while True:
        file = partial.open(mode, **options)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():
            return file
        file.close()


def _remove_stale(folder: Path, name: str) -> None:
    """Remove the temporary files of a name that no process writes to any more."""
    for path in _partials(folder, re.escape(name)) if fcntl is not None else ():
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
    if fcntl is None:
        file.close()  # Windows renames no open file


def remove_partial(folder: str | os.PathLike) -> None:
    """Remove the temporary files that killed processes left directly in a folder."""
    for path in _partials(Path(folder), ".+"):
        path.unlink(missing_ok=True)


def _partials(folder: Path, name: str) -> list[Path]:
    """Return the temporary files in a folder whose names begin with a regular expression."""
    form = re.compile(rf"{name}\.\d+{re.escape(PARTIAL)}", re.DOTALL)
    return [path for path in folder.iterdir() if form.fullmatch(path.name) and path.is_file()]
