"""Time a training step of ResNet-50 with EN in two CPU processes, with and without ``sync``.

``python -m benchmarks.processes`` prints the medians and their ratio. A step is that of
:func:`.models.resnet_steps`, without DistributedDataParallel, so that the two differ in EN alone.
"""

from functools import partial
from statistics import median

import torch
from torch import distributed
from torch.multiprocessing import spawn

from ilm_plugins import ExemplarNorm

from . import measure, models

PROCESSES, ROUNDS = 2, 9
NORMS = {"alone": ExemplarNorm, "sync": partial(ExemplarNorm, sync=True)}


def main() -> None:
    """Start the processes; the first prints the result."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(run, (store.port,), nprocs=PROCESSES)


def run(rank: int, port: int) -> None:
    """Time the steps in one of the processes, with one thread.

    Args:
        rank: the process's number.
        port: of the store by which the processes meet.
    """
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    torch.manual_seed(rank)
    steps = models.resnet_steps(torch.device("cpu"), NORMS)

    def clock(step: measure.Run) -> float:
        """Return the step's seconds, until the last process has done it."""
        distributed.barrier()
        return measure.wall(lambda: (step(), distributed.barrier()))

    times = measure.interleaved(steps, ROUNDS, clock)
    if rank == 0:
        ratio, lower, upper = measure.ratio(times["sync"], times["alone"])
        seconds = {name: f"{median(found):.2f} s" for name, found in times.items()}
        print(f"ResNet-50, EN, {PROCESSES} processes over gloo: {seconds}")
        print(f"sync over alone: {ratio:.3f} ({lower:.3f}-{upper:.3f})")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
