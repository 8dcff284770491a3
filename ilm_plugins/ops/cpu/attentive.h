/* Attentive Normalization, of one instance; see layers/attentive.py.

       features   = mean / sqrt(var + feature_eps)                          (C)
       attentions = ReLU6(A features + b + 3) / 6                           (K)
       omega      = weight * mix(W),  beta = bias * mix(W) + mix(B)         (C)

   where mix(rows) is the sum of attentions_k rows_k. From omega and beta follow scale and shift:
   groups.h. */

enum { ATTENTION = 2, ATTENTION_BIAS, PAIR_WEIGHT, PAIR_BIAS }; /* tensors after WEIGHT and BIAS */

static int64_t attentive_scratch(const Map *map, const Network *net)
{
    return groups_scratch(map, net) + 4 * map->channels + 2 * net->num_affine;
}

/* Offsets in the tape: gradients of weight and bias; features; gradients of mix(W) and mix(B);
   attentions; gradients of the logits A features + b. */
typedef struct {
    int64_t bias, features, d_mixed, attentions, d_logits, size;
} AttentiveTape;

static AttentiveTape attentive_tape_of(const Job *job)
{
    int64_t c = job->map->channels, count = job->network->num_affine;
    return (AttentiveTape){c, 2 * c, 3 * c, 5 * c, 5 * c + count, 5 * c + 2 * count};
}

static int64_t attentive_tape(const Job *job) { return attentive_tape_of(job).size; }

/* Find the features and their factor 1 / sqrt(var + feature_eps), (C); the attentions and their slopes by
   the logits, (K). */
static void attend(const Map *map, const Network *net, const real *mean, const real *var,
                   real *restrict features, real *restrict rstd, real *attentions, real *slopes)
{
    int64_t channels = map->channels;
    const real *attention = net->tensors[ATTENTION], *bias = net->tensors[ATTENTION_BIAS];
    for (int64_t c = 0; c < channels; c++) {
        rstd[c] = 1 / SQRT_OF(var[c] + (real)net->feature_eps);
        features[c] = mean[c] * rstd[c];
    }
    for (int64_t k = 0; k < net->num_affine; k++) {
        real logit = dot(attention + k * channels, features, channels) + bias[k];
        attentions[k] = activate(RELU6, logit + 3, &slopes[k]) / 6;
        slopes[k] /= 6;
    }
}

/* Sum the rows (K, C) of a tensor, each times its factor. */
static void sum_rows(const Map *map, const Network *net, int tensor, const real *factors, real *to)
{
    const real *rows = net->tensors[tensor];
    int64_t channels = map->channels, c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES) {
        Vector sum[4] = {{0}};
        for (int64_t k = 0; k < net->num_affine; k++)
            for (int j = 0; j < 4; j++)
                sum[j] += factors[k] * get(rows + k * channels + c + j * LANES);
        for (int j = 0; j < 4; j++)
            put(to + c + j * LANES, sum[j]);
    }
    for (; c < channels; c++) {
        real sum = 0;
        for (int64_t k = 0; k < net->num_affine; k++)
            sum += factors[k] * rows[k * channels + c];
        to[c] = sum;
    }
}

static void attentive_forward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    const real *weight = net->tensors[WEIGHT], *bias = net->tensors[BIAS];
    real *restrict scale = job->scale + instance * channels;
    real *restrict shift = job->shift + instance * channels;
    real *features = scratch + groups_scratch(map, net), *rstd = features + channels;
    real *attentions = rstd + channels, *slopes = attentions + net->num_affine;
    pool_moments(job, scratch, instance);
    attend(map, net, mean, var, features, rstd, attentions, slopes);
    sum_rows(map, net, PAIR_WEIGHT, attentions, scale);
    sum_rows(map, net, PAIR_BIAS, attentions, shift);
    for (int64_t c = 0; c < channels; c++) {
        shift[c] += scale[c] * bias[c];
        scale[c] *= weight[c];
    }
    Groups groups = find_groups(map, net, mean, var, scratch);
    standardize(&groups, channels, scale, shift);
}

static void attentive_backward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    const real *weight = net->tensors[WEIGHT], *bias = net->tensors[BIAS];
    const real *pair_weight = net->tensors[PAIR_WEIGHT], *pair_bias = net->tensors[PAIR_BIAS];
    const real *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * channels;
    real *d_var = job->slope + instance * channels;
    AttentiveTape at = attentive_tape_of(job);
    real *restrict d_weight = job->tape + instance * job->tape_size, *restrict d_bias = d_weight + at.bias;
    real *features = d_weight + at.features, *attentions = d_weight + at.attentions;
    real *restrict d_scaling = d_weight + at.d_mixed, *restrict d_shifting = d_scaling + channels;
    real *d_logits = d_weight + at.d_logits;
    real *rstd = scratch + groups_scratch(map, net), *restrict scaling = rstd + channels;
    real *restrict omega = scaling + channels, *d_features = omega + channels;
    pool_sums(job, scratch, instance);
    attend(map, net, mean, var, features, rstd, attentions, d_logits);
    sum_rows(map, net, PAIR_WEIGHT, attentions, scaling);
    for (int64_t c = 0; c < channels; c++)
        omega[c] = scaling[c] * weight[c];
    Groups groups = find_groups(map, net, mean, var, scratch);
    standardize_vjp(job, instance, &groups, omega);
    for (int64_t c = 0; c < channels; c++) {
        d_weight[c] = omega[c] * scaling[c];
        d_bias[c] = d_shift[c] * scaling[c];
        d_scaling[c] = omega[c] * weight[c] + d_shift[c] * bias[c];
        d_shifting[c] = d_shift[c];
    }
    for (int64_t k = 0; k < net->num_affine; k++)
        d_logits[k] *= dot(pair_weight + k * channels, d_scaling, channels)
            + dot(pair_bias + k * channels, d_shifting, channels);
    sum_rows(map, net, ATTENTION, d_logits, d_features);
    for (int64_t c = 0; c < channels; c++) {
        d_mean[c] += d_features[c] * rstd[c];
        d_var[c] -= (real)0.5 * d_features[c] * features[c] * rstd[c] * rstd[c];
    }
    find_dx_coefficients(job, instance);
}
