"""The one-read kernels: a whole layer, with one program for each instance.

A program holds its instance in registers, as rows (BLOCK_C, BLOCK_L). In channels last, a row is a
channel. Otherwise a row is a fine group, whose channels are contiguous: with 7x7 positions, rows of
channels would be unaligned, and so short that a warp would spend most of its time on sums over its
threads.
"""

import triton
import triton.language as tl

from .devices import Map, padded
from .map_activations import activation_of, gradient_of
from .programs import sum_rows
from .rescaling import keep, kept_scale, rescale_vjp, store_coefficients
from .sizes import Sizes, rescale_of
from .streaming import TILE, Shape, limit, tile_offsets
from .vectors import divide, finite, fold, load, spread

#: Elements of an instance, padded to powers of two, that a one-read kernel holds in its registers:
#: 32 a thread on 16 warps, of x and of dy.
MAX_INSTANCE = 16384


@triton.jit
def _instance(chunks, SHAPE: tl.constexpr):
    """Return this program's instance, its first offset, its elements' offsets, and their mask."""
    n = tl.program_id(0).to(tl.int64)
    length = chunks * SHAPE.vector
    inside = (tl.arange(0, SHAPE.block_l) < length)[None, :]
    inside = tl.broadcast_to(inside, (SHAPE.block_c, SHAPE.block_l))
    return n, n * SHAPE.block_c * length, tile_offsets(SHAPE.block_c, length, SHAPE), inside


@triton.jit
def _to_elements(values, chunks, SHAPE: tl.constexpr):
    """Spread the values (channels) over the elements: they broadcast to (BLOCK_C, BLOCK_L)."""
    in_row: tl.constexpr = values.shape[0] // SHAPE.block_c
    if in_row == 1:
        elements = spread(values, values.shape[0], SHAPE.block_c)[:, None]
    else:
        # Exact for as many elements as fit into registers.
        position = tl.arange(0, SHAPE.block_l).to(tl.float32) + 0.5
        channel = (position * (in_row / (chunks * SHAPE.vector))).to(tl.int32)
        channel = tl.minimum(channel, in_row - 1)[None, :]
        channel += tl.arange(0, SHAPE.block_c)[:, None] * in_row
        channel = tl.reshape(channel, (SHAPE.block_c * SHAPE.block_l,))
        elements = tl.gather(values, channel, 0)
        elements = tl.reshape(elements, (SHAPE.block_c, SHAPE.block_l))
    return elements


