// The four passes over maps of T, by blocks: moments, affine map, sums, dx.
//
// A block is a part of an instance, the same for any batch and any number of threads. In a
// contiguous map it lies within one group: consecutive whole channels, or a part of a long channel.
// In channels last it is consecutive positions of all channels.
//
// Variances are computed about a nearby value c: the mean of the block's first sixteenth. The
// square of its distance to the mean is at most 15 times the block's variance, so that the
// difference
//
//     E[(x - c)^2] - (mean - c)^2
//
// loses at most four bits, however large the mean is. For a short block of a contiguous map the
// mean of four values is tried; if it is not as near, the mean of all is used.
#pragma once

#include "job.hpp"
#include "map_activations.hpp"

namespace {

template <class T> using RealOf = typename Vec<T>::Real;

// The formulas of the two maps that are written, for vectors and for single values.
template <class Values, class Factor>
inline Values affine_of(Values x, Factor center, Factor scale, Factor shift)
{
    return scale * (x - center) + shift;
}

template <class Values, class Factor>
inline Values dx_of(Values dy, Values x, Factor center, Factor scale, Factor slope, Factor offset)
{
    return scale * dy + (slope * (x - center) + offset);
}

// The activation's input z as a function of x, in the backward pass.
template <class Real> struct Coefficients {
    Real center, scale, shift;

    template <class Values> Values operator()(Values x) const
    {
        return affine_of(x, center, scale, shift);
    }
};

// The coefficients of a channel, counted over all instances; zeros if there is no activation.
template <class Activation, class Real>
inline Coefficients<Real> coefficients_of(const Job<Real> &job, int64_t channel, Real center)
{
    if constexpr (Activation::reads_z)
        return {center, job.kept_scale[channel], job.kept_shift[channel]};
    else
        return {};
}

// Values that are summed in reals, 16 in each lane of four vectors: the same precision with any
// registers. Their sums are added in doubles.
template <class T> constexpr int64_t SUMMED = 64 * Vec<T>::lanes;

// ---- runs: consecutive values of one channel or group

// The sum of x.
template <class T> RealOf<T> sum_run(const T *x, int64_t n)
{
    constexpr int64_t few = MapActivation::few;
    using V = Vec<T>;
    using Reals = Vec<RealOf<T>>;
    constexpr int64_t lanes = V::lanes, two = 2 * lanes;
    typename V::Vector a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 2 * two <= n; i += 2 * two) {
        auto u = V::load_two(x + i), v = V::load_two(x + i + two);
        a += u.a, b += u.b;
        c += v.a, d += v.b;
    }
    for (; i + two <= n; i += two) {
        auto u = V::load_two(x + i);
        a += u.a, b += u.b;
    }
    for (; i + lanes <= n; i += lanes)
        a += V::load(x + i);
    if (i + few < n && n >= lanes) {
        b += Reals::last_lanes(V::load(x + n - lanes), n - i);
        i = n;
    }
    RealOf<T> sum = Reals::total((a + b) + (c + d));
    for (; i < n; i++)
        sum += V::load_one(x + i);
    return sum;
}

// Sums of x - center and of its square.
template <class T>
inline void center_run(const T *x, int64_t n, RealOf<T> center, RealOf<T> *sum, RealOf<T> *squares)
{
    constexpr int64_t few = MapActivation::few;
    using V = Vec<T>;
    using Reals = Vec<RealOf<T>>;
    using Vector = typename V::Vector;
    constexpr int64_t lanes = V::lanes, two = 2 * lanes;
    Vector s[4] = {}, q[4] = {};
    int64_t i = 0;
    for (; i + 2 * two <= n; i += 2 * two)
        for (int j = 0; j < 4; j += 2) {
            auto v = V::load_two(x + i + j * lanes);
            Vector a = v.a - center, b = v.b - center;
            s[j] += a, s[j + 1] += b;
            q[j] += a * a, q[j + 1] += b * b;
        }
    for (; i + two <= n; i += two) {
        auto v = V::load_two(x + i);
        Vector a = v.a - center, b = v.b - center;
        s[0] += a, s[1] += b;
        q[0] += a * a, q[1] += b * b;
    }
    for (; i + lanes <= n; i += lanes) {
        Vector off = V::load(x + i) - center;
        s[0] += off;
        q[0] += off * off;
    }
    if (i + few < n && n >= lanes) {
        Vector off = Reals::last_lanes(V::load(x + n - lanes) - center, n - i);
        s[1] += off;
        q[1] += off * off;
        i = n;
    }
    Reals::totals((s[0] + s[1]) + (s[2] + s[3]), (q[0] + q[1]) + (q[2] + q[3]), sum, squares);
    for (; i < n; i++) {
        RealOf<T> off = V::load_one(x + i) - center;
        *sum += off;
        *squares += off * off;
    }
}

