"""A training step on a GPU with one norm, run in one way.

ResNet-50 or EfficientNet-B0 trains on random images in channels last, under bfloat16 autocast. On
the CPU, images are small, and Inductor compiles nothing.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import distributed, nn
from torch.profiler import ProfilerActivity, profile

from ilm_plugins import ExemplarNorm, surgery
from ilm_plugins.files import write_text

from . import measure
from .models import FUSED, NORMS

#: Steps before the measured ones; steps of a measurement; measurements.
WARM_UP, STEPS, ROUNDS = 4, 4, 6
#: Parts of names in STEP_BASELINES.
EFFICIENTNET, AGAIN, SYNC = "EfficientNet-B0, ", ", again", "EN, sync"
#: Norm of a training step, of a ResNet-50 unless stated -> what it is compared with.
STEP_BASELINES = {
    **{"BN": "BN", "GN": "GN", "ILMGN": "GN", "EN": "BN", "SN": "BN", "SSN": "BN", "AN": "GN"},
    **{SYNC: "EN", f"BN{AGAIN}": "BN"},
}
for _norm in (f"{EFFICIENTNET}ILMGN", f"{EFFICIENTNET}EN"):
    STEP_BASELINES |= dict.fromkeys((_norm, f"{_norm}{FUSED}"), _norm)


def compile_model(way: str, norm: str, images: int) -> None:
    """Run a step on a GPU, which compiles its model."""
    make_step(norm, way, images, torch.device("cuda"))()


def measure_step(file: str, device: str, way: str, norm: str, images: int) -> None:
    """Measure a step; write the result at once, and again with the kernels of a step."""
    on = torch.device(device)
    if on.type == "cuda":
        # A graph's backward pass must not meet leaves of the default stream.
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.backends.cudnn.benchmark = True
    step = make_step(norm, way, images, on)
    for _ in range(WARM_UP):
        step()
    result = {"way": way, "norm": norm, "peak bytes": measure.peak_bytes(step, on)}
    run = measure.as_graph(step) if way == "graph" else step
    clock = measure.clock(on)
    rounds = measure.interleaved({"": run}, ROUNDS, lambda run: clock(run, STEPS))[""]
    result |= {"machine": measure.machine(on), "seconds": median(rounds), "rounds": rounds}
    write_text(Path(file), json.dumps(result))
    write_text(Path(file), json.dumps(result | {"kernels": kernels(run, on)}))


def make_model(name: str) -> nn.Module:
    """Return a model with a norm, a key of STEP_BASELINES."""
    from torchvision import models

    build, norm = models.resnet50, name.removesuffix(FUSED).removesuffix(AGAIN)
    if norm.startswith(EFFICIENTNET):
        build, norm = models.efficientnet_b0, norm.removeprefix(EFFICIENTNET)
    torch.manual_seed(0)
    model = build(norm_layer=synchronized() if norm == SYNC else NORMS[norm])
    if name.endswith(FUSED):
        surgery.fuse_activations(model)
    return model


def make_step(name: str, way: str, images: int, device: torch.device) -> Callable[[], None]:
    """Return a training step with a norm, a key of STEP_BASELINES."""
    is_cuda, size = device.type == "cuda", 224 if device.type == "cuda" else 32
    model = make_model(name).to(device, memory_format=torch.channels_last)
    x = torch.randn(images, 3, size, size, device=device).to(memory_format=torch.channels_last)
    target = torch.randint(1000, (images,), device=device)
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
