"""Times in interleaved rounds, whose ratios cancel drift, and memory by torch's allocator."""

import functools
import json
import re
import statistics
import timeit
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils.benchmark import timer

from ilm_plugins.frameworks.run.environment import commit, processor
from ilm_plugins.ops import cpu

Run = Callable[[], object]
#: Rounds that do not count, in which allocators and caches reach a steady state.
WARM_UP = 3


def ratio(seconds: list[float], others: list[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile of the ratios within each round."""
    ratios = [a / b for a, b in zip(seconds, others, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return median, lower, upper


def wall(run: Run, times: int = 1) -> float:
    """Call ``run`` and return its seconds; torch's timer waits for a GPU before and after."""
    return timeit.timeit(run, timer=timer, number=times) / times


def replayed(run: Run, times: int) -> float:
    """Call ``run`` several times on CUDA, and return the seconds of one between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / times


def clock(on: torch.device) -> Callable[[Run, int], float]:
    """Return the function that times several calls on a device."""
    return replayed if on.type == "cuda" else wall


def device(run: Run) -> float:
    """Call ``run`` on CUDA, after its cache is overwritten, and return the GPU's own seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.empty(2**28, dtype=torch.uint8, device="cuda").zero_()  # larger than the cache
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def interleaved(
    runs: dict[str, Run], rounds: int, clock: Callable[[Run], float] = wall
) -> dict[str, list[float]]:
    """Time functions in turn, one measurement each in a round; return name -> seconds."""
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    measured = [{name: clock(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [seconds[name] for seconds in measured] for name in runs}


def as_graph(run: Run) -> Run:
    """Capture ``run`` in a CUDA graph, warmed up; return the graph's replay.

    All is captured on the current stream, which must not be the default one: a backward pass runs
    on the streams of its leaves, and one of another stream cannot be captured.
    """
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        run()
    return functools.partial(_replay, graph, run)


def _replay(graph: torch.cuda.CUDAGraph, run: Run) -> None:
    """Replay a graph of ``run``, whose tensors must live as long: a graph has only addresses."""
    graph.replay()


def machine(on: torch.device) -> dict:
    """Return device, processor, the kernels' instructions, threads, torch's version and commit."""
    return {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else "cpu",
        "processor": processor(),
        "kernels for": cpu.instruction_set() if cpu.is_built() else "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def to_json(results: dict) -> str:
    """Return results as JSON, rounded to four digits; innermost lists and dicts have a line."""
    text = json.dumps(results)
    text = json.dumps(json.loads(text, parse_float=lambda n: float(f"{float(n):.4g}")), indent=1)
    return re.sub(r"\n {4,}", " ", text) + "\n"


def saved_bytes(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the bytes that a forward pass keeps, without the module's parameters and buffers."""
    of_module = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(x)
    del output
    return sum(size for pointer, size in storages.items() if pointer not in of_module)


def peak_bytes(run: Run, on: torch.device) -> int:
    """Return the largest number of bytes that ``run`` allocates at once."""
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
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
