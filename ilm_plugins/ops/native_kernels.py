"""The primitive's passes over x by torch's own kernels, on the CPU and on CUDA.

They know two layouts. A contiguous x is N * C rows of L positions with one channel each, which is
how torch's kernels for group normalization are made to treat each instance by itself. Channels last
is N rows of L positions with C channels each. Either is seen as (rows, L, channels), and what there
is one of for each row and channel as (rows, 1, channels).

A pass made of several operations goes block by block, so that only the first of them waits for
memory, and the others find the block in the cache.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .moments import coarsen, duplicate

aten = torch.ops.aten

#: Bytes in a block: a few of them fit into a last-level cache.
BLOCK = 8 << 20

#: From so many positions on, kernels that start anew with each row are the faster ones.
LONG = 128


def forward(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """y, with the dtype and the layout of x, and the moments, (N, G') both, at least float32.

    Args:
        x: (N, C, *), not empty.
        eps: added to the variance for the standardization.
        rescale: (N, G') moments to (N, C) scale and shift of the standardized x.
    """
    (n, c), last = x.shape[:2], _is_channels_last(x)
    x, dtype = x.to(torch.promote_types(x.dtype, torch.float32)), x.dtype
    if last:
        rows, y = _rows(x, last), torch.empty_like(x)
        mean, var = _moments_of_last(rows, num_groups)
        scale, shift = rescale(mean, var)
        scale = scale * duplicate((var + eps).rsqrt(), c)
        shift = torch.addcmul(shift, scale, duplicate(mean, c), value=-1)
        torch.addcmul(shift.unsqueeze(1), rows, scale.unsqueeze(1), out=_rows(y, last))
    else:
        x, length = x.contiguous(), x.shape[2:].numel()
        y, mean, rstd = torch.native_group_norm(x, None, None, n, c, length, num_groups, eps)
        var = rstd.pow(-2).sub_(eps)
        scale, shift = rescale(mean, var)
        rows, scale, shift = _rows(y, last), scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)
        for block in _blocks(rows):
            row = block[0]
            _affine(rows[block], scale[row], shift[row], out=rows[block])
    return y.to(dtype), mean, var


def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over the map of dy * (x - mean) * rstd and of dy, (N, C) both.

    Args:
        dy, x: (N, C, *).
        mean, rstd: (N, G').
    """
    (n, c), last = x.shape[:2], _is_channels_last(x)
    rows, drows = _rows(x, last), _rows(dy, last)
    if not last:
        # Group normalization of one instance with N * C channels: their gradients are these sums.
        num_channels, length, num_groups = n * c, rows.shape[1], mean.numel()
        _, dscale, dshift = aten.native_group_norm_backward(
            drows,
            rows,
            mean.view(1, num_groups),
            rstd.view(1, num_groups),
            mean.new_empty(num_channels),  # of weights, which do not matter here
            1,
            num_channels,
            length,
            num_groups,
            [False, True, True],
        )
        return dscale.view(n, c), dshift.view(n, c)
    mean = duplicate(mean, c).unsqueeze(1)
    dscale, dshift = torch.zeros_like(mean), torch.zeros_like(mean)
    for block in _blocks(rows):
        row = block[0]
        dshift[row] += drows[block].sum(1, keepdim=True)
        product = (rows[block] - mean[row]).mul_(drows[block])
        dscale[row] += product.sum(1, keepdim=True)
    return dscale.squeeze(1) * duplicate(rstd, c), dshift.squeeze(1)


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """scale * dy + slope * (x - mean) + offset, with the dtype and the layout of x.

    Args:
        dy, x: (N, C, *).
        mean, slope, offset: (N, G').
        scale: (N, C).
    """
    c, last = x.shape[1], _is_channels_last(x)
    rows, drows = _rows(x, last), _rows(dy, last)
    out = torch.empty_like(rows)
    column = (rows.shape[0], 1, rows.shape[2])
    offset = torch.addcmul(offset, slope, mean, value=-1)
    slope, offset = (duplicate(t, c).view(column) for t in (slope, offset))
    scale = scale.reshape(column)
    for block in _blocks(rows):
        row = block[0]
        part = _affine(rows[block], slope[row], offset[row], out=out[block])
        part.addcmul_(drows[block], scale[row])
    out = out.to(x.dtype)
    return out.view(x.movedim(1, -1).shape).movedim(-1, 1) if last else out.view(x.shape)


def _is_channels_last(x: Tensor) -> bool:
    one_position = x.shape[2:].numel() == 1
    return (one_position or not x.is_contiguous()) and x.movedim(1, -1).is_contiguous()


def _rows(x: Tensor, last: bool) -> Tensor:
    """x as (rows, L, channels), at least float32."""
    n, c = x.shape[:2]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if last:
        return x.movedim(1, -1).reshape(n, -1, c)
    return x.contiguous().view(n * c, -1, 1)


def _blocks(rows: Tensor) -> list[tuple[slice, slice]]:
    """Indices that cover (rows, L, channels) in blocks of memory; one alone on CUDA.

    The last ones come first: they are what the pass before has left in the cache.
    """
    num_rows, length, channels = rows.shape
    if rows.device.type != "cpu":
        return [(slice(None), slice(None))]
    positions = max(1, BLOCK // (channels * rows.element_size()))
    if length <= positions:
        step = positions // length
        blocks = [(slice(i, i + step), slice(None)) for i in range(0, num_rows, step)]
    else:
        blocks = [
            (slice(row, row + 1), slice(i, i + positions))
            for row in range(num_rows)
            for i in range(0, length, positions)
        ]
    return blocks[::-1]


def _affine(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """scale * x + shift for a block; ``out`` may be x itself."""
    rows, length, channels = x.shape
    if channels > 1:
        return torch.addcmul(shift, x, scale, out=out)
    if length < LONG or x.device.type != "cpu":
        return torch.mul(x, scale, out=out).add_(shift)
    # Batch normalization in evaluation, of one instance whose channels are the rows.
    image = (1, rows, length)
    scale, shift = scale.flatten(), shift.flatten()
    zeros, ones, none = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
    aten.native_batch_norm.out(
        x.view(image),
        scale,
        shift,
        zeros,
        ones,
        False,
        0.0,
        0.0,
        out=out.view(image),
        save_mean=none,
        save_invstd=none,
    )
    return out


def _moments_of_last(rows: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(N, G') moments of channels last, (N, L, C), in two passes.

    Not by torch's group normalization, which in this layout computes E[x^2] - E[x]^2.
    """
    n, length, c = rows.shape
    if length < LONG or rows.device.type != "cpu":
        mean = rows.mean(1, keepdim=True)
        var = torch.zeros_like(mean)
        for block in _blocks(rows):
            row = block[0]
            var[row] += (rows[block] - mean[row]).square_().sum(1, keepdim=True)
        mean, var = mean.squeeze(1), var.squeeze(1) / length
    else:
        images = rows.view(n, 1, length, 1, c).movedim(-1, 2)
        found = [aten.batch_norm_update_stats(image, None, None, 0.0) for image in images]
        mean, var = (torch.stack(t) for t in zip(*found, strict=True))
    return coarsen(mean, var, num_groups)
