/* Vectors of reals, and how they are loaded from and stored as T: a real, bfloat16 or float16.

   Included once for each T, whose name STORED_AS ends the names of functions. */

#if STORED_AS == REAL
static inline Vector FUNCTION(load)(const T *at)
{
    Vector values;
    memcpy(&values, at, sizeof values);
    return values;
}

static inline void FUNCTION(store)(T *at, Vector values) { memcpy(at, &values, sizeof values); }

#else /* 16 bits, read and written by integer arithmetic on 32 bits */

static inline Vector FUNCTION(widen)(Half stored)
{
    Bits bits = __builtin_convertvector(stored, Bits);
#if STORED_AS == BFLOAT16
    return (Vector)(bits << 16);
#else
    /* The exponent moves by 112 in a product, which is right of denormals, too. */
    Vector scaled = (Vector)((bits & 0x7fff) << 13) * 0x1p112f;
    Bits special = (Bits)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (Vector)((Bits)scaled | special | (bits & 0x8000) << 16);
#endif
}

static inline Half FUNCTION(narrow)(Vector values)
{
    Bits bits = (Bits)values, sign = bits >> 16 & 0x8000, rounded;
#if STORED_AS == BFLOAT16
    Bits nan = (Bits)((bits & 0x7fffffff) > 0x7f800000);
    rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to the nearest, ties to even */
    rounded = (nan & (sign | 0x7fc0)) | (~nan & rounded);
#else
    bits &= 0x7fffffff;
    Bits nan = (Bits)(bits > 0x7f800000), large = (Bits)(bits >= 0x477ff000);
    Bits small = (Bits)(bits < 0x38800000);
    Bits normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    Bits half = (Bits)((Vector){0} + 0.5f); /* whose last bit is float16's least denormal */
    Bits denormal = (Bits)((Vector)bits + 0.5f) - half;
    rounded = (small & denormal) | (~small & normal);
    rounded = (large & 0x7c00) | (~large & rounded);
    rounded = (nan & 0x7e00) | (~nan & rounded);
    rounded |= sign;
#endif
    return __builtin_convertvector(rounded, Half);
}

static inline Vector FUNCTION(load)(const T *at)
{
    Half stored;
    memcpy(&stored, at, sizeof stored);
    return FUNCTION(widen)(stored);
}

static inline void FUNCTION(store)(T *at, Vector values)
{
    Half stored = FUNCTION(narrow)(values);
    memcpy(at, &stored, sizeof stored);
}
#endif

static inline real FUNCTION(load_one)(const T *at)
{
#if STORED_AS == REAL
    return *at;
#else
    return FUNCTION(widen)((Half){*at})[0];
#endif
}

static inline void FUNCTION(store_one)(T *at, real value)
{
#if STORED_AS == REAL
    *at = value;
#else
    *at = FUNCTION(narrow)((Vector){value})[0];
#endif
}

/* Store past the cache, at an address that is a multiple of the size of what is stored. */
static inline void FUNCTION(stream)(T *at, Vector values)
{
#if STORED_AS == REAL
    Vector stored = values;
#else
    Half stored = FUNCTION(narrow)(values);
#endif
#if REGISTER == 64 && STORED_AS == REAL
    _mm512_stream_si512((void *)at, (__m512i)stored);
#elif REGISTER == 64 || (REGISTER == 32 && STORED_AS == REAL)
    _mm256_stream_si256((__m256i *)at, (__m256i)stored);
#elif defined(__x86_64__) && (REGISTER == 32 || STORED_AS == REAL)
    _mm_stream_si128((__m128i *)at, (__m128i)stored);
#else
    memcpy(at, &stored, sizeof stored);
#endif
}
