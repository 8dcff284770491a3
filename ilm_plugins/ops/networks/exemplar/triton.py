"""The mixture of EN, of one instance: see layers/exemplar.py.

::

    r_k = rsqrt(var_k + eps), u_k = (mean - mu_k) r_k, z_k = sums of runs of reduce * u_k
    v = z z^T, ratios = softmax(ratio tanh(expand v + expand_bias) + ratio_bias)
    scale = sum of ratios_k weight_k r_k, shift = sum of ratios_k weight_k u_k + bias_k
"""

import triton
import triton.language as tl

from ...engine.triton import vectors as v
from ...engine.triton.devices import padded
from ...engine.triton.sizes import Rescale
from .. import mixed_normalizers_triton as mixture

#: Most elements of a matrix, with padding.
MAX_MATRIX = 4096


@triton.jit
def _reduced(mean, var, t, SIZES: tl.constexpr):
    """Return z (rows, runs), 0 in the padding."""
    RUNS: tl.constexpr = SIZES.channels // SIZES.network.reduction
    c, exists = v.numbers(SIZES.channels)
    reduce = v.load(t.reduce_weight, c, exists)
    run, is_run = v.numbers(RUNS)
    row, _ = v.numbers(len(SIZES.network.normalizers))
    z = tl.zeros((row.shape[0], run.shape[0]), tl.float32)
    for i in tl.static_range(len(SIZES.network.normalizers)):
        offset, of_var = mixture.normalizer_moments(i, mean, var, t, SIZES)
        u = reduce * offset * tl.rsqrt(of_var + SIZES.network.eps)
        z = tl.where((row == i)[:, None] & is_run, v.fold(u, SIZES.channels, RUNS)[None, :], z)
    return z


@triton.jit
def _expand(j: tl.constexpr, SIZES: tl.constexpr):
    """Return offsets (hidden, rows) and mask of the weights of the j-th column of v."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    h, exists = v.numbers(SIZES.network.hidden)
    row, is_row = v.numbers(K)
    return h[:, None] * (K * K) + row[None, :] * K + j, exists[:, None] & is_row[None, :]


@triton.jit
def _ratio(SIZES: tl.constexpr):
    """Return offsets (rows, hidden) and mask of the second map's weights."""
    h, exists = v.numbers(SIZES.network.hidden)
    row, is_row = v.numbers(len(SIZES.network.normalizers))
    return row[:, None] * SIZES.network.hidden + h[None, :], is_row[:, None] & exists[None, :]


@triton.jit
def _ratios(z, t, SIZES: tl.constexpr):
    """Return the ratios (rows), and tanh's values and slopes (hidden), from z."""
    h, exists = v.numbers(SIZES.network.hidden)
    hidden = v.load(t.expand_bias, h, exists)
    for j in tl.static_range(len(SIZES.network.normalizers)):
        v_j = tl.sum(z * mixture.row(z, j)[None, :], axis=1)
        at, real = _expand(j, SIZES)
        hidden += tl.sum(v.load(t.expand_weight, at, real) * v_j[None, :], axis=1)
    hidden, slope = v.tanh(hidden)
    at, real = _ratio(SIZES)
    row, is_row = v.numbers(len(SIZES.network.normalizers))
    logits = v.load(t.ratio_bias, row, is_row)
    logits += tl.sum(v.load(t.ratio_weight, at, real) * hidden[None, :], axis=1)
    return mixture.softmax(logits, is_row), hidden, slope


