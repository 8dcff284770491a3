// Exemplar Normalization, of one instance; see layers/exemplar.py. With off_k and var_k of
// mixed_normalizers.hpp:
//
//     rstd_k = 1 / sqrt(var_k + eps),  u_k = off_k * rstd_k                        (K, C)
//     z_k    = sums of runs of reduce * u_k                                        (K, C / r)
//     ratios = softmax(ratio tanh(expand (z z^T) + expand_bias) + ratio_bias)      (K)
//     scale  = sum of ratios_k weight_k rstd_k,  shift = sum of ratios_k weight_k u_k + bias_k
#pragma once

#include "../../engine/cpu/activations.hpp"
#include "../../engine/cpu/gradients.hpp"
#include "../mixed_normalizers.hpp"

namespace {

template <class T> struct Exemplar {
    using Real = T;
    static constexpr bool is_mixture = true;

    Mixture<Real> mixture;
    int64_t hidden = 1, reduction = 1;
    Parameter<Real> weight, bias, reduce, expand_weight, expand_bias, ratio, ratio_bias;
    Real *columns = nullptr; // (inputs + 1, lanes): expand's columns and its bias, then zeros

    template <class Visitor> void members(Visitor &visit)
    {
        mixture.options(visit);
        visit_each(visit, hidden, reduction);
        visit_each(visit, weight, bias, reduce, expand_weight, expand_bias, ratio, ratio_bias);
        mixture.buffers(visit);
    }

    int64_t count() const { return mixture.count(); } // K

    // The number of values of z for each normalizer.
    int64_t width(int64_t channels) const { return channels / reduction; }

    // The number of inputs of the first linear map: z z^T.
    int64_t inputs() const { return count() * count(); }

    // The number of hidden values, as vectors.
    int64_t lanes() const { return divide_up(hidden, Vec<Real>::lanes) * Vec<Real>::lanes; }

    // Take the arrays that all instances read.
    void take_shared(Arena<Real> &arena)
    {
        columns = arena.take((inputs() + 1) * lanes());
        if (arena.measures())
            return;
        clear(columns, (inputs() + 1) * lanes());
        for (int64_t i = 0; i < inputs(); i++)
            for (int64_t h = 0; h < hidden; h++)
                columns[i * lanes() + h] = expand_weight.values[h * inputs() + i];
        copy(columns + inputs() * lanes(), expand_bias.values, hidden);
    }

    // What the gradients of the tensors are computed from, of an instance.
    struct Tape {
        Real *d_weight, *d_bias; // (K, C), (C)
        Real *d_reduce;          // (C)
        Real *features;          // (inputs)
        Real *hidden, *d_hidden; // (lanes), (H)
        Real *d_logits;          // (K)
        Real *d_batch;           // (2, C): of the batch's moments

        Tape(const Exemplar &net, const Job<Real> &job, Arena<Real> &arena)
        {
            int64_t channels = job.map->channels;
            d_weight = arena.take(net.count() * channels);
            d_bias = arena.take(channels);
            d_reduce = arena.take(channels);
            features = arena.take(net.inputs());
            d_hidden = arena.take(net.hidden);
            hidden = arena.take(net.lanes());
            d_logits = arena.take(net.count());
            d_batch = arena.take(net.mixture.uses_batch_moments() ? 2 * channels : 0);
        }
    };

    // What both passes compute in a thread's memory.
    struct Scratch {
        typename Mixture<Real>::Moments moments;
        Real *rstd;           // (K, C)
        Real *z;              // (K, C / r)
        Real *u;              // (C)
        Real *slope, *ratios; // (lanes), (K)

        Scratch(const Exemplar &net, const Job<Real> &job, Arena<Real> &arena)
            : moments(net.mixture, job, arena)
        {
            int64_t channels = job.map->channels;
            rstd = arena.take(net.count() * channels);
            z = arena.take(net.count() * net.width(channels));
            u = arena.take(channels);
            slope = arena.take(net.lanes());
            ratios = arena.take(net.count());
        }
    };

    // Find moments, rstd, z, features, the activated hidden values, their slopes and the ratios.
    [[gnu::noinline]] void find_ratios(const Job<Real> &job, int64_t instance, const Scratch &s,
                                       Real *features, Real *activated) const
    {
        int64_t channels = job.map->channels, width = this->width(channels);
        mixture.find_moments(job, instance, s.moments);
        for (int64_t i = 0; i < count() * channels; i++)
            s.rstd[i] = 1 / std::sqrt(s.moments.var[i] + Real(mixture.eps));
        for (int64_t k = 0; k < count(); k++) {
            const Real *off = s.moments.off + k * channels, *rstd = s.rstd + k * channels;
            for (int64_t c = 0; c < channels; c++)
                s.u[c] = off[c] * rstd[c] * reduce.values[c];
            fold(s.u, channels, width, s.z + k * width);
        }
        for (int64_t i = 0; i < count(); i++)
            for (int64_t j = 0; j < count(); j++)
                features[i * count() + j] = j < i ? features[j * count() + i]
                                                  : dot(s.z + i * width, s.z + j * width, width);
        using V = Vec<Real>;
        for (int64_t h = 0; h < hidden; h += V::lanes) {
            typename V::Vector slope, logit = V::load(columns + inputs() * lanes() + h);
            for (int64_t i = 0; i < inputs(); i++)
                logit += features[i] * V::load(columns + i * lanes() + h);
            V::store(activated + h, tanh<Real>(logit, &slope));
            V::store(s.slope + h, slope);
        }
        for (int64_t k = 0; k < count(); k++)
            s.ratios[k] = ratio_bias.values[k] + dot(ratio.values + k * hidden, activated, hidden);
        softmax(s.ratios, count());
    }

    void forward(const Job<Real> &job, int64_t instance, Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Scratch s(*this, job, scratch);
        Real *features = scratch.take(inputs()), *activated = scratch.take(lanes());
        if (scratch.measures())
            return;
        Real *__restrict scale = job.scale + instance * channels;
        Real *__restrict shift = job.shift + instance * channels;
        if (!mixture.uses_batch_moments())
            pool_moments(job, instance);
        find_ratios(job, instance, s, features, activated);
        clear(scale, channels);
        clear(shift, channels);
        for (int64_t k = 0; k < count(); k++) {
            const Real *of_k = weight.values + k * channels, *rstd = s.rstd + k * channels;
            const Real *off = s.moments.off + k * channels;
            for (int64_t c = 0; c < channels; c++) {
                Real gain = s.ratios[k] * of_k[c] * rstd[c];
                scale[c] += gain;
                shift[c] += gain * off[c];
            }
        }
        for (int64_t k = 0; k < count(); k++)
            add_scaled(shift, bias.values + k * channels, channels, Real(1));
    }

    void backward(const Job<Real> &job, int64_t instance, const Tape &tape,
                  Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Scratch s(*this, job, scratch);
        Real *products = scratch.take(channels), *d_features = scratch.take(inputs());
        Real *__restrict d_off = scratch.take(channels);
        Real *__restrict d_of_var = scratch.take(channels);
        Real *d_z = scratch.take(channels), *d_run = scratch.take(channels);
        if (scratch.measures())
            return;
        const Real *d_scale = job.d_scale + instance * channels;
        const Real *d_shift = job.d_shift + instance * channels;
        Real *d_mean = job.offset + instance * channels, *d_var = job.slope + instance * channels;
        pool_sums(job, instance);
        find_ratios(job, instance, s, tape.features, tape.hidden);
        copy(tape.d_bias, d_shift, channels);

        Real *__restrict scale = job.scale + instance * channels;
        clear(scale, channels);
        for (int64_t k = 0; k < count(); k++) {
            const Real *of_k = weight.values + k * channels, *rstd = s.rstd + k * channels;
            const Real *off = s.moments.off + k * channels;
            Real *__restrict d_weight = tape.d_weight + k * channels;
            Real of_ratio = s.ratios[k];
#pragma GCC ivdep // The compiler would not check so many arrays for overlaps.
            for (int64_t c = 0; c < channels; c++) {
                Real d_gain = (d_scale[c] + d_shift[c] * off[c]) * rstd[c];
                scale[c] += of_ratio * of_k[c] * rstd[c];
                d_weight[c] = of_ratio * d_gain;
                products[c] = of_k[c] * d_gain;
            }
            fold(products, channels, int64_t(1), tape.d_logits + k);
        }
        softmax_vjp(s.ratios, tape.d_logits, count());
        ratio_net_vjp(s, tape, d_features);

        clear(d_mean, channels);
        clear(d_var, channels);
        clear(tape.d_reduce, channels);
        for (int64_t k = 0; k < count(); k++) {
            const Real *of_k = weight.values + k * channels, *rstd = s.rstd + k * channels;
            const Real *off = s.moments.off + k * channels;
            Real of_ratio = s.ratios[k];
            find_d_run(s, k, channels, d_features, d_z, d_run);
            for (int64_t c = 0; c < channels; c++) {
                tape.d_reduce[c] += d_run[c] * off[c] * rstd[c];
                d_run[c] *= reduce.values[c];
            }
#pragma GCC ivdep
            for (int64_t c = 0; c < channels; c++) {
                Real gain = of_ratio * of_k[c], r = rstd[c], d_u = d_shift[c] * gain + d_run[c];
                d_off[c] = d_u * r;
                d_of_var[c] = Real(-0.5) * r * r * r * (d_scale[c] * gain + d_u * off[c]);
            }
            mixture.moments_vjp(job, instance, k, s.moments, d_off, d_of_var, tape.d_batch);
        }
        find_dx_coefficients(job, instance);
    }

    // The vector-Jacobian product of the two linear maps, from d_logits.
    void ratio_net_vjp(const Scratch &s, const Tape &tape, Real *d_features) const
    {
        clear(tape.d_hidden, hidden);
        for (int64_t k = 0; k < count(); k++)
            add_scaled(tape.d_hidden, ratio.values + k * hidden, hidden, tape.d_logits[k]);
        for (int64_t h = 0; h < hidden; h++)
            tape.d_hidden[h] *= s.slope[h];
        for (int64_t i = 0; i < inputs(); i++)
            d_features[i] = dot(columns + i * lanes(), tape.d_hidden, hidden);
    }

    // The gradients of z_k, for each of the channels (C) whose run it sums; `d_z` is memory (C).
    void find_d_run(const Scratch &s, int64_t k, int64_t channels, const Real *d_features,
                    Real *d_z, Real *d_run) const
    {
        int64_t width = this->width(channels);
        clear(d_z, width);
        for (int64_t j = 0; j < count(); j++) { // z z^T has each product twice
            Real factor = d_features[k * count() + j] + d_features[j * count() + k];
            add_scaled(d_z, s.z + j * width, width, factor);
        }
        expand(d_z, width, channels, d_run);
    }

    void gradients(const Job<Real> &job, const Tape &tape, Sums<Real> &sums) const
    {
        int64_t channels = job.map->channels;
        sums.add(tape.d_weight, count() * channels, weight.gradient);
        sums.add(tape.d_bias, channels, bias.gradient);
        for (int64_t k = 1; k < count() && bias.gradient; k++)
            copy(bias.gradient + k * channels, bias.gradient, channels);
        sums.add(tape.d_reduce, channels, reduce.gradient);
        sums.add({{tape.d_hidden, tape.features}}, hidden, inputs(), expand_weight.gradient);
        sums.add(tape.d_hidden, hidden, expand_bias.gradient);
        sums.add({{tape.d_logits, tape.hidden}}, count(), hidden, ratio.gradient);
        sums.add(tape.d_logits, count(), ratio_bias.gradient);
        sums.add(tape.d_batch, 2 * channels, mixture.d_batch);
    }
};

} // namespace
