"""Launches of kernels, on x's device or recorded for compiling ahead, and their buffers."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Whether Triton runs the kernels on the CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Launch(NamedTuple):
    """A kernel's launch; ``kernel.warmup(*args, grid=grid, **options)`` compiles it."""

    kernel: Any
    grid: tuple[int]
    args: tuple
    options: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Collect launches instead of making them, to compile ahead; tensors may be on "meta"."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


def launch(kernel, programs: int, *args, **options) -> None:
    """Launch a kernel with so many programs, or record the launch."""
    if _recorded is None:
        kernel[(programs,)](*args, **options)
    else:
        _recorded.append(Launch(kernel, (programs,), args, options))


def on_device(function: Callable) -> Callable:
    """Decorate ``function`` to run with its first argument's device as the current one."""

    @functools.wraps(function)
    def on_device(x: Tensor, *args):
        with torch.cuda.device_of(x):
            return function(x, *args)

    return on_device


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device."""
    if device.type != "cuda":
        return 132  # an H200's, for the interpreter and for compiling ahead
    return torch.cuda.get_device_properties(device).multi_processor_count


def new(x: Tensor, count: int, columns: int) -> tuple[Tensor, ...]:
    """Return ``count`` uninitialized tensors (N, columns) in float32, with N of x."""
    return x.new_empty((count, len(x), columns), dtype=torch.float32).unbind()
