"""The mixtures of normalizers by one kernel each way, with one program for each instance.

Each way, the K normalizers are taken one after the other, and twice where something of all of them
is needed in between, because to compute a vector of channels again takes fewer registers than to
keep K of them. Any number of channels goes: vectors are padded with zeros.

BN's statistics of the batch are what couples instances. One more kernel pools them, and one adds
what comes back through them to what dx needs::

    forward    moments -> batch -> mixture -> affine
    backward   sums    -> batch -> vjp     -> couple -> dx
"""

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..networks import Exemplar, Switch
from .launching import launch, new, warps_for
from .streaming import affine, centered_sums, dx, moments
from .vectors import activate, fold, spread

#: Channels of a program's vectors; elements, padded, of hidden values by normalizers.
VECTOR = 4096
MATRIX = 4096

#: Instances by channels of a tile of the kernel that pools the batch's moments.
BATCH_TILE = (16, 64)


class ExemplarTensors(NamedTuple):
    """EN's tensors; pointers to them in a kernel. BN's moments are None without BN."""

    weight: Tensor
    bias: Tensor
    reduce: Tensor
    expand: Tensor
    expand_bias: Tensor
    ratio: Tensor
    ratio_bias: Tensor
    batch_mean: Tensor | None
    batch_var: Tensor | None


class SwitchTensors(NamedTuple):
    """SN's tensors, as ExemplarTensors."""

    weight: Tensor
    bias: Tensor
    mean_weight: Tensor
    var_weight: Tensor
    batch_mean: Tensor | None
    batch_var: Tensor | None


class Sizes(NamedTuple):
    """The compile-time constants that describe a mixture."""

    is_exemplar: bool
    normalizers: tuple[str, ...]
    rows: int  #: normalizers, padded
    channels: int
    padded_channels: int
    hidden: int
    padded_hidden: int
    reduction: int
    activation: str
    shared_affine: bool
    couples: bool  #: BN's statistics are the batch's
    gradients: int  #: of one instance: of the parameters, and of the batch's moments


# ---- the statistics of one instance, seen from its means


@triton.jit
def _load(ptr, at, exists):
    return tl.load(ptr + at, mask=exists, other=0).to(tl.float32)


@triton.jit
def _channels(SIZES: tl.constexpr):
    """The padded channels' numbers, and a mask of the real ones."""
    c = tl.arange(0, SIZES.padded_channels)
    return c, c < SIZES.channels


@triton.jit
def _off_layer(mean, SIZES: tl.constexpr):
    """The means minus LN's mean, 0 in the padding."""
    _, exists = _channels(SIZES)
    return tl.where(exists, mean - tl.sum(mean, axis=0) / SIZES.channels, 0.0)


@triton.jit
def _statistics(i: tl.constexpr, mean, var, t, SIZES: tl.constexpr):
    """The offset mean - mu_i to normalizer i's mean, and its variance (padded channels)."""
    NAME: tl.constexpr = SIZES.normalizers[i]
    if NAME == "IN":
        offset = tl.zeros_like(mean)
        of_var = var
    elif NAME == "LN":
        offset = _off_layer(mean, SIZES)
        total = tl.sum(var + offset * offset, axis=0) / SIZES.channels
        of_var = tl.zeros_like(var) + total
    else:
        c, exists = _channels(SIZES)
        offset = mean - _load(t.batch_mean, c, exists)
        of_var = _load(t.batch_var, c, exists)
    return offset, of_var


