// Loops over short arrays of reals: the channels, groups and hidden values of an instance.
#pragma once

#include "vec.hpp"

namespace {

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// NaN stays NaN.
template <class Real> inline Real at_least(Real value, Real least)
{
    return value < least ? least : value;
}

template <class Real> void copy(Real *to, const Real *from, int64_t n)
{
    memcpy(to, from, size_t(n) * sizeof(Real));
}

template <class Real> void clear(Real *values, int64_t n)
{
    memset(values, 0, size_t(n) * sizeof(Real));
}

// The dot product of a and b.
template <class Real> Real dot(const Real *a, const Real *b, int64_t n)
{
    using V = Vec<Real>;
    typename V::Vector s = {}, t = {};
    int64_t i = 0;
    for (; i + 2 * V::lanes <= n; i += 2 * V::lanes) {
        s += V::load(a + i) * V::load(b + i);
        t += V::load(a + i + V::lanes) * V::load(b + i + V::lanes);
    }
    Real sum = i > 0 ? V::total(s + t) : 0;
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

// y += factor * x
template <class Real>
void add_scaled(Real *__restrict y, const Real *__restrict x, int64_t n, Real factor)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

// Sum the rows (K, C), each times its factor.
template <class Real>
void sum_rows(const Real *rows, const Real *factors, int64_t count, int64_t channels, Real *to)
{
    using V = Vec<Real>;
    int64_t c = 0;
    for (; c + 4 * V::lanes <= channels; c += 4 * V::lanes) {
        typename V::Vector sum[4] = {};
        for (int64_t k = 0; k < count; k++)
            for (int j = 0; j < 4; j++)
                sum[j] += factors[k] * V::load(rows + k * channels + c + j * V::lanes);
        for (int j = 0; j < 4; j++)
            V::store(to + c + j * V::lanes, sum[j]);
    }
    for (; c < channels; c++) {
        Real sum = 0;
        for (int64_t k = 0; k < count; k++)
            sum += factors[k] * rows[k * channels + c];
        to[c] = sum;
    }
}

// Repeat the value of each group for its channels.
template <class Real> void expand(const Real *values, int64_t groups, int64_t channels, Real *to)
{
    int64_t size = channels / groups;
    if (size == 1) {
        copy(to, values, channels);
        return;
    }
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < size; i++)
            *to++ = values[g];
}

// Sum the values of the channels of each group.
template <class Real> void fold(const Real *values, int64_t channels, int64_t groups, Real *to)
{
    using V = Vec<Real>;
    int64_t size = channels / groups;
    if (size == 1) {
        copy(to, values, channels);
        return;
    }
    for (int64_t g = 0; g < groups; g++, values += size) {
        typename V::Vector sums = {};
        int64_t i = 0;
        for (; i + V::lanes <= size; i += V::lanes)
            sums += V::load(values + i);
        Real sum = i > 0 ? V::total(sums) : 0;
        for (; i < size; i++)
            sum += values[i];
        to[g] = sum;
    }
}

// Pool the moments of fine groups into moments of coarser groups (law of total variance). `off`
// gets, for each fine group, its mean minus the mean of its coarse group.
template <class Real>
void pool(const Real *mean, const Real *var, int64_t fine, int64_t coarse, Real *pooled_mean,
          Real *pooled_var, Real *__restrict off)
{
    using V = Vec<Real>;
    int64_t size = fine / coarse;
    if (size == 1) {
        copy(pooled_mean, mean, fine);
        copy(pooled_var, var, fine);
        clear(off, fine);
        return;
    }
    fold(mean, fine, coarse, pooled_mean);
    for (int64_t g = 0; g < coarse; g++) {
        // A mean is rounded: what it leaves is most of the deviation of equal, large values.
        Real center = pooled_mean[g] / Real(size), rest;
        int64_t i = g * size, end = i + size;
        for (int64_t j = i; j < end; j++)
            off[j] = mean[j] - center;
        fold(off + i, size, 1, &rest);
        rest /= Real(size);
        pooled_mean[g] = center + rest;
        typename V::Vector sums = {};
        for (; i + V::lanes <= end; i += V::lanes) {
            typename V::Vector from_mean = V::load(off + i) - rest;
            V::store(off + i, from_mean);
            sums += V::load(var + i) + from_mean * from_mean;
        }
        Real sum = V::total(sums);
        for (; i < end; i++) {
            off[i] -= rest;
            sum += var[i] + off[i] * off[i];
        }
        pooled_var[g] = sum / Real(size);
    }
}

// Add the vector-Jacobian product of `pool` to d_mean and d_var.
template <class Real>
void unpool(const Real *d_pooled_mean, const Real *d_pooled_var, const Real *off, int64_t fine,
            int64_t coarse, Real *__restrict d_mean, Real *__restrict d_var)
{
    int64_t size = fine / coarse;
    for (int64_t g = 0; g < coarse; g++) {
        Real of_mean = d_pooled_mean[g] / Real(size), of_var = d_pooled_var[g] / Real(size);
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            d_mean[i] += of_mean + 2 * of_var * off[i];
            d_var[i] += of_var;
        }
    }
}

// Replace values by their softmax.
template <class Real> void softmax(Real *values, int64_t n)
{
    Real largest = values[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        largest = values[i] > largest ? values[i] : largest;
    for (int64_t i = 0; i < n; i++)
        sum += values[i] = std::exp(values[i] - largest);
    for (int64_t i = 0; i < n; i++)
        values[i] /= sum;
}

// Replace the gradients of the ratios by the logits' gradients: the vector-Jacobian product of
// softmax.
template <class Real> void softmax_vjp(const Real *ratios, Real *gradients, int64_t n)
{
    Real mean = dot(ratios, gradients, n);
    for (int64_t i = 0; i < n; i++)
        gradients[i] = ratios[i] * (gradients[i] - mean);
}

} // namespace
