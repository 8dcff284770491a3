"""Find the norms in a state dict, by the names and dimensions of their tensors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..foreign_norms import is_ignored_tensor
from ..ops.engine.network import BATCH
from .norms import LAYERS
from .plain_norms import PLAIN_NORMS, UNTOLD
from .rules import AFFINE, BN_RUNNING, MIXTURES_RUNNING, RELEASED_ATTENTION, State

#: Kinds of plain norms in a state dict.
PLAIN = {plain_norm.kind_in_state for plain_norm in PLAIN_NORMS.values()}


def _layout_of(layer: Any) -> tuple[set[str], set[str]]:
    """Return the names of tensors that all layers of a class have, and that only some have.

    Without a network, they are the tensors of its ``initial_values``.
    """
    if layer.network is None:
        return {*layer.initial_values}, set()
    running = MIXTURES_RUNNING if set(BATCH) & {*layer.network.tensors} else set()
    needed = {*layer.network.tensors} - running
    others = running | layer.initial_values.keys()
    return needed, others - needed


#: Kind of a norm in a state dict -> names of its required tensors, and of its optional tensors.
LAYOUTS: dict[str, tuple[set[str], set[str]]] = {
    UNTOLD: (set(), AFFINE),
    "BN": (BN_RUNNING, AFFINE | {"num_batches_tracked"}),
    **{kind: _layout_of(layer) for layer, kind in LAYERS.items()},
    "released ILM": (
        {"weight_bias", "bias_bias", "fc_embed.0.weight"}
        | {"fc_weight.1.weight", "fc_bias.1.weight"},
        # The released code stores the encoder under these names, too.
        {"fc_weight.0.0.weight", "fc_bias.0.0.weight"},
    ),
    "released AN": ({"weight_", "bias_", *RELEASED_ATTENTION}, set()),
}


@dataclass
class StoredNorm:
    """A norm in a state dict.

    Attributes:
        name: its name in the state dict.
        kind: a key of LAYOUTS, "released SN" or "released SSN".
        tensors: its tensors, by their names in it.
        extra_tensors: names of further tensors in it, which no norm of its kind has.
    """

    name: str
    kind: str
    tensors: State
    extra_tensors: Sequence[str] = ()


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def find_norms(state: State) -> dict[str, StoredNorm]:
    """Return the norms in a state dict, by name."""
    named = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    modules = _modules(named).items()
    return {name: norm for name, within in modules if (norm := _norm_of(name, within))}


def _norm_of(name: str, state: State) -> StoredNorm | None:
    """Return the norm that a module's tensors are, of the kind that leaves the fewest over."""
    state = {key: tensor for key, tensor in state.items() if not is_ignored_tensor(key)}
    is_leaf = not any("." in key for key in state)
    norms = []
    for kind, (needed, allowed) in LAYOUTS.items():
        own = {key: tensor for key, tensor in state.items() if key in needed | allowed}
        if not own or not needed <= own.keys():
            continue
        extra = sorted(state.keys() - own.keys())
        # A weight and a bias alone are of a norm only beside tensors of their own module.
        is_other = kind == UNTOLD and extra and not (is_leaf and own.keys() == AFFINE)
        if not is_other and (shown := _kind_by_dimensions(kind, own)):
            norms.append(StoredNorm(name, shown, own, extra))
    return min(norms, key=lambda norm: len(norm.extra_tensors), default=None)


def _kind_by_dimensions(kind: str, tensors: State) -> str | None:
    """Return the kind of tensors with a layout's names; None if they are of no norm."""
    if kind in ("SN", "SSN") and tensors["weight"].dim() > 1:
        return f"released {kind}"
    vectors = (AFFINE | MIXTURES_RUNNING) & tensors.keys()
    is_vectors = all(tensors[name].dim() == 1 for name in vectors)
    return kind if is_vectors or kind not in {*PLAIN, "SN", "SSN"} else None


def is_of_level(state: State, norm: StoredNorm) -> bool:
    """Return whether a norm is one of detectron2's CycleBatchNormList, which has their weight."""
    around, _, level = norm.name.rpartition(".")
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
