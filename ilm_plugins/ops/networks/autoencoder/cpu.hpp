// The auto-encoder of ILM Norm and AssocNorm, of one instance; see layers/autoencoder.py.
//
//     key_i     = mean or variance of the N key groups                    i = 0, 1
//     hidden_i  = ReLU(W1 key_i),  decoded_i = W(2 + i) hidden_i
//     omega     = sigmoid(decoded) - omega_offset + weight
//     beta      = tanh(decoded) + bias
//
// From omega and beta follow scale and shift: groups.hpp.
#pragma once

#include "../../engine/cpu/activations.hpp"
#include "../../engine/cpu/gradients.hpp"
#include "../../engine/cpu/groups.hpp"
#include "../../engine/cpu/options.hpp"

namespace {

// What the mean drives.
enum class Driven { omega, beta };

template <class T> struct Autoencoder {
    using Real = T;
    static constexpr bool is_mixture = false;

    int64_t num_groups = 1;                 // of the standardization
    int64_t num_key_groups = 1, hidden = 1; // N, M
    double eps = 0;
    Driven mean_drives = Driven::beta;
    Parameter<Real> weight, bias, encode, decode_mean, decode_var;
    Buffer<Real> omega_offset;

    template <class Visitor> void members(Visitor &visit)
    {
        visit_each(visit, num_groups, num_key_groups, hidden, eps, mean_drives);
        visit_each(visit, weight, bias, encode, decode_mean, decode_var, omega_offset);
    }

    // The values between the linear maps, and their gradients: of the mean, then of the variance.
    struct Code {
        Real *key, *d_decoded;   // (2, N) each
        Real *hidden, *d_hidden; // (2, M) each

        Code(const Autoencoder &net, Arena<Real> &arena)
        {
            key = arena.take(2 * net.num_key_groups);
            hidden = arena.take(2 * net.hidden);
            d_hidden = arena.take(2 * net.hidden);
            d_decoded = arena.take(2 * net.num_key_groups);
        }
    };

    // What the gradients of the tensors are computed from, of an instance.
    struct Tape {
        Real *d_weight, *d_bias; // (C) each
        Code code;

        Tape(const Autoencoder &net, const Job<Real> &job, Arena<Real> &arena)
            : d_weight(arena.take(job.map->channels)), d_bias(arena.take(job.map->channels)),
              code(net, arena)
        {
        }
    };

    // What both passes compute in a thread's memory.
    struct Scratch {
        Real *decoded; // (2, N)
        Real *key_off; // (G')
        Real *slope;   // (C)
        Groups<Real> groups;

        Scratch(const Autoencoder &net, const Job<Real> &job, Arena<Real> &arena)
            : decoded(arena.take(2 * net.num_key_groups)), key_off(arena.take(job.map->groups)),
              slope(arena.take(job.map->channels)), groups(*job.map, net.num_groups, arena)
        {
        }
    };

    const Real *decode(int i) const { return i ? decode_var.values : decode_mean.values; }

    // Find the decoded values.
    [[gnu::noinline]] void encode_and_decode(const Job<Real> &job, int64_t instance,
                                             const Code &code, const Scratch &s) const
    {
        int64_t keys = num_key_groups, fine = job.map->groups;
        pool(job.mean + instance * fine, job.var + instance * fine, fine, keys, code.key,
             code.key + keys, s.key_off);
        for (int i = 0; i < 2; i++) {
            for (int64_t m = 0; m < hidden; m++) {
                Real embedded = dot(encode.values + m * keys, code.key + i * keys, keys);
                code.hidden[i * hidden + m] = embedded < 0 ? 0 : embedded;
            }
            for (int64_t k = 0; k < keys; k++)
                s.decoded[i * keys + k] =
                    dot(decode(i) + k * hidden, code.hidden + i * hidden, hidden);
        }
    }

    // What drives omega, and what drives beta: the mean (0) or the variance (1).
    int for_omega() const { return mean_drives == Driven::omega ? 0 : 1; }
    int for_beta() const { return 1 - for_omega(); }

    // Compute omega or beta (C) from the decoded values, and `b`, the layer's weight or bias;
    // `slope` is its derivative by the decoded value.
    [[gnu::noinline]] void find(const Job<Real> &job, const Real *decoded, const Real *b,
                                Real offset, Real (*activation)(Real, Real *),
                                Real *__restrict value, Real *__restrict slope) const
    {
        int64_t keys = num_key_groups, size = job.map->channels / keys;
        for (int64_t k = 0; k < keys; k++) {
            Real derivative, activated = activation(decoded[k], &derivative) - offset;
            for (int64_t c = k * size; c < (k + 1) * size; c++)
                value[c] = activated + b[c], slope[c] = derivative;
        }
    }

    void find_omega(const Job<Real> &job, const Scratch &s, Real *omega) const
    {
        find(job, s.decoded + for_omega() * num_key_groups, weight.values, *omega_offset.values,
             sigmoid<Real>, omega, s.slope);
    }

    void find_beta(const Job<Real> &job, const Scratch &s, Real *beta) const
    {
        find(job, s.decoded + for_beta() * num_key_groups, bias.values, Real(0), tanh<Real, Real>,
             beta, s.slope);
    }

    void forward(const Job<Real> &job, int64_t instance, Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels;
        Code code(*this, scratch);
        Scratch s(*this, job, scratch);
        if (scratch.measures())
            return;
        Real *scale = job.scale + instance * channels, *shift = job.shift + instance * channels;
        pool_moments(job, instance);
        encode_and_decode(job, instance, code, s);
        find_omega(job, s, scale);
        find_beta(job, s, shift);
        s.groups.find(job, instance, eps);
        s.groups.standardize(channels, scale, shift);
    }

    void backward(const Job<Real> &job, int64_t instance, const Tape &tape,
                  Arena<Real> &scratch) const
    {
        int64_t channels = job.map->channels, fine = job.map->groups, keys = num_key_groups;
        Scratch s(*this, job, scratch);
        Real *values = scratch.take(channels), *d_key = scratch.take(2 * keys);
        if (scratch.measures())
            return;
        const Real *d_shift = job.d_shift + instance * channels;
        Real *d_mean = job.offset + instance * fine, *d_var = job.slope + instance * fine;
        const Code &code = tape.code;
        pool_sums(job, instance);
        encode_and_decode(job, instance, code, s);

        find_beta(job, s, values);
        copy(tape.d_bias, d_shift, channels);
        for (int64_t c = 0; c < channels; c++)
            s.slope[c] *= d_shift[c];
        fold(s.slope, channels, keys, code.d_decoded + for_beta() * keys);
        find_omega(job, s, values);
        s.groups.find(job, instance, eps);
        s.groups.standardize_vjp(job, instance, values); // values: the gradient of omega
        copy(tape.d_weight, values, channels);
        for (int64_t c = 0; c < channels; c++)
            s.slope[c] *= values[c];
        fold(s.slope, channels, keys, code.d_decoded + for_omega() * keys);

        clear(d_key, 2 * keys);
        for (int i = 0; i < 2; i++) {
            Real *d_hidden = code.d_hidden + i * hidden;
            clear(d_hidden, hidden);
            for (int64_t k = 0; k < keys; k++)
                add_scaled(d_hidden, decode(i) + k * hidden, hidden, code.d_decoded[i * keys + k]);
            for (int64_t m = 0; m < hidden; m++) {
                d_hidden[m] = code.hidden[i * hidden + m] <= 0 ? 0 : d_hidden[m]; // NaN passes
                add_scaled(d_key + i * keys, encode.values + m * keys, keys, d_hidden[m]);
            }
        }
        unpool(d_key, d_key + keys, s.key_off, fine, keys, d_mean, d_var);
        find_dx_coefficients(job, instance);
    }

    void gradients(const Job<Real> &job, const Tape &tape, Sums<Real> &sums) const
    {
        int64_t channels = job.map->channels, keys = num_key_groups;
        const Code &code = tape.code;
        sums.add(tape.d_weight, channels, weight.gradient);
        sums.add(tape.d_bias, channels, bias.gradient);
        sums.add({{code.d_hidden, code.key}, {code.d_hidden + hidden, code.key + keys}}, hidden,
                 keys, encode.gradient);
        sums.add({{code.d_decoded, code.hidden}}, keys, hidden, decode_mean.gradient);
        sums.add({{code.d_decoded + keys, code.hidden + hidden}}, keys, hidden,
                 decode_var.gradient);
    }
};

} // namespace
