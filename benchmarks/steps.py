"""A training step on a GPU with one norm, run in one way: python -m benchmarks.steps WAY NORM.

ResNet-50 or EfficientNet-B0 trains on 128 random images in channels last, under bfloat16 autocast.
The first step, which compiles, runs beside other processes. The others wait for the lock of the
result's folder, under which nothing else is timed. The result is written at once, and again with
the kernels of a step. On the CPU, images are few and small, and Inductor compiles nothing.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from filelock import FileLock
from torch import distributed, nn
from torch.profiler import ProfilerActivity, profile

from ilm_plugins import ExemplarNorm, surgery

from . import measure, report
from .models import FUSED, NORMS

WAYS = ("eager", "graph", "compiled", "compiled, reduce-overhead")
#: Steps under the lock before the measured ones; steps of a measurement; measurements.
WARM_UP, STEPS, ROUNDS = 4, 4, 6
#: Parts of names in report.STEP_BASELINES.
EFFICIENTNET, AGAIN, SYNC = "EfficientNet-B0, ", ", again", "EN, sync"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("norm", choices=report.STEP_BASELINES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        # A graph's backward pass must not meet leaves of the default stream.
        torch.cuda.set_stream(torch.cuda.Stream())
    step = make_step(args.norm, args.way, device)
    step()
    result = {"machine": measure.machine(device), "way": args.way, "norm": args.norm}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(args.output.with_name("lock")):
        torch.backends.cudnn.benchmark = True  # only here, where nothing disturbs the choice
        for _ in range(WARM_UP):
            step()
        result["peak bytes"] = measure.peak_bytes(step, device)
        run = measure.as_graph(step) if args.way == "graph" else step
        clock = measure.clock(device)
        rounds = measure.interleaved({"": run}, ROUNDS, lambda run: clock(run, STEPS))[""]
        result |= {"seconds": median(rounds), "rounds": rounds}
        args.output.write_text(json.dumps(result))
        print(json.dumps(result))
        result["kernels"] = kernels(run, device)
        args.output.write_text(json.dumps(result))


def make_step(name: str, way: str, device: torch.device) -> Callable[[], None]:
    """Return a training step with a norm, a key of report.STEP_BASELINES."""
    from torchvision import models

    is_cuda, norm = device.type == "cuda", name.removesuffix(FUSED).removesuffix(AGAIN)
    build = models.resnet50
    if norm.startswith(EFFICIENTNET):
        build, norm = models.efficientnet_b0, norm.removeprefix(EFFICIENTNET)
    make = synchronized() if norm == SYNC else NORMS[norm]
    torch.manual_seed(0)
    model = build(norm_layer=make).to(device, memory_format=torch.channels_last)
    if name.endswith(FUSED):
        surgery.fuse_activations(model)
    batch, size = (128, 224) if is_cuda else (2, 32)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    target = torch.randint(1000, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=is_cuda)
    function = model
    if way.startswith("compiled"):
        backend, mode = "inductor" if is_cuda else "aot_eager", way.partition(", ")[2] or None
        function = torch.compile(model, backend=backend, mode=mode)

    def step() -> None:
        if function is not model:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=way != "graph"):
            loss = nn.functional.cross_entropy(function(x), target)
        loss.backward()
        optimizer.step()

    return step


def synchronized() -> Callable[[int], nn.Module]:
    """Return what makes an EN(sync=True), and form a group of two processes without the second.

    Its collective calls copy their input, so that times are without communication.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    return partial(ExemplarNorm, sync=True)


def kernels(run: measure.Run, device: torch.device) -> dict[str, list[float]]:
    """Return kernel -> microseconds of its launches in one step, in their order."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as record:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    times = defaultdict(list)
    for event in sorted(record.events(), key=lambda event: event.time_range.start):
        if event.device_type.name == kind.name:
            times[event.name].append(event.time_range.elapsed_us())
    return times


if __name__ == "__main__":
    main()
