"""Find the state dict in a checkpoint file."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, warn_once
from .reading import read

#: Keys under which frameworks store the state dict, beside which a file may have averaged weights.
STATE_KEYS = ("model", "state_dict")


def find_state(contents: Any, path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """Return the key of a state dict, None for the top level, and a copy with arrays as tensors."""
    if not (keys := _find_keys(contents)):
        held = ", ".join(map(repr, contents)) if isinstance(contents, Mapping) else type(contents)
        raise CheckpointError(
            f"{str(path)!r} holds no state dict, neither in an entry nor at the top, but "
            f"{str(held)[:120]}; give a checkpoint of a model"
        )
    key, *others = keys
    if others and key not in STATE_KEYS:
        raise CheckpointError(
            f"{str(path)!r} holds tensors in {', '.join(map(repr, keys))[:120]}; save one of these "
            f"in a file of its own, by torch.save(torch.load(FILE)[{str(key)[:60]!r}], NEW)"
        )
    # ``steps`` is of MMEngine's EMAHook: its ``state_dict`` has the averaged weights.
    if others and not any("steps" in contents[other] for other in others):
        warn_once(
            f"{str(path)!r} holds the weights {key!r}, which are read, and "
            f"{', '.join(map(repr, others))}, such as averaged weights; to read these, "
            "save them in a file of their own"
        )
    return key, _with_tensors(contents if key is None else contents[key])


def _find_keys(contents: Any) -> list[Any]:
    """Return the keys of entries that may be the state dict, the best first; None is the top level.

    Behind a key of STATE_KEYS are only entries of as many tensors.
    """
    entries = contents if isinstance(contents, Mapping) else {}
    counts = {key: _count_weights(value) for key, value in entries.items()}
    for key in STATE_KEYS:
        if least := _count_weights(_with_tensors(entries.get(key))):
            return [key, *(k for k, count in counts.items() if k != key and count >= least)]
    top = _count_weights(_with_tensors(entries))
    # A file with a loss may have its state dict in an entry.
    is_state = top and top >= max(counts.values())
    return [None] if is_state else [key for key, count in counts.items() if count]


def _count_weights(value: Any) -> int:
    """Return the number of tensors in a mapping of names that a model may learn; 0 for others."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return 0
    tensors = (tensor for tensor in value.values() if isinstance(tensor, Tensor))
    return sum(tensor.is_floating_point() and tensor.dim() > 0 for tensor in tensors)


def _with_tensors(state: Any) -> dict[str, Any]:
    """Return a copy of a state dict, with tensors for arrays; {} for anything else."""
    if not isinstance(state, Mapping):
        return {}
    copy = copy_state(state)
    copy.update((name, as_tensor(value)) for name, value in state.items())
    return copy


def as_tensor(value: Any) -> Any:
    """Return an array or a scalar of numpy as a tensor, if it has numbers."""
    is_numeric = hasattr(value, "__array_interface__") and value.dtype.kind in "biufc"
    return torch.as_tensor(value) if is_numeric else value


def read_named(path: str | os.PathLike, key: str) -> Mapping[str, Any]:
    """Return the contents of a checkpoint whose state dict a framework takes from ``key``.

    CheckpointError if the contents, or the value of ``key`` if there is one, are no state dict.
    """
    contents = read(path)
    match _find_keys(contents):
        case [str(entry), *others] if key not in contents and (not others or entry in STATE_KEYS):
            contents = {**contents, key: contents[entry]}
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
        copy._metadata = OrderedDict((n, of) for n, of in versions.items() if isinstance(of, dict))
    return copy
