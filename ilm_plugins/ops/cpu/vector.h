/* Load vectors of reals from T, and store them as T: a real, bfloat16 or float16.

   This file is included once for each T; STORED_AS is its name, and the suffix of the functions. */

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
#if STORED_AS == FLOAT16 && defined(__F16C__) && REGISTER == 32
    return (Vector)_mm256_cvtph_ps((__m128i)stored);
#elif STORED_AS == FLOAT16 && defined(__AVX512F__) && REGISTER == 64
    return (Vector)_mm512_cvtph_ps((__m256i)stored);
#endif
    Bits bits = __builtin_convertvector(stored, Bits);
#if STORED_AS == BFLOAT16
    return (Vector)(bits << 16);
#else
    /* The exponent grows by 112. A denormal gets an exponent of a normal number, whose value is then
       subtracted, because the processor may treat denormals as zero. */
    Bits tiny = (Bits)((bits & 0x7c00) == 0);
    Vector scaled = (Vector)(((bits & 0x7fff) << 13) + 0x38000000 + (tiny & 0x800000))
        - (Vector)(tiny & 0x38800000);
    Bits special = (Bits)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (Vector)((Bits)scaled | special | (bits & 0x8000) << 16);
#endif
}

#if STORED_AS == BFLOAT16
/* Round to the nearest, ties to even: the upper 16 bits of the result are the bfloat16. A NaN whose lower
   16 bits are all set would overflow: see `canonical_nan`. */
static inline Bits FUNCTION(round)(Vector values)
{
    Bits bits = (Bits)values;
    return bits + 0x7fff + (bits >> 16 & 1);
}

static inline Half FUNCTION(narrow)(Vector values)
{
    return __builtin_convertvector(FUNCTION(round)(values) >> 16, Half);
}
#else
static inline Half FUNCTION(narrow)(Vector values)
{
#if defined(__F16C__) && REGISTER == 32
    return (Half)_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX512F__) && REGISTER == 64
    return (Half)_mm512_cvtps_ph((__m512)values, _MM_FROUND_TO_NEAREST_INT);
#endif
    Bits bits = (Bits)values, sign = bits >> 16 & 0x8000, rounded;
    bits &= 0x7fffffff;
    Bits nan = (Bits)(values != values), large = (Bits)(bits >= 0x477ff000);
    Bits small = (Bits)(bits < 0x38800000);
    Bits normal = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    Bits half = (Bits)((Vector){0} + 0.5f); /* its last bit is float16's smallest denormal */
    Bits denormal = (Bits)((Vector)bits + 0.5f) - half;
    rounded = (small & denormal) | (~small & normal);
    rounded = (large & 0x7c00) | (~large & rounded);
    rounded = (nan & 0x7e00) | (~nan & rounded);
    return __builtin_convertvector(rounded | sign, Half);
}
#endif

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

/* Load two vectors of consecutive values. For bfloat16, `a` gets the even and `b` the odd ones, which
   needs no permutation. */
static inline void FUNCTION(load_two)(const T *at, Vector *a, Vector *b)
{
#if STORED_AS == BFLOAT16
    Bits bits;
    memcpy(&bits, at, sizeof bits);
    *a = (Vector)(bits << 16), *b = (Vector)(bits & 0xffff0000);
#else
    *a = FUNCTION(load)(at), *b = FUNCTION(load)(at + LANES);
#endif
}

static inline void FUNCTION(store_two)(T *at, Vector a, Vector b)
{
#if STORED_AS == BFLOAT16
    Bits bits = FUNCTION(round)(a) >> 16 | (FUNCTION(round)(b) & 0xffff0000);
    memcpy(at, &bits, sizeof bits);
#else
    FUNCTION(store)(at, a);
    FUNCTION(store)(at + LANES, b);
#endif
}

static inline real FUNCTION(load_one)(const T *at)
{
#if STORED_AS == REAL
    return *at;
#elif STORED_AS == BFLOAT16
    uint32_t bits = (uint32_t)*at << 16;
    real value;
    memcpy(&value, &bits, sizeof value);
    return value;
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

/* Store two vectors without filling the cache, at an address that is a multiple of a register's size. */
static inline void FUNCTION(stream_two)(T *at, Vector a, Vector b)
{
#if STORED_AS == BFLOAT16
    stream(at, (Vector)(FUNCTION(round)(a) >> 16 | (FUNCTION(round)(b) & 0xffff0000)));
#elif STORED_AS == FLOAT16
    Half of_a = FUNCTION(narrow)(a), of_b = FUNCTION(narrow)(b);
    Vector both;
    memcpy(&both, &of_a, sizeof of_a);
    memcpy((char *)&both + sizeof of_a, &of_b, sizeof of_b);
    stream(at, both);
#else
    stream(at, a);
    stream(at + LANES, b);
#endif
}

/* Store one vector without filling the cache; an ordinary store if T takes only half a register. */
static inline void FUNCTION(stream_one)(T *at, Vector values)
{
#if STORED_AS == REAL
    stream(at, values);
#else
    FUNCTION(store)(at, values);
#endif
}
