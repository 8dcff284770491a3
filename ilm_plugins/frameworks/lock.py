"""A lock on an output folder, which one training at a time writes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..checkpoints import remove_partial
from ..errors import UserError
from .folders import make_folder, unwritable

#: Seconds to wait for the data loader processes of a killed training, which hold its lock.
PATIENCE = 10


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Lock and clean up an output folder, made if missing; UserError if another training has it."""
    make_folder(folder)
    held = FileLock(Path(folder, ".lock"))
    try:
        held.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"output folder {str(folder)!r} is in use by another training; wait for it, or set "
            "another folder"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        remove_partial(folder)
        yield
    finally:
        held.release()
