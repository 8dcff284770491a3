/* The work of one call: its blocks, its threads, and the arrays that its passes share. */

typedef struct {
    int64_t group, channel, channels, position, positions, part; /* the block's part of an instance */
} Block;

typedef struct Job Job;

/* Process blocks begin <= i < end of an instance; `scratch` is the thread's own memory. */
typedef void (*Pass)(const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end);

/* Process an instance between two passes, without reading its map. */
typedef void (*Step)(const Job *job, real *scratch, int64_t instance);

typedef struct {
    Pass moments, affine, sums, dx;
} Passes;

struct Job {
    const Map *map;
    const Network *network;
    const Passes *passes;
    const void *x, *dy; /* (N, C, *) */
    void *y;            /* the output: y or dx */
    int streams;        /* whether stores of y bypass the cache */
    int64_t to_next;    /* values of an instance, if the next one is prefetched; else 0 */
    int64_t blocks;                          /* per instance */
    int64_t blocks_per_group;                /* in channels last, all blocks */
    int64_t block_channels, block_positions; /* per block, at most */
    int64_t parts;                           /* blocks per channel longer than a block; else 1 */
    int64_t scratch_size, tape_size;
    real *partials;          /* each block's moments or sums */
    real *mean, *var;        /* (N, G') */
    real *scale, *shift;     /* (N, C) */
    real *d_scale, *d_shift; /* (N, C): sums of dy * (x - mean), of dy */
    real *slope, *offset;    /* (N, G') */
    real *tape;              /* (N, tape_size): values from which the tensors' gradients are computed */
    /* BN's moments (C): the running ones, or the batch's. d_batch (2, C): gradients of the batch's. */
    const real *batch_mean, *batch_var;
    int uses_batch_moments;
    real *d_batch;
};

enum {
    BLOCK = 8192,   /* values in a block of a contiguous map, which has whole channels if possible */
    RUN = 32768,    /* values that a pass in reverse takes in increasing order, see run_in_reverse */
    SHORT = 512,    /* A contiguous block of fewer values is short: see passes.h. */
    SUMMED = 64 * LANES, /* values that are summed in reals, 16 in each lane of four vectors: the same
                            precision with any registers. Their sums are added in doubles. */
    GRAIN = 32768,  /* values that make another thread worthwhile */
    AT_ONCE = 64,   /* channels or groups whose moments or sums are pooled at once */
    AHEAD = 4096,   /* bytes between what is read and what is prefetched in channels last, at least */
    FETCH = 1 << 17,  /* an instance of at most so many bytes is prefetched while the one before is written */
    STREAM = 1 << 24,  /* Stores of outputs of at least so many bytes bypass the cache, */
    STREAM_ROW = 2048, /* if a row has at least so many: the ends of rows need ordinary stores. */
};

static int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- blocks */

/* Divide an instance into blocks. */
static void divide(Job *job)
{
    const Map *map = job->map;
    int64_t channels = map->channels / map->groups;
    job->parts = 1;
    if (map->channels_last) {
        job->block_channels = map->channels;
        job->block_positions = minimum(map->length, maximum(64, minimum(512, 65536 / map->channels)));
        job->blocks_per_group = job->blocks = divide_up(map->length, job->block_positions);
        return;
    }
    if (map->length > BLOCK) {
        job->block_channels = 1;
        job->block_positions = BLOCK;
        job->parts = divide_up(map->length, BLOCK);
    } else {
        job->block_channels = minimum(channels, BLOCK / map->length);
        job->block_positions = map->length;
    }
    job->blocks_per_group = divide_up(channels, job->block_channels) * job->parts;
    job->blocks = map->groups * job->blocks_per_group;
}

/* The part of an instance that is its i-th block. */
static inline Block block_of(const Job *job, int64_t i)
{
    const Map *map = job->map;
    if (map->channels_last) {
        int64_t first = i * job->block_positions;
        return (Block){.channels = map->channels,
                       .position = first,
                       .positions = minimum(job->block_positions, map->length - first)};
    }
    if (job->blocks_per_group == 1) /* no integer divisions, which would be slow for small blocks */
        return (Block){.group = i,
                       .channel = i * job->block_channels,
                       .channels = job->block_channels,
                       .positions = map->length};
    int64_t in_group = map->channels / map->groups, group = i / job->blocks_per_group;
    int64_t part = i % job->parts, row = i % job->blocks_per_group / job->parts * job->block_channels;
    int64_t position = part * job->block_positions;
    return (Block){.group = group,
                   .channel = group * in_group + row,
                   .channels = minimum(job->block_channels, in_group - row),
                   .position = position,
                   .positions = minimum(job->block_positions, map->length - position),
                   .part = part};
}

/* The number of values in a block of each of its groups. */
static double values_of(const Job *job, Block b)
{
    return (double)((job->map->channels_last ? 1 : b.channels) * b.positions);
}

