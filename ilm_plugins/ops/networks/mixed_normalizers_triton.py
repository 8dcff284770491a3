"""The moments of the normalizers that EN and SN mix, of one instance: see layers/mixture.py.

The K normalizers are computed one after the other. Values that depend on all of them need a second
loop over them, which computes a normalizer's vectors again: K vectors of channels would take more
registers.

BN's statistics of the batch couple the instances. The kernel of the moments computes them before
the network, and updates the running statistics; the kernel of dx adds the gradient through them.
"""

import triton
import triton.language as tl

from ..engine.triton import vectors as v


@triton.jit
def normalizer_moments(i: tl.constexpr, mean, var, t, SIZES: tl.constexpr):
    """Return mean - mu_i and the variance of normalizer i (channels)."""
    NAME: tl.constexpr = SIZES.network.normalizers[i]
    C: tl.constexpr = SIZES.channels
    if NAME == "IN":
        offset = tl.zeros_like(mean)
        of_var = var
    elif NAME == "BN":
        c, exists = v.numbers(SIZES.channels)
        offset = mean - v.load(v.buffer(t.running_mean, t, SIZES.at.running_mean), c, exists)
        of_var = v.load(v.buffer(t.running_variance, t, SIZES.at.running_variance), c, exists)
    else:
        GROUPS: tl.constexpr = SIZES.network.num_groups if NAME == "GN" else 1
        group_mean, group_var = v.coarsen(mean, var, C, GROUPS)
        offset = mean - v.spread(group_mean, GROUPS, C)
        of_var = v.spread(group_var, GROUPS, C)
    return offset, of_var


@triton.jit
def normalizer_moments_vjp(
    i: tl.constexpr, d_offset, d_of_var, mean, gradients_ptr, SIZES: tl.constexpr
):
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
        batch_ptr = gradients_ptr + SIZES.to.batch
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
def row(values, i):
    return tl.sum(tl.where(tl.arange(0, values.shape[0])[:, None] == i, values, 0.0), axis=0)


@triton.jit
def element(values, i):
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == i, values, 0.0), axis=0)


@triton.jit
def softmax(logits, real):
    logits = tl.where(real, logits, -float("inf"))
    ratios = tl.exp(logits - tl.max(logits, axis=0))
    return ratios / tl.sum(ratios, axis=0)
