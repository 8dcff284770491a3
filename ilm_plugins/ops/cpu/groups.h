/* The standardization by groups, of an instance, in ILM Norm, AssocNorm and AN. From omega and beta (C) of

       y = omega * standardized x + beta

   follow scale and shift of x minus the mean of its finest group:

       scale = omega * rstd of the group,  shift = beta + scale * (mean - mean of the group) */

typedef struct {
    real *mean, *rstd, *d_rstd, *off_fine; /* (G), (G), (G), (G') */
    real *off, *rstd_of_channel, *values;  /* (C) each */
} Groups;

static int64_t groups_scratch(const Map *map, const Network *net)
{
    return 3 * net->num_groups + map->groups + 3 * map->channels;
}

/* Find the groups' moments from the finest groups' moments, in `scratch`. */
static Groups find_groups(const Map *map, const Network *net, const real *mean, const real *var,
                          real *scratch)
{
    Groups g;
    g.mean = scratch, g.rstd = g.mean + net->num_groups, g.d_rstd = g.rstd + net->num_groups;
    g.off_fine = g.d_rstd + net->num_groups;
    g.off = g.off_fine + map->groups, g.rstd_of_channel = g.off + map->channels;
    g.values = g.rstd_of_channel + map->channels;
    pool(mean, var, map->groups, net->num_groups, g.mean, g.rstd, g.off_fine);
    for (int64_t i = 0; i < net->num_groups; i++)
        g.rstd[i] = 1 / SQRT_OF(g.rstd[i] + (real)net->eps);
    expand(g.off_fine, map->groups, map->channels, g.off);
    expand(g.rstd, net->num_groups, map->channels, g.rstd_of_channel);
    return g;
}

/* Replace omega by scale and beta by shift. */
static void standardize(const Groups *g, int64_t channels, real *restrict scale, real *restrict shift)
{
    for (int64_t c = 0; c < channels; c++) {
        scale[c] *= g->rstd_of_channel[c];
        shift[c] += scale[c] * g->off[c];
    }
}

/* The vector-Jacobian product: find the instance's scale, d_mean and d_var; replace omega by its gradient.
   The gradient of beta is d_shift. Overwrites d_scale and the groups. */
static void standardize_vjp(const Job *job, int64_t instance, Groups *g, real *restrict omega)
{
    const Map *map = job->map;
    int64_t channels = map->channels, fine = map->groups, groups = job->network->num_groups;
    real *restrict scale = job->scale + instance * channels, *restrict values = g->values;
    real *restrict d_scale = job->d_scale + instance * channels;
    const real *d_shift = job->d_shift + instance * channels;
    real *d_mean = job->offset + instance * fine, *d_var = job->slope + instance * fine;
    for (int64_t c = 0; c < channels; c++) {
        real rstd = g->rstd_of_channel[c], d = d_scale[c] + d_shift[c] * g->off[c];
        scale[c] = omega[c] * rstd;
        d_scale[c] = d_shift[c] * scale[c]; /* d_off */
        values[c] = omega[c] * d;
        omega[c] = d * rstd;
    }
    fold(d_scale, channels, fine, d_mean);
    real *d_group_mean = g->mean, *d_group_var = g->d_rstd;
    fold(d_mean, fine, groups, d_group_mean);
    fold(values, channels, groups, g->d_rstd);
    for (int64_t i = 0; i < groups; i++) {
        d_group_mean[i] = -d_group_mean[i];
        d_group_var[i] *= (real)-0.5 * g->rstd[i] * g->rstd[i] * g->rstd[i];
    }
    memset(d_var, 0, fine * sizeof(real));
    unpool(d_group_mean, d_group_var, g->off_fine, fine, groups, d_mean, d_var);
}
