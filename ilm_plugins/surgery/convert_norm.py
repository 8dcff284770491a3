"""Build the norm that replaces another one, with its tensors, mode and ``requires_grad``."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from ..foreign_norms import FRAMEWORKS, FROZEN, path_of
from ..layers import ILMInstanceNorm, SwitchNorm, freeze
from ..layers.autoencoder import AutoencoderNorm
from ..layers.base import AdaptiveNorm
from ..layers.mixture import MixtureNorm
from ..ops import Switch
from . import norms
from .adapt_tensors import adapt, is_identity
from .conversion import Conversion
from .fusing import with_activation
from .norms_in_state_dict import LAYOUTS
from .plain_norms import num_channels, plain_module, plain_norm_of
from .rules import AFFINE, Refused, State, chosen_by, find_rule, reverts_to

#: The eps of layers that replace BatchNorms of eps=0, as in torchvision's detectors.
EPS = 1e-5


def layer_for(old: Any, like: dict, asked: Conversion) -> nn.Module:
    """Return the layer that replaces a norm, and a Sequential of it and what timm's norm runs."""
    tensors = {**old._parameters, **old._buffers}
    _check_names(old, asked, tensors)
    kept = _kept_options(old, asked)
    state = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if kept.get("eps") == 0:
        if not issubclass(asked.layer, MixtureNorm):
            raise Refused(
                f"eps=0, and the layer needs more: set the norm's eps to {EPS:g}, which changes "
                "outputs"
            )
        kept["eps"], state["weight"] = EPS, _weight_at_eps(state)
    new = asked.layer(num_channels(old), **kept | asked.options, **like)
    _check_kept(new, {"num_groups": getattr(old, "num_groups", None), **kept})
    _take_tensors(old, new, state)
    # What ``plain_for`` needs to lead back to the same norm; vars, because it is no option.
    if lacked := getattr(old, "lacked", None) or sorted(AFFINE - state.keys()):
        vars(new)["lacked"] = lacked
    if activation := getattr(old, "fused_activation", None):
        new.fused_activation = activation
    if after := norms.modules_after(old):
        joined = with_activation(new, *after)
        joined.training = old.training
        return joined
    # A name, because pickles and compilers may not know a class.
    is_plain = plain_norm_of(type(old)) is not None
    vars(new)["replaced"] = path_of(type(old)) if is_plain else getattr(old, "replaced", "")
    return new


def _check_names(old: Any, asked: Conversion, tensors: dict) -> None:
    """Raise Refused if a norm lacks a name by which torch has an option or a tensor."""
    is_frozen = re.fullmatch(FROZEN, path_of(type(old)))
    options = {"num_groups", *asked.of_norm} & {*asked.plain_norm.options}
    lacking = [] if is_frozen else [name for name in options if not hasattr(old, name)]
    lacking += [name for name in AFFINE - tensors.keys() if getattr(old, name, "") is not None]
    if num_channels(old) is None:
        lacking.append("num_channels")
    if lacking:
        names = ", ".join(sorted(lacking))
        raise Refused(f"it has no {names}; give its class torch's names")


def _kept_options(old: Any, asked: Conversion) -> dict[str, Any]:
    """Return the options that a layer takes from a norm."""
    kept = {o: getattr(old, o) for o in asked.of_norm if getattr(old, o, None) is not None}
    if isinstance(old, SwitchNorm):
        kept |= {name: getattr(old, name) for name in (*Switch._fields, "sync")}
    if issubclass(asked.layer, MixtureNorm):
        if "Sync" in type(old).__name__:  # torch's, or one that ``types`` names
            kept["sync"] = getattr(old, "process_group", None) or True
        if not getattr(old, "track_running_stats", True):
            kept["momentum"] = 0.0
    return kept


def _check_kept(new: nn.Module, kept: dict[str, Any]) -> None:
    """Raise Refused if a layer has another value of an option than the norm that it replaces."""
    for name, value in kept.items():
        of_layer = getattr(new, name, None)
        if name != "sync" and value not in (None, of_layer):
            raise Refused(f"{name}={value!r}, where the layer has {of_layer!r}")


@torch.no_grad()
def _weight_at_eps(state: State) -> Tensor:
    """Return the weight that makes a BatchNorm of eps=0 the same function with ``EPS``."""
    var = state["running_var"]
    if not var.is_meta and not var.all():
        raise Refused("its running variance has zeros, and its eps is 0: outputs are infinite")
    weight = state.get("weight", torch.ones_like(var))
    var = var.to(torch.promote_types(var.dtype, torch.float32))
    return (weight * (1 + EPS / var).sqrt()).to(weight)


def plain_for(old: Any, like: dict, dims: int) -> nn.Module:
    """Return the plain norm that a layer computes, with the layer's tensors and mode."""
    if isinstance(old, AutoencoderNorm) and not old.has_papers_form:
        raise Refused("a variant of the layer cannot compute a plain norm")
    if old.fused_activation:
        raise Refused("it applies an activation outside the modules known for this")
    state, kind = dict(old.state_dict(keep_vars=True)), norms.kind_of(old)
    needed, _ = LAYOUTS.get(kind, (set(), set()))
    if absent := ", ".join(sorted(needed - state.keys())):
        raise Refused(f"its {absent} is missing, without which the layer computes nothing")
    chosen = chosen_by(state, getattr(old, "normalizers", ()))
    plain_norm = reverts_to(kind, "IN" if isinstance(old, ILMInstanceNorm) else chosen)
    options = {"eps": old.eps, **like}
    if plain_norm.name == "BN":
        options["momentum"] = old.momentum
        if state["weight"].dim() == 2:  # EN's, of which the rule expects BN's row to be the last
            rows = sorted(range(len(old.normalizers)), key=lambda k: old.normalizers[k] == "BN")
            state["weight"] = state["weight"][rows]
    groups = 1 if chosen == "LN" else old.num_groups
    replaced = getattr(old, "replaced", "")
    if digit := re.search(r"Norm([123])d$", replaced):
        dims = int(digit[1])
    new: Any = plain_module(plain_norm, old.num_channels, groups, dims, **options)
    _take_tensors(old, new, state)
    # The first norm's class comes back, and what it lacked is None again.
    lacked = getattr(old, "lacked", ())
    if all(is_identity(name, getattr(new, name)) for name in lacked):
        for name in lacked:
            setattr(new, name, None)
        new.affine = new.weight is not None
    for framework in FRAMEWORKS.values():
        if (as_replaced := framework.as_replaced(new, replaced)) is not None:
            return as_replaced
    return new


def _take_tensors(old: nn.Module, new: nn.Module, state: State) -> None:
    """Give a new norm the converted tensors, training mode and ``requires_grad`` of the old one."""
    # New parameters are trained if any of the old norm's is, or if it has none and is not frozen.
    parameters = old.named_parameters(recurse=isinstance(old, AdaptiveNorm))  # timm's have others
    trained = {name: p.requires_grad for name, p in parameters}
    frozen = not trained and "weight" in old._buffers  # as in FrozenBatchNorm2d
    tensors = adapt(find_rule(norms.kind_of(old), type(new)), state, new)
    new.requires_grad_(any(trained.values()) if trained else not frozen)
    if frozen or getattr(old, "frozen", False):
        freeze(new)
    for name in new._parameters.keys() & trained.keys():
        getattr(new, name).requires_grad_(trained[name])
    # Last, because it gives ``requires_grad`` of the new parameters to the old norm's tensors.
    new.load_state_dict(tensors, assign=True)
    new.train(old.training)
