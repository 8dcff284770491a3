/* The interface of the C kernels, as their binding in Python uses it; see __init__.py. */
#ifndef ILM_PLUGINS_KERNELS_H
#define ILM_PLUGINS_KERNELS_H

#include <stdint.h>

/* Work on the items begin <= i < end. */
typedef void (*Range)(int64_t begin, int64_t end, void *context);

/* Call `range` on parts of begin <= i < end, of `grain` items or more, from several threads; returns
   0, or an error code: torch_parallel_for. */
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Range range, void *context);

/* The input x (N, C, *), and the other maps of its shape. */
typedef struct {
    int64_t instances, channels, length; /* N, C, positions of a channel */
    int64_t groups;                      /* G', the number of finest channel groups */
    int64_t stored_as;                   /* 0: float or double, 1: bfloat16, 2: float16 */
    int64_t channels_last;               /* (N, positions, C) in memory, else (N, C, positions) */
    int64_t threads;
    ParallelFor parallel_for; /* NULL before torch 2.10: a single thread */
} Map;

/* A call of a function: only 64-bit integers and addresses. */
typedef struct {
    Map map;
    int64_t num_fields;
    const double *fields; /* the network's, see Network; NULL without one */
    void *at[];           /* addresses of the function's maps and statistics, then of the network's tensors */
} Call;

enum { TANH, SIGMOID, RELU, LEAKY_RELU, RELU6, IDENTITY };   /* activations */
enum { PLAIN, INSIDE, TIMES, PLUS };                         /* a(WE), a(WE+B), a(WE)*B, a(WE)+B */
enum { OMEGA, BETA };                                        /* what the mean drives */
enum { AUTOENCODER, EXEMPLAR, SWITCH, SPARSE, ATTENTIVE };   /* networks */
enum { CONV, NO_CONV, MLP };                                 /* EN's ratio networks */
enum { IN, LN, BN, GN };                                     /* normalizers */
enum { MAX_NORMALIZERS = 4, MAX_TENSORS = 9, BATCH = 0 /* groups of BN */ };

/* The network that computes scale and shift from an instance's moments, with its tensors, in the order
   of networks.py, whose names the fields have. The tensors are contiguous and have the type of the
   moments; NULL for a missing one. Python passes the kind, then the fields as in networks.py: a name as
   its number above, a tuple as its length and its values. */
typedef struct {
    int32_t kind;
    double eps;
    const void *tensors[MAX_TENSORS];
    int64_t hidden; /* M of an auto-encoder; values between EN's two linear maps */
    int64_t num_groups; /* of the standardization, of an auto-encoder and AN */
    /* auto-encoder */
    int64_t num_key_groups; /* N */
    int32_t mean_drives;
    int64_t activations[2]; /* for mean and variance */
    int32_t combine;
    /* mixtures */
    int64_t normalizers[MAX_NORMALIZERS]; /* groups of each, BATCH for BN */
    int64_t num_normalizers;
    int32_t ratio_net, activation, shared_affine;
    double momentum;
    int64_t reduction;
    /* AN */
    int64_t num_affine;
    double feature_eps;
} Network;

/* Returns 0 or an error code. */
typedef int (*Function)(const Call *call);

/* The functions for one instruction set and one type of statistics. */
typedef struct {
    uint64_t sources; /* hash of all sources when the library was compiled; see sources.py */
    Function moments, affine, sums, dx, forward, backward;
} Kernels;

#endif
