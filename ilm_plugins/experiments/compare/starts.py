"""The checkpoint from which a comparison's runs start, converted to each norm."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import checkpoints, surgery
from ...errors import UserError
from ...frameworks import OpenConfig
from ...frameworks.checkpoints import read_checkpoint
from ...layers import SwitchNorm
from ...surgery.norms import is_norm, named_norms
from .compared_config import ComparedConfig
from .comparison_plan import folder_name

#: Batches of the training set that measure the mixtures' running statistics.
BATCHES = 32
#: A norm's outputs whose largest difference, over the largest, is at most this are the same.
SAME = 1e-4
#: Least part of a file's tensors that must fit the model; below, the file is of another model.
LEAST = 0.1
#: The end of the name of BatchNorm's counter, whose shape fits any model.
COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> Mapping[str, Any]:
    """Return the state dict of the file of --weights."""
    _, state = checkpoints.find_state(read_checkpoint(path), path)
    return state


def start_of(folder: Path) -> Path:
    """Return the checkpoint from which the runs of a norm, which are in a folder, start."""
    return folder / "weights.pth"


def check_fits(path: Path, state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise UserError if hardly any tensor of the file of --weights fits the model."""
    fitted, _ = fit(state, model)
    counts = [sum(not k.endswith(COUNTER) for k in tensors) for tensors in (fitted, state)]
    if counts[0] < LEAST * min(counts[1], len([*model.parameters()])):
        raise UserError(
            f"--weights {path}: only {counts[0]} of its {counts[1]} tensors fit the model; "
            "give a checkpoint of this model or of its backbone"
        )


def write_starts(
    config: ComparedConfig, norms: Sequence[str], output: Path, state: Mapping[str, Any]
) -> dict[str, str]:
    """Write the checkpoint of each norm, unless it exists; return how its outputs differ."""
    config.register()
    baseline, batches, described = None, None, {}
    for norm in norms:
        opened = config.open(norm)
        torch.manual_seed(0)
        model = opened.build_model()
        fitted, report = fit(state, model)
        names = fitted.keys()
        if baseline is None:
            baseline, batches = model, list(islice(opened.training_batches(), BATCHES))
            taken = names
        else:
            tensors = baseline.state_dict()
            of_file, _ = fit({name: tensors[name] for name in taken}, model)
            reasons = [reason for name, reason in report.left.items() if name not in state]
            check_starts(norm, model, of_file.keys() - names, reasons)
            # Tensors that the file lacks are random; here they are the same for all norms.
            fitted = fit(tensors, model)[0] | fitted
        model.load_state_dict(fitted, strict=False)
        differences = compare_norms(opened, baseline, model, batches[0])
        # EN starts with BatchNorm's outputs and statistics. The baseline differs from the file if
        # the file has other norms.
        has_other_norms = {*report.converted.values()} - {"renamed"}
        is_same = not has_other_norms if model is baseline else are_same(differences)
        if not is_same and any(map(is_switch_of_bn, model.modules())):
            surgery.recalibrate(model, batches, partial(opened.outputs, model))
            differences = compare_norms(opened, baseline, model, batches[0])
        described[norm] = describe(differences)
        if not (start := start_of(output / folder_name(norm))).exists():
            start.parent.mkdir(parents=True, exist_ok=True)
            # Without the random tensors that the file lacks.
            tensors = model.state_dict()
            kept = {name: tensors[name] for name in names}
            entry = "model" if opened.framework == "detectron2" else "state_dict"
            checkpoints.write({entry: kept}, start)
    return described


def check_starts(
    norm: str, model: nn.Module, lacking: Iterable[str], reasons: Iterable[str]
) -> None:
    """Raise UserError if the baseline has norms from the file that another norm's model lacks.

    Args:
        lacking: names of the model's tensors.
        reasons: why norms of the file are not converted.
    """
    keys = [key for key in lacking if not key.endswith(COUNTER)]
    names = [name for name, _ in named_norms(model, is_norm)]
    names = [name for name in names if any(key.startswith(f"{name}.") for key in keys)]
    if names:
        listed = ", ".join(names[:3] + ["..."] * (len(names) > 3))
        raise UserError(
            f"--weights: the file's norms become no {norm} at {listed} "
            f"({'; '.join(dict.fromkeys(reasons))}); correct the file, or leave {norm} out"
        )


def describe(differences: list[float | None] | None) -> str:
    """Return the largest difference of the norms in words, and how many norms it is not of."""
    if differences is None:
        return "not compared: the baseline's model has another number of norms"
    compared = [difference for difference in differences if difference is not None]
    if not compared:
        return "not compared: no norm has an input in evaluation"
    largest = float(torch.tensor(compared).max())
    text = "the same" if largest <= SAME else f"outputs of a norm differ by {largest:.0%}"
    if left := len(differences) - len(compared):
        text += f"; norms without an input in evaluation: {left}"
    return text


def are_same(differences: list[float | None] | None) -> bool:
    return differences is not None and all(d is not None and d <= SAME for d in differences)


def fit(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict, of a model or of a part such as its backbone, to a model's norms."""
    name = checkpoints.find_part(state, model)
    if name is None:
        raise UserError("--weights: no tensor of the file is of this model; give one of this model")
    fitted, report = surgery.fit_state(state, part := model.get_submodule(name))
    wanted = part.state_dict()
    fits = {k: t for k, t in fitted.items() if k in wanted and t.shape == wanted[k].shape}
    return {f"{name}.{key}" if name else key: t for key, t in fits.items()}, report


def is_switch_of_bn(layer: nn.Module) -> bool:
    """Return whether a layer is SN or SSN with BN: its outputs are not those of BN alone."""
    return isinstance(layer, SwitchNorm) and "BN" in layer.normalizers


@torch.no_grad()
def compare_norms(
    opened: OpenConfig, model: nn.Module, other: nn.Module, batch: Any
) -> list[float | None] | None:
    """Return the difference of each norm's outputs, on the inputs that it has in ``model``.

    It is the largest one, divided by the largest output of ``model``'s norm; None for a norm that
    gets no input in evaluation. None in place of the list if the numbers of norms differ.
    """
    ours, theirs = (
        list(dict.fromkeys(norm for _, norm in named_norms(one.eval(), is_norm)))
        for one in (model, other)
    )
    if len(ours) != len(theirs):
        return None
    if model is other:
        return [0.0]
    twins = dict(zip(ours, theirs, strict=True))
    differences: dict[nn.Module, list[float]] = {norm: [] for norm in ours}

    def compare(norm: nn.Module, inputs: tuple, named: dict[str, Tensor], output: Tensor) -> None:
        if output.numel():  # an image may have no region of interest
            difference = (twins[norm](*inputs, **named) - output).abs().max()
            differences[norm].append(float(difference / output.abs().max().clamp(min=1e-12)))

    hooks = [norm.register_forward_hook(compare, with_kwargs=True) for norm in ours]
    try:
        opened.outputs(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    # Unlike Python's max, torch's is NaN if a value is NaN.
    return [float(torch.tensor(d).max()) if d else None for d in differences.values()]
