"""The two memory layouts that the kernels take, with any number of spatial dimensions.

They are contiguous, (N, C, *), and channels last, which is contiguous as (N, *, C).
"""

from torch import Tensor


def dense(x: Tensor) -> Tensor:
    """Return x if it is contiguous or channels last, else a copy in the more similar layout."""
    x = x.resolve_neg()
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    if x.stride(1) == 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def in_layout_of(x: Tensor, dy: Tensor) -> Tensor:
    """Return dy, a copy if needed, in the layout of x, which :func:`dense` has returned."""
    dy = dy.resolve_neg()
    if x.is_contiguous():
        return dy.contiguous()
    return dy.movedim(1, -1).contiguous().movedim(-1, 1)
