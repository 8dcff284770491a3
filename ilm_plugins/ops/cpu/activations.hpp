// The activations of the networks.
#pragma once

#include <cmath>

#include "options.hpp"

namespace {

// Return the activation of x; write its derivative to `slope`.
template <class Real> Real activate(Activation activation, Real x, Real *slope)
{
    Real y;
    switch (activation) {
    case Activation::tanh:
        y = std::tanh(x);
        *slope = 1 - y * y;
        return y;
    case Activation::sigmoid:
        y = 1 / (1 + std::exp(-x));
        *slope = y * (1 - y);
        return y;
    case Activation::identity:
        *slope = 1;
        return x;
    case Activation::relu6:
        *slope = !(x <= 0 || x >= 6); // NaN passes, as in torch
        return x < 0 ? 0 : x > 6 ? 6 : x;
    case Activation::leaky_relu:
        *slope = x > 0 ? 1 : Real(0.01);
        return x * *slope;
    case Activation::relu:
        break;
    }
    *slope = !(x <= 0);
    return x < 0 ? 0 : x; // NaN stays NaN
}

} // namespace
