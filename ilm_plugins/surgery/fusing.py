"""Have layers apply the activations that follow them, in the same pass over the map."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..foreign_norms import path_of
from ..layers.activated import FusedActivation, NormWithActivation
from ..layers.base import AdaptiveNorm
from ..ops.engine.activation import Activation
from .checks import Surroundings, check_plain_modules, has_hooks
from .norms import LAYERS
from .report import Report
from .rules import Refused
from .selection import Match, matches, report_of_match


class Container(NamedTuple):
    """A class of modules whose forward runs an activation right after a norm, and only there.

    Attributes:
        pairs: returns the names of a module's norms, each with the name of its activation.
        guard: a forward pre-hook with keyword arguments for modules with a fused activation; it
            refuses calls that ask for only one of norm and activation.
    """

    pairs: Callable[[Any], Iterable[tuple[str, str]]]
    guard: Callable[..., None] | None = None


#: Dotted name of the class that defines a forward -> what the forward does. Frameworks add theirs.
CONTAINERS = {
    "torch.nn.modules.container.Sequential": Container(
        # A subclass may run its children in another order.
        lambda m: pairwise(m._modules) if type(m).__iter__ is nn.Sequential.__iter__ else ()
    )
}
#: Dotted name of a module's exact class -> the torch function that it computes. Frameworks add
#: theirs.
ACTIVATIONS = {
    f"torch.nn.modules.activation.{name}": name.lower()
    for name in ("ReLU", "ReLU6", "SiLU", "Hardswish")
}
_FUNCTIONS: dict[Callable, Activation] = {
    **dict.fromkeys((functional.relu, functional.relu_, torch.relu), Activation("relu")),
    functional.relu6: Activation("relu6"),
    functional.leaky_relu: Activation("leaky_relu", 0.01),
    functional.silu: Activation("silu"),
    functional.hardswish: Activation("hardswish"),
}
_APPLIES = "it applies one already"
_UNKNOWN = "no activation follows it in a module whose forward is known"


def fuse_activations(model: nn.Module, *, match: Match = None) -> Report:
    """Have this package's layers apply the activations that follow them, in place.

    A fused layer computes norm and activation in one pass over its map. Outputs stay the same up to
    rounding, and the state dict keeps its names; :func:`revert` leads back.

    ReLU, ReLU6, LeakyReLU, SiLU and Hardswish are fused in ``nn.Sequential`` and subclasses that
    keep its forward, detectron2's ``Conv2d`` and mmcv's ``ConvModule``, unless a layer has hooks,
    is a subclass or is in several places. Fuse before you register hooks, which see the
    activation's output, compile the model, or wrap it for several processes.

    Args:
        model: any module.
        match: names of the layers, with * for any characters, dots too; default: all.

    Returns:
        A report on each layer; ``left`` says why a layer does not apply an activation.

    Raises:
        OptionError: ``match`` fits no layer of a model that has layers.
    """
    names = {m: name for name, m in model.named_modules() if isinstance(m, AdaptiveNorm)}
    report = report_of_match(match, names.values())
    selected = {layer: name for layer, name in names.items() if matches(name, match)}
    left = fuse(model, selected)
    for layer, name in selected.items():
        if layer in left:
            report.left[name] = left[layer]
        else:
            report.converted[name] = f"{type(layer).__name__} applies its activation"
    return report


class _Pair(NamedTuple):
    """A norm and the activation right after it, in a module of a known class."""

    module: Any
    norm: Any
    activation: Any
    #: The activation's name in the module.
    name: str
    container: Any

    @property
    def is_fused(self) -> bool:
        return isinstance(self.activation, FusedActivation)


def fuse(model: nn.Module, layers: Iterable[AdaptiveNorm]) -> dict[AdaptiveNorm, str]:
    """Fuse the activations of some layers of a model; return why the others apply none."""
    left = {layer: _APPLIES if layer.fused_activation else _UNKNOWN for layer in layers}
    surroundings = Surroundings(model)
    for pair in [*_find_pairs(model)]:
        if pair.is_fused or pair.norm not in left:
            continue
        try:
            _check_norm(pair.norm, surroundings)
            activation = _check_activation(pair.activation, surroundings)
        except Refused as error:
            left[pair.norm] = str(error)
            continue
        pair.norm.fused_activation = activation
        _set(pair.module, pair.name, FusedActivation(pair.activation))
        if guard := pair.container.guard:
            pair.module.register_forward_pre_hook(guard, with_kwargs=True)
        del left[pair.norm]
    return left


def unfuse(model: nn.Module) -> None:
    """Put all activations back that layers apply in modules of known classes."""
    for pair in [*_find_pairs(model)]:
        if not pair.is_fused:
            continue
        if isinstance(pair.norm, AdaptiveNorm):  # else somebody has replaced it
            pair.norm.fused_activation = None
        _set(pair.module, pair.name, pair.activation.original)
        hooks = pair.module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is pair.container.guard]:
            del hooks[key], pair.module._forward_pre_hooks_with_kwargs[key]


def with_activation(layer: nn.Module, *after: nn.Module) -> NormWithActivation:
    """Join a layer with modules that run after it; it applies an activation directly after it."""
    joined = NormWithActivation(layer, *after)
    if isinstance(layer, AdaptiveNorm):
        fuse(joined, [layer])
    return joined


def _find_pairs(model: nn.Module) -> Iterator[_Pair]:
    """Yield the norms that an activation follows, fused or not, in modules of known classes."""
    for module in model.modules():
        container = _container_of(module)
        for norm, name in container.pairs(module) if container else ():
            if (activation := getattr(module, name)) is not None:
                yield _Pair(module, getattr(module, norm), activation, name, container)


def _container_of(module: nn.Module) -> Container | None:
    """Return what a module's forward does; None unless it is the code of a known class."""
    forward: Any = getattr(type(module), "forward", None)
    # A decorated function has the name of the one in it.
    is_own = isinstance(forward, FunctionType) and not hasattr(forward, "__wrapped__")
    if not is_own or "forward" in vars(module):
        return None
    return CONTAINERS.get(path_of(forward).removesuffix(".forward"))


