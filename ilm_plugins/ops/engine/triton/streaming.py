"""The streaming kernels, for maps of any size: moments, affine map, sums, and dx."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .devices import Map, divide_up, multiprocessors, on_device, padded
from .launch import Launch, Named
from .map_activations import activation_of, gradient_of
from .programs import COLUMNS, add_rows, is_last, store_gradients
from .vectors import divide, finite, load

# These sizes are fixed, not tuned by timing at a first call. A tile of 4096 elements on 8 warps
# gives each thread 16, in two to four loads of 16 bytes, and leaves registers for three programs on
# each multiprocessor (`maxnreg`, without which ptxas may spill some to fit four): some 24 KB in
# flight there, about as much as an H200's memory needs. Loads of single elements, as of 7x7
# positions, take more registers for addresses: a tile has half as many. Channels are split until
# there are 8 programs for each multiprocessor, but a split has two tiles or more.
TILE = 4096
PROGRAMS = 8

#: Tiles that are copied ahead, asynchronously, in loops over tiles; None unrolls these loops.
STAGES: int | None = None

#: Channels of a tile in channels last: a cache line of half floats.
CHANNELS = 64

#: Most moments of a tile in which the batch's statistics are pooled.
BATCH_TILE = tl.constexpr(1024)


class Shape(NamedTuple):
    """The compile-time constants that describe a map and its tiles."""

    vector: int  #: elements that are loaded at once; see find_vector
    channels_last: bool
    block_c: int
    block_l: int
    stages: int | None = None  #: see STAGES


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
def _block(program, blocks, splits, SHAPE: tl.constexpr):
    """Return which of the blocks of channels a program has."""
    return program % blocks if SHAPE.channels_last else program // splits % blocks


@triton.jit
def _place(program, channels, length, splits, split_length, SHAPE: tl.constexpr):
    """Return a program's instance, channels (BLOCK_C), first position and first offset (int64)."""
    blocks = (channels + SHAPE.block_c - 1) // SHAPE.block_c
    block = _block(program, blocks, splits, SHAPE)
    split = program // blocks % splits if SHAPE.channels_last else program % splits
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


