"""The primitive's forward and backward pass by Triton kernels, on CUDA.

Of a map of any size, the *streaming* kernels read x twice forward, and x and dy twice backward::

    forward    moments of (channel, split of positions) -> pool -> rescale -> affine
    backward   sums of (channel, split of positions)    -> sum  -> vjp     -> dx

What lies between is a function of torch, or, for an auto-encoder, one kernel with one program for
each instance. An instance that fits into one program's registers, a detector's box head's, is read
once: the *one-read* kernels do all of the above for it.

Both layouts, contiguous and channels last, are read and written as they are. Nothing waits for the
device, and nothing is added in an order that changes from run to run.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import Autoencoder
from .layouts import dense
from .moments import duplicate

# Shapes are chosen by reasoning, never by timing on a first call. A tile of 4096 elements on 8
# warps gives each thread 16, two to four loads of 16 bytes, and leaves registers for three
# programs a multiprocessor: some 24 KB in flight there, about what an H200's memory needs.
# Channels are split until there are 8 programs a multiprocessor, but none below two tiles.
TILE = 4096
PROGRAMS = 8

#: Channels of a tile where channels lie beside each other: a cache line of half floats.
CHANNELS = 64

#: Elements of an instance, padded to powers of two, that a one-read kernel holds in its registers:
#: 32 a thread on 16 warps, of x and of dy.
ONE_READ = 16384

#: Elements of an encoder or decoder, padded, that a program holds beside that, and without that;
#: and channels of an auto-encoder's vectors.
ONE_READ_MATRIX = 4096
MATRIX = 16384
VECTOR = 4096

#: Whether Triton runs the kernels on the CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "relu6", "identity")
COMBINE = ("a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B")


class Tensors(NamedTuple):
    """An auto-encoder's tensors, in a kernel pointers to them."""

    weight: Tensor
    bias: Tensor
    encode: Tensor
    decode_omega: Tensor
    decode_beta: Tensor
    omega_offset: Tensor


class Shape(NamedTuple):
    """What of a map and its tiles is known when a kernel is compiled."""

    vector: int  #: divides the length of a row, which tells how rows are aligned
    channels_last: bool
    block_c: int
    block_l: int


class Sizes(NamedTuple):
    """What of an auto-encoder is known when a kernel is compiled."""

    channels: int
    fine: int  #: groups whose moments come in
    groups: int  #: of the standardization
    keys: int
    hidden: int
    padded_hidden: int
    mean_drives_beta: bool
    omega_activation: str
    beta_activation: str
    combine: str


# ---- streaming kernels


@triton.jit
def _place(program, channels, length, splits, split_length, SHAPE: tl.constexpr):
    """A program's instance, channels (BLOCK_C), first position, and first offset, in 64 bits.

    Neighbouring programs are neighbours in memory.
    """
    blocks = (channels + SHAPE.block_c - 1) // SHAPE.block_c
    if SHAPE.channels_last:
        block = program % blocks
        split = program // blocks % splits
    else:
        block = program // splits % blocks
        split = program % splits
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
def _offsets(channels, length, SHAPE: tl.constexpr):
    """Offsets (BLOCK_C, BLOCK_L) of a tile's elements from its first."""
    c = tl.arange(0, SHAPE.block_c)[:, None]
    p = tl.arange(0, SHAPE.block_l)[None, :]
    return p * channels + c if SHAPE.channels_last else c * length + p


@triton.jit
def _inside(c, position, channels, length, SHAPE: tl.constexpr):
    """Which of a tile's elements exist."""
    return (c < channels)[:, None] & (position + tl.arange(0, SHAPE.block_l) < length)[None, :]


