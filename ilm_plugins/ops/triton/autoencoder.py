"""The auto-encoder of ILM Norm and AssocNorm, of one instance: see layers/autoencoder.py.

Sizes of vectors are those of :class:`~.sizes.Sizes`; ``keys`` is the number of key groups.
"""

import triton
import triton.language as tl

from .vectors import activate, coarsen, fold, load, numbers, refine, spread


@triton.jit
def _combine(decoded, b, offset, ACTIVATION: tl.constexpr, COMBINE: tl.constexpr):
    """AssocNorm's Table 5: return omega or beta, and its derivatives by ``decoded`` and by B."""
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
    """Return offsets and masks of the encoder (hidden, keys) and of a decoder, transposed."""
    m, exists = numbers(SIZES.network.hidden, SIZES.padded_hidden)
    k = tl.arange(0, SIZES.rows)
    encoder = m[:, None] * SIZES.rows + k[None, :]
    decoder = k[:, None] * SIZES.network.hidden + m[None, :]
    return encoder, exists[:, None], decoder, exists[None, :]


@triton.jit
def _encode(key, encode_ptr, SIZES: tl.constexpr):
    """Eq. 4: embed key features (keys); zeros in the padding."""
    at, exists, _, _ = _matrices(SIZES)
    hidden = tl.sum(load(encode_ptr, at, exists) * key[None, :], axis=1)
    return tl.where(hidden < 0, 0.0, hidden)  # NaN stays NaN


@triton.jit
def _decode(hidden, decode_ptr, SIZES: tl.constexpr):
    """Eq. 5: decode an embedding for each channel, before the activation."""
    _, _, at, exists = _matrices(SIZES)
    return spread(tl.sum(load(decode_ptr, at, exists) * hidden[None, :], axis=1), SIZES.channels)


@triton.jit
def _predict(mean, var, t, SIZES: tl.constexpr):
    """Return the key groups' moments, their embeddings, and omega and beta with derivatives."""
    MEAN: tl.constexpr = SIZES.network.activations[0]
    VAR: tl.constexpr = SIZES.network.activations[1]
    COMBINE: tl.constexpr = SIZES.network.combine
    c, exists = numbers(SIZES.channels, SIZES.padded_channels)
    weight = load(t.weight, c, exists)
    bias = load(t.bias, c, exists)
    omega_offset = tl.load(t.omega_offset).to(tl.float32)
    key_mean, key_var = coarsen(mean, var, SIZES.rows)  # Eq. 3
    mean_hidden = _encode(key_mean, t.encode, SIZES)
    var_hidden = _encode(key_var, t.encode, SIZES)
    from_mean = _decode(mean_hidden, t.decode_mean, SIZES)
    from_var = _decode(var_hidden, t.decode_var, SIZES)
    if SIZES.network.mean_drives == "beta":
        omega, omega_slope, weight_slope = _combine(from_var, weight, omega_offset, VAR, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_mean, bias, 0.0, MEAN, COMBINE)
    else:
        omega, omega_slope, weight_slope = _combine(from_mean, weight, omega_offset, MEAN, COMBINE)
        beta, beta_slope, bias_slope = _combine(from_var, bias, 0.0, VAR, COMBINE)
    of_omega = omega, omega_slope, weight_slope
    return key_mean, key_var, mean_hidden, var_hidden, of_omega, (beta, beta_slope, bias_slope)


@triton.jit
def _standardize(mean, var, SIZES: tl.constexpr):
    """Return the groups' mean and 1 / sqrt(var + eps), and mean - group's mean (channels)."""
    group_mean, group_var = coarsen(mean, var, SIZES.network.num_groups)
    off_mean = spread(mean - spread(group_mean, SIZES.fine), SIZES.channels)
    return group_mean, tl.rsqrt(group_var + SIZES.network.eps), off_mean


@triton.jit
def autoencoder(mean, var, t, SIZES: tl.constexpr):
    """Compute scale and shift (channels) from the moments (fine) of an instance."""
    _, _, _, _, of_omega, of_beta = _predict(mean, var, t, SIZES)
    _, rstd, off_mean = _standardize(mean, var, SIZES)
    scale = of_omega[0] * spread(rstd, SIZES.channels)
    return scale, of_beta[0] + scale * off_mean


@triton.jit
def _decode_vjp(d_decoded, hidden, decode_ptr, d_decode_ptr, SIZES: tl.constexpr):
    """Store a decoder's gradient; return the gradient of the embedding before its ReLU."""
    _, _, at, exists = _matrices(SIZES)
    d_decoded = spread(fold(d_decoded, SIZES.rows), SIZES.rows)[:, None]
    tl.store(d_decode_ptr + at, d_decoded * hidden[None, :], mask=exists)
    d_hidden = tl.sum(d_decoded * load(decode_ptr, at, exists), axis=0)
    return tl.where(hidden <= 0, 0.0, d_hidden)  # NaN stays


@triton.jit
def autoencoder_vjp(d_scale, d_shift, mean, var, t, gradients_ptr, SIZES: tl.constexpr):
    """Return the scale (channels) and the gradients of the moments (fine); store the tensors'."""
    C: tl.constexpr = SIZES.channels
    MATRIX: tl.constexpr = SIZES.network.hidden * SIZES.rows
    key_mean, key_var, mean_hidden, var_hidden, of_omega, of_beta = _predict(mean, var, t, SIZES)
    omega, omega_slope, weight_slope = of_omega
    _, beta_slope, bias_slope = of_beta
    group_mean, rstd, off_mean = _standardize(mean, var, SIZES)

    # scale = omega * rstd; shift = beta + scale * (mean - group_mean)
    scale = omega * spread(rstd, C)
    d_scale += d_shift * off_mean
    d_off_mean = fold(d_shift * scale, SIZES.fine)
    d_group_var = -0.5 * rstd * rstd * rstd * fold(d_scale * omega, SIZES.network.num_groups)
    d_mean, d_var = refine(
        -fold(d_off_mean, SIZES.network.num_groups), d_group_var, group_mean, mean
    )
    d_mean += d_off_mean
    d_omega = d_scale * spread(rstd, C)

    c = tl.arange(0, C)
    tl.store(gradients_ptr + c, d_omega * weight_slope)
    tl.store(gradients_ptr + C + c, d_shift * bias_slope)
    matrix_ptr = gradients_ptr + 2 * C
    if SIZES.network.mean_drives == "beta":
        d_from_mean = d_shift * beta_slope
        d_from_var = d_omega * omega_slope
    else:
        d_from_mean = d_omega * omega_slope
        d_from_var = d_shift * beta_slope
    d_mean_hidden = _decode_vjp(d_from_mean, mean_hidden, t.decode_mean, matrix_ptr + MATRIX, SIZES)
    d_var_hidden = _decode_vjp(d_from_var, var_hidden, t.decode_var, matrix_ptr + 2 * MATRIX, SIZES)
    at, exists, _, _ = _matrices(SIZES)
    encode = load(t.encode, at, exists)
    d_encode = d_mean_hidden[:, None] * key_mean[None, :]
    d_encode += d_var_hidden[:, None] * key_var[None, :]
    tl.store(matrix_ptr + at, d_encode, mask=exists)
    d_key_mean = tl.sum(encode * d_mean_hidden[:, None], axis=0)
    d_key_var = tl.sum(encode * d_var_hidden[:, None], axis=0)
    d_key_mean, d_key_var = refine(d_key_mean, d_key_var, key_mean, mean)
    return scale, d_mean + d_key_mean, d_var + d_key_var