def _check_norm(norm: Any, surroundings: Surroundings) -> None:
    """Raise Refused if a layer cannot apply its activation."""
    if type(norm) not in LAYERS:
        raise Refused(f"{type(norm).__name__} cannot apply it")
    if norm.fused_activation:
        raise Refused(_APPLIES)
    if surroundings.parents[norm] > 1:
        raise Refused("several modules have the norm")
    if has_hooks(norm):
        raise Refused("the norm has hooks")
    check_plain_modules(norm)
    surroundings.check_not_held(norm)


def _check_activation(original: Any, surroundings: Surroundings) -> Activation:
    """Return the activation that follows a norm; raise Refused if no layer can apply it."""
    activation = _activation(original)
    name = getattr(original, "__name__", type(original).__name__)
    if activation is None:
        raise Refused(f"{name} follows it, and no activation that layers apply")
    if isinstance(original, nn.Module):
        if surroundings.parents[original] > 1:
            raise Refused("several modules have its activation")
        if has_hooks(original):
            raise Refused("its activation has hooks")
    return activation


def _activation(original: Any) -> Activation | None:
    """Return the activation that a module, by its exact class, or a function computes."""
    if not isinstance(original, nn.Module):
        return _FUNCTIONS.get(original)
    if "forward" in vars(original):
        return None
    if type(original) is nn.LeakyReLU:
        return Activation("leaky_relu", float(vars(original)["negative_slope"]))
    name = ACTIVATIONS.get(path_of(type(original)))
    return Activation(name) if name else None


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Replace an attribute, a submodule or not, by another one; submodules keep their order."""
    if isinstance(value, nn.Module) and name in module._modules:
        value.train(module.get_submodule(name).training)
        module._modules[name] = value
    else:
        delattr(module, name)
        setattr(module, name, value)