// Sums of dz * (x - center) and of dz = gradient(dy, x).
template <class Activation, class T, class Gradient>
void sum_products(const T *dy, const T *x, int64_t n, RealOf<T> center, const Gradient &gradient,
                  RealOf<T> *products, RealOf<T> *sum)
{
    using V = Vec<T>;
    using Reals = Vec<RealOf<T>>;
    using Vector = typename V::Vector;
    constexpr int64_t lanes = V::lanes, two = 2 * lanes, few = Activation::few;
    Vector p[4] = {}, s[4] = {};
    int64_t i = 0;
    for (; i + 2 * two <= n; i += 2 * two)
        for (int j = 0; j < 4; j += 2) {
            auto d = V::load_two(dy + i + j * lanes), v = V::load_two(x + i + j * lanes);
            Vector a = gradient(d.a, v.a), b = gradient(d.b, v.b);
            p[j] += a * (v.a - center), p[j + 1] += b * (v.b - center);
            s[j] += a, s[j + 1] += b;
        }
    for (; i + two <= n; i += two) {
        auto d = V::load_two(dy + i), v = V::load_two(x + i);
        Vector a = gradient(d.a, v.a), b = gradient(d.b, v.b);
        p[0] += a * (v.a - center), p[1] += b * (v.b - center);
        s[0] += a, s[1] += b;
    }
    for (; i + lanes <= n; i += lanes) {
        Vector v = V::load(x + i), d = gradient(V::load(dy + i), v);
        p[0] += d * (v - center);
        s[0] += d;
    }
    if (i + few < n && n >= lanes) {
        Vector v = V::load(x + n - lanes);
        Vector d = Reals::last_lanes(gradient(V::load(dy + n - lanes), v), n - i);
        p[1] += d * (v - center);
        s[1] += d;
        i = n;
    }
    Reals::totals((p[0] + p[1]) + (p[2] + p[3]), (s[0] + s[1]) + (s[2] + s[3]), products, sum);
    for (; i < n; i++) {
        RealOf<T> v = V::load_one(x + i), d = gradient(V::load_one(dy + i), v);
        *products += d * (v - center);
        *sum += d;
    }
}

// The number of values before the first address that is a multiple of a register's size; at most n.
template <class T> int64_t unaligned(const T *at, int64_t n)
{
    int64_t in_register = REGISTER / int64_t(sizeof(T));
    int64_t past = int64_t(reinterpret_cast<intptr_t>(at)) / int64_t(sizeof(T)) % in_register;
    return minimum(past ? in_register - past : 0, n);
}

