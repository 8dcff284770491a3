"""Times and memory of each layer on feature maps of detectors, segmenters and generators.

Each layer is compared with the plain norm that it replaces, and with its unfused computation
(:mod:`.unfused`). A row is a JSON-ready dict, the result of one layer on one map.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import median
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

#: Layer -> the plain norm that a user would pick instead, a key of PLAIN.
BASELINES = {
    key: {"GN": "GroupNorm", "IN": "InstanceNorm2d", "BN": "BatchNorm2d"}[layer.replaces]
    for key, layer in NORMS.items()
} | {"ILMLN": "GroupNorm(1)"}

PLAIN = {
    "GroupNorm": lambda c: nn.GroupNorm(32, c),
    "GroupNorm(1)": lambda c: nn.GroupNorm(1, c),
    "InstanceNorm2d": lambda c: nn.InstanceNorm2d(c, affine=True),
    "BatchNorm2d": nn.BatchNorm2d,
}

#: Compilation takes long, so only these layers and maps are compiled.
COMPILED_LAYERS = ("ILMGN", "EN")
COMPILED_SHAPES = ("box head", "res2", "DeepLab head")


class Setting(NamedTuple):
    """How layers are run.

    Attributes:
        layout: memory format of the input.
        dtype: of the input and the parameters.
        one_thread: whether torch uses one thread in place of its current number.
        without_c: whether the C kernels are disabled, as in a package installed without a compiler.
    """

    layout: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32
    one_thread: bool = False
    without_c: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the number of threads and disable the C kernels, if asked, within a context."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.one_thread else threads)
        problem = "they are disabled" if self.without_c else cpu.load_problem()
        with mock.patch.object(cpu, "load_problem", lambda: problem):
            yield
        torch.set_num_threads(threads)


#: The first is the one for which the layers are also measured unfused.
SETTINGS = {
    "float32": Setting(),
    "one thread": Setting(one_thread=True),
    "channels last": Setting(torch.channels_last),
    "float16": Setting(dtype=torch.float16),
    "bfloat16": Setting(dtype=torch.bfloat16),
    "channels last, float16": Setting(torch.channels_last, torch.float16),
    "channels last, bfloat16": Setting(torch.channels_last, torch.bfloat16),
    "without C": Setting(without_c=True),
}
SETTINGS_OF_CPU = ("float32", "one thread", "channels last", "bfloat16", "without C")
SETTINGS_OF_CUDA = tuple(name for name in SETTINGS if name not in ("one thread", "without C"))


class Case:
    """A module, or a function that computes it, on an input.

    Args:
        module: the layer; its parameters receive gradients.
        function: the callable to time: the layer, or another way to compute it from the input.
        x: the input, (N, C, H, W).
        dy: gradient of the output, same shape.
    """

    def __init__(self, module: nn.Module, function, x: torch.Tensor, dy: torch.Tensor) -> None:
        self.module, self.function, self.x, self.dy = module, function, x, dy
        self.inputs = [x, *module.parameters()]

    def forward(self) -> None:
        """Run the forward pass without autograd."""
        with torch.no_grad():
            self.function(self.x)

    def copy(self) -> None:
        """Copy the input: the memory traffic of the fastest possible forward pass."""
        self.x.detach().clone()

    def both(self) -> None:
        """Run the forward and the backward pass, for the input and the parameters."""
        torch.autograd.grad(self.function(self.x), self.inputs, self.dy, allow_unused=True)


def cases(shape: tuple[int, ...], device: torch.device, setting: Setting) -> dict[str, Case]:
    """Build name -> case: every layer, every layer unfused ("EN unfused"), and the plain norms.

    All share one random input of ``shape`` (N, C, H, W) and one random output gradient. On CUDA,
    "Liger" is Liger-Kernel's GroupNorm, if that package is installed and can compute it.
    """
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
    if device.type == "cuda":
        with suppress(Exception):  # a rival that fails must not stop the others
            from liger_kernel.transformers.group_norm import LigerGroupNorm

            module = LigerGroupNorm(shape[1], 32, eps=1e-5).to(device, setting.dtype)
            liger = Case(module, module, x, dy)
            liger.both()
            found["Liger"] = liger
    return found


def rows(device: torch.device, name: str, rounds: int, shapes: list[str]) -> Iterator[dict]:
    """Measure each layer on each map in one setting.

    Args:
        device: device of the layers.
        name: a key of SETTINGS; in "float32" the unfused layers are measured, too.
        rounds: number of measurements of each time.
        shapes: keys of SHAPES.

    Yields:
        A row: times in seconds, ratios to the plain norm, the unfused layer and a copy of x, and
        saved and peak bytes of layer and plain norm. On CUDA, also times of replayed CUDA graphs,
        the number of "launches" of kernels by pass, and against GroupNorm also ratios to Liger's.
    """
    for shape_name in shapes:
        with SETTINGS[name].applied():
            found = cases(SHAPES[shape_name], device, SETTINGS[name])
            for layer, baseline in BASELINES.items():
                case, rivals = found[layer], {"baseline": found[baseline]}
                if name == "float32":
                    rivals["unfused"] = found[f"{layer} unfused"]
                if baseline == "GroupNorm" and "Liger" in found:
                    rivals["Liger"] = found["Liger"]
                times = _time_passes(case, rivals, rounds, device)
                of = {"this": case, "baseline": found[baseline]}
                yield {
                    **_row_start(layer, shape_name, case),
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
    """Measure layers against themselves and their plain norms under torch.compile.

    It takes the same arguments as :func:`rows`, and yields a row for each layer of COMPILED_LAYERS
    on each map.
    """
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
                **_row_start(layer, shape_name, case),
                **_time_passes(case, rivals, rounds, device),
            }


def _row_start(layer: str, shape_name: str, case: Case) -> dict:
    """Return the first entries of a row: layer, plain norm, map, shape and bytes of x."""
    return {
        "layer": layer,
        "baseline": BASELINES[layer],
        "shape name": shape_name,
        "shape": list(case.x.shape),
        "bytes": case.x.nbytes,
    }


def _time_passes(case: Case, rivals: dict[str, Case], rounds: int, device: torch.device) -> dict:
    """Time a layer's passes, each interleaved with the rivals' passes.

    Returns:
        "forward" and "both" (forward and backward) -> times as in :func:`_time_against`, for
        "forward" also of a copy of x. On CUDA also "forward, graph" and "both, graph", of replayed
        CUDA graphs, and "launches": pass -> number of kernels.
    """
    found = {}
    for pass_name in ("forward", "both"):
        run = getattr(case, pass_name)
        others = {who: getattr(rival, pass_name) for who, rival in rivals.items()}
        if pass_name == "forward":
            others["copy"] = case.copy
        found[pass_name] = _time_against(run, others, rounds, measure.wall)
        if device.type == "cuda":
            found.setdefault("launches", {})[pass_name] = measure.launches(run)
            graphs = {who: measure.as_graph(other) for who, other in others.items()}
            found[f"{pass_name}, graph"] = _time_against(
                measure.as_graph(run), graphs, rounds, measure.device
            )
    return found


def _time_against(run, others: dict, rounds: int, clock) -> dict:
    """Time a function against others, in seconds.

    Args:
        run: the layer's function, without arguments.
        others: rival -> its function.
        rounds: number of measurements; a third of it against the slow rival "unfused".
        clock: :func:`.measure.wall` or :func:`.measure.device`.

    Returns:
        "seconds": the median of ``run``; and for each rival, "RIVAL seconds", its median, and
        "over RIVAL": median and quartiles of the ratio, as in :func:`.measure.ratio`.
    """
    row = {}
    for who, other in others.items():
        # Unfused layers are many times slower.
        few = max(2, rounds // 3) if who == "unfused" else rounds
        times = measure.interleaved({"this": run, who: other}, few, clock)
        row.setdefault("seconds", median(times["this"]))
        row[f"{who} seconds"] = median(times[who])
        row[f"over {who}"] = measure.ratio(times["this"], times[who])
    return row
