"""Measurement of times, interleaved to cancel drift, and of memory, by torch's allocator."""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from ilm_plugins.cli.environment import commit, processor
from ilm_plugins.ops import cpu

#: A function to measure.
Run = Callable[[], object]
#: Rounds that do not count, in which allocators and caches reach a steady state.
WARM_UP = 3


def ratio(seconds: list[float], others: list[float]) -> tuple[float, float, float]:
    """Return the median, lower and upper quartile of the ratio of two functions' times.

    Ratios are taken within each round, so that drift of the machine's speed cancels.
    """
    ratios = [a / b for a, b in zip(seconds, others, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return median, lower, upper


def interleaved(
    runs: dict[str, Run], rounds: int, clock: Callable[[Run], float]
) -> dict[str, list[float]]:
    """Time functions in turn, so that each round measures all of them under the same conditions.

    Args:
        runs: name -> function without arguments.
        rounds: number of measurements of each, after WARM_UP rounds that do not count.
        clock: a function that calls another and returns its seconds.

    Returns:
        Name -> seconds, one measurement for each round.
    """
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(clock(run))
    return seconds


def wall(run: Run) -> float:
    """Call ``run`` and return its wall time in seconds, including CUDA work that it starts."""
    finish = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    finish()
    start = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - start


def select(on: torch.device) -> None:
    """Make a GPU the current one; "cuda" without a number is the first."""
    torch.cuda.set_device(on.index or 0)


def device(run: Run) -> float:
    """Call ``run`` on CUDA and return its time on the device in seconds, between two events.

    The GPU's cache is overwritten before, as other layers do in a model. Meanwhile the host
    launches ``run``, so that the launch is not a part of the time.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    _larger_than_a_cache().zero_()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


@functools.cache
def _larger_than_a_cache() -> Tensor:
    """Return 256 MB on the current GPU, the same in each call."""
    return torch.empty(2**28, dtype=torch.uint8, device="cuda")


def as_graph(run: Run) -> Run:
    """Capture ``run`` in a CUDA graph, after three calls as warm-up; return the graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def launches(run: Run) -> int:
    """Call ``run`` on CUDA and return how many kernels it launches, without copies and fills.

    0 is returned if torch's profiler cannot observe this GPU.
    """
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    kinds = [e for e in record.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in kinds)


def machine(on: torch.device) -> dict:
    """Return device, processor, kernels' instructions, threads, torch's version and the commit."""
    return {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else "cpu",
        "processor": processor(),
        "kernels for": cpu.instruction_set() if cpu.is_built() else "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def saved_bytes(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> int:
    """Return the bytes that a forward pass saves for the backward pass.

    Args:
        function: the forward pass.
        x: its input.
        module: its parameters and buffers are not counted.
    """
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(x)
    del output
    return sum(storages.values())


def peak_bytes(run: Run, on: torch.device) -> int:
    """Return the largest number of bytes that ``run`` holds at once, without those held before."""
    run()
    if on.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as record:
        run()
    events = [e for e in record.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak
