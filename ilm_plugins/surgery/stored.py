"""Find the norms in a state dict, and name their tensors as a model does."""

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..foreign_norms import is_beside
from .norms import is_named_as_pyramid, kind_of_module
from .rules import AFFINE, State, kind_of, nearest_kind, refuse

#: Kinds that have running statistics for each level of a pyramid.
_MIXTURES = {"EN", "SN", "SSN"}


_OTHERWISE = re.compile(r"^(?:parametrizations\.)?(\w+)(?:_orig|\.original\d?)$")


@dataclass
class StoredNorm:
    """A norm in a state dict.

    Attributes:
        kind: what :func:`.rules.kind_of` tells of its tensors.
        levels: its tensors, once for each level of a pyramid; what the levels share is in each.
        entries: its entries in the state dict.
        beside: names of further tensors in it, which no norm of its kind has.
        is_pyramid: whether it has running statistics for each level, of which there may be one.
    """

    kind: str
    levels: Sequence[State]
    entries: State
    beside: Sequence[str] = ()
    is_pyramid: bool = False


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def find_norms(
    state: State, taken: Container[str] = (), pyramids: Container[str] = ()
) -> dict[str, StoredNorm]:
    """Return the norms in a state dict, by name.

    Args:
        taken: names of a model's tensors that are no norm's.
        pyramids: names of a model's norms that are of several levels.
    """
    named = {k: t for k, t in state.items() if isinstance(k, str) and isinstance(t, Tensor)}
    stored, levels_of_pyramids = {}, set()
    for name, within in _modules(named).items():
        # Pruning and parametrizations keep a tensor under another name.
        keys = {_OTHERWISE.sub(r"\1", key): key for key in within if not is_beside(key)}
        tensors = {key: within[own] for key, own in keys.items()}
        is_known = name in pyramids or is_named_as_pyramid(name)
        is_taken = any(join(name, key) in taken for key in AFFINE)
        levels = [] if is_taken else _find_levels(tensors, is_known)
        kind, beside = kind_of(levels[0] if levels else tensors), list[str]()
        if kind is None:
            kind, beside = nearest_kind(tensors)
        if kind is None:
            continue
        own = {key: tensor for key, tensor in tensors.items() if key not in beside}
        beside += [keys[key] for key in own if keys[key] != key]
        entries = {join(name, key): tensor for key, tensor in own.items()}
        stored[name] = StoredNorm(kind, levels or [own], entries, beside, is_pyramid=bool(levels))
        levels_of_pyramids |= {join(name, str(i)) for i in range(len(levels))}
    return {name: norm for name, norm in stored.items() if name not in levels_of_pyramids}


def _modules(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries within each module, by their names in it."""
    modules: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in state.items():
        parts = name.split(".")
        for i in range(len(parts)):
            modules[".".join(parts[:i])][".".join(parts[i:])] = value
    return modules


def _find_levels(tensors: State, is_known: bool) -> Sequence[State]:
    """Return the tensors of each level if a module has a norm for each, else [].

    Args:
        is_known: whether the module's name says that it has levels.
    """
    shared: dict[str, Tensor] = {}
    by_level: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        level, _, name = key.partition(".")
        part = by_level[level] if name else shared
        part[name or key] = tensor
    levels = [by_level.get(str(i), {}) for i in range(len(by_level))]
    kinds = {kind_of(level) for level in levels}
    if kinds == {"BN"} and shared.keys() == AFFINE:
        # detectron2's CycleBatchNormList has one weight and bias beside its BatchNorms.
        shapes = {t.shape for t in (*shared.values(), *(level["running_mean"] for level in levels))}
        is_whole = any(AFFINE & level.keys() for level in levels)
        return [] if is_whole or len(shapes) > 1 else [{**shared, **level} for level in levels]
    # Each level of a PerLevelNorm has all parameters. Equal parameters tell nothing: new norms, and
    # copies of one, have the same ones, too.
    is_one_kind = len(kinds) == 1 and kinds <= _MIXTURES
    if not is_known or shared or not is_one_kind or "running_mean" not in levels[0]:
        return []
    are_tied = all(_equal(level[name], levels[0][name]) for level in levels for name in AFFINE)
    return levels if are_tied else []


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (not a.is_meta and not b.is_meta and torch.equal(a, b))


def place(
    name: str, levels: Sequence[State], layer: nn.Module, count: int | None
) -> dict[str, Tensor]:
    """Return a norm's tensors under the names that they have in a model.

    Args:
        levels: the tensors of each level.
        layer: the norm, of one level.
        count: number of the norm's levels in the model; None for a norm that has none.
    """
    if "running_mean" not in levels[0]:  # then all levels are one norm
        levels, count = levels[:1], None
    if count is None:
        reason = f"it has statistics of {len(levels)} levels, the model's norm of one"
        refuse(len(levels) > 1, reason)
        return {join(name, key): tensor for key, tensor in levels[0].items()}
    levels = [*levels] * count if len(levels) == 1 else levels
    refuse(len(levels) != count, f"it is of {len(levels)} levels, the model's norm of {count}")
    shared = AFFINE if kind_of_module(layer) == "BN" else ()
    return {
        join(name, key) if key in shared else join(name, str(i), key): tensor
        for i, level in enumerate(levels)
        for key, tensor in level.items()
    }