/* The offset of the block's first value in x. */
static int64_t start_of(const Job *job, int64_t instance, Block b)
{
    const Map *map = job->map;
    int64_t start = instance * map->channels * map->length;
    return start + (map->channels_last ? b.position * map->channels
                                       : b.channel * map->length + b.position);
}

/* ---- moments and sums of instances, from their blocks' moments and sums */

/* The mean of n values, whose differences from `center` have this sum. */
static double mean_of(int64_t n, double center, double sum) { return center + sum / (double)n; }

/* The variance of n values, given the sum of their differences from a center, and the sum of the squared
   differences; NaN if the squares have overflowed. */
static double var_of(int64_t n, double sum, double squares)
{
    double off = sum / (double)n, var = squares / (double)n - off * off;
    var = var < 0 ? 0 : var;
    return isinf(squares) ? (double)NAN : var;
}

/* Compute the moments of the groups of one block, in channels last, from sums of its channels; overwrites
   `mean` and `squares`. */
static void pool_channels(int64_t channels, int64_t groups, int64_t n, real *restrict mean,
                          const real *restrict sum, real *restrict squares, real *restrict to)
{
    int64_t size = channels / groups;
    real *restrict means = size == 1 ? to : mean, *restrict vars = size == 1 ? to + groups : squares;
    for (int64_t c = 0; c < channels; c++) {
        means[c] = mean_of(n, mean[c], sum[c]);
        vars[c] = var_of(n, sum[c], squares[c]);
    }
    for (int64_t g = 0; size > 1 && g < groups; g++) {
        double total = 0, spread = 0;
        for (int64_t c = g * size; c < (g + 1) * size; c++)
            total += mean[c];
        total /= size;
        for (int64_t c = g * size; c < (g + 1) * size; c++) {
            double off = mean[c] - total;
            spread += squares[c] + off * off;
        }
        to[g] = total;
        to[groups + g] = spread / size;
    }
}

/* Pool the moments of an instance's blocks into its groups' moments. */
static void pool_moments(const Job *job, real *scratch, int64_t instance)
{
    (void)scratch;
    const Map *map = job->map;
    int64_t groups = map->groups, blocks = job->blocks_per_group, last = map->channels_last;
    int64_t step = last ? 2 * groups : 2, to_next = last ? 1 : 2 * blocks, to_var = last ? groups : 1;
    real *restrict mean = job->mean + instance * groups, *restrict var = job->var + instance * groups;
    const real *partials = job->partials + 2 * instance * job->blocks * (last ? groups : 1);
    for (int64_t g = 0; blocks == 1 && g < groups; g++)
        mean[g] = partials[g * to_next], var[g] = partials[g * to_next + to_var];
    for (int64_t first = 0; blocks > 1 && first < groups; first += AT_ONCE) {
        const real *at = partials + first * to_next;
        int64_t count = minimum(AT_ONCE, groups - first);
        double total = 0, pooled[AT_ONCE] = {0}, spread[AT_ONCE] = {0};
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
            mean[first + g] = pooled[g], var[first + g] = spread[g] / total;
    }
}

/* Add up the sums of an instance's blocks: its d_scale and d_shift. */
static void pool_sums(const Job *job, real *scratch, int64_t instance)
{
    (void)scratch;
    int64_t channels = job->map->channels, last = job->map->channels_last;
    int64_t parts = last ? job->blocks : job->parts;
    int64_t step = last ? 2 * channels : 2, to_next = last ? 1 : 2 * parts, to_sum = last ? channels : 1;
    real *restrict d_scale = job->d_scale + instance * channels;
    real *restrict d_shift = job->d_shift + instance * channels;
    for (int64_t first = 0; first < channels; first += AT_ONCE) {
        const real *at = job->partials + 2 * instance * channels * parts + first * to_next;
        int64_t count = minimum(AT_ONCE, channels - first);
        double products[AT_ONCE] = {0}, sum[AT_ONCE] = {0};
        for (int64_t i = 0; i < parts; i++)
            for (int64_t c = 0; c < count; c++) {
                products[c] += at[i * step + c * to_next];
                sum[c] += at[i * step + c * to_next + to_sum];
            }
        for (int64_t c = 0; c < count; c++)
            d_scale[first + c] = products[c], d_shift[first + c] = sum[c];
    }
}

/* Replace the gradients of mean, in `offset`, and of var, in `slope`, by the coefficients of
   dx = scale * dy + slope * (x - mean) + offset; see autograd.py. */
static void find_dx_coefficients(const Job *job, int64_t instance)
{
    const Map *map = job->map;
    int64_t size = map->channels / map->groups;
    real count = (real)(size * map->length);
    const real *scale = job->scale + instance * map->channels;
    const real *d_shift = job->d_shift + instance * map->channels;
    real *slope = job->slope + instance * map->groups, *offset = job->offset + instance * map->groups;
    for (int64_t g = 0; g < map->groups; g++) {
        real through_center = 0;
        for (int64_t c = g * size; c < (g + 1) * size; c++)
            through_center += scale[c] * d_shift[c];
        slope[g] *= 2 / count;
        offset[g] = (offset[g] - through_center) / count;
    }
}

