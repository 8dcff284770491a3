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

/* By kind. `forward` and `backward` are the steps between two passes. */
static const struct {
    int64_t (*scratch)(const Map *map, const Network *net);
    int64_t (*tape)(const Job *job); /* values of an instance */
    Step forward, backward;
    int (*gradients)(const Job *job, real **to);
} NETWORKS[] = {
    [AUTOENCODER] = {encoder_scratch, encoder_tape, encoder_forward, encoder_backward, encoder_gradients},
    [EXEMPLAR] = {mixture_scratch, mixture_tape, exemplar_forward, exemplar_backward, mixture_gradients},
    [SWITCH] = {mixture_scratch, mixture_tape, switch_forward, switch_backward, mixture_gradients},
    [ATTENTIVE] = {attentive_scratch, attentive_tape, attentive_forward, attentive_backward,
                   attentive_gradients},
};

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

static int moments(const Map *map, const void *x, real *mean, real *var)
{
    Job job = start(map, NULL, x);
    job.mean = mean, job.var = var;
    job.partials = allocate(for_moments(&job));
    int error = job.partials ? run(&job, job.passes->moments, pool_moments, NULL) : ENOMEM;
    free(job.partials);
    return error;
}

static int affine(const Map *map, const void *x, real *mean, real *scale, real *shift, void *y)
{
    Job job = start(map, NULL, x);
    job.mean = mean, job.scale = scale, job.shift = shift, job.y = y;
    return run(&job, NULL, NULL, job.passes->affine);
}

static int sums(const Map *map, const void *dy, const void *x, real *mean, real *d_scale, real *d_shift)
{
    Job job = start(map, NULL, x);
    job.dy = dy, job.mean = mean, job.d_scale = d_scale, job.d_shift = d_shift;
    job.partials = allocate(for_sums(&job));
    int error = job.partials ? run(&job, job.passes->sums, pool_sums, NULL) : ENOMEM;
    free(job.partials);
    return error;
}

static int dx(const Map *map, const void *dy, const void *x, real *mean, real *scale, real *slope,
              real *offset, void *to)
{
    Job job = start(map, NULL, x);
    job.dy = dy, job.mean = mean, job.scale = scale, job.slope = slope, job.offset = offset;
    job.y = to;
    return run(&job, NULL, NULL, job.passes->dx);
}

/* ---- a whole layer */

static int forward(const Map *map, const Network *net, const void *x, void *y, real *mean, real *var)
{
    Job job = start(map, net, x);
    int64_t channel_values = map->instances * map->channels, partials = for_moments(&job);
    real *memory = allocate(2 * map->channels + partials + 2 * channel_values);
    if (memory == NULL)
        return ENOMEM;
    job.partials = memory + 2 * map->channels, job.scale = job.partials + partials;
    job.shift = job.scale + channel_values, job.mean = mean, job.var = var, job.y = y;
    Pass first = job.passes->moments;
    int error = 0;
    if (is_mixture(net))
        find_batch(&job, memory);
    if (job.uses_batch_moments) {
        error = run(&job, first, pool_moments, NULL);
        error = error
            ? error
            : parallel(map, map->channels, divide_up(GRAIN, map->instances), pool_batch, &job);
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
    int error = 0;
    if (job->uses_batch_moments)
        error = parallel(map, map->channels, divide_up(GRAIN, map->instances), pool_batch, job);
    error = error ? error : run(job, job->passes->sums, step, job->uses_batch_moments ? NULL : dx);
    if (!error && job->uses_batch_moments && dx) {
        error = add_columns(job, tape_of(job).batch, 2 * map->channels, job->d_batch);
        error = error ? error : run(job, NULL, couple, dx);
    }
    return error ? error : NETWORKS[kind].gradients(job, gradients);
}

static int backward(const Map *map, const Network *net, const void *dy, const void *x, real *mean,
                    real *var, void *to, real **gradients)
{
    Job job = start(map, net, x);
    int64_t channel_values = map->instances * map->channels, group_values = map->instances * map->groups;
    int64_t partials = for_sums(&job);
    real *memory = allocate(partials + 3 * channel_values + 2 * group_values + 4 * map->channels), *tape;
    if (memory == NULL)
        return ENOMEM;
    job.partials = memory, job.scale = job.partials + partials;
    job.d_scale = job.scale + channel_values, job.d_shift = job.d_scale + channel_values;
    job.slope = job.d_shift + channel_values, job.offset = job.slope + group_values;
    job.d_batch = job.offset + group_values;
    job.dy = dy, job.mean = mean, job.var = var, job.y = to;
    if (is_mixture(net))
        find_batch(&job, job.d_batch + 2 * map->channels);
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
    INTERFACE, moments, affine, sums, dx, forward, backward};
