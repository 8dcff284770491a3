// The primitive on the CPU, forward and backward: moments, network and affine map of each instance.
//
// It is compiled for float and for double, and for each instruction set. It uses neither torch nor
// Python, and keeps nothing between calls.

#include "../../networks/networks.hpp"
#include "passes.hpp"

// setup.py sets the type of moments, the name of the exported function, and a hash of all
// sources. An editor has these.
#if !defined(ILM_PLUGINS_REAL)
#define ILM_PLUGINS_REAL float
#define ILM_PLUGINS_FIND ilm_plugins_find_float_default
#define ILM_PLUGINS_SOURCES ""
#endif

namespace {

using Real = ILM_PLUGINS_REAL;

// A call of a function: only 64-bit integers and addresses. Addresses of the function's maps and
// saved values follow, then addresses of the network's tensors.
struct Call {
    Map map;
    // The network's number and its tensors', then what Reader reads; none without a network.
    int64_t num_fields;
    const double *fields;

    void *const *at() const { return reinterpret_cast<void *const *>(this + 1); }

    template <class T> T *address(int i) const { return static_cast<T *>(at()[i]); }
};

// ---- the passes by themselves

// Describe the work on a map.
[[gnu::noinline]] Job<Real> start(const Map &map, const void *x, const void *dy = nullptr,
                                  void *y = nullptr)
{
    Job<Real> job = {};
    job.map = &map, job.passes = &passes_of<Real>(map);
    job.x = x, job.dy = dy, job.y = y;
    int64_t size = map.stored_as == 0 ? sizeof(Real) : 2;
    int64_t row = size * (map.channels_last ? map.channels : map.length);
    bool whole_lines = map.channels_last ? row % 64 == 0 : row >= STREAM_ROW;
    job.streams = whole_lines && map.instances * map.values() * size >= STREAM;
    job.to_next = map.values() * size <= FETCH ? map.values() : 0;
    divide(job);
    return job;
}

void pool_moments_step(const Job<Real> &job, int64_t instance, Arena<Real> &scratch)
{
    if (!scratch.measures())
        pool_moments(job, instance);
}

void pool_sums_step(const Job<Real> &job, int64_t instance, Arena<Real> &scratch)
{
    if (!scratch.measures())
        pool_sums(job, instance);
}

// Arrays of a whole call: `take` takes them from an arena, to measure and to place them.
template <class Take> class Arrays {
    Memory<Real> memory;
    Arena<Real> arena;

    static int64_t measure(const Take &take)
    {
        Arena<Real> measuring;
        take(measuring);
        return measuring.size();
    }

  public:
    explicit Arrays(const Take &take) : memory(measure(take)), arena(memory.at)
    {
        if (memory.at)
            take(arena);
    }

    bool are_missing() const { return memory.at == nullptr; }
};

int moments(const Call &call)
{
    Job<Real> job = start(call.map, call.address<void>(0));
    job.mean = call.address<Real>(1), job.var = call.address<Real>(2);
    Arrays arrays([&](Arena<Real> &arena) { job.partials = arena.take(count_moments(job)); });
    if (arrays.are_missing())
        return ENOMEM;
    return run<Real>(job, job.passes->moments, pool_moments_step, nullptr);
}

int affine(const Call &call)
{
    Job<Real> job = start(call.map, call.address<void>(0), nullptr, call.address<void>(4));
    job.mean = call.address<Real>(1);
    job.scale = call.address<Real>(2), job.shift = call.address<Real>(3);
    return run<Real>(job, nullptr, nullptr, job.passes->affine);
}

int sums(const Call &call)
{
    Job<Real> job = start(call.map, call.address<void>(1), call.address<void>(0));
    job.mean = call.address<Real>(2);
    job.d_scale = call.address<Real>(3), job.d_shift = call.address<Real>(4);
    Arrays arrays([&](Arena<Real> &arena) { job.partials = arena.take(count_sums(job)); });
    if (arrays.are_missing())
        return ENOMEM;
    return run<Real>(job, job.passes->sums, pool_sums_step, nullptr);
}

int dx(const Call &call)
{
    Job<Real> job =
        start(call.map, call.address<void>(1), call.address<void>(0), call.address<void>(6));
    job.mean = call.address<Real>(2), job.scale = call.address<Real>(3);
    job.slope = call.address<Real>(4), job.offset = call.address<Real>(5);
    return run<Real>(job, nullptr, nullptr, job.passes->dx);
}

// ---- a whole layer

// Keeps copies of buffers for the backward pass, because they may change before that.
struct Keeper {
    template <class Option> void operator()(Option &) { }