@triton.jit
def _statistics_vjp(i: tl.constexpr, d_offset, d_of_var, mean, gradients_ptr, SIZES: tl.constexpr):
    """The vector-Jacobian product of _statistics: its terms of the gradients of mean and var.

    Stores the gradients of the batch's moments at the end of the instance's gradients.
    """
    NAME: tl.constexpr = SIZES.normalizers[i]
    if NAME == "IN":
        d_mean = tl.zeros_like(mean)
        d_var = d_of_var
    elif NAME == "LN":
        d_var = tl.zeros_like(mean) + tl.sum(d_of_var, axis=0) / SIZES.channels
        d_mean = d_offset - tl.sum(d_offset, axis=0) / SIZES.channels
        d_mean += 2.0 * d_var * _off_layer(mean, SIZES)
    else:
        d_mean = d_offset
        d_var = tl.zeros_like(mean)
        if SIZES.couples:
            c, exists = _channels(SIZES)
            batch_ptr = gradients_ptr + SIZES.gradients - 2 * SIZES.channels
            tl.store(batch_ptr + c, -d_offset, mask=exists)
            tl.store(batch_ptr + SIZES.channels + c, d_of_var, mask=exists)
    return d_mean, d_var


@triton.jit
def _row(values, i):
    """(rows, J) to the i-th row (J)."""
    return tl.sum(tl.where(tl.arange(0, values.shape[0])[:, None] == i, values, 0.0), axis=0)


@triton.jit
def _element(values, i):
    """(rows) to the i-th, a scalar."""
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == i, values, 0.0), axis=0)


@triton.jit
def _softmax(logits, SIZES: tl.constexpr):
    """(rows) to ratios, zeros in the padding."""
    exists = tl.arange(0, SIZES.rows) < len(SIZES.normalizers)
    logits = tl.where(exists, logits, -float("inf"))
    ratios = tl.exp(logits - tl.max(logits, axis=0))
    return ratios / tl.sum(ratios, axis=0)


# ---- Exemplar Normalization
#
#     r_k = rsqrt(var_k + eps), u_k = (mean - mu_k) r_k, z_k = sums of runs of reduce * u_k
#     v = z z^T, ratios = softmax(ratio act(expand v + expand_bias) + ratio_bias)
#     scale = sum of ratios_k weight_k r_k, shift = sum of ratios_k weight_k u_k + bias_k


@triton.jit
def _reduced(mean, var, t, eps, SIZES: tl.constexpr):
    """z (rows, runs), zeros in the padding."""
    ROWS: tl.constexpr = SIZES.rows
    RUNS: tl.constexpr = SIZES.padded_channels // SIZES.reduction
    c, exists = _channels(SIZES)
    reduce = _load(t.reduce, c, exists)
    row = tl.arange(0, ROWS)[:, None]
    z = tl.zeros((ROWS, RUNS), tl.float32)
    for i in tl.static_range(len(SIZES.normalizers)):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        u = offset * tl.rsqrt(of_var + eps)
        z = tl.where(row == i, fold(reduce * u, RUNS)[None, :], z)
    return z


@triton.jit
def _hidden(SIZES: tl.constexpr):
    """The hidden values, padded, and which of them exist."""
    h = tl.arange(0, SIZES.padded_hidden)
    return h, h < SIZES.hidden


@triton.jit
def _expand(j: tl.constexpr, SIZES: tl.constexpr):
    """Offsets (padded hidden, rows) of the weights that meet the j-th column of v, and a mask."""
    K: tl.constexpr = len(SIZES.normalizers)
    h, exists = _hidden(SIZES)
    row = tl.arange(0, SIZES.rows)
    return h[:, None] * (K * K) + row[None, :] * K + j, exists[:, None] & (row < K)[None, :]


@triton.jit
def _ratio(SIZES: tl.constexpr):
    """Offsets (rows, padded hidden) of the second map's weights, and a mask."""
    h, exists = _hidden(SIZES)
    row = tl.arange(0, SIZES.rows)
    exists = (row < len(SIZES.normalizers))[:, None] & exists[None, :]
    return row[:, None] * SIZES.hidden + h[None, :], exists


