/* The mixtures of K normalizers, of one instance: EN, see layers/exemplar.py, and SN, see
   layers/switchable.py. IN has a group for each channel, LN one group; BN's moments are given.

       off_k = mean - mean_k,  u_k = off_k * rstd_k                                 (K, C)

   EN: z_k   = sums of runs of reduce * u_k                                         (K, C / r)
       ratios = softmax(ratio act(expand (z z^T) + expand_bias) + ratio_bias)       (K)
       scale = sum of ratios_k weight_k rstd_k,  shift = sum of ratios_k weight_k u_k + bias_k
   SN, where the ratios are given, see ratios.h:
       scale = weight / sqrt(sum of var_ratios_k var_k + eps)
       shift = scale * sum of mean_ratios_k off_k + bias */

/* Tensors after WEIGHT and BIAS: EN's; then BN's running moments, two. */
enum { REDUCE = 2, EXPAND, EXPAND_BIAS, RATIO, RATIO_BIAS, EXEMPLAR_RUNNING };

typedef struct {
    real *off, *var, *rstd;          /* (K, C) each; off is 0 for IN */
    real *z;                         /* (K, C / r), or (K, C) without `reduce` */
    real *activated, *slope, *ratios; /* (H), (H), (K) */
    const real *features;            /* input of the first linear map */
    real *workspace;                 /* (9, C) */
} Mixture;

/* The number of values of z for each normalizer. */
static int64_t width_of(const Map *map, const Network *net)
{
    return net->ratio_net == CONV ? map->channels / net->reduction : map->channels;
}

static int is_mixture(const Network *net) { return net->kind != AUTOENCODER && net->kind != ATTENTIVE; }

/* The number of inputs of the first linear map. */
static int64_t features_of(const Map *map, const Network *net)
{
    int64_t k = net->num_normalizers;
    return net->ratio_net == MLP ? map->channels : k * k;
}

static int64_t mixture_scratch(const Map *map, const Network *net)
{
    return (5 * MAX_NORMALIZERS + 8) * map->channels + 3 * net->hidden + 64;
}

static int64_t rows_of_weight(const Network *net)
{
    return net->kind == EXEMPLAR && !net->shared_affine ? net->num_normalizers : 1;
}

/* Offsets in an instance's tape. For EN: gradients of weight, bias and reduce; features, d_hidden,
   hidden, d_logits; gradients of the batch's moments. For SN: gradients of weight and bias, d_logits of
   means and variances, gradients of the batch's moments. */
typedef struct {
    int64_t weight, bias, reduce, features, d_hidden, hidden, d_logits, batch, size;
} Tape;

static Tape tape_of(const Job *job)
{
    const Map *map = job->map;
    const Network *net = job->network;
    Tape t;
    int64_t exemplar = net->kind == EXEMPLAR, c = map->channels, k = net->num_normalizers;
    t.weight = 0;
    t.bias = rows_of_weight(net) * c;
    t.reduce = t.bias + c;
    t.features = t.reduce + (exemplar && net->ratio_net == CONV ? c : 0);
    t.d_hidden = t.features + (exemplar ? features_of(map, net) : 0);
    t.hidden = t.d_hidden + (exemplar ? net->hidden : 0);
    t.d_logits = t.hidden + (exemplar ? net->hidden : 0);
    t.batch = t.d_logits + 2 * k;
    t.size = t.batch + (job->uses_batch_moments ? 2 * c : 0);
    return t;
}

static int64_t mixture_tape(const Job *job) { return tape_of(job).size; }

static Mixture lay_out_mixture(const Map *map, const Network *net, real *scratch)
{
    Mixture m;
    int64_t all = net->num_normalizers * map->channels;
    m.off = scratch, m.var = m.off + all, m.rstd = m.var + all, m.z = m.rstd + all;
    m.activated = m.z + all, m.slope = m.activated + net->hidden, m.ratios = m.slope + net->hidden;
    m.workspace = m.ratios + 2 * MAX_NORMALIZERS;
    return m;
}

/* Find mean - mean_k and var_k of each normalizer. */
static void find_statistics(const Job *job, const real *mean, const real *var, Mixture *m)
{
    const Network *net = job->network;
    int64_t channels = job->map->channels;
    real *coarse_mean = m->workspace, *coarse_var = coarse_mean + channels;
    for (int64_t k = 0; k < net->num_normalizers; k++) {
        real *off = m->off + k * channels, *of_var = m->var + k * channels;
        int64_t groups = net->normalizers[k];
        if (groups == BATCH) {
            for (int64_t c = 0; c < channels; c++)
                off[c] = mean[c] - job->batch_mean[c];
            memcpy(of_var, job->batch_var, channels * sizeof(real));
        } else {
            pool(mean, var, channels, groups, coarse_mean, coarse_var, off);
            expand(coarse_var, groups, channels, of_var);
        }
    }
}