// Compute y[i] = formula(x[i]) for i < n, with a value of each map in `x`. Stores bypass the cache
// if `streams`.
template <class Activation, class T, class Formula, class... Maps>
inline void map_run(T *y, int64_t n, bool streams, const Formula &formula, const Maps *...x)
{
    using V = Vec<T>;
    constexpr int64_t lanes = V::lanes, two = 2 * lanes, few = Activation::few;
    auto two_at = [&](int64_t i) {
        return typename V::Two{formula(V::load_two(x + i).a...), formula(V::load_two(x + i).b...)};
    };
    auto one_at = [&](int64_t i) { return formula(V::load_one(x + i)...); };
    int64_t i = 0;
    if (streams) {
        for (int64_t first = unaligned(y, n); i < first; i++)
            V::store_one(y + i, one_at(i));
        for (; i + two <= n; i += two)
            V::stream_two(y + i, two_at(i));
    }
    for (; i + two <= n; i += two)
        V::store_two(y + i, two_at(i));
    if (i + few < n && n >= two) { // overlaps values already stored: same bits
        V::store_two(y + n - two, two_at(n - two));
        return;
    }
    for (; i + lanes <= n; i += lanes)
        V::store(y + i, formula(V::load(x + i)...));
    for (; i < n; i++)
        V::store_one(y + i, one_at(i));
}

// ---- blocks of rows, in contiguous maps

// Compute the mean and the variance of n values.
template <class T>
inline void moments_of_run(const T *x, int64_t n, RealOf<T> *mean, RealOf<T> *var)
{
    using V = Vec<T>;
    using Real = RealOf<T>;
    Real center, part_sum, part_squares;
    if (n < SHORT) { // in reals: double divisions would take longer than reading the values
        // Pairs, so that the mean of equal values is that value.
        Real pair = V::load_one(x) + V::load_one(x + n / 4);
        Real other = V::load_one(x + n / 2) + V::load_one(x + 3 * n / 4);
        Real near = (pair + other) / 4, share = 1 / Real(n);
        center_run(x, n, near, &part_sum, &part_squares);
        Real off = part_sum * share;
        *mean = center = near + off;
        *var = part_squares * share - off * off;
        if (off * off <= 15 * *var && *var < Real(INFINITY))
            return;
    } else {
        int64_t first = n / 16;
        center = sum_run(x, first) / Real(first);
    }
    double sum = 0, squares = 0;
    for (int64_t at = 0; at < n; at += SUMMED<T>) {
        center_run(x + at, minimum(SUMMED<T>, n - at), center, &part_sum, &part_squares);
        sum += part_sum, squares += part_squares;
    }
    *mean = Real(mean_of(1 / double(n), center, sum));
    *var = Real(var_of(1 / double(n), sum, squares));
}

template <class T>
void moments_of_rows(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                     Arena<RealOf<T>> &)
{
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        const T *x = static_cast<const T *>(job.x) + start_of(job, instance, b);
        RealOf<T> *to = job.partials + 2 * (instance * job.blocks + i);
        moments_of_run(x, b.channels * b.positions, to, to + 1);
    }
}

// Prefetch n values of the next instance, at the same offset in it as `at` is in this instance.
template <class T> inline void fetch_next(const Job<RealOf<T>> &job, const T *at, int64_t n)
{
    if (job.to_next)
        for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(T)))
            __builtin_prefetch(at + job.to_next + i, 0, 2);
}

template <class T, class Activation>
void affine_of_rows(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                    Arena<RealOf<T>> &)
{
    using Real = RealOf<T>;
    const Activation activation(job.map->negative_slope);
    const Real *mean = job.mean + instance * job.map->groups;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b), c = instance * job.map->channels + b.channel;
        const T *x = static_cast<const T *>(job.x) + at;
        T *y = static_cast<T *>(job.y) + at;
        fetch_next(job, x, b.channels * b.positions);
        Real center = canonical_nan(mean[b.group]);
        for (int64_t k = 0; k < b.channels; k++, x += b.positions, y += b.positions) {
            Real scale = canonical_nan(job.scale[c + k]), shift = canonical_nan(job.shift[c + k]);
            auto formula = [=](auto values) {
                return activation.of(affine_of(values, center, scale, shift));
            };
            map_run<Activation>(y, b.positions, job.streams, formula, x);
        }
    }
}

