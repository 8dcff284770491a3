"""The device of kernels' launches, the maps that they read, and sizes."""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import becomes_contiguous, is_dense

#: Whether Triton runs the kernels on the CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# Triton's own functions for kernels take microseconds on the host.


def padded(size: int) -> int:
    """Return the next power of two."""
    return 1 << (size - 1).bit_length()


def divide_up(size: int, by: int) -> int:
    return -(-size // by)


def on_device(function: Callable) -> Callable:
    """Decorate ``function`` to run with its first argument's device as the current one."""

    @functools.wraps(function)
    def on_device(x: Tensor, *args):
        with torch.cuda.device_of(x):
            return function(x, *args)

    return on_device


@triton.jit
def _trial_kernel(ptr):
    tl.store(ptr, 1.0)


@functools.cache
def launch_problem(device: torch.device) -> str | None:
    """Return why Triton cannot compile or launch a kernel on a device; None if it can."""
    memory = torch.empty(1, device=device)
    try:
        with torch.cuda.device_of(memory):
            _trial_kernel[(1,)](memory)
    except Exception as error:  # of Triton, of a compiler, or of the driver
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {reason}"
    return None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # an H200's, for the interpreter and for compiling ahead
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


class Map(NamedTuple):
    """What a launch depends on of maps (N, C, *) of one shape, dtype, layout and device."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    is_contiguous: bool  #: else channels last
    is_aligned: bool  #: whether all begin at multiples of 16 bytes

    @classmethod
    def of(cls, x: Tensor, *others: Tensor) -> "Map":
        """Return the map of tensors that are, or will be made, :func:`~..layouts.dense`."""
        is_contiguous, is_aligned = becomes_contiguous(x), True
        for tensor in (x, *others):
            is_aligned &= not tensor.data_ptr() & 15 or not is_dense(tensor)
        return cls(x.shape, x.dtype, x.device, is_contiguous, is_aligned)

    def vector(self, row: int) -> int:
        """Return how many elements, at most 16 bytes, are aligned in rows of ``row`` elements."""
        if not self.is_aligned:
            return 1
        bits = 16 | row * self.dtype.itemsize
        return (bits & -bits) // self.dtype.itemsize
