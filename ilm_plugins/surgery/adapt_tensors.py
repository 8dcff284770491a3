"""Make the tensors of a norm from those of another one, by a rule."""

import copy
import itertools
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..foreign_norms import is_ignored_tensor
from ..layers.mixture import BN_VARIANCE, VARIANCE
from .plain_norms import PLAIN_NORMS, is_adaptive
from .rules import AFFINE, MIXTURES_RUNNING, Refused, Rule, State

_HALVES = {torch.float16, torch.bfloat16}
#: Dtypes of tensors that are converted; counters and flags may be integers.
_DTYPES = {
    *(*_HALVES, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


@torch.no_grad()
def adapt(rule: Rule, tensors: State, layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's state dict, made from a norm's tensors, or raise Refused.

    Values of 16 bits are converted in float32, and rounded once to the layer's dtype.
    """
    _check_values(tensors, may_lack=is_adaptive(type(layer)))
    if rule.kind in PLAIN_NORMS:
        tensors = {**_identity_map(tensors, layer), **tensors}
    device = next(iter(tensors.values())).device
    layer = _with_values(layer, device)
    wanted = {k: t.detach() for k, t in layer.state_dict().items() if not is_ignored_tensor(k)}
    made = _name_variance(_apply(rule, tensors, layer, wanted), wanted)
    _check_fit(made, wanted, type(layer).__name__)
    return {k: (made[k] if k in made else t.clone()).to(device) for k, t in wanted.items()}


def _check_values(tensors: State, may_lack: bool) -> None:
    """Raise Refused if tensors are sparse, or of a dtype in which no layer computes."""
    may_lack = may_lack and all(tensor.is_meta for tensor in tensors.values())
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise Refused(f"its {key} is {tensor.layout}; make it dense first")
        if tensor.is_meta and not may_lack:
            raise Refused(f"its {key} is on the meta device, without values")
        if tensor.dtype not in _DTYPES:
            raise Refused(f"its {key} is {tensor.dtype}; convert it to float32 first")


def first_computable(tensors: Iterable[Tensor]) -> Tensor | None:
    """Return the first tensor in whose dtype a layer can compute: of floats of more than 8 bits."""
    return next((t for t in tensors if t.is_floating_point() and t.dtype.itemsize > 1), None)


def _with_values(layer: Any, device: torch.device) -> Any:
    """Return a layer, or in place of one on the meta device, a copy with initial values."""
    if device.type == "meta" or not any(tensor.is_meta for tensor in layer.state_dict().values()):
        return layer
    layer = copy.deepcopy(layer).to_empty(device=device)
    # FrozenBatchNorm2d has no parameters to initialize.
    getattr(layer, "reset_parameters", lambda: None)()
    return layer


def _check_fit(made: State, wanted: State, name: str) -> None:
    """Raise Refused if a layer lacks a tensor, has another shape, or needs one more."""
    # The layer's own are initial values, with which it would compute something else.
    needed = (AFFINE | MIXTURES_RUNNING) & wanted.keys() - made.keys()
    if needed:
        raise Refused(f"it has no {' and no '.join(sorted(needed))}, which {name} needs")
    for key in AFFINE & made.keys() - wanted.keys():
        if not is_identity(key, made[key]):
            raise Refused(f"it has a {key}, which {name} lacks")
    for key, tensor in wanted.items():
        shape, expected = tuple(made.get(key, tensor).shape), tuple(tensor.shape)
        if shape != expected:
            raise Refused(f"{key} has shape {shape}, shape {expected} in the layer")


def _apply(rule: Rule, tensors: State, layer: nn.Module, wanted: State) -> State:
    """Return what a rule makes of a norm's tensors, those of 16 bits computed in float32."""
    wide = {k: t.float() if t.dtype in _HALVES else t for k, t in tensors.items()}
    made = dict(rule.function(wide, layer))
    for key, value in made.items():
        if value is wide.get(key):
            made[key] = tensors[key]
        # A tensor has the dtype that it has in the norm, or in the layer if that is wider.
        elif dtypes := [state[key].dtype for state in (tensors, wanted) if key in state]:
            made[key] = value.to(reduce(torch.promote_types, dtypes))
    return made


def _name_variance(state: State, wanted: State) -> State:
    """Give a running variance the name that it has in ``wanted``."""
    for name, other in itertools.permutations((VARIANCE, BN_VARIANCE)):
        if name in wanted and other in state:
            return {name if key == other else key: tensor for key, tensor in state.items()}
    return state


def is_identity(key: str, value: Tensor) -> bool:
    """Return whether a weight is 1, or a bias 0, up to the rounding of AN's maps."""
    if value.is_meta:
        return False
    difference = value - (1 if key == "weight" else 0)
    return bool(difference.abs().max() <= 8 * torch.finfo(value.dtype).eps)


def _identity_map(tensors: State, layer: Any) -> dict[str, Tensor]:
    """Return the weight 1 and the bias 0, either of which a plain norm may lack."""
    like = next((tensors[name] for name in (*AFFINE, "running_mean") if name in tensors), None)
    like = layer.weight.detach() if like is None else like
    return {"weight": torch.ones_like(like), "bias": torch.zeros_like(like)}
