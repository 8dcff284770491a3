"""Have layers apply the activations that follow them, in the same pass over the map."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from operator import attrgetter
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..foreign_norms import FRAMEWORKS, Place, path_of
from ..layers.activated import FusedActivation, NormWithActivation
from ..layers.base import AdaptiveNorm
from ..ops.engine.activation import Activation
from .checks import check_not_held, check_plain_modules, has_hooks, holders_of, names_in
from .common import Match, Report, matches, report_of_match
from .containers import IN_TURN
from .norms import LAYERS
from .rules import NotConvertible, refuse

#: Dotted name of the class that defines a forward -> what the forward does.
_CONTAINERS = {
    "torch.nn.modules.container.Sequential": IN_TURN._replace(methods=("forward", "__iter__"))
}
#: Exact class of a module -> the torch function that it computes.
_CLASSES = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
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

    A fused layer computes norm and activation in one pass over its map, with the addition of a
    ResNet block's shortcut between them. Outputs stay the same up to rounding, and the state dict
    keeps its names; :func:`revert` leads back.

    An activation is fused where a module with a known forward applies it only to outputs of layers:
    in ``nn.Sequential`` and subclasses that keep its forward, detectron2's ``Conv2d``, mmcv's
    ``ConvModule``, and the ResNets of torchvision, timm, detectron2, mmcv, mmdet, mmseg and
    mmpretrain. It is ReLU, ReLU6, LeakyReLU, SiLU or Hardswish; after a shortcut, ReLU or
    ReLU6. Layers with hooks, in several places, or of a subclass, stay as they are.

    Hooks of a fused layer see the activation's output. Fuse before you register hooks, compile the
    model, or wrap it for several processes.

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
    fused, left = fuse(model, [layer for layer in names if matches(names[layer], match)])
    report.converted |= {names[layer]: words for layer, words in fused.items()}
    report.left |= {names[layer]: words for layer, words in left.items()}
    return report


class _Found(NamedTuple):
    """A place in a model, with the norms and the activation there."""

    module: Any
    place: Place
    norms: list[Any]
    activation: Any

    @property
    def is_fused(self) -> bool:
        if self.place.activation is None:
            return "unfused" in vars(type(self.module))
        return isinstance(self.activation, FusedActivation)


def fuse(
    model: nn.Module, layers: Iterable[AdaptiveNorm]
) -> tuple[dict[AdaptiveNorm, str], dict[AdaptiveNorm, str]]:
    """Fuse the activations of some layers of a model.

    Returns fused layer -> description, and other layer -> reason.
    """
    left = {layer: _APPLIES if layer.fused_activation else _UNKNOWN for layer in layers}
    fused: dict[AdaptiveNorm, str] = {}
    children = (child for m in model.modules() for child in m._modules.values())
    parents = Counter(child for child in children if child is not None)
    holders = holders_of(model)
    for found in [*_found(model)]:
        if found.is_fused or not left.keys() & {*found.norms}:
            continue
        try:
            for name, norm in zip(found.place.norms, found.norms, strict=True):
                prefix = f"{name}, whose activation is the same: " if found.norms[1:] else ""
                reason = _refusal(norm, left, parents, holders)
                refuse(reason, f"{prefix}{reason}")
            activation = _check_activation(found, parents)
        except NotConvertible as error:
            left |= {norm: str(error) for norm in found.norms if norm in left}
            continue
        _apply(found, activation)
        for norm in found.norms:
            name = type(norm).__name__
            fused[norm] = f"{name}, {activation.name} -> {name} that applies {activation.name}"
            del left[norm]
    return fused, left


def unfuse(model: nn.Module) -> None:
    """Put all activations back that layers apply in the known modules of a model."""
    for found in [*_found(model)]:
        if found.is_fused:
            for norm in found.norms:
                if isinstance(norm, AdaptiveNorm):  # else somebody has replaced it
                    norm.fused_activation = None
            if found.place.activation:
                _set(found.module, found.place.activation, found.activation.original)
            if "unfused" in vars(type(found.module)):
                found.module.__class__ = found.module.unfused


def with_activation(layer: nn.Module, *after: nn.Module) -> NormWithActivation:
    """Join a layer with modules that run after it; it applies an activation directly after it."""
    joined = NormWithActivation(layer, *after)
    if isinstance(layer, AdaptiveNorm):
        fuse(joined, [layer])
    return joined


class Fused:
    """In the class of a module whose forward leaves activations to norms.

    ``unfused`` is the module's own class.
    """

    unfused: type[nn.Module]
    forward: Callable[..., Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, *state = tuple(super().__reduce_ex__(protocol))
        return _new_fused, (self.unfused, type(self).forward), *state


@cache
def _fused_class(cls: Any, forward: Callable) -> Any:
    return type(f"Fused{cls.__name__}", (Fused, cls), {"forward": forward, "unfused": cls})


def _new_fused(cls: Any, forward: Callable) -> nn.Module:
    """Return a module of a fused class, without attributes, for pickles and copies."""
    fused = _fused_class(cls, forward)
    return fused.__new__(fused)


def _found(model: nn.Module) -> Iterator[_Found]:
    """Yield the places of a model's known modules."""
    for module in model.modules():
        for place in _places(module):
            norms = [_get(module, name) for name in place.norms]
            activation = _get(module, place.activation) if place.activation else functional.relu_
            if activation is not None:
                yield _Found(module, place, norms, activation)


