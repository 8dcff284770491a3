/* The primitive on the CPU, forward and backward: moments, network and affine map of each instance.

   It is compiled for float and for double, and for each instruction set, into tables of functions that
   are named after both. It uses neither torch nor Python, and keeps nothing between calls. */

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

/* The types T of maps, in the order of ALL_PASSES. */
#define REAL 0
#define BFLOAT16 1
#define FLOAT16 2

#ifdef DOUBLE
typedef double real;
typedef int64_t Bool;
#define SQRT_OF sqrt
#define TANH_OF tanh
#define EXP_OF exp
#else
typedef float real;
typedef int32_t Bool;
#define SQRT_OF sqrtf
#define TANH_OF tanhf
#define EXP_OF expf
#endif

#define JOIN_(name, suffix) name##_##suffix
#define JOIN(name, suffix) JOIN_(name, suffix)
#define FUNCTION(name) JOIN(name, STORED_AS)

#include "small.h"

#include "job.h"

#include "groups.h"
#include "autoencoder.h"
#include "ratios.h"
#include "mixture.h"
#include "attentive.h"

#include "gradients.h"

#define STORED_AS REAL
#define T real
#include "vector.h"
#include "passes.h"
#undef STORED_AS
#undef T

#ifndef DOUBLE
#define STORED_AS BFLOAT16
#define T uint16_t
#include "vector.h"
#include "passes.h"
#undef STORED_AS
#define STORED_AS FLOAT16
#include "vector.h"
#include "passes.h"
#undef STORED_AS
#undef T
#endif

/* By T, then by layout. */
static const Passes ALL_PASSES[][2] = {
#define BOTH(stored_as) \
    {{JOIN(moments_of_rows, stored_as), JOIN(affine_of_rows, stored_as), \
      JOIN(sums_of_rows, stored_as), JOIN(dx_of_rows, stored_as)}, \
     {JOIN(moments_of_positions, stored_as), JOIN(affine_of_positions, stored_as), \
      JOIN(sums_of_positions, stored_as), JOIN(dx_of_positions, stored_as)}},
    BOTH(REAL)
#ifndef DOUBLE
    BOTH(BFLOAT16) BOTH(FLOAT16)
#endif
};

/* By kind. `fields` counts the kind, and not a mixture's normalizers; `forward` and `backward` are the
   steps between two passes. */
static const struct {
    int fields, parameters, tensors;
    int64_t (*scratch)(const Map *map, const Network *net);
    int64_t (*tape)(const Job *job); /* values of an instance */
    Step forward, backward;
    int (*gradients)(const Job *job, real **to);
} NETWORKS[] = {
    [AUTOENCODER] = {10, OMEGA_OFFSET, OMEGA_OFFSET + 1, encoder_scratch, encoder_tape, encoder_forward,
                     encoder_backward, encoder_gradients},
    [EXEMPLAR] = {10, EXEMPLAR_RUNNING, EXEMPLAR_RUNNING + 2, mixture_scratch, mixture_tape, exemplar_forward,
                  exemplar_backward, mixture_gradients},
    [SWITCH] = {5, SWITCH_RUNNING, SWITCH_RUNNING + 2, mixture_scratch, mixture_tape, switch_forward, switch_backward,
                mixture_gradients},
    [SPARSE] = {5, RADIUS, SPARSE_RUNNING + 2, mixture_scratch, mixture_tape, switch_forward, switch_backward,
                mixture_gradients},
    [ATTENTIVE] = {5, PAIR_BIAS + 1, PAIR_BIAS + 1, attentive_scratch, attentive_tape, attentive_forward,
                   attentive_backward, attentive_gradients},
};

/* Read the network of a call, whose tensors follow `first` other addresses; returns EINVAL if the number
   of fields is another than here. */
