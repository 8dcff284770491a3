/* The auto-encoder of ILM Norm and AssocNorm, of one instance; see layers/autoencoder.py.

       key_i     = mean or variance of the N key groups                    i = 0, 1
       hidden_i  = ReLU(W1 key_i),  decoded_i = W(2 + i) hidden_i
       omega     = combine(decoded_drives_omega, weight), beta likewise
       scale     = omega * rstd of the group
       shift     = beta + scale * (mean - mean of the group)

   where `mean` is the mean of the finest group, which is subtracted from x. */

enum { WEIGHT, BIAS, ENCODE, DECODE, OMEGA_OFFSET = DECODE + 2 }; /* the tensors */

/* An instance's intermediate values, in the thread's scratch memory or in the tape. */
typedef struct {
    real *key, *hidden, *decoded;        /* (2, N), (2, M), (2, N) */
    real *d_hidden, *d_decoded;          /* the same shapes */
    real *group_mean, *rstd, *group_off; /* (G), (G), (G') */
    real *key_off;                       /* (G') */
    real *off, *of_channels, *values;    /* (C) each */
} Autoencoder;

static int64_t encoder_scratch(const Map *map, const Network *net)
{
    return 4 * net->num_key_groups + 4 * net->hidden + 2 * net->num_groups + 6 * map->groups
        + 8 * map->channels;
}

/* The tape: gradients of weight and bias (C), then key, hidden, d_hidden, d_decoded. */
static int64_t encoder_tape(const Map *map, const Network *net)
{
    return 2 * map->channels + 4 * net->num_key_groups + 4 * net->hidden;
}

static Autoencoder lay_out(const Map *map, const Network *net, real *tape, real *scratch)
{
    Autoencoder a;
    a.key = tape, a.hidden = a.key + 2 * net->num_key_groups;
    a.d_hidden = a.hidden + 2 * net->hidden, a.d_decoded = a.d_hidden + 2 * net->hidden;
    a.decoded = scratch, a.group_mean = a.decoded + 2 * net->num_key_groups;
    a.rstd = a.group_mean + net->num_groups, a.group_off = a.rstd + net->num_groups;
    a.key_off = a.group_off + map->groups, a.off = a.key_off + map->groups;
    a.of_channels = a.off + map->channels, a.values = a.of_channels + map->channels;
    return a;
}

/* Find the decoded values, and the groups' moments. */
static void encode_and_decode(const Map *map, const Network *net, const real *mean, const real *var,
                              Autoencoder *a)
{
    int64_t keys = net->num_key_groups, hidden = net->hidden;
    pool(mean, var, map->groups, keys, a->key, a->key + keys, a->key_off);
    for (int i = 0; i < 2; i++) {
        const real *encode = net->tensors[ENCODE], *decode = net->tensors[DECODE + i];
        for (int64_t m = 0; m < hidden; m++) {
            real embedded = dot(encode + m * keys, a->key + i * keys, keys);
            a->hidden[i * hidden + m] = embedded < 0 ? 0 : embedded;
        }
        for (int64_t k = 0; k < keys; k++)
            a->decoded[i * keys + k] = dot(decode + k * hidden, a->hidden + i * hidden, hidden);
    }
    pool(mean, var, map->groups, net->num_groups, a->group_mean, a->rstd, a->group_off);
    for (int64_t g = 0; g < net->num_groups; g++)
        a->rstd[g] = 1 / SQRT_OF(a->rstd[g] + (real)net->eps);
    expand(a->group_off, map->groups, map->channels, a->off);
}

/* Compute omega or beta (C). `slope` is its derivative by the decoded value, `b_slope` by b, which is the
   layer's weight for omega and its bias for beta. `from_var`: whether the variance is decoded. */
static void combine(const Map *map, const Network *net, int from_var, const real *decoded, const real *b,
                    real offset, real *restrict value, real *restrict slope, real *restrict b_slope)
{
    int64_t channels = map->channels, keys = net->num_key_groups, size = channels / keys;
    int32_t activation = from_var ? net->var_activation : net->mean_activation;
    decoded += from_var * keys;
    for (int64_t k = 0; k < keys; k++) {
        real derivative = 0, activated = 0;
        if (net->combine != INSIDE)
            activated = activate(activation, decoded[k], &derivative) - offset;
        int64_t c = k * size, end = c + size;
        switch (net->combine) {
        case INSIDE:
            for (; c < end; c++) {
                value[c] = activate(activation, decoded[k] + b[c], &derivative) - offset;
                slope[c] = b_slope[c] = derivative;
            }
            break;
        case TIMES:
            for (; c < end; c++)
                value[c] = activated * b[c], slope[c] = derivative * b[c], b_slope[c] = activated;
            break;
        case PLUS:
            for (; c < end; c++)
                value[c] = activated + b[c], slope[c] = derivative, b_slope[c] = 1;
            break;
        default:
            for (; c < end; c++)
                value[c] = activated, slope[c] = derivative, b_slope[c] = 0;
        }
    }
}

