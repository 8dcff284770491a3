/* The four passes over maps of T, by blocks: moments, affine map, sums, dx.

   A block is a part of an instance, the same for any batch and any number of threads. In a contiguous
   map it lies within one group: consecutive whole channels, or a part of a long channel. In channels
   last it is consecutive positions of all channels.

   Variances are computed about a nearby value: the mean of the block's first sixteenth. The square of
   its distance to the mean is at most 15 times the block's variance, so that the difference
   E[(x - c)^2] - (mean - c)^2 loses at most four bits, however large the mean is. For a short block of a
   contiguous map the mean of four values is tried; if it is not as near, the mean of all is used. */

/* ---- runs: consecutive values of one channel or group */

/* The sum of x. */
static real FUNCTION(sum_run)(const T *x, int64_t n)
{
    Vector a = {0}, b = {0}, c = {0}, d = {0}, u, v;
    int64_t i = 0;
    for (; i + 2 * TWO <= n; i += 2 * TWO) {
        FUNCTION(load_two)(x + i, &u, &v);
        a += u, b += v;
        FUNCTION(load_two)(x + i + TWO, &u, &v);
        c += u, d += v;
    }
    for (; i + TWO <= n; i += TWO) {
        FUNCTION(load_two)(x + i, &u, &v);
        a += u, b += v;
    }
    for (; i + LANES <= n; i += LANES)
        a += FUNCTION(load)(x + i);
    if (i + FEW < n && n >= LANES) {
        b += last_lanes(FUNCTION(load)(x + n - LANES), n - i);
        i = n;
    }
    real sum = total((a + b) + (c + d));
    for (; i < n; i++)
        sum += FUNCTION(load_one)(x + i);
    return sum;
}

/* Sums of x - center and of its square. */
static inline void FUNCTION(center_run)(const T *x, int64_t n, real center, real *sum, real *squares)
{
    Vector s[4] = {{0}}, q[4] = {{0}};
    int64_t i = 0;
    for (; i + 2 * TWO <= n; i += 2 * TWO)
        for (int j = 0; j < 4; j += 2) {
            Vector a, b;
            FUNCTION(load_two)(x + i + j * LANES, &a, &b);
            a -= center, b -= center;
            s[j] += a, s[j + 1] += b;
            q[j] += a * a, q[j + 1] += b * b;
        }
    for (; i + TWO <= n; i += TWO) {
        Vector a, b;
        FUNCTION(load_two)(x + i, &a, &b);
        a -= center, b -= center;
        s[0] += a, s[1] += b;
        q[0] += a * a, q[1] += b * b;
    }
    for (; i + LANES <= n; i += LANES) {
        Vector off = FUNCTION(load)(x + i) - center;
        s[0] += off;
        q[0] += off * off;
    }
    if (i + FEW < n && n >= LANES) {
        Vector off = last_lanes(FUNCTION(load)(x + n - LANES) - center, n - i);
        s[1] += off;
        q[1] += off * off;
        i = n;
    }
    totals((s[0] + s[1]) + (s[2] + s[3]), (q[0] + q[1]) + (q[2] + q[3]), sum, squares);
    for (; i < n; i++) {
        real off = FUNCTION(load_one)(x + i) - center;
        *sum += off;
        *squares += off * off;
    }
}

/* Sums of dy * (x - center) and of dy. */
static void FUNCTION(sum_products)(
    const T *dy, const T *x, int64_t n, real center, real *products, real *sum)
{
    Vector p[4] = {{0}}, s[4] = {{0}};
    int64_t i = 0;
    for (; i + 2 * TWO <= n; i += 2 * TWO)
        for (int j = 0; j < 4; j += 2) {
            Vector a, b, c, d;
            FUNCTION(load_two)(dy + i + j * LANES, &a, &b);
            FUNCTION(load_two)(x + i + j * LANES, &c, &d);
            p[j] += a * (c - center), p[j + 1] += b * (d - center);
            s[j] += a, s[j + 1] += b;
        }
    for (; i + TWO <= n; i += TWO) {
        Vector a, b, c, d;
        FUNCTION(load_two)(dy + i, &a, &b);
        FUNCTION(load_two)(x + i, &c, &d);
        p[0] += a * (c - center), p[1] += b * (d - center);
        s[0] += a, s[1] += b;
    }
    for (; i + LANES <= n; i += LANES) {
        Vector d = FUNCTION(load)(dy + i);
        p[0] += d * (FUNCTION(load)(x + i) - center);
        s[0] += d;
    }
    if (i + FEW < n && n >= LANES) {
        Vector d = last_lanes(FUNCTION(load)(dy + n - LANES), n - i);
        p[1] += d * (FUNCTION(load)(x + n - LANES) - center);
        s[1] += d;
        i = n;
    }
    totals((p[0] + p[1]) + (p[2] + p[3]), (s[0] + s[1]) + (s[2] + s[3]), products, sum);
    for (; i < n; i++) {
        real d = FUNCTION(load_one)(dy + i);
        *products += d * (FUNCTION(load_one)(x + i) - center);
        *sum += d;
    }
}

