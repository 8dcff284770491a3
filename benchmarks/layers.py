"""Each layer on maps of detectors, segmenters and generators, beside the plain norm and unfused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn

from ilm_plugins import NORMS
from ilm_plugins.ops import cpu

from . import measure, unfused

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

#: layer -> what a user would pick instead
BASELINES = {
    "ILMGN": "GroupNorm",
    "ILMIN": "InstanceNorm2d",
    "ILMLN": "GroupNorm(1)",
    "AssocNorm": "GroupNorm",
    "EN": "BatchNorm2d",
    "SN": "BatchNorm2d",
}

PLAIN = {
    "GroupNorm": lambda c: nn.GroupNorm(32, c),
    "GroupNorm(1)": lambda c: nn.GroupNorm(1, c),
    "InstanceNorm2d": lambda c: nn.InstanceNorm2d(c, affine=True),
    "BatchNorm2d": nn.BatchNorm2d,
}

#: Compilation takes long: layers and maps that stand for the others.
COMPILED_LAYERS = ("ILMGN", "EN")
COMPILED_SHAPES = ("box head", "res2", "DeepLab head")


class Setting(NamedTuple):
    """How a layer runs."""

    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32
    one_thread: bool = False
    without_c: bool = False  #: as if the package had been installed without a compiler

    @contextmanager
    def applied(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.one_thread else threads)
        built = cpu.is_built() and not self.without_c
        with mock.patch.object(cpu, "is_built", lambda: built):
            yield
        torch.set_num_threads(threads)


#: The first is the one for which the layers are also measured unfused.
SETTINGS = {
    "float32": Setting(),
    "one thread": Setting(one_thread=True),
    "channels last": Setting(torch.channels_last),
    "bfloat16": Setting(dtype=torch.bfloat16),
    "without C": Setting(without_c=True),
}
SETTINGS_OF_CUDA = ("float32", "channels last", "bfloat16")


class Case:
    """A module on an input, forward alone or forward and backward."""

    def __init__(self, module: nn.Module, function, x: torch.Tensor, dy: torch.Tensor) -> None:
        self.module, self.function, self.x, self.dy = module, function, x, dy
        self.inputs = [x, *module.parameters()]

    def forward(self) -> None:
        with torch.no_grad():
            self.function(self.x)

    def copy(self) -> None:
        self.x.detach().clone()

    def both(self) -> None:
        torch.autograd.grad(self.function(self.x), self.inputs, self.dy, allow_unused=True)


def cases(shape: tuple[int, ...], device: torch.device, setting: Setting) -> dict[str, Case]:
    """name -> Case: the layers, the layers unfused, the plain norms."""
    x, dy = (
        torch.randn(shape, device=device).to(setting.dtype, memory_format=setting.layout)
        for _ in range(2)
    )
    x.requires_grad_()
    found = {}
    for name, make in {**PLAIN, **NORMS}.items():
        module = make(shape[1]).to(device, setting.dtype)
        found[name] = Case(module, module, x, dy)
        if name in NORMS:
            found[f"{name} unfused"] = Case(
                module, lambda x, module=module: unfused.forward(module, x), x, dy
            )
    return found


def rows(device: torch.device, name: str, rounds: int, shapes: list[str]) -> Iterator[dict]:
    """One row a layer and shape: times, ratios and bytes; on CUDA also under a replayed graph."""
    for shape_name in shapes:
        with SETTINGS[name].applied():
            found = cases(SHAPES[shape_name], device, SETTINGS[name])
            for layer, baseline in BASELINES.items():
                case, rivals = found[layer], {"baseline": found[baseline]}
                if name == "float32":
                    rivals["unfused"] = found[f"{layer} unfused"]
                times = _passes(case, rivals, rounds, device)
                of = {"this": case, "baseline": found[baseline]}
                yield {
                    **_described(layer, shape_name, case),
                    **times,
                    "saved bytes": {
                        who: measure.saved_bytes(case.function, case.x, case.module)
                        for who, case in of.items()
                    },
                    "peak bytes": {
                        who: measure.peak_bytes(case.both, device) for who, case in of.items()
                    },
                }


def compiled_rows(device: torch.device, rounds: int, shapes: list[str]) -> Iterator[dict]:
    """The layers, beside what torch.compile makes of their composites and of the plain norms."""
    for shape_name in shapes:
        found = cases(SHAPES[shape_name], device, Setting())
        for layer in COMPILED_LAYERS:
            torch._dynamo.reset()
            case, baseline = found[layer], found[BASELINES[layer]]
            rivals = {"baseline": baseline}
            for who, of in (("compiled", case), ("compiled baseline", baseline)):
                compiled = torch.compile(of.module, fullgraph=True, dynamic=False)
                rivals[who] = Case(of.module, compiled, of.x, of.dy)
            yield {
                **_described(layer, shape_name, case),
                **_passes(case, rivals, rounds, device),
            }


def _described(layer: str, shape_name: str, case: Case) -> dict:
    return {
        "layer": layer,
        "baseline": BASELINES[layer],
        "shape name": shape_name,
        "shape": list(case.x.shape),
        "bytes": case.x.nbytes,
    }


def _passes(case: Case, rivals: dict[str, Case], rounds: int, device: torch.device) -> dict:
    """Times of the forward pass, of copying x, and of forward and backward together."""
    found = {}
    for pass_name in ("forward", "both"):
        run = getattr(case, pass_name)
        others = {who: getattr(rival, pass_name) for who, rival in rivals.items()}
        if pass_name == "forward":
            others["copy"] = case.copy
        found[pass_name] = _against(run, others, rounds, measure.wall)
        if device.type == "cuda":
            graphs = {who: measure.as_graph(other) for who, other in others.items()}
            found[f"{pass_name}, graph"] = _against(
                measure.as_graph(run), graphs, rounds, measure.device
            )
    return found


def _against(run, others: dict, rounds: int, clock) -> dict:
    """A layer's seconds, and its rivals', each measured in turn with the layer; and the ratios."""
    row = {}
    for who, other in others.items():
        few = max(2, rounds // 3) if who == "unfused" else rounds  # it takes many times as long
        times = measure.interleaved({"this": run, who: other}, few, clock)
        row.setdefault("seconds", times["this"].median)
        row[f"{who} seconds"] = times[who].median
        row[f"over {who}"] = times["this"].over(times[who])
    return row
