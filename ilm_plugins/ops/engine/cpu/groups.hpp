// The standardization by groups, of an instance, for networks that predict omega and beta (C) of
//
//     y = omega * standardized x + beta
//
// follow scale and shift of x minus the mean of its finest group:
//
//     scale = omega * rstd of the group,  shift = beta + scale * (mean - mean of the group)
#pragma once

#include "job.hpp"

namespace {

template <class Real> struct Groups {
    int64_t count;                        // G
    Real *mean, *rstd, *d_rstd;           // (G) each
    Real *off_fine;                       // (G')
    Real *off, *rstd_of_channel, *values; // (C) each

    Groups(const Map &map, int64_t num_groups, Arena<Real> &scratch)
    {
        count = num_groups;
        mean = scratch.take(count);
        rstd = scratch.take(count);
        d_rstd = scratch.take(count);
        off_fine = scratch.take(map.groups);
        off = scratch.take(map.channels);
        rstd_of_channel = scratch.take(map.channels);
        values = scratch.take(map.channels);
    }

    // Find the groups' moments from the finest groups' moments of an instance.
    [[gnu::noinline]] void find(const Job<Real> &job, int64_t instance, double eps)
    {
        const Map &map = *job.map;
        const Real *fine_mean = job.mean + instance * map.groups;
        const Real *fine_var = job.var + instance * map.groups;
        pool(fine_mean, fine_var, map.groups, count, mean, rstd, off_fine);
        for (int64_t i = 0; i < count; i++)
            rstd[i] = 1 / std::sqrt(rstd[i] + Real(eps));
        expand(off_fine, map.groups, map.channels, off);
        expand(rstd, count, map.channels, rstd_of_channel);
    }

    // Replace omega by scale and beta by shift.
    void standardize(int64_t channels, Real *__restrict scale, Real *__restrict shift) const
    {
        for (int64_t c = 0; c < channels; c++) {
            scale[c] *= rstd_of_channel[c];
            shift[c] += scale[c] * off[c];
        }
    }

    // The vector-Jacobian product: find the instance's scale, d_mean and d_var; replace omega by
    // its gradient. The gradient of beta is d_shift. Overwrites d_scale and the groups.
    [[gnu::noinline]] void standardize_vjp(const Job<Real> &job, int64_t instance,
                                           Real *__restrict omega)
    {
        const Map &map = *job.map;
        int64_t channels = map.channels, fine = map.groups;
        Real *__restrict scale = job.scale + instance * channels, *__restrict d_omega = values;
        Real *__restrict d_scale = job.d_scale + instance * channels;
        const Real *d_shift = job.d_shift + instance * channels;
        Real *d_mean = job.offset + instance * fine, *d_var = job.slope + instance * fine;
        for (int64_t c = 0; c < channels; c++) {
            Real r = rstd_of_channel[c], d = d_scale[c] + d_shift[c] * off[c];
            scale[c] = omega[c] * r;
            d_scale[c] = d_shift[c] * scale[c]; // d_off
            d_omega[c] = omega[c] * d;
            omega[c] = d * r;
        }
        fold(d_scale, channels, fine, d_mean);
        Real *d_group_mean = mean, *d_group_var = d_rstd;
        fold(d_mean, fine, count, d_group_mean);
        fold(d_omega, channels, count, d_rstd);
        for (int64_t i = 0; i < count; i++) {
            d_group_mean[i] = -d_group_mean[i];
            d_group_var[i] *= Real(-0.5) * rstd[i] * rstd[i] * rstd[i];
        }
        clear(d_var, fine);
        unpool(d_group_mean, d_group_var, off_fine, fine, count, d_mean, d_var);
    }
};

} // namespace