/* Allocate reals at the start of a cache line, so that vectors of channels do not cross lines. */
static void *allocate(int64_t count)
{
    return aligned_alloc(64, divide_up(maximum(1, count) * sizeof(real), 64) * 64);
}

/* ---- threads */

typedef struct {
    const Job *job;
    Pass first, second;
    Step step;
    _Atomic int error;
} Run;

/* Call `range` on parts of 0 <= i < end, of `grain` items or more, from several threads; return 0 or an
   error code. */
static int parallel(const Map *map, int64_t end, int64_t grain, Range range, void *context)
{
    if (map->threads > 1 && end > grain && map->parallel_for)
        return map->parallel_for(0, end, grain, range, context);
    range(0, end, context);
    return 0;
}

/* Wait for the stores that bypass the cache. */
static void finish_stores(const Job *job)
{
#if defined(__x86_64__)
    if (job->streams)
        _mm_sfence();
#else
    (void)job;
#endif
}

/* Do a pass over blocks of all instances from the last to the first, because the last ones may still be
   in the cache from the pass before. Within a run of neighbouring blocks, addresses increase, as the
   processor's prefetching needs. */
static void run_in_reverse(const Job *job, Pass pass, real *scratch, int64_t begin, int64_t end)
{
    int64_t values = job->map->channels * job->map->length;
    int64_t in_run = maximum(1, RUN * job->blocks / values);
    while (begin < end) {
        int64_t n = (end - 1) / job->blocks, first = n * job->blocks;
        int64_t from = maximum(maximum(begin, first), end - in_run);
        pass(job, scratch, n, from - first, end - first);
        end = from;
    }
}

/* Do all passes of instances begin <= n < end, one instance after the other. */
static void run_instances(int64_t begin, int64_t end, void *context)
{
    Run *run = context;
    const Job *job = run->job;
    real *scratch = allocate(job->scratch_size);
    if (scratch == NULL) {
        run->error = ENOMEM;
        return;
    }
    for (int64_t n = begin; n < end; n++) {
        if (run->first)
            run->first(job, scratch, n, 0, job->blocks);
        if (run->step)
            run->step(job, scratch, n);
        if (run->second)
            run_in_reverse(job, run->second, scratch, n * job->blocks, (n + 1) * job->blocks);
    }
    finish_stores(job);
    free(scratch);
}

/* Do a pass over blocks begin <= i < end, counted over all instances. */
static void run_blocks(int64_t begin, int64_t end, void *context)
{
    Run *run = context;
    const Job *job = run->job;
    real *scratch = allocate(job->scratch_size);
    if (scratch == NULL) {
        run->error = ENOMEM;
        return;
    }
    if (run->second)
        run_in_reverse(job, run->second, scratch, begin, end);
    for (int64_t at = begin, to; run->first && at < end; at = to) {
        int64_t n = at / job->blocks, first = n * job->blocks;
        to = minimum(end, first + job->blocks);
        run->first(job, scratch, n, at - first, to - first);
    }
    finish_stores(job);
    free(scratch);
}

/* Do a pass over all blocks, a step for each instance, and another pass; each may be NULL. All three are
   done instance by instance if that gives threads equal shares: the second pass then finds x in the
   cache. */
static int run(const Job *job, Pass first, Step step, Pass second)
{
    const Map *map = job->map;
    int64_t n = map->instances, size = map->channels * map->length, threads = maximum(1, map->threads);
    int64_t grain = divide_up(GRAIN, size);
    Run whole = {job, first, second, step, 0};
    int error;
    if (n % threads == 0 || n >= 4 * threads || n * size <= GRAIN) {
        error = parallel(map, n, grain, run_instances, &whole);
        return error ? error : whole.error;
    }
    Job apart = *job;
    apart.to_next = 0; /* A thread's blocks are taken in reverse, and the next instance is not its own. */
    Run parts[] = {{job, first, NULL, NULL, 0}, {job, NULL, NULL, step, 0}, {&apart, NULL, second, NULL, 0}};
    int64_t blocks = n * job->blocks, block_grain = divide_up(GRAIN, size / job->blocks);
    for (int i = 0; i < 3; i++) {
        if (parts[i].first == NULL && parts[i].second == NULL && parts[i].step == NULL)
            continue;
        error = i == 1 ? parallel(map, n, grain, run_instances, &parts[i])
                       : parallel(map, blocks, block_grain, run_blocks, &parts[i]);
        if (error || parts[i].error)
            return error ? error : parts[i].error;
    }
    return 0;
}
