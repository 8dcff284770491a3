// Vectors of as many values as a register holds, and how maps store values.
//
// All code is in an unnamed namespace, here and in the other files: the library has it once for
// each instruction set, and the linker must not replace a function by its namesake of another set.
#pragma once

#include <cmath>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__x86_64__)
#include <emmintrin.h>
#endif

// Bytes of a register. Tests set another size than the processor's.
#if defined(ILM_PLUGINS_REGISTER)
#elif defined(__AVX512F__)
#define ILM_PLUGINS_REGISTER 64
#elif defined(__AVX__)
#define ILM_PLUGINS_REGISTER 32
#else
#define ILM_PLUGINS_REGISTER 16
#endif

namespace {

constexpr int64_t REGISTER = ILM_PLUGINS_REGISTER;

// Values of 16 bits, which are computed in float.
struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// The same bits as another type.
template <class To, class From> inline To as(From from)
{
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// The last `lanes` entries have all bits set, the others none.
template <class Bits, int64_t lanes> struct Masks {
    Bits bits[2 * lanes] = {};
    constexpr Masks()
    {
        for (int64_t i = lanes; i < 2 * lanes; i++)
            bits[i] = Bits(-1);
    }
};

// Vectors of T, a float or double: a map of T is computed in T.
//
// Each Vec<T> has the same members. `Real` is the type of computed values, and Vector has `lanes`
// of them. `load_two` and `store_two` take two vectors of consecutive values, in an order that
// costs least; `_one` is a single value. `stream` stores without filling the cache, at an address
// that is a multiple of a register's size.
template <class T> struct Vec {
    using Real = T;
    using Vector [[gnu::vector_size(REGISTER)]] = T;
    using Quarter [[gnu::vector_size(16)]] = T;
    using Int = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
    using Mask [[gnu::vector_size(REGISTER)]] = Int;
    static constexpr int64_t lanes = REGISTER / int64_t(sizeof(T));

    struct Two {
        Vector a, b;
    };

    static Vector load(const T *at)
    {
        Vector values;
        memcpy(&values, at, sizeof values);
        return values;
    }

    static void store(T *at, Vector values) { memcpy(at, &values, sizeof values); }

    static Two load_two(const T *at) { return {load(at), load(at + lanes)}; }

    static void store_two(T *at, Two values)
    {
        store(at, values.a);
        store(at + lanes, values.b);
    }

    static T load_one(const T *at) { return *at; }

    static void store_one(T *at, T value) { *at = value; }

    static void stream(void *at, Vector values)
    {
#if defined(__AVX512F__) && ILM_PLUGINS_REGISTER == 64
        _mm512_stream_si512(static_cast<__m512i *>(at), as<__m512i>(values));
#elif defined(__AVX__) && ILM_PLUGINS_REGISTER == 32
        _mm256_stream_si256(static_cast<__m256i *>(at), as<__m256i>(values));
#elif defined(__x86_64__) && ILM_PLUGINS_REGISTER == 16
        _mm_stream_si128(static_cast<__m128i *>(at), as<__m128i>(values));
#else
        memcpy(at, &values, sizeof values);
#endif
    }

    static void stream_two(T *at, Two values)
    {
        stream(at, values.a);
        stream(at + lanes, values.b);
    }

    // Set all lanes but the last n to zero.
    static Vector last_lanes(Vector values, int64_t n)
    {
        static constexpr Masks<Int, lanes> MASKS;
        Mask mask;
        memcpy(&mask, MASKS.bits + n, sizeof mask);
        return as<Vector>(as<Mask>(values) & mask);
    }

    // The sum of a vector's lanes, in a fixed order.
    static T total(Vector values)
    {
        Quarter sums = quarter(values);
        if constexpr (sizeof(T) == 8)
            return sums[0] + sums[1];
        else
            return (sums[0] + sums[2]) + (sums[1] + sums[3]);
    }

    // The totals of two vectors.
    static void totals(Vector a, Vector b, T *of_a, T *of_b)
    {
        if constexpr (sizeof(T) == 8) {
            *of_a = total(a), *of_b = total(b);
        } else { // in the order of `total`, with half of its additions
            Quarter p = quarter(a), q = quarter(b);
            Quarter sums = Quarter{p[0], q[0], p[1], q[1]} + Quarter{p[2], q[2], p[3], q[3]};
            *of_a = sums[0] + sums[2], *of_b = sums[1] + sums[3];
        }
    }

  private:
    // The sum of a vector's parts of 16 bytes.
    static Quarter quarter(Vector values)
    {
        Quarter parts[REGISTER / 16];
        memcpy(parts, &values, sizeof values);
        if constexpr (REGISTER == 64)
            return (parts[0] + parts[2]) + (parts[1] + parts[3]);
        else if constexpr (REGISTER == 32)
            return parts[0] + parts[1];
        else
            return parts[0];
    }
};

// What Vec<BFloat16> and Vec<Float16> have in common.
struct OfFloats {
    using Real = float;
    using Vector = Vec<float>::Vector;
    using Two = Vec<float>::Two;
    using Half [[gnu::vector_size(REGISTER / 2)]] = uint16_t;
    using Bits [[gnu::vector_size(REGISTER)]] = uint32_t;
    static constexpr int64_t lanes = Vec<float>::lanes;
};

// Vectors of bfloat16: the upper 16 bits of a float.
template <> struct Vec<BFloat16> : OfFloats {
    static Vector load(const BFloat16 *at)
    {
        Half stored;
        memcpy(&stored, at, sizeof stored);
        return as<Vector>(__builtin_convertvector(stored, Bits) << 16);
    }

    static void store(BFloat16 *at, Vector values)
    {
        Half stored = __builtin_convertvector(round(values) >> 16, Half);
        memcpy(at, &stored, sizeof stored);
    }

    // `a` has the even and `b` the odd values, which needs no permutation.
    static Two load_two(const BFloat16 *at)
    {
        Bits bits;
        memcpy(&bits, at, sizeof bits);
        return {as<Vector>(bits << 16), as<Vector>(bits & 0xffff0000)};
    }

    static void store_two(BFloat16 *at, Two values)
    {
        Vector both = join(values);
        memcpy(at, &both, sizeof both);
    }

    static float load_one(const BFloat16 *at) { return as<float>(uint32_t(at->bits) << 16); }

    static void store_one(BFloat16 *at, float value)
    {
        at->bits = uint16_t(round(Vector{value})[0] >> 16);
    }

    static void stream_two(BFloat16 *at, Two values) { Vec<float>::stream(at, join(values)); }

  private:
    // Round to the nearest, ties to even: the upper 16 bits of the result are the bfloat16. A NaN
    // whose lower 16 bits are all set would overflow: see `canonical_nan`.
    static Bits round(Vector values)
    {
        Bits bits = as<Bits>(values);
        return bits + 0x7fff + (bits >> 16 & 1);
    }

    static Vector join(Two values)
    {
        return as<Vector>(round(values.a) >> 16 | (round(values.b) & 0xffff0000));
    }
};

// Vectors of float16, by the processor's conversion or by integer arithmetic on 32 bits.
template <> struct Vec<Float16> : OfFloats {
    static Vector load(const Float16 *at)
    {
        Half stored;
        memcpy(&stored, at, sizeof stored);
        return widen(stored);
    }

    static void store(Float16 *at, Vector values)
    {
        Half stored = narrow(values);
        memcpy(at, &stored, sizeof stored);
    }

    static Two load_two(const Float16 *at) { return {load(at), load(at + lanes)}; }

    static void store_two(Float16 *at, Two values)
    {
        store(at, values.a);
        store(at + lanes, values.b);
    }

    static float load_one(const Float16 *at) { return widen(Half{at->bits})[0]; }

    static void store_one(Float16 *at, float value) { at->bits = narrow(Vector{value})[0]; }

    static void stream_two(Float16 *at, Two values)
    {
        Half halves[2] = {narrow(values.a), narrow(values.b)};
        Vector both;
        memcpy(&both, halves, sizeof both);
        Vec<float>::stream(at, both);
    }

  private:
    static Vector widen(Half stored)
    {
#if defined(__F16C__) && ILM_PLUGINS_REGISTER == 32
        return as<Vector>(_mm256_cvtph_ps(as<__m128i>(stored)));
#elif defined(__AVX512F__) && ILM_PLUGINS_REGISTER == 64
        return as<Vector>(_mm512_cvtph_ps(as<__m256i>(stored)));
#else
        // The exponent grows by 112. A denormal gets an exponent of a normal number, whose value is
        // then subtracted, because the processor may treat denormals as zero.
        Bits bits = __builtin_convertvector(stored, Bits);
        Bits tiny = as<Bits>((bits & 0x7c00) == 0);
        Vector scaled = as<Vector>(((bits & 0x7fff) << 13) + 0x38000000 + (tiny & 0x800000))
            - as<Vector>(tiny & 0x38800000);
        Bits special = as<Bits>((bits & 0x7c00) == 0x7c00) & 0x7f800000;
        return as<Vector>(as<Bits>(scaled) | special | (bits & 0x8000) << 16);
#endif
    }

    static Half narrow(Vector values)
    {
#if defined(__F16C__) && ILM_PLUGINS_REGISTER == 32
        return as<Half>(_mm256_cvtps_ph(as<__m256>(values), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX512F__) && ILM_PLUGINS_REGISTER == 64
        return as<Half>(_mm512_cvtps_ph(as<__m512>(values), _MM_FROUND_TO_NEAREST_INT));
#else
        Bits bits = as<Bits>(values), sign = bits >> 16 & 0x8000;
        bits &= 0x7fffffff;
        Bits nan = as<Bits>(values != values), large = as<Bits>(bits >= 0x477ff000);
        Bits small = as<Bits>(bits < 0x38800000);
        Bits normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
        Bits half = as<Bits>(Vector{} + 0.5F); // its last bit is float16's smallest denormal
        Bits denormal = as<Bits>(as<Vector>(bits) + 0.5F) - half;
        Bits rounded = (small & denormal) | (~small & normal);
        rounded = (large & 0x7c00) | (~large & rounded);
        rounded = (nan & 0x7e00) | (~nan & rounded);
        return __builtin_convertvector(rounded | sign, Half);
#endif
    }
};

// How a formula reads a vector of channels: `load` a map, `get` coefficients.
template <class T> struct Lanes : Vec<T> {
    static auto get(const typename Vec<T>::Real *at)
    {
        return Vec<typename Vec<T>::Real>::load(at);
    }
};

// The same for a single channel.
template <class T> struct Lane {
    using Real = typename Vec<T>::Real;
    static Real load(const T *at) { return Vec<T>::load_one(at); }
    static Real get(const Real *at) { return *at; }
};

// Wait for the stores of `stream`.
inline void finish_streams()
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Replace any NaN by the default quiet NaN. Rounding to bfloat16 adds to the bits, and a NaN with
// all bits set would overflow and become a number.
template <class Real> inline Real canonical_nan(Real value)
{
    return std::isnan(value) ? Real(NAN) : value;
}

} // namespace
