"""Each layer on maps of detectors, segmenters and generators, beside the plain norm and unfused."""

from collections.abc import Iterator

import torch
from torch import nn

from ilm_plugins import NORMS

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


class Case:
    """A module on an input, forward alone or forward and backward."""

    def __init__(self, module: nn.Module, function, x: torch.Tensor, dy: torch.Tensor) -> None:
        self.module, self.function, self.x, self.dy = module, function, x, dy
        self.inputs = [x, *module.parameters()]

    def forward(self) -> None:
        with torch.no_grad():
            self.function(self.x)

    def both(self) -> None:
        torch.autograd.grad(self.function(self.x), self.inputs, self.dy, allow_unused=True)


def cases(shape: tuple[int, ...], device: torch.device, layout: torch.memory_format) -> dict:
    """name -> Case: the layers, the layers unfused, the plain norms."""
    x = torch.randn(shape, device=device).to(memory_format=layout).requires_grad_()
    dy = torch.randn(shape, device=device).to(memory_format=layout)
    found = {}
    for name, make in PLAIN.items():
        module = make(shape[1]).to(device)
        found[name] = Case(module, module, x, dy)
    for name, make in NORMS.items():
        module = make(shape[1]).to(device)
        found[name] = Case(module, module, x, dy)
        found[f"{name} unfused"] = Case(
            module, lambda x, module=module: unfused.forward(module, x), x, dy
        )
    return found


def rows(
    device: torch.device, layout: torch.memory_format, rounds: int, shapes: list[str]
) -> Iterator[dict]:
    """One row a layer and shape: times, ratios and bytes; on CUDA also under a replayed graph."""
    for shape_name in shapes:
        shape = SHAPES[shape_name]
        found = cases(shape, device, layout)
        times = {}
        for pass_name in ("forward", "both"):
            runs = {name: getattr(case, pass_name) for name, case in found.items()}
            times[pass_name] = measure.interleaved(runs, rounds, measure.wall)
            if device.type == "cuda":
                x = found["ILMGN"].x.detach()
                y = torch.empty_like(x)
                runs["copy"] = lambda x=x, y=y: y.copy_(x)
                graphs = {name: measure.as_graph(run) for name, run in runs.items()}
                times[f"{pass_name}, graph"] = measure.interleaved(graphs, rounds, measure.device)
        for name, baseline in BASELINES.items():
            of = {who: found[who] for who in (name, baseline, f"{name} unfused")}
            yield {
                "layer": name,
                "baseline": baseline,
                "shape name": shape_name,
                "shape": shape,
                "saved bytes": {
                    who: measure.saved_bytes(case.function, case.x, case.module)
                    for who, case in of.items()
                },
                "peak bytes": {
                    who: measure.peak_bytes(case.both, device) for who, case in of.items()
                },
                **{
                    pass_name: _timing(of_pass, name, baseline)
                    for pass_name, of_pass in times.items()
                },
            }


def _timing(times: dict, name: str, baseline: str) -> dict:
    row = {
        "seconds": times[name].median,
        "baseline seconds": times[baseline].median,
        "unfused seconds": times[f"{name} unfused"].median,
        "over baseline": times[name].over(times[baseline]),
        "unfused over this": times[f"{name} unfused"].over(times[name]),
    }
    if "copy" in times:
        row["over copy"] = times[name].over(times["copy"])
    return row
