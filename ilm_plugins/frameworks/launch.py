"""One process or several of a training: how they start, and how all end when one fails."""

import argparse
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import ERROR_FILE, PeerError, RunError, read_error, write_error
from .command import one_line_errors

#: Variable of the environment of a process that is started here: the number of the one that did.
PARENT = "ILM_PLUGINS_PARENT"


def launch(module: str, args: argparse.Namespace, cfg: Any) -> None:
    """Run a training or an evaluation in as many processes as the command line asks for.

    Args:
        module: its ``main(args, cfg)`` is what each process does.
        args: the command line.
        cfg: the config, for a single process; each of several reads it itself, since a config may
            register what is in it.

    Raises:
        UserError: what the first process that failed raised.
        RunError: a process was killed.
    """
    processes = args.num_gpus or args.num_processes
    world_size = processes * args.num_machines
    if args.launcher != "none" or world_size == 1:
        importlib.import_module(module).main(args, cfg)
        leave_group()
        return
    url = args.dist_url if args.num_machines > 1 else f"tcp://127.0.0.1:{_free_port()}"
    host, port = url.removeprefix("tcp://").rsplit(":", 1)
    words = json.dumps([module, {**vars(args), "launcher": "pytorch"}])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(processes)]
        environments = [
            {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "WORLD_SIZE": str(world_size),
                "RANK": str(args.machine_rank * processes + rank),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(processes),
                PARENT: str(os.getpid()),
                ERROR_FILE: str(file),
            }
            for rank, file in enumerate(files)
        ]
        with _started([sys.executable, "-m", __name__, words], environments) as children:
            _wait(children)
            failed = [rank for rank, child in enumerate(children) if child.returncode]
        found = [
            read_error(files[rank])
            or RunError(
                f"process {rank} ended {_how(children[rank].returncode)}, and the others with it; "
                "a process out of memory ends so, too"
            )
            for rank in failed
        ]
        for error in sorted(found, key=lambda error: isinstance(error, PeerError)):
            raise error


@contextmanager
def _started(words: list[str], environments: list[dict]) -> Iterator[list[subprocess.Popen]]:
    """Start a process in each environment; on leaving, kill them with all that they started."""
    children: list[subprocess.Popen] = []
    try:
        for environment in environments:
            env = {**os.environ, **environment}
            # Ctrl-C does not reach a session of its own.
            children.append(subprocess.Popen(words, env=env, start_new_session=True))
        yield children
    finally:
        # They stand still first, so that none complains of having lost another.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for child in children:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, number)
        for child in children:
            child.wait()


def _wait(children: list[subprocess.Popen]) -> None:
    """Wait until all processes have ended, or one has failed."""
    while None in [child.poll() for child in children]:
        if any(child.returncode for child in children):
            return
        time.sleep(0.05)


def _how(status: int) -> str:
    return f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def leave_group() -> None:
    """Leave this process's group together with the others, if it is in one.

    What still holds on to the group goes first, such as models, which refer to themselves: threads
    of a group that is left to the interpreter's end may abort the process.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def worker() -> None:
    """Be one of several processes, with the words that :func:`launch` gives.

    An error is written to the file that the environment names, and the process ends at once.
    """
    end_with_parent()
    module, options = json.loads(sys.argv[1])
    args = argparse.Namespace(**options)
    if args.num_gpus == 0:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.num_processes))
    try:
        with one_line_errors():
            importlib.import_module(module).main(args)
            leave_group()
    except Exception as error:
        write_error(error, os.environ[ERROR_FILE])
        sys.stdout.flush()
        sys.stderr.flush()
        # A group whose processes are gone would hold up the interpreter's end.
        os._exit(1)


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that launched it ends, on Linux."""
    if PARENT not in os.environ or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):  # it was gone before
        os._exit(1)


if __name__ == "__main__":
    worker()
