"""The device of kernels' launches, and buffers on it."""

import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor

#: Whether Triton runs the kernels on the CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


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
