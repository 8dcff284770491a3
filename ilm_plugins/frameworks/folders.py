"""Output folders of commands, made and checked before the work."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DISK, UserError


def make_folder(folder: str | Path) -> None:
    """Make an output folder if it is missing; UserError if files cannot be written to it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    check_folder(folder)


def check_folder(folder: str | Path) -> None:
    """Raise UserError if an output folder cannot be written to, or made where it is missing."""
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise unwritable(folder, FileExistsError())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, "it is read-only"))


def check_new(folder: Path) -> None:
    """Raise UserError unless an output folder is empty, or can be made."""
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"output folder {str(folder)!r} is not empty; give a new one")


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make a new output folder; if the block fails, all in it is removed."""
    check_new(folder)
    existed = folder.exists()
    make_folder(folder)
    try:
        with disk_errors(folder):
            yield
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not existed:
            folder.rmdir()
        raise


@contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """Raise UserError if the block fails because the disk of an output folder is full or broken."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise unwritable(folder, error) from error


def unwritable(folder: str | Path, error: OSError) -> UserError:
    reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
    return UserError(
        f"output folder {str(folder)!r} cannot be written to ({reason}); set another folder"
    )


def is_last_checkpoint(path: str | Path, folder: str | Path) -> bool:
    """Return whether a file is the last checkpoint of the training in a folder."""
    try:
        return os.path.samefile(path, last_checkpoint(Path(folder)))
    except (OSError, UserError):  # such as a URL, or a folder without a training
        return False


def last_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint of a training, in its folder, which may have been moved.

    UserError if the training has written no checkpoint.
    """
    named = folder / "last_checkpoint"
    if not named.is_file():
        raise UserError(
            f"{named} does not exist; have the training save a checkpoint at its end (as "
            "CheckpointHook's save_last does), and remove the folder to train the run again"
        )
    return folder / Path(named.read_text(encoding="utf-8").strip()).name
