// The activations of a map's values, for vectors and for single values.
//
// Each has `of(z)`, and `gradient(dy, z)`: dy times the derivative. They treat NaN, infinity and -0
// as torch does.
#pragma once

#include "vec.hpp"

namespace {

// The bits of a float or double, or of each in a vector.
template <class Values> struct BitsOf;
template <> struct BitsOf<float> {
    using Type = uint32_t;
};
template <> struct BitsOf<double> {
    using Type = uint64_t;
};
template <> struct BitsOf<Vec<float>::Vector> {
    using Type [[gnu::vector_size(REGISTER)]] = uint32_t;
};
template <> struct BitsOf<Vec<double>::Vector> {
    using Type [[gnu::vector_size(REGISTER)]] = uint64_t;
};

// What an activation may redefine.
struct MapActivation {
    static constexpr bool reads_z = true;
    // For so few remaining values, a scalar loop is faster than one more vector.
    static constexpr int64_t few = 2;

    explicit MapActivation(double) { }
};

template <class Real> struct NoActivation : MapActivation {
    using MapActivation::MapActivation;
    static constexpr bool reads_z = false;

    template <class Values> static Values of(Values z) { return z; }
    template <class Values> static Values gradient(Values dy, Values) { return dy; }
};

template <class Real> struct Relu : MapActivation {
    using MapActivation::MapActivation;

    template <class Values> static Values of(Values z) { return z < Real(0) ? Values{} : z; }

    template <class Values> static Values gradient(Values dy, Values z)
    {
        return z <= Real(0) ? Values{} : dy;
    }
};

template <class Real> struct Relu6 : MapActivation {
    using MapActivation::MapActivation;

    template <class Values> static Values of(Values z)
    {
        z = z < Real(0) ? Values{} : z;
        return z > Real(6) ? Values{} + Real(6) : z;
    }

    template <class Values> static Values gradient(Values dy, Values z)
    {
        dy = z <= Real(0) ? Values{} : dy;
        return z >= Real(6) ? Values{} : dy;
    }
};

template <class Real> struct LeakyRelu : MapActivation {
    Real negative_slope;

    explicit LeakyRelu(double negative_slope)
        : MapActivation(0), negative_slope(Real(negative_slope))
    {
    }

    template <class Values> Values of(Values z) const
    {
        return z > Real(0) ? z : z * negative_slope;
    }

    template <class Values> Values gradient(Values dy, Values z) const
    {
        return z > Real(0) ? dy : dy * negative_slope;
    }
};

// 1 / k! for k < 14.
template <class Real> struct Series {
    Real terms[14];

    constexpr Series() : terms()
    {
        terms[0] = 1;
        for (int k = 1; k < 14; k++)
            terms[k] = terms[k - 1] / Real(k);
    }
};

// e^-|x|, 0 where it would be denormal; and the same minus 1, if asked for, without cancellation.
template <class Real, class Values>
inline Values exp_of_negative_size(Values x, Values *minus_one = nullptr)
{
    using Bits = typename BitsOf<Values>::Type;
    constexpr bool is_double = sizeof(Real) == 8;
    constexpr int mantissa = is_double ? 52 : 23, last = is_double ? 13 : 7;
    constexpr Series<Real> series;
    constexpr Real smallest = is_double ? Real(-708) : Real(-87);
    // Added to a number, it rounds it to an integer, in the lowest bits.
    constexpr Real rounder = is_double ? Real(6755399441055744) : Real(12582912);
    constexpr Real log2_high = is_double ? Real(0x1.62e42fefa0000p-1) : Real(0x1.62e4p-1);
    constexpr Real log2_low = is_double ? Real(0x1.cf79abc9e3b3ap-40) : Real(0x1.7f7d1cp-20);
    x = as<Values>(as<Bits>(x) | as<Bits>(-Values{}));
    Values rounded = x * Real(1.4426950408889634) + rounder, n = rounded - rounder;
    Values rest = x - n * log2_high - n * log2_low; // at most log(2) / 2 from 0
    Values power = Values{} + series.terms[last];
    for (int k = last - 1; k > 0; k--) // Horner's rule
        power = power * rest + series.terms[k];
    auto times_2_to_n = [&](Values values) {
        return as<Values>(as<Bits>(values) + (as<Bits>(rounded) << mantissa));
    };
    const Values one = Values{} + Real(1);
    if (minus_one) {
        Values factor = times_2_to_n(one);
        *minus_one = x < smallest ? -one : factor * (power * rest) + (factor - one);
    }
    return x < smallest ? Values{} : times_2_to_n(power * rest + one);
}

template <class Real> struct Silu : MapActivation {
    using MapActivation::MapActivation;
    static constexpr int64_t few = 0;

    template <class Values> static Values of(Values z)
    {
        Values small = exp_of_negative_size<Real>(z);
        return z * ((z < Real(0) ? small : Values{} + Real(1)) / (small + Real(1)));
    }

    template <class Values> static Values gradient(Values dy, Values z)
    {
        Values small = exp_of_negative_size<Real>(z), inverse = Real(1) / (small + Real(1));
        Values other = small * inverse, sigmoid = z < Real(0) ? other : inverse;
        return dy * (sigmoid + z * (other * inverse));
    }
};

template <class Real> struct Hardswish : MapActivation {
    using MapActivation::MapActivation;

    template <class Values> static Values of(Values z)
    {
        Values gate = z + Real(3);
        gate = gate < Real(0) ? Values{} : gate;
        gate = gate > Real(6) ? Values{} + Real(6) : gate;
        return z * gate * (Real(1) / Real(6));
    }

    template <class Values> static Values gradient(Values dy, Values z)
    {
        Values between = dy * (z * (Real(1) / Real(3)) + Real(0.5));
        Values above = z >= Real(3) ? dy : between;
        return z <= Real(-3) ? Values{} : above;
    }
};

template <template <class> class... Activations> struct Numbered { };

// In the order of their numbers in Python, in engine/activation.py.
using MapActivations = Numbered<NoActivation, Relu, Relu6, LeakyRelu, Silu, Hardswish>;

} // namespace