@triton.jit
def _ratios(z, t, SIZES: tl.constexpr):
    """z to the ratios (rows), the activation's values and slopes (padded hidden)."""
    ACTIVATION: tl.constexpr = SIZES.activation
    h, exists = _hidden(SIZES)
    hidden = _load(t.expand_bias, h, exists)
    for j in tl.static_range(len(SIZES.normalizers)):
        v = tl.sum(z * _row(z, j)[None, :], axis=1)
        at, real = _expand(j, SIZES)
        hidden += tl.sum(_load(t.expand, at, real) * v[None, :], axis=1)
    hidden, slope = activate(hidden, ACTIVATION)
    at, real = _ratio(SIZES)
    row = tl.arange(0, SIZES.rows)
    logits = _load(t.ratio_bias, row, row < len(SIZES.normalizers))
    logits += tl.sum(_load(t.ratio, at, real) * hidden[None, :], axis=1)
    return _softmax(logits, SIZES), hidden, slope


@triton.jit
def _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, gradients_ptr, SIZES: tl.constexpr):
    """The vector-Jacobian product of _ratios: that of z; stores those of both linear maps."""
    K: tl.constexpr = len(SIZES.normalizers)
    h, exists = _hidden(SIZES)
    row = tl.arange(0, SIZES.rows)
    expand_bias_ptr = gradients_ptr + SIZES.hidden * K * K
    ratio_ptr = expand_bias_ptr + SIZES.hidden
    d_logits = ratios * (d_ratios - tl.sum(ratios * d_ratios, axis=0))
    tl.store(ratio_ptr + K * SIZES.hidden + row, d_logits, mask=row < K)
    at, real = _ratio(SIZES)
    tl.store(ratio_ptr + at, d_logits[:, None] * hidden[None, :], mask=real)
    d_hidden = slope * tl.sum(d_logits[:, None] * _load(t.ratio, at, real), axis=0)
    tl.store(expand_bias_ptr + h, d_hidden, mask=exists)
    d_z = tl.zeros_like(z)
    for j in tl.static_range(K):
        z_j = _row(z, j)[None, :]
        v = tl.sum(z * z_j, axis=1)
        at, real = _expand(j, SIZES)
        tl.store(gradients_ptr + at, d_hidden[:, None] * v[None, :], mask=real)
        d_v = tl.sum(_load(t.expand, at, real) * d_hidden[:, None], axis=0)[:, None]
        d_z += d_v * z_j
        d_z += tl.where(row[:, None] == j, tl.sum(d_v * z, axis=0)[None, :], 0.0)
    return d_z


@triton.jit
def _weight(i: tl.constexpr, ptr, SIZES: tl.constexpr):
    """The i-th normalizer's weight or bias (padded channels)."""
    c, exists = _channels(SIZES)
    return _load(ptr, c if SIZES.shared_affine else i * SIZES.channels + c, exists)


@triton.jit
def _exemplar(mean, var, t, eps, SIZES: tl.constexpr):
    """Moments (padded channels) of an instance to scale and shift."""
    ratios, _, _ = _ratios(_reduced(mean, var, t, eps, SIZES), t, SIZES)
    scale = tl.zeros_like(mean)
    shift = tl.zeros_like(mean)
    for i in tl.static_range(len(SIZES.normalizers)):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        gain = _element(ratios, i) * _weight(i, t.weight, SIZES)
        rstd = tl.rsqrt(of_var + eps)
        scale += gain * rstd
        shift += gain * rstd * offset
        if i == 0 or not SIZES.shared_affine:
            shift += _weight(i, t.bias, SIZES)
    return scale, shift


