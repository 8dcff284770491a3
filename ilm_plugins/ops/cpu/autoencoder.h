/* The auto-encoder of ILM Norm and AssocNorm, of one instance; see layers/autoencoder.py.

       key_i     = mean or variance of the N key groups                    i = 0, 1
       hidden_i  = ReLU(W1 key_i),  decoded_i = W(2 + i) hidden_i
       omega     = combine(decoded_drives_omega, weight), beta likewise

   From omega and beta follow scale and shift: groups.h. */

enum { WEIGHT, BIAS, ENCODE, DECODE, OMEGA_OFFSET = DECODE + 2 }; /* the tensors */

/* An instance's intermediate values, in the thread's scratch memory or in the tape. `memory` has room for
   the groups, and for C + 2 N values. */
typedef struct {
    real *key, *hidden, *decoded; /* (2, N), (2, M), (2, N) */
    real *d_hidden, *d_decoded;   /* the same shapes */
    real *key_off;                /* (G') */
    real *slope, *b_slope;        /* (C) each */
    real *memory;
} Autoencoder;

static int64_t encoder_scratch(const Map *map, const Network *net)
{
    return 8 * net->num_key_groups + 4 * net->hidden + map->groups + 3 * map->channels
        + groups_scratch(map, net);
}

/* The tape: gradients of weight and bias (C), then key, hidden, d_hidden, d_decoded. */
static int64_t encoder_tape(const Job *job)
{
    const Network *net = job->network;
    return 2 * job->map->channels + 4 * net->num_key_groups + 4 * net->hidden;
}

/* `tape` is memory for key and what follows it, (4 N + 4 M). */
static Autoencoder lay_out(const Map *map, const Network *net, real *tape, real *scratch)
{
    Autoencoder a;
    a.key = tape, a.hidden = a.key + 2 * net->num_key_groups;
    a.d_hidden = a.hidden + 2 * net->hidden, a.d_decoded = a.d_hidden + 2 * net->hidden;
    a.decoded = scratch, a.key_off = a.decoded + 2 * net->num_key_groups;
    a.slope = a.key_off + map->groups, a.b_slope = a.slope + map->channels;
    a.memory = a.b_slope + map->channels;
    return a;
}

/* Find the decoded values. */
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
}

/* Compute omega or beta (C). `slope` is its derivative by the decoded value, `b_slope` by b, which is the
   layer's weight for omega and its bias for beta. `from_var`: whether the variance is decoded. */
static void combine(const Map *map, const Network *net, int from_var, const real *decoded, const real *b,
                    real offset, real *restrict value, real *restrict slope, real *restrict b_slope)
{
    int64_t channels = map->channels, keys = net->num_key_groups, size = channels / keys;
    int32_t activation = net->activations[from_var];
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
    int64_t tape = 4 * net->num_key_groups + 4 * net->hidden;
    Autoencoder a = lay_out(map, net, scratch, scratch + tape);
    encode_and_decode(map, net, mean, var, &a);
    const real *offset = net->tensors[OMEGA_OFFSET];
    combine(map, net, net->mean_drives, a.decoded, net->tensors[WEIGHT], *offset, scale, a.slope,
            a.b_slope);
    combine(map, net, !net->mean_drives, a.decoded, net->tensors[BIAS], 0, shift, a.slope, a.b_slope);
    Groups groups = find_groups(map, net, mean, var, a.memory);
    standardize(&groups, channels, scale, shift);
}

/* The vector-Jacobian product: from d_scale and d_shift, compute what dx and the tensors' gradients
   need. */
static void encoder_backward(const Job *job, real *scratch, int64_t instance)
{
    const Map *map = job->map;
    const Network *net = job->network;
    int64_t channels = map->channels, fine = map->groups, keys = net->num_key_groups, hidden = net->hidden;
    const real *mean = job->mean + instance * fine, *var = job->var + instance * fine;
    const real *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * fine, *d_var = job->slope + instance * fine;
    real *d_weight = job->tape + instance * job->tape_size, *d_bias = d_weight + channels;
    pool_sums(job, scratch, instance);
    Autoencoder a = lay_out(map, net, d_bias + channels, scratch);
    encode_and_decode(map, net, mean, var, &a);

    real *values = a.memory + groups_scratch(map, net), *d_key = values + channels;
    int omega = net->mean_drives, beta = !omega;
    const real *offset = net->tensors[OMEGA_OFFSET];
    combine(map, net, beta, a.decoded, net->tensors[BIAS], 0, values, a.slope, a.b_slope);
    for (int64_t c = 0; c < channels; c++) {
        d_bias[c] = d_shift[c] * a.b_slope[c];
        a.slope[c] *= d_shift[c];
    }
    fold(a.slope, channels, keys, a.d_decoded + beta * keys);
    combine(map, net, omega, a.decoded, net->tensors[WEIGHT], *offset, values, a.slope, a.b_slope);
    Groups groups = find_groups(map, net, mean, var, a.memory);
    standardize_vjp(job, instance, &groups, values);
    for (int64_t c = 0; c < channels; c++) {
        d_weight[c] = values[c] * a.b_slope[c];
        a.slope[c] *= values[c];
    }
    fold(a.slope, channels, keys, a.d_decoded + omega * keys);

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
