"""The auto-encoder of ILM Norm and AssocNorm, of one instance: see layers/autoencoder.py.

One hidden value is taken after the other, so that no matrix takes registers. ``keys`` is the number
of key groups.
"""

import triton
import triton.language as tl

from . import vectors as v


@triton.jit
def _combine(decoded, b, offset, ACTIVATION: tl.constexpr, COMBINE: tl.constexpr):
    """AssocNorm's Table 5: return omega or beta, and its derivatives by ``decoded`` and by B."""
    y, slope = v.activate(decoded + b if COMBINE == "a(WE+B)" else decoded, ACTIVATION)
    y -= offset
    if COMBINE == "a(WE)+B":
        return y + b, slope, tl.full(b.shape, 1.0, tl.float32)
    elif COMBINE == "a(WE+B)":
        return y, slope, slope
    elif COMBINE == "a(WE)*B":
        return y * b, slope * b, y
    else:
        return y, slope, tl.zeros(b.shape, tl.float32)


@triton.jit
def _encode(m, key_mean, key_var, t, SIZES: tl.constexpr):
    """Return row m of W1, and Eq. 4's hidden value m of the mean and of the variance."""
    KEYS: tl.constexpr = SIZES.network.num_key_groups
    k, exists = v.numbers(KEYS)
    encode = v.load(t.encode + m * KEYS, k, exists)
    mean = v.total(encode * key_mean, KEYS)
    var = v.total(encode * key_var, KEYS)
    return encode, tl.where(mean < 0, 0.0, mean), tl.where(var < 0, 0.0, var)  # NaN stays NaN


@triton.jit
def _decoders(m, t, SIZES: tl.constexpr):
    """Return column m of both decoders; its elements' offsets and mask."""
    k, exists = v.numbers(SIZES.network.num_key_groups)
    at = k * SIZES.network.hidden + m
    return v.load(t.decode_mean, at, exists), v.load(t.decode_var, at, exists), at, exists


@triton.jit
def autoencoder(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (fine); see ``rescaling``."""
    MEAN: tl.constexpr = SIZES.network.activations[0]
    VAR: tl.constexpr = SIZES.network.activations[1]
    COMBINE: tl.constexpr = SIZES.network.combine
    C: tl.constexpr = SIZES.channels
    KEYS: tl.constexpr = SIZES.network.num_key_groups
    MATRIX: tl.constexpr = SIZES.network.hidden * KEYS
    key_mean, key_var = v.coarsen(mean, var, SIZES.fine, KEYS)  # Eq. 3
    from_mean = tl.zeros_like(key_mean)
    from_var = tl.zeros_like(key_mean)
    for m in range(SIZES.network.hidden):
        _, mean_hidden, var_hidden = _encode(m, key_mean, key_var, t, SIZES)
        decode_mean, decode_var, _, _ = _decoders(m, t, SIZES)
        from_mean += decode_mean * mean_hidden  # Eq. 5
        from_var += decode_var * var_hidden
    c, exists = v.numbers(C)
    weight = v.load(t.weight, c, exists)
    bias = v.load(t.bias, c, exists)
    omega_offset = tl.load(t.omega_offset).to(tl.float32)
    from_mean = v.spread(from_mean, KEYS, C)
    from_var = v.spread(from_var, KEYS, C)
    if SIZES.network.mean_drives == "beta":
        omega, omega_slope, weight_slope = _combine(from_var, weight, omega_offset, VAR, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_mean, bias, 0.0, MEAN, COMBINE)
    else:
        omega, omega_slope, weight_slope = _combine(from_mean, weight, omega_offset, MEAN, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_var, bias, 0.0, VAR, COMBINE)
    if gradients_ptr is None:
        return v.rescale_groups(omega, beta, mean, var, SIZES)
    else:
        scale, d_omega, d_mean, d_var = v.rescale_groups(
            omega, beta, mean, var, SIZES, d_scale, d_shift
        )
        tl.store(gradients_ptr + c, d_omega * weight_slope, mask=exists)
        tl.store(gradients_ptr + C + c, d_shift * bias_slope, mask=exists)
        encode_ptr = gradients_ptr + 2 * C
        d_from_omega = v.fold(d_omega * omega_slope, C, KEYS)
        d_from_beta = v.fold(d_shift * beta_slope, C, KEYS)
        if SIZES.network.mean_drives == "beta":
            d_from_mean, d_from_var = d_from_beta, d_from_omega
        else:
            d_from_mean, d_from_var = d_from_omega, d_from_beta
        d_key_mean = tl.zeros_like(key_mean)
        d_key_var = tl.zeros_like(key_mean)
        for m in range(SIZES.network.hidden):
            encode, mean_hidden, var_hidden = _encode(m, key_mean, key_var, t, SIZES)
            decode_mean, decode_var, at, is_key = _decoders(m, t, SIZES)
            tl.store(encode_ptr + MATRIX + at, d_from_mean * mean_hidden, mask=is_key)
            tl.store(encode_ptr + 2 * MATRIX + at, d_from_var * var_hidden, mask=is_key)
            d_mean_hidden = v.total(d_from_mean * decode_mean, KEYS)
            d_mean_hidden = tl.where(mean_hidden <= 0, 0.0, d_mean_hidden)  # NaN stays
            d_var_hidden = v.total(d_from_var * decode_var, KEYS)
            d_var_hidden = tl.where(var_hidden <= 0, 0.0, d_var_hidden)
            d_encode = d_mean_hidden * key_mean + d_var_hidden * key_var
            tl.store(encode_ptr + m * KEYS + tl.arange(0, d_encode.shape[0]), d_encode, mask=is_key)
            d_key_mean += encode * d_mean_hidden
            d_key_var += encode * d_var_hidden
        of_mean, of_var = v.refine(d_key_mean, d_key_var, key_mean, mean, SIZES.fine, KEYS)
        return scale, d_mean + of_mean, d_var + of_var
