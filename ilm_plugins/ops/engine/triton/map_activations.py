"""The activations of a map's values, for a tile in registers.

They treat NaN, infinity and -0 as torch does. ACTIVATION is an :class:`..activation.Activation`.
"""

import triton
import triton.language as tl


@triton.jit
def _clamp_to_6(z):
    z = tl.where(z < 0, 0.0, z)
    return tl.where(z > 6, 6.0, z)


@triton.jit
def activation_of(z, ACTIVATION: tl.constexpr):
    """Return the activation of z."""
    NAME: tl.constexpr = ACTIVATION.name
    if NAME == "relu":
        y = tl.where(z < 0, 0.0, z)
    elif NAME == "relu6":
        y = _clamp_to_6(z)
    elif NAME == "leaky_relu":
        y = tl.where(z > 0, z, z * ACTIVATION.negative_slope)
    elif NAME == "silu":
        small = tl.exp(-tl.abs(z))
        y = z * (tl.where(z < 0, small, 1.0) / (1.0 + small))
    else:
        tl.static_assert(NAME == "hardswish")
        y = z * _clamp_to_6(z + 3.0) * (1 / 6)
    return y


@triton.jit
def gradient_of(dy, z, ACTIVATION: tl.constexpr):
    """Return dy times the activation's derivative at z."""
    NAME: tl.constexpr = ACTIVATION.name
    if NAME == "relu":
        dz = tl.where(z <= 0, 0.0, dy)
    elif NAME == "relu6":
        dz = tl.where((z <= 0) | (z >= 6), 0.0, dy)
    elif NAME == "leaky_relu":
        dz = tl.where(z > 0, dy, dy * ACTIVATION.negative_slope)
    elif NAME == "silu":
        small = tl.exp(-tl.abs(z))
        inverse = 1.0 / (1.0 + small)
        other = small * inverse
        dz = dy * (tl.where(z < 0, other, inverse) + z * (other * inverse))
    else:
        tl.static_assert(NAME == "hardswish")
        dz = tl.where(z >= 3, dy, dy * (z * (1 / 3) + 0.5))
        dz = tl.where(z <= -3, 0.0, dz)
    return dz