/* The number of values before the first address that is a multiple of a register's size; at most n. */
static int64_t FUNCTION(unaligned)(const T *at, int64_t n)
{
    int64_t in_register = REGISTER / sizeof(T), past = (intptr_t)at / (int64_t)sizeof(T) % in_register;
    return minimum(past ? in_register - past : 0, n);
}

/* Compute y[i] for i < n. LOAD_TWO loads two vectors, and A and B are their results; ONE(load) is the
   formula for one vector or one value, by the function that loads it. Stores bypass the cache if
   `streams`. */
#define FOR_RUN(y, n, streams, LOAD_TWO, A, B, ONE) \
    do { \
        int64_t i = 0; \
        if (streams) { \
            for (int64_t first = FUNCTION(unaligned)(y, n); i < first; i++) \
                FUNCTION(store_one)(y + i, ONE(FUNCTION(load_one))); \
            for (; i + TWO <= n; i += TWO) { \
                LOAD_TWO \
                FUNCTION(stream_two)(y + i, A, B); \
            } \
        } \
        for (; i + TWO <= n; i += TWO) { \
            LOAD_TWO \
            FUNCTION(store_two)(y + i, A, B); \
        } \
        if (i + FEW < n && n >= TWO) { /* overlaps values already stored: same bits */ \
            i = n - TWO; \
            LOAD_TWO \
            FUNCTION(store_two)(y + i, A, B); \
            i = n; \
        } \
        for (; i + LANES <= n; i += LANES) \
            FUNCTION(store)(y + i, ONE(FUNCTION(load))); \
        for (; i < n; i++) \
            FUNCTION(store_one)(y + i, ONE(FUNCTION(load_one))); \
    } while (0)

static void FUNCTION(affine_run)(
    T *y, const T *x, int64_t n, real center, real scale, real shift, int streams)
{
    Vector a, b;
    center = canonical_nan(center), scale = canonical_nan(scale), shift = canonical_nan(shift);
#define AFFINE(x) (scale * ((x) - center) + shift)
#define ONE(load) AFFINE(load(x + i))
    FOR_RUN(y, n, streams, FUNCTION(load_two)(x + i, &a, &b);, AFFINE(a), AFFINE(b), ONE);
#undef ONE
#undef AFFINE
}

static void FUNCTION(dx_run)(T *dx, const T *dy, const T *x, int64_t n, real center, real scale,
                             real slope, real offset, int streams)
{
    Vector a, b, c, d;
    center = canonical_nan(center), scale = canonical_nan(scale);
    slope = canonical_nan(slope), offset = canonical_nan(offset);
#define DX(dy, x) (scale * (dy) + (slope * ((x) - center) + offset))
#define ONE(load) DX(load(dy + i), load(x + i))
    FOR_RUN(dx, n, streams,
            FUNCTION(load_two)(dy + i, &a, &b);
            FUNCTION(load_two)(x + i, &c, &d);, DX(a, c), DX(b, d), ONE);
#undef ONE
#undef DX
}

/* ---- blocks; see job.h for Job and Block */