/* Add normalizer k's part, by the gradients d_off and d_of_var (C), to d_mean and d_var; write the
   gradients of the batch's moments to `batch`. `memory` has room for (2, C). */
static void statistics_vjp(const Job *job, int64_t k, const real *off, const real *restrict d_off,
                           const real *restrict d_of_var, real *restrict d_mean,
                           real *restrict d_var, real *memory, real *batch)
{
    int64_t channels = job->map->channels, groups = job->network->normalizers[k];
    if (groups == channels) {
        for (int64_t c = 0; c < channels; c++)
            d_var[c] += d_of_var[c];
        return;
    }
    for (int64_t c = 0; c < channels; c++)
        d_mean[c] += d_off[c];
    if (groups != BATCH) {
        real *d_coarse_mean = memory, *d_coarse_var = memory + channels;
        fold(d_off, channels, groups, d_coarse_mean);
        fold(d_of_var, channels, groups, d_coarse_var);
        for (int64_t g = 0; g < groups; g++)
            d_coarse_mean[g] = -d_coarse_mean[g];
        unpool(d_coarse_mean, d_coarse_var, off, channels, groups, d_mean, d_var);
    } else if (job->uses_batch_moments) {
        for (int64_t c = 0; c < channels; c++) {
            batch[c] = -d_off[c];
            batch[channels + c] = d_of_var[c];
        }
    }
}

/* ---- Exemplar Normalization */

/* The weight (C) of normalizer k. */
static const real *weight_of(const Network *net, int64_t channels, int64_t k)
{
    return (const real *)net->tensors[WEIGHT] + (net->shared_affine ? 0 : k * channels);
}

/* Find rstd, z and the ratios; write the features to `features`, but for the MLP. */
static void find_ratios(const Map *map, const Network *net, const real *mean, Mixture *m,
                        real *features)
{
    int64_t channels = map->channels, count = net->num_normalizers, width = width_of(map, net);
    for (int64_t i = 0; i < count * channels; i++)
        m->rstd[i] = 1 / SQRT_OF(m->var[i] + (real)net->eps);
    m->features = net->ratio_net == MLP ? mean : features;
    if (net->ratio_net != MLP) {
        const real *reduce = net->tensors[REDUCE];
        for (int64_t k = 0; k < count; k++) {
            const real *off = m->off + k * channels, *rstd = m->rstd + k * channels;
            real *u = m->workspace;
            for (int64_t c = 0; c < channels; c++)
                u[c] = off[c] * rstd[c] * (reduce ? reduce[c] : 1);
            fold(u, channels, width, m->z + k * width);
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < count; j++)
                features[i * count + j] =
                    j < i ? features[j * count + i] : dot(m->z + i * width, m->z + j * width, width);
    }
    int64_t inputs = features_of(map, net);
    const real *expand = net->tensors[EXPAND], *expand_bias = net->tensors[EXPAND_BIAS];
    for (int64_t h = 0; h < net->hidden; h++)
        m->activated[h] = activate(net->activation,
                                   expand_bias[h] + dot(expand + h * inputs, m->features, inputs),
                                   &m->slope[h]);
    const real *ratio = net->tensors[RATIO], *ratio_bias = net->tensors[RATIO_BIAS];
    for (int64_t k = 0; k < count; k++)
        m->ratios[k] = ratio_bias[k] + dot(ratio + k * net->hidden, m->activated, net->hidden);
    softmax(m->ratios, count);
}

static void exemplar_forward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels, count = net->num_normalizers;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    real *restrict scale = job->scale + instance * channels;
    real *restrict shift = job->shift + instance * channels;
    if (!job->uses_batch_moments)
        pool_moments(job, scratch, instance);
    Mixture m = lay_out_mixture(map, net, scratch);
    find_statistics(job, mean, var, &m);
    find_ratios(map, net, mean, &m, m.workspace + channels);
    memset(scale, 0, channels * sizeof(real));
    memset(shift, 0, channels * sizeof(real));
    for (int64_t k = 0; k < count; k++) {
        const real *weight = weight_of(net, channels, k), *rstd = m.rstd + k * channels;
        const real *off = m.off + k * channels;
        for (int64_t c = 0; c < channels; c++) {
            real gain = m.ratios[k] * weight[c] * rstd[c];
            scale[c] += gain;
            shift[c] += gain * off[c];
        }
    }
    for (int64_t k = 0; k < rows_of_weight(net); k++)
        add_scaled(shift, (const real *)net->tensors[BIAS] + k * channels, channels, 1);
}

