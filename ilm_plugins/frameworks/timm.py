"""timm: names and classes of this package's layers as ``norm_layer``."""

from functools import partial
from importlib import import_module
from types import ModuleType

from torch import nn

from ..layers import NORMS
from ..layers.activated import NormWithActivation
from ..layers.base import AdaptiveNorm
from ..layers.options import automatic


def add_norms(module: ModuleType) -> None:
    """Make the keys in lower case valid, as in ``create_model("resnet50", norm_layer="ilmgn")``."""
    for key, layer in NORMS.items():
        module._NORM_MAP.setdefault(_timm_key(key), _following_widths(layer))


def add_norms_with_activation(module: ModuleType) -> None:
    for key, layer in NORMS.items():
        build = _with_activation(_following_widths(layer))
        module._NORM_ACT_MAP.setdefault(_timm_key(key), build)
        module._NORM_TO_NORM_ACT_MAP.setdefault(layer.__name__.lower(), build)
        module._NORM_ACT_REQUIRES_ARG.add(build)


def _timm_key(key: str) -> str:
    return key.lower().replace("_", "")


def _following_widths(layer: type[nn.Module]) -> partial:
    defaults = automatic(layer) if issubclass(layer, AdaptiveNorm) else {}
    return partial(layer, **defaults)


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
        return NormWithActivation(layer, *after) if after else layer

    return build
