"""Steps of the networks' kernels, which hold an instance's vectors in registers."""

import triton
import triton.language as tl


@triton.jit
def load(ptr, at, exists):
    return tl.load(ptr + at, mask=exists, other=0).to(tl.float32)


@triton.jit
def finite(var):
    """Return variances with NaN in place of infinity, whose rsqrt would hide the overflow as 0."""
    return tl.where(var == float("inf"), float("nan"), var)


@triton.jit
def divide(x, y):
    """Return x / y in float32, rounded to nearest; the operator / may be two units off."""
    return tl.div_rn(x, y * 1.0)


@triton.jit
def numbers(COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Return 0, 1, ... (PADDED), and whether each is below COUNT."""
    i = tl.arange(0, PADDED)
    return i, i < COUNT


@triton.jit
def spread(values, SIZE: tl.constexpr):
    """Repeat each of the values (G) for its neighbours: (SIZE)."""
    # Also where SIZE is G: it separates the thread layouts of its input and its output, so that an
    # auto-encoder's vectors are not replicated in each thread of a tile.
    return tl.gather(values, tl.arange(0, SIZE) // (SIZE // values.shape[0]), 0)


@triton.jit
def fold(values, SIZE: tl.constexpr):
    return tl.sum(tl.reshape(values, (SIZE, values.shape[0] // SIZE)), axis=1)


@triton.jit
def coarsen(mean, var, SIZE: tl.constexpr):
    """Pool the means and variances of fine groups into those of SIZE coarser groups."""
    scale = SIZE / mean.shape[0]
    pooled = fold(mean, SIZE) * scale
    offset = mean - spread(pooled, mean.shape[0])
    return pooled, fold(var + offset * offset, SIZE) * scale


@triton.jit
def refine(d_mean, d_var, coarse_mean, mean):
    """Return the gradients of the fine groups' moments by those of ``coarsen``'s results."""
    SIZE: tl.constexpr = mean.shape[0]
    scale = coarse_mean.shape[0] / SIZE
    d_var = spread(d_var, SIZE) * scale
    offset = mean - spread(coarse_mean, SIZE)
    return spread(d_mean, SIZE) * scale + 2.0 * d_var * offset, d_var


@triton.jit
def activate(x, NAME: tl.constexpr):
    """Return the activation NAME of x, and its derivative."""
    if NAME == "tanh":  # 1 - y * y would be mostly rounding error near |y| = 1
        small = tl.exp(-2.0 * tl.abs(x))
        inverse = divide(1.0, 1.0 + small)
        y = (1.0 - small) * inverse
        y = tl.where(x < 0, -y, y)
        slope = 4.0 * small * inverse * inverse
    elif NAME == "sigmoid":
        small = tl.exp(-tl.abs(x))
        y = divide(1.0, 1.0 + small)
        slope = small * y * y
        y = tl.where(x < 0, small * y, y)
    elif NAME == "identity":
        y = x
        slope = tl.full(x.shape, 1.0, tl.float32)
    else:
        slope = tl.where(x > 0, 1.0, 0.01 if NAME == "leaky_relu" else 0.0)
        y = tl.where(x < 0, 0.0, x) if NAME == "relu" else x * slope
        if NAME == "relu6":
            slope = tl.where(x < 6, slope, 0.0)
            y = tl.where(x > 6, 6.0, y)
    return y, slope
