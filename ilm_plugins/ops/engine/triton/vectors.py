"""Steps of the networks' kernels, which hold an instance's vectors in registers.

A vector of COUNT values is padded to the next power of two. The padding may have any values: sums
and stores leave it out. Triton also compiles code after ``return``; put alternatives under
``else``.
"""

import triton
import triton.language as tl
from triton import next_power_of_2


@triton.jit
def load(ptr, at, exists):
    return tl.load(ptr + at, mask=exists, other=0).to(tl.float32)


@triton.jit
def buffer(ptr, t, OFFSET: tl.constexpr):
    """Return where a buffer is: at its own pointer, or among the kept values."""
    if ptr is None:
        return t.kept + OFFSET
    else:
        return ptr


@triton.jit
def finite(var):
    """Return variances with NaN in place of infinity, whose rsqrt would hide the overflow as 0."""
    return tl.where(var == float("inf"), float("nan"), var)


@triton.jit
def divide(x, y):
    """Return x / y in float32, rounded to nearest; the operator / may be two units off."""
    return tl.div_rn(x, y * 1.0)


@triton.jit
def numbers(COUNT: tl.constexpr):
    """Return 0, 1, ... of a vector's values, and whether each is below COUNT."""
    i = tl.arange(0, next_power_of_2(COUNT))
    return i, i < COUNT


@triton.jit
def spread(values, GROUPS: tl.constexpr, COUNT: tl.constexpr):
    """Repeat each of GROUPS values for its neighbours: (COUNT)."""
    # Also where both are equal: it separates the thread layouts of its input and its output, so
    # that a network's vectors are not replicated in each thread of a tile.
    i, _ = numbers(COUNT)
    return tl.gather(values, tl.minimum(i // (COUNT // GROUPS), GROUPS - 1), 0)


@triton.jit
def fold(values, COUNT: tl.constexpr, GROUPS: tl.constexpr):
    """Sum the neighbours among COUNT values that belong to each of GROUPS: (GROUPS)."""
    SIZE: tl.constexpr = COUNT // GROUPS
    ROWS: tl.constexpr = next_power_of_2(GROUPS)
    COLUMNS: tl.constexpr = next_power_of_2(SIZE)
    if SIZE != COLUMNS:
        row = tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, COLUMNS)[None, :]
        if GROUPS != 1:
            at = tl.reshape(tl.minimum(row * SIZE + column, COUNT - 1), (ROWS * COLUMNS,))
            values = tl.gather(values, at, 0)
        values = tl.where(column < SIZE, tl.reshape(values, (ROWS, COLUMNS)), 0.0)
    return tl.sum(tl.reshape(values, (ROWS, COLUMNS)), axis=1)


@triton.jit
def total(values, COUNT: tl.constexpr):
    return tl.sum(fold(values, COUNT, 1), axis=0)


@triton.jit
def coarsen(mean, var, COUNT: tl.constexpr, GROUPS: tl.constexpr):
    """Pool the means and variances of COUNT fine groups into moments of coarser GROUPS."""
    if COUNT == GROUPS:  # copies would take registers
        return mean, var
    else:
        pooled = divide(fold(mean, COUNT, GROUPS), COUNT // GROUPS)
        offset = mean - spread(pooled, GROUPS, COUNT)
        # A mean is rounded: what it leaves is most of the deviation of equal, large values.
        rest = divide(fold(offset, COUNT, GROUPS), COUNT // GROUPS)
        pooled += rest
        offset -= spread(rest, GROUPS, COUNT)
        return pooled, divide(fold(var + offset * offset, COUNT, GROUPS), COUNT // GROUPS)


@triton.jit
def refine(d_mean, d_var, coarse_mean, mean, COUNT: tl.constexpr, GROUPS: tl.constexpr):
    """Return the gradients of the fine groups' moments from ``coarsen``'s output gradients."""
    if COUNT == GROUPS:
        return d_mean, d_var
    else:
        scale = GROUPS / COUNT
        d_var = spread(d_var, GROUPS, COUNT) * scale
        offset = mean - spread(coarse_mean, GROUPS, COUNT)
        return spread(d_mean, GROUPS, COUNT) * scale + 2.0 * d_var * offset, d_var


@triton.jit
def rescale_groups(omega, beta, mean, var, SIZES: tl.constexpr, d_scale=None, d_shift=None):
    """Return scale and shift (channels) of x whose groups are standardized, then rescaled."""
    C: tl.constexpr = SIZES.channels
    FINE: tl.constexpr = SIZES.fine
    GROUPS: tl.constexpr = SIZES.network.num_groups
    group_mean, group_var = coarsen(mean, var, FINE, GROUPS)
    off_mean = spread(mean - spread(group_mean, GROUPS, FINE), FINE, C)
    rstd = tl.rsqrt(group_var + SIZES.network.eps)
    of_channels = spread(rstd, GROUPS, C)
    scale = omega * of_channels
    if d_scale is None:
        return scale, beta + scale * off_mean
    else:  # the scale, and the gradients of omega (channels), mean and var (fine)
        d_scale += d_shift * off_mean
        d_group_var = -0.5 * rstd * rstd * rstd * fold(d_scale * omega, C, GROUPS)
        d_group_mean = -fold(fold(d_shift * scale, C, FINE), FINE, GROUPS)
        # Through mean - group_mean and through x - mean, the gradients of mean cancel.
        d_mean, d_var = refine(d_group_mean, d_group_var, group_mean, mean, FINE, GROUPS)
        return scale, d_scale * of_channels, d_mean, d_var


# Activations; each returns its value and its derivative.


@triton.jit
def tanh(x):
    # 1 - y * y would be mostly rounding error near |y| = 1.
    small = tl.exp(-2.0 * tl.abs(x))
    inverse = divide(1.0, 1.0 + small)
    y = (1.0 - small) * inverse
    return tl.where(x < 0, -y, y), 4.0 * small * inverse * inverse


@triton.jit
def sigmoid(x):
    small = tl.exp(-tl.abs(x))
    y = divide(1.0, 1.0 + small)
    return tl.where(x < 0, small * y, y), small * y * y


@triton.jit
def relu6(x):
    slope = tl.where(x > 0, 1.0, 0.0)
    y = x * slope
    return tl.where(x > 6, 6.0, y), tl.where(x < 6, slope, 0.0)
