"""Kernel launches, and the counters by which programs find out which one finishes last."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

#: The most counters that one launch uses.
COUNTERS = 8192


class Launch:
    """A kernel with its grid, its last arguments and its options, which are the same in each call.

    The first call compiles the kernel, or finds it among those that Triton has compiled. Further
    calls skip Triton's look-ups, so each call must pass the same types, 16-byte alignment, and None
    in the same places.
    """

    __slots__ = ("arguments", "grid", "kernel", "options", "runner")

    def __init__(self, kernel: Any, programs: int, arguments: tuple, **options: int) -> None:
        self.kernel, self.grid, self.arguments = kernel, (programs, 1, 1), arguments
        self.options = options
        self.runner: Callable | None = None

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        if self.runner is not None:
            self.runner(*arguments, *self.arguments, stream=stream)
            return
        compiled = self.kernel[self.grid](*arguments, *self.arguments, **self.options)
        if isinstance(compiled, triton.compiler.CompiledKernel):
            self.runner = compiled[self.grid]


def current_stream(index: int) -> int | None:
    """Return the number of the current stream of a GPU by its index; None for the interpreter."""
    return None if index < 0 else triton.runtime.driver.active.get_current_stream(index)


def counters(index: int, stream: int | None) -> Tensor:
    """Return zeroed counters for one stream; each launch resets those that it uses."""
    # A captured graph may be replayed on any stream, at the same time as other launches.
    if index >= 0 and torch.cuda.is_current_stream_capturing():
        return _zeros(index)
    return _counters(index, stream)


@functools.cache
def _counters(index: int, stream: int | None) -> Tensor:
    return _zeros(index)


def _zeros(index: int) -> Tensor:
    device = torch.device("cuda", index) if index >= 0 else "cpu"
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)