    void operator()(Buffer<Real> &buffer)
    {
        if (buffer.given)
            copy(buffer.values, buffer.given, buffer.size);
    }
};

template <class Net> const Net &network_of(const Job<Real> &job)
{
    return *static_cast<const Net *>(job.network);
}

template <class Net> void forward_step(const Job<Real> &job, int64_t instance, Arena<Real> &scratch)
{
    network_of<Net>(job).forward(job, instance, scratch);
}

template <class Net>
void backward_step(const Job<Real> &job, int64_t instance, Arena<Real> &scratch)
{
    const Net &net = network_of<Net>(job);
    Arena<Real> arena(scratch.measures() ? nullptr : job.tape + instance * job.tape_size);
    typename Net::Tape tape(net, job, arena);
    net.backward(job, instance, tape, scratch);
}

// Add the part of dx through the batch's moments.
template <class Net> void couple_step(const Job<Real> &job, int64_t instance, Arena<Real> &scratch)
{
    if (!scratch.measures())
        network_of<Net>(job).mixture.couple(job, instance);
}

template <class Net> bool uses_batch_moments(const Net &net)
{
    if constexpr (Net::is_mixture)
        return net.mixture.uses_batch_moments();
    else
        return false;
}

// Let a network take the arrays that all instances read, if it has any.
template <class Net>
auto take_shared(Net &net, Arena<Real> &arena, int) -> decltype(net.take_shared(arena))
{
    net.take_shared(arena);
}

template <class Net> void take_shared(Net &, Arena<Real> &, long) { }

// `running` has the addresses of BN's running mean and variance, and where to put them after the
// batch; all may be null.
template <class Net> int run_forward(Job<Real> job, Net &net, void *const *running)
{
    const Map &map = *job.map;
    Arrays arrays([&](Arena<Real> &arena) {
        job.partials = arena.take(count_moments(job));
        int64_t size = job.kept_scale ? 0 : map.instances * map.channels;
        job.scale = arena.take(size), job.shift = arena.take(size);
        take_shared(net, arena, 0);
    });
    if (arrays.are_missing())
        return ENOMEM;
    if (job.kept_scale)
        job.scale = job.kept_scale, job.shift = job.kept_shift;
    Pass<Real> first = job.passes->moments;
    if (uses_batch_moments(net)) {
        int error = run<Real>(job, first, pool_moments_step, nullptr);
        if constexpr (Net::is_mixture) {
            if (!error)
                error = net.mixture.pool_batch(job);
            if (!error)
                net.mixture.update_running(job, running);
        }
        if (error)
            return error;
        first = nullptr;
    }
    return run<Real>(job, first, forward_step<Net>, job.passes->affine);
}

template <class Net> int run_backward(Job<Real> job, Net &net)
{
    const Map &map = *job.map;
    Real *d_batch = nullptr;
    Arena<Real> measuring;
    typename Net::Tape(net, job, measuring);
    job.tape_size = measuring.size();
    // The batch's moments have gradients after all instances, so that dx waits for these.
    bool couples = job.y && uses_batch_moments(net);
    Arrays arrays([&](Arena<Real> &arena) {
        job.partials = arena.take(count_sums(job));
        job.scale = arena.take(map.instances * map.channels);
        job.d_scale = arena.take(map.instances * map.channels);
        job.d_shift = arena.take(map.instances * map.channels);
        job.slope = arena.take(map.instances * map.groups);
        job.offset = arena.take(map.instances * map.groups);
        job.tape = arena.take(map.instances * job.tape_size);
        d_batch = arena.take(couples ? 2 * map.channels : 0);
        take_shared(net, arena, 0);
    });
    if (arrays.are_missing())
        return ENOMEM;
    Pass<Real> dx = job.y ? job.passes->dx : nullptr;
    int error = run<Real>(job, job.passes->sums, backward_step<Net>, couples ? nullptr : dx);
    if (error)
        return error;
    if constexpr (Net::is_mixture)
        net.mixture.d_batch = couples ? d_batch : nullptr;
    Sums<Real> sums(job);
    Arena<Real> arena(job.tape);
    net.gradients(job, typename Net::Tape(net, job, arena), sums);
    if constexpr (Net::is_mixture)
        if (!sums.error && couples)
            return run<Real>(job, nullptr, couple_step<Net>, dx);
    return sums.error;
}

// Addresses: x, y or dx, the saved values, dy or null; then the network's tensors. After them, in
// the forward pass: BN's running mean and variance, and where to put them after the batch, all null
// if they do not move. In the backward pass, where it only matters whether a buffer is null: the
// tensors' gradients; dx and gradients that are not needed are null.
template <class Net> int run_network(const Call &call, bool is_backward)
{
    Net net;
    Job<Real> job =
        start(call.map, call.address<void>(0), call.address<void>(3), call.address<void>(1));
    int64_t group_values = call.map.instances * call.map.groups;
    // The moments; scale and shift, if an activation needs them; copies of the network's buffers.
    Real *saved = call.address<Real>(2);
    job.mean = saved, job.var = saved + group_values;
    saved += 2 * group_values;
    if (call.map.activation) {
        int64_t size = call.map.instances * call.map.channels;
        job.kept_scale = saved, job.kept_shift = saved + size;
        saved += 2 * size;
    }
    job.network = &net;
    void *const *tensors = call.at() + 4, *const *after = tensors + int64_t(call.fields[1]);
    Reader<Real> reader(call.fields + 2, call.num_fields - 2, tensors,
                        is_backward ? after : nullptr, saved);
    net.members(reader);
    if (!reader.succeeded())
        return EINVAL;
    if (is_backward)
        return run_backward(job, net);
    Keeper keeper;
    net.members(keeper);
    return run_forward(job, net, after);
}

// ---- the networks, by number

template <class> struct Table;

template <class... Nets> struct Table<TypeList<Nets...>> {
    static constexpr int (*run[])(const Call &, bool) = {run_network<Nets>...};
};

int run_network(const Call &call, bool is_backward)
{
    return Table<Networks<Real>>::run[int64_t(call.fields[0])](call, is_backward);
}

int forward(const Call &call) { return run_network(call, false); }

int backward(const Call &call) { return run_network(call, true); }

// ---- what Python finds in the library, by name

const char *sources() { return ILM_PLUGINS_SOURCES; }

template <class Function> const void *address_of(Function function)
{
    return reinterpret_cast<const void *>(function);
}

} // namespace

extern "C" __attribute__((visibility("default"))) const void *ILM_PLUGINS_FIND(const char *name)
{
    const struct {
        const char *name;
        const void *function;
    } functions[] = {
        {"sources", address_of(sources)},
        {"moments", address_of(moments)},
        {"affine", address_of(affine)},
        {"sums", address_of(sums)},
        {"dx", address_of(dx)},
        {"forward", address_of(forward)},
        {"backward", address_of(backward)},
    };
    for (const auto &f : functions)
        if (strcmp(name, f.name) == 0)
            return f.function;
    return nullptr;
}