@triton.jit(do_not_specialize=["chunks", "splits", "tiles"])
def _moments_kernel(x_ptr, mean_ptr, var_ptr, channels, chunks, splits, tiles, SHAPE: tl.constexpr):
    """Moments (N, C, splits) of each channel's splits, by Welford's recurrence in each lane."""
    length = chunks * SHAPE.vector
    split_length = tiles * SHAPE.block_l
    n, c, begin, start = _place(tl.program_id(0), channels, length, splits, split_length, SHAPE)
    offsets = _offsets(channels, length, SHAPE)
    end = tl.minimum(begin + split_length, length)
    step = SHAPE.block_l * channels if SHAPE.channels_last else SHAPE.block_l
    x_ptr += start

    mean = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    square = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    count = 0.0
    for position in tl.range(begin, end, SHAPE.block_l, loop_unroll_factor=2):
        inside = _inside(c, position, channels, length, SHAPE)
        x = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32)
        count += 1.0
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / count)
        square += delta * (x - mean)
        x_ptr += step

    size = end - begin
    lane = tl.arange(0, SHAPE.block_l)
    weight = ((size - lane + SHAPE.block_l - 1) // SHAPE.block_l).to(tl.float32)[None, :]
    pooled = tl.sum(weight * mean, axis=1) / size
    offset = mean - pooled[:, None]
    var = tl.sum(square + weight * offset * offset, axis=1) / size
    out = (n * channels + c) * splits + begin // split_length
    tl.store(mean_ptr + out, pooled, mask=c < channels)
    tl.store(var_ptr + out, var, mask=c < channels)


@triton.jit(do_not_specialize=["rows", "run", "splits", "split", "length"])
def _pool_kernel(
    mean_ptr, var_ptr, pooled_mean_ptr, pooled_var_ptr,
    rows, run, splits, split, length, count, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moments (rows, run) of channels' splits to those (rows) of groups: total variance.

    Args:
        run: splits of all channels of a group, which lie beside each other.
        split: positions in a split, but in the last, which has what is left of ``length``.
        count: elements in a group.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    start = row.to(tl.int64)[:, None] * run
    i = tl.arange(0, BLOCK)[None, :]
    pooled = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, run, BLOCK):
        inside = (row < rows)[:, None] & (first + i < run)
        weight = tl.minimum(split, length - (first + i) % splits * split).to(tl.float32)
        mean = tl.load(mean_ptr + start + first + i, mask=inside, other=0)
        pooled += tl.sum(weight * mean, axis=1)
    pooled /= count
    pooled_var = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, run, BLOCK):
        inside = (row < rows)[:, None] & (first + i < run)
        weight = tl.minimum(split, length - (first + i) % splits * split).to(tl.float32)
        offset = tl.load(mean_ptr + start + first + i, mask=inside, other=0) - pooled[:, None]
        var = tl.load(var_ptr + start + first + i, mask=inside, other=0) + offset * offset
        pooled_var += tl.sum(tl.where(inside, weight * var, 0.0), axis=1)
    tl.store(pooled_mean_ptr + row, pooled, mask=row < rows)
    tl.store(pooled_var_ptr + row, pooled_var / count, mask=row < rows)


@triton.jit
def _from_the_end(length, SHAPE: tl.constexpr):
    """A program's number, and the tiles of a channel, for kernels of a tile a program.

    What the kernel before read last may still be in the cache.
    """
    tiles = (length + SHAPE.block_l - 1) // SHAPE.block_l
    return tl.num_programs(0) - 1 - tl.program_id(0), tiles


@triton.jit(do_not_specialize=["group_size", "chunks"])
def _affine_kernel(
    x_ptr, y_ptr, mean_ptr, scale_ptr, shift_ptr,
    channels, group_size, chunks, SHAPE: tl.constexpr,
):  # fmt: skip
    """y = scale * (x - mean) + shift."""
    length = chunks * SHAPE.vector
    program, tiles = _from_the_end(length, SHAPE)
    n, c, position, start = _place(program, channels, length, tiles, SHAPE.block_l, SHAPE)
    offsets = _offsets(channels, length, SHAPE)
    inside = _inside(c, position, channels, length, SHAPE)
    x = tl.load(x_ptr + start + offsets, mask=inside, other=0).to(tl.float32)

    group = n * (channels // group_size) + c // group_size
    mean = tl.load(mean_ptr + group, mask=c < channels, other=0)[:, None]
    scale = tl.load(scale_ptr + n * channels + c, mask=c < channels, other=0)[:, None]
    shift = tl.load(shift_ptr + n * channels + c, mask=c < channels, other=0)[:, None]
    y = scale * (x - mean) + shift
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["group_size", "chunks", "splits", "tiles"])
def _sums_kernel(
    dy_ptr, x_ptr, mean_ptr, d_scale_ptr, d_shift_ptr,
    channels, group_size, chunks, splits, tiles, SHAPE: tl.constexpr,
):  # fmt: skip
    """Sums (N, C, splits) of dy * (x - mean) and of dy over each channel's splits."""
    length = chunks * SHAPE.vector
    split_length = tiles * SHAPE.block_l
    n, c, begin, start = _place(tl.program_id(0), channels, length, splits, split_length, SHAPE)
    offsets = _offsets(channels, length, SHAPE)
    end = tl.minimum(begin + split_length, length)
    step = SHAPE.block_l * channels if SHAPE.channels_last else SHAPE.block_l
    group = n * (channels // group_size) + c // group_size
    mean = tl.load(mean_ptr + group, mask=c < channels, other=0)[:, None]
    dy_ptr += start
    x_ptr += start

    d_scale = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    d_shift = tl.full((SHAPE.block_c, SHAPE.block_l), 0.0, tl.float32)
    for position in tl.range(begin, end, SHAPE.block_l, loop_unroll_factor=2):
        inside = _inside(c, position, channels, length, SHAPE)
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0).to(tl.float32)
        x = tl.load(x_ptr + offsets, mask=inside, other=0).to(tl.float32)
        d_scale += dy * (x - mean)
        d_shift += dy
        dy_ptr += step
        x_ptr += step

    out = (n * channels + c) * splits + begin // split_length
    tl.store(d_scale_ptr + out, tl.sum(d_scale, axis=1), mask=c < channels)
    tl.store(d_shift_ptr + out, tl.sum(d_shift, axis=1), mask=c < channels)


