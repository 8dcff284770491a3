// What the mixtures of K normalizers have in common: EN (exemplar/), SN and SSN (switch/).
//
// IN has a group for each channel, LN one group; BN's moments are given:
//
//     off_k = mean - mean_k,  var_k                                               (K, C)
#pragma once

#include "../engine/cpu/job.hpp"
#include "../engine/cpu/options.hpp"

namespace {

enum class Normalizer { in, ln, bn, gn };

constexpr int64_t MAX_NORMALIZERS = 4;

template <class Real> struct Mixture {
    List<Normalizer, MAX_NORMALIZERS> normalizers;
    int64_t num_groups = 1; // of GN
    double eps = 0, momentum = 0;
    // BN's moments (C): the running ones, or where a layer gives none, the batch's.
    Buffer<Real> batch_mean, batch_var;
    Real *d_batch = nullptr; // (2, C): the gradients of the batch's moments; null if not needed

    template <class Visitor> void options(Visitor &visit)
    {
        visit_each(visit, normalizers, num_groups, eps, momentum);
    }

    template <class Visitor> void buffers(Visitor &visit)
    {
        visit_each(visit, batch_mean, batch_var);
    }

    int64_t count() const { return normalizers.count; } // K

    bool uses_batch_moments() const
    {
        bool has_bn = false;
        for (int64_t k = 0; k < count(); k++)
            has_bn |= normalizers.at[k] == Normalizer::bn;
        return has_bn && !batch_mean.given;
    }

    // The number of groups of each instance, for normalizers other than BN.
    int64_t groups_of(Normalizer normalizer, int64_t channels) const
    {
        switch (normalizer) {
        case Normalizer::in:
            return channels;
        case Normalizer::gn:
            return num_groups;
        default:
            return 1;
        }
    }

    // The moments of an instance, as each normalizer sees them.
    struct Moments {
        Real *off, *var; // (K, C) each; off is 0 for IN
        Real *coarse;    // (2, C): moments of groups

        Moments(const Mixture &mixture, const Job<Real> &job, Arena<Real> &scratch)
        {
            off = scratch.take(mixture.count() * job.map->channels);
            var = scratch.take(mixture.count() * job.map->channels);
            coarse = scratch.take(2 * job.map->channels);
        }
    };

    // Find mean - mean_k and var_k of each normalizer.
    [[gnu::noinline]] void find_moments(const Job<Real> &job, int64_t instance,
                                        const Moments &s) const
    {
        int64_t channels = job.map->channels;
        const Real *mean = job.mean + instance * channels, *var = job.var + instance * channels;
        for (int64_t k = 0; k < count(); k++) {
            Real *off = s.off + k * channels, *of_var = s.var + k * channels;
            Normalizer normalizer = normalizers.at[k];
            if (normalizer == Normalizer::bn) {
                for (int64_t c = 0; c < channels; c++)
                    off[c] = mean[c] - batch_mean.values[c];
                copy(of_var, batch_var.values, channels);
            } else {
                int64_t groups = groups_of(normalizer, channels);
                pool(mean, var, channels, groups, s.coarse, s.coarse + channels, off);
                expand(s.coarse + channels, groups, channels, of_var);
            }
        }
    }

    // Add normalizer k's part, by the gradients d_off and d_of_var (C), to d_mean and d_var of the
    // instance; write the gradients of the batch's moments to `d_of_batch` (2, C).
    [[gnu::noinline]] void moments_vjp(const Job<Real> &job, int64_t instance, int64_t k,
                                       const Moments &s, const Real *__restrict d_off,
                                       const Real *__restrict d_of_var, Real *d_of_batch) const
    {
        int64_t channels = job.map->channels;
        Real *__restrict d_mean = job.offset + instance * channels;
        Real *__restrict d_var = job.slope + instance * channels;
        Normalizer normalizer = normalizers.at[k];
        int64_t groups = groups_of(normalizer, channels);
        if (normalizer != Normalizer::bn && groups == channels) {
            for (int64_t c = 0; c < channels; c++)
                d_var[c] += d_of_var[c];
            return;
        }
        for (int64_t c = 0; c < channels; c++)
            d_mean[c] += d_off[c];
        if (normalizer != Normalizer::bn) {
            Real *d_coarse_mean = s.coarse, *d_coarse_var = s.coarse + channels;
            fold(d_off, channels, groups, d_coarse_mean);
            fold(d_of_var, channels, groups, d_coarse_var);
            for (int64_t g = 0; g < groups; g++)
                d_coarse_mean[g] = -d_coarse_mean[g];
            unpool(d_coarse_mean, d_coarse_var, s.off + k * channels, channels, groups, d_mean,
                   d_var);
        } else if (uses_batch_moments()) {
            for (int64_t c = 0; c < channels; c++) {
                d_of_batch[c] = -d_off[c];
                d_of_batch[channels + c] = d_of_var[c];
            }
        }
    }

    // ---- the batch

    // Pool the moments of all instances into the batch's.
    int pool_batch(const Job<Real> &job) const
    {
        int64_t grain = divide_up(GRAIN, job.map->instances);
        return parallel(*job.map, job.map->channels, grain, [&](int64_t begin, int64_t end) {
            for (int64_t first = begin; first < end; first += AT_ONCE)
                pool_channels_of_batch(job, first, minimum(AT_ONCE, end - first));
        });
    }

    // Update running statistics by the batch's: `running` has the addresses of the old mean and
    // variance, and of the new ones, which may be the same.
    void update_running(const Job<Real> &job, void *const *running) const
    {
        double n = double(job.map->instances) * double(job.map->length);
        Real unbiased = n < 2 ? 0 : Real(n / (n - 1)); // A single value has no unbiased variance.
        update(job, batch_mean.values, 1, n, running[0], running[2]);
        update(job, batch_var.values, unbiased, n, running[1], running[3]);
    }

    // Add the part of dx through the batch's moments to slope and offset of an instance.
    [[gnu::noinline]] void couple(const Job<Real> &job, int64_t instance) const
    {
        const Map &map = *job.map;
        int64_t channels = map.channels;
        Real n = Real(map.instances) * Real(map.length);
        const Real *mean = job.mean + instance * channels;
        const Real *d_mean = d_batch, *d_var = d_batch + channels;
        Real *slope = job.slope + instance * channels, *offset = job.offset + instance * channels;
#pragma GCC ivdep // The compiler would not check so many arrays for overlaps.
        for (int64_t c = 0; c < channels; c++) {
            Real more = d_var[c] * 2 / n;
            slope[c] += more;
            offset[c] += d_mean[c] / n + more * (mean[c] - batch_mean.values[c]);
        }
    }

  private:
    void update(const Job<Real> &job, const Real *batch, Real factor, double n, const void *old,
                void *updated) const
    {
        const Real *from = static_cast<const Real *>(old);
        Real *to = static_cast<Real *>(updated), weight = n < 2 ? 0 : Real(momentum);
        if (to == nullptr)
            return;
        for (int64_t c = 0; c < job.map->channels; c++) {
            Real off = batch[c] * factor - from[c];
            to[c] = weight == 0 ? from[c]
                : weight == 1   ? batch[c] * factor
                                : from[c] + weight * off;
        }
    }

    // Of `count` channels from `first` on, at most AT_ONCE.
    void pool_channels_of_batch(const Job<Real> &job, int64_t first, int64_t count) const
    {
        int64_t n = job.map->instances, channels = job.map->channels;
        double sum[AT_ONCE] = {}, spread[AT_ONCE] = {};
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < count; c++)
                sum[c] += job.mean[i * channels + first + c];
        for (int64_t c = 0; c < count; c++)
            sum[c] /= double(n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < count; c++) {
                double off = job.mean[i * channels + first + c] - sum[c];
                spread[c] += job.var[i * channels + first + c] + off * off;
            }
        for (int64_t c = 0; c < count; c++) {
            batch_mean.values[first + c] = Real(sum[c]);
            batch_var.values[first + c] = Real(spread[c] / double(n));
        }
    }
};

} // namespace