template <class T, class Activation>
void sums_of_rows(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                  Arena<RealOf<T>> &)
{
    using Real = RealOf<T>;
    const Activation activation(job.map->negative_slope);
    const Real *mean = job.mean + instance * job.map->groups;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b), c = instance * job.map->channels + b.channel;
        const T *x = static_cast<const T *>(job.x) + at, *dy = static_cast<const T *>(job.dy) + at;
        Real *to = job.partials + 2 * (c * job.parts + b.part);
        Real center = mean[b.group];
        for (int64_t k = 0; k < b.channels; k++, x += b.positions, dy += b.positions, to += 2) {
            Coefficients<Real> z = coefficients_of<Activation>(job, c + k, center);
            auto gradient = [=](auto of_dy, auto of_x) {
                return activation.gradient(of_dy, z(of_x));
            };
            sum_products<Activation>(dy, x, b.positions, center, gradient, to, to + 1);
        }
    }
}

template <class T, class Activation>
void dx_of_rows(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                Arena<RealOf<T>> &)
{
    using Real = RealOf<T>;
    const Activation activation(job.map->negative_slope);
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b), c = instance * job.map->channels + b.channel;
        int64_t g = instance * job.map->groups + b.group;
        const T *x = static_cast<const T *>(job.x) + at, *dy = static_cast<const T *>(job.dy) + at;
        T *dx = static_cast<T *>(job.y) + at;
        fetch_next(job, x, b.channels * b.positions);
        fetch_next(job, dy, b.channels * b.positions);
        Real center = canonical_nan(job.mean[g]), slope = canonical_nan(job.slope[g]);
        Real offset = canonical_nan(job.offset[g]);
        for (int64_t k = 0; k < b.channels;
             k++, x += b.positions, dy += b.positions, dx += b.positions) {
            Real scale = canonical_nan(job.scale[c + k]);
            Coefficients<Real> z = coefficients_of<Activation>(job, c + k, center);
            auto formula = [=](auto of_dy, auto of_x) {
                return dx_of(activation.gradient(of_dy, z(of_x)), of_x, center, scale, slope,
                             offset);
            };
            map_run<Activation>(dx, b.positions, job.streams, formula, dy, x);
        }
    }
}

// ---- blocks of positions, in channels last: four positions at a time

// Call `vectors(c)` for each vector of channels that begins with c, and `one(c)` for each remaining
// channel c.
template <class Real, class Vectors, class One>
inline void for_channels(int64_t channels, const Vectors &vectors, const One &one)
{
    constexpr int64_t lanes = Vec<Real>::lanes;
    int64_t c = 0;
    for (; c + lanes <= channels; c += lanes)
        vectors(c);
    for (; c < channels; c++)
        one(c);
}

// Add the values of each channel over n positions to `sum`.
template <class T> void add_positions(const T *x, int64_t n, int64_t channels, RealOf<T> *sum)
{
    using V = Vec<T>;
    using Reals = Vec<RealOf<T>>;
    for (int64_t p = 0; p < n; p++, x += channels)
        for_channels<RealOf<T>>(
            channels,
            [&](int64_t c) { Reals::store(sum + c, Reals::load(sum + c) + V::load(x + c)); },
            [&](int64_t c) { sum[c] += V::load_one(x + c); });
}

// Prefetch as many values as vectors of channel c at four positions have, from behind these
// positions: the processor's own prefetching does not follow so many rows, above all in two maps.
template <class T> inline void fetch_ahead(const T *x, int64_t channels, int64_t c)
{
    const char *at = reinterpret_cast<const char *>(x + 4 * (channels + c)) + AHEAD;
    for (int64_t i = 0; i < 4 * Vec<T>::lanes * int64_t(sizeof(T)); i += 64)
        __builtin_prefetch(at + i);
}

// Call `some(count, p)` for four positions p at a time, then for single ones; count is a constant.
template <class Some> inline void for_positions(int64_t n, const Some &some)
{
    int64_t p = 0;
    for (; p + 4 <= n; p += 4)
        some(std::integral_constant<int, 4>(), p);
    for (; p < n; p++)
        some(std::integral_constant<int, 1>(), p);
}

