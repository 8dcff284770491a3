"""Find the norms in a state dict."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..foreign_norms import is_beside
from .rules import AFFINE, State, kind_of, nearest_kind

_OTHERWISE = re.compile(r"^(?:parametrizations\.)?(\w+)(?:_orig|\.original\d?)$")


@dataclass
class StoredNorm:
    """A norm in a state dict.

    Attributes:
        kind: what :func:`.rules.kind_of` tells of its tensors.
        tensors: its tensors, by their names in it.
        entries: its entries in the state dict.
        beside: names of further tensors in it, which no norm of its kind has.
    """

    kind: str
    tensors: State
    entries: State
    beside: Sequence[str] = ()


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def find_norms(state: State) -> dict[str, StoredNorm]:
    """Return the norms in a state dict, by name."""
    named = {k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)}
    stored = {}
    for name, within in _modules(named).items():
        # Pruning and parametrizations keep a tensor under another name.
        keys = {_OTHERWISE.sub(r"\1", key): key for key in within if not is_beside(key)}
        tensors = {key: within[own] for key, own in keys.items()}
        kind, beside = kind_of(tensors), list[str]()
        if kind is None:
            kind, beside = nearest_kind(tensors)
        if kind is None:
            continue
        own = {key: tensor for key, tensor in tensors.items() if key not in beside}
        beside += [keys[key] for key in own if keys[key] != key]
        entries = {join(name, key): tensor for key, tensor in own.items()}
        stored[name] = StoredNorm(kind, own, entries, beside)
    return stored


def is_of_level(state: State, name: str, norm: StoredNorm) -> bool:
    """Return whether a norm is one of detectron2's CycleBatchNormList, which has their weight."""
    around, _, level = name.rpartition(".")
    affine = {join(around, key) for key in AFFINE}
    has_none = norm.kind == "BN" and not AFFINE & norm.tensors.keys()
    return has_none and level.isdigit() and affine <= state.keys()


def _modules(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries within each module, by their names in it."""
    modules: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in state.items():
        parts = name.split(".")
        for i in range(len(parts)):
            modules[".".join(parts[:i])][".".join(parts[i:])] = value
    return modules
