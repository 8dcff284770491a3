// Sparsestmax: the ratios of sparse SN, from their logits; see layers/sparse.py.
#pragma once

#include "../mixed_normalizers.hpp"

namespace {

// A point on a face of the simplex, given by its logits.
template <class Real> struct Face {
    Real c[MAX_NORMALIZERS] = {}; // logits minus their mean on the face; zeros outside
    bool inside[MAX_NORMALIZERS] = {};
    Real size = 0;                 // of the face
    Real squares = 0, stretch = 1; // the sum of squares of c, and its factor
    bool stretches = false;
};

constexpr float tiny(float) { return 1.17549435e-38F; } // the smallest normal number
constexpr double tiny(double) { return 2.2250738585072014e-308; }

// Compute sparsestmax of n logits; returns the face that it ends on.
template <class Real>
Face<Real> sparsestmax(const Real *given, Real radius, int64_t n, Real *ratios)
{
    Face<Real> face;
    Real logits[MAX_NORMALIZERS], top[MAX_NORMALIZERS], largest = given[0], first = 0;
    for (int64_t i = 1; i < n; i++)
        largest = given[i] > largest || std::isnan(given[i]) ? given[i] : largest;
    for (int64_t i = 0; i < n; i++) { // sorted by insertion
        int64_t j = i;
        logits[i] = given[i] - largest;
        for (; j > 0 && top[j - 1] < logits[i]; j--)
            top[j] = top[j - 1];
        top[j] = logits[i];
    }
    Real gap[MAX_NORMALIZERS], squares[MAX_NORMALIZERS];
    for (int64_t i = 0; i < n; i++) { // of the i + 1 largest
        Real mean = 0;
        squares[i] = 0;
        for (int64_t j = 0; j <= i; j++)
            mean += top[j];
        mean /= Real(i + 1);
        for (int64_t j = 0; j <= i; j++)
            squares[i] += (top[j] - mean) * (top[j] - mean);
        gap[i] = Real(i + 1) * (mean - top[i]);
        first += !(gap[i] >= 1);
    }
    for (int64_t i = 0; i < n; i++) {
        Real rho_squared = at_least(radius * radius - 1 / Real(i + 1) + 1 / first, Real(0));
        Real factor = at_least(rho_squared / at_least(squares[i], tiny(Real())), Real(1));
        Real stretched = factor * gap[i] * gap[i];
        if (!(stretched >= 1))
            face.size = Real(i + 1);
    }
    Real mean = 0;
    for (int64_t i = 0; i < n; i++) {
        face.inside[i] = !(logits[i] < top[int64_t(face.size) - 1]);
        mean += face.inside[i] ? logits[i] : 0;
    }
    mean /= face.size;
    for (int64_t i = 0; i < n; i++) {
        face.c[i] = face.inside[i] ? logits[i] - mean : 0;
        face.squares += face.c[i] * face.c[i];
    }
    Real rho_squared = at_least(radius * radius - 1 / face.size + 1 / first, Real(0));
    if (face.squares > tiny(Real())) {
        face.stretches = rho_squared / face.squares >= 1;
        face.stretch = std::sqrt(at_least(rho_squared / face.squares, Real(1)));
    }
    for (int64_t i = 0; i < n; i++)
        ratios[i] = (face.inside[i] ? 1 / face.size : 0) + face.stretch * face.c[i];
    return face;
}

// Replace the gradients of the ratios by the logits' gradients: the vector-Jacobian product within
// the face.
template <class Real> void sparsestmax_vjp(const Face<Real> &face, int64_t n, Real *gradients)
{
    Real along = 0, mean = 0;
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

} // namespace
