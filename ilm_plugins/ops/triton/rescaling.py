"""The kernels that compute any network, and its gradients, with one program for each instance."""

import triton
import triton.language as tl

from .attentive import attentive
from .autoencoder import autoencoder
from .mixture import exemplar, switch
from .vectors import load, numbers

#: Kind of network -> the function of scale and shift (channels) from the moments (fine) of an
#: instance. Given the gradients of scale and shift, too, it returns the scale and the gradients of
#: the moments, the mean's also through x - mean, and stores the tensors' gradients.
NETWORKS = {
    "Autoencoder": autoencoder,
    "Attentive": attentive,
    "Exemplar": exemplar,
    "Switch": switch,
    "SparseSwitch": switch,
}


@triton.jit
def rescale_vjp(
    n, d_scale, d_shift, mean, var, t, gradients_ptr, count,
    RESCALE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    """Return scale (channels), slope and offset (fine) of instance n's dx, without BN's part."""
    gradients_ptr += n * SIZES.gradients
    scale, d_mean, d_var = RESCALE(mean, var, t, SIZES, d_scale, d_shift, gradients_ptr)
    return scale, d_var * (2.0 / count), d_mean / count


@triton.jit
def keep(n, kept_ptr, t, SIZES: tl.constexpr):
    """Copy the network's buffers for the backward pass, if this is the first instance."""
    for i in tl.static_range(len(SIZES.buffers)):
        ptr = t[SIZES.buffers[i][0]]
        if ptr is not None:
            at, _ = numbers(SIZES.buffers[i][2])
            exists = at < tl.where(n == 0, SIZES.buffers[i][2], 0)
            tl.store(kept_ptr + SIZES.buffers[i][1] + at, load(ptr, at, exists), mask=exists)


@triton.jit(do_not_specialize=["moments"])
def rescale_kernel(
    scale_ptr, shift_ptr, statistics_ptr, moments, t, RESCALE: tl.constexpr, SIZES: tl.constexpr
):
    """Compute scale and shift (N, C) from the statistics, which start with ``moments`` means."""
    n = tl.program_id(0).to(tl.int64)
    keep(n, statistics_ptr + 2 * moments, t, SIZES)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    statistics_ptr += n * SIZES.fine
    mean = load(statistics_ptr, group, is_group)
    var = load(statistics_ptr + moments, group, is_group)
    scale, shift = RESCALE(mean, var, t, SIZES)
    tl.store(scale_ptr + n * SIZES.channels + c, scale, mask=is_channel)
    tl.store(shift_ptr + n * SIZES.channels + c, shift, mask=is_channel)


@triton.jit
def rescale_vjp_kernel(
    d_scale_ptr, d_shift_ptr, mean_ptr, var_ptr, scale_ptr, slope_ptr, offset_ptr, gradients_ptr,
    t, count, RESCALE: tl.constexpr, SIZES: tl.constexpr,
):  # fmt: skip
    """Compute ``rescale_vjp`` from the sums (N, C) of dy * (x - mean) and of dy."""
    n = tl.program_id(0).to(tl.int64)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    d_scale = load(d_scale_ptr + n * SIZES.channels, c, is_channel)
    d_shift = load(d_shift_ptr + n * SIZES.channels, c, is_channel)
    mean = load(mean_ptr + n * SIZES.fine, group, is_group)
    var = load(var_ptr + n * SIZES.fine, group, is_group)
    scale, slope, offset = rescale_vjp(
        n, d_scale, d_shift, mean, var, t, gradients_ptr, count, RESCALE, SIZES
    )
    tl.store(scale_ptr + n * SIZES.channels + c, scale, mask=is_channel)
    tl.store(slope_ptr + n * SIZES.fine + group, slope, mask=is_group)
    tl.store(offset_ptr + n * SIZES.fine + group, offset, mask=is_group)
