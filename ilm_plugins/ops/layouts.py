"""The two layouts that the kernels know, contiguous and channels last, of any dimensions."""

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of each position lie beside each other, and positions in a row."""
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor) -> Tensor:
    """x itself if it has one of the layouts; else a copy in the one that it resembles."""
    x = x.resolve_neg()
    if x.is_contiguous() or is_channels_last(x):
        return x
    if x.stride(1) == 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()


def laid_out(dy: Tensor, x: Tensor) -> Tensor:
    """dy with the layout of x."""
    dy = dy.resolve_neg()
    if x.is_contiguous():
        return dy.contiguous()
    return dy.movedim(1, -1).contiguous().movedim(-1, 1)
