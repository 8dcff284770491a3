"""ResNet-50's training step on a GPU with each norm: eager, compiled, or as a CUDA graph.

``python -m benchmarks.steps WAY`` writes the times of one way as JSON; ``--device cpu --size 32
--batch 2`` tries it on any machine. Images are in channels last, under bfloat16 autocast.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn

from ilm_plugins import NORMS, use_backend
from ilm_plugins.ops.engine import operators

from . import measure
from .report import STEP_BASELINES

#: How a step runs. The last two replace the package's way to compile: the compiler writes the
#: whole layer, or the whole layer is one operator.
WAYS = ("eager", "graph", "compiled", "compiled, operations", "compiled, operator")
#: Steps before the measured ones, in which kernels are compiled; and steps of a measurement.
WARM_UP, STEPS = 4, 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--norms", nargs="+", default=list(STEP_BASELINES), choices=STEP_BASELINES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/steps.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    is_cuda = device.type == "cuda"
    if is_cuda:
        # A graph's backward pass must not meet leaves of the default stream.
        torch.cuda.set_stream(torch.cuda.Stream())
        torch.backends.cudnn.benchmark = True
    x = torch.randn(args.batch, 3, args.size, args.size, device=device)
    x = x.to(memory_format=torch.channels_last)
    target = torch.randint(1000, (args.batch,), device=device)
    runs, rows = {}, {}
    for norm in args.norms:
        try:
            runs[norm] = make_step(norm, args.way, x, target)
            rows[norm] = {"peak bytes": measure.peak_bytes(runs[norm], device)}
        except Exception as error:  # one norm that fails does not end the others
            runs.pop(norm, None)
            rows[norm] = {"error": f"{type(error).__name__}: {error}"[:300]}
    clock = measure.replayed if is_cuda else measure.wall
    times = measure.interleaved(runs, args.rounds, lambda run: clock(run, STEPS))
    for norm, seconds in times.items():
        rows[norm]["seconds"] = median(seconds)
    results = {"machine": measure.machine(device), "way": args.way, "batch": args.batch}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results | {"norms": rows}, indent=1))
    print(json.dumps(rows, indent=1))


def make_step(norm: str, way: str, x: Tensor, target: Tensor) -> Callable[[], object]:
    """Return a training step of ResNet-50 with a norm, after WARM_UP steps."""
    from torchvision.models import resnet50

    makes = {"BN": nn.BatchNorm2d, "GN": lambda channels: nn.GroupNorm(32, channels)}
    torch.manual_seed(0)
    model = resnet50(norm_layer={**makes, **NORMS}[norm]).to(x.device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=x.is_cuda)
    is_graph, is_compiled = way == "graph", way.startswith("compiled")
    function = torch.compile(model) if is_compiled else model
    compiling: AbstractContextManager = nullcontext()
    if way == "compiled, operations":
        compiling = use_backend("reference")
    elif way == "compiled, operator":
        compiling = mock.patch.object(operators, "leaves_passes", lambda x: False)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=not is_graph):
            loss = nn.functional.cross_entropy(function(x), target)
        loss.backward()
        optimizer.step()
        if not is_graph:
            optimizer.zero_grad(set_to_none=True)

    with compiling:
        for _ in range(WARM_UP):
            step()
            optimizer.zero_grad(set_to_none=True)
    return measure.as_graph(step) if is_graph else step


if __name__ == "__main__":
    main()
