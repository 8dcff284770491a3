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

#if defined(ILM_PLUGINS_CHECKED)
// The red zones of an arena. They have one value, which is compared when the arena ends.
template <class Real> class RedZones {
  public:
    static constexpr int64_t SIZE = 16;

    RedZones() = default;
    RedZones(const RedZones &) = delete;
    RedZones &operator=(const RedZones &) = delete;

    ~RedZones()
    {
        for (int i = 0; i < count; i++)
            for (int64_t j = 0; j < SIZE; j++)
                if (zones[i].at[j] != VALUE)
                    fail(zones[i]);
    }

    // A zone beside an array that is taken in a line of a file.
    void add(Real *at, const char *file, int line)
    {
        if (count == MOST)
            abort();
        zones[count++] = {at, file, line};
        for (int64_t j = 0; j < SIZE; j++)
            at[j] = VALUE;
    }

  private:
    static constexpr int MOST = 64;
    static constexpr Real VALUE = Real(-8.0390625e-12);

    struct Zone {
        Real *at;
        const char *file;
        int line;
    };
    Zone zones[MOST];
    int count = 0;

    static void fail(const Zone &zone)
    {
        fprintf(stderr, "%s:%d: the array that is taken here overflows\n", zone.file, zone.line);
        abort();
    }
};
#else
template <class Real> struct RedZones {
    static constexpr int64_t SIZE = 0;

    void add(Real *, const char *, int) { }
};
#endif

template <class Real> class Arena {
  public:
    // An arena that measures: all its arrays are null.
    Arena() = default;

    explicit Arena(Real *memory) : memory(memory) { }

    bool measures() const { return memory == nullptr; }

    // The number of reals that have been taken.
    int64_t size() const { return used; }

    // An array of `count` reals. The caller's file and line are for the red zones.
    Real *take(int64_t count, const char *file = __builtin_FILE(), int line = __builtin_LINE())
    {
        if (used == 0)
            separate(file, line);
        Real *at = measures() ? nullptr : memory + used;
        used += count;
        separate(file, line);
        return at;
    }

  private:
    Real *memory = nullptr;
    int64_t used = 0;
    RedZones<Real> zones;

    void separate(const char *file, int line)
    {
        if (!measures())
            zones.add(memory + used, file, line);
        used += RedZones<Real>::SIZE;
    }
};

} // namespace