static int read_network(const Call *call, int first, Network *net)
{
    const double *v = call->fields;
    *net = (Network){.kind = (int32_t)*v++};
    memcpy(net->tensors, call->at + first, NETWORKS[net->kind].tensors * sizeof(void *));
    int64_t count = is_mixture(net) ? net->num_normalizers = (int64_t)*v++ : 0;
    if (count > MAX_NORMALIZERS || call->num_fields != NETWORKS[net->kind].fields + count)
        return EINVAL;
    const double *normalizers = v;
    v += count;
    if (net->kind == AUTOENCODER) {
        net->num_groups = v[0], net->num_key_groups = v[1], net->hidden = v[2], net->eps = v[3];
        net->mean_drives = v[4], net->activations[0] = v[6], net->activations[1] = v[7];
        net->combine = v[8];
        return 0;
    }
    net->num_groups = v[0], net->eps = v[1];
    if (net->kind == EXEMPLAR) {
        net->hidden = v[2], net->reduction = v[3], net->activation = v[4], net->ratio_net = v[5];
        net->shared_affine = v[6];
    }
    net->momentum = is_mixture(net) ? v[net->kind == EXEMPLAR ? 7 : 2] : 0;
    if (net->kind == ATTENTIVE)
        net->num_affine = v[2], net->feature_eps = v[3];
    int64_t groups[] = {[IN] = call->map.channels, [LN] = 1, [BN] = BATCH, [GN] = net->num_groups};
    for (int64_t k = 0; k < count; k++)
        net->normalizers[k] = groups[(int)normalizers[k]];
    return 0;
}

/* Describe the work on a map; `network` may be NULL. */
static Job start(const Map *map, const Network *network, const void *x)
{
    Job job = {.map = map, .network = network, .x = x};
    job.passes = &ALL_PASSES[map->stored_as][map->channels_last];
    int64_t size = map->stored_as == REAL ? sizeof(real) : 2;
    int64_t row = size * (map->channels_last ? map->channels : map->length);
    int whole_lines = map->channels_last ? row % 64 == 0 : row >= STREAM_ROW;
    job.streams = whole_lines && map->instances * map->channels * map->length * size >= STREAM;
    if (map->channels * map->length * size <= FETCH)
        job.to_next = map->channels * map->length;
    divide(&job);
    job.scratch_size = 4 * map->channels;
    if (network)
        job.scratch_size += NETWORKS[network->kind].scratch(map, network);
    return job;
}

/* The number of values in `partials`, for moments or for sums. */
static int64_t for_moments(const Job *job)
{
    int64_t groups = job->map->channels_last ? job->map->groups : 1;
    return 2 * job->map->instances * job->blocks * groups;
}

static int64_t for_sums(const Job *job)
{
    int64_t parts = job->map->channels_last ? job->blocks : job->parts;
    return 2 * job->map->instances * job->map->channels * parts;
}

/* ---- the passes by themselves */

static int moments(const Call *call)
{
    Job job = start(&call->map, NULL, call->at[0]);
    job.mean = call->at[1], job.var = call->at[2];
    job.partials = allocate(for_moments(&job));
    int error = job.partials ? run(&job, job.passes->moments, pool_moments, NULL) : ENOMEM;
    free(job.partials);
    return error;
}

static int affine(const Call *call)
{
    Job job = start(&call->map, NULL, call->at[0]);
    job.mean = call->at[1], job.scale = call->at[2], job.shift = call->at[3], job.y = call->at[4];
    return run(&job, NULL, NULL, job.passes->affine);
}

static int sums(const Call *call)
{
    Job job = start(&call->map, NULL, call->at[1]);
    job.dy = call->at[0], job.mean = call->at[2], job.d_scale = call->at[3], job.d_shift = call->at[4];
    job.partials = allocate(for_sums(&job));
    int error = job.partials ? run(&job, job.passes->sums, pool_sums, NULL) : ENOMEM;
    free(job.partials);
    return error;
}

static int dx(const Call *call)
{
    Job job = start(&call->map, NULL, call->at[1]);
    job.dy = call->at[0], job.mean = call->at[2], job.scale = call->at[3], job.slope = call->at[4];
    job.offset = call->at[5], job.y = call->at[6];
    return run(&job, NULL, NULL, job.passes->dx);
}

/* ---- a whole layer */

/* Set the pointers to the statistics that are kept for the backward pass: moments, then the network's
   buffers, with BN's moments of the batch in place of running ones that are NULL. A forward pass copies the
   buffers there, because they may change before the backward pass, which reads only the copies. */
