"""Start the processes of a run, and end all of them when one fails."""

import argparse
import ctypes
import gc
import importlib
import json
import logging
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

#: Environment variable of a process that is started here: the PID of the process that started it.
PARENT = "ILM_PLUGINS_PARENT"


def launch(module: str, args: argparse.Namespace, cfg: Any) -> None:
    """Run a training or an evaluation in as many processes as the command line asks for.

    A single process, or one that a launcher has started, is this process. Otherwise this machine's
    processes are started as children, and this call waits for them; when one fails, the others are
    killed.

    Args:
        module: dotted name of the module whose ``main`` each process calls; what it returns is
            ignored.
        args: the parsed command line of tools/train_net.py.
        cfg: the config, for a single process, which calls ``main(args, cfg)``. Several processes
            call ``main(args)``: each reads the config itself, because that may register classes.

    Raises:
        UserError: the error of a process that failed; an error that says that another process
            died is raised only if there is no other.
        RunError: a process ended without reporting an error, for example by a signal.
        Exception: in a single process, errors of ``main`` pass unchanged.
    """
    processes = args.num_gpus or args.num_processes
    world_size = processes * args.num_machines
    if args.launcher != "none" or world_size == 1:
        if args.num_gpus == 0:
            keep_freed_memory()
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
        with _child_processes([sys.executable, "-m", __name__, words], environments) as children:
            _wait(children)
            failed = [rank for rank, child in enumerate(children) if child.returncode]
        errors = [
            read_error(files[rank])
            or RunError(
                f"process {rank} ended {_describe_exit(children[rank].returncode)}, "
                "so the others were stopped; the cause may be lack of memory"
            )
            for rank in failed
        ]
        if errors:
            # The first that is the cause; a PeerError only follows from another's.
            raise min(errors, key=lambda error: isinstance(error, PeerError))


@contextmanager
def _child_processes(
    words: list[str], environments: list[dict]
) -> Iterator[list[subprocess.Popen]]:
    """Start one process for each environment; on exit, kill them and their child processes.

    Args:
        words: the command and its arguments, the same for all.
        environments: for each process, variables to add to this process's environment.

    Yields:
        The running processes, in the order of ``environments``.
    """
    children: list[subprocess.Popen] = []
    try:
        for environment in environments:
            env = {**os.environ, **environment}
            # In a session of its own the process does not receive Ctrl-C from the terminal.
            children.append(subprocess.Popen(words, env=env, start_new_session=True))
        yield children
    finally:
        # Stop them all before killing any, so that none prints that it lost its peer.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for child in children:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, number)
        for child in children:
            child.wait()


def _wait(children: list[subprocess.Popen]) -> None:
    """Wait until all processes have ended or one has failed; this sets their ``returncode``."""
    while None in [child.poll() for child in children]:
        if any(child.returncode for child in children):
            return
        time.sleep(0.05)


def _describe_exit(status: int) -> str:
    """Describe a non-zero exit status of subprocess: "with status 1", or "by SIGKILL" for -9."""
    return f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"


def _free_port() -> int:
    """Return a TCP port of this machine that no process uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def leave_group() -> None:
    """Wait for the other processes, then destroy the process group, if there is one.

    All processes of the group must call this function, or it waits until the group's timeout.
    Garbage is collected first, since models in reference cycles keep the group alive, and a group
    whose threads still run when the interpreter exits may abort the process.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for this process's next tensors, instead of returning it.

    Otherwise each training step on the CPU may get its feature maps from the system again, page by
    page, which takes up to a fifth of the step. Does nothing with another C library, or if the
    environment configures glibc's allocator (``MALLOC_*``, ``GLIBC_TUNABLES``).
    """
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or configured:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_threshold, 2**30)


def worker() -> None:
    """Main function of a process that :func:`launch` started: call ``main(args)`` of a module.

    ``sys.argv[1]`` is a JSON list of the module's name and the dict of ``args``. On the CPU, torch
    gets an equal share of the cores as its threads, unless OMP_NUM_THREADS is set, and glibc keeps
    freed memory. After an error, converted by :func:`.command.one_line_errors`, writes it to the
    file named by the environment variable :data:`.errors.ERROR_FILE` and exits with status 1.
    """
    # Report a full disk once, not at each line of the log.
    logging.raiseExceptions = False
    end_with_parent()
    module, options = json.loads(sys.argv[1])
    args = argparse.Namespace(**options)
    if args.num_gpus == 0:
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // args.num_processes))
    try:
        with one_line_errors():
            try:
                importlib.import_module(module).main(args)
            except SystemExit as error:
                if error.code:
                    status = f"ended the run with status {error.code}"
                    raise RunError(f"process {os.environ['RANK']} {status}; see its log") from None
            leave_group()
    except Exception as error:
        with suppress(OSError):  # without the file, the parent reports this process's status
            write_error(error, os.environ[ERROR_FILE])
        sys.stdout.flush()
        sys.stderr.flush()
        # A normal exit would wait for a process group whose other processes are dead.
        os._exit(1)


def end_with_parent() -> None:
    """On Linux, have the kernel kill this process when the process that launched it ends.

    If that one has ended already, exit at once with status 1. Without the environment variable
    :data:`PARENT`, its PID, or on another system, do nothing.
    """
    if PARENT not in os.environ or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(os.environ[PARENT]):  # the parent has ended already
        os._exit(1)


if __name__ == "__main__":
    worker()
