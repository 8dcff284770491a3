"""The mixtures of normalizers of EN and SN, of one instance: see layers/exemplar.py, switchable.py.

The K normalizers are computed one after the other. Values that depend on all of them need a second
loop over them, which computes a normalizer's vectors again: K vectors of channels would take more
registers.

BN's statistics of the batch couple the instances. The kernel of the moments computes them before
the network, and updates the running statistics; the kernel of dx adds the gradient through them.
"""

import triton
import triton.language as tl

from . import vectors as v

# ---- the statistics of one instance, relative to its means


@triton.jit
def _statistics(i: tl.constexpr, mean, var, t, SIZES: tl.constexpr):
    """Return mean - mu_i and the variance of normalizer i (channels)."""
    NAME: tl.constexpr = SIZES.network.normalizers[i]
    C: tl.constexpr = SIZES.channels
    if NAME == "IN":
        offset = tl.zeros_like(mean)
        of_var = var
    elif NAME == "BN":
        c, exists = v.numbers(SIZES.channels)
        offset = mean - v.load(v.buffer(t.batch_mean, t, SIZES.at.batch_mean), c, exists)
        of_var = v.load(v.buffer(t.batch_var, t, SIZES.at.batch_var), c, exists)
    else:
        GROUPS: tl.constexpr = SIZES.network.num_groups if NAME == "GN" else 1
        group_mean, group_var = v.coarsen(mean, var, C, GROUPS)
        offset = mean - v.spread(group_mean, GROUPS, C)
        of_var = v.spread(group_var, GROUPS, C)
    return offset, of_var


@triton.jit
def _statistics_vjp(i: tl.constexpr, d_offset, d_of_var, mean, gradients_ptr, SIZES: tl.constexpr):
    """Return normalizer i's part of mean's and var's gradients; store BN's moments' gradients."""
    NAME: tl.constexpr = SIZES.network.normalizers[i]
    C: tl.constexpr = SIZES.channels
    if NAME == "IN":
        d_mean = tl.zeros_like(mean)
        d_var = d_of_var
    elif NAME == "BN":
        d_mean = d_offset
        d_var = tl.zeros_like(mean)
        c, exists = v.numbers(SIZES.channels)
        batch_ptr = gradients_ptr + SIZES.gradients - 2 * C
        tl.store(batch_ptr + c, -d_offset, mask=exists)
        tl.store(batch_ptr + C + c, d_of_var, mask=exists)
    else:
        GROUPS: tl.constexpr = SIZES.network.num_groups if NAME == "GN" else 1
        group_mean = v.divide(v.fold(mean, C, GROUPS), C // GROUPS)
        d_group_mean, d_group_var = -v.fold(d_offset, C, GROUPS), v.fold(d_of_var, C, GROUPS)
        d_mean, d_var = v.refine(d_group_mean, d_group_var, group_mean, mean, C, GROUPS)
        d_mean += d_offset
    return d_mean, d_var


@triton.jit
def _row(values, i):
    return tl.sum(tl.where(tl.arange(0, values.shape[0])[:, None] == i, values, 0.0), axis=0)


@triton.jit
def _element(values, i):
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == i, values, 0.0), axis=0)


@triton.jit
def _softmax(logits, real):
    logits = tl.where(real, logits, -float("inf"))
    ratios = tl.exp(logits - tl.max(logits, axis=0))
    return ratios / tl.sum(ratios, axis=0)


# ---- Exemplar Normalization
#
#     r_k = rsqrt(var_k + eps), u_k = (mean - mu_k) r_k, z_k = sums of runs of reduce * u_k
#     v = z z^T, ratios = softmax(ratio act(expand v + expand_bias) + ratio_bias)
#     scale = sum of ratios_k weight_k r_k, shift = sum of ratios_k weight_k u_k + bias_k


