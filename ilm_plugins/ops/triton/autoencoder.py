"""The kernels of the auto-encoder alone, and the one-read kernels, which do the whole layer."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..networks import Autoencoder
from .launching import launch, new, warps_for
from .streaming import Shape, affine, centered_sums, dx, moments, shape_of, tile_offsets
from .vectors import activate, coarsen, fold, refine, spread

#: Elements of an instance, padded to powers of two, that a one-read kernel holds in its registers:
#: 32 a thread on 16 warps, of x and of dy.
ONE_READ = 16384

#: Elements of an encoder or decoder, padded, that a program holds beside that, and without that;
#: and channels of an auto-encoder's vectors.
ONE_READ_MATRIX = 4096
MATRIX = 16384
VECTOR = 4096

ACTIVATIONS = ("tanh", "sigmoid", "relu", "leaky_relu", "relu6", "identity")
COMBINE = ("a(WE)", "a(WE+B)", "a(WE)*B", "a(WE)+B")


class Tensors(NamedTuple):
    """An auto-encoder's tensors; pointers to them in a kernel."""

    weight: Tensor
    bias: Tensor
    encode: Tensor
    decode_mean: Tensor
    decode_var: Tensor
    omega_offset: Tensor


class Sizes(NamedTuple):
    """The compile-time constants that describe an auto-encoder."""

    channels: int
    fine: int  #: groups whose moments come in
    groups: int  #: of the standardization
    keys: int
    hidden: int
    padded_hidden: int
    mean_drives_beta: bool
    mean_activation: str
    var_activation: str
    combine: str


# ---- the auto-encoder of one instance


@triton.jit
def _combine(decoded, b, offset, ACTIVATION: tl.constexpr, COMBINE: tl.constexpr):
    """AssocNorm's Table 5: omega or beta, and its derivatives by ``decoded`` and by B.

    ``offset`` is subtracted from what the activation gives.
    """
    if COMBINE == "a(WE+B)":
        y, slope = activate(decoded + b, ACTIVATION)
        y -= offset
        b_slope = slope
    else:
        y, slope = activate(decoded, ACTIVATION)
        y -= offset
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
    return spread(tl.sum(decode * hidden[None, :], axis=1), SIZES.channels)


@triton.jit
def _omega_and_beta(from_mean, from_var, weight, bias, omega_offset, SIZES: tl.constexpr):
    """Decoded vectors (channels) to omega with its two derivatives, and beta with its two."""
    MEAN: tl.constexpr = SIZES.mean_activation
    VAR: tl.constexpr = SIZES.var_activation
    COMBINE: tl.constexpr = SIZES.combine
    if SIZES.mean_drives_beta:
        omega, omega_slope, weight_slope = _combine(from_var, weight, omega_offset, VAR, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_mean, bias, 0.0, MEAN, COMBINE)
    else:
        omega, omega_slope, weight_slope = _combine(from_mean, weight, omega_offset, MEAN, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_var, bias, 0.0, VAR, COMBINE)
    return omega, omega_slope, weight_slope, beta, beta_slope, bias_slope


@triton.jit
def _rescale(mean, var, t, eps, SIZES: tl.constexpr):
    """Moments (fine) of an instance to scale and shift (channels)."""
    c = tl.arange(0, SIZES.channels)
    weight = tl.load(t.weight + c).to(tl.float32)
    bias = tl.load(t.bias + c).to(tl.float32)
    omega_offset = tl.load(t.omega_offset).to(tl.float32)
    key_mean, key_var = coarsen(mean, var, SIZES.keys)  # Eq. 3
    from_mean = _decode(_encode(key_mean, t.encode, SIZES), t.decode_mean, SIZES)
    from_var = _decode(_encode(key_var, t.encode, SIZES), t.decode_var, SIZES)
    omega, _, _, beta, _, _ = _omega_and_beta(
        from_mean, from_var, weight, bias, omega_offset, SIZES
    )

    group_mean, group_var = coarsen(mean, var, SIZES.groups)
    scale = omega * spread(tl.rsqrt(group_var + eps), SIZES.channels)
    off_mean = mean - spread(group_mean, SIZES.fine)
    return scale, beta + scale * spread(off_mean, SIZES.channels)


@triton.jit
def _decode_vjp(d_decoded, hidden, decode_ptr, d_decode_ptr, SIZES: tl.constexpr):
    """Stores a decoder's gradient; returns that of the embedding, before its ReLU."""
    _, _, at, real = _matrices(SIZES)
    d_decoded = spread(fold(d_decoded, SIZES.keys), SIZES.keys)[:, None]
    decode = tl.load(decode_ptr + at, mask=real, other=0).to(tl.float32)
    tl.store(d_decode_ptr + at, d_decoded * hidden[None, :], mask=real)
    return tl.where(hidden > 0, tl.sum(d_decoded * decode, axis=0), 0.0)


