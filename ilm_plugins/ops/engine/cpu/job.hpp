// The work of one call: its blocks, its threads, and the arrays that its passes share.
#pragma once

#include <errno.h>

#include "arena.hpp"
#include "loops.hpp"

namespace {

// Work on the items begin <= i < end.
using Range = void (*)(int64_t begin, int64_t end, void *context);

// Call `range` on parts of begin <= i < end, of `grain` items or more, from several threads;
// returns 0, or an error code: torch_parallel_for.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range range,
                                void *context);

// The input x (N, C, *), and the other maps of its shape. Python passes these values in this order.
struct Map {
    int64_t instances, channels, length; // N, C, positions of a channel
    int64_t groups;                      // G', the number of finest channel groups
    int64_t stored_as;                   // 0: float or double, 1: bfloat16, 2: float16
    int64_t channels_last;               // (N, positions, C) in memory, else (N, C, positions)
    int64_t activation;                  // after the affine map, see MapActivations; 0: none
    double negative_slope;               // of LeakyRelu
    int64_t threads;
    ParallelFor parallel_for; // null before torch 2.10: a single thread

    int64_t values() const { return channels * length; } // of an instance
};

template <class Real> struct Job;

// Process blocks begin <= i < end of an instance. Here and in steps, `scratch` is the thread's own
// memory. A step or pass takes its arrays first, and returns if `scratch` only measures.
template <class Real>
using Pass = void (*)(const Job<Real> &job, int64_t instance, int64_t begin, int64_t end,
                      Arena<Real> &scratch);

// Process an instance between two passes, without reading its map. Functions that several steps
// call are not inlined: their copies would only take time to compile.
template <class Real>
using Step = void (*)(const Job<Real> &job, int64_t instance, Arena<Real> &scratch);

template <class Real> struct Passes {
    Pass<Real> moments, affine, sums, dx;
};

// A part of an instance, of one group, or in channels last of all groups.
struct Block {
    int64_t group, channel, channels, position, positions, part;
};

template <class Real> struct Job {
    const Map *map;
    const Passes<Real> *passes;
    const void *network;      // the network whose steps are run; null without one
    const void *x, *dy;       // (N, C, *)
    void *y;                  // the output: y or dx
    bool streams;             // whether stores of y bypass the cache
    int64_t to_next;          // values of an instance, if the next one is prefetched; else 0
    int64_t blocks;           // per instance
    int64_t blocks_per_group; // in channels last, all blocks
    int64_t block_channels, block_positions; // per block, at most
    int64_t parts;                           // blocks per channel longer than a block; else 1
    int64_t tape_size;
    Real *partials;      // each block's moments or sums
    Real *mean, *var;    // (N, G')
    Real *scale, *shift; // (N, C)
    // (N, C), of the forward pass, by which the backward pass knows the activation's input.
    Real *kept_scale, *kept_shift;
    Real *d_scale, *d_shift; // (N, C): sums of dy * (x - mean), of dy
    Real *slope, *offset;    // (N, G')
    Real *tape; // (N, tape_size): values from which the tensors' gradients are computed
};

enum : int64_t {
    BLOCK = 8192,  // values in a block of a contiguous map, which has whole channels if possible
    RUN = 32768,   // values that a pass in reverse takes in increasing order, see run_in_reverse
    SHORT = 512,   // A contiguous block of fewer values is short: see passes.hpp.
    GRAIN = 32768, // values of a thread's share, at least: fewer are not worth another thread
    // A batch of at most this many values is done instance by instance, never by blocks.
    SMALL_BATCH = 32768,
    AT_ONCE = 64, // channels or groups whose moments or sums are pooled at once
    AHEAD = 4096, // bytes between what is read and what is prefetched in channels last, at least
    // An instance of at most this many bytes is prefetched while the one before is written.
    FETCH = 131072,
    // Outputs of at least this many bytes bypass the cache, if each row has at least STREAM_ROW:
    // the ends of rows need ordinary stores.
    STREAM = 16777216,
    STREAM_ROW = 2048,
};

// ---- blocks

