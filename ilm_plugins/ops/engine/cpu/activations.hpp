// The activations of the networks. Each returns its value, and writes its derivative to `slope`.
#pragma once

#include "map_activations.hpp"

namespace {

// Also of vectors.
template <class Real, class Values> inline Values tanh(Values x, Values *slope)
{
    Values less, small = exp_of_negative_size<Real>(x + x, &less), inverse = 1 / (1 + small);
    *slope = 4 * small * inverse * inverse; // 1 - y * y would be mostly rounding error near 1
    return x < Real(0) ? less * inverse : -less * inverse;
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
