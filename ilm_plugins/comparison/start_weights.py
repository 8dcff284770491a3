"""The checkpoint from which a comparison's runs start, converted to each norm."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoints, surgery
from ..errors import UserError
from ..frameworks.checkpoints import read_checkpoint
from ..layers import SwitchNorm
from .compared_config import ComparedConfig
from .plan import folder_name

#: The checkpoint from which the runs of a norm start, in the folder of its runs.
START = "weights.pth"
#: Batches of the training set that measure the mixtures' running statistics.
BATCHES = 32
#: Least part of a file's tensors that must fit the model; below, the file is of another model.
LEAST = 0.1
#: The end of the name of BatchNorm's counter, whose shape fits any model.
COUNTER = "num_batches_tracked"


def read_weights(path: Path) -> Mapping[str, Any]:
    """Return the state dict of the file of --weights."""
    _, state = checkpoints.find_state(read_checkpoint(path), path)
    return state


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
) -> None:
    """Write the checkpoint of each norm, unless it exists."""
    config.registrations.register(config.config)
    plain = None
    for norm in norms:
        opened = config.open(norm)
        torch.manual_seed(0)
        model = opened.build_model()
        fitted, report = fit(state, model)
        plain = plain or report
        if refused := report.left.keys() - plain.left.keys() - state.keys():
            first = min(refused)
            raise UserError(
                f"--weights: norms of the file become no {norm}, as {first}: "
                f"{report.left[first]}; correct the file, or leave {norm} out"
            )
        if (start := output / folder_name(norm) / START).exists():
            continue
        model.load_state_dict(fitted, strict=False)
        # EN starts with BatchNorm's outputs and statistics, SN and SSN with others.
        is_converted = {*report.converted.values()} - {"renamed"}
        switches = (layer for layer in model.modules() if isinstance(layer, SwitchNorm))
        if is_converted and any("BN" in layer.normalizers for layer in switches):
            batches = islice(opened.training_batches(), BATCHES)
            surgery.recalibrate(model, batches, partial(opened.outputs, model))
        start.parent.mkdir(parents=True, exist_ok=True)
        # Without the random tensors that the file lacks.
        kept = {name: tensor for name, tensor in model.state_dict().items() if name in fitted}
        checkpoints.write({opened.checkpoint_entry: kept}, start)


def fit(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], surgery.Report]:
    """Convert a state dict, of a model or of a part such as its backbone, to a model's norms."""
    name = checkpoints.find_part(state, model)
    if name is None:
        raise UserError("--weights: no tensor of the file is of this model; give one of this model")
    fitted, report = surgery.fit_state(state, part := model.get_submodule(name))
    wanted = part.state_dict()
    fits = {k: t for k, t in fitted.items() if k in wanted and t.shape == wanted[k].shape}
    return {f"{name}.{key}" if name else key: t for key, t in fits.items()}, report