@triton.jit
def _rescale_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES: tl.constexpr):
    """The vector-Jacobian product of _rescale.

    Returns the scale (channels) and the gradients of mean and variance (fine), and stores those of
    weight, bias, encoder, and both decoders at ``gradients_ptr``, one after the other.
    """
    C: tl.constexpr = SIZES.channels
    MATRIX: tl.constexpr = SIZES.hidden * SIZES.keys
    c = tl.arange(0, C)
    weight = tl.load(t.weight + c).to(tl.float32)
    bias = tl.load(t.bias + c).to(tl.float32)
    omega_offset = tl.load(t.omega_offset).to(tl.float32)
    key_mean, key_var = coarsen(mean, var, SIZES.keys)
    mean_hidden = _encode(key_mean, t.encode, SIZES)
    var_hidden = _encode(key_var, t.encode, SIZES)
    from_mean = _decode(mean_hidden, t.decode_mean, SIZES)
    from_var = _decode(var_hidden, t.decode_var, SIZES)
    omega, omega_slope, weight_slope, _, beta_slope, bias_slope = _omega_and_beta(
        from_mean, from_var, weight, bias, omega_offset, SIZES
    )
    group_mean, group_var = coarsen(mean, var, SIZES.groups)
    rstd = tl.rsqrt(group_var + eps)
    off_mean = spread(mean - spread(group_mean, SIZES.fine), C)

    # scale = omega * rstd; shift = beta + scale * (mean - group_mean)
    scale = omega * spread(rstd, C)
    d_scale += d_shift * off_mean
    d_off_mean = fold(d_shift * scale, SIZES.fine)
    d_group_var = -0.5 * rstd * rstd * rstd * fold(d_scale * omega, SIZES.groups)
    d_mean, d_var = refine(-fold(d_off_mean, SIZES.groups), d_group_var, group_mean, mean)
    d_mean += d_off_mean
    d_omega = d_scale * spread(rstd, C)

    tl.store(gradients_ptr + c, d_omega * weight_slope)
    tl.store(gradients_ptr + C + c, d_shift * bias_slope)
    matrix_ptr = gradients_ptr + 2 * C
    if SIZES.mean_drives_beta:
        d_from_mean = d_shift * beta_slope
        d_from_var = d_omega * omega_slope
    else:
        d_from_mean = d_omega * omega_slope
        d_from_var = d_shift * beta_slope
    d_mean_hidden = _decode_vjp(d_from_mean, mean_hidden, t.decode_mean, matrix_ptr + MATRIX, SIZES)
    d_var_hidden = _decode_vjp(d_from_var, var_hidden, t.decode_var, matrix_ptr + 2 * MATRIX, SIZES)
    at, real, _, _ = _matrices(SIZES)
    encode = tl.load(t.encode + at, mask=real, other=0).to(tl.float32)
    d_encode = d_mean_hidden[:, None] * key_mean[None, :]
    d_encode += d_var_hidden[:, None] * key_var[None, :]
    tl.store(matrix_ptr + at, d_encode, mask=real)
    d_key_mean = tl.sum(encode * d_mean_hidden[:, None], axis=0)
    d_key_var = tl.sum(encode * d_var_hidden[:, None], axis=0)
    d_key_mean, d_key_var = refine(d_key_mean, d_key_var, key_mean, mean)
    return scale, d_mean + d_key_mean, d_var + d_key_var


@triton.jit
def _corrections(n, d_scale, d_shift, mean, var, t, gradients_ptr, eps, count, SIZES: tl.constexpr):
    """dx's scale (channels), slope and offset (fine); stores instance n's gradients."""
    gradients_ptr += n * (2 * SIZES.channels + 3 * SIZES.hidden * SIZES.keys)
    scale, d_mean, d_var = _rescale_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES)
    return scale, d_var * (2.0 / count), (d_mean - fold(scale * d_shift, SIZES.fine)) / count


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
    return n, n * SHAPE.block_c * length, tile_offsets(SHAPE.block_c, length, SHAPE), inside