// Divide an instance into blocks.
template <class Real> void divide(Job<Real> &job)
{
    const Map &map = *job.map;
    int64_t channels = map.channels / map.groups;
    job.parts = 1;
    if (map.channels_last) {
        job.block_channels = map.channels;
        job.block_positions = minimum(map.length, maximum(64, minimum(512, 65536 / map.channels)));
        job.blocks_per_group = job.blocks = divide_up(map.length, job.block_positions);
        return;
    }
    if (map.length > BLOCK) {
        job.block_channels = 1;
        job.block_positions = BLOCK;
        job.parts = divide_up(map.length, BLOCK);
    } else {
        job.block_channels = minimum(channels, BLOCK / map.length);
        job.block_positions = map.length;
    }
    job.blocks_per_group = divide_up(channels, job.block_channels) * job.parts;
    job.blocks = map.groups * job.blocks_per_group;
}

// The part of an instance that is its i-th block.
template <class Real> inline Block block_of(const Job<Real> &job, int64_t i)
{
    const Map &map = *job.map;
    Block b = {};
    if (map.channels_last) {
        b.channels = map.channels;
        b.position = i * job.block_positions;
        b.positions = minimum(job.block_positions, map.length - b.position);
        return b;
    }
    if (job.blocks_per_group == 1) { // no integer divisions, which would be slow for small blocks
        b.group = i;
        b.channel = i * job.block_channels;
        b.channels = job.block_channels;
        b.positions = map.length;
        return b;
    }
    int64_t in_group = map.channels / map.groups;
    int64_t row = i % job.blocks_per_group / job.parts * job.block_channels;
    b.group = i / job.blocks_per_group;
    b.part = i % job.parts;
    b.channel = b.group * in_group + row;
    b.channels = minimum(job.block_channels, in_group - row);
    b.position = b.part * job.block_positions;
    b.positions = minimum(job.block_positions, map.length - b.position);
    return b;
}

// The number of values in a block of each of its groups.
template <class Real> double values_of(const Job<Real> &job, Block b)
{
    return double((job.map->channels_last ? 1 : b.channels) * b.positions);
}

// The offset of the block's first value in x.
template <class Real> inline int64_t start_of(const Job<Real> &job, int64_t instance, Block b)
{
    const Map &map = *job.map;
    int64_t start = instance * map.values();
    return start
        + (map.channels_last ? b.position * map.channels : b.channel * map.length + b.position);
}

// ---- moments and sums of instances, from their blocks' moments and sums

// The mean of values whose differences from `center` have this sum; `share` is 1 / their number.
inline double mean_of(double share, double center, double sum) { return center + sum * share; }

// Their variance, given the sum of their differences from a center, and the sum of the squared
// differences; NaN if the squares have overflowed.
inline double var_of(double share, double sum, double squares)
{
    double off = sum * share, var = squares * share - off * off;
    var = var < 0 ? 0 : var;
    return std::isinf(squares) ? double(NAN) : var;
}

// The number of values in `partials`, for moments or for sums.
template <class Real> int64_t count_moments(const Job<Real> &job)
{
    int64_t groups = job.map->channels_last ? job.map->groups : 1;
    return 2 * job.map->instances * job.blocks * groups;
}

template <class Real> int64_t count_sums(const Job<Real> &job)
{
    int64_t parts = job.map->channels_last ? job.blocks : job.parts;
    return 2 * job.map->instances * job.map->channels * parts;
}

// Compute the moments of the groups of one block, in channels last, from sums of its channels;
// overwrites `mean` and `squares`.
template <class Real>
void pool_channels(int64_t channels, int64_t groups, int64_t n, Real *__restrict mean,
                   const Real *__restrict sum, Real *__restrict squares, Real *__restrict to)
{
    int64_t size = channels / groups;
    double share = 1 / double(n);
    Real *__restrict means = size == 1 ? to : mean;
    Real *__restrict vars = size == 1 ? to + groups : squares;
    for (int64_t c = 0; c < channels; c++) {
        means[c] = Real(mean_of(share, mean[c], sum[c]));
        vars[c] = Real(var_of(share, sum[c], squares[c]));
    }
    if (size == 1)
        return;
    for (int64_t g = 0; g < groups; g++) {
        double total = 0, spread = 0;
        for (int64_t c = g * size; c < (g + 1) * size; c++)
            total += mean[c];
        total /= double(size);
        for (int64_t c = g * size; c < (g + 1) * size; c++) {
            double off = mean[c] - total;
            spread += squares[c] + off * off;
        }
        to[g] = Real(total);
        to[groups + g] = Real(spread / double(size));
    }
}