// Add vectors to the reals at an address.
template <class Real, class Vector> inline void add_to(Real *at, const Vector (&values)[4])
{
    Vec<Real>::store(at, Vec<Real>::load(at) + ((values[0] + values[1]) + (values[2] + values[3])));
}

template <class Real, class Vector> inline void add_to(Real *at, const Vector (&values)[1])
{
    Vec<Real>::store(at, Vec<Real>::load(at) + values[0]);
}

// Add x - center and its square over n positions to `sum` and `squares`.
template <class T>
void center_positions(const T *x, int64_t n, int64_t channels, const RealOf<T> *center,
                      RealOf<T> *sum, RealOf<T> *squares)
{
    using V = Vec<T>;
    using Vector = typename V::Vector;
    for_positions(n, [&](auto at_once, int64_t p) {
        constexpr int count = decltype(at_once)::value;
        const T *at = x + p * channels;
        for_channels<RealOf<T>>(
            channels,
            [&](int64_t c) {
                Vector middle = Vec<RealOf<T>>::load(center + c), off[count], square[count];
                if (count == 4)
                    fetch_ahead(at, channels, c);
                for (int j = 0; j < count; j++) {
                    off[j] = V::load(at + j * channels + c) - middle;
                    square[j] = off[j] * off[j];
                }
                add_to(sum + c, off);
                add_to(squares + c, square);
            },
            [&](int64_t c) {
                for (int j = 0; j < count; j++) {
                    RealOf<T> off = V::load_one(at + j * channels + c) - center[c];
                    sum[c] += off;
                    squares[c] += off * off;
                }
            });
    });
}

// Add dz * (x - center) and dz = gradient(dy, x, c) over n positions to `products` and `sum`.
template <class T, class Gradient>
void sum_positions(const T *dy, const T *x, int64_t n, int64_t channels, const RealOf<T> *center,
                   const Gradient &gradient, RealOf<T> *products, RealOf<T> *sum)
{
    using V = Vec<T>;
    using Vector = typename V::Vector;
    for_positions(n, [&](auto at_once, int64_t p) {
        constexpr int count = decltype(at_once)::value;
        const T *at_x = x + p * channels, *at_dy = dy + p * channels;
        for_channels<RealOf<T>>(
            channels,
            [&](int64_t c) {
                Vector middle = Vec<RealOf<T>>::load(center + c), dz[count], product[count];
                if (count == 4) {
                    fetch_ahead(at_x, channels, c);
                    fetch_ahead(at_dy, channels, c);
                }
                for (int j = 0; j < count; j++) {
                    Vector v = V::load(at_x + j * channels + c);
                    dz[j] = gradient(Lanes<T>(), V::load(at_dy + j * channels + c), v, c);
                    product[j] = dz[j] * (v - middle);
                }
                add_to(sum + c, dz);
                add_to(products + c, product);
            },
            [&](int64_t c) {
                for (int j = 0; j < count; j++) {
                    RealOf<T> v = V::load_one(at_x + j * channels + c);
                    RealOf<T> dz = gradient(Lane<T>(), V::load_one(at_dy + j * channels + c), v, c);
                    sum[c] += dz;
                    products[c] += dz * (v - center[c]);
                }
            });
    });
}

