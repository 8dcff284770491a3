"""The mixtures of SN and SSN, of one instance: see layers/switchable.py, sparse.py.

::

    scale = weight rsqrt(sum of var_ratios_k var_k + eps)
    shift = scale (sum of mean_ratios_k (mean - mu_k)) + bias
"""

import triton
import triton.language as tl

from ...engine.triton import vectors as v
from ...engine.triton.sizes import Rescale
from .. import mixed_normalizers_triton as mixture

#: The least normal number. Triton takes constants below it as float64, and computes in that.
TINY = tl.constexpr(2.0**-126)


@triton.jit
def _stretch(radius, squares, size, first):
    rho_squared = radius * radius - 1 / size + 1 / first
    # Not maximum, which drops NaN; that of the logits is in ``c``.
    return tl.where(rho_squared < 0, 0.0, rho_squared) / tl.maximum(squares, TINY)


@triton.jit
def _sparsestmax(logits, fixed, radius, d_ratios, real):
    """Return sparse SN's ratios (rows), see layers/sparse.py, and the gradients of the logits."""
    # Row i of each matrix is about the face of all logits that are not below the i-th.
    logits -= tl.max(tl.where(real, logits, -float("inf")), axis=0)
    among = ((logits[None, :] >= logits[:, None]) | (logits != logits)[None, :]) & real[None, :]
    sizes = tl.maximum(tl.sum(among.to(tl.float32), axis=1), 1.0)
    mean = tl.sum(tl.where(among, logits[None, :], 0.0), axis=1) / sizes
    off_mean = tl.where(among, logits[None, :] - mean[:, None], 0.0)
    gap = sizes * (mean - logits)
    first = tl.sum((real & ((gap < 1) | (gap != gap))).to(tl.float32), axis=0)
    stretch = _stretch(radius, tl.sum(off_mean * off_mean, axis=1), sizes, first)
    gap *= gap * tl.maximum(stretch, 1.0)
    size = tl.max(tl.where(real & ((gap < 1) | (gap != gap)), sizes, 0.0), axis=0)
    inside = real & (sizes <= size)
    c = tl.where(inside, logits - tl.sum(tl.where(inside, logits, 0.0), axis=0) / size, 0.0)
    squares = tl.maximum(tl.sum(c * c, axis=0), TINY)
    stretch = _stretch(radius, squares, size, first)
    stretches = ~(stretch < 1) & (squares > TINY)
    stretch = tl.where(stretches, tl.sqrt(stretch), 1.0)
    along = tl.where(stretches, tl.sum(d_ratios * c, axis=0) / squares, 0.0)
    d_logits = tl.where(inside, stretch * (d_ratios - along * c), 0.0)
    d_logits -= tl.where(inside, tl.sum(d_logits, axis=0) / size, 0.0)
    is_fixed = tl.max((fixed == 1).to(tl.int32), axis=0) == 1
    ratios = tl.where(is_fixed, fixed, tl.where(inside, 1 / size + stretch * c, 0.0))
    return ratios, tl.where(is_fixed, 0.0, d_logits)


@triton.jit
def _switch_ratios(d_mean_ratios, d_var_ratios, t, SIZES: tl.constexpr):
    """Return the ratios of the means and of the variances (rows); their logits' gradients."""
    row, real = v.numbers(len(SIZES.network.normalizers))
    mean_logits = v.load(t.mean_weight, row, real)
    var_logits = v.load(t.var_weight, row, real)
    if SIZES.kind == "Switch":
        mean_ratios, var_ratios = (
            mixture.softmax(mean_logits, real),
            mixture.softmax(var_logits, real),
        )
        d_mean_logits, d_var_logits = mean_ratios * d_mean_ratios, var_ratios * d_var_ratios
    else:
        radius = v.load(v.buffer(t.radius, t, SIZES.at.radius), 0, True)
        fixed = v.load(v.buffer(t.mean_fixed, t, SIZES.at.mean_fixed), row, real)
        mean_ratios, d_mean_logits = _sparsestmax(mean_logits, fixed, radius, d_mean_ratios, real)
        fixed = v.load(v.buffer(t.var_fixed, t, SIZES.at.var_fixed), row, real)
        var_ratios, d_var_logits = _sparsestmax(var_logits, fixed, radius, d_var_ratios, real)
    return mean_ratios, var_ratios, d_mean_logits, d_var_logits


@triton.jit
def switch(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (channels); see :class:`Rescale`."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    C: tl.constexpr = SIZES.channels
    c, exists = v.numbers(C)
    row, is_row = v.numbers(K)
    mean_ratios, var_ratios, _, _ = _switch_ratios(0.0, 0.0, t, SIZES)
    off_mixed = tl.zeros_like(mean)
    mixed_var = tl.zeros_like(var)
    for i in tl.static_range(K):
        offset, of_var = mixture.normalizer_moments(i, mean, var, t, SIZES)
        off_mixed += mixture.element(mean_ratios, i) * offset
        mixed_var += mixture.element(var_ratios, i) * of_var
    rstd = tl.rsqrt(mixed_var + SIZES.network.eps)
    scale = v.load(t.weight, c, exists) * rstd
    if gradients_ptr is None:
        return scale, scale * off_mixed + v.load(t.bias, c, exists)
    else:
        d_scale += d_shift * off_mixed
        tl.store(gradients_ptr + SIZES.to.weight + c, d_scale * rstd, mask=exists)
        tl.store(gradients_ptr + SIZES.to.bias + c, d_shift, mask=exists)
        d_off_mixed = d_shift * scale
        d_mixed_var = -0.5 * d_scale * scale * rstd * rstd
        d_mean_ratios = tl.zeros_like(mean_ratios)
        d_var_ratios = tl.zeros_like(var_ratios)
        d_mean = tl.zeros_like(mean)
        d_var = tl.zeros_like(mean)
        for i in tl.static_range(K):
            offset, of_var = mixture.normalizer_moments(i, mean, var, t, SIZES)
            # Ratios sum to 1, so that the mixed statistic may be subtracted from each statistic: no
            # digits are lost where moments are much larger than their differences.
            of_mean = v.total(d_off_mixed * (offset - off_mixed), C)
            of_variance = v.total(d_mixed_var * (of_var - mixed_var), C)
            d_mean_ratios = tl.where(row == i, of_mean, d_mean_ratios)
            d_var_ratios = tl.where(row == i, of_variance, d_var_ratios)
            d_offset = mixture.element(mean_ratios, i) * d_off_mixed
            d_of_var = mixture.element(var_ratios, i) * d_mixed_var
            more_mean, more_var = mixture.normalizer_moments_vjp(
                i, d_offset, d_of_var, mean, gradients_ptr, SIZES
            )
            d_mean += more_mean
            d_var += more_var
        _, _, d_mean_logits, d_var_logits = _switch_ratios(d_mean_ratios, d_var_ratios, t, SIZES)
        tl.store(gradients_ptr + SIZES.to.mean_weight + row, d_mean_logits, mask=is_row)
        tl.store(gradients_ptr + SIZES.to.var_weight + row, d_var_logits, mask=is_row)
        return scale, d_mean - scale * d_shift, d_var


RESCALE = Rescale(switch)
