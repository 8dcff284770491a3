"""Find the norms in a state dict."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.shards import INDEX, names_around
from ..errors import UserError
from ..foreign_norms import is_beside
from ..layers.mixture import VARIANCE
from .rules import AFFINE, BN_RUNNING, LAYOUTS, State, kind_of, nearest_kind
from .sources import UNTOLD

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


def check_whole(path: Path, state: Mapping[str, Any]) -> None:
    """Raise UserError if a file is a shard whose norms have tensors in other shards."""
    whole = names_around(path)
    if whole is None:
        return
    names = {name for name in state if isinstance(name, str)}
    if missing := _find_cut(names, whole):
        listed = ", ".join([*missing[:8], *(["..."] if missing[8:] else [])])
        raise UserError(
            f"INPUT {str(path)!r} is one shard of a checkpoint, and cuts norms, which lack "
            f"{listed}; give the index of all shards (*{INDEX}) as INPUT"
        )


def _find_cut(names: Set[str], whole: Set[str]) -> list[str]:
    """Return the names of tensors that norms of one shard have in other shards.

    The names of all shards' tensors may be unknown; ``whole`` is then empty.
    """
    if not whole:  # a BatchNorm is known by its running statistics, and may lack weight and bias
        running = {name.rpartition(".")[::2] for name in names}
        bns = {module for module, key in running if key in BN_RUNNING} - {
            module for module, key in running if key == VARIANCE
        }
        return sorted({join(bn, key) for bn in bns for key in BN_RUNNING | AFFINE} - names)
    layouts = [layout for kind, layout in LAYOUTS.items() if kind != UNTOLD]
    cut = set()
    for module, tensors in _modules(dict.fromkeys(whole)).items():
        keys = tensors.keys()
        if any(needed <= keys <= needed | allowed for needed, allowed in layouts):
            norm = {join(module, key) for key in keys}
            cut |= norm - names if norm & names else set()
    return sorted(cut)
