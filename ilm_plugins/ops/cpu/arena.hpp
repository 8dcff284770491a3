// Arrays from one piece of memory, whose size nobody counts by hand.
//
// Code that needs arrays takes them from an arena, and is run twice: with an arena that only
// measures, then with an arena in memory of that size. With ILM_PLUGINS_CHECKED, a red zone lies
// beside each array; a program that wrote there is stopped when the arena ends.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(ILM_PLUGINS_CHECKED)
#include <stdio.h>
#endif

namespace {

// Memory for `count` reals; `at` is null if there is none. It starts with a cache line, so that
// vectors do not cross lines.
template <class Real> struct Memory {
    Real *at;

    explicit Memory(int64_t count)
    {
        size_t bytes = ((count > 0 ? size_t(count) : 1) * sizeof(Real) + 63) / 64 * 64;
        at = static_cast<Real *>(aligned_alloc(64, bytes));
#if defined(ILM_PLUGINS_CHECKED)
        if (at)
            memset(at, 0xff, bytes); // NaN, which spreads from values that are read too early
#endif
    }

    ~Memory() { free(at); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
};

template <class Real> class Arena {
  public:
    // An arena that measures: all its arrays are null.
    Arena() = default;

    explicit Arena(Real *memory) : memory(memory) { }

    bool measures() const { return memory == nullptr; }

    // The number of reals that have been taken.
    int64_t size() const { return used; }

#if !defined(ILM_PLUGINS_CHECKED)
    Real *take(int64_t count)
    {
        Real *at = measures() ? nullptr : memory + used;
        used += count;
        return at;
    }
#else
    Real *take(int64_t count, int line = __builtin_LINE(), const char *file = __builtin_FILE())
    {
        if (used == 0)
            guard(line, file);
        Real *at = measures() ? nullptr : memory + used;
        used += count;
        guard(line, file);
        return at;
    }

    ~Arena()
    {
        for (int i = 0; i < count_of_zones && !measures(); i++)
            for (int64_t j = 0; j < ZONE; j++)
                if (memcmp(zones[i].at + j, &pattern, sizeof pattern) != 0) {
                    fprintf(stderr, "%s:%d: the array that is taken here overflows\n",
                            zones[i].file, zones[i].line);
                    abort();
                }
    }
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;

  private:
    enum { ZONE = 16, MOST_ZONES = 64 };

    void guard(int line, const char *file)
    {
        if (count_of_zones == MOST_ZONES)
            abort();
        zones[count_of_zones++] = {memory + used, file, line};
        for (int64_t j = 0; j < ZONE && !measures(); j++)
            memory[used + j] = pattern;
        used += ZONE;
    }

    struct {
        Real *at;
        const char *file;
        int line;
    } zones[MOST_ZONES];
    int count_of_zones = 0;
    const Real pattern = Real(-8.0390625e-12);
#endif

  private:
    Real *memory = nullptr;
    int64_t used = 0;
};

} // namespace
