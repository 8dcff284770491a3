"""The time of a training step of each norm, measured in turn in one process."""

import time
from collections.abc import Callable
from statistics import median

import torch

from .plan import Plan
from .results import ROUNDS


def measure_steps(plan: Plan) -> dict[str, dict[str, float]]:
    """Return norm -> median "seconds" of a step and, on a GPU, its peak "memory" in bytes.

    One more step of each norm comes first, to warm up.
    """
    steps = {norm: plan.open(norm).training_step(max(1, plan.num_gpus)) for norm in plan.norms}
    rounds: dict[str, list[tuple[float, int]]] = {norm: [] for norm in plan.norms}
    for _ in range(1 + ROUNDS):
        for norm, step in steps.items():
            rounds[norm].append(_measure(step, plan.num_gpus > 0))
    measured = {}
    for norm, measurements in rounds.items():
        seconds, memory = zip(*measurements[1:], strict=True)
        measured[norm] = {"seconds": median(seconds)}
        if plan.num_gpus:
            measured[norm]["memory"] = max(memory)
    return measured


def _measure(step: Callable[[], None], on_gpu: bool) -> tuple[float, int]:
    if not on_gpu:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin, 0
    torch.cuda.reset_peak_memory_stats()
    # The other norms' models hold memory, too, which does not count here.
    held = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated() - held