// Pool the moments of an instance's blocks into its groups' moments.
template <class Real> void pool_moments(const Job<Real> &job, int64_t instance)
{
    const Map &map = *job.map;
    int64_t groups = map.groups, blocks = job.blocks_per_group;
    bool last = map.channels_last;
    int64_t step = last ? 2 * groups : 2, to_next = last ? 1 : 2 * blocks,
            to_var = last ? groups : 1;
    Real *__restrict mean = job.mean + instance * groups,
                     *__restrict var = job.var + instance * groups;
    const Real *partials = job.partials + 2 * instance * job.blocks * (last ? groups : 1);
    if (blocks == 1) {
        for (int64_t g = 0; g < groups; g++)
            mean[g] = partials[g * to_next], var[g] = partials[g * to_next + to_var];
        return;
    }
    for (int64_t first = 0; first < groups; first += AT_ONCE) {
        const Real *at = partials + first * to_next;
        int64_t count = minimum(AT_ONCE, groups - first);
        double total = 0, pooled[AT_ONCE] = {}, spread[AT_ONCE] = {};
        for (int64_t i = 0; i < blocks; i++) {
            double n = values_of(job, block_of(job, i));
            total += n;
            for (int64_t g = 0; g < count; g++)
                pooled[g] += n * at[i * step + g * to_next];
        }
        for (int64_t g = 0; g < count; g++)
            pooled[g] /= total;
        for (int64_t i = 0; i < blocks; i++) {
            double n = values_of(job, block_of(job, i));
            for (int64_t g = 0; g < count; g++) {
                double off = at[i * step + g * to_next] - pooled[g];
                spread[g] += n * (at[i * step + g * to_next + to_var] + off * off);
            }
        }
        for (int64_t g = 0; g < count; g++)
            mean[first + g] = Real(pooled[g]), var[first + g] = Real(spread[g] / total);
    }
}

// Add up the sums of an instance's blocks: its d_scale and d_shift.
template <class Real> void pool_sums(const Job<Real> &job, int64_t instance)
{
    int64_t channels = job.map->channels;
    bool last = job.map->channels_last;
    int64_t parts = last ? job.blocks : job.parts;
    int64_t step = last ? 2 * channels : 2, to_next = last ? 1 : 2 * parts;
    int64_t to_sum = last ? channels : 1;
    Real *__restrict d_scale = job.d_scale + instance * channels;
    Real *__restrict d_shift = job.d_shift + instance * channels;
    for (int64_t first = 0; first < channels; first += AT_ONCE) {
        const Real *at = job.partials + 2 * instance * channels * parts + first * to_next;
        int64_t count = minimum(AT_ONCE, channels - first);
        double products[AT_ONCE] = {}, sum[AT_ONCE] = {};
        for (int64_t i = 0; i < parts; i++)
            for (int64_t c = 0; c < count; c++) {
                products[c] += at[i * step + c * to_next];
                sum[c] += at[i * step + c * to_next + to_sum];
            }
        for (int64_t c = 0; c < count; c++)
            d_scale[first + c] = Real(products[c]), d_shift[first + c] = Real(sum[c]);
    }
}

// Replace the gradients of mean, in `offset`, and of var, in `slope`, by the coefficients of
// dx = scale * dy + slope * (x - mean) + offset; see autograd.py.
template <class Real> void find_dx_coefficients(const Job<Real> &job, int64_t instance)
{
    const Map &map = *job.map;
    int64_t size = map.channels / map.groups;
    Real count = Real(size * map.length);
    const Real *scale = job.scale + instance * map.channels;
    const Real *d_shift = job.d_shift + instance * map.channels;
    Real *__restrict slope = job.slope + instance * map.groups;
    Real *__restrict offset = job.offset + instance * map.groups;
    for (int64_t g = 0; g < map.groups && size == 1; g++) { // without an inner loop: vectors
        slope[g] *= 2 / count;
        offset[g] = (offset[g] - scale[g] * d_shift[g]) / count;
    }
    for (int64_t g = 0; g < map.groups && size > 1; g++) {
        Real through_center = 0;
        for (int64_t c = g * size; c < (g + 1) * size; c++)
            through_center += scale[c] * d_shift[c];
        slope[g] *= 2 / count;
        offset[g] = (offset[g] - through_center) / count;
    }
}

// ---- threads

// Call `work` on parts of 0 <= i < end, of `grain` items or more, from several threads; return 0 or
// an error code.
template <class Work> int parallel(const Map &map, int64_t end, int64_t grain, const Work &work)
{
    if (map.threads < 2 || end <= grain || !map.parallel_for) {
        work(0, end);
        return 0;
    }
    auto range = [](int64_t first, int64_t last, void *context) {
        (*static_cast<const Work *>(context))(first, last);
    };
    return map.parallel_for(0, end, grain, range, const_cast<Work *>(&work));
}