def _places(module: nn.Module) -> Iterable[Place]:
    """Return a module's places; none unless its forward is the known code."""
    cls = module.unfused if isinstance(module, Fused) else type(module)
    forward = getattr(cls, "forward", None)
    # A decorated function has the name of the one in it.
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):
        return ()
    owner = path_of(forward).removesuffix(".forward")
    tables = [_CONTAINERS, *(framework.containers for framework in FRAMEWORKS.values())]
    container = next((table[owner] for table in tables if owner in table), None)
    if container is None or "forward" in vars(module):
        return ()
    if container.calls and not names_in(forward.__code__) <= container.calls:
        return ()
    is_known = all(path_of(getattr(cls, m)) == f"{owner}.{m}" for m in container.methods)
    return container.places(module) if is_known else ()


def _get(module: Any, name: str) -> Any:
    """Return an attribute by its dotted name; None if it is absent."""
    with suppress(AttributeError):
        return attrgetter(name)(module)
    return None


def _check_activation(found: _Found, parents: Mapping[nn.Module, int]) -> Activation:
    """Return the activation of a place; raise NotConvertible if layers cannot apply it."""
    place, original = found.place, found.activation
    refuse(place.refusal, place.refusal)
    activation = _activation(original)
    name = getattr(original, "__name__", type(original).__name__)
    if activation is None:
        raise NotConvertible(f"{name} follows it, and no activation that layers apply")
    refuse(place.adds, f"{name} follows the addition of a shortcut")
    if isinstance(original, nn.Module):
        refuse(parents[original] > 1, "several modules have its activation")
        refuse(has_hooks(original), "its activation has hooks")
    return activation


def _activation(original: Any) -> Activation | None:
    """Return the activation that a module, by its exact class, or a function computes."""
    cls = type(original)
    if not isinstance(original, nn.Module):
        return _FUNCTIONS.get(original)
    if "forward" in vars(original):
        return None
    if cls is nn.LeakyReLU:
        return Activation("leaky_relu", float(vars(original)["negative_slope"]))
    tables = (framework.activations for framework in FRAMEWORKS.values())
    names = (_CLASSES.get(cls), *(table.get(path_of(cls)) for table in tables))
    return next((Activation(name) for name in names if name), None)


def _refusal(norm: Any, layers: Mapping, parents: Mapping, holders: Mapping) -> str | None:
    """Return why a norm cannot apply its activation, or None."""
    if type(norm) not in LAYERS:
        return f"{type(norm).__name__} cannot apply it"
    if norm not in layers:
        return "it is not among the layers to fuse"
    if norm.fused_activation:
        return _APPLIES
    if parents[norm] > 1:
        return "several modules have the norm"
    if has_hooks(norm):
        return "the norm has hooks"
    try:
        check_plain_modules(norm)
        check_not_held(norm, holders)
    except NotConvertible as error:
        return str(error)
    return None


def _apply(found: _Found, activation: Activation) -> None:
    """Have the norms of a place apply its activation."""
    for norm in found.norms:
        norm.fused_activation = activation
    if found.place.activation:
        _set(found.module, found.place.activation, FusedActivation(found.activation))
    if forward := found.place.forward:
        found.module.__class__ = _fused_class(found.module.__class__, forward)


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Replace an attribute, a submodule or not, by another one; submodules keep their order."""
    if isinstance(value, nn.Module) and name in module._modules:
        value.train(module.get_submodule(name).training)
        module._modules[name] = value
    else:
        delattr(module, name)
        setattr(module, name, value)
