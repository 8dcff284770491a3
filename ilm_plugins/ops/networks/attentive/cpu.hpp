// Attentive Normalization, of one instance; see layers/attentive.py.
//
//     features   = mean / sqrt(var + feature_eps)                          (C)
//     attentions = ReLU6(A features + b + 3) / 6                           (K)
//     omega      = weight * mix(W),  beta = bias * mix(W) + mix(B)         (C)
//
// where mix(rows) is the sum of attentions_k rows_k. From omega and beta follow scale and shift:
// groups.hpp.
#pragma once

#include "../../engine/cpu/activations.hpp"
#include "../../engine/cpu/gradients.hpp"
#include "../../engine/cpu/groups.hpp"
#include "../../engine/cpu/options.hpp"

namespace {

template <class T> struct Attentive {
    using Real = T;
    static constexpr bool is_mixture = false;

    int64_t num_groups = 1, num_affine = 1; // G, K
    double eps = 0, feature_eps = 0;
    Parameter<Real> weight, bias, attention, attention_bias, pair_weight, pair_bias;

    template <class Visitor> void members(Visitor &visit)
    {
        visit_each(visit, num_groups, eps, num_affine, feature_eps);
        visit_each(visit, weight, bias, attention, attention_bias, pair_weight, pair_bias);
    }

    // What the gradients of the tensors are computed from, of an instance.
    struct Tape {
        Real *d_weight, *d_bias;      // (C) each
        Real *features;               // (C)
        Real *d_scaling, *d_shifting; // gradients of mix(W) and mix(B), (C) each
        Real *attentions, *d_logits;  // (K) each; the logits are A features + b

        Tape(const Attentive &net, const Job<Real> &job, Arena<Real> &arena)
        {
            int64_t channels = job.map->channels;
            d_weight = arena.take(channels);
            d_bias = arena.take(channels);
            features = arena.take(channels);
            d_scaling = arena.take(channels);
            d_shifting = arena.take(channels);
            attentions = arena.take(net.num_affine);
            d_logits = arena.take(net.num_affine);
        }
    };

    // Find the features and their factor 1 / sqrt(var + feature_eps), (C); the attentions and their
    // slopes by the logits, (K).
    [[gnu::noinline]] void attend(const Job<Real> &job, int64_t instance, Real *__restrict features,
                                  Real *__restrict rstd, Real *attentions, Real *slopes) const
    {
        int64_t channels = job.map->channels;
        const Real *mean = job.mean + instance * channels, *var = job.var + instance * channels;
        for (int64_t c = 0; c < channels; c++) {
            rstd[c] = 1 / std::sqrt(var[c] + Real(feature_eps));
            features[c] = mean[c] * rstd[c];
        }
        for (int64_t k = 0; k < num_affine; k++) {
            Real logit =
                dot(attention.values + k * channels, features, channels) + attention_bias.values[k];
            attentions[k] = relu6(logit + 3, &slopes[k]) / 6;
            slopes[k] /= 6;
        }
    }

    // Sum the rows (K, C), each times its factor.
    void mix(const Job<Real> &job, const Real *rows, const Real *factors, Real *to) const
    {
        sum_rows(rows, factors, num_affine, job.map->channels, to);
    }

    void forward(const Job<Real> &job, int64_t instance, Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Real *features = scratch.take(channels), *rstd = scratch.take(channels);
        Real *attentions = scratch.take(num_affine), *slopes = scratch.take(num_affine);
        Groups<Real> groups(*job.map, num_groups, scratch);
        if (scratch.measures())
            return;
        Real *__restrict scale = job.scale + instance * channels;
        Real *__restrict shift = job.shift + instance * channels;
        pool_moments(job, instance);
        attend(job, instance, features, rstd, attentions, slopes);
        mix(job, pair_weight.values, attentions, scale);
        mix(job, pair_bias.values, attentions, shift);
        for (int64_t c = 0; c < channels; c++) {
            shift[c] += scale[c] * bias.values[c];
            scale[c] *= weight.values[c];
        }
        groups.find(job, instance, eps);
        groups.standardize(channels, scale, shift);
    }

    void backward(const Job<Real> &job, int64_t instance, const Tape &tape,
                  Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Real *rstd = scratch.take(channels), *__restrict scaling = scratch.take(channels);
        Real *__restrict omega = scratch.take(channels), *d_features = scratch.take(channels);
        Groups<Real> groups(*job.map, num_groups, scratch);
        if (scratch.measures())
            return;
        const Real *d_shift = job.d_shift + instance * channels;
        Real *d_mean = job.offset + instance * channels, *d_var = job.slope + instance * channels;
        pool_sums(job, instance);
        attend(job, instance, tape.features, rstd, tape.attentions, tape.d_logits);
        mix(job, pair_weight.values, tape.attentions, scaling);
        for (int64_t c = 0; c < channels; c++)
            omega[c] = scaling[c] * weight.values[c];
        groups.find(job, instance, eps);
        groups.standardize_vjp(job, instance, omega); // omega is its gradient from here on
        Real *__restrict d_weight = tape.d_weight, *__restrict d_bias = tape.d_bias;
        Real *__restrict d_scaling = tape.d_scaling, *__restrict d_shifting = tape.d_shifting;
        for (int64_t c = 0; c < channels; c++) {
            d_weight[c] = omega[c] * scaling[c];
            d_bias[c] = d_shift[c] * scaling[c];
            d_scaling[c] = omega[c] * weight.values[c] + d_shift[c] * bias.values[c];
            d_shifting[c] = d_shift[c];
        }
        for (int64_t k = 0; k < num_affine; k++)
            tape.d_logits[k] *= dot(pair_weight.values + k * channels, d_scaling, channels)
                + dot(pair_bias.values + k * channels, d_shifting, channels);
        mix(job, attention.values, tape.d_logits, d_features);
        for (int64_t c = 0; c < channels; c++) {
            d_mean[c] += d_features[c] * rstd[c];
            d_var[c] -= Real(0.5) * d_features[c] * tape.features[c] * rstd[c] * rstd[c];
        }
        find_dx_coefficients(job, instance);
    }

    void gradients(const Job<Real> &job, const Tape &tape, Sums<Real> &sums) const
    {
        int64_t channels = job.map->channels, count = num_affine;
        sums.add(tape.d_weight, channels, weight.gradient);
        sums.add(tape.d_bias, channels, bias.gradient);
        sums.add({{tape.d_logits, tape.features}}, count, channels, attention.gradient);
        sums.add(tape.d_logits, count, attention_bias.gradient);
        sums.add({{tape.attentions, tape.d_scaling}}, count, channels, pair_weight.gradient);
        sums.add({{tape.attentions, tape.d_shifting}}, count, channels, pair_bias.gradient);
    }
};

} // namespace
