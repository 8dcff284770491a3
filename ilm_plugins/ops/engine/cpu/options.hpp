// How a network gets its options and tensors from Python: by name.
//
// A network has a function `members`, which calls `visit(name, member)` for each option and tensor.
// One visitor tells Python the names when the library is loaded; they must be the options
// and tensors of the class of the same name in its spec.py. Another reads the values of a call.
#pragma once

#include <stdint.h>

namespace {

// A tensor with a gradient. `values` is null if the layer lacks it, `gradient` if it is not needed.
template <class Real> struct Parameter {
    const Real *values = nullptr;
    Real *gradient = nullptr;
};

// A tensor without a gradient: its copy among the statistics that are kept for the backward pass,
// because it may change before that.
template <class Real> struct Buffer {
    // Null if the layer lacks it. The backward pass reads only this, not what it points to.
    const Real *given = nullptr;
    Real *values = nullptr;
    int64_t size = 0;
};

// Several options, at most `most`.
template <class Value, int64_t most> struct List {
    int64_t count = 0;
    Value at[most] = {};
};

// A choice is an enum whose function names_of tells the names of its values, in their order;
// numbers have no names.
constexpr const char *names_of(double) { return ""; }

template <class Value, int64_t most> constexpr const char *names_of(const List<Value, most> &)
{
    return names_of(Value());
}

// ---- visitors

// Finds name, kind and choices of the member with a number.
class Teller {
  public:
    const char *name = nullptr, *kind = nullptr, *choices = "";

    explicit Teller(int64_t number) : to_come(number) { }

    template <class Option> void operator()(const char *its_name, Option &option)
    {
        tell(its_name, "option");
        if (name == its_name)
            choices = names_of(option);
    }

    template <class Real> void operator()(const char *its_name, Parameter<Real> &)
    {
        tell(its_name, "parameter");
    }

    template <class Real> void operator()(const char *its_name, Buffer<Real> &)
    {
        tell(its_name, "buffer");
    }

  private:
    int64_t to_come;

    [[gnu::noinline]] void tell(const char *its_name, const char *its_kind)
    {
        if (to_come-- == 0)
            name = its_name, kind = its_kind;
    }
};

// Counts the tensors.
struct Counter {
    int64_t tensors = 0;

    template <class Option> void operator()(const char *, Option &) { }
    template <class Real> void operator()(const char *, Parameter<Real> &) { tensors++; }
    template <class Real> void operator()(const char *, Buffer<Real> &) { tensors++; }
};

template <class Net> int64_t count_tensors(Net &net)
{
    Counter counter;
    net.members(counter);
    return counter.tensors;
}

// Reads the members of a call. Of each option there is a number: a value, the number of a choice,
// or a list's length and then its values; of each buffer its place among the kept statistics, and
// its size.
template <class Real> class Reader {
  public:
    // `gradients` is null in the forward pass.
    Reader(const double *numbers, int64_t count, void *const *tensors, void *const *gradients,
           Real *kept)
        : numbers(numbers), end(numbers + count), tensors(tensors), gradients(gradients), kept(kept)
    {
    }

    // Whether there were as many numbers as members, and each had a meaning.
    bool succeeded() const { return !failed && numbers == end; }

    void operator()(const char *, double &option) { option = next(); }

    void operator()(const char *, int64_t &option) { option = int64_t(next()); }

    void operator()(const char *, bool &option) { option = next() != 0; }

    template <class Choice> [[gnu::noinline]] void operator()(const char *, Choice &option)
    {
        int64_t number = int64_t(next()), count = 1;
        for (const char *c = names_of(option); *c; c++)
            count += *c == ' ';
        failed |= number < 0 || number >= count;
        option = Choice(number);
    }

    template <class Value, int64_t most>
    [[gnu::noinline]] void operator()(const char *name, List<Value, most> &list)
    {
        list.count = int64_t(next());
        if (list.count < 0 || list.count > most) {
            failed = true;
            list.count = 0;
        }
        for (int64_t i = 0; i < list.count; i++)
            (*this)(name, list.at[i]);
    }

    void operator()(const char *, Parameter<Real> &parameter)
    {
        parameter.values = static_cast<const Real *>(*tensors++);
        if (gradients)
            parameter.gradient = static_cast<Real *>(*gradients++);
    }

    void operator()(const char *, Buffer<Real> &buffer)
    {
        buffer.given = static_cast<const Real *>(*tensors++);
        buffer.values = kept + int64_t(next());
        buffer.size = int64_t(next());
        if (gradients)
            gradients++;
    }

  private:
    const double *numbers, *end;
    void *const *tensors, *const *gradients;
    Real *kept;
    bool failed = false;

    [[gnu::noinline]] double next()
    {
        if (numbers < end)
            return *numbers++;
        failed = true;
        return 0;
    }
};

} // namespace
