"""Write files whole or not at all; make, check and lock folders."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from filelock import FileLock, Timeout

from .errors import UserError, one_line, writing_to

#: Suffix of a file while it is being written, after its own name and the thread's number.
PARTIAL = ".ilm_plugins-partial"
LOCK = ".ilm_plugins-lock"
#: Seconds to wait for the data loader processes of a killed training, which hold its lock.
PATIENCE = 10


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file, which becomes ``path`` once the block ends and the disk has it.

    A link is replaced, not the file that it leads to: a folder may be somebody else's.

    UserError if ``path`` is a folder, device or pipe.
    """
    path = Path(path)
    check_regular(path)
    # Shortened, because the ending could make a long name too long for the file system.
    partial = path.with_name(f"{path.name[:200]}.{threading.get_native_id()}{PARTIAL}")
    try:
        with writing_to(path):
            with partial.open(mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.is_file() and not path.is_symlink():
                shutil.copymode(path, partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # after a kill, remove_partial removes it


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


def make_folder(folder: str | Path) -> None:
    """Make an output folder if it is missing; UserError if files cannot be written to it."""
    check_folder(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)


def check_folder(folder: str | Path) -> None:
    """Raise UserError if an output folder cannot be written to, or made where it is missing."""
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return
    reason = f"{nearest} is read-only" if nearest.is_dir() else f"{nearest} is a file"
    raise UserError(
        f"output folder {str(folder)!r} cannot be written to ({reason}); set another folder"
    )


def read_object(path: Path, kind: Any = MappingProxyType({})) -> dict[str, Any]:
    """Return the JSON object in a file of an output folder; UserError for a damaged file.

    ``kind`` has the types of values by key, {"": TYPE} for all other keys; [TYPE] is a list of any
    length, (TYPE, TYPE) a list of two.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        for damage in _damages({**kind}, contents, "it"):
            raise ValueError(damage)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); move it away") from error
    return contents


def _damages(kind: Any, value: Any, name: str) -> Iterator[str]:
    """Yield each value that is not of its kind, with its key."""
    match kind, value:
        case dict(), dict():
            for key, inner in value.items():
                yield from _damages(kind.get(key, kind.get("", object)), inner, key)
        case [each], list():
            for inner in value:
                yield from _damages(each, inner, name)
        case tuple(), list() if len(kind) == len(value):
            for each, inner in zip(kind, value, strict=True):
                yield from _damages(each, inner, name)
        case _:
            is_huge = isinstance(value, int) and abs(value) > 2**1000  # no float
            if isinstance(kind, dict | list | tuple) or not isinstance(value, kind) or is_huge:
                yield f"{name} is {repr(value)[:80]}"


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Lock and clean up an output folder, made if missing; UserError if another training has it."""
    make_folder(folder)
    held = FileLock(Path(folder, LOCK))
    try:
        held.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"output folder {str(folder)!r} is in use by another training; wait for it, or set "
            "another folder"
        ) from None
    try:
        remove_partial(folder)
        yield
    finally:
        held.release()
