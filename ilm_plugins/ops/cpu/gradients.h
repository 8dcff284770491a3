/* Gradients of a network's tensors, if needed: sums over the instances' tapes, in a fixed order. */

typedef struct {
    const Job *job;
    /* Offsets in an instance's tape. The gradient is the sum over instances of the outer products of
       tape[a ..] and tape[b ..], which has `columns` values; if b < 0, the sum of tape[a ..]. */
    int64_t a, b, columns;
    int64_t a2, b2; /* of a second outer product, which is added; or -1 */
    real *to;
} Sum;

enum {
    ROWS = 8, COLUMNS = 256, /* of a gradient that are summed at once */
    TOGETHER = 16,           /* instances that are summed in reals; their sums are added in doubles */
};

/* Compute some rows and columns of the sum of outer products, at most ROWS and COLUMNS. */
static void sum_block(const Sum *sum, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    int64_t step = sum->job->tape_size, n = sum->job->map->instances;
    double sums[ROWS][COLUMNS] = {{0}};
    real part[ROWS][COLUMNS];
    for (int64_t first = 0; first < n; first += TOGETHER) {
        for (int64_t i = 0; i < rows; i++)
            memset(part[i], 0, columns * sizeof(real));
        for (int64_t k = first; k < minimum(n, first + TOGETHER); k++) {
            const real *tape = sum->job->tape + k * step;
            for (int64_t i = 0; i < rows; i++) {
                add_scaled(part[i], tape + sum->b + column, columns, tape[sum->a + row + i]);
                if (sum->b2 >= 0)
                    add_scaled(part[i], tape + sum->b2 + column, columns, tape[sum->a2 + row + i]);
            }
        }
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++)
                sums[i][j] += part[i][j];
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            sum->to[(row + i) * sum->columns + column + j] = sums[i][j];
}

/* Compute columns begin <= i < end of the sum of a, or rows of the sum of outer products. */
static void sum_over_batch(int64_t begin, int64_t end, void *context)
{
    const Sum *sum = context;
    int64_t step = sum->job->tape_size, n = sum->job->map->instances;
    const real *tape = sum->job->tape;
    double of_columns[COLUMNS];
    if (sum->b < 0) {
        for (int64_t i = begin; i < end; i += COLUMNS) {
            int64_t count = minimum(COLUMNS, end - i);
            memset(of_columns, 0, sizeof of_columns);
            for (int64_t k = 0; k < n; k++)
                for (int64_t j = 0; j < count; j++)
                    of_columns[j] += tape[k * step + sum->a + i + j];
            for (int64_t j = 0; j < count; j++)
                sum->to[i + j] = of_columns[j];
        }
        return;
    }
    for (int64_t row = begin; row < end; row += ROWS)
        for (int64_t i = 0; i < sum->columns; i += COLUMNS)
            sum_block(sum, row, minimum(ROWS, end - row), i, minimum(COLUMNS, sum->columns - i));
}

/* Sum tape[a ..] over instances. */
static int add_columns(const Job *job, int64_t a, int64_t columns, real *to)
{
    if (to == NULL)
        return 0;
    Sum sum = {.job = job, .a = a, .b = -1, .to = to};
    return parallel(job->map, columns, divide_up(GRAIN, job->map->instances), sum_over_batch, &sum);
}

/* Sum outer products over instances; see Sum. */
static int add_products(const Job *job, int64_t a, int64_t rows, int64_t b, int64_t columns, int64_t a2,
                        int64_t b2, real *to)
{
    if (to == NULL)
        return 0;
    Sum sum = {job, a, b, columns, a2, b2, to};
    int64_t grain = divide_up(GRAIN, job->map->instances * columns);
    return parallel(job->map, rows, grain, sum_over_batch, &sum);
}

static int encoder_gradients(const Job *job, real **to)
{
    const Network *net = job->network;
    int64_t channels = job->map->channels, keys = net->num_key_groups, hidden = net->hidden;
    int64_t key = 2 * channels, embedded = key + 2 * keys, d_embedded = embedded + 2 * hidden;
    int64_t d_decoded = d_embedded + 2 * hidden;
    int error = add_columns(job, 0, channels, to[WEIGHT]);
    error = error ? error : add_columns(job, channels, channels, to[BIAS]);
    error = error ? error
                  : add_products(job, d_embedded, hidden, key, keys, d_embedded + hidden, key + keys,
                                 to[ENCODE]);
    for (int i = 0; i < 2 && !error; i++)
        error = add_products(job, d_decoded + i * keys, keys, embedded + i * hidden, hidden, -1, -1,
                             to[DECODE + i]);
    return error;
}

static int attentive_gradients(const Job *job, real **to)
{
    int64_t channels = job->map->channels, count = job->network->num_affine;
    AttentiveTape at = attentive_tape_of(job);
    int error = add_columns(job, 0, channels, to[WEIGHT]);
    error = error ? error : add_columns(job, at.bias, channels, to[BIAS]);
    error = error ? error
                  : add_products(job, at.d_logits, count, at.features, channels, -1, -1, to[ATTENTION]);
    error = error ? error : add_columns(job, at.d_logits, count, to[ATTENTION_BIAS]);
    for (int i = 0; i < 2 && !error; i++)
        error = add_products(job, at.attentions, count, at.d_mixed + i * channels, channels, -1, -1,
                             to[PAIR_WEIGHT + i]);
    return error;
}

static int mixture_gradients(const Job *job, real **to)
{
    const Network *net = job->network;
    int64_t channels = job->map->channels, count = net->num_normalizers;
    Tape at = tape_of(job);
    int error = add_columns(job, at.weight, at.bias, to[WEIGHT]);
    error = error ? error : add_columns(job, at.bias, channels, to[BIAS]);
    for (int64_t k = 1; k < rows_of_weight(net) && to[BIAS]; k++)
        memcpy(to[BIAS] + k * channels, to[BIAS], channels * sizeof(real));
    if (error || net->kind != EXEMPLAR) {
        for (int i = 0; i < 2 && !error; i++) {
            error = add_columns(job, at.d_logits + i * count, count, to[MEAN_WEIGHT + i]);
            if (net->kind == SPARSE && to[MEAN_WEIGHT + i])
                sparse_ratios_vjp(net, i, to[MEAN_WEIGHT + i]);
        }
        return error;
    }
    int64_t hidden = net->hidden, inputs = features_of(job->map, net);
    error = add_columns(job, at.reduce, channels, to[REDUCE]);
    error = error ? error
                  : add_products(job, at.d_hidden, hidden, at.features, inputs, -1, -1, to[EXPAND]);
    error = error ? error : add_columns(job, at.d_hidden, hidden, to[EXPAND_BIAS]);
    error = error ? error : add_products(job, at.d_logits, count, at.hidden, hidden, -1, -1, to[RATIO]);
    return error ? error : add_columns(job, at.d_logits, count, to[RATIO_BIAS]);
}