@triton.jit(do_not_specialize=["group_size", "chunks"])
def _dx_kernel(
    dy_ptr, x_ptr, dx_ptr, mean_ptr, scale_ptr, slope_ptr, offset_ptr,
    channels, group_size, chunks, SHAPE: tl.constexpr,
):  # fmt: skip
    """dx = scale * dy + slope * (x - mean) + offset."""
    length = chunks * SHAPE.vector
    program, tiles = _from_the_end(length, SHAPE)
    n, c, position, start = _place(program, channels, length, tiles, SHAPE.block_l, SHAPE)
    offsets = _offsets(channels, length, SHAPE)
    inside = _inside(c, position, channels, length, SHAPE)
    dy = tl.load(dy_ptr + start + offsets, mask=inside, other=0).to(tl.float32)
    x = tl.load(x_ptr + start + offsets, mask=inside, other=0).to(tl.float32)

    group = n * (channels // group_size) + c // group_size
    mean = tl.load(mean_ptr + group, mask=c < channels, other=0)[:, None]
    slope = tl.load(slope_ptr + group, mask=c < channels, other=0)[:, None]
    offset = tl.load(offset_ptr + group, mask=c < channels, other=0)[:, None]
    scale = tl.load(scale_ptr + n * channels + c, mask=c < channels, other=0)[:, None]
    dx = scale * dy + slope * (x - mean) + offset
    tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# ---- the auto-encoder, of one instance, all vectors in registers


@triton.jit
def _spread(values, SIZE: tl.constexpr):
    """(G) to (SIZE), each value repeated.

    Also where SIZE is G: how the values lie in threads is then not carried from one side to the
    other, which keeps an auto-encoder's vectors from being repeated in every thread of a tile's.
    """
    return tl.gather(values, tl.arange(0, SIZE) // (SIZE // values.shape[0]), 0)


@triton.jit
def _fold(values, SIZE: tl.constexpr):
    """(C) to (SIZE), sums of neighbours."""
    return tl.sum(tl.reshape(values, (SIZE, values.shape[0] // SIZE)), axis=1)


@triton.jit
def _coarsen(mean, var, SIZE: tl.constexpr):
    """Moments of fine groups to those of SIZE coarser ones."""
    scale = SIZE / mean.shape[0]
    pooled = _fold(mean, SIZE) * scale
    offset = mean - _spread(pooled, mean.shape[0])
    return pooled, _fold(var + offset * offset, SIZE) * scale


@triton.jit
def _refine(d_mean, d_var, coarse_mean, mean):
    """The vector-Jacobian product of _coarsen."""
    SIZE: tl.constexpr = mean.shape[0]
    scale = coarse_mean.shape[0] / SIZE
    d_var = _spread(d_var, SIZE) * scale
    offset = mean - _spread(coarse_mean, SIZE)
    return _spread(d_mean, SIZE) * scale + 2.0 * d_var * offset, d_var


@triton.jit
def _activate(x, NAME: tl.constexpr):
    """An activation, and its derivative."""
    if NAME == "tanh":
        small = tl.exp(-2.0 * tl.abs(x))
        y = (1.0 - small) / (1.0 + small)
        y = tl.where(x < 0, -y, y)
        slope = 1.0 - y * y
    elif NAME == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-x))
        slope = y * (1.0 - y)
    elif NAME == "identity":
        y = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    else:
        slope = tl.where(x > 0, 1.0, 0.01 if NAME == "leaky_relu" else 0.0)
        y = x * slope
        if NAME == "relu6":
            slope = tl.where(x < 6, slope, 0.0)
            y = tl.where(x > 6, 6.0, y)
    return y, slope


@triton.jit
def _combine(decoded, b, ACTIVATION: tl.constexpr, COMBINE: tl.constexpr):
    """AssocNorm's Table 5: omega or beta, and its derivatives by ``decoded`` and by B."""
    if COMBINE == "a(WE+B)":
        y, slope = _activate(decoded + b, ACTIVATION)
        b_slope = slope
    else:
        y, slope = _activate(decoded, ACTIVATION)
        if COMBINE == "a(WE)*B":
            b_slope = y
            y = y * b
            slope = slope * b
        elif COMBINE == "a(WE)+B":
            b_slope = tl.full(b.shape, 1.0, tl.float32)
            y = y + b
        else:
            b_slope = tl.zeros(b.shape, tl.float32)
    return y, slope, b_slope


@triton.jit
def _matrices(SIZES: tl.constexpr):
    """Offsets and masks of the encoder (hidden, keys), padded, and of a decoder (keys, hidden)."""
    m = tl.arange(0, SIZES.padded_hidden)
    k = tl.arange(0, SIZES.keys)
    real = m < SIZES.hidden
    encoder = m[:, None] * SIZES.keys + k[None, :]
    decoder = k[:, None] * SIZES.hidden + m[None, :]
    return encoder, real[:, None], decoder, real[None, :]


@triton.jit
def _encode(key, encode_ptr, SIZES: tl.constexpr):
    """Eq. 4: key features (keys) to their embedding (padded hidden), zeros in the padding."""
    at, real, _, _ = _matrices(SIZES)
    encode = tl.load(encode_ptr + at, mask=real, other=0).to(tl.float32)
    hidden = tl.sum(encode * key[None, :], axis=1)
    return tl.where(hidden < 0, 0.0, hidden)  # NaN stays NaN


@triton.jit
def _decode(hidden, decode_ptr, SIZES: tl.constexpr):
    """Eq. 5: an embedding to what drives each channel (channels), before the activation."""
    _, _, at, real = _matrices(SIZES)
    decode = tl.load(decode_ptr + at, mask=real, other=0).to(tl.float32)
    return _spread(tl.sum(decode * hidden[None, :], axis=1), SIZES.channels)


@triton.jit
def _keys(mean, var, SIZES: tl.constexpr):
    """Eq. 3: the key features that drive omega, and those that drive beta."""
    key_mean, key_var = _coarsen(mean, var, SIZES.keys)
    if SIZES.mean_drives_beta:
        omega_key = key_var
        beta_key = key_mean
    else:
        omega_key = key_mean
        beta_key = key_var
    return omega_key, beta_key


@triton.jit
def _rescale(mean, var, t, eps, SIZES: tl.constexpr):
    """Moments (fine) of an instance to scale and shift (channels)."""
    OMEGA: tl.constexpr = SIZES.omega_activation
    BETA: tl.constexpr = SIZES.beta_activation
    COMBINE: tl.constexpr = SIZES.combine
    c = tl.arange(0, SIZES.channels)
    weight = tl.load(t.weight + c).to(tl.float32)
    bias = tl.load(t.bias + c).to(tl.float32)
    omega_key, beta_key = _keys(mean, var, SIZES)
    omega = _decode(_encode(omega_key, t.encode, SIZES), t.decode_omega, SIZES)
    beta = _decode(_encode(beta_key, t.encode, SIZES), t.decode_beta, SIZES)
    omega, _, _ = _combine(omega, weight, OMEGA, COMBINE)
    beta, _, _ = _combine(beta, bias, BETA, COMBINE)
    omega -= tl.load(t.omega_offset).to(tl.float32)

    group_mean, group_var = _coarsen(mean, var, SIZES.groups)
    scale = omega * _spread(tl.rsqrt(group_var + eps), SIZES.channels)
    off_mean = mean - _spread(group_mean, SIZES.fine)
    return scale, beta + scale * _spread(off_mean, SIZES.channels)


@triton.jit
def _decode_vjp(d_decoded, hidden, decode_ptr, d_decode_ptr, SIZES: tl.constexpr):
    """Stores a decoder's gradient; returns that of the embedding, before its ReLU."""
    _, _, at, real = _matrices(SIZES)
    d_decoded = _spread(_fold(d_decoded, SIZES.keys), SIZES.keys)[:, None]
    decode = tl.load(decode_ptr + at, mask=real, other=0).to(tl.float32)
    tl.store(d_decode_ptr + at, d_decoded * hidden[None, :], mask=real)
    return tl.where(hidden > 0, tl.sum(d_decoded * decode, axis=0), 0.0)


@triton.jit
def _rescale_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES: tl.constexpr):
    """The vector-Jacobian product of _rescale.

    Returns the scale (channels) and the gradients of mean and variance (fine), and stores those of
    weight, bias, encoder, omega's and beta's decoder at ``gradients_ptr``, one after the other.
    """
    OMEGA: tl.constexpr = SIZES.omega_activation
    BETA: tl.constexpr = SIZES.beta_activation
    COMBINE: tl.constexpr = SIZES.combine
    C: tl.constexpr = SIZES.channels
    MATRIX: tl.constexpr = SIZES.hidden * SIZES.keys
    c = tl.arange(0, C)
    weight = tl.load(t.weight + c).to(tl.float32)
    bias = tl.load(t.bias + c).to(tl.float32)
    omega_key, beta_key = _keys(mean, var, SIZES)
    omega_hidden = _encode(omega_key, t.encode, SIZES)
    beta_hidden = _encode(beta_key, t.encode, SIZES)
    omega, omega_slope, weight_slope = _combine(
        _decode(omega_hidden, t.decode_omega, SIZES), weight, OMEGA, COMBINE
    )
    _, beta_slope, bias_slope = _combine(
        _decode(beta_hidden, t.decode_beta, SIZES), bias, BETA, COMBINE
    )
    omega -= tl.load(t.omega_offset).to(tl.float32)
    group_mean, group_var = _coarsen(mean, var, SIZES.groups)
    rstd = tl.rsqrt(group_var + eps)
    off_mean = _spread(mean - _spread(group_mean, SIZES.fine), C)

    # scale = omega * rstd; shift = beta + scale * (mean - group_mean)
    scale = omega * _spread(rstd, C)
    d_scale += d_shift * off_mean
    d_off_mean = _fold(d_shift * scale, SIZES.fine)
    d_group_var = -0.5 * rstd * rstd * rstd * _fold(d_scale * omega, SIZES.groups)
    d_mean, d_var = _refine(-_fold(d_off_mean, SIZES.groups), d_group_var, group_mean, mean)
    d_mean += d_off_mean
    d_omega = d_scale * _spread(rstd, C)

    tl.store(gradients_ptr + c, d_omega * weight_slope)
    tl.store(gradients_ptr + C + c, d_shift * bias_slope)
    matrix_ptr = gradients_ptr + 2 * C
    d_omega_hidden = _decode_vjp(
        d_omega * omega_slope, omega_hidden, t.decode_omega, matrix_ptr + MATRIX, SIZES
    )
    d_beta_hidden = _decode_vjp(
        d_shift * beta_slope, beta_hidden, t.decode_beta, matrix_ptr + 2 * MATRIX, SIZES
    )
    at, real, _, _ = _matrices(SIZES)
    encode = tl.load(t.encode + at, mask=real, other=0).to(tl.float32)
    d_encode = d_omega_hidden[:, None] * omega_key[None, :]
    d_encode += d_beta_hidden[:, None] * beta_key[None, :]
    tl.store(matrix_ptr + at, d_encode, mask=real)
    d_omega_key = tl.sum(encode * d_omega_hidden[:, None], axis=0)
    d_beta_key = tl.sum(encode * d_beta_hidden[:, None], axis=0)
    if SIZES.mean_drives_beta:
        d_key_mean = d_beta_key
        d_key_var = d_omega_key
        key_mean = beta_key
    else:
        d_key_mean = d_omega_key
        d_key_var = d_beta_key
        key_mean = omega_key
    d_key_mean, d_key_var = _refine(d_key_mean, d_key_var, key_mean, mean)
    return scale, d_mean + d_key_mean, d_var + d_key_var


@triton.jit
def _corrections(n, d_scale, d_shift, mean, var, t, gradients_ptr, eps, count, SIZES: tl.constexpr):
    """dx's scale (channels), slope and offset (fine); stores instance n's gradients."""
    gradients_ptr += n * (2 * SIZES.channels + 3 * SIZES.hidden * SIZES.keys)
    scale, d_mean, d_var = _rescale_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES)
    return scale, d_var * (2.0 / count), (d_mean - _fold(scale * d_shift, SIZES.fine)) / count


@triton.jit
def _network_kernel(mean_ptr, var_ptr, scale_ptr, shift_ptr, t, eps, SIZES: tl.constexpr):
    """Moments (N, fine) to scale and shift (N, channels), an instance a program."""
    n = tl.program_id(0).to(tl.int64)
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    c = n * SIZES.channels + tl.arange(0, SIZES.channels)
    scale, shift = _rescale(tl.load(mean_ptr + group), tl.load(var_ptr + group), t, eps, SIZES)
    tl.store(scale_ptr + c, scale)
    tl.store(shift_ptr + c, shift)


@triton.jit
def _network_vjp_kernel(
    d_scale_ptr, d_shift_ptr, mean_ptr, var_ptr, scale_ptr, slope_ptr, offset_ptr, gradients_ptr,
    t, eps, count, SIZES: tl.constexpr,
):  # fmt: skip
    """Sums (N, channels) to what dx needs, and each instance's gradients of the parameters."""
    n = tl.program_id(0).to(tl.int64)
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    c = n * SIZES.channels + tl.arange(0, SIZES.channels)
    d_scale = tl.load(d_scale_ptr + c)
    d_shift = tl.load(d_shift_ptr + c)
    mean = tl.load(mean_ptr + group)
    var = tl.load(var_ptr + group)
    scale, slope, offset = _corrections(
        n, d_scale, d_shift, mean, var, t, gradients_ptr, eps, count, SIZES
    )
    tl.store(scale_ptr + c, scale)
    tl.store(slope_ptr + group, slope)
    tl.store(offset_ptr + group, offset)


# ---- one-read kernels: an instance a program, held as (BLOCK_C, BLOCK_L)
#
# Where channels lie last, a row is a channel. Otherwise a row is a fine group, whose channels lie
# beside each other: of 7x7 positions, rows of channels would be neither aligned nor long enough for
# a warp not to spend most of its time on sums over its threads.


@triton.jit
def _instance(chunks, SHAPE: tl.constexpr):
    """This program's instance, where it starts, its offsets, and which of them are inside."""
    n = tl.program_id(0).to(tl.int64)
    length = chunks * SHAPE.vector
    inside = (tl.arange(0, SHAPE.block_l) < length)[None, :]
    inside = tl.broadcast_to(inside, (SHAPE.block_c, SHAPE.block_l))
    return n, n * SHAPE.block_c * length, _offsets(SHAPE.block_c, length, SHAPE), inside


@triton.jit
def _to_elements(values, chunks, SHAPE: tl.constexpr):
    """(channels) to what broadcasts over the elements."""
    in_row: tl.constexpr = values.shape[0] // SHAPE.block_c
    if in_row == 1:
        elements = _spread(values, SHAPE.block_c)[:, None]
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
def _channel_sums(elements, chunks, SHAPE: tl.constexpr, CHANNELS: tl.constexpr):
    """Sums (channels) of elements, which are 0 outside.

    Of a row of several channels, by differences of its running sums.
    """
    in_row: tl.constexpr = CHANNELS // SHAPE.block_c
    if in_row == 1:
        sums = _spread(tl.sum(elements, axis=1), CHANNELS)
    else:
        length = chunks * SHAPE.vector // in_row
        c = tl.arange(0, CHANNELS)
        last = c // in_row * SHAPE.block_l + (c % in_row + 1) * length - 1
        running = tl.cumsum(elements, axis=1)
        running = tl.reshape(running, (SHAPE.block_c * SHAPE.block_l,))
        sums = tl.gather(running, last, 0)
        sums -= tl.where(c % in_row > 0, tl.gather(running, tl.maximum(last - length, 0), 0), 0.0)
    return sums


@triton.jit(do_not_specialize=["chunks"])
def _one_read_kernel(
    x_ptr, y_ptr, mean_ptr, var_ptr, t, eps, count,
    chunks, SHAPE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    n, start, offsets, inside = _instance(chunks, SHAPE)
    x = tl.load(x_ptr + start + offsets, mask=inside, other=0).to(tl.float32)
    mean = _fold(tl.sum(x, axis=1), SIZES.fine) / count
    x = tl.where(inside, x - _spread(mean, SHAPE.block_c)[:, None], 0.0)
    var = _fold(tl.sum(x * x, axis=1), SIZES.fine) / count
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    tl.store(mean_ptr + group, mean)
    tl.store(var_ptr + group, var)
    mean, var = _spread(mean, SIZES.fine), _spread(var, SIZES.fine)
    scale, shift = _rescale(mean, var, t, eps, SIZES)
    y = _to_elements(scale, chunks, SHAPE) * x
    y += _to_elements(shift, chunks, SHAPE)
    tl.store(y_ptr + start + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["chunks"])
def _one_read_vjp_kernel(
    dy_ptr, x_ptr, dx_ptr, mean_ptr, var_ptr, gradients_ptr, t, eps, count,
    chunks, SHAPE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    n, start, offsets, inside = _instance(chunks, SHAPE)
    dy = tl.load(dy_ptr + start + offsets, mask=inside, other=0).to(tl.float32)
    x = tl.load(x_ptr + start + offsets, mask=inside, other=0).to(tl.float32)
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    mean = tl.load(mean_ptr + group)
    var = tl.load(var_ptr + group)
    x -= _spread(mean, SHAPE.block_c)[:, None]
    d_scale = _channel_sums(dy * x, chunks, SHAPE, SIZES.channels)
    d_shift = _channel_sums(dy, chunks, SHAPE, SIZES.channels)
    scale, slope, offset = _corrections(
        n, d_scale, d_shift, mean, var, t, gradients_ptr, eps, count, SIZES
    )
    dx = _to_elements(scale, chunks, SHAPE) * dy
    dx += _spread(slope, SHAPE.block_c)[:, None] * x
    dx += _spread(offset, SHAPE.block_c)[:, None]
    tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# ---- host


def supports(x: Tensor) -> bool:
    """Whether the kernels take x: its device, its dtype, its size."""
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.shape[2:].numel() < 2**30
    )


def _on_device(function: Callable) -> Callable:
    """``function`` with the device of its first argument as the current one."""

    @functools.wraps(function)
    def on_device(x: Tensor, *args):
        with torch.cuda.device_of(x):
            return function(x, *args)

    return on_device


@_on_device
def forward(
    x: Tensor,
    num_groups: int,
    eps: float,
    rescale: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~.kernels.Kernels`."""
    x = dense(x)
    mean, var = moments(x, num_groups)
    scale, shift = rescale(mean, var)
    return affine(x, mean, scale * duplicate((var + eps).rsqrt(), x.shape[1]), shift), mean, var


@_on_device
def sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """See :class:`~.kernels.Kernels`."""
    x = dense(x)
    d_scale, d_shift = centered_sums(_laid_out(dy, x), x, mean)
    return d_scale * duplicate(rstd, x.shape[1]), d_shift


@_on_device
def dx(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """See :class:`~.kernels.Kernels`."""
    x = dense(x)
    d_x = torch.empty_like(x)
    _elementwise(_dx_kernel, (_laid_out(dy, x), x, d_x), (mean, scale, slope, offset))
    return d_x


def runnable(
    network: Callable[[], Autoencoder] | None, x: Tensor, num_groups: int
) -> Autoencoder | None:
    """See :class:`~.kernels.Kernels`."""
    found = network and network()
    return found if found and _sizes(x, num_groups, found) else None


@_on_device
def network_forward(
    x: Tensor, num_groups: int, network: Autoencoder, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~.kernels.Kernels`."""
    x, sizes = dense(x), _sizes(x, num_groups, network)
    pointers = _pointers(x, network, tensors)
    if shape := _one_read_shape(x, sizes):
        y, (mean, var) = torch.empty_like(x), _new(x, 2, num_groups)
        _one_read(_one_read_kernel, x, (x, y, mean, var), pointers, network, shape, sizes)
        return y, mean, var
    mean, var = moments(x, num_groups)
    scale, shift = _new(x, 2, x.shape[1])
    _network(_network_kernel, (mean, var, scale, shift), pointers, network, sizes)
    return affine(x, mean, scale, shift), mean, var


@_on_device
def network_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Autoencoder,
    tensors: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """See :class:`~.kernels.Kernels`."""
    x, num_groups = dense(x), mean.shape[1]
    dy, sizes = _laid_out(dy, x), _sizes(x, num_groups, network)
    pointers = _pointers(x, network, tensors)
    (gradients,) = _new(x, 1, 2 * sizes.channels + 3 * sizes.hidden * sizes.keys)
    if shape := _one_read_shape(x, sizes):
        d_x = torch.empty_like(x)
        maps = dy, x, d_x, mean, var, gradients
        _one_read(_one_read_vjp_kernel, x, maps, pointers, network, shape, sizes)
    else:
        d_scale, d_shift = centered_sums(dy, x, mean)
        (scale,), (slope, offset) = _new(x, 1, x.shape[1]), _new(x, 2, num_groups)
        values = d_scale, d_shift, mean, var, scale, slope, offset, gradients
        count = float(x[0].numel() // num_groups)
        _network(_network_vjp_kernel, values, pointers, network, sizes, count)
        d_x = dx(dy, x, mean, scale, slope, offset)
    return d_x, _split_gradients(gradients, tensors, sizes)


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(N, G') means and biased variances in float32."""
    n, c = x.shape[:2]
    tiling = _Tiling.of(x)
    mean, var = _new(x, 2, c * tiling.splits)
    _launch(
        _moments_kernel, n * tiling.blocks * tiling.splits, x, mean, var,
        c, tiling.chunks, tiling.splits, tiling.split_tiles, tiling.shape, num_warps=tiling.warps,
    )  # fmt: skip
    rows, run = n * num_groups, c // num_groups * tiling.splits
    if run == 1:
        return mean, var
    pooled = _new(x, 2, num_groups)
    block = min(triton.next_power_of_2(run), 1024)
    block_rows = min(triton.next_power_of_2(rows), 1024 // block)
    length = x.shape[2:].numel()
    split_length, count = tiling.split_tiles * tiling.shape.block_l, c // num_groups * length
    _launch(
        _pool_kernel, triton.cdiv(rows, block_rows), mean, var, *pooled,
        rows, run, tiling.splits, split_length, length, float(count), block_rows, block,
    )  # fmt: skip
    return pooled


def affine(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * (x - mean) + shift, of mean (N, G'), scale and shift (N, C) in float32."""
    y = torch.empty_like(x)
    _elementwise(_affine_kernel, (x, y), (mean, scale, shift))
    return y


def centered_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) sums over the map of dy * (x - mean) and of dy, in float32."""
    n, c = x.shape[:2]
    tiling = _Tiling.of(x)
    of_splits = x.new_empty((2, n, c, tiling.splits), dtype=torch.float32)
    _launch(
        _sums_kernel, n * tiling.blocks * tiling.splits, dy, x, mean, *of_splits.unbind(),
        c, c // mean.shape[1], tiling.chunks, tiling.splits, tiling.split_tiles, tiling.shape,
        num_warps=tiling.warps,
    )  # fmt: skip
    return (of_splits.squeeze(3) if tiling.splits == 1 else of_splits.sum(3)).unbind()


class Launch(NamedTuple):
    """A kernel's launch; ``kernel.warmup(*args, grid=grid, **options)`` compiles it."""

    kernel: Any
    grid: tuple[int]
    args: tuple
    options: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """List launches instead of making them, to compile them ahead: tensors may be on "meta"."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


def _launch(kernel, programs: int, *args, **options) -> None:
    if _recorded is None:
        kernel[(programs,)](*args, **options)
    else:
        _recorded.append(Launch(kernel, (programs,), args, options))


class _Tiling(NamedTuple):
    """How the streaming kernels cut a map into tiles, and a channel's tiles into splits."""

    shape: Shape
    warps: int
    blocks: int  #: of channels
    chunks: int  #: of shape.vector positions
    tiles: int  #: along the positions
    splits: int
    split_tiles: int  #: in a split, but the last

    @classmethod
    def of(cls, x: Tensor) -> "_Tiling":
        n, c = x.shape[:2]
        length = x.shape[2:].numel()
        padded_c, padded_length = triton.next_power_of_2(c), triton.next_power_of_2(length)
        if x.is_contiguous():
            block_l = min(padded_length, TILE)
            block_c = min(padded_c, TILE // block_l)
        else:
            block_c = min(padded_c, CHANNELS, TILE)
            block_l = min(padded_length, TILE // block_c)
        shape = _shape(x, length, block_c, block_l)
        blocks, tiles = triton.cdiv(c, block_c), triton.cdiv(length, block_l)
        splits = triton.cdiv(PROGRAMS * _multiprocessors(x.device), n * blocks)
        split_tiles = max(2, triton.cdiv(tiles, splits))
        splits = triton.cdiv(tiles, split_tiles)
        warps = min(8, max(1, block_c * block_l // 512))
        return cls(shape, warps, blocks, length // shape.vector, tiles, splits, split_tiles)


def _shape(x: Tensor, length: int, block_c: int, block_l: int) -> Shape:
    last = not x.is_contiguous()
    return Shape(1 if last else min(16, length & -length), last, block_c, block_l)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # an H200's, for the interpreter and for compiling ahead
    return torch.cuda.get_device_properties(device).multi_processor_count


def _laid_out(dy: Tensor, x: Tensor) -> Tensor:
    """dy with the layout of x."""
    if x.is_contiguous():
        return dy.contiguous()
    return dy.movedim(1, -1).contiguous().movedim(-1, 1)


def _new(x: Tensor, count: int, columns: int) -> tuple[Tensor, ...]:
    """``count`` empty tensors (N, columns) in float32."""
    return x.new_empty((count, len(x), columns), dtype=torch.float32).unbind()


def _elementwise(kernel, maps: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    (n, c), groups = maps[0].shape[:2], values[0].shape[1]
    tiling = _Tiling.of(maps[0])
    _launch(
        kernel, n * tiling.blocks * tiling.tiles, *maps, *(t.contiguous() for t in values),
        c, c // groups, tiling.chunks, tiling.shape, num_warps=tiling.warps,
    )  # fmt: skip


def _sizes(x: Tensor, num_groups: int, network: Autoencoder) -> Sizes | None:
    """The sizes for the kernels that run the network, or None where these cannot."""
    c, hidden, keys = x.shape[1], network.hidden, network.num_key_groups
    padded_hidden = triton.next_power_of_2(hidden)
    activations, combine = network.activations, network.combine
    if (
        any(size & (size - 1) for size in (c, num_groups, network.num_groups, keys))
        or padded_hidden * keys > MATRIX
        or c > VECTOR
        or not set(activations) <= set(ACTIVATIONS)
        or combine not in COMBINE
    ):
        return None
    mean_drives_beta = network.mean_drives == "beta"
    return Sizes(
        channels=c,
        fine=num_groups,
        groups=network.num_groups,
        keys=keys,
        hidden=hidden,
        padded_hidden=padded_hidden,
        mean_drives_beta=mean_drives_beta,
        omega_activation=activations[mean_drives_beta],
        beta_activation=activations[not mean_drives_beta],
        combine=combine,
    )


def _pointers(x: Tensor, network: Autoencoder, tensors: tuple[Tensor, ...]) -> Tensors:
    for tensor in tensors:
        if tensor.device != x.device:
            raise RuntimeError(
                f"got an input on {x.device} and a parameter on {tensor.device}; "
                "move both to the same device"
            )
    weight, bias, encode, decode_mean, decode_var, omega_offset = tensors
    if network.mean_drives == "beta":
        decoders = decode_var, decode_mean
    else:
        decoders = decode_mean, decode_var
    tensors = weight, bias, encode, *decoders, omega_offset
    return Tensors(*(t.detach().contiguous() for t in tensors))


def _network(
    kernel, values, pointers: Tensors, network: Autoencoder, sizes: Sizes, *count: float
) -> None:
    elements = max(sizes.padded_hidden * sizes.keys // 2, sizes.channels)
    _launch(
        kernel, len(values[0]), *values, pointers, float(network.eps), *count, sizes,
        num_warps=min(16, max(4, elements // 256)),
    )  # fmt: skip


def _one_read_shape(x: Tensor, sizes: Sizes) -> Shape | None:
    """How a one-read kernel holds an instance, or None where that has too many elements."""
    rows = sizes.fine if x.is_contiguous() else sizes.channels
    length = x[0].numel() // rows
    shape = _shape(x, length, rows, triton.next_power_of_2(length))
    if (
        shape.block_c * shape.block_l > ONE_READ
        or sizes.padded_hidden * sizes.keys > ONE_READ_MATRIX
    ):
        return None
    return shape


def _one_read(
    kernel, x: Tensor, maps, pointers: Tensors, network: Autoencoder, shape: Shape, sizes: Sizes
) -> None:
    chunks = x[0].numel() // (shape.block_c * shape.vector)
    _launch(
        kernel, x.shape[0], *maps, pointers, float(network.eps),
        float(x[0].numel() // sizes.fine), chunks, shape, sizes,
        num_warps=min(16, max(4, shape.block_c * shape.block_l // 1024)),
    )  # fmt: skip


def _split_gradients(
    gradients: Tensor, tensors: tuple[Tensor, ...], sizes: Sizes
) -> tuple[Tensor | None, ...]:
    c, matrix = sizes.channels, sizes.hidden * sizes.keys
    total = gradients.sum(0) if len(gradients) > 1 else gradients[0]
    weight, bias, encode, omega, beta = total.split((c, c, matrix, matrix, matrix))
    decoders = (beta, omega) if sizes.mean_drives_beta else (omega, beta)
    found = weight, bias, encode, *decoders
    return *(d.view_as(t) for d, t in zip(found, tensors, strict=False)), None
