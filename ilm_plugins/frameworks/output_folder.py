"""The output folder of a run: writable, and of one training at a time."""

import argparse
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .. import checkpoints
from ..errors import UserError

#: Lock file of the training that writes to an output folder.
LOCK = ".lock"
#: Launcher -> variable of a process's number among all.
RANKS = {"pytorch": "RANK", "slurm": "SLURM_PROCID"}


def check_output(folder: str, setting: str) -> None:
    """Raise UserError unless files can be written to a folder, which is made if missing."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output folder {folder!r} cannot be written: {error.strerror}; set {setting}"
        ) from error


@contextmanager
def lock_run_folder(folder: str, setting: str, args: argparse.Namespace) -> Iterator[None]:
    """Lock an output folder for one training, and remove half-written files of earlier ones.

    Evaluation shares the folder, and training does where the file system has no locks. From then on
    unexpected errors are logged there, by ``args.log_folder``.

    Raises:
        UserError: another training is there.
    """
    with ExitStack() as stack:
        if not args.eval_only and _is_first(args):
            with suppress(OSError):
                lock = stack.enter_context(Path(folder, LOCK).open("ab+", buffering=0))
                try:
                    # Unlike that of flock it ends with this process, though its children live on.
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


def _is_first(args: argparse.Namespace) -> bool:
    """Whether this process, or one that it starts, is the first of all."""
    if args.launcher == "none":
        return args.machine_rank == 0
    return os.environ.get(RANKS[args.launcher], "0") == "0"
