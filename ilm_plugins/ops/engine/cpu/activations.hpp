// The activations of the networks. Each returns its value, and writes its derivative to `slope`.
#pragma once

#include <cmath>

namespace {

template <class Real> Real tanh(Real x, Real *slope)
{
    Real size = std::abs(x);
    if (size < Real(0.5)) {
        Real y = std::tanh(x);
        *slope = 1 - y * y;
        return y;
    }
    // Where y is near 1, 1 - y * y would be mostly rounding error.
    Real small = std::exp(-2 * size), inverse = 1 / (1 + small);
    *slope = 4 * small * inverse * inverse;
    return std::copysign((1 - small) * inverse, x);
}

template <class Real> Real sigmoid(Real x, Real *slope)
{
    Real small = std::exp(-std::abs(x)), y = 1 / (1 + small); // not y * (1 - y) for large x
    *slope = small * y * y;
    return x < 0 ? small * y : y;
}

template <class Real> Real relu6(Real x, Real *slope)
{
    *slope = !(x <= 0 || x >= 6); // NaN passes, as in torch
    return x < 0 ? 0 : x > 6 ? 6 : x;
}

} // namespace
