"""The output folder of a run: it must be writable, and is locked by one training at a time."""

import argparse
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torch import distributed

from .. import checkpoints
from ..errors import UserError

#: Lock file of the training that writes to an output folder.
LOCK = ".lock"
#: Launcher -> environment variable with the rank of this process.
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}


def check_output(folder: str, setting: str) -> None:
    """Create a folder if it is missing; raise UserError unless files can be written to it.

    Args:
        folder: the output folder.
        setting: the option or config key that sets it, for the message.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output folder {folder!r} cannot be written: {error.strerror}; set {setting}"
        ) from error


def check_same_checkpoint(path: str | None, folder: str) -> None:
    """Raise UserError unless all processes of a run continue from a checkpoint of the same name.

    All of them must call this. On several machines whose output folders are not shared, only that
    of rank 0 has checkpoints: the others would begin at 0, and average their gradients with it.

    Args:
        path: the last checkpoint found by this process, or None.
        folder: where it was looked for, for the message.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    names = [None] * distributed.get_world_size()
    distributed.all_gather_object(names, path and Path(path).name)
    for rank, name in enumerate(names):
        if name != names[0]:
            raise UserError(
                f"--resume: in {folder!r} rank 0 has {names[0] or 'no checkpoint'}, but rank "
                f"{rank} {name or 'none'}; share the folder among the machines, or copy it to each"
            )


@contextmanager
def lock_run_folder(folder: str, setting: str, args: argparse.Namespace) -> Iterator[None]:
    """Within this context, lock an output folder for one training.

    Only rank 0 of a training, or the process that starts it, takes the lock, and removes
    half-written checkpoints of earlier trainings; an evaluation does neither. On a file system
    without locks, the training runs unlocked. The lock file, ``.lock``, stays. Sets
    ``args.log_folder``, the folder in which unexpected errors are logged from then on.

    Args:
        folder: the output folder, which exists.
        setting: the config key that sets it, for the message.
        args: the parsed command line.

    Raises:
        UserError: another training holds the lock.
    """
    with ExitStack() as stack:
        if not args.eval_only and _is_rank_zero(args):
            with suppress(OSError):
                lock = stack.enter_context(Path(folder, LOCK).open("ab+", buffering=0))
                try:
                    # Unlike a lock of flock, it ends with this process even if children live on.
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    lock.seek(0)
                    owner = lock.read(200).decode(errors="replace") or "another process"
                    raise UserError(
                        f"output folder {folder!r} is in use by {owner}; wait for it, or set "
                        f"{setting}"
                    ) from None
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            checkpoints.remove_partial(folder)
        args.log_folder = folder
        yield


def _is_rank_zero(args: argparse.Namespace) -> bool:
    """Whether this process, or one that it will start, has rank 0."""
    if args.launcher == "none":
        return args.machine_rank == 0
    return os.environ.get(RANKS[args.launcher], "0") == "0"
