// Gradients of a network's tensors, if needed: sums over the instances' tapes, in a fixed order.
#pragma once

#include <initializer_list>

#include "job.hpp"

namespace {

enum : int64_t {
    ROWS = 8, // of a gradient that are summed at once
    COLUMNS = 256,
    TOGETHER = 16, // instances that are summed in reals; their sums are added in doubles
};

// The outer product of an array of rows and an array of columns, the first instance's in the tape.
template <class Real> struct Product {
    const Real *rows, *columns;
};

// Sums over instances of what the tapes have. A gradient `to` that is not needed is null.
template <class Real> class Sums {
  public:
    using Products = std::initializer_list<Product<Real>>;

    int error = 0; // of the threads; nothing more is done after one

    explicit Sums(const Job<Real> &job) : job(job), count(job.map->instances), step(job.tape_size)
    {
    }

    // Sum arrays, of which `first` is the first instance's.
    [[gnu::noinline]] void add(const Real *first, int64_t columns, Real *to)
    {
        if (error || to == nullptr)
            return;
        int64_t grain = divide_up(GRAIN, count);
        error = parallel(*job.map, columns, grain, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i += COLUMNS)
                add_block(first + i, minimum(COLUMNS, end - i), to + i);
        });
    }

    // Sum outer products (rows, columns); for each instance, all of them.
    [[gnu::noinline]] void add(Products products, int64_t rows, int64_t columns, Real *to)
    {
        if (error || to == nullptr)
            return;
        int64_t grain = divide_up(GRAIN, count * columns);
        error = parallel(*job.map, rows, grain, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row += ROWS)
                for (int64_t i = 0; i < columns; i += COLUMNS)
                    add_block(products, row, minimum(ROWS, end - row), i,
                              minimum(COLUMNS, columns - i), to + row * columns + i, columns);
        });
    }

  private:
    const Job<Real> &job;
    int64_t count, step; // the instances, and from one's tape to the next one's

    void add_block(const Real *first, int64_t columns, Real *to) const
    {
        double sums[COLUMNS] = {};
        for (int64_t k = 0; k < count; k++)
            for (int64_t j = 0; j < columns; j++)
                sums[j] += first[k * step + j];
        for (int64_t j = 0; j < columns; j++)
            to[j] = Real(sums[j]);
    }

    void add_block(Products products, int64_t row, int64_t rows, int64_t column, int64_t columns,
                   Real *to, int64_t width) const
    {
        double sums[ROWS][COLUMNS] = {};
        Real part[ROWS][COLUMNS];
        for (int64_t first = 0; first < count; first += TOGETHER) {
            for (int64_t i = 0; i < rows; i++)
                clear(part[i], columns);
            for (int64_t k = first; k < minimum(count, first + TOGETHER); k++)
                for (int64_t i = 0; i < rows; i++)
                    for (const Product<Real> &p : products)
                        add_scaled(part[i], p.columns + k * step + column, columns,
                                   p.rows[k * step + row + i]);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++)
                    sums[i][j] += part[i][j];
        }
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++)
                to[i * width + j] = Real(sums[i][j]);
    }
};

} // namespace