// Compute y[c] = formula(values, c) for each channel c of each of n positions. `values` is Lanes<T>
// for a vector of channels and Lane<T> for one; `at` counts from the first position.
template <class T, class Formula>
inline void map_positions(T *y, int64_t n, int64_t channels, bool streams, const Formula &formula)
{
    using V = Vec<T>;
    constexpr int64_t lanes = V::lanes;
    if constexpr (sizeof(T) == sizeof(RealOf<T>)) // half a register cannot bypass the cache
        if (streams && channels % lanes == 0 && unaligned(y, lanes) == 0) {
            for (int64_t p = 0, at = 0; p < n; p++, at += channels)
                for (int64_t c = 0; c < channels; c += lanes)
                    V::stream(y + at + c, formula(Lanes<T>(), at + c, c));
            return;
        }
    // Four values before the first is stored, so that their coefficients are read once.
    for_positions(n, [&](auto at_once, int64_t p) {
        constexpr int count = decltype(at_once)::value;
        int64_t at = p * channels;
        for_channels<RealOf<T>>(
            channels,
            [&](int64_t c) {
                typename V::Vector values[count];
                for (int j = 0; j < count; j++)
                    values[j] = formula(Lanes<T>(), at + j * channels + c, c);
                for (int j = 0; j < count; j++)
                    V::store(y + at + j * channels + c, values[j]);
            },
            [&](int64_t c) {
                for (int j = 0; j < count; j++)
                    V::store_one(y + at + j * channels + c,
                                 formula(Lane<T>(), at + j * channels + c, c));
            });
    });
}

template <class T>
void moments_of_positions(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                          Arena<RealOf<T>> &scratch)
{
    using Real = RealOf<T>;
    int64_t channels = job.map->channels, groups = job.map->groups;
    Real *center = scratch.take(channels), *sum = scratch.take(channels);
    Real *squares = scratch.take(channels);
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        const T *x = static_cast<const T *>(job.x) + start_of(job, instance, b);
        int64_t first = (b.positions + 15) / 16;
        clear(center, channels);
        clear(sum, channels);
        clear(squares, channels);
        add_positions(x, first, channels, center);
        for (int64_t c = 0; c < channels; c++)
            center[c] /= Real(first);
        center_positions(x, b.positions, channels, center, sum, squares);
        pool_channels(channels, groups, b.positions, center, sum, squares,
                      job.partials + 2 * groups * (instance * job.blocks + i));
    }
}

// Repeat each group's value for its channels.
template <class Real>
[[gnu::noinline]] void prepare_factor(const Real *values, int64_t groups, int64_t channels,
                                      Real *to)
{
    expand(values, groups, channels, to);
    for (int64_t c = 0; c < channels; c++)
        to[c] = canonical_nan(to[c]);
}

// The positions of blocks begin <= i < end.
template <class Real> int64_t positions_of(const Job<Real> &job, int64_t begin, int64_t end)
{
    return minimum(end * job.block_positions, job.map->length) - begin * job.block_positions;
}

template <class T, class Activation>
void affine_of_positions(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                         Arena<RealOf<T>> &scratch)
{
    using Real = RealOf<T>;
    int64_t channels = job.map->channels, groups = job.map->groups;
    Real *center = scratch.take(channels), *scale = scratch.take(channels);
    Real *shift = scratch.take(channels);
    if (scratch.measures())
        return;
    prepare_factor(job.mean + instance * groups, groups, channels, center);
    prepare_factor(job.scale + instance * channels, channels, channels, scale);
    prepare_factor(job.shift + instance * channels, channels, channels, shift);
    int64_t first = start_of(job, instance, block_of(job, begin));
    const T *x = static_cast<const T *>(job.x) + first;
    T *y = static_cast<T *>(job.y) + first;
    const Activation activation(job.map->negative_slope);
    auto formula = [=](auto values, int64_t at, int64_t c) {
        return activation.of(affine_of(values.load(x + at), values.get(center + c),
                                       values.get(scale + c), values.get(shift + c)));
    };
    map_positions(y, positions_of(job, begin, end), channels, job.streams, formula);
}

// The gradient of the activation's input, given dy and x of channels from c on.
template <class T, class Activation>
auto gradient_of(const Job<RealOf<T>> &job, int64_t instance, const RealOf<T> *center)
{
    const Activation activation(job.map->negative_slope);
    const RealOf<T> *scale = nullptr, *shift = nullptr;
    if constexpr (Activation::reads_z) {
        scale = job.kept_scale + instance * job.map->channels;
        shift = job.kept_shift + instance * job.map->channels;
    }
    return [=]([[maybe_unused]] auto values, auto of_dy, [[maybe_unused]] auto of_x,
               [[maybe_unused]] int64_t c) {
        if constexpr (Activation::reads_z)
            return activation.gradient(of_dy,
                                       affine_of(of_x, values.get(center + c),
                                                 values.get(scale + c), values.get(shift + c)));
        else
            return of_dy;
    };
}