@triton.jit
def _to_elements(values, chunks, SHAPE: tl.constexpr):
    """(channels) to what broadcasts over the elements."""
    in_row: tl.constexpr = values.shape[0] // SHAPE.block_c
    if in_row == 1:
        elements = spread(values, SHAPE.block_c)[:, None]
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
        sums = spread(tl.sum(elements, axis=1), CHANNELS)
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
    mean = fold(tl.sum(x, axis=1), SIZES.fine) / count
    x = tl.where(inside, x - spread(mean, SHAPE.block_c)[:, None], 0.0)
    var = fold(tl.sum(x * x, axis=1), SIZES.fine) / count
    group = n * SIZES.fine + tl.arange(0, SIZES.fine)
    tl.store(mean_ptr + group, mean)
    tl.store(var_ptr + group, var)
    mean, var = spread(mean, SIZES.fine), spread(var, SIZES.fine)
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
    x -= spread(mean, SHAPE.block_c)[:, None]
    d_scale = _channel_sums(dy * x, chunks, SHAPE, SIZES.channels)
    d_shift = _channel_sums(dy, chunks, SHAPE, SIZES.channels)
    scale, slope, offset = _corrections(
        n, d_scale, d_shift, mean, var, t, gradients_ptr, eps, count, SIZES
    )
    d_x = _to_elements(scale, chunks, SHAPE) * dy
    d_x += spread(slope, SHAPE.block_c)[:, None] * x
    d_x += spread(offset, SHAPE.block_c)[:, None]
    tl.store(dx_ptr + start + offsets, d_x.to(dx_ptr.dtype.element_ty), mask=inside)


# ---- host


def runs(network: Autoencoder, x: Tensor, num_groups: int) -> bool:
    """Whether these kernels compute the network's rescale."""
    return _sizes(x, num_groups, network) is not None


def forward(
    x: Tensor, num_groups: int, network: Autoencoder, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~..networks.Kernels`; x has one of the layouts."""
    sizes, pointers = _sizes(x, num_groups, network), _pointers(tensors)
    if shape := _one_read_shape(x, sizes):
        y, (mean, var) = torch.empty_like(x), new(x, 2, num_groups)
        _one_read(_one_read_kernel, x, (x, y, mean, var), pointers, network, shape, sizes)
        return y, mean, var
    mean, var = moments(x, num_groups)
    scale, shift = new(x, 2, x.shape[1])
    _network(_network_kernel, (mean, var, scale, shift), pointers, network, sizes)
    return affine(x, mean, scale, shift), mean, var


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Autoencoder,
    tensors: tuple[Tensor, ...],
    needs_x: bool,
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """See :class:`~..networks.Kernels`; x and dy have one layout."""
    num_groups = mean.shape[1]
    sizes, pointers = _sizes(x, num_groups, network), _pointers(tensors)
    (gradients,) = new(x, 1, 2 * sizes.channels + 3 * sizes.hidden * sizes.keys)
    d_x = None
    if shape := _one_read_shape(x, sizes):
        d_x = torch.empty_like(x)
        maps = dy, x, d_x, mean, var, gradients
        _one_read(_one_read_vjp_kernel, x, maps, pointers, network, shape, sizes)
    else:
        d_scale, d_shift = centered_sums(dy, x, mean)
        (scale,), (slope, offset) = new(x, 1, x.shape[1]), new(x, 2, num_groups)
        values = d_scale, d_shift, mean, var, scale, slope, offset, gradients
        count = float(x[0].numel() // num_groups)
        _network(_network_vjp_kernel, values, pointers, network, sizes, count)
        if needs_x:
            d_x = dx(dy, x, mean, scale, slope, offset)
    return d_x if needs_x else None, _split_gradients(gradients, tensors, sizes)


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
    return Sizes(
        channels=c,
        fine=num_groups,
        groups=network.num_groups,
        keys=keys,
        hidden=hidden,
        padded_hidden=padded_hidden,
        mean_drives_beta=network.mean_drives == "beta",
        mean_activation=activations[0],
        var_activation=activations[1],
        combine=combine,
    )


def _pointers(tensors: tuple[Tensor, ...]) -> Tensors:
    return Tensors(*(t.detach().contiguous() for t in tensors))


def _network(
    kernel, values, pointers: Tensors, network: Autoencoder, sizes: Sizes, *count: float
) -> None:
    launch(
        kernel, len(values[0]), *values, pointers, float(network.eps), *count, sizes,
        num_warps=warps_for(sizes.channels, sizes.padded_hidden * sizes.keys),
    )  # fmt: skip


def _one_read_shape(x: Tensor, sizes: Sizes) -> Shape | None:
    """How a one-read kernel holds an instance, or None where that has too many elements."""
    rows = sizes.fine if x.is_contiguous() else sizes.channels
    length = x[0].numel() // rows
    shape = shape_of(x, length, rows, triton.next_power_of_2(length))
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
    launch(
        kernel, x.shape[0], *maps, pointers, float(network.eps),
        float(x[0].numel() // sizes.fine), chunks, shape, sizes,
        num_warps=min(16, max(4, shape.block_c * shape.block_l // 1024)),
    )  # fmt: skip


def _split_gradients(
    gradients: Tensor, tensors: tuple[Tensor, ...], sizes: Sizes
) -> tuple[Tensor | None, ...]:
    c, matrix = sizes.channels, sizes.hidden * sizes.keys
    total = gradients.sum(0) if len(gradients) > 1 else gradients[0]
    found = total.split((c, c, matrix, matrix, matrix))
    return *(d.view_as(t) for d, t in zip(found, tensors, strict=False)), None
