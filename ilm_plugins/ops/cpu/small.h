/* Vectors of reals with as many lanes as the registers, and operations on short arrays. */

#if defined(REGISTER) /* set by a test of another size than the processor's */
#elif defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif

typedef real Vector __attribute__((vector_size(REGISTER)));
typedef real Quarter __attribute__((vector_size(16)));
typedef Bool Mask __attribute__((vector_size(REGISTER)));
#define LANES ((int64_t)(REGISTER / sizeof(real)))
#define TWO (2 * LANES)
#define FEW 2 /* For so few remaining values, a scalar loop is faster than one more vector. */

#ifndef DOUBLE
typedef uint16_t Half __attribute__((vector_size(REGISTER / 2)));
typedef uint32_t Bits __attribute__((vector_size(REGISTER)));
#endif

/* Before a loop whose arrays do not overlap: of so many arrays the compiler would not check it. */
#if defined(__GNUC__) && !defined(__clang__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

static inline Vector get(const real *at)
{
    Vector values;
    memcpy(&values, at, sizeof values);
    return values;
}

static inline void put(real *at, Vector values) { memcpy(at, &values, sizeof values); }

/* Store without filling the cache, at an address that is a multiple of the register's size. */
static inline void stream(void *at, Vector values)
{
#if defined(__AVX512F__) && REGISTER == 64
    _mm512_stream_si512(at, (__m512i)values);
#elif defined(__AVX__) && REGISTER == 32
    _mm256_stream_si256(at, (__m256i)values);
#elif defined(__x86_64__) && REGISTER == 16
    _mm_stream_si128(at, (__m128i)values);
#else
    memcpy(at, &values, sizeof values);
#endif
}

/* Set all lanes but the last n to zero. */
static inline Vector last_lanes(Vector values, int64_t n)
{
    static const Bool MASKS[2 * LANES] = {[LANES ... 2 * LANES - 1] = -1};
    Mask mask;
    memcpy(&mask, MASKS + n, sizeof mask);
    return (Vector)((Mask)values & mask);
}

/* The sum of a vector's parts of 16 bytes, in a fixed order. */
static inline Quarter quarter(Vector values)
{
    Quarter parts[REGISTER / 16];
    memcpy(parts, &values, sizeof values);
#if REGISTER == 64
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
#elif REGISTER == 32
    return parts[0] + parts[1];
#else
    return parts[0];
#endif
}

/* The sum of a vector's lanes. */
static inline real total(Vector values)
{
    Quarter sums = quarter(values);
#ifdef DOUBLE
    return sums[0] + sums[1];
#else
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
#endif
}

/* The totals of two vectors. */
static inline void totals(Vector a, Vector b, real *of_a, real *of_b)
{
#if defined(__has_builtin) && !defined(DOUBLE)
#if __has_builtin(__builtin_shufflevector)
    Quarter p = quarter(a), q = quarter(b);
    Quarter sums = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    *of_a = sums[0] + sums[2], *of_b = sums[1] + sums[3];
    return;
#endif
#endif
    *of_a = total(a), *of_b = total(b);
}

/* Replace any NaN by the default quiet NaN. Rounding to bfloat16 adds to the bits, and a NaN with all
   bits set would overflow and become a number. */
static inline real canonical_nan(real value) { return value == value ? value : (real)NAN; }

static void canonical_nans(real *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        values[i] = canonical_nan(values[i]);
}

/* The dot product of a and b. */
static real dot(const real *a, const real *b, int64_t n)
{
    Vector s = {0}, t = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        s += get(a + i) * get(b + i);
        t += get(a + i + LANES) * get(b + i + LANES);
    }
    real sum = i > 0 ? total(s + t) : 0;
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y += factor * x */
static void add_scaled(real *restrict y, const real *restrict x, int64_t n, real factor)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

/* Repeat the value of each group for its channels. */
static void expand(const real *values, int64_t groups, int64_t channels, real *to)
{
    int64_t size = channels / groups;
    if (size == 1) {
        memcpy(to, values, channels * sizeof(real));
        return;
    }
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < size; i++)
            *to++ = values[g];
}

