"""The primitive's passes over x by torch's own kernels, on the CPU and on CUDA.

They know two layouts. A contiguous x is N * C rows of L positions with one channel each, which is
how torch's kernels for group normalization are made to treat each instance by itself. Channels last
is N rows of L positions with C channels each. Either is seen as (rows, L, channels), and what there
is one of for each row and channel as (rows, 1, channels).

Maps are centered as torch's group normalization does it, by a shift of -scale * mean: at a mean of
a thousand deviations that costs 1e-4 of a deviation.

A pass made of several operations goes block by block, so that only the first of them waits for
memory, and the others find the block in the cache.
"""

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
from torch import Tensor

from .layouts import dense, is_channels_last
from .moments import coarsen, duplicate, pool

aten = torch.ops.aten

#: Bytes in a block: two of them fit into the last-level cache of a server.
BLOCK = 16 << 20

#: From so many positions on, kernels that start anew with each row are the faster ones.
LONG = 128

#: Positions that may be added one after the other, in float32: the error grows with their number.
SUMMED = 512


def forward(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~.kernels.Kernels`."""
    x, dtype = dense(_float(x)), x.dtype
    (n, c), last = x.shape[:2], _by_positions(x)
    if last:
        y = torch.empty_like(x)
        rows = _rows(x, last)
        mean, var = _moments_of_last(rows, num_groups)
        scale, shift = rescale(mean, var)
        scale = scale * duplicate((var + eps).rsqrt(), c)
        shift = torch.addcmul(shift, scale, duplicate(mean, c), value=-1)
        torch.addcmul(shift.unsqueeze(1), rows, scale.unsqueeze(1), out=_rows(y, last))
    else:
        length = x.shape[2:].numel()
        if c == 1:  # whose strides may look like those of channels last
            x = x.view(-1).view(x.shape)
        y, mean, rstd = torch.native_group_norm(x, None, None, n, c, length, num_groups, eps)
        var = rstd.pow(-2).sub_(eps)  # to float32's precision beside eps, as it is used
        scale, shift = rescale(mean, var)
        rows, column = y.view(n * c, length, 1), (n * c, 1, 1)
        columns = scale.reshape(column), shift.reshape(column)
        blocks = [(rows, *columns)] if length >= LONG else _blocks(rows, *columns)
        for part, a, b in blocks:
            _affine(part, a, b, out=part)
    return (y if y.dtype == dtype else y.to(dtype)), mean, var


def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`~.kernels.Kernels`."""
    x = dense(x)
    (n, c), last = x.shape[:2], _by_positions(x)
    rows, drows = _rows(x, last), _rows(dy, last)
    if not last:
        # Group normalization of one instance with N * C channels: their gradients are these sums.
        # Groups of one channel each it would treat one by one: it sees a single one instead, not
        # centered, and what it sums is centered here.
        single = mean.shape[1] == c
        num_channels, num_groups = n * c, 1 if single else mean.numel()
        ones = mean.new_ones(num_channels)
        _, dscale, dshift = aten.native_group_norm_backward(
            drows,
            rows,
            mean.new_zeros(1, 1) if single else mean.view(1, num_groups),
            ones[:1].view(1, 1) if single else rstd.view(1, num_groups),
            ones,
            1,
            num_channels,
            rows.shape[1],
            num_groups,
            [False, True, True],
        )
        dscale, dshift = dscale.view(n, c), dshift.view(n, c)
        if single:
            dscale = torch.addcmul(dscale, dshift, mean, value=-1).mul_(rstd)
        return dscale, dshift
    mean = duplicate(mean, c).unsqueeze(1)
    dscale, dshift = torch.zeros_like(mean), torch.zeros_like(mean)
    for dpart, part, center, a, b in _blocks(drows, rows, mean, dscale, dshift):
        a += (part - center).mul_(dpart).sum(1, keepdim=True)
        b += dpart.sum(1, keepdim=True)
    return dscale.squeeze(1) * duplicate(rstd, c), dshift.squeeze(1)


def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """See :class:`~.kernels.Kernels`."""
    x = dense(x)
    (n, c), num_groups, last = x.shape[:2], mean.shape[1], _by_positions(x)
    rows, drows = _rows(x, last), _rows(dy, last)
    out = torch.empty_like(rows)
    group_size = x.numel() // mean.numel()
    if last or group_size * rows.element_size() > BLOCK:
        column = (rows.shape[0], 1, rows.shape[2])
        center, slope, offset = (duplicate(t, c).view(column) for t in (mean, slope, offset))
        columns = center, slope, offset, scale.reshape(column)
        for to, part, dpart, mid, a, b, of_dy in _blocks(out, rows, drows, *columns):
            _affine(part, a, b, out=to, center=mid).addcmul_(dpart, of_dy)
    else:
        # The channels of a group share three of four coefficients: rows as long as a group.
        of_groups = (n * num_groups, c // num_groups, rows.shape[1])
        long_rows = (n * num_groups, group_size, 1)
        columns = (
            *(t.view(-1, 1, 1) for t in (mean, slope, offset)),
            scale.view(*of_groups[:2], 1),
        )
        tensors = (t.view(long_rows) for t in (out, rows, drows))
        for to, part, dpart, mid, a, b, of_dy in _blocks(*tensors, *columns):
            _affine(part, a, b, out=to, center=mid)
            of_channels = (to.shape[0], *of_groups[1:])
            to.view(of_channels).addcmul_(dpart.view(of_channels), of_dy)
    out = out if out.dtype == x.dtype else out.to(x.dtype)
    return out.view(x.movedim(1, -1).shape).movedim(-1, 1) if last else out.view(x.shape)


def runnable(*_) -> None:
    """See :class:`~.kernels.Kernels`."""


def _float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _by_positions(x: Tensor) -> bool:
    """Whether x, which is dense, is treated as channels last."""
    one_position = x.shape[2:].numel() == 1
    return (one_position or not x.is_contiguous()) and is_channels_last(x)


def _rows(x: Tensor, last: bool) -> Tensor:
    """x as (rows, L, channels), at least float32."""
    n, c = x.shape[:2]
    x = _float(x)
    if last:
        return x.movedim(1, -1).reshape(n, -1, c)
    return x.contiguous().view(n * c, -1, 1)


def _blocks(rows: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Parts of tensors (rows, L or 1, channels) that belong together, blocks of memory; all at once
    on CUDA.

    The last ones come first: they are what the pass before has left in the cache.
    """
    tensors = rows, *others
    num_rows, length, channels = rows.shape
    row_bytes = length * channels * rows.element_size()
    if rows.device.type != "cpu" or num_rows * row_bytes <= 2 * BLOCK:
        return [tensors]
    step = max(1, BLOCK // row_bytes)
    blocks = zip(*(t.split(step) for t in tensors), strict=True)
    if row_bytes > BLOCK:
        positions = -(-length * BLOCK // row_bytes)
        blocks = (part for row in blocks for part in _split_row(positions, row))
    return reversed(list(blocks))


def _split_row(positions: int, tensors: tuple[Tensor, ...]) -> Iterable[tuple[Tensor, ...]]:
    length = tensors[0].shape[1]
    parts = [t.split(positions, 1) if t.shape[1] == length else repeat(t) for t in tensors]
    return zip(*parts, strict=False)


def _affine(
    x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, center: Tensor | None = None
) -> Tensor:
    """scale * (x - center) + shift for a block; ``out`` may be x itself."""
    rows, length, channels = x.shape
    if channels == 1 and length >= LONG and x.device.type == "cpu":
        # Batch normalization in evaluation, of one instance whose channels are the rows.
        image, scale, none = (1, rows, length), scale.flatten(), scale.new_empty(0)
        zeros = torch.zeros_like(scale)
        torch.native_batch_norm(
            x.view(image),
            scale,
            shift.flatten(),
            running_mean=zeros if center is None else center.flatten(),
            running_var=zeros,
            training=False,
            momentum=0.0,
            eps=1.0,
            out=(out.view(image), none, none),
        )
        return out
    if center is not None:
        shift = torch.addcmul(shift, scale, center, value=-1)
    if channels > 1:
        return torch.addcmul(shift, x, scale, out=out)
    return torch.mul(x, scale, out=out).add_(shift)


def _moments_of_last(rows: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(N, G') moments of channels last, (N, L, C), in two passes.

    Not by torch's group normalization, which in this layout computes E[x^2] - E[x]^2.
    """
    n, length, c = rows.shape
    if length < LONG or rows.device.type != "cpu":
        mean, var = _moments_of_positions(rows)
    else:
        # torch's kernel adds one position after the other to one number a channel. Positions beside
        # each other, taken for ones with channels of their own, make several shorter sums.
        strands = 2 ** (length // SUMMED).bit_length()
        steps = length // strands
        bulk = steps * strands
        images = rows[:, :bulk].view(n, 1, steps, 1, strands * c).movedim(-1, 2)
        found = [aten.batch_norm_update_stats(image, None, None, 0.0) for image in images]
        stacked = (torch.stack(t).view(n, strands, c) for t in zip(*found, strict=True))
        mean, var = pool(*stacked, dim=1)
        if bulk < length:
            rest_mean, rest_var = _moments_of_positions(rows[:, bulk:])
            rest, between = 1 - bulk / length, rest_mean - mean
            var = var.lerp(rest_var, rest).addcmul_(between, between, value=rest * (1 - rest))
            mean = mean.add(between, alpha=rest)
    return coarsen(mean, var, num_groups)


def _moments_of_positions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) moments of (N, L, C)."""
    mean = rows.mean(1, keepdim=True)
    var = torch.zeros_like(mean)
    for part, center, total in _blocks(rows, mean, var):
        total += (part - center).square_().sum(1, keepdim=True)
    return mean.squeeze(1), var.squeeze(1) / rows.shape[1]
