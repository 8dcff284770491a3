"""Find the state dict in a checkpoint, clean its names, compare it with a model, and load it."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import CheckpointError, warn_once
from .reading import read

#: Keys under which frameworks store the state dict; a checkpoint without them must itself be one.
STATE_KEYS = ("model", "state_dict")
#: Prefixes that DistributedDataParallel and torch.compile add to all names of a model.
WRAPPERS = ("module.", "_orig_mod.")


def find_state(contents: Any, path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """Return the key of a state dict, None for the top level, and a copy with arrays as tensors."""
    if isinstance(contents, Mapping):
        for key in (*STATE_KEYS, None):
            candidate = contents if key is None else contents.get(key)
            if isinstance(candidate, Mapping):
                state = copy_state(candidate)
                state.update((name, as_tensor(value)) for name, value in candidate.items())
                count = _count_tensors(state)
                # A file with a loss may have its state dict under an unknown key.
                if count and (key or count >= max(map(_count_tensors, state.values()))):
                    others = [k for k, v in contents.items() if _count_tensors(v) >= count]
                    if key and (others := [repr(other) for other in others if other != key]):
                        warn_once(
                            f"{str(path)!r} holds the weights {key!r}, which are read, and "
                            f"{', '.join(others)}, such as averaged weights; to read these, save "
                            "them in a file of their own"
                        )
                    return key, state
    held = ", ".join(map(repr, contents)) if isinstance(contents, Mapping) else type(contents)
    raise CheckpointError(
        f"{str(path)!r} holds no state dict, neither under {' or '.join(map(repr, STATE_KEYS))} "
        f"nor at the top, but {str(held)[:120] or 'nothing'}; give a checkpoint of a model"
    )


def _count_tensors(value: Any) -> int:
    """Return the number of tensors directly in a mapping; 0 for anything else."""
    values = value.values() if isinstance(value, Mapping) else ()
    return sum(isinstance(value, Tensor) for value in values)


def as_tensor(value: Any) -> Any:
    """Return an array or a scalar of numpy as a tensor, if torch has its dtype."""
    if not hasattr(value, "__array_interface__") or value.dtype.kind not in "biufc":
        return value
    try:
        return torch.as_tensor(value)
    except TypeError:  # numpy's long doubles
        return value


def read_named(path: str | os.PathLike, key: str) -> Mapping[str, Any]:
    """Return the contents of a checkpoint whose state dict a framework takes from ``key``.

    CheckpointError if the contents, or the value of ``key`` if there is one, are no state dict.
    """
    contents = read(path)
    state = contents.get(key, contents) if isinstance(contents, Mapping) else contents
    if not isinstance(state, Mapping):
        held = f"a {type(state).__name__}"
    elif unnamed := [name for name in state if not isinstance(name, str)]:
        held = f"an entry named {unnamed[0]!r}"
    else:
        return contents
    raise CheckpointError(
        f"checkpoint {str(path)!r} holds {held}, expected a state dict; give a checkpoint of a "
        "model"
    )


def copy_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shallow copy of a state dict, with the versions of its modules (``_metadata``)."""
    copy: Any = OrderedDict(state)
    # torch reads a state dict without the attribute as one of the oldest version.
    if isinstance(versions := getattr(state, "_metadata", None), Mapping):
        copy._metadata = OrderedDict(versions)
    return copy


def check_loadable(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if torch cannot copy an entry of a state dict to a dense parameter."""
    for name, value in state.items():
        value = as_tensor(value)
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = value.layout if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CheckpointError(
                f"checkpoint {str(path)!r} has {kind} as {name}, expected a dense tensor; convert "
                "the entry, or remove it"
            )


def unwrap_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a shallow copy of a state dict without the prefixes of wrappers around its model."""
    state = copy_state(state)
    unnamed = {key: state.pop(key) for key in [*state] if not isinstance(key, str)}
    for prefix in WRAPPERS * 2:  # wrappers may be nested in either order
        # A wrapper may have an entry of its own, such as n_averaged of torch's AveragedModel.
        wrapped = all(name.startswith(prefix) for name in state if "." in name)
        if wrapped and not model.state_dict().keys() & state.keys():
            consume_prefix_in_state_dict_if_present(state, prefix)
    state.update(unnamed)
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
    owners = {name.rpartition(".")[0] for name in state if isinstance(name, str)}
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
    completed: Any = OrderedDict()
    for name, value in state.items():
        if isinstance(name, str):
            owner, dot, leaf = name.rpartition(".")
            name = f"{modules.get(owner, owner)}{dot}{leaf}"
        completed[name] = value
    if versions := getattr(state, "_metadata", None):
        completed._metadata = OrderedDict((modules.get(n, n), v) for n, v in versions.items())
    return completed


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
    """Load a checkpoint, which may have more tensors than the model and prefixes of wrappers."""
    _, state = find_state(read(path), path)
    state = unwrap_state(state, model)
    if lacking := find_absent(state, model):
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not fit: {len(lacking)} of the model's "
            f"{len(model.state_dict())} tensors, such as {lacking[0]}, are missing there or of "
            "another shape; give one of this model"
        )
    model.load_state_dict(state, strict=False)


def _required(model: nn.Module) -> dict[str, Tensor]:
    # Older checkpoints lack BatchNorm's num_batches_tracked.
    state = model.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