static void exemplar_backward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels, count = net->num_normalizers, width = width_of(map, net);
    int64_t inputs = features_of(map, net), hidden = net->hidden;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    real *restrict scale = job->scale + instance * channels;
    const real *d_scale = job->d_scale + instance * channels;
    const real *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * channels;
    real *d_var = job->slope + instance * channels;
    real *tape = job->tape + instance * job->tape_size;
    Tape at = tape_of(job);
    pool_sums(job, scratch, instance);
    Mixture m = lay_out_mixture(map, net, scratch);
    find_statistics(job, mean, var, &m);
    find_ratios(map, net, mean, &m, tape + at.features);
    if (net->ratio_net == MLP)
        memcpy(tape + at.features, mean, inputs * sizeof(real));
    memcpy(tape + at.bias, d_shift, channels * sizeof(real));
    memcpy(tape + at.hidden, m.activated, hidden * sizeof(real));

    real *d_logits = tape + at.d_logits, *products = m.workspace;
    memset(scale, 0, channels * sizeof(real));
    memset(tape, 0, at.bias * sizeof(real));
    for (int64_t k = 0; k < count; k++) {
        const real *weight = weight_of(net, channels, k), *rstd = m.rstd + k * channels;
        const real *off = m.off + k * channels;
        real *restrict d_weight = tape + (net->shared_affine ? 0 : k * channels), ratio = m.ratios[k];
        INDEPENDENT for (int64_t c = 0; c < channels; c++) {
            real d_gain = (d_scale[c] + d_shift[c] * off[c]) * rstd[c];
            scale[c] += ratio * weight[c] * rstd[c];
            d_weight[c] += ratio * d_gain;
            products[c] = weight[c] * d_gain;
        }
        fold(products, channels, 1, d_logits + k);
    }
    softmax_vjp(m.ratios, d_logits, count);

    /* the ratios' network */
    const real *expand_weight = net->tensors[EXPAND], *ratio = net->tensors[RATIO];
    const real *reduce = net->tensors[REDUCE];
    real *d_hidden = tape + at.d_hidden, *d_features = m.workspace, *d_z = d_features + channels + 16;
    memset(d_hidden, 0, hidden * sizeof(real));
    memset(d_features, 0, inputs * sizeof(real));
    for (int64_t k = 0; k < count; k++)
        add_scaled(d_hidden, ratio + k * hidden, hidden, d_logits[k]);
    for (int64_t h = 0; h < hidden; h++) {
        d_hidden[h] *= m.slope[h];
        add_scaled(d_features, expand_weight + h * inputs, inputs, d_hidden[h]);
    }
    memset(d_mean, 0, channels * sizeof(real));
    memset(d_var, 0, channels * sizeof(real));
    real symmetric[MAX_NORMALIZERS][MAX_NORMALIZERS] = {{0}};
    if (net->ratio_net == MLP)
        memcpy(d_mean, d_features, channels * sizeof(real));
    else
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < count; j++)
                symmetric[i][j] = d_features[i * count + j] + d_features[j * count + i];

    real *restrict d_off = d_z + channels, *restrict d_of_var = d_off + channels;
    real *restrict d_reduce = tape + at.reduce, *memory = d_of_var + channels;
    if (reduce)
        memset(d_reduce, 0, channels * sizeof(real));
    for (int64_t k = 0; k < count; k++) {
        const real *weight = weight_of(net, channels, k), *rstd = m.rstd + k * channels;
        const real *off = m.off + k * channels;
        real *d_run = d_of_var, ratio = m.ratios[k]; /* d_z of each channel; overwritten below */
        memset(d_z, 0, width * sizeof(real));
        if (net->ratio_net == MLP)
            memset(d_run, 0, channels * sizeof(real));
        else {
            for (int64_t j = 0; j < count; j++)
                add_scaled(d_z, m.z + j * width, width, symmetric[k][j]);
            expand(d_z, width, channels, d_run);
        }
        for (int64_t c = 0; reduce && c < channels; c++) {
            d_reduce[c] += d_run[c] * off[c] * rstd[c];
            d_run[c] *= reduce[c];
        }
        INDEPENDENT for (int64_t c = 0; c < channels; c++) {
            real gain = ratio * weight[c], r = rstd[c], d_u = d_shift[c] * gain + d_run[c];
            d_off[c] = d_u * r;
            d_of_var[c] = (real)-0.5 * r * r * r * (d_scale[c] * gain + d_u * off[c]);
        }
        statistics_vjp(job, k, off, d_off, d_of_var, d_mean, d_var, memory, tape + at.batch);
    }
    find_dx_coefficients(job, instance);
}