@triton.jit
def _reduced(mean, var, t, SIZES: tl.constexpr):
    """Return z (rows, runs), 0 in the padding."""
    RUNS: tl.constexpr = SIZES.channels // SIZES.network.reduction
    c, exists = v.numbers(SIZES.channels)
    reduce = 1.0 if t.reduce is None else v.load(t.reduce, c, exists)
    run, is_run = v.numbers(RUNS)
    row, _ = v.numbers(len(SIZES.network.normalizers))
    z = tl.zeros((row.shape[0], run.shape[0]), tl.float32)
    for i in tl.static_range(len(SIZES.network.normalizers)):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
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
    """Return the ratios (rows), and the activation's values and slopes (hidden), from z."""
    ACTIVATION: tl.constexpr = SIZES.network.activation
    h, exists = v.numbers(SIZES.network.hidden)
    hidden = v.load(t.expand_bias, h, exists)
    for j in tl.static_range(len(SIZES.network.normalizers)):
        v_j = tl.sum(z * _row(z, j)[None, :], axis=1)
        at, real = _expand(j, SIZES)
        hidden += tl.sum(v.load(t.expand, at, real) * v_j[None, :], axis=1)
    hidden, slope = v.activate(hidden, ACTIVATION)
    at, real = _ratio(SIZES)
    row, is_row = v.numbers(len(SIZES.network.normalizers))
    logits = v.load(t.ratio_bias, row, is_row)
    logits += tl.sum(v.load(t.ratio, at, real) * hidden[None, :], axis=1)
    return _softmax(logits, is_row), hidden, slope


