"""Find the state dict in a checkpoint file."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, warn_once
from .reading import read

#: Keys under which frameworks store the state dict; a checkpoint without them must itself be one.
STATE_KEYS = ("model", "state_dict")


def find_state(contents: Any, path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """Return the key of a state dict, None for the top level, and a copy with arrays as tensors."""
    entries = contents if isinstance(contents, Mapping) else {}
    for key in STATE_KEYS:
        state = _with_tensors(entries.get(key))
        if count := _count_tensors(state):
            others = [k for k, v in entries.items() if k != key and _count_tensors(v) >= count]
            # ``steps`` is of MMEngine's EMAHook: its ``state_dict`` has the averaged weights.
            if others and not any("steps" in entries[other] for other in others):
                warn_once(
                    f"{str(path)!r} holds the weights {key!r}, which are read, and "
                    f"{', '.join(map(repr, others))}, such as averaged weights; to read these, "
                    "save them in a file of their own"
                )
            return key, state
    state = _with_tensors(entries)
    # A file with a loss may have its state dict under an unknown key.
    if (count := _count_tensors(state)) and count >= max(map(_count_tensors, state.values())):
        return None, state
    held = ", ".join(map(repr, entries)) or type(contents)
    raise CheckpointError(
        f"{str(path)!r} holds no state dict, neither under {' or '.join(map(repr, STATE_KEYS))} "
        f"nor at the top, but {str(held)[:120]}; give a checkpoint of a model"
    )


def _count_tensors(value: Any) -> int:
    """Return the number of tensors directly in a mapping of names; 0 for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return 0
    return sum(isinstance(tensor, Tensor) for tensor in value.values())


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