static void find_kept(Job *job, Network *net, real *statistics, int is_forward)
{
    const Map *map = job->map;
    job->mean = statistics, job->var = job->mean + map->instances * map->groups;
    real *kept = job->var + map->instances * map->groups;
    for (int i = NETWORKS[net->kind].parameters; i < NETWORKS[net->kind].tensors; i++) {
        int is_running = is_mixture(net) && i >= running_of(net);
        int is_fixed = net->kind == SPARSE && i > RADIUS;
        int64_t size = is_running ? map->channels : is_fixed ? net->num_normalizers : 1;
        if (is_forward && net->tensors[i])
            memcpy(kept, net->tensors[i], size * sizeof(real));
        if (!is_running)
            net->tensors[i] = kept;
        else if (i == running_of(net))
            find_batch(job, kept);
        kept += size;
    }
}

/* Addresses: x, y, statistics; the network's tensors; for a mixture, BN's running mean and variance, and
   where to put them after the batch. All four may be NULL. */
static int forward(const Call *call)
{
    const Map *map = &call->map;
    Network network, *net = &network;
    if (read_network(call, 3, net))
        return EINVAL;
    Job job = start(map, net, call->at[0]);
    int64_t channel_values = map->instances * map->channels, partials = for_moments(&job);
    real *memory = allocate(partials + 2 * channel_values);
    if (memory == NULL)
        return ENOMEM;
    job.partials = memory, job.scale = job.partials + partials;
    job.shift = job.scale + channel_values, job.y = call->at[1];
    find_kept(&job, net, call->at[2], 1);
    Pass first = job.passes->moments;
    int error = 0;
    if (job.uses_batch_moments) {
        error = run(&job, first, pool_moments, NULL);
        error = error
            ? error
            : parallel(map, map->channels, divide_up(GRAIN, map->instances), pool_batch, &job);
        if (!error)
            move_running(&job, call->at + 3 + NETWORKS[net->kind].tensors);
        first = NULL;
    }
    error = error ? error : run(&job, first, NETWORKS[net->kind].forward, job.passes->affine);
    free(memory);
    return error;
}

static int backward_of(Job *job, real **gradients)
{
    const Map *map = job->map;
    int kind = job->network->kind;
    Step step = NETWORKS[kind].backward;
    Pass dx = job->y ? job->passes->dx : NULL;
    int error = run(job, job->passes->sums, step, job->uses_batch_moments ? NULL : dx);
    if (!error && job->uses_batch_moments && dx) {
        error = add_columns(job, tape_of(job).batch, 2 * map->channels, job->d_batch);
        error = error ? error : run(job, NULL, couple, dx);
    }
    return error ? error : NETWORKS[kind].gradients(job, gradients);
}

/* Addresses: dy, x, statistics, dx; the network's tensors, of whose buffers it only matters whether they
   are NULL; the tensors' gradients. dx and gradients may be NULL. */
static int backward(const Call *call)
{
    const Map *map = &call->map;
    Network network, *net = &network;
    if (read_network(call, 4, net))
        return EINVAL;
    int tensors = NETWORKS[net->kind].tensors;
    real *gradients[MAX_TENSORS];
    memcpy(gradients, call->at + 4 + tensors, tensors * sizeof(void *));
    Job job = start(map, net, call->at[1]);
    int64_t channel_values = map->instances * map->channels, group_values = map->instances * map->groups;
    int64_t partials = for_sums(&job);
    real *memory = allocate(partials + 3 * channel_values + 2 * group_values + 2 * map->channels), *tape;
    if (memory == NULL)
        return ENOMEM;
    job.partials = memory, job.scale = job.partials + partials;
    job.d_scale = job.scale + channel_values, job.d_shift = job.d_scale + channel_values;
    job.slope = job.d_shift + channel_values, job.offset = job.slope + group_values;
    job.d_batch = job.offset + group_values;
    job.dy = call->at[0], job.y = call->at[3];
    find_kept(&job, net, call->at[2], 0);
    job.tape_size = NETWORKS[net->kind].tape(&job);
    job.tape = tape = allocate(map->instances * job.tape_size);
    int error = tape ? backward_of(&job, gradients) : ENOMEM;
    free(tape);
    free(memory);
    return error;
}

#define EXPORT_(real, set) ilm_plugins_##real##_##set
#define EXPORT(real, set) EXPORT_(real, set)
#ifdef DOUBLE
#define TABLE EXPORT(double, INSTRUCTIONS)
#else
#define TABLE EXPORT(float, INSTRUCTIONS)
#endif

__attribute__((visibility("default"))) const Kernels TABLE = {
    SOURCES, moments, affine, sums, dx, forward, backward};