@triton.jit
def _exemplar_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES: tl.constexpr):
    """The vector-Jacobian product of _exemplar.

    Returns the scale and the gradients of mean and variance; stores at ``gradients_ptr`` those of
    weight, of bias, which all normalizers have in common, and of the other tensors in their order.
    """
    K: tl.constexpr = len(SIZES.normalizers)
    C: tl.constexpr = SIZES.channels
    bias_ptr = gradients_ptr + (C if SIZES.shared_affine else K * C)
    reduce_ptr = bias_ptr + C
    c, exists = _channels(SIZES)
    row = tl.arange(0, SIZES.rows)
    z = _reduced(mean, var, t, eps, SIZES)
    ratios, hidden, slope = _ratios(z, t, SIZES)

    scale = tl.zeros_like(mean)
    d_weight = tl.zeros_like(mean)
    d_ratios = tl.zeros_like(ratios)
    for i in tl.static_range(K):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        weight = _weight(i, t.weight, SIZES)
        ratio = _element(ratios, i)
        rstd = tl.rsqrt(of_var + eps)
        d_gain = (d_scale + d_shift * offset) * rstd
        scale += ratio * weight * rstd
        d_ratios = tl.where(row == i, tl.sum(weight * d_gain, axis=0), d_ratios)
        if SIZES.shared_affine:
            d_weight += ratio * d_gain
        else:
            tl.store(gradients_ptr + i * C + c, ratio * d_gain, mask=exists)
    if SIZES.shared_affine:
        tl.store(gradients_ptr + c, d_weight, mask=exists)
    tl.store(bias_ptr + c, d_shift, mask=exists)
    d_z = _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, reduce_ptr + C, SIZES)

    reduce = _load(t.reduce, c, exists)
    d_reduce = tl.zeros_like(mean)
    d_mean = tl.zeros_like(mean)
    d_var = tl.zeros_like(mean)
    for i in tl.static_range(K):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        gain = _element(ratios, i) * _weight(i, t.weight, SIZES)
        rstd = tl.rsqrt(of_var + eps)
        d_run = spread(_row(d_z, i), SIZES.padded_channels)
        d_u = d_shift * gain + reduce * d_run
        d_reduce += d_run * offset * rstd
        d_rstd = d_scale * gain + d_u * offset
        d_of_var = -0.5 * rstd * rstd * rstd * d_rstd
        more_mean, more_var = _statistics_vjp(i, d_u * rstd, d_of_var, mean, gradients_ptr, SIZES)
        d_mean += more_mean
        d_var += more_var
    tl.store(reduce_ptr + c, d_reduce, mask=exists)
    return scale, d_mean, d_var


# ---- Switchable Normalization
#
#     scale = weight rsqrt(sum of var_ratios_k var_k + eps)
#     shift = scale (sum of mean_ratios_k (mean - mu_k)) + bias


@triton.jit
def _mixed(mean, var, mean_ratios, var_ratios, t, SIZES: tl.constexpr):
    """The offset of the means to the mixed mean, and the mixed variance (padded channels)."""
    off_mixed = tl.zeros_like(mean)
    mixed_var = tl.zeros_like(var)
    for i in tl.static_range(len(SIZES.normalizers)):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        off_mixed += _element(mean_ratios, i) * offset
        mixed_var += _element(var_ratios, i) * of_var
    return off_mixed, mixed_var


@triton.jit
def _switch_ratios(t, SIZES: tl.constexpr):
    row = tl.arange(0, SIZES.rows)
    real = row < len(SIZES.normalizers)
    mean_ratios = _softmax(_load(t.mean_weight, row, real), SIZES)
    return mean_ratios, _softmax(_load(t.var_weight, row, real), SIZES)


@triton.jit
def _switch(mean, var, t, eps, SIZES: tl.constexpr):
    """Moments (padded channels) of an instance to scale and shift."""
    c, exists = _channels(SIZES)
    mean_ratios, var_ratios = _switch_ratios(t, SIZES)
    off_mixed, mixed_var = _mixed(mean, var, mean_ratios, var_ratios, t, SIZES)
    scale = _load(t.weight, c, exists) * tl.rsqrt(mixed_var + eps)
    return scale, scale * off_mixed + _load(t.bias, c, exists)