/* Sum the values of the channels of each group. */
static void fold(const real *values, int64_t channels, int64_t groups, real *to)
{
    int64_t size = channels / groups;
    if (size == 1) {
        memcpy(to, values, channels * sizeof(real));
        return;
    }
    for (int64_t g = 0; g < groups; g++, values += size) {
        Vector sums = {0};
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            sums += get(values + i);
        real sum = i > 0 ? total(sums) : 0;
        for (; i < size; i++)
            sum += values[i];
        to[g] = sum;
    }
}

/* Pool the moments of fine groups into moments of coarser groups (law of total variance). `off` gets, for
   each fine group, its mean minus the mean of its coarse group. */
static void pool(const real *mean, const real *var, int64_t fine, int64_t coarse, real *pooled_mean,
                 real *pooled_var, real *restrict off)
{
    int64_t size = fine / coarse;
    if (size == 1) {
        memcpy(pooled_mean, mean, fine * sizeof(real));
        memcpy(pooled_var, var, fine * sizeof(real));
        memset(off, 0, fine * sizeof(real));
        return;
    }
    fold(mean, fine, coarse, pooled_mean);
    for (int64_t g = 0; g < coarse; g++) {
        real center = pooled_mean[g] /= (real)size;
        for (int64_t i = g * size; i < (g + 1) * size; i++)
            off[i] = mean[i] - center;
        real sum = 0;
        Vector sums = {0};
        int64_t i = g * size, end = i + size;
        for (; i + LANES <= end; i += LANES)
            sums += get(var + i) + get(off + i) * get(off + i);
        sum = total(sums);
        for (; i < end; i++)
            sum += var[i] + off[i] * off[i];
        pooled_var[g] = sum / (real)size;
    }
}

/* Add the vector-Jacobian product of `pool` to d_mean and d_var. */
static void unpool(const real *d_pooled_mean, const real *d_pooled_var, const real *off, int64_t fine,
                   int64_t coarse, real *restrict d_mean, real *restrict d_var)
{
    int64_t size = fine / coarse;
    for (int64_t g = 0; g < coarse; g++) {
        real of_mean = d_pooled_mean[g] / (real)size, of_var = d_pooled_var[g] / (real)size;
        for (int64_t i = g * size; i < (g + 1) * size; i++) {
            d_mean[i] += of_mean + 2 * of_var * off[i];
            d_var[i] += of_var;
        }
    }
}

/* Return the activation of x; write its derivative to `slope`. */
static real activate(int32_t activation, real x, real *slope)
{
    real y;
    switch (activation) {
    case TANH:
        y = TANH_OF(x);
        *slope = 1 - y * y;
        return y;
    case SIGMOID:
        y = 1 / (1 + EXP_OF(-x));
        *slope = y * (1 - y);
        return y;
    case IDENTITY:
        *slope = 1;
        return x;
    case RELU6:
        *slope = !(x <= 0 || x >= 6); /* NaN passes, as in torch */
        return x < 0 ? 0 : x > 6 ? 6 : x;
    case LEAKY_RELU:
        *slope = x > 0 ? 1 : (real)0.01;
        return x * *slope;
    default:
        *slope = !(x <= 0);
        return x < 0 ? 0 : x; /* NaN stays NaN */
    }
}

/* Replace values by their softmax. */
static void softmax(real *values, int64_t n)
{
    real largest = values[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        largest = values[i] > largest ? values[i] : largest;
    for (int64_t i = 0; i < n; i++)
        sum += values[i] = EXP_OF(values[i] - largest);
    for (int64_t i = 0; i < n; i++)
        values[i] /= sum;
}

/* Replace the gradients of the ratios by the logits' gradients: the vector-Jacobian product of softmax. */
static void softmax_vjp(const real *ratios, real *gradients, int64_t n)
{
    real mean = dot(ratios, gradients, n);
    for (int64_t i = 0; i < n; i++)
        gradients[i] = ratios[i] * (gradients[i] - mean);
}
