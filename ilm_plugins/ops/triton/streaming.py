"""The streaming kernels, for maps of any size: moments, affine map, sums, and dx."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .devices import divide_up, multiprocessors, new, padded
from .vectors import divide, finite, load

# These sizes are fixed, not tuned by timing at a first call. A tile of 4096 elements on 8 warps
# gives each thread 16, in two to four loads of 16 bytes, and leaves registers for three programs on
# each multiprocessor (`maxnreg`, without which ptxas may spill some to fit four): some 24 KB in
# flight there, about as much as an H200's memory needs. Loads of single elements, as of 7x7
# positions, take more registers for addresses: a tile has half as many. Channels are split until
# there are 8 programs for each multiprocessor, but a split has two tiles or more.
TILE = 4096
PROGRAMS = 8

#: Channels of a tile in channels last: a cache line of half floats.
CHANNELS = 64


class Shape(NamedTuple):
    """The compile-time constants that describe a map and its tiles."""

    vector: int  #: elements that are loaded at once; see find_vector
    channels_last: bool
    block_c: int
    block_l: int


@triton.jit
def _extent(rows, chunks, SHAPE: tl.constexpr):
    """Return the channels and positions of a map of ``rows``, with ``chunks`` vectors in each.

    A row's elements are consecutive: a channel's positions; in channels last a position's channels.
    """
    if SHAPE.channels_last:
        return chunks * SHAPE.vector, rows
    else:
        return rows, chunks * SHAPE.vector


@triton.jit
def _place(program, channels, length, splits, split_length, SHAPE: tl.constexpr):
    """Return a program's instance, channels (BLOCK_C), first position and first offset (int64)."""
    blocks = (channels + SHAPE.block_c - 1) // SHAPE.block_c
    if SHAPE.channels_last:
        block, split = program % blocks, program // blocks % splits
    else:
        block, split = program // splits % blocks, program % splits
    n = (program // (blocks * splits)).to(tl.int64)
    channel = block * SHAPE.block_c
    position = split * split_length
    start = n * channels * length
    if SHAPE.channels_last:
        start += position.to(tl.int64) * channels + channel
    else:
        start += channel.to(tl.int64) * length + position
    return n, channel + tl.arange(0, SHAPE.block_c), position, start


@triton.jit
def tile_offsets(channels, length, SHAPE: tl.constexpr):
    """Return the offsets (BLOCK_C, BLOCK_L) of a tile's elements from its first element."""
    c = tl.arange(0, SHAPE.block_c)[:, None]
    p = tl.arange(0, SHAPE.block_l)[None, :]
    return p * channels + c if SHAPE.channels_last else c * length + p


@triton.jit
def _inside(c, position, channels, length, SHAPE: tl.constexpr):
    return (c < channels)[:, None] & (position + tl.arange(0, SHAPE.block_l) < length)[None, :]


@triton.jit(do_not_specialize=["rows", "chunks", "splits", "tiles"])
def _moments_kernel(x_ptr, mean_ptr, var_ptr, rows, chunks, splits, tiles, SHAPE: tl.constexpr):
    """Compute the moments (N, C, splits) of each split, by Welford's recurrence in each lane."""
    channels, length = _extent(rows, chunks, SHAPE)
    split_length = tiles * SHAPE.block_l
    n, c, begin, start = _place(tl.program_id(0), channels, length, splits, split_length, SHAPE)
    offsets = tile_offsets(channels, length, SHAPE)
    end = tl.minimum(begin + split_length, length)
    step = SHAPE.block_l * channels if SHAPE.channels_last else SHAPE.block_l
    x_ptr += start

    mean = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    square = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    count = 0.0
    for position in tl.range(begin, end, SHAPE.block_l, loop_unroll_factor=2):
        inside = _inside(c, position, channels, length, SHAPE)
        x = load(x_ptr, offsets, inside)
        count += 1.0
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / count)
        square += delta * (x - mean)
        x_ptr += step

    size = end - begin
    lane = tl.arange(0, SHAPE.block_l)
    weight = ((size - lane + SHAPE.block_l - 1) // SHAPE.block_l).to(tl.float32)[None, :]
    pooled = divide(tl.sum(weight * mean, axis=1), size)
    offset = mean - pooled[:, None]
    var = tl.sum(square + weight * offset * offset, axis=1) / size
    out = (n * channels + c) * splits + begin // split_length
    tl.store(mean_ptr + out, pooled, mask=c < channels)
    tl.store(var_ptr + out, finite(var), mask=c < channels)


@triton.jit
def _update_running(ptr, row, exists, pooled, momentum):
    old = load(ptr, row, exists)
    new = tl.where(momentum == 1, pooled, old + momentum * (pooled - old))
    tl.store(ptr + row, tl.where(momentum == 0, old, new), mask=exists)


@triton.jit(do_not_specialize=["rows", "run", "splits", "split", "length"])
def pool_kernel(
    mean_ptr, var_ptr, pooled_mean_ptr, pooled_var_ptr, running_mean_ptr, running_var_ptr,
    rows, run, row_step, step, splits, split, length, count, momentum, unbias,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool a run of moments in each row: total variance; update the running statistics."""
    # A group's splits are a run; the last split of a channel has the remainder of `length`.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    exists = row < rows
    mean_ptr += row.to(tl.int64)[:, None] * row_step
    var_ptr += row.to(tl.int64)[:, None] * row_step
    i = tl.arange(0, BLOCK)[None, :]
    pooled = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, run, BLOCK):
        inside = exists[:, None] & (first + i < run)
        weight = tl.minimum(split, length - (first + i) % splits * split).to(tl.float32)
        mean = load(mean_ptr, (first + i).to(tl.int64) * step, inside)
        pooled += tl.sum(weight * mean, axis=1)
    pooled = divide(pooled, count)
    pooled_var = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, run, BLOCK):
        inside = exists[:, None] & (first + i < run)
        weight = tl.minimum(split, length - (first + i) % splits * split).to(tl.float32)
        at = (first + i).to(tl.int64) * step
        offset = load(mean_ptr, at, inside) - pooled[:, None]
        var = load(var_ptr, at, inside) + offset * offset
        pooled_var += tl.sum(tl.where(inside, weight * var, 0.0), axis=1)
    pooled_var = finite(pooled_var / count)
    tl.store(pooled_mean_ptr + row, pooled, mask=exists)
    tl.store(pooled_var_ptr + row, pooled_var, mask=exists)
    if running_mean_ptr is not None:
        _update_running(running_mean_ptr, row, exists, pooled, momentum)
        _update_running(running_var_ptr, row, exists, pooled_var * unbias, momentum)


@triton.jit
def _tile(channels, length, group_size, SHAPE: tl.constexpr):
    """Return a tile's first offset, offsets, mask; indices in (N, G') and in (N, C), mask."""
    tiles = (length + SHAPE.block_l - 1) // SHAPE.block_l
    # From the last tile on, which may still be in the cache from the kernel before.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, position, start = _place(program, channels, length, tiles, SHAPE.block_l, SHAPE)
    inside = _inside(c, position, channels, length, SHAPE)
    group = n * (channels // group_size) + c // group_size
    offsets = tile_offsets(channels, length, SHAPE)
    return start, offsets, inside, group, n * channels + c, c < channels


@triton.jit
def _column(ptr, at, exists):
    return load(ptr, at, exists)[:, None]


@triton.jit(do_not_specialize=["rows", "chunks", "group_size"])
def _affine_kernel(
    x_ptr, y_ptr, mean_ptr, scale_ptr, shift_ptr,
    rows, chunks, group_size, SHAPE: tl.constexpr,
):  # fmt: skip
    """y = scale * (x - mean) + shift."""
    channels, length = _extent(rows, chunks, SHAPE)
    start, offsets, inside, group, c, exists = _tile(channels, length, group_size, SHAPE)
    x = load(x_ptr + start, offsets, inside)
    mean = _column(mean_ptr, group, exists)
    y = _column(scale_ptr, c, exists) * (x - mean) + _column(shift_ptr, c, exists)
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "chunks", "group_size", "splits", "tiles"])
def _sums_kernel(
    dy_ptr, x_ptr, mean_ptr, d_scale_ptr, d_shift_ptr,
    rows, chunks, group_size, splits, tiles, SHAPE: tl.constexpr,
):  # fmt: skip
    """Sum dy * (x - mean) and dy over each split: (N, C, splits) each."""
    channels, length = _extent(rows, chunks, SHAPE)
    split_length = tiles * SHAPE.block_l
    n, c, begin, start = _place(tl.program_id(0), channels, length, splits, split_length, SHAPE)
    offsets = tile_offsets(channels, length, SHAPE)
    end = tl.minimum(begin + split_length, length)
    step = SHAPE.block_l * channels if SHAPE.channels_last else SHAPE.block_l
    group = n * (channels // group_size) + c // group_size
    mean = _column(mean_ptr, group, c < channels)
    dy_ptr += start
    x_ptr += start

    d_scale = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    d_shift = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    UNROLL: tl.constexpr = 2 if SHAPE.vector >= 4 else 1
    for position in tl.range(begin, end, SHAPE.block_l, loop_unroll_factor=UNROLL):
        inside = _inside(c, position, channels, length, SHAPE)
        dy = load(dy_ptr, offsets, inside)
        x = load(x_ptr, offsets, inside)
        d_scale += dy * (x - mean)
        d_shift += dy
        dy_ptr += step
        x_ptr += step

    out = (n * channels + c) * splits + begin // split_length
    tl.store(d_scale_ptr + out, tl.sum(d_scale, axis=1), mask=c < channels)
    tl.store(d_shift_ptr + out, tl.sum(d_shift, axis=1), mask=c < channels)


@triton.jit(do_not_specialize=["rows", "chunks", "group_size"])
def _dx_kernel(
    dy_ptr, x_ptr, dx_ptr, mean_ptr, scale_ptr, slope_ptr, offset_ptr, batch_mean_ptr, d_batch_ptr,
    rows, chunks, group_size, SHAPE: tl.constexpr, count=1.0,
):  # fmt: skip
    """dx = scale * dy + slope * (x - mean) + offset, and the part through the batch's moments."""
    channels, length = _extent(rows, chunks, SHAPE)
    start, offsets, inside, group, c, exists = _tile(channels, length, group_size, SHAPE)
    dy = load(dy_ptr + start, offsets, inside)
    x = load(x_ptr + start, offsets, inside)
    mean = _column(mean_ptr, group, exists)
    slope = _column(slope_ptr, group, exists)
    offset = _column(offset_ptr, group, exists)
    if d_batch_ptr is not None:
        channel = c % channels
        of_var = _column(d_batch_ptr + channels, channel, exists) * (2.0 / count)
        offset += _column(d_batch_ptr, channel, exists) / count
        offset += of_var * (mean - _column(batch_mean_ptr, channel, exists))
        slope += of_var
    dx = _column(scale_ptr, c, exists) * dy + slope * (x - mean) + offset
    tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# ---- host


def moments(x: Tensor, pooled: Sequence[Tensor]) -> None:
    """Write means and biased variances to the tensors ``pooled``, (N, G') in float32."""
    n, c = x.shape[:2]
    num_groups = pooled[0].shape[1]
    tiling = _Tiling.for_maps((x,))
    rows, run = n * num_groups, c // num_groups * tiling.splits
    mean, var = pooled if run == 1 else new(x, 2, c * tiling.splits)
    _moments_kernel[(n * tiling.blocks * tiling.splits,)](
        x, mean, var,
        tiling.rows, tiling.chunks, tiling.splits, tiling.split_tiles, tiling.shape,
        num_warps=tiling.warps, maxnreg=80,
    )  # fmt: skip
    if run == 1:
        return
    block = min(padded(run), 1024)
    tile = min(padded(rows), 1024 // block), block
    length = x.shape[2:].numel()
    splits = tiling.splits, tiling.split_tiles * tiling.shape.block_l, length
    count = float(c // num_groups * length)
    pool_kernel[(divide_up(rows, tile[0]),)](
        mean, var, *pooled, None, None, rows, run, run, 1, *splits, count, 0.0, 0.0, *tile
    )


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _elementwise(_affine_kernel, (x, y), (mean, scale, shift))
    return y


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over positions of dy * (x - mean) and of dy, (N, C) each, in float32."""
    n, c = x.shape[:2]
    tiling = _Tiling.for_maps((dy, x))
    of_splits = x.new_empty((2, n, c, tiling.splits), dtype=torch.float32)
    _sums_kernel[(n * tiling.blocks * tiling.splits,)](
        dy, x, mean, *of_splits.unbind(),
        tiling.rows, tiling.chunks, c // mean.shape[1],
        tiling.splits, tiling.split_tiles, tiling.shape,
        num_warps=tiling.warps, maxnreg=128,
    )  # fmt: skip
    products, gradients = of_splits.squeeze(3) if tiling.splits == 1 else of_splits.sum(3)
    return products, gradients


def dx(dy, x, mean, scale, slope, offset, batch_mean=None, d_batch=None, count=1.0) -> Tensor:
    """Return dx, with the part through the batch's moments if there are their gradients (2 C)."""
    d_x, values = torch.empty_like(x), (mean, scale, slope, offset, batch_mean, d_batch)
    _elementwise(_dx_kernel, (dy, x, d_x), values, count)
    return d_x


class _Tiling(NamedTuple):
    """The tiles of a map, and the splits, runs of consecutive tiles that one program sums."""

    shape: Shape
    warps: int
    blocks: int  #: of channels
    rows: int
    chunks: int  #: of shape.vector elements in a row
    tiles: int  #: along the positions
    splits: int
    split_tiles: int  #: tiles in a split; the last may have fewer

    @classmethod
    def for_maps(cls, maps: Sequence[Tensor]) -> "_Tiling":
        """Choose the tiles and splits for maps of one shape and layout."""
        x = maps[0]
        n, c = x.shape[:2]
        length = x.shape[2:].numel()
        padded_c, padded_length = padded(c), padded(length)
        rows, row = (c, length) if x.is_contiguous() else (length, c)
        vector = find_vector(maps, row)
        tile = limit(TILE, vector)
        if x.is_contiguous():
            block_l = min(padded_length, tile)
            block_c = min(padded_c, tile // block_l)
        else:
            block_c = min(padded_c, CHANNELS, tile)
            block_l = min(padded_length, tile // block_c)
        shape = Shape(vector, not x.is_contiguous(), block_c, block_l)
        blocks, tiles = divide_up(c, block_c), divide_up(length, block_l)
        splits = divide_up(PROGRAMS * multiprocessors(x.device), n * blocks)
        split_tiles = max(2, divide_up(tiles, splits))
        splits = divide_up(tiles, split_tiles)
        warps = min(8, max(1, block_c * block_l // 256))
        return cls(shape, warps, blocks, rows, row // vector, tiles, splits, split_tiles)


def find_vector(maps: Sequence[Tensor], row: int) -> int:
    """Return how many elements, at most 16 bytes, are aligned in rows of ``row`` elements."""
    size = maps[0].element_size()
    bits = 16 | row * size
    for tensor in maps:
        bits |= tensor.data_ptr()
    return (bits & -bits) // size


def limit(elements: int, vector: int) -> int:
    """Return how many of at most ``elements`` a program holds that loads ``vector`` at once."""
    return elements if vector >= 4 else elements // 2


def _elementwise(kernel, maps: tuple[Tensor, ...], values: tuple, *count: float) -> None:
    """Launch a kernel with one tile a program, on maps (N, C, *) and values (N, G') or (N, C)."""
    (n, c), groups = maps[0].shape[:2], values[0].shape[1]
    tiling = _Tiling.for_maps(maps)
    kernel[(n * tiling.blocks * tiling.tiles,)](
        *maps, *(t if t is None else t.contiguous() for t in values),
        tiling.rows, tiling.chunks, c // groups, tiling.shape, *count, num_warps=tiling.warps,
    )  # fmt: skip
