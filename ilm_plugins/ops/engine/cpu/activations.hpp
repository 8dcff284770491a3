// The activations of the networks.
#pragma once

#include <cmath>

#include "options.hpp"

namespace {

enum class Activation { tanh, sigmoid, relu, leaky_relu, relu6, identity };

constexpr const char *names_of(Activation) { return "tanh sigmoid relu leaky_relu relu6 identity"; }

// Return the activation of x; write its derivative to `slope`.
template <class Real> Real activate(Activation activation, Real x, Real *slope)
{
    switch (activation) {
    case Activation::tanh: {
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
    case Activation::sigmoid: {
        Real small = std::exp(-std::abs(x)), y = 1 / (1 + small); // not y * (1 - y) for large x
        *slope = small * y * y;
        return x < 0 ? small * y : y;
    }
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
