"""The attentions of AN, of one instance: see layers/attentive.py.

::

    features = mean rsqrt(var + feature_eps), a_k = relu6(sum of A_k features + b_k + 3) / 6
    omega = weight (sum of a_k W_k), beta = bias (sum of a_k W_k) + sum of a_k B_k
"""

import triton
import triton.language as tl

from ...engine.triton.sizes import Rescale
from ...engine.triton.vectors import load, numbers, relu6, rescale_groups, total


@triton.jit
def _attend(k, features, t, SIZES: tl.constexpr):
    """Return A_k, W_k and B_k (channels), a_k and its derivative by the logit."""
    c, exists = numbers(SIZES.channels)
    c += k * SIZES.channels
    attention = load(t.attention_weight, c, exists)
    logit = total(attention * features, SIZES.channels) + load(t.attention_bias, k, True)
    a, slope = relu6(logit + 3.0)
    return (
        attention,
        load(t.pairs_weight, c, exists),
        load(t.pairs_bias, c, exists),
        a / 6,
        slope / 6,
    )


@triton.jit
def attentive(mean, var, t, SIZES: tl.constexpr, d_scale=None, d_shift=None, gradients_ptr=None):
    """Compute scale and shift (channels) from the moments (channels); see :class:`Rescale`."""
    C: tl.constexpr = SIZES.channels
    K: tl.constexpr = SIZES.network.num_affine
    c, exists = numbers(C)
    weight, bias = load(t.weight, c, exists), load(t.bias, c, exists)
    rstd = tl.rsqrt(var + SIZES.network.feature_eps)
    features = mean * rstd
    mixed_weight = tl.zeros_like(mean)
    mixed_bias = tl.zeros_like(mean)
    for k in range(K):
        _, pair_weight, pair_bias, a, _ = _attend(k, features, t, SIZES)
        mixed_weight += a * pair_weight
        mixed_bias += a * pair_bias
    omega, beta = weight * mixed_weight, bias * mixed_weight + mixed_bias
    if gradients_ptr is None:
        return rescale_groups(omega, beta, mean, var, SIZES)
    else:
        scale, d_omega, d_mean, d_var = rescale_groups(
            omega, beta, mean, var, SIZES, d_scale, d_shift
        )
        tl.store(gradients_ptr + SIZES.to.weight + c, d_omega * mixed_weight, mask=exists)
        tl.store(gradients_ptr + SIZES.to.bias + c, d_shift * mixed_weight, mask=exists)
        d_mixed_weight = d_omega * weight + d_shift * bias
        d_features = tl.zeros_like(mean)
        for k in range(K):
            attention, pair_weight, pair_bias, a, slope = _attend(k, features, t, SIZES)
            d_logit = slope * total(d_mixed_weight * pair_weight + d_shift * pair_bias, C)
            row_ptr = gradients_ptr + k * C + c
            tl.store(row_ptr + SIZES.to.attention_weight, d_logit * features, mask=exists)
            tl.store(gradients_ptr + SIZES.to.attention_bias + k, d_logit)
            tl.store(row_ptr + SIZES.to.pairs_weight, a * d_mixed_weight, mask=exists)
            tl.store(row_ptr + SIZES.to.pairs_bias, a * d_shift, mask=exists)
            d_features += d_logit * attention
        d_features *= rstd
        return scale, d_mean + d_features, d_var - 0.5 * d_features * features * rstd


RESCALE = Rescale(attentive)