/* Compute the mean and the variance of n values. */
static inline void FUNCTION(moments_of_run)(const T *x, int64_t n, real *mean, real *var)
{
    real center, part_sum, part_squares;
    if (n < SHORT) { /* in reals: double divisions would take longer than reading the values */
        /* Pairs, so that the mean of equal values is that value. */
        real pair = FUNCTION(load_one)(x) + FUNCTION(load_one)(x + n / 4);
        real other = FUNCTION(load_one)(x + n / 2) + FUNCTION(load_one)(x + 3 * n / 4);
        real near = (pair + other) / 4, share = 1 / (real)n;
        FUNCTION(center_run)(x, n, near, &part_sum, &part_squares);
        real off = part_sum * share;
        *mean = center = near + off;
        *var = part_squares * share - off * off;
        if (off * off <= 15 * *var && *var < (real)INFINITY)
            return;
    } else
        center = FUNCTION(sum_run)(x, n / 16) / (real)(n / 16);
    double sum = 0, squares = 0;
    for (int64_t at = 0; at < n; at += SUMMED) {
        FUNCTION(center_run)(x + at, minimum(SUMMED, n - at), center, &part_sum, &part_squares);
        sum += part_sum, squares += part_squares;
    }
    *mean = mean_of(n, center, sum);
    *var = var_of(n, sum, squares);
}

static void FUNCTION(moments_of_rows)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        const T *x = (const T *)job->x + start_of(job, instance, b);
        real *to = job->partials + 2 * (instance * job->blocks + i);
        FUNCTION(moments_of_run)(x, b.channels * b.positions, to, to + 1);
    }
}

/* Prefetch n values of the next instance, at the same offset in it as `at` is in this instance. */
static inline void FUNCTION(fetch_next)(const Job *job, const void *from, int64_t at, int64_t n)
{
    const T *next = (const T *)from + at + job->to_next;
    for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(T))
        __builtin_prefetch(next + i, 0, 2);
}

static void FUNCTION(affine_of_rows)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    (void)scratch;
    const real *mean = job->mean + instance * job->map->groups;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b), c = instance * job->map->channels + b.channel;
        if (job->to_next)
            FUNCTION(fetch_next)(job, job->x, at, b.channels * b.positions);
        for (int64_t k = 0; k < b.channels; k++, at += b.positions)
            FUNCTION(affine_run)((T *)job->y + at, (const T *)job->x + at, b.positions,
                                 mean[b.group], job->scale[c + k], job->shift[c + k], job->streams);
    }
}

static void FUNCTION(sums_of_rows)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    (void)scratch;
    const real *mean = job->mean + instance * job->map->groups;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b);
        real *partial = job->partials
            + 2 * ((instance * job->map->channels + b.channel) * job->parts + b.part);
        for (int64_t k = 0; k < b.channels; k++, at += b.positions, partial += 2)
            FUNCTION(sum_products)((const T *)job->dy + at, (const T *)job->x + at, b.positions,
                                   mean[b.group], partial, partial + 1);
    }
}

static void FUNCTION(dx_of_rows)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    (void)scratch;
    int64_t groups = instance * job->map->groups;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b), c = instance * job->map->channels + b.channel;
        int64_t g = groups + b.group;
        if (job->to_next) {
            FUNCTION(fetch_next)(job, job->x, at, b.channels * b.positions);
            FUNCTION(fetch_next)(job, job->dy, at, b.channels * b.positions);
        }
        for (int64_t k = 0; k < b.channels; k++, at += b.positions)
            FUNCTION(dx_run)((T *)job->y + at, (const T *)job->dy + at, (const T *)job->x + at,
                             b.positions, job->mean[g], job->scale[c + k], job->slope[g],
                             job->offset[g], job->streams);
    }
}

/* ---- blocks of positions, in channels last: four positions at a time */

/* Run VECTORS for each vector of channels that begins with c, and ONE for each remaining channel c. */
#define FOR_CHANNELS(C, VECTORS, ONE) \
    do { \
        int64_t c = 0; \
        for (; c + LANES <= C; c += LANES) { \
            VECTORS \
        } \
        for (; c < C; c++) { \
            ONE \
        } \
    } while (0)

/* Add the values of each channel over n positions to `sum`. */
static void FUNCTION(add_positions)(const T *x, int64_t n, int64_t C, real *sum)
{
    for (int64_t p = 0; p < n; p++, x += C)
        FOR_CHANNELS(
            C, put(sum + c, get(sum + c) + FUNCTION(load)(x + c));
            , sum[c] += FUNCTION(load_one)(x + c););
}

/* Prefetch as many values as vectors of channel c at four positions have, from behind these positions:
   the processor's own prefetching does not follow so many rows, above all in two maps. */
