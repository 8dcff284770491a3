"""The memory layouts that the kernels take: contiguous, and channels last, of any dimensions."""

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x is contiguous as (N, *, C)."""
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself if it has one of the two layouts, else a copy in the more similar one."""
    x = x.resolve_neg()
    if x.is_contiguous() or is_channels_last(x):
        return x
    if x.stride(1) == 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def laid_out(dy: Tensor, x: Tensor) -> Tensor:
    """dy, copied if need be, with the layout of x, which has one of the two."""
    dy = dy.resolve_neg()
    if x.is_contiguous():
        return dy.contiguous()
    return dy.movedim(1, -1).contiguous().movedim(-1, 1)