@triton.jit
def _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, gradients_ptr, SIZES: tl.constexpr):
    """Return z's gradient from the ratios' gradient; store the gradients of both linear maps."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    h, exists = v.numbers(SIZES.network.hidden)
    row, is_row = v.numbers(K)
    expand_bias_ptr = gradients_ptr + SIZES.network.hidden * K * K
    ratio_ptr = expand_bias_ptr + SIZES.network.hidden
    d_logits = ratios * (d_ratios - tl.sum(ratios * d_ratios, axis=0))
    tl.store(ratio_ptr + K * SIZES.network.hidden + row, d_logits, mask=is_row)
    at, real = _ratio(SIZES)
    tl.store(ratio_ptr + at, d_logits[:, None] * hidden[None, :], mask=real)
    d_hidden = slope * tl.sum(d_logits[:, None] * v.load(t.ratio, at, real), axis=0)
    tl.store(expand_bias_ptr + h, d_hidden, mask=exists)
    d_z = tl.zeros_like(z)
    for j in tl.static_range(K):
        z_j = _row(z, j)[None, :]
        v_j = tl.sum(z * z_j, axis=1)
        at, real = _expand(j, SIZES)
        tl.store(gradients_ptr + at, d_hidden[:, None] * v_j[None, :], mask=real)
        d_v = tl.sum(v.load(t.expand, at, real) * d_hidden[:, None], axis=0)[:, None]
        d_z += d_v * z_j
        d_z += tl.where(row[:, None] == j, tl.sum(d_v * z, axis=0)[None, :], 0.0)
    return d_z


@triton.jit
def _weight(i: tl.constexpr, ptr, SIZES: tl.constexpr):
    c, exists = v.numbers(SIZES.channels)
    return v.load(ptr, c if SIZES.network.shared_affine else i * SIZES.channels + c, exists)


@triton.jit
def exemplar(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (channels); see ``rescaling``."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    C: tl.constexpr = SIZES.channels
    SHARED: tl.constexpr = SIZES.network.shared_affine
    c, exists = v.numbers(C)
    row, _ = v.numbers(K)
    z = _reduced(mean, var, t, SIZES)
    ratios, hidden, slope = _ratios(z, t, SIZES)

    scale = tl.zeros_like(mean)
    shift = tl.zeros_like(mean)
    d_weight = tl.zeros_like(mean)
    d_ratios = tl.zeros_like(ratios)
    for i in tl.static_range(K):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        weight = _weight(i, t.weight, SIZES)
        ratio = _element(ratios, i)
        rstd = tl.rsqrt(of_var + SIZES.network.eps)
        scale += ratio * weight * rstd
        if gradients_ptr is None:
            shift += ratio * weight * rstd * offset
            if i == 0 or not SHARED:
                shift += _weight(i, t.bias, SIZES)
        else:
            d_gain = (d_scale + d_shift * offset) * rstd
            d_ratios = tl.where(row == i, v.total(weight * d_gain, C), d_ratios)
            d_weight += ratio * d_gain
            if not SHARED:
                tl.store(gradients_ptr + i * C + c, ratio * d_gain, mask=exists)
    if gradients_ptr is None:
        return scale, shift
    else:
        if SHARED:
            tl.store(gradients_ptr + c, d_weight, mask=exists)
        bias_ptr = gradients_ptr + (C if SHARED else K * C)
        reduce_ptr = bias_ptr + C
        tl.store(bias_ptr + c, d_shift, mask=exists)
        d_z = _ratios_vjp(d_ratios, z, ratios, hidden, slope, t, reduce_ptr + C, SIZES)

        reduce = 1.0 if t.reduce is None else v.load(t.reduce, c, exists)
        d_reduce = tl.zeros_like(mean)
        d_mean = tl.zeros_like(mean)
        d_var = tl.zeros_like(mean)
        for i in tl.static_range(K):
            offset, of_var = _statistics(i, mean, var, t, SIZES)
            gain = _element(ratios, i) * _weight(i, t.weight, SIZES)
            rstd = tl.rsqrt(of_var + SIZES.network.eps)
            d_run = v.spread(_row(d_z, i), C // SIZES.network.reduction, C)
            d_u = d_shift * gain + reduce * d_run
            d_reduce += d_run * offset * rstd
            d_of_var = -0.5 * rstd * rstd * rstd * (d_scale * gain + d_u * offset)
            more_mean, more_var = _statistics_vjp(
                i, d_u * rstd, d_of_var, mean, gradients_ptr, SIZES
            )
            d_mean += more_mean
            d_var += more_var
        tl.store(reduce_ptr + c, d_reduce, mask=exists)
        return scale, d_mean - scale * d_shift, d_var


# ---- Switchable Normalization
#
#     scale = weight rsqrt(sum of var_ratios_k var_k + eps)
#     shift = scale (sum of mean_ratios_k (mean - mu_k)) + bias


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
        mean_ratios, var_ratios = _softmax(mean_logits, real), _softmax(var_logits, real)
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
    """Compute scale and shift (channels) from the moments (channels); see ``rescaling``."""
    K: tl.constexpr = len(SIZES.network.normalizers)
    C: tl.constexpr = SIZES.channels
    c, exists = v.numbers(C)
    row, is_row = v.numbers(K)
    mean_ratios, var_ratios, _, _ = _switch_ratios(0.0, 0.0, t, SIZES)
    off_mixed = tl.zeros_like(mean)
    mixed_var = tl.zeros_like(var)
    for i in tl.static_range(K):
        offset, of_var = _statistics(i, mean, var, t, SIZES)
        off_mixed += _element(mean_ratios, i) * offset
        mixed_var += _element(var_ratios, i) * of_var
    rstd = tl.rsqrt(mixed_var + SIZES.network.eps)
    scale = v.load(t.weight, c, exists) * rstd
    if gradients_ptr is None:
        return scale, scale * off_mixed + v.load(t.bias, c, exists)
    else:
        d_scale += d_shift * off_mixed
        tl.store(gradients_ptr + c, d_scale * rstd, mask=exists)
        tl.store(gradients_ptr + C + c, d_shift, mask=exists)
        d_off_mixed = d_shift * scale
        d_mixed_var = -0.5 * d_scale * scale * rstd * rstd
        d_mean_ratios = tl.zeros_like(mean_ratios)
        d_var_ratios = tl.zeros_like(var_ratios)
        d_mean = tl.zeros_like(mean)
        d_var = tl.zeros_like(mean)
        for i in tl.static_range(K):
            offset, of_var = _statistics(i, mean, var, t, SIZES)
            # Ratios sum to 1, so that the mixed statistic may be subtracted from each statistic: no
            # digits are lost where statistics are much larger than their differences.
            of_mean = v.total(d_off_mixed * (offset - off_mixed), C)
            of_variance = v.total(d_mixed_var * (of_var - mixed_var), C)
            d_mean_ratios = tl.where(row == i, of_mean, d_mean_ratios)
            d_var_ratios = tl.where(row == i, of_variance, d_var_ratios)
            d_offset = _element(mean_ratios, i) * d_off_mixed
            d_of_var = _element(var_ratios, i) * d_mixed_var
            more_mean, more_var = _statistics_vjp(i, d_offset, d_of_var, mean, gradients_ptr, SIZES)
            d_mean += more_mean
            d_var += more_var
        _, _, d_mean_logits, d_var_logits = _switch_ratios(d_mean_ratios, d_var_ratios, t, SIZES)
        tl.store(gradients_ptr + 2 * C + row, d_mean_logits, mask=is_row)
        tl.store(gradients_ptr + 2 * C + K + row, d_var_logits, mask=is_row)
        return scale, d_mean - scale * d_shift, d_var
