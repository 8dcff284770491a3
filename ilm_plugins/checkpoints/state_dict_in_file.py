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
