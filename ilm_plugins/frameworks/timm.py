"""timm: this package's layers as ``norm_layer``, by name or class; timm's norms with activation."""

import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt
from torch import nn

from ..errors import warn_once
from ..foreign_norms import FRAMEWORKS, Framework, with_tensors
from ..layers import NORMS
from ..surgery.fusing import with_activation
from .checkpoints import describe_other_norms


def add_norms(_module: ModuleType) -> None:
    """Make the keys in lower case valid, as in ``create_model("resnet50", norm_layer="ilmgn")``.

    A key that timm has, be it only for a norm joined with its activation, stays timm's everywhere.
    """
    FRAMEWORKS["timm"] = NormsWithActivation()
    norms, joined = _maps()
    of_timm, joined_by_class = _names_of_timm()
    for message in (line for key, layer in NORMS.items() for line in conflicts(key, layer)):
        warn_once(message)
    for key, layer in NORMS.items():
        build = _with_activation(layer)
        joined._NORM_ACT_REQUIRES_ARG.add(build)
        if _timm_key(key) not in of_timm:
            norms._NORM_MAP.setdefault(_timm_key(key), layer)
            joined._NORM_ACT_MAP.setdefault(_timm_key(key), build)
        if layer.__name__.lower() not in joined_by_class:
            _by_class().setdefault(layer.__name__.lower(), build)


def conflicts(key: str, layer: type[nn.Module]) -> Iterator[str]:
    """Yield a line if timm has a key, and another if it has a norm named like the key's class."""
    of_timm, joined_by_class = _names_of_timm()
    if _timm_key(key) in of_timm:
        yield (
            f"timm has {key} already, which stays; to have ilm_plugins' instead, give the class "
            "itself as norm_layer"
        )
    if layer.__name__.lower() in joined_by_class:
        yield (
            f"timm joins a class named {layer.__name__} with its activation by its own norm; give "
            "the class another name"
        )


def _maps() -> tuple[ModuleType, ModuleType]:
    """timm's modules that have the norms by name, and the norms joined with their activation."""
    return tuple(import_module(f"timm.layers.{n}") for n in ("create_norm", "create_norm_act"))


@cache  # before names of this package are added
def _names_of_timm() -> tuple[frozenset[str], frozenset[str]]:
    """All names of timm's norms, and the names of classes that timm joins with an activation."""
    norms, joined = _maps()
    names = frozenset(norms._NORM_MAP) | frozenset(joined._NORM_ACT_MAP)
    return names, frozenset(_by_class())


def _by_class() -> dict[str, Any]:
    """The norms joined with their activation, by their class; before 1.0.17, timm knows its own."""
    norms, joined = _maps()
    return getattr(joined, "_NORM_TO_NORM_ACT_MAP", {**norms._NORM_MAP})


def _timm_key(key: str) -> str:
    return key.lower().replace("_", "")


def _with_activation(norm):
    """Return a function with the parameters of timm's BatchNormAct2d, which builds two modules."""

    def build(
        num_features: int,
        apply_act: bool = True,
        act_layer=nn.ReLU,
        act_kwargs: dict | None = None,
        inplace: bool = True,
        drop_layer: type[nn.Module] | None = None,
        **options,
    ) -> nn.Module:
        create_act = import_module("timm.layers.create_act").create_act_layer
        act_kwargs = {"inplace": inplace} | (act_kwargs or {})
        drop = drop_layer and drop_layer()
        act = create_act(act_layer, **act_kwargs) if apply_act else None
        after = [module for module in (drop, act) if module is not None]
        layer = norm(num_features, **options)
        return with_activation(layer, *after) if after else layer

    return build


class NormsWithActivation(Framework):
    """timm's norms that run ``drop`` and ``act`` after the normalization."""

    def modules_after(self, norm: nn.Module) -> list[nn.Module]:
        if not any(cls.__module__ == "timm.layers.norm_act" for cls in type(norm).__mro__):
            return []
        after = [getattr(norm, name, None) for name in ("drop", "act")]
        return [module for module in after if not isinstance(module, nn.Identity | None)]

    def join_activation(self, norm: Any, after: Iterable[nn.Module]) -> nn.Module | None:
        classes = import_module("timm.layers.norm_act")
        if type(norm) is nn.BatchNorm2d:
            options = norm.num_features, norm.eps, norm.momentum, norm.affine
            new = classes.BatchNormAct2d(*options, apply_act=False)
        elif type(norm) is nn.GroupNorm:
            options = norm.num_channels, norm.num_groups, norm.eps, norm.affine
            new = classes.GroupNormAct(*options, apply_act=False)
        else:
            return None
        *drop, new.act = after
        if drop:
            (new.drop,) = drop
        return with_tensors(new, norm)

    def as_replaced(self, norm: Any, path: str) -> nn.Module | None:
        if path.rpartition(".")[0] != "timm.layers.norm_act":
            return None
        return self.join_activation(norm, [nn.Identity()])  # of a norm without an activation


@cache  # wrap it once
def tell_other_norms(module: ModuleType) -> None:
    """Have timm warn where the pretrained weights of a model are another norm's."""
    wrapt.wrap_function_wrapper(module, "load_pretrained", _load_pretrained)


def _load_pretrained(wrapped, _instance, args: tuple, options: dict) -> Any:
    model: nn.Module = args[0] if args else options["model"]
    with model.register_load_state_dict_post_hook(_warn_of_other_norms):
        return wrapped(*args, **options)


def _warn_of_other_norms(model: nn.Module, keys: Any) -> None:
    if told := describe_other_norms(model, {*keys.missing_keys}, keys.unexpected_keys):
        advice = "build it without norm_layer, and convert it by ilm_plugins.surgery.convert"
        warnings.warn(f"{type(model).__name__} gets {told}: {advice}", stacklevel=2)