@triton.jit
def _sums_of_channels(dy_ptr, x_ptr, mean, chunks, SHAPE: tl.constexpr, CHANNELS: tl.constexpr):
    """Sum dy * (x - mean) and dy over each channel of a contiguous instance: (channels) each."""
    # In rows of several channels, cumulative sums would have the neighbours' rounding errors.
    in_row: tl.constexpr = CHANNELS // SHAPE.block_c
    length = chunks * SHAPE.vector // in_row
    c = tl.arange(0, CHANNELS)[:, None]
    position = tl.arange(0, SHAPE.block_l // in_row)[None, :]
    inside = position < length
    dy = load(dy_ptr, c * length + position, inside)
    x = load(x_ptr, c * length + position, inside)
    products = tl.sum(dy * (x - spread(mean, mean.shape[0], CHANNELS)[:, None]), axis=1)
    return spread(products, CHANNELS, CHANNELS), spread(tl.sum(dy, axis=1), CHANNELS, CHANNELS)


@triton.jit(
    do_not_specialize=["moments", "chunks"],
    do_not_specialize_on_alignment=["saved_ptr"],
)
def one_read_kernel(
    x_ptr, y_ptr, saved_ptr, t, moments, count, chunks,
    SHAPE: tl.constexpr, RESCALE: tl.constexpr, SIZES: tl.constexpr, ACTIVATION: tl.constexpr,
    KEEPS: tl.constexpr,
):  # fmt: skip
    """Normalize x, and store what the backward pass reads, see :class:`.plan.TritonPlan`."""
    n, start, offsets, inside = _instance(chunks, SHAPE)
    keep(n, saved_ptr, t, SIZES)
    x = load(x_ptr + start, offsets, inside)
    mean = divide(fold(tl.sum(x, axis=1), SHAPE.block_c, SIZES.fine), count)
    x = tl.where(inside, x - spread(mean, SIZES.fine, SHAPE.block_c)[:, None], 0.0)
    var = finite(fold(tl.sum(x * x, axis=1), SHAPE.block_c, SIZES.fine) / count)
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    tl.store(saved_ptr + SIZES.kept + group, mean)
    tl.store(saved_ptr + SIZES.kept + moments + group, var)
    mean, var = spread(mean, SIZES.fine, SIZES.fine), spread(var, SIZES.fine, SIZES.fine)
    scale, shift = RESCALE(mean, var, t, SIZES)
    if KEEPS:
        store_coefficients(n, scale, shift, kept_scale(saved_ptr, moments, SIZES), SIZES)
    y = _to_elements(scale, chunks, SHAPE) * x
    y += _to_elements(shift, chunks, SHAPE)
    if ACTIVATION is not None:
        y = activation_of(y, ACTIVATION)
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["moments", "chunks", "members"],
    do_not_specialize_on_alignment=["saved_ptr", "work_ptr", "counters_ptr"],
)
def one_read_vjp_kernel(
    dy_ptr, x_ptr, dx_ptr, saved_ptr, work_ptr, counters_ptr, t, gradients,
    moments, members, count, chunks, SHAPE: tl.constexpr, RESCALE: tl.constexpr,
    SIZES: tl.constexpr, PARAMETERS: tl.constexpr,
):  # fmt: skip
    """Compute dx, and the sum of the instances' gradients of the tensors."""
    n, start, offsets, inside = _instance(chunks, SHAPE)
    dy_ptr += start
    x_ptr += start
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    mean = tl.load(saved_ptr + SIZES.kept + group)
    var = tl.load(saved_ptr + SIZES.kept + moments + group)
    if SHAPE.block_c != SIZES.channels:
        d_scale, d_shift = _sums_of_channels(dy_ptr, x_ptr, mean, chunks, SHAPE, SIZES.channels)
    dy = load(dy_ptr, offsets, inside)
    x = load(x_ptr, offsets, inside) - spread(mean, SIZES.fine, SHAPE.block_c)[:, None]
    if SHAPE.block_c == SIZES.channels:
        d_scale = spread(tl.sum(dy * x, axis=1), SIZES.channels, SIZES.channels)
        d_shift = spread(tl.sum(dy, axis=1), SIZES.channels, SIZES.channels)
    scale, slope, offset = rescale_vjp(
        n, d_scale, d_shift, mean, var, t, work_ptr, count, RESCALE, SIZES
    )
    d_x = _to_elements(scale, chunks, SHAPE) * dy
    d_x += spread(slope, SIZES.fine, SHAPE.block_c)[:, None] * x
    d_x += spread(offset, SIZES.fine, SHAPE.block_c)[:, None]
    if dx_ptr is not None:
        tl.store(dx_ptr + start + offsets, d_x.to(dx_ptr.dtype.element_ty), mask=inside)
    groups_ptr = work_ptr + tl.num_programs(0).to(tl.int64) * SIZES.gradients
    sum_rows(
        n, members, work_ptr, SIZES.gradients, groups_ptr, counters_ptr, gradients,
        SIZES.gradients, PARAMETERS,
    )  # fmt: skip


