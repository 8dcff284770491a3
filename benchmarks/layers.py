"""Times and memory of each layer on feature maps, a row of results for a layer and a map.

Each layer is compared with the plain norm that it replaces, and with itself unfused, as plain
operations of torch.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn

from ilm_plugins import NORMS, use_backend
from ilm_plugins.files import write_text
from ilm_plugins.ops import cpu
from ilm_plugins.ops.engine.activation import Activation
from ilm_plugins.surgery.rules import replaced_by

from . import measure

#: name -> (N, C, H, W)
SHAPES = {
    "box head": (512, 256, 7, 7),
    "FPN": (2, 256, 200, 304),
    "res2": (16, 256, 56, 56),
    "res3": (16, 512, 28, 28),
    "res4": (16, 1024, 14, 14),
    "res5": (16, 2048, 7, 7),
    "DeepLab head": (2, 512, 64, 128),
    "pix2pix": (1, 64, 256, 256),
}
PLAIN = {
    "GroupNorm": lambda c: nn.GroupNorm(32, c),
    "GroupNorm(1)": lambda c: nn.GroupNorm(1, c),
    "InstanceNorm2d": lambda c: nn.InstanceNorm2d(c, affine=True),
    "BatchNorm2d": nn.BatchNorm2d,
}
NAMES = {"GN": "GroupNorm", "IN": "InstanceNorm2d", "BN": "BatchNorm2d"}


def default_plain_norm(layer: type[nn.Module]) -> str | None:
    """Return the name of the plain norm that a layer replaces by default, if any."""
    plain_norms = replaced_by(layer)
    return plain_norms[0].name if plain_norms else None


#: Layer -> the plain norm that a user would pick instead, a key of PLAIN.
BASELINES = {
    key: NAMES.get(default_plain_norm(layer), "GroupNorm") for key, layer in NORMS.items()
} | {"ILMLN": "GroupNorm(1)"}
#: Compilation takes long, so only these layers and maps are compiled.
COMPILED_LAYERS = ("ILMGN", "EN")
COMPILED_SHAPES = ("box head", "res2", "DeepLab head")


#: Layers, activations and settings of activations in one pass.
ACTIVATED_LAYERS = ("ILMGN", "AN", "EN", "SN", "SSN")
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
ACTIVATED_SETTINGS = ("float32", "channels last", "bfloat16")


class Setting(NamedTuple):
    """How layers are run; ``without_c``: as in an installation without a compiler."""

    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32
    one_thread: bool = False
    without_c: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the number of threads and disable the C++ kernels, if asked, within a context."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.one_thread else threads)
        problem = "they are disabled" if self.without_c else cpu.load_problem()
        with mock.patch.object(cpu, "load_problem", lambda: problem):
            yield
        torch.set_num_threads(threads)


#: In the first setting, layers are also measured unfused.
SETTINGS = {
    "float32": Setting(),
    "one thread": Setting(one_thread=True),
    "channels last": Setting(torch.channels_last),
    "bfloat16": Setting(dtype=torch.bfloat16),
    "channels last, bfloat16": Setting(torch.channels_last, torch.bfloat16),
    "without C": Setting(without_c=True),
}
SETTINGS_OF_CPU = ("float32", "one thread", "channels last", "bfloat16", "without C")
SETTINGS_OF_CUDA = ("float32", "channels last, bfloat16")
LAYERS_OF_CUDA = ("ILMGN", "EN", "SN", "AN")


class Case(NamedTuple):
    """A layer, a function that computes it, its input and a gradient of its output."""

    module: nn.Module
    function: measure.Run
    x: torch.Tensor
    dy: torch.Tensor

    @torch.no_grad()
    def forward(self) -> None:
        self.function(self.x)

    def copy(self) -> None:
        self.x.detach().clone()

    def both(self) -> None:
        inputs = [self.x, *self.module.parameters()]
        torch.autograd.grad(self.function(self.x), inputs, self.dy, allow_unused=True)


def by_operations(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with use_backend("reference"):
        return layer(x)


def cases(shape: tuple[int, ...], device: torch.device, setting: Setting) -> dict[str, Case]:
    """Build every layer, every layer unfused ("EN unfused"), and the plain norms.

    All share one random input of ``shape`` (N, C, H, W) and one random output gradient.
    """
    as_set = {"dtype": setting.dtype, "memory_format": setting.layout}
    x, dy = (torch.randn(shape, device=device).to(**as_set) for _ in range(2))
    x.requires_grad_()
    by_name = {}
    for name, make in {**PLAIN, **NORMS}.items():
        module = make(shape[1]).to(device, setting.dtype)
        by_name[name] = Case(module, module, x, dy)
        if name in NORMS:
            by_name[f"{name} unfused"] = Case(module, partial(by_operations, module), x, dy)
    return by_name


def rows(
    device: torch.device, name: str, rounds: int, shapes: list[str], layers: list[str]
) -> Iterator[dict]:
    """Measure each layer on each map in the setting ``name``: times, ratios and bytes.

    On CUDA there are also times of replayed graphs.
    """
    for shape_name in shapes:
        with SETTINGS[name].applied():
            by_name = cases(SHAPES[shape_name], device, SETTINGS[name])
            for layer in layers:
                case, plain = by_name[layer], by_name[BASELINES[layer]]
                rivals = {"baseline": plain}
                if name == "float32":
                    rivals["unfused"] = by_name[f"{layer} unfused"]
                row = _row(layer, shape_name, case, rivals, rounds)
                pair = {"this": case, "baseline": plain}
                row["saved bytes"] = {
                    who: measure.saved_bytes(case.module, case.function, case.x)
                    for who, case in pair.items()
                }
                row["peak bytes"] = {
                    who: measure.peak_bytes(case.both, device) for who, case in pair.items()
                }
                yield row


def activated_rows(
    device: torch.device, name: str, rounds: int, shapes: list[str], layers: list[str]
) -> Iterator[dict]:
    """Measure layers that apply an activation themselves, in the setting ``name``.

    The rivals are the plain norm, and the layer, each with the activation in place after it.
    """
    for shape_name in shapes:
        by_name = cases(SHAPES[shape_name], device, SETTINGS[name])
        for layer, (activation, module) in itertools.product(layers, ACTIVATIONS.items()):
            alone, plain = by_name[layer], by_name[BASELINES[layer]]
            rivals = {}
            for who, case in (("baseline", plain), ("apart", alone)):
                both = nn.Sequential(case.module, module(inplace=True))
                rivals[who] = case._replace(module=both, function=both)
            own = copy.deepcopy(alone.module)
            own.fused_activation = Activation(activation)
            fused = alone._replace(module=own, function=own)
            row = {"activation": activation}
            row |= _row(layer, shape_name, fused, rivals, rounds)
            row["saved bytes"] = {
                who: measure.saved_bytes(case.module, case.function, case.x)
                for who, case in {"this": fused, **rivals}.items()
            }
            yield row


def compiled_rows(device: torch.device, rounds: int, shapes: list[str]) -> Iterator[dict]:
    """Measure COMPILED_LAYERS against themselves and their plain norms under torch.compile."""
    for shape_name in shapes:
        by_name = cases(SHAPES[shape_name], device, Setting())
        for layer in COMPILED_LAYERS:
            torch._dynamo.reset()
            case, baseline = by_name[layer], by_name[BASELINES[layer]]
            rivals = {"baseline": baseline}
            for who, rival in (("compiled", case), ("compiled baseline", baseline)):
                compiled = torch.compile(rival.module, fullgraph=True, dynamic=False)
                rivals[who] = rival._replace(function=compiled)
            yield _row(layer, shape_name, case, rivals, rounds)


def _row(layer: str, shape_name: str, case: Case, rivals: dict[str, Case], rounds: int) -> dict:
    """Return a row, with times of the passes "forward" and "both" against each of the rivals."""
    row = {"layer": layer, "baseline": BASELINES[layer], "shape name": shape_name}
    row |= {"shape": list(case.x.shape), "bytes": case.x.nbytes}
    for which in ("forward", "both"):
        run = getattr(case, which)
        others = {who: getattr(rival, which) for who, rival in rivals.items()}
        if which == "forward":
            others["copy"] = case.copy
        row[which] = _against(run, others, rounds, measure.wall)
        if case.x.is_cuda:
            graphs = {who: measure.as_graph(other) for who, other in others.items()}
            times = _against(measure.as_graph(run), graphs, rounds, measure.device)
            row[f"{which}, graph"] = times
    return row


def _against(run: measure.Run, others: dict, rounds: int, clock) -> dict:
    """Return median "seconds", and "RIVAL seconds" and the ratio "over RIVAL" of each rival."""
    row = {}
    for who, other in others.items():
        # Unfused layers are many times slower.
        few = max(2, rounds // 3) if who == "unfused" else rounds
        times = measure.interleaved({"this": run, who: other}, few, clock)
        row.setdefault("seconds", median(times["this"]))
        row[f"{who} seconds"] = median(times[who])
        row[f"over {who}"] = measure.ratio(times["this"], times[who])
    return row


def measure_map(file: str, device: str, shape: str) -> None:
    """Write the rows of a map on a GPU; on the CPU, of EN."""
    names, rounds = (LAYERS_OF_CUDA, 7) if device == "cuda" else (("EN",), 2)
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # see measure.as_graph
    measured = {
        setting: list(rows(torch.device(device), setting, rounds, [shape], names))
        for setting in SETTINGS_OF_CUDA
    }
    write_text(Path(file), measure.to_json({"rounds": rounds, "layers": measured}))


def measure_stages(file: str, device: str) -> None:
    """Write and print how long the passes that sum take on a GPU, by each way of their loops."""
    from ilm_plugins.ops.engine.triton import streaming

    def sums(x: torch.Tensor, mean: torch.Tensor, stages: int | None) -> None:
        with mock.patch.object(streaming, "STAGES", stages):
            streaming.moments(x, x.shape[1])
            streaming.sums(x, x, mean)

    torch.cuda.set_stream(torch.cuda.Stream())  # see measure.as_graph
    by_map = {}
    for setting, (name, shape) in itertools.product(SETTINGS_OF_CUDA, SHAPES.items()):
        options = {"dtype": SETTINGS[setting].dtype, "memory_format": SETTINGS[setting].layout}
        x = torch.randn(shape, device=device).to(**options)
        ways = {"unrolled": None, "copied ahead": 3}
        mean = x.new_zeros(shape[:2], dtype=torch.float32)
        runs = {way: measure.as_graph(partial(sums, x, mean, n)) for way, n in ways.items()}
        times = measure.interleaved(runs, 15, measure.device)
        by_map[f"{name}, {setting}"] = seconds = {way: median(t) for way, t in times.items()}
        print(f"{name}, {setting}: {min(seconds, key=seconds.__getitem__)} is faster", seconds)
    write_text(Path(file), measure.to_json(by_map))
