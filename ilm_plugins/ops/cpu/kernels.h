/* What the C kernels and their binding in Python agree on; see __init__.py. */
#ifndef ILM_PLUGINS_KERNELS_H
#define ILM_PLUGINS_KERNELS_H

#include <stdint.h>

/* Work on the items begin <= i < end. */
typedef void (*Range)(int64_t begin, int64_t end, void *context);

/* Call `range` on parts of begin <= i < end, of `grain` items or more, from several threads; returns
   0, or an error code: torch_parallel_for. */
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Range range, void *context);

/* Call `work` from each of `threads` threads: libgomp's GOMP_parallel. */
typedef void (*Gomp)(void (*work)(void *), void *context, unsigned threads, unsigned flags);

/* The input x, (N, C, *), and whatever has its shape. */
typedef struct {
    int64_t instances, channels, length; /* N, C, positions of a channel */
    int64_t groups;                      /* G', the finest groups of channels with moments of their own */
    int32_t stored_as;                   /* 0: float or double, 1: bfloat16, 2: float16 */
    int32_t channels_last;               /* (N, positions, C) in memory, otherwise (N, C, positions) */
    int32_t threads;
    ParallelFor parallel_for; /* from torch 2.10 on, else NULL; */
    Gomp gomp;                /* before, where torch brings it, else NULL: a single thread */
} Map;

enum { TANH, SIGMOID, RELU, LEAKY_RELU, RELU6, IDENTITY };   /* activations */
enum { PLAIN, INSIDE, TIMES, PLUS };                         /* a(WE), a(WE+B), a(WE)*B, a(WE)+B */
enum { AUTOENCODER, EXEMPLAR, SWITCH };                      /* networks */
enum { CONV, NO_CONV, MLP };                                 /* EN's ratio networks */
enum { MAX_NORMALIZERS = 4, MAX_TENSORS = 9, BATCH = 0 /* groups of BN */ };

/* The network that makes scale and shift of an instance's moments, with its tensors: of float or
   double as the moments are, contiguous, in the order of networks.py; NULL for what it lacks. */
typedef struct {
    int32_t kind;
    double eps;
    const void *tensors[MAX_TENSORS];
    int64_t hidden; /* M of an auto-encoder; values between EN's two linear maps */
    /* auto-encoder */
    int64_t groups, keys; /* of the standardization; key groups N */
    int32_t mean_drives_beta, mean_activation, var_activation, combine;
    /* mixtures */
    int64_t normalizers[MAX_NORMALIZERS]; /* groups of each, BATCH for BN */
    int32_t num_normalizers, ratio_net, activation, shared_affine;
    int64_t reduction;
} Network;

/* The functions of one instruction set and of one type; each returns 0, or an error code. Arrays of
   the statistics' type are void here. */
typedef struct {
    void *moments, *affine, *sums, *dx, *forward, *backward;
} Kernels;

#endif