static inline void FUNCTION(fetch_ahead)(const T *x, int64_t C, int64_t c)
{
    for (int64_t i = 0; i < 4 * LANES * (int64_t)sizeof(T); i += 64)
        __builtin_prefetch((const char *)(x + 4 * (C + c)) + AHEAD + i);
}

/* Add x - center and its square over n positions to `sum` and `squares`. */
static void FUNCTION(center_positions)(
    const T *x, int64_t n, int64_t C, const real *center, real *sum, real *squares)
{
    int64_t rows;
    for (int64_t p = 0; p < n; p += rows, x += rows * C) {
        rows = n - p >= 4 ? 4 : 1;
        if (rows == 4)
            FOR_CHANNELS(
                C, Vector middle = get(center + c); FUNCTION(fetch_ahead)(x, C, c);
                Vector o0 = FUNCTION(load)(x + c) - middle;
                Vector o1 = FUNCTION(load)(x + C + c) - middle;
                Vector o2 = FUNCTION(load)(x + 2 * C + c) - middle;
                Vector o3 = FUNCTION(load)(x + 3 * C + c) - middle;
                put(sum + c, get(sum + c) + ((o0 + o1) + (o2 + o3)));
                put(squares + c, get(squares + c)
                                               + ((o0 * o0 + o1 * o1) + (o2 * o2 + o3 * o3)));
                , for (int j = 0; j < 4; j++) {
                    real off = FUNCTION(load_one)(x + j * C + c) - center[c];
                    sum[c] += off;
                    squares[c] += off * off;
                });
        else
            FOR_CHANNELS(
                C, Vector off = FUNCTION(load)(x + c) - get(center + c);
                put(sum + c, get(sum + c) + off);
                put(squares + c, get(squares + c) + off * off);
                , real off = FUNCTION(load_one)(x + c) - center[c];
                sum[c] += off; squares[c] += off * off;);
    }
}

/* Add dy * (x - center) and dy over n positions to `products` and `sum`. */
static void FUNCTION(sum_positions)(
    const T *dy, const T *x, int64_t n, int64_t C, const real *center, real *products, real *sum)
{
    int64_t rows;
    for (int64_t p = 0; p < n; p += rows, x += rows * C, dy += rows * C) {
        rows = n - p >= 4 ? 4 : 1;
        if (rows == 4)
            FOR_CHANNELS(
                C, Vector middle = get(center + c); FUNCTION(fetch_ahead)(x, C, c);
                FUNCTION(fetch_ahead)(dy, C, c);
                Vector d0 = FUNCTION(load)(dy + c); Vector d1 = FUNCTION(load)(dy + C + c);
                Vector d2 = FUNCTION(load)(dy + 2 * C + c);
                Vector d3 = FUNCTION(load)(dy + 3 * C + c);
                put(sum + c, get(sum + c) + ((d0 + d1) + (d2 + d3)));
                d0 *= FUNCTION(load)(x + c) - middle;
                d1 *= FUNCTION(load)(x + C + c) - middle;
                d2 *= FUNCTION(load)(x + 2 * C + c) - middle;
                d3 *= FUNCTION(load)(x + 3 * C + c) - middle;
                put(products + c, get(products + c) + ((d0 + d1) + (d2 + d3)));
                , for (int j = 0; j < 4; j++) {
                    real d = FUNCTION(load_one)(dy + j * C + c);
                    sum[c] += d;
                    products[c] += d * (FUNCTION(load_one)(x + j * C + c) - center[c]);
                });
        else
            FOR_CHANNELS(
                C, Vector d = FUNCTION(load)(dy + c);
                put(sum + c, get(sum + c) + d);
                put(products + c,
                              get(products + c)
                                  + d * (FUNCTION(load)(x + c) - get(center + c)));
                , real d = FUNCTION(load_one)(dy + c); sum[c] += d;
                products[c] += d * (FUNCTION(load_one)(x + c) - center[c]););
    }
}

/* Store FORMULA(get, load) in y for each channel c of each of n positions; `get` reads an array of
   channels, `load` a map. */
