"""The host's time of a training call on a GPU, without its launches; needs no GPU.

``python -m benchmarks.host`` measures each layer's passes by the Triton backend, and the operators
that a compiled model calls for its network. Launches do nothing, and GroupNorm's whole call on the
CPU stands beside them, on a map too small to matter. ``--device cuda`` measures all on a GPU, with
their launches, and profiles EN.
"""

import argparse
import cProfile
import os
import sys
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ilm_plugins.files import write_text

from . import measure, report
from .steps import SYNC, synchronized

SHAPE, SHAPE_OF_CUDA = (2, 64, 7, 7), (16, 64, 14, 14)
#: Calls of one measurement.
CALLS = 300
RECORD = Path(__file__).with_name("record_host.json")


def main() -> None:
    """Measure in a process where Triton's kernels are interpreted; write and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/host.json"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ |= {"TRITON_INTERPRET": "1", "ILM_PLUGINS_BACKEND": "triton"}
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.host", *sys.argv[1:]])
    torch.set_num_threads(1)
    results = {"machine": measure.machine(device), "rounds": args.rounds}
    results["rows"] = list(rows(args.rounds, device))
    write_text(args.output, measure.to_json(results))
    print(report.host(results))


def rows(rounds: int, device: torch.device) -> Iterator[dict]:
    """Yield each layer's times and launches; both passes are also compared with GroupNorm's."""
    from ilm_plugins import NORMS

    is_cuda = device.type == "cuda"
    count_launches = (lambda: 0) if is_cuda else without_launches()
    x = torch.randn(SHAPE_OF_CUDA if is_cuda else SHAPE, device=device, requires_grad=True)
    dy = torch.randn_like(x)
    norms: dict[str, nn.Module] = {"GroupNorm": nn.GroupNorm(32, x.shape[1])}
    norms |= {name: make(x.shape[1]) for name, make in {**NORMS, SYNC: synchronized()}.items()}
    norms = {name: norm.to(device) for name, norm in norms.items()}

    inputs = {layer: [x, *layer.parameters()] for layer in norms.values()}

    def forward(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(x)

    def both(layer: nn.Module) -> None:
        torch.autograd.grad(layer(x), inputs[layer], dy)

    def clock(run: measure.Run) -> float:
        if is_cuda:
            torch.cuda.synchronize()
        return timeit.timeit(run, number=CALLS)  # without a wait for the GPU afterwards

    runs = {(name, f.__name__): partial(f, norms[name]) for name in norms for f in (forward, both)}
    for name in list(norms)[1:]:
        for part, run in operators(norms[name], x):
            runs[name, part] = run
    times = measure.interleaved(runs, rounds, clock)
    if is_cuda:
        profiled = partial(timeit.timeit, runs["EN", "both"], number=CALLS)
        cProfile.runctx("profiled()", {"profiled": profiled}, {}, sort="tottime")
    for name in list(norms)[1:]:
        before = count_launches()
        y = norms[name](x)
        launched = count_launches() - before
        torch.autograd.grad(y, inputs[norms[name]], dy)
        yield {
            "layer": name,
            "microseconds": {
                part: 1e6 * median(times[name, part]) / CALLS for n, part in runs if n == name
            },
            "over GroupNorm": measure.ratio(times[name, "both"], times["GroupNorm", "both"]),
            "launches": [launched, count_launches() - before - launched],
        }


def operators(layer: nn.Module, x: Tensor) -> Iterator[tuple[str, measure.Run]]:
    """Yield the operators of a layer's network alone, forward and backward, if it has them."""
    found = layer.find_operator(x.device, x.dtype)
    if found is None:
        return
    rescale, backward = torch.ops.ilm_plugins.network, torch.ops.ilm_plugins.network_backward
    mean, var = torch.rand(2, x.shape[0], layer.moment_groups, device=x.device)
    batch = torch.ones(x.shape[1], device=x.device)
    tensors = [batch if t is None else t.detach() for t in layer.rescale_tensors()]
    arguments = mean, var, x.shape[1], found[0]
    d = torch.ones(x.shape[:2], device=x.device)
    yield "operator", lambda: rescale(*arguments, tensors)
    yield "operator, backward", lambda: backward(*arguments, d, d, tensors)


def without_launches() -> Callable[[], int]:
    """Make launches of interpreted kernels do nothing; return a function of their number so far."""
    from triton.runtime.interpreter import InterpretedFunction

    number = 0

    def launch(self, grid) -> Callable[..., None]:
        def run(*args, **options) -> None:
            nonlocal number
            number += 1

        return run

    InterpretedFunction.__getitem__ = launch
    return lambda: number


if __name__ == "__main__":
    main()
