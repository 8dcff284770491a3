"""Checks of the layers' options, and "auto"."""

import inspect
import math
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..errors import OptionError


def parameters_of(layer: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class's constructor, ``self`` first."""
    # mypy takes a class for an object here, of which a subclass could change the constructor.
    return inspect.signature(layer.__init__).parameters  # type: ignore[misc]


def check_known(
    layer: str, options: Iterable[str], parameters: Mapping[str, inspect.Parameter]
) -> None:
    unknown = [option for option in options if option not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = ", ".join(list(parameters)[1:])
        raise OptionError(f"{layer}: unknown option {unknown[0]!r}; the options are {known}")


def check_choice(layer: str, option: str, value: Any, choices: Collection[Any]) -> None:
    if value not in list(choices):  # in a dict, an unhashable value could not be looked up
        listed = ", ".join(map(repr, choices))
        raise OptionError(f"{layer}: {option}={value!r} is unknown; set it to one of {listed}")


# These checks return Python's numbers, also for NumPy's, which torch.compile cannot compare.


def check_positive(layer: str, option: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or not 1 <= int(value) < 2**31:
        raise OptionError(
            f"{layer}: {option}={value!r} is not a positive integer below 2**31; set one"
        )
    return int(value)


def check_eps(layer: str, eps: float) -> float:
    if not isinstance(eps, numbers.Real) or not 0 < eps <= 1:
        raise OptionError(
            f"{layer}: eps={eps!r} is no number above 0 and at most 1; the default is 1e-5"
        )
    return float(eps)


def check_fraction(layer: str, option: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise OptionError(f"{layer}: {option}={value!r} is no number between 0 and 1; give one")
    return float(value)


def fit_width(layer: type[Any], num_channels: int, **options: int | str) -> tuple[int, ...]:
    """Return options that must divide the number of channels, with numbers in place of "auto"."""
    check_positive(layer.__name__, "num_channels", num_channels)
    fitting: list[int] = []
    for option, value in options.items():
        if isinstance(value, str) and value == "auto":
            value = math.gcd(layer.fits_width[option], num_channels)
        if not isinstance(value, numbers.Integral):
            raise OptionError(
                f"{layer.__name__}: {option}={value!r} is a {type(value).__name__}; set an "
                f'integer, or {option}="auto"'
            )
        if int(value) < 1 or num_channels % int(value):
            # Most networks have other widths, too, multiples of 32 or of 8.
            common = math.gcd(8 if num_channels % 32 else 32, num_channels)
            raise OptionError(
                f"{layer.__name__}: {option}={value!r} does not divide "
                f'num_channels={num_channels}; set {option}="auto" to follow each width, or '
                f"{option}={math.gcd(layer.fits_width[option], common)} for widths that are "
                f"multiples of {common}"
            )
        fitting.append(int(value))
    return tuple(fitting)