#define FOR_POSITIONS(y, n, C, streams, FORMULA) \
    for (int64_t p = 0; p < n; p++, at += C) { \
        int64_t c = 0; \
        if (streams && FUNCTION(unaligned)(y + at, LANES) == 0) \
            for (; c + LANES <= C; c += LANES) \
                FUNCTION(stream_one)(y + at + c, FORMULA(get, FUNCTION(load))); \
        for (; c + LANES <= C; c += LANES) \
            FUNCTION(store)(y + at + c, FORMULA(get, FUNCTION(load))); \
        for (; c < C; c++) \
            FUNCTION(store_one)(y + at + c, FORMULA(*, FUNCTION(load_one))); \
    }

static void FUNCTION(affine_positions)(T *y, const T *x, int64_t n, int64_t C, const real *center,
                                       const real *scale, const real *shift, int streams)
{
    int64_t at = 0;
#define AFFINE(get, load) (get(scale + c) * (load(x + at + c) - get(center + c)) + get(shift + c))
    FOR_POSITIONS(y, n, C, streams, AFFINE)
#undef AFFINE
}

static void FUNCTION(dx_positions)(T *dx, const T *dy, const T *x, int64_t n, int64_t C,
                                   const real *center, const real *scale, const real *slope,
                                   const real *offset, int streams)
{
    int64_t at = 0;
#define DX(get, load) \
    (get(scale + c) * load(dy + at + c) \
     + (get(slope + c) * (load(x + at + c) - get(center + c)) + get(offset + c)))
    FOR_POSITIONS(dx, n, C, streams, DX)
#undef DX
}

static void FUNCTION(moments_of_positions)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    int64_t C = job->map->channels, G = job->map->groups;
    real *center = scratch, *sum = center + C, *squares = sum + C;
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        const T *x = (const T *)job->x + start_of(job, instance, b);
        int64_t first = (b.positions + 15) / 16;
        memset(center, 0, 3 * C * sizeof(real));
        FUNCTION(add_positions)(x, first, C, center);
        for (int64_t c = 0; c < C; c++)
            center[c] /= (real)first;
        FUNCTION(center_positions)(x, b.positions, C, center, sum, squares);
        pool_channels(C, G, b.positions, center, sum, squares,
                      job->partials + 2 * G * (instance * job->blocks + i));
    }
}

static void FUNCTION(affine_of_positions)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    int64_t C = job->map->channels, G = job->map->groups;
    int64_t first = start_of(job, instance, block_of(job, begin));
    int64_t positions = minimum(end * job->block_positions, job->map->length) - begin * job->block_positions;
    real *center = scratch, *scale = center + C, *shift = scale + C;
    expand(job->mean + instance * G, G, C, center);
    expand(job->scale + instance * C, C, C, scale);
    expand(job->shift + instance * C, C, C, shift);
    canonical_nans(scratch, 3 * C);
    FUNCTION(affine_positions)((T *)job->y + first, (const T *)job->x + first, positions, C, center,
                               scale, shift, job->streams);
}

static void FUNCTION(sums_of_positions)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    int64_t C = job->map->channels, G = job->map->groups;
    expand(job->mean + instance * G, G, C, scratch);
    for (int64_t i = begin; i < end; i++) {
        Block b = block_of(job, i);
        int64_t at = start_of(job, instance, b);
        real *partial = job->partials + 2 * C * (instance * job->blocks + i);
        memset(partial, 0, 2 * C * sizeof(real));
        FUNCTION(sum_positions)((const T *)job->dy + at, (const T *)job->x + at, b.positions, C, scratch,
                                partial, partial + C);
    }
}

static void FUNCTION(dx_of_positions)(
    const Job *job, real *scratch, int64_t instance, int64_t begin, int64_t end)
{
    int64_t C = job->map->channels, G = job->map->groups;
    int64_t first = start_of(job, instance, block_of(job, begin));
    int64_t positions = minimum(end * job->block_positions, job->map->length) - begin * job->block_positions;
    real *center = scratch, *scale = center + C, *slope = scale + C, *offset = slope + C;
    expand(job->mean + instance * G, G, C, center);
    expand(job->scale + instance * C, C, C, scale);
    expand(job->slope + instance * G, G, C, slope);
    expand(job->offset + instance * G, G, C, offset);
    canonical_nans(scratch, 4 * C);
    FUNCTION(dx_positions)((T *)job->y + first, (const T *)job->dy + first,
                           (const T *)job->x + first, positions, C, center, scale, slope, offset,
                           job->streams);
}