static void encoder_forward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels;
    real *mean = job->mean + instance * map->groups, *var = job->var + instance * map->groups;
    real *scale = job->scale + instance * channels, *shift = job->shift + instance * channels;
    pool_moments(job, scratch, instance);
    Autoencoder a = lay_out(map, net, job->tape + instance * job->tape_size, scratch);
    encode_and_decode(map, net, mean, var, &a);
    const real *offset = net->tensors[OMEGA_OFFSET];
    real *slope = a.of_channels, *b_slope = a.values;
    combine(map, net, net->mean_drives, a.decoded, net->tensors[WEIGHT], *offset, scale, slope,
            b_slope);
    combine(map, net, !net->mean_drives, a.decoded, net->tensors[BIAS], 0, shift, slope, b_slope);
    expand(a.rstd, net->num_groups, channels, a.values);
    for (int64_t c = 0; c < channels; c++) {
        scale[c] *= a.values[c];
        shift[c] += scale[c] * a.off[c];
    }
}

/* The vector-Jacobian product: from d_scale and d_shift, compute what dx and the tensors' gradients
   need. */
static void encoder_backward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels, fine = map->groups, keys = net->num_key_groups, hidden = net->hidden;
    const real *mean = job->mean + instance * fine, *var = job->var + instance * fine;
    real *scale = job->scale + instance * channels;
    real *d_scale = job->d_scale + instance * channels, *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * fine, *d_var = job->slope + instance * fine;
    real *d_weight = job->tape + instance * job->tape_size, *d_bias = d_weight + channels;
    pool_sums(job, scratch, instance);
    Autoencoder a = lay_out(map, net, d_bias + channels, scratch);
    encode_and_decode(map, net, mean, var, &a);

    real *values = a.values, *beta_slope = values + channels, *b_slope = beta_slope + channels;
    real *omega_slope = b_slope + channels, *of_groups = omega_slope + channels;
    real *more = of_groups + fine, *d_key = more + 2 * fine;
    int omega = net->mean_drives, beta = !omega;
    const real *offset = net->tensors[OMEGA_OFFSET];
    combine(map, net, beta, a.decoded, net->tensors[BIAS], 0, values, beta_slope, b_slope);
    for (int64_t c = 0; c < channels; c++) {
        d_bias[c] = d_shift[c] * b_slope[c];
        beta_slope[c] *= d_shift[c];
    }
    fold(beta_slope, channels, keys, a.d_decoded + beta * keys);
    combine(map, net, omega, a.decoded, net->tensors[WEIGHT], *offset, values, omega_slope, b_slope);

    /* scale = omega * rstd, shift = beta + scale * off */
    expand(a.rstd, net->num_groups, channels, a.of_channels);
    for (int64_t c = 0; c < channels; c++) {
        real d = d_scale[c] + d_shift[c] * a.off[c], d_omega = d * a.of_channels[c];
        scale[c] = values[c] * a.of_channels[c];
        d_weight[c] = d_omega * b_slope[c];
        omega_slope[c] *= d_omega;
        values[c] *= d;
        d_scale[c] = d_shift[c] * scale[c];
    }
    fold(omega_slope, channels, keys, a.d_decoded + omega * keys);
    fold(values, channels, net->num_groups, of_groups); /* d_rstd */
    fold(d_scale, channels, fine, d_mean);          /* d_off */
    fold(d_mean, fine, net->num_groups, more);
    for (int64_t g = 0; g < net->num_groups; g++) {
        of_groups[g] *= (real)-0.5 * a.rstd[g] * a.rstd[g] * a.rstd[g];
        more[g] = -more[g];
    }
    memset(d_var, 0, fine * sizeof(real));
    unpool(more, of_groups, a.group_off, fine, net->num_groups, d_mean, d_var);

    memset(d_key, 0, 2 * keys * sizeof(real));
    for (int i = 0; i < 2; i++) {
        const real *encode = net->tensors[ENCODE], *decode = net->tensors[DECODE + i];
        real *d_hidden = a.d_hidden + i * hidden;
        memset(d_hidden, 0, hidden * sizeof(real));
        for (int64_t k = 0; k < keys; k++)
            add_scaled(d_hidden, decode + k * hidden, hidden, a.d_decoded[i * keys + k]);
        for (int64_t m = 0; m < hidden; m++) {
            d_hidden[m] = a.hidden[i * hidden + m] <= 0 ? 0 : d_hidden[m]; /* NaN passes */
            add_scaled(d_key + i * keys, encode + m * keys, keys, d_hidden[m]);
        }
    }
    unpool(d_key, d_key + keys, a.key_off, fine, keys, d_mean, d_var);
    find_dx_coefficients(job, instance);
}