@triton.jit
def _switch_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES: tl.constexpr):
    """The vector-Jacobian product of _switch, returned and stored as by _exemplar_vjp."""
    K: tl.constexpr = len(SIZES.normalizers)
    C: tl.constexpr = SIZES.channels
    c, exists = _channels(SIZES)
    row = tl.arange(0, SIZES.rows)
    mean_ratios, var_ratios = _switch_ratios(t, SIZES)
    off_mixed, mixed_var = _mixed(mean, var, mean_ratios, var_ratios, t, SIZES)
    rstd = tl.rsqrt(mixed_var + eps)
    scale = _load(t.weight, c, exists) * rstd

    d_scale += d_shift * off_mixed
    tl.store(gradients_ptr + c, d_scale * rstd, mask=exists)
    tl.store(gradients_ptr + C + c, d_shift, mask=exists)
    d_off_mixed = d_shift * scale
    d_mixed_var = -0.5 * d_scale * scale * rstd * rstd
    d_mean_logits = tl.zeros_like(mean_ratios)
    d_var_logits = tl.zeros_like(var_ratios)
    d_mean = tl.zeros_like(mean)
    d_var = tl.zeros_like(mean)
    for i in tl.static_range(K):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        mean_ratio = _element(mean_ratios, i)
        var_ratio = _element(var_ratios, i)
        # The softmax's derivative subtracts the mixture: here from the statistics, which may be
        # large beside their differences.
        of_mean = tl.sum(d_off_mixed * (offset - off_mixed), axis=0)
        of_variance = tl.sum(d_mixed_var * (of_var - mixed_var), axis=0)
        d_mean_logits = tl.where(row == i, mean_ratio * of_mean, d_mean_logits)
        d_var_logits = tl.where(row == i, var_ratio * of_variance, d_var_logits)
        more_mean, more_var = _statistics_vjp(
            i, mean_ratio * d_off_mixed, var_ratio * d_mixed_var, mean, gradients_ptr, SIZES
        )
        d_mean += more_mean
        d_var += more_var
    tl.store(gradients_ptr + 2 * C + row, d_mean_logits, mask=row < K)
    tl.store(gradients_ptr + 2 * C + K + row, d_var_logits, mask=row < K)
    return scale, d_mean, d_var


# ---- kernels


@triton.jit
def _mixture_kernel(mean_ptr, var_ptr, scale_ptr, shift_ptr, t, eps, SIZES: tl.constexpr):
    """Moments (N, C) to scale and shift (N, C), an instance a program."""
    c, exists = _channels(SIZES)
    at = tl.program_id(0).to(tl.int64) * SIZES.channels + c
    mean = _load(mean_ptr, at, exists)
    var = _load(var_ptr, at, exists)
    if SIZES.is_exemplar:
        scale, shift = _exemplar(mean, var, t, eps, SIZES)
    else:
        scale, shift = _switch(mean, var, t, eps, SIZES)
    tl.store(scale_ptr + at, scale, mask=exists)
    tl.store(shift_ptr + at, shift, mask=exists)


@triton.jit
def _mixture_vjp_kernel(
    d_scale_ptr, d_shift_ptr, mean_ptr, var_ptr, scale_ptr, slope_ptr, offset_ptr, gradients_ptr,
    t, eps, count, SIZES: tl.constexpr,
):  # fmt: skip
    """Sums (N, C) to what dx needs, but through the batch, and each instance's gradients."""
    n = tl.program_id(0).to(tl.int64)
    c, exists = _channels(SIZES)
    at = n * SIZES.channels + c
    gradients_ptr += n * SIZES.gradients
    d_scale = _load(d_scale_ptr, at, exists)
    d_shift = _load(d_shift_ptr, at, exists)
    mean = _load(mean_ptr, at, exists)
    var = _load(var_ptr, at, exists)
    if SIZES.is_exemplar:
        scale, d_mean, d_var = _exemplar_vjp(
            d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES
        )
    else:
        scale, d_mean, d_var = _switch_vjp(
            d_scale, d_shift, mean, var, t, gradients_ptr, eps, SIZES
        )
    tl.store(scale_ptr + at, scale, mask=exists)
    tl.store(slope_ptr + at, d_var * (2.0 / count), mask=exists)
    tl.store(offset_ptr + at, (d_mean - scale * d_shift) / count, mask=exists)


