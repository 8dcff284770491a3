// How a network gets its options and tensors from Python.
//
// A network has a function `members`, which visits its options, parameters and buffers, in the
// order of its spec.py. An enum has its values in the order that spec.py gives in `choices`.
#pragma once

#include <stdint.h>

namespace {

// A tensor with a gradient, which is null if it is not needed.
template <class Real> struct Parameter {
    const Real *values = nullptr;
    Real *gradient = nullptr;
};

// A tensor without a gradient: its copy among the values that are saved for the backward
// pass, because it may change before that.
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

template <class Visitor, class... Members> void visit_each(Visitor &visit, Members &...members)
{
    (visit(members), ...);
}

// Reads the members of a call. Of each option there is a number: a value, the place of a choice in
// its enum, or a list's length and then its values; of each buffer its place among the
// copies, and its size.
template <class Real> class Reader {
  public:
    // `gradients` is null in the forward pass.
    Reader(const double *numbers, int64_t count, void *const *tensors, void *const *gradients,
           Real *kept)
        : numbers(numbers), end(numbers + count), tensors(tensors), gradients(gradients), kept(kept)
    {
    }

    // Whether there were as many numbers as the members need.
    bool succeeded() const { return !failed && numbers == end; }

    void operator()(double &option) { option = next(); }

    template <class Choice> void operator()(Choice &option) { option = Choice(int64_t(next())); }

    template <class Value, int64_t most> [[gnu::noinline]] void operator()(List<Value, most> &list)
    {
        list.count = int64_t(next());
        if (list.count < 0 || list.count > most) {
            failed = true;
            list.count = 0;
        }
        for (int64_t i = 0; i < list.count; i++)
            (*this)(list.at[i]);
    }

    void operator()(Parameter<Real> &parameter)
    {
        parameter.values = static_cast<const Real *>(*tensors++);
        if (gradients)
            parameter.gradient = static_cast<Real *>(*gradients++);
    }

    void operator()(Buffer<Real> &buffer)
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
