// Switchable Normalization and sparse SN, of one instance; see layers/switchable.py and
// layers/sparse.py. With off_k and var_k of mixed_normalizers.hpp, and ratios that depend on
// parameters alone:
//
//     scale = weight / sqrt(sum of var_ratios_k var_k + eps)
//     shift = scale * sum of mean_ratios_k off_k + bias
//
// The ratios are the softmax of logits; in sparse SN their sparsestmax, or fixed.
#pragma once

#include "../../engine/cpu/gradients.hpp"
#include "../mixed_normalizers.hpp"
#include "sparsestmax.hpp"

namespace {

// SN, or sparse SN, whose steps are the same functions.
template <class T> struct Switchable {
    using Real = T;
    static constexpr bool is_mixture = true;

    bool is_sparse;
    Mixture<Real> mixture;
    Parameter<Real> weight, bias, mean_weight, var_weight;
    Buffer<Real> radius, mean_fixed, var_fixed; // of sparse SN

    template <class Visitor> void members(Visitor &visit)
    {
        mixture.options(visit);
        visit_each(visit, weight, bias, mean_weight, var_weight);
        if (is_sparse)
            visit_each(visit, radius, mean_fixed, var_fixed);
        mixture.buffers(visit);
    }

    explicit Switchable(bool is_sparse) : is_sparse(is_sparse) { }

    int64_t count() const { return mixture.count(); } // K

    // What the gradients of the tensors are computed from, of an instance.
    struct Tape {
        Real *d_weight, *d_bias;            // (C) each
        Real *d_mean_ratios, *d_var_ratios; // (K) each
        Real *d_batch;                      // (2, C): of the batch's moments

        Tape(const Switchable &net, const Job<Real> &job, Arena<Real> &arena)
        {
            int64_t channels = job.map->channels;
            d_weight = arena.take(channels);
            d_bias = arena.take(channels);
            d_mean_ratios = arena.take(net.count());
            d_var_ratios = arena.take(net.count());
            d_batch = arena.take(net.mixture.uses_batch_moments() ? 2 * channels : 0);
        }
    };

    // What both passes compute in a thread's memory.
    struct Scratch {
        typename Mixture<Real>::Moments moments;
        Real *mean_ratios, *var_ratios; // (K) each
        Real *off, *var, *rstd; // (C) each: mean - mixed mean, the mixed variance and 1 / its root

        Scratch(const Switchable &net, const Job<Real> &job, Arena<Real> &arena)
            : moments(net.mixture, job, arena)
        {
            int64_t channels = job.map->channels;
            mean_ratios = arena.take(net.count());
            var_ratios = arena.take(net.count());
            off = arena.take(channels);
            var = arena.take(channels);
            rstd = arena.take(channels);
        }
    };

    // Whether a fixed ratio is 1: all ratios are then fixed.
    bool is_fixed(const Buffer<Real> &fixed) const
    {
        bool has_one = false;
        for (int64_t i = 0; i < count(); i++)
            has_one |= fixed.values[i] == 1;
        return has_one;
    }

    void find_ratios(const Parameter<Real> &logits, const Buffer<Real> &fixed, Real *ratios) const
    {
        if (!is_sparse) {
            copy(ratios, logits.values, count());
            softmax(ratios, count());
        } else if (is_fixed(fixed)) {
            copy(ratios, fixed.values, count());
        } else {
            sparsestmax(logits.values, *radius.values, count(), ratios);
        }
    }

    // Find the mixed moments.
    [[gnu::noinline]] void mix(const Job<Real> &job, int64_t instance, const Scratch &s) const
    {
        int64_t channels = job.map->channels;
        mixture.find_moments(job, instance, s.moments);
        find_ratios(mean_weight, mean_fixed, s.mean_ratios);
        find_ratios(var_weight, var_fixed, s.var_ratios);
        clear(s.off, channels);
        clear(s.var, channels);
        for (int64_t k = 0; k < count(); k++) {
            add_scaled(s.off, s.moments.off + k * channels, channels, s.mean_ratios[k]);
            add_scaled(s.var, s.moments.var + k * channels, channels, s.var_ratios[k]);
        }
        for (int64_t c = 0; c < channels; c++)
            s.rstd[c] = 1 / std::sqrt(s.var[c] + Real(mixture.eps));
    }

    [[gnu::noinline]] void forward(const Job<Real> &job, int64_t instance,
                                   Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Scratch s(*this, job, scratch);
        if (scratch.measures())
            return;
        Real *__restrict scale = job.scale + instance * channels;
        Real *__restrict shift = job.shift + instance * channels;
        if (!mixture.uses_batch_moments())
            pool_moments(job, instance);
        mix(job, instance, s);
        for (int64_t c = 0; c < channels; c++) {
            scale[c] = weight.values[c] * s.rstd[c];
            shift[c] = scale[c] * s.off[c] + bias.values[c];
        }
    }

    [[gnu::noinline]] void backward(const Job<Real> &job, int64_t instance, const Tape &tape,
                                    Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Scratch s(*this, job, scratch);
        Real *__restrict d_mixed_off = scratch.take(channels);
        Real *__restrict d_mixed_var = scratch.take(channels);
        Real *__restrict d_off = scratch.take(channels),
                         *__restrict d_of_var = scratch.take(channels);
        if (scratch.measures())
            return;
        const Real *d_scale = job.d_scale + instance * channels;
        const Real *d_shift = job.d_shift + instance * channels;
        pool_sums(job, instance);
        mix(job, instance, s);
        Real *__restrict scale = job.scale + instance * channels;
        Real *__restrict d_weight = tape.d_weight, *__restrict d_bias = tape.d_bias;
        const Real *off = s.off, *mixed_var = s.var, *rstd = s.rstd, *of_weight = weight.values;
#pragma GCC ivdep // The compiler would not check so many arrays for overlaps.
        for (int64_t c = 0; c < channels; c++) {
            Real r = rstd[c], d = d_scale[c] + d_shift[c] * off[c];
            scale[c] = of_weight[c] * r;
            d_weight[c] = d * r;
            d_bias[c] = d_shift[c];
            d_mixed_off[c] = d_shift[c] * scale[c];
            d_mixed_var[c] = Real(-0.5) * d * scale[c] * r * r;
        }
        clear(job.offset + instance * channels, channels);
        clear(job.slope + instance * channels, channels);
        for (int64_t k = 0; k < count(); k++) {
            Real mean_ratio = s.mean_ratios[k], var_ratio = s.var_ratios[k];
            const Real *off_k = s.moments.off + k * channels;
            const Real *var_k = s.moments.var + k * channels;
            // The logits' gradients do not change if a number is added to all gradients g_k of the
            // ratios: g_k - sum of ratio_j g_j takes their place. The mixed statistic is subtracted
            // from each moment before the product with its gradient: moments can be much
            // larger than their differences, and a difference of the sums would lose digits.
#pragma GCC ivdep
            for (int64_t c = 0; c < channels; c++) {
                d_off[c] = d_mixed_off[c] * (off_k[c] - off[c]);
                d_of_var[c] = d_mixed_var[c] * (var_k[c] - mixed_var[c]);
            }
            fold(d_off, channels, int64_t(1), tape.d_mean_ratios + k);
            fold(d_of_var, channels, int64_t(1), tape.d_var_ratios + k);
            if (!is_sparse) { // the logits' gradients; sparse SN's are computed from the sums
                tape.d_mean_ratios[k] *= mean_ratio;
                tape.d_var_ratios[k] *= var_ratio;
            }
            for (int64_t c = 0; c < channels; c++) {
                d_off[c] = mean_ratio * d_mixed_off[c];
                d_of_var[c] = var_ratio * d_mixed_var[c];
            }
            mixture.moments_vjp(job, instance, k, s.moments, d_off, d_of_var, tape.d_batch);
        }
        find_dx_coefficients(job, instance);
    }

    [[gnu::noinline]] void gradients(const Job<Real> &job, const Tape &tape, Sums<Real> &sums) const
    {
        int64_t channels = job.map->channels;
        sums.add(tape.d_weight, channels, weight.gradient);
        sums.add(tape.d_bias, channels, bias.gradient);
        sums.add(tape.d_mean_ratios, count(), mean_weight.gradient);
        sums.add(tape.d_var_ratios, count(), var_weight.gradient);
        sums.add(tape.d_batch, 2 * channels, mixture.d_batch);
        if (is_sparse) {
            logits_vjp(mean_weight, mean_fixed);
            logits_vjp(var_weight, var_fixed);
        }
    }

    // Replace the gradient of sparse SN's ratios by the logits' gradient.
    void logits_vjp(const Parameter<Real> &logits, const Buffer<Real> &fixed) const
    {
        if (!logits.gradient)
            return;
        Real ratios[MAX_NORMALIZERS];
        Face<Real> face = sparsestmax(logits.values, *radius.values, count(), ratios);
        if (is_fixed(fixed))
            clear(logits.gradient, count());
        else
            sparsestmax_vjp(face, count(), logits.gradient);
    }
};

template <class Real> struct Switch : Switchable<Real> {
    Switch() : Switchable<Real>(false) { }
};

template <class Real> struct SparseSwitch : Switchable<Real> {
    SparseSwitch() : Switchable<Real>(true) { }
};

} // namespace
