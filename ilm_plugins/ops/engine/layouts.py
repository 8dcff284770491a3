"""The two memory layouts that the kernels take, with any number of spatial dimensions.

They are contiguous, (N, C, *), and channels last, which is contiguous as (N, *, C).
"""

import torch
from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Return whether kernels can read x as it is: contiguous, or channels last."""
    return (x.is_contiguous() or is_channels_last(x)) and not x.is_neg()


def is_channels_last(x: Tensor) -> bool:
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def becomes_contiguous(x: Tensor) -> bool:
    """Return whether :func:`dense` returns x in the contiguous layout, else in channels last."""
    return x.is_contiguous() or (x.stride(1) != 1 and not is_channels_last(x))


def dense(x: Tensor) -> Tensor:
    """Return x if it is contiguous or channels last, else a copy in the more similar layout."""
    x = x.resolve_neg()
    return x if x.is_contiguous() else in_layout(x, becomes_contiguous(x))


def in_layout(x: Tensor, is_contiguous: bool) -> Tensor:
    """Return x, a copy if needed, contiguous or in channels last."""
    if is_contiguous:
        return x.contiguous()
    if is_channels_last(x):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
