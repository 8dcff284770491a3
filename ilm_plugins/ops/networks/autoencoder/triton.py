"""The auto-encoder of ILM Norm and AssocNorm, of one instance: see layers/autoencoder.py.

Hidden values are computed one after the other, so that no matrix takes registers. ``keys`` is the
number of key groups.
"""

import triton
import triton.language as tl

from ...engine.triton import vectors as v
from ...engine.triton.sizes import Rescale

#: Most channels if their number is odd. The vectors of more would not fit into the registers,
#: because the elements of unaligned rows are loaded one by one.
MAX_ODD_CHANNELS = 2048


@triton.jit
def _encode(m, key_mean, key_var, t, SIZES: tl.constexpr):
    """Return row m of W1, and Eq. 4's hidden value m of the mean and of the variance."""
    KEYS: tl.constexpr = SIZES.network.num_key_groups
    k, exists = v.numbers(KEYS)
    encode = v.load(t.encode_weight + m * KEYS, k, exists)
    mean = v.total(encode * key_mean, KEYS)
    var = v.total(encode * key_var, KEYS)
    return encode, tl.where(mean < 0, 0.0, mean), tl.where(var < 0, 0.0, var)  # NaN stays NaN


@triton.jit
def _column(m, SIZES: tl.constexpr):
    """Return the offsets and the mask of a decoder's column m."""
    k, exists = v.numbers(SIZES.network.num_key_groups)
    return k * SIZES.network.hidden + m, exists


@triton.jit
def _decode_vjp(m, hidden, d_decoded, decode_ptr, gradient_ptr, SIZES: tl.constexpr):
    """Store the gradient of a decoder's column m; return the gradient of hidden value m."""
    at, exists = _column(m, SIZES)
    tl.store(gradient_ptr + at, d_decoded * hidden, mask=exists)
    d_hidden = v.total(d_decoded * v.load(decode_ptr, at, exists), SIZES.network.num_key_groups)
    return tl.where(hidden <= 0, 0.0, d_hidden)  # NaN stays


@triton.jit
def autoencoder(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (fine); see :class:`Rescale`."""
    MEAN_TO_BETA: tl.constexpr = SIZES.network.mean_drives == "beta"
    C: tl.constexpr = SIZES.channels
    KEYS: tl.constexpr = SIZES.network.num_key_groups
    key_mean, key_var = v.coarsen(mean, var, SIZES.fine, KEYS)  # Eq. 3
    from_mean = tl.zeros_like(key_mean)
    from_var = tl.zeros_like(key_mean)
    for m in range(SIZES.network.hidden):
        _, mean_hidden, var_hidden = _encode(m, key_mean, key_var, t, SIZES)
        at, is_key = _column(m, SIZES)
        from_mean += v.load(t.decode_mean_weight, at, is_key) * mean_hidden  # Eq. 5
        from_var += v.load(t.decode_var_weight, at, is_key) * var_hidden
    if MEAN_TO_BETA:
        for_omega, for_beta = from_var, from_mean
    else:
        for_omega, for_beta = from_mean, from_var
    c, exists = v.numbers(C)
    beta, beta_slope = v.tanh(v.spread(for_beta, KEYS, C))
    beta += v.load(t.bias, c, exists)
    if gradients_ptr is not None:  # before omega is computed, to take fewer registers at once
        tl.store(gradients_ptr + SIZES.to.bias + c, d_shift, mask=exists)
        d_for_beta = v.fold(d_shift * beta_slope, C, KEYS)
    offset = v.load(v.buffer(t.omega_offset, t, SIZES.at.omega_offset), 0, True)
    omega, omega_slope = v.sigmoid(v.spread(for_omega, KEYS, C))
    omega = omega - offset + v.load(t.weight, c, exists)
    if gradients_ptr is None:
        return v.rescale_groups(omega, beta, mean, var, SIZES)
    else:
        scale, d_omega, d_mean, d_var = v.rescale_groups(
            omega, beta, mean, var, SIZES, d_scale, d_shift
        )
        tl.store(gradients_ptr + SIZES.to.weight + c, d_omega, mask=exists)
        d_for_omega = v.fold(d_omega * omega_slope, C, KEYS)
        if MEAN_TO_BETA:
            d_from_mean, d_from_var = d_for_beta, d_for_omega
        else:
            d_from_mean, d_from_var = d_for_omega, d_for_beta
        if SIZES.fine == KEYS:
            d_key_mean, d_key_var = d_mean, d_var
        else:
            d_key_mean = tl.zeros_like(key_mean)
            d_key_var = tl.zeros_like(key_mean)
        for m in range(SIZES.network.hidden):
            encode, mean_hidden, var_hidden = _encode(m, key_mean, key_var, t, SIZES)
            to_ptr = gradients_ptr + SIZES.to.decode_mean_weight
            d_mean_hidden = _decode_vjp(
                m, mean_hidden, d_from_mean, t.decode_mean_weight, to_ptr, SIZES
            )
            to_ptr = gradients_ptr + SIZES.to.decode_var_weight
            d_var_hidden = _decode_vjp(
                m, var_hidden, d_from_var, t.decode_var_weight, to_ptr, SIZES
            )
            d_encode = d_mean_hidden * key_mean + d_var_hidden * key_var
            k, is_key = v.numbers(KEYS)
            to_ptr = gradients_ptr + SIZES.to.encode_weight
            tl.store(to_ptr + m * KEYS + k, d_encode, mask=is_key)
            d_key_mean += encode * d_mean_hidden
            d_key_var += encode * d_var_hidden
        if SIZES.fine == KEYS:
            return scale, d_key_mean, d_key_var
        else:
            of_mean, of_var = v.refine(d_key_mean, d_key_var, key_mean, mean, SIZES.fine, KEYS)
            return scale, d_mean + of_mean, d_var + of_var


RESCALE = Rescale(
    autoencoder,
    computes=lambda network, channels: channels <= MAX_ODD_CHANNELS or channels % 2 == 0,
    is_read_once=True,
)
