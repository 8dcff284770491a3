"""The checkpoint from which a comparison's runs start, converted to each norm."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import checkpoints, surgery
from ...errors import UserError
from ...frameworks import OpenConfig
from ...layers.mixture import MixtureNorm
from .plan import Plan

#: Batches of the training set that measure the mixtures' running statistics.
BATCHES = 32
#: Outputs whose largest difference, over the largest output, is at most this are the same.
SAME = 1e-4


def write_starts(plan: Plan) -> dict[str, str]:
    """Write the checkpoint of each norm, unless it exists; return how its outputs differ."""
    contents = checkpoints.read(plan.weights)
    _, state = checkpoints.find_state(contents, plan.weights)
    baseline, batches, described = None, None, {}
    for norm in plan.norms:
        opened = plan.open(norm)
        torch.manual_seed(0)
        model = opened.build_model()
        if baseline is None:
            fitted, _ = fit(state, model)
            model.load_state_dict(fitted, strict=False)
            baseline, complete = model, model.state_dict()
            batches = list(islice(opened.training_batches(), BATCHES))
        else:
            # Tensors that the file lacks are random; here they are the same for all norms.
            fitted, _ = surgery.fit_state(complete, model)
            model.load_state_dict(fitted, strict=False)
        difference = distance(opened, baseline, model, batches[0])
        if difference > SAME and any(mixes_batches(layer) for layer in model.modules()):
            surgery.recalibrate(model, batches, partial(opened.outputs, model))
            difference = distance(opened, baseline, model, batches[0])
        is_same = difference <= SAME
        described[norm] = "the same" if is_same else f"outputs differ by {difference:.0%}"
        if not plan.start(norm).exists():
            plan.start(norm).parent.mkdir(parents=True, exist_ok=True)
            write(opened, state, model, plan.start(norm))
    return described


def write(opened: OpenConfig, state: Mapping[str, Any], model: nn.Module, path: Path) -> None:
    """Write a converted model's tensors, but not the random tensors that the checkpoint lacks."""
    fitted, _ = fit(state, model)
    tensors = model.state_dict()
    kept = {name: tensors[name] for name in fitted if name in tensors}
    checkpoints.write({"model" if opened.framework == "detectron2" else "state_dict": kept}, path)


def fit(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict, of a model or of a part such as its backbone, to a model's norms."""
    parts = [("", model), *model.named_modules()]
    for name, part in parts:
        unwrapped = checkpoints.unwrap_state(state, part)
        if part.state_dict().keys() & unwrapped.keys():
            fitted, report = surgery.fit_state(unwrapped, part)
            wanted = part.state_dict()
            fits = {k: t for k, t in fitted.items() if k in wanted and t.shape == wanted[k].shape}
            return {f"{name}.{key}" if name else key: t for key, t in fits.items()}, report
    raise UserError("--weights: no tensor of the file is of this model; give one of this model")


def mixes_batches(layer: nn.Module) -> bool:
    return isinstance(layer, MixtureNorm) and "BN" in layer.normalizers


@torch.no_grad()
def distance(opened: OpenConfig, model: nn.Module, other: nn.Module, batch: Any) -> float:
    """Return the largest difference of two models' outputs, divided by the largest output."""
    ours, theirs = (list(tensors(opened.outputs(one.eval(), batch))) for one in (model, other))
    largest = max(float(t.abs().max()) for t in ours)
    difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return difference / largest


def tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in nested lists, tuples and dicts."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from tensors(value)
