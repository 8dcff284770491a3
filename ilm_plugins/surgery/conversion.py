"""The conversion that a caller asks for: which layer replaces which plain norm."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..layers import NORMS, OptionError
from ..layers.base import AdaptiveNorm
from ..layers.options import check_choice, check_known, parameters_of
from .norms import KEYS, LAYERS, kind_of
from .plain_norms import PlainNorm, exact_plain_norm_of, plain_norm_of
from .rules import Refused, has_rule, hint, replaced_by


class Conversion(NamedTuple):
    """Plain norms to replace by a layer, which takes some options from each norm."""

    layer: type[nn.Module]
    plain_norm: PlainNorm
    of_norm: list[str]
    options: dict[str, Any]


def conversion_to(to: str, replacing: str | None, options: Mapping[str, Any]) -> Conversion:
    """Return the conversion to a layer; OptionError if an argument is unknown."""
    keys = [key for key, layer in NORMS.items() if layer in LAYERS]
    if to not in keys:
        raise OptionError(f"{to!r} is no norm to convert to; give one of {', '.join(keys)}")
    layer = NORMS[to]
    choices = {plain_norm.name: plain_norm for plain_norm in replaced_by(layer)}
    name = replacing or next(iter(choices))
    check_choice("convert", "replacing", name, choices)
    plain_norm = choices[name]
    parameters = parameters_of(layer)
    check_known(layer.__name__, options, parameters)
    check_absent(options, "num_channels", "device", "dtype")
    if options.get("init", "identity") != "identity":
        raise OptionError(f"init={options['init']!r}: a converted layer has init='identity'")
    fixed = {"init": "identity"} if "init" in parameters else {}
    of_norm = [o for o in plain_norm.options if o in parameters]
    return Conversion(layer, plain_norm, of_norm, {**options, **fixed})


def check_absent(options: Mapping, *of_norm: str) -> None:
    """Raise OptionError for options that each norm determines."""
    if given := ", ".join(option for option in of_norm if option in options):
        raise OptionError(f"{given} comes from each norm; leave it out")


def check_replaces(asked: Conversion, module: nn.Module, types: frozenset[type] | None) -> None:
    """Raise Refused unless a module is exactly a plain norm, or a layer with a rule."""
    cls, layer, plain_norm = type(module), asked.layer, asked.plain_norm
    name, derived_from = cls.__name__, plain_norm_of(cls)
    if isinstance(module, AdaptiveNorm):
        is_asked = types is None or cls in types
        if not is_asked or not has_rule(kind_of(module), layer):
            raise Refused(f"is {name}, already a layer of this package")
        return
    reason = derived_from.refusal(module, layer) if derived_from else None
    if derived_from is not plain_norm:
        advice = f"; {reason}" if reason else hint(derived_from, layer)
        raise Refused(f"{name}, but {KEYS[layer]} replaces {plain_norm.title}{advice}")
    if types is not None and cls not in types:
        raise Refused(f"{name}, which is not among types")
    if not types and exact_plain_norm_of(cls) is None:
        raise Refused(
            f"{name} derives from {plain_norm.title} and may compute something else; if it does "
            "not, name it in types"
        )
    if reason:
        raise Refused(reason)