@triton.jit
def _activation_vjp(
    dy_ptr, x_ptr, mean, scale, shift, start, position, length, SHAPE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Return a tile's gradient of the activation's input, x - mean, offsets and mask."""
    inside = (position + tl.arange(0, SHAPE.block_l) < length)[None, :]
    inside = tl.broadcast_to(inside, (SHAPE.block_c, SHAPE.block_l))
    start += position * SHAPE.block_c if SHAPE.channels_last else position
    offsets = tile_offsets(SHAPE.block_c, length, SHAPE)
    x = load(x_ptr + start, offsets, inside) - mean
    dy = load(dy_ptr + start, offsets, inside)
    return gradient_of(dy, scale * x + shift, ACTIVATION), x, start + offsets, inside


@triton.jit(
    do_not_specialize=["moments", "length", "members"],
    do_not_specialize_on_alignment=["saved_ptr", "work_ptr", "counters_ptr"],
)
def one_read_activation_vjp_kernel(
    dy_ptr, x_ptr, dx_ptr, saved_ptr, work_ptr, counters_ptr, t, gradients,
    moments, members, count, length, SHAPE: tl.constexpr, RESCALE: tl.constexpr,
    SIZES: tl.constexpr, PARAMETERS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Compute what ``one_read_vjp_kernel`` does, of a layer with an activation.

    With scale and shift of its elements, too, an instance exceeds the registers. So tiles, whose
    rows are channels, are read twice, the second time from the cache.
    """
    C: tl.constexpr = SIZES.channels
    n = tl.program_id(0).to(tl.int64)
    start = n * C * length
    c = tl.arange(0, C)[:, None]
    mean_ptr = saved_ptr + SIZES.kept + n * SIZES.fine
    scale_ptr = kept_scale(saved_ptr, moments, SIZES) + n * C + c
    scale = tl.load(scale_ptr)
    shift = tl.load(scale_ptr + tl.num_programs(0).to(tl.int64) * C)
    tile = dy_ptr, x_ptr, tl.load(mean_ptr + c // (C // SIZES.fine)), scale, shift, start
    d_scale = tl.full((C, SHAPE.block_l), 0.0, tl.float32)
    d_shift = tl.full((C, SHAPE.block_l), 0.0, tl.float32)
    for position in tl.range(0, length, SHAPE.block_l):
        dy, x, _, _ = _activation_vjp(*tile, position, length, SHAPE, ACTIVATION)
        d_scale += dy * x
        d_shift += dy
    d_scale = spread(tl.sum(d_scale, axis=1), C, C)
    d_shift = spread(tl.sum(d_shift, axis=1), C, C)
    group = tl.arange(0, SIZES.fine)
    mean, var = tl.load(mean_ptr + group), tl.load(mean_ptr + moments + group)
    _, slope, offset = rescale_vjp(
        n, d_scale, d_shift, mean, var, t, work_ptr, count, RESCALE, SIZES
    )
    if dx_ptr is not None:
        slope = spread(slope, SIZES.fine, C)[:, None]
        offset = spread(offset, SIZES.fine, C)[:, None]
        for position in tl.range(0, length, SHAPE.block_l):
            dy, x, at, inside = _activation_vjp(*tile, position, length, SHAPE, ACTIVATION)
            d_x = scale * dy + slope * x + offset
            tl.store(dx_ptr + at, d_x.to(dx_ptr.dtype.element_ty), mask=inside)
    groups_ptr = work_ptr + tl.num_programs(0).to(tl.int64) * SIZES.gradients
    sum_rows(
        n, members, work_ptr, SIZES.gradients, groups_ptr, counters_ptr, gradients,
        SIZES.gradients, PARAMETERS,
    )  # fmt: skip


# ---- host


def shape_of_rows(map: Map) -> Shape:
    """Return a tile for the gradient of an activation, with a row for each channel."""
    c, length = map.shape[1], map.shape[2:].numel()
    return Shape(1, not map.is_contiguous, c, min(padded(length), max(1, TILE // c)))


def shape_for(map: Map, sizes: Sizes) -> Shape | None:
    """Return how a one-read kernel holds an instance of a map, or None if it cannot."""
    is_power = not any(s & (s - 1) for s in (sizes.channels, sizes.fine))
    if not (is_power and rescale_of(sizes.network).is_read_once):
        return None
    last = not map.is_contiguous
    rows = sizes.channels if last else sizes.fine
    length = map.shape[1:].numel() // rows
    vector = map.vector(rows if last else length)
    if rows * padded(length) > limit(MAX_INSTANCE, vector):
        return None
    # In channels last the kernel knows the distance of positions, which is a constant.
    return Shape(1 if last else vector, last, rows, padded(length))