// Do a pass over blocks of all instances from the last to the first, because the last ones may
// still be in the cache from the pass before. Within a run of neighbouring blocks, addresses
// increase, as the processor's prefetching needs.
template <class Real>
void run_in_reverse(const Job<Real> &job, Pass<Real> pass, Real *memory, int64_t begin, int64_t end)
{
    int64_t in_run = maximum(1, RUN * job.blocks / job.map->values());
    while (begin < end) {
        int64_t n = (end - 1) / job.blocks, first = n * job.blocks;
        int64_t from = maximum(maximum(begin, first), end - in_run);
        Arena<Real> scratch(memory);
        pass(job, n, from - first, end - first, scratch);
        end = from;
    }
}

// A pass over all blocks, a step for each instance, and another pass; each may be null.
template <class Real> struct Work {
    Pass<Real> first;
    Step<Real> step;
    Pass<Real> second;

    // The scratch memory of a thread, in reals.
    int64_t measure(const Job<Real> &job) const
    {
        Arena<Real> of_first, of_step, of_second;
        if (first)
            first(job, 0, 0, 0, of_first);
        if (step)
            step(job, 0, of_step);
        if (second)
            second(job, 0, 0, 0, of_second);
        return maximum(of_step.size(), maximum(of_first.size(), of_second.size()));
    }

    // Do everything for instances begin <= n < end, one instance after the other.
    void on_instances(const Job<Real> &job, Real *memory, int64_t begin, int64_t end) const
    {
        for (int64_t n = begin; n < end; n++) {
            if (first) {
                Arena<Real> scratch(memory);
                first(job, n, 0, job.blocks, scratch);
            }
            if (step) {
                Arena<Real> scratch(memory);
                step(job, n, scratch);
            }
            if (second)
                run_in_reverse(job, second, memory, n * job.blocks, (n + 1) * job.blocks);
        }
    }

    // Do the passes over blocks begin <= i < end, counted over all instances.
    void on_blocks(const Job<Real> &job, Real *memory, int64_t begin, int64_t end) const
    {
        if (second)
            run_in_reverse(job, second, memory, begin, end);
        for (int64_t at = begin, to; first && at < end; at = to) {
            int64_t n = at / job.blocks, start = n * job.blocks;
            to = minimum(end, start + job.blocks);
            Arena<Real> scratch(memory);
            first(job, n, at - start, to - start, scratch);
        }
    }
};

// Do some work in parallel, by instances or by blocks.
template <class Real> int run_parallel(const Job<Real> &job, const Work<Real> &work, bool by_blocks)
{
    const Map &map = *job.map;
    int64_t count = by_blocks ? map.instances * job.blocks : map.instances;
    int64_t grain = divide_up(GRAIN, by_blocks ? map.values() / job.blocks : map.values());
    int64_t size = work.measure(job);
    int failed = 0; // written by any thread
    int error = parallel(map, count, grain, [&](int64_t begin, int64_t end) {
        Memory<Real> memory(size);
        if (!memory.at) {
            __atomic_store_n(&failed, ENOMEM, __ATOMIC_RELAXED);
            return;
        }
        if (by_blocks)
            work.on_blocks(job, memory.at, begin, end);
        else
            work.on_instances(job, memory.at, begin, end);
        if (job.streams)
            finish_streams();
    });
    return error ? error : failed;
}

// Do a pass, a step and a pass. All three are done instance by instance if that gives threads equal
// shares: the second pass then finds x in the cache.
template <class Real>
int run(const Job<Real> &job, Pass<Real> first, Step<Real> step, Pass<Real> second)
{
    const Map &map = *job.map;
    int64_t n = map.instances, threads = maximum(1, map.threads);
    if (n % threads == 0 || n >= 4 * threads || n * map.values() <= SMALL_BATCH)
        return run_parallel(job, {first, step, second}, false);
    int error = first ? run_parallel(job, {first, nullptr, nullptr}, true) : 0;
    if (!error && step)
        error = run_parallel(job, {nullptr, step, nullptr}, false);
    if (error || !second)
        return error;
    Job<Real> apart = job;
    // A thread's blocks are taken in reverse, and the next instance is not its own.
    apart.to_next = 0;
    return run_parallel(apart, {nullptr, nullptr, second}, true);
}

} // namespace