/* ---- Switchable Normalization */

/* Find the ratios of means and variances; mean - mixed mean, the mixed variance and 1 / its root, (C)
   each. */
static void mix(const Map *map, const Network *net, Mixture *m, real *restrict off,
                real *restrict var, real *restrict rstd)
{
    int64_t channels = map->channels, count = net->num_normalizers;
    real *mean_ratios = m->ratios, *var_ratios = mean_ratios + MAX_NORMALIZERS;
    switch_ratios(net, 0, mean_ratios);
    switch_ratios(net, 1, var_ratios);
    memset(off, 0, channels * sizeof(real));
    memset(var, 0, channels * sizeof(real));
    for (int64_t k = 0; k < count; k++) {
        add_scaled(off, m->off + k * channels, channels, mean_ratios[k]);
        add_scaled(var, m->var + k * channels, channels, var_ratios[k]);
    }
    for (int64_t c = 0; c < channels; c++)
        rstd[c] = 1 / SQRT_OF(var[c] + (real)net->eps);
}

static void switch_forward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    const real *weight = net->tensors[WEIGHT], *bias = net->tensors[BIAS];
    real *restrict scale = job->scale + instance * channels;
    real *restrict shift = job->shift + instance * channels;
    if (!job->uses_batch_moments)
        pool_moments(job, scratch, instance);
    Mixture m = lay_out_mixture(map, net, scratch);
    find_statistics(job, mean, var, &m);
    real *off = m.workspace, *mixed_var = off + channels, *rstd = mixed_var + channels;
    mix(map, net, &m, off, mixed_var, rstd);
    for (int64_t c = 0; c < channels; c++) {
        scale[c] = weight[c] * rstd[c];
        shift[c] = scale[c] * off[c] + bias[c];
    }
}

static void switch_backward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels, count = net->num_normalizers;
    const real *mean = job->mean + instance * channels, *var = job->var + instance * channels;
    const real *weight = net->tensors[WEIGHT];
    real *restrict scale = job->scale + instance * channels;
    const real *d_scale = job->d_scale + instance * channels;
    const real *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * channels, *d_var = job->slope + instance * channels;
    real *tape = job->tape + instance * job->tape_size;
    Tape at = tape_of(job);
    pool_sums(job, scratch, instance);
    Mixture m = lay_out_mixture(map, net, scratch);
    find_statistics(job, mean, var, &m);
    real *off = m.workspace, *mixed_var = off + channels, *rstd = mixed_var + channels;
    real *restrict d_mixed_off = rstd + channels;
    real *restrict d_mixed_var = d_mixed_off + channels, *restrict d_off = d_mixed_var + channels;
    real *restrict d_of_var = d_off + channels, *memory = d_of_var + channels;
    mix(map, net, &m, off, mixed_var, rstd);
    INDEPENDENT for (int64_t c = 0; c < channels; c++) {
        real r = rstd[c], d = d_scale[c] + d_shift[c] * off[c];
        scale[c] = weight[c] * r;
        tape[at.weight + c] = d * r;
        tape[at.bias + c] = d_shift[c];
        d_mixed_off[c] = d_shift[c] * scale[c];
        d_mixed_var[c] = (real)-0.5 * d * scale[c] * r * r;
    }
    memset(d_mean, 0, channels * sizeof(real));
    memset(d_var, 0, channels * sizeof(real));
    real *d_logits = tape + at.d_logits;
    for (int64_t k = 0; k < count; k++) {
        real mean_ratio = m.ratios[k], var_ratio = m.ratios[MAX_NORMALIZERS + k];
        const real *off_k = m.off + k * channels, *var_k = m.var + k * channels;
        /* The logits' gradients do not change if a number is added to all gradients g_k of the ratios:
           g_k - sum of ratio_j g_j takes their place. The mixed statistic is subtracted from each
           statistic before the product with its gradient: statistics can be much larger than their
           differences, and a difference of the sums would lose digits. */
        INDEPENDENT for (int64_t c = 0; c < channels; c++) {
            d_off[c] = d_mixed_off[c] * (off_k[c] - off[c]);
            d_of_var[c] = d_mixed_var[c] * (var_k[c] - mixed_var[c]);
        }
        fold(d_off, channels, 1, d_logits + k);
        fold(d_of_var, channels, 1, d_logits + count + k);
        if (net->kind == SWITCH) { /* sparse SN: in sparse_gradients */
            d_logits[k] *= mean_ratio;
            d_logits[count + k] *= var_ratio;
        }
        for (int64_t c = 0; c < channels; c++) {
            d_off[c] = mean_ratio * d_mixed_off[c];
            d_of_var[c] = var_ratio * d_mixed_var[c];
        }
        statistics_vjp(job, k, off_k, d_off, d_of_var, d_mean, d_var, memory, tape + at.batch);
    }
    find_dx_coefficients(job, instance);
}