template <class T, class Activation>
void sums_of_positions(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                       Arena<RealOf<T>> &scratch)
{
    using Real = RealOf<T>;
    int64_t channels = job.map->channels, groups = job.map->groups;
    Real *center = scratch.take(channels);
    if (scratch.measures())
        return;
    expand(job.mean + instance * groups, groups, channels, center);
    auto gradient = gradient_of<T, Activation>(job, instance, center);
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b);
        Real *to = job.partials + 2 * channels * (instance * job.blocks + i);
        clear(to, 2 * channels);
        sum_positions(static_cast<const T *>(job.dy) + at, static_cast<const T *>(job.x) + at,
                      b.positions, channels, center, gradient, to, to + channels);
    }
}

template <class T, class Activation>
void dx_of_positions(const Job<RealOf<T>> &job, int64_t instance, int64_t begin, int64_t end,
                     Arena<RealOf<T>> &scratch)
{
    using Real = RealOf<T>;
    int64_t channels = job.map->channels, groups = job.map->groups;
    Real *center = scratch.take(channels), *scale = scratch.take(channels);
    Real *slope = scratch.take(channels), *offset = scratch.take(channels);
    if (scratch.measures())
        return;
    prepare_factor(job.mean + instance * groups, groups, channels, center);
    prepare_factor(job.scale + instance * channels, channels, channels, scale);
    prepare_factor(job.slope + instance * groups, groups, channels, slope);
    prepare_factor(job.offset + instance * groups, groups, channels, offset);
    int64_t first = start_of(job, instance, block_of(job, begin));
    const T *x = static_cast<const T *>(job.x) + first;
    const T *dy = static_cast<const T *>(job.dy) + first;
    T *dx = static_cast<T *>(job.y) + first;
    auto gradient = gradient_of<T, Activation>(job, instance, center);
    auto formula = [=](auto values, int64_t at, int64_t c) {
        auto of_x = values.load(x + at);
        auto of_dy = gradient(values, values.load(dy + at), of_x, c);
        return dx_of(of_dy, of_x, values.get(center + c), values.get(scale + c),
                     values.get(slope + c), values.get(offset + c));
    };
    map_positions(dx, positions_of(job, begin, end), channels, job.streams, formula);
}

// ---- the passes by layout and activation

template <class T, class Activation>
constexpr Passes<RealOf<T>> OF_ROWS = {moments_of_rows<T>, affine_of_rows<T, Activation>,
                                       sums_of_rows<T, Activation>, dx_of_rows<T, Activation>};

template <class T, class Activation>
constexpr Passes<RealOf<T>> OF_POSITIONS = {
    moments_of_positions<T>, affine_of_positions<T, Activation>, sums_of_positions<T, Activation>,
    dx_of_positions<T, Activation>};

template <class T, template <class> class... Activations>
const Passes<RealOf<T>> &passes_by_layout(const Map &map, Numbered<Activations...>)
{
    using Real = RealOf<T>;
    static constexpr const Passes<Real> *of_rows[] = {&OF_ROWS<T, Activations<Real>>...};
    static constexpr const Passes<Real> *of_positions[] = {&OF_POSITIONS<T, Activations<Real>>...};
    return *(map.channels_last ? of_positions : of_rows)[map.activation];
}

template <class Real> const Passes<Real> &passes_of(const Map &map)
{
    if constexpr (sizeof(Real) == sizeof(float)) {
        if (map.stored_as == 1)
            return passes_by_layout<BFloat16>(map, MapActivations());
        if (map.stored_as == 2)
            return passes_by_layout<Float16>(map, MapActivations());
    }
    return passes_by_layout<Real>(map, MapActivations());
}

} // namespace
