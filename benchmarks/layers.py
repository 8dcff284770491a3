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

    def copy(self) -> None:
        self.x.detach().clone()

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
        found = cases(SHAPES[shape_name], device, layout)
        for name, baseline in BASELINES.items():
            rivals = {"baseline": found[baseline], "unfused": found[f"{name} unfused"]}
            row = {
                "layer": name,
                "baseline": baseline,
                "shape name": shape_name,
                "shape": SHAPES[shape_name],
            }
            for pass_name in ("forward", "both"):
                run = getattr(found[name], pass_name)
                others = {who: getattr(case, pass_name) for who, case in rivals.items()}
                row[pass_name] = _against(run, others, rounds, measure.clock_of(device))
                if device.type == "cuda":
                    others["copy"] = found[name].copy
                    graphs = {who: measure.as_graph(other) for who, other in others.items()}
                    row[f"{pass_name}, graph"] = _against(
                        measure.as_graph(run), graphs, rounds, measure.device
                    )
            of = {"this": found[name], **rivals}
            row["saved bytes"] = {
                who: measure.saved_bytes(case.function, case.x, case.module)
                for who, case in of.items()
            }
            row["peak bytes"] = {
                who: measure.peak_bytes(case.both, device) for who, case in of.items()
            }
            yield row


def _against(run, others: dict, rounds: int, clock) -> dict:
    """A layer's seconds, and its rivals', each measured in turn with the layer; and the ratios."""
    row = {}
    for who, other in others.items():
        times = measure.interleaved({"this": run, who: other}, rounds, clock)
        row.setdefault("seconds", times["this"].median)
        row[f"{who} seconds"] = times[who].median
        row[f"over {who}"] = times["this"].over(times[who])
    return row


def compiled_rows(
    device: torch.device, layout: torch.memory_format, rounds: int, shapes: list[str]
) -> Iterator[dict]:
    """What torch.compile makes of each layer's composite, over the fused passes."""
    for shape_name in shapes:
        found = cases(SHAPES[shape_name], device, layout)
        for name in NORMS:
            torch._dynamo.reset()
            fused = found[name]
            compiled = torch.compile(fused.module, fullgraph=True)
            case = Case(fused.module, compiled, fused.x, fused.dy)
            yield {
                "layer": name,
                "shape name": shape_name,
                **{
                    pass_name: _against(
                        getattr(case, pass_name),
                        {"fused": getattr(fused, pass_name)},
                        rounds,
                        measure.clock_of(device),
                    )
                    for pass_name in ("forward", "both")
                },
            }