@triton.jit(
    do_not_specialize=["mean_at", "var_at", "batch_at", "rows", "chunks", "splits", "tiles"],
    do_not_specialize_on_alignment=["moments_ptr", "counters_ptr"],
)
def _moments_kernel(
    x_ptr,  # (N, C, *)
    moments_ptr,  # means and variances (N, C, splits), from mean_at and mean_at + var_at on
    counters_ptr,  # a counter for each block of channels, or None
    batch,  # pointers, see plan.Batch; batch_at as in _store_batch
    mean_at, var_at, batch_at, momentum, rows, chunks, splits, tiles, SHAPE: tl.constexpr,
):  # fmt: skip
    """Compute the moments (N, C, splits) of each split, by Welford's recurrence in each lane.

    With counters, the last program of a block of channels computes the batch's statistics.
    """
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
    UNROLL: tl.constexpr = 2 if SHAPE.stages is None else 1
    for position in tl.range(
        begin, end, SHAPE.block_l, num_stages=SHAPE.stages, loop_unroll_factor=UNROLL
    ):
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
    moments_ptr += mean_at
    out = (n * channels + c) * splits + begin // split_length
    tl.store(moments_ptr + out, pooled, mask=c < channels)
    tl.store(moments_ptr + var_at + out, finite(var), mask=c < channels)

    if counters_ptr is not None:
        blocks = (channels + SHAPE.block_c - 1) // SHAPE.block_c
        block = _block(tl.program_id(0), blocks, splits, SHAPE)
        run = tl.num_programs(0) // blocks
        if is_last(counters_ptr + block, run):
            exists = c < channels
            values = (run // splits).to(tl.float32) * length
            of_batch = pool(
                moments_ptr, moments_ptr + var_at, c * splits, exists,
                run, channels * splits, splits, split_length, length, values,
                max(1, BATCH_TILE // SHAPE.block_c),
            )  # fmt: skip
            _store_batch(batch, batch_at, momentum, c, exists, channels, block, *of_batch, values)


@triton.jit(do_not_specialize=["batch_at", "channels", "batches"])
def pool_batches_kernel(
    batches_ptr, batch, batch_at, momentum, channels, batches,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool the statistics of several processes' batches, a row each as :func:`_store_batch` has."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    step = 2 * channels + 1
    counts_ptr = batches_ptr + 2 * channels
    row = tl.arange(0, BLOCK)
    count = tl.sum(load(counts_ptr, row * step, row < batches), axis=0)
    of_all = pool(
        batches_ptr, batches_ptr + channels, c, exists,
        batches, step, 1, 1, 1, count, BLOCK, counts_ptr,
    )  # fmt: skip
    block = tl.program_id(0)
    _store_batch(batch, batch_at, momentum, c, exists, channels, block, *of_all, count)


@triton.jit
def _store_batch(batch, batch_at, momentum, c, exists, channels, block, mean, var, count):
    """Store the batch's statistics of channels c, and update running statistics, if there are.

    They are the means and the variances of all channels, and ``count``, the values of a channel.
    """
    batch_ptr = batch.saved + batch_at
    tl.store(batch_ptr + c, mean, mask=exists)
    tl.store(batch_ptr + channels + c, var, mask=exists)
    if block == 0:
        tl.store(batch_ptr + 2 * channels, count)
    if batch.running_mean is not None:
        _update_running(batch.running_mean, c, exists, mean, momentum)
        # A channel has two values or more: see backends.has_variances.
        _update_running(batch.running_var, c, exists, var * (count / (count - 1)), momentum)
        if batch.tracked is not None:  # noqa: SIM102 (a constant, and a number of the program)
            if block == 0:
                tl.store(batch.tracked, tl.load(batch.tracked) + 1)


@triton.jit
def _update_running(ptr, row, exists, pooled, momentum):
    old = load(ptr, row, exists)
    new = tl.where(momentum == 1, pooled, old + momentum * (pooled - old))
    tl.store(ptr + row, tl.where(momentum == 0, old, new), mask=exists)


@triton.jit
def pool(
    mean_ptr, var_ptr, first, exists, run, step, splits, split, length, count, BLOCK: tl.constexpr,
    counts_ptr=None,
):  # fmt: skip
    """Pool a run of moments for each offset in ``first``: means and biased variances.

    Values of one channel's splits are neighbours, values of the next are ``step`` away; None if all
    are neighbours. A split has ``split`` positions, a channel's last one the remainder of
    ``length``; ``count`` is their sum. With ``counts_ptr``, the numbers of positions are there
    instead, ``step`` apart, for one split.
    """
    i = tl.arange(0, BLOCK)
    tile = tl.zeros((first.shape[0], BLOCK), tl.float32)
    for start in tl.range(0, run, BLOCK, loop_unroll_factor=4):
        at, weight, inside = _run(
            first, exists, start + i, run, step, splits, split, length, counts_ptr
        )
        tile += weight * load(mean_ptr, at, inside)
    pooled = divide(tl.sum(tile, axis=1), count)
    tile = tl.zeros((first.shape[0], BLOCK), tl.float32)
    for start in tl.range(0, run, BLOCK, loop_unroll_factor=2):
        at, weight, inside = _run(
            first, exists, start + i, run, step, splits, split, length, counts_ptr
        )
        offset = load(mean_ptr, at, inside) - pooled[:, None]
        var = load(var_ptr, at, inside) + offset * offset
        tile += tl.where(inside, weight * var, 0.0)
    return pooled, finite(tl.sum(tile, axis=1) / count)


@triton.jit
def _run(first, exists, i, run, step, splits, split, length, counts_ptr):
    """Return the offsets, weights and mask of values i of the runs, see :func:`pool`."""
    at = first.to(tl.int64)[:, None] + (i if step is None else i % splits)[None, :]
    if step is not None:
        at += (i // splits).to(tl.int64)[None, :] * step
    if counts_ptr is None:
        weight = tl.minimum(split, length - i % splits * split).to(tl.float32)
    else:
        weight = load(counts_ptr, i * step, i < run)
    return at, weight[None, :], exists[:, None] & (i < run)[None, :]


@triton.jit(do_not_specialize=["rows", "run", "splits", "split", "length"])
def pool_kernel(
    moments_ptr, mean_ptr, var_ptr, rows, run, splits, split, length, count,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool ``rows`` runs of moments that follow each other, all means before all variances."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    exists = row < rows
    first = row.to(tl.int64) * run
    mean, var = pool(
        moments_ptr, moments_ptr + tl.cast(rows, tl.int64) * run, first, exists,
        run, splits, splits, split, length, count, BLOCK,
    )  # fmt: skip
    tl.store(mean_ptr + row, mean, mask=exists)
    tl.store(var_ptr + row, var, mask=exists)


@triton.jit
def _tile(channels, length, group_size, SHAPE: tl.constexpr):
    """Return a tile's first offset, offsets, mask; indices in (N, G') and in (N, C), mask."""
    tiles = (length + SHAPE.block_l - 1) // SHAPE.block_l
    # From the last tile on, which may still be in the cache from the kernel before. So programs
    # that do something else are the first ones.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, position, start = _place(program, channels, length, tiles, SHAPE.block_l, SHAPE)
    inside = _inside(c, position, channels, length, SHAPE)
    group = n * (channels // group_size) + c // group_size
    offsets = tile_offsets(channels, length, SHAPE)
    return start, offsets, inside, group, n * channels + c, c < channels


@triton.jit
def _column(ptr, at, exists):
    return load(ptr, at, exists)[:, None]


@triton.jit(
    do_not_specialize=["mean_at", "scale_at", "shift_at", "rows", "chunks", "group_size"],
    do_not_specialize_on_alignment=["mean_ptr", "scale_ptr", "shift_ptr"],
)
def _affine_kernel(
    x_ptr, y_ptr,  # (N, C, *)
    mean_ptr,  # (N, G')
    scale_ptr, shift_ptr,  # (N, C)
    mean_at, scale_at, shift_at,
    rows, chunks, group_size, SHAPE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y = scale * (x - mean) + shift, then its activation, if given."""
    mean_ptr += mean_at
    scale_ptr += scale_at
    shift_ptr += shift_at
    channels, length = _extent(rows, chunks, SHAPE)
    start, offsets, inside, group, c, exists = _tile(channels, length, group_size, SHAPE)
    x = load(x_ptr + start, offsets, inside)
    mean = _column(mean_ptr, group, exists)
    y = _column(scale_ptr, c, exists) * (x - mean) + _column(shift_ptr, c, exists)
    if ACTIVATION is not None:
        y = activation_of(y, ACTIVATION)
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        *("mean_at", "kept_scale_at", "kept_shift_at", "sum_at", "rows", "chunks", "group_size"),
        *("splits", "tiles"),
    ],
    do_not_specialize_on_alignment=["saved_ptr", "sums_ptr"],
)
def _sums_kernel(
    dy_ptr, x_ptr,  # (N, C, *)
    saved_ptr,  # means (N, G') from mean_at on; with an activation scale and shift (N, C)
    sums_ptr,  # (N, C, splits), twice
    mean_at, kept_scale_at, kept_shift_at, sum_at,
    rows, chunks, group_size, splits, tiles, SHAPE: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Sum dy * (x - mean), and from ``sum_at`` on dy, over each split: (N, C, splits) each.

    With an activation, dy is its input's gradient, by the scale and shift among the saved values.
    """
    mean_ptr = saved_ptr + mean_at
    channels, length = _extent(rows, chunks, SHAPE)
    split_length = tiles * SHAPE.block_l
    n, c, begin, start = _place(tl.program_id(0), channels, length, splits, split_length, SHAPE)
    offsets = tile_offsets(channels, length, SHAPE)
    end = tl.minimum(begin + split_length, length)
    step = SHAPE.block_l * channels if SHAPE.channels_last else SHAPE.block_l
    group = n * (channels // group_size) + c // group_size
    mean = _column(mean_ptr, group, c < channels)
    if ACTIVATION is not None:
        scale = _column(saved_ptr + kept_scale_at, n * channels + c, c < channels)
        shift = _column(saved_ptr + kept_shift_at, n * channels + c, c < channels)
    dy_ptr += start
    x_ptr += start

    d_scale = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    d_shift = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    # In channels last, scale and shift take the registers of a second tile.
    is_tight: tl.constexpr = SHAPE.channels_last and ACTIVATION is not None
    is_unrolled: tl.constexpr = SHAPE.stages is None and SHAPE.vector >= 4 and not is_tight
    UNROLL: tl.constexpr = 2 if is_unrolled else 1
    for position in tl.range(
        begin, end, SHAPE.block_l, num_stages=SHAPE.stages, loop_unroll_factor=UNROLL
    ):
        inside = _inside(c, position, channels, length, SHAPE)
        dy = load(dy_ptr, offsets, inside)
        x = load(x_ptr, offsets, inside) - mean
        if ACTIVATION is not None:
            dy = gradient_of(dy, scale * x + shift, ACTIVATION)
        d_scale += dy * x
        d_shift += dy
        dy_ptr += step
        x_ptr += step

    out = (n * channels + c) * splits + begin // split_length
    tl.store(sums_ptr + out, tl.sum(d_scale, axis=1), mask=c < channels)
    tl.store(sums_ptr + sum_at + out, tl.sum(d_shift, axis=1), mask=c < channels)


@triton.jit(
    do_not_specialize=[
        *("mean_at", "scale_at", "shift_at", "batch_mean_at", "slope_at", "offset_at", "batch_at"),
        *("rows_at", "step", "instances", "adding", "rows", "chunks", "group_size"),
    ],
    do_not_specialize_on_alignment=[
        *("mean_ptr", "scale_ptr", "slope_ptr", "offset_ptr", "batch_mean_ptr", "work_ptr"),
    ],
)
def _dx_kernel(
    dy_ptr, x_ptr, dx_ptr,  # (N, C, *)
    mean_ptr,  # (N, G')
    scale_ptr,  # (N, C); with an activation the shift (N, C), too
    slope_ptr, offset_ptr,  # (N, G')
    batch_mean_ptr,  # the batch's means (C), variances (C) and number of values
    work_ptr,  # gradients of the batch's moments (2, C), and of the tensors (instances, step)
    gradients,  # pointers to the parameters' gradients
    # Where each begins, from its pointer on; the shift in scale_ptr, the last two in work_ptr.
    mean_at, scale_at, shift_at, batch_mean_at, slope_at, offset_at, batch_at, rows_at,
    step, instances, adding,
    rows, chunks, group_size, SHAPE: tl.constexpr, BATCH: tl.constexpr,
    PARAMETERS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Compute dx; the first ``adding`` programs add the instances' gradients of the parameters.

    With an activation, dy is its input's gradient.
    """
    channels, length = _extent(rows, chunks, SHAPE)
    values = (
        dy_ptr, x_ptr, dx_ptr, mean_ptr + mean_at, scale_ptr + scale_at,
        None if ACTIVATION is None else scale_ptr + shift_at, slope_ptr + slope_at,
        offset_ptr + offset_at,
    )  # fmt: skip
    batch = (batch_mean_ptr + batch_mean_at, work_ptr + batch_at) if BATCH else (None, None)
    sizes = channels, length, group_size
    # Without PARAMETERS there are no gradients of parameters, only x's.
    if len(PARAMETERS) == 0:
        _dx_tile(*values, *batch, *sizes, SHAPE, BATCH, ACTIVATION)
    elif tl.program_id(0) < adding:
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        sums = add_rows(work_ptr + rows_at, step, instances, columns, step)
        store_gradients(gradients, columns, sums, PARAMETERS)
    elif dx_ptr is not None:
        _dx_tile(*values, *batch, *sizes, SHAPE, BATCH, ACTIVATION)


@triton.jit
def _dx_tile(
    dy_ptr, x_ptr, dx_ptr,  # (N, C, *)
    mean_ptr,  # (N, G')
    scale_ptr, shift_ptr,  # (N, C)
    slope_ptr, offset_ptr,  # (N, G')
    batch_mean_ptr,  # (2 * C + 1)
    d_batch_ptr,  # (2, C)
    channels, length, group_size,
    SHAPE: tl.constexpr, BATCH: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """dx = scale * dy + slope * (x - mean) + offset, and the part through the batch's moments."""
    start, offsets, inside, group, c, exists = _tile(channels, length, group_size, SHAPE)
    mean = _column(mean_ptr, group, exists)
    slope = _column(slope_ptr, group, exists)
    offset = _column(offset_ptr, group, exists)
    if BATCH:
        channel = c % channels
        d_mean = _column(d_batch_ptr, channel, exists)
        d_var = _column(d_batch_ptr + channels, channel, exists)
        count = tl.load(batch_mean_ptr + 2 * channels)
        of_var = d_var * (2.0 / count)
        offset += d_mean / count
        offset += of_var * (mean - _column(batch_mean_ptr, channel, exists))
        slope += of_var
    scale = _column(scale_ptr, c, exists)
    dy = load(dy_ptr + start, offsets, inside)
    x = load(x_ptr + start, offsets, inside)
    if ACTIVATION is not None:
        z = scale * (x - mean) + _column(shift_ptr, c, exists)
        dy = gradient_of(dy, z, ACTIVATION)
    dx = scale * dy + slope * (x - mean) + offset
    tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# ---- host: the functions of every backend, see engine/plain.py


@on_device
def moments(x: Tensor, num_groups: int) -> Tensor:
    """Return means and biased variances, (2, N, G') in float32."""
    n, c = x.shape[:2]
    tiling = Tiling.for_map(Map.of(x))
    rows, run = n * num_groups, c // num_groups * tiling.splits
    pooled = x.new_empty((2, n, num_groups), dtype=torch.float32)
    of_splits = pooled if run == 1 else x.new_empty(2 * rows * run, dtype=torch.float32)
    named = {**tiling.named, **FROM_THE_BEGINNING, "var_at": rows * run, "momentum": 0.0}
    programs = n * tiling.blocks * tiling.splits
    launch = Launch(_moments_kernel, programs, named, num_warps=tiling.warps, maxnreg=80)
    launch(None, x, of_splits, None, None)
    if run == 1:
        return pooled
    block = min(padded(run), 1024)
    tile = min(padded(rows), 1024 // block)
    count = float(run // tiling.splits * tiling.length)
    named |= {"rows": rows, "run": run, "count": count, "BLOCK_ROWS": tile, "BLOCK": block}
    Launch(pool_kernel, divide_up(rows, tile), named)(None, of_splits, *pooled.unbind())
    return pooled


@on_device
def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y, tiling = torch.empty_like(x), Tiling.for_map(Map.of(x))
    values = (t.contiguous() for t in (mean, scale, shift))
    named = {**tiling.named, **FROM_THE_BEGINNING, "group_size": x.shape[1] // mean.shape[1]}
    programs = len(x) * tiling.blocks * tiling.tiles
    Launch(_affine_kernel, programs, named, num_warps=tiling.warps)(None, x, y, *values)
    return y


@on_device
def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over positions of dy * (x - mean) and of dy, (N, C) each, in float32."""
    n, c = x.shape[:2]
    tiling = Tiling.for_map(Map.of(x, dy))
    of_splits = x.new_empty((2, n, c, tiling.splits), dtype=torch.float32)
    named = {**tiling.named, **FROM_THE_BEGINNING, "sum_at": n * c * tiling.splits}
    named["group_size"] = c // mean.shape[1]
    programs = n * tiling.blocks * tiling.splits
    launch = Launch(_sums_kernel, programs, named, num_warps=tiling.warps, maxnreg=128)
    launch(None, dy, x, mean, of_splits)
    products, gradients = of_splits.squeeze(3) if tiling.splits == 1 else of_splits.sum(3)
    return products, gradients


@on_device
def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    d_x, tiling = torch.empty_like(x), Tiling.for_map(Map.of(x, dy))
    values = (t.contiguous() for t in (mean, scale, slope, offset))
    named = {**tiling.named, **FROM_THE_BEGINNING, "group_size": x.shape[1] // mean.shape[1]}
    programs = len(x) * tiling.blocks * tiling.tiles
    launch = Launch(_dx_kernel, programs, named | {"shift_at": None}, num_warps=tiling.warps)
    launch(None, dy, x, d_x, *values, None, None, None)
    return d_x


#: For kernels over the map alone: each value begins where its tensor does, and the network has no
#: gradients.
FROM_THE_BEGINNING: Named = {
    **dict.fromkeys(("mean_at", "scale_at", "shift_at", "slope_at", "offset_at"), 0),
    **dict.fromkeys(("batch_mean_at", "batch_at", "rows_at", "step", "instances", "adding"), 0),
    **dict.fromkeys(("kept_scale_at", "kept_shift_at", "ACTIVATION"), None),
    "BATCH": False,
    "PARAMETERS": (),
}


class Tiling(NamedTuple):
    """The tiles of a map, and the splits, runs of consecutive tiles that one program sums."""

    shape: Shape
    warps: int
    blocks: int  #: of channels
    length: int
    rows: int
    chunks: int  #: of shape.vector elements in a row
    tiles: int  #: along the positions
    splits: int
    split_tiles: int  #: tiles in a split; the last may have fewer

    @classmethod
    def for_map(cls, map: Map) -> "Tiling":
        """Choose the tiles and splits for maps of one shape and layout."""
        n, c = map.shape[:2]
        length = map.shape[2:].numel()
        padded_c, padded_length = padded(c), padded(length)
        rows, row = (c, length) if map.is_contiguous else (length, c)
        vector = map.vector(row)
        tile = limit(TILE, vector)
        if map.is_contiguous:
            block_l = min(padded_length, tile)
            block_c = min(padded_c, tile // block_l)
        else:
            block_c = min(padded_c, CHANNELS, tile)
            block_l = min(padded_length, tile // block_c)
        shape = Shape(vector, not map.is_contiguous, block_c, block_l, STAGES)
        blocks, tiles = divide_up(c, block_c), divide_up(length, block_l)
        splits = divide_up(PROGRAMS * multiprocessors(map.device), n * blocks)
        split_tiles = max(2, divide_up(tiles, splits))
        splits = divide_up(tiles, split_tiles)
        warps = min(8, max(1, block_c * block_l // 256))
        return cls(shape, warps, blocks, length, rows, row // vector, tiles, splits, split_tiles)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by which kernels find a map's tiles, and the splits of its channels."""
        return {
            **{"rows": self.rows, "chunks": self.chunks, "length": self.length},
            **{"splits": self.splits, "split": self.split, "tiles": self.split_tiles},
            "SHAPE": self.shape,
        }

    @property
    def split(self) -> int:
        """Positions of a split; a channel's last split has the remainder."""
        return self.split_tiles * self.shape.block_l


def limit(elements: int, vector: int) -> int:
    """Return how many of at most ``elements`` a program holds that loads ``vector`` at once."""
    return elements if vector >= 4 else elements // 2