@triton.jit(do_not_specialize=["instances", "channels"])
def _batch_kernel(
    mean_ptr, var_ptr, batch_mean_ptr, batch_var_ptr,
    instances, channels, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Moments (N, C) of instances to those (C) of the batch: total variance."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(0, instances, BLOCK_N):
        exists = (first + n < instances) & (c < channels)[None, :]
        at = (first + n).to(tl.int64) * channels + c[None, :]
        total += _load(mean_ptr, at, exists)
    mean = tl.sum(total, axis=0) / instances
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in range(0, instances, BLOCK_N):
        exists = (first + n < instances) & (c < channels)[None, :]
        at = (first + n).to(tl.int64) * channels + c[None, :]
        offset = _load(mean_ptr, at, exists) - mean[None, :]
        var = _load(var_ptr, at, exists)
        total += tl.where(exists, var + offset * offset, 0.0)
    tl.store(batch_mean_ptr + c, mean, mask=c < channels)
    tl.store(batch_var_ptr + c, tl.sum(total, axis=0) / instances, mask=c < channels)


@triton.jit(do_not_specialize=["channels"])
def _couple_kernel(
    slope_ptr, offset_ptr, mean_ptr, batch_mean_ptr, d_batch_mean_ptr, d_batch_var_ptr,
    channels, count, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds to slope and offset (N, C) what comes through the batch's moments (C).

    Args:
        count: elements of a channel in the batch.
    """
    n = tl.program_id(0).to(tl.int64)
    for first in range(0, channels, BLOCK):
        c = first + tl.arange(0, BLOCK)
        exists = c < channels
        at = n * channels + c
        slope = _load(d_batch_var_ptr, c, exists) * (2.0 / count)
        offset = _load(d_batch_mean_ptr, c, exists) / count
        offset += slope * (_load(mean_ptr, at, exists) - _load(batch_mean_ptr, c, exists))
        tl.store(slope_ptr + at, _load(slope_ptr, at, exists) + slope, mask=exists)
        tl.store(offset_ptr + at, _load(offset_ptr, at, exists) + offset, mask=exists)


# ---- host


def runs(network: Exemplar | Switch, x: Tensor, num_groups: int) -> bool:
    """Whether these kernels compute the mixture's rescale."""
    return _sizes(network, x.shape[1], couples=False) is not None


def forward(
    x: Tensor, num_groups: int, network: Exemplar | Switch, tensors: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`~..networks.Kernels`; x has one of the layouts."""
    mean, var = moments(x, num_groups)
    sizes, pointers = _prepare(mean, var, network, tensors)
    scale, shift = new(x, 2, num_groups)
    _network(_mixture_kernel, (mean, var, scale, shift), pointers, network, sizes)
    return affine(x, mean, scale, shift), mean, var


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    network: Exemplar | Switch,
    tensors: tuple[Tensor | None, ...],
    needs_x: bool,
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """See :class:`~..networks.Kernels`; x and dy have one layout."""
    n, c = mean.shape
    d_scale, d_shift = centered_sums(dy, x, mean)
    sizes, pointers = _prepare(mean, var, network, tensors)
    (scale, slope, offset), (gradients,) = new(x, 3, c), new(x, 1, sizes.gradients)
    values = d_scale, d_shift, mean, var, scale, slope, offset, gradients
    count = float(x[0].numel() // c)
    _network(_mixture_vjp_kernel, values, pointers, network, sizes, count)
    total = gradients.sum(0) if n > 1 else gradients[0]
    d_x = None
    if needs_x:
        if sizes.couples:
            d_batch = total[-2 * c :].view(2, c).unbind()
            launch(
                _couple_kernel, n, slope, offset, mean, pointers.batch_mean, *d_batch,
                c, n * count, min(sizes.padded_channels, 1024),
            )  # fmt: skip
        d_x = dx(dy, x, mean, scale, slope, offset)
    return d_x, _split_gradients(total, tensors, network, c)


@functools.cache
def _sizes(network: Exemplar | Switch, channels: int, couples: bool) -> Sizes | None:
    """The sizes for the kernels that run the mixture, or None where these cannot."""
    k, is_exemplar = len(network.normalizers), isinstance(network, Exemplar)
    hidden = network.hidden if is_exemplar else 1
    reduction = network.reduction if is_exemplar else 1
    rows, padded_hidden = triton.next_power_of_2(k), triton.next_power_of_2(hidden)
    if (
        "GN" in network.normalizers
        or channels > VECTOR
        or padded_hidden * rows > MATRIX
        or (is_exemplar and network.ratio_net != "conv")
        or reduction & (reduction - 1)
    ):
        return None
    gradients = sum(_gradient_sizes(network, channels)) + 2 * channels * couples
    return Sizes(
        is_exemplar=is_exemplar,
        normalizers=network.normalizers,
        rows=rows,
        channels=channels,
        padded_channels=triton.next_power_of_2(channels),
        hidden=hidden,
        padded_hidden=padded_hidden,
        reduction=reduction,
        activation=network.activation if is_exemplar else "",
        shared_affine=is_exemplar and network.shared_affine,
        couples=couples,
        gradients=gradients,
    )


def _gradient_sizes(network: Exemplar | Switch, channels: int) -> tuple[int, ...]:
    """How many gradients there are of each parameter; of EN's biases, those of one."""
    k = len(network.normalizers)
    if isinstance(network, Switch):
        return channels, channels, k, k
    hidden, rows = network.hidden, 1 if network.shared_affine else k
    return rows * channels, channels, channels, hidden * k * k, hidden, k * hidden, k


def _prepare(
    mean: Tensor, var: Tensor, network: Exemplar | Switch, tensors: tuple[Tensor | None, ...]
) -> tuple[Sizes, ExemplarTensors | SwitchTensors]:
    """The sizes, and the tensors, those of the batch's moments computed."""
    n, c = mean.shape
    tensors = (t if t is None else t.detach().contiguous() for t in tensors)
    *parameters, batch_mean, batch_var = tensors
    couples = "BN" in network.normalizers and batch_mean is None
    if couples:
        batch_mean, batch_var = mean.new_empty(2, c).unbind()
        launch(
            _batch_kernel, triton.cdiv(c, BATCH_TILE[1]), mean, var, batch_mean, batch_var,
            n, c, *BATCH_TILE,
        )  # fmt: skip
    pointers = ExemplarTensors if isinstance(network, Exemplar) else SwitchTensors
    return _sizes(network, c, couples), pointers(*parameters, batch_mean, batch_var)


def _network(
    kernel, values, pointers, network: Exemplar | Switch, sizes: Sizes, *count: float
) -> None:
    launch(
        kernel, len(values[0]), *values, pointers, float(network.eps), *count, sizes,
        num_warps=warps_for(sizes.padded_channels, sizes.padded_hidden * sizes.rows),
    )  # fmt: skip


def _split_gradients(
    total: Tensor, tensors: tuple[Tensor | None, ...], network: Exemplar | Switch, channels: int
) -> tuple[Tensor | None, ...]:
    sizes = _gradient_sizes(network, channels)
    weight, bias, *others = total[: sum(sizes)].split(sizes)
    others = (d.view_as(t) for d, t in zip(others, tensors[2:-2], strict=True))
    return weight.view_as(tensors[0]), bias.expand_as(tensors[1]), *others, None, None
