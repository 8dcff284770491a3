/* The ratios of SN and sparse SN, from their logits, see layers/sparse.py. */

/* Tensors after WEIGHT and BIAS: SN's, sparse SN's; then BN's running moments, two. */
enum { MEAN_WEIGHT = 2, VAR_WEIGHT, SWITCH_RUNNING };
enum { RADIUS = 4, MEAN_FIXED, VAR_FIXED, SPARSE_RUNNING };

/* A point on a face of the simplex, given by its logits. */
typedef struct {
    real c[MAX_NORMALIZERS]; /* logits minus their mean on the face; zeros outside */
    int inside[MAX_NORMALIZERS];
    real size, squares, stretch; /* of the face; of c: the sum of squares, and its factor */
    int stretches, fixed;
} Face;

static const real TINY =
#ifdef DOUBLE
    2.2250738585072014e-308;
#else
    1.17549435e-38f;
#endif

static real at_least(real value, real least) { return value < least ? least : value; } /* NaN stays */

/* Compute sparsestmax of n logits; returns the face that it ends on. */
static Face sparsestmax(const real *given, real radius, int64_t n, real *ratios)
{
    Face face = {.stretch = 1};
    real logits[MAX_NORMALIZERS], top[MAX_NORMALIZERS], largest = given[0], first = 0;
    for (int64_t i = 1; i < n; i++)
        largest = given[i] > largest || given[i] != given[i] ? given[i] : largest;
    for (int64_t i = 0; i < n; i++) { /* sorted by insertion */
        int64_t j = i;
        logits[i] = given[i] - largest;
        for (; j > 0 && top[j - 1] < logits[i]; j--)
            top[j] = top[j - 1];
        top[j] = logits[i];
    }
    real gap[MAX_NORMALIZERS], squares[MAX_NORMALIZERS];
    for (int64_t i = 0; i < n; i++) { /* of the i + 1 largest */
        real mean = 0;
        squares[i] = 0;
        for (int64_t j = 0; j <= i; j++)
            mean += top[j];
        mean /= (real)(i + 1);
        for (int64_t j = 0; j <= i; j++)
            squares[i] += (top[j] - mean) * (top[j] - mean);
        gap[i] = (real)(i + 1) * (mean - top[i]);
        first += !(gap[i] >= 1);
    }
    for (int64_t i = 0; i < n; i++) {
        real rho_squared = at_least(radius * radius - 1 / (real)(i + 1) + 1 / first, 0);
        real stretched = at_least(rho_squared / at_least(squares[i], TINY), 1) * gap[i] * gap[i];
        if (!(stretched >= 1))
            face.size = (real)(i + 1);
    }
    real mean = 0;
    for (int64_t i = 0; i < n; i++) {
        face.inside[i] = !(logits[i] < top[(int)face.size - 1]);
        mean += face.inside[i] ? logits[i] : 0;
    }
    mean /= face.size;
    for (int64_t i = 0; i < n; i++) {
        face.c[i] = face.inside[i] ? logits[i] - mean : 0;
        face.squares += face.c[i] * face.c[i];
    }
    real rho_squared = at_least(radius * radius - 1 / face.size + 1 / first, 0);
    if (face.squares > TINY) {
        face.stretches = rho_squared / face.squares >= 1;
        face.stretch = SQRT_OF(at_least(rho_squared / face.squares, 1));
    }
    for (int64_t i = 0; i < n; i++)
        ratios[i] = (face.inside[i] ? 1 / face.size : 0) + face.stretch * face.c[i];
    return face;
}

/* Compute sparse SN's ratios of means (0) or variances (1): the fixed ratios, if one of them is 1. */
static Face sparse_ratios(const Network *net, int of_var, real *ratios)
{
    int64_t n = net->num_normalizers;
    const real *fixed = net->tensors[MEAN_FIXED + of_var];
    Face face = sparsestmax(net->tensors[MEAN_WEIGHT + of_var], *(const real *)net->tensors[RADIUS], n,
                            ratios);
    for (int64_t i = 0; i < n; i++)
        face.fixed |= fixed[i] == 1;
    if (face.fixed)
        memcpy(ratios, fixed, n * sizeof(real));
    return face;
}

static void switch_ratios(const Network *net, int of_var, real *ratios)
{
    if (net->kind == SPARSE) {
        sparse_ratios(net, of_var, ratios);
        return;
    }
    memcpy(ratios, net->tensors[MEAN_WEIGHT + of_var], net->num_normalizers * sizeof(real));
    softmax(ratios, net->num_normalizers);
}

/* Replace the gradients of sparse SN's ratios by the logits' gradients: the vector-Jacobian product within
   the face. */
static void sparse_ratios_vjp(const Network *net, int of_var, real *gradients)
{
    int64_t n = net->num_normalizers;
    real ratios[MAX_NORMALIZERS], along = 0, mean = 0;
    Face face = sparse_ratios(net, of_var, ratios);
    if (face.fixed) {
        memset(gradients, 0, n * sizeof(real));
        return;
    }
    for (int64_t i = 0; i < n; i++)
        along += gradients[i] * face.c[i];
    for (int64_t i = 0; i < n; i++) {
        gradients[i] -= face.stretches ? face.c[i] * (along / face.squares) : 0;
        gradients[i] *= face.inside[i] ? face.stretch : 0;
        mean += gradients[i];
    }
    for (int64_t i = 0; i < n; i++)
        gradients[i] -= face.inside[i] ? mean / face.size : 0;
}
