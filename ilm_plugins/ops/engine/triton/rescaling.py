"""The kernels that compute any network, and its gradients, with one program for each instance.

The order of what they read and store is in :class:`.plan.TritonPlan`.
"""

import triton
import triton.language as tl

from .programs import sum_rows
from .streaming import pool
from .vectors import load, numbers


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


@triton.jit
def kept_scale(saved_ptr, moments, SIZES: tl.constexpr):
    """Return where the saved values have scale and shift, for the gradient of an activation."""
    return saved_ptr + SIZES.kept + 2 * tl.cast(moments, tl.int64)


@triton.jit
def store_coefficients(n, scale, shift, to_ptr, SIZES: tl.constexpr):
    """Store instance n's scale and shift, all scales (N, C) before all shifts."""
    c, is_channel = numbers(SIZES.channels)
    to_ptr += n * SIZES.channels
    tl.store(to_ptr + c, scale, mask=is_channel)
    to_ptr += tl.num_programs(0).to(tl.int64) * SIZES.channels
    tl.store(to_ptr + c, shift, mask=is_channel)


@triton.jit(
    do_not_specialize=["moments", "run", "splits", "split", "length"],
    do_not_specialize_on_alignment=["saved_ptr", "work_ptr"],
)
def rescale_kernel(
    saved_ptr, work_ptr, t, moments, run, splits, split, length, count,
    RESCALE: tl.constexpr, SIZES: tl.constexpr, BLOCK: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """Compute scale and shift (N, C), the first part of ``work``, from the moments.

    With ``KEEPS``, they are the last of the saved values instead. If ``BLOCK`` is 0, the moments
    are among these; else they are pooled from runs of moments of channels and splits.
    """
    n = tl.program_id(0).to(tl.int64)
    keep(n, saved_ptr, t, SIZES)
    group, is_group = numbers(SIZES.fine)
    mean_ptr = saved_ptr + SIZES.kept + n * SIZES.fine
    var_ptr = mean_ptr + moments
    if BLOCK == 0:
        mean = load(mean_ptr, group, is_group)
        var = load(var_ptr, group, is_group)
    else:
        coefficients = 0 if KEEPS else 2 * tl.num_programs(0).to(tl.int64) * SIZES.channels
        moments_ptr = work_ptr + coefficients + n * SIZES.fine * run
        mean, var = pool(
            moments_ptr, moments_ptr + tl.cast(moments, tl.int64) * run, group * run, is_group,
            run, None, splits, split, length, count, BLOCK,
        )  # fmt: skip
        tl.store(mean_ptr + group, mean, mask=is_group)
        tl.store(var_ptr + group, var, mask=is_group)
    scale, shift = RESCALE(mean, var, t, SIZES)
    to_ptr = kept_scale(saved_ptr, moments, SIZES) if KEEPS else work_ptr
    store_coefficients(n, scale, shift, to_ptr, SIZES)


@triton.jit(
    do_not_specialize=[
        *("moments", "sum_at", "scale_at", "slope_at", "offset_at", "rows_at", "groups_at"),
        *("batch_at", "splits", "members"),
    ],
    do_not_specialize_on_alignment=["saved_ptr", "work_ptr", "counters_ptr"],
)
def rescale_vjp_kernel(
    saved_ptr, work_ptr, counters_ptr, t,
    # Offsets into work_ptr; computed in the kernel, they would occupy registers.
    moments, sum_at, scale_at, slope_at, offset_at, rows_at, groups_at, batch_at, splits, members,
    count,
    RESCALE: tl.constexpr, SIZES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute ``rescale_vjp`` from the sums of splits.

    With counters, the last instance sums the gradients of BN's moments, see :func:`sum_rows`.
    """
    n = tl.program_id(0).to(tl.int64)
    group, is_group = numbers(SIZES.fine)
    c, is_channel = numbers(SIZES.channels)
    first_ptr = work_ptr + n * SIZES.channels * splits
    if BLOCK == 0:  # one split
        d_scale = load(first_ptr, c, is_channel)
        d_shift = load(first_ptr + sum_at, c, is_channel)
    else:
        d_scale = tl.zeros((c.shape[0], BLOCK), tl.float32)
        d_shift = tl.zeros((c.shape[0], BLOCK), tl.float32)
        for first in tl.range(0, splits, BLOCK, loop_unroll_factor=4):
            split = first + tl.arange(0, BLOCK)
            exists = is_channel[:, None] & (split < splits)[None, :]
            at = c[:, None] * splits + split[None, :]
            d_scale += load(first_ptr, at, exists)
            d_shift += load(first_ptr + sum_at, at, exists)
        d_scale, d_shift = tl.sum(d_scale, axis=1), tl.sum(d_shift, axis=1)
    mean_ptr = saved_ptr + SIZES.kept + n * SIZES.fine
    mean = load(mean_ptr, group, is_group)
    var = load(mean_ptr + moments, group, is_group)
    scale, slope, offset = rescale_vjp(
        n, d_scale, d_shift, mean, var, t, work_ptr + rows_at, count, RESCALE, SIZES
    )
    tl.store(work_ptr + scale_at + n * SIZES.channels + c, scale, mask=is_channel)
    tl.store(work_ptr + slope_at + n * SIZES.fine + group, slope, mask=is_group)
    tl.store(work_ptr + offset_at + n * SIZES.fine + group, offset, mask=is_group)
    if counters_ptr is not None:
        batch: tl.constexpr = 2 * SIZES.channels  # the last values of an instance's row
        rows_ptr = work_ptr + rows_at + SIZES.gradients - batch
        sum_rows(
            n, members, rows_ptr, SIZES.gradients, work_ptr + groups_at, counters_ptr,
            work_ptr + batch_at, batch, None,
        )  # fmt: skip
