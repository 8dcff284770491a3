"""Checks of the layers' options: an invalid one raises an OptionError that suggests a valid one.

``layer`` and ``option`` are names for the message.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import distributed

from ..errors import OptionError

#: Options that must divide the number of channels -> the most that "auto" stands for.
AUTO = {"num_groups": 32, "key_group_size": 16, "num_key_groups": 32, "reduction": 32}


def takes_options_of(base: type) -> Callable[[Callable], Callable]:
    """Return a decorator for a constructor that hands its ``**options`` to that of ``base``.

    It sets ``__signature__`` of the constructor, and returns the same function: the keyword-only
    options of ``base`` take the place of ``**options``. So each option is declared once, and
    ``inspect.signature`` and :func:`check_known` see all.
    """

    def decorate(init: Callable) -> Callable:
        own = inspect.signature(init)
        shown = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        inherited = inspect.signature(base.__init__).parameters.values()
        shown += [p for p in inherited if p.kind is p.KEYWORD_ONLY]
        init.__signature__ = own.replace(parameters=shown)
        return init

    return decorate


def check_known(layer: type, options: Mapping[str, Any], args: Iterable[Any] = ()) -> None:
    """Raise OptionError if a layer's constructor does not take all options.

    Unknown names are allowed if the constructor takes ``**options``.

    Args:
        layer: the class.
        options: the keyword arguments; only their names are checked.
        args: the positional arguments; an option that they already set is an error, too.
    """
    parameters = inspect.signature(layer.__init__).parameters
    for option, given in zip(list(parameters)[1:], args, strict=False):
        if option in options:
            raise OptionError(
                f"{layer.__name__}: {option}={options[option]!r}, but the model gives "
                f"{option}={given!r} itself; leave it out"
            )
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise OptionError(
                f"{layer.__name__}: unknown option {option!r}; the options are "
                + ", ".join(list(parameters)[1:])
            )


def _check(is_valid: bool, layer: str, option: str, value: Any, problem: str) -> None:
    """Raise OptionError, naming layer, option, value and problem, unless the value is valid."""
    if not is_valid:
        raise OptionError(f"{layer}: {option}={value!r} {problem}")


def check_choice(layer: str, option: str, value: Any, choices: Collection[Any]) -> None:
    """Raise OptionError, naming layer and option, unless ``value`` is one of ``choices``."""
    choices = list(choices)  # in a dict, an unhashable value could not be looked up
    listed = ", ".join(map(repr, choices))
    _check(value in choices, layer, option, value, f"is unknown; set it to one of {listed}")


def fit_width(layer: type, num_channels: int, **options: int | str) -> tuple[int, ...]:
    """Return the values of options that must divide the number of channels.

    "auto" becomes the greatest common divisor of the number of channels and the option's value in
    :data:`AUTO`.

    Args:
        layer: the class of the layer, for the message.
        num_channels: of the layer.
        options: their values by name, keys of :data:`AUTO`.

    Raises:
        OptionError: ``num_channels`` or a value is no positive integer, or a value does not divide
            ``num_channels``. The message suggests "auto", or a divisor that most widths have.
    """
    check_positive(layer.__name__, "num_channels", num_channels)
    to_fit = {o for o, value in options.items() if isinstance(value, str) and value == "auto"}
    values = options | {o: math.gcd(AUTO[o], num_channels) for o in to_fit}
    for option, value in values.items():
        if not _divides(value, num_channels):
            # Most networks have other widths, too, multiples of 32 or of 8.
            common = math.gcd(8 if num_channels % 32 else 32, num_channels)
            own = inspect.signature(layer.__init__).parameters.keys() - to_fit | {option}
            unfit = [o for o in values if o in own and not _divides(values[o], common)]
            to_auto = " and ".join(f'{o}="auto"' for o in unfit)
            to_common = " and ".join(f"{o}={math.gcd(AUTO[o], common)}" for o in unfit)
            raise OptionError(
                f"{layer.__name__}: {option}={value!r} does not divide "
                f"num_channels={num_channels}; set {to_auto} to follow each width, or {to_common} "
                f"for widths that are multiples of {common}"
            )
    return tuple(values.values())


def automatic(layer: type) -> dict[str, str]:
    """Return {option: "auto"} for all options of a layer that must divide its width."""
    return {o: "auto" for o in inspect.signature(layer.__init__).parameters if o in AUTO}


def _divides(value: Any, number: int) -> bool:
    """Return whether ``value`` is a positive integer that divides ``number``."""
    return _is_integer(value) and value >= 1 and number % value == 0


def check_positive(layer: str, option: str, value: int) -> None:
    """Raise OptionError, naming layer and option, unless ``value`` is a positive integer."""
    is_positive = _is_integer(value) and value >= 1
    _check(is_positive, layer, option, value, "is not a positive integer; set one")


def check_eps(layer: str, eps: float) -> None:
    """Raise OptionError unless ``eps`` is above 0, also in float32, and at most 1."""
    is_valid = _is_number(eps) and torch.finfo(torch.float32).tiny <= eps <= 1
    problem = "is not a number above 0 (in float32) and at most 1; the default is 1e-5"
    _check(is_valid, layer, "eps", eps, problem)


def check_dtype(layer: str, dtype: torch.dtype | None) -> None:
    """Raise OptionError unless ``dtype`` is None or one of torch's, not the name of one."""
    is_dtype = dtype is None or isinstance(dtype, torch.dtype)
    problem = "is not a torch.dtype; leave it out, and convert the model, as by model.half()"
    _check(is_dtype, layer, "dtype", dtype, problem)


