"""Compare a state dict with a model: clean its names, check that it fits, load it."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import CheckpointError
from ..foreign_norms import is_ignored_tensor
from ..layers.mixture import BN_VARIANCE, VARIANCE
from ..layers.weight_decay import NORM_CLASSES
from .reading import read
from .state_dict_in_file import copy_state, find_state

#: Prefixes that DistributedDataParallel and torch.compile add to all names of a model.
WRAPPERS = ("module.", "_orig_mod.")


def unwrap_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a shallow copy of a state dict without the prefixes of wrappers around its model."""
    state = copy_state(state)
    for prefix in WRAPPERS * 2:  # wrappers may be nested in either order
        # A wrapper may have an entry of its own, such as n_averaged of torch's AveragedModel.
        wrapped = all(name.startswith(prefix) for name in state if "." in name)
        if wrapped and not model.state_dict().keys() & state.keys():
            consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def find_part(state: Mapping[str, Any], model: nn.Module) -> str | None:
    """Return the name of the largest part of a model that has tensors of a state dict.

    The name is "" for the model itself; without such a part, it is None.
    """
    for name, part in model.named_modules():
        if part.state_dict().keys() & unwrap_state(state, part).keys():
            return name
    return None


def complete_names(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Complete names by the model's names that end with them, as detectron2 does.

    Where several fit, the longest one belongs to the model's module; CheckpointError if one name
    fits several modules.
    """
    owners = {name.rpartition(".")[0] for name in state}
    modules: dict[str, str] = {}
    for name, _ in model.named_modules():
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        owner = next((end for end in ends if end in owners), None)
        if owner in modules:
            raise CheckpointError(
                f"{owner!r} of the checkpoint is in the model as {modules[owner]!r} and as "
                f"{name!r}; give --part, with the part of the model that the checkpoint is of"
            )
        if owner:
            modules[owner] = name
    completed = {}
    for name, value in state.items():
        owner, dot, leaf = name.rpartition(".")
        completed[f"{modules.get(owner, owner)}{dot}{leaf}"] = value
    return completed


def name_variances(state: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Rename BatchNorm's variances as in a model's mixtures; names may be ends of the model's."""
    names, renamed = {*wanted}, copy_state(state)
    ours = [f".{name}" for name in names if name.endswith(VARIANCE)]
    for name in state.keys() - names:
        newer = name.replace(BN_VARIANCE, VARIANCE)
        if newer != name and any(whole.endswith(f".{newer}") for whole in ours):
            renamed[newer] = renamed.pop(name)
    return renamed


def find_absent(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the names of a model's tensors that a state dict lacks or has in another shape."""
    required = _required(model).items()
    return [name for name, t in required if getattr(state.get(name), "shape", None) != t.shape]


def check_fits(path: str | os.PathLike, model: nn.Module, absent: Iterable[str]) -> None:
    """Raise CheckpointError if all of a model's tensors are absent from a checkpoint."""
    required = _required(model)
    if required and required.keys() <= {*absent}:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: it has none of the {len(required)} "
            f"tensors such as {next(iter(required))}; give one of this model"
        )


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Load a checkpoint, which may have further modules, and prefixes of wrappers."""
    _, state = find_state(read(path), path)
    state = name_variances(unwrap_state(state, model), model.state_dict())
    if lacking := find_absent(state, model):
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit: {len(lacking)} of the model's "
            f"{len(model.state_dict())} tensors, such as {lacking[0]}, are missing there or of "
            "another shape; give one of this model"
        )
    norms = {f"{name}." for name, m in model.named_modules() if isinstance(m, NORM_CLASSES)}
    unknown = (name for name in state.keys() - model.state_dict() if name.startswith((*norms,)))
    if extra_tensors := [name for name in sorted(unknown) if not _may_be_absent(name)]:
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit: it has {extra_tensors[0]}, which the model's "
            "norm of this name lacks; give one of a model with this norm"
        )
    model.load_state_dict(state, strict=False)


def _required(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if not _may_be_absent(name)}


def _may_be_absent(name: str) -> bool:
    # Older checkpoints lack BatchNorm's num_batches_tracked.
    return name.endswith("num_batches_tracked") or is_ignored_tensor(name)
