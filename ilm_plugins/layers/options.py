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


def check(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)


def check_known(
    layer: str, options: Iterable[str], parameters: Mapping[str, inspect.Parameter]
) -> None:
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = ", ".join(list(parameters)[1:])
    for option in options:
        check(
            takes_any or option in parameters,
            f"{layer}: unknown option {option!r}; the options are {known}",
        )


def check_choice(layer: str, option: str, value: Any, choices: Collection[Any]) -> None:
    choices = list(choices)  # in a dict, an unhashable value could not be looked up
    listed = ", ".join(map(repr, choices))
    check(value in choices, f"{layer}: {option}={value!r} is unknown; set it to one of {listed}")


# These checks return Python's numbers, also for NumPy's, which torch.compile cannot compare.


def check_positive(layer: str, option: str, value: Any) -> int:
    is_positive = isinstance(value, numbers.Integral) and 1 <= int(value) < 2**31
    check(
        is_positive, f"{layer}: {option}={value!r} is not a positive integer below 2**31; set one"
    )
    return int(value)


def check_eps(layer: str, eps: float) -> float:
    is_valid = isinstance(eps, numbers.Real) and 0 < eps <= 1
    check(is_valid, f"{layer}: eps={eps!r} is no number above 0 and at most 1; the default is 1e-5")
    return float(eps)


def check_fraction(layer: str, option: str, value: float) -> float:
    is_valid = isinstance(value, numbers.Real) and 0 <= value <= 1
    check(is_valid, f"{layer}: {option}={value!r} is no number between 0 and 1; give one")
    return float(value)


def fit_width(layer: type[Any], num_channels: int, **options: int | str) -> tuple[int, ...]:
    """Return options that must divide the number of channels, with numbers in place of "auto"."""
    check_positive(layer.__name__, "num_channels", num_channels)
    fitting = []
    for option, value in options.items():
        if isinstance(value, str) and value == "auto":
            value = math.gcd(layer.fits_width[option], num_channels)
        check(
            isinstance(value, numbers.Integral),
            f"{layer.__name__}: {option}={value!r} is a {type(value).__name__}; set an integer, or "
            f'{option}="auto"',
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