def check_flag(layer: str, option: str, value: bool) -> None:
    """Raise OptionError unless ``value`` is a bool; the string "False" would count as True."""
    is_bool = isinstance(value, bool)
    _check(is_bool, layer, option, value, "is unknown; set it to one of True, False")


def check_sync(layer: str, sync: Any) -> None:
    """Raise OptionError unless ``sync`` is a bool or a process group of torch.distributed."""
    is_valid = isinstance(sync, bool | distributed.ProcessGroup)
    _check(is_valid, layer, "sync", sync, "is unknown; set it to True, False or a process group")


def check_momentum(layer: str, momentum: float) -> None:
    """Raise OptionError unless ``momentum`` is a number from 0 to 1."""
    is_valid = _is_number(momentum) and 0 <= momentum <= 1
    problem = "is not between 0 and 1; set the weight of the newest batch in the running statistics"
    _check(is_valid, layer, "momentum", momentum, f"{problem}, 0.1 by default")


def check_radius(layer: str, radius: float) -> None:
    """Raise OptionError unless ``radius`` is a number from 0 to 1."""
    is_valid = _is_number(radius) and 0 <= radius <= 1
    problem = "is not between 0 and 1; set the fraction of iterations that are done"
    _check(is_valid, layer, "radius", radius, problem)


def check_normalizers(layer: str, normalizers: Any, choices: Collection[str]) -> None:
    """Raise OptionError unless ``normalizers`` is a list or tuple of distinct ``choices``.

    It must have at least one.
    """
    is_list = isinstance(normalizers, list | tuple) and len(normalizers) > 0
    listed = ", ".join(map(repr, choices))
    problem = f"is empty, or not a tuple or list; give at least one of {listed}"
    _check(is_list, layer, "normalizers", normalizers, problem)
    for normalizer in normalizers:
        check_choice(layer, "normalizers", normalizer, choices)
    are_distinct = len(set(normalizers)) == len(normalizers)
    _check(are_distinct, layer, "normalizers", normalizers, "repeats one; list each at most once")


def check_activations(layer: str, activations: Any, choices: Collection[str]) -> None:
    """Raise OptionError unless ``activations`` is a list or tuple of two of ``choices``."""
    is_pair = isinstance(activations, list | tuple) and len(activations) == 2
    problem = "is not a pair; give two names, for (mean, variance)"
    _check(is_pair, layer, "activations", activations, problem)
    for activation in activations:
        check_choice(layer, "activations", activation, choices)


def _is_number(value: Any) -> bool:
    """Return whether ``value`` is a real number, but no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    """Return whether ``value`` is an integer, but no bool."""
    return isinstance(value, numbers.Integral) and _is_number(value)