@triton.jit
def _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, gradients_ptr, SIZES: tl.constexpr):
    """Return z's gradient from the ratios' gradient; store the gradients of both linear maps."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    h, exists = v.numbers(SIZES.network.hidden)
    row, is_row = v.numbers(K)
    d_logits = ratios * (d_ratios - tl.sum(ratios * d_ratios, axis=0))
    tl.store(gradients_ptr + SIZES.to.ratio_bias + row, d_logits, mask=is_row)
    at, real = _ratio(SIZES)
    ratio_ptr = gradients_ptr + SIZES.to.ratio_weight
    tl.store(ratio_ptr + at, d_logits[:, None] * hidden[None, :], mask=real)
    d_hidden = slope * tl.sum(d_logits[:, None] * v.load(t.ratio_weight, at, real), axis=0)
    tl.store(gradients_ptr + SIZES.to.expand_bias + h, d_hidden, mask=exists)
    d_z = tl.zeros_like(z)
    for j in tl.static_range(K):
        z_j = mixture.row(z, j)[None, :]
        v_j = tl.sum(z * z_j, axis=1)
        at, real = _expand(j, SIZES)
        expand_ptr = gradients_ptr + SIZES.to.expand_weight
        tl.store(expand_ptr + at, d_hidden[:, None] * v_j[None, :], mask=real)
        d_v = tl.sum(v.load(t.expand_weight, at, real) * d_hidden[:, None], axis=0)[:, None]
        d_z += d_v * z_j
        d_z += tl.where(row[:, None] == j, tl.sum(d_v * z, axis=0)[None, :], 0.0)
    return d_z


@triton.jit
def _weight(i: tl.constexpr, ptr, SIZES: tl.constexpr):
    c, exists = v.numbers(SIZES.channels)
    return v.load(ptr, i * SIZES.channels + c, exists)


@triton.jit
def exemplar(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (channels); see :class:`Rescale`."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    C: tl.constexpr = SIZES.channels
    RUNS: tl.constexpr = C // SIZES.network.reduction
    c, exists = v.numbers(C)
    row, _ = v.numbers(K)
    z = _reduced(mean, var, t, SIZES)
    ratios, hidden, slope = _ratios(z, t, SIZES)

    scale = tl.zeros_like(mean)
    shift = tl.zeros_like(mean)
    d_ratios = tl.zeros_like(ratios)
    for i in tl.static_range(K):
        offset, of_var = mixture.normalizer_moments(i, mean, var, t, SIZES)
        weight = _weight(i, t.weight, SIZES)
        ratio = mixture.element(ratios, i)
        rstd = tl.rsqrt(of_var + SIZES.network.eps)
        scale += ratio * weight * rstd
        if gradients_ptr is None:
            shift += ratio * weight * rstd * offset
            shift += _weight(i, t.bias, SIZES)
        else:
            d_gain = (d_scale + d_shift * offset) * rstd
            d_ratios = tl.where(row == i, v.total(weight * d_gain, C), d_ratios)
            tl.store(gradients_ptr + SIZES.to.weight + i * C + c, ratio * d_gain, mask=exists)
    if gradients_ptr is None:
        return scale, shift
    else:
        tl.store(gradients_ptr + SIZES.to.bias + c, d_shift, mask=exists)
        d_z = _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, gradients_ptr, SIZES)

        reduce = v.load(t.reduce_weight, c, exists)
        d_reduce = tl.zeros_like(mean)
        d_mean = tl.zeros_like(mean)
        d_var = tl.zeros_like(mean)
        for i in tl.static_range(K):
            offset, of_var = mixture.normalizer_moments(i, mean, var, t, SIZES)
            gain = mixture.element(ratios, i) * _weight(i, t.weight, SIZES)
            rstd = tl.rsqrt(of_var + SIZES.network.eps)
            d_run = v.spread(mixture.row(d_z, i), RUNS, C)
            d_u = d_shift * gain + reduce * d_run
            d_reduce += d_run * offset * rstd
            d_of_var = -0.5 * rstd * rstd * rstd * (d_scale * gain + d_u * offset)
            more_mean, more_var = mixture.normalizer_moments_vjp(
                i, d_u * rstd, d_of_var, mean, gradients_ptr, SIZES
            )
            d_mean += more_mean
            d_var += more_var
        tl.store(gradients_ptr + SIZES.to.reduce_weight + c, d_reduce, mask=exists)
        return scale, d_mean - scale * d_shift, d_var


def _computes(network, channels: int) -> bool:
    matrix = padded(network.hidden) * padded(len(network.normalizers))
    return matrix <= MAX_MATRIX


RESCALE = Rescale(exemplar, _computes, lambda network, channels: max(channels, network.hidden))
