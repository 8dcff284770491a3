"""Start the processes of a run by torch's elastic launch, which ends all when one fails."""

import ctypes
import gc
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ...errors import UserError, one_line
from .options import ProcessOptions

Main = Callable[[], None]


def launch(main: Main, processes: ProcessOptions) -> None:
    """Call a function in each process of a run; UserError if one of several fails.

    With several processes, it must be of a module, or a ``functools.partial`` of such a function.
    """
    on_cpu = processes.num_gpus == 0
    if processes.world_size == 1:
        os.environ["RANK"] = "0"  # a cluster's job may have set another
        work(main, on_cpu)
        return
    alone = processes.num_machines == 1
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=processes.num_machines,
            max_nodes=processes.num_machines,
            nproc_per_node=processes.local_world_size,
            run_id=str(uuid.uuid4()) if alone else "ilm_plugins",
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint="localhost:0" if alone else processes.dist_url.removeprefix("tcp://"),
            rdzv_configs={} if alone else {"rank": processes.machine_rank, "timeout": 900},
            local_addr="localhost" if alone else None,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
        try:
            elastic_launch(config, work)(main, on_cpu)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            cause = failure.message
            if isinstance(cause, dict):  # of an exception, whose traceback torch has logged
                cause = cause["message"].removeprefix("UserError: ")
            raise UserError(f"rank {rank} failed: {one_line(cause)}") from None
        finally:  # torch leaves its own, which raise SignalException
            for number, handler in handlers:
                signal.signal(number, handler)


def work(main: Main, on_cpu: bool) -> None:
    if on_cpu:
        keep_freed_memory()
    try:
        main()
    except RuntimeError as error:
        if "onnection" in str(
            error
        ):  # or "Connection": another rank died: its error, the cause, comes first
            time.sleep(5)
        raise
    leave_group()


def leave_group() -> None:
    """End the workers of data loaders, and leave the process group, if there is one."""
    # The garbage collector would wait five seconds for each in a reference cycle, as of a Runner.
    for value in gc.get_objects():
        if issubclass(type(value), _MultiProcessingDataLoaderIter):  # asks no proxy for its class
            workers = getattr(value, "_workers", None)  # absent if one has not started
            if workers and workers[0]._parent_pid == os.getpid():
                value._shutdown_workers()
    if distributed.is_initialized():
        # Models in reference cycles keep the group alive, and its threads may abort the
        # interpreter.
        gc.collect()
        distributed.barrier()
        distributed.destroy_process_group()


def check_same_start(checkpoint: str | None) -> None:
    """Raise UserError unless all processes continue from a checkpoint of the same name, or none."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    name = checkpoint and os.path.basename(checkpoint)
    names: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(names, name)
    other = next((rank for rank, name in enumerate(names) if name != names[0]), None)
    if other is not None:
        raise UserError(
            f"--resume: rank 0 continues from {names[0]}, rank {other} from {names[other]}; copy "
            "the output folder to each machine, or share it"
        )


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for new tensors, which saves a fifth of a step on the CPU."""
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or configured:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, -1)  # never
        mallopt(mmap_threshold, 2**30)


def available_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_processes(processes: ProcessOptions) -> None:
    """Raise UserError unless the numbers of GPUs, processes and machines fit together."""
    # torchrun and the like set both for each process; clusters set only WORLD_SIZE, or neither.
    started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if started > 1:
        raise UserError(
            f"another launcher, such as torchrun, started {started} processes; start one a "
            "machine, without it, and give --num-gpus or --num-processes, and --num-machines"
        )
    available = available_gpus()
    if not 0 <= processes.num_gpus <= available:
        several = f", with --num-processes {processes.num_gpus}" if processes.num_gpus > 1 else ""
        choice = f"0 to {available}" if available else f"0, the CPU{several}"
        raise UserError(
            f"--num-gpus {processes.num_gpus}: this machine has {available} GPUs; give {choice}"
        )
    if processes.num_processes > 1 and processes.num_gpus > 0:
        raise UserError(
            f"--num-processes {processes.num_processes} with --num-gpus {processes.num_gpus}: "
            "give --num-processes with --num-gpus 0 only"
        )
    if not 0 <= processes.machine_rank < processes.num_machines:
        raise UserError(
            f"--machine-rank {processes.machine_rank}: give each of --num-machines "
            f"{processes.num_machines} its own rank, from 0"
        )
    url = processes.dist_url
    if processes.num_machines > 1 and not url.removeprefix("tcp://").rpartition(":")[2].isdigit():
        raise UserError(
            f"--num-machines {processes.num_machines} needs --dist-url on every machine: give "
            f"tcp://HOST:PORT with the first machine's host, not {url}"
        )
