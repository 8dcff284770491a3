"""Modules that surgery swaps as one: norms of several levels, or with an activation inside."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..foreign_norms import FRAMEWORKS, LEVELED


@dataclass(frozen=True)
class Parts:
    """The norms of a module: one for each level of a pyramid, or the module itself.

    ``join`` makes a module of as many other norms.
    """

    norms: list[nn.Module]
    join: Callable[[list[nn.Module]], nn.Module]
    is_pyramid: bool = True


def parts_of(module: nn.Module) -> Parts:
    for framework in FRAMEWORKS.values():
        if levels := framework.levels(module):
            return Parts(levels, framework.join_levels)
    return Parts([module], lambda norms: norms[0], is_pyramid=False)


def is_named_as_pyramid(name: str) -> bool:
    """Return whether a norm of a state dict has a name of norms of several levels."""
    return any(re.fullmatch(pattern, name) for pattern in LEVELED)


def modules_after(norm: nn.Module) -> list[nn.Module]:
    """Return the modules that a norm runs after the normalization."""
    return [m for framework in FRAMEWORKS.values() for m in framework.modules_after(norm)]


def join_activation(norm: nn.Module, after: Iterable[nn.Module]) -> nn.Module | None:
    """Return a plain norm as a class that runs modules after it; None if it has no such class."""
    return _first(framework.join_activation(norm, after) for framework in FRAMEWORKS.values())


def as_replaced(norm: Any, path: str) -> nn.Module:
    """Return a plain norm as the framework's class that a layer had replaced; else the norm.

    Args:
        path: module and name of the class, "" if unknown.
    """
    made = _first(framework.as_replaced(norm, path) for framework in FRAMEWORKS.values())
    return norm if made is None else made


def _first(found: Iterator[nn.Module | None]) -> nn.Module | None:
    return next((module for module in found if module is not None), None)