/* ---- the batch */

/* The index of BN's running mean among the network's tensors; the running variance follows. */
static int running_of(const Network *net)
{
    return net->kind == EXEMPLAR ? EXEMPLAR_RUNNING : net->kind == SPARSE ? SPARSE_RUNNING : SWITCH_RUNNING;
}

/* Set the pointers to BN's moments, which are kept for the backward pass: the running ones, or without
   these the batch's. */
static void find_batch(Job *job, real *kept)
{
    const Network *net = job->network;
    int first = running_of(net);
    job->batch_mean = kept, job->batch_var = kept + job->map->channels;
    for (int64_t k = 0; k < net->num_normalizers; k++)
        if (net->normalizers[k] == BATCH && net->tensors[first] == NULL)
            job->uses_batch_moments = 1;
}

/* Move running statistics towards the batch's, to their own place or another. */
static void move_running(const Job *job, void *const *from_and_to)
{
    const Map *map = job->map;
    double count = (double)map->instances * (double)map->length;
    for (int i = 0; i < 2; i++) {
        const real *from = from_and_to[i], *batch = i ? job->batch_var : job->batch_mean;
        real *to = from_and_to[2 + i], momentum = count < 2 ? 0 : (real)job->network->momentum;
        if (to == NULL)
            continue;
        real unbiased = count < 2 ? 0 : i ? (real)(count / (count - 1)) : 1;
        for (int64_t c = 0; c < map->channels; c++) {
            real old = from[c], off = batch[c] * unbiased - old;
            to[c] = momentum == 0 ? old : momentum == 1 ? batch[c] * unbiased : old + momentum * off;
        }
    }
}

/* Pool the moments of all instances into the batch's, of channels begin <= c < end. */
static void pool_batch(int64_t begin, int64_t end, void *context)
{
    const Job *job = context;
    const Map *map = job->map;
    real *mean = (real *)job->batch_mean, *var = (real *)job->batch_var;
    int64_t n = map->instances, channels = map->channels;
    for (int64_t first = begin; first < end; first += AT_ONCE) {
        int64_t count = minimum(AT_ONCE, end - first);
        double sum[AT_ONCE] = {0}, spread[AT_ONCE] = {0};
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < count; c++)
                sum[c] += job->mean[i * channels + first + c];
        for (int64_t c = 0; c < count; c++)
            sum[c] /= (double)n;
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < count; c++) {
                double off = job->mean[i * channels + first + c] - sum[c];
                spread[c] += job->var[i * channels + first + c] + off * off;
            }
        for (int64_t c = 0; c < count; c++) {
            mean[first + c] = sum[c];
            var[first + c] = spread[c] / (double)n;
        }
    }
}

/* Add the part of dx through the batch's moments, by d_batch (2, C), to slope and offset. */
static void couple(const Job *job, real *scratch, int64_t instance)
{
    (void)scratch;
    const Map *map = job->map;
    int64_t channels = map->channels;
    real count = (real)map->instances * (real)map->length;
    const real *mean = job->mean + instance * channels, *batch_mean = job->batch_mean;
    const real *d_mean = job->d_batch, *d_var = d_mean + channels;
    real *slope = job->slope + instance * channels, *offset = job->offset + instance * channels;
    for (int64_t c = 0; c < channels; c++) {
        real more = d_var[c] * 2 / count;
        slope[c] += more;
        offset[c] += d_mean[c] / count + more * (mean[c] - batch_mean[c]);
    }
}
